//! The kernels without vector instructions: what runs everywhere, and what the others are tested against, bit for bit.

use std::array::from_fn;

use half::bf16;

use crate::cpu::entries;
use crate::cpu::generic::attention::attention;
use crate::cpu::generic::cache_row::{Bf16Row, F32Row, Q4Row, Q8Row};
use crate::cpu::generic::{
    attention_gradient, dense, dense_q4, dense_q8, gemm, kv_append, mean_abs, sample, scatter_add, ternary_f32,
    ternary_q8, ternary_transposed, unpack,
};
use crate::cpu::lanes::{ByteDot, GroupedRow, LANES, Lanes, TernaryDot};
use crate::math;

entries! {
    features none:
    ternary_gemv_q8xt2_f32__scalar__r16 = ternary_q8::gemv::<Scalar>;
    ternary_gemm_q8xt2_f32__scalar__r16 = ternary_q8::gemm::<Scalar, 1, 4>;
    ternary_gemv_q8xt2b3_f32__scalar__r16 = ternary_q8::gemv::<ScalarBase3>;
    ternary_gemm_q8xt2b3_f32__scalar__r16 = ternary_q8::gemm::<ScalarBase3, 1, 4>;
    ternary_matmul_f32xt2_f32__scalar__r16 = ternary_f32::matmul::<Scalar, 2, 1>;
    ternary_matmul_transposed_f32xt2_f32__scalar__c16 = ternary_transposed::matmul;
    unpack_t2_bf16__scalar__r16 = unpack::unpack;
    dense_matmul_f32xf32_f32__scalar__r4 = dense::matmul::<Scalar, f32, 1, 1>;
    dense_matmul_f32xbf16_f32__scalar__r4 = dense::matmul::<Scalar, bf16, 1, 1>;
    dense_matmul_q8xq8_f32__scalar__r4 = dense_q8::matmul::<Scalar, 4>;
    dense_matmul_q8xq4_f32__scalar__r4 = dense_q4::matmul::<Scalar, 4>;
    gemm_bf16xbf16_f32__scalar__r16 = gemm::gemm::<f32>;
    gemm_bf16xbf16_bf16__scalar__r16 = gemm::gemm::<bf16>;
    attention_f32xf32_f32__scalar__t64 = attention::<Scalar, F32Row, F32Row, 1, 1, false>;
    attention_f32xbf16_f32__scalar__t64 = attention::<Scalar, Bf16Row, Bf16Row, 1, 1, false>;
    attention_f32xq8q4_f32__scalar__t64 = attention::<Scalar, Q8Row, Q4Row, 1, 1, false>;
    attention_f32xq4_f32__scalar__t64 = attention::<Scalar, Q4Row, Q4Row, 1, 1, false>;
    kv_append_f32_f32__scalar__t1 = kv_append::append_f32;
    kv_append_f32_bf16__scalar__t1 = kv_append::append_bf16;
    kv_append_f32_q8__scalar__t1 = kv_append::append_q8;
    kv_append_f32_q4__scalar__t1 = kv_append::append_q4;
    sample_f32_i32__scalar__t1 = sample::sample;
    attention_lse_f32xf32_f32__scalar__t64 = attention_gradient::lse::<f32>;
    query_gradient_f32xf32_f32__scalar__t1 = attention_gradient::queries::<f32>;
    cache_gradient_f32xf32_f32__scalar__t1 = attention_gradient::caches::<f32>;
    attention_lse_bf16xbf16_f32__scalar__t64 = attention_gradient::lse::<bf16>;
    query_gradient_bf16xbf16_f32__scalar__t1 = attention_gradient::queries::<bf16>;
    cache_gradient_bf16xbf16_f32__scalar__t1 = attention_gradient::caches::<bf16>;
    scatter_add_f32_f32__scalar__r64 = scatter_add::scatter_add;
    mean_abs_f32_f32__scalar__r1 = mean_abs::of_f32;
    mean_abs_bf16_f32__scalar__r1 = mean_abs::of_bf16;
}

/// Lanes as an array.
pub(crate) struct Scalar;

impl Lanes for Scalar {
    type Block = [f32; LANES];

    unsafe fn splat(value: f32) -> Self::Block {
        [value; LANES]
    }

    unsafe fn splat4(from: *const f32) -> Self::Block {
        // SAFETY: the caller has 4 numbers there.
        let four = unsafe { from.cast::<[f32; 4]>().read() };
        from_fn(|lane| four[lane % 4])
    }

    unsafe fn load(from: *const f32) -> Self::Block {
        // SAFETY: the caller has 32 numbers there.
        unsafe { from.cast::<[f32; LANES]>().read() }
    }

    unsafe fn load_bf16(from: *const u16) -> Self::Block {
        // SAFETY: the caller has 32 numbers there.
        let bits = unsafe { from.cast::<[u16; LANES]>().read() };
        bits.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }

    unsafe fn load_i8(from: *const u8) -> Self::Block {
        // SAFETY: the caller has 32 bytes there.
        let codes = unsafe { from.cast::<[i8; LANES]>().read() };
        codes.map(f32::from)
    }

    unsafe fn load_u4(from: *const u8) -> Self::Block {
        // SAFETY: the caller has 16 bytes there.
        let bytes = unsafe { from.cast::<[u8; LANES / 2]>().read() };
        from_fn(|lane| f32::from((bytes[lane / 2] >> (4 * (lane % 2))) & 15))
    }

    unsafe fn load_t2(from: *const u8, group: usize) -> Self::Block {
        // SAFETY: the caller has 32 bytes there.
        let bytes = unsafe { from.cast::<[u8; LANES]>().read() };
        bytes.map(|byte| f32::from((byte >> (2 * group)) & 3) - 1.0)
    }

    unsafe fn store(to: *mut f32, block: Self::Block) {
        // SAFETY: the caller has room for 32 numbers there.
        unsafe { to.cast::<[f32; LANES]>().write(block) };
    }

    unsafe fn add(a: Self::Block, b: Self::Block) -> Self::Block {
        from_fn(|lane| a[lane] + b[lane])
    }

    unsafe fn mul(a: Self::Block, b: Self::Block) -> Self::Block {
        from_fn(|lane| a[lane] * b[lane])
    }

    unsafe fn mul_add(a: Self::Block, b: Self::Block, c: Self::Block) -> Self::Block {
        from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }

    unsafe fn max(a: Self::Block, b: Self::Block) -> Self::Block {
        from_fn(|lane| if b[lane] < a[lane] { a[lane] } else { b[lane] })
    }

    unsafe fn min(a: Self::Block, b: Self::Block) -> Self::Block {
        from_fn(|lane| if a[lane] < b[lane] { a[lane] } else { b[lane] })
    }

    unsafe fn round(a: Self::Block) -> Self::Block {
        a.map(f32::round_ties_even)
    }

    unsafe fn mul_pow2(p: Self::Block, n: Self::Block) -> Self::Block {
        from_fn(|lane| math::mul_pow2(p[lane], n[lane]))
    }

    unsafe fn sum(mut a: Self::Block) -> f32 {
        for distance in [16, 8, 4, 2, 1] {
            for lane in 0..distance {
                a[lane] += a[lane + distance];
            }
        }
        a[0]
    }
}

impl TernaryDot for Scalar {
    const WIDTH: usize = 16;

    unsafe fn dot<const BLOCKS: usize, const TOKENS: usize>(
        w: *const u8,
        block_bytes: usize,
        x: *const u8,
        x_stride: usize,
        tiles: usize,
        _ahead: *const u8,
        sums: &mut [[[i32; 16]; TOKENS]; BLOCKS],
    ) {
        for (block, sums) in sums.iter_mut().enumerate() {
            for (token, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the caller has `BLOCKS` blocks and `TOKENS` rows, these distances apart.
                unsafe { Self::dot_one(w.add(block * block_bytes), x.add(token * x_stride), tiles, sums) };
            }
        }
    }

    unsafe fn dot_one(w: *const u8, x: *const u8, tiles: usize, sums: &mut [i32; 16]) {
        *sums = [0; 16];
        for tile in 0..tiles {
            // SAFETY: the caller has 64 bytes of weights and 16 activations for each tile.
            let (codes, x) =
                unsafe { (w.add(tile * 64).cast::<[u8; 64]>().read(), x.add(tile * 16).cast::<[i8; 16]>().read()) };
            for (row, sum) in sums.iter_mut().enumerate() {
                for col in 0..16 {
                    let code = (codes[4 * row + col % 4] >> (2 * (col / 4))) & 3;
                    *sum += i32::from(code) * i32::from(x[col]);
                }
            }
        }
    }
}

/// Ternary weights with five codes a byte.
pub(crate) struct ScalarBase3;

impl TernaryDot for ScalarBase3 {
    const WIDTH: usize = 20;

    unsafe fn dot<const BLOCKS: usize, const TOKENS: usize>(
        w: *const u8,
        block_bytes: usize,
        x: *const u8,
        x_stride: usize,
        tiles: usize,
        _ahead: *const u8,
        sums: &mut [[[i32; 16]; TOKENS]; BLOCKS],
    ) {
        for (block, sums) in sums.iter_mut().enumerate() {
            for (token, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the caller has `BLOCKS` blocks and `TOKENS` rows, these distances apart.
                unsafe { Self::dot_one(w.add(block * block_bytes), x.add(token * x_stride), tiles, sums) };
            }
        }
    }

    unsafe fn dot_one(w: *const u8, x: *const u8, tiles: usize, sums: &mut [i32; 16]) {
        *sums = [0; 16];
        for tile in 0..tiles {
            // SAFETY: the caller has 64 bytes of weights and 20 activations for each tile.
            let (bytes, x) =
                unsafe { (w.add(tile * 64).cast::<[u8; 64]>().read(), x.add(tile * 20).cast::<[i8; 20]>().read()) };
            for (at, &byte) in bytes.iter().enumerate() {
                let mut rest = u32::from(byte);
                for group in 0..5 {
                    let digit = (3 * rest) >> 8;
                    rest = (3 * rest) & 0xFF;
                    sums[at / 4] += digit as i32 * i32::from(x[4 * group + at % 4]);
                }
            }
        }
    }
}

impl ByteDot for Scalar {
    const OFFSET: i32 = 0;

    unsafe fn dot_q8<const ROWS: usize, const TOKENS: usize, const FETCH: usize>(
        w: *const u8,
        w_stride: usize,
        x: *const u8,
        x_stride: usize,
        bytes: usize,
        _ahead: *const u8,
        sums: &mut [[i32; TOKENS]; ROWS],
    ) {
        for row in 0..ROWS {
            for token in 0..TOKENS {
                // SAFETY: the caller has these rows, these distances apart.
                let (w, x) = unsafe {
                    let w = std::slice::from_raw_parts(w.add(row * w_stride).cast::<i8>(), bytes);
                    (w, std::slice::from_raw_parts(x.add(token * x_stride).cast::<i8>(), bytes))
                };
                let products = w.iter().zip(x).map(|(&w, &x)| i32::from(w) * i32::from(x));
                sums[row][token] = products.fold(0, i32::wrapping_add);
            }
        }
    }

    unsafe fn dot_q4<const TOKENS: usize, const FIRST: bool>(
        row: GroupedRow,
        sums: &mut [f32; TOKENS],
        minima: &mut [f32; 16],
    ) {
        let GroupedRow { w, groups, group, x, x_stride, x_sums, ahead: _ } = row;
        let mut lanes = [[0.0_f32; 16]; TOKENS];
        for at in 0..groups {
            // SAFETY: the caller has a record of `group` codes and two numbers there.
            let (codes, numbers) = unsafe {
                let record = w.add(at * (group / 2 + 8));
                let codes = std::slice::from_raw_parts(record, group / 2);
                (codes, record.add(group / 2).cast::<[f32; 2]>().read_unaligned())
            };
            for token in 0..TOKENS {
                // SAFETY: the caller has codes for all columns of all groups.
                let x = unsafe { std::slice::from_raw_parts(x.add(token * x_stride + at * group).cast::<i8>(), group) };
                let mut dots = [0_i32; 16];
                for (col, &x) in x.iter().enumerate() {
                    let code = (codes[col / 2] >> (4 * (col % 2))) & 15;
                    dots[col % 64 / 4] += i32::from(code) * i32::from(x);
                }
                for (lane, dot) in lanes[token].iter_mut().zip(dots) {
                    *lane = (dot as f32).mul_add(numbers[0], *lane);
                }
            }
            if FIRST {
                // SAFETY: the caller has a row of sums for each group.
                let sums = unsafe { *x_sums.add(at) };
                for (minimum, sum) in minima.iter_mut().zip(sums) {
                    *minimum = numbers[1].mul_add(sum, *minimum);
                }
            }
        }
        for (lanes, sum) in lanes.iter_mut().zip(sums) {
            for distance in [8, 4, 2, 1] {
                for lane in 0..distance {
                    lanes[lane] += lanes[lane + distance];
                }
            }
            *sum = lanes[0];
        }
    }
}
