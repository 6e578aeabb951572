//! How numbers are crunched: the microkernels, and the one table that describes them.
//!
//! # What a kernel is
//!
//! A kernel is a row of [`TABLE`]: a [`KernelDesc`] says what it computes (family, dtypes, packing), which sizes it takes, which CPU it
//! needs, which arguments and dims it is called with, and how its work is cut into a grid. Selection, conformance tests and reports iterate
//! over the table; every row is listed on every host, so that a compiler can choose for a CPU that it does not run on.
//!
//! # Names
//!
//! The name of a kernel is the name of its function, of its row, of its entry in a plan and of its line in a trace:
//!
//! ```text
//! <op>_<operands>_<out>__<isa>__<tile>
//!
//! op        snake case; says the family, and for ternary matmuls whether one token (gemv) or any number (gemm)
//! operands  dtypes joined by `x`: activations first, then weights, or K and V; `q8q4` is K in q8 and V in q4, a single one is both;
//!           `t2` are ternary weights of 2 bits (tile16), `t2b3` of 1.6 bits (five in a byte, in base 3: tile16_base3)
//! out       dtype of what is written
//! isa       scalar, avx2, avx512vnni, neon; in the table of [`cuda`] cuda, sm80, sm90a, ...
//! tile      letters and numbers of what one inner step covers: r = rows of the weights, t = tokens or keys; then, where rows differ in no more,
//!           how many work on it: w = warps, c = blocks of a cluster
//! ```
//!
//! [`KernelName`] parses it, and a test holds every row to it.
//!
//! # Calling convention, and the safety contract
//!
//! Every CPU kernel is a [`CpuKernel`], `unsafe fn(args, dims, begin, end)`. It computes the units `begin..end` of its grid
//! ([`Grid::units`]). Units never share an output byte, so the units of one grid may run on any threads, in any order, cut anywhere. A
//! kernel allocates nothing, keeps nothing, and uses a bounded amount of stack (under 64 KiB). The caller promises that:
//!
//! 1. the running CPU has what the row [`Requires`];
//! 2. `args` points to one base pointer for each name of [`Signature::args`], and `dims` to one value for each of [`Signature::dims`], both
//!    in that order;
//! 3. each base pointer is valid for the bytes that the dims imply, for reads or writes as [`Access`] says, during the whole call, and no
//!    written buffer overlaps another argument;
//! 4. f32 and i32 buffers are aligned to 4 bytes and bf16 buffers to 2; packed weights and records need no alignment;
//! 5. every dim is at least 0 and within the limits that the row's family states ([`MAX_HEAD_DIM`], [`MAX_GROUPS`], [`MAX_K`]), and
//!    `0 <= begin <= end <= Grid::units(..)`;
//! 6. no other call writes the same units at the same time, and nobody writes the inputs.
//!
//! Values are not part of the contract: infinities and NaNs are computed with, a damaged weight code is some number between -1 and 2, and
//! positions beyond the cache are ignored.
//!
//! # Numerics are part of the contract
//!
//! Each float result has one evaluation order, written here. Every row of a family follows it, so results are equal bit for bit on every
//! ISA, for every number of threads, every cut of the grid, every block of tokens and every batch. All arithmetic is IEEE single precision
//! with round-to-nearest-even and subnormals; `fma` rounds once. Only the payload of a NaN is unspecified.
//!
//! * **dot(a, b) of length `k`**: 32 accumulators start at +0. Element `i` goes to accumulator `i % 32`, `acc = fma(a_i, b_i, acc)`, `i`
//!   ascending; an accumulator without elements stays. Then a tree adds them: `acc[l] += acc[l + d]` for `l < d`, with `d` = 16, 8, 4, 2,
//!   1; the result is `acc[0]`.
//! * **exp**: [`math::exp_f32`], a fixed sequence of operations.
//! * **ternary matmul, q8 activations**: `acc = sum_k code * x - sum_k x` in i32, exact in any order as long as `k <= MAX_K`; here `code` is
//!   0, 1 or 2, `x` the int8 code of the activation and `sum_k x` is read from the record. Then
//!   `out = ((acc as f32) * x_scale) * scale[r]`.
//! * **ternary matmul, f32 activations**: four accumulators start at +0; column `c` goes to accumulator `c % 4`,
//!   `acc = fma(x_c, w_c, acc)`, `c` ascending, with `w_c` = -1, 0 or +1. Then `out = ((a0 + a1) + (a2 + a3)) * scale[r]`.
//! * **dense matmul**: `out = dot(x, w_r)`; a bf16 weight is widened exactly.
//! * **dense matmul, q8 weights and activations**: `out = ((acc as f32) * x_scale) * w_scale` with `acc = sum_k w * x` over the int8 codes in
//!   i32, exact as long as `k < 2^17` (beyond that it may wrap around, alike on every ISA).
//! * **dense matmul, q4 weights in groups, q8 activations**: 16 accumulators and one for the minima start at +0. For the groups of a row in
//!   ascending order, with `d_l` the exact sum of `code * x` over the columns `c` of the group with `c % 64 / 4 == l` and `s_x` the exact sum of
//!   its activations: `acc_l = fma(d_l, scale, acc_l)` and `low = fma(minimum, s_x, low)`. Then the tree of `dot` from `d` = 8 on adds the
//!   accumulators, and `out = (acc_0 + low) * x_scale`.
//! * **attention**, one query and one head: each of the two ranges of [`ir::mask::Mask::ranges`], clipped to the cache, is cut at the
//!   multiples of 64. No piece depends on another: with slot `j = key % 64` and `s_j = dot(q, k_j) * scale`, its largest score is
//!   `m_p = max_j s_j`; `p_j = exp(s_j - m_p)`, +0 for a slot that is not in the piece; `t_i = p_i + p_(i+32)` for `i < 32`, added by the tree
//!   of `dot` to `l_p`; `a_pd` starts at +0, `a_pd = fma(p_j, v_jd, a_pd)`, `j` ascending. The pieces are then put together in ascending order,
//!   from `m = -inf`, `l = 0`, `acc_d = 0` on: `m' = max(m, m_p)`; `r = exp(m - m')`; `g = exp(m_p - m')`; `l = fma(l, r, l_p * g)`;
//!   `acc_d = fma(acc_d, r, a_pd * g)`; `m = m'`. At the end `out_d = acc_d * (1 / l)`; zeros if no key is visible.
//!   K and V in bf16 are widened exactly; in a row format they are first decoded to f32 as [`ir::packing::RowFormat::decode`] does it.
//! * **sample**: [`sample::choose`], a fixed choice from sums of whole numbers.
//! * **KV append**: [`ir::packing::RowFormat::encode`]; f32 is copied; bf16 is the nearest one, ties to even, and what is no number stays none.
//! * **RoPE and append**: in a head `x`, `x_i * cos_i - x_(i+h) * sin_i` and `x_(i+h) * cos_i + x_i * sin_i` for `i < h = hd / 2`, each product and
//!   each sum rounded; then KV append.
//!
//! Invariant: `unsafe` occurs only under `cpu`.

#![deny(unsafe_op_in_unsafe_fn)]

pub mod cpu;
pub mod cuda;
pub mod desc;
pub mod math;
pub mod name;
pub mod sample;
pub mod table;
pub mod extent;

mod error;

pub use cuda::{CUDA_TABLE, CudaKernelDesc, Sm, Specialised, find_cuda};
pub use desc::{Access, Arch, Arg, CpuKernel, Family, Grid, Isa, KernelDesc, Requires, Signature};
pub use error::KernelError;
pub use name::KernelName;
pub use table::{TABLE, find};

/// The largest head dimension of the attention rows. The accumulators of a few heads lie on the stack, so there has to be a bound.
pub const MAX_HEAD_DIM: usize = 256;

/// The largest number of groups in a row of 4-bit weights: the sums of their activations lie on the stack.
pub const MAX_GROUPS: usize = 512;

/// The largest number of columns of the ternary rows with q8 activations.
///
/// AVX-512 keeps the codes of columns `4i..4i + 4` of a tile where they lie in the byte, so their products count `4^i` times; the largest
/// is `2 * 64 * 128` a column for a quarter of the columns, and `2^14 * 2^19 / 4 = 2^31` is what an i32 holds.
pub const MAX_K: usize = 1 << 19;
