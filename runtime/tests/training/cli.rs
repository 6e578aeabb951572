//! The commands `tritter shard` and `tritter train`.

use std::path::Path;
use std::process::{Command, Output};

use runtime::training::corpus::{Corpus, Split};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::Draft;
use crate::runs::names;

fn tritter(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tritter")).args(args).output().unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn succeed(args: &[&str]) -> String {
    let output = tritter(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a command says that must fail with this exit code.
#[track_caller]
fn fail(args: &[&str], code: i32) -> String {
    let output = tritter(args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

/// Sources, and what lies between them.
fn sources() -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, bytes) in [
        ("b.txt", &b"bb"[..]),
        ("a/z.py", b"import z\n"),
        ("a/empty.py", b""),
        ("a.txt", b"aaa"),
        (".git/config", b"[core]"),
        ("picture.png", b"\x89PNG\0"),
        ("latin.txt", b"caf\xe9"),
        ("more.jsonl", b"{\"text\": \"one\", \"path\": \"x/one.rs\"}\n{\"text\": \"two\"}\n"),
    ] {
        let file = dir.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }
    dir
}

/// The documents of a split as text: ids of bytes, between the ones that start and end a text.
fn documents(dir: &Path, split: Split) -> Vec<String> {
    let corpus = Corpus::open(&[dir.to_owned()], split, &mut |_, _| {}).unwrap();
    let text = |document| {
        let mut ids = Vec::new();
        corpus.read(document, 0..corpus.length(document), &mut ids);
        let [1, text @ .., 2] = &ids[..] else { panic!("{ids:?}") };
        text.iter().map(|&id| char::from((id - 8) as u8)).collect()
    };
    (0..corpus.documents()).map(text).collect()
}

#[test]
fn shard_writes_documents_in_the_order_of_their_paths() {
    let sources = sources();
    let out = TempDir::new().unwrap();
    let data = out.path().join("data");
    let args =
        ["shard", path(sources.path()), "-o", path(&data), "--vocabulary", "bytes", "--validation", "0", "--json"];
    let report: Value = serde_json::from_str(&succeed(&args)).unwrap();
    assert_eq!(report["train"], serde_json::json!({"documents": 5, "tokens": 20 + 10, "shards": 1}));
    assert_eq!((&report["left_out"], &report["vocabulary"], &report["bytes"]), (&1.into(), &264.into(), &20.into()));
    assert_eq!(documents(&data, Split::Train), ["import z\n", "aaa", "bb", "one", "two"]);
    assert_eq!(names(&data), ["train-00000.shard"]);

    let again = fail(&args, 1);
    assert!(again.contains("train-00000.shard already"), "{again}");
    let other = out.path().join("other");
    succeed(&["shard", path(sources.path()), "-o", path(&other), "--vocabulary", "bytes", "--validation", "0"]);
    let bytes = |dir: &Path| std::fs::read(dir.join("train-00000.shard")).unwrap();
    assert_eq!(bytes(&data), bytes(&other), "the same documents give the same shard");
}

#[test]
fn shard_keeps_documents_apart_and_divides_them() {
    let sources = TempDir::new().unwrap();
    for number in 0..200 {
        std::fs::write(sources.path().join(format!("{number:03}.txt")), format!("document {number:03}")).unwrap();
    }
    let out = TempDir::new().unwrap();
    let write = |name: &str, tokens: &str| {
        let data = out.path().join(name);
        let source = path(sources.path());
        let args = ["--vocabulary", "bytes", "--validation", "0.2", "--shard-tokens", tokens];
        let text = succeed(&[&["shard", source, "-o", path(&data)][..], &args].concat());
        assert!(text.contains("bytes of text;") && text.contains("validation"), "{text}");
        (documents(&data, Split::Train), documents(&data, Split::Validation), names(&data).len())
    };
    let (train, validation, files) = write("one", "100000");
    assert_eq!((train.len() + validation.len(), files), (200, 2));
    assert!((20..=60).contains(&validation.len()), "{}", validation.len());
    assert!(train.is_sorted() && validation.is_sorted());
    let divided = write("many", "300");
    assert_eq!((&divided.0, &divided.1), (&train, &validation));
    assert!(8 < divided.2, "{}", divided.2);

    // Most documents gone, the others stay where they were.
    for number in 20..200 {
        std::fs::remove_file(sources.path().join(format!("{number:03}.txt"))).unwrap();
    }
    let (_, fewer, _) = write("fewer", "100000");
    let first: Vec<String> = validation.into_iter().filter(|text| text.as_str() < "document 020").collect();
    assert_eq!(fewer, first);
}

#[test]
fn shard_takes_the_tokenizer_of_an_artifact() {
    let mut model = Draft::new(272, 64, 1);
    model.tokenizer = Some(tokenizer::BYTES_JSON.to_owned());
    let (sources, out, model) = (sources(), TempDir::new().unwrap(), model.written());
    let data = out.path().join("data");
    succeed(&[
        "shard",
        path(&sources.path().join("a.txt")),
        "-o",
        path(&data),
        "--model",
        path(model.path()),
        "--validation",
        "0",
    ]);
    assert_eq!(documents(&data, Split::Train), ["aaa"]);
}

#[test]
fn wrong_usage_is_told() {
    let out = TempDir::new().unwrap();
    let data = path(out.path());
    assert!(fail(&["shard", "x", "-o", data], 2).contains("--vocabulary"));
    assert!(fail(&["shard", "x", "-o", data, "--vocabulary", "bytes", "--validation", "2"], 2).contains("from 0 to 1"));
    assert!(fail(&["shard", "/none", "-o", data, "--vocabulary", "bytes"], 1).contains("cannot list /none"));
    assert!(fail(&["shard", "x", "-o", data, "--vocabulary", "klingon"], 1).contains("there is no klingon"));
    assert!(fail(&["train"], 2).contains("CONFIG.ron"));
    assert!(fail(&["train", "/none.ron"], 1).contains("/none.ron"));
    assert!(succeed(&["train", "--help"]).contains("warm_up: 375"));
}

#[test]
fn train_tells_all_that_is_wrong_with_its_configuration() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("run.ron");
    std::fs::write(&file, "(artifact: \"a\", steps: \"many\", batch: -1, shards: [\"d\"])").unwrap();
    let text = fail(&["train", path(&file)], 1);
    for part in
        ["run.ron cannot be used", "out: is missing", "steps: must be", "batch: must be", "schedule: is missing"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn train_refuses_an_artifact_that_is_only_to_be_run() {
    let model = Draft::counting(272, 64, 1).written();
    let file = model.path().join("run.ron");
    let stages = "schedule: (stages: [(until: 1, rate: (1e-3, 0))])";
    std::fs::write(&file, format!("(artifact: \".\", steps: 2, batch: 8, shards: [\".\"], out: \"out\", {stages})"))
        .unwrap();
    let text = fail(&["train", path(&file)], 1);
    assert!(text.contains("has no training plan"), "{text}");
    assert!(!model.path().join("out").exists());
}
