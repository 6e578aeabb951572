//! `tritterc diff`: what two models or artifacts have differently.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use similar::TextDiff;

use crate::model::{self, BuildArgs};
use crate::say;

/// Compares two programs, or the plans of two artifacts, line by line. Exits with 1 if they differ.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  tritterc diff before.tri after.tri\n  tritterc diff artifact-a artifact-b\n  tritterc diff 7b 13b"
)]
pub(crate) struct Args {
    /// Artifact directory, checkpoint directory, .ron spec, .tri program, or name of a shipped spec.
    left: String,
    /// The same, to compare with.
    right: String,
    #[command(flatten)]
    build: BuildArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (left, right) = (text(&args.left, &args.build)?, text(&args.right, &args.build)?);
    if left == right {
        return Ok(ExitCode::SUCCESS);
    }
    let diff = TextDiff::from_lines(&left, &right);
    say(&diff.unified_diff().header(&args.left, &args.right).to_string())?;
    Ok(ExitCode::FAILURE)
}

fn text(name: &str, args: &BuildArgs) -> Result<String> {
    let plan = Path::new(name).join(ir::plan::manifest::PLAN);
    if plan.is_file() {
        return std::fs::read_to_string(&plan).with_context(|| format!("cannot read {}", plan.display()));
    }
    Ok(ir::text::print(&*model::program(name, args)?))
}
