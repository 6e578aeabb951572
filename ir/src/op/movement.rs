//! Movement: the same values in another arrangement. Lowering turns these into index arithmetic wherever it can.

use smallvec::SmallVec;

use crate::builder::Builder;
use crate::dtype::DType;
use crate::graph::ValueId;
use crate::op::{Concrete, OpDef, TypeError, arity, op};
use crate::reference::Tensor;
use crate::shape::{Dim, Shape, TensorType};
use crate::vjp::{Gradient, Gradients, VjpError, Zero, filled, sum_to};

/// The gradients of inputs that are moved: nothing flows to integers. Ternary values count as the real numbers they stand for.
fn moved(b: &Builder, inputs: &[ValueId], gradients: impl IntoIterator<Item = ValueId>) -> Gradients {
    let gradients = inputs.iter().zip(gradients).map(|(&input, gradient)| match b.ty(input).dtype {
        DType::I8 | DType::I32 => Gradient::Zero(Zero::Integer),
        _ => Gradient::Of(gradient),
    });
    gradients.collect()
}

/// The size of an axis that is cut or joined, which has no symbol.
fn size(b: &Builder, value: ValueId, axis: u32) -> u64 {
    b.ty(value).shape.0[axis as usize].as_const().expect("only axes of constant size are cut and joined")
}

/// A row format keeps its rows: only plain element types move freely within the innermost axis.
fn expect_plain(input: &'static str, ty: &TensorType) -> Result<(), TypeError> {
    if ty.dtype.is_row_format() {
        return Err(TypeError::DType { input, expected: "a type without a row format", found: ty.dtype });
    }
    Ok(())
}

op! {
    /// The same elements, in row-major order, under another shape.
    Reshape = "reshape" (x) {
        /// The new shape: as many elements, with the same symbols.
        shape: Shape,
    }
}

impl OpDef for Reshape {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x] = arity(inputs)?;
        expect_plain("x", x)?;
        if Shape::product(x.shape.dims()) != Shape::product(self.shape.dims()) {
            return Err(TypeError::mismatch("numbers of elements", &x.shape, &self.shape));
        }
        Ok(TensorType::new(x.dtype, self.shape.clone()))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        Tensor::new(out.clone(), inputs[0].data.clone())
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let shape = b.ty(inputs[0]).shape.clone();
        let gradient = b.op(Reshape { shape }, &[dy])?;
        Ok(moved(b, inputs, [gradient]))
    }
}

op! {
    /// Axes in another order: `out[i_0, ...]` has at axis `a` what `x` has at axis `axes[a]`.
    Permute = "permute" (x) {
        /// For each axis of the result, the axis of `x`.
        axes: SmallVec<[u32; 4]>,
    }
}

impl OpDef for Permute {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x] = arity(inputs)?;
        expect_plain("x", x)?;
        let mut sorted = self.axes.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..x.shape.rank() as u32) {
            return Err(TypeError::attribute(
                "axes",
                format!("{:?}", self.axes),
                "each axis of `x` must stand there once",
            ));
        }
        Ok(TensorType::new(x.dtype, self.axes.iter().map(|&axis| x.shape.0[axis as usize].clone()).collect()))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        Tensor::from_fn(out, |at| {
            let mut source = vec![0; at.len()];
            for (axis, &from) in self.axes.iter().enumerate() {
                source[from as usize] = at[axis];
            }
            inputs[0].at(&source)
        })
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let mut axes = self.axes.clone();
        for (axis, &from) in (0..).zip(&self.axes) {
            axes[from as usize] = axis;
        }
        let gradient = b.op(Permute { axes }, &[dy])?;
        Ok(moved(b, inputs, [gradient]))
    }
}

op! {
    /// The elements `start..end` along one axis.
    Slice = "slice" (x) {
        /// The axis.
        axis: u32,
        /// The first element.
        start: u64,
        /// One past the last.
        end: u64,
    }
}

impl OpDef for Slice {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x] = arity(inputs)?;
        expect_plain("x", x)?;
        let Some(dim) = x.shape.0.get(self.axis as usize) else {
            return Err(TypeError::attribute("axis", self.axis, "`x` has no such axis"));
        };
        let Dim::Const(size) = dim else {
            return Err(TypeError::attribute("axis", self.axis, "an axis of symbolic size cannot be sliced"));
        };
        if self.end < self.start || *size < self.end {
            return Err(TypeError::attribute(
                "end",
                format!("{}..{}", self.start, self.end),
                "the range leaves the axis",
            ));
        }
        let mut shape = x.shape.clone();
        shape.0[self.axis as usize] = Dim::Const(self.end - self.start);
        Ok(TensorType::new(x.dtype, shape))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        Tensor::from_fn(out, |at| {
            let mut source = at.to_vec();
            source[self.axis as usize] += self.start as usize;
            inputs[0].at(&source)
        })
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, mut dy: ValueId) -> Result<Gradients, VjpError> {
        let whole = size(b, inputs[0], self.axis);
        let zeros = |b: &mut Builder, count: u64| {
            let mut shape = b.ty(inputs[0]).shape.clone();
            shape.0[self.axis as usize] = Dim::Const(count);
            filled(b, 0.0, &shape)
        };
        if 0 < self.start {
            let before = zeros(b, self.start)?;
            dy = b.op(Concat { axis: self.axis }, &[before, dy])?;
        }
        if self.end < whole {
            let after = zeros(b, whole - self.end)?;
            dy = b.op(Concat { axis: self.axis }, &[dy, after])?;
        }
        Ok(moved(b, inputs, [dy]))
    }
}

op! {
    /// `lhs`, then `rhs`, along one axis.
    Concat = "concat" (lhs, rhs) {
        /// The axis.
        axis: u32,
    }
}

impl OpDef for Concat {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [lhs, rhs] = arity(inputs)?;
        expect_plain("lhs", lhs)?;
        if lhs.dtype != rhs.dtype {
            return Err(TypeError::mismatch("element types", lhs.dtype, rhs.dtype));
        }
        let axis = self.axis as usize;
        let (Some(left), Some(right)) = (lhs.shape.0.get(axis), rhs.shape.0.get(axis)) else {
            return Err(TypeError::attribute("axis", self.axis, "both inputs must have this axis"));
        };
        let (Dim::Const(left), Dim::Const(right)) = (left, right) else {
            return Err(TypeError::attribute("axis", self.axis, "axes of symbolic size cannot be joined"));
        };
        let joined = Dim::Const(left.saturating_add(*right));
        let with_joined = |shape: &Shape| {
            let mut shape = shape.clone();
            shape.0[axis] = joined.clone();
            shape
        };
        let shape = with_joined(&lhs.shape);
        if shape != with_joined(&rhs.shape) {
            return Err(TypeError::mismatch("the other axes", &lhs.shape, &rhs.shape));
        }
        Ok(TensorType::new(lhs.dtype, shape))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let axis = self.axis as usize;
        let left = inputs[0].dims()[axis];
        Tensor::from_fn(out, |at| {
            if at[axis] < left {
                return inputs[0].at(at);
            }
            let mut source = at.to_vec();
            source[axis] -= left;
            inputs[1].at(&source)
        })
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let (axis, left, right) = (self.axis, size(b, inputs[0], self.axis), size(b, inputs[1], self.axis));
        let lhs = b.op(Slice { axis, start: 0, end: left }, &[dy])?;
        let rhs = b.op(Slice { axis, start: left, end: left + right }, &[dy])?;
        Ok(moved(b, inputs, [lhs, rhs]))
    }
}

op! {
    /// The elements repeated along new and 1-sized axes.
    Broadcast = "broadcast" (x) {
        /// The new shape, which that of `x` broadcasts to.
        shape: Shape,
    }
}

impl OpDef for Broadcast {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x] = arity(inputs)?;
        expect_plain("x", x)?;
        if !x.shape.broadcasts_to(&self.shape) {
            return Err(TypeError::mismatch("shapes", &x.shape, &self.shape));
        }
        Ok(TensorType::new(x.dtype, self.shape.clone()))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        Tensor::from_fn(out, |at| inputs[0].broadcast_at(at))
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let shape = b.ty(inputs[0]).shape.clone();
        let gradient = sum_to(b, dy, &shape)?;
        Ok(moved(b, inputs, [gradient]))
    }
}
