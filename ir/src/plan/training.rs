//! What a plan for training does beside its calls.

use serde::{Deserialize, Serialize};

use super::{Io, Phase};

/// The phases of a plan for training that have no tokens. The parameters that it trains are states.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// How slowly the means of AdamW (Loshchilov and Hutter, 2019) move: that of gradients, and that of their squares.
    pub betas: [f64; 2],
    /// What a step leaves for the next: parameters, their masters and moments, each with the type and shape of one round.
    pub states: Vec<Io>,
    /// Gives the parameters their first values.
    pub start: Phase,
    /// Changes the parameters by what the calls of a step added up.
    pub update: Phase,
}

/// The input `settings` of an update, counted from step 1: the rate, the weight decay, `1 - beta1^step`, `sqrt(1 - beta2^step)`, and what gradients are
/// multiplied with, `1 / batches` if so many were added up; each computed in f64 and rounded once.
pub fn settings(betas: [f64; 2], step: u64, rate: f64, decay: f64, batches: u32) -> [f32; 5] {
    let [first, second] = betas.map(|beta| 1.0 - beta.powf(step as f64));
    let share = 1.0 / f64::from(batches.max(1));
    [rate as f32, decay as f32, first as f32, second.sqrt() as f32, share as f32]
}
