//! Attention over a KV cache, piece by piece; the evaluation order is the one in the documentation of the crate.
//!
//! `q` is f32 `[n, heads, hd]`; `k` and `v` are caches `[seqs, kv_heads, ctx, hd]` in f32, in bf16 or as records of a row format; token `t` belongs
//! to sequence `seq[t]`, stands at `pos[t]` and sees the keys of `Mask { window, sinks }` with the span `span[t]`; `out` is f32
//! `[n, heads, hd]`. A unit of the grid is one token with one query head, so that
//! the heads of a single token can be shared evenly among threads. Those of one KV head that a call has share what is read of the cache.
//! Neighbouring tokens of one sequence that a call has in whole share it too: they are
//! taken as one block of rows, a row being one query head of one token, and each row only sees its own keys, in its own order.
//!
//! ```text
//! for each range of visible keys, for each piece of it between multiples of 64:
//!     s_j = dot(q, k_j) * scale    m_p = max s_j         p_j = exp(s_j - m_p)     l_p = sum p_j    a_p = sum p_j v_j
//!     m'  = max(m, m_p)            r   = exp(m - m')     g   = exp(m_p - m')
//!     l   = l * r + l_p * g        acc = acc * r + a_p * g
//! out = acc / l
//! ```
//!
//! Keys that the mask hides are never touched, because the pieces are cut from the mask's ranges. A row of the cache that is not f32 is decoded
//! once for all rows of a block, 16 at a time, which fits the first cache beside all else; or, where registers hold all heads of one token, as it
//! is met.

use std::mem::MaybeUninit;
use std::ops::Range;

use ir::mask::{Mask, Span};

use crate::MAX_HEAD_DIM;
use crate::cpu::generic::args::Args;
use crate::cpu::generic::cache_row::{CacheRow, CacheRows, F32Row};
use crate::cpu::generic::dense::finish_dot;
use crate::cpu::generic::exp::exp;
use crate::cpu::lanes::{LANES, Lanes, prefetch};
use crate::math::exp_f32;

/// Keys of a tile: two blocks of lanes, so that the exponentials of a tile are two vector evaluations.
const TILE: usize = 64;
/// Keys that are decoded at once.
const CHUNK: usize = 16;
/// Query heads of a KV head that are taken at once.
const MAX_HEADS: usize = 4;
/// Rows of a block: query heads times tokens.
const MAX_ROWS: usize = 16;

/// Any number of tokens. `DOTS` scores are computed at once, and `ROWS` rows at once meet a value, or 4, 2 or one where fewer are left. With
/// `DIRECT` the rows of the cache are not decoded ahead for one token: its heads meet them at once, so that each is decoded once anyway.
///
/// # Safety
///
/// The contract of the crate, with `hd <= MAX_HEAD_DIM` and `heads` a multiple of `kv_heads`.
#[inline(always)]
pub(crate) unsafe fn attention<
    L: Lanes,
    K: CacheRow,
    V: CacheRow,
    const DOTS: usize,
    const ROWS: usize,
    const DIRECT: bool,
>(
    args: *const *mut u8,
    dims: *const i64,
    begin: i64,
    end: i64,
) {
    // SAFETY: the contract of the crate, for the signature `q, k, v, seq, pos, span, out` and `n, heads, kv_heads, hd, ctx, window, sinks,
    // scale_bits`.
    let operands = unsafe {
        let args = Args::new(args, dims);
        Operands {
            args,
            heads: args.size(1),
            kv_heads: args.size(2),
            hd: args.size(3),
            ctx: args.size(4),
            mask: Mask { window: args.dim(5) as u32, sinks: args.dim(6) as u32 },
            scale: f32::from_bits(args.dim(7) as u32),
            k_bytes: K::bytes(args.size(3)),
            v_bytes: V::bytes(args.size(3)),
        }
    };
    debug_assert!(operands.hd <= MAX_HEAD_DIM, "a head of {} numbers", operands.hd);
    let (mut unit, end, heads) = (begin as usize, end as usize, operands.heads);
    let group = heads / operands.kv_heads;
    while unit < end {
        let (token, first) = (unit / heads, unit % heads);
        // SAFETY: the units exist, and so do the heads of the groups.
        unsafe {
            if first == 0 && heads <= end - unit {
                let most = (MAX_ROWS / group.clamp(1, MAX_HEADS)).min((end - unit) / heads);
                let tokens = operands.run(token, most);
                operands.heads::<L, K, V, DOTS, ROWS, DIRECT>(token, tokens, 0, heads);
                unit += tokens * heads;
            } else {
                let last = heads.min(first + end - unit);
                operands.heads::<L, K, V, DOTS, ROWS, DIRECT>(token, 1, first, last);
                unit += last - first;
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
    mask: Mask,
    scale: f32,
    k_bytes: usize,
    v_bytes: usize,
}

/// A block of rows: `heads` query heads from `head` on, all of the group of `kv_head`, of each of `tokens` tokens of one sequence. Row
/// `i * heads + j` is head `j` of token `i`.
#[derive(Clone, Copy)]
struct Rows {
    token: usize,
    tokens: usize,
    kv_head: usize,
    head: usize,
    heads: usize,
}

/// What a block carries from tile to tile, and its room to work. Only what a block needs is ever initialised.
struct State {
    max: [f32; MAX_ROWS],
    sum: [f32; MAX_ROWS],
    acc: [[f32; MAX_HEAD_DIM]; MAX_ROWS],
    /// What the values of a tile add up to, before they join `acc`.
    tile: [[f32; MAX_HEAD_DIM]; MAX_ROWS],
    joins: [Join; MAX_ROWS],
    /// Scores, then weights, of the keys of a tile.
    weights: [[f32; TILE]; MAX_ROWS],
    /// Decoded rows of the cache.
    decoded: [[f32; MAX_HEAD_DIM]; CHUNK],
}

/// The caches of one KV head of one sequence: pointers to key 0.
#[derive(Clone, Copy)]
struct Caches {
    k: *const u8,
    v: *const u8,
    /// Where the rows lie that are probably read after those of this tile, to be fetched: those of the next tile, or the first of the next head.
    next: Option<Next>,
    /// Whether it is the first tile, whose rows may not have been fetched.
    is_cold: bool,
}

/// The first rows of a tile to come.
#[derive(Clone, Copy)]
struct Next {
    k: *const u8,
    v: *const u8,
}

impl Operands {
    /// Computes the query heads `first..last` of `tokens` tokens, in blocks of those that share a KV head.
    ///
    /// # Safety
    ///
    /// The contract of the crate; the tokens, all of one sequence, and the heads exist.
    #[inline(always)]
    unsafe fn heads<L: Lanes, K: CacheRow, V: CacheRow, const DOTS: usize, const ROWS: usize, const DIRECT: bool>(
        self,
        token: usize,
        tokens: usize,
        first: usize,
        last: usize,
    ) {
        let group = self.heads / self.kv_heads;
        let mut head = first;
        while head < last {
            let kv_head = head / group;
            let heads = MAX_HEADS.min(last.min((kv_head + 1) * group) - head);
            let rows = Rows { token, tokens, kv_head, head, heads };
            head += heads;
            // The units after these are probably computed next, if not by this call.
            let next_kv_head = (head.is_multiple_of(group) && head < self.heads).then_some(head / group);
            // SAFETY: as the caller promises.
            unsafe { self.attend::<L, K, V, DOTS, ROWS, DIRECT>(rows, next_kv_head) };
        }
    }

    /// How many tokens from `token` on, at most `most`, belong to the same sequence.
    ///
    /// # Safety
    ///
    /// The contract of the crate; `token + most <= n` and `1 <= most`.
    #[inline(always)]
    unsafe fn run(self, token: usize, most: usize) -> usize {
        // SAFETY: `seq` has a number for every token.
        unsafe {
            let seq = self.args.pointer::<i32>(3).add(token);
            let mut tokens = 1;
            while tokens < most && *seq.add(tokens) == *seq {
                tokens += 1;
            }
            tokens
        }
    }

    /// The visible keys of `token` as two ranges `(start, end)` inside the cache.
    ///
    /// # Safety
    ///
    /// The contract of the crate; `token < n`.
    #[inline(always)]
    unsafe fn ranges(self, token: usize) -> [(usize, usize); 2] {
        // SAFETY: `pos` has a number for every token, and `span` two.
        let (pos, first, reach) = unsafe {
            let span = self.args.pointer::<i32>(5).add(2 * token);
            (*self.args.pointer::<i32>(4).add(token), *span, *span.add(1))
        };
        let (Ok(pos), first, reach) = (u32::try_from(pos), first.max(0) as u32, reach.max(0) as u32) else {
            return [(0, 0); 2];
        };
        let [head, tail] = self.mask.ranges(pos, Span { first, reach });
        [head, tail].map(|range| ((range.start as usize).min(self.ctx), (range.end as usize).min(self.ctx)))
    }

    /// Where the query, and the result, of a row starts.
    #[inline(always)]
    fn at(self, rows: Rows, token: usize, head: usize) -> usize {
        ((rows.token + token) * self.heads + rows.head + head) * self.hd
    }

    /// Computes a block of rows. `next_kv_head` is that of the block which comes next and whose first rows are fetched towards the end of this one.
    ///
    /// # Safety
    ///
    /// The contract of the crate; the tokens, all of one sequence, and the heads exist, and they are at most [`MAX_ROWS`] rows.
    #[inline(always)]
    unsafe fn attend<L: Lanes, K: CacheRow, V: CacheRow, const DOTS: usize, const ROWS: usize, const DIRECT: bool>(
        self,
        rows: Rows,
        next_kv_head: Option<usize>,
    ) {
        let mut room = MaybeUninit::<State>::uninit();
        // SAFETY: the tokens and the heads exist; `seq` has a sequence of the cache for every token; every row of the state that is used is
        // initialised first, and references are only made to such rows.
        unsafe {
            let state = room.as_mut_ptr();
            for row in 0..rows.tokens * rows.heads {
                (*state).max[row] = f32::NEG_INFINITY;
                (*state).sum[row] = 0.0;
                (&raw mut (*state).acc[row]).cast::<f32>().write_bytes(0, self.hd.next_multiple_of(LANES));
            }
            let seq = *self.args.pointer::<i32>(3).add(rows.token) as usize;
            let first_row = |kv_head: usize| (seq * self.kv_heads + kv_head) * self.ctx;
            let (k, v) = (self.args.pointer::<u8>(1), self.args.pointer::<u8>(2));
            let mut caches = Caches {
                k: k.add(first_row(rows.kv_head) * self.k_bytes),
                v: v.add(first_row(rows.kv_head) * self.v_bytes),
                next: None,
                is_cold: true,
            };
            // What each token has still to see; a range that has come to its end makes place for the next.
            let mut left = [[(0, 0); 2]; MAX_ROWS];
            let mut sees_nothing = [false; MAX_ROWS];
            for token in 0..rows.tokens {
                left[token] = without_empty(self.ranges(rows.token + token));
                sees_nothing[token] = is_empty(left[token][0]);
            }
            let next_block = next_kv_head.map(|kv_head| {
                let first = first_row(kv_head) + left[0][0].0 / CHUNK * CHUNK;
                Next { k: k.wrapping_add(first * self.k_bytes), v: v.wrapping_add(first * self.v_bytes) }
            });
            loop {
                let next = left[..rows.tokens].iter().filter(|left| !is_empty(left[0])).map(|left| left[0].0 / TILE);
                let Some(tile) = next.min() else { break };
                let mut pieces = [(0, 0); MAX_ROWS];
                for token in 0..rows.tokens {
                    let [(start, end), later] = left[token];
                    if start < end && start / TILE == tile {
                        let stop = end.min((tile + 1) * TILE);
                        pieces[token] = (start, stop);
                        left[token] = without_empty([(stop, end), later]);
                    }
                }
                let is_last = left[..rows.tokens].iter().all(|left| is_empty(left[0]));
                let first = (tile + 1) * TILE;
                let next_tile = Next {
                    k: caches.k.wrapping_add(first * self.k_bytes),
                    v: caches.v.wrapping_add(first * self.v_bytes),
                };
                caches.next = if is_last { next_block } else { Some(next_tile) };
                self.add_tile::<L, K, V, DOTS, ROWS, DIRECT>(state, rows, caches, &pieces[..rows.tokens]);
                caches.is_cold = false;
            }
            for row in 0..rows.tokens * rows.heads {
                let (token, head) = (row / rows.heads, row % rows.heads);
                let out = self.args.pointer::<f32>(6).add(self.at(rows, token, head));
                let acc = (&raw const (*state).acc[row]).cast::<f32>();
                let factor = if sees_nothing[token] { 0.0 } else { 1.0 / (*state).sum[row] };
                for d in 0..self.hd {
                    *out.add(d) = *acc.add(d) * factor;
                }
            }
        }
    }

    /// Adds to each token's rows its piece of the keys of one tile.
    ///
    /// # Safety
    ///
    /// The contract of the crate; the rows exist and are initialised in the state, and the pieces lie inside the cache and inside one tile.
    #[inline(always)]
    unsafe fn add_tile<L: Lanes, K: CacheRow, V: CacheRow, const DOTS: usize, const ROWS: usize, const DIRECT: bool>(
        self,
        state: *mut State,
        rows: Rows,
        caches: Caches,
        pieces: &[(usize, usize)],
    ) {
        let seen = pieces.iter().filter(|piece| !is_empty(**piece));
        let (low, high) = seen.fold((usize::MAX, 0), |(low, high), piece| (low.min(piece.0), high.max(piece.1)));
        // One token reads the cache from memory, at its own pace; with more, arithmetic is what takes the time.
        let fetch = rows.tokens == 1;
        let next = caches.next.filter(|_| fetch);
        let is_direct = DIRECT && rows.tokens == 1;
        let chunk = if is_direct { TILE } else { CHUNK };
        // SAFETY: the rows exist, as the caller promises; keys are those of the pieces; and blocks end at or before `hd`.
        unsafe {
            for (token, _) in pieces.iter().enumerate().filter(|(_, piece)| !is_empty(**piece)) {
                for row in token * rows.heads..(token + 1) * rows.heads {
                    (*state).weights[row] = [f32::NEG_INFINITY; TILE];
                }
            }
            for (start, end) in chunks(low, high, chunk) {
                let steps = rows.heads * (end - start).div_ceil(DOTS) * self.hd.div_ceil(LANES);
                let own = (fetch && caches.is_cold).then(|| stretch(caches.v, self.v_bytes, start..end));
                let next = next.map(|next| stretch(next.k, self.k_bytes, start % TILE..start % TILE + end - start));
                let mut ahead = Ahead::new([own, next], steps);
                let keys = CacheRows::<K>::new(caches.k, self.k_bytes, self.hd).from(start);
                let clips = pieces.iter().map(|piece| (piece.0.max(start), piece.1.min(end)));
                let clips = clips.enumerate().filter(|(_, clip)| !is_empty(*clip));
                if is_direct {
                    for (token, (from, to)) in clips {
                        let keys = keys.from(from - start);
                        self.scores_of_token::<L, K, DOTS>(
                            state,
                            rows,
                            token,
                            keys,
                            (from % TILE, to - from),
                            &mut ahead,
                        );
                    }
                } else {
                    let keys = self.decode::<L, K>(state, keys, end - start);
                    for (token, (from, to)) in clips {
                        let keys = keys.from(from - start);
                        self.scores_of_token::<L, F32Row, DOTS>(
                            state,
                            rows,
                            token,
                            keys,
                            (from % TILE, to - from),
                            &mut ahead,
                        );
                    }
                }
            }
            for (token, _) in pieces.iter().enumerate().filter(|(_, piece)| !is_empty(**piece)) {
                for row in token * rows.heads..(token + 1) * rows.heads {
                    let weights = &mut (*state).weights[row];
                    (*state).joins[row] = softmax_tile::<L>(weights, &mut (*state).max[row], &mut (*state).sum[row]);
                }
            }
            for (start, end) in chunks(low, high, chunk) {
                let steps = rows.heads.div_ceil(4) * (end - start) * self.hd.div_ceil(LANES);
                let next = next.map(|next| stretch(next.v, self.v_bytes, start % TILE..start % TILE + end - start));
                let mut ahead = Ahead::new([next, None], steps);
                let values = CacheRows::<V>::new(caches.v, self.v_bytes, self.hd).from(start);
                let decoded = if is_direct { None } else { Some(self.decode::<L, V>(state, values, end - start)) };
                // Tokens that see the same keys of the chunk share each value; a weight of zero instead would make NaN of an infinity.
                let clip = |piece: &(usize, usize)| Part {
                    from: piece.0.max(start),
                    to: piece.1.min(end),
                    is_first: start <= piece.0,
                    is_last: piece.1 <= end,
                };
                let mut token = 0;
                while token < rows.tokens {
                    let part = clip(&pieces[token]);
                    let same = pieces[token..].iter().take_while(|piece| clip(piece) == part).count();
                    if part.from < part.to {
                        let (first, end_row) = (token * rows.heads, (token + same) * rows.heads);
                        match decoded {
                            None => {
                                let values = values.from(part.from - start);
                                self.add_to_rows::<L, V, ROWS>(state, first..end_row, values, part, &mut ahead);
                            }
                            Some(values) => {
                                let values = values.from(part.from - start);
                                self.add_to_rows::<L, F32Row, ROWS>(state, first..end_row, values, part, &mut ahead);
                            }
                        }
                    }
                    token += same;
                }
            }
        }
    }

    /// The first `count` rows of a cache, at most [`CHUNK`] of them, in f32: where they lie, or decoded into the state.
    ///
    /// # Safety
    ///
    /// The contract of the crate; the rows exist.
    #[inline(always)]
    unsafe fn decode<L: Lanes, R: CacheRow>(
        self,
        state: *mut State,
        rows: CacheRows<R>,
        count: usize,
    ) -> CacheRows<F32Row> {
        // SAFETY: the rows exist; blocks end at or before `hd`, and a decoded row has room for it.
        unsafe {
            if R::IS_F32 {
                return CacheRows::new(rows.first, rows.stride, self.hd);
            }
            let first = (&raw mut (*state).decoded).cast::<f32>();
            let whole = self.hd / LANES * LANES;
            for key in 0..count {
                let (row, to) = (rows.row(key), first.add(key * MAX_HEAD_DIM));
                let mut at = 0;
                while at < whole {
                    L::store(to.add(at), row.block::<L>(at));
                    at += LANES;
                }
                for at in whole..self.hd {
                    *to.add(at) = row.number(at);
                }
            }
            CacheRows::new(first.cast(), 4 * MAX_HEAD_DIM, self.hd)
        }
    }

    /// Writes the scores of `count` keys for the heads of one token, in the place of their weights from `slot` on. With eight scores at once, heads
    /// share the loads of keys and keys those of heads.
    ///
    /// # Safety
    ///
    /// The CPU has the features of `L`; the rows and the keys exist, and the slots lie inside the tile.
    #[inline(always)]
    unsafe fn scores_of_token<L: Lanes, R: CacheRow, const DOTS: usize>(
        self,
        state: *mut State,
        rows: Rows,
        token: usize,
        keys: CacheRows<R>,
        (slot, count): (usize, usize),
        ahead: &mut Ahead,
    ) {
        let mut head = 0;
        while head < rows.heads {
            // SAFETY: as the caller promises; the conditions keep the heads below those of the token.
            head += unsafe {
                let q = self.args.pointer::<f32>(0).add(self.at(rows, token, head)).cast_const();
                let to = (&raw mut (*state).weights[token * rows.heads + head]).cast::<f32>().add(slot);
                match rows.heads - head {
                    4.. if DOTS == 8 => self.scores::<L, R, 4, 2, 8>(to, q, keys, count, ahead),
                    2.. if DOTS == 8 => self.scores::<L, R, 2, 4, 8>(to, q, keys, count, ahead),
                    _ => self.scores::<L, R, 1, DOTS, DOTS>(to, q, keys, count, ahead),
                }
            };
        }
    }

    /// Writes the scores of `count` keys for `HEADS` rows, and returns how many rows that are. `DOTS` is `HEADS * KEYS`.
    ///
    /// # Safety
    ///
    /// The CPU has the features of `L`; the rows of `q` and of the keys have `hd` numbers, and each row of `scores` has room for `count`.
    #[inline(always)]
    unsafe fn scores<L: Lanes, R: CacheRow, const HEADS: usize, const KEYS: usize, const DOTS: usize>(
        self,
        scores: *mut f32,
        q: *const f32,
        keys: CacheRows<R>,
        count: usize,
        ahead: &mut Ahead,
    ) -> usize {
        const { assert!(HEADS * KEYS == DOTS, "a dot product for each head and key") };
        let whole = self.hd / LANES * LANES;
        let mut key = 0;
        // SAFETY: blocks end at or before `hd`, and so does the rest; the conditions keep the keys below `count`.
        unsafe {
            while whole == self.hd && key + KEYS <= count {
                let mut acc = [L::splat(0.0); DOTS];
                let mut at = 0;
                while at < whole {
                    ahead.step();
                    let mut blocks = [L::splat(0.0); KEYS];
                    for next in 0..KEYS {
                        blocks[next] = keys.row(key + next).block::<L>(at);
                    }
                    for head in 0..HEADS {
                        let q = L::load(q.add(head * self.hd + at));
                        for next in 0..KEYS {
                            acc[head * KEYS + next] = L::mul_add(q, blocks[next], acc[head * KEYS + next]);
                        }
                    }
                    at += LANES;
                }
                let mut dots = [0.0; DOTS];
                L::sums(&acc, &mut dots);
                for head in 0..HEADS {
                    for next in 0..KEYS {
                        *scores.add(head * TILE + key + next) = dots[head * KEYS + next] * self.scale;
                    }
                }
                key += KEYS;
            }
            while key < count {
                let row = keys.row(key);
                for head in 0..HEADS {
                    let q = q.add(head * self.hd);
                    let mut acc = L::splat(0.0);
                    let mut at = 0;
                    while at < whole {
                        acc = L::mul_add(L::load(q.add(at)), row.block::<L>(at), acc);
                        at += LANES;
                    }
                    let pair = |at: usize| (*q.add(whole + at), row.number(whole + at));
                    *scores.add(head * TILE + key) = finish_dot::<L>(acc, self.hd - whole, pair) * self.scale;
                }
                key += 1;
            }
        }
        HEADS
    }

    /// Adds the values of a part of a piece, of which `values` is the first, to some rows, `ROWS`, 4, 2 or one at a time.
    ///
    /// # Safety
    ///
    /// As for [`Operands::add_values`], for each of the rows.
    #[inline(always)]
    unsafe fn add_to_rows<L: Lanes, R: CacheRow, const ROWS: usize>(
        self,
        state: *mut State,
        mut rows: Range<usize>,
        values: CacheRows<R>,
        part: Part,
        ahead: &mut Ahead,
    ) {
        // SAFETY: as the caller promises; the conditions keep to the rows.
        unsafe {
            while ROWS <= rows.len() {
                self.add_values::<L, R, ROWS>(state, rows.start, values, part, ahead);
                rows.start += ROWS;
            }
            while 4 < ROWS && 4 <= rows.len() {
                self.add_values::<L, R, 4>(state, rows.start, values, part, ahead);
                rows.start += 4;
            }
            // Half a group of heads, where threads share one.
            while 2 < ROWS && 2 <= rows.len() {
                self.add_values::<L, R, 2>(state, rows.start, values, part, ahead);
                rows.start += 2;
            }
            while !rows.is_empty() {
                self.add_values::<L, R, 1>(state, rows.start, values, part, ahead);
                rows.start += 1;
            }
        }
    }

    /// Adds the values of a part of a piece, of which `values` is the first, to `ROWS` rows from `row` on, with the weights of their keys; the last part joins
    /// the piece to those before it.
    ///
    /// # Safety
    ///
    /// The CPU has the features of `L`; the rows and their weights are initialised, what a part before has left as well, and each value has `hd` numbers.
    #[inline(always)]
    unsafe fn add_values<L: Lanes, R: CacheRow, const ROWS: usize>(
        self,
        state: *mut State,
        row: usize,
        values: CacheRows<R>,
        part: Part,
        ahead: &mut Ahead,
    ) {
        let whole = self.hd / LANES * LANES;
        let (slot, count) = (part.from % TILE, part.to - part.from);
        // SAFETY: blocks end at or before `hd`, and `slot + count` at or before the end of the tile.
        unsafe {
            let total = (&raw mut (*state).acc).cast::<f32>().add(row * MAX_HEAD_DIM);
            let tile = (&raw mut (*state).tile).cast::<f32>().add(row * MAX_HEAD_DIM);
            let joins = (&raw const (*state).joins).cast::<Join>().add(row);
            let weights = (&raw const (*state).weights).cast::<f32>().add(row * TILE + slot);
            let mut at = 0;
            while at < whole {
                let mut acc = [L::splat(0.0); ROWS];
                if !part.is_first {
                    for row in 0..ROWS {
                        acc[row] = L::load(tile.add(row * MAX_HEAD_DIM + at));
                    }
                }
                for key in 0..count {
                    ahead.step();
                    let value = values.row(key).block::<L>(at);
                    for row in 0..ROWS {
                        acc[row] = L::mul_add(L::splat(*weights.add(row * TILE + key)), value, acc[row]);
                    }
                }
                for row in 0..ROWS {
                    if part.is_last {
                        let (Join { keep, gain }, to) = (*joins.add(row), total.add(row * MAX_HEAD_DIM + at));
                        let joined = L::mul_add(L::load(to), L::splat(keep), L::mul(acc[row], L::splat(gain)));
                        L::store(to, joined);
                    } else {
                        L::store(tile.add(row * MAX_HEAD_DIM + at), acc[row]);
                    }
                }
                at += LANES;
            }
            for d in whole..self.hd {
                for row in 0..ROWS {
                    let place = tile.add(row * MAX_HEAD_DIM + d);
                    let mut acc = if part.is_first { 0.0 } else { *place };
                    for key in 0..count {
                        acc = (*weights.add(row * TILE + key)).mul_add(values.row(key).number(d), acc);
                    }
                    if part.is_last {
                        let (Join { keep, gain }, to) = (*joins.add(row), total.add(row * MAX_HEAD_DIM + d));
                        *to = (*to).mul_add(keep, acc * gain);
                    } else {
                        *place = acc;
                    }
                }
            }
        }
    }
}

/// The keys of a piece that lie in one chunk.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Part {
    from: usize,
    to: usize,
    /// Whether no key of the piece comes before them, and none after them.
    is_first: bool,
    is_last: bool,
}

/// How a piece joins those before it: what they, and what it, are multiplied by.
#[derive(Clone, Copy)]
struct Join {
    keep: f32,
    gain: f32,
}

/// Whether a range has no keys.
#[inline(always)]
fn is_empty((start, end): (usize, usize)) -> bool {
    end <= start
}

/// The same keys, with none in the first range only if there are none at all.
#[inline(always)]
fn without_empty([first, second]: [(usize, usize); 2]) -> [(usize, usize); 2] {
    if is_empty(first) { [second, (0, 0)] } else { [first, second] }
}

/// `low..high`, cut at the multiples of `size`.
#[inline(always)]
fn chunks(low: usize, high: usize, size: usize) -> impl Iterator<Item = (usize, usize)> {
    (low / size..high.div_ceil(size)).map(move |chunk| (low.max(chunk * size), high.min((chunk + 1) * size)))
}

/// A stretch of memory.
#[derive(Clone, Copy)]
struct Stretch {
    at: *const u8,
    end: *const u8,
}

/// That of some rows of a cache, which need not be there.
#[inline(always)]
fn stretch(cache: *const u8, row_bytes: usize, rows: Range<usize>) -> Stretch {
    Stretch { at: cache.wrapping_add(rows.start * row_bytes), end: cache.wrapping_add(rows.end * row_bytes) }
}

/// Rows of a cache that are prefetched while others are computed with, a few lines at each step: all of them at once would be more than a core can
/// have under way, and it would wait for them. They are those of the tile to come, so that there is the time of a tile for them to arrive.
struct Ahead {
    now: Stretch,
    then: Stretch,
    /// Bytes of a step.
    step: usize,
}

impl Ahead {
    /// Two stretches, one after the other, in about so many steps.
    #[inline(always)]
    fn new(stretches: [Option<Stretch>; 2], steps: usize) -> Self {
        let nothing = Stretch { at: std::ptr::null(), end: std::ptr::null() };
        let [now, then] = stretches.map(|stretch| stretch.unwrap_or(nothing));
        let bytes = (now.end as usize - now.at as usize) + (then.end as usize - then.at as usize);
        Self { now, then, step: bytes.div_ceil(64).div_ceil(steps.max(1)) * 64 }
    }

    /// This is part of the innermost loops, where a step is one or two lines as a rule.
    #[inline(always)]
    fn step(&mut self) {
        if self.now.end <= self.now.at {
            self.now = self.then;
            self.then.at = self.then.end;
            return;
        }
        prefetch(self.now.at);
        if 64 < self.step {
            prefetch(self.now.at.wrapping_add(64));
            for more in (128..self.step).step_by(64) {
                prefetch(self.now.at.wrapping_add(more));
            }
        }
        self.now.at = self.now.at.wrapping_add(self.step);
    }
}

/// Turns the scores of a tile into weights, updates the maximum and the sum of one head, and returns how the tile joins those before it. A slot
/// without a key has the score -inf, and so the weight +0.
///
/// # Safety
///
/// The running CPU has the features of `L`.
#[inline(always)]
unsafe fn softmax_tile<L: Lanes>(tile: &mut [f32; TILE], max: &mut f32, sum: &mut f32) -> Join {
    // SAFETY: the CPU has the features, as the caller promises; both halves of the tile are blocks of lanes.
    unsafe {
        let (low, high) = (tile.as_mut_ptr(), tile.as_mut_ptr().add(LANES));
        // Which of equal numbers is the maximum, or which NaN, does not show in the results: +0 and -0 have equal differences, and a
        // NaN makes the whole row NaN.
        let largest = L::largest(L::max(L::load(low), L::load(high)));
        let shift = L::splat(-largest);
        let p_low = exp::<L>(L::add(L::load(low), shift));
        let p_high = exp::<L>(L::add(L::load(high), shift));
        L::store(low, p_low);
        L::store(high, p_high);
        let new_max = if *max < largest { largest } else { *max };
        let join = Join { keep: shrink(*max, new_max), gain: shrink(largest, new_max) };
        *sum = sum.mul_add(join.keep, L::sum(L::add(p_low, p_high)) * join.gain);
        *max = new_max;
        join
    }
}

/// What weights above `from` are multiplied by to be weights above `to`. One of the two of a tile is the exponential of 0, which is 1.
#[inline(always)]
fn shrink(from: f32, to: f32) -> f32 {
    if from == to && to.is_finite() { 1.0 } else { exp_f32(from - to) }
}
