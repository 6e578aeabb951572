//! Gradients that add up in states, from batch to batch of a step.
//!
//! ```text
//! sum' = select(first, gradient, sum + gradient)
//! ```
//!
//! A matrix of a layer is added up by the round that computes its gradient, so that no more than one layer's gradients are ever there beside the
//! sums. Vectors are added up when all rounds are done: a launch for each of them would take longer than what it moves. So is one parameter of each
//! body in any case, the smallest, because rounds of which nobody reads anything are not computed.

use std::collections::{BTreeMap, BTreeSet};

use ir::graph::{Def, Graph};
use ir::op::control::{Scan, Stacked};
use ir::op::elementwise::{Add, Select};
use ir::{BuildError, Builder, DType, Op, Shape, TensorType, ValueId};

use super::remake::Remake;
use super::step::ACCUMULATE;
use crate::autodiff::ParamGradient;
use crate::optimiser::{GRADIENT, gradient_name};

/// The graphs of a program whose outputs behind the loss are gradients, as one that adds these up. The last one is its entry.
pub(super) fn added_up(mut graphs: Vec<Graph>, parameters: &[ParamGradient]) -> Result<Vec<Graph>, BuildError> {
    let Some(mut entry) = graphs.pop() else { return Ok(graphs) };
    let gradients: Vec<ValueId> = entry.outputs.split_off(1);
    let stacked: Vec<Option<(&str, u32)>> = gradients.iter().map(|&gradient| of_rounds(&entry, gradient)).collect();
    let body_of = |at: usize| stacked[at].map(|(body, _)| body);
    let size = |at: usize| (parameters[at].ty.shape.rank(), parameters[at].ty.shape.elements());
    let is_smallest = |at: usize| {
        let mut others = (0..parameters.len()).filter(|&other| body_of(other) == body_of(at));
        others.all(|other| (size(at), at) <= (size(other), other))
    };
    let mut left: BTreeMap<String, BTreeMap<u32, &str>> = BTreeMap::new();
    let mut rest = Vec::new();
    for (at, (parameter, &gradient)) in parameters.iter().zip(&gradients).enumerate() {
        let is_matrix = 1 < parameter.ty.shape.rank();
        match stacked[at].filter(|_| is_matrix && parameter.rounds.is_some() && !is_smallest(at)) {
            Some((body, output)) => drop(left.entry(body.to_owned()).or_default().insert(output, &parameter.key)),
            None => rest.push((parameter, gradient)),
        }
    }
    for graph in &mut graphs {
        if let Some(keys) = left.get(&graph.name) {
            *graph = adding_rounds(graph, keys, stacked_inputs(&entry, &graph.name))?;
        }
    }
    // What the rounds add up is no output of theirs any more.
    entry.outputs.extend(rest.iter().map(|(_, gradient)| *gradient));
    let taken: BTreeMap<String, BTreeSet<u32>> =
        left.into_iter().map(|(body, keys)| (body, keys.into_keys().collect())).collect();
    let parameters: Vec<&ParamGradient> = rest.into_iter().map(|(parameter, _)| parameter).collect();
    graphs.push(adding(&entry.compact(), &parameters, &taken)?);
    Ok(graphs)
}

/// The body that computes a gradient and the number of its output, if the value is nothing but what all its rounds gave, and only given on.
fn of_rounds(entry: &Graph, gradient: ValueId) -> Option<(&str, u32)> {
    let Some(Op::Stacked(stacked)) = entry.op(gradient) else { return None };
    let Some(Op::Scan(scan)) = entry.op(entry.operands(gradient)[0]) else { return None };
    let is_read = entry.values.ids().any(|user| entry.operands(user).contains(&gradient));
    (!is_read).then_some((&*scan.body, stacked.output))
}

/// How many of the operands of the scan of a body are cut into parts.
fn stacked_inputs(entry: &Graph, body: &str) -> usize {
    let mut scans = entry.values.ids().filter_map(|id| match entry.op(id) {
        Some(Op::Scan(scan)) if *scan.body == *body => Some(scan.stacked as usize),
        _ => None,
    });
    scans.next().unwrap_or(0)
}

/// Whether a batch is the first of its step.
fn first(b: &mut Builder) -> ValueId {
    b.input("first", TensorType::new(DType::I32, Shape::of(&[1])))
}

fn add_up(b: &mut Builder, key: &str, first: ValueId, gradient: ValueId) -> Result<(), BuildError> {
    let sum = b.state(key, key, b.ty(gradient).clone());
    let added = b.op(Add {}, &[sum, gradient])?;
    let new = b.op(Select {}, &[first, gradient, added])?;
    b.update(sum, new);
    Ok(())
}

/// The body whose outputs `keys` are added up in states of these keys instead. `first` becomes an input ahead of the `stacked` last ones.
fn adding_rounds(body: &Graph, keys: &BTreeMap<u32, &str>, stacked: usize) -> Result<Graph, BuildError> {
    let mut is_first: Option<ValueId> = None;
    let behind = body.inputs.get(body.inputs.len() - stacked);
    let mut remake = Remake::new(body, |remake, id| {
        if behind == Some(&id) {
            is_first = Some(first(&mut remake.b));
        }
        Ok::<_, BuildError>(None)
    })?;
    let outputs: Vec<ValueId> = body.outputs.iter().map(|&output| remake.of(output)).collect();
    let b = &mut remake.b;
    let first = is_first.unwrap_or_else(|| first(b));
    let mut kept = Vec::new();
    for (output, gradient) in (0..).zip(outputs) {
        match keys.get(&output) {
            Some(key) => add_up(b, &format!("{key}{GRADIENT}"), first, gradient)?,
            None => kept.push(gradient),
        }
    }
    Ok(remake.b.finish(&kept).compact())
}

/// The entry that adds its outputs behind the loss up in states; the scans of the bodies in `taken` give these outputs no more, and are told what is first.
fn adding(
    graph: &Graph,
    parameters: &[&ParamGradient],
    taken: &BTreeMap<String, BTreeSet<u32>>,
) -> Result<Graph, BuildError> {
    let mut is_first: Option<ValueId> = None;
    let mut remake = Remake::new(graph, |remake, id| {
        let Def::Op { op, inputs } = &graph.values[id].def else { return Ok(None) };
        Ok::<_, BuildError>(match op {
            Op::Scan(scan) if taken.contains_key(&*scan.body) => {
                let first = *is_first.get_or_insert_with(|| first(&mut remake.b));
                let mut operands: Vec<ValueId> = inputs.iter().map(|&input| remake.of(input)).collect();
                operands.insert(operands.len() - scan.stacked as usize, first);
                Some(match &graph.values[id].name {
                    Some(name) => remake.b.named(name, Scan::clone(scan), &operands)?,
                    None => remake.b.op(Scan::clone(scan), &operands)?,
                })
            }
            Op::Stacked(stacked) => {
                let Some(Op::Scan(scan)) = graph.op(inputs[0]) else { return Ok(None) };
                let Some(taken) = taken.get(&*scan.body) else { return Ok(None) };
                let output = stacked.output - taken.range(..stacked.output).count() as u32;
                Some(remake.b.op(Stacked { output, ..stacked.clone() }, &[remake.of(inputs[0])])?)
            }
            _ => None,
        })
    })?;
    let outputs: Vec<ValueId> = graph.outputs.iter().map(|&output| remake.of(output)).collect();
    let b = &mut remake.b;
    let first = is_first.unwrap_or_else(|| first(b));
    for (parameter, &gradient) in parameters.iter().zip(&outputs[1..]) {
        add_up(b, &gradient_name(&parameter.key), first, gradient)?;
    }
    let mut made = remake.b.finish(&outputs[..1]);
    made.name = ACCUMULATE.to_owned();
    Ok(made.compact())
}
