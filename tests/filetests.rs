//! Runs all files below `filetests/`, and checks that nothing is without one.
//!
//! `cargo test -p tritter-tests --test filetests -- run/softmax` runs those whose name has this in it; `TRITTER_BLESS=1` writes down what comes out.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use compiler::Target;
use ir::Op;
use ir::graph::Def;
use libtest_mimic::{Arguments, Failed, Trial};
use tritter_tests::filetest::Case;
use tritter_tests::{files_below, kinds, session};

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::from_args();
    let bless = std::env::var_os("TRITTER_BLESS").is_some_and(|value| value == "1");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests");
    let mut trials = Vec::new();
    let mut cases = Vec::new();
    for path in files_below(&root, "tri")? {
        match Case::read(&root, &path) {
            Ok(case) => {
                let case = Arc::new(case);
                cases.push(case.clone());
                trials.push(Trial::test(case.name.clone(), move || case.run(bless).map_err(failed)));
            }
            Err(error) => {
                let name = path.display().to_string();
                trials.push(Trial::test(name, move || Err(failed(error))));
            }
        }
    }
    for target in missing_targets()? {
        let name = format!("compiled on {target}: this CPU does not have it");
        let asked_for = || Err(Failed::from("this CPU does not have the target"));
        trials.push(Trial::test(name, asked_for).with_ignored_flag(true));
    }
    let cases = Arc::new(cases);
    for (name, check) in COVERAGE {
        let cases = cases.clone();
        trials.push(Trial::test(*name, move || check(&cases)));
    }
    libtest_mimic::run(&arguments, trials).exit()
}

/// The targets that tests of the kind `compiled` skip here: they are listed as ignored, so that nobody takes them for tested.
fn missing_targets() -> anyhow::Result<Vec<Target>> {
    let names = ["x86_64:avx2", "x86_64:avx512vnni", "aarch64:neon"];
    let targets = names.iter().map(|name| Ok(name.parse::<Target>()?)).collect::<anyhow::Result<Vec<_>>>()?;
    let available = session::targets();
    Ok(targets.into_iter().filter(|target| !available.contains(target)).collect())
}

fn failed(error: anyhow::Error) -> Failed {
    Failed::from(format!("{error:#}"))
}

type Coverage = fn(&[Arc<Case>]) -> Result<(), Failed>;

const COVERAGE: &[(&str, Coverage)] = &[
    ("coverage/every_op_has_a_run_test_of_its_name", every_op_has_a_run_test),
    ("coverage/every_cause_has_a_verify_test", every_cause_has_a_verify_test),
    ("coverage/every_kind_has_a_folder_and_is_used_there", every_kind_is_used),
];

/// Each op of the list has a file `run/<family>/<op>.tri` that evaluates it.
fn every_op_has_a_run_test(cases: &[Arc<Case>]) -> Result<(), Failed> {
    let mut missing: BTreeSet<&str> = Op::NAMES.iter().copied().collect();
    for case in cases.iter().filter(|case| case.has_kind("run")) {
        let Some(name) = case.name.strip_prefix("run/").and_then(|name| name.rsplit('/').next()) else { continue };
        let Ok(program) = ir::text::parse(&case.text) else { continue };
        let mut values = program.graphs.iter().flat_map(|graph| graph.values.values());
        if values.any(|value| matches!(&value.def, Def::Op { op, .. } if op.name() == name)) {
            missing.remove(name);
        }
    }
    none_missing("ops without a file in `filetests/run`", missing)
}

fn every_cause_has_a_verify_test(cases: &[Arc<Case>]) -> Result<(), Failed> {
    let mut missing: BTreeSet<&str> = kinds::verify::CAUSES.iter().copied().collect();
    for case in cases.iter().filter(|case| case.has_kind("verify")) {
        for cause in kinds::verify::causes(case) {
            missing.remove(cause);
        }
    }
    for cause in kinds::verify::NOT_IN_TEXT {
        missing.remove(cause);
    }
    none_missing("causes without a file in `filetests/verify`", missing)
}

/// A folder holds the tests of its kind; a test may be of other kinds too.
fn every_kind_is_used(cases: &[Arc<Case>]) -> Result<(), Failed> {
    let mut missing: BTreeSet<&str> = kinds::KINDS.iter().map(|kind| kind.name()).collect();
    for case in cases {
        let folder = case.name.split('/').next().unwrap_or_default();
        if !case.has_kind(folder) {
            return Err(format!("{} is not of the kind that its folder is called by", case.name).into());
        }
        missing.remove(folder);
    }
    none_missing("kinds without a folder in `filetests`", missing)
}

fn none_missing(what: &str, missing: BTreeSet<&str>) -> Result<(), Failed> {
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!("{what}: {}", missing.into_iter().collect::<Vec<_>>().join(", ")).into())
}
