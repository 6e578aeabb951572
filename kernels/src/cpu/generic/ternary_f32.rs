//! Ternary matmul with f32 activations: `out[t, r] = ((a0 + a1) + (a2 + a3)) * scale[r]`, where `a_j` adds up `x[t, c] * w[r, c]` of the
//! columns `c % 4 == j`, ascending.
//!
//! `x` is f32 `[n, k]`, `w` is `Tile16` `[m, k]`, `scale` f32 `[m]`, `out` f32 `[n, m]`; a unit of the grid is a block of 16 rows.
//!
//! Byte `4 * r + j` of a tile belongs to row `r` and to the columns `c % 4 == j`, so the 64 bytes of a tile are the 64 accumulators of its
//! rows, and no lane ever has to move. A product with -1, 0 or 1 is exact.

use crate::cpu::generic::args::Args;
use crate::cpu::lanes::{LANES, Lanes};

/// Rows of a block, and columns of a tile.
const BLOCK: usize = 16;
/// Bytes of a tile.
const TILE_BYTES: usize = 64;
/// Rows whose accumulators fill one block of lanes.
const HALF: usize = 8;

/// # Safety
///
/// The contract of the crate.
#[inline(always)]
pub(crate) unsafe fn matmul<L: Lanes, const HALVES: usize, const TOKENS: usize>(
    args: *const *mut u8,
    dims: *const i64,
    begin: i64,
    end: i64,
) {
    // SAFETY: the contract of the crate, for the signature `x, w, scale, out` and `n, k, m`.
    let operands = unsafe {
        let args = Args::new(args, dims);
        Operands {
            x: args.pointer(0),
            w: args.pointer(1),
            scale: args.pointer(2),
            out: args.pointer(3),
            n: args.size(0),
            k: args.size(1),
            m: args.size(2),
        }
    };
    for block in begin as usize..end as usize {
        let mut half = 0;
        while half < 2 {
            let mut token = 0;
            // SAFETY: the block exists, `half + HALVES <= 2`, and the conditions keep the tokens below `n`.
            unsafe {
                while TOKENS <= operands.n - token {
                    operands.multiply::<L, HALVES, TOKENS>(block, half, token);
                    token += TOKENS;
                }
                while token < operands.n {
                    operands.multiply::<L, HALVES, 1>(block, half, token);
                    token += 1;
                }
            }
            half += HALVES;
        }
    }
}

/// The operands of one call.
#[derive(Clone, Copy)]
struct Operands {
    x: *const f32,
    w: *const u8,
    scale: *const f32,
    out: *mut f32,
    n: usize,
    k: usize,
    m: usize,
}

impl Operands {
    /// Computes `TOKENS` tokens from `token` on with `HALVES` half blocks of 8 rows from half `half` of `block` on.
    ///
    /// # Safety
    ///
    /// The contract of the crate; those tokens and half blocks exist.
    #[inline(always)]
    unsafe fn multiply<L: Lanes, const HALVES: usize, const TOKENS: usize>(
        self,
        block: usize,
        half: usize,
        token: usize,
    ) {
        let whole = self.k / BLOCK;
        let rest = self.k % BLOCK;
        // SAFETY: each row of `x` has `k` numbers, each block of `w` has `ceil(k / 16)` tiles, `scale` has `m` numbers and `out` `n * m`.
        unsafe {
            let w = self.w.add(block * self.k.div_ceil(BLOCK) * TILE_BYTES + half * LANES);
            let x = self.x.add(token * self.k);
            let mut acc = [[L::splat(0.0); TOKENS]; HALVES];
            for tile in 0..whole {
                add_tile::<L, HALVES, TOKENS>(&mut acc, w.add(tile * TILE_BYTES), x.add(tile * BLOCK), self.k);
            }
            if 0 < rest {
                // The last tile is wider than `x`. A zero times the padding's zero changes no accumulator: none of them is ever -0.
                let mut padded = [[0.0_f32; BLOCK]; TOKENS];
                for (at, padded) in padded.iter_mut().enumerate() {
                    for (col, value) in padded.iter_mut().take(rest).enumerate() {
                        *value = *x.add(at * self.k + whole * BLOCK + col);
                    }
                }
                add_tile::<L, HALVES, TOKENS>(&mut acc, w.add(whole * TILE_BYTES), padded.as_ptr().cast(), BLOCK);
            }
            for (at_half, acc) in acc.iter().enumerate() {
                let row = block * BLOCK + (half + at_half) * HALF;
                for (at_token, acc) in acc.iter().enumerate() {
                    let mut lanes = [0.0_f32; LANES];
                    L::store(lanes.as_mut_ptr(), *acc);
                    let out = self.out.add((token + at_token) * self.m);
                    for (at, a) in lanes.as_chunks::<4>().0.iter().enumerate() {
                        if row + at < self.m {
                            *out.add(row + at) = ((a[0] + a[1]) + (a[2] + a[3])) * *self.scale.add(row + at);
                        }
                    }
                }
            }
        }
    }
}

/// Adds one tile: 16 columns of `TOKENS` rows of `x`, `x_stride` numbers apart.
///
/// # Safety
///
/// The CPU has the features of `L`; `w` has `HALVES * 32` bytes, and each row of `x` has 16 numbers.
#[inline(always)]
unsafe fn add_tile<L: Lanes, const HALVES: usize, const TOKENS: usize>(
    acc: &mut [[L::Block; TOKENS]; HALVES],
    w: *const u8,
    x: *const f32,
    x_stride: usize,
) {
    for group in 0..4 {
        for half in 0..HALVES {
            // SAFETY: as the caller promises.
            unsafe {
                let weights = L::load_t2(w.add(half * LANES), group);
                for token in 0..TOKENS {
                    let x = L::splat4(x.add(token * x_stride + 4 * group));
                    acc[half][token] = L::mul_add(x, weights, acc[half][token]);
                }
            }
        }
    }
}
