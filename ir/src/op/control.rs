//! Control: the rolled layers.

use std::sync::Arc;

use crate::builder::Builder;
use crate::dtype::DType;
use crate::graph::ValueId;
use crate::op::{Concrete, Op, OpDef, OpParts, TypeError, arity, op};
use crate::reference::Tensor;
use crate::shape::{Shape, TensorType};
use crate::vjp::{Gradients, VjpError};

op! {
    /// `carried = body(carried, rest...)`, `count` times. In the body, the key of a parameter or state that contains `{}` means another tensor in
    /// each round: the round's number stands in its place.
    Repeat = "repeat" (carried, rest) {
        /// The graph of the program that is the body. Its first input and its one output have the type of `carried`.
        body: Arc<str>,
        /// How often.
        count: u32,
    }
}

impl OpDef for Repeat {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        carried_type(inputs)
    }

    /// A repeat means what its body means, so the evaluator of programs walks into it; alone it has no value.
    fn reference(&self, _: &[&Tensor], _: &Concrete) -> Tensor {
        unreachable!("`reference::Evaluator` runs the bodies of repeats itself")
    }

    fn vjp(&self, _: &mut Builder, _: &[ValueId], _: ValueId, _: ValueId) -> Result<Gradients, VjpError> {
        Err(VjpError::Body(Self::NAME))
    }
}

op! {
    /// As [`Repeat`], for bodies that hand something on to other rounds than the next, which is what training does: the last `stacked` operands
    /// have one more axis than the inputs of the body, outermost and of size `count`, and round `r` sees their part `r`. What the body gives
    /// besides `carried` is laid together in the same way, and is read by [`Stacked`].
    Scan = "scan" (carried, rest) {
        /// The graph of the program that is the body. Its first input and its first output have the type of `carried`.
        body: Arc<str>,
        /// How often.
        count: u32,
        /// How many of the last operands are cut into a part for each round.
        stacked: u32,
        /// 1 if the rounds run from the last to the first, as gradients do; else 0.
        reverse: u32,
    }
}

impl OpDef for Scan {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        if 1 < self.reverse {
            return Err(TypeError::attribute("reverse", self.reverse, "it is 0 or 1"));
        }
        if inputs.len() <= self.stacked as usize {
            return Err(TypeError::attribute(
                "stacked",
                self.stacked,
                "there are fewer operands after the carried one",
            ));
        }
        carried_type(inputs)
    }

    /// As for [`Repeat`].
    fn reference(&self, _: &[&Tensor], _: &Concrete) -> Tensor {
        unreachable!("`reference::Evaluator` runs the bodies of scans itself")
    }

    fn vjp(&self, _: &mut Builder, _: &[ValueId], _: ValueId, _: ValueId) -> Result<Gradients, VjpError> {
        Err(VjpError::Body(Self::NAME))
    }
}

op! {
    /// What all rounds of a scan gave as one of their outputs: `[count, ..]`, in the order of the rounds' numbers, whichever way they ran.
    Stacked = "stacked" (scan) {
        /// Which output of the body; 1 is the first after the carried one.
        output: u32,
        /// The element type of that output.
        dtype: DType,
        /// Its shape, behind an axis of size `count`.
        shape: Shape,
    }
}

impl OpDef for Stacked {
    /// The type is an attribute, which the verifier compares with the body's.
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [_] = arity(inputs)?;
        Ok(TensorType::new(self.dtype, self.shape.clone()))
    }

    fn reference(&self, _: &[&Tensor], _: &Concrete) -> Tensor {
        unreachable!("`reference::Evaluator` keeps what the rounds of scans gave")
    }

    fn vjp(&self, _: &mut Builder, _: &[ValueId], _: ValueId, _: ValueId) -> Result<Gradients, VjpError> {
        Err(VjpError::Body(Self::NAME))
    }
}

fn carried_type(inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
    match inputs.first() {
        Some(carried) => Ok((*carried).clone()),
        None => Err(TypeError::Arity { expected: 1, found: 0 }),
    }
}

impl Op {
    /// The body that an op repeats, and how often.
    pub fn body(&self) -> Option<(&str, u32)> {
        match self {
            Op::Repeat(Repeat { body, count }) | Op::Scan(Scan { body, count, .. }) => Some((body, *count)),
            _ => None,
        }
    }
}
