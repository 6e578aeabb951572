//! `schedule`: which values of a program become one kernel, in which order, and which are no work at all.
//!
//! ```text
//! ;! target = "cuda:sm_80"              plain `x86_64` if this is left out; of a GPU the groups of calls of one token
//! ```
//!
//! The program is taken as it is written: the optimiser does not run.

use compiler::Target;
use compiler::lower::cuda;
use compiler::schedule::group::{Joining, group};
use compiler::schedule::{Kind as GroupKind, Schedule};
use compiler::target::Hardware;
use ir::entity::Id;
use ir::graph::Def;
use ir::{Graph, Op, ValueId};

use super::{Kind, run};
use crate::filetest::Case;

/// Expects the groups of each graph, or why there are none.
pub struct Groups;

impl Kind for Groups {
    fn name(&self) -> &'static str {
        "schedule"
    }

    fn options(&self) -> &'static [&'static str] {
        &["target"]
    }

    fn run(&self, case: &Case) -> anyhow::Result<Option<String>> {
        let program = run::program(case)?;
        let target: Target = case.string("target")?.unwrap_or("x86_64").parse()?;
        let for_target = |schedule| match target.hardware() {
            Hardware::Cpu { .. } => schedule,
            Hardware::Cuda(sm) => cuda::fuse(schedule, &(1..=1), sm),
        };
        let mut out = String::new();
        for graph in &program.graphs {
            out.push_str(&format!("graph @{}\n", graph.name));
            match group(graph, target.hardware(), Joining::Values).map(for_target) {
                Ok(schedule) => lines(&schedule).iter().for_each(|line| out.push_str(&format!("  {line}\n"))),
                Err(errors) => errors.iter().for_each(|error| out.push_str(&format!("  refused: {error}\n"))),
            }
        }
        Ok(Some(out))
    }
}

/// The groups in order, then the values that are none: those known at weight time that a kernel reads, and views.
fn lines(schedule: &Schedule<'_>) -> Vec<String> {
    let graph = schedule.graph;
    let mut lines = Vec::new();
    for group in &schedule.groups {
        let kind = match group.kind {
            GroupKind::Kernel | GroupKind::RopeAppend(_) => "kernel",
            GroupKind::Nest => "nest",
            GroupKind::Repeat => "repeat",
            GroupKind::Fused { .. } => "fused",
        };
        let values = group.values.iter().map(|&value| format!("{} = {}", graph.label(value), op_name(graph, value)));
        let values: Vec<String> = values.collect();
        lines.push(format!("{kind:<7} {} -> {}", values.join(", "), labels(graph, &group.outputs)));
    }
    let live = graph.live();
    let is_computed = |id: &ValueId| live[id.index()] && matches!(graph.values[*id].def, Def::Op { .. });
    for id in graph.values.ids().filter(is_computed) {
        if schedule.views.is_weight_time(id) {
            lines.push(format!("packed  {} = {}", graph.label(id), op_name(graph, id)));
        } else if schedule.views.is_view(id) {
            let view = schedule.views.resolve(id);
            let strides: Vec<String> = view.strides.iter().map(ToString::to_string).collect();
            let (base, offset) = (graph.label(view.base), view.offset);
            lines.push(format!("view    {} = {base} at {offset}, strides {}", graph.label(id), strides.join(" ")));
        }
    }
    lines
}

fn op_name(graph: &Graph, value: ValueId) -> &'static str {
    graph.op(value).map_or("value", Op::name)
}

/// The names of values, in order.
pub(super) fn labels(graph: &Graph, values: &[ValueId]) -> String {
    values.iter().map(|&value| graph.label(value)).collect::<Vec<_>>().join(" ")
}
