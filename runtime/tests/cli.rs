//! The `tritter` binary on the model that counts: what it prints where, and how it ends.

#![cfg(target_arch = "x86_64")]

mod common;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::Draft;
use serde_json::Value;
use tempfile::TempDir;

const VOCAB: u64 = 272;

fn model() -> TempDir {
    Draft::counting(VOCAB, 64, 2).written()
}

fn tritter(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tritter")).args(args).output().unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Standard output of a command that must succeed.
fn succeed(args: &[&str]) -> String {
    let output = tritter(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout).to_owned()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&succeed(args)).unwrap()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn run_streams_text_and_reports_json() {
    let dir = model();
    let dir = path(dir.path());
    assert_eq!(succeed(&["run", dir, "--prompt", "xa", "--max-new-tokens", "4"]), "bcde\n");
    assert_eq!(succeed(&["run", dir, "--prompt", "xa", "--stop", "f", "--threads", "3", "--chunk", "1"]), "bcde\n");
    assert_eq!(succeed(&["run", dir, "--tokens", "8, 105", "--max-new-tokens", "2"]), "bc\n");
    let report = json(&["run", dir, "--prompt", "xa", "--max-new-tokens", "3", "--json"]);
    assert_eq!(report["text"], "bcd");
    assert_eq!(report["token_ids"], serde_json::json!([106, 107, 108]));
    // The id that starts a text, and two bytes.
    assert_eq!(report["prompt_tokens"], 3);
    let report = json(&["run", dir, "--prompt", "xa", "--no-bos", "--max-new-tokens", "1", "--json"]);
    assert_eq!(report["prompt_tokens"], 2);
    // Id 2 ends a text, and is what comes after 1.
    let report = json(&["run", dir, "--tokens", "1", "--json"]);
    assert_eq!((&report["finish"], &report["token_ids"]), (&"end".into(), &serde_json::json!([2])));
    let report = json(&["run", dir, "--tokens", "1", "--ignore-eos", "--max-new-tokens", "2", "--json"]);
    assert_eq!(report["token_ids"], serde_json::json!([2, 3]));
    let sampled = ["run", dir, "--prompt", "xa", "--temperature", "1", "--top-p", "0.9", "--seed", "3", "--json"];
    assert_eq!(json(&sampled)["token_ids"], json(&sampled)["token_ids"]);
}

#[test]
fn a_prompt_file_may_be_any_bytes() {
    let dir = model();
    let file = dir.path().join("prompt");
    std::fs::write(&file, b"\xff\xfe@").unwrap();
    let args = ["run", path(dir.path()), "--prompt-file", path(&file), "--max-new-tokens", "2"];
    assert_eq!(succeed(&args), "AB\n");
}

#[test]
fn without_a_tokenizer_ids_go_in_and_out() {
    let dir = Draft { tokenizer: None, ..Draft::counting(VOCAB, 64, 1) }.written();
    let dir = path(dir.path());
    assert_eq!(succeed(&["run", dir, "--tokens", "8,9", "--max-new-tokens", "3"]), "10 11 12\n");
    let output = tritter(&["run", dir, "--prompt", "a"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("has no tokenizer"), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
}

#[test]
fn wrong_usage_is_2_and_failure_is_1() {
    let dir = model();
    let dir = path(dir.path());
    for args in [
        &["run", dir][..],
        &["run", dir, "--prompt", "a", "--tokens", "1"],
        &["run", dir, "--prompt", "a", "--threads", "0"],
        &["run", dir, "--prompt", "a", "--stop", ""],
        &["run", dir, "--tokens", "a"],
        &["run", dir, "--prompt", "a", "--temperature", "-1"],
        &["run", dir, "--prompt", "a", "--top-p", "0"],
        &["frobnicate"],
    ] {
        assert_eq!(tritter(args).status.code(), Some(2), "{args:?}");
    }
    for (args, message) in [
        (&["run", "/nowhere", "--prompt", "a"][..], "/nowhere/manifest.ron"),
        (&["run", dir, "--tokens", "272"], "the vocabulary has 272"),
        (&["run", dir, "--prompt", "a", "--chunk", "9"], "a chunk of 9 tokens is not between 1 and 8"),
        (&["run", dir, "--prompt", "a", "--memory-limit", "0"], "the limit is 0"),
        (&["bench", dir], "context of 64"),
        (&["eval", dir, "--text", "/nowhere"], "cannot open /nowhere"),
    ] {
        let output = tritter(args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains(message) && output.stdout.is_empty(), "{args:?}: {stderr}");
    }
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let dir = model();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tritter"))
        .args(["run", path(dir.path()), "--prompt", "a", "--max-new-tokens", "50"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}: {}", output.status, text(&output.stderr));
    assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_line_and_is_130() {
    use std::io::Read;

    let dir = Draft::counting(VOCAB, 1 << 24, 1).written();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tritter"))
        .args(["run", path(dir.path()), "--prompt", "a", "--max-new-tokens", "100000000", "--ignore-eos"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut bytes = vec![0; 1000];
    stdout.read_exact(&mut bytes).unwrap();
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    stdout.read_to_end(&mut bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(bytes.last(), Some(&b'\n'));
    assert!(text(&output.stderr).contains("ended by cancelled"), "{}", text(&output.stderr));
}

#[test]
fn logits_are_written_for_every_token_of_every_row() {
    let dir = model();
    let (input, output) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    let ids: Vec<i64> = (0..2 * 11).map(|i| i * 3).collect();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![2, 11], &bytes).unwrap();
    std::fs::write(&input, safetensors::serialize([("input_ids", view)], None).unwrap()).unwrap();
    let mut files = Vec::new();
    for extra in [&[][..], &["--step-by-step"], &["--batch", "2", "--threads", "2"], &["--chunk", "3", "--batch", "2"]]
    {
        let base = ["logits", path(dir.path()), "--tokens", path(&input), "-o", path(&output), "--json"];
        let report = json(&[&base[..], extra].concat());
        assert_eq!(report["shape"], serde_json::json!([2, 11, VOCAB]));
        files.push(std::fs::read(&output).unwrap());
        std::fs::remove_file(&output).unwrap();
    }
    assert!(files.windows(2).all(|pair| pair[0] == pair[1]), "the files differ");
    let tensors = safetensors::SafeTensors::deserialize(&files[0]).unwrap();
    let logits = tensors.tensor("logits").unwrap();
    let values: Vec<f32> = logits.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    for (row, &id) in values.chunks(VOCAB as usize).zip(&ids) {
        let expected: Vec<f32> = (0..VOCAB as i64).map(|other| f32::from(u8::from(other == id + 1))).collect();
        assert_eq!(row, expected);
    }
}

#[test]
fn a_failed_run_leaves_no_file() {
    let dir = model();
    let (input, output) = (dir.path().join("in.safetensors"), dir.path().join("out/logits.safetensors"));
    std::fs::create_dir(dir.path().join("out")).unwrap();
    let bytes: Vec<u8> = [1_i32, -1].iter().flat_map(|id| id.to_le_bytes()).collect();
    let write = |shape: Vec<usize>| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I32, shape, &bytes).unwrap();
        std::fs::write(&input, safetensors::serialize([("input_ids", view)], None).unwrap()).unwrap();
    };
    for (shape, message) in [(vec![1, 2], "-1 at row 0, column 1"), (vec![2], "it must be (B, L)")] {
        write(shape);
        let result = tritter(&["logits", path(dir.path()), "--tokens", path(&input), "-o", path(&output)]);
        assert_eq!(result.status.code(), Some(1));
        assert!(text(&result.stderr).contains(message), "{}", text(&result.stderr));
    }
    assert_eq!(std::fs::read_dir(dir.path().join("out")).unwrap().count(), 0);
}

#[test]
fn eval_names_its_protocol_and_its_units() {
    let dir = model();
    let file = dir.path().join("text");
    // A separator, which becomes id 1, then letters that count up.
    std::fs::write(&file, b"\0abcdefghi").unwrap();
    let report = json(&["eval", path(dir.path()), "--text", path(&file), "--window", "5", "--json"]);
    for key in ["nats_per_token", "bits_per_byte", "perplexity", "tokens", "protocol"] {
        assert!(keys(&report).contains(&key), "{report}");
    }
    assert_eq!(report["tokens"], 8);
    // Of the first window's four scored ids the first does not follow from 1.
    let nats = (std::f64::consts::E + (VOCAB - 1) as f64).ln() - 7.0 / 8.0;
    assert!((report["nats_per_token"].as_f64().unwrap() - nats).abs() < 1e-6, "{report}");
    assert!((report["bits_per_byte"].as_f64().unwrap() - nats / std::f64::consts::LN_2).abs() < 1e-6, "{report}");
    let ids = dir.path().join("ids");
    std::fs::write(&ids, "1 105,106\n107 108 109 110 111 112 113").unwrap();
    let same = json(&["eval", path(dir.path()), "--tokens-file", path(&ids), "--window", "5", "--json"]);
    assert_eq!(same["nats_per_token"], report["nats_per_token"]);
    let plain =
        succeed(&["eval", path(dir.path()), "--text", path(&file), "--window", "5", "--batch", "2", "--limit", "1"]);
    assert!(plain.contains("protocol        1 windows of 5 ids"), "{plain}");
}

#[test]
fn bench_reports_rates_ceilings_and_steps() {
    let dir = model();
    let args = ["bench", path(dir.path()), "--prompt", "20", "--generate", "10"];
    let report = json(&[&args[..], &["--json"]].concat());
    for key in [
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "decode_bytes_per_token",
        "read_gb_per_s",
        "decode_gb_per_s",
        "dot_gmac_per_s",
        "prefill_gmac_per_s",
    ] {
        assert!(report[key].as_f64().is_some_and(|value| 0.0 < value), "{key}: {report}");
    }
    for key in ["predicted_prefill_tokens_per_s", "predicted_decode_tokens_per_s"] {
        assert!(report[key].as_f64().is_some_and(|value| 0.0 < value), "{key}: {report}");
    }
    for key in ["prefill_spread", "decode_spread"] {
        let value = |part: &str| report[key][part].as_f64().unwrap();
        assert!(value("min") <= value("median") && value("median") <= value("max"), "{key}: {report}");
    }
    // A quarter of what is generated is not timed.
    assert_eq!(report["decode_between"], serde_json::json!([22, 30]));
    assert_eq!(report["batch"], Value::Null);
    let steps = report["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 6);
    for key in ["from", "kernel", "bytes", "seconds", "predicted_seconds", "gb_per_s"] {
        assert!(steps.iter().all(|step| keys(step).contains(&key)), "{report}");
    }
    let plain = succeed(&args);
    assert!(plain.contains("that memory delivers") && plain.contains("predicted for 1 threads"), "{plain}");
    // The model is a few kilobytes.
    assert!(plain.contains("decoding runs from caches"), "{plain}");
}

#[test]
fn bench_appends_runs_to_a_file_of_its_own() {
    let (dir, folder) = (model(), tempfile::tempdir().unwrap());
    let file = folder.path().join("runs.csv");
    let args = ["bench", path(dir.path()), "--prompt", "4", "--generate", "4", "--csv", path(&file)];
    for depth in ["0", "9"] {
        let report = json(&[&args[..], &["--depth", depth, "--json"]].concat());
        let depth: u64 = depth.parse().unwrap();
        // A quarter of what is generated is not timed.
        assert_eq!(report["decode_between"], serde_json::json!([depth + 5, depth + 8]));
    }
    let runs = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<Vec<&str>> = runs.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.len(), 3, "{runs}");
    assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{runs}");
    let depth = lines[0].iter().position(|name| *name == "depth").unwrap();
    assert_eq!((lines[1][depth], lines[2][depth]), ("0", "9"));

    // What is refused is refused before anything is measured, and stays as it was.
    std::fs::write(&file, "a,b\n").unwrap();
    let refused = |args: &[&str], why: &str| {
        let output = tritter(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(text(&output.stderr).contains(why), "{args:?}: {}", text(&output.stderr));
    };
    refused(&args, "is not a file of these runs");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "a,b\n");
    refused(&["bench", path(dir.path()), "--csv", "/nowhere/runs.csv"], "cannot append to /nowhere/runs.csv");
    let new = folder.path().join("new.csv");
    refused(&["bench", path(dir.path()), "--depth", "100000", "--csv", path(&new)], "context");
    assert!(!new.exists());
    refused(&["bench", path(dir.path()), "--generate", "0", "--batch", "2"], "--generate 0 asks for none");
}

#[test]
fn bench_measures_sequences_that_decode_together() {
    let dir = model();
    let args = ["bench", path(dir.path()), "--prompt", "20", "--generate", "10", "--batch", "2", "--weights", "copy"];
    let report = json(&[&args[..], &["--json"]].concat());
    let batch = &report["batch"];
    assert_eq!(batch["sequences"], 2);
    for key in ["tokens_per_s", "ratio", "predicted_step_seconds"] {
        assert!(batch[key].as_f64().is_some_and(|value| 0.0 < value), "{key}: {report}");
    }
    assert!(succeed(&args).contains("2 sequences; a step takes"));
    let output = tritter(&["bench", path(dir.path()), "--prompt", "20", "--generate", "10", "--batch", "3"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no sequence 2"), "{}", text(&output.stderr));
}

#[test]
fn tune_writes_a_file_that_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tuning.ron");
    std::fs::write(&file, "old").unwrap();
    let args = ["tune", "-o", path(&file), "--threads", "2", "--seconds", "0.1"];
    let report = json(&[&args[..], &["--json"]].concat());
    let tuning = ir::plan::Tuning::from_ron(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(report["kernels"].as_array().unwrap().len(), tuning.kernels.len());
    assert_eq!((&report["threads"], tuning.threads), (&2.into(), 2));
    assert!(succeed(&args).contains("written to"));
    // Nothing is left beside it.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let output = tritter(&["tune", "-o", "/nowhere/tuning.ron", "--seconds", "0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cannot write /nowhere/tuning.ron"), "{}", text(&output.stderr));
    assert_eq!(tritter(&["tune", "--seconds", "-1"]).status.code(), Some(2));
}

#[test]
fn tokenize_encodes_decodes_and_counts() {
    let folder = TempDir::new().unwrap();
    let (source, ids) = (folder.path().join("a.py"), folder.path().join("ids"));
    std::fs::write(&source, b"def f():\n    return 'caf\xc3\xa9 \xff'\n").unwrap();
    for tokenizer in ["bytes", "cl100k_base"] {
        for options in [&[][..], &["--code", "auto"]] {
            let args = [&["tokenize", "encode", tokenizer, path(&source)], options].concat();
            let line = succeed(&args);
            std::fs::write(&ids, &line).unwrap();
            let decoded = tritter(&["tokenize", "decode", tokenizer, path(&ids)]);
            assert_eq!(decoded.stdout, std::fs::read(&source).unwrap());
            let report =
                json(&[&["tokenize", "count", tokenizer, path(&source), path(&source), "--json"], options].concat());
            assert_eq!(keys(&report), ["tokens", "bytes", "files"]);
            assert_eq!(report["tokens"], 2 * line.split_whitespace().count());
        }
    }
    let report = json(&["tokenize", "encode", "r50k_base", path(&source), "--json"]);
    assert_eq!(keys(&report[0]), ["file", "bytes", "tokens", "token_ids"]);
    let config = folder.path().join("tokenizer_config.json");
    let messages = folder.path().join("messages.json");
    std::fs::write(&config, r#"{"chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}", "eos_token": "<|endoftext|>"}"#).unwrap();
    std::fs::write(&messages, r#"[{"role": "user", "content": "Hello"}]"#).unwrap();
    let line = succeed(&["tokenize", "encode", "cl100k_base", "--chat", path(&config), path(&messages)]);
    assert_eq!(line, "882 25 22691 100257\n");
    let fails = |args: &[&str], message: &str| {
        let output = tritter(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(text(&output.stderr).contains(message), "{}", text(&output.stderr));
    };
    let bad = folder.path().join("bad.json");
    std::fs::write(&bad, "{\"chat_template\": \"{% for\"}").unwrap();
    let chat = |config: &Path, file: &Path| {
        ["tokenize", "encode", "cl100k_base", "--chat", path(config), path(file)].map(str::to_owned)
    };
    let said = |args: &[String], message: &str| fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), message);
    said(&chat(&bad, &messages), &format!("error: cannot use {}", path(&bad)));
    said(&chat(&config, &config), &format!("error: {} is no JSON list of messages", path(&config)));
    std::fs::write(&ids, "100 101 4000000").unwrap();
    fails(&["tokenize", "decode", "cl100k_base", path(&ids)], "cl100k_base has no id 4000000");
    std::fs::write(&ids, "100 300").unwrap();
    fails(&["tokenize", "decode", "bytes", path(&ids), "--json"], "bytes has no id 300, of 264 ids");
    assert_eq!(tritter(&["tokenize", "encode", "bytes", "--code", "auto", path(&ids)]).status.code(), Some(1));
    assert_eq!(tritter(&["tokenize", "encode", "no_such", path(&ids)]).status.code(), Some(1));
}

#[test]
fn tokenize_trains_a_vocabulary_and_cuts_parts_to_fill_in() {
    let folder = TempDir::new().unwrap();
    let (source, lines) = (folder.path().join("a.py"), folder.path().join("b.jsonl"));
    let text = "def below(values, limit):\n    return [value for value in values if value < limit]\n".repeat(20);
    std::fs::write(&source, &text).unwrap();
    std::fs::write(&lines, "{\"path\": \"b.py\", \"text\": \"def above(values):\\n    return sorted(values)\\n\"}\n\n")
        .unwrap();
    let (out, again) = (folder.path().join("tokenizer.json"), folder.path().join("again.json"));
    for out in [&out, &again] {
        let report =
            json(&["tokenize", "train", path(&source), path(&lines), "--size", "300", "-o", path(out), "--json"]);
        assert_eq!(keys(&report), ["file", "ids", "byte_pairs", "documents", "bytes"]);
        assert_eq!((&report["ids"], &report["byte_pairs"], &report["documents"]), (&300.into(), &36.into(), &2.into()));
    }
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&again).unwrap());
    let n_tokens = json(&["tokenize", "count", path(&out), path(&source), "--json"])["tokens"].as_u64().unwrap();
    assert!((n_tokens as usize) * 3 < text.len(), "{n_tokens} tokens of {} bytes", text.len());
    let ids = folder.path().join("ids");
    std::fs::write(&ids, succeed(&["tokenize", "encode", path(&out), path(&source)])).unwrap();
    assert_eq!(succeed(&["tokenize", "decode", path(&out), path(&ids)]), text);

    // What is no source of a folder is left out, and what is given twice is read once.
    let tree = folder.path().join("tree");
    std::fs::create_dir_all(tree.join(".git")).unwrap();
    std::fs::write(tree.join("a.py"), &text).unwrap();
    for (name, bytes) in [(".git/config", &b"text"[..]), ("a.bin", b"\0\x01"), ("b.bin", b"\xff\xfe")] {
        std::fs::write(tree.join(name), bytes).unwrap();
    }
    let spelt = tree.join("../tree/./");
    let small = folder.path().join("small.json");
    let args = ["tokenize", "train", path(&tree), path(&spelt), "--size", "300", "-o", path(&small), "--json"];
    let report = json(&args);
    assert_eq!((&report["documents"], &report["bytes"]), (&1.into(), &text.len().into()));
    std::fs::remove_dir_all(&tree).unwrap();

    let cut = |options: &[&str]| {
        let args =
            [&["tokenize", "fim", path(&out), path(folder.path()), "--text", "--count", "3"][..], options].concat();
        succeed(&args)
    };
    let parts = cut(&["--seed", "1"]);
    assert_eq!(parts, cut(&["--seed", "1"]));
    assert_ne!(parts, cut(&["--seed", "2"]));
    let parts: Vec<serde_json::Value> = parts.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(3 < parts.len());
    for part in &parts {
        assert_eq!(keys(part), ["file", "kind", "start", "end", "prefix", "middle", "suffix"]);
        let whole = ["prefix", "middle", "suffix"].map(|name| part[name].as_str().unwrap()).concat();
        assert!(whole == text || whole.starts_with("def above"));
    }

    let fails = |args: &[&str], message: &str| {
        let output = tritter(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(message), "{error}");
    };
    fails(&["tokenize", "fim", path(&out), path(&source)], "has no marks for prefix, suffix and middle");
    fails(&["tokenize", "fim", path(&out), path(&ids), "--text"], "no source is of a known language");
    fails(&["tokenize", "train", path(&source), "--size", "264", "-o", path(&again)], "has no room for byte pairs");
    fails(&["tokenize", "train", path(&source), "--size", "100", "-o", path(&again)], "no vocabulary has 100 ids");
    fails(&["tokenize", "train", path(&source), "--size", "65536", "-o", path(&again)], "the layout has ids for");
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&again).unwrap());
}

#[test]
fn help_has_examples() {
    for command in ["run", "logits", "eval", "bench", "tune", "tokenize"] {
        assert!(succeed(&[command, "--help"]).contains("Examples:"), "{command}");
    }
}
