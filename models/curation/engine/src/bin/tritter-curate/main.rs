//! `tritter-curate`: the stages of curation over directories, JSONL and Parquet, each alone or all together, on one machine or several.

mod contamination;
mod duplicates;
mod kernels;
mod quality;
mod run;
mod secrets;
mod security;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use curation::duplicates::{Bands, Keep};
use tritter_curation_engine::EngineError;
use tritter_curation_engine::corpus::Wanted;
use tritter_curation_engine::place::{Executor, Place, run_executor, run_scheduler};
use tritter_curation_engine::read::{Document, read_all};
use tritter_curation_engine::run::Options;

/// Says what of a code corpus to train on, and why.
#[derive(Parser)]
#[command(name = "tritter-curate", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Runs every stage: writes the documents as Parquet and JSONL, `report.html`, `report.txt` and `manifest.json`, and shows the report.
    ///
    /// A second run over the same folder judges only what has changed since, and so ends what an interrupted one began.
    Run {
        /// Directories, files, or `.jsonl` and `.parquet` files whose objects or rows have a `text`.
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
        /// How many threads work; as many as there are cores if absent.
        #[arg(long, value_parser = few::<1024>)]
        threads: Option<NonZeroUsize>,
        /// Works on the executors of this scheduler, HOST:PORT. They see inputs and output under the same paths.
        #[arg(long)]
        scheduler: Option<String>,
        /// About how many MiB of input are judged, and kept, at once; by the size of the corpus if absent.
        #[arg(long, value_parser = few::<65_536>)]
        partition_mib: Option<NonZeroUsize>,
        #[command(flatten)]
        against: contamination::Against,
    },
    /// Lists what of evaluation sets stands in a corpus, one JSON object a line.
    #[command(mut_arg("against", |argument| argument.required(true)))]
    Contamination {
        /// Directories, files, or `.jsonl` and `.parquet` files whose objects or rows have a `text`.
        #[arg(required = true)]
        inputs: Vec<PathBuf>,
        /// Only files whose name ends so; all text files if absent.
        #[arg(long)]
        ending: Vec<String>,
        #[command(flatten)]
        against: contamination::Against,
    },
    /// Gives the tasks of runs to executors. It has no passwords: whoever reaches it can read what executors read.
    Scheduler {
        /// The address to listen at.
        #[arg(long, default_value = "127.0.0.1:50050")]
        bind: String,
        /// After how many seconds of silence an executor's tasks go to others.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
        timeout: u64,
    },
    /// Works on the tasks of a scheduler.
    Executor {
        /// The scheduler, HOST:PORT.
        #[arg(long, default_value = "127.0.0.1:50050")]
        scheduler: String,
        /// The address of this machine at which other executors fetch from it; a free port if the port is 0.
        #[arg(long, default_value = "127.0.0.1:0")]
        bind: String,
        /// How many tasks run at once; as many as there are cores if absent.
        #[arg(long, value_parser = few::<1024>)]
        threads: Option<NonZeroUsize>,
        /// Where what goes between stages is put; a temporary folder if absent.
        #[arg(long)]
        folder: Option<PathBuf>,
    },
    /// Lists credentials, one JSON object a line, and how fast they were looked for.
    Secrets {
        /// Directories, files, or `.jsonl` and `.parquet` files whose objects or rows have a `text`.
        #[arg(required = true)]
        inputs: Vec<PathBuf>,
        /// Only files whose name ends so; all text files if absent.
        #[arg(long)]
        ending: Vec<String>,
    },
    /// Lists what is dangerous in Python, Triton, Rust and CUDA, one JSON object a line.
    Security {
        /// Directories, files, or `.jsonl` and `.parquet` files whose objects or rows have a `text`.
        #[arg(required = true)]
        inputs: Vec<PathBuf>,
    },
    /// Judges and measures every document, one JSON object a line.
    Quality {
        /// Directories, files, or `.jsonl` and `.parquet` files whose objects or rows have a `text`.
        #[arg(required = true)]
        inputs: Vec<PathBuf>,
        /// Only files whose name ends so; all text files if absent.
        #[arg(long)]
        ending: Vec<String>,
    },
    /// Lists copies and near-copies, one JSON object a line, with the document that stays.
    Duplicates {
        /// Directories, files, or `.jsonl` and `.parquet` files whose objects or rows have a `text`.
        #[arg(required = true)]
        inputs: Vec<PathBuf>,
        /// Only files whose name ends so; all text files if absent.
        #[arg(long)]
        ending: Vec<String>,
        /// The least Jaccard similarity, over shingles of five words.
        #[arg(long, default_value_t = 0.8, value_parser = similarity)]
        threshold: f64,
        /// How many bands.
        #[arg(long, default_value_t = Bands::DEFAULT.n, value_parser = at_most_4096)]
        bands: usize,
        /// How many slots a band has.
        #[arg(long, default_value_t = Bands::DEFAULT.rows, value_parser = at_most_4096)]
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
        /// Directories, files, or `.jsonl` and `.parquet` files whose objects or rows have a `text`.
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
        Command::Run { inputs, ending, out, any_licence, threads, scheduler, partition_mib, against } => {
            run::start(&Options {
                inputs,
                wanted: if ending.is_empty() { Wanted::Languages } else { Wanted::Endings(ending) },
                any_licence,
                evaluations: against.read()?,
                out,
                place: scheduler.map_or(Place::Here, Place::Cluster),
                n_threads: n_threads(threads),
                partition: partition_mib.map(|mib| (mib.get() as u64) << 20),
            })
        }
        Command::Scheduler { bind, timeout } => {
            Ok(threads(n_threads(None))?.block_on(run_scheduler(&bind, Duration::from_secs(timeout)))?)
        }
        Command::Executor { scheduler, bind, threads: n, folder } => {
            let temporary = tempfile::tempdir()?;
            let folder = folder.as_deref().unwrap_or(temporary.path());
            execute(&scheduler, &bind, n_threads(n), folder)
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

fn execute(scheduler: &str, bind: &str, n_tasks: usize, folder: &Path) -> anyhow::Result<()> {
    // What it is asked for while all tasks run is answered by threads of its own.
    Ok(threads(n_threads(None))?.block_on(run_executor(Executor { scheduler, bind, n_tasks, folder }))?)
}

/// As many as are asked for, or as the machine has cores.
fn n_threads(asked: Option<NonZeroUsize>) -> usize {
    asked.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
}

fn threads(n: usize) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(n).thread_stack_size(STACK).enable_all().build()
}

/// Parsers of deeply nested text need as much as the first thread of a process has.
const STACK: usize = 8 << 20;

/// The documents of the inputs; those whose path ends in one of `endings` if there are any.
fn read(inputs: &[PathBuf], endings: &[String]) -> Result<Vec<Document>, EngineError> {
    let wanted = if endings.is_empty() { Wanted::All } else { Wanted::Endings(endings.to_vec()) };
    read_all(inputs, &wanted)
}

fn similarity(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value| (0.0..=1.0).contains(value));
    value.ok_or_else(|| format!("`{text}` is no similarity between 0 and 1"))
}

/// Bytes, the time that they took, and the rate, of which nothing has none.
fn speed(n_bytes: usize, seconds: f64) -> String {
    let megabytes = n_bytes as f64 / 1e6;
    let rate = if seconds == 0.0 { 0.0 } else { megabytes / seconds };
    format!("{megabytes:.1} MB in {seconds:.2} s, {rate:.1} MB/s")
}

/// A number from 1 to as many as make sense.
fn few<const MOST: usize>(text: &str) -> Result<NonZeroUsize, String> {
    match text.parse::<NonZeroUsize>() {
        Ok(number) if number.get() <= MOST => Ok(number),
        Ok(_) => Err(format!("must be {MOST} or less")),
        Err(error) => Err(format!("{error}")),
    }
}

fn at_most_4096(text: &str) -> Result<usize, String> {
    few::<4096>(text).map(NonZeroUsize::get)
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be 1 or more".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}
