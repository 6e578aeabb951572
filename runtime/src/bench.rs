//! How fast a model runs here, and how fast it could: rates of prefill and decoding beside the ceilings of the machine in the same run.
//!
//! Decoding reads all weights for every token, so its ceiling is the rate at which memory can be read. Prefill does much work on each byte, so
//! its ceiling is the rate of the dot instruction. Rates are of medians, ceilings are the best of several runs before and after. The steps are
//! timed in runs of their own, because reading the clock so often costs time.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::error::RuntimeError;
use crate::sample::Random;
use crate::session::{Session, Token};
use crate::trace::{Row, Trace};

/// Prefills that are timed.
const PREFILLS: usize = 3;
/// The most tokens whose steps are timed.
const TRACED_TOKENS: usize = 32;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Tokens of the prompt, at least 1.
    pub prompt: usize,
    /// Tokens to generate after it.
    pub generate: usize,
    /// Tokens of a call of the prefill.
    pub chunk: usize,
}

/// What was measured. Rates are a second.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// Tokens of the prompt.
    pub prefill_tokens_per_s: f64,
    /// Multiply-accumulates of the prefill, in units of 10^9.
    pub prefill_gmac_per_s: f64,
    /// Tokens generated; 0 if none were.
    pub decode_tokens_per_s: f64,
    /// Bytes that a token of decoding moves, by the compiler's account, in the middle of what was generated.
    pub decode_bytes_per_token: u64,
    /// Those bytes times the rate, in units of 10^9.
    pub decode_gb_per_s: f64,
    /// The ceiling of decoding: bytes read from memory, in units of 10^9.
    pub read_gb_per_s: f64,
    /// The ceiling of prefill: int8 multiply-accumulates on registers, in units of 10^9.
    pub dot_gmac_per_s: f64,
    /// The steps of prefill, then those of decoding.
    pub steps: Vec<StepRate>,
}

/// One step of the plan, in the mean of the traced calls.
#[derive(Clone, Debug)]
pub struct StepRate {
    /// The phase.
    pub phase: String,
    /// What of the program it computes.
    pub from: String,
    /// The kernel, or `copy`.
    pub kernel: String,
    /// Launches a call: the rounds of its repeat.
    pub launches: u64,
    /// Bytes a call.
    pub bytes: u64,
    /// Seconds a call.
    pub seconds: f64,
    /// Bytes a second, in units of 10^9.
    pub gb_per_s: f64,
    /// Multiply-accumulates a second, in units of 10^9.
    pub gmac_per_s: f64,
    /// Its part of the call's time.
    pub share: f64,
}

/// Measures on sequence 0, which is reset. `progress` is told how many of how many parts are done, and may stop it.
///
/// # Errors
///
/// As [`Session::prefill`], for a prompt and generation that do not fit, too.
pub fn measure(
    session: &mut Session,
    workload: &Workload,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Measurement, RuntimeError> {
    let Workload { prompt, generate, chunk } = *workload;
    let context = session.plan().context;
    if context < (prompt + generate) as u64 {
        return Err(RuntimeError::ContextFull { sequence: 0, position: (prompt + generate) as u64 - 1, context });
    }
    let mut random = Random::new(0);
    let vocab = session.vocab() as u64;
    let ids: Vec<u32> = (0..prompt + generate).map(|_| (random.bits() % vocab) as u32).collect();
    let traced = generate.min(TRACED_TOKENS);
    let total = (prompt * (PREFILLS + 2) + generate + traced) as u64;
    let mut done = 0;
    let mut advance = |tokens: usize| {
        done += tokens as u64;
        if progress(done, total).is_break() { Err(RuntimeError::Cancelled) } else { Ok(()) }
    };

    // The first prefill brings weights and caches into memory, and is not counted.
    prefill(session, &ids[..prompt], chunk)?;
    advance(prompt)?;
    let mut read_rate = session.device().read_rate()?;
    let mut dot_rate = session.device().dot_rate()?;
    let mut prefills = Vec::new();
    for _ in 0..PREFILLS {
        prefills.push(prefill(session, &ids[..prompt], chunk)?);
        advance(prompt)?;
    }
    let mut tokens = Vec::new();
    for &id in &ids[prompt..] {
        tokens.push(decode(session, id)?);
        advance(1)?;
    }
    read_rate = read_rate.max(session.device().read_rate()?);
    dot_rate = dot_rate.max(session.device().dot_rate()?);

    session.start_trace();
    prefill(session, &ids[..prompt], chunk)?;
    let mut steps = step_rates(&session.take_trace().unwrap_or_default());
    advance(prompt)?;
    session.start_trace();
    for &id in &ids[prompt..prompt + traced] {
        decode(session, id)?;
        advance(1)?;
    }
    steps.extend(step_rates(&session.take_trace().unwrap_or_default()));

    let mut prefill_macs = 0;
    for (start, n, m) in calls(prompt, chunk) {
        prefill_macs += session.cost(start, n, m)?.macs;
    }
    let prefill_s = median(&mut prefills).as_secs_f64();
    let decode_tokens_per_s = if tokens.is_empty() { 0.0 } else { 1.0 / median(&mut tokens).as_secs_f64() };
    // In the middle of what was generated, where caches have their mean length.
    let decode_bytes_per_token = session.cost(prompt + generate / 2, 1, 1)?.bytes;
    Ok(Measurement {
        prefill_tokens_per_s: prompt as f64 / prefill_s,
        prefill_gmac_per_s: prefill_macs as f64 / prefill_s / 1e9,
        decode_tokens_per_s,
        decode_bytes_per_token,
        decode_gb_per_s: decode_bytes_per_token as f64 * decode_tokens_per_s / 1e9,
        read_gb_per_s: read_rate / 1e9,
        dot_gmac_per_s: dot_rate / 1e9,
        steps,
    })
}

fn prefill(session: &mut Session, ids: &[u32], chunk: usize) -> Result<Duration, RuntimeError> {
    session.reset(0)?;
    let start = Instant::now();
    session.prefill(0, ids, chunk, &mut |_, _| ControlFlow::Continue(()))?;
    Ok(start.elapsed())
}

fn decode(session: &mut Session, id: u32) -> Result<Duration, RuntimeError> {
    let start = Instant::now();
    session.forward(&[Token::next(0, id)], &[0])?;
    Ok(start.elapsed())
}

/// Start, tokens and rows of the calls of a prefill.
fn calls(prompt: usize, chunk: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..prompt).step_by(chunk.max(1)).map(move |start| {
        let end = prompt.min(start + chunk);
        (start, end - start, usize::from(end == prompt))
    })
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The steps of a trace, in the mean of its calls. A prefill whose last call is shorter than the others counts by calls, too.
fn step_rates(trace: &Trace) -> Vec<StepRate> {
    let calls = trace.calls().max(1);
    let total = trace.time().as_secs_f64();
    let rate = |row: &Row| {
        let seconds = row.time.as_secs_f64();
        let share = if total == 0.0 { 0.0 } else { seconds / total };
        StepRate {
            phase: row.phase.clone(),
            from: row.from.clone(),
            kernel: row.kernel.clone(),
            launches: row.launches.div_ceil(calls),
            bytes: row.cost.bytes / calls,
            seconds: seconds / calls as f64,
            gb_per_s: row.bytes_per_second() / 1e9,
            gmac_per_s: if seconds == 0.0 { 0.0 } else { row.cost.macs as f64 / seconds / 1e9 },
            share,
        }
    };
    trace.rows().map(rate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calls_of_a_prefill_want_logits_only_at_its_end() {
        assert_eq!(calls(10, 4).collect::<Vec<_>>(), [(0, 4, 0), (4, 4, 0), (8, 2, 1)]);
        assert_eq!(calls(8, 4).collect::<Vec<_>>(), [(0, 4, 0), (4, 4, 1)]);
        assert_eq!(calls(1, 4).collect::<Vec<_>>(), [(0, 1, 1)]);
    }

    #[test]
    fn the_median_is_the_middle_one() {
        let mut times: Vec<Duration> = [5, 1, 9].into_iter().map(Duration::from_secs).collect();
        assert_eq!(median(&mut times), Duration::from_secs(5));
    }
}
