//! `tritterc explain`: which rules made a program what it is, and why a value became what it became.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use compiler::Target;
use compiler::egraph::explain::explain;
use compiler::rewrite;
use compiler::rewrite::report::bits;
use ir::{Program, ValueId};
use similar::TextDiff;

use crate::model::{self, BuildArgs};
use crate::opt::Packing;
use crate::{say, say_json};

/// Explains the optimiser: rules fired, costs, what changed; or the proof for one value.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  tritterc explain tiny\n  tritterc explain tiny --why layer.ffn.up\n  \
tritterc explain program.tri --json")]
pub(crate) struct Args {
    /// Checkpoint directory, .ron spec, .tri program, or name of a shipped spec.
    model: String,
    /// A value of the program as the model declares it, GRAPH.NAME or GRAPH.v12: show the rules that led to its final form.
    #[arg(long, value_name = "VALUE")]
    why: Option<String>,
    /// CPU to optimise for.
    #[arg(long, default_value = "native")]
    target: Target,
    /// Rates that `tritter tune` measured on the machine to compile for, instead of guesses.
    #[arg(long, value_name = "FILE")]
    tuning: Option<PathBuf>,
    /// How ternary weights are packed: the faster way for each matmul by the machine's rates, or one way.
    #[arg(long, value_enum, default_value = "auto")]
    packing: Packing,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    build: BuildArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let program = model::program(&args.model, &args.build)?;
    let options = crate::opt::rewrite_options(true, None, args.packing);
    let target = model::tuned(&args.target, args.tuning.as_deref())?;
    if let Some(value) = &args.why {
        return why(args, &program, value, &target, &options);
    }
    let (optimised, report) = rewrite::optimise(&program, &target, &options)?;
    if args.json {
        say_json(&json(&report))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (before, after) = (ir::text::print(&program), ir::text::print(&optimised));
    let diff = TextDiff::from_lines(&before, &after);
    say(&format!(
        "machine: {}\n{report}  {:.3} s in all\n\n{}",
        target.machine,
        report.seconds(),
        diff.unified_diff().context_radius(2).header("declared", "optimised")
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn why(
    args: &Args,
    program: &ir::Verified<Program>,
    name: &str,
    target: &Target,
    options: &rewrite::Options,
) -> Result<ExitCode> {
    let (graph, value) = find(program, name)?;
    let explanation = explain(program, graph, value, target, options)?;
    if args.json {
        let steps = explanation.steps.iter().map(|step| {
            serde_json::json!({
                "rule": step.rule, "sentence": step.sentence, "forward": step.is_forward,
                "before": step.before, "after": step.after, "checked": step.is_checked,
            })
        });
        let value = serde_json::json!({
            "value": name, "source": explanation.source, "result": explanation.result,
            "checked": explanation.is_checked(), "steps": steps.collect::<Vec<_>>(),
        });
        say_json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!("{name}\n  {}\n", explanation.source);
    for step in &explanation.steps {
        let direction = if step.is_forward { "" } else { ", backwards" };
        let checked = if step.is_checked { "" } else { " (not checked)" };
        text +=
            &format!("\n{}{direction}{checked}: {}\n  {}\n  = {}\n", step.rule, step.sentence, step.before, step.after);
    }
    text += &format!("\nresult\n  {}\n", explanation.result);
    say(&text)?;
    Ok(if explanation.is_checked() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The value called `graph.name`; the name may hold points itself.
fn find<'a>(program: &'a Program, name: &str) -> Result<(&'a str, ValueId)> {
    let (graph, label) =
        name.split_once('.').ok_or_else(|| anyhow!("`{name}` is not like layer.ffn.up or layer.v12"))?;
    let Some(graph) = program.graph(graph) else {
        let names: Vec<&str> = program.graphs.iter().map(|graph| graph.name.as_str()).collect();
        bail!("there is no graph `{graph}`; graphs are {}", names.join(", "));
    };
    let by_id = label.parse::<ValueId>().ok().filter(|id| graph.values.get(*id).is_some());
    let by_name = graph.values.iter().find(|(_, value)| value.name.as_deref() == Some(label)).map(|(id, _)| id);
    match by_name.or(by_id) {
        Some(value) => Ok((&graph.name, value)),
        None => {
            let names: Vec<&str> = graph.values.values().filter_map(|value| value.name.as_deref()).collect();
            bail!("graph `{}` has no value `{label}`; named are {}", graph.name, names.join(", "))
        }
    }
}

pub(crate) fn json(report: &rewrite::Report) -> serde_json::Value {
    let stage = |stage: &rewrite::StageReport| {
        serde_json::json!({
            "stage": stage.stage, "rules": stage.rules, "iterations": stage.iterations, "nodes": stage.nodes,
            "classes": stage.classes, "stop": stage.stop.to_string(), "seconds": stage.seconds,
            "cost_before_ps": stage.cost_before, "cost_after_ps": stage.cost_after,
        })
    };
    let packing = |packing: &rewrite::PackingReport| {
        let phase = |(tokens, read, compute): &(u64, f64, f64)| serde_json::json!({ "tokens": tokens, "read_seconds": read, "compute_seconds": compute });
        let ways = packing.ways.iter().map(|way| {
            serde_json::json!({
                "packing": bits(way.layout), "weight_bytes": way.weight_bytes, "cost_ps": way.cost,
                "phases": way.phases.iter().map(phase).collect::<Vec<_>>(),
            })
        });
        let chosen = bits(packing.chosen);
        serde_json::json!({ "value": packing.value, "chosen": chosen, "ways": ways.collect::<Vec<_>>() })
    };
    let graph = |graph: &rewrite::GraphReport| {
        serde_json::json!({
            "graph": graph.graph, "cost_before_ps": graph.cost_before, "cost_after_ps": graph.cost_after,
            "proved_best": graph.extraction.proved, "decisions": graph.extraction.decisions,
            "stages": graph.stages.iter().map(stage).collect::<Vec<_>>(),
            "packings": graph.packings.iter().map(packing).collect::<Vec<_>>(),
        })
    };
    serde_json::json!({
        "seconds": report.seconds(), "graphs": report.graphs.iter().map(graph).collect::<Vec<_>>(),
    })
}
