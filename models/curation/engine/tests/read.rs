//! Documents of JSONL and Parquet: wherever pieces end, each is read once; what columns and fields may be called; what is damaged is an error.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array, LargeStringArray, RecordBatch, StringArray};
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::file::properties::WriterProperties;
use tritter_curation_engine::EngineError;
use tritter_curation_engine::corpus::{Corpus, Piece, Unit, Wanted};
use tritter_curation_engine::read::{Document, read, read_all};

fn unit(source: &Path, piece: Piece) -> Unit {
    let source = source.to_str().expect("a path of the test").to_owned();
    Unit { input: source.clone(), source, piece, project: None }
}

fn documents(unit: &Unit) -> Vec<Document> {
    let mut documents = Vec::new();
    read(unit, Path::new(""), |document| documents.push(document)).expect("the unit is well formed");
    documents
}

#[test]
fn each_line_is_read_once_wherever_pieces_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.jsonl");
    let lines = "{\"text\":\"one\",\"path\":\"1.py\"}\n\n{\"content\":\"zwei ü\",\"license\":\"MIT\"}\r\n{\"text\":\"\",\"id\":\"3\"}";
    fs::write(&path, lines).expect("the file is written");
    let whole = documents(&unit(&path, Piece::Lines { start: 0, end: lines.len() as u64 }));
    let found: Vec<(&str, &str, Option<&str>)> = whole
        .iter()
        .map(|document| (document.path.as_str(), document.text.as_str(), document.licence.as_deref()))
        .collect();
    let unnamed = format!("{}@{}", path.display(), whole[1].position);
    assert_eq!(found, [("1.py", "one", None), (unnamed.as_str(), "zwei ü", Some("MIT")), ("3", "", None)]);
    for cut in 1..lines.len() as u64 {
        let first = documents(&unit(&path, Piece::Lines { start: 0, end: cut }));
        let second = documents(&unit(&path, Piece::Lines { start: cut, end: lines.len() as u64 }));
        assert_eq!([first, second].concat(), whole, "cut at {cut}");
    }
}

#[test]
fn lines_may_name_their_fields_in_either_way_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.jsonl");
    let lines = "\u{feff}{\"id\":7,\"path\":\"a.py\",\"content\":\"no\",\"text\":\"one\"}\n{\"id\":8,\"path\":null,\"text\":\"two\"}\n{\"text\":\"three\"}\n";
    fs::write(&path, lines).expect("the file is written");
    let found = read_all(std::slice::from_ref(&path), &Wanted::Languages).expect("the lines are well formed");
    let texts: Vec<&str> = found.iter().map(|document| document.text.as_str()).collect();
    // `8` ends like no language; what has no name has no ending to be judged by.
    assert_eq!(texts, ["one", "three"]);
}

#[test]
fn a_damaged_line_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.jsonl");
    fs::write(&path, "{\"text\":\"one\"}\n{\"text\":1}\n").expect("the file is written");
    let error = read_all(std::slice::from_ref(&path), &Wanted::All).expect_err("a number is no text");
    assert!(matches!(&error, EngineError::Line { place, .. } if place.ends_with("a.jsonl@15")), "{error}");
}

fn write(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(2)).build();
    let file = fs::File::create(path).expect("the file is made");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).expect("a writer");
    writer.write(&batch).expect("rows are written");
    writer.close().expect("the file is ended");
}

#[test]
fn rows_of_parquet_are_documents() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.parquet");
    write(
        &path,
        vec![
            ("stars", Arc::new(Int64Array::from(vec![1, 2, 3]))),
            ("id", Arc::new(Int64Array::from(vec![10, 11, 12]))),
            ("content", Arc::new(LargeStringArray::from(vec![Some("one"), None, Some("three")]))),
            ("license", Arc::new(StringArray::from(vec![Some("MIT"), None, None]))),
        ],
    );
    let inputs = [path.clone()];
    let corpus = Corpus::list(&inputs, &Wanted::All, None).expect("a Parquet file");
    assert_eq!(corpus.units().count(), 2, "one for each row group");
    let found = read_all(&inputs, &Wanted::All).expect("a Parquet file with texts");
    let found: Vec<(&str, u64, &str, Option<&str>)> = found
        .iter()
        .map(|document| {
            (document.path.as_str(), document.position, document.text.as_str(), document.licence.as_deref())
        })
        .collect();
    assert_eq!(found, [("10", 0, "one", Some("MIT")), ("12", 2, "three", None)]);
}

#[test]
fn parquet_without_texts_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.parquet");
    write(&path, vec![("name", Arc::new(StringArray::from(vec!["a"])))]);
    let inputs = [path.clone()];
    assert!(matches!(read_all(&inputs, &Wanted::All), Err(EngineError::NoText(of)) if of == path));
    fs::write(&path, "PAR1").expect("the file is written");
    assert!(matches!(read_all(&inputs, &Wanted::All), Err(EngineError::Parquet { .. })));
}
