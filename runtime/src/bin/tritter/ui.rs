//! What all commands share: opening a model, progress, messages, output, and Ctrl-C.

use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use runtime::device::any::DeviceKind;
use runtime::{Artifact, Options, RuntimeError, Session, WeightPages};

/// The exit code after Ctrl-C, as shells have it: 128 and the number of the signal.
pub(crate) const INTERRUPTED: u8 = 130;
/// The exit code of wrong usage, as clap has it.
pub(crate) const USAGE: u8 = 2;

/// Work that is done sooner shows no progress.
const SILENT: Duration = Duration::from_secs(1);

static IS_INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The model and how to run it.
#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    /// The directory that `tritterc compile -o DIR` wrote.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Threads; one for each CPU by default. Results do not depend on it.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Refuse models whose caches and activations take more than so many MiB.
    #[arg(long, value_name = "MIB")]
    memory_limit: Option<u64>,
    /// Where the weights are read from: a copy of their file in memory on huge pages, which saves address translations, or the file as it is
    /// mapped, which starts sooner and shares its memory with other processes.
    #[arg(long, value_enum, default_value = "copy")]
    weights: Weights,
    /// What to run on: the artifact has to be compiled for it. By default it is what the artifact was compiled for; of several targets, the best that
    /// this machine has, a GPU before a CPU.
    #[arg(long, value_enum)]
    device: Option<Device>,
}

/// What models run on.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Cpu,
    Cuda,
}

impl Device {
    pub(crate) fn kind(self) -> DeviceKind {
        match self {
            Device::Cpu => DeviceKind::Cpu,
            Device::Cuda => DeviceKind::Cuda,
        }
    }
}

/// Where weights are read from.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Weights {
    Map,
    Copy,
}

impl ModelArgs {
    /// An artifact with the usual options.
    pub(crate) fn of(dir: PathBuf, threads: Option<NonZeroUsize>) -> Self {
        Self { dir, threads, memory_limit: None, weights: Weights::Copy, device: None }
    }

    /// Opens the model. From then on Ctrl-C is asked for with [`is_interrupted`]; a later one ends the program at once.
    pub(crate) fn open(&self) -> Result<Session> {
        let session = self.session()?;
        listen_for_interrupt()?;
        Ok(session)
    }

    /// The same for one of several models.
    pub(crate) fn session(&self) -> Result<Session> {
        Ok(Session::new(self.artifact()?, &self.options())?)
    }

    /// The artifact, checked.
    pub(crate) fn artifact(&self) -> Result<Artifact> {
        let mut progress = Progress::new("checking", Unit::Bytes);
        let device = self.device.map(Device::kind);
        Ok(Artifact::open(&self.dir, device, &mut |done, total| progress.set(done, total))?)
    }

    /// How it is to be run.
    pub(crate) fn options(&self) -> Options {
        Options {
            threads: self.threads.map(NonZeroUsize::get),
            max_slab_bytes: self.memory_limit.map(|mib| mib.saturating_mul(1 << 20)),
            weights: match self.weights {
                Weights::Map => WeightPages::Mapped,
                Weights::Copy => WeightPages::Copied,
            },
            device: self.device.map(Device::kind),
        }
    }

    /// Where weights are read from, as it is given on the command line.
    pub(crate) fn weights_name(&self) -> String {
        let value = clap::ValueEnum::to_possible_value(&self.weights);
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// From now on Ctrl-C, and the signals with which systems end programs, are asked for with [`is_interrupted`]; one that comes
/// [`PATIENCE`] after the first ends the program at once.
pub(crate) fn listen_for_interrupt() -> Result<()> {
    let mut first: Option<Instant> = None;
    ctrlc::set_handler(move || {
        IS_INTERRUPTED.store(true, Ordering::Relaxed);
        // One press may come twice, as what `timeout` sends does. To leave at once is for somebody who has waited: what the libraries of a GPU do when a
        // process exits disturbs calls of theirs that are under way.
        if PATIENCE < first.get_or_insert_with(Instant::now).elapsed() {
            std::process::exit(i32::from(INTERRUPTED));
        }
    })
    .context("cannot listen for Ctrl-C")
}

/// How long after the first interrupt another one is one of its own.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether Ctrl-C was pressed.
pub(crate) fn is_interrupted() -> bool {
    IS_INTERRUPTED.load(Ordering::Relaxed)
}

/// Breaks after Ctrl-C.
pub(crate) fn flow() -> ControlFlow<()> {
    if is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Whether an error is that Ctrl-C was pressed.
pub(crate) fn is_cancelled(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(RuntimeError::Cancelled))
}

/// Whether an error is that an option has a value that it cannot have.
pub(crate) fn is_usage(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(RuntimeError::Sampling { .. }))
}

/// Whether an error is that nobody reads the output any more.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Prints a line to standard error. Nobody can be told if that fails.
pub(crate) fn message(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints to standard output, at once.
pub(crate) fn print(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Prints a JSON report.
pub(crate) fn print_json(value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("a report is plain data")?;
    Ok(print(&format!("{text}\n"))?)
}

/// A file that becomes `path` when it is complete, readable as any other that the user makes.
pub(crate) fn create_beside(path: &Path) -> Result<tempfile::NamedTempFile> {
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".tritter-");
    #[cfg(unix)]
    let permissions: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    #[cfg(unix)]
    builder.permissions(permissions);
    builder.tempfile_in(parent).with_context(|| format!("cannot write into {}", parent.display()))
}

/// Reads a file, or standard input for `-`.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
    } else {
        let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        file.read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(bytes)
}

/// Token ids.
#[derive(Clone)]
pub(crate) struct Ids(pub(crate) Vec<u32>);

/// Ids separated by commas or white space; at least one.
pub(crate) fn parse_ids(text: &str) -> Result<Ids, String> {
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    let ids: Result<Vec<u32>, String> =
        words.map(|word| word.parse().map_err(|_| format!("`{word}` is not a token id"))).collect();
    let ids = ids?;
    if ids.is_empty() { Err("there are no token ids".to_owned()) } else { Ok(Ids(ids)) }
}

/// The chunk to use: what was asked for, else the largest that the artifact was compiled for.
pub(crate) fn chunk(session: &Session, asked: Option<NonZeroUsize>) -> usize {
    asked.map_or(session.max_tokens(), NonZeroUsize::get)
}

/// What progress counts.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    Bytes,
    Tokens,
    Parts,
}

/// A bar on standard error, if that is a terminal and the work takes longer than a moment.
pub(crate) struct Progress {
    message: &'static str,
    unit: Unit,
    start: Instant,
    is_terminal: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new(message: &'static str, unit: Unit) -> Self {
        Self { message, unit, start: Instant::now(), is_terminal: std::io::stderr().is_terminal(), bar: None }
    }

    pub(crate) fn set(&mut self, done: u64, total: u64) {
        if !self.is_terminal || self.start.elapsed() < SILENT {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let template = match self.unit {
                Unit::Bytes => "{msg} [{bar:40}] {bytes}/{total_bytes} {eta}",
                Unit::Parts => "{msg} [{bar:40}] {pos}/{len} {eta}",
                Unit::Tokens => "{msg} [{bar:40}] {pos}/{len} tokens {per_sec} {eta}",
            };
            let style = ProgressStyle::with_template(template).expect("the templates are well formed");
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
                .with_style(style.progress_chars("=> "))
                .with_message(self.message)
                .with_elapsed(self.start.elapsed())
        });
        bar.set_position(done);
    }

    /// Removes the bar.
    pub(crate) fn clear(&mut self) {
        self.is_terminal = false;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A text with its escapes resolved: shells make newlines hard to give. It may not be empty.
pub(crate) fn unescape(text: &str) -> Result<String, String> {
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            plain.push(c);
            continue;
        }
        plain.push(match chars.next() {
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('0') => '\0',
            Some('\\') => '\\',
            other => {
                let found = other.map_or_else(String::new, String::from);
                return Err(format!("`\\{found}` is no escape; for a backslash write `\\\\`"));
            }
        });
    }
    if plain.is_empty() { Err("it is empty".to_owned()) } else { Ok(plain) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_escapes() {
        assert_eq!(unescape(r"a\n\t\\n").as_deref(), Ok("a\n\t\\n"));
        assert!(unescape(r"\x").is_err() && unescape("\\").is_err() && unescape("").is_err());
    }
}
