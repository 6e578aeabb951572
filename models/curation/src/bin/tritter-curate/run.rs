//! `tritter-curate run`: every stage over a corpus; one JSON object a document, and a report for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;
use tritter_curation::Secrets;
use tritter_curation::duplicates::{Bands, Keep, find_duplicates};
use tritter_curation::judge::{Criteria, Judgement, judge};
use tritter_curation::kernels::find_kernels;
use tritter_curation::licence::{PERMISSIVE, of_licence_file, of_manifest};
use tritter_curation::quality::code::Language;

use crate::input::{self, Input};
use crate::quality::figures;

/// What is counted for the report, by section and name.
#[derive(Default)]
struct Report {
    sections: BTreeMap<&'static str, BTreeMap<String, usize>>,
    n_documents: usize,
    n_bytes: usize,
    n_lines: usize,
}

pub(crate) fn run(inputs: &[PathBuf], endings: &[String], out: &Path, any_licence: bool) -> anyhow::Result<()> {
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
    let criteria = Criteria { secrets: &secrets, count_tokens: &count_tokens, licences };
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    // Beside its place until it is whole.
    let mut lines = std::io::BufWriter::new(beside(out)?);
    let mut report = Report::default();
    for (index, document) in documents.iter().enumerate() {
        let kept = duplicates.kept[index] as usize;
        let judgement = judge(&document.path, &document.text, project_of(&document.path, &projects), criteria);
        let copy_of = (kept != index).then(|| documents[kept].path.as_str());
        report.add(document, &judgement, copy_of);
        writeln!(lines, "{}", record(document, &judgement, copy_of))?;
    }
    move_to(lines.into_inner().map_err(std::io::IntoInnerError::into_error)?, &out.join("documents.jsonl"))?;
    report.count("near-duplicates", "exact copies".to_owned(), duplicates.n_exact);
    report.count("near-duplicates", "near copies".to_owned(), duplicates.n_near);
    let text = report.text();
    let mut file = beside(out)?;
    file.write_all(text.as_bytes())?;
    move_to(file, &out.join("report.txt"))?;
    std::io::stdout().lock().write_all(text.as_bytes())?;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("{seconds:.1} s, {:.0} MB/s in all", report.n_bytes as f64 / 1e6 / seconds);
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

fn record(document: &Input, judgement: &Judgement, copy_of: Option<&str>) -> Value {
    let findings: Vec<Value> = judgement
        .findings
        .iter()
        .map(|finding| {
            json!({
                "rule": finding.rule,
                "line": finding.line,
                "column": finding.column,
                "severity": finding.severity.name(),
            })
        })
        .collect();
    let mut record = Map::new();
    let mut put = |name: &str, value: Value| record.insert(name.to_owned(), value);
    put("path", json!(document.path));
    put("blake3", json!(blake3::hash(document.text.as_bytes()).to_hex().as_str()));
    put("language", json!(judgement.language));
    put("licence", json!(judgement.licence));
    put("label", json!(if copy_of.is_some() { "rejected" } else { judgement.label.name() }));
    put("reason", json!(if copy_of.is_some() { "duplicate" } else { judgement.reason }));
    put("copy_of", json!(copy_of));
    put("findings", json!(findings));
    put("measures", figures(&judgement.measures));
    put("text", json!(judgement.redacted.as_deref().unwrap_or(&document.text)));
    Value::Object(record)
}

impl Report {
    fn count(&mut self, section: &'static str, name: String, n: usize) {
        *self.sections.entry(section).or_default().entry(name).or_default() += n;
    }

    fn add(&mut self, document: &Input, judgement: &Judgement, copy_of: Option<&str>) {
        self.n_documents += 1;
        self.n_bytes += document.text.len();
        self.n_lines += judgement.measures.n_lines;
        let (label, reason) = match copy_of {
            Some(_) => ("rejected", "duplicate"),
            None => (judgement.label.name(), judgement.reason),
        };
        self.count("labels", format!("{label}: {reason}"), 1);
        self.count("languages", judgement.language.unwrap_or("other").to_owned(), 1);
        self.count("licences", judgement.licence.clone().unwrap_or_else(|| "none".to_owned()), 1);
        for finding in &judgement.findings {
            self.count("findings", format!("{} ({})", finding.rule, finding.severity.name()), 1);
        }
        if judgement.language == Some("python") {
            self.count("kernels", "Triton kernels".to_owned(), find_kernels(&document.text).len());
        }
    }

    fn text(&self) -> String {
        let megabytes = self.n_bytes as f64 / 1e6;
        let mut text = format!("{} documents, {} lines, {megabytes:.1} MB\n", self.n_documents, self.n_lines);
        for (section, counts) in &self.sections {
            let _ = writeln!(text, "\n{section}");
            let mut counts: Vec<(&String, &usize)> = counts.iter().collect();
            counts.sort_by_key(|(name, n)| (std::cmp::Reverse(**n), *name));
            for (name, n) in counts {
                let _ = writeln!(text, "{n:>9}  {name}");
            }
        }
        text
    }
}
