//! `tritter bench` of a step of training.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Result;
use ir::plan::Certificate;
use runtime::Artifact;
use runtime::bench::Spread;
use runtime::bench::training::{TrainingMeasurement, measure};
use runtime::device::Device;
use runtime::training::{PlanTrainer, Trainer};
use serde_json::json;

use super::{Args, line, percent};
use crate::csv;
use crate::ui::{self, Progress, Unit};

const HEADER: &str = "date,device,model,target,sequences,context,parameters,tokens_per_s,tokens_per_s_min,tokens_per_s_max,\
    step_ms,update_ms,model_tflops,product_tflops,read_gb_per_s,device_bytes,certified_bytes";

/// What was measured, and of what.
struct Run {
    measurement: TrainingMeasurement,
    device: String,
    model: String,
    target: String,
    context: usize,
    /// What the plan says it takes of the device's memory.
    certified_bytes: u64,
}

impl Run {
    /// Bytes of a GPU's memory that the step takes.
    fn device_bytes(&self) -> Option<u64> {
        self.measurement.memory.map(|memory| memory.now)
    }
}

pub(super) fn run(args: &Args, artifact: Artifact) -> Result<()> {
    if let Some(file) = &args.csv {
        csv::check(file, HEADER)?;
    }
    let mut trainer = PlanTrainer::new(artifact, &args.model.options())?;
    ui::listen_for_interrupt()?;
    let mut progress = Progress::new("bench", Unit::Parts);
    let measurement = measure(&mut trainer, args.repeats.get(), &mut |done, total| {
        progress.set(done, total);
        ui::flow()
    })?;
    drop(progress);
    let run = Run {
        measurement,
        device: trainer.device().name(),
        model: trainer.plan().model.clone(),
        target: trainer.plan().target.clone(),
        context: trainer.context(),
        certified_bytes: Certificate::of(trainer.plan()).device_bytes(),
    };
    if args.json { ui::print_json(&report(&run)) } else { print(&run) }?;
    args.csv.as_deref().map_or(Ok(()), |file| append(file, &run))
}

fn report(run: &Run) -> serde_json::Value {
    let Run { measurement, .. } = run;
    let spread = |spread: Spread| json!({ "median": spread.median, "min": spread.min, "max": spread.max });
    let steps: Vec<_> = measurement
        .steps
        .iter()
        .map(|step| {
            json!({
                "phase": step.phase,
                "from": step.from,
                "kernel": step.kernel,
                "launches": step.launches,
                "bytes": step.bytes,
                "seconds": step.seconds,
                "predicted_seconds": step.predicted_seconds,
                "gb_per_s": step.gb_per_s,
                "gmac_per_s": step.gmac_per_s,
                "share": step.share,
            })
        })
        .collect();
    json!({
        "device": run.device,
        "model": run.model,
        "tokens": measurement.tokens,
        "context": run.context,
        "parameters": measurement.parameters,
        "tokens_per_s": measurement.tokens_per_s.median,
        "tokens_spread": spread(measurement.tokens_per_s),
        "step_seconds": spread(measurement.step_seconds),
        "update_seconds": spread(measurement.update_seconds),
        "flops_per_token": measurement.flops_per_token(),
        "model_tflops": measurement.tflops(),
        "product_tflops": measurement.product_tflops(),
        "product_macs": measurement.product_macs,
        "attention_macs": measurement.attention_macs,
        "read_gb_per_s": measurement.read_gb_per_s,
        "device_bytes": run.device_bytes(),
        "certified_bytes": run.certified_bytes,
        "steps": steps,
    })
}

fn print(run: &Run) -> Result<()> {
    let Run { measurement, .. } = run;
    let mut text = String::new();
    let Spread { median, min, max } = measurement.tokens_per_s;
    writeln!(
        text,
        "{}, a step of {} tokens in sequences of {}, {:.1} million parameters",
        run.device,
        measurement.tokens,
        run.context,
        measurement.parameters as f64 / 1e6
    )?;
    writeln!(text, "train   {median:8.1} tokens/s ({min:.1} to {max:.1})")?;
    writeln!(
        text,
        "        {:8.2} ms a step, {:.2} ms of it the update",
        measurement.step_seconds.median * 1e3,
        measurement.update_seconds.median * 1e3
    )?;
    writeln!(
        text,
        "        {:8.2} TFLOP/s by six operations for each parameter and token, {:.2} by the products of the plan, attention apart",
        measurement.tflops(),
        measurement.product_tflops()
    )?;
    if let Some(bytes) = run.device_bytes() {
        writeln!(
            text,
            "memory  {:8.1} MB of the device in use; certified {:.1} MB",
            bytes as f64 / 1e6,
            run.certified_bytes as f64 / 1e6
        )?;
    }
    if measurement.read_gb_per_s != 0.0 {
        writeln!(text, "        {:8.1} GB/s that memory delivers", measurement.read_gb_per_s)?;
    }
    let mut phases: BTreeMap<&str, f64> = BTreeMap::new();
    for step in &measurement.steps {
        *phases.entry(&step.phase).or_default() += step.seconds;
    }
    let mut phase = "";
    for step in &measurement.steps {
        if step.phase != phase {
            phase = &step.phase;
            writeln!(
                text,
                "\nphase `{phase}`, launch by launch: {:.2} ms\n{:>10} {:>10} {:>6} {:>10} {:>8} {:>9} {:>8}  step, kernel",
                phases[phase] * 1e3,
                "us",
                "predicted",
                "%",
                "MB",
                "GB/s",
                "% of read",
                "GMAC/s"
            )?;
        }
        writeln!(text, "{}", line(step, percent(step.gb_per_s, measurement.read_gb_per_s)))?;
    }
    Ok(ui::print(&text)?)
}

fn append(path: &Path, run: &Run) -> Result<()> {
    let Run { measurement, .. } = run;
    let rates = measurement.tokens_per_s;
    let sequences = measurement.tokens / run.context.max(1);
    let line = [
        humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        csv::device(&run.device, &run.target).replace(',', " "),
        run.model.replace(',', " "),
        run.target.clone(),
        format!("{sequences},{},{}", run.context, measurement.parameters),
        format!("{:.1},{:.1},{:.1}", rates.median, rates.min, rates.max),
        format!("{:.3},{:.3}", measurement.step_seconds.median * 1e3, measurement.update_seconds.median * 1e3),
        format!("{:.3},{:.3}", measurement.tflops(), measurement.product_tflops()),
        format!("{:.1}", measurement.read_gb_per_s),
        run.device_bytes().map_or_else(String::new, |bytes| bytes.to_string()),
        run.certified_bytes.to_string(),
    ];
    csv::append(path, HEADER, &line.join(","))
}
