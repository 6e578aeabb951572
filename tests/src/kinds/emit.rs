//! `emit`: the code that is generated for a nest, as Cranelift IR before its own optimisation.
//!
//! ```text
//! ;! kernel = "main_y"                  the nest, by its graph and outputs
//! ;! target = "x86_64:avx2"             plain `x86_64` if this is left out
//! ```
//!
//! The program is taken as it is written: the optimiser does not run. Whatever the kernel, all nests must assemble, for all targets.

use anyhow::Context;
use compiler::Target;
use compiler::emit::{CodeTarget, assemble, cuda_c};
use compiler::lower::nest;
use compiler::nest::Verified as VerifiedNest;
use compiler::schedule::Kind as GroupKind;
use compiler::target::Hardware;

use super::{Kind, lower, run};
use crate::filetest::Case;

/// Expects the IR of one kernel.
pub struct Emit;

impl Kind for Emit {
    fn name(&self) -> &'static str {
        "emit"
    }

    fn options(&self) -> &'static [&'static str] {
        &["kernel", "target"]
    }

    fn run(&self, case: &Case) -> anyhow::Result<Option<String>> {
        let program = run::program(case)?;
        let kernel = case.string("kernel")?.context("the header names no `kernel`")?;
        let target: Target = case.string("target")?.unwrap_or("x86_64").parse()?;
        let mut nests: Vec<VerifiedNest> = Vec::new();
        for schedule in lower::schedules(&program, target.hardware())? {
            for (index, group) in schedule.groups.iter().enumerate() {
                if group.kind == GroupKind::Nest {
                    nests.push(nest::lower(&schedule, group, &lower::nest_name(&schedule, index))?.nest);
                }
            }
        }
        let nests: Vec<&VerifiedNest> = nests.iter().collect();
        for name in Target::NAMES {
            let target: Target = name.parse()?;
            if let Some(code_target) = code_target(&target) {
                assemble(&nests, code_target, false).with_context(|| format!("for {target}"))?;
            }
        }
        let Some(code_target) = code_target(&target) else {
            let names: Vec<&str> = nests.iter().map(|nest| nest.name.as_str()).collect();
            let nest = nests.iter().find(|nest| nest.name == kernel);
            let nest = nest.with_context(|| format!("there is no nest `{kernel}`; the nests: {}", names.join(", ")))?;
            return Ok(Some(cuda_c::kernel(nest)));
        };
        let code = assemble(&nests, code_target, true)?;
        let listing = code.listings.iter().find(|listing| listing.name == kernel).with_context(|| {
            let names: Vec<&str> = nests.iter().map(|nest| nest.name.as_str()).collect();
            format!("there is no nest `{kernel}`; the nests: {}", names.join(", "))
        })?;
        Ok(Some(listing.clif.clone()))
    }
}

/// The CPU of a target; `None` for a GPU.
fn code_target(target: &Target) -> Option<CodeTarget> {
    match target.hardware() {
        Hardware::Cpu { arch, isa } => CodeTarget::new(arch, isa),
        Hardware::Cuda(_) => None,
    }
}
