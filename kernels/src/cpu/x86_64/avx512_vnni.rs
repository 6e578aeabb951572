//! AVX-512 with VNNI: a block of lanes is two registers, and `vpdpbusd` multiplies and adds 64 pairs of bytes.

use std::arch::x86_64::*;

use half::bf16;

use crate::cpu::entries;
use crate::cpu::generic::attention::attention;
use crate::cpu::generic::cache_row::{Bf16Row, F32Row, Q4Row, Q8Row};
use crate::cpu::generic::{attention_gradient, dense, dense_q4, dense_q8, ternary_f32, ternary_q8};
use crate::cpu::lanes::{AHEAD, ByteDot, DIGIT_ONE, DIGIT_TWO, GroupedRow, Lanes, TernaryDot, hold_loads, prefetch};

// Sizes of the inner steps fill the 32 registers: 2 blocks by 12 tokens are 24 accumulators, 4 rows by 2 tokens are 16, 2 halves by 4
// tokens are 16, 8 keys are 16, and so are 8 rows of values.
entries! {
    features "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni":
    ternary_gemv_q8xt2_f32__avx512vnni__r16 = ternary_q8::gemv::<Avx512Vnni>;
    ternary_gemm_q8xt2_f32__avx512vnni__r16 = ternary_q8::gemm::<Avx512Vnni, 2, 12>;
    ternary_gemv_q8xt2b3_f32__avx512vnni__r16 = ternary_q8::gemv::<Avx512VnniBase3>;
    ternary_gemm_q8xt2b3_f32__avx512vnni__r16 = ternary_q8::gemm::<Avx512VnniBase3, 2, 12>;
    ternary_matmul_f32xt2_f32__avx512vnni__r16 = ternary_f32::matmul::<Avx512Vnni, 2, 4>;
    dense_matmul_f32xf32_f32__avx512vnni__r4 = dense::matmul::<Avx512Vnni, f32, 4, 2>;
    dense_matmul_f32xbf16_f32__avx512vnni__r4 = dense::matmul::<Avx512Vnni, bf16, 4, 2>;
    dense_matmul_q8xq8_f32__avx512vnni__r4 = dense_q8::matmul::<Avx512Vnni, 4>;
    dense_matmul_q8xq4_f32__avx512vnni__r4 = dense_q4::matmul::<Avx512Vnni, 8>;
    attention_f32xf32_f32__avx512vnni__t64 = attention::<Avx512Vnni, F32Row, F32Row, 8, 8, true>;
    attention_f32xbf16_f32__avx512vnni__t64 = attention::<Avx512Vnni, Bf16Row, Bf16Row, 8, 8, true>;
    attention_f32xq8q4_f32__avx512vnni__t64 = attention::<Avx512Vnni, Q8Row, Q4Row, 8, 8, true>;
    attention_f32xq4_f32__avx512vnni__t64 = attention::<Avx512Vnni, Q4Row, Q4Row, 8, 8, true>;
    attention_lse_f32xf32_f32__avx512vnni__t64 = attention_gradient::lse::<f32>;
    query_gradient_f32xf32_f32__avx512vnni__t1 = attention_gradient::queries::<f32>;
    cache_gradient_f32xf32_f32__avx512vnni__t1 = attention_gradient::caches::<f32>;
}

/// Lanes in two registers: lane `l` is lane `l % 16` of register `l / 16`.
pub(crate) struct Avx512Vnni;

/// Applies an operation to both registers of each operand.
macro_rules! both {
    ($operation:ident, $($operand:ident),+) => {
        [$operation($($operand[0]),+), $operation($($operand[1]),+)]
    };
}

impl Lanes for Avx512Vnni {
    type Block = [__m512; 2];

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn splat(value: f32) -> Self::Block {
        [_mm512_set1_ps(value); 2]
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn splat4(from: *const f32) -> Self::Block {
        // SAFETY: the caller has 4 numbers there.
        let four = unsafe { _mm_loadu_ps(from) };
        [_mm512_broadcast_f32x4(four); 2]
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const f32) -> Self::Block {
        // SAFETY: the caller has 32 numbers there.
        unsafe { [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16))] }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load_bf16(from: *const u16) -> Self::Block {
        // SAFETY: the caller has 32 numbers there.
        let halves = unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(16).cast())] };
        halves.map(|bits| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits))))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load_i8(from: *const u8) -> Self::Block {
        // SAFETY: the caller has 32 bytes there.
        let halves = unsafe { [_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(16).cast())] };
        halves.map(|codes| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load_u4(from: *const u8) -> Self::Block {
        // SAFETY: the caller has 16 bytes there.
        let bytes = unsafe { _mm_loadu_si128(from.cast()) };
        let mask = _mm_set1_epi8(15);
        let (even, odd) = (_mm_and_si128(bytes, mask), _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask));
        let halves = [_mm_unpacklo_epi8(even, odd), _mm_unpackhi_epi8(even, odd)];
        halves.map(|codes| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes)))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load_t2(from: *const u8, group: usize) -> Self::Block {
        // SAFETY: the caller has 32 bytes there.
        let halves = unsafe { [_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(16).cast())] };
        // A permutation looks only at the two lowest bits of each index, so shifting is all that a code needs.
        let values = _mm512_set4_ps(2.0, 1.0, 0.0, -1.0);
        let shift = _mm_cvtsi32_si128(2 * group as i32);
        halves.map(|codes| _mm512_permutevar_ps(values, _mm512_srl_epi32(_mm512_cvtepu8_epi32(codes), shift)))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(to: *mut f32, block: Self::Block) {
        // SAFETY: the caller has room for 32 numbers there.
        unsafe {
            _mm512_storeu_ps(to, block[0]);
            _mm512_storeu_ps(to.add(16), block[1]);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add(a: Self::Block, b: Self::Block) -> Self::Block {
        both!(_mm512_add_ps, a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn mul(a: Self::Block, b: Self::Block) -> Self::Block {
        both!(_mm512_mul_ps, a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn mul_add(a: Self::Block, b: Self::Block, c: Self::Block) -> Self::Block {
        both!(_mm512_fmadd_ps, a, b, c)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn max(a: Self::Block, b: Self::Block) -> Self::Block {
        // The instruction gives the second operand where either is NaN.
        both!(_mm512_max_ps, a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn min(a: Self::Block, b: Self::Block) -> Self::Block {
        both!(_mm512_min_ps, a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn round(a: Self::Block) -> Self::Block {
        a.map(|a| _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn mul_pow2(p: Self::Block, n: Self::Block) -> Self::Block {
        [mul_pow2(p[0], n[0]), mul_pow2(p[1], n[1])]
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn sum(a: Self::Block) -> f32 {
        sum_16(_mm512_add_ps(a[0], a[1]))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn largest(a: Self::Block) -> f32 {
        _mm512_reduce_max_ps(_mm512_max_ps(a[0], a[1]))
    }

    /// Eight sums share their registers: after each step a register holds the remaining lanes of twice as many blocks.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn sums<const N: usize>(blocks: &[Self::Block; N], to: &mut [f32; N]) {
        let mut eights = blocks.as_chunks::<8>().0.iter();
        let (Some(blocks), 8) = (eights.next(), N) else {
            for (block, to) in blocks.iter().zip(to) {
                *to = sum_16(_mm512_add_ps(block[0], block[1]));
            }
            return;
        };
        let by_16 = blocks.map(|block| _mm512_add_ps(block[0], block[1]));
        let by_8 = [
            add_halves(by_16[0], by_16[1]),
            add_halves(by_16[2], by_16[3]),
            add_halves(by_16[4], by_16[5]),
            add_halves(by_16[6], by_16[7]),
        ];
        // A quarter of a register for each of the blocks 0 to 3, and 4 to 7.
        let by_4 = [add_quarters(by_8[0], by_8[1]), add_quarters(by_8[2], by_8[3])];
        let (low, high) = (_mm512_castps_pd(by_4[0]), _mm512_castps_pd(by_4[1]));
        let by_2 = _mm512_add_ps(
            _mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)),
        );
        let all = _mm512_add_ps(by_2, _mm512_permute_ps::<0xB1>(by_2));
        let order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
        // SAFETY: there are 8 blocks, and so there is room for 8 numbers.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), _mm512_castps512_ps256(_mm512_permutexvar_ps(order, all))) };
    }
}

/// In the lower half of the result, the sum of the halves of `a`; in the upper half, that of `b`.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_halves(a: __m512, b: __m512) -> __m512 {
    _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b))
}

/// The sums of the quarters 0 and 1, and 2 and 3, of `a`, and then those of `b`.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_quarters(a: __m512, b: __m512) -> __m512 {
    _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b))
}

/// The sum of 16 lanes by the tree.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn sum_16(a: __m512) -> f32 {
    let by_8 = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
    let by_4 = _mm_add_ps(_mm256_castps256_ps128(by_8), _mm256_extractf128_ps::<1>(by_8));
    let by_2 = _mm_add_ps(by_4, _mm_movehl_ps(by_4, by_4));
    _mm_cvtss_f32(_mm_add_ss(by_2, _mm_movehdup_ps(by_2)))
}

/// As [`crate::math::mul_pow2`].
#[inline]
#[target_feature(enable = "avx512f")]
fn mul_pow2(p: __m512, n: __m512) -> __m512 {
    let n = _mm512_cvtps_epi32(n);
    let a = _mm512_srai_epi32::<1>(n);
    let bias = _mm512_set1_epi32(127);
    let power_a = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(a, bias)));
    let power_b = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(_mm512_sub_epi32(n, a), bias)));
    _mm512_mul_ps(_mm512_mul_ps(p, power_a), power_b)
}

/// The sum of the lanes of each register: after each step a register holds what is left of twice as many.
#[inline]
#[target_feature(enable = "avx512f")]
fn sums_of_16(registers: &[__m512i; 16]) -> [i32; 16] {
    let pairs = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let fours = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    // In each quarter of a register, one sum of four lanes of each of four registers.
    let four = |at: usize| {
        let [a, b, c, d] = [registers[at], registers[at + 1], registers[at + 2], registers[at + 3]];
        fours(pairs(a, b), pairs(c, d))
    };
    let halves = |a, b| _mm512_add_epi32(_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xDD>(a, b));
    let all = halves(halves(four(0), four(4)), halves(four(8), four(12)));
    let mut sums = [0; 16];
    // SAFETY: there is room for 16 numbers.
    unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), all) };
    sums
}

impl TernaryDot for Avx512Vnni {
    const WIDTH: usize = 16;

    /// The codes of a group are brought to the low bits and met with every token: two operations for `TOKENS` products of 64 pairs. One
    /// load of 4 activations serves all blocks. Each accumulator waits for itself only once per group, after all others have had a turn.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn dot<const BLOCKS: usize, const TOKENS: usize>(
        w: *const u8,
        block_bytes: usize,
        x: *const u8,
        x_stride: usize,
        tiles: usize,
        ahead: *const u8,
        sums: &mut [[[i32; 16]; TOKENS]; BLOCKS],
    ) {
        let mask = _mm512_set1_epi8(3);
        let mut acc = [[_mm512_setzero_si512(); TOKENS]; BLOCKS];
        for tile in 0..tiles {
            // SAFETY: the caller has 64 bytes of weights and 16 activations for each tile.
            unsafe {
                let mut codes = [mask; BLOCKS];
                for block in 0..BLOCKS {
                    prefetch(ahead.wrapping_add((tile * BLOCKS + block) * 64));
                    codes[block] = _mm512_loadu_si512(w.add(block * block_bytes + tile * 64).cast());
                }
                for group in 0..4 {
                    let mut low = [mask; BLOCKS];
                    for block in 0..BLOCKS {
                        low[block] = _mm512_and_si512(codes[block], mask);
                        codes[block] = _mm512_srli_epi16::<2>(codes[block]);
                    }
                    hold_loads();
                    for token in 0..TOKENS {
                        let x = x.add(token * x_stride + tile * 16 + 4 * group);
                        let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
                        for block in 0..BLOCKS {
                            acc[block][token] = _mm512_dpbusd_epi32(acc[block][token], low[block], x);
                        }
                    }
                }
            }
        }
        for block in 0..BLOCKS {
            for token in 0..TOKENS {
                // SAFETY: there is room for 16 numbers.
                unsafe { _mm512_storeu_si512(sums[block][token].as_mut_ptr().cast(), acc[block][token]) };
            }
        }
    }

    /// Two tiles at a time with accumulators of their own, because an accumulator is busy for longer than one tile takes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn dot_one(w: *const u8, x: *const u8, tiles: usize, sums: &mut [i32; 16]) {
        let zero = _mm512_setzero_si512();
        let (mut even, mut odd) = ([zero; 4], [zero; 4]);
        for pair in 0..tiles / 2 {
            // SAFETY: the caller has 64 bytes of weights and 16 activations for each tile.
            unsafe {
                even = add_tile(even, w.add(pair * 128), x.add(pair * 32));
                odd = add_tile(odd, w.add(pair * 128 + 64), x.add(pair * 32 + 16));
            }
        }
        if tiles % 2 == 1 {
            // SAFETY: the same, for the last tile.
            even = unsafe { add_tile(even, w.add((tiles - 1) * 64), x.add((tiles - 1) * 16)) };
        }
        let group = |group: usize| _mm512_add_epi32(even[group], odd[group]);
        let low = _mm512_add_epi32(group(0), _mm512_srai_epi32::<2>(group(1)));
        let high = _mm512_add_epi32(_mm512_srai_epi32::<4>(group(2)), _mm512_srai_epi32::<6>(group(3)));
        // SAFETY: there is room for 16 numbers.
        unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), _mm512_add_epi32(low, high)) };
    }
}

/// Adds the products of one tile with one token. The codes of group `g` stay at bits `2 * g`, where they count `4^g` times; each group has
/// an accumulator of its own, which is shifted down at the end. That is exact: it holds a multiple of `4^g`, and [`crate::MAX_K`] keeps it
/// inside 32 bits.
///
/// # Safety
///
/// `w` has 64 bytes and `x` 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn add_tile(acc: [__m512i; 4], w: *const u8, x: *const u8) -> [__m512i; 4] {
    prefetch(w.wrapping_add(AHEAD));
    // SAFETY: as the caller promises.
    let (codes, x) = unsafe { (_mm512_loadu_si512(w.cast()), x.cast::<[i32; 4]>().read_unaligned()) };
    let product = |group: usize, mask: u8| {
        let codes = _mm512_and_si512(codes, _mm512_set1_epi8(mask as i8));
        _mm512_dpbusd_epi32(acc[group], codes, _mm512_set1_epi32(x[group]))
    };
    [product(0, 0x03), product(1, 0x0C), product(2, 0x30), product(3, 0xC0)]
}

/// Ternary weights with five codes a byte.
pub(crate) struct Avx512VnniBase3;

impl TernaryDot for Avx512VnniBase3 {
    const WIDTH: usize = 20;

    /// A digit takes two comparisons, each of which adds 1 where it holds; three times the byte starts with the next digit.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn dot<const BLOCKS: usize, const TOKENS: usize>(
        w: *const u8,
        block_bytes: usize,
        x: *const u8,
        x_stride: usize,
        tiles: usize,
        ahead: *const u8,
        sums: &mut [[[i32; 16]; TOKENS]; BLOCKS],
    ) {
        let ones = _mm512_set1_epi8(1);
        let (least_one, least_two) = (_mm512_set1_epi8(DIGIT_ONE as i8), _mm512_set1_epi8(DIGIT_TWO as i8));
        let mut acc = [[_mm512_setzero_si512(); TOKENS]; BLOCKS];
        for tile in 0..tiles {
            let mut bytes = [ones; BLOCKS];
            for block in 0..BLOCKS {
                prefetch(ahead.wrapping_add((tile * BLOCKS + block) * 64));
                // SAFETY: the caller has 64 bytes of weights for each tile.
                bytes[block] = unsafe { _mm512_loadu_si512(w.add(block * block_bytes + tile * 64).cast()) };
            }
            for group in 0..5 {
                let mut digits = [ones; BLOCKS];
                for block in 0..BLOCKS {
                    let byte = bytes[block];
                    let one = _mm512_maskz_mov_epi8(_mm512_cmpge_epu8_mask(byte, least_one), ones);
                    digits[block] = _mm512_mask_add_epi8(one, _mm512_cmpge_epu8_mask(byte, least_two), one, ones);
                    bytes[block] = _mm512_add_epi8(_mm512_add_epi8(byte, byte), byte);
                }
                hold_loads();
                for token in 0..TOKENS {
                    // SAFETY: the caller has 20 activations for each tile.
                    let x = unsafe { x.add(token * x_stride + tile * 20 + 4 * group).cast::<i32>().read_unaligned() };
                    let x = _mm512_set1_epi32(x);
                    for block in 0..BLOCKS {
                        acc[block][token] = _mm512_dpbusd_epi32(acc[block][token], digits[block], x);
                    }
                }
            }
        }
        for block in 0..BLOCKS {
            for token in 0..TOKENS {
                // SAFETY: there is room for 16 numbers.
                unsafe { _mm512_storeu_si512(sums[block][token].as_mut_ptr().cast(), acc[block][token]) };
            }
        }
    }

    /// No digit is ever taken out. With `b_i` the byte whose first digit is digit `i`, `256 * digit_i = 3 * b_i - b_(i+1)`; so the bytes
    /// themselves are multiplied, once with the activations of their own digit and once with those of the digit before:
    ///
    /// ```text
    /// 256 * sum_i digit_i * x_i = 3 * sum_i b_i * x_i - sum_i b_(i+1) * x_i
    /// ```
    ///
    /// That is four operations a digit instead of seven. Sums may wrap around, as their difference holds 24 bits of the result, which is less
    /// than `2 * 128` a column.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn dot_one(w: *const u8, x: *const u8, tiles: usize, sums: &mut [i32; 16]) {
        /// Tiles whose result is under `2^23`.
        const TILES: usize = 1024;
        let zero = _mm512_setzero_si512();
        let mut total = zero;
        let mut tile = 0;
        while tile < tiles {
            let stop = tiles.min(tile + TILES);
            let (mut own, mut before) = ([zero; 5], [zero; 5]);
            while tile < stop {
                let at = w.wrapping_add(tile * 64);
                prefetch(at.wrapping_add(AHEAD));
                // SAFETY: the caller has 64 bytes of weights and 20 activations for each tile.
                let (mut bytes, x) =
                    unsafe { (_mm512_loadu_si512(at.cast()), x.add(tile * 20).cast::<[i32; 5]>().read_unaligned()) };
                for group in 0..5 {
                    let x = _mm512_set1_epi32(x[group]);
                    own[group] = _mm512_dpbusd_epi32(own[group], bytes, x);
                    bytes = _mm512_add_epi8(_mm512_add_epi8(bytes, bytes), bytes);
                    before[group] = _mm512_dpbusd_epi32(before[group], bytes, x);
                }
                tile += 1;
            }
            let sum = |parts: [__m512i; 5]| parts.into_iter().fold(zero, |sum, part| _mm512_add_epi32(sum, part));
            let own = sum(own);
            let tripled = _mm512_add_epi32(_mm512_add_epi32(own, own), own);
            total = _mm512_add_epi32(total, _mm512_srai_epi32::<8>(_mm512_sub_epi32(tripled, sum(before))));
        }
        // SAFETY: there is room for 16 numbers.
        unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), total) };
    }
}

impl ByteDot for Avx512Vnni {
    const OFFSET: i32 = 128;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn dot_q8<const ROWS: usize, const TOKENS: usize, const FETCH: usize>(
        w: *const u8,
        w_stride: usize,
        x: *const u8,
        x_stride: usize,
        bytes: usize,
        ahead: *const u8,
        sums: &mut [[i32; TOKENS]; ROWS],
    ) {
        // Turning the highest bit adds 128 and makes the byte unsigned.
        let offset = _mm512_set1_epi8(-128);
        let mut acc = [[_mm512_setzero_si512(); TOKENS]; ROWS];
        let whole = bytes / 64 * 64;
        let mut at = 0;
        while at < whole {
            for line in 0..FETCH {
                prefetch(ahead.wrapping_add(at * FETCH + line * 64));
            }
            let mut weights = [offset; ROWS];
            for row in 0..ROWS {
                // SAFETY: the caller has `bytes` bytes in each row.
                weights[row] =
                    unsafe { _mm512_xor_si512(_mm512_loadu_si512(w.add(row * w_stride + at).cast()), offset) };
            }
            for token in 0..TOKENS {
                // SAFETY: the same.
                let x = unsafe { _mm512_loadu_si512(x.add(token * x_stride + at).cast()) };
                for row in 0..ROWS {
                    acc[row][token] = _mm512_dpbusd_epi32(acc[row][token], weights[row], x);
                }
            }
            at += 64;
        }
        if at < bytes {
            let mask = (1_u64 << (bytes - at)) - 1;
            for row in 0..ROWS {
                for token in 0..TOKENS {
                    // SAFETY: the same; what the mask leaves out is not read, and counts as an activation of 0.
                    unsafe {
                        let weights = _mm512_maskz_loadu_epi8(mask, w.add(row * w_stride + at).cast());
                        let x = _mm512_maskz_loadu_epi8(mask, x.add(token * x_stride + at).cast());
                        acc[row][token] = _mm512_dpbusd_epi32(acc[row][token], _mm512_xor_si512(weights, offset), x);
                    }
                }
            }
        }
        if let ([quarters], []) = acc.as_flattened().as_chunks::<16>() {
            let all = sums_of_16(quarters);
            for (sum, total) in sums.as_flattened_mut().iter_mut().zip(all) {
                *sum = total;
            }
            return;
        }
        for row in 0..ROWS {
            for token in 0..TOKENS {
                sums[row][token] = _mm512_reduce_add_epi32(acc[row][token]);
            }
        }
    }

    /// Widening a byte to 16 bits and adding it to itself 4 bits higher puts its two codes into two bytes in the order of the columns, so
    /// that neither the weights nor the activations have to be shuffled.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vnni")]
    unsafe fn dot_q4<const TOKENS: usize, const FIRST: bool>(
        row: GroupedRow,
        sums: &mut [f32; TOKENS],
        minima: &mut [f32; 16],
    ) {
        let GroupedRow { w, groups, group, x, x_stride, x_sums, ahead } = row;
        let mask = _mm512_set1_epi8(15);
        let mut acc = [_mm512_setzero_ps(); TOKENS];
        let mut minimum = _mm512_setzero_ps();
        for at_group in 0..groups {
            let record = at_group * (group / 2 + 8);
            let mut dots = [_mm512_setzero_si512(); TOKENS];
            let mut at = 0;
            while at < group {
                if FIRST {
                    prefetch(ahead.wrapping_add(record + at / 2));
                }
                // SAFETY: the caller has a record of `group` codes there, and as many activations.
                unsafe {
                    let codes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(w.add(record + at / 2).cast()));
                    let codes = _mm512_and_si512(_mm512_or_si512(codes, _mm512_slli_epi16::<4>(codes)), mask);
                    for token in 0..TOKENS {
                        let x = _mm512_loadu_si512(x.add(token * x_stride + at_group * group + at).cast());
                        dots[token] = _mm512_dpbusd_epi32(dots[token], codes, x);
                    }
                }
                at += 64;
            }
            // SAFETY: two numbers follow the codes; the caller has a row of sums for each group.
            unsafe {
                let numbers = w.add(record + group / 2);
                let scale = _mm512_set1_ps(numbers.cast::<f32>().read_unaligned());
                for token in 0..TOKENS {
                    acc[token] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[token]), scale, acc[token]);
                }
                if FIRST {
                    let least = _mm512_set1_ps(numbers.add(4).cast::<f32>().read_unaligned());
                    minimum = _mm512_fmadd_ps(least, _mm512_loadu_ps(x_sums.add(at_group).cast()), minimum);
                }
            }
        }
        for token in 0..TOKENS {
            sums[token] = sum_16(acc[token]);
        }
        if FIRST {
            // SAFETY: there is room for 16 numbers.
            unsafe { _mm512_storeu_ps(minima.as_mut_ptr(), minimum) };
        }
    }
}
