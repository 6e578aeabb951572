//! Control: the rolled layers.

use std::sync::Arc;

use crate::op::{Concrete, OpDef, TypeError, op};
use crate::reference::Tensor;
use crate::shape::TensorType;

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
        match inputs.first() {
            Some(carried) => Ok((*carried).clone()),
            None => Err(TypeError::Arity { expected: 1, found: 0 }),
        }
    }

    /// A repeat means what its body means, so the evaluator of programs walks into it; alone it has no value.
    fn reference(&self, _: &[&Tensor], _: &Concrete) -> Tensor {
        unreachable!("`reference::Evaluator` runs the bodies of repeats itself")
    }
}
