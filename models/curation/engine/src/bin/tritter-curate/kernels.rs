//! `tritter-curate kernels`: the Triton kernels of a corpus, each copy but the first left out.

use std::collections::BTreeSet;
use std::path::PathBuf;

use curation::kernels::find_kernels;
use serde_json::json;

use crate::report::{Report, Speed};

pub(crate) fn run(inputs: &[PathBuf], copies: bool, mut report: Report) -> anyhow::Result<()> {
    let documents = crate::read(inputs, &[".py".to_owned()])?;
    let (mut n_found, mut n_files) = (0, 0);
    let mut keys = BTreeSet::new();
    let mut speed = Speed::default();
    for document in &documents {
        let kernels = speed.of(&document.text, || find_kernels(&document.text));
        n_found += kernels.len();
        n_files += usize::from(!kernels.is_empty());
        for kernel in &kernels {
            let is_first = keys.insert(kernel.key.clone());
            if !is_first && !copies {
                continue;
            }
            report.row(json!({
                "path": document.path,
                "line": kernel.line,
                "name": kernel.name,
                "autotuned": kernel.autotuned,
                "has_heuristics": kernel.has_heuristics,
                "helpers": kernel.helpers,
                "n_launchers": kernel.launchers.len(),
                "key": kernel.key,
                "text": kernel.text(&document.text, &kernels),
            }))?;
        }
    }
    let n_keys = keys.len();
    let text = format!("{n_found} kernels in {n_files} of {} modules; {n_keys} without copies", documents.len());
    report.end("kernels", speed, json!({ "found": n_found, "without_copies": n_keys }), &text)
}
