//! `tritter-curate`: the stages of this crate over directories and JSONL files.

mod contamination;
mod duplicates;
mod input;
mod kernels;
mod quality;
mod run;
mod secrets;
mod security;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tritter_curation::duplicates::{Bands, Keep};

/// Says what of a code corpus to train on, and why.
#[derive(Parser)]
#[command(name = "tritter-curate", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Runs every stage: writes `documents.jsonl`, `report.html` and `report.txt`, and shows the report.
    Run {
        /// Directories, files, or `.jsonl` files whose objects have a `text`.
        #[arg(required = true)]
        inputs: Vec<PathBuf>,
        /// Only files whose name ends so; all of known languages if absent.
        #[arg(long)]
        ending: Vec<String>,
        /// The folder of the output.
        #[arg(short, long)]
        out: PathBuf,
        /// Takes documents of any licence, and of none.
        #[arg(long)]
        any_licence: bool,
        #[command(flatten)]
        against: contamination::Against,
    },
    /// Lists what of evaluation sets stands in a corpus, one JSON object a line.
    #[command(mut_arg("against", |argument| argument.required(true)))]
    Contamination {
        /// Directories, files, or `.jsonl` files whose objects have a `text`.
        #[arg(required = true)]
        inputs: Vec<PathBuf>,
        /// Only files whose name ends so; all text files if absent.
        #[arg(long)]
        ending: Vec<String>,
        #[command(flatten)]
        against: contamination::Against,
    },
    /// Lists credentials, one JSON object a line, and how fast they were looked for.
    Secrets {
        /// Directories, files, or `.jsonl` files whose objects have a `text`.
        #[arg(required = true)]
        inputs: Vec<PathBuf>,
        /// Only files whose name ends so; all text files if absent.
        #[arg(long)]
        ending: Vec<String>,
    },
    /// Lists what is dangerous in Python, Triton, Rust and CUDA, one JSON object a line.
    Security {
        /// Directories, files, or `.jsonl` files whose objects have a `text`.
        #[arg(required = true)]
        inputs: Vec<PathBuf>,
    },
    /// Judges and measures every document, one JSON object a line.
    Quality {
        /// Directories, files, or `.jsonl` files whose objects have a `text`.
        #[arg(required = true)]
        inputs: Vec<PathBuf>,
        /// Only files whose name ends so; all text files if absent.
        #[arg(long)]
        ending: Vec<String>,
    },
    /// Lists copies and near-copies, one JSON object a line, with the document that stays.
    Duplicates {
        /// Directories, files, or `.jsonl` files whose objects have a `text`.
        #[arg(required = true)]
        inputs: Vec<PathBuf>,
        /// Only files whose name ends so; all text files if absent.
        #[arg(long)]
        ending: Vec<String>,
        /// The least Jaccard similarity, over shingles of five words.
        #[arg(long, default_value_t = 0.8, value_parser = similarity)]
        threshold: f64,
        /// How many bands.
        #[arg(long, default_value_t = Bands::DEFAULT.n, value_parser = positive)]
        bands: usize,
        /// How many slots a band has.
        #[arg(long, default_value_t = Bands::DEFAULT.rows, value_parser = positive)]
        rows: usize,
        /// Keeps the longest document of a cluster in place of the first.
        #[arg(long)]
        longest: bool,
        /// Compares all pairs too, and prints recall and precision.
        #[arg(long)]
        check: bool,
    },
    /// Extracts Triton kernels with their helpers and launchers, one JSON object a line.
    Kernels {
        /// Directories, files, or `.jsonl` files whose objects have a `text`.
        #[arg(required = true)]
        inputs: Vec<PathBuf>,
        /// Lists copies of a kernel too.
        #[arg(long)]
        copies: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the output has had enough of it.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes a line of the output; a pipe that nobody reads any more is an error like others.
fn say(line: &impl std::fmt::Display) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{line}")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run { inputs, ending, out, any_licence, against } => {
            run::run(&inputs, &ending, &out, any_licence, &against)
        }
        Command::Contamination { inputs, ending, against } => contamination::run(&inputs, &ending, &against),
        Command::Secrets { inputs, ending } => secrets::run(&inputs, &ending),
        Command::Security { inputs } => security::run(&inputs),
        Command::Quality { inputs, ending } => quality::run(&inputs, &ending),
        Command::Duplicates { inputs, ending, threshold, bands, rows, longest, check } => {
            let keep = if longest { Keep::Longest } else { Keep::First };
            duplicates::run(&inputs, &ending, Bands { n: bands, rows }, threshold, keep, check)
        }
        Command::Kernels { inputs, copies } => kernels::run(&inputs, copies),
    }
}

fn similarity(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value| (0.0..=1.0).contains(value));
    value.ok_or_else(|| format!("`{text}` is no similarity between 0 and 1"))
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be 1 or more".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}
