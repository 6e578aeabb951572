//! What a run can be asked for: rule sets, licences, how near copies are found; kernels as an output of their own; and what of places is not shown.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use curation::duplicates::Bands;
use curation::licence::PERMISSIVE;
use curation::quality::RuleSet;
use serde_json::Value;
use support::{corpus, output};
use tritter_curation_engine::corpus::Wanted;
use tritter_curation_engine::place::Place;
use tritter_curation_engine::run::{Done, Options, THRESHOLD, run};

fn options(source: &Path, out: &Path) -> Options {
    Options {
        inputs: vec![source.to_owned()],
        wanted: Wanted::Languages,
        licences: Some(PERMISSIVE.iter().map(|licence| (*licence).to_owned()).collect()),
        rules: vec![RuleSet::StarCoder],
        bands: Bands::DEFAULT,
        threshold: THRESHOLD,
        memory: 1 << 30,
        evaluations: None,
        out: out.to_owned(),
        place: Place::Here,
        n_threads: 2,
        partition: Some(100_000),
    }
}

fn done(options: &Options) -> Done {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    runtime.block_on(run(options)).expect("the corpus is well formed")
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("the output is there");
    text.lines().map(|line| serde_json::from_str(line).expect("a line is an object")).collect()
}

fn rows(out: &Path) -> Vec<Value> {
    let mut parts: Vec<PathBuf> = fs::read_dir(out.join("jsonl"))
        .expect("the output is there")
        .map(|part| part.expect("a part").path())
        .collect();
    parts.sort();
    parts.iter().flat_map(|part| lines(part)).collect()
}

fn row<'r>(rows: &'r [Value], name: &str) -> &'r Value {
    let named = |row: &&Value| row["path"].as_str().is_some_and(|path| path.ends_with(name));
    rows.iter().find(named).unwrap_or_else(|| panic!("{name} is not in the output"))
}

#[test]
fn documents_are_judged_by_the_rule_sets_that_are_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, out) = (folder.path().join("corpus"), folder.path().join("out"));
    corpus(&source, 8);
    let plain = options(&source, &out);
    let first = done(&plain);
    let all = rows(&out);
    let module = row(&all, "module4.py");
    assert_eq!(
        module["quality"],
        serde_json::json!([{"rules": "starcoder", "reason": null, "figure": null, "bound": null}])
    );
    let second = done(&Options { rules: RuleSet::ALL.to_vec(), ..plain.clone() });
    assert_eq!((second.n_kept, first.n_kept), (0, 0), "the rule sets are part of what documents are judged by");
    let all = rows(&out);
    let module = row(&all, "module4.py");
    let verdicts = module["quality"].as_array().expect("a list");
    let sets: Vec<&str> = verdicts.iter().filter_map(|verdict| verdict["rules"].as_str()).collect();
    assert_eq!(sets, ["starcoder", "gopher", "c4", "fineweb"]);
    let gopher = &verdicts[1];
    assert_eq!(module["label"], "rejected");
    assert_eq!(module["reason"], gopher["reason"]);
    let rule = format!("gopher/{}", gopher["reason"].as_str().expect("it is rejected"));
    let findings = module["findings"].as_array().expect("a list");
    let finding = findings.iter().find(|finding| finding["rule"] == rule.as_str()).expect("the verdict is a finding");
    let figure = gopher["figure"].as_f64().expect("a figure");
    assert!(
        finding["message"].as_str().expect("a message").contains(&format!(": {}", (figure * 1000.0).round() / 1000.0))
    );
    assert!(fs::read_to_string(out.join("report.txt")).expect("the report").contains("(fineweb)"));
}

#[test]
fn licences_and_near_copies_are_what_they_are_asked_to_be() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, out) = (folder.path().join("corpus"), folder.path().join("out"));
    corpus(&source, 20);
    let plain = options(&source, &out);
    done(&plain);
    let label = |name: &str| row(&rows(&out), name)["reason"].as_str().expect("a reason").to_owned();
    assert_eq!((label("module4.py").as_str(), label("module2.py").as_str()), ("no fault", "licence"));
    assert_eq!(label("near12.py"), "duplicate");
    let other = Options { licences: Some(vec!["gpl-3.0-only".to_owned()]), threshold: 1.0, ..plain.clone() };
    done(&other);
    assert_eq!((label("module4.py").as_str(), label("module2.py").as_str()), ("licence", "no fault"));
    assert_ne!(label("near12.py"), "duplicate");
    let bands = Bands { n: 7, rows: 3 };
    let done = done(&Options { bands, threshold: 0.6, ..plain.clone() });
    let text = fs::read_to_string(out.join("report.txt")).expect("the report");
    assert!(text.contains("0.6 or more; how likely 7 bands of 3 find it"), "{text}");
    assert!(text.contains(&bands.curve().lines().next().expect("a curve")[..12]), "{text}");
    assert_eq!(done.report.text(), text);
    let manifest: Value =
        serde_json::from_slice(&fs::read(out.join("manifest.json")).expect("the manifest")).expect("an object");
    assert_eq!((&manifest["bands"], &manifest["rows"], &manifest["similarity"]), (&7.into(), &3.into(), &0.6.into()));
}

const KERNELS: &str = "import triton
import triton.language as tl

@triton.jit
def helper(x):
    return x * 2

@triton.jit
def kernel(x_ptr):
    tl.store(x_ptr, helper(tl.load(x_ptr)))

def launch(x):
    kernel[(1,)](x)
";

#[test]
fn kernels_are_written_once_with_what_belongs_to_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, out) = (folder.path().join("corpus"), folder.path().join("out"));
    corpus(&source, 3);
    fs::write(source.join("project0/b.py"), KERNELS).expect("the module is written");
    // The same kernels under other names, in a project whose licence the list lacks and whose path is the first.
    let copy = KERNELS
        .replace("def kernel", "def other")
        .replace("kernel[", "other[")
        .replace("import triton\n", "import triton, os\n");
    fs::create_dir(source.join("a")).expect("a folder is made");
    fs::write(source.join("a/a.py"), copy).expect("the module is written");
    let first = done(&options(&source, &out));
    assert_eq!(first.kernels.n, 2);
    let kernels = lines(&out.join("kernels.jsonl"));
    let names: Vec<&str> = kernels.iter().filter_map(|kernel| kernel["name"].as_str()).collect();
    assert_eq!(names, ["helper", "kernel"]);
    let kernel = &kernels[1];
    assert!(kernel["path"].as_str().expect("a path").ends_with("project0/b.py"), "{kernel}");
    assert_eq!((&kernel["copies"], &kernel["line"], &kernel["licence"]), (&1.into(), &9.into(), &"MIT".into()));
    assert_eq!((&kernel["helpers"], &kernel["launchers"]), (&serde_json::json!(["helper"]), &1.into()));
    for part in ["import triton\n", "def helper(x)", "def kernel(x_ptr)", "def launch(x)"] {
        assert!(kernel["text"].as_str().expect("a text").contains(part), "{part} is not in {kernel}");
    }
    assert!(out.join("kernels.parquet").exists());
    let one =
        Options { n_threads: 1, out: folder.path().join("one"), partition: Some(1 << 20), ..options(&source, &out) };
    assert_eq!(done(&one).kernels, first.kernels);
}

#[test]
fn credentials_in_paths_are_not_shown_and_nothing_of_the_work_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let token = ["ghp_zQWBuTSOoRi4A9spHcVY5", "ncnsDkxkJ0mLq17"].concat();
    let (source, out) = (folder.path().join("corpus"), folder.path().join("out"));
    corpus(&source, 3);
    let text = fs::read_to_string(source.join("project0/module0.py")).expect("a module");
    for name in ["a", "b"] {
        let module = source.join(format!("project1/{token}/{name}.py"));
        fs::create_dir_all(module.parent().expect("a folder")).expect("a folder is made");
        fs::write(module, &text).expect("the module is written");
    }
    done(&options(&source, &out));
    let all = rows(&out);
    assert!(row(&all, "/b.py")["path"].as_str().expect("a path").contains("[secret:github-classic-token]"));
    assert!(row(&all, "/a.py")["copy_of"].as_str().is_some());
    for (file, bytes) in output(&out) {
        assert!(!String::from_utf8_lossy(&bytes).contains(&token), "{} shows it", file.display());
    }
    let work: Vec<String> = fs::read_dir(out.join("work"))
        .expect("what is kept")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(work, ["verdicts"]);
}
