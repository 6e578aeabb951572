//! `tritter-curate security`: what is dangerous in a corpus's Python, Rust and CUDA, and the stage's speed on it.

use std::path::PathBuf;
use std::time::Instant;

use curation::quality::code::Language;
use curation::security::{LANGUAGES, find_dangers};
use serde_json::json;

pub(crate) fn run(inputs: &[PathBuf]) -> anyhow::Result<()> {
    let documents = crate::read(inputs, &[])?;
    let (mut n_found, mut n_documents, mut n_bytes) = (0, 0, 0);
    let mut seconds = 0.0;
    for document in &documents {
        let Some(language) = Language::of(&document.path).filter(|language| LANGUAGES.contains(&language.name)) else {
            continue;
        };
        n_documents += 1;
        n_bytes += document.text.len();
        let start = Instant::now();
        let dangers = find_dangers(language.name, &document.text);
        seconds += start.elapsed().as_secs_f64();
        n_found += dangers.len();
        for danger in dangers {
            let line = json!({
                "path": document.path,
                "line": danger.line,
                "column": danger.column,
                "rule": danger.rule.id,
                "severity": danger.rule.severity.name(),
                "message": danger.message,
                "bandit": danger.rule.bandit,
            });
            crate::say(&line)?;
        }
    }
    eprintln!("{n_found} findings in {n_documents} documents; {}", crate::speed(n_bytes, seconds));
    Ok(())
}
