//! Checkpoints of `tests/fixtures`, for tests.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::collections::HashMap;
use std::path::PathBuf;

use ir::DType;
use ir::reference::Tensor;
use safetensors::{Dtype, SafeTensors};
use tritter_models::import::TensorInfo;
use tritter_models::{ParamBinding, Stored};

/// The text or bytes of a fixture's file.
pub(crate) fn fixture(name: &str, file: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name).join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A fixture's config.json.
pub(crate) fn config(name: &str) -> String {
    String::from_utf8(fixture(name, "config.json")).unwrap()
}

fn dtype_name(dtype: Dtype) -> String {
    format!("{dtype:?}")
}

/// What the header of a file says.
pub(crate) fn infos(bytes: &[u8]) -> Vec<TensorInfo> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let mut infos: Vec<TensorInfo> = file
        .iter()
        .map(|(name, view)| TensorInfo {
            name: name.to_owned(),
            dtype: dtype_name(view.dtype()),
            shape: view.shape().iter().map(|&dim| dim as u64).collect(),
        })
        .collect();
    infos.sort_by(|left, right| left.name.cmp(&right.name));
    infos
}

/// The elements of a tensor of numbers.
pub(crate) fn values(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let view = file.tensor(name).unwrap();
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => bytes.chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect(),
        Dtype::I32 => bytes.chunks(4).map(|b| f64::from(i32::from_le_bytes(b.try_into().unwrap()))).collect(),
        Dtype::BF16 => bytes.chunks(2).map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect(),
        Dtype::F16 => bytes.chunks(2).map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect(),
        other => panic!("{name} is {other:?}"),
    }
}

/// The parameters of a program, read from a checkpoint as its bindings say.
pub(crate) fn parameters(file: &SafeTensors<'_>, bindings: &[ParamBinding]) -> HashMap<String, Tensor> {
    let mut parameters = HashMap::new();
    for binding in bindings {
        let dims: Vec<usize> = binding.dims().iter().map(|&dim| dim as usize).collect();
        for round in 0..binding.rounds {
            let source = binding.source_of(round);
            let data: Vec<f64> = match binding.stored {
                Stored::Float => values(file, &source),
                Stored::Ternary(layout) => {
                    let bytes = file.tensor(&source).unwrap().data();
                    let values = layout.decode(bytes, dims[0] as u64, dims[1] as u64).unwrap();
                    values.into_iter().map(f64::from).collect()
                }
            };
            parameters.insert(binding.key_of(round), Tensor::of(binding.ty.dtype, &dims, data));
        }
    }
    parameters
}

/// The inputs of a decoder, for one sequence whose tokens stand at `start..` and whose logits are all wanted.
pub(crate) fn inputs(ids: &[f64], start: usize) -> Vec<Tensor> {
    let n = ids.len();
    let count = |from: usize| (from..from + n).map(|at| at as f64);
    vec![
        Tensor::of(DType::I32, &[n], ids.iter().copied()),
        Tensor::of(DType::I32, &[n], vec![0.0; n]),
        Tensor::of(DType::I32, &[n], count(start)),
        Tensor::of(DType::I32, &[n, 2], vec![0.0; 2 * n]),
        Tensor::of(DType::I32, &[n], count(0)),
        // The most probable token after each.
        Tensor::of(DType::F32, &[n, 4], vec![0.0; 4 * n]),
        Tensor::of(DType::I32, &[n, 2], vec![0.0; 2 * n]),
    ]
}
