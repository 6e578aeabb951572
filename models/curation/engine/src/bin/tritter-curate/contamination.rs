//! `tritter-curate contamination`: what of evaluation sets stands in a corpus, and the stage's speed on it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use curation::contamination::Evaluations;
use serde_json::json;
use tritter_curation_engine::evaluations::{Item, read_items};

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
    /// The items of the sets and the length of an overlap, if there are sets.
    pub(crate) fn read(&self) -> anyhow::Result<Option<(Vec<Item>, usize)>> {
        let are_there = !self.against.is_empty();
        Ok(are_there.then(|| read_items(&self.against)).transpose()?.map(|items| (items, self.overlap)))
    }

    fn build(&self) -> anyhow::Result<Option<Evaluations>> {
        let Some((items, _)) = self.read()? else { return Ok(None) };
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

pub(crate) fn run(inputs: &[PathBuf], endings: &[String], against: &Against) -> anyhow::Result<()> {
    let evaluations = against.build()?.context("there is nothing to look for")?;
    let documents = crate::read(inputs, endings)?;
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
    eprintln!(
        "{n_contaminated} of {} documents have parts of {} items; {}",
        documents.len(),
        items.len(),
        crate::speed(n_bytes, seconds)
    );
    Ok(())
}
