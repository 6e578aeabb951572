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
}

/// Integer dot products of ternary tiles with int8 activations.
///
/// # Safety
///
/// As for [`Lanes`].
pub(crate) trait TernaryDot {
    /// `sums[b][t][r] = sum_k code(b, r, k) * x(t, k)` over `tiles` tiles of 16 columns: `BLOCKS` blocks of 16 rows, `block_bytes` apart
    /// from `w` on, with `TOKENS` rows of int8, `x_stride` bytes apart from `x` on. Codes are 0, 1, 2.
    unsafe fn dot<const BLOCKS: usize, const TOKENS: usize>(
        w: *const u8,
        block_bytes: usize,
        x: *const u8,
        x_stride: usize,
        tiles: usize,
        sums: &mut [[[i32; 16]; TOKENS]; BLOCKS],
    );

    /// The same for one block and one token, for weights that come from memory once.
    unsafe fn dot_one(w: *const u8, x: *const u8, tiles: usize, sums: &mut [i32; 16]);
}
