//! What training makes small: the cross-entropy of a token's logits.

use crate::builder::Builder;
use crate::dtype::DType;
use crate::graph::ValueId;
use crate::op::{Concrete, OpDef, OpParts, TypeError, arity, expect_f32, expect_matrix, op};
use crate::reference::Tensor;
use crate::shape::{Shape, TensorType};
use crate::vjp::{Gradient, Gradients, VjpError, Zero};

/// The type of one number for each row of logits, if the targets fit.
fn row_type(logits: &TensorType, targets: &TensorType) -> Result<TensorType, TypeError> {
    expect_f32("logits", logits)?;
    let (rows, _) = expect_matrix("logits", logits)?;
    if targets.dtype != DType::I32 {
        return Err(TypeError::DType { input: "targets", expected: "i32", found: targets.dtype });
    }
    let shape = Shape::new([rows.clone()]);
    if targets.shape != shape {
        return Err(TypeError::mismatch("rows of logits and targets", &shape, &targets.shape));
    }
    Ok(TensorType::new(DType::F32, shape))
}

/// The largest of a row, and the sum of `exp(x - largest)`.
fn largest_and_sum(row: &[f64]) -> (f64, f64) {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (largest, row.iter().map(|logit| (logit - largest).exp()).sum())
}

/// The target of a row, unless the row is left out.
fn target(value: f64, row: &[f64]) -> Option<usize> {
    (0.0..row.len() as f64).contains(&value).then_some(value as usize)
}

op! {
    /// `-log(softmax(logits)[i, targets[i]])` in nats: `logits` is f32 `[m, v]`, `targets` i32 `[m]`; the result is f32 `[m]`. A row whose target is
    /// not in the vocabulary, such as -1, is left out: its loss is 0.
    CrossEntropy = "cross_entropy" (logits, targets) {}
}

impl OpDef for CrossEntropy {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [logits, targets] = arity(inputs)?;
        row_type(logits, targets)
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let rows = inputs[0].rows().zip(&inputs[1].data);
        let losses = rows.map(|(row, &id)| {
            let (largest, sum) = largest_and_sum(row);
            vec![target(id, row).map_or(0.0, |id| sum.ln() + largest - row[id])]
        });
        Tensor::from_rows(out, losses)
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let logits = b.op(CrossEntropyGradient {}, &[inputs[0], inputs[1], dy])?;
        Ok([Gradient::Of(logits), Gradient::Zero(Zero::Integer)].into_iter().collect())
    }
}

op! {
    /// The gradient of [`CrossEntropy`] in its logits: `(softmax(logits)[i] - one_hot(targets[i])) * dy[i]`; 0 for a row that is left out. `dy` is
    /// f32 `[m]`, the result f32 `[m, v]`.
    CrossEntropyGradient = "cross_entropy_gradient" (logits, targets, dy) {}
}

impl OpDef for CrossEntropyGradient {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [logits, targets, dy] = arity(inputs)?;
        let row = row_type(logits, targets)?;
        if **dy != row {
            return Err(TypeError::mismatch("the losses and their gradient", &row, dy));
        }
        Ok((*logits).clone())
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let rows = inputs[0].rows().zip(inputs[1].data.iter().zip(&inputs[2].data));
        let rows = rows.map(|(row, (&id, dy))| {
            let (largest, sum) = largest_and_sum(row);
            let Some(id) = target(id, row) else { return vec![0.0; row.len()] };
            let part = |(at, logit): (usize, &f64)| {
                let hit = if at == id { 1.0 } else { 0.0 };
                ((logit - largest).exp() / sum - hit) * dy
            };
            row.iter().enumerate().map(part).collect()
        });
        Tensor::from_rows(out, rows)
    }

    fn vjp(&self, _: &mut Builder, _: &[ValueId], _: ValueId, _: ValueId) -> Result<Gradients, VjpError> {
        Err(VjpError::SecondOrder(Self::NAME))
    }
}
