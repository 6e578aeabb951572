//! Finds what a corpus has twice, as plans over verdicts: contents are grouped by the keys of their bands, the pairs of each group are compared by their
//! shingles, and what is connected is one cluster. The nodes are contents, by their hashes, so that neither the order of documents nor that of partitions
//! matters, and exact copies are one node.
//!
//! Plans sort, group and join in the memory that their engine has, and go on in files where it ends; what goes from plan to plan is files. In memory are the
//! hashes of contents that share a band, some 50 bytes each, and the copies that were found.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use curation::duplicates::clusters;
use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef, UInt64Type};
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::error::EngineError;
use crate::keep::Writer;
use crate::place::{Cut, Engine, Sink, Table};
use crate::shingles::{self, Content, Place, content};
use crate::verdict::{self, field};

/// Pairs of contents that share the key of a band. A content of a group goes to its block, so that no list is longer than that.
const CANDIDATES: &str = "
    SELECT DISTINCT pair['l'] AS l, pair['r'] AS r FROM (
        SELECT unnest(pairs(contents)) AS pair FROM (
            SELECT array_agg(blake3) AS contents FROM (
                SELECT key, blake3, unnest(blocks(n)) AS block FROM (
                    SELECT key, blake3, row_number() OVER (PARTITION BY key ORDER BY blake3) AS n
                    FROM (SELECT blake3, unnest(bands) AS key FROM (SELECT DISTINCT blake3, bands FROM verdicts))
                )
            ) GROUP BY key, block HAVING 1 < count(*)
        )
    )";

/// How many keys a plan has in its hands at once: a row of a document has one for each band.
const N_KEYS: usize = 1 << 17;

/// Those of them that are similar, by their shingles.
fn near(shingles: &Place, threshold: f64) -> String {
    let folder = shingles.folder.to_string_lossy().replace('\'', "''");
    format!("SELECT l, r FROM candidates WHERE similarity('{folder}', '{}', l, r) >= {threshold:?}", shingles.hash)
}

/// The documents of all contents that are there twice, or near another. The first one of a cluster stays: by path, then by content, then by where it is.
const MEMBERS: &str = "
    SELECT v.blake3, v.path, v.source, v.position FROM verdicts v JOIN (
        SELECT blake3 FROM verdicts GROUP BY blake3 HAVING count(*) > 1
        UNION SELECT l FROM near UNION SELECT r FROM near
    ) c ON v.blake3 = c.blake3
    ORDER BY v.path, v.blake3, v.source, v.position";

/// A document that another stays in the place of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy<'c> {
    /// The path of the one that stays.
    pub kept: &'c str,
    /// Whether they are the same byte for byte.
    pub is_exact: bool,
}

/// All of them, by their file and place in it.
#[derive(Debug, Default)]
pub struct Copies {
    /// The first document of each cluster: its path and its content.
    first: Vec<(String, Content)>,
    by_place: HashMap<(String, u64), (u32, bool)>,
}

impl Copies {
    /// What a document is a copy of.
    pub fn get(&self, source: &str, position: u64) -> Option<Copy<'_>> {
        let (cluster, is_exact) = self.by_place.get(&(source.to_owned(), position))?;
        Some(Copy { kept: &self.first[*cluster as usize].0, is_exact: *is_exact })
    }
}

/// Finds all copies in files of verdicts. Pairs go from plan to plan as files in `folder`.
pub async fn find(
    engine: &Engine,
    cut: Cut,
    verdicts: &[PathBuf],
    folder: &Path,
    n_bands: usize,
    threshold: f64,
    n_threads: usize,
) -> Result<Copies, EngineError> {
    if verdicts.is_empty() {
        return Ok(Copies::default());
    }
    let (schema, pairs) = (verdict::schema(), pair_schema());
    let verdicts = Table { name: "verdicts", files: verdicts, schema: &schema };
    let candidates_file = [folder.join("candidates.parquet")];
    let near_file = [folder.join("near.parquet")];
    let write = |path: &Path| Writer::new(path, &pairs).map(Pairs);
    let rows = Cut { n_rows: (N_KEYS / n_bands).clamp(1, cut.n_rows), ..cut };
    let found = engine.query(rows, &[verdicts], CANDIDATES, || write(&candidates_file[0])).await?;
    found.0.finish()?;
    let candidates = Table { name: "candidates", files: &candidates_file, schema: &pairs };
    let contents = contents_of(&candidates_file[0])?;
    let shingles = shingles::write(verdicts.files, &contents, folder, n_threads)?;
    drop(contents);
    let near = near(&shingles, threshold);
    engine.query(cut, &[candidates], &near, || write(&near_file[0])).await?.0.finish()?;
    let connected = Connected::read(&near_file[0])?;
    let near = Table { name: "near", files: &near_file, schema: &pairs };
    let members = engine.query(cut, &[verdicts, near], MEMBERS, || Ok(Members::of(&connected))).await?;
    Ok(members.copies)
}

/// A file of pairs.
struct Pairs(Writer);

impl Sink for Pairs {
    fn add(&mut self, batch: RecordBatch) -> Result<(), EngineError> {
        // Columns of plans may say otherwise whether they can have no value.
        self.0.add(&RecordBatch::try_new(pair_schema(), batch.columns().to_vec())?)
    }
}

fn pair_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![field("l", DataType::Utf8), field("r", DataType::Utf8)]))
}

/// The contents of near pairs, each with the cluster that it is in.
#[derive(Debug, Default)]
struct Connected(HashMap<Content, u32>);

impl Connected {
    fn read(pairs: &Path) -> Result<Connected, EngineError> {
        let mut found = Edges::default();
        each_pair(pairs, |l, r| found.add(l, r))?;
        Ok(found.connected())
    }
}

/// The contents of a file of pairs.
fn contents_of(pairs: &Path) -> Result<HashSet<Content>, EngineError> {
    let mut contents = HashSet::new();
    each_pair(pairs, |l, r| contents.extend([l, r]))?;
    Ok(contents)
}

fn each_pair(pairs: &Path, mut each: impl FnMut(Content, Content)) -> Result<(), EngineError> {
    let file = File::open(pairs).map_err(EngineError::at(pairs))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(ParquetRecordBatchReaderBuilder::build);
    for batch in reader.map_err(EngineError::of_parquet(pairs))? {
        let batch = batch?;
        let (l, r) = (batch.column(0).as_string::<i32>(), batch.column(1).as_string::<i32>());
        for row in 0..batch.num_rows() {
            each(content(l.value(row))?, content(r.value(row))?);
        }
    }
    Ok(())
}

/// Pairs of contents by numbers.
#[derive(Debug, Default)]
struct Edges {
    numbers: HashMap<Content, u32>,
    edges: Vec<(u32, u32)>,
}

impl Edges {
    fn add(&mut self, l: Content, r: Content) {
        let mut number = |content: Content| {
            let next = self.numbers.len() as u32;
            *self.numbers.entry(content).or_insert(next)
        };
        let edge = (number(l), number(r));
        self.edges.push(edge);
    }

    fn connected(self) -> Connected {
        let clusters = clusters(self.numbers.len(), self.edges);
        let numbers = self.numbers.into_iter();
        Connected(numbers.map(|(content, number)| (content, clusters[number as usize])).collect())
    }
}

/// Takes the documents of clusters in the order in which the first one stays.
struct Members<'c> {
    connected: &'c Connected,
    /// The clusters that have a first document: of connected contents by their number, of exact copies by their content.
    near: HashMap<u32, u32>,
    exact: HashMap<Content, u32>,
    copies: Copies,
}

impl<'c> Members<'c> {
    fn of(connected: &'c Connected) -> Members<'c> {
        Members { connected, near: HashMap::new(), exact: HashMap::new(), copies: Copies::default() }
    }

    fn add_one(&mut self, path: &str, content: Content, source: &str, position: u64) {
        let next = self.copies.first.len() as u32;
        let cluster = match self.connected.0.get(&content) {
            Some(cluster) => *self.near.entry(*cluster).or_insert(next),
            None => *self.exact.entry(content).or_insert(next),
        };
        if cluster == next {
            self.copies.first.push((path.to_owned(), content));
        } else {
            let is_exact = self.copies.first[cluster as usize].1 == content;
            self.copies.by_place.insert((source.to_owned(), position), (cluster, is_exact));
        }
    }
}

impl Sink for Members<'_> {
    fn add(&mut self, batch: RecordBatch) -> Result<(), EngineError> {
        let text = |at: usize| batch.column(at).as_string::<i32>();
        let (hashes, paths, sources) = (text(0), text(1), text(2));
        let positions = batch.column(3).as_primitive::<UInt64Type>();
        for row in 0..batch.num_rows() {
            self.add_one(paths.value(row), content(hashes.value(row))?, sources.value(row), positions.value(row));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_path_of_what_is_connected_stays() {
        // In the order in which the plan gives them: by their paths.
        let members = [("a", 1, 1), ("b", 2, 2), ("c", 1, 0), ("d", 3, 3), ("e", 4, 4), ("f", 4, 5)];
        for near in [[(3, 2), (2, 1)], [(2, 1), (3, 2)], [(1, 2), (2, 3)]] {
            let mut edges = Edges::default();
            for (l, r) in near {
                edges.add([l; 32], [r; 32]);
            }
            let connected = edges.connected();
            let mut found = Members::of(&connected);
            for (path, content, position) in members {
                found.add_one(path, [content; 32], "s", position);
            }
            let kept = |position: u64| found.copies.get("s", position).map(|copy| (copy.kept, copy.is_exact));
            assert_eq!(
                [0, 1, 2, 3, 4, 5].map(kept),
                [Some(("a", true)), None, Some(("a", false)), Some(("a", false)), None, Some(("e", true))]
            );
        }
    }
}
