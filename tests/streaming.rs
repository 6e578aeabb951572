//! Weights that are copied while calls run: the same bits as with all of them in memory, an end with a reason when they cannot be read, and plans
//! whose copies and uses do not fit together refused.

use compiler::schedule::{Residency, Tier};
use ir::entity::Id;
use ir::plan::placement::PlacementError;
use ir::plan::{Arg, Budget, Certificate, Home, Plan, PlanError, Role, Slot, Step, check, manifest};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, RngSeed, TestRunner};
use runtime::{RuntimeError, Session};
use tritter_tests::fixture::{self, random_ids};
use tritter_tests::session::{self, Build, Model, targets};

fn residency(streamed: u32, split: u32, slots: u32, source: Tier) -> Residency {
    Residency { streamed, split, slots, source, ..Residency::default() }
}

fn build(residency: Residency) -> Build {
    Build { chunk: 24, residency, ..Build::new(40) }
}

/// Logits of a sequence in calls of several phases, one after the other.
fn mixed_logits(session: &mut Session, ids: &[u32]) -> Vec<f32> {
    [1, 5, 24].into_iter().flat_map(|chunk| session::logits(session, 0, ids, chunk).unwrap()).collect()
}

#[test]
fn streamed_weights_give_the_same_bits() {
    let models = [Model::shipped("tiny").unwrap(), Model::checkpoint(&fixture::checkpoint("bitnet-packed")).unwrap()];
    for model in models {
        for target in targets() {
            let resident = build(Residency::default()).on(&target);
            let mut session = model.session(&resident, 2).unwrap();
            let ids = random_ids(session.vocab() as u64, 40, 7);
            let expected = mixed_logits(&mut session, &ids);
            let layers = model.spec.layers;
            let variants = [
                residency(1, 1, 2, Tier::Host),
                residency(layers, 2, 2, Tier::Disk),
                residency(layers, 3, 3, Tier::Host),
                residency(layers, 3, 5, Tier::Disk),
                Residency { host_embedding: true, ..residency(layers - 1, 4, 3, Tier::Disk) },
            ];
            // What a GPU copies from its host may travel packed.
            let packed = [(1, 1, 2), (layers, 3, 3), (layers, 4, 5)].map(|(streamed, split, slots)| Residency {
                packs_copies: true,
                ..residency(streamed, split, slots, Tier::Host)
            });
            let packed = packed.into_iter().filter(|_| target.isa().is_none());
            for residency in variants.into_iter().chain(packed) {
                for threads in [1, 3] {
                    let mut session = model.session(&Build { residency, ..resident.clone() }, threads).unwrap();
                    let found = mixed_logits(&mut session, &ids);
                    assert_eq!(expected.len(), found.len());
                    let is_same = expected.iter().zip(&found).all(|(left, right)| left.to_bits() == right.to_bits());
                    assert!(is_same, "{target}, {residency:?}, {threads} threads");
                }
            }
        }
    }
}

#[test]
fn a_file_that_loses_its_end_stops_the_model_and_says_so() {
    let model = Model::shipped("tiny").unwrap();
    let layers = model.spec.layers;
    let build = build(residency(layers, 3, 3, Tier::Disk));
    let directory = model.artifact(&build).unwrap();
    let mut session = session::session(directory.path(), 2).unwrap();
    let ids = random_ids(session.vocab() as u64, 8, 7);
    let expected = session::logits(&mut session, 0, &ids, 1).unwrap();
    let path = directory.path().join(manifest::WEIGHTS);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(std::fs::metadata(&path).unwrap().len() / 2).unwrap();
    // What was read ahead may still be used; the first piece that is cut off ends it.
    let mut answers = (0..4).map(|_| session::logits(&mut session, 0, &ids, 1));
    let error = answers.find_map(|answer| match answer {
        Ok(logits) => {
            assert_eq!(logits, expected, "an answer is right or there is none");
            None
        }
        Err(error) => Some(error.downcast::<RuntimeError>().unwrap()),
    });
    let Some(RuntimeError::Stream { path: found, source, .. }) = error else { panic!("{error:?}") };
    let kinds = [std::io::ErrorKind::UnexpectedEof, std::io::ErrorKind::InvalidData];
    assert!(found == path && kinds.contains(&source.kind()), "{source}");
    let after = session::logits(&mut session, 0, &ids, 1).unwrap_err().downcast::<RuntimeError>().unwrap();
    assert!(matches!(after, RuntimeError::StreamEnded), "{after}");
}

#[test]
fn a_file_that_is_overwritten_stops_the_model_and_one_that_is_replaced_does_not() {
    let model = Model::shipped("tiny").unwrap();
    let build = build(residency(model.spec.layers, 3, 3, Tier::Disk));
    let directory = model.artifact(&build).unwrap();
    let path = directory.path().join(manifest::WEIGHTS);
    let ids = random_ids(267, 8, 7);
    let mut session = session::session(directory.path(), 2).unwrap();
    let expected = session::logits(&mut session, 0, &ids, 1).unwrap();
    // Another file of the same name: the model goes on with the one that it checked.
    let other = directory.path().join("other");
    std::fs::write(&other, vec![0; std::fs::metadata(&path).unwrap().len() as usize]).unwrap();
    let kept = directory.path().join("kept");
    std::fs::rename(&path, &kept).unwrap();
    std::fs::rename(&other, &path).unwrap();
    assert_eq!(session::logits(&mut session, 0, &ids, 1).unwrap(), expected);
    // The same file with other bytes in it: whatever was read before may still be used.
    let bytes = vec![0x55; std::fs::metadata(&kept).unwrap().len() as usize];
    std::fs::write(&kept, bytes).unwrap();
    let error = (0..4).find_map(|_| match session::logits(&mut session, 0, &ids, 1) {
        Ok(logits) => {
            assert_eq!(logits, expected, "an answer is right or there is none");
            None
        }
        Err(error) => Some(error.downcast::<RuntimeError>().unwrap()),
    });
    assert!(matches!(error, Some(RuntimeError::Stream { .. })), "{error:?}");
}

#[test]
fn hostile_plans_are_refused_at_once() {
    let sound = streaming_plan();
    let refused = |change: &dyn Fn(&mut Plan)| {
        let mut plan = sound.clone();
        change(&mut plan);
        check(&plan).expect_err("it breaks a rule").0
    };
    let is_rounds = |errors: Vec<PlanError>| errors.iter().any(|error| matches!(error, PlanError::Rounds { .. }));
    assert!(is_rounds(refused(&|plan| {
        let repeat = plan.phases[0].steps.iter_mut().find_map(|step| match step {
            Step::Repeat { count, .. } => Some(count),
            _ => None,
        });
        *repeat.unwrap() = 400_000_000;
    })));
    let weight = sound.buffers.iter().position(|buffer| buffer.role == Role::Weight && buffer.rounds != 1).unwrap();
    assert!(is_rounds(refused(&|plan| (plan.buffers[weight].rounds, plan.buffers[weight].stride) = (u32::MAX, 0))));
    let idle = refused(&|plan| {
        let all = plan.weights_bytes;
        plan.placement = ir::plan::Placement::resident(all);
    });
    assert!(matches!(idle[..], [PlanError::Placement(PlacementError::Idle)]), "{idle:?}");
}

#[test]
fn a_streaming_model_does_not_hold_its_weights() {
    let model = Model::shipped("tiny").unwrap();
    let layers = model.spec.layers;
    let plan_of = |residency| {
        let built = model.build(&build(residency)).unwrap();
        session::compile(built.program, &build(residency)).unwrap().plan
    };
    let all = plan_of(Residency::default());
    let streamed = plan_of(residency(layers, 1, 2, Tier::Disk));
    let bytes = |plan: &Plan| Certificate::of(plan).device_bytes();
    let per_layer = streamed.placement.streamed_bytes() / u64::from(layers);
    assert_eq!(bytes(&all) - bytes(&streamed), u64::from(layers) * per_layer - 2 * per_layer);
    assert_eq!(bytes(&all), all.weights_bytes + all.slab_bytes);
}

#[test]
fn a_budget_is_kept_or_refused() {
    let model = Model::shipped("tiny").unwrap();
    let built = model.build(&build(Residency::default())).unwrap();
    let mut plan = session::compile(built.program, &build(Residency::default())).unwrap().plan;
    let needed = Certificate::of(&plan).device_bytes();
    plan.budget = Budget { device_bytes: Some(needed), ..Budget::default() };
    assert_eq!(check(&plan), Ok(()));
    plan.budget = Budget { device_bytes: Some(needed), overhead_bytes: 1, ..Budget::default() };
    let errors = check(&plan).unwrap_err().0;
    let [PlanError::Budget(error)] = errors.as_slice() else { panic!("{errors:?}") };
    assert_eq!((error.needed, error.budget), (needed + 1, needed));
}

/// A plan whose layers are all streamed in three pieces, through two slots.
fn streaming_plan() -> Plan {
    let model = Model::shipped("tiny").unwrap();
    let build = build(residency(model.spec.layers, 3, 3, Tier::Disk));
    session::compile(model.build(&build).unwrap().program, &build).unwrap().plan
}

#[test]
fn every_rule_of_a_placement_is_checked() {
    let sound = streaming_plan();
    assert_eq!(check(&sound), Ok(()));
    let refused = |change: &dyn Fn(&mut Plan)| {
        let mut plan = sound.clone();
        change(&mut plan);
        let errors = check(&plan).expect_err("it breaks a rule").0;
        let PlanError::Placement(error) = errors.into_iter().next().unwrap() else { panic!("another error") };
        error
    };
    let first_piece =
        sound.placement.segments.iter().position(|segment| matches!(segment.home, Home::Slot(_))).unwrap();
    let set_home = |plan: &mut Plan, segment: usize, home: Home| plan.placement.segments[segment].home = home;
    assert!(matches!(refused(&|plan| plan.placement.segments.truncate(1)), PlacementError::Cover { .. }));
    assert!(matches!(
        refused(&|plan| plan.placement.segments[1].offset += 64),
        PlacementError::Cover { segment: 1, .. }
    ));
    assert!(matches!(refused(&|plan| set_home(plan, 0, Home::Device(32))), PlacementError::Alignment { segment: 0 }));
    assert!(matches!(refused(&|plan| plan.placement.resident_bytes = 0), PlacementError::Resident { .. }));
    assert!(matches!(refused(&|plan| plan.placement.slots[1].offset = 0), PlacementError::Slots { slot: 1 }));
    assert!(matches!(
        refused(&|plan| set_home(plan, first_piece, Home::Slot(9))),
        PlacementError::Slot { slot: 9, .. }
    ));
    assert!(matches!(refused(&|plan| plan.placement.slots[0].bytes = 64), PlacementError::Slot { slot: 0, .. }));
    // With one slot for all, and a tensor of the first piece read again at the end of the layer, the pieces between find no room.
    let swapped = refused(&|plan| {
        let widest = plan.placement.slots.iter().map(|slot| slot.bytes).max().unwrap();
        let all = plan.placement.slots.iter().map(|slot| slot.offset + slot.bytes).max().unwrap();
        assert!(widest < all);
        plan.placement.slots = vec![Slot { offset: 0, bytes: widest }];
        for segment in &mut plan.placement.segments {
            if let Home::Slot(slot) = &mut segment.home {
                *slot = 0;
            }
        }
        let first = plan.placement.pieces().next().unwrap().0.offset;
        let is_first = |arg: &&Arg| {
            let buffer = plan.buffers[arg.buffer.index()].clone();
            buffer.role == Role::Weight
                && buffer.rounds != 1
                && plan.placement.find(buffer.offset).unwrap().1.offset == first
        };
        let body = plan.phases[0].steps.iter().position(|step| matches!(step, Step::Repeat { .. })).unwrap();
        let Step::Repeat { steps, .. } = &plan.phases[0].steps[body] else { unreachable!() };
        let args = steps.iter().filter_map(|step| if let Step::Call(call) = step { Some(&call.args) } else { None });
        let again = args.flatten().find(is_first).unwrap().clone();
        let Step::Repeat { steps, .. } = &mut plan.phases[0].steps[body] else { unreachable!() };
        let last = steps.iter_mut().rev().find_map(|step| if let Step::Call(call) = step { Some(call) } else { None });
        last.unwrap().args.push(again);
    });
    assert!(matches!(swapped, PlacementError::NotThere { .. }), "{swapped}");
    let unused = refused(&|plan| plan.phases[0].steps.retain(|step| !matches!(step, Step::Repeat { .. })));
    assert!(matches!(unused, PlacementError::Unused { .. }), "{unused}");
    let cut = refused(&|plan| {
        let first = plan.placement.segments[0];
        plan.placement.segments[0].bytes = 64;
        let mut rest = first;
        rest.offset += 64;
        rest.bytes -= 64;
        rest.home = Home::Device(64);
        plan.placement.segments.insert(1, rest);
    });
    assert!(matches!(cut, PlacementError::Cut { .. }), "{cut}");
}

#[test]
fn any_residency_gives_a_plan_that_keeps_the_rules() {
    let model = Model::shipped("test").unwrap();
    let layers = model.spec.layers;
    let config = ProptestConfig {
        cases: 48,
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: RngSeed::Fixed(11),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let strategy = (0..=layers, 1..9_u32, 2..9_u32, any::<bool>(), any::<bool>());
    let built = model.build(&build(Residency::default())).unwrap();
    TestRunner::new(config)
        .run(&strategy, |(streamed, split, slots, host_embedding, is_disk)| {
            let slots = slots.max(Residency::least_slots(split));
            let source = if is_disk { Tier::Disk } else { Tier::Host };
            let residency = Residency { host_embedding, ..residency(streamed, split, slots, source) };
            // Compiling runs the check.
            let plan = session::compile(built.program.clone(), &build(residency)).unwrap().plan;
            let pieces = plan.placement.pieces().count();
            prop_assert!(pieces <= (streamed * split) as usize && (streamed == 0) == (pieces == 0));
            Ok(())
        })
        .unwrap();
}

/// Says to [`copies_that_fail_on_a_gpu_stop_the_model`] which artifact to run: it is then the process whose driver fails.
const FAULTY_RUN: &str = "TRITTER_FAULTY_RUN";

/// Copies to a GPU that fail, when they are queued or afterwards, at any time from the opening of the model on. A driver that fails on demand is built
/// from `tests/faults` and loaded by processes of their own; without a GPU there is nothing to copy to.
#[test]
fn copies_that_fail_on_a_gpu_stop_the_model() {
    if let Some(directory) = std::env::var_os(FAULTY_RUN) {
        return report_answers(directory.as_ref());
    }
    let Some(target) = session::cuda_target() else { return };
    let faults = tempfile::tempdir().unwrap();
    let path = build_driver(faults.path());
    let model = Model::shipped("tiny").unwrap();
    let layers = model.spec.layers;
    let packed = Residency { packs_copies: true, ..residency(layers, 3, 3, Tier::Host) };
    for residency in [residency(layers, 3, 3, Tier::Host), packed, residency(layers, 3, 3, Tier::Disk)] {
        let artifact = model.artifact(&build(residency).on(&target)).unwrap();
        let run = |copy: Option<u32>, fault: &str| {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["copies_that_fail_on_a_gpu_stop_the_model", "--exact", "--nocapture"]);
            command.env(FAULTY_RUN, artifact.path()).env("LD_LIBRARY_PATH", &path).env("FAULT", fault);
            copy.map(|copy| command.env("FAULT_COPY", copy.to_string()));
            let output = command.output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
            let said = |start: &str| -> Vec<String> {
                text.lines().filter_map(|line| line.split_once(start)).map(|(_, rest)| rest.to_owned()).collect()
            };
            (said("answer: "), said("error: "))
        };
        let (right, errors) = run(None, "");
        assert!(right.len() == ANSWERS && errors.is_empty(), "the driver works until it is to fail: {errors:?}");
        for fault in ["call", "later"] {
            for copy in [1, 2, 4, 7, 12, 19, 24] {
                let (answers, errors) = run(Some(copy), fault);
                let told =
                    errors.first().unwrap_or_else(|| panic!("{fault} {copy}: no error in {} answers", answers.len()));
                assert!(
                    told.contains("cuMemcpyHtoDAsync") || fault == "later" && told.contains("Synchronize"),
                    "{told}"
                );
                assert!(
                    answers.len() < ANSWERS && right.starts_with(&answers),
                    "{residency:?} {fault} {copy}: other answers"
                );
                let is_ended = |error: &String| *error == RuntimeError::StreamEnded.to_string();
                assert!(errors[1..].iter().all(is_ended), "{fault} {copy}: {errors:?}");
            }
        }
    }
}

/// Calls that [`report_answers`] makes.
const ANSWERS: usize = 6;

/// Prints what a model answers, or why it does not, call by call.
fn report_answers(directory: &std::path::Path) {
    let print = |error: anyhow::Error| println!("\nerror: {}", error.to_string().lines().next().unwrap_or_default());
    let mut session = match session::session(directory, 1) {
        Ok(session) => session,
        Err(error) => return print(error),
    };
    let ids = random_ids(session.vocab() as u64, 8, 7);
    for _ in 0..ANSWERS {
        match session::logits(&mut session, 0, &ids, 4) {
            Ok(logits) => {
                let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
                println!("\nanswer: {}", blake3::hash(&bytes));
            }
            Err(error) => print(error),
        }
    }
}

/// The driver that fails, in a folder; the loader's path with that folder first.
fn build_driver(folder: &std::path::Path) -> std::ffi::OsString {
    let given = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut folders: Vec<std::path::PathBuf> = std::env::split_paths(&given).collect();
    let known = [
        "/usr/local/nvidia/lib64",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib/wsl/lib",
    ];
    folders.extend(known.map(std::path::PathBuf::from));
    let real = folders.iter().map(|folder| folder.join("libcuda.so.1")).find(|path| path.exists());
    let real = real.expect("libcuda.so.1 is on LD_LIBRARY_PATH or in a folder where drivers are");
    let mut command = std::process::Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(folder.join("libcuda.so"));
    command.arg(folder.join("libcuda.c")).args(["-Wl,--no-as-needed"]).arg(&real).arg("-ldl");
    std::fs::write(folder.join("libcuda.c"), include_str!("faults/libcuda.c")).unwrap();
    let output = command.output().expect("a C compiler is installed as cc");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folders.insert(0, folder.to_owned());
    std::env::join_paths(folders).unwrap()
}
