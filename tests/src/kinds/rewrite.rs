//! `rewrite`: what the optimiser makes of a program, which rules fire, and that the result computes the same.
//!
//! ```text
//! ;! stage = ["canonicalise"]           the stages to run, in their order; all if this is left out
//! ;! expect = ["neg-neg"]               rules that must show something new
//! ;! expect-not = ["add-neg"]           rules that must not
//! ;! costs = true                       show what program and result cost, not only whether it is less
//! ```
//!
//! Expected are the optimised program and whether it costs less. Costs themselves follow from guessed rates, so only few files show them: a
//! better guess should not change all. With `; run:` lines, program and result are both evaluated.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use compiler::{Target, rewrite};
use ir::graph::Program;
use ir::reference::Evaluator;
use ir::verify::Verified;

use super::{Kind, run};
use crate::filetest::Case;

/// Expects the optimised program.
pub struct Rewrite;

/// Costs are those of one target, so that results are the same everywhere.
const TARGET: &str = "x86_64:avx2";

impl Kind for Rewrite {
    fn name(&self) -> &'static str {
        "rewrite"
    }

    fn options(&self) -> &'static [&'static str] {
        &["stage", "expect", "expect-not", "costs"]
    }

    fn run(&self, case: &Case) -> anyhow::Result<Option<String>> {
        let program = run::program(case)?;
        let mut options = rewrite::Options::all();
        if case.options.contains_key("stage") {
            options.stages = case.strings("stage")?.into_iter().map(str::to_owned).collect();
        }
        let target: Target = TARGET.parse()?;
        let (optimised, report) = rewrite::optimise(&program, &target, &options)?;

        let stages = report.graphs.iter().flat_map(|graph| &graph.stages);
        let fired: BTreeSet<&str> = stages.flat_map(|stage| stage.rules.keys()).map(String::as_str).collect();
        let list = || fired.iter().copied().collect::<Vec<_>>().join(", ");
        for rule in expected_rules(case)? {
            ensure!(fired.contains(rule), "rule `{rule}` does not fire; those that do: {}", list());
        }
        for rule in case.strings("expect-not")? {
            ensure!(is_rule(rule), "there is no rule `{rule}`");
            ensure!(!fired.contains(rule), "rule `{rule}` fires");
        }
        if !case.directives("run").is_empty() {
            compute(case, &program).context("the program as it is written")?;
            compute(case, &optimised)
                .with_context(|| format!("the optimised program\n{}", ir::text::print(&optimised)))?;
        }
        let shows_costs = match case.options.get("costs") {
            None => false,
            Some(value) => value.as_bool().context("`costs` must be true or false")?,
        };
        let costs = report.graphs.iter().map(|graph| {
            let nanoseconds = |picoseconds: u64| picoseconds as f64 / 1000.0;
            let (before, after) = (nanoseconds(graph.cost_before), nanoseconds(graph.cost_after));
            match shows_costs {
                true => format!("\n@{} costs {before:.3} ns, and {after:.3} ns now", graph.graph),
                false if after < before => format!("\n@{} costs less", graph.graph),
                false => format!("\n@{} costs the same", graph.graph),
            }
        });
        Ok(Some(format!("{}{}", ir::text::print(&optimised), costs.collect::<String>())))
    }
}

/// The rules that a case of this kind says must fire.
///
/// # Errors
///
/// If there is no such rule.
pub fn expected_rules(case: &Case) -> anyhow::Result<Vec<&str>> {
    let rules = case.strings("expect")?;
    rules.iter().try_for_each(|rule| {
        ensure!(is_rule(rule), "there is no rule `{rule}`");
        Ok(())
    })?;
    Ok(rules)
}

fn is_rule(name: &str) -> bool {
    rewrite::rules().iter().any(|rule| rule.name == name)
}

/// Evaluates the `run` lines.
fn compute(case: &Case, program: &Verified<Program>) -> anyhow::Result<()> {
    for session in run::sessions(case, program)? {
        let mut evaluator = Evaluator::new(program, &session.parameters);
        for line in &session.runs {
            let outputs = evaluator.run(&line.inputs).with_context(|| format!("line {}", line.line))?;
            line.check(&outputs)?;
        }
    }
    Ok(())
}
