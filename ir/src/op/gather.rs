//! Rows picked by index: token embeddings, and the rows whose logits are wanted. And back: rows added up by index.

use crate::builder::Builder;
use crate::dtype::DType;
use crate::graph::ValueId;
use crate::op::{Concrete, OpDef, TypeError, arity, expect_f32, expect_matrix, op};
use crate::reference::Tensor;
use crate::shape::{Shape, TensorType};
use crate::vjp::{Gradient, Gradients, VjpError, Zero};

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

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let shape = b.ty(inputs[0]).shape.clone();
        let table = b.op(ScatterAdd { shape }, &[dy, inputs[1]])?;
        Ok([Gradient::Of(table), Gradient::Zero(Zero::Integer)].into_iter().collect())
    }
}

op! {
    /// `out[j] = sum of x[i] over all i with ids[i] = j`, in ascending order of `i`: `x` is f32 `[n, d]`, `ids` i32 `[n]`; the result is f32. An id
    /// outside counts as the nearest row, as in [`Gather`].
    ScatterAdd = "scatter_add" (x, ids) {
        /// The result's shape, `[v, d]`.
        shape: Shape,
    }
}

impl OpDef for ScatterAdd {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x, ids] = arity(inputs)?;
        expect_f32("x", x)?;
        let (n, width) = expect_matrix("x", x)?;
        if ids.dtype != DType::I32 {
            return Err(TypeError::DType { input: "ids", expected: "i32", found: ids.dtype });
        }
        if ids.shape.dims() != std::slice::from_ref(n) {
            return Err(TypeError::mismatch("rows of `x` and `ids`", &x.shape, &ids.shape));
        }
        match self.shape.dims() {
            [_, columns] if columns == width => Ok(TensorType::new(DType::F32, self.shape.clone())),
            _ => {
                Err(TypeError::attribute("shape", &self.shape, "it must be [v, d], with rows as long as those of `x`"))
            }
        }
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let mut sums = Tensor::zeros(out.clone());
        let Some(last) = out.dims[0].checked_sub(1) else { return sums };
        let width = out.dims[1];
        for (row, id) in inputs[0].rows().zip(&inputs[1].data) {
            let at = id.clamp(0.0, last as f64) as usize * width;
            sums.data[at..at + width].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        sums
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let rows = b.op(Gather {}, &[dy, inputs[1]])?;
        Ok([Gradient::Of(rows), Gradient::Zero(Zero::Integer)].into_iter().collect())
    }
}
