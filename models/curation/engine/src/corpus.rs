//! Lists what a corpus is made of, and cuts it into partitions: always the same ones for the same inputs, whatever machine or number of threads.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::path::{Path, PathBuf};

use curation::licence::{Manifest, PackageLicence, is_licence_file, of_licence_file};
use curation::quality::code::Language;
use datafusion::parquet::file::reader::{FileReader, SerializedFileReader};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::read::{Document, has_lines, has_rows, unnamed};

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
    /// Lists the inputs: folders, files, and files whose name ends in `.jsonl` or `.parquet` and whose lines or rows are documents. In a folder such a file is
    /// one if it has texts, and else a file as others are. A file that several inputs have, however they are spelt, is listed once. A file whose name is no
    /// UTF-8 is no document.
    ///
    /// The folder `except`, by its canonical path, is left out of the others.
    pub fn list(inputs: &[PathBuf], wanted: &Wanted, except: Option<&Path>) -> Result<Corpus, EngineError> {
        let mut units: BTreeMap<(PathBuf, Piece), (Unit, u64)> = BTreeMap::new();
        for input in inputs {
            let name = input.to_string_lossy().into_owned();
            let place = fs::canonicalize(input).map_err(EngineError::at(input))?;
            // A link that the user names is followed, one that lies in a folder is not.
            let named = fs::metadata(input).map_err(EngineError::at(input))?;
            let mut files = Vec::new();
            walk(input, &named, except, &mut files)?;
            files.sort();
            let mut projects = Projects::default();
            for (path, _) in &files {
                projects.read(path)?;
            }
            for (path, bytes) in files {
                let project = projects.of(&path).map(str::to_owned);
                let place = match Path::new(&path).strip_prefix(input) {
                    Ok(below) if below != Path::new("") => place.join(below),
                    _ => place.clone(),
                };
                for (piece, bytes) in pieces(Path::new(&path), bytes, named.is_file(), wanted)? {
                    let project = project.clone().filter(|_| piece == Piece::File);
                    let unit = Unit { source: path.clone(), piece, input: name.clone(), project };
                    let listed = units.entry((place.clone(), piece)).or_insert_with(|| (unit.clone(), bytes));
                    // Of several spellings one, whatever the order of the inputs.
                    if (&unit.source, &unit.input) < (&listed.0.source, &listed.0.input) {
                        listed.0 = unit;
                    }
                }
            }
        }
        let mut units: Vec<(Unit, u64)> = units.into_values().collect();
        units.sort_by(|(lhs, _), (rhs, _)| (&lhs.source, lhs.piece).cmp(&(&rhs.source, rhs.piece)));
        Ok(Corpus { units })
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

/// The pieces of a file with their bytes: what a user names is what its ending says, and what a folder has is a corpus if it has texts.
fn pieces(path: &Path, bytes: u64, is_named: bool, wanted: &Wanted) -> Result<Vec<(Piece, u64)>, EngineError> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("jsonl") if is_named || has_lines(path)? => {
            let starts = (0..bytes).step_by(MIN_PARTITION as usize);
            let lines = starts.map(|start| {
                let end = bytes.min(start + MIN_PARTITION);
                (Piece::Lines { start, end }, end - start)
            });
            Ok(lines.collect())
        }
        Some("parquet") if is_named || has_rows(path)? => {
            let file = File::open(path).map_err(EngineError::at(path))?;
            let reader = SerializedFileReader::new(file).map_err(EngineError::of_parquet(path))?;
            let groups = reader.metadata().row_groups().iter().enumerate();
            let size = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
            Ok(groups.map(|(group, metadata)| (Piece::Rows { group }, size(metadata.total_byte_size()))).collect())
        }
        _ if path.to_str().is_some_and(|path| wanted.has(path)) => Ok(vec![(Piece::File, bytes)]),
        _ => Ok(Vec::new()),
    }
}

/// What folders say of their licences, by their manifests and licence files. The manifest goes first; of two manifests the last, and of two licence files the
/// first. A member of a Cargo workspace may leave it to the workspace.
#[derive(Debug, Default)]
pub struct Projects {
    said: BTreeMap<(PathBuf, Said), String>,
}

/// How a folder comes to name a licence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Said {
    /// Its manifest has the expression.
    Package,
    /// Its manifest leaves it to the workspace.
    Inherited,
    /// Its licence file has the text.
    File,
    /// Its manifest has what members may inherit.
    Workspace,
}

impl Said {
    const ALL: [Said; 4] = [Said::Package, Said::Inherited, Said::File, Said::Workspace];

    /// Its name in what goes from plan to plan.
    fn name(self) -> &'static str {
        match self {
            Said::Package => "package",
            Said::Inherited => "inherited",
            Said::File => "file",
            Said::Workspace => "workspace",
        }
    }
}

impl Projects {
    /// Looks at one document.
    pub fn add(&mut self, path: &str, text: &str) {
        let path = Path::new(path);
        let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
            return;
        };
        let mut say = |said: Said, licence: String| self.said.insert((folder.to_owned(), said), licence);
        let manifest = Manifest::read(name, text);
        if let Some(licence) = manifest.workspace {
            say(Said::Workspace, licence);
        }
        match manifest.package {
            Some(PackageLicence::Is(licence)) => _ = say(Said::Package, licence),
            Some(PackageLicence::Inherited) => _ = say(Said::Inherited, String::new()),
            None => {
                if let Some(licence) = of_licence_file(name, text) {
                    self.said.entry((folder.to_owned(), Said::File)).or_insert_with(|| licence.to_owned());
                }
            }
        }
    }

    /// The licence of the innermost project that a path is in.
    pub fn of(&self, path: &str) -> Option<&str> {
        Path::new(path).ancestors().skip(1).find_map(|folder| self.of_folder(folder))
    }

    fn of_folder(&self, folder: &Path) -> Option<&str> {
        let said = |folder: &Path, said: Said| self.said.get(&(folder.to_owned(), said)).map(String::as_str);
        let inherited = || {
            said(folder, Said::Inherited)?;
            folder.ancestors().find_map(|folder| said(folder, Said::Workspace))
        };
        said(folder, Said::Package).or_else(inherited).or_else(|| said(folder, Said::File))
    }

    /// Every folder that has a licence, with it.
    pub fn folders(&self) -> impl Iterator<Item = (&Path, &str)> {
        let folders: BTreeSet<&Path> = self.said.keys().map(|(folder, _)| folder.as_path()).collect();
        folders.into_iter().filter_map(|folder| Some((folder, self.of_folder(folder)?)))
    }

    /// What was said, as rows of a plan: the folder, how, and the licence.
    pub fn rows(&self) -> impl Iterator<Item = (&Path, &'static str, &str)> {
        self.said.iter().map(|((folder, said), licence)| (folder.as_path(), said.name(), licence.as_str()))
    }

    /// Takes such a row, unless there was another for the same before.
    pub fn add_row(&mut self, folder: &str, said: &str, licence: &str) {
        if let Some(said) = Said::ALL.into_iter().find(|known| known.name() == said) {
            self.said.entry((PathBuf::from(folder), said)).or_insert_with(|| licence.to_owned());
        }
    }

    /// Whether a document of this name can say what the licence of its folder is.
    pub fn may_name(path: &str) -> bool {
        let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
        Manifest::is_one(name) || is_licence_file(name)
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
