//! `tritterc verify`: every error of a model, a program or an artifact.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use ir::plan::Plan;
use ir::plan::manifest::{self, Manifest, Part};

use crate::model::{self, BuildArgs};
use crate::{say, say_json};

/// Checks a model, a .tri program or an artifact, and lists every error.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  tritterc verify my.ron\n  tritterc verify program.tri\n  tritterc verify artifact/"
)]
pub(crate) struct Args {
    /// Artifact directory, checkpoint directory, .ron spec, .tri program, or name of a shipped spec.
    model: String,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    build: BuildArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let checked = check(args);
    if !args.json {
        say(&format!("ok: {}", checked?))?;
        return Ok(ExitCode::SUCCESS);
    }
    let errors: Vec<String> = match &checked {
        Ok(_) => Vec::new(),
        Err(error) => format!("{error:#}").lines().map(str::to_owned).collect(),
    };
    let is_ok = checked.is_ok();
    say_json(&serde_json::json!({ "ok": is_ok, "what": checked.unwrap_or_default(), "errors": errors }))?;
    Ok(if is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was found to be in order.
fn check(args: &Args) -> Result<String> {
    let plan = Path::new(&args.model).join(manifest::PLAN);
    if plan.is_file() {
        let text = std::fs::read_to_string(&plan).with_context(|| format!("cannot read {}", plan.display()))?;
        let plan = Plan::from_ron(&text).map_err(|error| anyhow!("{}: {error}", plan.display()))?;
        parts(Path::new(&args.model))?;
        return Ok(format!(
            "an artifact with a plan of {} buffers, {} kernels, {} phases",
            plan.buffers.len(),
            plan.kernels.len(),
            plan.phases.len()
        ));
    }
    let program = model::program(&args.model, &args.build)?;
    let values: usize = program.graphs.iter().map(|graph| graph.values.len()).sum();
    Ok(format!("a program of {} graphs and {values} values", program.graphs.len()))
}

/// The files of an artifact are what its manifest says.
fn parts(directory: &Path) -> Result<()> {
    let path = directory.join(manifest::MANIFEST);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest = Manifest::from_ron(&text).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    let problem = |part: &Part| {
        let hash = std::fs::File::open(directory.join(&part.file))
            .and_then(|file| Ok(blake3::Hasher::new().update_reader(file)?.finalize().to_hex()));
        match hash {
            Err(error) => Some(format!("{} cannot be read: {error}", part.file)),
            Ok(hash) if *hash != *part.blake3 => {
                Some(format!("{} is damaged: its hash is not the manifest's", part.file))
            }
            Ok(_) => None,
        }
    };
    let problems: Vec<String> = manifest.parts.iter().filter_map(problem).collect();
    if problems.is_empty() { Ok(()) } else { bail!("{} is damaged:\n{}", directory.display(), problems.join("\n")) }
}
