//! A run gives the same bytes whatever the number of threads, the order of the inputs or an earlier run; and what it gives is what the stages say.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use curation::duplicates::Bands;
use curation::licence::PERMISSIVE;
use curation::quality::RuleSet;
use serde_json::Value;
use support::{corpus, output};
use tritter_curation_engine::EngineError;
use tritter_curation_engine::corpus::Wanted;
use tritter_curation_engine::place::Place;
use tritter_curation_engine::run::{Done, Options, THRESHOLD, run};

fn options(inputs: &[PathBuf], out: &Path, n_threads: usize) -> Options {
    Options {
        inputs: inputs.to_vec(),
        wanted: Wanted::Languages,
        licences: Some(PERMISSIVE.iter().map(|licence| (*licence).to_owned()).collect()),
        rules: vec![RuleSet::StarCoder],
        bands: Bands::DEFAULT,
        threshold: THRESHOLD,
        memory: 1 << 30,
        evaluations: None,
        out: out.to_owned(),
        place: Place::Here,
        n_threads,
        partition: Some(100_000),
    }
}

fn done(options: &Options) -> Done {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(options.n_threads).build();
    runtime.expect("a runtime").block_on(run(options)).expect("the corpus is well formed")
}

/// Each document's path with its label, reason and what it is a copy of.
fn labels(out: &Path) -> BTreeMap<String, (String, Option<String>)> {
    let mut labels = BTreeMap::new();
    for (path, bytes) in output(out) {
        if path.starts_with("jsonl") {
            for line in String::from_utf8(bytes).expect("JSON is UTF-8").lines() {
                let row: Value = serde_json::from_str(line).expect("a line is an object");
                let text = |name: &str| row[name].as_str().map(str::to_owned);
                let name = |path: String| path.rsplit('/').next().unwrap_or_default().to_owned();
                let label = format!("{}: {}", text("label").unwrap_or_default(), text("reason").unwrap_or_default());
                labels.insert(name(text("path").expect("a path")), (label, text("copy_of").map(name)));
            }
        }
    }
    labels
}

#[test]
fn threads_and_earlier_runs_change_no_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, out) = (folder.path().join("corpus"), folder.path().join("out"));
    corpus(&source, 40);
    let inputs = [source.clone()];
    let first = done(&options(&inputs, &out, 1));
    assert!(4 < first.n_partitions && first.n_kept == 0, "{first:?}");
    let bytes = output(&out);
    let found = labels(&out);
    let label = |name: &str| (found[name].0.as_str(), found[name].1.as_deref());
    assert_eq!(label("module4.py"), ("positive: no fault", None));
    assert_eq!(label("module2.py"), ("rejected: licence", None));
    assert_eq!(label("module3.py"), ("negative: security", None));
    assert_eq!(label("module5.py"), ("negative: secrets", None));
    // Of copies the first path stays, and `project1/` comes before `project2/`.
    assert_eq!(label("copy1.py"), ("rejected: duplicate", Some("module1.py")));
    assert_eq!(label("near12.py"), ("rejected: duplicate", Some("module12.py")));

    let again = done(&options(&inputs, &out, 2));
    assert_eq!((again.n_kept, again.hash.as_str()), (first.n_partitions, first.hash.as_str()));
    assert_eq!(output(&out), bytes, "a second run changed the output");
    for n_threads in [2, 5] {
        let out = folder.path().join(format!("out{n_threads}"));
        assert_eq!(done(&options(&inputs, &out, n_threads)).hash, first.hash);
        assert_eq!(output(&out), bytes, "{n_threads} threads changed the output");
    }
    // Other partitions are other files, and the same lines.
    let other = Options { partition: Some(1_000_000), ..options(&inputs, &folder.path().join("large"), 2) };
    assert_eq!(done(&other).hash, first.hash);
}

#[test]
fn what_changed_is_judged_again_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, out) = (folder.path().join("corpus"), folder.path().join("out"));
    corpus(&source, 20);
    let inputs = [source.clone()];
    let first = done(&options(&inputs, &out, 2));
    let path = source.join("project3/module7.py");
    let text = fs::read_to_string(&path).expect("a module");
    // As long as it was, so that no partition ends elsewhere.
    fs::write(&path, text.replace("# Module", "# MODULE")).expect("the module is written");
    let second = done(&options(&inputs, &out, 2));
    assert_eq!(second.n_kept, first.n_partitions - 1);
    assert_ne!(second.hash, first.hash);
    let fresh = done(&options(&inputs, &folder.path().join("fresh"), 2));
    assert_eq!(fresh.hash, second.hash);
    assert_eq!(output(&folder.path().join("fresh")), output(&out));
    // The licence of a project is part of what its documents are judged by.
    fs::write(source.join("project3/LICENSE"), "GNU Affero General Public License version 3").expect("a licence");
    fs::remove_file(source.join("project3/pyproject.toml")).expect("a manifest");
    let third = done(&options(&inputs, &out, 2));
    assert!(third.n_kept < first.n_partitions && labels(&out)["module7.py"].0 == "rejected: licence", "{third:?}");
    // Nothing is kept that this run has no use of.
    let kept = fs::read_dir(out.join("work/verdicts")).expect("what is kept").count();
    assert_eq!(kept, third.n_partitions);
}

#[test]
fn the_order_of_lines_and_of_inputs_changes_no_label() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("corpus");
    corpus(&source, 30);
    let mut lines = Vec::new();
    for project in 0..4 {
        for entry in fs::read_dir(source.join(format!("project{project}"))).expect("a project") {
            let path = entry.expect("an entry").path();
            let text = fs::read_to_string(&path).expect("a module");
            let name = path.strip_prefix(&source).expect("a path below").to_str().expect("a name of the test");
            lines.push(serde_json::json!({ "path": name, "text": text }).to_string());
        }
    }
    lines.sort();
    let write = |name: &str, lines: &[String]| {
        let path = folder.path().join(name);
        fs::write(&path, lines.join("\n")).expect("the corpus is written");
        path
    };
    let found = |name: &str, inputs: &[PathBuf]| {
        let out = folder.path().join(name);
        done(&options(inputs, &out, 2));
        labels(&out)
    };
    let files = found("files", std::slice::from_ref(&source));
    let whole = found("whole", &[write("whole.jsonl", &lines)]);
    assert_eq!(whole, files, "JSONL is judged otherwise than files");
    lines.reverse();
    assert_eq!(found("reversed", &[write("reversed.jsonl", &lines)]), whole);
    let only = |part: &[String], name| write(name, part);
    // Manifests name the licences of their own file's documents.
    let (manifests, others): (Vec<String>, Vec<String>) =
        lines.into_iter().partition(|line| line.contains("pyproject.toml"));
    let halves = [[manifests.clone(), others[..11].to_vec()].concat(), [manifests, others[11..].to_vec()].concat()];
    let halves = [only(&halves[0], "b.jsonl"), only(&halves[1], "a.jsonl")];
    let forward = found("forward", &halves);
    let backward = found("backward", &[halves[1].clone(), halves[0].clone()]);
    assert_eq!(forward, backward);
}

#[test]
fn nothing_of_an_evaluation_set_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, out) = (folder.path().join("corpus"), folder.path().join("out"));
    corpus(&source, 20);
    let plain = options(std::slice::from_ref(&source), &out, 2);
    let first = done(&plain);
    let item = fs::read_to_string(source.join("project0/module4.py")).expect("a module");
    let with =
        |run: usize| Options { evaluations: Some((vec![("task 1".to_owned(), item.clone())], run)), ..plain.clone() };
    let second = done(&with(13));
    // The sets are part of what documents are judged by.
    assert_eq!((second.n_kept, first.n_partitions), (0, second.n_partitions));
    assert_eq!(labels(&out)["module4.py"].0, "rejected: contamination");
    assert_eq!(done(&with(13)).n_kept, second.n_partitions);
    assert_eq!(done(&with(12)).n_kept, 0);
    assert_eq!(done(&plain).hash, first.hash);
}

#[test]
fn what_is_the_users_stays_and_the_output_is_no_input() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("corpus");
    corpus(&source, 10);
    let out = source.join("curated");
    let (mine, note) = (out.join("jsonl/mine.jsonl"), out.join("work/verdicts/note.txt"));
    for file in [&mine, &note] {
        fs::create_dir_all(file.parent().expect("a folder")).expect("the folder is made");
        fs::write(file, "{}").expect("the file is written");
    }
    let first = done(&options(std::slice::from_ref(&source), &out, 1));
    let again = done(&options(std::slice::from_ref(&source), &out, 1));
    assert_eq!(first.n_partitions, again.n_kept, "{first:?} {again:?}");
    assert!(mine.exists() && note.exists());
}

#[test]
fn a_corpus_without_documents_is_no_success() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("a.bin"), [0, 1, 2]).expect("the file is written");
    let options = options(&[folder.path().to_owned()], &folder.path().join("out"), 1);
    let runtime = tokio::runtime::Builder::new_multi_thread().build().expect("a runtime");
    let error = runtime.block_on(run(&options)).expect_err("there is nothing to judge");
    assert!(matches!(error, EngineError::Empty), "{error}");
}

#[test]
fn what_has_no_room_in_memory_goes_to_files_and_changes_no_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("corpus");
    corpus(&source, 400);
    let inputs = [source.clone()];
    // Of many bands there are many keys.
    let bands = Bands { n: 128, rows: 8 };
    let roomy = Options { bands, ..options(&inputs, &folder.path().join("roomy"), 2) };
    let first = done(&roomy);
    assert_eq!(first.n_spilled, 0);
    let narrow = Options { memory: 24 << 20, out: folder.path().join("narrow"), ..roomy.clone() };
    let second = done(&narrow);
    assert!(second.n_spilled > 0, "nothing went to files");
    assert_eq!(second.hash, first.hash);
    assert_eq!(output(&narrow.out), output(&roomy.out));
    // What is not enough for anything is said so, and by the option that changes it.
    let none = Options { memory: 1000, out: folder.path().join("none"), ..roomy.clone() };
    let runtime = tokio::runtime::Builder::new_multi_thread().build().expect("a runtime");
    let error = runtime.block_on(run(&none)).expect_err("1,000 bytes are too few");
    assert!(error.to_string().contains("--memory"), "{error}");
}
