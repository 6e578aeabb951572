//! Products with nests in their kernels, as steps.

use ir::ValueId;
use ir::entity::Id;
use ir::plan::{Access, Arg, Call, Code, Expr, Kernel, KernelId, Step, manifest};

use super::{PhaseCtx, Places, PlanEmitError, bytes_expr, nest_name, touched_bytes, unique};
use crate::emit::cuda_c::fused::{Fused, Part};
use crate::emit::work;
use crate::lower::{cpu, cuda, nest};
use crate::schedule::{Group, Kind, Schedule};
use crate::target::Hardware;

/// One side of a product.
struct Side {
    group: Group,
    part: Part,
    /// The value behind each buffer of the nest.
    buffers: Vec<ValueId>,
}

impl Side {
    /// The nest of some values of a fused group, if there are any. `shared` is what it has in common with the product.
    fn new(
        schedule: &Schedule<'_>,
        values: &[ValueId],
        output: ValueId,
        shared: ValueId,
        (name, prefix): (&str, &'static str),
    ) -> Result<Option<Self>, PlanEmitError> {
        if values.is_empty() {
            return Ok(None);
        }
        let group = Group { kind: Kind::Nest, values: values.to_vec(), outputs: vec![output] };
        let nest::Lowered { nest, buffers } = nest::lower_with(schedule, &group, name, prefix)?;
        let shared = buffers.iter().position(|&value| value == shared);
        let shared = shared.expect("the schedule puts beside a product what it reads or what reads it");
        Ok(Some(Self { group, part: Part { nest, shared }, buffers }))
    }
}

impl PhaseCtx<'_, '_> {
    /// The call of a product that computes its activations and what follows from it.
    pub(super) fn fused_call(
        &mut self,
        schedule: &Schedule<'_>,
        group: &Group,
        product: usize,
        places: &mut Places,
    ) -> Result<Step, PlanEmitError> {
        let Hardware::Cuda(sm) = self.emitter.options.hardware else {
            unreachable!("products are fused for GPUs only");
        };
        let graph = schedule.graph;
        let (value, output) = (group.values[product], group.outputs[0]);
        let [x, w, scale] = [0, 1, 2].map(|position| graph.operands(value)[position]);
        self.output(graph, output, places)?;

        let phase = self.emitter.schedules.phases[self.index].name;
        let name = unique(&mut self.emitter.names, format!("{}_{phase}", nest_name(graph, group)));
        let before = Side::new(schedule, &group.values[..product], x, x, (&format!("{name}_before"), "before_"))?;
        let after =
            Side::new(schedule, &group.values[product + 1..], output, value, (&format!("{name}_after"), "after_"))?;
        let size = |value| graph.ty(value).shape.last_const().unwrap_or(1);
        let row = cuda::choose_fused(graph, value, size(value) / size(output), &self.tokens, sm);
        let (desc, _) = row.expect("the schedule fuses only where there is a row");
        let dim = |name: &str| cpu::dim(graph, value, name, 0).expect("every dim of a signature has a value");
        let launch = cuda::launch(desc, graph, value, &dim)?;
        let code = Code::Cuda {
            file: manifest::cubin(&name),
            entry: name.clone(),
            threads: desc.launch.threads,
            shared_bytes: launch.shared_bytes,
            waits: desc.waits() && [w, scale].iter().all(|&weight| schedule.views.is_weight_time(weight)),
        };

        // Arguments in the order of the source: for the activations, for the product, for what follows.
        let mut args = Vec::new();
        let mut moves = Expr::from(0);
        let mut ops = Expr::from(0);
        let mut side = |side: &Side, args: &mut Vec<Arg>, moves: &mut Expr| {
            for position in side.part.arguments() {
                let buffer = side.buffers[position];
                let place = places[&buffer].clone();
                let access = if side.part.nest.buffers[position].write { Access::Write } else { Access::Read };
                args.push(Arg { access, buffer: place.buffer, offset: place.offset });
                *moves = moves.clone() + touched_bytes(graph, &side.group, buffer);
            }
            ops = ops.clone() + work::ops(graph, &side.group);
        };
        let read = |position: usize, args: &mut Vec<Arg>, moves: &mut Expr| {
            let place = self.operand_place(schedule, value, position, places);
            args.push(Arg { access: Access::Read, buffer: place.buffer, offset: place.offset });
            *moves = moves.clone() + self.operand_moves(schedule, value, position);
        };
        match &before {
            Some(before) => side(before, &mut args, &mut moves),
            None => read(0, &mut args, &mut moves),
        }
        // Each block computes the activations for itself.
        let of_row = before.as_ref().map_or(0, |_| moves.evaluate(&|_: &str| Some(1)).unwrap_or(0));
        read(1, &mut args, &mut moves);
        read(2, &mut args, &mut moves);
        match &after {
            Some(after) => side(after, &mut args, &mut moves),
            None => {
                let place = places[&value].clone();
                args.push(Arg { access: Access::Write, buffer: place.buffer, offset: place.offset });
                moves = moves + bytes_expr(graph.ty(value));
            }
        }

        let kernel = KernelId::new(self.emitter.plan.kernels.len());
        self.emitter.plan.kernels.push(Kernel { name: name.clone(), code });
        let fused = Fused {
            name,
            special: launch.special,
            before: before.map(|side| side.part),
            after: after.map(|side| side.part),
        };
        self.emitter.fused.push((kernel, fused));
        let labels =
            group.values[..product].last().into_iter().chain([&value]).chain(group.values[product + 1..].last());
        let labels: Vec<String> = labels.map(|&value| graph.describe(value)).collect();
        let machine = &self.emitter.options.machine;
        Ok(Step::Call(Call {
            kernel,
            grid: launch.grid,
            args,
            dims: launch.dims,
            moves,
            macs: work::macs(graph, value),
            ops,
            rate: machine.plan_rate(desc.family, desc.inputs, desc.layout),
            start_ns: machine.start_ns(of_row),
            from: format!("{}.{}", graph.name, labels.join("+")),
        }))
    }
}
