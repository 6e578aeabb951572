//! Checkpoints: exact, and refused when they are damaged or of something else.

use std::path::{Path, PathBuf};

use ir::DType;
use runtime::RuntimeError;
use runtime::training::checkpoint::{self, CheckpointProblem};
use runtime::training::run::Job;
use runtime::training::{Batch, StateInfo, Trainer, Update};
use tempfile::TempDir;

use crate::broken::Disk;
use crate::runs::{Setup, run, timeless};
use crate::toy::Toy;

/// A run of 6 steps, its checkpoint, and what had become of the trainer.
fn made() -> (Setup, PathBuf, Toy) {
    let setup = Setup::new(8);
    let mut toy = Toy::new();
    let ending = run(&Job { until: Some(6), ..setup.job() }, &mut toy, &mut Disk::new()).unwrap();
    (setup, ending.checkpoint, toy)
}

fn problem(result: Result<(), RuntimeError>) -> CheckpointProblem {
    match result {
        Err(RuntimeError::Checkpoint { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn states_are_in_a_file_that_others_can_read() {
    let (_setup, checkpoint, mut toy) = made();
    let bytes = std::fs::read(checkpoint.join("states.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (index, StateInfo { key, shape, .. }) in toy.states().iter().enumerate() {
        let tensor = tensors.tensor(key).unwrap();
        assert_eq!(tensor.data(), toy.bytes()[index]);
        assert_eq!(tensor.shape(), shape.iter().map(|&dim| dim as usize).collect::<Vec<_>>());
    }
    assert_eq!(tensors.len(), 4);
    let progress = checkpoint::read(&checkpoint).unwrap();
    assert_eq!((progress.step, progress.tokens, progress.artifact.as_str()), (6, 6 * 24, "the artifact"));
}

#[test]
fn every_damaged_byte_and_every_cut_is_found() {
    let (_setup, checkpoint, _) = made();
    for (file, stride) in [("run.ron", 1), ("states.safetensors", 7)] {
        let path = checkpoint.join(file);
        let bytes = std::fs::read(&path).unwrap();
        let refused = |changed: &[u8]| {
            std::fs::write(&path, changed).unwrap();
            let mut toy = Toy::new();
            let found = problem(checkpoint::restore(&checkpoint, &mut toy));
            assert!(matches!(&found, CheckpointProblem::Hash { file: named } if *named == file), "{found}");
            assert_eq!(toy, Toy::new());
        };
        for at in (0..bytes.len()).step_by(stride) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            refused(&damaged);
            refused(&bytes[..at]);
        }
        std::fs::write(&path, &bytes).unwrap();
        checkpoint::restore(&checkpoint, &mut Toy::new()).unwrap();
        std::fs::rename(&path, checkpoint.join("away")).unwrap();
        let error = checkpoint::restore(&checkpoint, &mut Toy::new()).unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains(file), "{error}");
        std::fs::rename(checkpoint.join("away"), &path).unwrap();
    }
}

#[test]
fn a_damaged_checkpoint_ends_a_run_before_it_begins() {
    let (setup, checkpoint, _) = made();
    let path = checkpoint.join("states.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = run(&setup.resumed(), &mut Toy::new(), &mut Disk::new()).unwrap_err().to_string();
    assert!(error.contains("step-00000006") && error.contains("states.safetensors is damaged"), "{error}");
    // Without it the run goes on from the one before.
    std::fs::remove_dir_all(checkpoint).unwrap();
    assert!(run(&setup.resumed(), &mut Toy::new(), &mut Disk::new()).unwrap().is_done);
}

#[test]
fn another_version_is_told() {
    let (_setup, checkpoint, _) = made();
    let path = checkpoint.join("run.ron");
    let text = std::fs::read_to_string(&path).unwrap();
    let (body, _) = text.rsplit_once("// BLAKE3").unwrap();
    let body = body.replacen("version: 1", "version: 2", 1).replacen("step: 6", "stride: 6", 1);
    let sealed = format!("{body}// BLAKE3 of all above: {}\n", blake3::hash(body.as_bytes()).to_hex());
    std::fs::write(&path, sealed).unwrap();
    let error = checkpoint::read(&checkpoint).unwrap_err().to_string();
    assert!(error.contains("version 2, this program reads version 1"), "{error}");
}

/// A trainer that has states and nothing else.
struct Other(Vec<(StateInfo, Vec<u8>)>);

impl Other {
    fn of(states: &[(&str, DType, &[u64])]) -> Self {
        let state = |(key, dtype, shape): &(&str, DType, &[u64])| {
            let elements: u64 = shape.iter().product();
            let info = StateInfo { key: (*key).to_owned(), dtype: *dtype, shape: shape.to_vec() };
            (info, vec![1; (elements * dtype.bytes().unwrap_or(1)) as usize])
        };
        Self(states.iter().map(state).collect())
    }
}

impl Trainer for Other {
    fn tokens(&self) -> usize {
        1
    }

    fn accumulate(&mut self, _: &Batch) -> Result<f32, RuntimeError> {
        Ok(0.0)
    }

    fn update(&mut self, _: &Update) -> Result<f32, RuntimeError> {
        Ok(0.0)
    }

    fn states(&self) -> Vec<StateInfo> {
        self.0.iter().map(|(info, _)| info.clone()).collect()
    }

    fn read_state(&mut self, state: usize, into: &mut Vec<u8>) -> Result<(), RuntimeError> {
        into.extend(&self.0[state].1);
        Ok(())
    }

    fn write_state(&mut self, state: usize, bytes: &[u8]) -> Result<(), RuntimeError> {
        self.0[state].1 = bytes.to_vec();
        Ok(())
    }
}

fn save(dir: &Path, trainer: &mut dyn Trainer) -> Result<PathBuf, RuntimeError> {
    let (_setup, made, _) = made();
    let progress = timeless(&checkpoint::read(&made).unwrap());
    checkpoint::save(dir, &progress, trainer, &mut Disk::new())
}

#[test]
fn states_of_another_model_are_refused() {
    let dir = TempDir::new().unwrap();
    let states: [(&str, DType, &[u64]); 2] = [("a", DType::F32, &[2, 3]), ("b", DType::BF16, &[4])];
    let saved = save(dir.path(), &mut Other::of(&states)).unwrap();
    let restore = |states: &[(&str, DType, &[u64])]| checkpoint::restore(&saved, &mut Other::of(states));
    restore(&states).unwrap();
    restore(&[states[1], states[0]]).unwrap();
    let shape = problem(restore(&[("a", DType::F32, &[3, 2]), states[1]]));
    assert_eq!(shape.to_string(), "state `a` is f32 [2, 3] in the checkpoint, f32 [3, 2] in the artifact");
    let dtype = problem(restore(&[states[0], ("b", DType::F16, &[4])]));
    assert_eq!(dtype.to_string(), "state `b` is bf16 [4] in the checkpoint, f16 [4] in the artifact");
    let more = problem(restore(&[states[0], states[1], ("c", DType::I8, &[1])]));
    assert_eq!(more.to_string(), "the artifact has state `c`, the checkpoint has not");
    let fewer = problem(restore(&states[..1]));
    assert_eq!(fewer.to_string(), "the checkpoint has state `b`, the artifact has not");
}

#[test]
fn states_that_cannot_be_kept_leave_nothing_behind() {
    let dir = TempDir::new().unwrap();
    let packed = save(dir.path(), &mut Other::of(&[("w", DType::T2, &[4])]));
    assert_eq!(problem(packed.map(|_| ())).to_string(), "state `w` is t2, which cannot be kept");
    let mut wrong = Other::of(&[("w", DType::F32, &[4])]);
    wrong.0[0].1.pop();
    let wrong = problem(save(dir.path(), &mut wrong).map(|_| ()));
    assert!(matches!(wrong, CheckpointProblem::Bytes { expected: 16, found: 15, .. }), "{wrong}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_newest_ones_are_kept() {
    let dir = TempDir::new().unwrap();
    for name in ["step-00000002", "step-00000010", "step-00000009", ".step-00000011.partial", "step-x", "notes"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    let steps = || checkpoint::list(dir.path()).unwrap().into_iter().map(|(step, _)| step).collect::<Vec<_>>();
    assert_eq!(steps(), [2, 9, 10]);
    checkpoint::prune(dir.path(), 5, &mut Disk::new()).unwrap();
    assert_eq!(steps(), [2, 9, 10]);
    checkpoint::prune(dir.path(), 2, &mut Disk::new()).unwrap();
    assert_eq!(steps(), [9, 10]);
    checkpoint::clean(dir.path(), &mut Disk::new()).unwrap();
    assert_eq!(crate::runs::names(dir.path()), ["notes", "step-00000009", "step-00000010", "step-x"]);
    assert!(checkpoint::list(&dir.path().join("none")).unwrap().is_empty());
}
