//! The optimiser of training as a program: from gradients to new parameters.
//!
//! It is a program of its own beside the one that gives the gradients ([`crate::autodiff`]), because it runs once where that one may run often.
//! Both mean the same tensors: what is a parameter there is a state here, under the same key, and beside it are the states of the optimiser.
//! For each parameter everything is elementwise over the same shape, so a scheduler makes one pass of it: gradient, parameter and moments are
//! read once, and parameter and moments written.
//!
//! | input | type | meaning |
//! |---|---|---|
//! | `settings` | f32 `[5]` | see [`AdamW::settings`]: what differs from step to step |
//! | `KEY.gradient`, with `*` for `{}` | f32, `[rounds, ..]` for a parameter of the layers | the gradients, in the order given |
//!
//! The output is the global norm of the gradients, f32 `[1]`, averaged and before they were clipped.
//!
//! A parameter that is not f32 has a master in f32, `KEY.master`, which is what the optimiser changes; the parameter is the master, rounded.

use ir::graph::Program;
use ir::op::control::Scan;
use ir::op::elementwise::{Add, Cast, Div, Minimum, Mul, Sqrt, Sub};
use ir::op::movement::Slice;
use ir::op::reduce::Sum;
use ir::plan::training::settings;
use ir::verify::VerifyErrors;
use ir::vjp::{scalar, sum_to};
use ir::{BuildError, Builder, DType, Dim, Shape, TensorType, ValueId, Verified, verify};

use crate::autodiff::ParamGradient;

/// What is added to the norm before it divides, as `clip_grad_norm_` of PyTorch does.
const CLIP_EPS: f64 = 1e-6;

/// AdamW (Loshchilov and Hutter, 2019): Adam with weight decay beside the gradient, and clipping by the global norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// How slowly the mean of gradients moves.
    pub beta1: f64,
    /// How slowly the mean of their squares moves.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub eps: f64,
    /// The largest global norm that gradients keep; longer ones are shortened to it.
    pub clip: Option<f64>,
}

/// Why there is no optimiser for some parameters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptimiserError {
    /// The parameter is not of a type whose values can change by a little.
    #[error("`{key}` is {ty}: only parameters of f32, bf16 and f16 can be trained")]
    NotFloat {
        /// Its key.
        key: String,
        /// Its type.
        ty: TensorType,
    },
    /// There is nothing to train.
    #[error("there are no parameters to train")]
    Empty,
    /// The result is not well formed. Always a bug in tritter.
    #[error("internal error: the optimiser is not well formed:\n{0}")]
    Invalid(#[from] VerifyErrors),
    /// An op of the result does not fit. Always a bug in tritter.
    #[error("internal error: {0}")]
    Build(#[from] BuildError),
}

impl AdamW {
    /// The input `settings` of an update: see [`ir::plan::training::settings`].
    pub fn settings(&self, step: u64, rate: f64, decay: f64, batches: u32) -> [f32; 5] {
        settings(self.betas(), step, rate, decay, batches)
    }

    /// Both betas.
    pub fn betas(&self) -> [f64; 2] {
        [self.beta1, self.beta2]
    }

    /// The program that changes parameters by their gradients; `decays` says which of them decay.
    ///
    /// # Errors
    ///
    /// If a parameter cannot be trained.
    pub fn program(
        &self,
        gradients: &[ParamGradient],
        decays: &dyn Fn(&str) -> bool,
    ) -> Result<Verified<Program>, OptimiserError> {
        let not_float = gradients.iter().find(|gradient| !gradient.ty.dtype.is_float());
        if let Some(ParamGradient { key, ty, .. }) = not_float {
            return Err(OptimiserError::NotFloat { key: key.clone(), ty: ty.clone() });
        }
        let mut b = Builder::new("update");
        let settings = b.input("settings", f32_type(Shape::of(&[5])));
        let mut inputs = Vec::new();
        for gradient in gradients {
            let axis = gradient.rounds.map(|rounds| Dim::Const(u64::from(rounds)));
            let shape = axis.into_iter().chain(gradient.ty.shape.dims().iter().cloned()).collect();
            inputs.push(b.input(&gradient_name(&gradient.key), f32_type(shape)));
        }
        let share = b.op(Slice { axis: 0, start: 4, end: 5 }, &[settings])?;
        let sum_norm = global_norm(&mut b, &inputs)?;
        let norm = b.named("norm", Mul {}, &[sum_norm, share])?;
        let scale = match self.clip {
            Some(clip) => {
                let (clip, eps, one) = (f32_scalar(&mut b, clip), f32_scalar(&mut b, CLIP_EPS), scalar(&mut b, 1.0));
                let padded = b.op(Add {}, &[norm, eps])?;
                let ratio = b.op(Div {}, &[clip, padded])?;
                let kept = b.op(Minimum {}, &[ratio, one])?;
                b.named("clip", Mul {}, &[kept, share])?
            }
            None => share,
        };
        for (gradient, &input) in gradients.iter().zip(&inputs).filter(|(gradient, _)| gradient.rounds.is_none()) {
            self.update(&mut b, gradient, input, settings, scale, decays(&gradient.key))?;
        }

        // One body for all parameters of as many rounds. The norm passes through all of them, so that whoever asks for it asks for them.
        let mut carried = norm;
        let mut graphs = Vec::new();
        let mut counts: Vec<u32> = gradients.iter().filter_map(|gradient| gradient.rounds).collect();
        counts.sort_unstable();
        counts.dedup();
        for count in counts {
            let name = format!("update.{count}");
            let mut body = Builder::new(&name);
            let norm = body.input("norm", f32_type(Shape::of(&[1])));
            let clip = body.input("clip", f32_type(Shape::of(&[1])));
            let of_body = body.input("settings", f32_type(Shape::of(&[5])));
            let mut operands = vec![carried, scale, settings];
            let rolled = gradients.iter().zip(&inputs).filter(|(gradient, _)| gradient.rounds == Some(count));
            for (gradient, &input) in rolled {
                let part = body.input(&gradient_name(&gradient.key), gradient.ty.with_dtype(DType::F32));
                self.update(&mut body, gradient, part, of_body, clip, decays(&gradient.key))?;
                operands.push(input);
            }
            let stacked = operands.len() as u32 - 3;
            graphs.push(body.finish(&[norm]));
            carried = b.op(Scan { body: name.as_str().into(), count, stacked, reverse: 0 }, &operands)?;
        }
        graphs.push(b.finish(&[carried]));
        Ok(verify(Program { name: "adamw".to_owned(), symbols: Vec::new(), graphs })?)
    }

    /// One parameter's step.
    fn update(
        &self,
        b: &mut Builder,
        gradient: &ParamGradient,
        dy: ValueId,
        settings: ValueId,
        scale: ValueId,
        decays: bool,
    ) -> Result<(), BuildError> {
        let ParamGradient { key, ty, .. } = gradient;
        let wide = ty.with_dtype(DType::F32);
        let param = b.state(key, key, ty.clone());
        let (master, master_key) = (ty.dtype != DType::F32, master_name(key));
        let weights = if master { b.state(&master_key, &master_key, wide.clone()) } else { param };
        let state = |b: &mut Builder, suffix: &str| {
            let key = format!("{key}.{suffix}");
            b.state(&key, &key, wide.clone())
        };
        let (mean, square) = (state(b, FIRST_MOMENT), state(b, SECOND_MOMENT));
        let setting = |b: &mut Builder, at: u64| b.op(Slice { axis: 0, start: at, end: at + 1 }, &[settings]);
        let (rate, decay) = (setting(b, 0)?, setting(b, 1)?);
        let (mean_left, root_left) = (setting(b, 2)?, setting(b, 3)?);
        let (beta1, beta2) = (f32_scalar(b, 1.0 - self.beta1), f32_scalar(b, self.beta2));
        let (beta2_left, eps) = (f32_scalar(b, 1.0 - self.beta2), f32_scalar(b, self.eps));

        let dy = b.op(Mul {}, &[dy, scale])?;
        let step = b.op(Sub {}, &[dy, mean])?;
        let step = b.op(Mul {}, &[step, beta1])?;
        let new_mean = b.op(Add {}, &[mean, step])?;
        let dy_square = b.op(Mul {}, &[dy, dy])?;
        let (old, new) = (b.op(Mul {}, &[square, beta2])?, b.op(Mul {}, &[dy_square, beta2_left])?);
        let new_square = b.op(Add {}, &[old, new])?;

        let root = b.op(Sqrt {}, &[new_square])?;
        let root = b.op(Div {}, &[root, root_left])?;
        let root = b.op(Add {}, &[root, eps])?;
        let direction = b.op(Div {}, &[new_mean, root])?;
        let length = b.op(Div {}, &[rate, mean_left])?;
        let change = b.op(Mul {}, &[direction, length])?;
        let kept = match decays {
            true => {
                let part = b.op(Mul {}, &[rate, decay])?;
                let lost = b.op(Mul {}, &[weights, part])?;
                b.op(Sub {}, &[weights, lost])?
            }
            false => weights,
        };
        let new_weights = b.op(Sub {}, &[kept, change])?;
        b.update(mean, new_mean);
        b.update(square, new_square);
        b.update(weights, new_weights);
        if master {
            let rounded = b.op(Cast { to: ty.dtype }, &[new_weights])?;
            b.update(param, rounded);
        }
        Ok(())
    }
}

/// What the key of a sum of gradients ends in.
pub const GRADIENT: &str = ".gradient";
/// What the key of the mean of gradients ends in.
pub const FIRST_MOMENT: &str = "first_moment";
/// What the key of the mean of their squares ends in.
pub const SECOND_MOMENT: &str = "second_moment";

/// `sqrt(sum of squares)` over all gradients, `[1]`. Those of a matrix are added row by row, so that rows are read by many at once, and then the rows' sums.
fn global_norm(b: &mut Builder, gradients: &[ValueId]) -> Result<ValueId, OptimiserError> {
    let mut total: Option<ValueId> = None;
    for &gradient in gradients {
        let squares = b.op(Mul {}, &[gradient, gradient])?;
        let rows = if 1 < b.ty(squares).shape.rank() { b.op(Sum {}, &[squares])? } else { squares };
        let sum = sum_to(b, rows, &Shape::of(&[1]))?;
        total = Some(match total {
            Some(total) => b.op(Add {}, &[total, sum])?,
            None => sum,
        });
    }
    Ok(b.op(Sqrt {}, &[total.ok_or(OptimiserError::Empty)?])?)
}

/// What the f32 form of a parameter in half precision is called.
pub(crate) fn master_name(key: &str) -> String {
    format!("{key}.master")
}

/// What the gradient of a parameter is called, all rounds together.
pub(crate) fn gradient_name(key: &str) -> String {
    gradient_of_all_rounds(&format!("{key}{GRADIENT}"))
}

/// What the state is called that holds, one after the other, what a body's state of this key holds in each round.
pub(crate) fn gradient_of_all_rounds(key: &str) -> String {
    key.replace("{}", "*")
}

fn f32_type(shape: Shape) -> TensorType {
    TensorType::new(DType::F32, shape)
}

/// The nearest f32 to a number.
fn f32_scalar(b: &mut Builder, value: f64) -> ValueId {
    scalar(b, f64::from(value as f32))
}
