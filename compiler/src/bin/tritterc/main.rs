//! `tritterc`: compiles ternary language models to artifacts, and shows what it does to them.

#![forbid(unsafe_code)]

// The library by its short name, in every module.
extern crate tritter_compiler as compiler;

mod adapter;
mod compile;
mod detect;
mod diff;
mod emit;
mod explain;
mod fit;
mod lora;
mod matrix;
mod memory;
mod model;
mod nvrtc;
mod opt;
mod print;
mod train;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Compiles ternary language models ahead of time.
#[derive(Parser)]
#[command(name = "tritterc", version, about, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "MODEL is a checkpoint directory (config.json and safetensors), a .ron spec, a .tri program, or the name of a\n\
shipped spec (`tritterc print --list` names them). `tritterc help compile` shows examples.\n\n\
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Compile(compile::Args),
    Train(train::Args),
    Adapter(adapter::Args),
    Print(print::Args),
    Verify(verify::Args),
    Opt(opt::Args),
    Explain(explain::Args),
    Emit(emit::Args),
    Diff(diff::Args),
    Fit(fit::Args),
    Matrix(matrix::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Compile(args) => compile::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Adapter(args) => adapter::run(&args),
        Command::Print(args) => print::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Opt(args) => opt::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Emit(args) => emit::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Fit(args) => fit::run(&args),
        Command::Matrix(args) => matrix::run(&args),
    };
    match result {
        Ok(code) => code,
        // Whoever reads the output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Writes a report as one JSON object.
fn say_json(value: &serde_json::Value) -> anyhow::Result<()> {
    say(&serde_json::to_string_pretty(value).expect("plain data serialises"))
}

/// Writes a report to standard output; a closed pipe is an error like others, not a panic.
fn say(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
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
