//! `tritter-curate security`: the dangerous calls of a corpus's Python modules.

use std::path::PathBuf;

use curation::security::find_dangers;
use serde_json::json;

pub(crate) fn run(inputs: &[PathBuf]) -> anyhow::Result<()> {
    let documents = crate::read(inputs, &[".py".to_owned()])?;
    let mut n_found = 0;
    for document in &documents {
        for danger in find_dangers(&document.text) {
            n_found += 1;
            let line = json!({
                "path": document.path,
                "line": danger.line,
                "column": danger.column,
                "rule": danger.rule.id,
                "severity": danger.rule.severity.name(),
                "message": danger.rule.message,
                "bandit": danger.rule.bandit,
            });
            crate::say(&line)?;
        }
    }
    eprintln!("{n_found} dangerous calls in {} modules", documents.len());
    Ok(())
}
