//! Advanced SIMD with dot products: a block of lanes is eight registers, and `sdot` multiplies and adds 16 pairs of bytes.

use std::arch::aarch64::*;
use std::arch::asm;

use half::bf16;

use crate::cpu::entries;
use crate::cpu::generic::attention::attention;
use crate::cpu::generic::cache_row::{Bf16Row, F32Row, Q4Row, Q8Row};
use crate::cpu::generic::{attention_gradient, dense, dense_q4, dense_q8, ternary_f32, ternary_q8};
use crate::cpu::lanes::{AHEAD, ByteDot, DIGIT_ONE, DIGIT_TWO, GroupedRow, LANES, Lanes, TernaryDot, prefetch};

// Sizes of the inner steps fit the 32 registers: 4 tokens of a tile are 16 accumulators, 2 rows with a token, 1 half with 2 tokens and
// 2 heads are 16 too.
entries! {
    features "neon,dotprod":
    ternary_gemv_q8xt2_f32__neon__r16 = ternary_q8::gemv::<Neon>;
    ternary_gemm_q8xt2_f32__neon__r16 = ternary_q8::gemm::<Neon, 1, 4>;
    ternary_gemv_q8xt2b3_f32__neon__r16 = ternary_q8::gemv::<NeonBase3>;
    ternary_gemm_q8xt2b3_f32__neon__r16 = ternary_q8::gemm::<NeonBase3, 1, 4>;
    ternary_matmul_f32xt2_f32__neon__r16 = ternary_f32::matmul::<Neon, 1, 2>;
    dense_matmul_f32xf32_f32__neon__r4 = dense::matmul::<Neon, f32, 2, 1>;
    dense_matmul_f32xbf16_f32__neon__r4 = dense::matmul::<Neon, bf16, 2, 1>;
    dense_matmul_q8xq8_f32__neon__r4 = dense_q8::matmul::<Neon, 4>;
    dense_matmul_q8xq4_f32__neon__r4 = dense_q4::matmul::<Neon, 2>;
    attention_f32xf32_f32__neon__t64 = attention::<Neon, F32Row, F32Row, 2, 2, false>;
    attention_f32xbf16_f32__neon__t64 = attention::<Neon, Bf16Row, Bf16Row, 2, 2, false>;
    attention_f32xq8q4_f32__neon__t64 = attention::<Neon, Q8Row, Q4Row, 2, 2, false>;
    attention_f32xq4_f32__neon__t64 = attention::<Neon, Q4Row, Q4Row, 2, 2, false>;
    attention_lse_f32xf32_f32__neon__t64 = attention_gradient::lse::<f32>;
    query_gradient_f32xf32_f32__neon__t1 = attention_gradient::queries::<f32>;
    cache_gradient_f32xf32_f32__neon__t1 = attention_gradient::caches::<f32>;
}

/// Lanes in eight registers: lane `l` is lane `l % 4` of register `l / 4`.
pub(crate) struct Neon;

/// Applies an operation to all eight registers of each operand.
macro_rules! all {
    ($operation:ident, $($operand:ident),+) => {
        [
            $operation($($operand[0]),+),
            $operation($($operand[1]),+),
            $operation($($operand[2]),+),
            $operation($($operand[3]),+),
            $operation($($operand[4]),+),
            $operation($($operand[5]),+),
            $operation($($operand[6]),+),
            $operation($($operand[7]),+),
        ]
    };
}

impl Lanes for Neon {
    type Block = [float32x4_t; 8];

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn splat(value: f32) -> Self::Block {
        [vdupq_n_f32(value); 8]
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn splat4(from: *const f32) -> Self::Block {
        // SAFETY: the caller has 4 numbers there.
        let four = unsafe { vld1q_f32(from) };
        [four; 8]
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load(from: *const f32) -> Self::Block {
        let mut block = [vdupq_n_f32(0.0); 8];
        for (register, value) in block.iter_mut().enumerate() {
            // SAFETY: the caller has 32 numbers there.
            *value = unsafe { vld1q_f32(from.add(4 * register)) };
        }
        block
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load_bf16(from: *const u16) -> Self::Block {
        let mut block = [vdupq_n_f32(0.0); 8];
        for (register, value) in block.iter_mut().enumerate() {
            // SAFETY: the caller has 32 numbers there.
            let bits = unsafe { vld1_u16(from.add(4 * register)) };
            *value = vreinterpretq_f32_u32(vshll_n_u16::<16>(bits));
        }
        block
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load_i8(from: *const u8) -> Self::Block {
        // SAFETY: the caller has 32 bytes there.
        unsafe { convert([vreinterpretq_s8_u8(vld1q_u8(from)), vreinterpretq_s8_u8(vld1q_u8(from.add(16)))]) }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load_u4(from: *const u8) -> Self::Block {
        // SAFETY: the caller has 16 bytes there.
        let bytes = unsafe { vld1q_u8(from) };
        let (even, odd) = (vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes));
        convert([vreinterpretq_s8_u8(vzip1q_u8(even, odd)), vreinterpretq_s8_u8(vzip2q_u8(even, odd))])
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load_t2(from: *const u8, group: usize) -> Self::Block {
        // SAFETY: the caller has 32 bytes there.
        let halves = unsafe { [vld1q_u8(from), vld1q_u8(from.add(16))] };
        let shift = vdupq_n_s8(-2 * group as i8);
        convert(halves.map(|bytes| {
            let codes = vandq_u8(vshlq_u8(bytes, shift), vdupq_n_u8(3));
            vsubq_s8(vreinterpretq_s8_u8(codes), vdupq_n_s8(1))
        }))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn store(to: *mut f32, block: Self::Block) {
        for (register, value) in block.into_iter().enumerate() {
            // SAFETY: the caller has room for 32 numbers there.
            unsafe { vst1q_f32(to.add(4 * register), value) };
        }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn add(a: Self::Block, b: Self::Block) -> Self::Block {
        all!(vaddq_f32, a, b)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn mul(a: Self::Block, b: Self::Block) -> Self::Block {
        all!(vmulq_f32, a, b)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn mul_add(a: Self::Block, b: Self::Block, c: Self::Block) -> Self::Block {
        // The instruction has the addend first.
        all!(vfmaq_f32, c, a, b)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn max(a: Self::Block, b: Self::Block) -> Self::Block {
        // NaN where either is NaN.
        all!(vmaxq_f32, a, b)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn min(a: Self::Block, b: Self::Block) -> Self::Block {
        all!(vminq_f32, a, b)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn round(a: Self::Block) -> Self::Block {
        all!(vrndnq_f32, a)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn mul_pow2(p: Self::Block, n: Self::Block) -> Self::Block {
        all!(mul_pow2, p, n)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn sum(a: Self::Block) -> f32 {
        sum_16([vaddq_f32(a[0], a[4]), vaddq_f32(a[1], a[5]), vaddq_f32(a[2], a[6]), vaddq_f32(a[3], a[7])])
    }
}

/// The sum of 16 lanes by the tree.
#[inline]
#[target_feature(enable = "neon")]
fn sum_16(a: [float32x4_t; 4]) -> f32 {
    let by_8 = [vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3])];
    let by_4 = vaddq_f32(by_8[0], by_8[1]);
    let by_2 = vadd_f32(vget_low_f32(by_4), vget_high_f32(by_4));
    vget_lane_f32::<0>(by_2) + vget_lane_f32::<1>(by_2)
}

/// As [`crate::math::mul_pow2`].
#[inline]
#[target_feature(enable = "neon")]
fn mul_pow2(p: float32x4_t, n: float32x4_t) -> float32x4_t {
    let n = vcvtq_s32_f32(n);
    let a = vshrq_n_s32::<1>(n);
    let bias = vdupq_n_s32(127);
    let power_a = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(a, bias)));
    let power_b = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vsubq_s32(n, a), bias)));
    vmulq_f32(vmulq_f32(p, power_a), power_b)
}

/// 32 int8 as f32.
#[inline]
#[target_feature(enable = "neon")]
fn convert(codes: [int8x16_t; 2]) -> [float32x4_t; LANES / 4] {
    let mut block = [vdupq_n_f32(0.0); LANES / 4];
    for (half, codes) in codes.into_iter().enumerate() {
        let wide = [vmovl_s8(vget_low_s8(codes)), vmovl_s8(vget_high_s8(codes))];
        for (quarter, wide) in wide.into_iter().enumerate() {
            let at = 4 * half + 2 * quarter;
            block[at] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
            block[at + 1] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide)));
        }
    }
    block
}

/// Lane `i` of `acc` plus the products of bytes `4i..4i + 4` of `codes` with the 4 bytes in every lane of `x`.
///
/// The intrinsic is not stable yet.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot_bytes(acc: int32x4_t, codes: uint8x16_t, x: int32x4_t) -> int32x4_t {
    let mut sum = acc;
    // SAFETY: the instruction only works on these registers, and the function's features include it.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {codes:v}.16b, {x:v}.16b",
            sum = inout(vreg) sum,
            codes = in(vreg) codes,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

impl TernaryDot for Neon {
    const WIDTH: usize = 16;

    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn dot<const BLOCKS: usize, const TOKENS: usize>(
        w: *const u8,
        block_bytes: usize,
        x: *const u8,
        x_stride: usize,
        tiles: usize,
        ahead: *const u8,
        sums: &mut [[[i32; 16]; TOKENS]; BLOCKS],
    ) {
        let mask = vdupq_n_u8(3);
        for (block, sums) in sums.iter_mut().enumerate() {
            let mut acc = [[vdupq_n_s32(0); 4]; TOKENS];
            for tile in 0..tiles {
                prefetch(ahead.wrapping_add((block * tiles + tile) * 64));
                // SAFETY: the caller has 64 bytes of weights and 16 activations for each tile.
                unsafe {
                    let w = w.add(block * block_bytes + tile * 64);
                    let mut codes = [vld1q_u8(w), vld1q_u8(w.add(16)), vld1q_u8(w.add(32)), vld1q_u8(w.add(48))];
                    for group in 0..4 {
                        for quarter in 0..4 {
                            let low = vandq_u8(codes[quarter], mask);
                            codes[quarter] = vshrq_n_u8::<2>(codes[quarter]);
                            for token in 0..TOKENS {
                                let x = x.add(token * x_stride + tile * 16 + 4 * group);
                                let x = vdupq_n_s32(x.cast::<i32>().read_unaligned());
                                acc[token][quarter] = dot_bytes(acc[token][quarter], low, x);
                            }
                        }
                    }
                }
            }
            for (sums, acc) in sums.iter_mut().zip(acc) {
                for (quarter, acc) in acc.into_iter().enumerate() {
                    // SAFETY: there is room for 16 numbers.
                    unsafe { vst1q_s32(sums.as_mut_ptr().add(4 * quarter), acc) };
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn dot_one(w: *const u8, x: *const u8, tiles: usize, sums: &mut [i32; 16]) {
        let mut one = [[[0; 16]]];
        // SAFETY: as the caller promises.
        unsafe { Self::dot::<1, 1>(w, 0, x, 0, tiles, w.wrapping_add(AHEAD), &mut one) };
        *sums = one[0][0];
    }
}

/// Ternary weights with five codes a byte.
pub(crate) struct NeonBase3;

impl TernaryDot for NeonBase3 {
    const WIDTH: usize = 20;

    /// A comparison that holds is -1, and the dot product is a signed one: what is added up are the negative digits.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn dot<const BLOCKS: usize, const TOKENS: usize>(
        w: *const u8,
        block_bytes: usize,
        x: *const u8,
        x_stride: usize,
        tiles: usize,
        ahead: *const u8,
        sums: &mut [[[i32; 16]; TOKENS]; BLOCKS],
    ) {
        let (least_one, least_two) = (vdupq_n_u8(DIGIT_ONE), vdupq_n_u8(DIGIT_TWO));
        for (block, sums) in sums.iter_mut().enumerate() {
            let mut acc = [[vdupq_n_s32(0); 4]; TOKENS];
            for tile in 0..tiles {
                prefetch(ahead.wrapping_add((block * tiles + tile) * 64));
                // SAFETY: the caller has 64 bytes of weights and 20 activations for each tile.
                unsafe {
                    let w = w.add(block * block_bytes + tile * 64);
                    let mut bytes = [vld1q_u8(w), vld1q_u8(w.add(16)), vld1q_u8(w.add(32)), vld1q_u8(w.add(48))];
                    for group in 0..5 {
                        for quarter in 0..4 {
                            let byte = bytes[quarter];
                            let digits = vaddq_u8(vcgeq_u8(byte, least_one), vcgeq_u8(byte, least_two));
                            bytes[quarter] = vaddq_u8(vaddq_u8(byte, byte), byte);
                            for token in 0..TOKENS {
                                let x = x.add(token * x_stride + tile * 20 + 4 * group);
                                let x = vdupq_n_s32(x.cast::<i32>().read_unaligned());
                                acc[token][quarter] = dot_bytes(acc[token][quarter], digits, x);
                            }
                        }
                    }
                }
            }
            for (sums, acc) in sums.iter_mut().zip(acc) {
                for (quarter, acc) in acc.into_iter().enumerate() {
                    // SAFETY: there is room for 16 numbers.
                    unsafe { vst1q_s32(sums.as_mut_ptr().add(4 * quarter), vnegq_s32(acc)) };
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn dot_one(w: *const u8, x: *const u8, tiles: usize, sums: &mut [i32; 16]) {
        let mut one = [[[0; 16]]];
        // SAFETY: as the caller promises.
        unsafe { Self::dot::<1, 1>(w, 0, x, 0, tiles, w.wrapping_add(AHEAD), &mut one) };
        *sums = one[0][0];
    }
}

impl ByteDot for Neon {
    const OFFSET: i32 = 0;

    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn dot_q8<const ROWS: usize, const TOKENS: usize, const FETCH: usize>(
        w: *const u8,
        w_stride: usize,
        x: *const u8,
        x_stride: usize,
        bytes: usize,
        ahead: *const u8,
        sums: &mut [[i32; TOKENS]; ROWS],
    ) {
        let mut acc = [[vdupq_n_s32(0); TOKENS]; ROWS];
        let mut at = 0;
        while at < bytes {
            if at.is_multiple_of(64) {
                for line in 0..FETCH {
                    prefetch(ahead.wrapping_add(at * FETCH + line * 64));
                }
            }
            let mut codes = [vdupq_n_s32(0); TOKENS];
            for token in 0..TOKENS {
                // SAFETY: the caller has `bytes` bytes in each row, a multiple of 16.
                codes[token] = vreinterpretq_s32_u8(unsafe { vld1q_u8(x.add(token * x_stride + at)) });
            }
            for row in 0..ROWS {
                // SAFETY: the same.
                let weights = unsafe { vld1q_u8(w.add(row * w_stride + at)) };
                for token in 0..TOKENS {
                    acc[row][token] = dot_bytes(acc[row][token], weights, codes[token]);
                }
            }
            at += 16;
        }
        for row in 0..ROWS {
            for token in 0..TOKENS {
                sums[row][token] = vaddvq_s32(acc[row][token]);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn dot_q4<const TOKENS: usize, const FIRST: bool>(
        row: GroupedRow,
        sums: &mut [f32; TOKENS],
        minima: &mut [f32; 16],
    ) {
        let GroupedRow { w, groups, group, x, x_stride, x_sums, ahead } = row;
        let mut acc = [[vdupq_n_f32(0.0); 4]; TOKENS];
        let mut minimum = [vdupq_n_f32(0.0); 4];
        for at_group in 0..groups {
            let record = at_group * (group / 2 + 8);
            let mut dots = [[vdupq_n_s32(0); 4]; TOKENS];
            let mut at = 0;
            while at < group {
                if FIRST {
                    prefetch(ahead.wrapping_add(record + at / 2));
                }
                for half in 0..2 {
                    // SAFETY: the caller has a record of `group` codes there, a multiple of 64.
                    let bytes = unsafe { vld1q_u8(w.add(record + at / 2 + 16 * half)) };
                    let (even, odd) = (vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes));
                    for (quarter, codes) in [vzip1q_u8(even, odd), vzip2q_u8(even, odd)].into_iter().enumerate() {
                        let quarter = 2 * half + quarter;
                        for token in 0..TOKENS {
                            // SAFETY: there are as many activations.
                            let x = unsafe { vld1q_u8(x.add(token * x_stride + at_group * group + at + 16 * quarter)) };
                            dots[token][quarter] = dot_bytes(dots[token][quarter], codes, vreinterpretq_s32_u8(x));
                        }
                    }
                }
                at += 64;
            }
            // SAFETY: two numbers follow the codes; the caller has a row of sums for each group.
            unsafe {
                let numbers = w.add(record + group / 2);
                let scale = vdupq_n_f32(numbers.cast::<f32>().read_unaligned());
                let least = vdupq_n_f32(numbers.add(4).cast::<f32>().read_unaligned());
                for quarter in 0..4 {
                    for token in 0..TOKENS {
                        let dot = vcvtq_f32_s32(dots[token][quarter]);
                        acc[token][quarter] = vfmaq_f32(acc[token][quarter], dot, scale);
                    }
                    if FIRST {
                        let sums = vld1q_f32(x_sums.add(at_group).cast::<f32>().add(4 * quarter));
                        minimum[quarter] = vfmaq_f32(minimum[quarter], least, sums);
                    }
                }
            }
        }
        for token in 0..TOKENS {
            sums[token] = sum_16(acc[token]);
        }
        if FIRST {
            for quarter in 0..4 {
                // SAFETY: there is room for 16 numbers.
                unsafe { vst1q_f32(minima.as_mut_ptr().add(4 * quarter), minimum[quarter]) };
            }
        }
    }
}
