//! `tritter-curate quality`: the measures of every document and the reasons for which rule sets reject it.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};
use tritter_curation::quality::code::{Language, Measures, measure, starcoder};
use tritter_curation::quality::{web, words};

use crate::input;

pub(crate) fn run(inputs: &[PathBuf], endings: &[String]) -> anyhow::Result<()> {
    let documents = input::read(inputs, endings)?;
    let mut n_bytes = 0;
    let start = Instant::now();
    for document in &documents {
        let text = document.text.as_str();
        let words = words(text);
        let language = Language::of(&document.path);
        let measures = measure(text, language);
        n_bytes += text.len();
        let line = json!({
            "path": document.path,
            "language": language.map(|language| language.name),
            "gopher_quality": web::gopher_quality(text, &words).err(),
            "gopher_repetition": web::gopher_repetition(text, &words).err(),
            "fineweb": web::fineweb(text, &words).err(),
            "c4": web::c4(text).err(),
            "starcoder": starcoder(&measures, language).err(),
            "measures": figures(&measures),
        });
        crate::say(&line)?;
    }
    let megabytes = n_bytes as f64 / 1e6;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("{} documents; {megabytes:.1} MB in {seconds:.2} s, {:.0} MB/s", documents.len(), megabytes / seconds);
    Ok(())
}

/// The measures as an object of the output.
pub(crate) fn figures(measures: &Measures) -> Value {
    json!({
        "lines": measures.n_lines,
        "max_line": measures.max_line,
        "mean_line": measures.mean_line,
        "alphanumeric": measures.alphanumeric,
        "comments": measures.comments,
        "duplicate_lines": measures.duplicate_lines,
        "complexity": measures.complexity,
        "functions": measures.n_functions,
        "longest_encoded": measures.longest_encoded,
        "encoded": measures.encoded,
        "generated_line": measures.generated,
    })
}
