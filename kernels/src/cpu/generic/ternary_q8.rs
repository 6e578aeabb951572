//! Ternary matmul with q8 activations: `out[t, r] = ((sum_k code * x - sum_k x) as f32 * x_scale[t]) * scale[r]`.
//!
//! `x` are n records of q8, `w` is `Tile16` `[m, k]`, `scale` f32 `[m]`, `out` f32 `[n, m]`; a unit of the grid is a block of 16 rows.
//! The weights' codes are 0, 1, 2 instead of -1, 0, 1, which adds one time the sum of the activations; the record holds that sum.

use crate::cpu::generic::args::Args;
use crate::cpu::lanes::TernaryDot;

/// Rows of a block, and columns of a tile.
const BLOCK: usize = 16;
/// Bytes of a tile of 16 rows and 16 columns.
const TILE_BYTES: usize = 64;

/// The operands of one call.
#[derive(Clone, Copy)]
struct Operands {
    x: *const u8,
    w: *const u8,
    scale: *const f32,
    out: *mut f32,
    n: usize,
    m: usize,
    tiles: usize,
}

impl Operands {
    /// # Safety
    ///
    /// The contract of the crate, for the signature `x, w, scale, out` and `n, k, m`.
    #[inline(always)]
    unsafe fn new(args: *const *mut u8, dims: *const i64) -> Self {
        // SAFETY: the signature has these arguments and dims.
        unsafe {
            let args = Args::new(args, dims);
            Self {
                x: args.pointer(0),
                w: args.pointer(1),
                scale: args.pointer(2),
                out: args.pointer(3),
                n: args.size(0),
                m: args.size(2),
                tiles: args.size(1).div_ceil(BLOCK),
            }
        }
    }

    /// Bytes of the codes of one record; its scale and sum follow.
    #[inline(always)]
    fn code_bytes(self) -> usize {
        self.tiles * BLOCK
    }

    /// Bytes of one record.
    #[inline(always)]
    fn x_stride(self) -> usize {
        self.code_bytes() + 8
    }

    /// Bytes of one block of rows.
    #[inline(always)]
    fn block_bytes(self) -> usize {
        self.tiles * TILE_BYTES
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
            let numbers = self.x.add(token * self.x_stride() + self.code_bytes());
            let x_scale = numbers.cast::<f32>().read_unaligned();
            let x_sum = numbers.add(4).cast::<i32>().read_unaligned();
            let scale = self.scale.add(row);
            let out = self.out.add(token * self.m + row);
            let result = |at: usize| sums[at].wrapping_sub(x_sum) as f32 * x_scale * *scale.add(at);
            if rows == BLOCK {
                // With a constant count the compiler makes vectors of it.
                for at in 0..BLOCK {
                    *out.add(at) = result(at);
                }
            } else {
                for at in 0..rows {
                    *out.add(at) = result(at);
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
        // SAFETY: a block has `tiles` tiles and a record at least 16 codes for each of them.
        unsafe {
            let w = self.w.add(block * self.block_bytes());
            let x = self.x.add(token * self.x_stride());
            D::dot::<BLOCKS, TOKENS>(w, self.block_bytes(), x, self.x_stride(), self.tiles, &mut sums);
        }
        for (at_block, sums) in sums.iter().enumerate() {
            for (at_token, sums) in sums.iter().enumerate() {
                // SAFETY: as the caller promises.
                unsafe { self.write(block + at_block, token + at_token, sums) };
            }
        }
    }

    /// Computes all tokens with `BLOCKS` blocks from `block` on: `TOKENS` at a time, then 4, 2 and 1.
    ///
    /// # Safety
    ///
    /// The contract of the crate; those blocks exist.
    #[inline(always)]
    unsafe fn all_tokens<D: TernaryDot, const BLOCKS: usize, const TOKENS: usize>(self, block: usize) {
        let mut token = 0;
        // SAFETY: as the caller promises; the conditions keep `token` and the tokens after it below `n`.
        unsafe {
            while TOKENS <= self.n - token {
                self.multiply::<D, BLOCKS, TOKENS>(block, token);
                token += TOKENS;
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
        let operands = Operands::new(args, dims);
        let (mut block, end) = (begin as usize, end as usize);
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
        let operands = Operands::new(args, dims);
        for block in begin as usize..end as usize {
            let mut sums = [0; BLOCK];
            D::dot_one(operands.w.add(block * operands.block_bytes()), operands.x, operands.tiles, &mut sums);
            operands.write(block, 0, &sums);
        }
    }
}
