//! Checkpoints in safetensors files, one or several, mapped into memory.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use ir::DType;
use ir::param::{ParamBinding, Stored, TensorInfo};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::{SourceTensor, WeightError, WeightSource};

/// Why a checkpoint could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file is not safetensors, or cut off.
    #[error("{path} is not a whole safetensors file: {message}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        message: String,
    },
    /// Neither a single file nor an index.
    #[error("{path} holds neither model.safetensors nor model.safetensors.index.json")]
    NoWeights {
        /// The directory.
        path: PathBuf,
    },
    /// The index is not what Hugging Face writes.
    #[error("{path} is not an index of shards: {message}")]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// The files of a checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<Mmap>,
    /// File, element type, shape, and range of bytes of each tensor.
    tensors: HashMap<String, (usize, Dtype, Vec<usize>, std::ops::Range<usize>)>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    ///
    /// Every file that is missing or damaged.
    pub fn open(directory: &Path) -> Result<Self, Vec<CheckpointError>> {
        let single = directory.join("model.safetensors");
        let index = directory.join("model.safetensors.index.json");
        let paths = match (single.exists(), index.exists()) {
            (true, _) => vec![single],
            (false, true) => shards(directory, &index).map_err(|error| vec![error])?,
            (false, false) => return Err(vec![CheckpointError::NoWeights { path: directory.to_owned() }]),
        };
        let mut checkpoint = Self { files: Vec::new(), tensors: HashMap::new() };
        let errors: Vec<CheckpointError> = paths.iter().filter_map(|path| checkpoint.add(path).err()).collect();
        if errors.is_empty() { Ok(checkpoint) } else { Err(errors) }
    }

    /// Opens one file.
    ///
    /// # Errors
    ///
    /// If it is missing or damaged.
    pub fn open_file(path: &Path) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self { files: Vec::new(), tensors: HashMap::new() };
        checkpoint.add(path)?;
        Ok(checkpoint)
    }

    /// The headers of all tensors, in order of their names.
    pub fn headers(&self) -> Vec<TensorInfo> {
        let header = |(name, (_, dtype, shape, _)): (&String, &(usize, Dtype, Vec<usize>, _))| TensorInfo {
            name: name.clone(),
            dtype: dtype.to_string(),
            shape: shape.iter().map(|&size| size as u64).collect(),
        };
        let mut headers: Vec<TensorInfo> = self.tensors.iter().map(header).collect();
        headers.sort_by(|left, right| left.name.cmp(&right.name));
        headers
    }

    #[expect(unsafe_code, reason = "a file can only be mapped so")]
    fn add(&mut self, path: &Path) -> Result<(), CheckpointError> {
        let io = |source| CheckpointError::Io { path: path.to_owned(), source };
        let damaged = |message: String| CheckpointError::Damaged { path: path.to_owned(), message };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only and private to this process. A file that somebody changes meanwhile can give wrong numbers, which the
        // artifact's hashes then describe; one that shrinks can end the process, as with every program that maps files.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let tensors = SafeTensors::deserialize(&map).map_err(|error| damaged(error.to_string()))?;
        let start = map.as_ptr().addr();
        for (name, view) in tensors.iter() {
            let offset = view.data().as_ptr().addr() - start;
            let range = offset..offset + view.data().len();
            let entry = (self.files.len(), view.dtype(), view.shape().to_vec(), range);
            if self.tensors.insert(name.to_owned(), entry).is_some() {
                return Err(damaged(format!("tensor `{name}` is in another shard already")));
            }
        }
        self.files.push(map);
        Ok(())
    }

    /// The weights of a model, by the tensors that hold its parameters.
    pub fn bind(self, bindings: Vec<ParamBinding>) -> BoundCheckpoint {
        BoundCheckpoint { checkpoint: self, bindings }
    }
}

/// The shards that an index names, each once.
fn shards(directory: &Path, index: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let malformed = |message: String| CheckpointError::Index { path: index.to_owned(), message };
    let text =
        std::fs::read_to_string(index).map_err(|source| CheckpointError::Io { path: index.to_owned(), source })?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
    let map = json.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| malformed("it has no `weight_map`".to_owned()))?;
    let mut paths = Vec::new();
    for file in map.values() {
        let name = file.as_str().filter(|name| !name.contains(['/', '\\']));
        let name = name.ok_or_else(|| malformed(format!("{file} is not a file name")))?;
        let path = directory.join(name);
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// A checkpoint that knows which tensor holds which parameter.
#[derive(Debug)]
pub struct BoundCheckpoint {
    checkpoint: Checkpoint,
    bindings: Vec<ParamBinding>,
}

impl BoundCheckpoint {
    /// The binding of a key, and the tensor's name with the same round put in.
    fn find(&self, key: &str) -> Option<(&ParamBinding, String)> {
        self.bindings.iter().find_map(|binding| match binding.key.split_once("{}") {
            Some((before, after)) => {
                let round = key.strip_prefix(before)?.strip_suffix(after)?;
                round.parse::<u32>().ok()?;
                Some((binding, binding.source.replace("{}", round)))
            }
            None => (binding.key == key).then(|| (binding, binding.source.clone())),
        })
    }
}

impl WeightSource for BoundCheckpoint {
    fn tensor(&self, key: &str) -> Result<SourceTensor<'_>, WeightError> {
        let (binding, name) = self.find(key).ok_or_else(|| WeightError::Unbound { key: key.to_owned() })?;
        let missing = || WeightError::Missing { key: key.to_owned(), tensor: name.clone() };
        let (file, dtype, shape, range) = self.checkpoint.tensors.get(&name).ok_or_else(missing)?;
        let bytes = &self.checkpoint.files[*file][range.clone()];
        let stored = match dtype {
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::BF16),
            Dtype::I32 => Some(DType::I32),
            Dtype::I8 => Some(DType::I8),
            Dtype::U8 => Some(DType::T2),
            _ => None,
        };
        let dims = binding.dims();
        let wanted = binding.ty.dtype;
        let layout = match binding.stored {
            Stored::Ternary(layout) => Some(layout),
            Stored::Float => None,
        };
        let expected_bytes = match (layout, stored) {
            (Some(layout), _) => {
                let (rows, cols) = super::as_matrix(&dims);
                layout.bytes(rows, cols)
            }
            (None, Some(stored)) => dims.iter().product::<u64>() * stored.bytes().unwrap_or(1),
            (None, None) => 0,
        };
        let widens = wanted == DType::F32 && matches!(stored, Some(DType::F16 | DType::BF16));
        // Some write one number as `[1]` and some as `[]`.
        let without_ones = |dims: &mut dyn Iterator<Item = u64>| dims.filter(|dim| *dim != 1).collect::<Vec<u64>>();
        let found_dims = without_ones(&mut shape.iter().map(|&dim| dim as u64));
        let is_as_shaped = layout.is_some() || found_dims == without_ones(&mut dims.iter().copied());
        if bytes.len() as u64 != expected_bytes || !is_as_shaped || !(widens || stored == Some(wanted)) {
            return Err(WeightError::Shape {
                tensor: name,
                expected: format!("{}, {expected_bytes} bytes", binding.ty),
                found: format!("{dtype}{shape:?}, {} bytes", bytes.len()),
            });
        }
        let bytes = match stored {
            Some(narrow) if widens => Cow::Owned(super::evaluate::widen(bytes, narrow)),
            _ => Cow::Borrowed(bytes),
        };
        Ok(SourceTensor { dtype: wanted, dims, layout, bytes })
    }

    fn check(&self, key: &str) -> Result<(), WeightError> {
        self.tensor(key).map(|_| ())
    }
}
