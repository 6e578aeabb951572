//! The step of a group that rotates queries and keys and appends keys and values, and of one that computes the attention as well.

use ir::ValueId;
use ir::plan::{Call, Expr, Step};
use kernels::Family;

use super::{PhaseCtx, Places, PlanEmitError, args, bytes_expr, row_bytes};
use crate::emit::work;
use crate::lower::cpu::{self, NoKernel};
use crate::lower::cuda;
use crate::schedule::rope_append::Inputs;
use crate::schedule::{RopeAppend, Schedule};
use crate::target::Hardware;

impl PhaseCtx<'_, '_> {
    pub(super) fn rope_append(
        &mut self,
        schedule: &Schedule<'_>,
        group: RopeAppend,
        places: &mut Places,
    ) -> Result<Step, PlanEmitError> {
        let (graph, views) = (schedule.graph, &schedule.views);
        let desc = match self.emitter.options.hardware {
            Hardware::Cuda(sm) => group.row(graph, views, &self.tokens, sm),
            Hardware::Cpu { .. } => None,
        };
        let refuse = || -> NoKernel {
            let target = self.emitter.options.hardware.to_string();
            cpu::refuse(graph, group.keys, target, "no row rotates and appends".to_owned(), &[])
        };
        let desc = desc.ok_or_else(refuse)?;
        let Inputs { q, k, v, cos, sin, seq, pos } = group.inputs(graph);
        let mut inputs = vec![q, k, v, cos, sin, seq, pos];
        inputs.extend(group.attention.and_then(|attention| graph.operands(attention).last()));
        let mut in_order: Vec<_> = inputs.iter().map(|&input| self.place(schedule, input, places)).collect();
        let output = group.attention.unwrap_or(group.queries);
        let out = self.output(graph, output, places)?;
        let caches = [group.keys, group.values].map(|append| self.place(schedule, append, places));
        match group.attention {
            Some(_) => in_order.extend(caches.into_iter().chain([out])),
            None => in_order.extend([out].into_iter().chain(caches)),
        }
        let dim = |name: &str| group.dim(graph, views, name).expect("every dim of the signature has a value");
        let launch = cuda::launch(desc, graph, group.keys, &dim)?;
        let elements = |value: ValueId| Expr::product(graph.ty(value).shape.dims());
        let read = inputs.iter().fold(Expr::from(0), |bytes, &input| bytes + bytes_expr(graph.ty(input)));
        // An append writes one row for each that it reads.
        let row = |append: ValueId| Expr::from(row_bytes(graph.ty(append)));
        let appended = Expr::product(graph.ty(k).shape.outer()) * (row(group.keys) + row(group.values));
        let written = bytes_expr(graph.ty(output));
        let labels = [group.queries, group.keys, group.values].into_iter().chain(group.attention);
        let labels: Vec<String> = labels.map(|value| graph.describe(value)).collect();
        let machine = &self.emitter.options.machine;
        let (seen, macs, rate, is_early) = match group.attention {
            Some(attention) => (
                self.operand_moves(schedule, attention, 1) + self.operand_moves(schedule, attention, 2),
                work::macs(graph, attention),
                machine.plan_rate(Family::Attention, desc.inputs, desc.layout),
                self.has_old_caches(schedule, attention, places),
            ),
            None => (Expr::from(0), Expr::from(0), machine.plan_elementwise_rate(), true),
        };
        Ok(Step::Call(Call {
            kernel: self.emitter.cuda_kernel(&launch, is_early),
            grid: launch.grid,
            args: args(desc.signature, in_order),
            dims: launch.dims,
            moves: read + seen + written + appended,
            macs,
            ops: elements(q) + elements(k),
            rate,
            start_ns: machine.row_start_ns(desc.family, desc.inputs),
            from: format!("{}.{}", graph.name, labels.join("+")),
        }))
    }
}
