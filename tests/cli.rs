//! The two programs as their users run them: what they print where, their exit codes, what they leave behind, how they end when they are told to.
//!
//! `RUN_SLOW_TESTS=1` adds a model of 2.4 billion parameters.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tritter_tests::binary::{Program, text};
use tritter_tests::compare::relative_l2;
use tritter_tests::fixture::{self, Tensors};

use Program::{Tritter, Tritterc};

const NANO: &str = "bitnet-code-nano";

fn str(path: &Path) -> &str {
    path.to_str().expect("the paths of these tests are UTF-8")
}

/// The shipped model, compiled once for all tests.
fn nano() -> &'static str {
    static NANO_ARTIFACT: OnceLock<PathBuf> = OnceLock::new();
    let path = NANO_ARTIFACT.get_or_init(|| {
        // Always the same place, so that it is replaced by the next run and not left behind.
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nano.tritter");
        let checkpoint = fixture::checkpoint(NANO);
        Tritterc.succeed(&[
            "compile",
            str(&checkpoint),
            "-o",
            str(&directory),
            "--context",
            "1024",
            "--sequences",
            "2",
        ]);
        directory
    });
    str(path)
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("a report is an object").keys().map(String::as_str).collect()
}

#[track_caller]
fn assert_keys(report: &Value, wanted: &[&str]) {
    for key in wanted {
        assert!(keys(report).contains(key), "`{key}` is not in {report}");
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const TRITTERC: [&str; 9] = ["compile", "print", "verify", "opt", "explain", "emit", "diff", "fit", "matrix"];
const TRITTER: [&str; 5] = ["run", "logits", "eval", "compare", "bench"];

#[test]
fn help_goes_to_standard_output_and_has_examples() {
    for (program, commands) in [(Tritterc, &TRITTERC[..]), (Tritter, &TRITTER)] {
        let all = program.succeed(&["--help"]);
        for command in commands {
            assert!(all.contains(command), "`{command}` is not in\n{all}");
            let output = program.run(&[command, "--help"]);
            assert!(output.status.success() && output.stderr.is_empty());
            let help = text(&output.stdout);
            let example = format!("{} {command} ", if program == Tritterc { "tritterc" } else { "tritter" });
            let examples = help.split_once("Examples:").unwrap_or_else(|| panic!("no examples in\n{help}")).1;
            assert!(examples.contains(&example), "{help}");
        }
        assert!(program.succeed(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn wrong_usage_is_2_and_says_so_on_standard_error() {
    let cases: [(Program, &[&str]); 13] = [
        (Tritterc, &[]),
        (Tritterc, &["frobnicate"]),
        (Tritterc, &["compile", "tiny"]),
        (Tritterc, &["compile", "tiny", "-o", "x", "--target", "z80"]),
        (Tritterc, &["compile", "tiny", "-o", "x", "--kv", "f64"]),
        (Tritterc, &["compile", "tiny", "-o", "x", "--context", "many"]),
        (Tritterc, &["compile", "tiny", "-o", "x", "--random-weights"]),
        (Tritterc, &["opt", "tiny", "--passes", "magic"]),
        (Tritter, &[]),
        (Tritter, &["run"]),
        (Tritter, &["run", "x", "--prompt", "a", "--prompt-file", "b"]),
        (Tritter, &["run", "x", "--prompt", "a", "--threads", "none"]),
        (Tritter, &["eval", "x", "--text", "a", "--window", "-1"]),
    ];
    for (program, args) in cases {
        let output = program.run(args);
        assert_eq!(output.status.code(), Some(2), "{program:?} {args:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{program:?} {args:?}");
    }
}

#[test]
fn failures_are_1_and_name_what_where_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let wrong = directory.path().join("wrong.ron");
    let spec = models::find_shipped("tiny").unwrap();
    fs::write(
        &wrong,
        spec.replace("vocab: 267", "vocab: -1").replace("hidden: 30", "hidden: 31, depth: 3").replace("relu2", "gelu"),
    )
    .unwrap();
    let program = directory.path().join("wrong.tri");
    fs::write(
        &program,
        "program @x\n\ngraph @main(x: f32[2]) -> f32[3] {\n  y = neg x\n  z = add q, x\n  return y\n}\n",
    )
    .unwrap();
    let out = directory.path().join("out");
    let nothing = directory.path().join("nothing");
    let gpu = ["compile", "tiny", "-o", str(&out), "--target", "cuda:sm_90a", "--nvrtc", str(&nothing)];
    let cases: [(Program, &[&str], &[&str]); 12] = [
        (
            Tritter,
            &["compare", nano(), str(&nothing), "--text", str(&wrong)],
            &["no artifact", "nothing", "tritterc compile"],
        ),
        (Tritterc, &gpu, &["NVRTC", "CUDA_HOME", "nvidia-cuda-nvrtc", str(&nothing)]),
        (Tritter, &["run", nano(), "--prompt", "a", "--device", "cuda"], &["was compiled for", "a CUDA device"]),
        (Tritterc, &["compile", "9000b", "-o", str(&out)], &["`9000b`", "shipped specs: tiny"]),
        (Tritterc, &["compile", str(directory.path()), "-o", str(&out)], &["config.json", str(directory.path())]),
        (Tritterc, &["compile", str(&wrong), "-o", str(&out)], &["wrong.ron", "vocab", "depth", "gelu"]),
        (Tritterc, &["verify", str(&program)], &["wrong.tri", "z = add q, x", "^"]),
        (Tritterc, &["compile", "tiny", "-o", str(&out), "--context", "41"], &["between 1 and the model's 40"]),
        (Tritterc, &["compile", "tiny", "-o", str(&wrong)], &["wrong.ron", "is no artifact"]),
        (Tritter, &["run", str(&nothing), "--prompt", "a"], &["nothing", "cannot"]),
        (Tritter, &["eval", nano(), "--text", str(&nothing)], &["nothing", "cannot open"]),
        (Tritter, &["bench", nano(), "--prompt", "5000"], &["context of 1024", "--context"]),
    ];
    for (program, args, words) in cases {
        let output = program.run(args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{program:?} {args:?}: {stderr}");
        assert!(stderr.starts_with("error: ") && output.stdout.is_empty(), "{program:?} {args:?}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
        }
    }
    assert_eq!(names(directory.path()), ["wrong.ron", "wrong.tri"], "nothing is left behind");
}

#[test]
fn compile_reports_and_dumps() {
    let directory = tempfile::tempdir().unwrap();
    let (out, dump) = (directory.path().join("out"), directory.path().join("dump"));
    let checkpoint = fixture::checkpoint("bitnet-packed");
    let args = ["compile", str(&checkpoint), "-o", str(&out), "--target", "scalar", "--dump", str(&dump)];
    let output = Tritterc.run(&[&args[..], &["--json"]].concat());
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_keys(&report, &["seconds", "artifact_bytes", "peak_bytes"]);
    let on_disk: u64 = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(report["artifact_bytes"].as_u64(), Some(on_disk));
    for (stage, words) in [
        ("source.tri", &["graph @layer"][..]),
        ("optimised.tri", &["ternary_matmul"]),
        // How far the e-graph grew, why it stopped, and what fired.
        ("rewriting.txt", &["nodes", "saturated"]),
        ("plan.ron", &["phases"]),
        ("report.txt", &["memory"]),
    ] {
        let name = names(&dump).into_iter().find(|name| name.ends_with(stage));
        let name = name.unwrap_or_else(|| panic!("no {stage} among {:?}", names(&dump)));
        let text = fs::read_to_string(dump.join(name)).unwrap();
        for word in words {
            assert!(text.contains(word), "`{word}` is not in {stage}:\n{text}");
        }
    }
    let first: Vec<Vec<u8>> = names(&out).iter().map(|name| fs::read(out.join(name)).unwrap()).collect();
    // Again, in words, in its place.
    let words = Tritterc.succeed(&args);
    assert!(words.contains("tritter run"), "{words}");
    let second: Vec<Vec<u8>> = names(&out).iter().map(|name| fs::read(out.join(name)).unwrap()).collect();
    assert!(first == second, "another run gives other bytes");
    assert_eq!(names(directory.path()), ["dump", "out"]);
}

#[test]
fn a_page_for_a_browser_is_written_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let (out, page) = (directory.path().join("out"), directory.path().join("page.html"));
    fs::write(&page, "an older one").unwrap();
    let args = ["compile", "tiny", "-o", str(&out), "--target", "scalar", "--report", str(&page)];
    let words = Tritterc.succeed(&args);
    assert!(words.contains("page.html"), "{words}");
    let written = fs::read_to_string(&page).unwrap();
    assert!(written.starts_with("<!DOCTYPE html>") && written.ends_with("</html>\n"));
    assert_eq!(names(directory.path()), ["out", "page.html"]);
    let several = Tritterc.run(&[&args[..], &["--target", "x86_64"]].concat());
    assert_eq!(several.status.code(), Some(1));
    assert!(text(&several.stderr).contains("--report is about one target"));
    let nowhere = directory.path().join("nowhere").join("page.html");
    let lost = Tritterc.run(&["compile", "tiny", "-o", str(&out), "--report", str(&nowhere)]);
    assert_eq!(lost.status.code(), Some(1));
    assert!(text(&lost.stderr).contains("nowhere"));
}

/// The largest of all shipped models, without weights: layers are rolled, so it is as much work as the smallest.
#[test]
fn seventy_billion_parameters_compile_in_seconds() {
    let directory = tempfile::tempdir().unwrap();
    let (out, dump) = (directory.path().join("out"), directory.path().join("dump"));
    let start = Instant::now();
    let report = Tritterc.json(&["compile", "70B", "-o", str(&out), "--dump", str(&dump), "--json"]);
    let seconds = start.elapsed().as_secs_f64();
    assert!(seconds < 5.0 && report["seconds"].as_f64().unwrap() < 5.0, "{seconds} s: {report}");
    assert!(10_000_000_000 < report["peak_bytes"].as_u64().unwrap(), "{report}");
    let rewriting = names(&dump).into_iter().find(|name| name.ends_with("rewriting.txt")).unwrap();
    assert!(fs::read_to_string(dump.join(rewriting)).unwrap().contains("nodes"));
    let output = Tritter.run(&["run", str(&out), "--prompt", "a"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("without weights"), "{}", text(&output.stderr));
}

#[test]
fn every_other_command_of_the_compiler_works() {
    let directory = tempfile::tempdir().unwrap();
    let list = Tritterc.succeed(&["print", "--list"]);
    assert!(list.lines().any(|line| line == "bitnet-2b-4t") && 16 <= list.lines().count(), "{list}");
    let printed = Tritterc.succeed(&["print", "tiny"]);
    let source = directory.path().join("tiny.tri");
    fs::write(&source, &printed).unwrap();
    assert!(Tritterc.succeed(&["verify", str(&source)]).starts_with("ok"));
    assert_eq!(Tritterc.succeed(&["print", str(&source)]), printed);
    assert!(Tritterc.succeed(&["print", "tiny", "--spec"]).contains("vocab: 267"));
    // The program of the gradients is one like any other, and has one scan each way.
    let gradients = Tritterc.succeed(&["print", "tiny", "--gradients", "values", "--chunk", "8", "--logits", "8"]);
    assert_eq!(gradients.matches(" = scan ").count(), 2, "{gradients}");
    let again = Tritterc.succeed(&["print", "tiny", "--gradients", "inputs", "--chunk", "8", "--logits", "8"]);
    let saved = |program: &str| program.matches(" = stacked layers, ").count();
    assert!(saved(&again) == 1 && 1 < saved(&gradients), "{} {}", saved(&again), saved(&gradients));
    fs::write(&source, &gradients).unwrap();
    assert!(Tritterc.succeed(&["verify", str(&source)]).starts_with("ok"));
    assert!(Tritterc.succeed(&["opt", str(&source)]).contains("layer.backward"));
    fs::write(&source, &printed).unwrap();
    let optimised = Tritterc.succeed(&["opt", "tiny", "--target", "scalar"]);
    assert!(optimised.contains("ternary_matmul"), "{optimised}");
    let partly = Tritterc.succeed(&["opt", "tiny", "--passes", "canonicalise"]);
    assert!(!partly.contains("ternary_matmul"), "{partly}");
    let refused = Tritterc.run(&["opt", "tiny", "--target", "cuda:sm_90a", "--packing", "1.6bit"]);
    let message = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(message.contains("no kernel for ternary weights packed in 1.6bit; it has them for 2bit"), "{message}");
    assert!(Tritterc.succeed(&["explain", "tiny"]).contains("rms_norm_quantize"));
    let why = Tritterc.json(&["explain", "tiny", "--why", "layer.ffn.up", "--json"]);
    assert!(!why["steps"].as_array().unwrap().is_empty() && why["checked"] == true, "{why}");
    let kernels = Tritterc.succeed(&["emit", "tiny", "--target", "scalar"]);
    let kernel = kernels.split_whitespace().next_back().unwrap();
    let listing = Tritterc.succeed(&["emit", "tiny", "--target", "scalar", "--kernel", kernel]);
    for part in [&format!("nest {kernel}("), "function", "Cranelift IR"] {
        assert!(listing.contains(part), "`{part}` is not in\n{listing}");
    }
    assert_eq!(Tritterc.run(&["diff", "tiny", str(&source)]).status.code(), Some(0));
    let optimised_path = directory.path().join("optimised.tri");
    fs::write(&optimised_path, optimised).unwrap();
    let output = Tritterc.run(&["diff", "tiny", str(&optimised_path)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("\n+") && output.stderr.is_empty());
    let output = Tritterc.run(&["verify", nano()]);
    assert!(text(&output.stdout).contains("a plan of"), "{}", text(&output.stderr));
}

/// The text that the reference continues a prompt with, and the prompt.
fn greedy_text() -> (String, String) {
    let expected = Tensors::read(&fixture::data(NANO).join("expected.safetensors")).unwrap();
    let prompt = expected.ids("prompt").unwrap().remove(0);
    let ids = expected.ids("greedy").unwrap().remove(0);
    let tokenizer = tokenizer::Tokenizer::bytes();
    let text = |ids: &[u32]| String::from_utf8(tokenizer.decode(ids)).unwrap();
    assert_eq!(prompt[0], 1, "the prompt starts a file");
    (text(&prompt[1..]), text(&ids[prompt.len()..]))
}

/// Adapters beside packed weights: trained, written as the PEFT library has them, compiled with their base, and trained further.
#[test]
fn adapters_are_trained_written_and_read() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| str(&directory.path().join(name)).to_owned();
    let train = ["--random-weights", "1", "--context", "32", "--sequences", "2", "--target", "scalar", "--json"];
    let train = |with: &[&str]| {
        let report = Tritterc.json(&[&["train", "tiny", "-o", &at("step")], with, &train[..]].concat());
        report["trained_parameters"].as_u64().unwrap()
    };
    let parameters = train(&["--lora-rank", "2", "--lora-targets", "q,down", "--keep", "inputs"]);
    assert!(0 < parameters);
    Tritter.succeed(&[
        "shard",
        concat!(env!("CARGO_MANIFEST_DIR"), "/src"),
        "-o",
        &at("data"),
        "--vocabulary",
        "bytes",
    ]);
    let config = r#"(artifact: "step", shards: ["data"], out: "run", seed: 1, steps: 2, batch: 64,
        schedule: (warm_up: 0, stages: [(until: 1.0, rate: (1e-1, 1e-1), decay: (0.0, 0.0))]))"#;
    fs::write(at("run.ron"), config).unwrap();
    Tritter.succeed(&["train", &at("run.ron")]);
    let states = at("run/step-00000002/states.safetensors");
    Tritterc.succeed(&["adapter", "tiny", "-o", &at("lora"), "--weights", &states, "--lora-alpha", "3"]);
    let config: Value = serde_json::from_str(&fs::read_to_string(at("lora/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["r"], &config["lora_alpha"]), (&2.into(), &3.0.into()));
    assert_eq!(config["target_modules"], serde_json::json!(["down_proj", "q_proj"]));

    let compile = |name: &str, with: &[&str]| {
        let base = ["compile", "tiny", "--random-weights", "1", "--context", "40", "-o"];
        Tritterc.succeed(&[&base[..], &[&at(name)], with].concat());
        Tritter.json(&["run", &at(name), "--prompt", "fn main", "--max-new-tokens", "16", "--json"])["text"].clone()
    };
    assert_ne!(compile("with", &["--adapter", &at("lora")]), compile("without", &[]));
    assert_eq!(train(&["--adapter", &at("lora")]), parameters);
    // Weights that are no adapters, as those of the model without them.
    let none = Tritterc.run(&["adapter", "tiny", "-o", &at("none"), "--weights", &at("without/weights.safetensors")]);
    assert_eq!(none.status.code(), Some(1), "{}", text(&none.stderr));
    assert!(text(&none.stderr).contains("holds no adapters"), "{}", text(&none.stderr));
}

#[test]
fn run_prints_text_and_nothing_else_and_json_on_demand() {
    let (prompt, expected) = greedy_text();
    let expected = &expected[..80];
    let args = ["run", nano(), "--prompt", &prompt, "--max-new-tokens", "80"];
    let output = Tritter.run(&args);
    assert_eq!(text(&output.stdout).trim_end_matches('\n'), expected.trim_end_matches('\n'));
    assert!(text(&output.stderr).contains("80 new tokens"), "{}", text(&output.stderr));
    // Neither threads nor chunks change what it writes.
    for more in [["--threads", "3", "--chunk", "1"], ["--threads", "1", "--chunk", "7"]] {
        let report = Tritter.json(&[&args[..], &more, &["--json"]].concat());
        assert_keys(&report, &["text", "token_ids", "prompt_tokens"]);
        assert_eq!(report["text"], expected);
        assert_eq!(report["token_ids"].as_array().unwrap().len(), 80);
        assert_eq!(report["prompt_tokens"], prompt.len() + 1);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &prompt).unwrap();
    let report = Tritter.json(&["run", nano(), "--prompt-file", str(file.path()), "--max-new-tokens", "20", "--json"]);
    assert_eq!(report["text"], expected[..20]);
    let stopped = Tritter.json(&[&args[..], &["--stop", &expected[30..34], "--json"]].concat());
    let at = expected.find(&expected[30..34]).unwrap();
    assert_eq!((&stopped["text"], &stopped["finish"]), (&expected[..at].into(), &"stop".into()));
}

#[test]
fn a_trace_has_every_step_of_every_call() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("steps.json");
    Tritter.succeed(&["run", nano(), "--tokens", "1,2,3", "--max-new-tokens", "4", "--trace", str(&path)]);
    let trace: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let on = |line: u64| events.iter().filter(move |event| event["ph"] == "X" && event["tid"] == line);
    let names: Vec<&str> = on(1).map(|event| event["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["batch of 3", "decode of 1", "decode of 1", "decode of 1"]);
    // Steps lie inside their calls, one after the other.
    let end = |event: &serde_json::Value| event["ts"].as_f64().unwrap() + event["dur"].as_f64().unwrap();
    for call in on(1) {
        let (start, end_of_call) = (call["ts"].as_f64().unwrap(), end(call));
        let inside = on(2).filter(|step| (start..end_of_call).contains(&step["ts"].as_f64().unwrap()));
        let time: f64 = inside.map(|step| step["dur"].as_f64().unwrap()).sum();
        assert!((time - (end_of_call - start)).abs() < 1.0, "{time} of {}", end_of_call - start);
    }
    assert!(on(2).any(|step| step["args"]["round"] == 0 && step["args"]["kernel"].is_string()));
    let gone = directory.path().join("none").join("steps.json");
    let refused = Tritter.run(&["run", nano(), "--tokens", "1", "--trace", str(&gone)]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("cannot write into") && refused.stdout.is_empty());
}

#[test]
fn sampling_follows_its_seed() {
    let sample = |seed: &str| {
        let args = ["run", nano(), "--prompt", "def f(", "--temperature", "1.5", "--top-k", "40", "--top-p", "0.98"];
        Tritter.json(
            &[
                &args[..],
                &["--min-p", "0.01", "--repetition-penalty", "1.1", "--max-new-tokens", "24", "--seed", seed, "--json"],
            ]
            .concat(),
        )["token_ids"]
            .clone()
    };
    assert_eq!(sample("1"), sample("1"));
    assert_ne!(sample("1"), sample("2"));
}

#[test]
fn guesses_save_calls_and_change_nothing() {
    let run = |draft: &str, more: &[&str]| {
        let prompt =
            "    print(first)\n    print(second)\n    print(third)\n    print(first)\n    print(second)\n    print(";
        let args = ["run", nano(), "--prompt", prompt, "--max-new-tokens", "60", "--json", "--draft", draft];
        let report = Tritter.json(&[&args[..], more].concat());
        (report["token_ids"].clone(), report["decode_calls"].as_u64().unwrap())
    };
    let (ids, calls) = run("0", &[]);
    let (guessed, fewer) = run("8", &[]);
    assert_eq!(ids, guessed);
    assert!(2 * fewer < calls, "{fewer} calls with guesses, {calls} without");
    let sampled = ["--temperature", "1.3", "--repetition-penalty", "1.05", "--seed", "3"];
    assert_eq!(run("0", &sampled).0, run("8", &sampled).0);
}

#[test]
fn a_context_is_gone_through_and_what_is_hidden_in_it_found() {
    let args = |answer| {
        let texts =
            ["--needle", r#"SECRET_KEY = "q7xw"\n"#, "--question", r#"assert SECRET_KEY == ""#, "--answer", answer];
        [&["verify-context", nano(), "--context", "512", "--json"], &texts[..]].concat()
    };
    let report = Tritter.json(&args(r#"q7xw""#));
    assert_eq!((&report["sound"], &report["not_finite"], &report["context"]), (&true.into(), &0.into(), &512.into()));
    let overlaps = report["overlaps"].as_array().unwrap();
    assert_eq!(overlaps.len(), 9);
    assert!(overlaps.iter().all(|overlap| overlap["different"] == 0));
    let found = report["needles"].as_array().unwrap();
    assert!(found.len() == 5 && found.iter().all(|found| found["found"] == true), "{found:?}");
    // Nobody finds what is not there.
    let failed = Tritter.run(&args("another one"));
    assert_eq!(failed.status.code(), Some(1));
    let said = text(&failed.stderr);
    assert!(said.contains("the needle was lost 5 times of 5"), "{said}");
}

#[test]
fn logits_are_written_as_they_are_defined() {
    let directory = tempfile::tempdir().unwrap();
    let artifact = directory.path().join("artifact");
    let checkpoint = fixture::checkpoint("bitnet-packed");
    Tritterc.succeed(&["compile", str(&checkpoint), "-o", str(&artifact), "--context", "64", "--sequences", "2"]);
    let expected = fixture::data("bitnet-packed").join("expected.safetensors");
    let out = directory.path().join("logits.safetensors");
    let mut all = Vec::new();
    for more in [&[][..], &["--step-by-step"], &["--chunk", "5"], &["--batch", "2"]] {
        let args = ["logits", str(&artifact), "--tokens", str(&expected), "-o", str(&out)];
        Tritter.succeed(&[&args[..], more].concat());
        all.push(fs::read(&out).unwrap());
    }
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "the files differ");
    let (ours, expected) = (Tensors::read(&out).unwrap(), Tensors::read(&expected).unwrap());
    assert_eq!(ours.shape("logits").unwrap(), expected.shape("logits").unwrap());
    let error = relative_l2(&expected.values("logits").unwrap(), &ours.values("logits").unwrap());
    assert!(error <= 0.02, "{error}");
    assert_eq!(names(directory.path()), ["artifact", "logits.safetensors"]);
}

#[test]
fn eval_and_bench_report_what_they_measured() {
    let val = fixture::data(NANO).join("val.bin");
    let args = ["eval", nano(), "--text", str(&val), "--window", "256", "--limit", "2"];
    let report = Tritter.json(&[&args[..], &["--json"]].concat());
    assert_keys(&report, &["nats_per_token", "bits_per_byte", "tokens", "perplexity", "protocol"]);
    assert_eq!(report["tokens"], 2 * 255);
    let nats = report["nats_per_token"].as_f64().unwrap();
    assert!(0.0 < nats && nats < 1.0, "{report}");
    // One byte a token.
    let bits = report["bits_per_byte"].as_f64().unwrap();
    assert!((bits * std::f64::consts::LN_2 - nats).abs() < 1e-9, "{report}");
    let batched = Tritter.json(&[&args[..], &["--batch", "2", "--chunk", "33", "--threads", "1", "--json"]].concat());
    assert_eq!(batched["nats_per_token"], report["nats_per_token"]);
    assert!(Tritter.succeed(&args).contains("empty cache"));

    let report = Tritter.json(&["bench", nano(), "--prompt", "24", "--generate", "6", "--threads", "2", "--json"]);
    assert_keys(&report, &BENCH_KEYS);
    for key in BENCH_KEYS {
        assert!(report[key].as_f64().is_none_or(|value| 0.0 < value), "{key}: {report}");
    }
    let steps = report["steps"].as_array().unwrap();
    assert!(10 < steps.len());
    for step in steps {
        assert_keys(step, &["bytes", "seconds", "gb_per_s", "share"]);
    }
}

#[test]
fn bench_measures_a_step_of_training() {
    let directory = tempfile::tempdir().unwrap();
    let (step, csv) = (directory.path().join("step"), directory.path().join("steps.csv"));
    let args = ["train", "tiny", "-o", str(&step), "--random-weights", "1", "--context", "16", "--sequences", "2"];
    Tritterc.succeed(&args);
    let args = ["bench", str(&step), "--repeats", "2", "--csv", str(&csv)];
    let report = Tritter.json(&[&args[..], &["--json"]].concat());
    assert_eq!(report["tokens"], 32);
    for key in ["tokens_per_s", "parameters", "flops_per_token", "model_tflops", "product_macs", "certified_bytes"] {
        assert!(report[key].as_f64().is_some_and(|value| 0.0 < value), "{key}: {report}");
    }
    let phases = |phase: &str| report["steps"].as_array().unwrap().iter().filter(|step| step["phase"] == phase).count();
    assert!(10 < phases("gradients") && 3 < phases("update") && phases("start") == 0, "{report}");
    let text = Tritter.succeed(&args);
    assert!(text.contains("a step of 32 tokens in sequences of 16") && text.contains("phase `update`"), "{text}");
    assert_eq!(std::fs::read_to_string(&csv).unwrap().lines().count(), 3);
}

#[test]
fn compare_tells_how_far_two_artifacts_agree() {
    let directory = tempfile::tempdir().unwrap();
    let (other, csv) = (directory.path().join("other"), directory.path().join("runs.csv"));
    let val = fixture::data(NANO).join("val.bin");
    let checkpoint = fixture::checkpoint(NANO);
    Tritterc.succeed(&["compile", str(&checkpoint), "-o", str(&other), "--kv", "int4", "--context", "300"]);
    let compare = |other: &Path, rest: &[&str]| {
        let args = ["compare", nano(), str(other), "--text", str(&val), "--window", "256", "--limit", "2"];
        Tritter.run(&[&args[..], &["--max-new-tokens", "30", "--csv", str(&csv), "--json"], rest].concat())
    };
    let same = compare(Path::new(nano()), &[]);
    assert!(same.status.success(), "{}", text(&same.stderr));
    let report: Value = serde_json::from_slice(&same.stdout).unwrap();
    assert_keys(&report, &["a", "b", "greedy_tokens", "scored_tokens"]);
    assert_eq!((&report["greedy_equal"], &report["difference_percent"]), (&Value::from(30), &Value::from(0.0)));
    // Caches of 4 bits change the nats by some tenths of a percent, which is a failure, and recorded all the same.
    let differs = compare(&other, &["--within", "0.0001"]);
    assert_eq!(differs.status.code(), Some(1));
    assert!(text(&differs.stderr).contains("more than the 0.0001 %"), "{}", text(&differs.stderr));
    assert!(compare(&other, &["--within", "10"]).status.success());
    let lines = fs::read_to_string(&csv).unwrap();
    assert_eq!((lines.lines().count(), lines.lines().nth(1).unwrap().contains(",30,30,510,")), (4, true), "{lines}");
}

const BENCH_KEYS: [&str; 12] = [
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "decode_bytes_per_token",
    "read_gb_per_s",
    "decode_gb_per_s",
    "decode_share",
    "decode_weight_share",
    "dot_gmac_per_s",
    "prefill_gmac_per_s",
    "prefill_share",
    "prefill_linear_share",
    "steps",
];

#[cfg(unix)]
#[test]
fn readers_that_have_enough_are_no_failure() {
    for (program, args) in
        [(Tritterc, vec!["print", "70b"]), (Tritter, vec!["run", nano(), "--prompt", "def ", "--max-new-tokens", "60"])]
    {
        let mut child = program.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = text(&output.stderr);
        assert!(output.status.success() && !stderr.contains("panicked"), "{args:?}: {:?} {stderr}", output.status);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_a_failure() {
    for (program, args) in
        [(Tritterc, vec!["print", "70b"]), (Tritter, vec!["run", nano(), "--prompt", "def ", "--max-new-tokens", "4"])]
    {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = program.command(&args).stdout(full).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains("error: "), "{}", text(&output.stderr));
    }
}

/// A command whose files may not grow beyond so many blocks of 512 bytes, as if the disk were full then. The signal that comes with it is
/// ignored, so that the program sees the error.
#[cfg(unix)]
fn limited(program: Program, args: &[&str], blocks: u32) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\""), "sh", str(&program.path())]);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let checkpoint = fixture::checkpoint("bitnet-packed");
    let compile = ["compile", str(&checkpoint), "-o", str(&out)];
    let fails = |blocks: u32| {
        let output = limited(Tritterc, &compile, blocks).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("cannot write"), "{}", text(&output.stderr));
    };
    // The code has some kilobytes, the weights some hundred.
    for blocks in [1, 100] {
        fails(blocks);
        assert_eq!(names(directory.path()), [""; 0]);
    }
    Tritterc.succeed(&compile);
    let before: Vec<Vec<u8>> = names(&out).iter().map(|name| fs::read(out.join(name)).unwrap()).collect();
    fails(100);
    assert_eq!(names(directory.path()), ["out"]);
    let after: Vec<Vec<u8>> = names(&out).iter().map(|name| fs::read(out.join(name)).unwrap()).collect();
    assert!(before == after, "the artifact that was there has changed");

    let expected = fixture::data("bitnet-packed").join("expected.safetensors");
    let logits = directory.path().join("logits.safetensors");
    let args = ["logits", str(&out), "--tokens", str(&expected), "-o", str(&logits)];
    let output = limited(Tritter, &args, 20).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(names(directory.path()), ["out"]);
}

#[cfg(unix)]
fn interrupt(pid: u32) {
    let status = Command::new("sh").args(["-c", &format!("kill -INT {pid}")]).status().unwrap();
    assert!(status.success());
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_a_run_with_what_it_has_written() {
    let args = ["run", nano(), "--prompt", "def read_json(path):", "--max-new-tokens", "900", "--ignore-eos"];
    let mut child = Tritter.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut bytes = vec![0; 10];
    stdout.read_exact(&mut bytes).unwrap();
    interrupt(child.id());
    stdout.read_to_end(&mut bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    let written = String::from_utf8(bytes).expect("only whole characters are written");
    assert!(written.ends_with('\n') && written.len() < 900, "{written}");
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_a_compilation_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    // Large enough that its weights take some seconds.
    let args = ["compile", "1b", "-o", str(&out), "--random-weights", "1"];
    let child = Tritterc.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let is_writing = || {
        let weights = |entry: fs::DirEntry| entry.path().join(ir::plan::manifest::WEIGHTS);
        let mut entries = fs::read_dir(directory.path()).unwrap().filter_map(Result::ok);
        entries.any(|entry| fs::metadata(weights(entry)).is_ok_and(|file| 1 << 20 < file.len()))
    };
    let start = Instant::now();
    while !is_writing() {
        assert!(start.elapsed() < Duration::from_secs(60), "no weights are written");
        std::thread::sleep(Duration::from_millis(2));
    }
    interrupt(child.id());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty() && text(&output.stderr).contains("nothing was written"));
    assert_eq!(names(directory.path()), [""; 0]);
}

/// 2.4 billion parameters are packed, and measured, in less memory than they have in half precision.
#[cfg(target_os = "linux")]
#[test]
fn two_billion_parameters_need_less_than_four_gigabytes() {
    if std::env::var_os("RUN_SLOW_TESTS").is_none_or(|value| value != "1") {
        return;
    }
    let directory: TempDir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let out = directory.path().join("out");
    let args = ["compile", "bitnet-2b-4t", "-o", str(&out), "--random-weights", "1", "--json"];
    let (output, peak) = Tritterc.run_measured(&args).unwrap();
    println!("compile: {peak} bytes at most\n{}", text(&output.stdout));
    assert!(peak < 4_000_000_000, "{peak} bytes");
    let args = ["bench", str(&out), "--prompt", "32", "--generate", "8", "--json"];
    let (output, peak) = Tritter.run_measured(&args).unwrap();
    println!("bench: {peak} bytes at most\n{}", text(&output.stdout));
    assert!(peak < 4_000_000_000, "{peak} bytes");
    let report: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_keys(&report, &BENCH_KEYS);
}
