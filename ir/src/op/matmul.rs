//! Dense linear algebra.

use std::sync::Arc;

use crate::builder::Builder;
use crate::dtype::DType;
use crate::graph::ValueId;
use crate::op::elementwise::Cast;
use crate::op::movement::Reshape;
use crate::op::ternary::Dequantize;
use crate::op::{Attr, AttrValue, Concrete, OpDef, OpParts, TypeError, arity, expect_f32, expect_matrix, op};
use crate::reference::Tensor;
use crate::shape::{Shape, TensorType};
use crate::vjp::{Gradient, Gradients, VjpError, as_matrix, transpose};

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

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let x = through_rows(b, dy, inputs[1])?;
        let w = across_rows(b, Self::NAME, dy, inputs[0])?;
        Ok([Gradient::Of(x), Gradient::Of(w)].into_iter().collect())
    }
}

op! {
    /// `out[.., j] = sum_i x[.., i] * w[j, i]` of quantised rows, over their codes: `x` is q8 `[.., k]`, `w` is q8 `[m, k]`, or q4
    /// `[m, k / g, g]` with a scale and a minimum for each group of `g`; the result is f32 `[.., m]`.
    ///
    /// Sums over codes are exact in i32. With q8 weights `out = sum * scale of x * scale of w`, left to right; with q4 weights the groups
    /// are added in f32, in the order that the kernels' documentation gives.
    QuantizedMatmul = "quantized_matmul" (x, w) {}
}

impl OpDef for QuantizedMatmul {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x, w] = arity(inputs)?;
        if x.dtype != DType::Q8 {
            return Err(TypeError::DType { input: "x", expected: "q8", found: x.dtype });
        }
        match (w.dtype, w.shape.dims()) {
            (DType::Q8, _) => contraction_type(x, w, DType::F32),
            (DType::Q4, [m, groups, group]) => {
                let k = groups.as_const().zip(group.as_const()).map(|(groups, group)| groups.saturating_mul(group));
                if k.is_none() || x.shape.last_const() != k {
                    return Err(TypeError::mismatch("the contracted dimensions of `x` and `w`", &x.shape, &w.shape));
                }
                Ok(TensorType::new(DType::F32, x.shape.outer().iter().cloned().chain([m.clone()]).collect()))
            }
            (DType::Q4, _) => {
                Err(TypeError::Rank { input: "w", expected: "3 dimensions [m, k / g, g]", found: w.shape.clone() })
            }
            (found, _) => Err(TypeError::DType { input: "w", expected: "q8 or q4", found }),
        }
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let (x, w) = (inputs[0], inputs[1]);
        let k = x.dims().last().copied().unwrap_or(0);
        let m = w.dims()[0];
        let row = |j: usize| &w.data[j * k..(j + 1) * k];
        Tensor::from_rows(out, x.rows().map(|x| (0..m).map(|j| dot(x, row(j))).collect()))
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let w = b.op(Dequantize {}, &[inputs[1]])?;
        let (stored, m) = (b.ty(w).shape.clone(), b.ty(w).shape.0[0].clone());
        let k = b.ty(inputs[0]).shape.last().cloned().expect("the contracted dimension was checked");
        let matrix = Shape::new([m, k]);
        let w = if stored == matrix { w } else { b.op(Reshape { shape: matrix.clone() }, &[w])? };
        let x = b.op(Dequantize {}, &[inputs[0]])?;
        let dx = through_rows(b, dy, w)?;
        let mut dw = across_rows(b, Self::NAME, dy, x)?;
        if stored != matrix {
            dw = b.op(Reshape { shape: stored }, &[dw])?;
        }
        Ok([Gradient::Of(dx), Gradient::Of(dw)].into_iter().collect())
    }
}

/// How the operands of [`Gemm`] lie, as BLAS calls it: `n` as they are multiplied, `t` transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// `x` is `[n, k]` and `w` is `[m, k]`, as weights are stored.
    Nt,
    /// `x` is `[n, k]` and `w` is `[k, m]`.
    Nn,
    /// `x` is `[k, n]` and `w` is `[k, m]`.
    Tn,
}

impl Form {
    /// All of them, by their numbers in the dims of kernels.
    pub const ALL: [Form; 3] = [Form::Nt, Form::Nn, Form::Tn];

    /// The name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Form::Nt => "nt",
            Form::Nn => "nn",
            Form::Tn => "tn",
        }
    }

    /// The axis of `x` that is contracted, and that of `w`.
    pub fn contracted(self) -> (usize, usize) {
        match self {
            Form::Nt => (1, 1),
            Form::Nn => (1, 0),
            Form::Tn => (0, 0),
        }
    }
}

impl AttrValue for Form {
    const KIND: &'static str = "@nt, @nn or @tn";
    fn to_attr(&self) -> Attr {
        Attr::Name(Arc::from(self.name()))
    }
    fn from_attr(attr: &Attr) -> Option<Self> {
        match attr {
            Attr::Name(name) => Self::ALL.into_iter().find(|form| form.name() == &**name),
            _ => None,
        }
    }
}

op! {
    /// `out[i, j] = sum_p x[i, p] * w[j, p]` of two matrices in half precision, each of which may lie transposed: see [`Form`].
    ///
    /// Both are bf16; the result is f32 or bf16 `[n, m]`. The products are exact and their sum is one of f32, rounded once more where the result is
    /// bf16, in an order that is the target's: on CPUs ascending, on GPUs that of the library that computes it.
    Gemm = "gemm" (x, w) {
        /// How the operands lie.
        form: Form,
        /// The element type of the result.
        to: DType,
    }
}

impl OpDef for Gemm {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x, w] = arity(inputs)?;
        for (name, matrix) in [("x", x), ("w", w)] {
            if matrix.dtype != DType::BF16 {
                return Err(TypeError::DType { input: name, expected: "bf16", found: matrix.dtype });
            }
            expect_matrix(name, matrix)?;
        }
        let (of_x, of_w) = self.form.contracted();
        if x.shape.0[of_x] != w.shape.0[of_w] {
            return Err(TypeError::mismatch("the contracted dimensions of `x` and `w`", &x.shape, &w.shape));
        }
        if !matches!(self.to, DType::F32 | DType::BF16) {
            return Err(TypeError::attribute("to", self.to, "only f32 and bf16 are results"));
        }
        let (n, m) = (x.shape.0[1 - of_x].clone(), w.shape.0[1 - of_w].clone());
        Ok(TensorType::new(self.to, Shape::new([n, m])))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let [x, w] = inputs else { unreachable!("the arity was checked") };
        let (of_x, of_w) = self.form.contracted();
        let at = |matrix: &Tensor, axis: usize, p: usize, other: usize| {
            matrix.at(&if axis == 0 { [p, other] } else { [other, p] })
        };
        let k = x.dims()[of_x];
        let sum = |ij: &[usize]| {
            (0..k).map(|p| at(x, of_x, p, ij[0]) * at(w, of_w, p, ij[1])).fold(0.0, |sum, product| sum + product)
        };
        Tensor::from_fn(out, |ij| if self.to == DType::BF16 { half::bf16::from_f64(sum(ij)).to_f64() } else { sum(ij) })
    }

    /// Three forms are closed under differentiation. What comes back is rounded to bf16, and so is what goes on to `x` where the result is; the gradient of
    /// `w`, which is added up over batches, is not.
    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let (x, w) = (inputs[0], inputs[1]);
        let dy = b.op(Cast { to: DType::BF16 }, &[dy])?;
        let mut gemm = |form: Form, to: DType, x: ValueId, w: ValueId| b.op(Gemm { form, to }, &[x, w]);
        let (dx, dw) = match self.form {
            Form::Nt => (gemm(Form::Nn, self.to, dy, w)?, gemm(Form::Tn, DType::F32, dy, x)?),
            Form::Nn => (gemm(Form::Nt, self.to, dy, w)?, gemm(Form::Tn, DType::F32, x, dy)?),
            Form::Tn => (gemm(Form::Nt, self.to, w, dy)?, gemm(Form::Nn, DType::F32, x, dy)?),
        };
        let dx = if self.to == DType::F32 { dx } else { b.op(Cast { to: DType::F32 }, &[dx])? };
        Ok([Gradient::Of(dx), Gradient::Of(dw)].into_iter().collect())
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

/// The gradient of `x` in `x w^T`: `dy w`.
pub(crate) fn through_rows(b: &mut Builder, dy: ValueId, w: ValueId) -> Result<ValueId, VjpError> {
    let w = transpose(b, w)?;
    Ok(b.op(Matmul {}, &[dy, w])?)
}

/// The gradient of `w` in `x w^T`: `dy^T x`, over the rows of both.
pub(crate) fn across_rows(b: &mut Builder, op: &'static str, dy: ValueId, x: ValueId) -> Result<ValueId, VjpError> {
    let (dy, x) = (as_matrix(b, op, dy)?, as_matrix(b, op, x)?);
    let (dy, x) = (transpose(b, dy)?, transpose(b, x)?);
    Ok(b.op(Matmul {}, &[dy, x])?)
}
