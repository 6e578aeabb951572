//! `tritterc opt`: a program after just some of the optimiser's stages.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use compiler::Target;
use compiler::rewrite;
use ir::packing::TernaryLayout;

use crate::model::{self, BuildArgs};
use crate::{say, say_json};

/// Prints a model's program after the optimiser, or after some of its stages.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  tritterc opt tiny\n  tritterc opt program.tri --passes canonicalise,ternary --report"
)]
pub(crate) struct Args {
    /// Checkpoint directory, .ron spec, .tri program, or name of a shipped spec.
    model: String,
    /// Run only these stages: canonicalise, ternary, fuse, merge.
    #[arg(long, value_delimiter = ',', value_name = "STAGE,...", value_parser = stage_names())]
    passes: Option<Vec<String>>,
    /// Print which rules fired instead of the program.
    #[arg(long)]
    report: bool,
    /// CPU to optimise for.
    #[arg(long, default_value = "native")]
    target: Target,
    /// Rates that `tritter tune` measured on the machine to compile for, instead of guesses.
    #[arg(long, value_name = "FILE")]
    tuning: Option<PathBuf>,
    /// How ternary weights are packed: the faster way for each matmul by the machine's rates, or one way.
    #[arg(long, value_enum, default_value = "auto")]
    packing: Packing,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    build: BuildArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let program = model::program(&args.model, &args.build)?;
    let options = rewrite_options(true, args.passes.clone(), args.packing);
    let (optimised, report) =
        rewrite::optimise(&program, &model::tuned(&args.target, args.tuning.as_deref())?, &options)?;
    if args.json {
        let report = crate::explain::json(&report);
        say_json(&serde_json::json!({ "program": ir::text::print(&optimised), "report": report }))?;
        return Ok(ExitCode::SUCCESS);
    }
    say(&if args.report { report.to_string() } else { ir::text::print(&optimised) })?;
    Ok(ExitCode::SUCCESS)
}

fn stage_names() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(rewrite::STAGES.iter().map(|stage| stage.name))
}

/// How ternary weights may be packed.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    // Whichever is fastest by the rates of the machine, for each matmul.
    Auto,
    // Four weights a byte.
    #[value(name = "2bit")]
    TwoBit,
    // Five weights a byte, where the activations are int8.
    #[value(name = "1.6bit")]
    Base3,
}

/// What the optimiser may do: everything, nothing, or only some stages; and how it may pack weights.
pub(crate) fn rewrite_options(optimise: bool, stages: Option<Vec<String>>, packing: Packing) -> rewrite::Options {
    let options = match (optimise, stages) {
        (true, Some(stages)) => rewrite::Options { stages, ..rewrite::Options::all() },
        (true, None) => rewrite::Options::all(),
        (false, _) => rewrite::Options::none(),
    };
    let packing = match packing {
        Packing::Auto => None,
        Packing::TwoBit => Some(TernaryLayout::Tile16),
        Packing::Base3 => Some(TernaryLayout::Tile16Base3),
    };
    rewrite::Options { packing, ..options }
}
