//! Ternary linear algebra: weights in {-1, 0, +1}, their scales, and int8 activations.
//!
//! Meaning first: `ternary_matmul(x, w, s)[.., j] = s[j] * sum_i x[.., i] * w[j, i]`. With q8 activations the sum over the codes is exact in
//! i32 (|code| <= 128, |w| <= 1, k <= 2^24), so every target gives the same bits; then `out = sum * row scale * s[j]`, left to right, in f32.
//! With f32 activations four partial sums by `i % 4`, each in ascending order, are added as `(a0 + a1) + (a2 + a3)`.

use std::sync::Arc;

use crate::builder::Builder;
use crate::dtype::DType;
use crate::graph::ValueId;
use crate::op::elementwise::Mul;
use crate::op::matmul::{Matmul, across_rows, contraction_type, dot};
use crate::op::movement::Reshape;
use crate::op::{
    Attr, AttrValue, Concrete, OpDef, OpParts, TypeError, arity, expect_f32, expect_matrix, op, straight_through,
};
use crate::packing::{ABSMAX_FLOOR, RowFormat};
use crate::reference::Tensor;
use crate::shape::{Dim, Shape, TensorType};
use crate::vjp::{Gradient, Gradients, VjpError, sum_to};

/// How real weights become ternary ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TernaryRule {
    /// BitNet b1.58 (Ma et al., 2024): with `a = max(mean |W|, 1e-5)` of the whole matrix, `w = clamp(round_half_even(W / a), -1, 1)`, computed
    /// as `W * (1 / a)` in f32; scale `a`.
    AbsmeanTensor,
    /// The original Tritter: with `a_j = mean |W_j|` of row `j`, `w = sign(W)` where `|W| > a_j`, else 0. Its scale is a parameter of its own.
    ThresholdRow,
}

impl TernaryRule {
    /// Both rules.
    pub const ALL: [TernaryRule; 2] = [TernaryRule::AbsmeanTensor, TernaryRule::ThresholdRow];

    /// The name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            TernaryRule::AbsmeanTensor => "absmean_tensor",
            TernaryRule::ThresholdRow => "threshold_row",
        }
    }

    /// The ternary values of `rows` rows of `weights`, in f32 as the definition says.
    pub fn ternarise(self, weights: &[f32], rows: usize) -> Vec<i8> {
        match self {
            TernaryRule::AbsmeanTensor => {
                let inverse = 1.0 / absmean(weights);
                weights.iter().map(|w| (w * inverse).round_ties_even().clamp(-1.0, 1.0) as i8).collect()
            }
            TernaryRule::ThresholdRow => {
                let cols = weights.len().checked_div(rows).unwrap_or(0);
                let mut values = Vec::with_capacity(weights.len());
                for row in weights.chunks(cols.max(1)) {
                    let threshold = mean_abs(row);
                    values.extend(row.iter().map(|&w| i8::from(threshold < w) - i8::from(w < -threshold)));
                }
                values
            }
        }
    }
}

fn mean_abs(weights: &[f32]) -> f32 {
    let sum: f64 = weights.iter().map(|w| f64::from(w.abs())).sum();
    (sum / weights.len() as f64) as f32
}

/// `max(mean |W|, 1e-5)`: the scale of [`TernaryRule::AbsmeanTensor`]. The mean is summed in f64 and rounded once.
pub fn absmean(weights: &[f32]) -> f32 {
    mean_abs(weights).max(ABSMAX_FLOOR)
}

impl AttrValue for TernaryRule {
    const KIND: &'static str = "@absmean_tensor or @threshold_row";
    fn to_attr(&self) -> Attr {
        Attr::Name(Arc::from(self.name()))
    }
    fn from_attr(attr: &Attr) -> Option<Self> {
        match attr {
            Attr::Name(name) => Self::ALL.into_iter().find(|rule| rule.name() == &**name),
            _ => None,
        }
    }
}

fn expect_float_matrix(w: &TensorType) -> Result<(), TypeError> {
    expect_matrix("w", w)?;
    if !w.dtype.is_float() {
        return Err(TypeError::DType { input: "w", expected: "f32, bf16 or f16", found: w.dtype });
    }
    Ok(())
}

op! {
    /// The ternary values of real weights `[m, k]`.
    Ternarise = "ternarise" (w) {
        /// How.
        rule: TernaryRule,
    }
}

impl OpDef for Ternarise {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [w] = arity(inputs)?;
        expect_float_matrix(w)?;
        Ok(w.with_dtype(DType::T2))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let weights: Vec<f32> = inputs[0].data.iter().map(|&w| w as f32).collect();
        let values = self.rule.ternarise(&weights, out.dims[0]);
        Tensor::new(out.clone(), values.into_iter().map(f64::from).collect())
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        Ok([straight_through::ternarise(b, self.rule, inputs[0], dy)?].into_iter().collect())
    }
}

op! {
    /// The scale `[1]` that belongs to [`Ternarise`] of the same weights by [`TernaryRule::AbsmeanTensor`].
    TernaryScale = "ternary_scale" (w) {}
}

impl OpDef for TernaryScale {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [w] = arity(inputs)?;
        expect_float_matrix(w)?;
        Ok(TensorType::new(DType::F32, Shape::of(&[1])))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let weights: Vec<f32> = inputs[0].data.iter().map(|&w| w as f32).collect();
        Tensor::new(out.clone(), vec![f64::from(absmean(&weights))])
    }

    fn vjp(&self, _: &mut Builder, _: &[ValueId], _: ValueId, _: ValueId) -> Result<Gradients, VjpError> {
        Ok([straight_through::ternary_scale()].into_iter().collect())
    }
}

op! {
    /// The thresholds `[m, 1]` of [`TernaryRule::ThresholdRow`]: `mean |W_j|` of each row, summed in f64 and rounded once.
    RowThreshold = "row_threshold" (w) {}
}

impl OpDef for RowThreshold {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [w] = arity(inputs)?;
        expect_float_matrix(w)?;
        Ok(TensorType::new(DType::F32, Shape::new([w.shape.0[0].clone(), Dim::Const(1)])))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let thresholds = inputs[0].rows().map(|row| {
            let weights: Vec<f32> = row.iter().map(|&w| w as f32).collect();
            vec![f64::from(mean_abs(&weights))]
        });
        Tensor::from_rows(out, thresholds)
    }

    fn vjp(&self, _: &mut Builder, _: &[ValueId], _: ValueId, _: ValueId) -> Result<Gradients, VjpError> {
        Ok([straight_through::ternary_scale()].into_iter().collect())
    }
}

op! {
    /// Ternary values as f32.
    Unpack = "unpack" (w) {}
}

impl OpDef for Unpack {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [w] = arity(inputs)?;
        match w.dtype {
            DType::T2 => Ok(w.with_dtype(DType::F32)),
            found => Err(TypeError::DType { input: "w", expected: "t2", found }),
        }
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        Tensor::new(out.clone(), inputs[0].data.clone())
    }

    fn vjp(&self, _: &mut Builder, _: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        Ok([Gradient::Of(dy)].into_iter().collect())
    }
}

op! {
    /// Ternary values as bf16, which holds them exactly, made in each call: unlike [`Unpack`] it is not computed ahead of time where the weights are
    /// parameters, so that what is kept is packed. A product in half precision reads its result.
    UnpackInCall = "unpack_in_call" (w) {}
}

impl OpDef for UnpackInCall {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [w] = arity(inputs)?;
        expect_matrix("w", w)?;
        match w.dtype {
            DType::T2 => Ok(w.with_dtype(DType::BF16)),
            found => Err(TypeError::DType { input: "w", expected: "t2", found }),
        }
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        Tensor::new(out.clone(), inputs[0].data.clone())
    }

    fn vjp(&self, _: &mut Builder, _: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        Ok([Gradient::Of(dy)].into_iter().collect())
    }
}

op! {
    /// Each row as int8 codes with one scale: see [`RowFormat::encode`] for the formula, which is that of BitNet's activations.
    Quantize = "quantize" (x) {}
}

impl OpDef for Quantize {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x] = arity(inputs)?;
        expect_f32("x", x)?;
        if x.shape.last_const().is_none() {
            return Err(TypeError::Rank {
                input: "x",
                expected: "a constant innermost dimension",
                found: x.shape.clone(),
            });
        }
        Ok(x.with_dtype(DType::Q8))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        Tensor::from_rows(out, inputs[0].rows().map(|row| through_format(DType::Q8, row)))
    }

    fn vjp(&self, _: &mut Builder, _: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        Ok([straight_through::store(dy)].into_iter().collect())
    }
}

op! {
    /// Each group of `group` neighbouring columns as 4-bit codes with a scale and a minimum: f32 `[.., k]` becomes q4 `[.., k / group, group]`.
    QuantizeGroups = "quantize_groups" (x) {
        /// Columns that share a scale; divides their number.
        group: u64,
    }
}

impl OpDef for QuantizeGroups {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x] = arity(inputs)?;
        expect_f32("x", x)?;
        match x.shape.last_const().and_then(|k| k.checked_rem(self.group).map(|rest| (k, rest))) {
            Some((k, 0)) => {
                let groups = [Dim::Const(k / self.group), Dim::Const(self.group)];
                Ok(TensorType::new(DType::Q4, x.shape.outer().iter().cloned().chain(groups).collect()))
            }
            _ => Err(TypeError::attribute("group", self.group, "it must divide a constant innermost dimension of `x`")),
        }
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let groups = inputs[0].data.chunks((self.group as usize).max(1));
        Tensor::from_rows(out, groups.map(|group| through_format(DType::Q4, group)))
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let shape = b.ty(inputs[0]).shape.clone();
        let rows = b.op(Reshape { shape }, &[dy])?;
        Ok([straight_through::store(rows)].into_iter().collect())
    }
}

/// What is read back of a row that was stored in a row format.
pub(crate) fn through_format(dtype: DType, row: &[f64]) -> Vec<f64> {
    let Some(format) = RowFormat::new(dtype, row.len()) else { return row.to_vec() };
    let mut values: Vec<f32> = row.iter().map(|&value| value as f32).collect();
    let mut record = vec![0; format.stride()];
    format.encode(&values, &mut record);
    format.decode(&record, &mut values);
    values.into_iter().map(f64::from).collect()
}

op! {
    /// Quantised rows as f32.
    Dequantize = "dequantize" (x) {}
}

impl OpDef for Dequantize {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x] = arity(inputs)?;
        if !x.dtype.is_row_format() {
            return Err(TypeError::DType { input: "x", expected: "q8 or q4", found: x.dtype });
        }
        Ok(x.with_dtype(DType::F32))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        Tensor::new(out.clone(), inputs[0].data.clone())
    }

    fn vjp(&self, _: &mut Builder, _: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        Ok([Gradient::Of(dy)].into_iter().collect())
    }
}

op! {
    /// `out[.., j] = s[j] * sum_i x[.., i] * w[j, i]`: `x` q8 or f32 `[.., k]`, `w` t2 `[m, k]`, `s` f32 `[m]`; the result is f32 `[.., m]`.
    TernaryMatmul = "ternary_matmul" (x, w, s) {}
}

impl OpDef for TernaryMatmul {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x, w, s] = arity(inputs)?;
        if !matches!(x.dtype, DType::F32 | DType::Q8) {
            return Err(TypeError::DType { input: "x", expected: "q8 or f32", found: x.dtype });
        }
        if w.dtype != DType::T2 {
            return Err(TypeError::DType { input: "w", expected: "t2", found: w.dtype });
        }
        expect_f32("s", s)?;
        let ty = contraction_type(x, w, DType::F32)?;
        if s.shape.dims() != std::slice::from_ref(&w.shape.0[0]) {
            return Err(TypeError::mismatch("the rows of `w` and the size of `s`", &w.shape, &s.shape));
        }
        if let Dim::Sym(symbol) = &w.shape.0[1] {
            return Err(TypeError::mismatch("`k` and a constant", symbol, "a number"));
        }
        Ok(ty)
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let (w, s) = (inputs[1], inputs[2]);
        let rows = inputs[0].rows().map(|x| w.rows().zip(&s.data).map(|(w, s)| dot(x, w) * s).collect());
        Tensor::from_rows(out, rows)
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let [x, w, s] = [inputs[0], inputs[1], inputs[2]];
        let dx = b.op(TernaryMatmulTransposed {}, &[dy, w, s])?;
        let x = if b.ty(x).dtype == DType::Q8 { b.op(Dequantize {}, &[x])? } else { x };
        let (dw, ds) = ternary_weight_gradients(b, Self::NAME, x, w, s, dy)?;
        Ok([Gradient::Of(dx), Gradient::Of(dw), Gradient::Of(ds)].into_iter().collect())
    }
}

op! {
    /// As [`TernaryMatmul`], with weights that are stored five to a byte, in base 3: 1.6 bits each instead of 2, for some more work to take them
    /// apart. `x` is q8.
    TernaryMatmulBase3 = "ternary_matmul_base3" (x, w, s) {}
}

impl OpDef for TernaryMatmulBase3 {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x, _, _] = arity(inputs)?;
        if x.dtype != DType::Q8 {
            return Err(TypeError::DType { input: "x", expected: "q8", found: x.dtype });
        }
        TernaryMatmul {}.infer(inputs)
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        TernaryMatmul {}.reference(inputs, out)
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], y: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        TernaryMatmul {}.vjp(b, inputs, y, dy)
    }
}

/// The gradients of the weights and of the scales of `s[j] * sum_i x[.., i] * w[j, i]`.
fn ternary_weight_gradients(
    b: &mut Builder,
    op: &'static str,
    x: ValueId,
    w: ValueId,
    s: ValueId,
    dy: ValueId,
) -> Result<(ValueId, ValueId), VjpError> {
    let scaled = b.op(Mul {}, &[dy, s])?;
    let dw = across_rows(b, op, scaled, x)?;
    let unpacked = b.op(Unpack {}, &[w])?;
    let sums = b.op(Matmul {}, &[x, unpacked])?;
    let products = b.op(Mul {}, &[dy, sums])?;
    let shape = b.ty(s).shape.clone();
    Ok((dw, sum_to(b, products, &shape)?))
}

op! {
    /// The other way through the same weights: `out[.., i] = sum_j (x[.., j] * s[j]) * w[j, i]`, in ascending order of `j`. `x` is f32 `[.., m]`, `w`
    /// t2 `[m, k]`, `s` f32 `[m]`; the result is f32 `[.., k]`. Gradients flow so through packed weights, of which no transposed copy is kept.
    TernaryMatmulTransposed = "ternary_matmul_transposed" (x, w, s) {}
}

impl OpDef for TernaryMatmulTransposed {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x, w, s] = arity(inputs)?;
        expect_f32("x", x)?;
        let (m, k) = expect_matrix("w", w)?;
        if w.dtype != DType::T2 {
            return Err(TypeError::DType { input: "w", expected: "t2", found: w.dtype });
        }
        expect_f32("s", s)?;
        if s.shape.dims() != std::slice::from_ref(m) {
            return Err(TypeError::mismatch("the rows of `w` and the size of `s`", &w.shape, &s.shape));
        }
        if x.shape.last() != Some(m) {
            return Err(TypeError::mismatch("the contracted dimensions of `x` and `w`", &x.shape, &w.shape));
        }
        Ok(TensorType::new(DType::F32, x.shape.outer().iter().cloned().chain([k.clone()]).collect()))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let (w, s) = (inputs[1], inputs[2]);
        let k = w.dims()[1];
        let rows = inputs[0].rows().map(|x| {
            let mut sums = vec![0.0; k];
            for (j, (x, s)) in x.iter().zip(&s.data).enumerate() {
                let row = &w.data[j * k..(j + 1) * k];
                sums.iter_mut().zip(row).for_each(|(sum, w)| *sum += x * s * w);
            }
            sums
        });
        Tensor::from_rows(out, rows)
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let [x, w, s] = [inputs[0], inputs[1], inputs[2]];
        let dx = b.op(TernaryMatmul {}, &[dy, w, s])?;
        // With the roles of `x` and `dy` exchanged this is the forward product.
        let (dw, ds) = ternary_weight_gradients(b, Self::NAME, dy, w, s, x)?;
        Ok([Gradient::Of(dx), Gradient::Of(dw), Gradient::Of(ds)].into_iter().collect())
    }
}
