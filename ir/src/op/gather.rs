//! Rows picked by index: token embeddings, and the rows whose logits are wanted.

use crate::dtype::DType;
use crate::op::{Concrete, OpDef, TypeError, arity, expect_matrix, op};
use crate::reference::Tensor;
use crate::shape::TensorType;

op! {
    /// `out[i] = table[ids[i]]` as f32: `table` is f32, bf16 or f16 `[v, d]`, `ids` is i32 `[n]`; the result is f32 `[n, d]`. An id outside the
    /// table is taken as the nearest row of it.
    Gather = "gather" (table, ids) {}
}

impl OpDef for Gather {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [table, ids] = arity(inputs)?;
        if !table.dtype.is_float() {
            return Err(TypeError::DType { input: "table", expected: "f32, bf16 or f16", found: table.dtype });
        }
        let (_, width) = expect_matrix("table", table)?;
        if ids.dtype != DType::I32 {
            return Err(TypeError::DType { input: "ids", expected: "i32", found: ids.dtype });
        }
        match ids.shape.dims() {
            [n] => Ok(TensorType::new(DType::F32, [n.clone(), width.clone()].into_iter().collect())),
            _ => Err(TypeError::Rank { input: "ids", expected: "1 dimension", found: ids.shape.clone() }),
        }
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let last = inputs[0].dims()[0].saturating_sub(1) as f64;
        Tensor::from_fn(out, |at| {
            let row = inputs[1].data[at[0]].clamp(0.0, last) as usize;
            inputs[0].at(&[row, at[1]])
        })
    }
}
