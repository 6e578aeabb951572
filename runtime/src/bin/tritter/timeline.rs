//! When each call and each step of it ran, as a file that Perfetto and Chrome's tracing page show.
//!
//! The format is the JSON of the [Trace Event Format]: complete events in microseconds, on one line for calls and one for steps.
//!
//! [Trace Event Format]: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use runtime::Trace;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

/// Lines of the picture.
const CALLS: u32 = 1;
const STEPS: u32 = 2;

/// Writes what becomes the file at `path`, whole or not at all.
pub(crate) fn write(file: NamedTempFile, path: &Path, trace: &Trace, device: &str) -> Result<()> {
    let mut out = BufWriter::new(file);
    events(trace, device, &mut out).with_context(|| format!("cannot write {}", path.display()))?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error);
    let file = file.with_context(|| format!("cannot write {}", path.display()))?;
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

fn events(trace: &Trace, device: &str, out: &mut impl Write) -> io::Result<()> {
    let name = |what: &str, line: u32, name: &str| json!({"ph": "M", "pid": 1, "tid": line, "name": what, "args": {"name": name}});
    write!(out, "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n{}", name("process_name", CALLS, device))?;
    let mut event = |value: Value| write!(out, ",\n{value}");
    event(name("thread_name", CALLS, "calls"))?;
    event(name("thread_name", STEPS, "steps"))?;
    for call in trace.call_spans() {
        event(json!({
            "ph": "X", "pid": 1, "tid": CALLS, "ts": microseconds(call.start), "dur": microseconds(call.time),
            "name": format!("{} of {}", call.phase, call.tokens), "args": {"tokens": call.tokens, "rows": call.rows},
        }))?;
    }
    for (row, span) in trace.step_spans() {
        let gb_per_s = span.cost.bytes as f64 / span.time.as_secs_f64().max(1e-12) / 1e9;
        event(json!({
            "ph": "X", "pid": 1, "tid": STEPS, "ts": microseconds(span.start), "dur": microseconds(span.time), "name": row.from,
            "args": {
                "kernel": row.kernel, "phase": row.phase, "round": span.round, "bytes": span.cost.bytes, "macs": span.cost.macs,
                "gb_per_s": gb_per_s, "predicted_us": span.cost.nanoseconds as f64 / 1e3,
            },
        }))?;
    }
    writeln!(out, "\n]}}")?;
    out.flush()
}

fn microseconds(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}
