//! `tritterc print`: the program of a model, or the one that gives its gradients, as text.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Result, bail};
use compiler::autodiff::{Keep, Options, differentiate, with_cross_entropy};
use ir::{Program, Symbol, Verified, verify};

use crate::model::{self, BuildArgs, Named};
use crate::{say, say_json};

/// Prints a model's program in the text form, or its spec.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  tritterc print tiny\n  tritterc print models/bitnet-code-nano --spec\n  tritterc print tiny --gradients inputs --chunk 64 --logits 64\n  tritterc print --list"
)]
pub(crate) struct Args {
    /// Checkpoint directory, .ron spec, .tri program, or name of a shipped spec.
    #[arg(required_unless_present = "list")]
    model: Option<String>,
    /// Print the spec instead of the program.
    #[arg(long)]
    spec: bool,
    /// Print the program that gives the loss of one call, of as many tokens and rows as one may have, and the gradients of all real parameters. What a
    /// layer leaves for its backward pass: what that reads, or what entered the layer only. The loss is the mean cross-entropy with the input `targets`; of a
    /// .tri program, its first output.
    #[arg(long, value_enum, value_name = "KEEP", conflicts_with_all = ["spec", "list"])]
    gradients: Option<Kept>,
    /// Name the shipped specs.
    #[arg(long)]
    list: bool,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    build: BuildArgs,
}

/// What layers leave for their backward pass.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Values,
    Inputs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Some(name) = &args.model else {
        let names: Vec<&str> = models::shipped().iter().map(|(name, _)| *name).collect();
        match args.json {
            true => say_json(&serde_json::json!({ "specs": names }))?,
            false => say(&names.join("\n"))?,
        }
        return Ok(ExitCode::SUCCESS);
    };
    let named = model::find(name)?;
    let (what, text) = match (&named, args.spec) {
        (Named::Spec(spec) | Named::Checkpoint { spec, .. }, true) => ("spec", spec.to_ron()),
        (Named::Program { path, .. }, true) => bail!("{} is a program and has no spec", path.display()),
        (_, false) => {
            let mut program = model::build(&named, &args.build)?.program;
            if let Some(kept) = args.gradients {
                let is_model = !matches!(named, Named::Program { .. });
                program = gradients(&program, is_model, kept, &args.build)?;
            }
            ("program", ir::text::print(&program))
        }
    };
    match args.json {
        true => say_json(&serde_json::json!({ what: text }))?,
        false => say(&text)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The program of the loss and of the gradients of all real parameters.
fn gradients(program: &Verified<Program>, is_model: bool, kept: Kept, build: &BuildArgs) -> Result<Verified<Program>> {
    let program = if is_model { with_cross_entropy(program, 0)? } else { program.clone() };
    let sizes = [("n", build.chunk), ("m", build.logits)].map(|(name, size)| (Symbol::new(name), u64::from(size)));
    let program = verify(program.bind(&sizes))?;
    let params = program.graphs.iter().flat_map(|graph| graph.params().map(move |(value, key)| (graph.ty(value), key)));
    let real: BTreeSet<&str> = params.filter(|(ty, _)| ty.dtype.is_float()).map(|(_, key)| &**key).collect();
    let keep = match kept {
        Kept::Values => Keep::Values,
        Kept::Inputs => Keep::Inputs,
    };
    Ok(differentiate(&program, &Options { loss: 0, wanted: &|key| real.contains(key), keep })?.program)
}
