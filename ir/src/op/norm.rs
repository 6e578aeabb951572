//! Normalisation of rows, alone and with its neighbours.

use crate::builder::{BuildError, Builder};
use crate::dtype::DType;
use crate::graph::ValueId;
use crate::op::elementwise::{Add, Mul, Rsqrt, Sub};
use crate::op::reduce::Mean;
use crate::op::ternary::through_format;
use crate::op::{Concrete, OpDef, Real, TypeError, arity, expect_f32, op, straight_through};
use crate::reference::Tensor;
use crate::shape::{Shape, TensorType};
use crate::vjp::{Gradient, Gradients, VjpError, scalar, sum_to};

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

/// The gradients of a norm. With `z` the normalised row, `r` the inverse root that it was multiplied by and `g = dy * w`, that of the row is
/// `r * (g - z * mean(g * z))`, less `r * mean(g)` where the mean was taken off; that of `w` is `dy * z` and that of a bias `dy`, both summed
/// over the rows.
struct NormGradients {
    x: ValueId,
    w: ValueId,
    bias: ValueId,
}

fn norm_gradients(
    b: &mut Builder,
    x: ValueId,
    w: ValueId,
    eps: Real,
    is_centred: bool,
    dy: ValueId,
) -> Result<NormGradients, BuildError> {
    let width = b.ty(w).shape.clone();
    let centred = match is_centred {
        true => {
            let mean = b.op(Mean {}, &[x])?;
            b.op(Sub {}, &[x, mean])?
        }
        false => x,
    };
    let squares = b.op(Mul {}, &[centred, centred])?;
    let mean_square = b.op(Mean {}, &[squares])?;
    let eps = scalar(b, f64::from(eps.get() as f32));
    let padded = b.op(Add {}, &[mean_square, eps])?;
    let inverse = b.op(Rsqrt {}, &[padded])?;
    let normalised = b.op(Mul {}, &[centred, inverse])?;
    let weighted = b.op(Mul {}, &[dy, w])?;
    let products = b.op(Mul {}, &[weighted, normalised])?;
    let along = b.op(Mean {}, &[products])?;
    let along = b.op(Mul {}, &[normalised, along])?;
    let mut rest = b.op(Sub {}, &[weighted, along])?;
    if is_centred {
        let mean = b.op(Mean {}, &[weighted])?;
        rest = b.op(Sub {}, &[rest, mean])?;
    }
    let scales = b.op(Mul {}, &[dy, normalised])?;
    Ok(NormGradients {
        x: b.op(Mul {}, &[rest, inverse])?,
        w: sum_to(b, scales, &width)?,
        bias: sum_to(b, dy, &width)?,
    })
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

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let gradients = norm_gradients(b, inputs[0], inputs[1], self.eps, false, dy)?;
        Ok([gradients.x, gradients.w].map(Gradient::Of).into_iter().collect())
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

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let gradients = norm_gradients(b, inputs[0], inputs[1], self.eps, true, dy)?;
        Ok([gradients.x, gradients.w, gradients.bias].map(Gradient::Of).into_iter().collect())
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

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], y: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        match straight_through::store(dy) {
            Gradient::Of(dy) => RmsNorm { eps: self.eps }.vjp(b, inputs, y, dy),
            zero => Ok([zero; 2].into_iter().collect()),
        }
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

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let sum = b.op(Add {}, &inputs[..2])?;
        let gradients = norm_gradients(b, sum, inputs[2], self.eps, false, dy)?;
        Ok([gradients.x, gradients.x, gradients.w].map(Gradient::Of).into_iter().collect())
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

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let sum = b.op(Add {}, &inputs[..2])?;
        let gradients = norm_gradients(b, sum, inputs[2], self.eps, true, dy)?;
        let gradients = [gradients.x, gradients.x, gradients.w, gradients.bias];
        Ok(gradients.map(Gradient::Of).into_iter().collect())
    }
}
