//! `tritterc diff`: what two models or artifacts have differently.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use similar::TextDiff;

use crate::model::{self, BuildArgs};
use crate::{say, say_json};

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
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    build: BuildArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (left, right) = (text(&args.left, &args.build)?, text(&args.right, &args.build)?);
    let diff = TextDiff::from_lines(&left, &right);
    let text = diff.unified_diff().header(&args.left, &args.right).to_string();
    if args.json {
        say_json(&serde_json::json!({ "equal": left == right, "diff": text }))?;
    } else if left != right {
        say(&text)?;
    }
    Ok(if left == right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(name: &str, args: &BuildArgs) -> Result<String> {
    let plan = Path::new(name).join(ir::plan::manifest::PLAN);
    if plan.is_file() {
        return std::fs::read_to_string(&plan).with_context(|| format!("cannot read {}", plan.display()));
    }
    Ok(ir::text::print(&*model::program(name, args)?))
}
