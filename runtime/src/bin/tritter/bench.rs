//! `tritter bench`: how fast a model runs here, beside how fast it could.

use std::fmt::Write;
use std::num::NonZeroUsize;

use anyhow::Result;
use runtime::bench::{Measurement, StepRate, Workload, measure};
use serde_json::json;

use crate::ui::{self, ModelArgs, Progress, Unit};

/// Measure speed beside the machine's ceilings.
///
/// Decoding is held against the rate at which all threads together read memory, prefill against the rate of the CPU's int8 dot instruction,
/// both measured in the same run. The steps are those of the plan, in the mean of the calls that were traced.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  tritter bench model.tritter --prompt 512 --generate 128
  tritter bench model.tritter --threads 1 --json")]
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
    /// Print a JSON report.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut session = args.model.open()?;
    let chunk = ui::chunk(&session, args.chunk);
    let workload = Workload { prompt: args.prompt.get(), generate: args.generate, chunk };
    let mut progress = Progress::new("bench", Unit::Tokens);
    let measurement = measure(&mut session, &workload, &mut |done, total| {
        progress.set(done, total);
        ui::flow()
    })?;
    drop(progress);
    let threads = session.device().threads();
    if args.json {
        ui::print_json(&report(&measurement, &workload, threads))
    } else {
        print(&measurement, &workload, threads)
    }
}

fn report(measurement: &Measurement, workload: &Workload, threads: usize) -> serde_json::Value {
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
                "gb_per_s": step.gb_per_s,
                "gmac_per_s": step.gmac_per_s,
                "share": step.share,
            })
        })
        .collect();
    json!({
        "prompt": workload.prompt,
        "generate": workload.generate,
        "chunk": workload.chunk,
        "threads": threads,
        "prefill_tokens_per_s": measurement.prefill_tokens_per_s,
        "decode_tokens_per_s": measurement.decode_tokens_per_s,
        "decode_bytes_per_token": measurement.decode_bytes_per_token,
        "read_gb_per_s": measurement.read_gb_per_s,
        "decode_gb_per_s": measurement.decode_gb_per_s,
        "dot_gmac_per_s": measurement.dot_gmac_per_s,
        "prefill_gmac_per_s": measurement.prefill_gmac_per_s,
        "steps": steps,
    })
}

fn print(measurement: &Measurement, workload: &Workload, threads: usize) -> Result<()> {
    let percent = |part: f64, whole: f64| if whole == 0.0 { 0.0 } else { 100.0 * part / whole };
    let mut text = String::new();
    writeln!(
        text,
        "{threads} threads, prompt of {} tokens in chunks of {}, {} generated",
        workload.prompt, workload.chunk, workload.generate
    )?;
    writeln!(
        text,
        "prefill  {:10.1} tokens/s  {:8.1} GMAC/s of {:.1} that the dot instruction reaches: {:.0} %",
        measurement.prefill_tokens_per_s,
        measurement.prefill_gmac_per_s,
        measurement.dot_gmac_per_s,
        percent(measurement.prefill_gmac_per_s, measurement.dot_gmac_per_s)
    )?;
    writeln!(
        text,
        "decode   {:10.1} tokens/s  {:8.1} GB/s of {:.1} that memory delivers: {:.0} % ({:.1} MB a token)",
        measurement.decode_tokens_per_s,
        measurement.decode_gb_per_s,
        measurement.read_gb_per_s,
        percent(measurement.decode_gb_per_s, measurement.read_gb_per_s),
        measurement.decode_bytes_per_token as f64 / 1e6
    )?;
    let mut phase = "";
    for step in &measurement.steps {
        if step.phase != phase {
            phase = &step.phase;
            writeln!(
                text,
                "\n{phase}, mean of a call\n{:>10} {:>6} {:>10} {:>8} {:>9} {:>8}  step, kernel",
                "us", "%", "MB", "GB/s", "% of read", "GMAC/s"
            )?;
        }
        writeln!(text, "{}", line(step, percent(step.gb_per_s, measurement.read_gb_per_s)))?;
    }
    Ok(ui::print(&text)?)
}

fn line(step: &StepRate, share_of_read: f64) -> String {
    let rounds = if 1 < step.launches { format!(" x {}", step.launches) } else { String::new() };
    format!(
        "{:10.1} {:6.1} {:10.3} {:8.2} {:9.0} {:8.1}  {}{rounds}, {}",
        step.seconds * 1e6,
        step.share * 100.0,
        step.bytes as f64 / 1e6,
        step.gb_per_s,
        share_of_read,
        step.gmac_per_s,
        step.from,
        step.kernel
    )
}
