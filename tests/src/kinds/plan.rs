//! `plan`: the steps that the runtime would take for a program, and where its buffers lie.
//!
//! ```text
//! ;! stage = ["fuse"]                   the optimiser's stages that run before; none if this is left out
//! ;! phase = "decode"                   show the steps of this phase only
//! ;! target = "cuda:sm_90a"             plain `x86_64` if this is left out; for a GPU no code is made
//! ```
//!
//! The program is compiled for that target, on whatever machine, and must have the signature that the runtime calls: `ids`, `seq`, `pos`,
//! `span` and `rows` in, logits out. Expected is the plan in short; places and sizes are bytes. Places of machine code are left out, because every
//! change of the code generator moves them, and so are the rates that the compiler has guessed.

use anyhow::{Context, ensure};
use compiler::emit::nvrtc::Search;
use compiler::emit::plan::{PlanOptions, emit};
use compiler::schedule::Residency;
use compiler::target::Hardware;
use compiler::{Options, Target, rewrite};
use ir::entity::Id;
use ir::plan::{Budget, Buffer, BufferId, Plan, Role, Step};

use super::{Kind, run};
use crate::filetest::Case;

/// Expects the plan in short.
pub struct Short;

/// Caches of programs that have none; others say themselves how large theirs are.
const CONTEXT: u64 = 16;

impl Kind for Short {
    fn name(&self) -> &'static str {
        "plan"
    }

    fn options(&self) -> &'static [&'static str] {
        &["stage", "phase", "target"]
    }

    fn run(&self, case: &Case) -> anyhow::Result<Option<String>> {
        let program = run::program(case)?;
        let stages = case.strings("stage")?.into_iter().map(str::to_owned).collect();
        let options = Options {
            rewrite: rewrite::Options { stages, ..rewrite::Options::all() },
            context: CONTEXT,
            sequences: 1,
            dumps: false,
            nvrtc: Search::default(),
            residency: Residency::default(),
            budget: Budget::default(),
            allow_spills: false,
        };
        let target: Target = case.string("target")?.unwrap_or("x86_64").parse()?;
        let written = match target.hardware() {
            Hardware::Cpu { .. } => compiler::compile(program, &target, &options)?.plan,
            // Its code would need NVRTC.
            hardware @ Hardware::Cuda(_) => {
                let (program, _) = rewrite::optimise(&program, &target, &options.rewrite)?;
                let Options { context, sequences, residency, budget, .. } = options;
                let machine = target.machine.clone();
                let plan = emit(
                    &program,
                    &PlanOptions { hardware, machine, context, sequences, residency, budget, training: None },
                )?
                .plan;
                ir::plan::check(&plan)?;
                plan
            }
        };
        let plan = Plan::from_ron(&written.to_ron()).context("the plan read back")?;
        ensure!(plan == written, "the plan reads back as another one");
        short(&plan, case.string("phase")?).map(Some)
    }
}

fn short(plan: &Plan, only: Option<&str>) -> anyhow::Result<String> {
    let mut phases = plan.phases.iter().enumerate().filter(|(_, phase)| only.is_none_or(|name| name == phase.name));
    let mut out = format!("slab {} bytes, weights {} bytes\n", plan.slab_bytes, plan.weights_bytes);
    for (position, buffer) in plan.buffers.iter().enumerate() {
        if !matches!(buffer.role, Role::Scratch(_)) {
            out.push_str(&buffer_line(BufferId::new(position), buffer));
        }
    }
    let mut is_empty = true;
    for (index, phase) in phases.by_ref() {
        is_empty = false;
        out.push_str(&format!("\nphase {}, n <= {}\n", phase.name, phase.max_tokens));
        for (position, buffer) in plan.buffers.iter().enumerate() {
            if buffer.role == Role::Scratch(index) {
                out.push_str(&buffer_line(BufferId::new(position), buffer));
            }
        }
        steps(plan, &phase.steps, 1, &mut out);
    }
    ensure!(!is_empty, "the plan has no such phase");
    Ok(out)
}

fn buffer_line(id: BufferId, buffer: &Buffer) -> String {
    let role = match buffer.role {
        Role::Weight => "weight",
        Role::Slots => "slots",
        Role::State => "state",
        Role::Input => "input",
        Role::Output => "output",
        Role::Scratch(_) => "scratch",
    };
    let rounds = match buffer.rounds {
        0 | 1 => String::new(),
        rounds => format!(", {rounds} rounds {} apart", buffer.stride),
    };
    format!("  {:<4} {role:<7} {} at {}, {} bytes{rounds}\n", id.to_string(), buffer.name, buffer.offset, buffer.bytes)
}

fn steps(plan: &Plan, of: &[Step], depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    for step in of {
        match step {
            Step::Call(call) => {
                let kernel = &plan.kernel(call.kernel).name;
                out.push_str(&format!("{indent}{kernel} over {}\n", call.grid));
                for arg in &call.args {
                    out.push_str(&format!("{indent}  {arg}  {}\n", plan.buffer(arg.buffer).name));
                }
                let dims: Vec<String> = call.dims.iter().map(ToString::to_string).collect();
                if !dims.is_empty() {
                    out.push_str(&format!("{indent}  dims {}\n", dims.join(", ")));
                }
                out.push_str(&format!("{indent}  moves {} bytes", call.moves));
                for (work, unit) in [(&call.macs, "macs"), (&call.ops, "ops")] {
                    if work.as_const() != Some(0) {
                        out.push_str(&format!(", {work} {unit}"));
                    }
                }
                out.push_str(&format!(", from {}\n", call.from));
            }
            Step::Copy { from, to, bytes } => {
                out.push_str(&format!("{indent}copy {bytes} bytes, {from}, {to}\n"));
            }
            Step::Repeat { count, reverse, steps: inner } => {
                let way = if *reverse { " backwards" } else { "" };
                out.push_str(&format!("{indent}repeat {count}{way}\n"));
                steps(plan, inner, depth + 1, out);
            }
        }
    }
}
