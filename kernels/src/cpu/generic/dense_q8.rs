//! Dense matmul of codes: `out[t, r] = (sum_k x * w) as f32 * x_scale[t] * w_scale[r]`, the sum exact in i32.
//!
//! `x` are n records of q8 and `w` m records of q8, `k` codes each; `out` is f32 `[n, m]`; a unit of the grid is 4 rows of `w`.
//!
//! With one token every weight is read once from memory, row after row. With more, 4 rows at a time meet up to 4 tokens: the first tokens
//! bring the rows into the cache, the others find them there, and meanwhile the next 4 rows are prefetched in the order in which they lie, a
//! part of them by each block of tokens. So weights come from memory once, in one stream that never rests, for any number of tokens. A record's
//! length is no multiple of a cache line, so loads of vectors cross lines in weights and in activations, and then the loads decide, not the
//! products: the activations, as far as they fit, are copied to where they do not cross.

use std::mem::MaybeUninit;

use crate::cpu::generic::args::Args;
use crate::cpu::lanes::{AHEAD, ByteDot};

/// Rows of `w` in one unit of the grid.
const UNIT: usize = 4;
/// Bytes of activations that are copied to where no load of a vector crosses a cache line: 16 rows of a model of 2 billion parameters.
const ALIGNED: usize = 48 << 10;
/// Rows of `w` from which on that pays: a copy takes about as long as two rows.
const ROWS_OF_COPY: usize = 32;

/// The operands of one call.
#[derive(Clone, Copy)]
struct Operands {
    x: *const u8,
    /// The codes of `x`, without what follows them in the records, and the bytes from row to row.
    codes: *const u8,
    codes_stride: usize,
    w: *const u8,
    out: *mut f32,
    n: usize,
    m: usize,
    /// Bytes of the codes of a record; its scale and sum follow.
    code_bytes: usize,
}

/// # Safety
///
/// The contract of the crate.
#[inline(always)]
pub(crate) unsafe fn matmul<D: ByteDot, const TOKENS: usize>(
    args: *const *mut u8,
    dims: *const i64,
    begin: i64,
    end: i64,
) {
    // SAFETY: the contract of the crate, for the signature `x, w, out` and `n, k, m`.
    let mut operands = unsafe {
        let args = Args::new(args, dims);
        let code_bytes = args.size(1).next_multiple_of(16);
        Operands {
            x: args.pointer(0),
            codes: args.pointer(0),
            codes_stride: code_bytes + 8,
            w: args.pointer(1),
            out: args.pointer(2),
            n: args.size(0),
            m: args.size(2),
            code_bytes,
        }
    };
    let (mut row, row_end) = (begin as usize * UNIT, operands.m.min(end as usize * UNIT));
    let mut room = MaybeUninit::<Aligned>::uninit();
    if 1 < operands.n && row + ROWS_OF_COPY <= row_end {
        // SAFETY: `x` has `n` records, as the contract says.
        unsafe { operands.align(&mut room) };
    }
    // SAFETY: the conditions keep the rows below `m`.
    unsafe {
        if operands.n == 1 {
            while row < row_end {
                let ahead = operands.w.wrapping_add(row * operands.stride() + AHEAD);
                operands.multiply::<D, 1, 1, 1>(row, 0, ahead);
                row += 1;
            }
        }
        while row + UNIT <= row_end {
            operands.all_tokens::<D, UNIT, TOKENS>(row);
            row += UNIT;
        }
        while row < row_end {
            operands.all_tokens::<D, 1, TOKENS>(row);
            row += 1;
        }
    }
}

/// Room for activations.
#[repr(align(64))]
struct Aligned(#[expect(dead_code, reason = "it is written and read through pointers")] [u8; ALIGNED]);

impl Operands {
    /// Copies the codes of the activations to `room`, row by row at multiples of a cache line, if they fit.
    ///
    /// # Safety
    ///
    /// The contract of the crate; `room` outlives the use of the operands.
    unsafe fn align(&mut self, room: &mut MaybeUninit<Aligned>) {
        let stride = self.code_bytes.next_multiple_of(64);
        if ALIGNED / stride.max(1) < self.n {
            return;
        }
        let to = room.as_mut_ptr().cast::<u8>();
        for token in 0..self.n {
            // SAFETY: the token exists, and its row ends inside the room.
            unsafe {
                let from = self.x.add(token * self.stride());
                std::ptr::copy_nonoverlapping(from, to.add(token * stride), self.code_bytes);
            }
        }
        (self.codes, self.codes_stride) = (to, stride);
    }

    #[inline(always)]
    fn stride(self) -> usize {
        self.code_bytes + 8
    }

    /// Computes all tokens with `ROWS` rows from `row` on.
    ///
    /// # Safety
    ///
    /// The contract of the crate; those rows exist.
    #[inline(always)]
    unsafe fn all_tokens<D: ByteDot, const ROWS: usize, const TOKENS: usize>(self, row: usize) {
        let mut ahead = self.w.wrapping_add((row + ROWS) * self.stride());
        let (mut token, mut lines) = (0, ROWS);
        while token < self.n {
            let left = self.n - token;
            let blocks = left / TOKENS + left % TOKENS / 2 + left % 2;
            // SAFETY: the conditions keep the tokens below `n`.
            let (tokens, fetched) = unsafe {
                match left {
                    2.. if TOKENS <= left => {
                        (TOKENS, self.block::<D, ROWS, TOKENS>(row, token, ahead, lines.div_ceil(blocks)))
                    }
                    2.. => (2, self.block::<D, ROWS, 2>(row, token, ahead, lines.div_ceil(blocks))),
                    _ => (1, self.block::<D, ROWS, 1>(row, token, ahead, lines.div_ceil(blocks))),
                }
            };
            token += tokens;
            lines -= fetched;
            ahead = ahead.wrapping_add(fetched * self.code_bytes.next_multiple_of(64));
        }
    }

    /// Computes a block of `TOKENS` tokens with `ROWS` rows, while so many `lines` from `ahead` on are prefetched for each line of a row; returns how
    /// many those are.
    ///
    /// # Safety
    ///
    /// As for [`Operands::multiply`].
    #[inline(always)]
    unsafe fn block<D: ByteDot, const ROWS: usize, const TOKENS: usize>(
        self,
        row: usize,
        token: usize,
        ahead: *const u8,
        lines: usize,
    ) -> usize {
        // SAFETY: as the caller promises.
        unsafe {
            match lines {
                4.. => self.multiply::<D, ROWS, TOKENS, 4>(row, token, ahead),
                2.. => self.multiply::<D, ROWS, TOKENS, 2>(row, token, ahead),
                1 => self.multiply::<D, ROWS, TOKENS, 1>(row, token, ahead),
                _ => self.multiply::<D, ROWS, TOKENS, 0>(row, token, ahead),
            }
        }
    }

    /// Computes `TOKENS` tokens from `token` on with `ROWS` rows of `w` from `row` on, prefetches `FETCH` lines from `ahead` on for each line of
    /// a row, and returns `FETCH`.
    ///
    /// # Safety
    ///
    /// The contract of the crate; those tokens and rows exist.
    #[inline(always)]
    unsafe fn multiply<D: ByteDot, const ROWS: usize, const TOKENS: usize, const FETCH: usize>(
        self,
        row: usize,
        token: usize,
        ahead: *const u8,
    ) -> usize {
        let mut sums = [[0; TOKENS]; ROWS];
        // SAFETY: those records exist, each of `code_bytes` codes, a scale and a sum; `out` has `n * m` numbers.
        unsafe {
            let w = self.w.add(row * self.stride());
            let x = self.x.add(token * self.stride());
            let codes = self.codes.add(token * self.codes_stride);
            let stride = self.stride();
            D::dot_q8::<ROWS, TOKENS, FETCH>(w, stride, codes, self.codes_stride, self.code_bytes, ahead, &mut sums);
            for at_token in 0..TOKENS {
                let numbers = x.add(at_token * stride + self.code_bytes);
                let x_scale = numbers.cast::<f32>().read_unaligned();
                let x_sum = numbers.add(4).cast::<i32>().read_unaligned();
                let out = self.out.add((token + at_token) * self.m + row);
                for at_row in 0..ROWS {
                    let w_scale = w.add(at_row * stride + self.code_bytes).cast::<f32>().read_unaligned();
                    let sum = sums[at_row][at_token].wrapping_sub(D::OFFSET.wrapping_mul(x_sum));
                    *out.add(at_row) = sum as f32 * x_scale * w_scale;
                }
            }
        }
        FETCH
    }
}
