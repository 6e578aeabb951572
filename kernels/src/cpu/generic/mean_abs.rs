//! `out[r] = max(mean |w[r, ..]|, least)`, as [`ir::op::ternary::absmean`] and its kin say: summed in f64 in ascending order, rounded once. A unit of the
//! grid is a row.

use half::bf16;

use crate::cpu::generic::args::Args;

/// Signature `w, out` and `n, k, least_bits`, with weights of `T`.
///
/// # Safety
///
/// The contract of the crate.
#[inline(always)]
pub(crate) unsafe fn mean_abs<T: Copy + Into<f32>>(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    // SAFETY: as the caller promises.
    let (w, out, k, least) = unsafe {
        let args = Args::new(args, dims);
        let (w, out): (*mut T, *mut f32) = (args.pointer(0), args.pointer(1));
        (w, out, args.size(1), f32::from_bits(args.dim(2) as u32))
    };
    for row in begin as usize..end as usize {
        // SAFETY: the row exists, and its result is its own.
        unsafe {
            let row_of = std::slice::from_raw_parts(w.add(row * k), k);
            let sum: f64 = row_of.iter().map(|&value| f64::from(value.into().abs())).sum();
            *out.add(row) = ((sum / k as f64) as f32).max(least);
        }
    }
}

/// In f32.
///
/// # Safety
///
/// As [`mean_abs`].
pub(crate) unsafe fn of_f32(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    // SAFETY: as the caller promises.
    unsafe { mean_abs::<f32>(args, dims, begin, end) }
}

/// In bf16.
///
/// # Safety
///
/// As [`mean_abs`].
pub(crate) unsafe fn of_bf16(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    // SAFETY: as the caller promises.
    unsafe { mean_abs::<bf16>(args, dims, begin, end) }
}
