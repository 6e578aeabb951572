//! The gradient of a repeated body: what a round must leave, and the body that runs back.
//!
//! Forward and backward pass of one round are first built as one graph, in which the backward half reads whatever it likes of the forward
//! half. Then that graph is cut: what the backward half reads becomes an input of it, or is computed again from something that does. So what is
//! saved follows from what is needed, and to recompute a layer is only another place to cut at.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ir::entity::Id;
use ir::graph::{Def, Graph};
use ir::op::Op;
use ir::vjp::{Zero, filled};
use ir::{Builder, DType, TensorType, ValueId};

use super::walk::{Source, Walk};
use super::{AutodiffError, Keep, Options, follows_from_parameters};

/// A body in its two new forms.
pub(super) struct BodyGradient {
    /// The body, with the saved values as further outputs.
    pub(super) forward: Graph,
    /// What runs back. Inputs: the gradient of the carried output; the operands [`Self::whole`]; the saved values. Outputs: the gradient of
    /// the carried input; those of the operands [`Self::operands`]; those of the parameters [`Self::params`].
    pub(super) backward: Graph,
    /// The types of the saved values.
    pub(super) saved: Vec<TensorType>,
    /// The positions of the repeat's operands that the backward body reads.
    pub(super) whole: Vec<usize>,
    /// The positions of the repeat's operands, but for the carried one, whose gradients the backward body gives.
    pub(super) operands: Vec<usize>,
    /// Keys and types of the parameters whose gradients it gives.
    pub(super) params: Vec<(String, TensorType)>,
    /// Why gradients ended in it.
    pub(super) zeros: BTreeSet<Zero>,
}

/// A body without its states: what a program that is not differentiated through keeps of it.
pub(super) fn without_states(body: &Graph) -> Result<Graph, AutodiffError> {
    let mut walk = Walk::new(&body.name);
    walk.copy(body, Source { wanted: &|_| false, varying: &|_| false, body_varies: &|_| false })?;
    let outputs: Vec<ValueId> = body.outputs.iter().map(|output| walk.map[output.index()]).collect();
    Ok(walk.b.finish(&outputs).compact())
}

/// The gradient of a body whose inputs vary with what is wanted where `varying` says so.
pub(super) fn differentiate(
    body: &Graph,
    varying: &[bool],
    options: &Options<'_>,
) -> Result<BodyGradient, AutodiffError> {
    let mut walk = Walk::new(&body.name);
    // What is carried varies from the second round on if a parameter does.
    let varies = |position: usize| position == 0 || varying[position];
    walk.copy(body, Source { wanted: options.wanted, varying: &varies, body_varies: &|_| false })?;
    let forward = walk.b.graph().clone();
    let inputs: Vec<ValueId> = body.inputs.iter().map(|input| walk.map[input.index()]).collect();
    let carried = walk.map[body.outputs[0].index()];
    let dy = walk.b.input("dy", forward.ty(carried).clone());
    walk.add(carried, dy)?;
    walk.reverse(&mut |_, _| Ok(()))?;

    let first = match walk.gradient(inputs[0]) {
        Some(gradient) => gradient,
        None => filled(&mut walk.b, 0.0, &forward.ty(inputs[0]).shape)?,
    };
    let mut outputs = vec![first];
    let mut operands = Vec::new();
    for (position, &input) in inputs.iter().enumerate().skip(1) {
        if let Some(gradient) = walk.gradient(input).filter(|_| varying[position]) {
            operands.push(position);
            outputs.push(gradient);
        }
    }
    let mut params = Vec::new();
    for (key, ty, gradient) in walk.params(options.wanted)? {
        params.push((key, ty));
        outputs.push(gradient);
    }
    let zeros = walk.zeros.clone();
    let combined = with_one_cast(walk.b.finish(&outputs));
    let Cut { backward, saved, whole } = cut(&combined, &forward, &inputs, dy, options.keep)?;
    let types = saved.iter().map(|&value| forward.ty(value).clone()).collect();
    let mut forward = forward;
    forward.outputs = [carried].into_iter().chain(saved).collect();
    Ok(BodyGradient { forward: forward.compact(), backward, saved: types, whole, operands, params, zeros })
}

/// The graph in which what is cast to the same type twice is so once, where it is first: what the backward half narrows may be there already.
fn with_one_cast(mut graph: Graph) -> Graph {
    let mut first: HashMap<(ValueId, DType), ValueId> = HashMap::new();
    let mut stands_for: HashMap<ValueId, ValueId> = HashMap::new();
    let ids: Vec<ValueId> = graph.values.ids().collect();
    for id in ids {
        let value = &mut graph.values[id];
        let Def::Op { op, inputs } = &mut value.def else { continue };
        for input in inputs.iter_mut() {
            *input = stands_for.get(input).copied().unwrap_or(*input);
        }
        if let Op::Cast(_) = op {
            let known = *first.entry((inputs[0], value.ty.dtype)).or_insert(id);
            stands_for.insert(id, known);
        }
    }
    for output in &mut graph.outputs {
        *output = stands_for.get(output).copied().unwrap_or(*output);
    }
    graph
}

/// A backward body by itself.
struct Cut {
    backward: Graph,
    /// The values of the forward body that it reads from the stack.
    saved: Vec<ValueId>,
    /// The positions of the inputs that it reads as they are.
    whole: Vec<usize>,
}

/// Cuts the backward half off. Values of the combined graph that `forward` has too are its first ones.
fn cut(combined: &Graph, forward: &Graph, inputs: &[ValueId], dy: ValueId, keep: Keep) -> Result<Cut, AutodiffError> {
    let follows = follows_from_operands(forward, inputs[0]);
    let is_forward = |value: ValueId| value.index() < forward.values.len();
    let is_saved = |value: ValueId| {
        let is_cheap = forward.op(value).is_some_and(costs_nothing) && !is_narrowing(forward, value);
        match keep {
            Keep::Values => is_forward(value) && !follows[value.index()] && !is_cheap,
            Keep::Inputs => value == inputs[0],
        }
    };
    // Walk from the results to what is saved.
    let mut needed = vec![false; combined.values.len()];
    let mut saved = BTreeSet::new();
    let mut stack = combined.outputs.clone();
    while let Some(value) = stack.pop() {
        if std::mem::replace(&mut needed[value.index()], true) {
            continue;
        }
        if is_forward(value) && is_saved(value) {
            saved.insert(value);
        } else {
            stack.extend(combined.operands(value));
        }
    }
    if keep == Keep::Values {
        // What is left out is made again of what is kept: a walk from there ends where the first one was, or at what is kept in its place.
        let kept = narrowed(forward, &without_derived(forward, &saved, &follows), &follows);
        let mut stack: Vec<ValueId> = saved.difference(&kept).copied().collect();
        kept.iter().for_each(|value| needed[value.index()] = true);
        while let Some(value) = stack.pop() {
            let operands = combined.operands(value).iter().copied();
            stack.extend(operands.filter(|operand| !std::mem::replace(&mut needed[operand.index()], true)));
        }
        saved = kept;
    }
    let saved: Vec<ValueId> = saved.into_iter().collect();
    let whole: Vec<usize> = (0..inputs.len())
        .filter(|&position| needed[inputs[position].index()] && !saved.contains(&inputs[position]))
        .collect();

    let mut b = Builder::new(&format!("{}.backward", forward.name));
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    map.insert(dy, b.input("dy", combined.ty(dy).clone()));
    for &position in &whole {
        let input = inputs[position];
        map.insert(input, b.input(&combined.label(input), combined.ty(input).clone()));
    }
    let mut names: BTreeMap<String, u32> = BTreeMap::new();
    for &value in &saved {
        let count = names.entry(combined.label(value)).or_insert(0);
        *count += 1;
        let suffix = if *count == 1 { String::new() } else { format!("_{count}") };
        let name = format!("{}{suffix}.saved", combined.label(value));
        map.insert(value, b.input(&name, combined.ty(value).clone()));
    }
    for (id, value) in combined.values.iter() {
        if !needed[id.index()] || map.contains_key(&id) {
            continue;
        }
        let name = value.name.as_deref();
        let copy = match &value.def {
            Def::Param { key } => b.param(name.unwrap_or(key), key, value.ty.clone()),
            Def::Const(constant) => b.constant(name, value.ty.clone(), constant.values()),
            Def::Op { op, inputs } => {
                let operands: Vec<ValueId> = inputs.iter().map(|input| map[input]).collect();
                match name {
                    Some(name) => b.named(name, op.clone(), &operands)?,
                    None => b.op(op.clone(), &operands)?,
                }
            }
            Def::Input | Def::State { .. } => unreachable!("inputs are saved or whole, and states are gone"),
        };
        map.insert(id, copy);
    }
    let outputs: Vec<ValueId> = combined.outputs.iter().map(|output| map[output]).collect();
    Ok(Cut { backward: b.finish(&outputs), saved, whole })
}

/// What of the saved values need not be: each element of the others follows by a few operations from the same elements of values that are.
fn without_derived(forward: &Graph, saved: &BTreeSet<ValueId>, follows: &[bool]) -> BTreeSet<ValueId> {
    let mut is_there: Vec<bool> = Vec::with_capacity(forward.values.len());
    let mut kept = BTreeSet::new();
    for (id, value) in forward.values.iter() {
        let derives = match &value.def {
            Def::Op { op, inputs } if costs_nothing(op) || costs_little(op) => {
                inputs.iter().all(|input| is_there[input.index()])
            }
            _ => false,
        };
        is_there.push(follows[id.index()] || derives || saved.contains(&id));
        if saved.contains(&id) && !derives {
            kept.insert(id);
        }
    }
    kept
}

/// The saved values with others in the place of those that follow from them by a few operations, where these take fewer bytes: the product in bf16 rather
/// than its sum with a bias in f32, int8 codes rather than what they stand for.
fn narrowed(forward: &Graph, saved: &BTreeSet<ValueId>, follows: &[bool]) -> BTreeSet<ValueId> {
    let mut kept = BTreeSet::new();
    for &value in saved {
        let is_there = |other: ValueId| {
            follows[other.index()] || kept.contains(&other) || (other != value && saved.contains(&other))
        };
        let (mut sources, mut seen, mut stack) = (BTreeSet::new(), BTreeSet::new(), vec![value]);
        while let Some(value) = stack.pop() {
            match forward.op(value) {
                _ if !seen.insert(value) || is_there(value) => {}
                Some(op) if costs_nothing(op) || costs_little(op) => stack.extend(forward.operands(value)),
                _ => {
                    sources.insert(value);
                }
            }
        }
        let taken: u64 = sources.iter().map(|&source| stored_bytes(forward, source)).fold(0, u64::saturating_add);
        match taken < stored_bytes(forward, value) {
            true => kept.append(&mut sources),
            false => {
                kept.insert(value);
            }
        }
    }
    kept
}

/// Bytes of a value, but for the scales of row formats.
fn stored_bytes(graph: &Graph, value: ValueId) -> u64 {
    let ty = graph.ty(value);
    ty.shape.elements().unwrap_or(u64::MAX).saturating_mul(ty.dtype.bytes().unwrap_or(1))
}

/// Whether a value is a cast that loses digits.
fn is_narrowing(graph: &Graph, value: ValueId) -> bool {
    let bytes = |value: ValueId| graph.ty(value).dtype.bytes().unwrap_or(1);
    matches!(graph.op(value), Some(Op::Cast(_))) && bytes(value) < graph.operands(value).iter().map(|&x| bytes(x)).sum()
}

/// What is the same in the backward pass without being saved: parameters, the inputs that are not carried, and what follows from these alone.
fn follows_from_operands(forward: &Graph, carried: ValueId) -> Vec<bool> {
    let mut follows = follows_from_parameters(forward);
    for (id, value) in forward.values.iter() {
        follows[id.index()] |= match &value.def {
            Def::Input => id != carried,
            Def::Op { inputs, .. } => inputs.iter().all(|input| follows[input.index()]),
            _ => false,
        };
    }
    follows
}

/// Whether an op is made again rather than saved: it only reads its operand in another way.
fn costs_nothing(op: &Op) -> bool {
    matches!(
        op,
        Op::Reshape(_)
            | Op::Permute(_)
            | Op::Slice(_)
            | Op::Broadcast(_)
            | Op::Cast(_)
            | Op::Unpack(_)
            | Op::Dequantize(_)
    )
}

/// Whether each element of an op's result follows from the same elements of its operands, by less than reading it from memory takes.
fn costs_little(op: &Op) -> bool {
    matches!(
        op,
        Op::Add(_)
            | Op::Sub(_)
            | Op::Mul(_)
            | Op::Minimum(_)
            | Op::Maximum(_)
            | Op::Neg(_)
            | Op::Abs(_)
            | Op::Relu(_)
            | Op::Relu2(_)
    )
}
