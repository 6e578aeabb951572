//! A file of runs: one line of comma-separated values for each, under one header.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use runtime::bench::Spread;

use super::Run;

const HEADER: &str = "date,device,threads,model,target,weights,depth,prompt,generate,\
    prefill_tokens_per_s,dot_gmac_per_s,prefill_share,prefill_linear_share,\
    decode_tokens_per_s,decode_tokens_per_s_min,decode_tokens_per_s_max,decode_bytes_per_token,\
    read_gb_per_s,read_gb_per_s_min,read_gb_per_s_max,decode_share,decode_weight_share,attention_share,\
    batch,batch_ratio,kernels";

/// Refuses a file that could not be appended to later.
pub(super) fn check(path: &Path) -> Result<()> {
    let is_new = !path.exists();
    open(path)?;
    if is_new {
        // There is nothing to say yet. If this fails, an empty file is what stays.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// Appends a line for a run, and the header before the first.
pub(super) fn append(path: &Path, run: &Run) -> Result<()> {
    let (mut file, length) = open(path)?;
    let header = if length == 0 { format!("{HEADER}\n") } else { String::new() };
    let text = header + &line(run) + "\n";
    let result = file.write_all(text.as_bytes());
    if result.is_err() {
        // Half a line would damage the next one. If this fails, too, there is nothing left to try.
        let _ = file.set_len(length);
    }
    result.with_context(|| format!("cannot append to {}", path.display()))
}

/// The file, and its bytes.
fn open(path: &Path) -> Result<(File, u64)> {
    let context = || format!("cannot append to {}", path.display());
    let exists = path.exists();
    let file = OpenOptions::new().create(true).append(true).open(path).with_context(context)?;
    let length = file.metadata().with_context(context)?.len();
    if exists && length != 0 {
        let text = std::fs::read_to_string(path).with_context(context)?;
        ensure!(
            text.lines().next() == Some(HEADER) && text.ends_with('\n'),
            "{} is not a file of these runs: its first line is another one, or its last line is cut; name a new file",
            path.display()
        );
    }
    Ok((file, length))
}

fn line(run: &Run) -> String {
    let Run { measurement, workload, device, threads, model, target, weights, .. } = run;
    // What it is called; a CPU says only that it is one.
    let device = if target.starts_with("cuda:") { device.clone() } else { cpu() };
    let decode = || measurement.steps.iter().filter(|step| step.run == "decode");
    let mut kernels: Vec<&str> =
        decode().filter(|step| step.gmac_per_s != 0.0).map(|step| step.kernel.as_str()).collect();
    let mut seen = HashSet::new();
    kernels.retain(|kernel| seen.insert(*kernel));
    let attention = decode().filter(|step| step.kernel.starts_with("attention"));
    let attention = attention.map(|step| step.gb_per_s / measurement.read_gb_per_s.median).next();
    let batch = measurement.batch.map_or_else(|| "1,1".to_owned(), |b| format!("{},{:.3}", b.sequences, b.ratio));
    let spread = |spread: Spread| format!("{:.2},{:.2},{:.2}", spread.median, spread.min, spread.max);
    let date = humantime::format_rfc3339_seconds(SystemTime::now());
    [
        format!("{date},{},{threads},{},{target},{weights}", device.replace(',', " "), model.replace(',', " ")),
        format!("{},{},{}", workload.depth, workload.prompt, workload.generate),
        format!("{:.2},{:.1}", measurement.prefill_tokens_per_s.median, measurement.dot_gmac_per_s.median),
        format!("{:.3},{:.3}", measurement.prefill_share.median, measurement.prefill_linear_share),
        spread(measurement.decode_tokens_per_s),
        measurement.decode_bytes_per_token.to_string(),
        spread(measurement.read_gb_per_s),
        format!("{:.3},{:.3}", measurement.decode_share.median, measurement.decode_weight_share.median),
        attention.map_or_else(String::new, |share| format!("{share:.3}")),
        batch,
        kernels.join(" "),
    ]
    .join(",")
}

/// What the system calls the CPU, and how often it has one.
fn cpu() -> String {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let name = field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    match (field("cpu family"), field("model")) {
        (Some(family), Some(model)) => format!("{count} x {name} (family {family} model {model})"),
        _ => format!("{count} x {name}"),
    }
}
