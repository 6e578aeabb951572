//! `tritterc print`: the program of a model, as text.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::model::{self, BuildArgs, Named};
use crate::{say, say_json};

/// Prints a model's program in the text form, or its spec.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  tritterc print tiny\n  tritterc print models/bitnet-code-nano --spec\n  tritterc print --list"
)]
pub(crate) struct Args {
    /// Checkpoint directory, .ron spec, .tri program, or name of a shipped spec.
    #[arg(required_unless_present = "list")]
    model: Option<String>,
    /// Print the spec instead of the program.
    #[arg(long)]
    spec: bool,
    /// Name the shipped specs.
    #[arg(long)]
    list: bool,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    build: BuildArgs,
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
        (_, false) => ("program", ir::text::print(&model::build(&named, &args.build)?.program)),
    };
    match args.json {
        true => say_json(&serde_json::json!({ what: text }))?,
        false => say(&text)?,
    }
    Ok(ExitCode::SUCCESS)
}
