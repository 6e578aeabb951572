//! Dense matmul with 4-bit weights: `out[t, r] = x_scale[t] * sum_g (scale_rg * sum_c code * x + minimum_rg * sum_c x)`, `c` over the
//! columns of group `g`, in the order that the crate defines.
//!
//! `x` are n records of q8 of `k` codes; `w` is `[m, k / group]`, each a q4 record of `group` columns; `out` is f32 `[n, m]`; a unit of the
//! grid is 4 rows of `w`. Products are added exactly in integers per group and lane, so that only the scales of the groups make roundings.
//! The sums of the activations of each group are made once a call.

use std::mem::MaybeUninit;

use crate::MAX_GROUPS;
use crate::cpu::generic::args::Args;
use crate::cpu::lanes::{AHEAD, ByteDot, GroupedRow};

/// Rows of `w` in one unit of the grid.
const UNIT: usize = 4;
/// Tokens whose sums lie side by side, so that one operation scales a minimum for all of them.
const CHUNK: usize = 16;

/// The operands of one call.
#[derive(Clone, Copy)]
struct Operands {
    x: *const u8,
    w: *const u8,
    out: *mut f32,
    n: usize,
    k: usize,
    m: usize,
    group: usize,
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
    // SAFETY: the contract of the crate, for the signature `x, w, out` and `n, k, m, group`.
    let operands = unsafe {
        let args = Args::new(args, dims);
        Operands {
            x: args.pointer(0),
            w: args.pointer(1),
            out: args.pointer(2),
            n: args.size(0),
            k: args.size(1),
            m: args.size(2),
            group: args.size(3),
        }
    };
    let rows = begin as usize * UNIT..operands.m.min(end as usize * UNIT);
    let mut chunk = 0;
    while chunk < operands.n {
        let tokens = CHUNK.min(operands.n - chunk);
        // SAFETY: the tokens of the chunk and the rows exist.
        unsafe {
            let mut room = MaybeUninit::<[[f32; CHUNK]; MAX_GROUPS]>::uninit();
            let x_sums = room.as_mut_ptr().cast();
            operands.write_sums(chunk, tokens, x_sums);
            for row in rows.clone() {
                operands.multiply_row::<D, TOKENS>(row, chunk, tokens, x_sums);
            }
        }
        chunk += CHUNK;
    }
}

impl Operands {
    #[inline(always)]
    fn x_stride(self) -> usize {
        self.k.next_multiple_of(16) + 8
    }

    #[inline(always)]
    fn groups(self) -> usize {
        self.k / self.group
    }

    /// Writes the sum of the codes of each group of each token of a chunk; those of tokens that do not exist are 0.
    ///
    /// # Safety
    ///
    /// The contract of the crate; those tokens exist, and `x_sums` has room for every group.
    #[inline(always)]
    unsafe fn write_sums(self, chunk: usize, tokens: usize, x_sums: *mut [f32; CHUNK]) {
        debug_assert!(
            self.group.is_multiple_of(64) && self.k.is_multiple_of(self.group) && self.groups() <= MAX_GROUPS
        );
        for group in 0..self.groups() {
            let mut sums = [0.0; CHUNK];
            for (at, sum) in sums.iter_mut().enumerate().take(tokens) {
                // SAFETY: a record has a code for each column of each group.
                let codes = unsafe {
                    let codes = self.x.add((chunk + at) * self.x_stride() + group * self.group);
                    std::slice::from_raw_parts(codes.cast::<i8>(), self.group)
                };
                *sum = codes.iter().map(|&code| i32::from(code)).sum::<i32>() as f32;
            }
            // SAFETY: there is room for it.
            unsafe { *x_sums.add(group) = sums };
        }
    }

    /// Computes one row with `tokens` tokens from `chunk` on. The first tokens bring the row into the cache, the others find it there.
    ///
    /// # Safety
    ///
    /// The contract of the crate; the row and those tokens exist.
    #[inline(always)]
    unsafe fn multiply_row<D: ByteDot, const TOKENS: usize>(
        self,
        row: usize,
        chunk: usize,
        tokens: usize,
        x_sums: *const [f32; CHUNK],
    ) {
        let mut minima = [0.0; CHUNK];
        let mut at = 0;
        // SAFETY: the conditions keep the tokens inside the chunk.
        unsafe {
            while TOKENS <= tokens - at {
                self.multiply::<D, TOKENS>(row, chunk, at, x_sums, &mut minima);
                at += TOKENS;
            }
            while 4 <= tokens - at {
                self.multiply::<D, 4>(row, chunk, at, x_sums, &mut minima);
                at += 4;
            }
            while 2 <= tokens - at {
                self.multiply::<D, 2>(row, chunk, at, x_sums, &mut minima);
                at += 2;
            }
            if at < tokens {
                self.multiply::<D, 1>(row, chunk, at, x_sums, &mut minima);
            }
        }
    }

    /// Computes `TOKENS` tokens, `at` tokens behind `chunk`. The first ones of a chunk compute the part of the minima for all its tokens.
    ///
    /// # Safety
    ///
    /// The contract of the crate; the row and those tokens exist, and `at + TOKENS <= CHUNK`.
    #[inline(always)]
    unsafe fn multiply<D: ByteDot, const TOKENS: usize>(
        self,
        row: usize,
        chunk: usize,
        at: usize,
        x_sums: *const [f32; CHUNK],
        minima: &mut [f32; CHUNK],
    ) {
        let mut sums = [0.0; TOKENS];
        let (groups, group, x_stride) = (self.groups(), self.group, self.x_stride());
        // SAFETY: those records exist, as the caller promises; `out` has `n * m` numbers.
        unsafe {
            let w = self.w.add(row * groups * (group / 2 + 8));
            let x = self.x.add((chunk + at) * x_stride);
            let operands = GroupedRow { w, groups, group, x, x_stride, x_sums, ahead: w.wrapping_add(AHEAD) };
            if at == 0 {
                D::dot_q4::<TOKENS, true>(operands, &mut sums, minima);
            } else {
                D::dot_q4::<TOKENS, false>(operands, &mut sums, minima);
            }
            for (token, sum) in sums.iter().enumerate() {
                let x_scale = x.add(token * x_stride + self.k.next_multiple_of(16)).cast::<f32>().read_unaligned();
                *self.out.add((chunk + at + token) * self.m + row) = (sum + minima[at + token]) * x_scale;
            }
        }
    }
}
