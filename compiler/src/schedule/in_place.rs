//! What nests may write over: the states that they read, where results are nothing but new values of states, element by element; and whatever nobody
//! reads any more, where the code of the nest allows it ([`crate::nest::Nest::may_lie_on`]).
//!
//! One stage then computes all results of a column before it writes any, and a unit reads no other unit's part of what is overwritten.

use std::collections::HashMap;

use ir::entity::Id;
use ir::graph::{Def, Graph};
use ir::{Op, ValueId};

use super::group::{is_by_element, storage_owner};
use super::{Group, Kind, Schedule};

/// The states that a group writes over, each with the value that it becomes; none if the group may not.
pub fn overwritten(schedule: &Schedule<'_>, group: &Group) -> Vec<(ValueId, ValueId)> {
    let graph = schedule.graph;
    if group.kind != Kind::Nest {
        return Vec::new();
    }
    let shape = &graph.ty(group.outputs[0]).shape;
    let new = |output: ValueId| {
        let mut updates = graph.updates.iter().filter(move |update| update.value == output);
        let update = updates.next().filter(|_| updates.next().is_none())?;
        let is_plain = !graph.ty(output).dtype.is_row_format()
            && graph.ty(output).shape == *shape
            && !graph.op(output).is_some_and(|op| is_by_element(op) || matches!(op, Op::Rope(_) | Op::Concat(_)));
        let is_known = graph.outputs.iter().all(|&root| schedule.views.resolve(root).base != update.state);
        (is_plain && is_known && is_read_here_alone(schedule, group, update.state)).then_some((update.state, output))
    };
    group.outputs.iter().map(|&output| new(output)).collect::<Option<Vec<_>>>().unwrap_or_default()
}

/// The last group that reads each value that has storage of its own. Results of the graph, new values of states and what is never read have none.
pub fn last_uses(schedule: &Schedule<'_>) -> HashMap<ValueId, usize> {
    let Schedule { graph, views, groups } = schedule;
    let mut last = HashMap::new();
    for (position, group) in groups.iter().enumerate() {
        for &operand in group.values.iter().flat_map(|&value| graph.operands(value)) {
            last.insert(storage_owner(graph, views, operand), position);
        }
    }
    for root in graph.outputs.iter().copied().chain(graph.updates.iter().map(|update| update.value)) {
        last.remove(&storage_owner(graph, views, root));
    }
    last
}

/// Whether a state is read by elementwise ops of a group, and by nothing else of its graph.
fn is_read_here_alone(schedule: &Schedule<'_>, group: &Group, state: ValueId) -> bool {
    let graph = schedule.graph;
    let live = graph.live();
    let mut readers = graph
        .values
        .ids()
        .filter(|id| live[id.index()])
        .filter(|&id| graph.operands(id).iter().any(|&operand| schedule.views.resolve(operand).base == state));
    let is_other_update = graph.updates.iter().any(|update| schedule.views.resolve(update.value).base == state);
    readers.all(|id| group.values.contains(&id) && is_elementwise(graph, id) && graph.operands(id).contains(&state))
        && !is_other_update
}

/// Whether an element of a result depends on the same element of each operand of its shape, and on nothing else of it.
fn is_elementwise(graph: &Graph, id: ValueId) -> bool {
    let Def::Op { op, inputs } = &graph.values[id].def else { return false };
    let same_shape = inputs.iter().any(|&input| graph.ty(input).shape == graph.ty(id).shape);
    same_shape
        && matches!(
            op,
            Op::Add(_)
                | Op::Sub(_)
                | Op::Mul(_)
                | Op::Div(_)
                | Op::Minimum(_)
                | Op::Maximum(_)
                | Op::Less(_)
                | Op::Select(_)
                | Op::Neg(_)
                | Op::Abs(_)
                | Op::Sqrt(_)
                | Op::Cast(_)
        )
}
