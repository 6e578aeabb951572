//! What a run measures: a JSON object a line for each step, and the same in memory.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::RuntimeError;
use crate::training::storage::{Sink, Storage, replace};

/// The file, in the directory of the run.
pub const METRICS: &str = "metrics.jsonl";

/// A step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Which, counted from 1.
    pub step: u64,
    /// The mean of its batches' losses, in nats a target.
    pub loss: f64,
    /// The global norm of its gradients before clipping.
    pub norm: f64,
    /// Its learning rate.
    pub rate: f64,
    /// Its weight decay.
    pub decay: f64,
    /// Tokens that were trained on until its end.
    pub tokens: u64,
    /// Seconds that the run has taken until its end, without the time in which it was stopped.
    pub seconds: f64,
    /// The validation loss behind it, if it was computed.
    pub validation_loss: Option<f64>,
}

impl Point {
    fn to_json(self) -> Value {
        let Self { step, loss, norm, rate, decay, tokens, seconds, validation_loss } = self;
        let mut line = json!({
            "step": step, "loss": loss, "norm": norm, "rate": rate, "decay": decay, "tokens": tokens, "seconds": seconds,
        });
        if let Some(loss) = validation_loss {
            line["validation_loss"] = loss.into();
        }
        line
    }

    fn from_json(line: &str) -> Option<Self> {
        let line: Value = serde_json::from_str(line).ok()?;
        let (whole, number) = (|field: &str| line.get(field)?.as_u64(), |field: &str| line.get(field)?.as_f64());
        Some(Self {
            step: whole("step")?,
            loss: number("loss")?,
            norm: number("norm")?,
            rate: number("rate")?,
            decay: number("decay")?,
            tokens: whole("tokens")?,
            seconds: number("seconds")?,
            validation_loss: number("validation_loss"),
        })
    }
}

/// The steps of a run so far, in memory and in the file.
pub struct Metrics {
    points: Vec<Point>,
    path: PathBuf,
    file: Box<dyn Sink>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("path", &self.path).field("points", &self.points.len()).finish()
    }
}

impl Metrics {
    /// Those of a run that has done so many steps: what it measured of later ones, which will be done again, is left out; and what cannot be read,
    /// as the line that was being written when it was killed.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or written.
    pub fn open(dir: &Path, steps: u64, storage: &mut dyn Storage) -> Result<Self, RuntimeError> {
        let path = dir.join(METRICS);
        let text = match std::fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(RuntimeError::io("read", path)(error)),
        };
        let read = text.lines().filter_map(|line| Some((line, Point::from_json(line)?)));
        let (lines, points): (Vec<&str>, Vec<Point>) = read.filter(|(_, point)| point.step <= steps).unzip();
        // The lines as they were: a number that is read and written again may differ in its last digit.
        replace(storage, &path, &mut |file| lines.iter().try_for_each(|line| writeln!(file, "{line}")))?;
        let file = storage.append(&path).map_err(RuntimeError::io("write", &path))?;
        Ok(Self { points, path, file })
    }

    /// Adds a step.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn push(&mut self, point: Point) -> Result<(), RuntimeError> {
        self.points.push(point);
        let line = format!("{}\n", point.to_json());
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.flush());
        written.map_err(RuntimeError::io("write", &self.path))
    }

    /// All steps.
    pub fn points(&self) -> &[Point] {
        &self.points
    }
}
