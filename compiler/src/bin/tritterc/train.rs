//! `tritterc train`: a step of training as an artifact.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use compiler::artifact::ArtifactError;
use compiler::autodiff::Keep;
use compiler::optimiser::AdamW;
use compiler::report::human_bytes;
use compiler::target::Hardware;
use compiler::training::{Batch, Precision, Step, StepOptions};
use compiler::weights::{JoinedWeights, RandomWeights, WeightSource};
use compiler::{Options, Target, artifact};
use ir::plan::Budget;
use models::spec::KvFormat;
use models::{BuildOptions, HeadFormat, Naming};

use crate::lora::LoraArgs;
use crate::model::{self, Named};
use crate::nvrtc;
use crate::opt::{self, Packing};
use crate::say;

/// Compiles a step of training to an artifact that `tritter train` runs.
///
/// Every real parameter is trained, with AdamW, or with --lora-rank adapters beside a base that stays as it is. A spec whose ternary weights are stored packed is trained on real weights, made ternary in each
/// call: by the mean magnitude of the matrix where it has one scale, by that of the row where each row has one.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
tritterc train test -o step --random-weights 1 --context 256 --sequences 4    a shipped spec, from random weights\n  \
tritterc train my.ron -o step --random-weights 1 --keep inputs              less memory, for a second forward pass\n  \
tritterc train ./bitnet-online -o step --context 512                        goes on with a checkpoint of real weights\n  \
tritterc train ./bitnet-packed -o step --lora-rank 16 --keep inputs         adapters only, beside packed weights\n  \
tritter train config.ron                                                    runs it; see `tritter train --help`\n  \
tritterc compile test -o model --weights runs/a/step-00001000/states.safetensors      what came out, to generate with")]
pub(crate) struct Args {
    /// Checkpoint directory, of real weights where these are trained, .ron spec, or name of a shipped spec.
    model: String,
    /// Directory to write; an artifact that is there is replaced.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// CPU or GPU to compile for; see `tritterc compile`.
    #[arg(long, value_name = "TARGET", default_value = "native")]
    target: Target,
    /// NVRTC, or the folder that has it, for CUDA targets.
    #[arg(long, value_name = "PATH")]
    nvrtc: Option<PathBuf>,
    /// Positions of a sequence [default: the model's, at most 512].
    #[arg(long, value_name = "N")]
    context: Option<u32>,
    /// Sequences of a batch: a call has as many tokens as all of them have positions.
    #[arg(long, value_name = "N", default_value_t = 1)]
    sequences: u32,
    /// What a layer leaves for its backward pass: what that reads, or what entered the layer only, from which it is computed again.
    #[arg(long, value_enum, default_value = "values")]
    keep: KeepArg,
    /// What dense products are computed in: f32, which is the same on all targets, or bf16 with sums in f32, for which a GPU needs cuBLASLt where
    /// the step runs [default: bf16 for GPUs, f32 for CPUs].
    #[arg(long, value_name = "f32|bf16")]
    precision: Option<Precision>,
    #[command(flatten)]
    lora: LoraArgs,
    /// How slowly the mean of gradients moves.
    #[arg(long, value_name = "B", default_value_t = 0.9)]
    beta1: f64,
    /// How slowly the mean of their squares moves.
    #[arg(long, value_name = "B", default_value_t = 0.95)]
    beta2: f64,
    /// What is added to the root of that mean.
    #[arg(long, value_name = "E", default_value_t = 1e-8, allow_negative_numbers = true)]
    eps: f64,
    /// The largest global norm that gradients keep; 0 leaves them as they are.
    #[arg(long, value_name = "NORM", default_value_t = 1.0, allow_negative_numbers = true)]
    clip: f64,
    /// Fill the weights from this seed instead of a checkpoint.
    #[arg(long, value_name = "SEED")]
    random_weights: Option<u64>,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum KeepArg {
    Values,
    Inputs,
}

/// The longest context that is not asked for.
const DEFAULT_CONTEXT: u32 = 512;

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let start = Instant::now();
    check(args)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    // Without a handler an interrupt would leave the temporary directory behind; with none to be had that is all that is lost.
    let _ = ctrlc::set_handler(move || flag.store(true, Ordering::SeqCst));
    let named = model::find(&args.model)?;
    match (&named, args.random_weights) {
        (Named::Spec(_), None) => bail!("a spec has no weights to begin with: give --random-weights SEED"),
        (Named::Checkpoint { .. }, Some(_)) => bail!("a checkpoint has weights: leave out --random-weights"),
        _ => {}
    }
    let adapters = args.lora.adapters()?;
    let (spec, naming) = match &named {
        Named::Spec(spec) if adapters.is_some() => (models::Spec::clone(spec), Naming::Own),
        Named::Spec(spec) => (spec.trainable(), Naming::Own),
        Named::Checkpoint { spec, naming, .. } => (models::Spec::clone(spec), *naming),
        Named::Program { path, .. } => {
            bail!("{} is a program; what is trained is a spec or a checkpoint", path.display())
        }
    };
    let context = args.context.unwrap_or(spec.context.min(DEFAULT_CONTEXT));
    let tokens = context.checked_mul(args.sequences).context("a batch has fewer than 2^32 tokens")?;
    let options = BuildOptions {
        context,
        sequences: args.sequences,
        chunk: tokens,
        logits: tokens,
        kv: KvFormat::F32,
        head: HeadFormat::Stored,
        naming,
    };
    let built = match &adapters {
        Some(adapters) => models::decoder::build_adapted(&spec, &options, adapters),
        None => models::build(&spec, &options),
    };
    let built = built.map_err(|error| anyhow!("`{}` cannot be built: {error}", spec.name))?;
    let packed = built.params.iter().filter(|param| !param.ty.dtype.is_float()).count();
    if adapters.is_none() && packed != 0 {
        bail!(
            "`{}` has packed weights ({packed} parameters of its layers), which nothing can be added to; give a checkpoint of real weights, a spec, or \
             --lora-rank to train adapters",
            spec.name
        );
    }
    let candidates = if adapters.is_some() { &built.adapters } else { &built.params };
    let is_wanted = |key: &str| candidates.iter().any(|param| param.key == key && param.ty.dtype.is_float());
    // Vectors are norms, biases and scales, which do not decay.
    let is_matrix = |key: &str| candidates.iter().any(|param| param.key == key && param.ty.shape.rank() == 2);
    let clip = (args.clip != 0.0).then_some(args.clip);
    let step = Step::new(
        &built.program,
        &StepOptions {
            batch: Batch { sequences: u64::from(args.sequences), context: u64::from(context) },
            wanted: &is_wanted,
            decays: &is_matrix,
            keep: if args.keep == KeepArg::Values { Keep::Values } else { Keep::Inputs },
            precision: args.precision.unwrap_or(match args.target.hardware() {
                Hardware::Cpu { .. } => Precision::F32,
                Hardware::Cuda(_) => Precision::Bf16,
            }),
            optimiser: AdamW { beta1: args.beta1, beta2: args.beta2, eps: args.eps, clip },
        },
    )
    .map_err(|error| anyhow!("`{}` cannot be trained: {error}", spec.name))?;
    let trained: u64 = candidates.iter().filter(|param| is_wanted(&param.key)).map(|param| param.elements()).sum();
    let compile_options = Options {
        // One packing for both directions, so that weights are stored once.
        rewrite: opt::rewrite_options(true, None, if adapters.is_some() { Packing::TwoBit } else { Packing::Auto }),
        context: u64::from(context),
        sequences: u64::from(args.sequences),
        dumps: false,
        nvrtc: nvrtc::search(args.nvrtc.as_deref()),
        residency: compiler::schedule::Residency::default(),
        budget: Budget::default(),
        allow_spills: false,
    };
    let compiled = compiler::compile_step(step, &args.target, &compile_options)?;
    let tokenizer = model::tokenizer(&named)?;
    let mut sources: Vec<Box<dyn WeightSource>> = vec![match (args.random_weights, named) {
        (Some(seed), _) => Box::new(RandomWeights { seed, params: built.params }),
        (None, Named::Checkpoint { checkpoint, .. }) => Box::new(checkpoint.bind(built.params)),
        (None, _) => unreachable!("a spec without weights was refused"),
    }];
    if !built.adapters.is_empty() {
        sources.push(args.lora.weights(built.adapters)?);
    }
    let weights = JoinedWeights(sources);
    let progress = |_| match interrupted.load(Ordering::SeqCst) {
        true => Err(io::Error::from(io::ErrorKind::Interrupted)),
        false => Ok(()),
    };
    let written = artifact::write(&args.output, &compiled, Some(&weights), tokenizer.as_deref(), &progress);
    let bytes = match written {
        Err(ArtifactError::Io { .. }) if interrupted.load(Ordering::SeqCst) => {
            eprintln!("interrupted: nothing was written");
            return Ok(ExitCode::from(130));
        }
        written => written?,
    };
    let memory = compiled.report.memory;
    let text = if args.json {
        let value = serde_json::json!({
            "model": compiled.report.model,
            "target": compiled.report.target,
            "output": args.output.display().to_string(),
            "tokens": tokens,
            "trained_parameters": trained,
            "artifact_bytes": bytes,
            "peak_bytes": memory.peak(),
            "state_bytes": memory.states,
            "scratch_bytes": memory.scratch,
            "seconds": start.elapsed().as_secs_f64(),
        });
        serde_json::to_string_pretty(&value)?
    } else {
        let parts: Vec<String> = memory.parts().map(|(what, bytes)| format!("{what} {}", human_bytes(bytes))).collect();
        format!(
            "{} for {} in {:.2} s -> {} ({})\ntrains {trained} parameters on {tokens} tokens a call\nneeds {}: {}\nrun it: tritter train --help\n",
            compiled.report.model,
            compiled.report.target,
            start.elapsed().as_secs_f64(),
            args.output.display(),
            human_bytes(bytes),
            human_bytes(memory.peak()),
            parts.join("; ")
        )
    };
    say(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses numbers that mean nothing, all at once.
fn check(args: &Args) -> Result<()> {
    let mut problems = Vec::new();
    for (name, beta) in [("--beta1", args.beta1), ("--beta2", args.beta2)] {
        if !(0.0..1.0).contains(&beta) {
            problems.push(format!("{name} is {beta}; it is at least 0 and below 1"));
        }
    }
    // The step computes in f32.
    if !(0.0 < args.eps as f32 && (args.eps as f32).is_finite()) {
        problems.push(format!("--eps is {}; it is above 0, and a number of f32", args.eps));
    }
    if args.clip < 0.0 || !(args.clip as f32).is_finite() {
        problems.push(format!("--clip is {}; it is a norm, or 0 for none", args.clip));
    }
    for (name, size) in [("--sequences", Some(args.sequences)), ("--context", args.context)] {
        if size == Some(0) {
            problems.push(format!("{name} is 0; there is at least one"));
        }
    }
    if problems.is_empty() { Ok(()) } else { bail!(problems.join("\n")) }
}
