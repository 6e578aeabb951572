//! Groups for calls of few tokens on a device where launches cost more than work: a ternary product takes the function of columns that follows it
//! into its own kernel, and for one token the nest that computes its activations.
//!
//! *Before* the product may stand a nest of one row that only this product reads. *Behind* it may stand those readers of the product that compute
//! each column from the same column of the product, or from the columns in the same place of its equal parts (gate and up of one product), and from
//! values that are there before it: a residual, a gated activation. What is left of the readers' nest stays a nest.

use std::collections::HashSet;

use ir::graph::Def;
use ir::{DType, Dim, Op, ValueId};

use super::group::storage_owner;
use super::{Group, Kind, Schedule};

/// The schedule with products that have taken what they may. `takes` says whether there is a kernel for a product of so many parts, and whether it may
/// compute its activations.
pub fn fuse<'a>(
    mut schedule: Schedule<'a>,
    takes: &dyn Fn(&Schedule<'a>, ValueId, u64) -> Option<bool>,
) -> Schedule<'a> {
    let products: Vec<ValueId> = schedule.groups.iter().filter_map(|group| product(&schedule, group)).collect();
    for product in products {
        let after =
            after(&schedule, product).and_then(|(values, parts)| Some((values, takes(&schedule, product, parts)?)));
        let alone = || takes(&schedule, product, 1).map(|takes_activations| (Vec::new(), takes_activations));
        let Some((after, takes_activations)) = after.or_else(alone) else { continue };
        let before = before(&schedule, product).filter(|_| takes_activations);
        if after.is_empty() && before.is_none() {
            continue;
        }
        let before = before.map(|position| std::mem::take(&mut schedule.groups[position].values)).unwrap_or_default();
        let outputs = match after.last() {
            None => vec![product],
            Some(&last) => vec![last],
        };
        let kind = Kind::Fused { product: before.len() };
        let values = before.into_iter().chain([product]).chain(after.iter().copied()).collect();
        for group in &mut schedule.groups {
            match group.values.contains(&product) {
                true => *group = Group { kind, values: Vec::clone(&values), outputs: Vec::clone(&outputs) },
                false => {
                    group.values.retain(|value| !after.contains(value));
                    group.outputs.retain(|value| !after.contains(value));
                }
            }
        }
        schedule.groups.retain(|group| !group.values.is_empty());
    }
    schedule
}

/// The product of one row of activations for each token that a group is.
fn product(schedule: &Schedule<'_>, group: &Group) -> Option<ValueId> {
    let &[value] = &group.values[..] else { return None };
    let is_product = matches!(schedule.graph.op(value), Some(Op::TernaryMatmul(_)));
    (is_product && is_rows(schedule, value)).then_some(value)
}

/// Whether a value is a row of numbers for each token.
fn is_rows(schedule: &Schedule<'_>, value: ValueId) -> bool {
    matches!(schedule.graph.ty(value).shape.dims(), [Dim::Sym(n), Dim::Const(_)] if n.name() == "n")
}

pub(super) fn group_of(schedule: &Schedule<'_>, value: ValueId) -> Option<usize> {
    schedule.groups.iter().position(|group| group.values.contains(&value))
}

/// The values that read `value`, through views too, without the views; and whether nothing else does.
pub(super) fn readers(schedule: &Schedule<'_>, value: ValueId) -> (Vec<ValueId>, bool) {
    let Schedule { graph, views, .. } = schedule;
    let owner = |operand: ValueId| storage_owner(graph, views, operand);
    let users = graph.values.ids().filter(|&user| group_of(schedule, user).is_some());
    let readers = users.filter(|&user| graph.operands(user).iter().any(|&operand| owner(operand) == value)).collect();
    let mut roots = graph.outputs.iter().copied().chain(graph.updates.iter().map(|update| update.value));
    (readers, !roots.any(|root| owner(root) == value))
}

/// The nest of the activations of a product, if the product may compute them.
fn before(schedule: &Schedule<'_>, product: ValueId) -> Option<usize> {
    let Schedule { graph, views, groups } = schedule;
    let x = graph.operands(product)[0];
    let position = group_of(schedule, x)?;
    let group = &groups[position];
    let is_stated = |operand: ValueId| matches!(graph.values[views.resolve(operand).base].def, Def::State { .. });
    let reads_state = group.values.iter().flat_map(|&value| graph.operands(value)).any(|&operand| is_stated(operand));
    // The kernel is told the tokens, and no other size.
    let is_sized = |value: ValueId| {
        let dims = graph.ty(value).shape.dims();
        dims.iter().all(|dim| matches!(dim, Dim::Const(_)) || matches!(dim, Dim::Sym(n) if n.name() == "n"))
    };
    let is_sized =
        group.values.iter().all(|&value| is_sized(value) && graph.operands(value).iter().all(|&x| is_sized(x)));
    let is_private = readers(schedule, x) == (vec![product], true);
    let fits = group.kind == Kind::Nest
        && group.outputs == [x]
        && graph.ty(x).dtype == DType::Q8
        && is_rows(schedule, x)
        && !reads_state
        && is_sized
        && is_private;
    fits.then_some(position)
}

/// The readers of a product that may be computed behind it, the last of them the one that others read, and of how many parts of it.
fn after(schedule: &Schedule<'_>, product: ValueId) -> Option<(Vec<ValueId>, u64)> {
    let Schedule { graph, views, groups } = schedule;
    let (values, is_all) = readers(schedule, product);
    let home = group_of(schedule, *values.first()?)?;
    let own: HashSet<ValueId> = values.iter().copied().collect();
    let shape = &graph.ty(values[0]).shape;
    let (rows, columns) = (graph.ty(product).shape.last_const()?, shape.last_const()?);
    let parts = rows.checked_div(columns).filter(|parts| parts * columns == rows)?;
    let here = group_of(schedule, product)?;
    let is_there = |operand: ValueId| {
        let owner = storage_owner(graph, views, operand);
        if owner == product {
            let view = views.resolve(operand);
            return graph.ty(operand).shape == *shape
                && view.strides == [rows as i64, 1]
                && view.offset % columns as i64 == 0;
        }
        own.contains(&operand)
            || views.is_weight_time(operand)
            || group_of(schedule, owner).is_none_or(|group| group < here)
                && !matches!(graph.values[owner].def, Def::State { .. })
    };
    let is_function = |&value: &ValueId| {
        is_rows(schedule, value)
            && graph.ty(value).shape == *shape
            && graph.ty(value).dtype == DType::F32
            && graph.op(value).is_some_and(is_columnwise)
            && group_of(schedule, value) == Some(home)
            && graph.operands(value).iter().all(|&operand| is_there(operand))
    };
    let is_read_outside = |value: &ValueId| {
        groups[home].outputs.contains(value) || {
            let (readers, is_all) = readers(schedule, *value);
            !is_all || readers.iter().any(|reader| !own.contains(reader))
        }
    };
    let outside: Vec<&ValueId> = values.iter().filter(|value| is_read_outside(value)).collect();
    let fits =
        is_all && groups[home].kind == Kind::Nest && values.iter().all(is_function) && outside == [values.last()?];
    fits.then_some((values, parts))
}

/// Whether a column of the op's result depends on the same column of its operands alone.
fn is_columnwise(op: &Op) -> bool {
    matches!(
        op,
        Op::Add(_)
            | Op::Sub(_)
            | Op::Mul(_)
            | Op::Div(_)
            | Op::Minimum(_)
            | Op::Maximum(_)
            | Op::Neg(_)
            | Op::Abs(_)
            | Op::Exp(_)
            | Op::Relu(_)
            | Op::Relu2(_)
            | Op::Relu2Mul(_)
            | Op::Sigmoid(_)
            | Op::Silu(_)
    )
}
