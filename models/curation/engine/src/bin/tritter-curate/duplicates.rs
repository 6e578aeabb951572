//! `tritter-curate duplicates`: what a corpus has twice, and on request how much of that the bands find.

use std::path::PathBuf;
use std::time::Instant;

use curation::duplicates::{Bands, Keep, find_duplicates, jaccard, near_pairs, originals, shingles, signature};
use serde_json::json;

use crate::report::{Report, Speed};

pub(crate) fn run(
    inputs: &[PathBuf],
    endings: &[String],
    bands: Bands,
    threshold: f64,
    keep: Keep,
    check: bool,
    mut report: Report,
) -> anyhow::Result<()> {
    let documents = crate::read(inputs, endings)?;
    let texts: Vec<&str> = documents.iter().map(|document| document.text.as_str()).collect();
    let curve = bands.points().map(|(similarity, probability)| json!([similarity, probability])).collect::<Vec<_>>();
    report.add(
        json!({ "bands": bands.n, "rows": bands.rows, "threshold": threshold, "curve": curve }),
        &format!("similarity, and how likely {} bands of {} find it:\n{}", bands.n, bands.rows, bands.curve()),
    );
    let mut speed = Speed::default();
    let mut n_signed = 0;
    for text in &texts {
        n_signed += usize::from(speed.of(text, || signature(text, bands)).is_some());
    }
    report.add(
        json!({ "signatures": n_signed, "signature_seconds": speed.seconds }),
        &format!("{n_signed} signatures; {}", speed.text()),
    );
    let start = Instant::now();
    let duplicates = find_duplicates(&texts, bands, threshold, keep);
    speed.seconds = start.elapsed().as_secs_f64();
    for (index, kept) in duplicates.kept.iter().enumerate() {
        let kept = *kept as usize;
        if kept != index {
            report.row(json!({ "path": documents[index].path, "kept": documents[kept].path }))?;
        }
    }
    let (n_exact, n_near) = (duplicates.n_exact, duplicates.n_near);
    if check {
        compare_all(&texts, bands, threshold, &mut report);
    }
    let text = format!("{} documents: {n_exact} exact copies, {n_near} near ones", texts.len());
    report.end("copies", speed, json!({ "exact": n_exact, "near": n_near }), &text)
}

/// Compares every pair of different documents, and says how many of those above the threshold the bands found, and how many of what they found is.
fn compare_all(texts: &[&str], bands: Bands, threshold: f64, report: &mut Report) {
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
    // Of nothing all is found.
    let share = |of: usize| if of == 0 { 1.0 } else { n_both as f64 / of as f64 };
    let (n_similar, n_found) = (expected.len(), found.len());
    let (recall, precision) = (share(n_similar), share(n_found));
    report.add(
        json!({ "pairs": n_pairs, "similar_pairs": n_similar, "found_pairs": n_found, "recall": recall, "precision": precision }),
        &format!(
            "of {n_pairs} pairs {n_similar} have a similarity of {threshold} or more; the bands found {n_found}; recall {recall:.4}, precision {precision:.4}"
        ),
    );
}
