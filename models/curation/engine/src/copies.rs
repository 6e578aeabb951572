//! Finds what a corpus has twice, as plans over verdicts: contents are grouped by the keys of their bands, the pairs of each group are compared by their
//! texts, and what is connected is one cluster. The nodes are contents, by their hashes, so that neither the order of documents nor that of partitions
//! matters, and exact copies are one node.
//!
//! Plans sort, group and join in the memory that their engine has, and go on in files where it ends; what goes from plan to plan is files. In memory are the
//! contents of near pairs, 36 bytes each, and the copies that were found.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use curation::duplicates::{MAX_GROUP, clusters};
use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef, UInt64Type};
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::error::EngineError;
use crate::keep::Writer;
use crate::place::{Cut, Engine, Sink, Table};
use crate::verdict::{self, field};

/// Pairs of contents that share the key of a band. In a group of more than [`MAX_GROUP`] each is compared with so many before it: rows of one block go with
/// those of the block before, so that no list is longer than two blocks.
fn candidates() -> String {
    format!(
        "WITH keys AS (SELECT DISTINCT blake3, key FROM (SELECT blake3, unnest(bands) AS key FROM verdicts)),
        shared AS (SELECT key, count(*) AS size FROM keys GROUP BY key HAVING count(*) > 1),
        numbered AS (
            SELECT keys.key AS key, size, blake3,
                CAST(row_number() OVER (PARTITION BY keys.key ORDER BY blake3) AS BIGINT) - 1 AS n
            FROM keys JOIN shared ON keys.key = shared.key
        ),
        blocks AS (
            SELECT key, blake3, unnest(
                CASE WHEN n / {MAX_GROUP} < (size - 1) / {MAX_GROUP} THEN make_array(n / {MAX_GROUP}, n / {MAX_GROUP} + 1)
                ELSE make_array(n / {MAX_GROUP}) END
            ) AS block FROM numbered
        )
        SELECT DISTINCT pair['l'] AS l, pair['r'] AS r FROM (
            SELECT unnest(pairs(contents)) AS pair FROM (
                SELECT array_agg(blake3) AS contents FROM blocks GROUP BY key, block
            )
        )"
    )
}

/// Those of them that are similar.
const NEAR: &str = "
    WITH contents AS (
        SELECT blake3, min(text) AS text FROM verdicts
        WHERE blake3 IN (SELECT l FROM candidates UNION SELECT r FROM candidates) GROUP BY blake3
    )
    SELECT l, r FROM (
        SELECT c.l, l.text AS l_text, c.r, r.text AS r_text
        FROM candidates c JOIN contents l ON l.blake3 = c.l JOIN contents r ON r.blake3 = c.r
    ) WHERE similarity(l, l_text, r, r_text) >= ";

/// How many rows of texts a plan has in its hands at once.
const N_TEXTS: usize = 256;

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

/// The hash of a content.
type Content = [u8; 32];

/// Finds all copies in files of verdicts. Pairs go from plan to plan as files in `folder`.
pub async fn find(
    engine: &Engine,
    cut: Cut,
    verdicts: &[PathBuf],
    folder: &Path,
    threshold: f64,
) -> Result<Copies, EngineError> {
    if verdicts.is_empty() {
        return Ok(Copies::default());
    }
    let (schema, pairs) = (verdict::schema(), pair_schema());
    let verdicts = Table { name: "verdicts", files: verdicts, schema: &schema };
    let candidates_file = [folder.join("candidates.parquet")];
    let near_file = [folder.join("near.parquet")];
    let write = |path: &Path| Writer::new(path, &pairs).map(Pairs);
    let found = engine.query(cut, &[verdicts], &candidates(), || write(&candidates_file[0])).await?;
    found.0.finish()?;
    let candidates = Table { name: "candidates", files: &candidates_file, schema: &pairs };
    let texts = Cut { n_rows: cut.n_rows.min(N_TEXTS), ..cut };
    let near = format!("{NEAR}{threshold:?}");
    engine.query(texts, &[verdicts, candidates], &near, || write(&near_file[0])).await?.0.finish()?;
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
        let file = std::fs::File::open(pairs).map_err(EngineError::at(pairs))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(ParquetRecordBatchReaderBuilder::build);
        let mut found = Edges::default();
        for batch in reader.map_err(EngineError::of_parquet(pairs))? {
            let batch = batch?;
            let (l, r) = (batch.column(0).as_string::<i32>(), batch.column(1).as_string::<i32>());
            for row in 0..batch.num_rows() {
                found.add(content(l.value(row))?, content(r.value(row))?);
            }
        }
        Ok(found.connected())
    }
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

/// The bytes of a hash.
fn content(hash: &str) -> Result<Content, EngineError> {
    let parsed = blake3::Hash::from_hex(hash);
    parsed.map(|hash| *hash.as_bytes()).map_err(|_| EngineError::Hash(hash.to_owned()))
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
