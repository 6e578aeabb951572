//! `lower`: what computes each group: a row of the kernel table, or a loop nest.
//!
//! ```text
//! ;! target = "x86_64:avx2"             whose rows may be chosen; plain `x86_64` if this is left out
//! ```
//!
//! The program is taken as it is written: the optimiser does not run.

use std::ops::RangeInclusive;

use anyhow::anyhow;
use compiler::Target;
use compiler::lower::{cpu, cuda, nest};
use compiler::schedule::group::{Joining, group};
use compiler::schedule::{Kind as GroupKind, Schedule};
use compiler::target::Hardware;
use ir::graph::Program;
use ir::verify::Verified;
use ir::{Graph, ValueId};

use super::{Kind, run, schedule};
use crate::filetest::Case;

/// Expects the kernels in the order in which they run.
pub struct Lower;

impl Kind for Lower {
    fn name(&self) -> &'static str {
        "lower"
    }

    fn options(&self) -> &'static [&'static str] {
        &["target"]
    }

    fn run(&self, case: &Case) -> anyhow::Result<Option<String>> {
        let program = run::program(case)?;
        let target: Target = case.string("target")?.unwrap_or("x86_64").parse()?;
        let mut out = String::new();
        for schedule in schedules(&program, target.hardware())? {
            for (index, group) in schedule.groups.iter().enumerate() {
                let graph = schedule.graph;
                let outputs = schedule::labels(graph, &group.outputs);
                match group.kind {
                    GroupKind::Kernel => {
                        let row = |tokens| row(graph, group.values[0], tokens, &target);
                        out.push_str(&format!("kernel {outputs}: {}\n", rows(row)));
                    }
                    GroupKind::RopeAppend(parts) => {
                        let row = |tokens| match target.hardware() {
                            Hardware::Cuda(sm) => parts.row(graph, &schedule.views, &tokens, sm).map(|desc| desc.name),
                            Hardware::Cpu { .. } => None,
                        };
                        let row = |tokens| row(tokens).unwrap_or("refused").to_owned();
                        out.push_str(&format!("kernel {outputs}: {}\n", rows(row)));
                    }
                    GroupKind::Nest => match nest::lower(&schedule, group, &nest_name(&schedule, index)) {
                        Ok(lowered) => out.push_str(&lowered.nest.to_string()),
                        Err(error) => out.push_str(&format!("nest {outputs}: refused: {error}\n")),
                    },
                    GroupKind::Repeat => out.push_str(&format!("repeat {outputs}\n")),
                    GroupKind::Fused { .. } => unreachable!("groups for any number of tokens have no fused ones"),
                }
                out.push('\n');
            }
        }
        Ok(Some(out))
    }
}

/// The row that computes a value in calls of a range of tokens, or why there is none.
fn row(graph: &Graph, value: ValueId, tokens: RangeInclusive<u64>, target: &Target) -> String {
    let name = match target.hardware() {
        Hardware::Cpu { isa, .. } => cpu::choose(graph, value, &tokens, isa).map(|desc| desc.name),
        Hardware::Cuda(sm) => cuda::choose(graph, value, &tokens, sm).map(|desc| desc.name),
    };
    name.map_or_else(|error| format!("refused: {error}"), str::to_owned)
}

/// The rows for one token and for more.
fn rows(row: impl Fn(RangeInclusive<u64>) -> String) -> String {
    let (one, many) = (row(1..=1), row(2..=16));
    if one == many { one } else { format!("{one} for one token, {many} for more") }
}

/// The schedules of all graphs.
///
/// # Errors
///
/// If there is one without: all reasons.
pub(super) fn schedules(program: &Verified<Program>, hardware: Hardware) -> anyhow::Result<Vec<Schedule<'_>>> {
    let schedules = program.graphs.iter().map(|graph| {
        group(graph, hardware, Joining::Values)
            .map_err(|errors| anyhow!(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
    });
    schedules.collect()
}

/// What a nest is called: its graph and its outputs.
pub(super) fn nest_name(schedule: &Schedule<'_>, group: usize) -> String {
    let labels = schedule::labels(schedule.graph, &schedule.groups[group].outputs).replace(' ', "_");
    format!("{}_{labels}", schedule.graph.name)
}
