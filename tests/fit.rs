//! `tritterc fit` and `tritterc matrix`: does a model fit, and what is promised of memory and time.

use std::time::{Duration, Instant};

use serde_json::Value;
use tritter_tests::binary::Program::Tritterc;
use tritter_tests::binary::text;

/// The longest that an answer may take: a second, in a build whose speed counts.
const LONGEST: Duration = Duration::from_secs(if cfg!(debug_assertions) { 10 } else { 1 });

fn fit(args: &[&str]) -> Value {
    Tritterc.json(&[&["fit"], args, &["--json"]].concat())
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("`{key}` is no number in {value}"))
}

#[test]
fn a_70b_runs_in_14_gb_with_layers_streamed() {
    let report = fit(&["70b", "--gpu", "H100", "--budget", "14GB", "--kv", "int4", "--context", "8192", "--pareto"]);
    assert!(report["fits"] == true && report["exact"] == true, "{report}");
    assert!(0.0 < number(&report, "streamed_layers") && number(&report, "streamed_layers") < 80.0);
    assert!(2.0 <= number(&report, "slots"));
    let needed = number(&report, "device_bytes");
    assert!(13.5e9 < needed && needed <= 14e9, "{needed}");
    let parts: f64 = report["device_parts"].as_object().unwrap().values().filter_map(Value::as_f64).sum();
    assert_eq!(parts, needed);
    // What is streamed takes at least as long as the link does.
    let link = 53e9 * number(&report, "token_seconds");
    assert!(number(&report, "host_bytes") - 1.1e9 <= link, "{report}");
    let front = report["front"].as_array().unwrap();
    assert!(100 < front.len());
    for point in front {
        assert!(front.iter().all(|other| {
            let is_as_good = |key: &str| number(other, key) <= number(point, key);
            let keys = ["token_seconds", "first_token_seconds", "device_bytes", "host_bytes"];
            other == point || !keys.into_iter().all(is_as_good)
        }));
    }
}

#[test]
fn what_the_search_counts_is_what_the_plan_takes() {
    for (args, least) in [
        (&["3b", "--gpu", "H100", "--budget", "2GB", "--kv", "int4"][..], 0.0),
        (&["70b", "--gpu", "RTX 5080", "--kv", "int4", "--sequences", "4"], 1.0),
        (&["40b", "--gpu", "RTX 3080", "--host-budget", "2GB", "--kv", "bf16", "--chunk", "64"], 1.0),
        (&["13b", "--cpu", "--budget", "3GB", "--kv", "int4"], 1.0),
    ] {
        let report = fit(&[args, &["--pareto"]].concat());
        assert!(least <= number(&report, "streamed_layers"), "{args:?}: {report}");
        let is_it = |point: &&Value| {
            let keys = ["schedule", "source", "split", "slots", "token_seconds", "device_bytes"];
            keys.into_iter().all(|key| point[key] == report[key])
        };
        let front = report["front"].as_array().unwrap();
        let point = front.iter().find(is_it).unwrap_or_else(|| panic!("{args:?}: {report}"));
        // The memory of a CPU's host is its own.
        if !args.contains(&"--cpu") {
            assert_eq!(point["host_bytes"], report["host_bytes"], "{args:?}");
        }
    }
}

#[test]
fn more_memory_is_never_slower() {
    let mut slowest = f64::INFINITY;
    for budget in ["3GB", "5GB", "8GB", "11GB", "14GB", "17GB", "20GB", "30GB"] {
        let report = fit(&["70b", "--gpu", "RTX 5090", "--budget", budget, "--kv", "int4"]);
        let token = number(&report, "token_seconds");
        assert!(token <= slowest * 1.001, "{budget}: {token} after {slowest}");
        slowest = token;
    }
    assert!(slowest < 0.1);
}

#[test]
fn what_has_room_is_not_streamed_and_takes_what_compiling_says() {
    let args = ["--chunk", "32", "--context", "40"];
    let report = fit(&[&["tiny", "--cpu", "--budget", "1GB"], &args[..]].concat());
    assert_eq!((number(&report, "streamed_layers"), number(&report, "host_bytes")), (0.0, 0.0));
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("tiny");
    let packing = report["packing"].as_str().unwrap();
    let compile = ["compile", "tiny", "-o", output.to_str().unwrap(), "--packing", packing, "--json"];
    let compiled = Tritterc.json(&[&compile, &args[..]].concat());
    assert_eq!(report["device_bytes"], compiled["peak_bytes"]);
}

#[test]
fn what_cannot_fit_is_refused_with_what_would() {
    let args = ["fit", "70b", "--gpu", "RTX 3080", "--context", "131072"];
    let output = Tritterc.run(&args);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    for part in ["tritter-70b on RTX 3080", "at least", "what would fit:", "--context 8192", "--kv int4 --context"] {
        assert!(message.contains(part), "`{part}` is not in\n{message}");
    }
    let output = Tritterc.run(&[&args[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["fits"], false);
    let budget = number(&report, "budget_bytes");
    assert!(budget < number(&report["least"], "device_bytes"));
    let nearest = report["nearest"].as_array().unwrap();
    assert!(!nearest.is_empty());
    for option in nearest {
        assert!(number(&option["plan"], "device_bytes") <= budget, "{option}");
        // What is suggested can be asked for.
        let instead: Vec<&str> = option["instead"].as_str().unwrap().split(' ').collect();
        let context = if instead.contains(&"--context") { &args[..4] } else { &args[..] };
        assert!(Tritterc.run(&[context, &instead].concat()).status.success(), "{instead:?}");
    }
}

#[test]
fn every_size_is_answered_in_a_moment() {
    // The first use builds the program.
    Tritterc.path();
    for (name, _) in models::shipped() {
        for args in [&["--gpu", "RTX 4090"][..], &["--cpu", "--budget", "100GB"]] {
            let start = Instant::now();
            let report = fit(&[&[*name], args].concat());
            assert!(start.elapsed() < LONGEST, "{name} {args:?}: {:?}", start.elapsed());
            assert_eq!(report["fits"], true, "{name}");
        }
    }
    let start = Instant::now();
    Tritterc.run(&["fit", "70b", "--gpu", "RTX 3080", "--context", "131072", "--resident"]);
    assert!(start.elapsed() < LONGEST, "a refusal: {:?}", start.elapsed());
}

#[test]
fn training_is_counted_and_says_so() {
    let qlora = fit(&["7b", "--gpu", "RTX 4080", "--train", "qlora", "--context", "1024"]);
    assert!(qlora["fits"] == true && qlora["is_plan"] == false, "{qlora}");
    assert!(number(&qlora, "device_bytes") < 8e9, "{qlora}");
    let output = Tritterc.run(&["fit", "7b", "--gpu", "RTX 4080", "--train", "full"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stdout);
    assert!(message.contains("does not fit") && message.contains("a count, not a plan"), "{message}");
    // A master, two moments and a gradient for each of at least 6.7 billion parameters.
    let output = Tritterc.run(&["fit", "7b", "--gpu", "MI300X", "--train", "full", "--json"]);
    let full: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(6.2e9 * 16.0 < number(&full, "device_bytes"), "{full}");
}

#[test]
fn the_matrix_has_every_card() {
    let matrix = Tritterc.json(&["matrix", "--json"]);
    let cards = matrix["cards"].as_array().unwrap();
    assert_eq!(cards.len(), 14);
    let bytes = |row: &Value, column: &str| number(&row[column], "device_bytes");
    for row in cards {
        for column in ["inference", "streamed", "qlora", "full"] {
            assert!(bytes(row, column) <= number(row, "usable_bytes"), "{column}: {row}");
        }
        assert_eq!(row["streamed"]["model"], "70b", "{row}");
    }
    let of = |name: &str, column: &str| {
        let row = cards.iter().find(|row| row["card"] == name).unwrap_or_else(|| panic!("there is no {name}"));
        row[column]["model"].as_str().unwrap().to_owned()
    };
    assert_eq!(of("H100", "inference"), "70b");
    assert_eq!(of("RTX 5080", "inference"), "40b");
    let table = Tritterc.succeed(&["matrix"]);
    assert!(cards.iter().all(|row| table.contains(row["card"].as_str().unwrap())), "{table}");
}

#[test]
fn wrong_wishes_are_told_what_there_is() {
    for args in [
        &["fit"][..],
        &["fit", "7b", "--gpu", "H100", "--cpu"],
        &["fit", "7b", "--budget", "much"],
        &["fit", "7b", "--kv", "f64"],
        &["fit", "7b", "--chunk", "0"],
    ] {
        assert_eq!(Tritterc.run(args).status.code(), Some(2), "{args:?}");
    }
    let output = Tritterc.run(&["fit", "7b", "--gpu", "Voodoo 2"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("no card `Voodoo 2`") && message.contains("RTX 4070 Ti"), "{message}");
    let output = Tritterc.run(&["fit", "7b", "--gpu", "H100", "--context", "9999999"]);
    assert!(!output.status.success() && text(&output.stderr).contains("context"), "{}", text(&output.stderr));
}
