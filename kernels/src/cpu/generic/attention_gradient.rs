//! Gradients of attention over f32 caches, by the formulas of [`ir::op::attention::AttentionGradient`].
//!
//! For a query `q` of token `t` and head `h`, with the visible keys `j` in ascending order:
//!
//! ```text
//! s_j = dot(q, k_j) * scale    m = max s_j    p_j = exp(s_j - m) / sum exp(s_j - m)    e_j = dot(dy, v_j)    c = sum p_j e_j
//! t_j = p_j * (e_j - c) * scale
//! dq  = sum t_j k_j            dk_j += t_j q            dv_j += p_j dy
//! ```
//!
//! A dot product is 16 partial sums by `i % 16`, each in ascending order, added in pairs of halves; all other sums run in ascending order: of keys for
//! `dq`, of tokens and then of heads for `dk` and `dv`. A unit of the queries' gradient is a token with a head, one of the caches' is a sequence with a KV
//! head, whose rows nobody else writes. Every unit computes the scores that it needs itself, so nothing is kept between calls.

use ir::mask::{Mask, Span};

use crate::cpu::generic::args::Args;
use crate::math::exp_f32;

/// Partial sums of a dot product.
const LANES: usize = 16;

/// The gradient of the queries. Signature `q, k, v, seq, pos, span, dy, out` and `n, heads, kv_heads, hd, ctx, window, sinks, scale_bits, seqs`.
///
/// # Safety
///
/// The contract of the crate.
#[inline(always)]
pub(crate) unsafe fn queries(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    // SAFETY: as the caller promises.
    let operands = unsafe { Operands::new(args, dims) };
    let mut weights = Weights::default();
    for unit in begin as usize..end as usize {
        let (token, head) = (unit / operands.heads, unit % operands.heads);
        // SAFETY: the unit exists, and its row of the result is its own.
        unsafe {
            let out = std::slice::from_raw_parts_mut(operands.out.add(unit * operands.hd), operands.hd);
            out.fill(0.0);
            let Some((sequence, keys)) = operands.visible(token) else { continue };
            let kv_head = head / operands.group();
            operands.weigh(token, head, sequence, &keys, &mut weights);
            for (at, key) in keys.flat().enumerate() {
                add(out, weights.turns[at], operands.cached(operands.k, sequence, kv_head, key));
            }
        }
    }
}

/// The gradient of the keys, or with the last dim `of_values` that of the values. Signature as [`queries`], and `of_values`.
///
/// # Safety
///
/// The contract of the crate.
#[inline(always)]
pub(crate) unsafe fn caches(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    // SAFETY: as the caller promises.
    let (operands, of_values) = unsafe { (Operands::new(args, dims), Args::new(args, dims).dim(9) != 0) };
    let mut weights = Weights::default();
    for unit in begin as usize..end as usize {
        let (sequence, kv_head) = (unit / operands.kv_heads, unit % operands.kv_heads);
        let (rows, group) = (operands.ctx * operands.hd, operands.group());
        // SAFETY: the unit exists, and its rows of the result are its own.
        unsafe {
            let out = std::slice::from_raw_parts_mut(operands.out.add(unit * rows), rows);
            out.fill(0.0);
            for token in 0..operands.n {
                let Some((own, keys)) = operands.visible(token) else { continue };
                if own != sequence {
                    continue;
                }
                for head in kv_head * group..(kv_head + 1) * group {
                    operands.weigh(token, head, sequence, &keys, &mut weights);
                    let (factors, row) = match of_values {
                        true => (&weights.parts, operands.row(operands.dy, token, head)),
                        false => (&weights.turns, operands.row(operands.q, token, head)),
                    };
                    for (at, key) in keys.flat().enumerate() {
                        add(&mut out[key * operands.hd..][..operands.hd], factors[at], row);
                    }
                }
            }
        }
    }
}

/// What the keys that a query sees count for it, in their order.
#[derive(Default)]
struct Weights {
    /// `p_j`.
    parts: Vec<f32>,
    /// `t_j`.
    turns: Vec<f32>,
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

#[derive(Clone, Copy)]
struct Operands {
    q: *const f32,
    k: *const f32,
    v: *const f32,
    seq: *const i32,
    pos: *const i32,
    span: *const i32,
    dy: *const f32,
    out: *mut f32,
    n: usize,
    heads: usize,
    kv_heads: usize,
    hd: usize,
    ctx: usize,
    mask: Mask,
    scale: f32,
    seqs: usize,
}

impl Operands {
    /// # Safety
    ///
    /// The contract of the crate, for the signature of [`queries`].
    #[inline(always)]
    unsafe fn new(args: *const *mut u8, dims: *const i64) -> Self {
        // SAFETY: as the caller promises.
        unsafe {
            let args = Args::new(args, dims);
            Self {
                q: args.pointer(0),
                k: args.pointer(1),
                v: args.pointer(2),
                seq: args.pointer(3),
                pos: args.pointer(4),
                span: args.pointer(5),
                dy: args.pointer(6),
                out: args.pointer(7),
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
    unsafe fn row<'a>(self, rows: *const f32, token: usize, head: usize) -> &'a [f32] {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts(rows.add((token * self.heads + head) * self.hd), self.hd) }
    }

    /// # Safety
    ///
    /// The sequence, the head and the key exist.
    #[inline(always)]
    unsafe fn cached<'a>(self, cache: *const f32, sequence: usize, kv_head: usize, key: usize) -> &'a [f32] {
        let at = ((sequence * self.kv_heads + kv_head) * self.ctx + key) * self.hd;
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts(cache.add(at), self.hd) }
    }

    /// # Safety
    ///
    /// The token, the head, the sequence and its keys exist.
    #[inline(always)]
    unsafe fn weigh(self, token: usize, head: usize, sequence: usize, keys: &Keys, weights: &mut Weights) {
        let kv_head = head / self.group();
        let Weights { parts, turns } = weights;
        parts.clear();
        turns.clear();
        // SAFETY: as the caller promises.
        unsafe {
            let (q, dy) = (self.row(self.q, token, head), self.row(self.dy, token, head));
            for key in keys.flat() {
                parts.push(dot(q, self.cached(self.k, sequence, kv_head, key)) * self.scale);
                turns.push(dot(dy, self.cached(self.v, sequence, kv_head, key)));
            }
        }
        let max = parts.iter().copied().fold(f32::NEG_INFINITY, |max, score| if max < score { score } else { max });
        let mut sum = 0.0;
        for part in parts.iter_mut() {
            *part = exp_f32(*part - max);
            sum += *part;
        }
        let mut mean = 0.0;
        for (part, pull) in parts.iter_mut().zip(turns.iter()) {
            *part /= sum;
            mean += *part * pull;
        }
        for (part, turn) in parts.iter().zip(turns.iter_mut()) {
            *turn = *part * (*turn - mean) * self.scale;
        }
    }
}

/// `to += factor * row`.
#[inline(always)]
fn add(to: &mut [f32], factor: f32, row: &[f32]) {
    for (to, value) in to.iter_mut().zip(row) {
        *to += factor * value;
    }
}

#[inline(always)]
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let ((left, left_rest), (right, right_rest)) = (left.as_chunks::<LANES>(), right.as_chunks::<LANES>());
    for (left, right) in left.iter().zip(right) {
        for lane in 0..LANES {
            lanes[lane] += left[lane] * right[lane];
        }
    }
    for (lane, (left, right)) in lanes.iter_mut().zip(left_rest.iter().zip(right_rest)) {
        *lane += left * right;
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
