//! `tritter-curate run`: every stage over a corpus; the documents with what was found, and a report for people.

use std::io::Write;
use std::time::Instant;

use tritter_curation_engine::run::{Options, run};

pub(crate) fn start(options: &Options) -> anyhow::Result<()> {
    let start = Instant::now();
    let done = crate::threads(options.n_threads)?.block_on(run(options))?;
    let mut out = std::io::stdout().lock();
    write!(out, "{}\noutput: blake3 {}\n", done.report, done.hash)?;
    let seconds = start.elapsed().as_secs_f64();
    let megabytes_per_second = done.n_bytes as f64 / 1e6 / seconds;
    let kept = match done.n_kept {
        0 => String::new(),
        n_kept => format!("; {n_kept} of {} partitions from an earlier run", done.n_partitions),
    };
    eprintln!("{seconds:.1} s, {megabytes_per_second:.1} MB/s in all{kept}");
    Ok(())
}
