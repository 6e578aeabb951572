//! A run: steps, one after the other, with what is measured and kept of them.
//!
//! Whatever a run depends on is in its checkpoints, so one that was stopped, or killed, and goes on gives the same bits as one that was not:
//! parameters, moments, the order of the documents, the losses. A run goes on only with what it began with: artifact, documents, recipe.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::error::RuntimeError;
use crate::training::batches::{Batches, Position, Size, targets};
use crate::training::checkpoint::{self, Progress};
use crate::training::config::{Config, ConfigProblem};
use crate::training::corpus::Corpus;
use crate::training::metrics::{METRICS, Metrics, Point};
use crate::training::report;
use crate::training::storage::{Storage, replace};
use crate::training::{Trainer, Update};

/// The page, in the directory of the run.
pub const REPORT: &str = "report.html";
/// The file that a run holds as long as it writes into its directory.
const LOCK: &str = ".lock";

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// How.
    pub config: &'a Config,
    /// The BLAKE3 hash of the artifact's manifest, in hexadecimal.
    pub artifact: &'a str,
    /// What is trained on.
    pub train: &'a Corpus,
    /// What is only looked at.
    pub validation: &'a Corpus,
    /// Whether to go on from the newest checkpoint, if there is one. Else there must be none.
    pub resume: bool,
    /// Stops when so many steps are done, as if it had been told to.
    pub until: Option<u64>,
}

/// Something that happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The run begins behind a step, 0 for a new one.
    Began {
        /// The step.
        step: u64,
        /// The checkpoint that it goes on from.
        from: Option<&'a Path>,
    },
    /// A step was done.
    Stepped {
        /// What is known of it.
        point: &'a Point,
        /// The tokens of the step over the time that they took, without validation and checkpoints.
        tokens_per_s: f64,
    },
    /// A checkpoint was kept.
    Saved {
        /// Its directory.
        checkpoint: &'a Path,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    /// What it knows of itself.
    pub progress: Progress,
    /// Its last checkpoint.
    pub checkpoint: PathBuf,
    /// Whether all steps are done.
    pub is_done: bool,
}

/// Runs until all steps are done or `watch`, which is told what happens, breaks: then the step is finished, a checkpoint is kept, and the run ends.
///
/// # Errors
///
/// [`RuntimeError::Config`], [`RuntimeError::NoDocument`], [`RuntimeError::RunExists`], [`RuntimeError::RunBusy`], [`RuntimeError::Resume`] and
/// [`RuntimeError::Checkpoint`] before anything is changed; [`RuntimeError::Diverged`] if a loss, a norm or a state is no number;
/// [`RuntimeError::Save`] if a checkpoint cannot be kept; what the trainer says.
pub fn train(
    job: &Job<'_>,
    trainer: &mut dyn Trainer,
    storage: &mut dyn Storage,
    watch: &mut dyn FnMut(&Event<'_>) -> ControlFlow<()>,
) -> Result<Ending, RuntimeError> {
    job.check(trainer.tokens(), trainer.vocabulary())?;
    let out = &job.config.out;
    storage.create_dir(out).map_err(RuntimeError::io("make", out))?;
    let _lock = lock(out)?;
    checkpoint::clean(out, storage)?;
    let newest = checkpoint::list(out)?.pop();
    if let (Some((_, newest)), false) = (&newest, job.resume) {
        return Err(RuntimeError::RunExists { newest: newest.clone() });
    }
    // A run that ended ahead of its first checkpoint, or lost them all, has left its measurements.
    let measured = out.join(METRICS);
    if newest.is_none() && !job.resume && std::fs::metadata(&measured).is_ok_and(|file| 0 < file.len()) {
        return Err(RuntimeError::NoCheckpoint { metrics: measured });
    }
    let progress = match &newest {
        Some((_, checkpoint)) => job.restore(checkpoint, trainer)?,
        None => job.beginning(),
    };
    let metrics = Metrics::open(out, progress.step, storage)?;
    let from = newest.map(|(_, checkpoint)| checkpoint);
    let batches = Batches::new(job.train, Size::of(trainer), job.config.recipe.seed, progress.position);
    let Some(batches) = batches else { return Err(RuntimeError::NoDocument { position: progress.position }) };
    let begin = Instant::now();
    let seconds_before = progress.seconds;
    let run = Run { job, trainer, storage, batches, progress, metrics, newest: from, begin, seconds_before };
    let told = watch(&Event::Began { step: run.progress.step, from: run.newest.as_deref() });
    run.steps(watch, told.is_break())
}

/// Only one run at a time may write into a directory. The lock goes when the process ends, however it does.
fn lock(out: &Path) -> Result<File, RuntimeError> {
    let path = out.join(LOCK);
    let file = File::create(&path).map_err(RuntimeError::io("write", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(RuntimeError::RunBusy { out: out.to_owned() }),
        Err(std::fs::TryLockError::Error(error)) => Err(RuntimeError::io("lock", path)(error)),
    }
}

/// What orders the documents of validation, whatever a run's own seed is, so that runs can be compared.
const VALIDATION_SEED: u64 = 0;

impl Job<'_> {
    /// Refuses what cannot be run.
    fn check(&self, tokens: usize, vocabulary: Option<u64>) -> Result<(), RuntimeError> {
        let mut problems = self.config.problems();
        problems.extend(self.config.problems_for(tokens));
        if self.config.validation.is_some() && self.validation.targets() == 0 {
            let what = "the shards have no documents for it; write them with a larger --validation, or leave it out";
            problems.push(ConfigProblem { field: "validation".to_owned(), what: what.to_owned() });
        }
        if self.train.targets() == 0 {
            let what = "they have no documents to train on".to_owned();
            problems.push(ConfigProblem { field: "shards".to_owned(), what });
        }
        for corpus in [self.train, self.validation] {
            if let (Some(of_shards), Some(of_model)) = (corpus.vocabulary(), vocabulary)
                && of_model < u64::from(of_shards)
            {
                let what = format!("their vocabulary has {of_shards} ids, that of the artifact {of_model}");
                problems.push(ConfigProblem { field: "shards".to_owned(), what });
                break;
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(RuntimeError::Config { path: None, problems }) }
    }

    fn beginning(&self) -> Progress {
        Progress {
            step: 0,
            position: Position::default(),
            recipe: self.config.recipe.clone(),
            artifact: self.artifact.to_owned(),
            documents: self.train.hash(),
            tokens: 0,
            seconds: 0.0,
            loss: 0.0,
            validation_loss: None,
        }
    }

    /// Goes back to a checkpoint, if it is one of this run.
    fn restore(&self, checkpoint: &Path, trainer: &mut dyn Trainer) -> Result<Progress, RuntimeError> {
        let progress = checkpoint::read(checkpoint)?;
        let now = self.beginning();
        let mut differences = progress.recipe.differences(&now.recipe);
        for (what, then, now) in
            [("artifact", &progress.artifact, &now.artifact), ("documents", &progress.documents, &now.documents)]
        {
            if then != now {
                differences.push([what, then, now].map(str::to_owned));
            }
        }
        if !differences.is_empty() {
            return Err(RuntimeError::Resume { checkpoint: checkpoint.to_owned(), differences });
        }
        checkpoint::restore(checkpoint, trainer)?;
        Ok(progress)
    }
}

/// A run that has begun.
struct Run<'a> {
    job: &'a Job<'a>,
    trainer: &'a mut dyn Trainer,
    storage: &'a mut dyn Storage,
    batches: Batches<'a>,
    progress: Progress,
    metrics: Metrics,
    /// The newest checkpoint.
    newest: Option<PathBuf>,
    begin: Instant,
    /// What it took before it began this time.
    seconds_before: f64,
}

impl Run<'_> {
    fn steps(
        mut self,
        watch: &mut dyn FnMut(&Event<'_>) -> ControlFlow<()>,
        mut is_told: bool,
    ) -> Result<Ending, RuntimeError> {
        let config = self.job.config;
        let steps = config.recipe.steps;
        let last = self.job.until.unwrap_or(steps).min(steps);
        let mut is_kept = self.newest.is_some();
        while self.progress.step < last && !is_told {
            let (point, tokens_per_s) = self.step()?;
            let newest = self.newest.clone();
            self.metrics.push(point).map_err(|error| unsaved(error, newest))?;
            is_kept = point.step.is_multiple_of(config.checkpoint_every);
            if is_kept {
                self.keep(watch)?;
            }
            is_told = watch(&Event::Stepped { point: &point, tokens_per_s }).is_break();
        }
        if !is_kept {
            self.keep(watch)?;
        }
        let is_done = self.progress.step == steps;
        let checkpoint = checkpoint::path(&config.out, self.progress.step);
        Ok(Ending { progress: self.progress, checkpoint, is_done })
    }

    /// The next step, with the validation behind it where it is due.
    fn step(&mut self) -> Result<(Point, f64), RuntimeError> {
        let config = self.job.config;
        let recipe = &config.recipe;
        let step = self.progress.step + 1;
        let start = Instant::now();
        let batches = recipe.batch / self.trainer.tokens() as u64;
        let mut sum = 0.0;
        for _ in 0..batches {
            let loss = self.trainer.accumulate(&self.batches.next_batch())?;
            sum += self.finite(step, "loss", f64::from(loss))?;
        }
        let (rate, decay) = recipe.schedule.at(step, recipe.steps);
        // The configuration was checked to have no more batches than this can count.
        let update = Update { step, rate, decay, batches: batches as u32 };
        let norm = self.trainer.update(&update)?;
        let norm = self.finite(step, "norm of the gradients", f64::from(norm))?;
        let tokens_per_s = recipe.batch as f64 / start.elapsed().as_secs_f64();

        let due = config.validation.filter(|validation| step.is_multiple_of(validation.every) || step == recipe.steps);
        let validation_loss = due.map(|validation| self.validate(step, validation.batches)).transpose()?;
        let (loss, tokens) = (sum / batches as f64, self.progress.tokens + recipe.batch);
        let seconds = self.seconds_before + self.begin.elapsed().as_secs_f64();
        self.progress.step = step;
        self.progress.position = self.batches.position();
        self.progress.tokens = tokens;
        self.progress.seconds = seconds;
        self.progress.loss = loss;
        self.progress.validation_loss = validation_loss.or(self.progress.validation_loss);
        Ok((Point { step, loss, norm, rate, decay, tokens, seconds, validation_loss }, tokens_per_s))
    }

    /// The mean loss of the first batches of what is only looked at: the same ones each time, and in each run.
    fn validate(&mut self, step: u64, batches: u64) -> Result<f64, RuntimeError> {
        let (size, start) = (Size::of(self.trainer), Position::default());
        let Some(mut found) = Batches::new(self.job.validation, size, VALIDATION_SEED, start) else {
            return Err(RuntimeError::NoDocument { position: start });
        };
        let (mut sum, mut count) = (0.0, 0);
        for _ in 0..batches {
            if found.position().epoch != 0 {
                break;
            }
            let batch = found.next_batch();
            let loss = self.trainer.accumulate(&batch)?;
            sum += f64::from(loss) * targets(&batch) as f64;
            count += targets(&batch);
        }
        self.trainer.forget()?;
        self.finite(step, "validation loss", sum / count as f64)
    }

    fn finite(&self, step: u64, what: &str, value: f64) -> Result<f64, RuntimeError> {
        if value.is_finite() {
            return Ok(value);
        }
        Err(RuntimeError::Diverged { step, what: format!("{what} ({value})"), checkpoint: self.newest.clone() })
    }

    /// Keeps a checkpoint and the page, and lets go of old ones.
    fn keep(&mut self, watch: &mut dyn FnMut(&Event<'_>) -> ControlFlow<()>) -> Result<(), RuntimeError> {
        let config = self.job.config;
        let saved = checkpoint::save(&config.out, &self.progress, self.trainer, self.storage);
        let newest = self.newest.take();
        let checkpoint = saved.map_err(|error| unsaved(error, newest))?;
        self.newest = Some(checkpoint.clone());
        let page = report::page(self.job.config, &self.progress, self.metrics.points());
        checkpoint::prune(&config.out, config.keep, self.storage)
            .and_then(|()| {
                let path = config.out.join(REPORT);
                replace(self.storage, &path, &mut |file| file.write_all(page.as_bytes()))
            })
            .map_err(|error| unsaved(error, self.newest.clone()))?;
        // Who wants to end the run says so behind a step.
        let _ = watch(&Event::Saved { checkpoint: &checkpoint });
        Ok(())
    }
}

/// The error of a run that could not write, with the checkpoint that stays.
fn unsaved(error: RuntimeError, newest: Option<PathBuf>) -> RuntimeError {
    match error {
        RuntimeError::Diverged { step, what, .. } => RuntimeError::Diverged { step, what, checkpoint: newest },
        error => RuntimeError::Save { source: Box::new(error), newest },
    }
}
