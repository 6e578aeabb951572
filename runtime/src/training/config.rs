//! What a run is: the file that `tritter train` reads.
//!
//! ```ron
//! (
//!     artifact: "step",               // what `tritterc train` wrote; paths are relative to this file
//!     shards: ["data"],               // directories that `tritter shard` wrote
//!     out: "runs/nano",               // where checkpoints, metrics and the report go
//!     seed: 1,                        // of the documents' order
//!     steps: 1000,
//!     batch: 524288,                  // tokens of a step: a multiple of those of a call
//!     schedule: (                     // see `schedule`
//!         warm_up: 375,
//!         stages: [
//!             (until: 0.5, rate: (1.5e-3, 8e-4), decay: (0.1, 0.0), curve: "cosine"),
//!             (until: 1.0, rate: (5e-4, 0.0), decay: (0.0, 0.0)),
//!         ],
//!     ),
//!     checkpoint: (every: 100, keep: 3),
//!     validation: (every: 100, batches: 16),
//! )
//! ```
//!
//! `seed`, `decay` (nothing), `curve` (linear), `checkpoint` and `validation` (none) may be left out.

use std::fmt;
use std::path::{Path, PathBuf};

use ron::Value;
use serde::{Deserialize, Serialize};

use crate::training::schedule::{Curve, Schedule, Stage};

/// A run.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The directory of the artifact.
    pub artifact: PathBuf,
    /// Directories of shards.
    pub shards: Vec<PathBuf>,
    /// Where everything goes that the run writes.
    pub out: PathBuf,
    /// What decides the numbers.
    pub recipe: Recipe,
    /// Steps between two checkpoints; there is one at the end, too.
    pub checkpoint_every: u64,
    /// How many checkpoints are kept, the newest ones; at least 1.
    pub keep: u64,
    /// When validation losses are computed, if at all.
    pub validation: Option<Validation>,
}

/// The part of a run that decides its numbers, besides artifact and documents: what goes on from a checkpoint needs the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Decides the order of the documents.
    pub seed: u64,
    /// How many steps there are.
    pub steps: u64,
    /// Tokens of a step.
    pub batch: u64,
    /// Rates and decays.
    pub schedule: Schedule,
}

/// When validation losses are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validation {
    /// Steps between two of them; there is one at the end, too.
    pub every: u64,
    /// Calls of each, fewer if all documents have been read before.
    pub batches: u64,
}

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The field, such as `schedule.stages[1].rate`; line and column for what is no RON.
    pub field: String,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.what)
    }
}

impl Recipe {
    /// The fields in which another one differs: their names, values here, values there.
    pub fn differences(&self, other: &Self) -> Vec<[String; 3]> {
        let whole = |field: fn(&Self) -> u64| [field(self), field(other)].map(|value| value.to_string());
        let schedules = [self, other]
            .map(|recipe| ron::to_string(&recipe.schedule).expect("schedules are plain data, which always serialises"));
        let pairs = [
            ("seed", whole(|recipe| recipe.seed)),
            ("steps", whole(|recipe| recipe.steps)),
            ("batch", whole(|recipe| recipe.batch)),
            ("schedule", schedules),
        ];
        let pairs = pairs.into_iter().filter(|(_, [here, there])| here != there);
        pairs.map(|(field, [here, there])| [field.to_owned(), here, there]).collect()
    }
}

impl Config {
    /// Reads a configuration whose paths are relative to `dir`.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn from_ron(text: &str, dir: &Path) -> Result<Self, Vec<ConfigProblem>> {
        let value: Value = match ron::from_str(text) {
            Ok(value) => value,
            Err(error) => {
                let what = error.code.to_string();
                return Err(vec![ConfigProblem { field: format!("line {}", error.span.start), what }]);
            }
        };
        let mut reader = Reader { problems: Vec::new() };
        let config = reader.config(&value, dir);
        if reader.problems.is_empty() {
            reader.problems = config.problems();
        }
        if reader.problems.is_empty() { Ok(config) } else { Err(reader.problems) }
    }

    /// What cannot be as it is. Empty for a configuration that can be run.
    pub fn problems(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        let mut check = |is_good: bool, field: &str, what: String| {
            if !is_good {
                problems.push(ConfigProblem { field: field.to_owned(), what });
            }
        };
        let Recipe { steps, batch, schedule, .. } = &self.recipe;
        let counts = [
            ("steps", *steps),
            ("batch", *batch),
            ("checkpoint.every", self.checkpoint_every),
            ("checkpoint.keep", self.keep),
            ("validation.every", self.validation.map_or(1, |validation| validation.every)),
            ("validation.batches", self.validation.map_or(1, |validation| validation.batches)),
        ];
        for (field, count) in counts {
            check(0 < count, field, "must be at least 1".to_owned());
        }
        check(!self.shards.is_empty(), "shards", "there must be one at least".to_owned());
        let stages = &schedule.stages;
        check(!stages.is_empty(), "schedule.stages", "there must be one at least".to_owned());
        let mut before = 0.0;
        for (index, stage) in stages.iter().enumerate() {
            let place = format!("schedule.stages[{index}]");
            let is_last = index + 1 == stages.len();
            let is_ascending = before < stage.until && stage.until <= 1.0;
            check(
                is_ascending,
                &format!("{place}.until"),
                format!("is {}, it must be above {before} and at most 1", stage.until),
            );
            check(
                !is_last || stage.until == 1.0 || !is_ascending,
                &format!("{place}.until"),
                format!("is {}, but the last stage goes on until 1", stage.until),
            );
            before = stage.until;
            for (field, (from, to)) in [("rate", stage.rate), ("decay", stage.decay)] {
                // Steps compute in f32.
                let is_range = [from, to].iter().all(|value| (*value as f32).is_finite() && 0.0 <= *value);
                let what = format!("is ({from}, {to}), neither may be below 0, or more than f32 holds");
                check(is_range, &format!("{place}.{field}"), what);
            }
        }
        if let Some(first) = stages.first() {
            let end = first.end(*steps);
            check(
                schedule.warm_up < end,
                "schedule.warm_up",
                format!("is {}, but the first stage ends after {end} of {steps} steps", schedule.warm_up),
            );
        }
        problems
    }

    /// What cannot be as it is for a trainer with so many tokens a call.
    pub fn problems_for(&self, tokens: usize) -> Vec<ConfigProblem> {
        let (batch, tokens) = (self.recipe.batch, tokens as u64);
        let is_whole = 0 < tokens && batch.is_multiple_of(tokens) && batch / tokens <= u64::from(u32::MAX);
        let what = || format!("is {batch}, it must be a multiple of the {tokens} tokens of the artifact's calls");
        if is_whole { Vec::new() } else { vec![ConfigProblem { field: "batch".to_owned(), what: what() }] }
    }
}

const NO_GROUP: &str = "must be a group of fields, `(name: value, ..)`";

/// Takes values apart, and remembers what was not as expected; something else stands in for that.
struct Reader {
    problems: Vec<ConfigProblem>,
}

/// The fields of a group that were not asked for yet.
struct Fields<'a> {
    path: String,
    /// Whether it is one: else nothing more is told about it.
    is_group: bool,
    fields: Vec<(&'a str, &'a Value)>,
}

impl Fields<'_> {
    fn path_of(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }
}

impl Reader {
    fn report(&mut self, field: &str, what: impl Into<String>) {
        self.problems.push(ConfigProblem { field: field.to_owned(), what: what.into() });
    }

    fn config(&mut self, value: &Value, dir: &Path) -> Config {
        let mut fields = self.fields(value, "");
        let artifact = self.required(&mut fields, "artifact", Self::text);
        let shards = self.required(&mut fields, "shards", |reader, value, path| reader.list(value, path, Self::text));
        let out = self.required(&mut fields, "out", Self::text);
        let recipe = Recipe {
            seed: self.optional(&mut fields, "seed", 0, Self::count),
            steps: self.required(&mut fields, "steps", Self::count),
            batch: self.required(&mut fields, "batch", Self::count),
            schedule: self.required(&mut fields, "schedule", Self::schedule),
        };
        let (checkpoint_every, keep) = self.optional(&mut fields, "checkpoint", (1000, 3), Self::checkpoint);
        let validation = self.optional(&mut fields, "validation", None, Self::validation);
        self.finish(fields);
        Config {
            artifact: dir.join(artifact),
            shards: shards.into_iter().map(|shard| dir.join(shard)).collect(),
            out: dir.join(out),
            recipe,
            checkpoint_every,
            keep,
            validation,
        }
    }

    fn schedule(&mut self, value: &Value, path: &str) -> Schedule {
        let mut fields = self.fields(value, path);
        let warm_up = self.optional(&mut fields, "warm_up", 0, Self::count);
        let stages = self.required(&mut fields, "stages", |reader, value, path| reader.list(value, path, Self::stage));
        self.finish(fields);
        Schedule { warm_up, stages }
    }

    fn stage(&mut self, value: &Value, path: &str) -> Stage {
        let mut fields = self.fields(value, path);
        let until = self.required(&mut fields, "until", Self::number);
        let rate = self.required(&mut fields, "rate", Self::pair);
        let decay = self.optional(&mut fields, "decay", (0.0, 0.0), Self::pair);
        let curve = self.optional(&mut fields, "curve", Curve::Linear, |reader, value, path| {
            let known = Curve::ALL.iter().find(|(name, _)| matches!(value, Value::String(text) if text == name));
            if known.is_none() {
                reader.report(path, "must be \"linear\" or \"cosine\"");
            }
            known.map_or(Curve::Linear, |(_, curve)| *curve)
        });
        self.finish(fields);
        Stage { until, rate, decay, curve }
    }

    fn checkpoint(&mut self, value: &Value, path: &str) -> (u64, u64) {
        let mut fields = self.fields(value, path);
        let every = self.required(&mut fields, "every", Self::count);
        let keep = self.optional(&mut fields, "keep", 3, Self::count);
        self.finish(fields);
        (every, keep)
    }

    fn validation(&mut self, value: &Value, path: &str) -> Option<Validation> {
        let mut fields = self.fields(value, path);
        let every = self.required(&mut fields, "every", Self::count);
        let batches = self.required(&mut fields, "batches", Self::count);
        self.finish(fields);
        Some(Validation { every, batches })
    }

    fn fields<'a>(&mut self, value: &'a Value, path: &str) -> Fields<'a> {
        let mut fields = Vec::new();
        let is_group = matches!(value, Value::Map(_));
        match value {
            Value::Map(map) => {
                for (key, value) in map.iter() {
                    match key {
                        Value::String(key) => fields.push((key.as_str(), value)),
                        _ => self.report(path, "has a key that is no name"),
                    }
                }
            }
            _ if path.is_empty() => self.report("the file", NO_GROUP),
            _ => self.report(path, NO_GROUP),
        }
        Fields { path: path.to_owned(), is_group, fields }
    }

    /// Reports what is left.
    fn finish(&mut self, fields: Fields<'_>) {
        for (field, _) in &fields.fields {
            self.report(&fields.path_of(field), "there is no such field");
        }
    }

    fn optional<T>(
        &mut self,
        fields: &mut Fields<'_>,
        field: &str,
        default: T,
        read: impl FnOnce(&mut Self, &Value, &str) -> T,
    ) -> T {
        let found = fields.fields.iter().position(|(name, _)| *name == field);
        match found.map(|index| fields.fields.remove(index)) {
            Some((_, value)) => read(self, value, &fields.path_of(field)),
            None => default,
        }
    }

    /// A field that has to be there. Where it is not, it is read from nothing, which tells nothing more.
    fn required<T>(
        &mut self,
        fields: &mut Fields<'_>,
        field: &str,
        read: impl FnOnce(&mut Self, &Value, &str) -> T,
    ) -> T {
        let found = fields.fields.iter().position(|(name, _)| *name == field);
        let path = fields.path_of(field);
        match found.map(|index| fields.fields.remove(index)) {
            Some((_, value)) => read(self, value, &path),
            None => {
                if fields.is_group {
                    self.report(&path, "is missing");
                }
                let known = self.problems.len();
                let placeholder = read(self, &Value::Unit, &path);
                self.problems.truncate(known);
                placeholder
            }
        }
    }

    fn text(&mut self, value: &Value, path: &str) -> String {
        match value {
            Value::String(text) if !text.is_empty() => text.clone(),
            _ => {
                self.report(path, "must be a text in double quotes that is not empty");
                String::new()
            }
        }
    }

    fn list<T>(&mut self, value: &Value, path: &str, mut read: impl FnMut(&mut Self, &Value, &str) -> T) -> Vec<T> {
        let Value::Seq(values) = value else {
            self.report(path, "must be a list, `[..]`");
            return Vec::new();
        };
        let values = values.iter().enumerate();
        values.map(|(index, value)| read(self, value, &format!("{path}[{index}]"))).collect()
    }

    fn count(&mut self, value: &Value, path: &str) -> u64 {
        value.clone().into_rust().unwrap_or_else(|_| {
            self.report(path, "must be a whole number, 0 or more");
            0
        })
    }

    fn number(&mut self, value: &Value, path: &str) -> f64 {
        match value {
            Value::Number(number) => number.into_f64(),
            _ => {
                self.report(path, "must be a number");
                0.0
            }
        }
    }

    fn pair(&mut self, value: &Value, path: &str) -> (f64, f64) {
        match value {
            Value::Seq(values) if values.len() == 2 => (self.number(&values[0], path), self.number(&values[1], path)),
            _ => {
                self.report(path, "must be two numbers, `(from, to)`");
                (0.0, 0.0)
            }
        }
    }
}
