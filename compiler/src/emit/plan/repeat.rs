//! A repeat or a scan as a step: the steps of its body once, one buffer for the value that the rounds carry, and one for all that they leave of each
//! other output.

use ir::graph::{Def, Graph};
use ir::op::control::Stacked;
use ir::plan::{Expr, ROUND, Role, Step};
use ir::{Op, ValueId};

use super::{PhaseCtx, Place, Places, PlanEmitError, bytes_expr, may_preplace};
use crate::schedule::group::storage_owner;
use crate::schedule::{Group, Schedule};

impl PhaseCtx<'_, '_> {
    pub(super) fn repeat(
        &mut self,
        schedule: &Schedule<'_>,
        group: &Group,
        places: &mut Places,
        steps: &mut Vec<Step>,
    ) -> Result<(), PlanEmitError> {
        let (graph, value) = (schedule.graph, group.values[0]);
        let Def::Op { op, inputs } = &graph.values[value].def else {
            unreachable!("groups of this kind hold a repeat");
        };
        let (name, count) = op.body().expect("groups of this kind hold a repeat");
        let (stacked, reverse) = match op {
            Op::Scan(scan) => (scan.stacked as usize, scan.reverse != 0),
            _ => (0, false),
        };
        let program = self.emitter.program;
        let body_index = program.graphs.iter().position(|body| body.name == name).expect("the verifier found the body");
        let schedules = self.schedules;
        let body_schedule = &schedules[body_index];
        let body = body_schedule.graph;
        let initial = self.place(schedule, inputs[0], places);
        let carried = match self.may_carry_in(schedule, value, inputs[0], &initial) {
            true => initial,
            false => {
                let carried = self.output(graph, value, places)?;
                steps.push(self.copy(graph, inputs[0], initial, carried.clone()));
                carried
            }
        };
        places.insert(value, carried.clone());
        if !self.emitter.runs(body) {
            return Ok(());
        }
        let mut body_places = self.emitter.fixed[body_index].clone();
        body_places.insert(body.inputs[0], carried.clone());
        for (position, (&parameter, &argument)) in body.inputs.iter().zip(inputs).enumerate().skip(1) {
            let place = self.place(schedule, argument, places);
            let is_stacked = inputs.len() - stacked <= position;
            body_places.insert(parameter, if is_stacked { part(body, parameter, place) } else { place });
        }
        let result = body.outputs[0];
        let mut wanted = match writes_in_place(body_schedule, body.inputs[0], result) {
            true => vec![(result, carried.clone())],
            false => Vec::new(),
        };
        for &left in &group.values[1..] {
            let Some(Op::Stacked(Stacked { output, .. })) = graph.op(left) else { continue };
            let (place, output) = (self.output(graph, left, places)?, body.outputs[*output as usize]);
            wanted.push((output, part(body, output, place)));
        }
        let mut body_steps = self.graph(body_index, &mut body_places, &wanted)?;
        let source = self.place(body_schedule, result, &body_places);
        if source.buffer != carried.buffer {
            body_steps.push(self.copy(body, result, source, carried));
        }
        steps.push(Step::Repeat { count, reverse, steps: body_steps });
        Ok(())
    }

    /// Whether the rounds may overwrite the buffer of the first carried value: it is scratch, and nothing else reads it.
    fn may_carry_in(&self, schedule: &Schedule<'_>, repeat: ValueId, initial: ValueId, place: &Place) -> bool {
        let graph = schedule.graph;
        let owner = storage_owner(graph, &schedule.views, initial);
        let is_read_elsewhere = graph.values.ids().any(|user| {
            let operands = graph.operands(user).iter().enumerate();
            // An append lies in its cache as a view does, but reads what it appends.
            let is_access = !schedule.views.is_view(user) || matches!(graph.op(user), Some(Op::KvAppend(_)));
            let mut reads = operands.filter(|(position, operand)| {
                storage_owner(graph, &schedule.views, **operand) == owner
                    && !(user == repeat && *position == 0)
                    && is_access
            });
            reads.next().is_some()
        });
        // Results and new states are copied from it at the end.
        let mut roots = graph.outputs.iter().copied().chain(graph.updates.iter().map(|update| update.value));
        let is_kept = roots.any(|root| storage_owner(graph, &schedule.views, root) == owner);
        let is_scratch = matches!(self.emitter.plan.buffer(place.buffer).role, Role::Scratch(_));
        is_scratch && !is_read_elsewhere && !is_kept
    }
}

/// The part of a round of what all rounds have of a value.
fn part(body: &Graph, value: ValueId, all: Place) -> Place {
    let bytes = bytes_expr(body.ty(value));
    Place { buffer: all.buffer, offset: all.offset + Expr::symbol(ROUND) * bytes }
}

/// Whether the last writer of a round may write over the carried value: neither it nor a later group reads the old one.
fn writes_in_place(schedule: &Schedule<'_>, carried: ValueId, result: ValueId) -> bool {
    let Some(writer) = schedule.groups.iter().position(|group| group.outputs.contains(&result)) else { return false };
    let reads = |group: &Group| {
        let operands = group.values.iter().flat_map(|&value| schedule.graph.operands(value));
        operands.into_iter().any(|&operand| schedule.views.resolve(operand).base == carried)
    };
    may_preplace(schedule, result)
        && !schedule.groups[writer..].iter().any(reads)
        && !schedule.graph.updates.iter().any(|update| schedule.views.resolve(update.value).base == carried)
}
