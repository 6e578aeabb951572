//! Reductions over the innermost axis, which stays with size 1; softmax, which is built from two of them; and the sum over repeated axes.

use crate::builder::Builder;
use crate::dtype::DType;
use crate::graph::ValueId;
use crate::op::elementwise::{Cast, Div, Less, Mul, Sub};
use crate::op::{Concrete, OpDef, TypeError, arity, expect_f32, op};
use crate::reference::Tensor;
use crate::shape::{Dim, Shape, TensorType};
use crate::vjp::{Gradient, Gradients, VjpError, Zero, broadcast_to, columns, scalar};

fn reduced_type(inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
    let [x] = arity(inputs)?;
    expect_f32("x", x)?;
    let mut ty = (*x).clone();
    match ty.shape.0.last_mut() {
        Some(last) => *last = Dim::Const(1),
        None => return Err(TypeError::Rank { input: "x", expected: "at least 1 dimension", found: ty.shape }),
    }
    Ok(ty)
}

macro_rules! reduction {
    ($($(#[$meta:meta])* $name:ident = $text:literal -> $dtype:expr, |$row:ident| $value:expr,
       |$b:ident, $x:ident, $y:ident, $dy:ident| $gradient:expr;)*) => {
        $(op! {
            $(#[$meta])*
            $name = $text (x) {}
        }

        impl OpDef for $name {
            fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
                Ok(reduced_type(inputs)?.with_dtype($dtype))
            }

            fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
                Tensor::from_rows(out, inputs[0].rows().map(|$row| vec![$value]))
            }

            fn vjp(
                &self,
                $b: &mut Builder,
                inputs: &[ValueId],
                $y: ValueId,
                $dy: ValueId,
            ) -> Result<Gradients, VjpError> {
                let $x = inputs[0];
                let gradient: Gradient = $gradient;
                Ok([gradient].into_iter().collect())
            }
        })*
    };
}

reduction! {
    /// The sum of each row, over 32 lanes: lane `l` adds columns `j % 32 = l` in ascending order, then the lanes are added pairwise as a
    /// tree of halves. Every target keeps this order.
    Sum = "sum" -> DType::F32, |row| row.iter().sum(), |b, x, _y, dy| {
        let shape = b.ty(x).shape.clone();
        Gradient::Of(broadcast_to(b, dy, &shape)?)
    };
    /// The sum, in the order of [`Sum`], divided by the number of columns.
    Mean = "mean" -> DType::F32, |row| row.iter().sum::<f64>() / row.len() as f64, |b, x, _y, dy| {
        let (shape, columns) = (b.ty(x).shape.clone(), columns(b, x)?);
        let part = b.op(Div {}, &[dy, columns])?;
        Gradient::Of(broadcast_to(b, part, &shape)?)
    };
    /// The largest value of each row; minus infinity of an empty one. Equals share its gradient evenly.
    Max = "max" -> DType::F32, |row| row.iter().copied().fold(f64::NEG_INFINITY, f64::max), |b, x, y, dy| {
        let (one, below) = (scalar(b, 1.0), b.op(Less {}, &[x, y])?);
        let below = b.op(Cast { to: DType::F32 }, &[below])?;
        let hits = b.op(Sub {}, &[one, below])?;
        let n_hits = b.op(Sum {}, &[hits])?;
        let part = b.op(Div {}, &[dy, n_hits])?;
        Gradient::Of(b.op(Mul {}, &[part, hits])?)
    };
    /// The column of the largest value of each row, the first of equals; 0 if none is a number.
    Argmax = "argmax" -> DType::I32, |row| {
        let mut best: Option<usize> = None;
        for (column, value) in row.iter().enumerate() {
            if !value.is_nan() && best.is_none_or(|best| row[best] < *value) {
                best = Some(column);
            }
        }
        best.unwrap_or(0) as f64
    }, |_b, _x, _y, _dy| Gradient::Zero(Zero::Flat);
}

op! {
    /// `exp(x - max(x)) / sum(exp(x - max(x)))` of each row.
    Softmax = "softmax" (x) {}
}

impl OpDef for Softmax {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        reduced_type(inputs)?;
        Ok(inputs[0].clone())
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let rows = inputs[0].rows().map(|row| {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let powers: Vec<f64> = row.iter().map(|value| (value - max).exp()).collect();
            let sum: f64 = powers.iter().sum();
            powers.into_iter().map(|power| power / sum).collect()
        });
        Tensor::from_rows(out, rows)
    }

    fn vjp(&self, b: &mut Builder, _: &[ValueId], y: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let weighted = b.op(Mul {}, &[dy, y])?;
        let mean = b.op(Sum {}, &[weighted])?;
        let centred = b.op(Sub {}, &[dy, mean])?;
        Ok([Gradient::Of(b.op(Mul {}, &[y, centred])?)].into_iter().collect())
    }
}

op! {
    /// The sum over all that something of the shape `shape` is repeated to in `x`: the reverse of a broadcast. Each element adds its parts over
    /// 32 lanes as in [`Sum`], counted in the order in which they stand in `x`.
    SumTo = "sum_to" (x) {
        /// The result's shape, which broadcasts to that of `x`.
        shape: Shape,
    }
}

impl OpDef for SumTo {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x] = arity(inputs)?;
        expect_f32("x", x)?;
        if !self.shape.broadcasts_to(&x.shape) {
            return Err(TypeError::mismatch("shapes", &self.shape, &x.shape));
        }
        Ok(TensorType::new(DType::F32, self.shape.clone()))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let mut sums = Tensor::zeros(out.clone());
        let mut values = inputs[0].data.iter();
        Tensor::from_fn(&inputs[0].ty, |at| {
            let value = values.next().copied().unwrap_or(0.0);
            sums.data[out.broadcast_offset(at)] += value;
            value
        });
        sums
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let shape = b.ty(inputs[0]).shape.clone();
        Ok([Gradient::Of(broadcast_to(b, dy, &shape)?)].into_iter().collect())
    }
}
