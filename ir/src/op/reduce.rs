//! Reductions over the innermost axis, which stays with size 1; and softmax, which is built from two of them.

use crate::dtype::DType;
use crate::op::{Concrete, OpDef, TypeError, arity, expect_f32, op};
use crate::reference::Tensor;
use crate::shape::{Dim, TensorType};

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
    ($($(#[$meta:meta])* $name:ident = $text:literal -> $dtype:expr, |$row:ident| $value:expr;)*) => {
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
        })*
    };
}

reduction! {
    /// The sum of each row, over 32 lanes: lane `l` adds columns `j % 32 = l` in ascending order, then the lanes are added pairwise as a
    /// tree of halves. Every target keeps this order.
    Sum = "sum" -> DType::F32, |row| row.iter().sum();
    /// The sum, in the order of [`Sum`], divided by the number of columns.
    Mean = "mean" -> DType::F32, |row| row.iter().sum::<f64>() / row.len() as f64;
    /// The largest value of each row; minus infinity of an empty one.
    Max = "max" -> DType::F32, |row| row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    /// The column of the largest value of each row, the first of equals; 0 if none is a number.
    Argmax = "argmax" -> DType::I32, |row| {
        let mut best: Option<usize> = None;
        for (column, value) in row.iter().enumerate() {
            if !value.is_nan() && best.is_none_or(|best| row[best] < *value) {
                best = Some(column);
            }
        }
        best.unwrap_or(0) as f64
    };
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
}
