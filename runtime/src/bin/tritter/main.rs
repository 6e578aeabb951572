//! `tritter`: runs and measures models that `tritterc` has compiled.
//!
//! Exit codes: 0 done, 1 failure, 2 wrong usage, 130 ended by Ctrl-C. What was generated until Ctrl-C is printed whole; training that is ended by
//! it keeps a checkpoint and is done.

// The short name that it has everywhere else.
extern crate tritter_runtime as runtime;

mod run;
mod timeline;
mod logits;
mod eval;
mod compare;
mod verify_context;
mod bench;
mod csv;
mod tune;
#[cfg(feature = "tokenize")]
mod tokenize;
#[cfg(feature = "tokenize")]
mod shard;
mod train;
mod ui;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs and measures models that tritterc has compiled.
///
/// Results go to standard output, messages and progress to standard error. Exit codes: 0 done, 1 failure, 2 wrong usage, 130 ended by
/// Ctrl-C.
#[derive(Parser)]
#[command(version, about, long_about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Args),
    Logits(logits::Args),
    Eval(eval::Args),
    Compare(compare::Args),
    VerifyContext(verify_context::Args),
    Bench(bench::Args),
    Tune(tune::Args),
    #[cfg(feature = "tokenize")]
    Tokenize(tokenize::Args),
    #[cfg(feature = "tokenize")]
    Shard(shard::Args),
    Train(train::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::VerifyContext(args) => verify_context::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Tune(args) => tune::run(&args),
        #[cfg(feature = "tokenize")]
        Command::Tokenize(args) => tokenize::run(&args),
        #[cfg(feature = "tokenize")]
        Command::Shard(args) => shard::run(&args),
        // Whoever ends a run of training gets a checkpoint, which is what was asked for.
        Command::Train(args) => return exit(train::run(&args), false),
    };
    exit(result, ui::is_interrupted())
}

fn exit(result: anyhow::Result<()>, is_interrupted: bool) -> ExitCode {
    match result {
        Ok(()) if is_interrupted => ExitCode::from(ui::INTERRUPTED),
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if ui::is_cancelled(&error) => ExitCode::from(ui::INTERRUPTED),
        // Whoever reads our output has had enough of it, as `head` does.
        Err(error) if ui::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            ui::message(&format!("error: {}", chain(&error)));
            if ui::is_usage(&error) { ExitCode::from(ui::USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// An error and its causes; a cause that the error names itself is not told twice.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
