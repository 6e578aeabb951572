//! Shards: what is written is read, and what is damaged is refused.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use runtime::RuntimeError;
use runtime::training::corpus::{Corpus, Split};
use runtime::training::shard::{Draft, Shard, ShardProblem};
use tempfile::TempDir;

use crate::broken::Disk;

fn write(dir: &Path, vocabulary: u32, documents: &[Vec<u32>]) -> PathBuf {
    let path = dir.join("train-00000.shard");
    let mut draft = Draft::new(vocabulary);
    for document in documents {
        draft.push(document).unwrap();
    }
    draft.write(&path, &mut Disk::new()).unwrap();
    path
}

fn open(path: &Path) -> Result<Shard, RuntimeError> {
    Shard::open(path, &mut |_| {})
}

/// What is wrong with a file of these bytes.
fn problem(bytes: &[u8]) -> ShardProblem {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.shard");
    std::fs::write(&path, bytes).unwrap();
    match open(&path) {
        Err(RuntimeError::Shard { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

/// The bytes with the hash that belongs to them.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let rest = [&bytes[..40], &bytes[72..]].concat();
    bytes[40..72].copy_from_slice(blake3::hash(&rest).as_bytes());
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(
        documents in prop::collection::vec(prop::collection::vec(any::<u32>(), 0..40), 0..20),
        vocabulary in prop_oneof![Just(1), Just(300), Just(65_536), Just(65_537), Just(i32::MAX as u32 - 1)],
    ) {
        let documents: Vec<Vec<u32>> =
            documents.into_iter().map(|ids| ids.into_iter().map(|id| id % vocabulary).collect()).collect();
        let dir = TempDir::new().unwrap();
        let shard = open(&write(dir.path(), vocabulary, &documents)).unwrap();
        let documents: Vec<&Vec<u32>> = documents.iter().filter(|ids| !ids.is_empty()).collect();
        prop_assert_eq!(shard.documents(), documents.len());
        prop_assert_eq!(shard.tokens(), documents.iter().map(|ids| ids.len()).sum::<usize>());
        for (index, expected) in documents.iter().enumerate() {
            let mut found = Vec::new();
            shard.read(shard.document(index), &mut found);
            prop_assert_eq!(found.iter().map(|&id| id as u32).collect::<Vec<_>>(), (*expected).clone());
        }
    }
}

#[test]
fn every_damaged_byte_and_every_cut_is_found() {
    let dir = TempDir::new().unwrap();
    let bytes = std::fs::read(write(dir.path(), 300, &[vec![1, 2, 299], vec![0], vec![7; 9]])).unwrap();
    assert_eq!(bytes.len(), 72 + 3 * 8 + 13 * 2);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        problem(&damaged);
        problem(&bytes[..at]);
    }
    problem(&[&bytes[..], &[0]].concat());
}

#[test]
fn refusals_say_what_and_where() {
    let dir = TempDir::new().unwrap();
    let path = write(dir.path(), 300, &[vec![1, 2], vec![3]]);
    let bytes = std::fs::read(&path).unwrap();
    let with = |at: usize, value: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        sealed(bytes)
    };
    assert_eq!(sealed(bytes.clone()), bytes);
    assert_eq!(problem(b"PK\x03\x04 is no shard"), ShardProblem::Foreign);
    assert_eq!(problem(b""), ShardProblem::Foreign);
    assert_eq!(problem(&with(8, &[9])), ShardProblem::Version { found: 9 });
    assert_eq!(problem(&with(12, &[3])), ShardProblem::Header { field: "the width of a token", found: 3 });
    let huge = problem(&with(24, &u64::MAX.to_le_bytes()));
    assert_eq!(huge, ShardProblem::Length { expected: u64::MAX, found: bytes.len() as u64 });
    assert_eq!(problem(&with(72, &[0])), ShardProblem::End { document: 0, start: 0, end: 0, tokens: 3 });
    assert_eq!(problem(&with(80, &[9])), ShardProblem::End { document: 1, start: 2, end: 9, tokens: 3 });
    let rest = with(32, &[4]).into_iter().chain([1, 0]).collect();
    assert_eq!(problem(&sealed(rest)), ShardProblem::Rest { end: 3, tokens: 4 });
    assert_eq!(problem(&with(90, &[44, 1])), ShardProblem::Id { token: 1, id: 300, vocabulary: 300 });
    let mut damaged = bytes.clone();
    damaged[88] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("train-00000.shard") && error.contains("damaged"), "{error}");
    let missing = open(&dir.path().join("none.shard")).unwrap_err().to_string();
    assert!(missing.contains("cannot read") && missing.contains("none.shard"), "{missing}");
}

#[test]
fn an_id_beyond_the_vocabulary_is_not_written() {
    let mut draft = Draft::new(5);
    let error = draft.push(&[4, 5]).unwrap_err();
    assert_eq!(error.to_string(), "token 1 has id 5, the vocabulary has 5");
    assert_eq!(draft.tokens(), 0);
}

#[test]
fn a_shard_that_has_no_room_leaves_what_was_there() {
    let dir = TempDir::new().unwrap();
    let path = write(dir.path(), 300, &[vec![1, 2]]);
    let bytes = std::fs::read(&path).unwrap();
    let mut draft = Draft::new(300);
    draft.push(&[3; 100]).unwrap();
    for room in [0, 71, 72, 80, 100, 279] {
        let error = draft.write(&path, &mut Disk::with_room(room)).unwrap_err().to_string();
        assert!(error.contains("cannot write"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "what was half written is gone");
    }
    draft.write(&path, &mut Disk::with_room(280)).unwrap();
    assert_eq!(open(&path).unwrap().tokens(), 100);
}

#[test]
fn shards_are_one_list_of_documents() {
    let dir = TempDir::new().unwrap();
    for (number, documents) in [vec![vec![1, 2], vec![3]], vec![], vec![vec![4, 5, 6]]].iter().enumerate() {
        let mut draft = Draft::new(9);
        documents.iter().for_each(|document| draft.push(document).unwrap());
        draft.write(&Split::Train.file(dir.path(), number), &mut Disk::new()).unwrap();
    }
    std::fs::write(dir.path().join("train-notes.txt"), "no shard").unwrap();
    let open = |split| Corpus::open(&[dir.path().to_owned()], split, &mut |_, _| {});
    let corpus = open(Split::Train).unwrap();
    assert_eq!((corpus.documents(), corpus.tokens(), corpus.targets(), corpus.vocabulary()), (3, 6, 3, Some(9)));
    let mut found = Vec::new();
    for document in 0..3 {
        corpus.read(document, 0..corpus.length(document), &mut found);
    }
    assert_eq!(found, [1, 2, 3, 4, 5, 6]);
    corpus.read(2, 1..2, &mut found);
    assert_eq!(found[6..], [5]);
    let none = open(Split::Validation).unwrap();
    assert_eq!((none.documents(), none.targets(), none.vocabulary()), (0, 0, None));

    Draft::new(8).write(&Split::Train.file(dir.path(), 3), &mut Disk::new()).unwrap();
    let error = open(Split::Train).unwrap_err();
    assert!(matches!(error, RuntimeError::Vocabularies { expected: 9, found: 8, .. }), "{error}");
}

#[test]
fn a_document_stays_in_its_split() {
    let names: Vec<String> = (0..4000).map(|name| format!("src/{name}.rs")).collect();
    let count = |share: f64| names.iter().filter(|name| Split::of(name, b"text", share) == Split::Validation).count();
    assert_eq!((count(0.0), count(1.0)), (0, 4000));
    // Four standard deviations about 400.
    assert!((324..=476).contains(&count(0.1)), "{}", count(0.1));
    for name in &names {
        // A larger share only adds documents.
        let small = Split::of(name, b"text", 0.1) == Split::Validation;
        assert!(!small || Split::of(name, b"text", 0.2) == Split::Validation);
    }
    assert_eq!(Split::of("a", b"b", 0.5), Split::of("a", b"b", 0.5));
}
