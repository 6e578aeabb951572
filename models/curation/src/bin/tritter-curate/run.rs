//! `tritter-curate run`: every stage over a corpus; one JSON object a document, and a report for people.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;
use tritter_curation::Secrets;
use tritter_curation::duplicates::{Bands, Keep, find_duplicates};
use tritter_curation::judge::{Criteria, judge};
use tritter_curation::kernels::find_kernels;
use tritter_curation::licence::{PERMISSIVE, of_licence_file, of_manifest};
use tritter_curation::quality::code::Language;
use tritter_curation::report::{Entry, Report};

use crate::contamination::Against;
use crate::input::{self, Input};
use crate::quality::figures;

pub(crate) fn run(
    inputs: &[PathBuf],
    endings: &[String],
    out: &Path,
    any_licence: bool,
    against: &Against,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let all = input::read(inputs, &[])?;
    let projects = projects(&all);
    let is_wanted = |document: &&Input| match endings {
        [] => Language::of(&document.path).is_some(),
        endings => endings.iter().any(|ending| document.path.ends_with(ending.as_str())),
    };
    let documents: Vec<&Input> = all.iter().filter(is_wanted).collect();
    let texts: Vec<&str> = documents.iter().map(|document| document.text.as_str()).collect();
    let duplicates = find_duplicates(&texts, Bands::DEFAULT, 0.8, Keep::First);
    let secrets = Secrets::built_in()?;
    let bpe = tiktoken_rs::cl100k_base_singleton();
    let count_tokens = |text: &str| bpe.encode_ordinary(text).len();
    let licences = (!any_licence).then_some(PERMISSIVE);
    let evaluations = against.read()?;
    let criteria =
        Criteria { secrets: &secrets, count_tokens: &count_tokens, licences, evaluations: evaluations.as_ref() };
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    // Beside its place until it is whole.
    let mut lines = std::io::BufWriter::new(beside(out)?);
    let mut report = Report::default();
    let n_bytes: usize = texts.iter().map(|text| text.len()).sum();
    for (index, document) in documents.iter().enumerate() {
        let (path, text) = (document.path.as_str(), document.text.as_str());
        let judgement = judge(path, text, project_of(path, &projects), criteria);
        let kept = duplicates.kept[index] as usize;
        let copy_of = (kept != index).then(|| documents[kept].path.as_str());
        let n_kernels = if judgement.language == Some("python") { find_kernels(text).len() } else { 0 };
        let source = inputs[document.source].to_string_lossy();
        let entry = Entry { path, source: &source, text, judgement: &judgement, copy_of, n_kernels };
        report.add(&entry, documents[kept].text == text);
        writeln!(lines, "{}", record(&entry))?;
    }
    move_to(lines.into_inner().map_err(std::io::IntoInnerError::into_error)?, &out.join("documents.jsonl"))?;
    let text = report.text();
    write(out, "report.txt", &text)?;
    write(out, "report.html", &report.html()?)?;
    std::io::stdout().lock().write_all(text.as_bytes())?;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("{seconds:.1} s, {:.0} MB/s in all", n_bytes as f64 / 1e6 / seconds);
    Ok(())
}

/// A file of no name of its own yet, which is gone if anything fails.
fn beside(out: &Path) -> anyhow::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    // As readable as what the user makes otherwise.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(out).with_context(|| format!("cannot write to {}", out.display()))
}

fn move_to(file: NamedTempFile, path: &Path) -> anyhow::Result<()> {
    file.persist(path).with_context(|| format!("cannot write {}", path.display())).map(drop)
}

fn write(out: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let mut file = beside(out)?;
    file.write_all(text.as_bytes())?;
    move_to(file, &out.join(name))
}

/// The licence of every folder that has a manifest or a licence file; the manifest goes first.
fn projects(documents: &[Input]) -> BTreeMap<PathBuf, String> {
    let mut projects = BTreeMap::new();
    for document in documents {
        let path = Path::new(&document.path);
        let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
            continue;
        };
        if let Some(licence) = of_manifest(name, &document.text) {
            projects.insert(folder.to_owned(), licence);
        } else if let Some(licence) = of_licence_file(name, &document.text) {
            projects.entry(folder.to_owned()).or_insert_with(|| licence.to_owned());
        }
    }
    projects
}

fn project_of<'p>(path: &str, projects: &'p BTreeMap<PathBuf, String>) -> Option<&'p str> {
    Path::new(path).ancestors().skip(1).find_map(|folder| projects.get(folder)).map(String::as_str)
}

fn record(entry: &Entry<'_>) -> Value {
    let judgement = entry.judgement;
    let findings: Vec<Value> = judgement
        .findings
        .iter()
        .map(|finding| {
            json!({
                "rule": finding.rule,
                "line": finding.line,
                "column": finding.column,
                "severity": finding.severity.name(),
                "message": finding.message,
            })
        })
        .collect();
    let (label, reason) = entry.label();
    let mut record = Map::new();
    let mut put = |name: &str, value: Value| record.insert(name.to_owned(), value);
    put("path", json!(entry.path));
    put("source", json!(entry.source));
    put("blake3", json!(blake3::hash(entry.text.as_bytes()).to_hex().as_str()));
    put("language", json!(judgement.language));
    put("licence", json!(judgement.licence));
    put("label", json!(label.name()));
    put("reason", json!(reason));
    put("copy_of", json!(entry.copy_of));
    put("findings", json!(findings));
    put("measures", figures(&judgement.measures));
    put("text", json!(judgement.redacted.as_deref().unwrap_or(entry.text)));
    Value::Object(record)
}
