//! What says little of much: thresholds of a matrix's rows, or the scale of all of it. The forward rounds of a layer leave it to the rounds back, which
//! would read the whole matrix again for it.
//!
//! ```text
//! @layer            t = row_threshold(W)  ..  outputs .., t
//! @layer.backward   t = row_threshold(W)      becomes an input
//! ```

use std::collections::HashMap;

use ir::graph::{Def, Graph};
use ir::op::control::{Scan, Stacked};
use ir::{BuildError, Dim, Op, TensorType, ValueId};

use super::remake::Remake;

/// A body that runs forward, and the one that runs back.
struct Pair {
    forward: usize,
    back: usize,
    /// The summaries that both compute, in the forward body, and in the other.
    both: Vec<(ValueId, ValueId)>,
}

/// The graphs of a program, the last of which is its entry, with summaries computed once a round.
pub(super) fn handed_over(mut graphs: Vec<Graph>) -> Result<Vec<Graph>, BuildError> {
    for pair in pairs(&graphs) {
        let Pair { forward, back, both } = pair;
        let first = graphs[forward].outputs.len() as u32;
        let types: Vec<TensorType> = both.iter().map(|(value, _)| graphs[forward].ty(*value).clone()).collect();
        graphs[forward].outputs.extend(both.iter().map(|(value, _)| *value));
        graphs[back] = taking(&graphs[back], &both.iter().map(|(_, value)| *value).collect::<Vec<_>>())?;
        let names = [forward, back].map(|graph| graphs[graph].name.clone());
        if let Some(entry) = graphs.last_mut() {
            *entry = giving(entry, &names, first, &types)?;
        }
    }
    Ok(graphs)
}

fn pairs(graphs: &[Graph]) -> Vec<Pair> {
    let Some((entry, bodies)) = graphs.split_last() else { return Vec::new() };
    let bodies_of = |reverse: u32| {
        entry.values.ids().filter_map(move |id| match entry.op(id) {
            Some(Op::Scan(scan)) if scan.reverse == reverse => Some(scan.clone()),
            _ => None,
        })
    };
    let position = |name: &str| bodies.iter().position(|body| body.name == name);
    let pair = |back: Scan| {
        let is_its =
            |forward: &Scan| *back.body == *format!("{}.backward", forward.body) && forward.count == back.count;
        let forward = position(&bodies_of(0).find(is_its)?.body)?;
        let back = position(&back.body)?;
        let known = summaries(&bodies[forward]);
        let again = summaries(&bodies[back]);
        let mut both: Vec<_> = again.iter().filter_map(|(of, &value)| Some((*known.get(of)?, value))).collect();
        both.sort();
        Some(Pair { forward, back, both }).filter(|pair| !pair.both.is_empty())
    };
    bodies_of(1).filter_map(pair).collect()
}

/// The summaries of states, by what they are and the state's key.
fn summaries(graph: &Graph) -> HashMap<(&'static str, &str), ValueId> {
    let of = |id: ValueId| match (graph.op(id)?, graph.operands(id)) {
        (op @ (Op::RowThreshold(_) | Op::TernaryScale(_)), &[matrix]) => match &graph.values[matrix].def {
            Def::State { key } => Some(((op.name(), &**key), id)),
            _ => None,
        },
        _ => None,
    };
    graph.values.ids().filter_map(of).collect()
}

/// The body with further inputs, behind all others, in the place of these values.
fn taking(body: &Graph, values: &[ValueId]) -> Result<Graph, BuildError> {
    let mut given: HashMap<ValueId, ValueId> = HashMap::new();
    let mut inputs = body.inputs.len();
    let remake = Remake::new(body, |remake, id| {
        if let Def::Input = body.values[id].def {
            inputs -= 1;
            return Ok(None);
        }
        // In their order, and as soon as all others are there.
        if inputs == 0 && given.is_empty() {
            for &value in values {
                let name = format!("{}.saved", body.label(value));
                given.insert(value, remake.b.input(&name, body.ty(value).clone()));
            }
        }
        Ok::<_, BuildError>(given.get(&id).copied())
    })?;
    Ok(remake.finish(body))
}

/// The entry in which the scan of the second body gets the outputs of these types, from `first` on, of that of the first.
fn giving(entry: &Graph, [forward, back]: &[String; 2], first: u32, types: &[TensorType]) -> Result<Graph, BuildError> {
    let scan_of = |id: ValueId, body: &str| match entry.op(id) {
        Some(Op::Scan(scan)) if *scan.body == *body => Some(scan.clone()),
        _ => None,
    };
    let source = entry.values.ids().find(|&id| scan_of(id, forward).is_some());
    let remake = Remake::new(entry, |remake, id| {
        let (Some(scan), Some(source)) = (scan_of(id, back), source) else { return Ok(None) };
        let mut operands: Vec<ValueId> = entry.operands(id).iter().map(|&operand| remake.of(operand)).collect();
        for (output, ty) in (first..).zip(types) {
            let dims = [Dim::Const(u64::from(scan.count))].into_iter().chain(ty.shape.dims().iter().cloned());
            let stacked = Stacked { output, dtype: ty.dtype, shape: dims.collect() };
            let from = remake.of(source);
            operands.push(remake.b.op(stacked, &[from])?);
        }
        let scan = Scan { stacked: scan.stacked + types.len() as u32, ..scan };
        Ok::<_, BuildError>(Some(match &entry.values[id].name {
            Some(name) => remake.b.named(name, scan, &operands)?,
            None => remake.b.op(scan, &operands)?,
        }))
    })?;
    Ok(remake.finish(entry))
}
