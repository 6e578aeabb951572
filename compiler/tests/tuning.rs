//! `tritterc --tuning`: measured rates in, the same bytes out for the same file, and clear words for a file that does not fit.

use std::path::Path;
use std::process::{Command, Output};

use ir::plan::tuning::TUNING_VERSION;
use ir::plan::{KernelRate, Plan, Step, Tuning};

fn tuning() -> Tuning {
    let kernel = |kernel: &str, one_macs_per_us, many_macs_per_us| KernelRate {
        kernel: kernel.to_owned(),
        one_macs_per_us,
        many_macs_per_us,
    };
    Tuning {
        version: TUNING_VERSION,
        target: "x86_64:avx2".to_owned(),
        threads: 2,
        read_bytes_per_us: 23_456,
        step_ns: 789,
        elementwise_per_us: 4_321,
        kernels: vec![
            kernel("ternary_gemv_q8xt2_f32__avx2__r16", 61_000, None),
            kernel("ternary_gemm_q8xt2_f32__avx2__r16", 59_000, Some(163_000)),
        ],
    }
}

fn tritterc(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tritterc")).args(args).output().expect("the program starts")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

#[test]
fn a_tuning_file_is_in_the_plan_and_gives_the_same_bytes_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tuning.ron");
    std::fs::write(&file, tuning().to_ron()).unwrap();
    let compile = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let base = ["compile", "tiny", "--target", "x86_64:avx2", "-o", path(&out)];
        let output = tritterc(&[&base[..], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let read = |file: &str| std::fs::read_to_string(out.join(file)).unwrap();
        (read("plan.ron"), read("report.txt"), read("manifest.ron"))
    };
    let tuned = compile("a", &["--tuning", path(&file)]);
    assert_eq!(tuned, compile("b", &["--tuning", path(&file)]));
    assert!(
        tuned.1.contains("machine  tuning ") && tuned.1.contains("2 threads, 23.5 GB/s, 0.79 us a step"),
        "{}",
        tuned.1
    );
    assert!(compile("c", &[]).1.contains("machine  guessed: "));

    let plan = Plan::from_ron(&tuned.0).unwrap();
    assert_eq!((plan.machine.threads, plan.machine.read_bytes_per_us, plan.machine.step_ns), (2, 23_456, 789));
    let decode = plan.phase_of(1).unwrap();
    let rates = decode.steps.iter().flat_map(|step| match step {
        Step::Repeat { steps, .. } => steps.as_slice(),
        step => std::slice::from_ref(step),
    });
    let ternary = rates.filter_map(|step| match step {
        Step::Call(call) if plan.kernel(call.kernel).name.starts_with("ternary_gem") => Some(call.rate.to_string()),
        _ => None,
    });
    let ternary: Vec<String> = ternary.collect();
    assert!(!ternary.is_empty() && ternary.iter().all(|rate| rate == "122000/326000"), "{ternary:?}");
}

#[test]
fn a_file_that_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tuning.ron");
    let refused = |text: String, target: &str, expected: &[&str]| {
        std::fs::write(&file, text).unwrap();
        for command in ["explain", "opt"] {
            let output = tritterc(&[command, "tiny", "--target", target, "--tuning", path(&file)]);
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{command}: {error}");
            assert!(expected.iter().all(|part| error.contains(part)), "{command}: {error}");
        }
    };
    refused(tuning().to_ron(), "x86_64", &["tuning.ron", "measured for x86_64:avx2, the target is x86_64"]);
    let nonsense = Tuning { threads: 0, read_bytes_per_us: 0, ..tuning() };
    refused(nonsense.to_ron(), "x86_64:avx2", &["`threads` is 0", "`read_bytes_per_us` is 0"]);
    refused("(version: 7)".to_owned(), "x86_64:avx2", &["version 7"]);
}
