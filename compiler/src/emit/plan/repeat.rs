//! A repeat or a scan as a step: the steps of its body once, one buffer for the value that the rounds carry, and one for all that they leave of each
//! other output. Where rounds leave what was carried to them, as training does of what enters a layer, it is carried there: each round writes its result
//! behind what it has read.

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
        let result = body.outputs[0];
        let kept = kept_carried(graph, body_schedule, group).filter(|left| !reverse && !places.contains_key(left));
        // Where a round finds what is carried, and where it leaves it.
        let (carried, left) = match kept {
            Some(all) => {
                let bytes = self.emitter.bytes(body, body.inputs[0], *self.tokens.end())?;
                let label = format!("{}.{}", graph.name, graph.label(all));
                let buffer = self.scratch(label, bytes.saturating_mul(u64::from(count) + 1));
                let at = |round: Expr| Place { buffer, offset: round * bytes_expr(body.ty(body.inputs[0])) };
                steps.push(self.copy(graph, inputs[0], initial, at(Expr::from(0))));
                places.insert(all, at(Expr::from(0)));
                places.insert(value, at(Expr::from(u64::from(count))));
                (at(Expr::symbol(ROUND)), at(Expr::symbol(ROUND) + Expr::from(1)))
            }
            None => {
                let carried = match self.may_carry_in(schedule, value, inputs[0], &initial) {
                    true => initial,
                    false => {
                        let carried = self.output(graph, value, places)?;
                        steps.push(self.copy(graph, inputs[0], initial, carried.clone()));
                        carried
                    }
                };
                places.insert(value, carried.clone());
                (carried.clone(), carried)
            }
        };
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
        let mut wanted = match kept.is_some() || writes_in_place(body_schedule, body.inputs[0], result) {
            true => vec![(result, left.clone())],
            false => Vec::new(),
        };
        for &stacked in group.values[1..].iter().filter(|stacked| Some(**stacked) != kept) {
            let Some(Op::Stacked(Stacked { output, .. })) = graph.op(stacked) else { continue };
            let (place, output) = (self.output(graph, stacked, places)?, body.outputs[*output as usize]);
            wanted.push((output, part(body, output, place)));
        }
        let mut body_steps = self.graph(body_index, &mut body_places, &wanted)?;
        let source = self.place(body_schedule, result, &body_places);
        if source.buffer != left.buffer {
            body_steps.push(self.copy(body, result, source, left));
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

/// The stacked value that holds what was carried to each round, if there is one and the rounds compute what they carry.
fn kept_carried(graph: &Graph, body: &Schedule<'_>, group: &Group) -> Option<ValueId> {
    let (inputs, outputs) = (&body.graph.inputs, &body.graph.outputs);
    let is_kept = |left: &ValueId| match graph.op(*left) {
        Some(Op::Stacked(stacked)) => outputs[stacked.output as usize] == inputs[0],
        _ => false,
    };
    let is_computed = body.groups.iter().any(|group| group.outputs.contains(&outputs[0]));
    group.values[1..].iter().copied().find(is_kept).filter(|_| is_computed && may_preplace(body, outputs[0]))
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
