//! Normalisation of rows, alone and with its neighbours.

use crate::dtype::DType;
use crate::op::ternary::through_format;
use crate::op::{Concrete, OpDef, Real, TypeError, arity, expect_f32, op};
use crate::reference::Tensor;
use crate::shape::{Shape, TensorType};

fn norm_type<const N: usize>(
    inputs: &[&TensorType; N],
    names: [&'static str; N],
    n_full: usize,
) -> Result<TensorType, TypeError> {
    let x = inputs[0];
    let Some(width) = x.shape.last() else {
        return Err(TypeError::Rank { input: names[0], expected: "at least 1 dimension", found: x.shape.clone() });
    };
    for (position, (input, name)) in inputs.iter().zip(names).enumerate() {
        expect_f32(name, input)?;
        if position < n_full && input.shape != x.shape {
            return Err(TypeError::mismatch("shapes", &x.shape, &input.shape));
        }
        if n_full <= position && input.shape != Shape::new([width.clone()]) {
            return Err(TypeError::mismatch("the width and its weights", &x.shape, &input.shape));
        }
    }
    Ok(x.clone())
}

fn rms_norm(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let inverse = 1.0 / (mean_square + eps).sqrt();
    x.iter().zip(w).map(|(x, w)| x * inverse * w).collect()
}

fn layer_norm(x: &[f64], w: &[f64], b: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / x.len() as f64;
    let inverse = 1.0 / (variance + eps).sqrt();
    x.iter().zip(w.iter().zip(b)).map(|(x, (w, b))| (x - mean) * inverse * w + b).collect()
}

fn sums(inputs: &[&Tensor]) -> Vec<Vec<f64>> {
    let rows = inputs[0].rows().zip(inputs[1].rows());
    rows.map(|(x, r)| x.iter().zip(r).map(|(x, r)| x + r).collect()).collect()
}

op! {
    /// `x / sqrt(mean(x^2) + eps) * w` of each row (Zhang and Sennrich, 2019).
    RmsNorm = "rms_norm" (x, w) {
        /// Added to the mean square.
        eps: Real,
    }
}

impl OpDef for RmsNorm {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        norm_type(arity::<2>(inputs)?, ["x", "w"], 1)
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        Tensor::from_rows(out, inputs[0].rows().map(|x| rms_norm(x, &inputs[1].data, self.eps.get())))
    }
}

op! {
    /// `(x - mean(x)) / sqrt(variance(x) + eps) * w + b` of each row (Ba et al., 2016); the variance is that of the whole row, not an estimate.
    LayerNorm = "layer_norm" (x, w, b) {
        /// Added to the variance.
        eps: Real,
    }
}

impl OpDef for LayerNorm {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        norm_type(arity::<3>(inputs)?, ["x", "w", "b"], 1)
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let rows = inputs[0].rows();
        Tensor::from_rows(out, rows.map(|x| layer_norm(x, &inputs[1].data, &inputs[2].data, self.eps.get())))
    }
}

op! {
    /// `quantize(rms_norm(x, w))`, so that the normalised row never reaches memory.
    RmsNormQuantize = "rms_norm_quantize" (x, w) {
        /// Added to the mean square.
        eps: Real,
    }
}

impl OpDef for RmsNormQuantize {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let ty = norm_type(arity::<2>(inputs)?, ["x", "w"], 1)?;
        if ty.shape.last_const().is_none() {
            return Err(TypeError::Rank { input: "x", expected: "a constant innermost dimension", found: ty.shape });
        }
        Ok(ty.with_dtype(DType::Q8))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let rows = inputs[0].rows().map(|x| rms_norm(x, &inputs[1].data, self.eps.get()));
        Tensor::from_rows(out, rows.map(|row| through_format(DType::Q8, &row)))
    }
}

op! {
    /// `rms_norm(x + r, w)`.
    AddRmsNorm = "add_rms_norm" (x, r, w) {
        /// Added to the mean square.
        eps: Real,
    }
}

impl OpDef for AddRmsNorm {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        norm_type(arity::<3>(inputs)?, ["x", "r", "w"], 2)
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let sums = sums(inputs);
        Tensor::from_rows(out, sums.iter().map(|x| rms_norm(x, &inputs[2].data, self.eps.get())))
    }
}

op! {
    /// `layer_norm(x + r, w, b)`.
    AddLayerNorm = "add_layer_norm" (x, r, w, b) {
        /// Added to the variance.
        eps: Real,
    }
}

impl OpDef for AddLayerNorm {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        norm_type(arity::<4>(inputs)?, ["x", "r", "w", "b"], 2)
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let sums = sums(inputs);
        let rows = sums.iter().map(|x| layer_norm(x, &inputs[2].data, &inputs[3].data, self.eps.get()));
        Tensor::from_rows(out, rows)
    }
}
