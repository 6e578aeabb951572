//! The vector operations that the algorithms need of an ISA.

/// Number of f32 lanes of a block, the same on every ISA: it is the width that the evaluation order of a dot product is written for.
pub(crate) const LANES: usize = 32;

/// Operations on blocks of 32 f32 lanes, however many registers those are.
///
/// Each is a single IEEE operation in each lane, so that an algorithm over blocks gives the same bits on every ISA.
///
/// # Safety
///
/// Of every method: the running CPU has the features of the implementing ISA, and pointers are valid for the bytes stated.
pub(crate) trait Lanes {
    /// 32 lanes of f32.
    type Block: Copy;

    /// `value` in every lane.
    unsafe fn splat(value: f32) -> Self::Block;

    /// Lane `l` is `from[l % 4]`: 4 f32, aligned to 4 bytes.
    unsafe fn splat4(from: *const f32) -> Self::Block;

    /// 32 f32, aligned to 4 bytes.
    unsafe fn load(from: *const f32) -> Self::Block;

    /// 32 bf16, aligned to 2 bytes, widened.
    unsafe fn load_bf16(from: *const u16) -> Self::Block;

    /// 32 int8, converted.
    unsafe fn load_i8(from: *const u8) -> Self::Block;

    /// 32 unsigned 4-bit codes in 16 bytes, low nibble first, converted.
    unsafe fn load_u4(from: *const u8) -> Self::Block;

    /// Of 32 bytes, the two bits at `2 * group` of each, less 1, converted: the ternary weights -1, 0 and 1. `group < 4`.
    unsafe fn load_t2(from: *const u8, group: usize) -> Self::Block;

    /// Writes 32 f32, aligned to 4 bytes.
    unsafe fn store(to: *mut f32, block: Self::Block);

    /// `a + b`.
    unsafe fn add(a: Self::Block, b: Self::Block) -> Self::Block;

    /// `a * b`.
    unsafe fn mul(a: Self::Block, b: Self::Block) -> Self::Block;

    /// `a * b + c`, rounded once.
    unsafe fn mul_add(a: Self::Block, b: Self::Block, c: Self::Block) -> Self::Block;

    /// The larger one; where `b` is NaN, NaN.
    unsafe fn max(a: Self::Block, b: Self::Block) -> Self::Block;

    /// The smaller one; where `b` is NaN, NaN.
    unsafe fn min(a: Self::Block, b: Self::Block) -> Self::Block;

    /// The nearest integral number, ties to even.
    unsafe fn round(a: Self::Block) -> Self::Block;

    /// As [`crate::math::exp_f32`] ends: `(p * 2^a) * 2^b` with `a = n >> 1`, `b = n - a`.
    unsafe fn mul_pow2(p: Self::Block, n: Self::Block) -> Self::Block;

    /// The sum of all lanes by the tree: `lane[l] += lane[l + d]` for d = 16, 8, 4, 2, 1.
    unsafe fn sum(a: Self::Block) -> f32;

    /// The largest lane; where one is NaN, that or another one.
    #[inline(always)]
    unsafe fn largest(a: Self::Block) -> f32 {
        let mut lanes = [0.0_f32; LANES];
        // SAFETY: the CPU has the features, as the caller promises; there are 32 lanes.
        unsafe { Self::store(lanes.as_mut_ptr(), a) };
        let mut distance = LANES / 2;
        while 0 < distance {
            for lane in 0..distance {
                lanes[lane] = if lanes[lane] < lanes[lane + distance] { lanes[lane + distance] } else { lanes[lane] };
            }
            distance /= 2;
        }
        lanes[0]
    }

    /// The sum of each block, as [`Lanes::sum`]: the same additions, several blocks at a time where the ISA gains by it.
    #[inline(always)]
    unsafe fn sums<const N: usize>(blocks: &[Self::Block; N], to: &mut [f32; N]) {
        for (block, to) in blocks.iter().zip(to) {
            // SAFETY: the CPU has the features, as the caller promises.
            *to = unsafe { Self::sum(*block) };
        }
    }
}

/// Integer dot products of ternary tiles with int8 activations.
///
/// # Safety
///
/// As for [`Lanes`].
pub(crate) trait TernaryDot {
    /// Columns of a tile: 16 with four codes a byte, 20 with five.
    const WIDTH: usize;

    /// `sums[b][t][r] = sum_k code(b, r, k) * x(t, k)` over `tiles` tiles of `WIDTH` columns: `BLOCKS` blocks of 16 rows, `block_bytes` apart
    /// from `w` on, with `TOKENS` rows of int8, `x_stride` bytes apart from `x` on. Codes are 0, 1, 2. As many bytes from `ahead` on are
    /// prefetched as weights are read, at the same pace.
    unsafe fn dot<const BLOCKS: usize, const TOKENS: usize>(
        w: *const u8,
        block_bytes: usize,
        x: *const u8,
        x_stride: usize,
        tiles: usize,
        ahead: *const u8,
        sums: &mut [[[i32; 16]; TOKENS]; BLOCKS],
    );

    /// The same for one block and one token, for weights that come from memory once.
    unsafe fn dot_one(w: *const u8, x: *const u8, tiles: usize, sums: &mut [i32; 16]);
}

/// Integer dot products of int8 activations with rows of int8 or 4-bit codes.
///
/// # Safety
///
/// As for [`Lanes`].
pub(crate) trait ByteDot {
    /// What is added to each int8 weight before it is multiplied, because the instruction wants it unsigned: the caller takes it off again
    /// with the sum of the activations.
    const OFFSET: i32;

    /// `sums[r][t] = sum_i (w(r, i) + OFFSET) * x(t, i)`, wrapping around: `ROWS` rows of `bytes` int8, `w_stride` apart from `w` on, with
    /// `TOKENS` rows `x_stride` apart from `x` on. `bytes` is a multiple of 16. For each 64 bytes of the rows,
    /// `FETCH` cache lines from `ahead` on are prefetched, one after the other.
    unsafe fn dot_q8<const ROWS: usize, const TOKENS: usize, const FETCH: usize>(
        w: *const u8,
        w_stride: usize,
        x: *const u8,
        x_stride: usize,
        bytes: usize,
        ahead: *const u8,
        sums: &mut [[i32; TOKENS]; ROWS],
    );

    /// One row of 4-bit weights with `TOKENS` tokens: for each group in ascending order, with `s` its scale and `m` its minimum,
    ///
    /// ```text
    /// lane[t][l] = fma(f32(sum of code(c) * x(t, c) over the columns c of the group with c % 64 / 4 == l), s, lane[t][l])
    /// minima[t]  = fma(m, x_sums[g][t], minima[t])        with FIRST, and then of all 16 tokens
    /// ```
    ///
    /// and at the end the lanes by the tree, `lane[l] += lane[l + d]` for d = 8, 4, 2, 1, into `sums`. All start at +0.
    ///
    /// With `FIRST`, the weights are expected to come from memory, and as many bytes from `ahead` on are prefetched as are read.
    unsafe fn dot_q4<const TOKENS: usize, const FIRST: bool>(
        row: GroupedRow,
        sums: &mut [f32; TOKENS],
        minima: &mut [f32; 16],
    );
}

/// A row of 4-bit weights, and what it meets.
#[derive(Clone, Copy)]
pub(crate) struct GroupedRow {
    /// `groups` q4 records.
    pub(crate) w: *const u8,
    pub(crate) groups: usize,
    /// Codes of each record, a multiple of 64.
    pub(crate) group: usize,
    /// Rows of `groups * group` int8 activations, `x_stride` bytes apart.
    pub(crate) x: *const u8,
    pub(crate) x_stride: usize,
    /// For each group, the sums of its activations of 16 tokens.
    pub(crate) x_sums: *const [f32; 16],
    /// What is read next.
    pub(crate) ahead: *const u8,
}

/// Brings the cache line at `from`, which may be any address, nearer.
#[inline(always)]
pub fn prefetch(from: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of the architecture, and a prefetch is a hint that never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) };
    }
    #[cfg(target_arch = "aarch64")]
    {
        // SAFETY: the instruction is part of the architecture, and a prefetch is a hint that never faults.
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{from}]", from = in(reg) from, options(nostack, preserves_flags, readonly));
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = from;
}

/// Keeps the loads that come later in the program from being done earlier: the accumulators of a large step fill the registers, and values
/// that are loaded long before their use go to the stack and back.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn hold_loads() {
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
}

/// Bytes that a stream of weights is prefetched ahead. Measured: a tenth faster than 1.5 KiB where nobody else draws on the memory, and no
/// slower where others do; the hardware's own prefetching is slower than either.
pub(crate) const AHEAD: usize = 6144;

/// The least byte whose first digit in base 3 is 1: the digit is the carry of `3 * byte`, and `3 * byte` without it starts with the next digit.
pub(crate) const DIGIT_ONE: u8 = 86;
/// The least byte whose first digit in base 3 is 2.
pub(crate) const DIGIT_TWO: u8 = 171;
