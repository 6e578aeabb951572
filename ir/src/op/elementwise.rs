//! Element by element: arithmetic, comparisons, activations. Binary ops broadcast.
//!
//! Floats are computed in f32. Integers (i32) are exact; overflow wraps on no target, because no verified program reaches it: it is a
//! property of the values, and the ops that feed integers say their bounds.

use crate::dtype::DType;
use crate::op::{Concrete, OpDef, TypeError, arity, expect_f32, op};
use crate::reference::Tensor;
use crate::shape::TensorType;

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

macro_rules! binary {
    ($($(#[$meta:meta])* $name:ident = $text:literal, |$lhs:ident, $rhs:ident| $value:expr;)*) => {
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
        })*
    };
}

binary! {
    /// `lhs + rhs`.
    Add = "add", |lhs, rhs| lhs + rhs;
    /// `lhs - rhs`.
    Sub = "sub", |lhs, rhs| lhs - rhs;
    /// `lhs * rhs`.
    Mul = "mul", |lhs, rhs| lhs * rhs;
    /// The smaller of the two; a number where the other is not one.
    Minimum = "minimum", |lhs, rhs| lhs.min(rhs);
    /// The larger of the two; a number where the other is not one.
    Maximum = "maximum", |lhs, rhs| lhs.max(rhs);
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
}

macro_rules! unary {
    ($($(#[$meta:meta])* $name:ident = $text:literal, |$x:ident| $value:expr;)*) => {
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
        })*
    };
}

unary! {
    /// `-x`.
    Neg = "neg", |x| -x;
    /// `|x|`.
    Abs = "abs", |x| x.abs();
    /// `e^x`.
    Exp = "exp", |x| x.exp();
    /// The natural logarithm.
    Log = "log", |x| x.ln();
    /// The square root.
    Sqrt = "sqrt", |x| x.sqrt();
    /// `1 / sqrt(x)`, as a correctly rounded square root and a division.
    Rsqrt = "rsqrt", |x| 1.0 / x.sqrt();
    /// The sine of `x` radians.
    Sin = "sin", |x| x.sin();
    /// The cosine of `x` radians.
    Cos = "cos", |x| x.cos();
    /// The nearest whole number, ties to even.
    Round = "round", |x| x.round_ties_even();
    /// `max(x, 0)`.
    Relu = "relu", |x| x.max(0.0);
    /// `max(x, 0)^2` (So et al., Primer, 2021).
    Relu2 = "relu2", |x| x.max(0.0) * x.max(0.0);
    /// `1 / (1 + e^-x)`.
    Sigmoid = "sigmoid", |x| 1.0 / (1.0 + (-x).exp());
    /// `x / (1 + e^-x)`.
    Silu = "silu", |x| x / (1.0 + (-x).exp());
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
}
