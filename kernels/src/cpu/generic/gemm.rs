//! Products of two bf16 matrices, of which each may lie transposed: what [`ir::op::matmul::Gemm`] says. A unit of the grid is 16 rows of the result.
//!
//! Each number is one sum of f32 over the contracted axis in ascending order. A product of two bf16 is exact in f32, so there is nothing for a fused
//! multiply-add to save.

use half::bf16;
use ir::op::matmul::Form;

use crate::cpu::generic::args::Args;

/// Rows of a unit.
pub(crate) const ROWS: usize = 16;

/// What a sum is stored as.
pub(crate) trait Stored: Copy {
    fn of(sum: f32) -> Self;
}

impl Stored for f32 {
    fn of(sum: f32) -> Self {
        sum
    }
}

impl Stored for bf16 {
    fn of(sum: f32) -> Self {
        bf16::from_f32(sum)
    }
}

/// Signature `x, w, out` and `n, k, m, form`.
///
/// # Safety
///
/// The contract of the crate.
#[inline(always)]
pub(crate) unsafe fn gemm<T: Stored>(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    // SAFETY: as the caller promises.
    let (x, w, out, n, k, m, form) = unsafe {
        let args = Args::new(args, dims);
        let (x, w, out): (*mut bf16, *mut bf16, *mut T) = (args.pointer(0), args.pointer(1), args.pointer(2));
        (x, w, out, args.size(0), args.size(1), args.size(2), args.size(3))
    };
    let form = Form::ALL[form.min(Form::ALL.len() - 1)];
    let mut sums = vec![0.0_f32; m];
    for row in begin as usize * ROWS..(end as usize * ROWS).min(n) {
        // SAFETY: the row exists and is the unit's own; so do all rows of the operands.
        unsafe {
            let to = std::slice::from_raw_parts_mut(out.add(row * m), m);
            let of_w = |at: usize, length: usize| std::slice::from_raw_parts(w.add(at * length), length);
            let of_x = |p: usize| match form {
                Form::Nt | Form::Nn => (*x.add(row * k + p)).to_f32(),
                Form::Tn => (*x.add(p * n + row)).to_f32(),
            };
            match form {
                Form::Nt => {
                    for (column, sum) in sums.iter_mut().enumerate() {
                        let products = of_w(column, k).iter().enumerate().map(|(p, w)| of_x(p) * w.to_f32());
                        *sum = products.fold(0.0, |sum, product| sum + product);
                    }
                }
                Form::Nn | Form::Tn => {
                    sums.fill(0.0);
                    for p in 0..k {
                        let x = of_x(p);
                        sums.iter_mut().zip(of_w(p, m)).for_each(|(sum, w)| *sum += x * w.to_f32());
                    }
                }
            }
            to.iter_mut().zip(&sums).for_each(|(to, sum)| *to = T::of(*sum));
        }
    }
}
