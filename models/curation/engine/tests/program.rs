//! What `tritter-curate` says: reports for programs, and errors by what is wrong.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output};

use serde_json::Value;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tritter-curate")).args(arguments).output().expect("the program runs")
}

fn error(arguments: &[&str], code: i32) -> String {
    let output = run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

/// An address at which nothing listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").to_string()
}

#[test]
fn every_report_is_one_object_with_its_keys() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, out) = (folder.path().join("source"), folder.path().join("out"));
    fs::create_dir(&source).expect("a folder is made");
    let code = "# Adds.\nimport triton\n\n@triton.jit\ndef add(x, y):\n    return eval(x) + y\n";
    fs::write(source.join("a.py"), code).expect("a module is written");
    fs::write(source.join("b.py"), code).expect("a module is written");
    let (source, out) = (source.to_str().expect("a path"), out.to_str().expect("a path"));
    let common = ["documents", "bytes", "seconds"];
    let commands: [(&[&str], &[&str]); 7] = [
        (&["secrets", source], &["findings", "lines"]),
        (&["security", source], &["findings"]),
        (&["quality", source], &["verdicts"]),
        (&["duplicates", source, "--check"], &["copies", "exact", "near", "curve", "recall", "precision"]),
        (&["kernels", source], &["kernels", "found", "without_copies"]),
        (&["contamination", source, "--against", source], &["overlaps", "items", "contaminated_documents"]),
        (&["run", source, "-o", out, "--any-licence"], &["output", "kernels", "partitions", "spilled_bytes", "report"]),
    ];
    for (arguments, keys) in commands {
        let output = run(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        let common = if arguments[0] == "run" { &common[1..] } else { &common[..] };
        for key in keys.iter().chain(common) {
            assert!(report.get(key).is_some(), "{arguments:?} has no {key}: {report}");
        }
    }
    let output = run(&["security", source]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 2, "lines without --json");
}

#[test]
fn errors_name_what_is_wrong() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("c.jsonl");
    fs::write(&source, "{\"text\": \"a\", \"path\": \"a.py\"}\n{\"text\": 1}\n").expect("a corpus is written");
    let (source, out) = (source.to_str().expect("a path"), folder.path().join("out"));
    let base = ["run", source, "-o", out.to_str().expect("a path")];
    let with = |more: &[&'static str]| [&base[..], more].concat();
    assert!(error(&with(&["--scheduler", "bogus"]), 1).contains("`bogus` is no address"));
    let nobody = nobody();
    let said = error(&[&base[..], &["--scheduler", &nobody]].concat(), 1);
    assert!(said.contains(&format!("no scheduler answers at {nobody}")), "{said}");
    let said = error(&base, 1);
    assert!(said.starts_with(&format!("error: {source}@30: ")) && !said.contains("External"), "{said}");
    assert!(error(&with(&["--licences", "MIT,bogus"]), 2).contains("`bogus` is no licence of SPDX's list"));
    assert!(error(&with(&["--rules", "starcoder,bogus"]), 2).contains("starcoder, gopher, c4, fineweb"));
    assert!(error(&with(&["--memory", "2XB"]), 2).contains("512MB"));
    assert!(error(&with(&["--bands", "4096", "--rows", "4096"]), 1).contains("slots"));
    assert!(error(&["executor", "--scheduler", "bogus"], 1).contains("`bogus` is no address"));
}

#[test]
fn an_executor_without_a_scheduler_says_so() {
    let nobody = nobody();
    let said = error(&["executor", "--scheduler", &nobody], 1);
    assert!(said.contains("executor of ") && said.contains(&format!("no scheduler answers at {nobody}")), "{said}");
}
