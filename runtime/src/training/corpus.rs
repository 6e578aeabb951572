//! A corpus: the documents of several shards, as one list.
//!
//! A directory that `tritter shard` wrote has two: what is trained on, in files `train-NNNNN.shard`, and what is only looked at, in
//! `validation-NNNNN.shard`. Which of them a document belongs to is decided by its name and contents ([`Split::of`]), so it stays where it is
//! when others come or go.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::RuntimeError;
use crate::training::shard::Shard;

/// What the names of shards end in.
pub const EXTENSION: &str = "shard";

/// One of the parts that documents are divided into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Split {
    /// What is trained on.
    Train,
    /// What is only looked at.
    Validation,
}

impl Split {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Train, Self::Validation];

    /// What the names of its shards begin with.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
        }
    }

    /// Where a document belongs if `share` of all documents is only to be looked at: by the BLAKE3 hash of its name, a zero byte and its contents.
    pub fn of(name: &str, contents: &[u8], share: f64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(name.as_bytes()).update(&[0]).update(contents);
        let bits = hasher.finalize().as_bytes().first_chunk().map_or(0, |&bytes| u64::from_le_bytes(bytes));
        // As many bits as a number has.
        let place = (bits >> 11) as f64 / (1_u64 << 53) as f64;
        if place < share { Self::Validation } else { Self::Train }
    }

    /// The file of a shard.
    pub fn file(self, dir: &Path, number: usize) -> PathBuf {
        dir.join(format!("{}-{number:05}.{EXTENSION}", self.name()))
    }

    /// The shards in a directory, in the order of their names.
    ///
    /// # Errors
    ///
    /// If the directory cannot be read.
    pub fn files(self, dir: &Path) -> Result<Vec<PathBuf>, RuntimeError> {
        let error = RuntimeError::io("list", dir);
        let entries: Result<Vec<_>, _> = std::fs::read_dir(dir).and_then(Iterator::collect).map_err(error);
        let (start, end) = (format!("{}-", self.name()), format!(".{EXTENSION}"));
        let is_its = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&start) && name.ends_with(&end)
        };
        let paths = entries?.into_iter().map(|entry: std::fs::DirEntry| entry.path());
        let mut files: Vec<PathBuf> = paths.filter(is_its).collect();
        files.sort();
        Ok(files)
    }
}

/// Documents, in the order of their shards.
#[derive(Debug)]
pub struct Corpus {
    shards: Vec<Shard>,
    /// Documents before each shard, and all of them.
    starts: Vec<usize>,
}

impl Corpus {
    /// Opens the shards of a split in some directories; none are an empty corpus. `progress` is told how many bytes of how many are checked.
    ///
    /// # Errors
    ///
    /// If a shard cannot be used, or they are not all of one vocabulary.
    pub fn open(dirs: &[PathBuf], split: Split, progress: &mut dyn FnMut(u64, u64)) -> Result<Self, RuntimeError> {
        let mut files = Vec::new();
        for dir in dirs {
            files.extend(split.files(dir)?);
        }
        let sizes = files.iter().map(|file| std::fs::metadata(file).map_or(0, |metadata| metadata.len()));
        let (mut done, total) = (0, sizes.sum());
        let mut corpus = Self { shards: Vec::with_capacity(files.len()), starts: vec![0] };
        for file in &files {
            let shard = Shard::open(file, &mut |bytes| {
                done += bytes;
                progress(done, total);
            })?;
            if let Some(first) = corpus.shards.first().filter(|first| first.vocabulary() != shard.vocabulary()) {
                return Err(RuntimeError::Vocabularies {
                    first: first.path().to_owned(),
                    expected: first.vocabulary(),
                    path: file.clone(),
                    found: shard.vocabulary(),
                });
            }
            corpus.starts.push(corpus.documents() + shard.documents());
            corpus.shards.push(shard);
        }
        match u32::try_from(corpus.documents()) {
            Ok(_) => Ok(corpus),
            Err(_) => Err(RuntimeError::TooManyDocuments { found: corpus.documents(), max: u32::MAX }),
        }
    }

    /// How many documents it has.
    pub fn documents(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// How many tokens they have together.
    pub fn tokens(&self) -> u64 {
        self.shards.iter().map(|shard| shard.tokens() as u64).sum()
    }

    /// How many of those follow another one of their document: what there is to predict.
    pub fn targets(&self) -> u64 {
        self.tokens() - self.documents() as u64
    }

    /// Ids that there are; none if there are no shards.
    pub fn vocabulary(&self) -> Option<u32> {
        self.shards.first().map(Shard::vocabulary)
    }

    /// The BLAKE3 hash of all shards' hashes, in hexadecimal: the same for the same documents in the same order, wherever they lie.
    pub fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for shard in &self.shards {
            hasher.update(shard.hash());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// How many tokens a document has.
    ///
    /// # Panics
    ///
    /// If there is no such document.
    pub fn length(&self, document: usize) -> usize {
        let (shard, document) = self.locate(document);
        shard.document(document).len()
    }

    /// Appends some tokens of a document to a list.
    ///
    /// # Panics
    ///
    /// If there is no such document, or it is shorter.
    pub fn read(&self, document: usize, tokens: Range<usize>, into: &mut Vec<i32>) {
        let (shard, document) = self.locate(document);
        let range = shard.document(document);
        assert!(tokens.end <= range.len(), "a document of {} tokens has no token {}", range.len(), tokens.end);
        shard.read(range.start + tokens.start..range.start + tokens.end, into);
    }

    /// The shard that has a document, and the document's number there.
    fn locate(&self, document: usize) -> (&Shard, usize) {
        let shard = self.starts.partition_point(|&start| start <= document) - 1;
        (&self.shards[shard], document - self.starts[shard])
    }
}
