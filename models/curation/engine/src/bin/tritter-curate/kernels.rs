//! `tritter-curate kernels`: the Triton kernels of a corpus, each copy but the first left out.

use std::collections::BTreeSet;
use std::path::PathBuf;

use curation::kernels::find_kernels;
use serde_json::json;

pub(crate) fn run(inputs: &[PathBuf], copies: bool) -> anyhow::Result<()> {
    let documents = crate::read(inputs, &[".py".to_owned()])?;
    let (mut n_found, mut n_files) = (0, 0);
    let mut keys = BTreeSet::new();
    for document in &documents {
        let kernels = find_kernels(&document.text);
        n_found += kernels.len();
        n_files += usize::from(!kernels.is_empty());
        for kernel in &kernels {
            let is_first = keys.insert(kernel.key.clone());
            if !is_first && !copies {
                continue;
            }
            let line = json!({
                "path": document.path,
                "line": kernel.line,
                "name": kernel.name,
                "autotuned": kernel.autotuned,
                "has_heuristics": kernel.has_heuristics,
                "helpers": kernel.helpers,
                "n_launchers": kernel.launchers.len(),
                "key": kernel.key,
                "text": kernel.text(&document.text, &kernels),
            });
            crate::say(&line)?;
        }
    }
    eprintln!("{n_found} kernels in {n_files} of {} modules; {} without copies", documents.len(), keys.len());
    Ok(())
}
