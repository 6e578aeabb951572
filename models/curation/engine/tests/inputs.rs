//! What inputs have: corpora within folders, the same files by several spellings, and licences that members of a workspace inherit.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use tritter_curation_engine::corpus::{Corpus, Projects, Wanted};
use tritter_curation_engine::keep;
use tritter_curation_engine::read::read_all;

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("the folder is made");
    fs::write(path, text).expect("the file is written");
}

#[test]
fn corpora_in_folders_are_read_as_their_documents() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    write(&root.join("a.py"), "one\n");
    write(&root.join("data/b.jsonl"), "\n{\"text\": \"two\"}\n{\"text\": \"three\"}\n");
    // What is no corpus is a file as others are, and not an error.
    write(&root.join("data/log.jsonl"), "{\"event\": 1}\n");
    write(&root.join("data/damaged.parquet"), "PAR1");
    let column: ArrayRef = Arc::new(StringArray::from(vec!["four"]));
    let batch = RecordBatch::try_from_iter([("content", column)]).expect("a column");
    keep::write(&root.join("data/c.parquet"), &[batch]).expect("the corpus is written");
    let texts = |wanted: &Wanted| -> Vec<String> {
        let found = read_all(&[root.to_owned()], wanted).expect("the inputs are well formed");
        found.into_iter().map(|document| document.text).collect()
    };
    assert_eq!(texts(&Wanted::Endings(vec![".py".to_owned()])), ["one\n", "two", "three", "four"]);
    let all = texts(&Wanted::All);
    assert!(all.contains(&"{\"event\": 1}\n".to_owned()), "{all:?}");
}

#[test]
fn what_is_given_twice_is_there_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    write(&root.join("x/a.py"), "one\n");
    write(&root.join("x/y/b.jsonl"), "{\"text\": \"two\"}\n");
    let spelt =
        [root.join("x"), root.join("x/../x"), root.join("x/y"), root.join("x/y/b.jsonl"), root.join("./x/a.py")];
    let sources = |inputs: &[PathBuf]| -> Vec<String> {
        let corpus = Corpus::list(inputs, &Wanted::All, None).expect("the inputs are there");
        corpus.units().map(|unit| unit.source.clone()).collect()
    };
    let once = sources(&spelt);
    assert_eq!(once.len(), 2, "{once:?}");
    let mut reversed = spelt.to_vec();
    reversed.reverse();
    assert_eq!(sources(&reversed), once);
}

#[test]
fn members_inherit_the_licence_of_their_workspace() {
    let mut projects = Projects::default();
    projects.add("w/Cargo.toml", "[workspace]\nmembers = [\"m\"]\n[workspace.package]\nlicense = \"MIT\"\n");
    projects.add("w/m/Cargo.toml", "[package]\nname = \"m\"\nlicense.workspace = true\n");
    projects.add("w/own/Cargo.toml", "[package]\nname = \"own\"\nlicense = \"ISC\"\n");
    projects.add("alone/Cargo.toml", "[package]\nname = \"alone\"\nlicense.workspace = true\n");
    projects.add("w/m/src/licence.rs", "MIT License");
    let licences = |projects: &Projects| {
        ["w/m/src/lib.rs", "w/own/lib.rs", "alone/lib.rs", "w/build.rs"]
            .map(|path| projects.of(path).map(str::to_owned))
    };
    let expected = [Some("MIT"), Some("ISC"), None, None].map(|licence| licence.map(str::to_owned));
    assert_eq!(licences(&projects), expected);
    // As rows from several pieces of a corpus.
    let mut merged = Projects::default();
    for (folder, said, licence) in projects.rows() {
        merged.add_row(folder.to_str().expect("a path of the test"), said, licence);
    }
    assert_eq!(licences(&merged), expected);
}

#[test]
fn documents_with_paths_of_their_own_inherit_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let member =
        "{\"path\": \"m/Cargo.toml\", \"text\": \"[package]\\nname = \\\"m\\\"\\nlicense.workspace = true\\n\"}";
    let root = "{\"path\": \"Cargo.toml\", \"text\": \"[workspace.package]\\nlicense = \\\"MIT\\\"\\n\"}";
    let source = "{\"path\": \"m/lib.rs\", \"text\": \"// Adds.\\npub fn add(x: u32) -> u32 {\\n    x + 1\\n}\\n\"}";
    let corpus = folder.path().join("c.jsonl");
    write(&corpus, &[source, member, root].join("\n"));
    let out = folder.path().join("out");
    let program = env!("CARGO_BIN_EXE_tritter-curate");
    let arguments = ["run", corpus.to_str().expect("a path"), "-o", out.to_str().expect("a path")];
    let ended = std::process::Command::new(program).args(arguments).output().expect("the program runs");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let lines = fs::read_to_string(out.join("jsonl/part-00000.jsonl")).expect("the output");
    let line = lines.lines().find(|line| line.contains("m/lib.rs")).expect("the document");
    let row: serde_json::Value = serde_json::from_str(line).expect("an object");
    assert_eq!((&row["licence"], &row["label"]), (&"MIT".into(), &"positive".into()));
}
