//! Dense linear algebra.

use crate::dtype::DType;
use crate::op::{Concrete, OpDef, TypeError, arity, expect_f32, expect_matrix, op};
use crate::reference::Tensor;
use crate::shape::TensorType;

op! {
    /// `out[.., j] = sum_i x[.., i] * w[j, i]`: `w` holds one row for each output, as checkpoints do.
    ///
    /// `x` is f32 `[.., k]`; `w` is f32, bf16 or f16 `[m, k]`; the result is f32 `[.., m]`. The sum runs over 32 lanes as in
    /// [`crate::op::reduce::Sum`], each step a fused multiply-add.
    Matmul = "matmul" (x, w) {}
}

impl OpDef for Matmul {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x, w] = arity(inputs)?;
        expect_f32("x", x)?;
        if !w.dtype.is_float() {
            return Err(TypeError::DType { input: "w", expected: "f32, bf16 or f16", found: w.dtype });
        }
        contraction_type(x, w, DType::F32)
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let w = inputs[1];
        Tensor::from_rows(out, inputs[0].rows().map(|x| w.rows().map(|w| dot(x, w)).collect()))
    }
}

/// The type of a contraction of the innermost axes of `x` and of the matrix `w`.
pub(crate) fn contraction_type(x: &TensorType, w: &TensorType, out: DType) -> Result<TensorType, TypeError> {
    let (m, k) = expect_matrix("w", w)?;
    let Some(inner) = x.shape.last() else {
        return Err(TypeError::Rank { input: "x", expected: "at least 1 dimension", found: x.shape.clone() });
    };
    if inner != k {
        return Err(TypeError::mismatch("the contracted dimensions of `x` and `w`", &x.shape, &w.shape));
    }
    Ok(TensorType::new(out, x.shape.outer().iter().cloned().chain([m.clone()]).collect()))
}

/// The sum of the products of two rows.
pub(crate) fn dot(x: &[f64], w: &[f64]) -> f64 {
    x.iter().zip(w).map(|(x, w)| x * w).sum()
}
