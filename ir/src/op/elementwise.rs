//! Element by element: arithmetic, comparisons, activations. Binary ops broadcast.
//!
//! Floats are computed in f32. Integers (i32) are exact; overflow wraps on no target, because no verified program reaches it: it is a
//! property of the values, and the ops that feed integers say their bounds.

use crate::builder::{BuildError, Builder};
use crate::dtype::DType;
use crate::graph::ValueId;
use crate::op::{Concrete, OpDef, TypeError, arity, expect_f32, op};
use crate::reference::Tensor;
use crate::shape::TensorType;
use crate::vjp::{Gradient, Gradients, VjpError, Zero, scalar, sum_to};

fn binary_type(inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
    let [lhs, rhs] = arity(inputs)?;
    if lhs.dtype != rhs.dtype {
        return Err(TypeError::mismatch("element types", lhs.dtype, rhs.dtype));
    }
    if !matches!(lhs.dtype, DType::F32 | DType::I32) {
        return Err(TypeError::DType { input: "lhs", expected: "f32 or i32", found: lhs.dtype });
    }
    let shape = lhs.shape.broadcast(&rhs.shape).ok_or_else(|| TypeError::mismatch("shapes", &lhs.shape, &rhs.shape))?;
    Ok(TensorType::new(lhs.dtype, shape))
}

fn unary_type(inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
    let [x] = arity(inputs)?;
    expect_f32("x", x)?;
    Ok((*x).clone())
}

/// The gradients of an op of two broadcast inputs, from those before they are summed over what was repeated. Integers have none.
fn summed(b: &mut Builder, inputs: &[ValueId], gradients: [Option<ValueId>; 2]) -> Result<Gradients, VjpError> {
    let mut result = Gradients::new();
    for (&input, gradient) in inputs.iter().zip(gradients) {
        let shape = b.ty(input).shape.clone();
        result.push(match gradient {
            Some(gradient) if b.ty(input).dtype == DType::F32 => Gradient::Of(sum_to(b, gradient, &shape)?),
            _ => Gradient::Zero(Zero::Integer),
        });
    }
    Ok(result)
}

/// `dy` where the condition holds, else 0; and the other way round.
fn parted(b: &mut Builder, condition: ValueId, dy: ValueId) -> Result<[Option<ValueId>; 2], BuildError> {
    let zero = scalar(b, 0.0);
    Ok([Some(b.op(Select {}, &[condition, dy, zero])?), Some(b.op(Select {}, &[condition, zero, dy])?)])
}

/// The inputs of an op on integers, whose results nothing can be derived by.
fn integers(inputs: &[ValueId]) -> Gradients {
    inputs.iter().map(|_| Gradient::Zero(Zero::Integer)).collect()
}

macro_rules! binary {
    ($($(#[$meta:meta])* $name:ident = $text:literal, |$lhs:ident, $rhs:ident| $value:expr,
       |$b:ident, $l:ident, $r:ident, $dy:ident| $gradients:expr;)*) => {
        $(op! {
            $(#[$meta])*
            $name = $text (lhs, rhs) {}
        }

        impl OpDef for $name {
            fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
                binary_type(inputs)
            }

            fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
                Tensor::from_fn(out, |at| {
                    let ($lhs, $rhs) = (inputs[0].broadcast_at(at), inputs[1].broadcast_at(at));
                    $value
                })
            }

            fn vjp(&self, $b: &mut Builder, inputs: &[ValueId], _: ValueId, $dy: ValueId) -> Result<Gradients, VjpError> {
                let ($l, $r) = (inputs[0], inputs[1]);
                if $b.ty($l).dtype != DType::F32 {
                    return Ok(integers(inputs));
                }
                let gradients: [Option<ValueId>; 2] = $gradients;
                summed($b, inputs, gradients)
            }
        })*
    };
}

binary! {
    /// `lhs + rhs`.
    Add = "add", |lhs, rhs| lhs + rhs, |_b, _lhs, _rhs, dy| [Some(dy), Some(dy)];
    /// `lhs - rhs`.
    Sub = "sub", |lhs, rhs| lhs - rhs, |b, _lhs, _rhs, dy| [Some(dy), Some(b.op(Neg {}, &[dy])?)];
    /// `lhs * rhs`.
    Mul = "mul", |lhs, rhs| lhs * rhs,
        |b, lhs, rhs, dy| [Some(b.op(Mul {}, &[dy, rhs])?), Some(b.op(Mul {}, &[dy, lhs])?)];
    /// The smaller of the two; a number where the other is not one. The gradient is that of `lhs` where `lhs < rhs`, and else that of `rhs`.
    Minimum = "minimum", |lhs, rhs| lhs.min(rhs), |b, lhs, rhs, dy| {
        let is_lhs = b.op(Less {}, &[lhs, rhs])?;
        parted(b, is_lhs, dy)?
    };
    /// The larger of the two; a number where the other is not one. The gradient is that of `lhs` where `rhs < lhs`, and else that of `rhs`.
    Maximum = "maximum", |lhs, rhs| lhs.max(rhs), |b, lhs, rhs, dy| {
        let is_lhs = b.op(Less {}, &[rhs, lhs])?;
        parted(b, is_lhs, dy)?
    };
}

op! {
    /// `lhs / rhs`, for floats.
    Div = "div" (lhs, rhs) {}
}

impl OpDef for Div {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let ty = binary_type(inputs)?;
        expect_f32("lhs", &ty)?;
        Ok(ty)
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        Tensor::from_fn(out, |at| inputs[0].broadcast_at(at) / inputs[1].broadcast_at(at))
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], y: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let lhs = b.op(Div {}, &[dy, inputs[1]])?;
        let product = b.op(Mul {}, &[lhs, y])?;
        let rhs = b.op(Neg {}, &[product])?;
        summed(b, inputs, [Some(lhs), Some(rhs)])
    }
}

op! {
    /// 1 where `lhs < rhs`, else 0, as i32.
    Less = "less" (lhs, rhs) {}
}

impl OpDef for Less {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        Ok(binary_type(inputs)?.with_dtype(DType::I32))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        Tensor::from_fn(out, |at| f64::from(u8::from(inputs[0].broadcast_at(at) < inputs[1].broadcast_at(at))))
    }

    fn vjp(&self, _: &mut Builder, _: &[ValueId], _: ValueId, _: ValueId) -> Result<Gradients, VjpError> {
        Ok([Gradient::Zero(Zero::Flat); 2].into_iter().collect())
    }
}

op! {
    /// `lhs` where `condition` (i32) is not 0, else `rhs`.
    Select = "select" (condition, lhs, rhs) {}
}

impl OpDef for Select {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [condition, lhs, rhs] = arity(inputs)?;
        if condition.dtype != DType::I32 {
            return Err(TypeError::DType { input: "condition", expected: "i32", found: condition.dtype });
        }
        let ty = binary_type(&[lhs, rhs])?;
        let shape = ty
            .shape
            .broadcast(&condition.shape)
            .ok_or_else(|| TypeError::mismatch("shapes", &condition.shape, &ty.shape))?;
        Ok(TensorType::new(ty.dtype, shape))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        Tensor::from_fn(out, |at| inputs[if inputs[0].broadcast_at(at) != 0.0 { 1 } else { 2 }].broadcast_at(at))
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        if b.ty(inputs[1]).dtype != DType::F32 {
            return Ok(integers(inputs));
        }
        let parts = parted(b, inputs[0], dy)?;
        let mut gradients = summed(b, &inputs[1..], parts)?;
        gradients.insert(0, Gradient::Zero(Zero::Integer));
        Ok(gradients)
    }
}

macro_rules! unary {
    ($($(#[$meta:meta])* $name:ident = $text:literal, |$x:ident| $value:expr,
       |$b:ident, $in:ident, $y:ident, $dy:ident| $gradient:expr;)*) => {
        $(op! {
            $(#[$meta])*
            $name = $text (x) {}
        }

        impl OpDef for $name {
            fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
                unary_type(inputs)
            }

            fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
                Tensor::from_fn(out, |at| {
                    let $x = inputs[0].broadcast_at(at);
                    $value
                })
            }

            fn vjp(
                &self,
                $b: &mut Builder,
                inputs: &[ValueId],
                $y: ValueId,
                $dy: ValueId,
            ) -> Result<Gradients, VjpError> {
                let $in = inputs[0];
                let gradient: ValueId = $gradient;
                Ok([Gradient::Of(gradient)].into_iter().collect())
            }
        })*
    };
}

unary! {
    /// `-x`.
    Neg = "neg", |x| -x, |b, _x, _y, dy| b.op(Neg {}, &[dy])?;
    /// `|x|`. Its gradient at 0 is 0.
    Abs = "abs", |x| x.abs(), |b, x, _y, dy| {
        let (zero, minus) = (scalar(b, 0.0), b.op(Neg {}, &[dy])?);
        let (below, above) = (b.op(Less {}, &[x, zero])?, b.op(Less {}, &[zero, x])?);
        let right = b.op(Select {}, &[above, dy, zero])?;
        b.op(Select {}, &[below, minus, right])?
    };
    /// `e^x`.
    Exp = "exp", |x| x.exp(), |b, _x, y, dy| b.op(Mul {}, &[dy, y])?;
    /// The natural logarithm.
    Log = "log", |x| x.ln(), |b, x, _y, dy| b.op(Div {}, &[dy, x])?;
    /// The square root.
    Sqrt = "sqrt", |x| x.sqrt(), |b, _x, y, dy| {
        let (half, ratio) = (scalar(b, 0.5), b.op(Div {}, &[dy, y])?);
        b.op(Mul {}, &[ratio, half])?
    };
    /// `1 / sqrt(x)`, as a correctly rounded square root and a division.
    Rsqrt = "rsqrt", |x| 1.0 / x.sqrt(), |b, x, y, dy| {
        let (half, product) = (scalar(b, -0.5), b.op(Mul {}, &[dy, y])?);
        let ratio = b.op(Div {}, &[product, x])?;
        b.op(Mul {}, &[ratio, half])?
    };
    /// The sine of `x` radians.
    Sin = "sin", |x| x.sin(), |b, x, _y, dy| {
        let cos = b.op(Cos {}, &[x])?;
        b.op(Mul {}, &[dy, cos])?
    };
    /// The cosine of `x` radians.
    Cos = "cos", |x| x.cos(), |b, x, _y, dy| {
        let sin = b.op(Sin {}, &[x])?;
        let product = b.op(Mul {}, &[dy, sin])?;
        b.op(Neg {}, &[product])?
    };
    /// `max(x, 0)`. Its gradient at 0 is 0.
    Relu = "relu", |x| x.max(0.0), |b, x, _y, dy| {
        let zero = scalar(b, 0.0);
        let above = b.op(Less {}, &[zero, x])?;
        b.op(Select {}, &[above, dy, zero])?
    };
    /// `max(x, 0)^2` (So et al., Primer, 2021).
    Relu2 = "relu2", |x| x.max(0.0) * x.max(0.0), |b, x, _y, dy| {
        let (two, relu) = (scalar(b, 2.0), b.op(Relu {}, &[x])?);
        let slope = b.op(Mul {}, &[relu, two])?;
        b.op(Mul {}, &[dy, slope])?
    };
    /// `1 / (1 + e^-x)`.
    Sigmoid = "sigmoid", |x| 1.0 / (1.0 + (-x).exp()), |b, _x, y, dy| {
        let one = scalar(b, 1.0);
        let rest = b.op(Sub {}, &[one, y])?;
        let slope = b.op(Mul {}, &[y, rest])?;
        b.op(Mul {}, &[dy, slope])?
    };
    /// `x / (1 + e^-x)`.
    Silu = "silu", |x| x / (1.0 + (-x).exp()), |b, x, y, dy| {
        let (one, sigmoid) = (scalar(b, 1.0), b.op(Sigmoid {}, &[x])?);
        let rest = b.op(Sub {}, &[one, sigmoid])?;
        let curve = b.op(Mul {}, &[y, rest])?;
        let slope = b.op(Add {}, &[sigmoid, curve])?;
        b.op(Mul {}, &[dy, slope])?
    };
}

op! {
    /// The nearest whole number, ties to even.
    Round = "round" (x) {}
}

impl OpDef for Round {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        unary_type(inputs)
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        Tensor::from_fn(out, |at| inputs[0].broadcast_at(at).round_ties_even())
    }

    fn vjp(&self, _: &mut Builder, _: &[ValueId], _: ValueId, _: ValueId) -> Result<Gradients, VjpError> {
        Ok([Gradient::Zero(Zero::Flat)].into_iter().collect())
    }
}

op! {
    /// The same value in another element type. To an integer: rounded to nearest, ties to even, saturating; 0 for
    /// what is not a number.
    Cast = "cast" (x) {
        /// The result's element type: f32, f16, bf16, i8 or i32.
        to: DType,
    }
}

impl OpDef for Cast {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x] = arity(inputs)?;
        if x.dtype.is_row_format() || x.dtype == DType::T2 {
            return Err(TypeError::DType { input: "x", expected: "a plain number type", found: x.dtype });
        }
        if self.to.bytes().is_none() {
            return Err(TypeError::attribute("to", self.to, "only f32, f16, bf16, i8 and i32 can be cast to"));
        }
        Ok(x.with_dtype(self.to))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        Tensor::from_fn(out, |at| {
            let x = inputs[0].broadcast_at(at);
            match self.to {
                DType::F16 => half::f16::from_f64(x).to_f64(),
                DType::BF16 => half::bf16::from_f64(x).to_f64(),
                DType::I8 | DType::I32 if x.is_nan() => 0.0,
                DType::I8 => x.round_ties_even().clamp(-128.0, 127.0),
                DType::I32 => x.round_ties_even().clamp(f64::from(i32::MIN), f64::from(i32::MAX)),
                _ => x,
            }
        })
    }

    /// Between float types the gradient stays what it is: gradients are f32 whatever their values are.
    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let gradient = match (b.ty(inputs[0]).dtype.is_float(), self.to.is_float()) {
            (true, true) => Gradient::Of(dy),
            (true, false) => Gradient::Zero(Zero::Flat),
            (false, _) => Gradient::Zero(Zero::Integer),
        };
        Ok([gradient].into_iter().collect())
    }
}

op! {
    /// `relu2(gate) * up`: the gated squared-ReLU of the feed-forward block.
    Relu2Mul = "relu2_mul" (gate, up) {}
}

impl OpDef for Relu2Mul {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let ty = binary_type(inputs)?;
        expect_f32("gate", &ty)?;
        Ok(ty)
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        Tensor::from_fn(out, |at| {
            let gate = inputs[0].broadcast_at(at).max(0.0);
            gate * gate * inputs[1].broadcast_at(at)
        })
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let bent = b.op(Relu2 {}, &[inputs[0]])?;
        let (two, relu) = (scalar(b, 2.0), b.op(Relu {}, &[inputs[0]])?);
        let slope = b.op(Mul {}, &[relu, two])?;
        let through = b.op(Mul {}, &[dy, inputs[1]])?;
        let gate = b.op(Mul {}, &[through, slope])?;
        let up = b.op(Mul {}, &[dy, bent])?;
        summed(b, inputs, [Some(gate), Some(up)])
    }
}
