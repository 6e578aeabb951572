//! `tritter-curate quality`: the measures of every document and the reasons for which rule sets reject it.

use std::path::PathBuf;
use std::time::Instant;

use curation::quality::code::{Language, measure, starcoder};
use curation::quality::{web, words};
use serde_json::json;
use tritter_curation_engine::verdict::Figures;

pub(crate) fn run(inputs: &[PathBuf], endings: &[String]) -> anyhow::Result<()> {
    let documents = crate::read(inputs, endings)?;
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
            "measures": Figures::of(&measures),
        });
        crate::say(&line)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("{} documents; {}", documents.len(), crate::speed(n_bytes, seconds));
    Ok(())
}
