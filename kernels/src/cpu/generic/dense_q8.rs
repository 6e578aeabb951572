//! Dense matmul of codes: `out[t, r] = (sum_k x * w) as f32 * x_scale[t] * w_scale[r]`, the sum exact in i32.
//!
//! `x` are n records of q8 and `w` m records of q8, `k` codes each; `out` is f32 `[n, m]`; a unit of the grid is 4 rows of `w`.
//!
//! With one token every weight is read once from memory, row after row. With more, 4 rows at a time meet up to 4 tokens: the first tokens
//! bring the rows into the cache, the others find them there, and while the first are at work the next 4 rows are prefetched in the order
//! in which they lie. So weights come from memory once, in one stream, for any number of tokens.

use crate::cpu::generic::args::Args;
use crate::cpu::lanes::{AHEAD, ByteDot};

/// Rows of `w` in one unit of the grid.
const UNIT: usize = 4;

/// The operands of one call.
#[derive(Clone, Copy)]
struct Operands {
    x: *const u8,
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
    let operands = unsafe {
        let args = Args::new(args, dims);
        Operands {
            x: args.pointer(0),
            w: args.pointer(1),
            out: args.pointer(2),
            n: args.size(0),
            m: args.size(2),
            code_bytes: args.size(1).next_multiple_of(16),
        }
    };
    let (mut row, row_end) = (begin as usize * UNIT, operands.m.min(end as usize * UNIT));
    // SAFETY: the conditions keep the rows below `m`.
    unsafe {
        if operands.n == 1 {
            while row < row_end {
                operands.multiply::<D, 1, 1, true>(row, 0, AHEAD);
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

impl Operands {
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
        let next = ROWS * self.stride();
        let mut token = 0;
        // SAFETY: the conditions keep the tokens below `n`.
        unsafe {
            if TOKENS <= self.n {
                self.multiply::<D, ROWS, TOKENS, true>(row, 0, next);
                token += TOKENS;
            } else if 2 <= self.n {
                self.multiply::<D, ROWS, 2, true>(row, 0, next);
                token += 2;
            }
            while TOKENS <= self.n - token {
                self.multiply::<D, ROWS, TOKENS, false>(row, token, 0);
                token += TOKENS;
            }
            while 2 <= self.n - token {
                self.multiply::<D, ROWS, 2, false>(row, token, 0);
                token += 2;
            }
            if token < self.n {
                self.multiply::<D, ROWS, 1, false>(row, token, 0);
            }
        }
    }

    /// Computes `TOKENS` tokens from `token` on with `ROWS` rows of `w` from `row` on, and with `FETCH` prefetches `ahead` bytes before what
    /// it reads.
    ///
    /// # Safety
    ///
    /// The contract of the crate; those tokens and rows exist.
    #[inline(always)]
    unsafe fn multiply<D: ByteDot, const ROWS: usize, const TOKENS: usize, const FETCH: bool>(
        self,
        row: usize,
        token: usize,
        ahead: usize,
    ) {
        let mut sums = [[0; TOKENS]; ROWS];
        // SAFETY: those records exist, each of `code_bytes` codes, a scale and a sum; `out` has `n * m` numbers.
        unsafe {
            let w = self.w.add(row * self.stride());
            let x = self.x.add(token * self.stride());
            let stride = self.stride();
            D::dot_q8::<ROWS, TOKENS, FETCH>(w, stride, x, stride, self.code_bytes, w.wrapping_add(ahead), &mut sums);
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
    }
}
