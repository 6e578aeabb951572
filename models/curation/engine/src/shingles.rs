//! The shingles of contents that may be near others, in a file that pairs are looked up in: as many pairs as a content is in, its text is read and cut once,
//! and none of it stays in memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use curation::duplicates::{jaccard, shingles};
use datafusion::arrow::array::AsArray;
use datafusion::parquet::arrow::ProjectionMask;
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::error::EngineError;
use crate::keep;

/// The hash of a content.
pub type Content = [u8; 32];

/// Where a content's shingles are: the first one, and how many.
type Span = (u64, u32);

/// A hash and a span, as bytes of the index.
const ENTRY: usize = 32 + 8 + 4;

/// A file of shingles, 8 bytes each, and an index of it beside.
#[derive(Debug)]
pub struct Shingles {
    file: PathBuf,
    index: HashMap<Content, Span>,
}

/// Where a file of shingles is, as it goes to executors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The folder.
    pub folder: PathBuf,
    /// The hash of the index.
    pub hash: String,
}

/// How many rows of texts are in memory at once, for each thread.
const N_ROWS: usize = 64;

/// Writes the shingles of some contents, whose texts are in files of verdicts.
pub fn write(
    verdicts: &[PathBuf],
    contents: &HashSet<Content>,
    folder: &Path,
    n_threads: usize,
) -> Result<Place, EngineError> {
    let path = file(folder);
    let data = BufWriter::new(File::create(&path).map_err(EngineError::at(&path))?);
    let state = Mutex::new(Writing { data, end: 0, index: BTreeMap::new() });
    let next = Mutex::new(verdicts.iter());
    let work = || -> Result<(), EngineError> {
        loop {
            let Some(file) = next.lock().unwrap_or_else(PoisonError::into_inner).next() else { return Ok(()) };
            each_text(file, contents, |content, text| {
                if state.lock().unwrap_or_else(PoisonError::into_inner).index.contains_key(&content) {
                    return Ok(());
                }
                let shingles = shingles(text);
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                state.add(content, &shingles).map_err(EngineError::at(&path))
            })?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads.max(1)).map(|_| scope.spawn(work)).collect();
        let ended = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        ended.collect::<Result<Vec<()>, EngineError>>()
    })?;
    let mut state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    state.data.flush().map_err(EngineError::at(&path))?;
    let entries = state.index.iter();
    let bytes: Vec<u8> = entries
        .flat_map(|(content, (start, n))| content.iter().copied().chain(start.to_le_bytes()).chain(n.to_le_bytes()))
        .collect();
    keep::write_bytes(&index(folder), &bytes)?;
    Ok(Place { folder: folder.to_owned(), hash: blake3::hash(&bytes).to_hex().to_string() })
}

/// Removes what [`write`] wrote.
pub fn remove(folder: &Path) -> Result<(), EngineError> {
    for path in [file(folder), index(folder)] {
        fs::remove_file(&path).map_err(EngineError::at(&path))?;
    }
    Ok(())
}

fn file(folder: &Path) -> PathBuf {
    folder.join("shingles.bin")
}

fn index(folder: &Path) -> PathBuf {
    folder.join("shingles.index")
}

struct Writing {
    data: BufWriter<File>,
    /// The number of shingles that were written.
    end: u64,
    index: BTreeMap<Content, Span>,
}

impl Writing {
    fn add(&mut self, content: Content, shingles: &[u64]) -> std::io::Result<()> {
        // Another thread may have met a copy meanwhile.
        if let std::collections::btree_map::Entry::Vacant(entry) = self.index.entry(content) {
            for shingle in shingles {
                self.data.write_all(&shingle.to_le_bytes())?;
            }
            // A document of 256 MB, the largest, has fewer words than that.
            entry.insert((self.end, shingles.len() as u32));
            self.end += shingles.len() as u64;
        }
        Ok(())
    }
}

/// Gives the texts of some contents in a file of verdicts.
fn each_text(
    file: &Path,
    contents: &HashSet<Content>,
    mut each: impl FnMut(Content, &str) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let parquet = EngineError::of_parquet(file);
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(file).map_err(EngineError::at(file))?);
    let builder = builder.map_err(&parquet)?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), ["blake3", "text"]);
    for batch in builder.with_projection(mask).with_batch_size(N_ROWS).build().map_err(&parquet)? {
        let batch = batch?;
        let (hashes, texts) = (batch.column(0).as_string::<i32>(), batch.column(1).as_string::<i32>());
        for row in 0..batch.num_rows() {
            let content = content(hashes.value(row))?;
            if contents.contains(&content) {
                each(content, texts.value(row))?;
            }
        }
    }
    Ok(())
}

/// The bytes of a hash.
pub fn content(hash: &str) -> Result<Content, EngineError> {
    let parsed = blake3::Hash::from_hex(hash);
    parsed.map(|hash| *hash.as_bytes()).map_err(|_| EngineError::Hash(hash.to_owned()))
}

impl Shingles {
    /// Opens what [`write`] wrote. The index is read once for a process and a run.
    pub fn open(place: &Place) -> Result<Arc<Shingles>, EngineError> {
        static LAST: Mutex<Option<(Place, Arc<Shingles>)>> = Mutex::new(None);
        // Others wait meanwhile, and need the same.
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((known, shingles)) if known == place => Ok(shingles.clone()),
            _ => {
                let path = index(&place.folder);
                let bytes = fs::read(&path).map_err(EngineError::at(&path))?;
                if blake3::hash(&bytes).to_hex().as_str() != place.hash {
                    return Err(EngineError::OtherRun(place.folder.clone()));
                }
                let entries = bytes.as_chunks::<ENTRY>().0.iter();
                let shingles = Arc::new(Shingles { file: file(&place.folder), index: entries.map(entry).collect() });
                *last = Some((place.clone(), shingles.clone()));
                Ok(shingles)
            }
        }
    }

    /// The similarities of pairs.
    pub fn compare(&self, pairs: impl Iterator<Item = (Content, Content)>) -> Result<Vec<f64>, EngineError> {
        let mut file = File::open(&self.file).map_err(EngineError::at(&self.file))?;
        let mut find = |content: &Content| {
            let span = self.index.get(content).ok_or_else(|| EngineError::OtherRun(self.file.clone()))?;
            read(&mut file, *span).map_err(EngineError::at(&self.file))
        };
        pairs.map(|(l, r)| Ok(jaccard(&find(&l)?, &find(&r)?))).collect()
    }
}

fn entry(bytes: &[u8; ENTRY]) -> (Content, Span) {
    let (content, rest) = bytes.split_first_chunk::<32>().expect("an entry is longer than a hash");
    let (start, n) = rest.split_first_chunk::<8>().expect("a hash is followed by 12 bytes");
    let n = n.first_chunk::<4>().expect("the start is followed by 4 bytes");
    (*content, (u64::from_le_bytes(*start), u32::from_le_bytes(*n)))
}

fn read(file: &mut File, (start, n): Span) -> std::io::Result<Vec<u64>> {
    let mut bytes = vec![0; n as usize * 8];
    file.seek(SeekFrom::Start(start * 8))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect())
}
