//! `tritter train`: a run of training, from its configuration to its last checkpoint.

use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ir::plan::manifest::MANIFEST;
use runtime::training::config::Config;
use runtime::training::corpus::{Corpus, Split};
use runtime::training::metrics::Point;
use runtime::training::run::{Ending, Event, Job, train};
use runtime::training::storage::Files;
use runtime::{Options, RuntimeError};
use serde_json::json;

use crate::ui::{self, Progress, Unit};

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Train a model as a configuration says.
///
/// CONFIG.ron names an artifact that tritterc train wrote, directories that tritter shard wrote, and how to train: see the example below. Into
/// the directory of the run go checkpoints, a line for each step in metrics.jsonl, and report.html. Ctrl-C and SIGTERM end the run behind the
/// step at hand with a checkpoint, and the exit code is 0; pressed again a while later, it ends at once. With --resume a run goes on from its newest checkpoint
/// as if it had never stopped, bit for bit.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  tritter train nano.ron
  tritter train nano.ron --resume
  tritter train nano.ron --out runs/short --steps 50 --seed 7

nano.ron, the recipe of BitNet b1.58; paths are relative to the file, and seed, decay, curve,
checkpoint and validation may be left out:
  (
      artifact: \"step\",
      shards: [\"data\"],
      out: \"runs/nano\",
      seed: 1,
      steps: 1000,
      batch: 524288,
      schedule: (
          warm_up: 375,
          stages: [
              (until: 0.5, rate: (1.5e-3, 8e-4), decay: (0.1, 0.0), curve: \"cosine\"),
              (until: 1.0, rate: (5e-4, 0.0), decay: (0.0, 0.0)),
          ],
      ),
      checkpoint: (every: 100, keep: 3),
      validation: (every: 100, batches: 16),
  )")]
pub(crate) struct Args {
    /// The configuration.
    #[arg(value_name = "CONFIG.ron")]
    config: PathBuf,
    /// Go on from the newest checkpoint, if there is one. A run that exists is not begun anew.
    #[arg(long)]
    resume: bool,
    /// The directory of the run, in place of the configuration's.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Steps of the run, in place of the configuration's; the schedule stretches with them.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Tokens of a step, in place of the configuration's.
    #[arg(long, value_name = "N")]
    batch: Option<u64>,
    /// Decides the order of the documents, in place of the configuration's.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// End behind this step with a checkpoint, as if told to; the schedule stays that of the whole run.
    #[arg(long, value_name = "STEP")]
    until: Option<u64>,
    /// Threads; one for each CPU by default. Results do not depend on it.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// What to run on: the artifact has to be compiled for it. By default it is what the artifact was compiled for.
    #[arg(long, value_enum)]
    device: Option<ui::Device>,
    /// Print a JSON report.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let config = args.config()?;
    let options = Options {
        threads: args.threads.map(NonZeroUsize::get),
        device: args.device.map(ui::Device::kind),
        ..Options::default()
    };
    let (artifact, mut trainer) = (artifact(&config.artifact)?, runtime::training::open(&config.artifact, &options)?);
    let open = |split| {
        let mut progress = Progress::new("checking shards", Unit::Bytes);
        Corpus::open(&config.shards, split, &mut |done, total| progress.set(done, total))
    };
    let (documents, validation) = (open(Split::Train)?, open(Split::Validation)?);
    ui::message(&format!(
        "{} tokens in {} documents to train on, {} in {} for validation",
        documents.tokens(),
        documents.documents(),
        validation.tokens(),
        validation.documents()
    ));
    let job = Job {
        config: &config,
        artifact: &artifact,
        train: &documents,
        validation: &validation,
        resume: args.resume,
        until: args.until,
    };
    ui::listen_for_interrupt()?;
    let mut display = Display::new(config.recipe.steps);
    let ending = train(&job, &mut *trainer, &mut Files, &mut |event| {
        display.show(event);
        ui::flow()
    });
    display.finish();
    let ending = ending.map_err(|error| args.placed(error))?;
    args.report(&ending)
}

impl Args {
    fn config(&self) -> Result<Config> {
        let path = &self.config;
        let text = String::from_utf8(ui::read(path)?).with_context(|| format!("{} is no text", path.display()))?;
        let dir = path.parent().unwrap_or(Path::new(""));
        let mut config = Config::from_ron(&text, dir)
            .map_err(|problems| RuntimeError::Config { path: Some(path.clone()), problems })?;
        let recipe = &mut config.recipe;
        recipe.steps = self.steps.unwrap_or(recipe.steps);
        recipe.batch = self.batch.unwrap_or(recipe.batch);
        recipe.seed = self.seed.unwrap_or(recipe.seed);
        if let Some(out) = &self.out {
            config.out.clone_from(out);
        }
        Ok(config)
    }

    /// The error with the name of the file that it is about.
    fn placed(&self, error: RuntimeError) -> RuntimeError {
        match error {
            RuntimeError::Config { problems, .. } => RuntimeError::Config { path: Some(self.config.clone()), problems },
            error => error,
        }
    }

    fn report(&self, ending: &Ending) -> Result<()> {
        let Ending { progress, checkpoint, is_done } = ending;
        let is_told = ui::is_interrupted();
        if self.json {
            return ui::print_json(&json!({
                "step": progress.step,
                "steps": progress.recipe.steps,
                "done": is_done,
                "loss": progress.loss,
                "validation_loss": progress.validation_loss,
                "tokens": progress.tokens,
                "seconds": progress.seconds,
                "checkpoint": checkpoint.display().to_string(),
            }));
        }
        let what = match (is_done, is_told) {
            (true, _) => "done",
            (false, true) => "ended as told",
            (false, false) => "ended",
        };
        let go_on = if *is_done { "" } else { "; go on with --resume" };
        let validation = progress.validation_loss.map_or(String::new(), |loss| format!(", validation loss {loss:.4}"));
        Ok(ui::print(&format!(
            "{what} at step {} of {}: loss {:.4}{validation}, {} tokens in {}\n{}{go_on}\n",
            progress.step,
            progress.recipe.steps,
            progress.loss,
            progress.tokens,
            humantime::format_duration(Duration::from_secs(progress.seconds.round() as u64)),
            checkpoint.display()
        ))?)
    }
}

/// What tells one artifact from another: its manifest has the hashes of all files.
fn artifact(dir: &Path) -> Result<String> {
    let path = dir.join(MANIFEST);
    let bytes = std::fs::read(&path).map_err(RuntimeError::io("read", &path))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

/// What is shown of a run on standard error: a bar on a terminal, lines elsewhere.
struct Display {
    steps: u64,
    is_terminal: bool,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl Display {
    fn new(steps: u64) -> Self {
        Self { steps, is_terminal: std::io::stderr().is_terminal(), bar: None, last_line: None }
    }

    fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Began { step, from } => {
                match from {
                    Some(checkpoint) => ui::message(&format!("going on from {}", checkpoint.display())),
                    None => ui::message("beginning with step 1"),
                }
                self.bar = self.is_terminal.then(|| bar(*step, self.steps));
            }
            Event::Stepped { point, tokens_per_s } => self.step(point, *tokens_per_s),
            Event::Saved { checkpoint } => {
                if self.bar.is_none() {
                    ui::message(&format!("kept {}", checkpoint.display()));
                }
            }
        }
    }

    fn step(&mut self, point: &Point, tokens_per_s: f64) {
        let Point { step, loss, norm, rate, validation_loss, .. } = point;
        let figures = format!("loss {loss:.4}  norm {norm:.3}  rate {rate:.2e}  {tokens_per_s:.0} tokens/s");
        let validation = validation_loss.map(|loss| format!("step {step}: validation loss {loss:.4}"));
        match &self.bar {
            Some(bar) => {
                bar.set_message(figures);
                bar.set_position(*step);
                if let Some(validation) = validation {
                    bar.println(validation);
                }
            }
            None => {
                let is_due = self.last_line.is_none_or(|last| LINE_EVERY <= last.elapsed());
                if is_due || *step == self.steps {
                    ui::message(&format!("step {step}/{}  {figures}", self.steps));
                    self.last_line = Some(Instant::now());
                }
                if let Some(validation) = validation {
                    ui::message(&validation);
                }
            }
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn bar(step: u64, steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("[{bar:30}] {pos}/{len}  {msg}  {eta} left");
    let style = style.expect("the template is well formed").progress_chars("=> ");
    let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr()).with_style(style);
    bar.set_position(step);
    // The steps before this one took no time of this process.
    bar.reset_eta();
    bar
}
