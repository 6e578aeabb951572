//! Checkpoints: all that a run needs to go on as if it had never stopped.
//!
//! A checkpoint is a directory `step-NNNNNNNN`. In `states.safetensors` are the trainer's states, their bytes as they are; in `run.ron` is what the
//! run itself knows ([`Progress`]). It is written beside its place and moved there when it is whole, and one that is to go is moved away before
//! it is removed: whatever has the name of a checkpoint is one.
//!
//! Only states that are numbers throughout are kept, so any checkpoint is a good one.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use ir::DType;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::artifact::map;
use crate::error::RuntimeError;
use crate::training::batches::Position;
use crate::training::config::Recipe;
use crate::training::storage::{Sink, Storage, partial};
use crate::training::{StateInfo, Trainer};

/// The file of the states.
pub const STATES: &str = "states.safetensors";
/// The file of the rest.
pub const RUN: &str = "run.ron";
const VERSION: u32 = 1;
/// What stands before the hash at the end of [`RUN`].
const SEAL: &str = "// BLAKE3 of all above: ";

/// What a run knows of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Steps that are done.
    pub step: u64,
    /// Where the next batch begins.
    pub position: Position,
    /// What decides the numbers; it has the seed.
    pub recipe: Recipe,
    /// The BLAKE3 hash of the artifact's manifest, in hexadecimal.
    pub artifact: String,
    /// [`crate::training::corpus::Corpus::hash`] of what is trained on.
    pub documents: String,
    /// Tokens that were trained on.
    pub tokens: u64,
    /// How long that took, all in all.
    pub seconds: f64,
    /// The loss of the last step.
    pub loss: f64,
    /// The last validation loss, if there was one.
    pub validation_loss: Option<f64>,
}

/// The text of [`RUN`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    progress: Progress,
    /// The BLAKE3 hash of [`STATES`], in hexadecimal.
    states: String,
}

/// What is wrong with a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointProblem {
    /// A file is not what was written.
    #[error("{file} is damaged: its BLAKE3 hash is not the one that was written with it")]
    Hash {
        /// The file.
        file: &'static str,
    },
    /// Written by another version, or not what it should be.
    #[error("{file} cannot be read: {message}")]
    Unreadable {
        /// The file.
        file: &'static str,
        /// What the reader said.
        message: String,
    },
    /// The trainer has a state that the checkpoint lacks, or the other way round.
    #[error("{} has state `{key}`, {} has not", if *in_trainer { "the artifact" } else { "the checkpoint" }, if *in_trainer { "the checkpoint" } else { "the artifact" })]
    Alone {
        /// The state.
        key: String,
        /// Whether it is the trainer that has it.
        in_trainer: bool,
    },
    /// A state has another type or shape.
    #[error("state `{key}` is {found} in the checkpoint, {expected} in the artifact")]
    State {
        /// The state.
        key: String,
        /// Type and shape of the trainer's.
        expected: String,
        /// Those of the checkpoint.
        found: String,
    },
    /// A state whose elements do not have whole bytes each: none that a step leaves.
    #[error("state `{key}` is {dtype}, which cannot be kept")]
    Packed {
        /// The state.
        key: String,
        /// Its type.
        dtype: DType,
    },
    /// A state had more or fewer bytes than its type says. Always a bug in tritter.
    #[error("internal error: state `{key}` has {found} bytes, its type says {expected}")]
    Bytes {
        /// The state.
        key: String,
        /// Bytes of its type.
        expected: u64,
        /// Bytes that were read.
        found: u64,
    },
}

/// The checkpoints in a directory, the oldest first; none if there is no directory.
///
/// # Errors
///
/// If the directory cannot be read.
pub fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>, RuntimeError> {
    let mut found = Vec::new();
    for (name, path) in names(dir)? {
        if let Some(step) = name.strip_prefix("step-").and_then(|digits| digits.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Removes what was being written or removed when a run ended.
///
/// # Errors
///
/// If it cannot be removed.
pub fn clean(dir: &Path, storage: &mut dyn Storage) -> Result<(), RuntimeError> {
    for (name, path) in names(dir)? {
        if name.starts_with(".step-") && name.ends_with(".partial") {
            storage.remove_dir(&path).map_err(RuntimeError::io("remove", &path))?;
        }
    }
    Ok(())
}

fn names(dir: &Path) -> Result<Vec<(String, PathBuf)>, RuntimeError> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(RuntimeError::io("list", dir))?,
    };
    let name = |entry: std::fs::DirEntry| (entry.file_name().to_string_lossy().into_owned(), entry.path());
    Ok(entries.into_iter().map(name).collect())
}

/// The directory of the checkpoint of a step.
pub fn path(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("step-{step:08}"))
}

/// Writes a checkpoint into `dir`; it is there when it is whole.
///
/// # Errors
///
/// If it cannot be written: then there is none. [`RuntimeError::Diverged`] if a state has something that is no number.
pub fn save(
    dir: &Path,
    progress: &Progress,
    trainer: &mut dyn Trainer,
    storage: &mut dyn Storage,
) -> Result<PathBuf, RuntimeError> {
    let path = path(dir, progress.step);
    let beside = partial(&path);
    let result = write(&beside, progress, trainer, storage)
        .and_then(|()| storage.rename(&beside, &path).map_err(RuntimeError::io("write", &path)));
    if result.is_err() {
        // What is half written is of no use, and the disk may be full. If this fails, too, the first error says more.
        let _ = storage.remove_dir(&beside);
    }
    result.map(|()| path)
}

/// Removes all but the newest checkpoints.
///
/// # Errors
///
/// If one cannot be removed.
pub fn prune(dir: &Path, keep: u64, storage: &mut dyn Storage) -> Result<(), RuntimeError> {
    let mut found = list(dir)?;
    let keep = usize::try_from(keep).unwrap_or(usize::MAX).min(found.len());
    found.truncate(found.len() - keep);
    for (_, path) in found {
        let away = partial(&path);
        let moved = storage.rename(&path, &away).and_then(|()| storage.remove_dir(&away));
        moved.map_err(RuntimeError::io("remove", &path))?;
    }
    Ok(())
}

fn write(
    dir: &Path,
    progress: &Progress,
    trainer: &mut dyn Trainer,
    storage: &mut dyn Storage,
) -> Result<(), RuntimeError> {
    storage.remove_dir(dir).map_err(RuntimeError::io("remove", dir))?;
    storage.create_dir(dir).map_err(RuntimeError::io("make", dir))?;
    let states = write_states(&dir.join(STATES), progress.step, trainer, storage)?;
    let record = Record { version: VERSION, progress: progress.clone(), states };
    let config = ron::ser::PrettyConfig::new().depth_limit(3).indentor("  ");
    let text = ron::ser::to_string_pretty(&record, config).expect("progress is plain data, which always serialises");
    let text = format!("{text}\n");
    let sealed = format!("{text}{SEAL}{}\n", blake3::hash(text.as_bytes()).to_hex());
    let path = dir.join(RUN);
    let mut write = || {
        let mut file = storage.create(&path)?;
        file.write_all(sealed.as_bytes())?;
        file.sync()
    };
    write().map_err(RuntimeError::io("write", &path))
}

/// Writes the states one after the other, and gives the hash of the file.
fn write_states(
    path: &Path,
    step: u64,
    trainer: &mut dyn Trainer,
    storage: &mut dyn Storage,
) -> Result<String, RuntimeError> {
    let dir = || path.parent().unwrap_or(path).to_owned();
    let refuse = |problem| RuntimeError::Checkpoint { dir: dir(), problem };
    let states = trainer.states();
    // As the format's own library has it: the widest elements first, so that all are aligned.
    let mut order: Vec<usize> = (0..states.len()).collect();
    order.sort_by_key(|&state| (std::cmp::Reverse(states[state].dtype.bytes()), &states[state].key));
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut sizes = Vec::with_capacity(states.len());
    let mut end = 0_u64;
    for &state in &order {
        let StateInfo { key, dtype, shape } = &states[state];
        let packed = || refuse(CheckpointProblem::Packed { key: key.clone(), dtype: *dtype });
        let (name, bytes) = stored(*dtype).zip(bytes(&states[state])).ok_or_else(packed)?;
        let start = end;
        end += bytes;
        header.insert(key.clone(), json!({ "dtype": name, "shape": shape, "data_offsets": [start, end] }));
        sizes.push(bytes);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let error = || RuntimeError::io("write", path);
    let mut hasher = blake3::Hasher::new();
    let mut file = storage.create(path).map_err(error())?;
    let mut put = |file: &mut Box<dyn Sink>, bytes: &[u8]| {
        hasher.update(bytes);
        file.write_all(bytes).map_err(error())
    };
    put(&mut file, &(header.len() as u64).to_le_bytes())?;
    put(&mut file, &header)?;
    let mut values = Vec::new();
    for (&state, &expected) in order.iter().zip(&sizes) {
        values.clear();
        trainer.read_state(state, &mut values)?;
        let StateInfo { key, dtype, .. } = &states[state];
        let found = values.len() as u64;
        if found != expected {
            return Err(refuse(CheckpointProblem::Bytes { key: key.clone(), expected, found }));
        }
        if !is_finite(*dtype, &values) {
            return Err(RuntimeError::Diverged { step, what: format!("state `{key}`"), checkpoint: None });
        }
        put(&mut file, &values)?;
    }
    file.sync().map_err(error())?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Reads what a run knew of itself.
///
/// # Errors
///
/// [`RuntimeError::Checkpoint`] if it is damaged or of another version.
pub fn read(dir: &Path) -> Result<Progress, RuntimeError> {
    record(dir).map(|record| record.progress)
}

fn record(dir: &Path) -> Result<Record, RuntimeError> {
    #[derive(Deserialize)]
    struct VersionOnly {
        version: u32,
    }
    let refuse = |problem| RuntimeError::Checkpoint { dir: dir.to_owned(), problem };
    let path = dir.join(RUN);
    let bytes = std::fs::read(&path).map_err(RuntimeError::io("read", &path))?;
    let sealed = String::from_utf8(bytes).ok();
    let parts = sealed.as_deref().and_then(|text| text.rsplit_once(SEAL));
    let is_whole = |(text, hash): &(&str, &str)| *hash == format!("{}\n", blake3::hash(text.as_bytes()).to_hex());
    let Some((text, _)) = parts.filter(is_whole) else {
        return Err(refuse(CheckpointProblem::Hash { file: RUN }));
    };
    let unreadable = |message| refuse(CheckpointProblem::Unreadable { file: RUN, message });
    // Of another version only the version can be understood.
    let VersionOnly { version } = ron::from_str(text).map_err(|error| unreadable(error.to_string()))?;
    if version != VERSION {
        return Err(unreadable(format!("it is of version {version}, this program reads version {VERSION}")));
    }
    ron::from_str(text).map_err(|error| unreadable(error.to_string()))
}

/// Gives a trainer the states of a checkpoint.
///
/// # Errors
///
/// [`RuntimeError::Checkpoint`] if they are damaged or those of another model: nothing has changed then.
pub fn restore(dir: &Path, trainer: &mut dyn Trainer) -> Result<(), RuntimeError> {
    let refuse = |problem| RuntimeError::Checkpoint { dir: dir.to_owned(), problem };
    let expected = record(dir)?.states;
    let path = dir.join(STATES);
    let file = File::open(&path).map_err(RuntimeError::io("read", &path))?;
    if file.metadata().map_err(RuntimeError::io("read", &path))?.len() == 0 {
        return Err(refuse(CheckpointProblem::Hash { file: STATES }));
    }
    let map = map(&file).map_err(RuntimeError::io("read", &path))?;
    if blake3::hash(&map).to_hex().as_str() != expected {
        return Err(refuse(CheckpointProblem::Hash { file: STATES }));
    }
    let unreadable = |error: safetensors::SafeTensorError| {
        refuse(CheckpointProblem::Unreadable { file: STATES, message: error.to_string() })
    };
    let tensors = SafeTensors::deserialize(&map).map_err(unreadable)?;
    let states = trainer.states();
    for state in &states {
        let StateInfo { key, dtype, shape } = state;
        let Ok(tensor) = tensors.tensor(key) else {
            return Err(refuse(CheckpointProblem::Alone { key: key.clone(), in_trainer: true }));
        };
        let found_shape: Vec<u64> = tensor.shape().iter().map(|&dim| dim as u64).collect();
        let found_dtype = format!("{:?}", tensor.dtype());
        if Some(found_dtype.as_str()) != stored(*dtype) || found_shape != *shape {
            let found = format!("{} {found_shape:?}", found_dtype.to_lowercase());
            let expected = format!("{dtype} {shape:?}");
            return Err(refuse(CheckpointProblem::State { key: key.clone(), expected, found }));
        }
    }
    let mut names = tensors.names();
    names.sort_unstable();
    if let Some(key) = names.into_iter().find(|name| !states.iter().any(|state| state.key == **name)) {
        return Err(refuse(CheckpointProblem::Alone { key: key.to_owned(), in_trainer: false }));
    }
    for (index, state) in states.iter().enumerate() {
        let tensor = tensors.tensor(&state.key).map_err(unreadable)?;
        trainer.write_state(index, tensor.data())?;
    }
    Ok(())
}

/// The name that the format has for a type.
fn stored(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::I8 => "I8",
        DType::I32 => "I32",
        DType::T2 | DType::Q8 | DType::Q4 => return None,
    })
}

fn bytes(state: &StateInfo) -> Option<u64> {
    state.shape.iter().try_fold(state.dtype.bytes()?, |bytes, &dim| bytes.checked_mul(dim))
}

/// Whether no value is infinite or none: the bits of the exponent are not all set.
fn is_finite(dtype: DType, bytes: &[u8]) -> bool {
    let halves =
        |exponent: u16| bytes.as_chunks().0.iter().all(|&value| u16::from_le_bytes(value) & exponent != exponent);
    match dtype {
        DType::F32 => bytes.as_chunks().0.iter().all(|&value| f32::from_le_bytes(value).is_finite()),
        DType::F16 => halves(0x7c00),
        DType::BF16 => halves(0x7f80),
        DType::I8 | DType::I32 | DType::T2 | DType::Q8 | DType::Q4 => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_found_in_every_format() {
        let cases: [(DType, &[u16], bool); 6] = [
            (DType::F16, &[0x7bff, 0xfbff, 0], true),
            (DType::F16, &[0, 0x7c00], false),
            (DType::BF16, &[0x7f7f, 0x8000], true),
            (DType::BF16, &[0xff81], false),
            (DType::F32, &[0, 0x7f7f], true),
            (DType::F32, &[0, 0, 1, 0x7f80], false),
        ];
        for (dtype, halves, expected) in cases {
            let bytes: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
            assert_eq!(is_finite(dtype, &bytes), expected, "{dtype} {halves:?}");
        }
    }
}
