//! Copies by plans over verdicts: what shares a band and is near is one cluster, however large its group is and however little memory there is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use curation::duplicates::{Bands, MAX_GROUP};
use curation::judge::Criteria;
use curation::quality::RuleSet;
use tritter_curation_engine::copies;
use tritter_curation_engine::keep;
use tritter_curation_engine::place::{Cut, Engine, Place};
use tritter_curation_engine::read::Document;
use tritter_curation_engine::verdict::{Verdict, columns, schema};

const N_BANDS: usize = 32;

/// Verdicts on documents in threes, of which each shares a band with the next of its three; and the first ones share a band that all of them have.
fn verdicts(folder: &Path, n: u64, n_together: u64) -> Vec<PathBuf> {
    let secrets = curation::Secrets::built_in().expect("the built-in rules are well formed");
    let criteria = Criteria {
        secrets: &secrets,
        count_tokens: &str::len,
        licences: None,
        evaluations: None,
        rules: &[RuleSet::StarCoder],
    };
    let document = Document {
        path: String::new(),
        source: String::new(),
        position: 0,
        input: String::new(),
        licence: None,
        text: "x = 1\n".to_owned(),
    };
    let plain = Verdict::of(&document, criteria, Bands::DEFAULT);
    let rows: Vec<Verdict> = (0..n)
        .map(|number| {
            let mut bands: Vec<u64> = (0..N_BANDS as u64).map(|band| number * 64 + band).collect();
            let three = number / 3;
            bands[(three % 31) as usize] = 1 << 40 | three;
            if number < n_together {
                bands[31] = 1 << 50;
            }
            let path = format!("{number:06}.py");
            let blake3 = blake3::hash(path.as_bytes()).to_hex().to_string();
            Verdict { path, blake3, position: number, bands, ..plain.clone() }
        })
        .collect();
    let write = |(at, rows): (usize, &[Verdict])| {
        let path = folder.join(format!("{at}.parquet"));
        let batch = columns(rows, &schema()).expect("verdicts have their columns");
        keep::write(&path, &[batch.into()]).expect("the verdicts are written");
        path
    };
    rows.chunks(1000).enumerate().map(write).collect()
}

/// What each document is a copy of.
fn found(memory: usize, n: u64, n_together: u64) -> (BTreeMap<u64, String>, usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let files = verdicts(folder.path(), n, n_together);
    let spill = folder.path().join("spill");
    std::fs::create_dir(&spill).expect("a folder is made");
    let engine = Arc::new(Engine::new(&Place::Here, memory, &spill).expect("an engine"));
    let cut = Cut { n_tasks: 2, n_rows: 8192 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    // The texts are the same, and so are near.
    let copies = runtime.block_on(copies::find(&engine, cut, &files, folder.path(), N_BANDS, 1.0, 2));
    let copies = copies.unwrap_or_else(|error| panic!("{memory} bytes: {error}"));
    let kept = (0..n).filter_map(|number| Some((number, copies.get("", number)?.kept.to_owned())));
    (kept.collect(), engine.n_spilled())
}

#[test]
fn clusters_are_what_is_connected_in_much_memory_and_in_little() {
    let (n, n_together) = (9000, 2 * MAX_GROUP as u64 + 88);
    let first = |number: u64| if number < n_together { 0 } else { number / 3 * 3 };
    let expected: BTreeMap<u64, String> = (0..n)
        .map(|number| (number, first(number)))
        .filter(|(number, first)| number != first)
        .map(|(number, first)| (number, format!("{first:06}.py")))
        .collect();
    let (roomy, n_spilled) = found(1 << 30, n, n_together);
    assert_eq!(n_spilled, 0);
    assert!(roomy == expected, "{} copies of {}", roomy.len(), expected.len());
    let (narrow, n_spilled) = found(24 << 20, n, n_together);
    assert!(0 < n_spilled, "nothing went to files");
    assert!(narrow == expected, "{} copies of {}", narrow.len(), expected.len());
}
