//! `tritter-curate run`: every stage over a corpus; the documents with what was found, and a report for people.

use std::io::Write;
use std::time::Instant;

use serde_json::json;
use tritter_curation_engine::run::{Options, run};

pub(crate) fn start(options: &Options, is_json: bool) -> anyhow::Result<()> {
    let start = Instant::now();
    let done = crate::threads(options.n_threads)?.block_on(run(options))?;
    let seconds = start.elapsed().as_secs_f64();
    let (n_kernels, megabytes_per_second) = (done.kernels.n, done.n_bytes as f64 / 1e6 / seconds);
    if is_json {
        let report = json!({
            "output": done.hash,
            "kernels": { "number": n_kernels, "hash": done.kernels.hash },
            "partitions": done.n_partitions,
            "kept_partitions": done.n_kept,
            "bytes": done.n_bytes,
            "spilled_bytes": done.n_spilled,
            "seconds": seconds,
            "report": done.report.page(),
        });
        return Ok(crate::say(&format!("{report:#}"))?);
    }
    let mut out = std::io::stdout().lock();
    write!(out, "{}\nkernels: {n_kernels} without copies\noutput: blake3 {}\n", done.report.text(), done.hash)?;
    let kept = match done.n_kept {
        0 => String::new(),
        n_kept => format!("; {n_kept} of {} partitions from an earlier run", done.n_partitions),
    };
    let spilled = match done.n_spilled {
        0 => String::new(),
        n_spilled => format!("; {:.1} MB went to files for want of memory", n_spilled as f64 / 1e6),
    };
    eprintln!("{seconds:.1} s, {megabytes_per_second:.1} MB/s in all{kept}{spilled}");
    Ok(())
}
