//! `tritter-curate secrets`: the credentials of a corpus, and the stage's speed on it.

use std::path::PathBuf;
use std::time::Instant;

use curation::Secrets;
use serde_json::json;

pub(crate) fn run(inputs: &[PathBuf], endings: &[String]) -> anyhow::Result<()> {
    let documents = crate::read(inputs, endings)?;
    let secrets = Secrets::built_in()?;
    let bpe = tiktoken_rs::cl100k_base_singleton();
    let count_tokens = |text: &str| bpe.encode_ordinary(text).len();
    let (mut n_found, mut n_bytes, mut n_lines) = (0, 0, 0);
    let mut seconds = 0.0;
    for document in &documents {
        let text = document.text.as_bytes();
        let start = Instant::now();
        let found = secrets.find(text, &count_tokens);
        seconds += start.elapsed().as_secs_f64();
        n_bytes += text.len();
        n_lines += memchr::memchr_iter(b'\n', text).count();
        n_found += found.len();
        for secret in found {
            let line = json!({
                "path": document.path,
                "line": secret.line,
                "column": secret.column,
                "rule": secret.rule.id,
                "secret": secret.preview(text),
                "fingerprint": secret.fingerprint,
            });
            crate::say(&line)?;
        }
    }
    eprintln!(
        "{n_found} credentials in {n_lines} lines of {} documents; {}",
        documents.len(),
        crate::speed(n_bytes, seconds)
    );
    Ok(())
}
