//! How fast a model runs here, and how fast it could: rates of prefill and decoding beside the ceilings of the machine in the same run.
//!
//! Decoding reads all weights for every token, so its ceiling is the rate at which memory can be read. Prefill does much work on each byte, so
//! its ceiling is the rate of the dot instruction. How that is made trustworthy:
//!
//! * A first pass over the prompt and everything generated is not counted: it brings weights and caches into memory.
//! * Rates are medians of several repeats, with the slowest and the fastest beside them.
//! * A share of a ceiling is taken in pairs: each stretch of decoding, at least 200 milliseconds if so much is generated, is held against the mean of what memory
//!   delivered right before and right after it, and each prefill against the dot rate of those moments. Neighbours on a shared machine can take
//!   half of its memory's rate from one second to the next, and two figures that were measured seconds apart have no ratio. The share
//!   reported is the median of all pairs.
//! * Decoding is *marginal*: the time of generating so many tokens less that of generating a few, in one go, so what happens once does not count.
//! * A batch and a single sequence take turns, step by step at the same position, so both see the same machine.
//! * The steps are timed in runs of their own, because reading the clock so often costs time. Beside each stands what the compiler predicted.

pub mod training;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::device::Device;
use crate::device::cpu::last_level_cache_bytes;
use crate::device::cuda::MemoryUse;
use crate::error::RuntimeError;
use crate::sample::Random;
use crate::session::{Choice, Ids, Session, Token};
use crate::trace::{Row, Trace};

/// Prefills that are timed, and generations.
const REPEATS: usize = 5;
/// The most tokens whose steps are timed.
const TRACED_TOKENS: usize = 32;
/// The most steps of a batch that are timed.
const BATCH_STEPS: usize = 24;
/// The least tokens of a stretch of decoding between two measurements of memory.
const STRETCH: usize = 16;
/// The least time of a stretch: what a device loses to the measurement before it is small beside that.
const STRETCH_SECONDS: f64 = 0.2;
/// How many times the last-level cache a token has to read before decoding is one of memory.
const CACHES: u64 = 2;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Tokens of the prompt, at least 1.
    pub prompt: usize,
    /// Tokens to generate after it.
    pub generate: usize,
    /// Tokens of a call of the prefill.
    pub chunk: usize,
    /// Sequences that decode together; with 1 nothing is measured for it.
    pub batch: usize,
    /// Tokens that are taken to be in the caches before the prompt, without having been computed.
    pub depth: usize,
}

/// What several repeats gave.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        match (values.first(), values.last()) {
            (Some(&min), Some(&max)) => Self { median: values[values.len() / 2], min, max },
            _ => Self::default(),
        }
    }
}

/// Several sequences in one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchRate {
    /// How many.
    pub sequences: usize,
    /// Tokens a second of all together.
    pub tokens_per_s: f64,
    /// Seconds of a step.
    pub step_seconds: Spread,
    /// Seconds of a step of one sequence, in turn with those.
    pub single_seconds: Spread,
    /// How much longer the step of all takes than that of one, in medians.
    pub ratio: f64,
    /// Seconds of a step as the compiler predicts it.
    pub predicted_seconds: f64,
}

/// The copying of streamed weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CopyRate {
    /// Bytes that are copied for each call.
    pub bytes: u64,
    /// The same copies with nothing beside them, in units of 10^9 bytes a second.
    pub link_gb_per_s: Spread,
    /// What a call copies by its time, over the mean of what the link did right before and right after, in pairs.
    pub share: Spread,
}

/// What was measured. Rates are a second.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// Tokens of the prompt.
    pub prefill_tokens_per_s: Spread,
    /// Multiply-accumulates of the prefill, in units of 10^9.
    pub prefill_gmac_per_s: f64,
    /// Tokens generated, marginal between the lengths of `decode_between`; 0 if none were.
    pub decode_tokens_per_s: Spread,
    /// Tokens in the cache where the timed part of a generation starts and ends.
    pub decode_between: (usize, usize),
    /// Bytes that a token of decoding moves, by the compiler's account, in the middle of what was timed.
    pub decode_bytes_per_token: u64,
    /// The part of them that is weights.
    pub decode_weight_bytes_per_token: u64,
    /// Those bytes times the rate, in units of 10^9.
    pub decode_gb_per_s: f64,
    /// The ceiling of decoding: bytes read from memory with nothing else to do, in units of 10^9.
    pub read_gb_per_s: Spread,
    /// The part of that ceiling that decoding reached, in pairs.
    pub decode_share: Spread,
    /// The same, counting weights only: neither caches nor activations.
    pub decode_weight_share: Spread,
    /// The ceiling of prefill: int8 multiply-accumulates on registers, in units of 10^9; 0 where that is not measured.
    pub dot_gmac_per_s: Spread,
    /// The part of that ceiling that prefill reached, in pairs.
    pub prefill_share: Spread,
    /// The same for the time that its ternary matmuls take, from the traced prefill and the median of the ceiling.
    pub prefill_linear_share: f64,
    /// Tokens of the prompt, as the compiler predicts it for the machine that it assumed.
    pub predicted_prefill_tokens_per_s: f64,
    /// Tokens generated, as the compiler predicts it.
    pub predicted_decode_tokens_per_s: f64,
    /// Bytes of the last-level cache, or 0 if that is not known.
    pub cache_bytes: u64,
    /// The copying of weights, if some are streamed.
    pub copies: Option<CopyRate>,
    /// What was taken of the device's memory after the first pass and after the last, if its driver says so.
    pub memory: Option<[MemoryUse; 2]>,
    /// Several sequences in one call, if that was asked for.
    pub batch: Option<BatchRate>,
    /// The steps of prefill, then those of decoding, then those of a batch.
    pub steps: Vec<StepRate>,
}

impl Measurement {
    /// Whether a token reads so much more than the caches hold that decoding is one from memory; also if the caches are not known.
    pub fn exceeds_caches(&self) -> bool {
        CACHES * self.cache_bytes <= self.decode_bytes_per_token
    }
}

/// One step of the plan, in the mean of the traced calls.
#[derive(Clone, Debug)]
pub struct StepRate {
    /// What was run: `prefill`, `decode` or `batch`. A prefill's last call may be of another phase than the others.
    pub run: &'static str,
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
    /// Seconds a call as the compiler predicts them.
    pub predicted_seconds: f64,
    /// Bytes a second, in units of 10^9.
    pub gb_per_s: f64,
    /// Multiply-accumulates a second, in units of 10^9.
    pub gmac_per_s: f64,
    /// Its part of the call's time.
    pub share: f64,
}

/// Measures on the first sequences, which are reset. `progress` is told how many of how many tokens are done, and may stop it.
///
/// # Errors
///
/// As [`Session::prefill`], for a prompt and generation that do not fit, too; [`RuntimeError::Sequence`] for a batch of more sequences than the
/// artifact has; [`RuntimeError::TooManyTokens`] and [`RuntimeError::Rows`] for one that a call does not take.
pub fn measure(
    session: &mut Session,
    workload: &Workload,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Measurement, RuntimeError> {
    let Workload { prompt, generate, batch, depth, .. } = *workload;
    check(session, workload)?;
    let mut random = Random::new(0);
    let vocab = session.vocab() as u64;
    let ids: Vec<u32> = (0..prompt + generate).map(|_| (random.bits() % vocab) as u32).collect();
    let (skipped, traced) = (generate / 4, generate.min(TRACED_TOKENS));
    let batch_steps = if 1 < batch { generate.min(BATCH_STEPS) } else { 0 };
    let batch_tokens = if 0 < batch_steps { batch * prompt + 3 * batch_steps * (batch + 1) } else { 0 };
    let total = (prompt + generate) + REPEATS * (prompt + generate) + prompt + traced + batch_tokens;
    let mut done = 0;
    let mut advance = |tokens: usize| {
        done += tokens as u64;
        if progress(done, total as u64).is_break() { Err(RuntimeError::Cancelled) } else { Ok(()) }
    };

    // The first pass brings weights, and caches as far as they will be used, into memory.
    prefill(session, 0, &ids, workload)?;
    advance(ids.len())?;
    let (mut prefills, mut prefill_shares) = (Vec::new(), Vec::new());
    let (mut decodes, mut decode_shares, mut weight_shares) = (Vec::new(), Vec::new(), Vec::new());
    let (mut dots, mut reads) = (vec![session.device().dot_rate()? / 1e9], Vec::new());
    let (mut prefill_macs, mut prefill_ns) = (0, 0);
    for (start, n, m) in calls(prompt, workload.chunk) {
        let cost = session.cost(depth + start, n, m)?;
        prefill_macs += cost.macs;
        prefill_ns += cost.nanoseconds;
    }
    let first_use = session.device().memory_use()?;
    let streamed = session.plan().placement.streamed_bytes();
    let (mut links, mut copy_shares) = (Vec::new(), Vec::new());
    let mut stretch_tokens = STRETCH;
    for _ in 0..REPEATS {
        let time = prefill(session, 0, &ids[..prompt], workload)?.as_secs_f64();
        let before = dots.last().copied().unwrap_or_default();
        dots.push(session.device().dot_rate()? / 1e9);
        let ceiling = (before + dots.last().copied().unwrap_or_default()) / 2.0;
        prefills.push(prompt as f64 / time);
        prefill_shares.push(share_of(prefill_macs as f64 / 1e9 / time, ceiling));
        advance(prompt)?;

        if 0 < skipped {
            let start = Instant::now();
            decode(session, ids[prompt], skipped)?;
            let tokens_per_second = skipped as f64 / start.elapsed().as_secs_f64();
            stretch_tokens = STRETCH.max((STRETCH_SECONDS * tokens_per_second) as usize);
            advance(skipped)?;
        }
        let mut timed = 0.0;
        let mut before = session.device().read_rate()? / 1e9;
        let mut link_before = session.device().link_rate()?.map(|rate| rate / 1e9);
        let mut start_of_stretch = prompt + skipped;
        for stretch in ids[prompt + skipped..].chunks(stretch_tokens) {
            let start = Instant::now();
            decode(session, stretch[0], stretch.len())?;
            let time = start.elapsed().as_secs_f64();
            timed += time;
            let after = session.device().read_rate()? / 1e9;
            let middle = depth + start_of_stretch + stretch.len() / 2;
            start_of_stretch += stretch.len();
            let token = session.cost(middle, 1, 1)?;
            let share =
                |bytes: u64| share_of((bytes * stretch.len() as u64) as f64 / 1e9 / time, (before + after) / 2.0);
            decode_shares.push(share(token.bytes));
            weight_shares.push(share(token.weight_bytes));
            reads.push(before);
            before = after;
            let link_after = session.device().link_rate()?.map(|rate| rate / 1e9);
            if let (Some(before), Some(after)) = (link_before, link_after) {
                let copied = (streamed * stretch.len() as u64) as f64 / 1e9 / time;
                copy_shares.push(share_of(copied, (before + after) / 2.0));
                links.push(before);
            }
            link_before = link_after;
            advance(stretch.len())?;
        }
        reads.push(before);
        if 0 < generate {
            decodes.push((generate - skipped) as f64 / timed);
        }
    }
    let batch = match batch_steps {
        0 => None,
        steps => Some(measure_batch(session, workload, &ids, steps, &mut advance)?),
    };

    session.start_trace(Trace::default());
    prefill(session, 0, &ids[..prompt], workload)?;
    let mut steps = step_rates("prefill", &session.take_trace().unwrap_or_default());
    let linear_rate = linear_rate(&steps);
    advance(prompt)?;
    session.start_trace(Trace::default());
    if 0 < traced {
        decode(session, ids[prompt], traced)?;
        advance(traced)?;
    }
    steps.extend(step_rates("decode", &session.take_trace().unwrap_or_default()));
    if 0 < batch_steps {
        session.start_trace(Trace::default());
        batch_pass(session, workload, &ids, batch_steps, &mut advance)?;
        steps.extend(step_rates("batch", &session.take_trace().unwrap_or_default()));
    }

    let dot = Spread::of(dots);
    let prefill = Spread::of(prefills);
    let decode = Spread::of(decodes);
    // In the middle of what was timed, where caches have their mean length.
    let token = session.cost(depth + prompt + (skipped + generate) / 2, 1, 1)?;
    let per_second = |ns: u64| if ns == 0 { 0.0 } else { 1e9 / ns as f64 };
    Ok(Measurement {
        prefill_tokens_per_s: prefill,
        prefill_gmac_per_s: prefill_macs as f64 * prefill.median / prompt as f64 / 1e9,
        decode_tokens_per_s: decode,
        decode_between: (depth + prompt + skipped, depth + prompt + generate),
        decode_bytes_per_token: token.bytes,
        decode_weight_bytes_per_token: token.weight_bytes,
        decode_gb_per_s: token.bytes as f64 * decode.median / 1e9,
        read_gb_per_s: Spread::of(reads),
        decode_share: Spread::of(decode_shares),
        decode_weight_share: Spread::of(weight_shares),
        prefill_linear_share: share_of(linear_rate, dot.median),
        dot_gmac_per_s: dot,
        prefill_share: Spread::of(prefill_shares),
        predicted_prefill_tokens_per_s: prompt as f64 * per_second(prefill_ns),
        predicted_decode_tokens_per_s: per_second(token.nanoseconds),
        cache_bytes: last_level_cache_bytes(),
        copies: (!links.is_empty()).then(|| CopyRate {
            bytes: streamed,
            link_gb_per_s: Spread::of(links),
            share: Spread::of(copy_shares),
        }),
        memory: first_use.zip(session.device().memory_use()?).map(|(first, last)| [first, last]),
        batch,
        steps,
    })
}

/// Refuses what does not fit before anything is measured.
fn check(session: &Session, workload: &Workload) -> Result<(), RuntimeError> {
    let Workload { prompt, generate, batch, depth, .. } = *workload;
    let (context, tokens) = (session.plan().context, depth.saturating_add(prompt).saturating_add(generate) as u64);
    if context < tokens {
        return Err(RuntimeError::ContextFull { sequence: 0, position: tokens - 1, context });
    }
    let (sequences, max_tokens, max_rows) = (session.sequences(), session.max_tokens(), session.max_rows());
    if sequences < batch {
        return Err(RuntimeError::Sequence { sequence: batch - 1, sequences: sequences as u64 });
    }
    if max_tokens < batch {
        return Err(RuntimeError::TooManyTokens { tokens: batch, max: max_tokens as u64 });
    }
    if max_rows < batch {
        return Err(RuntimeError::Rows { row: batch - 1, tokens: batch, max: max_rows as u64 });
    }
    Ok(())
}

/// Steps of all sequences and of the first one alone, in turn at the same positions.
fn measure_batch(
    session: &mut Session,
    workload: &Workload,
    ids: &[u32],
    steps: usize,
    advance: &mut dyn FnMut(usize) -> Result<(), RuntimeError>,
) -> Result<BatchRate, RuntimeError> {
    let Workload { prompt, batch, depth, .. } = *workload;
    for sequence in 0..batch {
        prefill(session, sequence, &ids[..prompt], workload)?;
        advance(prompt)?;
    }
    // Once to bring the caches of the new positions into memory, once for the clock.
    batch_pass(session, workload, ids, steps, advance)?;
    let (all, one) = batch_pass(session, workload, ids, steps, advance)?;
    let keys = batch as u64 * (depth + prompt + steps / 2 + 1) as u64;
    let predicted = session.cost_of_keys(keys, batch, batch)?.nanoseconds;
    let (all, one) = (Spread::of(all), Spread::of(one));
    Ok(BatchRate {
        sequences: batch,
        tokens_per_s: batch as f64 / all.median,
        step_seconds: all,
        single_seconds: one,
        ratio: all.median / one.median,
        predicted_seconds: predicted as f64 / 1e9,
    })
}

/// Seconds of each step of all sequences after the prompt, and of each of the first alone; while a trace is kept only all sequences run.
fn batch_pass(
    session: &mut Session,
    workload: &Workload,
    ids: &[u32],
    steps: usize,
    advance: &mut dyn FnMut(usize) -> Result<(), RuntimeError>,
) -> Result<(Vec<f64>, Vec<f64>), RuntimeError> {
    let Workload { prompt, batch, depth, .. } = *workload;
    let sequences: Vec<usize> = (0..batch).collect();
    let (mut all, mut one) = (Vec::new(), Vec::new());
    for &sequence in &sequences {
        session.shorten(sequence, (depth + prompt) as u64)?;
    }
    for (index, &id) in ids[prompt..prompt + steps].iter().enumerate() {
        let length = (depth + prompt + index) as u64;
        let timed = |session: &mut Session, sequences: &[usize]| {
            let n = sequences.len();
            let start = Instant::now();
            if session.chooses() {
                let ticket = session.step(sequences, Ids::Given(&vec![id; n]), &vec![Choice::GREEDY; n])?;
                session.chosen(ticket)?;
            } else {
                let tokens: Vec<Token> = sequences.iter().map(|&sequence| Token::next(sequence, id)).collect();
                session.forward(&tokens, sequences)?;
            }
            Ok::<f64, RuntimeError>(start.elapsed().as_secs_f64())
        };
        all.push(timed(session, &sequences)?);
        if !session.is_tracing() {
            session.shorten(0, length)?;
            one.push(timed(session, &sequences[..1])?);
        }
        advance(batch + 1)?;
    }
    Ok((all, one))
}

/// Generates so many tokens after `first` in the first sequence, queueing steps ahead as [`crate::generate()`] does.
fn decode(session: &mut Session, first: u32, tokens: usize) -> Result<(), RuntimeError> {
    if !session.chooses() {
        return (0..tokens).try_for_each(|_| session.forward(&[Token::next(0, first)], &[0]).map(|_| ()));
    }
    let ahead = 1 + session.device().runs_ahead();
    let mut queued = VecDeque::new();
    let mut last = first;
    for step in 0..tokens {
        let given = [last];
        let ids = if queued.is_empty() { Ids::Given(&given) } else { Ids::Chosen };
        queued.push_back(session.step(&[0], ids, &[Choice::GREEDY])?);
        while queued.len() == ahead || (step + 1 == tokens && !queued.is_empty()) {
            let ticket = queued.pop_front().expect("it is not empty");
            last = session.chosen(ticket)?[0];
        }
    }
    Ok(())
}

fn prefill(session: &mut Session, sequence: usize, ids: &[u32], workload: &Workload) -> Result<Duration, RuntimeError> {
    session.assume_length(sequence, workload.depth)?;
    let start = Instant::now();
    session.prefill(sequence, ids, workload.chunk, &mut |_, _| ControlFlow::Continue(()))?;
    Ok(start.elapsed())
}

/// Start, tokens and rows of the calls of a prefill.
fn calls(prompt: usize, chunk: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..prompt).step_by(chunk.max(1)).map(move |start| {
        let end = prompt.min(start + chunk);
        (start, end - start, usize::from(end == prompt))
    })
}

/// Multiply-accumulates a second of ternary matmuls, in units of 10^9.
fn linear_rate(steps: &[StepRate]) -> f64 {
    let linears = steps.iter().filter(|step| step.kernel.starts_with("ternary_"));
    let (macs, seconds) = linears
        .fold((0.0, 0.0), |(macs, seconds), step| (macs + step.gmac_per_s * step.seconds, seconds + step.seconds));
    share_of(macs, seconds)
}

/// A quotient; 0 where there is nothing to compare with, as where a device has no such ceiling.
fn share_of(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}

/// The steps of a trace, in the mean of its calls. A prefill whose last call is shorter than the others counts by calls, too.
fn step_rates(run: &'static str, trace: &Trace) -> Vec<StepRate> {
    step_rates_of(run, trace, trace.calls().max(1))
}

/// The steps of a trace, in the mean of so many runs.
fn step_rates_of(run: &'static str, trace: &Trace, calls: u64) -> Vec<StepRate> {
    let total = trace.time().as_secs_f64();
    let rate = |row: &Row| {
        let seconds = row.time.as_secs_f64();
        let share = if total == 0.0 { 0.0 } else { seconds / total };
        StepRate {
            run,
            phase: row.phase.clone(),
            from: row.from.clone(),
            kernel: row.kernel.clone(),
            launches: row.launches.div_ceil(calls),
            bytes: row.cost.bytes / calls,
            seconds: seconds / calls as f64,
            predicted_seconds: row.cost.nanoseconds as f64 / 1e9 / calls as f64,
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
    fn a_spread_has_the_middle_and_both_ends() {
        assert_eq!(Spread::of(vec![5.0, 1.0, 9.0]), Spread { median: 5.0, min: 1.0, max: 9.0 });
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }
}
