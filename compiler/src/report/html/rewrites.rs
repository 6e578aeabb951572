//! What the optimiser did to a graph: the rules of each stage, how weights are packed, and for each value that became another the proof.

use std::collections::BTreeMap;

use super::Page;
use super::graph::Changes;
use super::markup::{Markup, human_ns};
use crate::egraph::explain::explain;
use crate::error::CompileError;
use crate::report::human_bytes;
use crate::rewrite::report::bits;
use crate::rewrite::{self, GraphReport, PackingReport, StageReport};

/// The rules that fired.
pub(super) fn rules(out: &mut Markup, report: &GraphReport) {
    let sentences: BTreeMap<String, String> =
        rewrite::rules().into_iter().map(|rule| (rule.name.clone(), rule.sentence.clone())).collect();
    out.element("p", &[("class", &"lead")], |out| {
        out.text("From ");
        out.leaf("strong", &[], picoseconds(report.cost_before));
        out.text(" to ");
        out.leaf("strong", &[], picoseconds(report.cost_after));
        let found = if report.extraction.proved { "proved to be the cheapest" } else { "the cheapest that was found" };
        let decisions = report.extraction.decisions;
        out.text(format!(
            " over all phases by the cost model: {found} among all equal graphs, in {decisions} decisions."
        ));
    });
    if report.stages.is_empty() {
        return;
    }
    out.element("table", &[("class", &"stages")], |out| {
        out.element("tr", &[], |out| {
            for head in ["stage", "cheapest after it", "e-graph", "ended", "rules that showed something new"] {
                out.leaf("th", &[], head);
            }
        });
        report.stages.iter().for_each(|stage| stage_row(out, stage, &sentences));
    });
    if !report.packings.is_empty() {
        out.element("details", &[], |out| {
            out.leaf("summary", &[], "How ternary weights are packed, and what other ways would cost");
            packings(out, &report.packings);
        });
    }
}

fn stage_row(out: &mut Markup, stage: &StageReport, sentences: &BTreeMap<String, String>) {
    out.element("tr", &[], |out| {
        out.leaf("td", &[], stage.stage);
        out.leaf("td", &[("class", &"number")], picoseconds(stage.cost_after));
        out.leaf("td", &[("class", &"number")], format!("{} nodes, {} classes", stage.nodes, stage.classes));
        out.leaf(
            "td",
            &[],
            format!(
                "{} in {} {}",
                stage.stop,
                stage.iterations,
                if stage.iterations == 1 { "round" } else { "rounds" }
            ),
        );
        out.element("td", &[], |out| {
            if stage.rules.is_empty() {
                out.leaf("span", &[("class", &"quiet")], "none");
            }
            for (rule, count) in &stage.rules {
                let sentence = sentences.get(rule).map_or("", String::as_str);
                out.element("span", &[("class", &"chip"), ("title", &sentence)], |out| {
                    out.text(rule);
                    out.leaf("b", &[], format!("×{count}"));
                });
                out.text(" ");
            }
        });
    });
}

fn packings(out: &mut Markup, packings: &[PackingReport]) {
    out.element("table", &[("class", &"packings")], |out| {
        out.element("tr", &[], |out| {
            for head in ["matmul", "way", "weights", "tokens: reading, computing", "over all phases"] {
                out.leaf("th", &[], head);
            }
        });
        for packing in packings {
            for way in &packing.ways {
                let is_chosen = way.layout == packing.chosen;
                out.element("tr", &[("class", &if is_chosen { "chosen" } else { "" })], |out| {
                    out.leaf("td", &[], &packing.value);
                    out.leaf("td", &[], format!("{}{}", bits(way.layout), if is_chosen { " (chosen)" } else { "" }));
                    out.leaf("td", &[("class", &"number")], human_bytes(way.weight_bytes));
                    let phases = way
                        .phases
                        .iter()
                        .map(|(tokens, read, compute)| format!("{tokens}: {}, {}", seconds(*read), seconds(*compute)));
                    out.leaf("td", &[("class", &"number")], phases.collect::<Vec<_>>().join("; "));
                    out.leaf("td", &[("class", &"number")], picoseconds(way.cost));
                });
            }
        }
    });
}

/// For every value that was computed otherwise before, the rules that led from one to the other.
pub(super) fn proofs(out: &mut Markup, page: &Page<'_>, graph: usize, changes: &Changes) -> Result<(), CompileError> {
    let source = &page.source.graphs[graph];
    let mut explained = Vec::new();
    for &value in &changes.rewritten {
        let explanation = explain(page.source, &source.name, value, page.target, page.rewriting)?;
        if !explanation.steps.is_empty() {
            explained.push((source.label(value), explanation));
        }
    }
    if explained.is_empty() {
        return Ok(());
    }
    out.leaf("h4", &[], "Why each rewritten value is equal to what it was");
    for (name, explanation) in explained {
        out.element("details", &[("class", &"proof")], |out| {
            out.element("summary", &[], |out| {
                out.leaf("code", &[], &name);
                let n = explanation.steps.len();
                let checked =
                    if explanation.is_checked() { "every step checked" } else { "not every step could be checked" };
                out.leaf(
                    "span",
                    &[("class", &"quiet")],
                    format!(" {n} {}, {checked}", if n == 1 { "step" } else { "steps" }),
                );
            });
            out.leaf("pre", &[], &explanation.source);
            for step in &explanation.steps {
                out.element("p", &[], |out| {
                    out.leaf("span", &[("class", &"chip")], &step.rule);
                    let backwards = if step.is_forward { "" } else { " (read backwards)" };
                    out.text(format!(" {}{backwards}", step.sentence));
                });
                out.element("pre", &[], |out| {
                    out.leaf("del", &[], &step.before);
                    out.text("\n");
                    out.leaf("ins", &[], &step.after);
                });
            }
        });
    }
    Ok(())
}

fn picoseconds(value: u64) -> String {
    human_ns(value / 1000)
}

fn seconds(value: f64) -> String {
    human_ns((value * 1e9).round() as u64)
}
