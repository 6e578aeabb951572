//! `tritterc emit`: the kernels of a model, as nests, Cranelift IR and assembly.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use compiler::schedule::Residency;
use compiler::{Compiled, Options, Target};
use ir::plan::Budget;

use crate::model::{self, BuildArgs};
use crate::nvrtc;
use crate::{say, say_json};

/// Shows the code that is generated for a model.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  tritterc emit tiny                          the generated kernels' names\n  \
tritterc emit tiny --kernel decoder_norm    nest, Cranelift IR and assembly of one")]
pub(crate) struct Args {
    /// Checkpoint directory, .ron spec, .tri program, or name of a shipped spec.
    model: String,
    /// Show this kernel instead of all names.
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,
    /// CPU or GPU to compile for.
    #[arg(long, default_value = "native")]
    target: Target,
    /// NVRTC, or the folder that has it, for CUDA targets; by default it is looked for in CUDA_HOME, CUDA_PATH, the Python wheel
    /// nvidia-cuda-nvrtc, and where the loader looks.
    #[arg(long, value_name = "PATH")]
    nvrtc: Option<PathBuf>,
    /// Rates that `tritter tune` measured on the machine to compile for, instead of guesses.
    #[arg(long, value_name = "FILE")]
    tuning: Option<PathBuf>,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    build: BuildArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let built = model::build(&model::find(&args.model)?, &args.build)?;
    let options = Options {
        rewrite: crate::opt::rewrite_options(true, None, crate::opt::Packing::Auto),
        context: u64::from(built.context),
        sequences: u64::from(built.sequences),
        dumps: true,
        nvrtc: nvrtc::search(args.nvrtc.as_deref()),
        residency: Residency::default(),
        budget: Budget::default(),
        allow_spills: true,
    };
    let compiled = compiler::compile(built.program, &model::tuned(&args.target, args.tuning.as_deref())?, &options)?;
    let Some(kernel) = &args.kernel else { return list(args, &compiled) };
    let nests = compiled.dumps.iter().find(|dump| dump.name.ends_with("nests.txt")).map_or("", |dump| &dump.text);
    let head = format!("nest {kernel}(");
    let nest = nests.split_inclusive("\n}\n").find(|nest| nest.trim_start().starts_with(&head)).unwrap_or_default();
    if let Some(cuda) = compiled.cuda.iter().find(|cuda| cuda.name == *kernel) {
        if args.json {
            say_json(&serde_json::json!({
                "name": kernel, "target": args.target.to_string(), "nest": nest.trim(), "source": cuda.source,
                "registers": cuda.resources.registers, "shared_bytes": cuda.resources.shared_bytes,
                "spill_bytes": cuda.resources.spill_store_bytes,
            }))?;
        } else {
            say(&cuda.source)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Some(listing) = compiled.code.listings.iter().find(|listing| listing.name == *kernel) else {
        let code = compiled.code.symbols.iter().map(|symbol| symbol.name.as_str());
        let names: Vec<&str> = code.chain(compiled.cuda.iter().map(|cuda| cuda.name.as_str())).collect();
        bail!("no kernel `{kernel}` is generated for `{}`; there are {}", args.model, names.join(", "));
    };
    if args.json {
        say_json(&serde_json::json!({
            "name": kernel, "target": args.target.to_string(), "nest": nest.trim(), "clif": listing.clif,
            "assembly": listing.assembly,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("{nest}\n; Cranelift IR\n{}\n; {}\n{}", listing.clif, args.target, listing.assembly))?;
    Ok(ExitCode::SUCCESS)
}

/// The names of all kernels with their sizes, and what those of a GPU use.
fn list(args: &Args, compiled: &Compiled) -> Result<ExitCode> {
    let code = compiled.code.symbols.iter().map(|symbol| {
        let json = serde_json::json!({ "name": symbol.name, "offset": symbol.offset, "bytes": symbol.len });
        (json, format!("{:>6} B  {}", symbol.len, symbol.name))
    });
    let cuda = compiled.cuda.iter().map(|kernel| {
        let (bytes, used) = (kernel.cubin.len(), &kernel.resources);
        let json = serde_json::json!({
            "name": kernel.name, "bytes": bytes, "registers": used.registers, "shared_bytes": used.shared_bytes,
            "spill_bytes": used.spill_store_bytes,
        });
        (json, format!("{bytes:>6} B  {:>3} registers  {}", used.registers, kernel.name))
    });
    let (kernels, names): (Vec<_>, Vec<_>) = code.chain(cuda).unzip();
    if args.json {
        say_json(&serde_json::json!({ "target": args.target.to_string(), "kernels": kernels }))?;
    } else {
        say(&names.join("\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
