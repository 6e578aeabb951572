//! `tritter-curate secrets`: the credentials of a corpus, and the stage's speed on it.

use std::path::PathBuf;

use curation::Secrets;
use serde_json::json;

use crate::report::{Report, Speed};

pub(crate) fn run(inputs: &[PathBuf], endings: &[String], mut report: Report) -> anyhow::Result<()> {
    let documents = crate::read(inputs, endings)?;
    let secrets = Secrets::built_in()?;
    let bpe = tiktoken_rs::cl100k_base_singleton();
    let count_tokens = |text: &str| bpe.encode_ordinary(text).len();
    let (mut n_found, mut n_lines) = (0, 0);
    let mut speed = Speed::default();
    for document in &documents {
        let text = document.text.as_bytes();
        let found = speed.of(&document.text, || secrets.find(text, &count_tokens));
        n_lines += memchr::memchr_iter(b'\n', text).count();
        n_found += found.len();
        for secret in found {
            report.row(json!({
                "path": document.path,
                "line": secret.line,
                "column": secret.column,
                "rule": secret.rule.id,
                "secret": secret.preview(text),
                "fingerprint": secret.fingerprint,
            }))?;
        }
    }
    let text = format!("{n_found} credentials in {n_lines} lines of {} documents", documents.len());
    report.end("findings", speed, json!({ "lines": n_lines }), &text)
}
