//! Reads documents: the text files below directories, in the order of their paths, and the objects of JSONL files.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

/// Folders that hold no sources of the project they are in.
const SKIPPED: &[&str] =
    &[".git", ".hg", ".svn", "node_modules", "target", "__pycache__", ".venv", "venv", ".tox", ".mypy_cache"];

/// A document as it comes in.
#[derive(Debug, Deserialize)]
pub(crate) struct Input {
    /// Its path, or what its corpus calls it.
    #[serde(alias = "id", default)]
    pub(crate) path: String,
    /// Its content.
    #[serde(alias = "content")]
    pub(crate) text: String,
    /// Which of the inputs it comes from.
    #[serde(skip)]
    pub(crate) source: usize,
}

/// Every document of the inputs; bytes that are no UTF-8 make a file no document.
pub(crate) fn read(inputs: &[PathBuf], endings: &[String]) -> anyhow::Result<Vec<Input>> {
    let mut documents = Vec::new();
    for (source, input) in inputs.iter().enumerate() {
        if input.extension().is_some_and(|extension| extension == "jsonl") {
            read_lines(input, source, &mut documents)?;
            continue;
        }
        let mut files = Vec::new();
        walk(input, &mut files).with_context(|| format!("cannot list {}", input.display()))?;
        files.sort();
        for file in files {
            let path = file.to_string_lossy().into_owned();
            if !endings.is_empty() && !endings.iter().any(|ending| path.ends_with(ending.as_str())) {
                continue;
            }
            let bytes = fs::read(&file).with_context(|| format!("cannot read {path}"))?;
            if let Ok(text) = String::from_utf8(bytes)
                && !text.contains('\0')
            {
                documents.push(Input { path, text, source });
            }
        }
    }
    Ok(documents)
}

fn read_lines(path: &Path, source: usize, documents: &mut Vec<Input>) -> anyhow::Result<()> {
    let file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let place = || format!("{}:{}", path.display(), index + 1);
        let line = line.with_context(place)?;
        if line.trim().is_empty() {
            continue;
        }
        let mut input: Input = serde_json::from_str(&line).with_context(place)?;
        input.source = source;
        if input.path.is_empty() {
            input.path = place();
        }
        documents.push(input);
    }
    Ok(())
}

fn walk(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_file() {
        files.push(path.to_owned());
    } else if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            // A folder that the user names is read, whatever its name.
            if !SKIPPED.iter().any(|skipped| entry.file_name() == *skipped) {
                walk(&entry.path(), files)?;
            }
        }
    }
    Ok(())
}
