//! `tritter tune`: measures this machine for `tritterc --tuning`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use ir::plan::Tuning;
use runtime::tune;
use serde_json::json;

use crate::ui::{self, Progress, Unit};

/// Measure this machine for the compiler.
///
/// Writes how fast memory is read, how long a step takes to start and end, and how fast each kernel computes: with many tokens from cache, and
/// with one, for matmuls of the best instruction set, with weights from memory. `tritterc compile --tuning FILE` weighs programs with these rates instead of guesses and predicts times with them.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  tritter tune
  tritter tune --threads 2 --seconds 30 -o server.ron
  tritterc compile models/bitnet-code-nano -o nano --tuning tuning.ron")]
pub(crate) struct Args {
    /// The file to write.
    #[arg(short, long, value_name = "FILE", default_value = ir::plan::tuning::TUNING)]
    output: PathBuf,
    /// Threads; one for each CPU by default. Rates are of all of them at work.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// About how long to measure kernels.
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = parse_seconds)]
    seconds: f64,
    /// Print a JSON report.
    #[arg(long)]
    json: bool,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if (0.0..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("it must be between 0 and 3600".to_owned()) }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = args.output.parent().filter(|folder| !folder.as_os_str().is_empty());
    ensure!(
        folder.is_none_or(Path::is_dir) && !args.output.is_dir(),
        "cannot write {}: it is a folder, or in one that is not there",
        args.output.display()
    );
    ui::listen_for_interrupt()?;
    let threads = args.threads.map_or_else(runtime::session::default_threads, NonZeroUsize::get);
    let mut progress = Progress::new("tuning", Unit::Parts);
    let tuning = tune::measure(threads, Duration::from_secs_f64(args.seconds), &mut |done, total| {
        progress.set(done, total);
        ui::flow()
    })?;
    drop(progress);
    tune::write(&tuning, &args.output)?;
    if args.json { ui::print_json(&report(&tuning, args)) } else { Ok(ui::print(&table(&tuning, args))?) }
}

fn report(tuning: &Tuning, args: &Args) -> serde_json::Value {
    let giga = |per_us: u64| per_us as f64 / 1e3;
    let kernels = tuning.kernels.iter().map(|rate| {
        json!({
            "kernel": rate.kernel,
            "one_gmac_per_s": giga(rate.one_macs_per_us),
            "many_gmac_per_s": rate.many_macs_per_us.map(giga),
        })
    });
    json!({
        "output": args.output.display().to_string(),
        "target": tuning.target,
        "threads": tuning.threads,
        "read_gb_per_s": giga(tuning.read_bytes_per_us),
        "step_us": tuning.step_ns as f64 / 1e3,
        "elementwise_g_per_s": giga(tuning.elementwise_per_us),
        "kernels": kernels.collect::<Vec<_>>(),
    })
}

fn table(tuning: &Tuning, args: &Args) -> String {
    let giga = |per_us: u64| per_us as f64 / 1e3;
    let mut text = format!(
        "{}, {} threads: {:.1} GB/s from memory, {:.2} us a step, {:.1} G elementwise operations/s a thread\n\n",
        tuning.target,
        tuning.threads,
        giga(tuning.read_bytes_per_us),
        tuning.step_ns as f64 / 1e3,
        giga(tuning.elementwise_per_us)
    );
    text +=
        &format!("{:>9} {:>9}  GMAC/s a thread, with one token (weights from memory) and with many\n", "one", "many");
    for rate in &tuning.kernels {
        let many = rate.many_macs_per_us.map_or_else(|| "-".to_owned(), |rate| format!("{:.1}", giga(rate)));
        text += &format!("{:9.1} {many:>9}  {}\n", giga(rate.one_macs_per_us), rate.kernel);
    }
    text + &format!("\nwritten to {}\n", args.output.display())
}
