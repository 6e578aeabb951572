//! Finds what a corpus has twice, as plans over verdicts: contents are grouped by the keys of their bands, the pairs of each group are compared by their
//! texts, and what is connected is one cluster. The nodes are contents, by their hashes, so that neither the order of documents nor that of partitions
//! matters, and exact copies are one node.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use curation::duplicates::clusters;
use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef, UInt64Type};

use crate::error::EngineError;
use crate::keep;
use crate::place::{Cut, Place, Table};
use crate::verdict::{self, field};

/// Pairs of contents that share the key of a band.
const CANDIDATES: &str = "
    SELECT DISTINCT pair['l'] AS l, pair['r'] AS r FROM (
        SELECT unnest(pairs(contents)) AS pair FROM (
            SELECT array_agg(blake3) AS contents FROM (
                SELECT DISTINCT blake3, key FROM (SELECT blake3, unnest(bands) AS key FROM verdicts)
            ) GROUP BY key HAVING count(*) > 1
        )
    )";

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

/// The documents of all contents that are there twice, or near another.
const MEMBERS: &str = "
    SELECT v.blake3, v.path, v.source, v.position FROM verdicts v JOIN (
        SELECT blake3 FROM verdicts GROUP BY blake3 HAVING count(*) > 1
        UNION SELECT l FROM near UNION SELECT r FROM near
    ) c ON v.blake3 = c.blake3";

/// A document that another stays in the place of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// The path of the one that stays.
    pub kept: String,
    /// Whether they are the same byte for byte.
    pub is_exact: bool,
}

/// All of them, by their file and place in it.
pub type Copies = HashMap<(String, u64), Copy>;

/// A document of a cluster. The first one stays: by path, then by content, then by where it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Member {
    path: String,
    blake3: String,
    source: String,
    position: u64,
}

/// Finds all copies in files of verdicts. Pairs go from plan to plan as files in `folder`.
pub async fn find(
    place: &Place,
    cut: Cut,
    verdicts: &[PathBuf],
    folder: &Path,
    threshold: f64,
) -> Result<Copies, EngineError> {
    if verdicts.is_empty() {
        return Ok(Copies::new());
    }
    let (schema, pairs) = (verdict::schema(), pair_schema());
    let verdicts = Table { name: "verdicts", files: verdicts, schema: &schema };
    let found = place.query(cut, &[verdicts], CANDIDATES).await?;
    let files = [folder.join("candidates.parquet")];
    write_pairs(&files[0], &found)?;
    let candidates = Table { name: "candidates", files: &files, schema: &pairs };
    let near = place.query(cut, &[verdicts, candidates], &format!("{NEAR}{threshold:?}")).await?;
    let files = [folder.join("near.parquet")];
    write_pairs(&files[0], &near)?;
    let table = Table { name: "near", files: &files, schema: &pairs };
    let members = place.query(cut, &[verdicts, table], MEMBERS).await?;
    Ok(copies(members_of(&members), &pairs_of(&near)))
}

/// Which documents of connected contents go, and which stays for each.
fn copies(members: Vec<Member>, near: &[(&str, &str)]) -> Copies {
    let mut contents: BTreeMap<String, Vec<Member>> = BTreeMap::new();
    for member in members {
        contents.entry(member.blake3.clone()).or_default().push(member);
    }
    let numbers: HashMap<&str, u32> = contents.keys().map(String::as_str).zip(0_u32..).collect();
    let edges = near.iter().filter_map(|(l, r)| Some((*numbers.get(l)?, *numbers.get(r)?)));
    let clusters = clusters(contents.len(), edges);
    let mut by_cluster: BTreeMap<u32, Vec<Member>> = BTreeMap::new();
    for (cluster, members) in clusters.into_iter().zip(contents.into_values()) {
        by_cluster.entry(cluster).or_default().extend(members);
    }
    let mut copies = Copies::new();
    for mut cluster in by_cluster.into_values() {
        cluster.sort();
        let mut members = cluster.into_iter();
        let Some(first) = members.next() else { continue };
        for member in members {
            let copy = Copy { kept: first.path.clone(), is_exact: member.blake3 == first.blake3 };
            copies.insert((member.source, member.position), copy);
        }
    }
    copies
}

fn pair_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![field("l", DataType::Utf8), field("r", DataType::Utf8)]))
}

/// Writes pairs; where there are none, a file without rows.
fn write_pairs(path: &Path, batches: &[RecordBatch]) -> Result<(), EngineError> {
    let schema = pair_schema();
    let mut all = vec![RecordBatch::new_empty(schema.clone())];
    for batch in batches {
        all.push(RecordBatch::try_new(schema.clone(), batch.columns().to_vec())?);
    }
    keep::write(path, &all)
}

fn pairs_of(batches: &[RecordBatch]) -> Vec<(&str, &str)> {
    let rows = batches.iter().flat_map(|batch| {
        let (l, r) = (batch.column(0).as_string::<i32>(), batch.column(1).as_string::<i32>());
        (0..batch.num_rows()).map(|row| (l.value(row), r.value(row)))
    });
    rows.collect()
}

fn members_of(batches: &[RecordBatch]) -> Vec<Member> {
    let rows = batches.iter().flat_map(|batch| {
        let text = |at: usize| batch.column(at).as_string::<i32>();
        let (blake3, path, source) = (text(0), text(1), text(2));
        let position = batch.column(3).as_primitive::<UInt64Type>();
        (0..batch.num_rows()).map(|row| Member {
            path: path.value(row).to_owned(),
            blake3: blake3.value(row).to_owned(),
            source: source.value(row).to_owned(),
            position: position.value(row),
        })
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(path: &str, blake3: &str, position: u64) -> Member {
        Member { path: path.to_owned(), blake3: blake3.to_owned(), source: "s".to_owned(), position }
    }

    #[test]
    fn the_first_path_of_what_is_connected_stays() {
        let mut members = vec![
            member("c", "1", 0),
            member("a", "1", 1),
            member("b", "2", 2),
            member("d", "3", 3),
            member("e", "4", 4),
            member("f", "4", 5),
        ];
        let near = [("3", "2"), ("2", "1")];
        let forward = copies(members.clone(), &near);
        members.reverse();
        assert_eq!(forward, copies(members, &[("2", "1"), ("3", "2")]));
        let kept =
            |position: u64| forward.get(&("s".to_owned(), position)).map(|copy| (copy.kept.as_str(), copy.is_exact));
        assert_eq!(
            [0, 1, 2, 3, 4, 5].map(kept),
            [Some(("a", true)), None, Some(("a", false)), Some(("a", false)), None, Some(("e", true))]
        );
    }
}
