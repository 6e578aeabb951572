//! `tritter-curate contamination`: what of evaluation sets stands in a corpus, and the stage's speed on it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use curation::contamination::Evaluations;
use serde_json::json;
use tritter_curation_engine::evaluations::{Item, read_items};

use crate::report::{Report, Speed};

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

    fn build(&self, report: &mut Report) -> anyhow::Result<Option<Evaluations>> {
        let Some((items, _)) = self.read()? else { return Ok(None) };
        let n_items = items.len();
        let start = Instant::now();
        let evaluations = Evaluations::new(items, self.overlap);
        let seconds = start.elapsed().as_secs_f64();
        let (n_long, n_runs, n_bytes) = (evaluations.n_items(), evaluations.n_runs(), evaluations.n_bytes());
        report.add(
            json!({ "items": n_items, "long_items": n_long, "runs": n_runs, "run_words": self.overlap }),
            &format!(
                "{n_long} of {n_items} items are long enough; {n_runs} runs of {} words in {:.1} MB, {seconds:.2} s",
                self.overlap,
                n_bytes as f64 / 1e6,
            ),
        );
        Ok(Some(evaluations))
    }
}

pub(crate) fn run(inputs: &[PathBuf], endings: &[String], against: &Against, mut report: Report) -> anyhow::Result<()> {
    let evaluations = against.build(&mut report)?.context("there is nothing to look for")?;
    let documents = crate::read(inputs, endings)?;
    let mut n_contaminated = 0;
    let mut items = BTreeSet::new();
    let mut speed = Speed::default();
    for document in &documents {
        let overlaps = speed.of(&document.text, || evaluations.find(&document.text));
        n_contaminated += usize::from(!overlaps.is_empty());
        for overlap in overlaps {
            items.insert(overlap.item);
            report.row(json!({
                "path": document.path,
                "line": overlap.line,
                "column": overlap.column,
                "item": overlap.item,
                "item_line": overlap.item_line,
                "words": overlap.n_words,
                "exact": overlap.is_exact,
                "coverage": overlap.coverage,
            }))?;
        }
    }
    let n_items = items.len();
    let text = format!("{n_contaminated} of {} documents have parts of {n_items} items", documents.len());
    let fields = json!({ "contaminated_documents": n_contaminated, "contaminating_items": n_items });
    report.end("overlaps", speed, fields, &text)
}
