//! Dense matmul: `out[t, r] = dot(x[t], w[r])`, and the dot product whose evaluation order the crate defines.
//!
//! `x` is f32 `[n, k]`, `w` f32 or bf16 `[m, k]`, `out` f32 `[n, m]`; a unit of the grid is 4 rows of `w`.

use half::bf16;

use crate::cpu::generic::args::Args;
use crate::cpu::lanes::{LANES, Lanes};

/// Rows of `w` in one unit of the grid, which share the loads of `x` where there are several tokens.
const UNIT: usize = 4;

/// How a dense weight is read.
pub(crate) trait Weight: Copy {
    /// 32 of them, widened.
    ///
    /// # Safety
    ///
    /// The CPU has the features of `L`, and `from` points to 32 weights.
    unsafe fn block<L: Lanes>(from: *const Self) -> L::Block;

    /// The number.
    fn widen(self) -> f32;
}

impl Weight for f32 {
    #[inline(always)]
    unsafe fn block<L: Lanes>(from: *const Self) -> L::Block {
        // SAFETY: as the caller promises.
        unsafe { L::load(from) }
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Weight for bf16 {
    #[inline(always)]
    unsafe fn block<L: Lanes>(from: *const Self) -> L::Block {
        // SAFETY: as the caller promises; a bf16 is a u16 in memory.
        unsafe { L::load_bf16(from.cast()) }
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// # Safety
///
/// The contract of the crate.
#[inline(always)]
pub(crate) unsafe fn matmul<L: Lanes, W: Weight, const ROWS: usize, const TOKENS: usize>(
    args: *const *mut u8,
    dims: *const i64,
    begin: i64,
    end: i64,
) {
    // SAFETY: the contract of the crate, for the signature `x, w, out` and `n, k, m`.
    let operands: Operands<W> = unsafe {
        let args = Args::new(args, dims);
        Operands {
            x: args.pointer(0),
            w: args.pointer::<W>(1),
            out: args.pointer(2),
            k: args.size(1),
            n: args.size(0),
            m: args.size(2),
        }
    };
    for unit in begin as usize..end as usize {
        let mut row = unit * UNIT;
        let row_end = operands.m.min(row + UNIT);
        // SAFETY: the conditions keep the rows below `m`.
        unsafe {
            // One token reads every weight once, from memory. Rows one after the other are one stream, which the hardware prefetches at the
            // full rate of memory; four rows at a time were measured at half of it.
            while operands.n == 1 && row < row_end {
                operands.multiply::<L, 1, 1>(row, 0);
                row += 1;
            }
            while ROWS <= row_end - row {
                operands.all_tokens::<L, ROWS, TOKENS>(row);
                row += ROWS;
            }
            while row < row_end {
                operands.all_tokens::<L, 1, TOKENS>(row);
                row += 1;
            }
        }
    }
}

/// The operands of one call.
#[derive(Clone, Copy)]
struct Operands<W> {
    x: *const f32,
    w: *const W,
    out: *mut f32,
    n: usize,
    k: usize,
    m: usize,
}

impl<W: Weight> Operands<W> {
    /// Computes all tokens with `ROWS` rows of `w` from `row` on.
    ///
    /// # Safety
    ///
    /// The contract of the crate; those rows exist.
    #[inline(always)]
    unsafe fn all_tokens<L: Lanes, const ROWS: usize, const TOKENS: usize>(self, row: usize) {
        let mut token = 0;
        // SAFETY: the conditions keep the tokens below `n`.
        unsafe {
            while TOKENS <= self.n - token {
                self.multiply::<L, ROWS, TOKENS>(row, token);
                token += TOKENS;
            }
            while token < self.n {
                self.multiply::<L, ROWS, 1>(row, token);
                token += 1;
            }
        }
    }

    /// Computes `TOKENS` tokens from `token` on with `ROWS` rows of `w` from `row` on.
    ///
    /// # Safety
    ///
    /// The contract of the crate; those tokens and rows exist.
    #[inline(always)]
    unsafe fn multiply<L: Lanes, const ROWS: usize, const TOKENS: usize>(self, row: usize, token: usize) {
        // SAFETY: each of those rows of `x` and `w` has `k` elements, and `out` has `n * m`.
        unsafe {
            let x = self.x.add(token * self.k);
            let w = self.w.add(row * self.k);
            let mut acc = [[L::splat(0.0); TOKENS]; ROWS];
            let whole = self.k / LANES * LANES;
            let mut at = 0;
            while at < whole {
                let mut x_blocks = [L::splat(0.0); TOKENS];
                for token in 0..TOKENS {
                    x_blocks[token] = L::load(x.add(token * self.k + at));
                }
                for row in 0..ROWS {
                    let weights = W::block::<L>(w.add(row * self.k + at));
                    for token in 0..TOKENS {
                        acc[row][token] = L::mul_add(x_blocks[token], weights, acc[row][token]);
                    }
                }
                at += LANES;
            }
            for (at_row, acc) in acc.iter().enumerate() {
                for (at_token, acc) in acc.iter().enumerate() {
                    let (x, w) = (x.add(at_token * self.k + whole), w.add(at_row * self.k + whole));
                    let dot = finish_dot::<L>(*acc, self.k - whole, |at| (*x.add(at), (*w.add(at)).widen()));
                    *self.out.add((token + at_token) * self.m + row + at_row) = dot;
                }
            }
        }
    }
}

/// The end of a dot product: adds the last `rest < 32` products, each to its lane, and the lanes by the tree.
///
/// # Safety
///
/// The running CPU has the features of `L`.
#[inline(always)]
pub(crate) unsafe fn finish_dot<L: Lanes>(mut acc: L::Block, rest: usize, pair: impl Fn(usize) -> (f32, f32)) -> f32 {
    // SAFETY: the CPU has the features, as the caller promises; `lanes` has 32 numbers.
    unsafe {
        if 0 < rest {
            let mut lanes = [0.0_f32; LANES];
            L::store(lanes.as_mut_ptr(), acc);
            for (at, lane) in lanes.iter_mut().take(rest).enumerate() {
                let (a, b) = pair(at);
                *lane = a.mul_add(b, *lane);
            }
            acc = L::load(lanes.as_ptr());
        }
        L::sum(acc)
    }
}
