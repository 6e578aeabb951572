//! AVX2 with FMA: a block of lanes is four registers, and `vpmaddubsw` multiplies and adds 32 pairs of bytes.

use std::arch::x86_64::*;

use half::bf16;

use crate::cpu::entries;
use crate::cpu::generic::attention::attention;
use crate::cpu::generic::cache_row::{Bf16Row, F32Row, Q4Row, Q8Row};
use crate::cpu::generic::{attention_gradient, dense, dense_q4, dense_q8, ternary_f32, ternary_q8};
use crate::cpu::lanes::{AHEAD, ByteDot, DIGIT_ONE, DIGIT_TWO, GroupedRow, Lanes, TernaryDot, prefetch};

// Sizes of the inner steps fit the 16 registers: 4 tokens of a tile are 8 accumulators, and so are 2 rows with a token and 2 heads; half a
// tile with 3 tokens are 12.
entries! {
    features "avx2,fma":
    ternary_gemv_q8xt2_f32__avx2__r16 = ternary_q8::gemv::<Avx2>;
    ternary_gemm_q8xt2_f32__avx2__r16 = ternary_q8::gemm::<Avx2, 1, 4>;
    ternary_gemv_q8xt2b3_f32__avx2__r16 = ternary_q8::gemv::<Avx2Base3>;
    ternary_gemm_q8xt2b3_f32__avx2__r16 = ternary_q8::gemm::<Avx2Base3, 1, 4>;
    ternary_matmul_f32xt2_f32__avx2__r16 = ternary_f32::matmul::<Avx2, 1, 3>;
    dense_matmul_f32xf32_f32__avx2__r4 = dense::matmul::<Avx2, f32, 2, 1>;
    dense_matmul_f32xbf16_f32__avx2__r4 = dense::matmul::<Avx2, bf16, 2, 1>;
    dense_matmul_q8xq8_f32__avx2__r4 = dense_q8::matmul::<Avx2, 2>;
    dense_matmul_q8xq4_f32__avx2__r4 = dense_q4::matmul::<Avx2, 2>;
    attention_f32xf32_f32__avx2__t64 = attention::<Avx2, F32Row, F32Row, 2, 2, false>;
    attention_f32xbf16_f32__avx2__t64 = attention::<Avx2, Bf16Row, Bf16Row, 2, 2, false>;
    attention_f32xq8q4_f32__avx2__t64 = attention::<Avx2, Q8Row, Q4Row, 2, 2, false>;
    attention_f32xq4_f32__avx2__t64 = attention::<Avx2, Q4Row, Q4Row, 2, 2, false>;
    attention_lse_f32xf32_f32__avx2__t64 = attention_gradient::lse::<f32>;
    query_gradient_f32xf32_f32__avx2__t1 = attention_gradient::queries::<f32>;
    cache_gradient_f32xf32_f32__avx2__t1 = attention_gradient::caches::<f32>;
}

/// Lanes in four registers: lane `l` is lane `l % 8` of register `l / 8`.
pub(crate) struct Avx2;

/// Applies an operation to all four registers of each operand.
macro_rules! all {
    ($operation:ident, $($operand:ident),+) => {
        [
            $operation($($operand[0]),+),
            $operation($($operand[1]),+),
            $operation($($operand[2]),+),
            $operation($($operand[3]),+),
        ]
    };
}

impl Lanes for Avx2 {
    type Block = [__m256; 4];

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn splat(value: f32) -> Self::Block {
        [_mm256_set1_ps(value); 4]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn splat4(from: *const f32) -> Self::Block {
        // SAFETY: the caller has 4 numbers there.
        let four = unsafe { _mm_loadu_ps(from) };
        [_mm256_set_m128(four, four); 4]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(from: *const f32) -> Self::Block {
        // SAFETY: the caller has 32 numbers there.
        unsafe {
            [
                _mm256_loadu_ps(from),
                _mm256_loadu_ps(from.add(8)),
                _mm256_loadu_ps(from.add(16)),
                _mm256_loadu_ps(from.add(24)),
            ]
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load_bf16(from: *const u16) -> Self::Block {
        // SAFETY: the caller has 32 numbers there.
        let quarters = unsafe {
            [
                _mm_loadu_si128(from.cast()),
                _mm_loadu_si128(from.add(8).cast()),
                _mm_loadu_si128(from.add(16).cast()),
                _mm_loadu_si128(from.add(24).cast()),
            ]
        };
        quarters.map(|bits| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits))))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load_i8(from: *const u8) -> Self::Block {
        // SAFETY: the caller has 32 bytes there.
        let quarters = unsafe { load_quarters(from) };
        quarters.map(|codes| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load_u4(from: *const u8) -> Self::Block {
        // SAFETY: the caller has 16 bytes there.
        let bytes = unsafe { _mm_loadu_si128(from.cast()) };
        let mask = _mm_set1_epi8(15);
        let (even, odd) = (_mm_and_si128(bytes, mask), _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask));
        let (low, high) = (_mm_unpacklo_epi8(even, odd), _mm_unpackhi_epi8(even, odd));
        let quarters = [low, _mm_unpackhi_epi64(low, low), high, _mm_unpackhi_epi64(high, high)];
        quarters.map(|codes| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load_t2(from: *const u8, group: usize) -> Self::Block {
        // SAFETY: the caller has 32 bytes there.
        let quarters = unsafe { load_quarters(from) };
        // A permutation looks only at the two lowest bits of each index, so shifting is all that a code needs.
        let values = _mm256_setr_ps(-1.0, 0.0, 1.0, 2.0, -1.0, 0.0, 1.0, 2.0);
        let shift = _mm_cvtsi32_si128(2 * group as i32);
        quarters.map(|codes| _mm256_permutevar_ps(values, _mm256_srl_epi32(_mm256_cvtepu8_epi32(codes), shift)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn store(to: *mut f32, block: Self::Block) {
        for (register, value) in block.into_iter().enumerate() {
            // SAFETY: the caller has room for 32 numbers there.
            unsafe { _mm256_storeu_ps(to.add(8 * register), value) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add(a: Self::Block, b: Self::Block) -> Self::Block {
        all!(_mm256_add_ps, a, b)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn mul(a: Self::Block, b: Self::Block) -> Self::Block {
        all!(_mm256_mul_ps, a, b)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn mul_add(a: Self::Block, b: Self::Block, c: Self::Block) -> Self::Block {
        all!(_mm256_fmadd_ps, a, b, c)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn max(a: Self::Block, b: Self::Block) -> Self::Block {
        // The instruction gives the second operand where either is NaN.
        all!(_mm256_max_ps, a, b)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn min(a: Self::Block, b: Self::Block) -> Self::Block {
        all!(_mm256_min_ps, a, b)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn round(a: Self::Block) -> Self::Block {
        a.map(|a| _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn mul_pow2(p: Self::Block, n: Self::Block) -> Self::Block {
        all!(mul_pow2, p, n)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn sum(a: Self::Block) -> f32 {
        sum_16([_mm256_add_ps(a[0], a[2]), _mm256_add_ps(a[1], a[3])])
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn largest(a: Self::Block) -> f32 {
        let by_8 = _mm256_max_ps(_mm256_max_ps(a[0], a[1]), _mm256_max_ps(a[2], a[3]));
        let by_4 = _mm_max_ps(_mm256_castps256_ps128(by_8), _mm256_extractf128_ps::<1>(by_8));
        let by_2 = _mm_max_ps(by_4, _mm_movehl_ps(by_4, by_4));
        _mm_cvtss_f32(_mm_max_ss(by_2, _mm_movehdup_ps(by_2)))
    }
}

/// The sum of 16 lanes by the tree.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_16(a: [__m256; 2]) -> f32 {
    let by_8 = _mm256_add_ps(a[0], a[1]);
    let by_4 = _mm_add_ps(_mm256_castps256_ps128(by_8), _mm256_extractf128_ps::<1>(by_8));
    let by_2 = _mm_add_ps(by_4, _mm_movehl_ps(by_4, by_4));
    _mm_cvtss_f32(_mm_add_ss(by_2, _mm_movehdup_ps(by_2)))
}

/// As [`crate::math::mul_pow2`].
#[inline]
#[target_feature(enable = "avx2")]
fn mul_pow2(p: __m256, n: __m256) -> __m256 {
    let n = _mm256_cvtps_epi32(n);
    let a = _mm256_srai_epi32::<1>(n);
    let bias = _mm256_set1_epi32(127);
    let power_a = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(a, bias)));
    let power_b = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, a), bias)));
    _mm256_mul_ps(_mm256_mul_ps(p, power_a), power_b)
}

/// 32 bytes, 8 in the low half of each register.
///
/// # Safety
///
/// The caller has 32 bytes there.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_quarters(from: *const u8) -> [__m128i; 4] {
    // SAFETY: as the caller promises.
    unsafe {
        [
            _mm_loadl_epi64(from.cast()),
            _mm_loadl_epi64(from.add(8).cast()),
            _mm_loadl_epi64(from.add(16).cast()),
            _mm_loadl_epi64(from.add(24).cast()),
        ]
    }
}

/// Tiles whose products are added up in 16 bits before they are widened.
///
/// Nothing saturates: codes are at most 3 and activations at least -128, so a pair of products is at most `2 * 3 * 128 = 768` in
/// magnitude, the four groups of a tile make 3072, and 10 tiles 30720 < 32768. (With undamaged codes it is a third less.)
const NARROW_TILES: usize = 10;

impl TernaryDot for Avx2 {
    const WIDTH: usize = 16;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn dot<const BLOCKS: usize, const TOKENS: usize>(
        w: *const u8,
        block_bytes: usize,
        x: *const u8,
        x_stride: usize,
        tiles: usize,
        ahead: *const u8,
        sums: &mut [[[i32; 16]; TOKENS]; BLOCKS],
    ) {
        let (mask, ones) = (_mm256_set1_epi8(3), _mm256_set1_epi16(1));
        for (block, sums) in sums.iter_mut().enumerate() {
            let mut wide = [[_mm256_setzero_si256(); 2]; TOKENS];
            let mut tile = 0;
            while tile < tiles {
                let stop = tiles.min(tile + NARROW_TILES);
                let mut narrow = [[_mm256_setzero_si256(); 2]; TOKENS];
                while tile < stop {
                    prefetch(ahead.wrapping_add((block * tiles + tile) * 64));
                    // SAFETY: the caller has 64 bytes of weights and 16 activations for each tile.
                    unsafe {
                        let w = w.add(block * block_bytes + tile * 64);
                        let mut codes = [_mm256_loadu_si256(w.cast()), _mm256_loadu_si256(w.add(32).cast())];
                        for group in 0..4 {
                            let low = [_mm256_and_si256(codes[0], mask), _mm256_and_si256(codes[1], mask)];
                            codes = [_mm256_srli_epi16::<2>(codes[0]), _mm256_srli_epi16::<2>(codes[1])];
                            for token in 0..TOKENS {
                                let x = x.add(token * x_stride + tile * 16 + 4 * group);
                                let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
                                for half in 0..2 {
                                    let pairs = _mm256_maddubs_epi16(low[half], x);
                                    narrow[token][half] = _mm256_add_epi16(narrow[token][half], pairs);
                                }
                            }
                        }
                    }
                    tile += 1;
                }
                for token in 0..TOKENS {
                    for half in 0..2 {
                        let fours = _mm256_madd_epi16(narrow[token][half], ones);
                        wide[token][half] = _mm256_add_epi32(wide[token][half], fours);
                    }
                }
            }
            for (sums, wide) in sums.iter_mut().zip(wide) {
                // SAFETY: there is room for 16 numbers.
                unsafe {
                    _mm256_storeu_si256(sums.as_mut_ptr().cast(), wide[0]);
                    _mm256_storeu_si256(sums.as_mut_ptr().add(8).cast(), wide[1]);
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn dot_one(w: *const u8, x: *const u8, tiles: usize, sums: &mut [i32; 16]) {
        let mut one = [[[0; 16]]];
        // SAFETY: as the caller promises.
        unsafe { Self::dot::<1, 1>(w, 0, x, 0, tiles, w.wrapping_add(AHEAD), &mut one) };
        *sums = one[0][0];
    }
}

/// Ternary weights with five codes a byte.
pub(crate) struct Avx2Base3;

/// Tiles in base 3 whose products are added up in 16 bits: a pair of products is at most `2 * 2 * 128`, the five groups of a tile make 2560,
/// and 12 tiles 30720 < 32768. No byte has a digit above 2.
const NARROW_TILES_BASE3: usize = 12;

impl TernaryDot for Avx2Base3 {
    const WIDTH: usize = 20;

    /// Comparisons are signed, so the bytes are turned by 128, which three times a byte keeps: `3 * 128 = 128` modulo 256.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn dot<const BLOCKS: usize, const TOKENS: usize>(
        w: *const u8,
        block_bytes: usize,
        x: *const u8,
        x_stride: usize,
        tiles: usize,
        ahead: *const u8,
        sums: &mut [[[i32; 16]; TOKENS]; BLOCKS],
    ) {
        let (turn, ones, zero) = (_mm256_set1_epi8(-128), _mm256_set1_epi16(1), _mm256_setzero_si256());
        let (below_one, below_two) =
            (_mm256_set1_epi8((DIGIT_ONE - 1) as i8 ^ -128), _mm256_set1_epi8((DIGIT_TWO - 1) as i8 ^ -128));
        for (block, sums) in sums.iter_mut().enumerate() {
            let mut wide = [[zero; 2]; TOKENS];
            let mut tile = 0;
            while tile < tiles {
                let stop = tiles.min(tile + NARROW_TILES_BASE3);
                let mut narrow = [[zero; 2]; TOKENS];
                while tile < stop {
                    prefetch(ahead.wrapping_add((block * tiles + tile) * 64));
                    // SAFETY: the caller has 64 bytes of weights and 20 activations for each tile.
                    unsafe {
                        let w = w.add(block * block_bytes + tile * 64);
                        let mut bytes = [
                            _mm256_xor_si256(_mm256_loadu_si256(w.cast()), turn),
                            _mm256_xor_si256(_mm256_loadu_si256(w.add(32).cast()), turn),
                        ];
                        for group in 0..5 {
                            let mut digits = [zero; 2];
                            for half in 0..2 {
                                let byte = bytes[half];
                                // A comparison that holds is -1.
                                let one = _mm256_cmpgt_epi8(byte, below_one);
                                let two = _mm256_cmpgt_epi8(byte, below_two);
                                digits[half] = _mm256_abs_epi8(_mm256_add_epi8(one, two));
                                bytes[half] = _mm256_add_epi8(_mm256_add_epi8(byte, byte), byte);
                            }
                            for token in 0..TOKENS {
                                let x = x.add(token * x_stride + tile * 20 + 4 * group);
                                let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
                                for half in 0..2 {
                                    let pairs = _mm256_maddubs_epi16(digits[half], x);
                                    narrow[token][half] = _mm256_add_epi16(narrow[token][half], pairs);
                                }
                            }
                        }
                    }
                    tile += 1;
                }
                for token in 0..TOKENS {
                    for half in 0..2 {
                        let fours = _mm256_madd_epi16(narrow[token][half], ones);
                        wide[token][half] = _mm256_add_epi32(wide[token][half], fours);
                    }
                }
            }
            for (sums, wide) in sums.iter_mut().zip(wide) {
                // SAFETY: there is room for 16 numbers.
                unsafe {
                    _mm256_storeu_si256(sums.as_mut_ptr().cast(), wide[0]);
                    _mm256_storeu_si256(sums.as_mut_ptr().add(8).cast(), wide[1]);
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn dot_one(w: *const u8, x: *const u8, tiles: usize, sums: &mut [i32; 16]) {
        let mut one = [[[0; 16]]];
        // SAFETY: as the caller promises.
        unsafe { Self::dot::<1, 1>(w, 0, x, 0, tiles, w.wrapping_add(AHEAD), &mut one) };
        *sums = one[0][0];
    }
}

impl ByteDot for Avx2 {
    const OFFSET: i32 = 0;

    /// Both operands are widened to 16 bits: with int8 on both sides, `vpmaddubsw` would saturate.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn dot_q8<const ROWS: usize, const TOKENS: usize, const FETCH: usize>(
        w: *const u8,
        w_stride: usize,
        x: *const u8,
        x_stride: usize,
        bytes: usize,
        ahead: *const u8,
        sums: &mut [[i32; TOKENS]; ROWS],
    ) {
        let zero = _mm256_setzero_si256();
        let mut acc = [[zero; TOKENS]; ROWS];
        let mut at = 0;
        while at < bytes {
            if at.is_multiple_of(64) {
                for line in 0..FETCH {
                    prefetch(ahead.wrapping_add(at * FETCH + line * 64));
                }
            }
            let mut wide = [zero; TOKENS];
            for token in 0..TOKENS {
                // SAFETY: the caller has `bytes` bytes in each row, a multiple of 16.
                wide[token] = unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(x.add(token * x_stride + at).cast())) };
            }
            for row in 0..ROWS {
                // SAFETY: the same.
                let weights = unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(w.add(row * w_stride + at).cast())) };
                for token in 0..TOKENS {
                    acc[row][token] = _mm256_add_epi32(acc[row][token], _mm256_madd_epi16(weights, wide[token]));
                }
            }
            at += 16;
        }
        for row in 0..ROWS {
            for token in 0..TOKENS {
                let mut parts = [0_i32; 8];
                // SAFETY: there is room for 8 numbers.
                unsafe { _mm256_storeu_si256(parts.as_mut_ptr().cast(), acc[row][token]) };
                sums[row][token] = parts.into_iter().fold(0, i32::wrapping_add);
            }
        }
    }

    /// As with AVX-512, 32 columns at a time. Nothing saturates: a pair of products is at most `2 * 15 * 128` in magnitude.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn dot_q4<const TOKENS: usize, const FIRST: bool>(
        row: GroupedRow,
        sums: &mut [f32; TOKENS],
        minima: &mut [f32; 16],
    ) {
        let GroupedRow { w, groups, group, x, x_stride, x_sums, ahead } = row;
        let (mask, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
        let mut acc = [[_mm256_setzero_ps(); 2]; TOKENS];
        let mut minimum = [_mm256_setzero_ps(); 2];
        for at_group in 0..groups {
            let record = at_group * (group / 2 + 8);
            let mut dots = [[_mm256_setzero_si256(); 2]; TOKENS];
            let mut at = 0;
            while at < group {
                if FIRST {
                    prefetch(ahead.wrapping_add(record + at / 2));
                }
                for half in 0..2 {
                    // SAFETY: the caller has a record of `group` codes there, a multiple of 64, and as many activations.
                    unsafe {
                        let codes = _mm_loadu_si128(w.add(record + at / 2 + 16 * half).cast());
                        let codes = _mm256_cvtepu8_epi16(codes);
                        let codes = _mm256_and_si256(_mm256_or_si256(codes, _mm256_slli_epi16::<4>(codes)), mask);
                        for token in 0..TOKENS {
                            let x = x.add(token * x_stride + at_group * group + at + 32 * half);
                            let pairs = _mm256_maddubs_epi16(codes, _mm256_loadu_si256(x.cast()));
                            let fours = _mm256_madd_epi16(pairs, ones);
                            dots[token][half] = _mm256_add_epi32(dots[token][half], fours);
                        }
                    }
                }
                at += 64;
            }
            // SAFETY: two numbers follow the codes; the caller has a row of sums for each group.
            unsafe {
                let numbers = w.add(record + group / 2);
                let scale = _mm256_set1_ps(numbers.cast::<f32>().read_unaligned());
                let least = _mm256_set1_ps(numbers.add(4).cast::<f32>().read_unaligned());
                for half in 0..2 {
                    for token in 0..TOKENS {
                        let dot = _mm256_cvtepi32_ps(dots[token][half]);
                        acc[token][half] = _mm256_fmadd_ps(dot, scale, acc[token][half]);
                    }
                    if FIRST {
                        let sums = _mm256_loadu_ps(x_sums.add(at_group).cast::<f32>().add(8 * half));
                        minimum[half] = _mm256_fmadd_ps(least, sums, minimum[half]);
                    }
                }
            }
        }
        for token in 0..TOKENS {
            sums[token] = sum_16(acc[token]);
        }
        if FIRST {
            // SAFETY: there is room for 16 numbers.
            unsafe {
                _mm256_storeu_ps(minima.as_mut_ptr(), minimum[0]);
                _mm256_storeu_ps(minima.as_mut_ptr().add(8), minimum[1]);
            }
        }
    }
}
