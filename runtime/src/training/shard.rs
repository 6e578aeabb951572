//! A shard: the tokens of many documents in one file, to be mapped and read in place.
//!
//! All numbers are little-endian.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `TRITTOKS` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | bytes of a token `w`, 2 or 4 |
//! | 16 | 4 | size of the vocabulary: every token is below it |
//! | 20 | 4 | 0 |
//! | 24 | 8 | documents `d` |
//! | 32 | 8 | tokens `t` |
//! | 40 | 32 | BLAKE3 of all other bytes, in order |
//! | 72 | 8 `d` | where each document ends, in tokens; none is empty, and the last ends at `t` |
//! | 72 + 8 `d` | `w t` | the tokens |

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::artifact::map;
use crate::error::RuntimeError;
use crate::training::storage::{Storage, replace};

const MAGIC: &[u8; 8] = b"TRITTOKS";
const VERSION: u32 = 1;
/// Where the hash stands.
const HASH: Range<usize> = 40..72;
/// Bytes before the documents' ends.
const HEADER: usize = 72;
/// Bytes that are checked between two reports of progress.
const CHUNK: usize = 8 << 20;

/// What is wrong with a shard.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardProblem {
    /// Another kind of file.
    #[error("it is no shard: it does not begin with `TRITTOKS`")]
    Foreign,
    /// A shard of another version.
    #[error(
        "it is a shard of version {found}, this program reads version {VERSION}; write it again with `tritter shard`"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// A header that no shard has.
    #[error("its header is damaged: {field} is {found}, which it cannot be")]
    Header {
        /// Which number.
        field: &'static str,
        /// What stands there.
        found: u64,
    },
    /// More or fewer bytes than the header says: it was cut off, or something was appended.
    #[error("it has {found} bytes, its header says {expected}; it is incomplete or damaged")]
    Length {
        /// Bytes that the header speaks of; the largest number if it speaks of more than there can be.
        expected: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// Some bytes are not what was written.
    #[error("it is damaged: its BLAKE3 hash is {found}, its header says {expected}; copy or write it again")]
    Hash {
        /// That of the header.
        expected: String,
        /// That of the file.
        found: String,
    },
    /// The documents' ends do not ascend to the number of tokens.
    #[error("document {document} ends at token {end}, which does not lie behind {start} and within {tokens} tokens")]
    End {
        /// Which document.
        document: u64,
        /// Where it starts.
        start: u64,
        /// Where it is said to end.
        end: u64,
        /// Tokens of the shard.
        tokens: u64,
    },
    /// Tokens behind the last document.
    #[error("its documents have {end} tokens, the shard {tokens}")]
    Rest {
        /// Where the last document ends.
        end: u64,
        /// Tokens of the shard.
        tokens: u64,
    },
    /// A token beyond the vocabulary.
    #[error("token {token} has id {id}, the vocabulary has {vocabulary}")]
    Id {
        /// Which token.
        token: u64,
        /// Its id.
        id: u32,
        /// Ids that there are.
        vocabulary: u32,
    },
}

/// Documents on their way into a file.
#[derive(Clone, Debug)]
pub struct Draft {
    vocabulary: u32,
    ends: Vec<u64>,
    tokens: Vec<u32>,
}

impl Draft {
    /// None yet, of a vocabulary of so many ids.
    pub fn new(vocabulary: u32) -> Self {
        Self { vocabulary, ends: Vec::new(), tokens: Vec::new() }
    }

    /// Adds a document; one without tokens is none.
    ///
    /// # Errors
    ///
    /// If an id is not in the vocabulary; nothing is added then.
    pub fn push(&mut self, ids: &[u32]) -> Result<(), RuntimeError> {
        if let Some(index) = ids.iter().position(|&id| self.vocabulary <= id) {
            return Err(RuntimeError::TokenId { index, id: ids[index], vocab: u64::from(self.vocabulary) });
        }
        if !ids.is_empty() {
            self.tokens.extend_from_slice(ids);
            self.ends.push(self.tokens.len() as u64);
        }
        Ok(())
    }

    /// How many tokens there are.
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Writes the shard: it is at `path` when it is complete, and not before.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn write(&self, path: &Path, storage: &mut dyn Storage) -> Result<(), RuntimeError> {
        let width: u32 = if self.vocabulary <= 1 << 16 { 2 } else { 4 };
        let mut header = Vec::with_capacity(HEADER);
        header.extend(MAGIC);
        header.extend([VERSION, width, self.vocabulary, 0].iter().flat_map(|field| field.to_le_bytes()));
        header.extend([self.ends.len() as u64, self.tokens.len() as u64].iter().flat_map(|field| field.to_le_bytes()));
        let mut hasher = blake3::Hasher::new();
        hasher.update(&header);
        self.each_piece(width, &mut |piece| {
            hasher.update(piece);
            Ok(())
        })
        .map_err(RuntimeError::io("write", path))?;
        header.extend(hasher.finalize().as_bytes());
        replace(storage, path, &mut |file| {
            file.write_all(&header)?;
            self.each_piece(width, &mut |piece| file.write_all(piece))
        })
    }

    /// Gives the bytes behind the header, some at a time.
    fn each_piece(&self, width: u32, take: &mut dyn FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
        /// Numbers of a piece: few enough that it stays in a cache.
        const PIECE: usize = 1 << 14;
        let mut bytes = Vec::with_capacity(8 * PIECE);
        for ends in self.ends.chunks(PIECE) {
            bytes.clear();
            bytes.extend(ends.iter().flat_map(|end| end.to_le_bytes()));
            take(&bytes)?;
        }
        for tokens in self.tokens.chunks(PIECE) {
            bytes.clear();
            match width {
                2 => bytes.extend(tokens.iter().flat_map(|&token| (token as u16).to_le_bytes())),
                _ => bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes())),
            }
            take(&bytes)?;
        }
        Ok(())
    }
}

/// A shard that was opened and checked.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    map: Mmap,
    width: usize,
    vocabulary: u32,
    /// Where the documents end: a copy, so that nothing done to the file leads out of it.
    ends: Vec<u64>,
    tokens: usize,
}

impl Shard {
    /// Opens a shard and checks all of it. `progress` is told how many bytes were checked since it was told last.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Shard`] if it is none, damaged or of another version; if it cannot be read.
    pub fn open(path: &Path, progress: &mut dyn FnMut(u64)) -> Result<Self, RuntimeError> {
        let refuse = |problem| RuntimeError::Shard { path: path.to_owned(), problem };
        let file = File::open(path).map_err(RuntimeError::io("read", path))?;
        let found = file.metadata().map_err(RuntimeError::io("read", path))?.len();
        // An empty file cannot be mapped.
        if found == 0 {
            return Err(refuse(ShardProblem::Foreign));
        }
        let map = map(&file).map_err(RuntimeError::io("read", path))?;
        let Header { width, vocabulary, documents, tokens } = Header::read(&map).map_err(refuse)?;
        let ends = map[HEADER..HEADER + 8 * documents].as_chunks().0.iter().map(|&end| u64::from_le_bytes(end));
        let shard = Self { path: path.to_owned(), width, vocabulary, ends: ends.collect(), tokens, map };
        shard.check(progress).map_err(refuse)?;
        Ok(shard)
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ids that there are.
    pub fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    /// How many documents it has.
    pub fn documents(&self) -> usize {
        self.ends.len()
    }

    /// How many tokens they have together.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// What its header says of all other bytes.
    pub fn hash(&self) -> &[u8] {
        &self.map[HASH]
    }

    /// The tokens of a document, as a range of those of the shard.
    ///
    /// # Panics
    ///
    /// If there is no such document.
    pub fn document(&self, document: usize) -> Range<usize> {
        let start = document.checked_sub(1).map_or(0, |before| self.ends[before]);
        start as usize..self.ends[document] as usize
    }

    /// Appends some of the tokens to a list.
    ///
    /// # Panics
    ///
    /// If the range leaves the shard.
    pub fn read(&self, tokens: Range<usize>, into: &mut Vec<i32>) {
        let all = &self.map[HEADER + 8 * self.ends.len()..];
        let bytes = &all[tokens.start * self.width..tokens.end * self.width];
        // Ids are below the vocabulary, and that was checked to fit.
        match self.width {
            2 => into.extend(bytes.as_chunks().0.iter().map(|&token| i32::from(u16::from_le_bytes(token)))),
            _ => into.extend(bytes.as_chunks().0.iter().map(|&token| i32::from_le_bytes(token))),
        }
    }

    /// Checks what is behind the header. What is damaged is told as damage, before anything that follows from it.
    fn check(&self, progress: &mut dyn FnMut(u64)) -> Result<(), ShardProblem> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.map[..HASH.start]);
        for chunk in self.map[HASH.end..].chunks(CHUNK) {
            hasher.update(chunk);
            progress(chunk.len() as u64);
        }
        let found = hasher.finalize();
        if found.as_bytes() != self.hash() {
            let expected = self.hash().iter().map(|byte| format!("{byte:02x}")).collect();
            return Err(ShardProblem::Hash { expected, found: found.to_hex().to_string() });
        }
        let (mut start, tokens) = (0, self.tokens as u64);
        for (document, &end) in self.ends.iter().enumerate() {
            if end <= start || tokens < end {
                return Err(ShardProblem::End { document: document as u64, start, end, tokens });
            }
            start = end;
        }
        if start != tokens {
            return Err(ShardProblem::Rest { end: start, tokens });
        }
        let mut ids = Vec::new();
        for first in (0..self.tokens).step_by(CHUNK) {
            ids.clear();
            self.read(first..self.tokens.min(first + CHUNK), &mut ids);
            // A negative id is one above all others, read as a signed number.
            if let Some(index) = ids.iter().position(|&id| self.vocabulary <= id as u32) {
                let (token, id) = ((first + index) as u64, ids[index] as u32);
                return Err(ShardProblem::Id { token, id, vocabulary: self.vocabulary });
            }
        }
        Ok(())
    }
}

struct Header {
    width: usize,
    vocabulary: u32,
    documents: usize,
    tokens: usize,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, ShardProblem> {
        if !bytes.starts_with(MAGIC) {
            return Err(ShardProblem::Foreign);
        }
        if bytes.len() < HEADER {
            return Err(ShardProblem::Length { expected: HEADER as u64, found: bytes.len() as u64 });
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(ShardProblem::Version { found: version });
        }
        let (width, vocabulary, zero) = (u32_at(bytes, 12), u32_at(bytes, 16), u32_at(bytes, 20));
        let wrong = |field, found: u32| Err(ShardProblem::Header { field, found: u64::from(found) });
        if ![2, 4].contains(&width) {
            return wrong("the width of a token", width);
        }
        // Ids go to kernels as signed numbers.
        if vocabulary == 0 || i32::MAX as u32 <= vocabulary {
            return wrong("the size of the vocabulary", vocabulary);
        }
        if zero != 0 {
            return wrong("the number at byte 20", zero);
        }
        let (documents, tokens, found) = (u64_at(bytes, 24), u64_at(bytes, 32), bytes.len() as u64);
        let parts = documents.checked_mul(8).zip(tokens.checked_mul(u64::from(width)));
        let expected = parts.and_then(|(ends, tokens)| ends.checked_add(tokens)?.checked_add(HEADER as u64));
        if expected != Some(found) {
            return Err(ShardProblem::Length { expected: expected.unwrap_or(u64::MAX), found });
        }
        // Both fit: there are more bytes of each.
        Ok(Self { width: width as usize, vocabulary, documents: documents as usize, tokens: tokens as usize })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |&number| u32::from_le_bytes(number))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |&number| u64::from_le_bytes(number))
}
