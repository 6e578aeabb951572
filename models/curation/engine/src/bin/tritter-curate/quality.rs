//! `tritter-curate quality`: the measures of every document and the reasons for which rule sets reject it.

use std::path::PathBuf;

use curation::quality::code::{Language, measure, starcoder};
use curation::quality::{Verdict, web, words};
use serde_json::json;
use tritter_curation_engine::verdict::Figures;

use crate::report::{Report, Speed};

pub(crate) fn run(inputs: &[PathBuf], endings: &[String], mut report: Report) -> anyhow::Result<()> {
    let documents = crate::read(inputs, endings)?;
    let mut speed = Speed::default();
    for document in &documents {
        let text = document.text.as_str();
        let row = speed.of(text, || {
            let words = words(text);
            let language = Language::of(&document.path);
            let measures = measure(text, language);
            let reason = |verdict: Verdict| verdict.err().map(|rejection| rejection.reason);
            json!({
                "path": document.path,
                "language": language.map(|language| language.name),
                "gopher_quality": reason(web::gopher_quality(text, &words)),
                "gopher_repetition": reason(web::gopher_repetition(text, &words)),
                "fineweb": reason(web::fineweb(text, &words)),
                "c4": reason(web::c4(text).map(drop)),
                "starcoder": reason(starcoder(&measures, language)),
                "measures": Figures::of(&measures),
            })
        });
        report.row(row)?;
    }
    report.end("verdicts", speed, json!({}), &format!("{} documents", documents.len()))
}
