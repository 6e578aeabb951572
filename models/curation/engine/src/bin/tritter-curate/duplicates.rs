//! `tritter-curate duplicates`: what a corpus has twice, and on request how much of that the bands find.

use std::path::PathBuf;
use std::time::Instant;

use curation::duplicates::{Bands, Keep, find_duplicates, jaccard, near_pairs, originals, shingles, signature};
use serde_json::json;

pub(crate) fn run(
    inputs: &[PathBuf],
    endings: &[String],
    bands: Bands,
    threshold: f64,
    keep: Keep,
    check: bool,
) -> anyhow::Result<()> {
    let documents = crate::read(inputs, endings)?;
    let texts: Vec<&str> = documents.iter().map(|document| document.text.as_str()).collect();
    eprint!("similarity, and how likely {} bands of {} find it:\n{}", bands.n, bands.rows, bands.curve());
    let start = Instant::now();
    let n_signed = texts.iter().filter_map(|text| signature(text, bands)).count();
    let seconds = start.elapsed().as_secs_f64();
    let n_bytes = texts.iter().map(|text| text.len()).sum();
    eprintln!("{n_signed} signatures; {}", crate::speed(n_bytes, seconds));
    let start = Instant::now();
    let duplicates = find_duplicates(&texts, bands, threshold, keep);
    for (index, kept) in duplicates.kept.iter().enumerate() {
        let kept = *kept as usize;
        if kept != index {
            crate::say(&json!({ "path": documents[index].path, "kept": documents[kept].path }))?;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let (n_exact, n_near) = (duplicates.n_exact, duplicates.n_near);
    eprintln!(
        "{} documents: {n_exact} exact copies, {n_near} near ones; {}",
        texts.len(),
        crate::speed(n_bytes, seconds)
    );
    if check {
        compare_all(&texts, bands, threshold);
    }
    Ok(())
}

/// Compares every pair of different documents, and says how many of those above the threshold the bands found, and how many of what they found is.
fn compare_all(texts: &[&str], bands: Bands, threshold: f64) {
    let originals = originals(texts);
    let found = near_pairs(texts, &originals, bands, threshold);
    let mut sets: Vec<(u32, Vec<u64>)> = (0_u32..)
        .zip(texts)
        .filter(|(document, _)| originals[*document as usize] == *document)
        .map(|(document, text)| (document, shingles(text)))
        .filter(|(_, set)| !set.is_empty())
        .collect();
    sets.sort_by_key(|(_, set)| set.len());
    let mut n_pairs = 0_u64;
    let mut expected = Vec::new();
    for (at, (lhs, small)) in sets.iter().enumerate() {
        n_pairs += (sets.len() - at - 1) as u64;
        // A set that is larger by more than the threshold allows has at most that similarity.
        let fits = |large: &[u64]| threshold * large.len() as f64 <= small.len() as f64;
        for (rhs, large) in sets[at + 1..].iter().take_while(|(_, large)| fits(large)) {
            if threshold <= jaccard(small, large) {
                expected.push((*lhs.min(rhs), *lhs.max(rhs)));
            }
        }
    }
    expected.sort_unstable();
    let n_both = found.iter().filter(|pair| expected.binary_search(pair).is_ok()).count();
    eprintln!(
        "of {n_pairs} pairs {} have a similarity of {threshold} or more; the bands found {}; recall {:.4}, precision {:.4}",
        expected.len(),
        found.len(),
        n_both as f64 / expected.len() as f64,
        n_both as f64 / found.len() as f64
    );
}
