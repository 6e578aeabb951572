//! `tritter-curate security`: what is dangerous in a corpus's Python, Rust and CUDA, and the stage's speed on it.

use std::path::PathBuf;

use curation::quality::code::Language;
use curation::security::{LANGUAGES, find_dangers};
use serde_json::json;

use crate::report::{Report, Speed};

pub(crate) fn run(inputs: &[PathBuf], mut report: Report) -> anyhow::Result<()> {
    let documents = crate::read(inputs, &[])?;
    let mut n_found = 0;
    let mut speed = Speed::default();
    for document in &documents {
        let Some(language) = Language::of(&document.path).filter(|language| LANGUAGES.contains(&language.name)) else {
            continue;
        };
        let dangers = speed.of(&document.text, || find_dangers(language.name, &document.text));
        n_found += dangers.len();
        for danger in dangers {
            report.row(json!({
                "path": document.path,
                "line": danger.line,
                "column": danger.column,
                "rule": danger.rule.id,
                "severity": danger.rule.severity.name(),
                "message": danger.message,
                "bandit": danger.rule.bandit,
            }))?;
        }
    }
    report.end("findings", speed, json!({}), &format!("{n_found} findings in {} documents", speed.n_documents))
}
