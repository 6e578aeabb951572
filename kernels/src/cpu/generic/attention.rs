//! Attention over a KV cache, with an online softmax; the evaluation order is the one in the documentation of the crate.
//!
//! `q` is f32 `[n, heads, hd]`; `k` and `v` are caches `[seqs, ctx, kv_heads, hd]` in f32 or as records of a row format; token `t` belongs
//! to sequence `seq[t]`, stands at `pos[t]` and sees the keys of `Mask { window, sinks }` with the span `span[t]`; `out` is f32
//! `[n, heads, hd]`. A unit of the grid is one token with one KV head, so that the query heads of a group share what is read of the cache.
//!
//! ```text
//! for each range of visible keys, for each piece of it between multiples of 64:
//!     s_j  = dot(q, k_j) * scale            m' = max(m, s_j)
//!     r    = exp(m - m')                    p_j = exp(s_j - m')
//!     l    = l * r + sum p_j                acc = acc * r + sum_j p_j v_j
//! out = acc / l
//! ```
//!
//! Keys that the mask hides are never touched, because the pieces are cut from the mask's ranges. A quantised row of the cache is decoded
//! once for all heads of a chunk.

use ir::DType;
use ir::mask::{Mask, Span};
use ir::packing::RowFormat;

use crate::MAX_HEAD_DIM;
use crate::cpu::generic::args::Args;
use crate::cpu::generic::dense::finish_dot;
use crate::cpu::generic::exp::exp;
use crate::cpu::lanes::{LANES, Lanes};
use crate::math::exp_f32;

/// Keys of a tile: two blocks of lanes, so that the exponentials of a tile are two vector evaluations.
const TILE: usize = 64;

/// One row of a cache, `hd` numbers, as it is stored.
pub(crate) trait CacheRow: Copy {
    /// Bytes of one row.
    fn bytes(hd: usize) -> usize;

    /// The row at `row`.
    ///
    /// # Safety
    ///
    /// A row of `hd` numbers of this format lies there.
    unsafe fn open(row: *const u8, hd: usize) -> Self;

    /// The numbers `at..at + 32`; `at` is a multiple of 32.
    ///
    /// # Safety
    ///
    /// `at + 32 <= hd`, and the CPU has the features of `L`.
    unsafe fn block<L: Lanes>(self, at: usize) -> L::Block;

    /// The number at `at`.
    ///
    /// # Safety
    ///
    /// `at < hd`.
    unsafe fn number(self, at: usize) -> f32;
}

/// A row of f32.
#[derive(Clone, Copy)]
pub(crate) struct F32Row(*const f32);

impl CacheRow for F32Row {
    #[inline(always)]
    fn bytes(hd: usize) -> usize {
        4 * hd
    }

    #[inline(always)]
    unsafe fn open(row: *const u8, _hd: usize) -> Self {
        Self(row.cast())
    }

    #[inline(always)]
    unsafe fn block<L: Lanes>(self, at: usize) -> L::Block {
        // SAFETY: as the caller promises.
        unsafe { L::load(self.0.add(at)) }
    }

    #[inline(always)]
    unsafe fn number(self, at: usize) -> f32 {
        // SAFETY: as the caller promises.
        unsafe { *self.0.add(at) }
    }
}

/// A q8 record: `code * scale`.
#[derive(Clone, Copy)]
pub(crate) struct Q8Row {
    codes: *const u8,
    scale: f32,
}

impl CacheRow for Q8Row {
    fn bytes(hd: usize) -> usize {
        RowFormat::new(DType::Q8, hd).expect("q8 is a row format").stride()
    }

    #[inline(always)]
    unsafe fn open(row: *const u8, hd: usize) -> Self {
        // SAFETY: the codes, padded to 16, are followed by the scale.
        let scale = unsafe { row.add(hd.next_multiple_of(16)).cast::<f32>().read_unaligned() };
        Self { codes: row, scale }
    }

    #[inline(always)]
    unsafe fn block<L: Lanes>(self, at: usize) -> L::Block {
        // SAFETY: as the caller promises.
        unsafe { L::mul(L::load_i8(self.codes.add(at)), L::splat(self.scale)) }
    }

    #[inline(always)]
    unsafe fn number(self, at: usize) -> f32 {
        // SAFETY: as the caller promises.
        let code = unsafe { *self.codes.add(at) };
        f32::from(code as i8) * self.scale
    }
}

/// A q4 record: `minimum + code * scale`.
#[derive(Clone, Copy)]
pub(crate) struct Q4Row {
    codes: *const u8,
    scale: f32,
    minimum: f32,
}

impl CacheRow for Q4Row {
    fn bytes(hd: usize) -> usize {
        RowFormat::new(DType::Q4, hd).expect("q4 is a row format").stride()
    }

    #[inline(always)]
    unsafe fn open(row: *const u8, hd: usize) -> Self {
        // SAFETY: the codes, padded to 4 bytes, are followed by the scale and the minimum.
        unsafe {
            let numbers = row.add(hd.div_ceil(2).next_multiple_of(4));
            let scale = numbers.cast::<f32>().read_unaligned();
            let minimum = numbers.add(4).cast::<f32>().read_unaligned();
            Self { codes: row, scale, minimum }
        }
    }

    #[inline(always)]
    unsafe fn block<L: Lanes>(self, at: usize) -> L::Block {
        // SAFETY: as the caller promises; two codes share a byte.
        unsafe {
            // Two roundings, as the format is defined.
            let scaled = L::mul(L::load_u4(self.codes.add(at / 2)), L::splat(self.scale));
            L::add(L::splat(self.minimum), scaled)
        }
    }

    #[inline(always)]
    unsafe fn number(self, at: usize) -> f32 {
        // SAFETY: as the caller promises.
        let byte = unsafe { *self.codes.add(at / 2) };
        self.minimum + f32::from((byte >> (4 * (at % 2))) & 15) * self.scale
    }
}

/// # Safety
///
/// The contract of the crate, with `hd <= MAX_HEAD_DIM` and `heads` a multiple of `kv_heads`.
#[inline(always)]
pub(crate) unsafe fn attention<L: Lanes, K: CacheRow, V: CacheRow, const HEADS: usize>(
    args: *const *mut u8,
    dims: *const i64,
    begin: i64,
    end: i64,
) {
    // SAFETY: the contract of the crate, for the signature `q, k, v, seq, pos, span, out` and `n, heads, kv_heads, hd, ctx, window, sinks,
    // scale_bits`.
    unsafe {
        let args = Args::new(args, dims);
        let operands = Operands {
            args,
            heads: args.size(1),
            kv_heads: args.size(2),
            hd: args.size(3),
            ctx: args.size(4),
            scale: f32::from_bits(args.dim(7) as u32),
            k_bytes: K::bytes(args.size(3)),
            v_bytes: V::bytes(args.size(3)),
        };
        debug_assert!(operands.hd <= MAX_HEAD_DIM, "a head of {} numbers", operands.hd);
        let mask = Mask { window: args.dim(5) as u32, sinks: args.dim(6) as u32 };
        for unit in begin as usize..end as usize {
            let (token, kv_head) = (unit / operands.kv_heads, unit % operands.kv_heads);
            let pieces = operands.ranges(mask, token);
            let group = operands.heads / operands.kv_heads;
            let first = kv_head * group;
            let mut head = 0;
            while HEADS <= group - head {
                operands.attend::<L, K, V, HEADS>(token, kv_head, first + head, pieces);
                head += HEADS;
            }
            while head < group {
                operands.attend::<L, K, V, 1>(token, kv_head, first + head, pieces);
                head += 1;
            }
        }
    }
}

/// The operands of one call.
#[derive(Clone, Copy)]
struct Operands {
    args: Args,
    heads: usize,
    kv_heads: usize,
    hd: usize,
    ctx: usize,
    scale: f32,
    k_bytes: usize,
    v_bytes: usize,
}

/// What the online softmax of one chunk of heads carries from tile to tile.
struct State<const HEADS: usize> {
    max: [f32; HEADS],
    sum: [f32; HEADS],
    acc: [[f32; MAX_HEAD_DIM]; HEADS],
}

impl Operands {
    /// The visible keys of `token` as two ranges `(start, end)` inside the cache.
    ///
    /// # Safety
    ///
    /// The contract of the crate; `token < n`.
    #[inline(always)]
    unsafe fn ranges(self, mask: Mask, token: usize) -> [(usize, usize); 2] {
        // SAFETY: `pos` has a number for every token, and `span` two.
        let (pos, first, reach) = unsafe {
            let span = self.args.pointer::<i32>(5).add(2 * token);
            (*self.args.pointer::<i32>(4).add(token), *span, *span.add(1))
        };
        let (Ok(pos), first, reach) = (u32::try_from(pos), first.max(0) as u32, reach.max(0) as u32) else {
            return [(0, 0); 2];
        };
        let [head, tail] = mask.ranges(pos, Span { first, reach });
        [head, tail].map(|range| ((range.start as usize).min(self.ctx), (range.end as usize).min(self.ctx)))
    }

    /// Computes `HEADS` query heads from `head` on, all of the group of `kv_head`.
    ///
    /// # Safety
    ///
    /// The contract of the crate; the token and those heads exist, and `pieces` lie inside the cache.
    #[inline(always)]
    unsafe fn attend<L: Lanes, K: CacheRow, V: CacheRow, const HEADS: usize>(
        self,
        token: usize,
        kv_head: usize,
        head: usize,
        pieces: [(usize, usize); 2],
    ) {
        let mut state = State { max: [f32::NEG_INFINITY; HEADS], sum: [0.0; HEADS], acc: [[0.0; MAX_HEAD_DIM]; HEADS] };
        // SAFETY: the token and the heads exist; `seq` has a sequence of the cache for every token.
        unsafe {
            let at = (token * self.heads + head) * self.hd;
            let q = self.args.pointer::<f32>(0).add(at);
            let seq = *self.args.pointer::<i32>(3).add(token) as usize;
            let row = seq * self.ctx * self.kv_heads + kv_head;
            let k = self.args.pointer::<u8>(1).add(row * self.k_bytes);
            let v = self.args.pointer::<u8>(2).add(row * self.v_bytes);
            for (mut key, end) in pieces {
                while key < end {
                    let tile_end = end.min((key / TILE + 1) * TILE);
                    self.add_tile::<L, K, V, HEADS>(&mut state, q, k, v, (key, tile_end));
                    key = tile_end;
                }
            }
            let out = self.args.pointer::<f32>(6).add(at);
            for (at_head, acc) in state.acc.iter().enumerate() {
                let nothing_seen = pieces.iter().all(|(start, end)| end <= start);
                let factor = if nothing_seen { 0.0 } else { 1.0 / state.sum[at_head] };
                for (d, value) in acc.iter().take(self.hd).enumerate() {
                    *out.add(at_head * self.hd + d) = value * factor;
                }
            }
        }
    }

    /// Adds the keys `start..end`, all of one tile, to the state.
    ///
    /// # Safety
    ///
    /// The contract of the crate; `q` has `HEADS` heads, and `k` and `v` point to the rows of key 0 of a sequence that has these keys.
    #[inline(always)]
    unsafe fn add_tile<L: Lanes, K: CacheRow, V: CacheRow, const HEADS: usize>(
        self,
        state: &mut State<HEADS>,
        q: *const f32,
        k: *const u8,
        v: *const u8,
        (start, end): (usize, usize),
    ) {
        let mut weights = [[f32::NEG_INFINITY; TILE]; HEADS];
        // SAFETY: the rows and heads exist as the caller promises; blocks end at or before `hd`, and the arrays of the state have
        // `MAX_HEAD_DIM` numbers, a multiple of the lanes.
        unsafe {
            for key in start..end {
                let row = K::open(k.add(key * self.kv_heads * self.k_bytes), self.hd);
                self.scores::<L, K, HEADS>(&mut weights, q, row, key % TILE);
            }
            for (head, weights) in weights.iter_mut().enumerate() {
                let shrink = softmax_tile::<L>(weights, &mut state.max[head], &mut state.sum[head]);
                if shrink != 1.0 {
                    let mut at = 0;
                    while at < self.hd {
                        let acc = state.acc[head].as_mut_ptr().add(at);
                        L::store(acc, L::mul(L::load(acc), L::splat(shrink)));
                        at += LANES;
                    }
                }
            }
            let whole = self.hd / LANES * LANES;
            let v_stride = self.kv_heads * self.v_bytes;
            let mut at = 0;
            while at < whole {
                let mut acc = [L::splat(0.0); HEADS];
                for head in 0..HEADS {
                    acc[head] = L::load(state.acc[head].as_ptr().add(at));
                }
                for key in start..end {
                    let values = V::open(v.add(key * v_stride), self.hd).block::<L>(at);
                    for head in 0..HEADS {
                        acc[head] = L::mul_add(L::splat(weights[head][key % TILE]), values, acc[head]);
                    }
                }
                for head in 0..HEADS {
                    L::store(state.acc[head].as_mut_ptr().add(at), acc[head]);
                }
                at += LANES;
            }
            if whole < self.hd {
                for key in start..end {
                    let row = V::open(v.add(key * v_stride), self.hd);
                    for d in whole..self.hd {
                        let value = row.number(d);
                        for head in 0..HEADS {
                            state.acc[head][d] = weights[head][key % TILE].mul_add(value, state.acc[head][d]);
                        }
                    }
                }
            }
        }
    }

    /// Writes the score of one key for each head to `slot`.
    ///
    /// # Safety
    ///
    /// The CPU has the features of `L`; `q` has `HEADS` heads and `row` one, of `hd` numbers each.
    #[inline(always)]
    unsafe fn scores<L: Lanes, K: CacheRow, const HEADS: usize>(
        self,
        scores: &mut [[f32; TILE]; HEADS],
        q: *const f32,
        row: K,
        slot: usize,
    ) {
        // SAFETY: blocks end at or before `hd`, and so does the rest.
        unsafe {
            let mut acc = [L::splat(0.0); HEADS];
            let whole = self.hd / LANES * LANES;
            let mut at = 0;
            while at < whole {
                let keys = row.block::<L>(at);
                for head in 0..HEADS {
                    acc[head] = L::mul_add(L::load(q.add(head * self.hd + at)), keys, acc[head]);
                }
                at += LANES;
            }
            for head in 0..HEADS {
                let q = q.add(head * self.hd + whole);
                let dot = finish_dot::<L>(acc[head], self.hd - whole, |at| (*q.add(at), row.number(whole + at)));
                scores[head][slot] = dot * self.scale;
            }
        }
    }
}

/// Turns the scores of a tile into weights, updates the maximum and the sum of one head, and returns the factor by which all that was
/// added before shrinks. A slot without a key has the score -inf, and so the weight +0.
///
/// # Safety
///
/// The running CPU has the features of `L`.
#[inline(always)]
unsafe fn softmax_tile<L: Lanes>(tile: &mut [f32; TILE], max: &mut f32, sum: &mut f32) -> f32 {
    // SAFETY: the CPU has the features, as the caller promises; both halves of the tile are blocks of lanes.
    unsafe {
        let (low, high) = (tile.as_mut_ptr(), tile.as_mut_ptr().add(LANES));
        // Which of equal numbers is the maximum, or which NaN, does not show in the results: +0 and -0 have equal differences, and a
        // NaN makes the whole row NaN.
        let mut lanes = [0.0_f32; LANES];
        L::store(lanes.as_mut_ptr(), L::max(L::load(low), L::load(high)));
        let mut distance = LANES / 2;
        while 0 < distance {
            for lane in 0..distance {
                lanes[lane] = if lanes[lane] < lanes[lane + distance] { lanes[lane + distance] } else { lanes[lane] };
            }
            distance /= 2;
        }
        let new_max = if *max < lanes[0] { lanes[0] } else { *max };
        let shrink = exp_f32(*max - new_max);
        let shift = L::splat(-new_max);
        let p_low = exp::<L>(L::add(L::load(low), shift));
        let p_high = exp::<L>(L::add(L::load(high), shift));
        L::store(low, p_low);
        L::store(high, p_high);
        *sum = sum.mul_add(shrink, L::sum(L::add(p_low, p_high)));
        *max = new_max;
        shrink
    }
}
