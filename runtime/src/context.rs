//! Whether a long context holds what it promises: all layers, a prefill in chunks and decoding to the last position, the same numbers as in a short
//! one, and what was said at the start found again at the end.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::error::RuntimeError;
use crate::evaluate::nats_of;
use crate::sample::{Random, greedy};
use crate::session::{Session, Token};

/// What to go through.
#[derive(Clone, Copy, Debug)]
pub struct Journey {
    /// Positions to fill, at most those of the artifact.
    pub context: usize,
    /// How many of them are decoded one by one at the end.
    pub decode: usize,
    /// Tokens of a call of the prefill.
    pub chunk: usize,
    /// The most positions of a shorter context that is held against it.
    pub overlap: usize,
    /// Tokens of a call of its prefill.
    pub shorter_chunk: usize,
    /// Where the random ids start.
    pub seed: u64,
}

/// What was seen on the way.
#[derive(Clone, Debug)]
pub struct Travelled {
    /// Positions that were filled.
    pub context: usize,
    /// Time of the prefill.
    pub prefill: Duration,
    /// Its tokens.
    pub prefilled: usize,
    /// Time of decoding.
    pub decode: Duration,
    /// Its tokens.
    pub decoded: usize,
    /// Rows of logits that were looked at.
    pub rows: usize,
    /// Those of them with something that is no finite number.
    pub not_finite: usize,
    /// Positions at which a shorter context was held against the long one.
    pub overlaps: Vec<Overlap>,
}

/// A position that a shorter context has, too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overlap {
    /// The position.
    pub position: usize,
    /// Tokens of a call of the shorter one.
    pub chunk: usize,
    /// Logits with other bits.
    pub different: usize,
    /// The largest difference of two logits, over the largest logit.
    pub largest: f32,
}

/// Fills sequence 0 to its end with random ids, and compares with shorter contexts at positions a power of two apart.
///
/// `progress` is told how many of how many tokens are done, and may stop it.
///
/// # Errors
///
/// As [`Session::prefill`]; [`RuntimeError::Cancelled`].
pub fn travel(
    session: &mut Session,
    journey: &Journey,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Travelled, RuntimeError> {
    let Journey { context, chunk, seed, .. } = *journey;
    let decode = journey.decode.min(context.saturating_sub(1));
    let prefilled = context - decode;
    let vocab = session.vocab() as u64;
    let mut random = Random::new(seed);
    let ids: Vec<u32> = (0..context).map(|_| (random.bits() % vocab) as u32).collect();
    let marks: Vec<usize> = (0..).map(|power| (1 << power) - 1).take_while(|&mark| mark < prefilled).collect();
    let compared: Vec<usize> = marks.iter().copied().filter(|&mark| mark < journey.overlap).collect();
    // All of the longest are of a prefix of one another, so one shorter context serves all marks.
    let again = compared.last().map_or(0, |last| last + 1);
    let total = context + again;
    let mut done = 0;
    let mut step = |tokens: usize| {
        done += tokens;
        if progress(done, total).is_break() { Err(RuntimeError::Cancelled) } else { Ok(()) }
    };

    session.reset(0)?;
    let mut kept: Vec<(usize, Vec<f32>)> = Vec::new();
    let (mut rows, mut not_finite) = (0, 0);
    let start = Instant::now();
    fill(
        session,
        &ids[..prefilled],
        chunk,
        &marks,
        &mut |position, row| {
            rows += 1;
            not_finite += usize::from(row.iter().any(|value| !value.is_finite()));
            if compared.contains(&position) {
                kept.push((position, row.to_vec()));
            }
        },
        &mut step,
    )?;
    let prefill = start.elapsed();
    let start = Instant::now();
    for &id in &ids[prefilled..] {
        let logits = session.forward(&[Token::next(0, id)], &[0])?;
        rows += 1;
        not_finite += usize::from(logits.rows().flatten().any(|value| !value.is_finite()));
        step(1)?;
    }
    let decoded = start.elapsed();

    let shorter_chunk = journey.shorter_chunk;
    let mut overlaps = Vec::new();
    session.reset(0)?;
    fill(
        session,
        &ids[..again],
        shorter_chunk,
        &compared,
        &mut |position, row| {
            let Some((_, long)) = kept.iter().find(|(kept, _)| *kept == position) else { return };
            let pairs = || row.iter().zip(long);
            overlaps.push(Overlap {
                position,
                chunk: shorter_chunk,
                different: pairs().filter(|(short, long)| short.to_bits() != long.to_bits()).count(),
                largest: relative(row, long),
            });
        },
        &mut step,
    )?;
    session.reset(0)?;
    Ok(Travelled { context, prefill, prefilled, decode: decoded, decoded: decode, rows, not_finite, overlaps })
}

/// The largest difference over the largest value.
fn relative(left: &[f32], right: &[f32]) -> f32 {
    let largest = right.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    let difference = left.iter().zip(right).fold(0.0, |most: f32, (left, right)| {
        let difference = (left - right).abs();
        // A number on one side and none on the other is as far off as can be.
        if difference.is_nan() { f32::INFINITY } else { most.max(difference) }
    });
    if difference == 0.0 { 0.0 } else { difference / largest.max(f32::MIN_POSITIVE) }
}

/// A size of calls that has no divisor in common with another, so that little falls into the same tiles; of these the nearest to two thirds of it.
pub fn other_chunk(chunk: usize, most: usize) -> usize {
    let has_common = |other: usize| {
        (2..=other.min(chunk)).any(|divisor| other.is_multiple_of(divisor) && chunk.is_multiple_of(divisor))
    };
    let others = (1..=most.min(2 * chunk + 1)).filter(|&other| other != chunk && !has_common(other));
    others.min_by_key(|other| (3 * other).abs_diff(2 * chunk)).unwrap_or(chunk)
}

/// Fills a sequence that is empty in calls of `chunk` tokens, and shows the logits at `marks`, which ascend.
fn fill(
    session: &mut Session,
    ids: &[u32],
    chunk: usize,
    marks: &[usize],
    visit: &mut dyn FnMut(usize, &[f32]),
    step: &mut dyn FnMut(usize) -> Result<(), RuntimeError>,
) -> Result<(), RuntimeError> {
    let mut start = 0;
    while start < ids.len() {
        let in_call = marks.iter().filter(|&&mark| start <= mark);
        // A call gives only so many rows, so it ends where it has no more.
        let reach = in_call.clone().nth(session.max_rows()).copied().unwrap_or(usize::MAX);
        let end = ids.len().min(start + chunk).min(reach);
        let rows: Vec<usize> = in_call.take_while(|&&mark| mark < end).map(|mark| mark - start).collect();
        let tokens: Vec<Token> = ids[start..end].iter().map(|&id| Token::next(0, id)).collect();
        let logits = session.forward(&tokens, &rows)?;
        rows.iter().zip(logits.rows()).for_each(|(row, logits)| visit(start + row, logits));
        step(end - start)?;
        start = end;
    }
    Ok(())
}

/// Something to be found again in a long text.
#[derive(Clone, Copy, Debug)]
pub struct Needle<'a> {
    /// The text that it lies in, as ids; it is repeated as often as it takes.
    pub hay: &'a [u32],
    /// What is put into it.
    pub needle: &'a [u32],
    /// What stands at the end, to be answered.
    pub question: &'a [u32],
    /// The right answer.
    pub answer: &'a [u32],
    /// Tokens that begin a text.
    pub begin: &'a [u32],
}

/// How it went with one place of the needle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Where the needle began.
    pub position: usize,
    /// Tokens before the answer.
    pub length: usize,
    /// Whether the most probable tokens are the answer.
    pub is_found: bool,
    /// The mean of what the answer's tokens cost, in nats.
    pub nats: f64,
}

/// Hides a needle at a part of `length` tokens, and asks for it at the end.
///
/// # Errors
///
/// As [`Session::prefill`]; [`RuntimeError::Cancelled`].
pub fn find(
    session: &mut Session,
    needle: &Needle<'_>,
    length: usize,
    depth: f64,
    chunk: usize,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Found, RuntimeError> {
    let Needle { hay, needle, question, answer, begin } = *needle;
    let fixed = begin.len() + needle.len() + question.len() + answer.len();
    let hay_length = length.saturating_sub(fixed);
    let before = ((hay_length as f64) * depth.clamp(0.0, 1.0)).round() as usize;
    let straw = |from: usize, count: usize| hay.iter().copied().cycle().skip(from % hay.len().max(1)).take(count);
    let mut ids: Vec<u32> = begin.to_vec();
    ids.extend(straw(0, before));
    let position = ids.len();
    ids.extend(needle);
    ids.extend(straw(before, hay_length - before));
    ids.extend(question);
    let asked = ids.len();
    session.reset(0)?;
    let mut logits = session.prefill(0, &ids, chunk, progress)?.to_vec();
    let (mut is_found, mut nats) = (true, 0.0);
    for (number, &id) in answer.iter().enumerate() {
        is_found &= greedy(&logits) == Some(id);
        nats += nats_of(&logits, id);
        if number + 1 < answer.len() {
            let row = session.forward(&[Token::next(0, id)], &[0])?;
            logits = row.rows().next().unwrap_or(&[]).to_vec();
        }
    }
    session.reset(0)?;
    Ok(Found { position, length: asked, is_found, nats: nats / answer.len().max(1) as f64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_size_of_calls_is_another_one() {
        for (chunk, most) in [(1, 8), (2, 8), (3, 8), (21, 64), (256, 256), (512, 4096)] {
            let other = other_chunk(chunk, most);
            assert!(other != chunk && (1..=most).contains(&other), "{other} beside {chunk}");
            assert!(
                (2..=chunk).all(|divisor| !other.is_multiple_of(divisor) || !chunk.is_multiple_of(divisor)),
                "{other} beside {chunk}"
            );
        }
        assert_eq!(other_chunk(1, 1), 1, "there is no other");
    }
}
