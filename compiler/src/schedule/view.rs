//! Which values are only other values seen through an index: slices, reshapes, permutations, broadcasts; and, as loads widen, f32 that is a stored
//! number of 16 bits.

use ir::entity::Id;
use ir::graph::{Def, Graph};
use ir::{DType, Dim, Op, Shape, ValueId};

/// A value as an affine map into the storage of another: element (i, j, ..) is at `offset + i * strides[0] + j * strides[1] + ..`, in the element type of
/// the storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The value that has storage of its own.
    pub base: ValueId,
    /// Elements from its start.
    pub offset: i64,
    /// Elements between neighbours, for each dimension of the view; 0 along broadcast ones.
    pub strides: Vec<i64>,
}

/// What each value of a graph is to a scheduler.
#[derive(Debug)]
pub struct Views<'a> {
    graph: &'a Graph,
    weight_time: Vec<bool>,
    /// Movement ops whose result is copied into storage of its own after all.
    materialised: Vec<bool>,
}

impl<'a> Views<'a> {
    /// Nothing is materialised yet.
    pub fn new(graph: &'a Graph) -> Self {
        let mut weight_time = vec![false; graph.values.len()];
        for (id, value) in graph.values.iter() {
            weight_time[id.index()] = match &value.def {
                Def::Param { .. } | Def::Const(_) => true,
                Def::Input | Def::State { .. } => false,
                Def::Op { op, .. } if op.body().is_some() => false,
                // What it is for.
                Def::Op { op: Op::UnpackInCall(_), .. } => false,
                // With a symbol in its shape a value has a size only when a call says so.
                Def::Op { inputs, .. } => {
                    let is_fixed = value.ty.shape.dims().iter().all(|dim| dim.as_const().is_some());
                    is_fixed && inputs.iter().all(|input| weight_time[input.index()])
                }
            };
        }
        Self { graph, weight_time, materialised: vec![false; graph.values.len()] }
    }

    /// Whether a value depends on nothing but parameters and constants, so that the compiler computes it once.
    pub fn is_weight_time(&self, value: ValueId) -> bool {
        self.weight_time[value.index()]
    }

    /// Gives a movement op's result storage of its own.
    pub fn materialise(&mut self, value: ValueId) {
        self.materialised[value.index()] = true;
    }

    /// Whether the value is seen through an index and has no storage.
    pub fn is_view(&self, value: ValueId) -> bool {
        !self.weight_time[value.index()] && self.resolve(value).base != value
    }

    /// The value as a map into the storage of its base.
    pub fn resolve(&self, value: ValueId) -> View {
        let own = || View { base: value, offset: 0, strides: contiguous(&self.graph.ty(value).shape) };
        if self.weight_time[value.index()] || self.materialised[value.index()] {
            return own();
        }
        let Def::Op { op, inputs } = &self.graph.values[value].def else { return own() };
        let shape = &self.graph.ty(value).shape;
        match op {
            Op::Reshape(_) => {
                let source = self.resolve(inputs[0]);
                match reshape(&self.graph.ty(inputs[0]).shape, &source.strides, shape) {
                    Some(strides) => View { strides, ..source },
                    None => own(),
                }
            }
            Op::Permute(permute) => {
                let source = self.resolve(inputs[0]);
                let strides = permute.axes.iter().map(|&axis| source.strides[axis as usize]).collect();
                View { strides, ..source }
            }
            Op::Slice(slice) => {
                let source = self.resolve(inputs[0]);
                let offset = source.offset + slice.start as i64 * source.strides[slice.axis as usize];
                View { offset, ..source }
            }
            Op::Broadcast(_) => {
                let source = self.resolve(inputs[0]);
                let from = &self.graph.ty(inputs[0]).shape;
                View { strides: aligned(from, &source.strides, shape.rank()), ..source }
            }
            Op::Cast(_) if is_widening(self.graph, value) => self.resolve(inputs[0]),
            // An append changes its cache in place.
            Op::KvAppend(_) => self.resolve(inputs[0]),
            _ => own(),
        }
    }

    /// The value that a view widens, itself or what it is seen through, if it does: `cast(x, f32)` of the `x` that is stored.
    pub fn widened(&self, mut value: ValueId) -> Option<ValueId> {
        while self.is_view(value) {
            if is_widening(self.graph, value) {
                return Some(value);
            }
            value = self.graph.operands(value)[0];
        }
        None
    }

    /// Whether the value lies in its base as if it had storage of its own there, and if so at which element.
    pub fn contiguous_offset(&self, value: ValueId) -> Option<i64> {
        let view = self.resolve(value);
        debug_assert!(self.widened(value).is_none(), "what is asked for its place is stored in its own type");
        is_dense(&self.graph.ty(value).shape, &view.strides).then_some(view.offset)
    }
}

/// Whether a value is the f32 of numbers of 16 bits.
pub(crate) fn is_widening(graph: &Graph, value: ValueId) -> bool {
    let (Some(Op::Cast(_)), &[narrow]) = (graph.op(value), graph.operands(value)) else { return false };
    graph.ty(value).dtype == DType::F32 && matches!(graph.ty(narrow).dtype, DType::BF16 | DType::F16)
}

/// The strides of a row-major tensor. A symbol inside the outermost dimension has no constant stride before it; such tensors are refused by
/// [`super::group::group`], so the stride given here does not matter.
pub(crate) fn contiguous(shape: &Shape) -> Vec<i64> {
    let mut strides = vec![0; shape.rank()];
    let mut stride = 1_i64;
    for (position, dim) in shape.dims().iter().enumerate().rev() {
        strides[position] = stride;
        stride = stride.saturating_mul(dim.as_const().map_or(1, |size| i64::try_from(size).unwrap_or(i64::MAX)));
    }
    strides
}

/// Whether these are the strides of a row-major tensor; along a dimension of size 1 any stride is.
pub(crate) fn is_dense(shape: &Shape, strides: &[i64]) -> bool {
    let mut dims = shape.dims().iter().zip(strides).zip(contiguous(shape));
    dims.all(|((dim, &stride), wanted)| stride == wanted || *dim == Dim::Const(1))
}

/// Strides of a shape as seen from one of `rank` dimensions that it broadcasts to: 0 along new and repeated dimensions.
pub(crate) fn aligned(shape: &Shape, strides: &[i64], rank: usize) -> Vec<i64> {
    let mut result = vec![0; rank - shape.rank()];
    let own = shape.dims().iter().zip(strides).map(|(dim, &stride)| if *dim == Dim::Const(1) { 0 } else { stride });
    result.extend(own);
    result
}

/// The strides under another shape, if that needs no copy: runs of dimensions that lie densely may be merged, and any may be split.
pub(crate) fn reshape(from: &Shape, strides: &[i64], to: &Shape) -> Option<Vec<i64>> {
    let real = |(dim, _): &(&Dim, i64)| **dim != Dim::Const(1);
    let mut old = from.dims().iter().zip(strides.iter().copied()).filter(real).peekable();
    let mut result = vec![0; to.rank()];
    let mut new = to.dims().iter().enumerate().filter(|(_, dim)| **dim != Dim::Const(1)).peekable();
    while let Some((dim, stride)) = old.next() {
        if let Some((position, _)) = new.next_if(|(_, new)| *new == dim) {
            result[position] = stride;
            continue;
        }
        // A run of old dimensions with the same product as a run of new ones.
        let (mut old_product, mut inner_stride) = (dim.as_const()?, stride);
        let mut run = Vec::new();
        let mut new_product = 1_u64;
        while new_product != old_product {
            if new_product < old_product {
                let (position, dim) = new.next()?;
                let size = dim.as_const()?;
                new_product = new_product.checked_mul(size)?;
                run.push((position, size));
            } else {
                let (dim, stride) = old.next()?;
                let size = dim.as_const()?;
                if inner_stride != stride.checked_mul(i64::try_from(size).ok()?)? {
                    return None;
                }
                old_product = old_product.checked_mul(size)?;
                inner_stride = stride;
            }
        }
        let mut stride = inner_stride;
        for (position, size) in run.into_iter().rev() {
            result[position] = stride;
            stride = stride.checked_mul(i64::try_from(size).ok()?)?;
        }
    }
    Some(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strides(from: &[u64], strides: &[i64], to: &[u64]) -> Option<Vec<i64>> {
        reshape(&Shape::of(from), strides, &Shape::of(to))
    }

    #[test]
    fn reshapes_split_any_dimension_and_merge_dense_ones() {
        assert_eq!(strides(&[6, 8], &[8, 1], &[6, 2, 4]), Some(vec![8, 4, 1]));
        assert_eq!(strides(&[6, 2, 4], &[8, 4, 1], &[6, 8]), Some(vec![8, 1]));
        assert_eq!(strides(&[6, 8], &[20, 1], &[6, 2, 4]), Some(vec![20, 4, 1]));
        assert_eq!(strides(&[6, 8], &[20, 1], &[48]), None);
        assert_eq!(strides(&[6, 8], &[8, 1], &[3, 1, 16]), Some(vec![16, 0, 1]));
        assert_eq!(strides(&[6, 1, 8], &[8, 99, 1], &[48]), Some(vec![1]));
    }
}
