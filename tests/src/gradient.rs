//! Losses of programs that have none, and the gradients that follow from them.

use compiler::autodiff::{AutodiffError, Differentiated, Keep, Options, differentiate};
use ir::graph::{Def, Value};
use ir::op::elementwise::{Add, Sin};
use ir::op::loss::CrossEntropy;
use ir::op::movement::Reshape;
use ir::op::reduce::{Argmax, SumTo};
use ir::op::{Op, OpDef};
use ir::vjp::VjpError;
use ir::{DType, Graph, Program, Shape, ValueId, Verified, verify};

/// The program with one output, a number that every f32 output has a part in: of matrices the cross-entropy with what they hold for most
/// probable, of others the sum of their sines. `None` if there is no such output.
///
/// # Panics
///
/// If the result does not verify, which is a bug here.
pub fn with_loss(program: &Verified<Program>) -> Option<Verified<Program>> {
    let mut program: Program = (**program).clone();
    let entry = program.graphs.last_mut()?;
    let scalar = Shape::default();
    let mut loss: Option<ValueId> = None;
    for output in std::mem::take(&mut entry.outputs) {
        let ty = entry.ty(output).clone();
        let has_rows = ty.shape.last_const().is_some_and(|width| 0 < width);
        if ty.dtype != DType::F32 {
            continue;
        }
        let parts = match ty.shape.dims() {
            [rows, _] if has_rows => {
                let best = push(entry, Argmax {}, &[output]);
                let targets = push(entry, Reshape { shape: Shape::new([rows.clone()]) }, &[best]);
                push(entry, CrossEntropy {}, &[output, targets])
            }
            _ => push(entry, Sin {}, &[output]),
        };
        let sum = push(entry, SumTo { shape: scalar.clone() }, &[parts]);
        loss = Some(loss.map_or(sum, |loss| push(entry, Add {}, &[loss, sum])));
    }
    entry.outputs.push(loss?);
    Some(verify(program).unwrap_or_else(|errors| panic!("{errors}")))
}

/// Makes parameters of the entry's real inputs, so that there are gradients by them too. The key of each input's parameter, in their order; `None`
/// for those that stay.
pub fn inputs_to_parameters(program: &mut Program) -> Vec<Option<String>> {
    let Some(entry) = program.graphs.last_mut() else { return Vec::new() };
    let mut keys = Vec::new();
    for input in std::mem::take(&mut entry.inputs) {
        keys.push(match entry.ty(input).dtype {
            DType::F32 => {
                let key = format!("input.{input}");
                entry.values[input].def = Def::Param { key: key.as_str().into() };
                Some(key)
            }
            _ => {
                entry.inputs.push(input);
                None
            }
        });
    }
    keys
}

fn push(graph: &mut Graph, op: impl Into<Op>, inputs: &[ValueId]) -> ValueId {
    let op = op.into();
    let types: Vec<_> = inputs.iter().map(|&input| graph.ty(input)).collect();
    let ty = op.infer(&types).unwrap_or_else(|error| panic!("{error}"));
    graph.values.push(Value { name: None, ty, def: Def::Op { op, inputs: inputs.iter().copied().collect() } })
}

/// The gradients of all real and ternary parameters that the first output depends on; `None` if there are none, or the program has something
/// that no gradient goes through.
///
/// # Panics
///
/// If the program has a loss, and differentiating it fails in a way that no program should meet.
pub fn all_gradients(program: &Verified<Program>, keep: Keep) -> Option<Differentiated> {
    let is_real = |dtype: DType| dtype.is_float() || dtype == DType::T2;
    let graphs = program.graphs.iter();
    let params = graphs.flat_map(|graph| graph.params().map(move |(value, key)| (graph.ty(value).dtype, key)));
    let mut keys: Vec<String> = params.filter(|(dtype, _)| is_real(*dtype)).map(|(_, key)| key.to_string()).collect();
    while !keys.is_empty() {
        let wanted = |key: &str| keys.iter().any(|known| known == key);
        match differentiate(program, &Options { loss: 0, wanted: &wanted, keep }) {
            Ok(differentiated) => return Some(differentiated),
            Err(AutodiffError::NoPath { key, .. }) => keys.retain(|known| *known != key),
            // Caches that hold codes, gradients of gradients, and products with a symbol in their rows have none.
            Err(AutodiffError::State { .. }) => return None,
            Err(AutodiffError::Vjp { source: VjpError::SecondOrder(_) | VjpError::Symbolic { .. }, .. }) => {
                return None;
            }
            Err(error) => panic!("{error}"),
        }
    }
    None
}
