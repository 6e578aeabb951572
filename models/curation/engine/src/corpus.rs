//! Lists what a corpus is made of, and cuts it into partitions: always the same ones for the same inputs, whatever machine or number of threads.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::path::{Path, PathBuf};

use curation::licence::{of_licence_file, of_manifest};
use curation::quality::code::Language;
use datafusion::parquet::file::reader::{FileReader, SerializedFileReader};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::read::{Document, unnamed};

/// Folders that hold no sources of the project they are in.
const SKIPPED: &[&str] =
    &[".git", ".hg", ".svn", "node_modules", "target", "__pycache__", ".venv", "venv", ".tox", ".mypy_cache"];

/// Which documents of a corpus are looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    /// Every text.
    All,
    /// Those of a known language.
    Languages,
    /// Those whose path ends in one of these.
    Endings(Vec<String>),
}

impl Wanted {
    /// Whether a document is; one that its corpus gives no path has none to be judged by, and is.
    pub fn has_document(&self, document: &Document) -> bool {
        document.path == unnamed(&document.source, document.position) || self.has(&document.path)
    }

    /// Whether a document of this path is.
    pub fn has(&self, path: &str) -> bool {
        match self {
            Wanted::All => true,
            Wanted::Languages => Language::of(path).is_some(),
            Wanted::Endings(endings) => endings.iter().any(|ending| path.ends_with(ending.as_str())),
        }
    }
}

/// A piece of an input, small enough to be read at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// The file, as the inputs name it.
    pub source: String,
    /// What of it.
    pub piece: Piece,
    /// Which of the inputs it is of.
    pub input: String,
    /// For a file of a folder, the licence of the project that it is in.
    pub project: Option<String>,
}

/// Which part of a file makes documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Piece {
    /// The file is one document.
    File,
    /// Each line of a JSONL file that starts at one of these bytes is one.
    Lines {
        /// The first byte.
        start: u64,
        /// The byte after the last.
        end: u64,
    },
    /// Each row of a group of a Parquet file is one.
    Rows {
        /// The group.
        group: usize,
    },
}

/// Everything that the inputs have, in the order of the paths.
#[derive(Debug)]
pub struct Corpus {
    units: Vec<(Unit, u64)>,
}

/// Partitions smaller than this cost more to plan than to judge.
const MIN_PARTITION: u64 = 2 << 20;

/// A partition is in memory while it is judged, once for each thread.
const MAX_PARTITION: u64 = 64 << 20;

/// Enough partitions for an executor's share to be even, and few enough for one plan.
const N_PARTITIONS: u64 = 256;

impl Corpus {
    /// Lists the inputs: folders, files, and files whose name ends in `.jsonl` or `.parquet` and whose lines or rows are documents. A file whose name is no
    /// UTF-8 is no document.
    ///
    /// The folder `except`, by its canonical path, is left out of the others.
    pub fn list(inputs: &[PathBuf], wanted: &Wanted, except: Option<&Path>) -> Result<Corpus, EngineError> {
        let mut units = BTreeMap::new();
        for input in inputs {
            let name = input.to_string_lossy().into_owned();
            let mut add = |source: String, piece: Piece, project: Option<String>, bytes: u64| {
                let unit = Unit { source: source.clone(), piece, input: name.clone(), project };
                units.entry((source, piece)).or_insert((unit, bytes));
            };
            match input.extension().and_then(|extension| extension.to_str()) {
                Some("jsonl") => {
                    let bytes = fs::metadata(input).map_err(EngineError::at(input))?.len();
                    let starts = (0..bytes).step_by(MIN_PARTITION as usize);
                    for start in starts {
                        let end = bytes.min(start + MIN_PARTITION);
                        add(name.clone(), Piece::Lines { start, end }, None, end - start);
                    }
                }
                Some("parquet") => {
                    let file = File::open(input).map_err(EngineError::at(input))?;
                    let reader = SerializedFileReader::new(file).map_err(EngineError::of_parquet(input))?;
                    for (group, metadata) in reader.metadata().row_groups().iter().enumerate() {
                        let bytes = u64::try_from(metadata.total_byte_size()).unwrap_or(0);
                        add(name.clone(), Piece::Rows { group }, None, bytes);
                    }
                }
                _ => {
                    let mut files = Vec::new();
                    // A link that the user names is followed, one that lies in a folder is not.
                    let named = fs::metadata(input).map_err(EngineError::at(input))?;
                    walk(input, &named, except, &mut files)?;
                    files.sort();
                    let mut projects = Projects::default();
                    for (path, _) in &files {
                        projects.read(path)?;
                    }
                    for (path, bytes) in files {
                        if wanted.has(&path) {
                            let project = projects.of(&path).map(str::to_owned);
                            add(path, Piece::File, project, bytes);
                        }
                    }
                }
            }
        }
        Ok(Corpus { units: units.into_values().collect() })
    }

    /// The pieces, in their order.
    pub fn units(&self) -> impl Iterator<Item = &Unit> {
        self.units.iter().map(|(unit, _)| unit)
    }

    /// Cuts the pieces into runs of about so many bytes; without a number, of a power of two that grows with the corpus.
    pub fn partitions(&self, bytes: Option<u64>) -> Vec<Vec<Unit>> {
        let total: u64 = self.units.iter().map(|(_, bytes)| bytes).sum();
        let fitting = (total / N_PARTITIONS).next_power_of_two().clamp(MIN_PARTITION, MAX_PARTITION);
        let bytes = bytes.unwrap_or(fitting);
        let mut partitions: Vec<Vec<Unit>> = Vec::new();
        let mut full = bytes;
        for (unit, size) in &self.units {
            match partitions.last_mut() {
                Some(last) if full < bytes => last.push(unit.clone()),
                _ => {
                    partitions.push(vec![unit.clone()]);
                    full = 0;
                }
            }
            full += size;
        }
        partitions
    }
}

/// The licence of every folder that has a manifest or a licence file. The manifest goes first; of two manifests the last, and of two licence files the first.
#[derive(Debug, Default)]
pub struct Projects {
    by_folder: BTreeMap<PathBuf, String>,
}

impl Projects {
    /// Looks at one document.
    pub fn add(&mut self, path: &str, text: &str) {
        let path = Path::new(path);
        let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
            return;
        };
        if let Some(licence) = of_manifest(name, text) {
            self.by_folder.insert(folder.to_owned(), licence);
        } else if let Some(licence) = of_licence_file(name, text) {
            self.by_folder.entry(folder.to_owned()).or_insert_with(|| licence.to_owned());
        }
    }

    /// The licence of the innermost project that a path is in.
    pub fn of(&self, path: &str) -> Option<&str> {
        let mut folders = Path::new(path).ancestors().skip(1);
        folders.find_map(|folder| self.by_folder.get(folder)).map(String::as_str)
    }

    /// Every folder with its licence.
    pub fn folders(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.by_folder.iter().map(|(folder, licence)| (folder.as_path(), licence.as_str()))
    }

    /// Whether a document of this name can say what the licence of its folder is.
    pub fn may_name(path: &str) -> bool {
        let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
        let upper = name.to_ascii_uppercase();
        matches!(name, "Cargo.toml" | "pyproject.toml" | "package.json")
            || ["LICENSE", "LICENCE", "COPYING"].iter().any(|start| upper.starts_with(start))
    }

    fn read(&mut self, path: &str) -> Result<(), EngineError> {
        if Projects::may_name(path) {
            let bytes = fs::read(path).map_err(EngineError::at(Path::new(path)))?;
            self.add(path, &String::from_utf8_lossy(&bytes));
        }
        Ok(())
    }
}

fn walk(
    path: &Path,
    metadata: &Metadata,
    except: Option<&Path>,
    files: &mut Vec<(String, u64)>,
) -> Result<(), EngineError> {
    if metadata.is_file() {
        if let Some(name) = path.to_str() {
            files.push((name.to_owned(), metadata.len()));
        }
    } else if metadata.is_dir() {
        if except.is_some() && fs::canonicalize(path).ok().as_deref() == except {
            return Ok(());
        }
        for entry in fs::read_dir(path).map_err(EngineError::at(path))? {
            let entry = entry.map_err(EngineError::at(path))?;
            // A folder that the user names is read, whatever its name.
            if !SKIPPED.iter().any(|skipped| entry.file_name() == *skipped) {
                let path = entry.path();
                let metadata = fs::symlink_metadata(&path).map_err(EngineError::at(&path))?;
                walk(&path, &metadata, except, files)?;
            }
        }
    }
    Ok(())
}
