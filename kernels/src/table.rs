//! THE list of all kernels.
//!
//! A new kernel is a row here, and an entry point in the file of its ISA. Rows of a family that compute the same differ only in speed.

use std::ops::RangeInclusive;

use ir::DType;
use ir::DType::{BF16, F32, I32, Q4, Q8, T2};
use ir::packing::TernaryLayout::{Tile16, Tile16Base3};

use crate::desc::{Access, Arg, CpuKernel, Family, Grid, Isa, KernelDesc, Requires, Signature};

/// The row called `name`.
pub fn find(name: &str) -> Option<&'static KernelDesc> {
    TABLE.iter().find(|desc| desc.name == name)
}

const fn read(name: &'static str) -> Arg {
    Arg { name, access: Access::Read }
}

const fn write(name: &'static str) -> Arg {
    Arg { name, access: Access::Write }
}

/// `x`: q8 records `[n]` of `k` or f32 `[n, k]`; `w`: `[m, k]` in the layout of the row; `scale`: f32 `[m]`; `out`: f32 `[n, m]`.
static TERNARY_MATMUL: Signature = Signature {
    args: &[read("x"), read("w"), read("scale"), write("out")],
    dims: &["n", "k", "m"],
    grid: Grid::CeilDiv("m", 16),
};

/// `x`: f32 `[n, m]`; `w`: `[m, k]` in the layout of the row; `scale`: f32 `[m]`; `out`: f32 `[n, k]`.
static TERNARY_MATMUL_TRANSPOSED: Signature = Signature {
    args: &[read("x"), read("w"), read("scale"), write("out")],
    dims: &["n", "k", "m"],
    grid: Grid::CeilDiv("k", 16),
};

/// `w`: `[n, k]` in the layout of the row; `out`: bf16 `[n, k]`.
static UNPACK: Signature =
    Signature { args: &[read("w"), write("out")], dims: &["n", "k"], grid: Grid::CeilDiv("n", 16) };

/// `x`: f32 `[n, k]` and `w`: f32 or bf16 `[m, k]`, or q8 records of `k` on both sides; `out`: f32 `[n, m]`.
static DENSE_MATMUL: Signature =
    Signature { args: &[read("x"), read("w"), write("out")], dims: &["n", "k", "m"], grid: Grid::CeilDiv("m", 4) };

/// `x`: q8 records `[n]` of `k`; `w`: q4 records `[m, k / group]` of `group` columns each; `out`: f32 `[n, m]`. `group` is a multiple of 64, `k`
/// one of `group`, and there are at most [`crate::MAX_GROUPS`] groups in a row.
static GROUPED_MATMUL: Signature = Signature {
    args: &[read("x"), read("w"), write("out")],
    dims: &["n", "k", "m", "group"],
    grid: Grid::CeilDiv("m", 4),
};

/// `x`, `w`: bf16; `out`: f32 or bf16 `[n, m]`. `form` is the position in [`ir::op::matmul::Form::ALL`], which says how `x` and `w` lie; `k` is what is
/// contracted.
static GEMM: Signature = Signature {
    args: &[read("x"), read("w"), write("out")],
    dims: &["n", "k", "m", "form"],
    grid: Grid::CeilDiv("n", 16),
};

/// `q`: f32 `[n, heads, hd]`; `k`, `v`: caches `[seqs, kv_heads, ctx, hd]`; `seq`, `pos`: i32 `[n]`; `span`: i32 `[n, 2]`, first and
/// reach; `out`: f32 `[n, heads, hd]`. `scale_bits` are the bits of the f32 that scores are multiplied by.
static ATTENTION: Signature = Signature {
    args: &[read("q"), read("k"), read("v"), read("seq"), read("pos"), read("span"), write("out")],
    dims: &["n", "heads", "kv_heads", "hd", "ctx", "window", "sinks", "scale_bits"],
    grid: Grid::Product("n", "heads"),
};

/// `x`: f32, token `t` at element `t * x_stride`, `[kv_heads, hd]` each; `seq`, `pos`: i32 `[n]`, a place of its own for each token;
/// `cache`: `[seqs, kv_heads, ctx, hd]`. A token whose place is outside the cache is skipped.
static KV_APPEND: Signature = Signature {
    args: &[read("x"), read("seq"), read("pos"), Arg { name: "cache", access: Access::Update }],
    dims: &["n", "kv_heads", "hd", "ctx", "x_stride", "seqs"],
    grid: Grid::One("n"),
};

/// `q`, `k`, `v`: f32, token `t` at element `t * q_stride`, `t * k_stride`, `t * v_stride`, heads of `hd` numbers side by side; `cos`, `sin`: f32
/// `[n, hd / 2]`; `seq`, `pos`: i32 `[n]`, a place of its own for each token; `rotated`: f32 `[n, heads, hd]`; caches: `[seqs, kv_heads, ctx, hd]`. What
/// is rotated, and how, is said by [`ir::op::attention::Rope`]: two products and one sum, each rounded. A token whose place is outside the caches is not
/// appended.
static ROPE_APPEND: Signature = Signature {
    args: &[
        read("q"),
        read("k"),
        read("v"),
        read("cos"),
        read("sin"),
        read("seq"),
        read("pos"),
        write("rotated"),
        Arg { name: "k_cache", access: Access::Update },
        Arg { name: "v_cache", access: Access::Update },
    ],
    dims: &["n", "heads", "kv_heads", "hd", "ctx", "q_stride", "k_stride", "v_stride", "seqs"],
    grid: Grid::One("n"),
};

/// The arguments and dims of [`ROPE_APPEND`] but for `rotated`, and those of [`ATTENTION`] beside `q`, `k` and `v`: the queries are what would be rotated.
static ROPE_ATTENTION: Signature = Signature {
    args: &[
        read("q"),
        read("k"),
        read("v"),
        read("cos"),
        read("sin"),
        read("seq"),
        read("pos"),
        read("span"),
        Arg { name: "k_cache", access: Access::Update },
        Arg { name: "v_cache", access: Access::Update },
        write("out"),
    ],
    dims: &[
        "n",
        "heads",
        "kv_heads",
        "hd",
        "ctx",
        "window",
        "sinks",
        "scale_bits",
        "q_stride",
        "k_stride",
        "v_stride",
        "seqs",
    ],
    grid: Grid::Product("n", "heads"),
};

/// `logits`: f32 `[n, v]`; `settings`: f32 `[n, 4]`; `draws`: i32 `[n, 2]`; `out`: i32 `[n]`. What they mean is said by [`ir::op::sample::Sample`].
static SAMPLE: Signature = Signature {
    args: &[read("logits"), read("settings"), read("draws"), write("out")],
    dims: &["n", "v"],
    grid: Grid::One("n"),
};

/// `q`: f32 or bf16 `[n, heads, hd]`; `k`: of the same type, `[seqs, kv_heads, ctx, hd]`; `seq`, `pos`, `span` as for attention; `out`: f32 `[n, heads]`.
/// What is computed is said by [`ir::op::attention::AttentionLse`].
static ATTENTION_LSE: Signature = Signature {
    args: &[read("q"), read("k"), read("seq"), read("pos"), read("span"), write("out")],
    dims: &["n", "heads", "kv_heads", "hd", "ctx", "window", "sinks", "scale_bits", "seqs"],
    grid: Grid::Product("n", "heads"),
};

/// `q`, `dy`: f32 or bf16 `[n, heads, hd]`; `k`, `v`: of the same type, `[seqs, kv_heads, ctx, hd]`; `seq`, `pos`, `span` as for attention; `lse`, `delta`:
/// f32 `[n, heads]`; `out`: f32 of the shape of `q`. What is computed is said by [`ir::op::attention::AttentionQueryGradient`].
static QUERY_GRADIENT: Signature = Signature {
    args: &[
        read("q"),
        read("k"),
        read("v"),
        read("seq"),
        read("pos"),
        read("span"),
        read("dy"),
        read("lse"),
        read("delta"),
        write("out"),
    ],
    dims: ATTENTION_LSE.dims,
    grid: Grid::Product("n", "heads"),
};

/// As [`QUERY_GRADIENT`] for the keys and the values: `out` is f32 `[2, seqs, kv_heads, ctx, hd]`. What is computed is said by
/// [`ir::op::attention::AttentionCacheGradient`].
static CACHE_GRADIENT: Signature =
    Signature { args: QUERY_GRADIENT.args, dims: ATTENTION_LSE.dims, grid: Grid::Product("seqs", "kv_heads") };

/// `x`: f32 `[n, width]`; `ids`: i32 `[n]`; `out`: f32 `[rows, width]`, the sums of the rows of each id.
static SCATTER_ADD: Signature = Signature {
    args: &[read("x"), read("ids"), write("out")],
    dims: &["n", "rows", "width"],
    grid: Grid::CeilDiv("rows", 64),
};

/// `w`: `[n, k]`; `out`: f32 `[n]`, the mean of the magnitudes of each row, and at least the f32 of `least_bits`.
static MEAN_ABS: Signature =
    Signature { args: &[read("w"), write("out")], dims: &["n", "k", "least_bits"], grid: Grid::One("n") };

/// The signature that the rows of a family share; 4-bit weights have groups, and so a dim of their own.
pub(crate) const fn signature(family: Family, inputs: &[DType]) -> &'static Signature {
    match (family, inputs) {
        (Family::TernaryMatmul, _) => &TERNARY_MATMUL,
        (Family::TernaryMatmulTransposed, _) => &TERNARY_MATMUL_TRANSPOSED,
        (Family::Unpack, _) => &UNPACK,
        (Family::DenseMatmul, [_, Q4]) => &GROUPED_MATMUL,
        (Family::DenseMatmul, _) => &DENSE_MATMUL,
        (Family::Gemm, _) => &GEMM,
        (Family::Attention, _) => &ATTENTION,
        (Family::KvAppend, _) => &KV_APPEND,
        (Family::RopeAppend, _) => &ROPE_APPEND,
        (Family::RopeAttention, _) => &ROPE_ATTENTION,
        (Family::Sample, _) => &SAMPLE,
        (Family::AttentionLse, _) => &ATTENTION_LSE,
        (Family::QueryGradient, _) => &QUERY_GRADIENT,
        (Family::CacheGradient, _) => &CACHE_GRADIENT,
        (Family::ScatterAdd, _) => &SCATTER_ADD,
        (Family::MeanAbs, _) => &MEAN_ABS,
    }
}

/// Any number of tokens, none included.
pub(crate) const ANY: RangeInclusive<u64> = 0..=u64::MAX;

/// A row: its entry point, and what a program would otherwise have to read out of the name.
macro_rules! row {
    ($module:ident :: $name:ident, $isa:ident, $family:ident, $inputs:expr => $output:expr, $layout:expr, $tokens:expr) => {
        KernelDesc {
            name: stringify!($name),
            family: Family::$family,
            inputs: &$inputs,
            output: $output,
            layout: $layout,
            tokens: $tokens,
            requires: Requires { isa: Isa::$isa },
            signature: signature(Family::$family, &$inputs),
            entry: entry!($module $name),
        }
    };
}

/// The function, if this program is built for its architecture.
macro_rules! entry {
    (scalar $name:ident) => {
        Some(crate::cpu::scalar::$name as CpuKernel)
    };
    (neon $name:ident) => {{
        #[cfg(target_arch = "aarch64")]
        let entry = Some(crate::cpu::aarch64::neon::$name as CpuKernel);
        #[cfg(not(target_arch = "aarch64"))]
        let entry = None;
        entry
    }};
    ($module:ident $name:ident) => {{
        #[cfg(target_arch = "x86_64")]
        let entry = Some(crate::cpu::x86_64::$module::$name as CpuKernel);
        #[cfg(not(target_arch = "x86_64"))]
        let entry = None;
        entry
    }};
}

/// All kernels of this version.
#[rustfmt::skip]
pub static TABLE: &[KernelDesc] = &[
    row!(scalar::ternary_gemv_q8xt2_f32__scalar__r16, Scalar, TernaryMatmul, [Q8, T2] => F32, Some(Tile16), 1..=1),
    row!(avx2::ternary_gemv_q8xt2_f32__avx2__r16, Avx2, TernaryMatmul, [Q8, T2] => F32, Some(Tile16), 1..=1),
    row!(avx512_vnni::ternary_gemv_q8xt2_f32__avx512vnni__r16, Avx512Vnni, TernaryMatmul, [Q8, T2] => F32, Some(Tile16), 1..=1),
    row!(neon::ternary_gemv_q8xt2_f32__neon__r16, Neon, TernaryMatmul, [Q8, T2] => F32, Some(Tile16), 1..=1),
    row!(scalar::ternary_gemm_q8xt2_f32__scalar__r16, Scalar, TernaryMatmul, [Q8, T2] => F32, Some(Tile16), ANY),
    row!(avx2::ternary_gemm_q8xt2_f32__avx2__r16, Avx2, TernaryMatmul, [Q8, T2] => F32, Some(Tile16), ANY),
    row!(avx512_vnni::ternary_gemm_q8xt2_f32__avx512vnni__r16, Avx512Vnni, TernaryMatmul, [Q8, T2] => F32, Some(Tile16), ANY),
    row!(neon::ternary_gemm_q8xt2_f32__neon__r16, Neon, TernaryMatmul, [Q8, T2] => F32, Some(Tile16), ANY),
    row!(scalar::ternary_gemv_q8xt2b3_f32__scalar__r16, Scalar, TernaryMatmul, [Q8, T2] => F32, Some(Tile16Base3), 1..=1),
    row!(avx2::ternary_gemv_q8xt2b3_f32__avx2__r16, Avx2, TernaryMatmul, [Q8, T2] => F32, Some(Tile16Base3), 1..=1),
    row!(avx512_vnni::ternary_gemv_q8xt2b3_f32__avx512vnni__r16, Avx512Vnni, TernaryMatmul, [Q8, T2] => F32, Some(Tile16Base3), 1..=1),
    row!(neon::ternary_gemv_q8xt2b3_f32__neon__r16, Neon, TernaryMatmul, [Q8, T2] => F32, Some(Tile16Base3), 1..=1),
    row!(scalar::ternary_gemm_q8xt2b3_f32__scalar__r16, Scalar, TernaryMatmul, [Q8, T2] => F32, Some(Tile16Base3), ANY),
    row!(avx2::ternary_gemm_q8xt2b3_f32__avx2__r16, Avx2, TernaryMatmul, [Q8, T2] => F32, Some(Tile16Base3), ANY),
    row!(avx512_vnni::ternary_gemm_q8xt2b3_f32__avx512vnni__r16, Avx512Vnni, TernaryMatmul, [Q8, T2] => F32, Some(Tile16Base3), ANY),
    row!(neon::ternary_gemm_q8xt2b3_f32__neon__r16, Neon, TernaryMatmul, [Q8, T2] => F32, Some(Tile16Base3), ANY),
    row!(scalar::ternary_matmul_f32xt2_f32__scalar__r16, Scalar, TernaryMatmul, [F32, T2] => F32, Some(Tile16), ANY),
    row!(avx2::ternary_matmul_f32xt2_f32__avx2__r16, Avx2, TernaryMatmul, [F32, T2] => F32, Some(Tile16), ANY),
    row!(avx512_vnni::ternary_matmul_f32xt2_f32__avx512vnni__r16, Avx512Vnni, TernaryMatmul, [F32, T2] => F32, Some(Tile16), ANY),
    row!(neon::ternary_matmul_f32xt2_f32__neon__r16, Neon, TernaryMatmul, [F32, T2] => F32, Some(Tile16), ANY),
    row!(scalar::ternary_matmul_transposed_f32xt2_f32__scalar__c16, Scalar, TernaryMatmulTransposed, [F32, T2] => F32, Some(Tile16), ANY),
    row!(scalar::unpack_t2_bf16__scalar__r16, Scalar, Unpack, [T2] => BF16, Some(Tile16), ANY),
    row!(scalar::dense_matmul_f32xf32_f32__scalar__r4, Scalar, DenseMatmul, [F32, F32] => F32, None, ANY),
    row!(avx2::dense_matmul_f32xf32_f32__avx2__r4, Avx2, DenseMatmul, [F32, F32] => F32, None, ANY),
    row!(avx512_vnni::dense_matmul_f32xf32_f32__avx512vnni__r4, Avx512Vnni, DenseMatmul, [F32, F32] => F32, None, ANY),
    row!(neon::dense_matmul_f32xf32_f32__neon__r4, Neon, DenseMatmul, [F32, F32] => F32, None, ANY),
    row!(scalar::dense_matmul_f32xbf16_f32__scalar__r4, Scalar, DenseMatmul, [F32, BF16] => F32, None, ANY),
    row!(avx2::dense_matmul_f32xbf16_f32__avx2__r4, Avx2, DenseMatmul, [F32, BF16] => F32, None, ANY),
    row!(avx512_vnni::dense_matmul_f32xbf16_f32__avx512vnni__r4, Avx512Vnni, DenseMatmul, [F32, BF16] => F32, None, ANY),
    row!(neon::dense_matmul_f32xbf16_f32__neon__r4, Neon, DenseMatmul, [F32, BF16] => F32, None, ANY),
    row!(scalar::dense_matmul_q8xq8_f32__scalar__r4, Scalar, DenseMatmul, [Q8, Q8] => F32, None, ANY),
    row!(avx2::dense_matmul_q8xq8_f32__avx2__r4, Avx2, DenseMatmul, [Q8, Q8] => F32, None, ANY),
    row!(avx512_vnni::dense_matmul_q8xq8_f32__avx512vnni__r4, Avx512Vnni, DenseMatmul, [Q8, Q8] => F32, None, ANY),
    row!(neon::dense_matmul_q8xq8_f32__neon__r4, Neon, DenseMatmul, [Q8, Q8] => F32, None, ANY),
    row!(scalar::dense_matmul_q8xq4_f32__scalar__r4, Scalar, DenseMatmul, [Q8, Q4] => F32, None, ANY),
    row!(avx2::dense_matmul_q8xq4_f32__avx2__r4, Avx2, DenseMatmul, [Q8, Q4] => F32, None, ANY),
    row!(avx512_vnni::dense_matmul_q8xq4_f32__avx512vnni__r4, Avx512Vnni, DenseMatmul, [Q8, Q4] => F32, None, ANY),
    row!(neon::dense_matmul_q8xq4_f32__neon__r4, Neon, DenseMatmul, [Q8, Q4] => F32, None, ANY),
    row!(scalar::attention_f32xf32_f32__scalar__t64, Scalar, Attention, [F32, F32, F32] => F32, None, ANY),
    row!(avx2::attention_f32xf32_f32__avx2__t64, Avx2, Attention, [F32, F32, F32] => F32, None, ANY),
    row!(avx512_vnni::attention_f32xf32_f32__avx512vnni__t64, Avx512Vnni, Attention, [F32, F32, F32] => F32, None, ANY),
    row!(neon::attention_f32xf32_f32__neon__t64, Neon, Attention, [F32, F32, F32] => F32, None, ANY),
    row!(scalar::attention_f32xbf16_f32__scalar__t64, Scalar, Attention, [F32, BF16, BF16] => F32, None, ANY),
    row!(avx2::attention_f32xbf16_f32__avx2__t64, Avx2, Attention, [F32, BF16, BF16] => F32, None, ANY),
    row!(avx512_vnni::attention_f32xbf16_f32__avx512vnni__t64, Avx512Vnni, Attention, [F32, BF16, BF16] => F32, None, ANY),
    row!(neon::attention_f32xbf16_f32__neon__t64, Neon, Attention, [F32, BF16, BF16] => F32, None, ANY),
    row!(scalar::attention_f32xq8q4_f32__scalar__t64, Scalar, Attention, [F32, Q8, Q4] => F32, None, ANY),
    row!(avx2::attention_f32xq8q4_f32__avx2__t64, Avx2, Attention, [F32, Q8, Q4] => F32, None, ANY),
    row!(avx512_vnni::attention_f32xq8q4_f32__avx512vnni__t64, Avx512Vnni, Attention, [F32, Q8, Q4] => F32, None, ANY),
    row!(neon::attention_f32xq8q4_f32__neon__t64, Neon, Attention, [F32, Q8, Q4] => F32, None, ANY),
    row!(scalar::attention_f32xq4_f32__scalar__t64, Scalar, Attention, [F32, Q4, Q4] => F32, None, ANY),
    row!(avx2::attention_f32xq4_f32__avx2__t64, Avx2, Attention, [F32, Q4, Q4] => F32, None, ANY),
    row!(avx512_vnni::attention_f32xq4_f32__avx512vnni__t64, Avx512Vnni, Attention, [F32, Q4, Q4] => F32, None, ANY),
    row!(neon::attention_f32xq4_f32__neon__t64, Neon, Attention, [F32, Q4, Q4] => F32, None, ANY),
    row!(scalar::kv_append_f32_f32__scalar__t1, Scalar, KvAppend, [F32] => F32, None, ANY),
    row!(scalar::kv_append_f32_bf16__scalar__t1, Scalar, KvAppend, [F32] => BF16, None, ANY),
    row!(scalar::kv_append_f32_q8__scalar__t1, Scalar, KvAppend, [F32] => Q8, None, ANY),
    row!(scalar::kv_append_f32_q4__scalar__t1, Scalar, KvAppend, [F32] => Q4, None, ANY),
    row!(scalar::sample_f32_i32__scalar__t1, Scalar, Sample, [F32] => I32, None, ANY),
    row!(scalar::gemm_bf16xbf16_f32__scalar__r16, Scalar, Gemm, [BF16, BF16] => F32, None, ANY),
    row!(scalar::gemm_bf16xbf16_bf16__scalar__r16, Scalar, Gemm, [BF16, BF16] => BF16, None, ANY),
    row!(scalar::attention_lse_f32xf32_f32__scalar__t64, Scalar, AttentionLse, [F32, F32] => F32, None, ANY),
    row!(avx2::attention_lse_f32xf32_f32__avx2__t64, Avx2, AttentionLse, [F32, F32] => F32, None, ANY),
    row!(avx512_vnni::attention_lse_f32xf32_f32__avx512vnni__t64, Avx512Vnni, AttentionLse, [F32, F32] => F32, None, ANY),
    row!(neon::attention_lse_f32xf32_f32__neon__t64, Neon, AttentionLse, [F32, F32] => F32, None, ANY),
    row!(scalar::attention_lse_bf16xbf16_f32__scalar__t64, Scalar, AttentionLse, [BF16, BF16] => F32, None, ANY),
    row!(scalar::query_gradient_f32xf32_f32__scalar__t1, Scalar, QueryGradient, [F32, F32] => F32, None, ANY),
    row!(avx2::query_gradient_f32xf32_f32__avx2__t1, Avx2, QueryGradient, [F32, F32] => F32, None, ANY),
    row!(avx512_vnni::query_gradient_f32xf32_f32__avx512vnni__t1, Avx512Vnni, QueryGradient, [F32, F32] => F32, None, ANY),
    row!(neon::query_gradient_f32xf32_f32__neon__t1, Neon, QueryGradient, [F32, F32] => F32, None, ANY),
    row!(scalar::query_gradient_bf16xbf16_f32__scalar__t1, Scalar, QueryGradient, [BF16, BF16] => F32, None, ANY),
    row!(scalar::cache_gradient_f32xf32_f32__scalar__t1, Scalar, CacheGradient, [F32, F32] => F32, None, ANY),
    row!(avx2::cache_gradient_f32xf32_f32__avx2__t1, Avx2, CacheGradient, [F32, F32] => F32, None, ANY),
    row!(avx512_vnni::cache_gradient_f32xf32_f32__avx512vnni__t1, Avx512Vnni, CacheGradient, [F32, F32] => F32, None, ANY),
    row!(neon::cache_gradient_f32xf32_f32__neon__t1, Neon, CacheGradient, [F32, F32] => F32, None, ANY),
    row!(scalar::cache_gradient_bf16xbf16_f32__scalar__t1, Scalar, CacheGradient, [BF16, BF16] => F32, None, ANY),
    row!(scalar::scatter_add_f32_f32__scalar__r64, Scalar, ScatterAdd, [F32] => F32, None, ANY),
    row!(scalar::mean_abs_f32_f32__scalar__r1, Scalar, MeanAbs, [F32] => F32, None, ANY),
    row!(scalar::mean_abs_bf16_f32__scalar__r1, Scalar, MeanAbs, [BF16] => F32, None, ANY),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::cpu;
    use crate::desc::Arch;
    use crate::error::KernelError;
    use crate::name::KernelName;

    #[test]
    fn every_name_is_unique_and_says_what_its_row_says() {
        let mut names = HashSet::new();
        for desc in TABLE {
            assert!(names.insert(desc.name), "{} is there twice", desc.name);
            let name: KernelName = desc.name.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(name.to_string(), desc.name);
            assert_eq!((name.isa, name.output), (desc.requires.isa, desc.output), "{}", desc.name);
            let mut dtypes = name.dtypes();
            if desc.family == Family::Attention && dtypes.len() == 2 {
                dtypes.push(dtypes[1]);
            }
            assert_eq!(dtypes, desc.inputs, "{}", desc.name);
            assert_eq!(name.layout, desc.layout, "{}", desc.name);
            let op = match desc.family {
                Family::TernaryMatmul if *desc.tokens.end() == 1 => "ternary_gemv",
                Family::TernaryMatmul if desc.inputs[0] == Q8 => "ternary_gemm",
                Family::TernaryMatmul => "ternary_matmul",
                Family::TernaryMatmulTransposed => "ternary_matmul_transposed",
                Family::Unpack => "unpack",
                Family::DenseMatmul => "dense_matmul",
                Family::Gemm => "gemm",
                Family::Attention => "attention",
                Family::KvAppend => "kv_append",
                Family::RopeAppend => "rope_append",
                Family::RopeAttention => "rope_attention",
                Family::Sample => "sample",
                Family::AttentionLse => "attention_lse",
                Family::QueryGradient => "query_gradient",
                Family::CacheGradient => "cache_gradient",
                Family::ScatterAdd => "scatter_add",
                Family::MeanAbs => "mean_abs",
            };
            assert_eq!(name.op, op);
        }
    }

    #[test]
    fn the_grid_of_a_row_is_over_its_dims() {
        for desc in TABLE {
            let used = match desc.signature.grid {
                Grid::CeilDiv(dim, _) | Grid::One(dim) => vec![dim],
                Grid::Product(left, right) => vec![left, right],
            };
            assert!(used.iter().all(|dim| desc.signature.dims.contains(dim)), "{}", desc.name);
        }
    }

    #[test]
    fn every_row_has_a_scalar_row_that_computes_the_same() {
        for desc in TABLE {
            let mut name: KernelName = desc.name.parse().unwrap_or_else(|error| panic!("{error}"));
            name.isa = Isa::Scalar;
            assert!(find(&name.to_string()).is_some(), "{} has no {name}", desc.name);
        }
    }

    #[test]
    fn a_kernel_is_handed_out_only_to_a_cpu_that_has_what_it_needs() {
        for desc in TABLE {
            let resolved = cpu::resolve(desc.name);
            if desc.requires.is_available() {
                assert!(resolved.is_ok(), "{}", desc.name);
            } else if desc.requires.isa.arch() == Arch::host() {
                assert!(matches!(resolved, Err(KernelError::Features { .. })), "{}", desc.name);
            } else {
                assert!(matches!(resolved, Err(KernelError::Architecture { .. })), "{}", desc.name);
            }
        }
        assert!(matches!(cpu::resolve("nothing_f32_f32__scalar__t1"), Err(KernelError::Unknown { .. })));
    }
}
