//! Dense matmul: `out[t, r] = dot(x[t], w[r])`, and the dot product whose evaluation order the crate defines.
//!
//! `x` is f32 `[n, k]`, `w` f32 or bf16 `[m, k]`, `out` f32 `[n, m]`; a unit of the grid is 4 rows of `w`.

use half::bf16;

use crate::cpu::generic::args::Args;
use crate::cpu::lanes::{AHEAD, LANES, Lanes, prefetch};

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
    let (mut row, row_end) = (begin as usize * UNIT, operands.m.min(end as usize * UNIT));
    // SAFETY: the conditions keep the rows below `m`.
    unsafe {
        // One token reads every weight once, from memory. Rows one after the other are one stream, which is read at the full rate of memory;
        // four rows at a time were measured at half of it.
        while operands.n == 1 && row < row_end {
            operands.multiply::<L, 1, 1, true>(row, 0, AHEAD);
            row += 1;
        }
        while row + ROWS <= row_end {
            operands.all_tokens::<L, ROWS, TOKENS>(row);
            row += ROWS;
        }
        while row < row_end {
            operands.all_tokens::<L, 1, TOKENS>(row);
            row += 1;
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
    /// Computes all tokens with `ROWS` rows of `w` from `row` on. The first tokens bring the rows into the cache, the others find them there;
    /// and while the first are at work, the next `ROWS` rows are prefetched in the order in which they lie, which is one stream again.
    ///
    /// # Safety
    ///
    /// The contract of the crate; those rows exist.
    #[inline(always)]
    unsafe fn all_tokens<L: Lanes, const ROWS: usize, const TOKENS: usize>(self, row: usize) {
        let next = ROWS * self.k * size_of::<W>();
        let mut token = 0;
        // SAFETY: the conditions keep the tokens below `n`.
        unsafe {
            if TOKENS <= self.n {
                self.multiply::<L, ROWS, TOKENS, true>(row, 0, next);
                token += TOKENS;
            }
            while TOKENS <= self.n - token {
                self.multiply::<L, ROWS, TOKENS, false>(row, token, 0);
                token += TOKENS;
            }
            while token < self.n {
                self.multiply::<L, ROWS, 1, false>(row, token, 0);
                token += 1;
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
    unsafe fn multiply<L: Lanes, const ROWS: usize, const TOKENS: usize, const FETCH: bool>(
        self,
        row: usize,
        token: usize,
        ahead: usize,
    ) {
        // SAFETY: each of those rows of `x` and `w` has `k` elements, and `out` has `n * m`.
        unsafe {
            let x = self.x.add(token * self.k);
            let w = self.w.add(row * self.k);
            let ahead = w.cast::<u8>().wrapping_add(ahead);
            let mut acc = [[L::splat(0.0); TOKENS]; ROWS];
            let whole = self.k / LANES * LANES;
            let mut at = 0;
            while at < whole {
                let mut x_blocks = [L::splat(0.0); TOKENS];
                for token in 0..TOKENS {
                    x_blocks[token] = L::load(x.add(token * self.k + at));
                }
                if FETCH {
                    let step = ROWS * LANES * size_of::<W>();
                    for line in 0..step / 64 {
                        prefetch(ahead.wrapping_add(at / LANES * step + line * 64));
                    }
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
