//! How fast a compiled step of training runs: whole steps by the clock, then every launch of a few by itself.
//!
//! A step is the gradients of one batch of random ids and the update, with a learning rate of zero: times do not depend on the values, and parameters
//! that stay what they were give every repeat the same work. The first steps are not counted. The launches are timed in steps of their own, since
//! events between launches cost time, and what a launch moves is the compiler's account, as in [`super::measure`].

use std::ops::ControlFlow;
use std::time::Instant;

use ir::DType;
use ir::plan::{Plan, Step};

use super::{Spread, StepRate, step_rates_of};
use crate::device::cuda::MemoryUse;
use crate::error::RuntimeError;
use crate::executor::{Cost, Sizes, cost_of};
use crate::sample::Random;
use crate::training::{Batch, PlanTrainer, Trainer, Update};

/// Steps ahead of the clock: the first brings states into memory, the second finds the device awake.
const WARM_UP: usize = 2;
/// Steps whose launches are timed.
const TRACED: usize = 3;

/// What was measured. Rates are a second, times of a step.
#[derive(Clone, Debug)]
pub struct TrainingMeasurement {
    /// Tokens of a step.
    pub tokens: usize,
    /// Tokens a second.
    pub tokens_per_s: Spread,
    /// Seconds of a step: the gradients of a batch and the update.
    pub step_seconds: Spread,
    /// Seconds of the part that is the update.
    pub update_seconds: Spread,
    /// Elements of all trained parameters.
    pub parameters: u64,
    /// Multiply-accumulates of the products of a step, attention apart, by the compiler's account.
    pub product_macs: u64,
    /// Those of attention and its gradient.
    pub attention_macs: u64,
    /// Bytes read from memory with nothing else to do, in units of 10^9; 0 where there is no room to measure it.
    pub read_gb_per_s: f64,
    /// What was taken of the device's memory, if its driver says so.
    pub memory: Option<MemoryUse>,
    /// The launches of the gradients, then those of the update.
    pub steps: Vec<StepRate>,
}

impl TrainingMeasurement {
    /// Floating-point operations a token by the usual rule: six for each parameter, two forward and four backward.
    pub fn flops_per_token(&self) -> u64 {
        self.parameters.saturating_mul(6)
    }

    /// Those operations a second, in units of 10^12.
    pub fn tflops(&self) -> f64 {
        self.flops_per_token() as f64 * self.tokens_per_s.median / 1e12
    }

    /// What the products of a step take of it, if nothing else took time: operations a second over the whole step, in units of 10^12.
    pub fn product_tflops(&self) -> f64 {
        2.0 * self.product_macs as f64 / self.step_seconds.median / 1e12
    }
}

/// Measures so many steps. `progress` is told how many of how many are done, and may stop it. Moments of the optimiser change, parameters do not.
///
/// # Errors
///
/// If the device fails, or [`RuntimeError::Cancelled`].
pub fn measure(
    trainer: &mut PlanTrainer,
    repeats: usize,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<TrainingMeasurement, RuntimeError> {
    let batch = random_batch(trainer);
    let total = (WARM_UP + repeats + TRACED) as u64;
    let mut done = 0;
    let mut step = |trainer: &mut PlanTrainer| {
        let start = Instant::now();
        trainer.accumulate(&batch)?;
        let gradients = start.elapsed().as_secs_f64();
        done += 1;
        trainer.update(&Update { step: done, rate: 0.0, decay: 0.0, batches: 1 })?;
        let all = start.elapsed().as_secs_f64();
        if progress(done, total).is_break() { Err(RuntimeError::Cancelled) } else { Ok((all, all - gradients)) }
    };
    for _ in 0..WARM_UP {
        step(trainer)?;
    }
    let times = (0..repeats).map(|_| step(trainer)).collect::<Result<Vec<_>, _>>()?;
    trainer.start_trace();
    for _ in 0..TRACED {
        step(trainer)?;
    }
    let steps = step_rates_of("train", &trainer.take_trace().unwrap_or_default(), TRACED as u64);
    let tokens = trainer.tokens();
    let [product_macs, attention_macs] = macs(trainer.plan(), tokens as u64, trainer.context() as u64);
    Ok(TrainingMeasurement {
        tokens,
        tokens_per_s: Spread::of(times.iter().map(|(all, _)| tokens as f64 / all).collect()),
        step_seconds: Spread::of(times.iter().map(|(all, _)| *all).collect()),
        update_seconds: Spread::of(times.iter().map(|(_, update)| *update).collect()),
        parameters: parameters(trainer.plan()),
        product_macs,
        attention_macs,
        memory: trainer.device().memory_use()?,
        read_gb_per_s: trainer.device().read_rate()? / 1e9,
        steps,
    })
}

/// Ids without a pattern, each of which has the next one of its sequence as its target.
fn random_batch(trainer: &PlanTrainer) -> Batch {
    let (tokens, context) = (trainer.tokens(), trainer.context().max(1));
    let mut random = Random::new(0);
    let vocab = trainer.plan().vocab.max(1);
    let ids: Vec<i32> = (0..tokens).map(|_| (random.bits() % vocab) as i32).collect();
    let place = |value: &dyn Fn(usize) -> usize| (0..tokens).map(|token| value(token) as i32).collect();
    let target = |token: usize| match (token + 1).is_multiple_of(context) {
        true => -1,
        false => ids[token + 1],
    };
    Batch {
        seq: place(&|token| token / context),
        pos: place(&|token| token % context),
        span: vec![0; 2 * tokens],
        rows: place(&|token| token),
        targets: (0..tokens).map(target).collect(),
        ids,
    }
}

/// Elements of the trained parameters: each has one mean of gradients.
fn parameters(plan: &Plan) -> u64 {
    let moments = plan.training.iter().flat_map(|training| &training.states);
    let moments = moments.filter(|io| io.name.ends_with(".first_moment") && io.dtype == DType::F32);
    let elements = moments.map(|io| {
        let dims = io.shape.iter().map(|dim| dim.as_const().unwrap_or(0));
        dims.fold(u64::from(plan.buffer(io.buffer).rounds.max(1)), u64::saturating_mul)
    });
    elements.fold(0, u64::saturating_add)
}

/// What names of attention's kernels begin with, and of those of its gradient.
const OF_ATTENTION: [&str; 4] = ["attention", "rope_attention", "query_gradient", "cache_gradient"];

/// Multiply-accumulates of a batch's gradients: those of products, and those of attention.
fn macs(plan: &Plan, tokens: u64, context: u64) -> [u64; 2] {
    // Whole sequences, of which each token sees itself and what stands before it.
    let sizes = Sizes { n: tokens, m: tokens, keys: tokens.saturating_mul(context + 1) / 2 };
    let mut macs = [0_u64; 2];
    let mut add = |step: &Step, round: Option<u64>| {
        if let Step::Call(call) = step {
            let Cost { macs: of_step, .. } = cost_of(plan, step, sizes, round);
            let name = &plan.kernel(call.kernel).name;
            let is_attention = usize::from(OF_ATTENTION.iter().any(|family| name.starts_with(family)));
            macs[is_attention] = macs[is_attention].saturating_add(of_step);
        }
    };
    for step in plan.phases.iter().take(1).flat_map(|phase| &phase.steps) {
        match step {
            Step::Repeat { count, steps, .. } => {
                (0..u64::from(*count)).for_each(|round| steps.iter().for_each(|step| add(step, Some(round))));
            }
            step => add(step, None),
        }
    }
    macs
}
