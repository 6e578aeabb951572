//! The weights file: safetensors whose data starts at a cache line, written tensor by tensor.

use std::collections::BTreeSet;
use std::io::{self, Write};

use ir::Program;
use ir::plan::ALIGNMENT;
use ir::reference::key_of_round;

use super::evaluate::Evaluator;
use super::{WeightError, WeightPlan, WeightSource};

/// Why weights could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteWeightsError {
    /// Tensors are missing, misshapen or damaged.
    #[error("{}", list(.0))]
    Tensors(Vec<WeightError>),
    /// The file could not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn list(errors: &[WeightError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The header: little-endian length, then JSON padded with spaces so that the data starts at a multiple of [`ALIGNMENT`]. All tensors are bytes;
/// what they mean stands in the plan.
pub fn header(plan: &WeightPlan) -> Vec<u8> {
    let mut map = serde_json::Map::new();
    for (tensor, round) in plan.in_file_order() {
        let start = tensor.offset_in(round);
        map.insert(
            tensor.name_in(round),
            serde_json::json!({ "dtype": "U8", "shape": [tensor.bytes], "data_offsets": [start, start + tensor.bytes] }),
        );
    }
    let mut json = serde_json::Value::Object(map).to_string().into_bytes();
    let length = (8 + json.len() as u64).next_multiple_of(ALIGNMENT) - 8;
    json.resize(length as usize, b' ');
    let mut header = length.to_le_bytes().to_vec();
    header.extend(json);
    header
}

/// Writes the whole file. `progress` is told of every byte of data written; an error of its own ends the writing.
///
/// # Errors
///
/// Before anything is written: every missing or misshapen tensor. Later: a damaged tensor, or a full disk.
pub fn write(
    program: &Program,
    plan: &WeightPlan,
    source: &dyn WeightSource,
    out: &mut dyn Write,
    progress: &dyn Fn(u64) -> io::Result<()>,
) -> Result<(), WriteWeightsError> {
    let errors = missing(program, plan, source);
    if !errors.is_empty() {
        return Err(WriteWeightsError::Tensors(errors));
    }
    out.write_all(&header(plan))?;
    let n_graphs = program.graphs.len();
    for (tensor, round) in plan.in_file_order() {
        let round = (tensor.graph + 1 < n_graphs).then_some(round);
        let evaluator = Evaluator { graph: &program.graphs[tensor.graph], source, round };
        let mut written = 0_u64;
        let mut sink = |bytes: &[u8]| {
            written += bytes.len() as u64;
            progress(bytes.len() as u64)?;
            out.write_all(bytes)
        };
        evaluator
            .write(tensor.value, tensor.stored, &mut sink)
            .map_err(|error| WriteWeightsError::Tensors(vec![error]))??;
        let padding = tensor.bytes.checked_sub(written).expect("a tensor is as long as planned");
        out.write_all(&vec![0; padding as usize])?;
    }
    Ok(())
}

/// Every tensor that the plan needs and the source does not have as it should be.
fn missing(program: &Program, plan: &WeightPlan, source: &dyn WeightSource) -> Vec<WeightError> {
    let mut keys = BTreeSet::new();
    for (tensor, round) in plan.in_file_order() {
        let graph = &program.graphs[tensor.graph];
        for key in super::keys_of(graph, tensor.value) {
            let round = key.contains("{}").then_some(round);
            keys.insert(key_of_round(&key, round));
        }
    }
    keys.iter().filter_map(|key| source.check(key).err()).collect()
}
