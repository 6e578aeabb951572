//! The step of a group that rotates queries and keys and appends keys and values.

use ir::ValueId;
use ir::plan::{Call, Expr, Step};

use super::{PhaseCtx, Places, PlanEmitError, args, bytes_expr, row_bytes};
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
        let inputs = [q, k, v, cos, sin, seq, pos];
        let mut in_order: Vec<_> = inputs.iter().map(|&input| self.place(schedule, input, places)).collect();
        in_order.push(self.output(graph, group.queries, places)?);
        in_order.extend([group.keys, group.values].map(|append| self.place(schedule, append, places)));
        let dim = |name: &str| group.dim(graph, views, name).expect("every dim of the signature has a value");
        let launch = cuda::launch(desc, graph, group.keys, &dim)?;
        let elements = |value: ValueId| Expr::product(graph.ty(value).shape.dims());
        let read = inputs.iter().fold(Expr::from(0), |bytes, &input| bytes + bytes_expr(graph.ty(input)));
        // An append writes one row for each that it reads.
        let row = |append: ValueId| Expr::from(row_bytes(graph.ty(append)));
        let appended = Expr::product(graph.ty(k).shape.outer()) * (row(group.keys) + row(group.values));
        let labels = [group.queries, group.keys, group.values].map(|value| graph.describe(value));
        Ok(Step::Call(Call {
            kernel: self.emitter.cuda_kernel(&launch, true),
            grid: launch.grid,
            args: args(desc.signature, in_order),
            dims: launch.dims,
            moves: read + bytes_expr(graph.ty(group.queries)) + appended,
            macs: Expr::from(0),
            ops: elements(q) + elements(k),
            rate: self.emitter.options.machine.plan_elementwise_rate(),
            from: format!("{}.{}", graph.name, labels.join("+")),
        }))
    }
}
