//! `tritter bench`: how fast a model runs here, beside how fast it could.

use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use ir::plan::Certificate;
use runtime::Session;
use runtime::bench::{Measurement, Spread, StepRate, Workload, measure};
use runtime::device::Device;
use serde_json::json;

mod record;
mod step;

use crate::ui::{self, ModelArgs, Progress, Unit};

/// Measure speed beside the machine's ceilings.
///
/// Decoding is held against the rate at which all threads together read memory, prefill against the rate of the CPU's int8 dot instruction,
/// in pairs: each stretch of at least 16 tokens and a fifth of a second, or all that is generated, against what memory delivered right
/// before and after it. Rates and shares are medians, the lowest and the highest in brackets, of five repeats; decoding is timed between two
/// lengths of one generation. The steps are those of the plan, in the mean of the calls that were traced; beside what they took stands what
/// the compiler predicted for the machine that it assumed.
///
/// Of an artifact that tritterc train wrote, whole steps are measured: gradients of one batch of random ids and the update, at a learning rate of
/// zero. The steps' launches are then timed one by one.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  tritter bench model.tritter --prompt 512 --generate 128
  tritter bench model.tritter --threads 1 --json
  tritter bench model.tritter --batch 8                          compiled with --sequences 8
  tritter bench model.tritter --weights map                      weights in the pages of their file
  tritter bench model.tritter --depth 32000 --prompt 32          with 32,000 tokens in the caches already
  tritter bench model.tritter --csv runs.csv                     one more line in a file of runs
  tritter bench step --repeats 20                                a step of training, as tritterc train wrote it")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value = "512")]
    prompt: NonZeroUsize,
    /// Tokens to generate.
    #[arg(long, value_name = "N", default_value_t = 128)]
    generate: usize,
    /// Tokens of a call of the prefill; the most that the artifact was compiled for by default.
    #[arg(long, value_name = "N")]
    chunk: Option<NonZeroUsize>,
    /// Sequences that decode together in a measurement of their own; the artifact has to be compiled with as many --sequences.
    #[arg(long, value_name = "B", default_value = "1")]
    batch: NonZeroUsize,
    /// Tokens that are in the caches before the prompt. They are not computed: the caches hold zeros, which take as long to read.
    #[arg(long, value_name = "N", default_value_t = 0)]
    depth: usize,
    /// Steps of training that are timed.
    #[arg(long, value_name = "N", default_value = "10")]
    repeats: NonZeroUsize,
    /// Append the figures, with the date and what ran, to this file.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Print a JSON report.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let artifact = args.model.artifact()?;
    if artifact.plan.training.is_some() {
        return step::run(args, artifact);
    }
    let mut session = Session::new(artifact, &args.model.options())?;
    ui::listen_for_interrupt()?;
    let chunk = ui::chunk(&session, args.chunk);
    let workload = Workload {
        prompt: args.prompt.get(),
        generate: args.generate,
        chunk,
        batch: args.batch.get(),
        depth: args.depth,
    };
    ensure!(args.batch.get() == 1 || 0 < args.generate, "--batch measures decoding, and --generate 0 asks for none");
    if let Some(file) = &args.csv {
        // Minutes of measuring should not end with a file that cannot be written.
        record::check(file)?;
    }
    let mut progress = Progress::new("bench", Unit::Tokens);
    let measurement = measure(&mut session, &workload, &mut |done, total| {
        progress.set(done, total);
        ui::flow()
    })?;
    drop(progress);
    let run = Run {
        measurement,
        workload,
        device: session.device().name(),
        threads: session.device().threads(),
        assumed_threads: session.plan().machine.threads as usize,
        weights_bytes: session.plan().weights_bytes,
        certified_bytes: Certificate::of(session.plan()).device_bytes(),
        model: session.plan().model.clone(),
        target: session.plan().target.clone(),
        weights: args.model.weights_name(),
    };
    // The report first: a file that turns out to be full should not cost it.
    if args.json { ui::print_json(&report(&run)) } else { print(&run) }?;
    args.csv.as_ref().map_or(Ok(()), |file| record::append(file, &run))
}

/// What was measured, and of what.
struct Run {
    measurement: Measurement,
    workload: Workload,
    /// What ran.
    device: String,
    threads: usize,
    /// Threads that predictions are for.
    assumed_threads: usize,
    weights_bytes: u64,
    /// What the plan says it takes of the device's memory.
    certified_bytes: u64,
    model: String,
    target: String,
    /// How weights are held: mapped or copied.
    weights: String,
}

fn report(run: &Run) -> serde_json::Value {
    let Run { measurement, workload, device, threads, assumed_threads, weights_bytes, .. } = run;
    let steps: Vec<_> = measurement
        .steps
        .iter()
        .map(|step| {
            json!({
                "run": step.run,
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
    let spread = |spread: Spread| json!({ "median": spread.median, "min": spread.min, "max": spread.max });
    let batch = measurement.batch.map(|batch| {
        json!({
            "sequences": batch.sequences,
            "tokens_per_s": batch.tokens_per_s,
            "step_seconds": spread(batch.step_seconds),
            "single_step_seconds": spread(batch.single_seconds),
            "ratio": batch.ratio,
            "predicted_step_seconds": batch.predicted_seconds,
        })
    });
    let copies = measurement.copies.map(|copies| {
        json!({
            "bytes_per_call": copies.bytes,
            "link_gb_per_s": spread(copies.link_gb_per_s),
            "share": spread(copies.share),
        })
    });
    let memory = measurement.memory.map(|[first, last]| {
        json!({ "certified": run.certified_bytes, "before": first.before, "first": first.now, "last": last.now, "total": last.total })
    });
    json!({
        "copies": copies,
        "device_bytes": memory,
        "prompt": workload.prompt,
        "generate": workload.generate,
        "chunk": workload.chunk,
        "device": device,
        "depth": workload.depth,
        "threads": threads,
        "prefill_tokens_per_s": measurement.prefill_tokens_per_s.median,
        "decode_tokens_per_s": measurement.decode_tokens_per_s.median,
        "decode_bytes_per_token": measurement.decode_bytes_per_token,
        "decode_weight_bytes_per_token": measurement.decode_weight_bytes_per_token,
        "read_gb_per_s": measurement.read_gb_per_s.median,
        "decode_gb_per_s": measurement.decode_gb_per_s,
        "decode_share": measurement.decode_share.median,
        "decode_weight_share": measurement.decode_weight_share.median,
        "dot_gmac_per_s": measurement.dot_gmac_per_s.median,
        "prefill_gmac_per_s": measurement.prefill_gmac_per_s,
        "prefill_share": measurement.prefill_share.median,
        "prefill_linear_share": measurement.prefill_linear_share,
        "predicted_prefill_tokens_per_s": measurement.predicted_prefill_tokens_per_s,
        "predicted_decode_tokens_per_s": measurement.predicted_decode_tokens_per_s,
        "predicted_threads": assumed_threads,
        "prefill_spread": spread(measurement.prefill_tokens_per_s),
        "decode_spread": spread(measurement.decode_tokens_per_s),
        "decode_between": [measurement.decode_between.0, measurement.decode_between.1],
        "read_spread": spread(measurement.read_gb_per_s),
        "dot_spread": spread(measurement.dot_gmac_per_s),
        "decode_share_spread": spread(measurement.decode_share),
        "decode_weight_share_spread": spread(measurement.decode_weight_share),
        "prefill_share_spread": spread(measurement.prefill_share),
        "weights_bytes": weights_bytes,
        "cache_bytes": measurement.cache_bytes,
        "exceeds_caches": measurement.exceeds_caches(),
        "batch": batch,
        "steps": steps,
    })
}

fn percent(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { 100.0 * part / whole }
}

fn print(run: &Run) -> Result<()> {
    let Run { measurement, workload, device, assumed_threads, weights_bytes, .. } = run;
    let mut text = String::new();
    writeln!(
        text,
        "{device}, prompt of {} tokens in chunks of {}, {} generated, timed from {} to {} tokens in the cache",
        workload.prompt, workload.chunk, workload.generate, measurement.decode_between.0, measurement.decode_between.1
    )?;
    let rate = |spread: Spread| format!("{:8.1} tokens/s ({:.1} to {:.1})", spread.median, spread.min, spread.max);
    let share = |share: Spread| {
        let Spread { median, min, max } = share;
        format!("{:.0} % ({:.0} to {:.0})", 100.0 * median, 100.0 * min, 100.0 * max)
    };
    let Measurement { dot_gmac_per_s: dot, .. } = measurement;
    let of_ceiling = if dot.median == 0.0 {
        String::new()
    } else {
        format!(
            " of {:.1} ({:.1} to {:.1}) that the dot instruction reaches: {}; its ternary matmuls {:.0} %",
            dot.median,
            dot.min,
            dot.max,
            share(measurement.prefill_share),
            100.0 * measurement.prefill_linear_share
        )
    };
    writeln!(
        text,
        "prefill {}  {:8.1} GMAC/s{of_ceiling}",
        rate(measurement.prefill_tokens_per_s),
        measurement.prefill_gmac_per_s
    )?;
    writeln!(
        text,
        "decode  {}  {:8.1} GB/s of {:.1} ({:.1} to {:.1}) that memory delivers: {}; weights alone {}",
        rate(measurement.decode_tokens_per_s),
        measurement.decode_gb_per_s,
        measurement.read_gb_per_s.median,
        measurement.read_gb_per_s.min,
        measurement.read_gb_per_s.max,
        share(measurement.decode_share),
        share(measurement.decode_weight_share)
    )?;
    writeln!(
        text,
        "        {:8.2} ms a token, which moves {:.1} MB, {:.1} MB of them weights",
        if measurement.decode_tokens_per_s.median == 0.0 { 0.0 } else { 1e3 / measurement.decode_tokens_per_s.median },
        measurement.decode_bytes_per_token as f64 / 1e6,
        measurement.decode_weight_bytes_per_token as f64 / 1e6
    )?;
    if let Some(copies) = &measurement.copies {
        let link = copies.link_gb_per_s;
        writeln!(
            text,
            "copies  {:8.1} MB of weights a call; alone they go at {:.1} GB/s ({:.1} to {:.1}), beside decoding at {} of that",
            copies.bytes as f64 / 1e6,
            link.median,
            link.min,
            link.max,
            share(copies.share)
        )?;
    }
    if let Some([first, last]) = &measurement.memory {
        writeln!(
            text,
            "memory  {:8.1} MB of the device in use at the end, {:.1} MB at the start, {:.1} MB before the model; certified {:.1} MB",
            last.now as f64 / 1e6,
            first.now as f64 / 1e6,
            first.before as f64 / 1e6,
            run.certified_bytes as f64 / 1e6
        )?;
    }
    if let Some(batch) = &measurement.batch {
        writeln!(
            text,
            "batch   {:8.1} tokens/s of {} sequences; a step takes {:.2} ms, that of one sequence {:.2} ms: {:.2} times as long",
            batch.tokens_per_s,
            batch.sequences,
            batch.step_seconds.median * 1e3,
            batch.single_seconds.median * 1e3,
            batch.ratio
        )?;
    }
    writeln!(
        text,
        "predicted for {assumed_threads} threads: prefill {:.1} tokens/s, decode {:.1}",
        measurement.predicted_prefill_tokens_per_s, measurement.predicted_decode_tokens_per_s
    )?;
    if !measurement.exceeds_caches() {
        writeln!(
            text,
            "warning: a token moves {:.1} MB (weights {:.1} MB), the last-level cache has {:.1} MB: decoding runs from caches in part, and \
             its share of what memory delivers says little",
            measurement.decode_bytes_per_token as f64 / 1e6,
            *weights_bytes as f64 / 1e6,
            measurement.cache_bytes as f64 / 1e6
        )?;
    }
    let mut part = ("", "");
    for step in &measurement.steps {
        if (step.run, step.phase.as_str()) != part {
            part = (step.run, &step.phase);
            let of_phase = || measurement.steps.iter().filter(|step| (step.run, step.phase.as_str()) == part);
            let total: f64 = of_phase().map(|step| step.seconds).sum();
            let predicted: f64 = of_phase().map(|step| step.predicted_seconds).sum();
            writeln!(
                text,
                "\n{}, mean of a call of phase `{}`: {:.1} us, {:.1} predicted\n{:>10} {:>10} {:>6} {:>10} {:>8} {:>9} {:>8}  step, kernel",
                part.0,
                part.1,
                total * 1e6,
                predicted * 1e6,
                "us",
                "predicted",
                "%",
                "MB",
                "GB/s",
                "% of read",
                "GMAC/s"
            )?;
        }
        writeln!(text, "{}", line(step, percent(step.gb_per_s, measurement.read_gb_per_s.median)))?;
    }
    Ok(ui::print(&text)?)
}

fn line(step: &StepRate, share_of_read: f64) -> String {
    let rounds = if 1 < step.launches { format!(" x {}", step.launches) } else { String::new() };
    format!(
        "{:10.1} {:10.1} {:6.1} {:10.3} {:8.2} {:9.0} {:8.1}  {}{rounds}, {}",
        step.seconds * 1e6,
        step.predicted_seconds * 1e6,
        step.share * 100.0,
        step.bytes as f64 / 1e6,
        step.gb_per_s,
        share_of_read,
        step.gmac_per_s,
        step.from,
        step.kernel
    )
}
