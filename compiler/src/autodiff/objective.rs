//! What training makes small: the mean cross-entropy of logits.

use ir::graph::Program;
use ir::op::elementwise::{Cast, Div, Less, Sub};
use ir::op::loss::CrossEntropy;
use ir::op::reduce::Sum;
use ir::vjp::scalar;
use ir::{Builder, DType, Shape, TensorType, Verified, verify};

use super::AutodiffError;
use super::walk::{Source, Walk};

/// The program with one more input, `targets`, i32 with an id for each row of the logits, and one output: the mean cross-entropy in nats over
/// the rows whose target is not negative, f32 `[1]`. Bodies stay as they are; states of the entry are taken as zeros, and inputs that only other outputs
/// read are left out.
///
/// # Errors
///
/// If that output is no rows of f32.
pub fn with_cross_entropy(program: &Verified<Program>, logits: usize) -> Result<Verified<Program>, AutodiffError> {
    let entry = program.entry();
    let outputs = entry.outputs.len();
    let value = *entry.outputs.get(logits).ok_or(AutodiffError::NoOutput { loss: logits, outputs })?;
    let refuse = |reason| AutodiffError::Logits { value: entry.label(value), reason };
    let ty = entry.ty(value);
    let [rows, _] = ty.shape.dims() else { return Err(refuse("it is not one row of logits for each target")) };
    if ty.dtype != DType::F32 {
        return Err(refuse("it is not f32"));
    }
    if entry.inputs.iter().any(|&input| entry.label(input) == "targets") {
        return Err(refuse("the program has an input `targets` already"));
    }
    let mut walk = Walk::new(&entry.name);
    walk.copy(entry, Source { wanted: &|_| false, varying: &|_| false, body_varies: &|_| false })?;
    let logits = walk.map[ir::entity::Id::index(value)];
    let b: &mut Builder = &mut walk.b;
    let targets = b.input("targets", TensorType::new(DType::I32, Shape::new([rows.clone()])));
    // The count first, of which the gradient is: it is known before the losses are.
    let (zero, one) = (b.constant(None, TensorType::new(DType::I32, Shape::default()), [0.0]), scalar(b, 1.0));
    let is_left_out = b.op(Less {}, &[targets, zero])?;
    let left_out = b.op(Cast { to: DType::F32 }, &[is_left_out])?;
    let counted = b.op(Sub {}, &[one, left_out])?;
    let count = b.op(Sum {}, &[counted])?;
    let losses = b.named("losses", CrossEntropy {}, &[logits, targets])?;
    let total = b.op(Sum {}, &[losses])?;
    let loss = b.named("loss", Div {}, &[total, count])?;
    let entry = walk.b.finish(&[loss]).prune();
    let mut program = program.clone().into_inner();
    program.graphs.pop();
    program.graphs.push(entry);
    Ok(verify(program)?)
}
