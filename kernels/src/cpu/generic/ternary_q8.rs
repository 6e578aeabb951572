//! Ternary matmul with q8 activations: `out[t, r] = ((sum_k code * x - sum_k x) as f32 * x_scale[t]) * scale[r]`.
//!
//! `x` are n records of q8, `w` is `Tile16` or `Tile16Base3` `[m, k]`, `scale` f32 `[m]`, `out` f32 `[n, m]`; a unit of the grid is a block of
//! 16 rows. The weights' codes are 0, 1, 2 instead of -1, 0, 1, which adds one time the sum of the activations; the record holds that sum.
//!
//! Weights come from memory once, for any number of tokens: the first tokens bring a few blocks of rows into the cache, the others find them
//! there, and meanwhile the next blocks are prefetched in the order in which they lie. The scales of a block are one cache line, so far in time
//! from the one before that no CPU sees a stream in it: it is prefetched by itself, or each block waits for memory once more at its end.

use crate::cpu::generic::args::Args;
use crate::cpu::lanes::{TernaryDot, prefetch};

/// Rows of a block.
const BLOCK: usize = 16;
/// Bytes of a tile: 16 rows of 4 bytes.
const TILE_BYTES: usize = 64;
/// Bytes of the activations of one tile, with room for the widest.
const TAIL: usize = 32;
/// Blocks that scales are prefetched ahead: as long as a few times the latency of memory.
const SCALES_AHEAD: usize = 2;

/// The operands of one call.
#[derive(Clone, Copy)]
struct Operands {
    x: *const u8,
    w: *const u8,
    scale: *const f32,
    out: *mut f32,
    n: usize,
    m: usize,
    /// Bytes of the codes of one record; its scale and sum follow.
    code_bytes: usize,
    /// Tiles of a block of rows.
    tiles: usize,
    /// Those of them that a record has all codes for. In the last one, the record may end before the tile does.
    whole: usize,
}

impl Operands {
    /// # Safety
    ///
    /// The contract of the crate, for the signature `x, w, scale, out` and `n, k, m`.
    #[inline(always)]
    unsafe fn new<D: TernaryDot>(args: *const *mut u8, dims: *const i64) -> Self {
        // SAFETY: the signature has these arguments and dims.
        unsafe {
            let args = Args::new(args, dims);
            let code_bytes = args.size(1).next_multiple_of(16);
            let tiles = args.size(1).div_ceil(D::WIDTH);
            Self {
                x: args.pointer(0),
                w: args.pointer(1),
                scale: args.pointer(2),
                out: args.pointer(3),
                n: args.size(0),
                m: args.size(2),
                code_bytes,
                tiles,
                whole: tiles.min(code_bytes / D::WIDTH),
            }
        }
    }

    /// Bytes of one record.
    #[inline(always)]
    fn x_stride(self) -> usize {
        self.code_bytes + 8
    }

    /// Bytes of one block of rows.
    #[inline(always)]
    fn block_bytes(self) -> usize {
        self.tiles * TILE_BYTES
    }

    /// Brings the scales of some blocks nearer; they need not exist.
    #[inline(always)]
    fn fetch_scales(self, blocks: std::ops::Range<usize>) {
        for block in blocks {
            prefetch(self.scale.wrapping_add(block * BLOCK).cast());
        }
    }

    /// Turns the sums of block `block` with token `token` into results. Rows at or beyond `m` are not written.
    ///
    /// # Safety
    ///
    /// The contract of the crate; `token < n`, and `block` is a unit of the grid.
    #[inline(always)]
    unsafe fn write(self, block: usize, token: usize, sums: &[i32; BLOCK]) {
        let row = block * BLOCK;
        let rows = (self.m - row).min(BLOCK);
        // SAFETY: the record of `token` ends with a scale and a sum, `scale` has `m` numbers and `out` has `n * m`.
        unsafe {
            let numbers = self.x.add(token * self.x_stride() + self.code_bytes);
            let x_scale = numbers.cast::<f32>().read_unaligned();
            let x_sum = numbers.add(4).cast::<i32>().read_unaligned();
            let scale = self.scale.add(row);
            let out = self.out.add(token * self.m + row);
            let result = |at: usize, scale: f32| sums[at].wrapping_sub(x_sum) as f32 * x_scale * scale;
            if rows == BLOCK {
                // With a constant count, and nothing written before all is read, the compiler makes vectors of it.
                let scales = scale.cast::<[f32; BLOCK]>().read();
                let mut results = [0.0; BLOCK];
                for at in 0..BLOCK {
                    results[at] = result(at, scales[at]);
                }
                out.cast::<[f32; BLOCK]>().write(results);
            } else {
                for at in 0..rows {
                    *out.add(at) = result(at, *scale.add(at));
                }
            }
        }
    }

    /// Computes `TOKENS` tokens from `token` on with `BLOCKS` blocks from `block` on.
    ///
    /// # Safety
    ///
    /// The contract of the crate; those tokens and blocks exist.
    #[inline(always)]
    unsafe fn multiply<D: TernaryDot, const BLOCKS: usize, const TOKENS: usize>(self, block: usize, token: usize) {
        let mut sums = [[[0; BLOCK]; TOKENS]; BLOCKS];
        // SAFETY: a block has `tiles` tiles and a record the codes for `whole` of them.
        unsafe {
            let w = self.w.add(block * self.block_bytes());
            let x = self.x.add(token * self.x_stride());
            let ahead = w.wrapping_add(BLOCKS * self.block_bytes());
            D::dot::<BLOCKS, TOKENS>(w, self.block_bytes(), x, self.x_stride(), self.whole, ahead, &mut sums);
            if self.whole < self.tiles {
                let mut tails = [[0; TAIL]; TOKENS];
                for (at, tail) in tails.iter_mut().enumerate() {
                    self.copy_tail::<D>(token + at, tail);
                }
                let mut rest = [[[0; BLOCK]; TOKENS]; BLOCKS];
                let w = w.add(self.whole * TILE_BYTES);
                D::dot::<BLOCKS, TOKENS>(w, self.block_bytes(), tails.as_ptr().cast(), TAIL, 1, ahead, &mut rest);
                for (sums, rest) in sums.as_flattened_mut().iter_mut().zip(rest.as_flattened()) {
                    add(sums, rest);
                }
            }
        }
        for (at_block, sums) in sums.iter().enumerate() {
            for (at_token, sums) in sums.iter().enumerate() {
                // SAFETY: as the caller promises.
                unsafe { self.write(block + at_block, token + at_token, sums) };
            }
        }
    }

    /// The codes of a token that belong to the last tile, with zeros after them.
    ///
    /// # Safety
    ///
    /// The contract of the crate; the token exists.
    #[inline(always)]
    unsafe fn copy_tail<D: TernaryDot>(self, token: usize, tail: &mut [u8; TAIL]) {
        let start = self.whole * D::WIDTH;
        for (at, code) in tail.iter_mut().enumerate().take(self.code_bytes - start) {
            // SAFETY: the record has `code_bytes` codes.
            *code = unsafe { *self.x.add(token * self.x_stride() + start + at) };
        }
    }

    /// Computes one token with one block, whose weights come from memory.
    ///
    /// # Safety
    ///
    /// The contract of the crate; the block exists, and there is one token.
    #[inline(always)]
    unsafe fn multiply_one<D: TernaryDot>(self, block: usize) {
        let mut sums = [0; BLOCK];
        self.fetch_scales(block + SCALES_AHEAD..block + SCALES_AHEAD + 1);
        // SAFETY: a block has `tiles` tiles and a record the codes for `whole` of them.
        unsafe {
            let w = self.w.add(block * self.block_bytes());
            D::dot_one(w, self.x, self.whole, &mut sums);
            if self.whole < self.tiles {
                let (mut tail, mut rest) = ([0; TAIL], [0; BLOCK]);
                self.copy_tail::<D>(0, &mut tail);
                D::dot_one(w.add(self.whole * TILE_BYTES), tail.as_ptr(), 1, &mut rest);
                add(&mut sums, &rest);
            }
            self.write(block, 0, &sums);
        }
    }

    /// Computes all tokens with `BLOCKS` blocks from `block` on: `TOKENS` at a time, then 8, 4, 2 and 1.
    ///
    /// # Safety
    ///
    /// The contract of the crate; those blocks exist.
    #[inline(always)]
    unsafe fn all_tokens<D: TernaryDot, const BLOCKS: usize, const TOKENS: usize>(self, block: usize) {
        let mut token = 0;
        self.fetch_scales(block + SCALES_AHEAD..block + SCALES_AHEAD + BLOCKS);
        // SAFETY: as the caller promises; the conditions keep `token` and the tokens after it below `n`.
        unsafe {
            // Two times 8 rather than 12 and 4.
            while TOKENS <= self.n - token && self.n - token != 16 {
                self.multiply::<D, BLOCKS, TOKENS>(block, token);
                token += TOKENS;
            }
            while 8 < TOKENS && 8 <= self.n - token {
                self.multiply::<D, BLOCKS, 8>(block, token);
                token += 8;
            }
            while 4 <= self.n - token {
                self.multiply::<D, BLOCKS, 4>(block, token);
                token += 4;
            }
            if 2 <= self.n - token {
                self.multiply::<D, BLOCKS, 2>(block, token);
                token += 2;
            }
            if 1 <= self.n - token {
                self.multiply::<D, BLOCKS, 1>(block, token);
            }
        }
    }
}

#[inline(always)]
fn add(sums: &mut [i32; BLOCK], rest: &[i32; BLOCK]) {
    for (sum, rest) in sums.iter_mut().zip(rest) {
        *sum = sum.wrapping_add(*rest);
    }
}

/// Any number of tokens. Two or more blocks of rows at once halve the loads of activations; the odd ones are taken one by one.
///
/// # Safety
///
/// The contract of the crate.
#[inline(always)]
pub(crate) unsafe fn gemm<D: TernaryDot, const BLOCKS: usize, const TOKENS: usize>(
    args: *const *mut u8,
    dims: *const i64,
    begin: i64,
    end: i64,
) {
    // SAFETY: the contract of the crate; `begin..end` are blocks of rows that exist.
    unsafe {
        let operands = Operands::new::<D>(args, dims);
        let (mut block, end) = (begin as usize, end as usize);
        operands.fetch_scales(block..block + SCALES_AHEAD);
        while operands.n == 1 && block < end {
            operands.multiply_one::<D>(block);
            block += 1;
        }
        while BLOCKS <= end - block {
            operands.all_tokens::<D, BLOCKS, TOKENS>(block);
            block += BLOCKS;
        }
        while block < end {
            operands.all_tokens::<D, 1, TOKENS>(block);
            block += 1;
        }
    }
}

/// One token: every weight is read once, so all that counts is the rate of memory.
///
/// # Safety
///
/// The contract of the crate, with `n = 1`.
#[inline(always)]
pub(crate) unsafe fn gemv<D: TernaryDot>(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    // SAFETY: the contract of the crate; `begin..end` are blocks of rows that exist.
    unsafe {
        let operands = Operands::new::<D>(args, dims);
        let blocks = begin as usize..end as usize;
        operands.fetch_scales(blocks.start..blocks.start + SCALES_AHEAD);
        for block in blocks {
            operands.multiply_one::<D>(block);
        }
    }
}
