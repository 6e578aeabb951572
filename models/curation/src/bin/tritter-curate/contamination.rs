//! `tritter-curate contamination`: what of evaluation sets stands in a corpus, and the stage's speed on it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};
use tritter_curation::contamination::Evaluations;

use crate::input;

/// The evaluation sets.
#[derive(clap::Args)]
pub(crate) struct Against {
    /// Evaluation sets that nothing may be of: files and directories, whose files are items, and `.jsonl` files, whose objects are items with all their
    /// texts.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    against: Vec<PathBuf>,
    /// How many words in a row count as an overlap: GPT-3's 13, datatrove's 12, or another number.
    #[arg(long, requires = "against", value_name = "WORDS", default_value_t = Evaluations::DEFAULT_RUN, value_parser = crate::positive)]
    overlap: usize,
}

impl Against {
    /// Reads the sets, if there are any.
    pub(crate) fn read(&self) -> anyhow::Result<Option<Evaluations>> {
        if self.against.is_empty() {
            return Ok(None);
        }
        let mut items = Vec::new();
        for path in &self.against {
            if path.extension().is_some_and(|extension| extension == "jsonl") {
                read_objects(path, &mut items)?;
            } else {
                let files = input::read(std::slice::from_ref(path), &[])?;
                items.extend(files.into_iter().map(|file| (file.path, file.text)));
            }
        }
        let n_items = items.len();
        let start = Instant::now();
        let evaluations = Evaluations::new(items, self.overlap);
        eprintln!(
            "{} of {n_items} items are long enough; {} runs of {} words in {:.1} MB, {:.2} s",
            evaluations.n_items(),
            evaluations.n_runs(),
            self.overlap,
            evaluations.n_bytes() as f64 / 1e6,
            start.elapsed().as_secs_f64()
        );
        Ok(Some(evaluations))
    }
}

/// The objects of a file, each with all its texts in their order: sets name their fields as they like.
fn read_objects(path: &Path, items: &mut Vec<(String, String)>) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let name = format!("{}:{}", path.display(), index + 1);
        let value: Value = serde_json::from_str(line).with_context(|| name.clone())?;
        let mut texts = Vec::new();
        collect_texts(&value, &mut texts);
        items.push((name, texts.join("\n")));
    }
    Ok(())
}

/// The depth is bounded by what the parser accepts.
fn collect_texts<'v>(value: &'v Value, texts: &mut Vec<&'v str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(values) => values.iter().for_each(|value| collect_texts(value, texts)),
        Value::Object(fields) => fields.values().for_each(|value| collect_texts(value, texts)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

pub(crate) fn run(inputs: &[PathBuf], endings: &[String], against: &Against) -> anyhow::Result<()> {
    let evaluations = against.read()?.context("there is nothing to look for")?;
    let documents = input::read(inputs, endings)?;
    let (mut n_contaminated, mut n_bytes) = (0, 0);
    let mut items = BTreeSet::new();
    let mut seconds = 0.0;
    for document in &documents {
        let start = Instant::now();
        let overlaps = evaluations.find(&document.text);
        seconds += start.elapsed().as_secs_f64();
        n_bytes += document.text.len();
        n_contaminated += usize::from(!overlaps.is_empty());
        for overlap in overlaps {
            items.insert(overlap.item);
            let line = json!({
                "path": document.path,
                "line": overlap.line,
                "column": overlap.column,
                "item": overlap.item,
                "item_line": overlap.item_line,
                "words": overlap.n_words,
                "exact": overlap.is_exact,
                "coverage": overlap.coverage,
            });
            crate::say(&line)?;
        }
    }
    let megabytes = n_bytes as f64 / 1e6;
    eprintln!(
        "{n_contaminated} of {} documents have parts of {} items; {megabytes:.1} MB in {seconds:.2} s, {:.0} MB/s",
        documents.len(),
        items.len(),
        megabytes / seconds
    );
    Ok(())
}
