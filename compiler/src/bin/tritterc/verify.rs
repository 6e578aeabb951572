//! `tritterc verify`: every error of a model, a program or an artifact's plan.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use ir::plan::{Plan, manifest};

use crate::model::{self, BuildArgs};
use crate::say;

/// Checks a model, a .tri program or an artifact's plan, and lists every error.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  tritterc verify my.ron\n  tritterc verify program.tri\n  tritterc verify artifact/"
)]
pub(crate) struct Args {
    /// Artifact directory, checkpoint directory, .ron spec, .tri program, or name of a shipped spec.
    model: String,
    #[command(flatten)]
    build: BuildArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let plan = Path::new(&args.model).join(manifest::PLAN);
    if plan.is_file() {
        let text = std::fs::read_to_string(&plan).with_context(|| format!("cannot read {}", plan.display()))?;
        let plan = Plan::from_ron(&text).map_err(|error| anyhow!("{}: {error}", plan.display()))?;
        say(&format!(
            "ok: a plan of {} buffers, {} kernels, {} phases",
            plan.buffers.len(),
            plan.kernels.len(),
            plan.phases.len()
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    let program = model::program(&args.model, &args.build)?;
    let values: usize = program.graphs.iter().map(|graph| graph.values.len()).sum();
    say(&format!("ok: a program of {} graphs and {values} values", program.graphs.len()))?;
    Ok(ExitCode::SUCCESS)
}
