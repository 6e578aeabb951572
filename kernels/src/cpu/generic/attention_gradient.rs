//! What sums attention up for each query, and the gradients of attention from it, over caches in f32 or bf16: the formulas of
//! [`ir::op::attention::AttentionLse`], [`ir::op::attention::AttentionQueryGradient`] and [`ir::op::attention::AttentionCacheGradient`].
//!
//! For a query `q` of token `t` and head `h`, with the visible keys `j` in ascending order:
//!
//! ```text
//! s_j = dot(q, k_j) * scale
//! for each run of 64 keys:  m' = max(m, max s_j)    sum = sum * exp(m - m') + sum exp(s_j - m')        lse = m + ln(sum)
//!
//! p_j = exp(s_j - lse)      t_j = p_j * (dot(dy, v_j) - delta) * scale
//! dq  = sum t_j k_j         dk_j += t_j q            dv_j += p_j dy
//! ```
//!
//! A dot product is 16 partial sums by `i % 16`, each in ascending order, added in pairs of halves; all other sums run in ascending order: of keys for
//! `lse` and `dq`, of tokens and then of heads for `dk` and `dv`. A unit of what belongs to queries is a token with a head, one of the caches' gradient is a
//! sequence with a KV head, whose rows nobody else writes. Numbers in bf16 are widened, and everything else is f32.

use ir::mask::{Mask, Span};

use crate::cpu::generic::args::Args;
use crate::math::{exp_f32, ln_f32};

/// Partial sums of a dot product.
const LANES: usize = 16;
/// Keys whose exponentials have one maximum.
const RUN: usize = 64;

/// The log of the sum of the exponentials. Signature `q, k, seq, pos, span, out` and `n, heads, kv_heads, hd, ctx, window, sinks, scale_bits, seqs`.
///
/// # Safety
///
/// The contract of the crate.
#[inline(always)]
pub(crate) unsafe fn lse<N: Copy + Into<f32>>(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    // SAFETY: as the caller promises.
    let (attention, out) = unsafe {
        let args = Args::new(args, dims);
        (Attention::<N>::new(args, 2), args.pointer::<f32>(5))
    };
    for unit in begin as usize..end as usize {
        let (token, head) = (unit / attention.heads, unit % attention.heads);
        let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
        let mut scores = [0.0_f32; RUN];
        // SAFETY: the unit exists.
        let seen = unsafe { attention.visible(token) };
        let count = seen.as_ref().map_or(0, |(_, keys)| keys.flat().count());
        if let Some((sequence, keys)) = &seen {
            let mut keys = keys.flat();
            for first in (0..count).step_by(RUN) {
                let scores = &mut scores[..RUN.min(count - first)];
                for (score, key) in scores.iter_mut().zip(&mut keys) {
                    // SAFETY: the mask says which keys there are.
                    *score = unsafe { attention.score(token, head, *sequence, key) };
                }
                let before = max;
                max = scores.iter().fold(max, |max, &score| if max < score { score } else { max });
                let run = scores.iter().fold(0.0, |run, score| run + exp_f32(score - max));
                sum = sum * exp_f32(before - max) + run;
            }
        }
        // SAFETY: the number of the unit is its own.
        unsafe { *out.add(unit) = if count == 0 { 0.0 } else { max + ln_f32(sum) } };
    }
}

/// The gradient of the queries. Signature `q, k, v, seq, pos, span, dy, lse, delta, out` and the dims of [`lse`].
///
/// # Safety
///
/// The contract of the crate.
#[inline(always)]
pub(crate) unsafe fn queries<N: Copy + Into<f32>>(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    // SAFETY: as the caller promises.
    let operands = unsafe { Operands::<N>::new(args, dims) };
    let attention = operands.attention;
    for unit in begin as usize..end as usize {
        let (token, head) = (unit / attention.heads, unit % attention.heads);
        // SAFETY: the unit exists, its row of the result is its own, and the mask says which keys there are.
        unsafe {
            let out = std::slice::from_raw_parts_mut(operands.out.add(unit * attention.hd), attention.hd);
            out.fill(0.0);
            let Some((sequence, keys)) = attention.visible(token) else { continue };
            for key in keys.flat() {
                let (_, turn) = operands.weigh(token, head, sequence, key);
                add(out, turn, attention.cached(attention.k, head, sequence, key));
            }
        }
    }
}

/// The gradient of the keys, and behind it that of the values. Signature as [`queries`].
///
/// # Safety
///
/// The contract of the crate.
#[inline(always)]
pub(crate) unsafe fn caches<N: Copy + Into<f32>>(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    // SAFETY: as the caller promises.
    let operands = unsafe { Operands::<N>::new(args, dims) };
    let attention = operands.attention;
    let (hd, rows, group) = (attention.hd, attention.ctx * attention.hd, attention.group());
    for unit in begin as usize..end as usize {
        let (own, kv_head) = (unit / attention.kv_heads, unit % attention.kv_heads);
        // SAFETY: the unit exists, its rows of both gradients are its own, and the mask says which keys there are.
        unsafe {
            let of_values = attention.seqs * attention.kv_heads * rows;
            let dk = std::slice::from_raw_parts_mut(operands.out.add(unit * rows), rows);
            let dv = std::slice::from_raw_parts_mut(operands.out.add(of_values + unit * rows), rows);
            dk.fill(0.0);
            dv.fill(0.0);
            for token in 0..attention.n {
                let Some((sequence, keys)) = attention.visible(token).filter(|(sequence, _)| *sequence == own) else {
                    continue;
                };
                for head in kv_head * group..(kv_head + 1) * group {
                    let (q, dy) = (attention.row(attention.q, token, head), attention.row(operands.dy, token, head));
                    for key in keys.flat() {
                        let (part, turn) = operands.weigh(token, head, sequence, key);
                        add(&mut dk[key * hd..][..hd], turn, q);
                        add(&mut dv[key * hd..][..hd], part, dy);
                    }
                }
            }
        }
    }
}

/// The keys that a token sees.
struct Keys([std::ops::Range<u32>; 2]);

impl Keys {
    #[inline(always)]
    fn flat(&self) -> impl Iterator<Item = usize> {
        let [first, second] = self.0.clone();
        first.chain(second).map(|key| key as usize)
    }
}

/// What the scores are made of, and which of them there are.
#[derive(Clone, Copy)]
struct Attention<N> {
    q: *const N,
    k: *const N,
    seq: *const i32,
    pos: *const i32,
    span: *const i32,
    n: usize,
    heads: usize,
    kv_heads: usize,
    hd: usize,
    ctx: usize,
    mask: Mask,
    scale: f32,
    seqs: usize,
}

impl<N: Copy + Into<f32>> Attention<N> {
    /// # Safety
    ///
    /// The contract of the crate, for a signature with the dims of [`lse`] whose first arguments are `q` and `k`, and which has `seq`, `pos` and `span`
    /// from position `seq` on.
    #[inline(always)]
    unsafe fn new(args: Args, seq: usize) -> Self {
        // SAFETY: as the caller promises.
        unsafe {
            Self {
                q: args.pointer(0),
                k: args.pointer(1),
                seq: args.pointer(seq),
                pos: args.pointer(seq + 1),
                span: args.pointer(seq + 2),
                n: args.size(0),
                heads: args.size(1),
                kv_heads: args.size(2),
                hd: args.size(3),
                ctx: args.size(4),
                mask: Mask { window: args.dim(5) as u32, sinks: args.dim(6) as u32 },
                scale: f32::from_bits(args.dim(7) as u32),
                seqs: args.size(8),
            }
        }
    }

    fn group(self) -> usize {
        self.heads / self.kv_heads.max(1)
    }

    /// A token's sequence and the keys that it sees; nothing if its sequence is none.
    ///
    /// # Safety
    ///
    /// The token exists.
    #[inline(always)]
    unsafe fn visible(self, token: usize) -> Option<(usize, Keys)> {
        // SAFETY: as the caller promises.
        let (seq, pos, first, reach) = unsafe {
            (*self.seq.add(token), *self.pos.add(token), *self.span.add(2 * token), *self.span.add(2 * token + 1))
        };
        let sequence = usize::try_from(seq).ok().filter(|seq| *seq < self.seqs)?;
        let span = Span { first: first as u32, reach: reach as u32 };
        let ranges = self.mask.ranges(pos as u32, span);
        let most = self.ctx as u32;
        Some((sequence, Keys(ranges.map(|range| range.start.min(most)..range.end.min(most)))))
    }

    /// # Safety
    ///
    /// The token and the head exist, and so do as many numbers of `rows`.
    #[inline(always)]
    unsafe fn row<'a>(self, rows: *const N, token: usize, head: usize) -> &'a [N] {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts(rows.add((token * self.heads + head) * self.hd), self.hd) }
    }

    /// The row of a cache that a query head reads.
    ///
    /// # Safety
    ///
    /// The head, the sequence and the key exist.
    #[inline(always)]
    unsafe fn cached<'a>(self, cache: *const N, head: usize, sequence: usize, key: usize) -> &'a [N] {
        let at = ((sequence * self.kv_heads + head / self.group()) * self.ctx + key) * self.hd;
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts(cache.add(at), self.hd) }
    }

    /// # Safety
    ///
    /// The token, the head, the sequence and the key exist.
    #[inline(always)]
    unsafe fn score(self, token: usize, head: usize, sequence: usize, key: usize) -> f32 {
        // SAFETY: as the caller promises.
        unsafe { dot(self.row(self.q, token, head), self.cached(self.k, head, sequence, key)) * self.scale }
    }
}

/// The operands of a gradient.
#[derive(Clone, Copy)]
struct Operands<N> {
    attention: Attention<N>,
    v: *const N,
    dy: *const N,
    lse: *const f32,
    delta: *const f32,
    out: *mut f32,
}

impl<N: Copy + Into<f32>> Operands<N> {
    /// # Safety
    ///
    /// The contract of the crate, for the signature of [`queries`].
    #[inline(always)]
    unsafe fn new(args: *const *mut u8, dims: *const i64) -> Self {
        // SAFETY: as the caller promises.
        unsafe {
            let args = Args::new(args, dims);
            Self {
                attention: Attention::new(args, 3),
                v: args.pointer(2),
                dy: args.pointer(6),
                lse: args.pointer(7),
                delta: args.pointer(8),
                out: args.pointer(9),
            }
        }
    }

    /// What a key counts for a query: `p_j` and `t_j`.
    ///
    /// # Safety
    ///
    /// The token, the head, the sequence and the key exist.
    #[inline(always)]
    unsafe fn weigh(self, token: usize, head: usize, sequence: usize, key: usize) -> (f32, f32) {
        let attention = self.attention;
        // SAFETY: as the caller promises.
        unsafe {
            let at = token * attention.heads + head;
            let part = exp_f32(attention.score(token, head, sequence, key) - *self.lse.add(at));
            let pull = dot(attention.row(self.dy, token, head), attention.cached(self.v, head, sequence, key));
            (part, part * (pull - *self.delta.add(at)) * attention.scale)
        }
    }
}

/// `to += factor * row`.
#[inline(always)]
fn add<N: Copy + Into<f32>>(to: &mut [f32], factor: f32, row: &[N]) {
    for (to, &value) in to.iter_mut().zip(row) {
        *to += factor * value.into();
    }
}

#[inline(always)]
fn dot<N: Copy + Into<f32>>(left: &[N], right: &[N]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let ((left, left_rest), (right, right_rest)) = (left.as_chunks::<LANES>(), right.as_chunks::<LANES>());
    for (left, right) in left.iter().zip(right) {
        for lane in 0..LANES {
            lanes[lane] += left[lane].into() * right[lane].into();
        }
    }
    for (lane, (&left, &right)) in lanes.iter_mut().zip(left_rest.iter().zip(right_rest)) {
        *lane += left.into() * right.into();
    }
    let mut width = LANES / 2;
    while 0 < width {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}
