//! A run as a line of a file of runs.

use std::collections::HashSet;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Result;
use runtime::bench::Spread;

use super::Run;
use crate::csv;

const HEADER: &str = "date,device,threads,model,target,weights,depth,prompt,generate,\
    prefill_tokens_per_s,dot_gmac_per_s,prefill_share,prefill_linear_share,\
    decode_tokens_per_s,decode_tokens_per_s_min,decode_tokens_per_s_max,decode_bytes_per_token,\
    read_gb_per_s,read_gb_per_s_min,read_gb_per_s_max,decode_share,decode_weight_share,attention_share,\
    batch,batch_ratio,kernels";

/// Refuses a file that could not be appended to later.
pub(super) fn check(path: &Path) -> Result<()> {
    csv::check(path, HEADER)
}

/// Appends a line for a run.
pub(super) fn append(path: &Path, run: &Run) -> Result<()> {
    csv::append(path, HEADER, &line(run))
}

fn line(run: &Run) -> String {
    let Run { measurement, workload, device, threads, model, target, weights, .. } = run;
    let device = csv::device(device, target);
    let decode = || measurement.steps.iter().filter(|step| step.run == "decode");
    let mut kernels: Vec<&str> =
        decode().filter(|step| step.gmac_per_s != 0.0).map(|step| step.kernel.as_str()).collect();
    let mut seen = HashSet::new();
    kernels.retain(|kernel| seen.insert(*kernel));
    let attention =
        decode().filter(|step| step.kernel.starts_with("attention_") || step.kernel.starts_with("rope_attention_"));
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
