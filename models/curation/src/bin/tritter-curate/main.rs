//! `tritter-curate`: the stages of this crate over directories and JSONL files.

mod input;
mod kernels;
mod quality;
mod secrets;

use std::path::PathBuf;

use clap::Parser;

/// Says what of a code corpus to train on, and why.
#[derive(Parser)]
#[command(name = "tritter-curate", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Lists credentials, one JSON object a line, and how fast they were looked for.
    Secrets {
        /// Directories, files, or `.jsonl` files whose objects have a `text`.
        #[arg(required = true)]
        inputs: Vec<PathBuf>,
        /// Only files whose name ends so; all text files if absent.
        #[arg(long)]
        ending: Vec<String>,
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

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Secrets { inputs, ending } => secrets::run(&inputs, &ending),
        Command::Quality { inputs, ending } => quality::run(&inputs, &ending),
        Command::Kernels { inputs, copies } => kernels::run(&inputs, copies),
    }
}
