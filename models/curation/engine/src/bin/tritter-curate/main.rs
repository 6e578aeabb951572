//! `tritter-curate`: the stages of curation over directories, JSONL and Parquet, each alone or all together, on one machine or several.
//!
//! Results go to standard output, messages to standard error. Exit codes: 0 done, 1 failure, 2 wrong usage.

mod contamination;
mod duplicates;
mod kernels;
mod quality;
mod report;
mod run;
mod secrets;
mod security;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Parser;
use curation::duplicates::{Bands, Keep};
use curation::licence::{PERMISSIVE, is_known};
use curation::quality::RuleSet;
use report::Report;
use tritter_curation_engine::EngineError;
use tritter_curation_engine::corpus::Wanted;
use tritter_curation_engine::place::{Executor, Place, default_memory, run_executor, run_scheduler};
use tritter_curation_engine::read::{Document, read_all};
use tritter_curation_engine::run::{Options, THRESHOLD};

/// Says what of a code corpus to train on, and why.
#[derive(Parser)]
#[command(name = "tritter-curate", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Prints one JSON object, in place of lines or of a report for people.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Runs every stage: writes the documents and the Triton kernels as Parquet and JSONL, `report.html`, `report.txt` and `manifest.json`, and shows the report.
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
        /// The licences that are taken, by their names on SPDX's list, with commas between them; if absent, those that ask for no more than attribution.
        #[arg(long, value_name = "SPDX", value_delimiter = ',', value_parser = licence, conflicts_with = "any_licence")]
        licences: Vec<String>,
        /// The rule sets for quality, with commas between them: starcoder, gopher, c4, fineweb.
        #[arg(long, value_name = "SETS", value_delimiter = ',', value_parser = rule_set, default_value = "starcoder")]
        rules: Vec<RuleSet>,
        #[command(flatten)]
        similar: Similar,
        /// How much memory plans sort, group and join in, such as 2GB or 512MB; what they have no room for goes to files in the output's folder. Half of what
        /// the machine has if absent. Executors have their own.
        #[arg(long, value_name = "SIZE", value_parser = memory)]
        memory: Option<usize>,
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
        /// How much memory all tasks together sort, group and join in, such as 2GB or 512MB; half of what the machine has if absent.
        #[arg(long, value_name = "SIZE", value_parser = memory)]
        memory: Option<usize>,
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
        #[command(flatten)]
        similar: Similar,
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

/// What near copies are, and how they are found.
#[derive(clap::Args)]
struct Similar {
    /// The least Jaccard similarity of near copies, over shingles of five words.
    #[arg(long, default_value_t = THRESHOLD, value_parser = similarity)]
    threshold: f64,
    /// How many bands.
    #[arg(long, default_value_t = Bands::DEFAULT.n, value_parser = at_most_4096)]
    bands: usize,
    /// How many slots a band has.
    #[arg(long, default_value_t = Bands::DEFAULT.rows, value_parser = at_most_4096)]
    rows: usize,
}

/// A signature of more slots is larger than most documents.
const MAX_SLOTS: usize = 16_384;

impl Similar {
    fn bands(&self) -> anyhow::Result<Bands> {
        let bands = Bands { n: self.bands, rows: self.rows };
        let slots = bands.slots();
        anyhow::ensure!(
            slots <= MAX_SLOTS,
            "{} bands of {} are {slots} slots: at most {MAX_SLOTS} make sense",
            self.bands,
            self.rows
        );
        Ok(bands)
    }
}

fn main() -> ExitCode {
    let Arguments { command, json } = Arguments::parse();
    match run(command, json) {
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

fn run(command: Command, is_json: bool) -> anyhow::Result<()> {
    match command {
        Command::Run {
            inputs,
            ending,
            out,
            any_licence,
            licences,
            rules,
            similar,
            memory,
            threads,
            scheduler,
            partition_mib,
            against,
        } => {
            let permissive = || PERMISSIVE.iter().map(|licence| (*licence).to_owned()).collect();
            let licences = if licences.is_empty() { permissive() } else { licences };
            let options = Options {
                inputs,
                wanted: if ending.is_empty() { Wanted::Languages } else { Wanted::Endings(ending) },
                licences: (!any_licence).then_some(licences),
                rules: RuleSet::ALL.into_iter().filter(|set| rules.contains(set)).collect(),
                bands: similar.bands()?,
                threshold: similar.threshold,
                memory: memory.unwrap_or_else(default_memory),
                evaluations: against.read()?,
                out,
                place: scheduler.map_or(Place::Here, Place::Cluster),
                n_threads: n_threads(threads),
                partition: partition_mib.map(|mib| (mib.get() as u64) << 20),
            };
            run::start(&options, is_json)
        }
        Command::Scheduler { bind, timeout } => {
            eprintln!("scheduler at {bind}");
            Ok(threads(n_threads(None))?.block_on(run_scheduler(&bind, Duration::from_secs(timeout)))?)
        }
        Command::Executor { scheduler, bind, threads: n, memory, folder } => {
            let temporary = tempfile::tempdir()?;
            let folder = folder.as_deref().unwrap_or(temporary.path());
            let n_tasks = n_threads(n);
            let memory = memory.unwrap_or_else(default_memory);
            eprintln!("executor of {n_tasks} tasks for the scheduler at {scheduler}");
            let executor = Executor { scheduler: &scheduler, bind: &bind, n_tasks, folder, memory };
            // What it is asked for while all tasks run is answered by threads of its own.
            Ok(threads(n_threads(None))?.block_on(run_executor(executor))?)
        }
        Command::Contamination { inputs, ending, against } => {
            contamination::run(&inputs, &ending, &against, Report::new(is_json))
        }
        Command::Secrets { inputs, ending } => secrets::run(&inputs, &ending, Report::new(is_json)),
        Command::Security { inputs } => security::run(&inputs, Report::new(is_json)),
        Command::Quality { inputs, ending } => quality::run(&inputs, &ending, Report::new(is_json)),
        Command::Duplicates { inputs, ending, similar, longest, check } => {
            let keep = if longest { Keep::Longest } else { Keep::First };
            let bands = similar.bands()?;
            duplicates::run(&inputs, &ending, bands, similar.threshold, keep, check, Report::new(is_json))
        }
        Command::Kernels { inputs, copies } => kernels::run(&inputs, copies, Report::new(is_json)),
    }
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

fn licence(text: &str) -> Result<String, String> {
    if is_known(text) { Ok(text.to_owned()) } else { Err(format!("`{text}` is no licence of SPDX's list")) }
}

fn rule_set(text: &str) -> Result<RuleSet, String> {
    let names = || RuleSet::ALL.map(RuleSet::name).join(", ");
    RuleSet::of_name(text).ok_or_else(|| format!("`{text}` is none of {}", names()))
}

/// The least memory that plans are given: what sorts and joins keep in any case.
const MIN_MEMORY: usize = 32 << 20;

/// A size in bytes, or with a unit: KB, MB, GB as thousands, KiB, MiB, GiB as 1,024.
fn memory(text: &str) -> Result<usize, String> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" | "k" => 1e3,
        "mb" | "m" => 1e6,
        "gb" | "g" => 1e9,
        "tb" | "t" => 1e12,
        "kib" => 1024.0,
        "mib" => f64::from(1 << 20),
        "gib" => f64::from(1 << 30),
        other => return Err(format!("`{other}` is no unit: write such as 512MB or 2GiB")),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is no size: write such as 512MB or 2GiB"))?;
    let bytes = (number * factor) as usize;
    if bytes < MIN_MEMORY { Err(format!("must be {} MiB or more", MIN_MEMORY >> 20)) } else { Ok(bytes) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("2GB", 2_000_000_000), ("1.5 GiB", 3 << 29), ("33554432", 32 << 20), ("64m", 64_000_000)]
        {
            assert_eq!(memory(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "GB", "1XB", "-1GB", "1MB", "1.2.3GB"] {
            assert!(memory(wrong).is_err(), "{wrong}");
        }
    }
}
