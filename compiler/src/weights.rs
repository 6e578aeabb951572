//! Weights: which tensors a plan needs, how each follows from the checkpoint, and the file that they are written to.
//!
//! Everything that depends on parameters alone is computed here, once, tensor by tensor: a ternary matrix is repacked in blocks of rows, so
//! that no unpacked model is ever in memory.

pub mod checkpoint;
pub mod evaluate;
pub mod file;
mod joined;
pub mod random;
mod share;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use ir::entity::Id;
use ir::graph::{Def, Graph};
use ir::packing::{BadCode, RowFormat, TernaryLayout};
use ir::plan::ALIGNMENT;
use ir::{DType, Program, TensorType, ValueId};

pub use checkpoint::Checkpoint;
pub use joined::JoinedWeights;
pub use random::RandomWeights;
pub(crate) use share::Wanted;

/// One tensor as a checkpoint stores it.
#[derive(Clone, Debug)]
pub struct SourceTensor<'a> {
    /// Element type; ternary if it is packed.
    pub dtype: DType,
    /// Dimensions of the values, not of the bytes.
    pub dims: Vec<u64>,
    /// How ternary values are packed.
    pub layout: Option<TernaryLayout>,
    /// The bytes.
    pub bytes: Cow<'a, [u8]>,
}

/// Where weights come from.
pub trait WeightSource {
    /// The tensor of a parameter, by its key with the round put in.
    ///
    /// # Errors
    ///
    /// If there is none, or it cannot be read.
    fn tensor(&self, key: &str) -> Result<SourceTensor<'_>, WeightError>;

    /// Whether [`WeightSource::tensor`] would find it, without making its bytes.
    ///
    /// # Errors
    ///
    /// As [`WeightSource::tensor`].
    fn check(&self, key: &str) -> Result<(), WeightError>;
}

/// What is wrong with one tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeightError {
    /// The model has no such parameter.
    #[error("no tensor is known for the parameter `{key}`")]
    Unbound {
        /// The parameter.
        key: String,
    },
    /// The checkpoint lacks a tensor.
    #[error("the checkpoint has no tensor `{tensor}` for the parameter `{key}`")]
    Missing {
        /// The parameter.
        key: String,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another type or shape than the model needs.
    #[error("tensor `{tensor}` must be {expected}, it is {found}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// What the model needs.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A packed matrix has a code that is no ternary value.
    #[error("`{key}` is damaged: byte {:#04x} at row {}, column {} is no packed ternary value", .code.byte, .code.row, .code.col)]
    BadCode {
        /// The parameter.
        key: String,
        /// Where.
        code: BadCode,
    },
}

/// How a value is stored for the kernels that read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Element type.
    pub dtype: DType,
    /// The packing of a ternary matrix.
    pub layout: Option<TernaryLayout>,
}

/// One tensor of the weights file.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedTensor {
    /// Its name, with `{}` for the round.
    pub name: String,
    /// Which graph of the program it is a value of.
    pub graph: usize,
    /// The value.
    pub value: ValueId,
    /// How it is stored.
    pub stored: StoredTensor,
    /// How many rounds have one of their own.
    pub rounds: u32,
    /// Bytes from the start of the data; that of round 0.
    pub offset: u64,
    /// Bytes from round to round.
    pub stride: u64,
    /// Its bytes, padded to [`ALIGNMENT`].
    pub bytes: u64,
    /// Whether calls read single rows of it, and never all.
    pub is_gathered: bool,
}

/// Where a value lies in the tensors of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    /// The position of the tensor.
    pub(crate) tensor: usize,
    /// Bytes from its start.
    pub(crate) offset: u64,
    /// Bytes of the value, padded to [`ALIGNMENT`].
    bytes: u64,
}

/// The tensors of the weights file, in its order: what all rounds share, then round by round, so that a layer is one run of bytes.
#[derive(Debug, Default)]
pub struct WeightPlan {
    tensors: Vec<PlannedTensor>,
    by_value: HashMap<(usize, ValueId, Option<TernaryLayout>), Located>,
    names: HashSet<String>,
    bytes: u64,
}

impl WeightPlan {
    /// The tensors.
    pub fn tensors(&self) -> &[PlannedTensor] {
        &self.tensors
    }

    /// Whether it has the same tensors in the same places.
    pub fn is_as(&self, other: &WeightPlan) -> bool {
        self.tensors == other.tensors
    }

    /// Bytes of all data.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of a value in one round.
    pub fn bytes_of(&self, graph: usize, value: ValueId, layout: Option<TernaryLayout>) -> Option<u64> {
        self.by_value.get(&(graph, value, layout)).map(|located| located.bytes)
    }

    /// Every value that has a place: its graph, itself, its packing, and where it lies.
    pub(crate) fn places(&self) -> impl Iterator<Item = (usize, ValueId, Option<TernaryLayout>, Located)> {
        self.by_value.iter().map(|(&(graph, value, layout), &located)| (graph, value, layout, located))
    }

    /// Adds the tensors that graphs read, each once: what lies in another is found there. `is_gathered` says of a value of a graph whether single rows
    /// of it are read, and never all.
    pub(crate) fn fill(&mut self, program: &Program, all: &[Wanted], is_gathered: &dyn Fn(usize, ValueId) -> bool) {
        let homes = share::homes(program, all);
        let mut tensor_of = HashMap::new();
        for (at, wanted) in all.iter().enumerate().filter(|(at, _)| homes[*at].of == *at) {
            tensor_of.insert(at, self.tensors.len());
            self.add(program, *wanted);
        }
        for (wanted, home) in all.iter().zip(homes) {
            let &Wanted { graph, value, stored, .. } = wanted;
            let bytes = stored_bytes(program.graphs[graph].ty(value), stored).next_multiple_of(ALIGNMENT);
            let located = Located { tensor: tensor_of[&home.of], offset: home.offset, bytes };
            self.by_value.insert((graph, value, stored.layout), located);
            self.tensors[located.tensor].is_gathered &= stored.layout.is_none() && is_gathered(graph, value);
        }
    }

    fn add(&mut self, program: &Program, wanted: Wanted) {
        let Wanted { graph: graph_index, value, stored, rounds } = wanted;
        let graph = &program.graphs[graph_index];
        let mut name = tensor_name(&keys_of(graph, value), &graph.label(value));
        while !self.names.insert(name.clone()) {
            name.push('\'');
        }
        let bytes = stored_bytes(graph.ty(value), stored).next_multiple_of(ALIGNMENT);
        self.tensors.push(PlannedTensor {
            name,
            graph: graph_index,
            value,
            stored,
            rounds,
            offset: 0,
            stride: 0,
            bytes,
            is_gathered: true,
        });
    }

    /// Gives every tensor its place.
    pub(crate) fn lay_out(&mut self) {
        let mut offset = 0_u64;
        for tensor in self.tensors.iter_mut().filter(|tensor| tensor.rounds == 1) {
            tensor.offset = offset;
            offset = offset.saturating_add(tensor.bytes);
        }
        let graphs: std::collections::BTreeSet<usize> = self.tensors.iter().map(|tensor| tensor.graph).collect();
        for graph in graphs {
            let rolled = |tensor: &&mut PlannedTensor| tensor.graph == graph && tensor.rounds != 1;
            let start = offset;
            let mut rounds = 1;
            for tensor in self.tensors.iter_mut().filter(rolled) {
                tensor.offset = offset;
                rounds = tensor.rounds;
                offset = offset.saturating_add(tensor.bytes);
            }
            let stride = offset - start;
            for tensor in self.tensors.iter_mut().filter(rolled) {
                tensor.stride = stride;
            }
            offset = start.saturating_add(stride.saturating_mul(u64::from(rounds)));
        }
        self.bytes = offset;
    }

    /// Every tensor of every round, in the order of the file.
    pub fn in_file_order(&self) -> Vec<(&PlannedTensor, u32)> {
        let rounds = |tensor| (0..).take(PlannedTensor::rounds_of(tensor)).map(move |round| (tensor, round));
        let mut order: Vec<(&PlannedTensor, u32)> = self.tensors.iter().flat_map(rounds).collect();
        order.sort_by_key(|(tensor, round)| (tensor.offset_in(*round), tensor.bytes));
        order
    }
}

impl PlannedTensor {
    fn rounds_of(tensor: &PlannedTensor) -> usize {
        tensor.rounds as usize
    }

    /// Where it starts in one round.
    pub fn offset_in(&self, round: u32) -> u64 {
        self.offset + self.stride * u64::from(round)
    }

    /// Its name in one round.
    pub fn name_in(&self, round: u32) -> String {
        self.name.replace("{}", &round.to_string())
    }
}

/// Whether each round has another value: it follows from a parameter of the round's.
pub(crate) fn is_of_rounds(graph: &Graph, value: ValueId) -> bool {
    keys_of(graph, value).iter().any(|key| key.contains("{}"))
}

/// Bytes of a value as stored, without padding.
fn stored_bytes(ty: &TensorType, stored: StoredTensor) -> u64 {
    let elements = ty.shape.elements().unwrap_or(0);
    let (rows, cols) = (ty.shape.dims().first().and_then(ir::Dim::as_const), ty.shape.last_const());
    match (stored.layout, RowFormat::new(stored.dtype, cols.unwrap_or(0) as usize)) {
        (Some(layout), _) => layout.bytes(rows.unwrap_or(0), cols.unwrap_or(0)),
        (None, Some(format)) => elements / cols.unwrap_or(1).max(1) * format.stride() as u64,
        (None, None) => elements.saturating_mul(stored.dtype.bytes().unwrap_or(1)),
    }
}

/// A tensor of any rank as the matrix that a ternary layout packs: its rows lie along the last axis.
pub fn as_matrix(dims: &[u64]) -> (u64, u64) {
    let (&cols, outer) = dims.split_last().unwrap_or((&1, &[]));
    (outer.iter().product(), cols)
}

/// The keys of the parameters that a value depends on, each once, in the order of the graph.
pub(crate) fn keys_of(graph: &Graph, value: ValueId) -> Vec<String> {
    let mut needed = vec![false; graph.values.len()];
    needed[value.index()] = true;
    for id in graph.values.ids().rev() {
        if needed[id.index()] {
            for operand in graph.operands(id) {
                needed[operand.index()] = true;
            }
        }
    }
    let keys = graph.params().filter(|(id, _)| needed[id.index()]).map(|(_, key)| key.to_string());
    keys.collect()
}

/// A name for a tensor made of several parameters: what their keys have in common around what differs, as in `layers.{}.attention.q+k+v.weight`.
fn tensor_name(keys: &[String], label: &str) -> String {
    let Some((first, rest)) = keys.split_first() else { return format!("const.{label}") };
    let parts: Vec<&str> = first.split('.').collect();
    let others: Vec<Vec<&str>> = rest.iter().map(|key| key.split('.').collect()).collect();
    let shared = |at: &dyn Fn(&[&str]) -> usize, position: usize| {
        position < parts.len()
            && others.iter().all(|other| position < other.len() && other[at(other)] == parts[at(&parts)])
    };
    let prefix = (0..parts.len()).take_while(|&position| shared(&|_| position, position)).count();
    if prefix == parts.len() {
        return first.clone();
    }
    let suffix = (0..parts.len() - prefix)
        .take_while(|&position| shared(&|all| all.len() - 1 - position, position + prefix))
        .count();
    let middle = |all: &[&str]| all[prefix..all.len().saturating_sub(suffix).max(prefix)].join(".");
    let mut middles = vec![middle(&parts)];
    for other in &others {
        let middle = middle(other);
        if !middles.contains(&middle) {
            middles.push(middle);
        }
    }
    let mut name = parts[..prefix].to_vec();
    let joined = middles.join("+");
    name.push(&joined);
    name.extend(&parts[parts.len() - suffix..]);
    name.join(".")
}

/// Whether a value is a parameter itself.
pub(crate) fn as_param(graph: &Graph, value: ValueId) -> Option<&str> {
    match &graph.values[value].def {
        Def::Param { key } => Some(key),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_tensors_are_named_after_their_parts() {
        let name = |keys: &[&str]| tensor_name(&keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>(), "v1");
        assert_eq!(name(&["layers.{}.attention.q.weight"]), "layers.{}.attention.q.weight");
        assert_eq!(
            name(&["layers.{}.attention.q.weight", "layers.{}.attention.k.weight", "layers.{}.attention.v.weight"]),
            "layers.{}.attention.q+k+v.weight"
        );
        assert_eq!(name(&["a.weight", "a.scale"]), "a.weight+scale");
        assert_eq!(name(&[]), "const.v1");
    }
}
