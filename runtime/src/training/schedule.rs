//! The learning rate and the weight decay of each step.
//!
//! First the rate rises evenly from nothing; then stages follow each other, in each of which rate and decay go from one value to another. The
//! recipe of BitNet b1.58 has two: a high rate that falls to about half with a decay that falls to nothing, and from the middle of the run on
//! a lower rate that falls to nothing, without decay, since the size of a weight is how sure it is of its sign.

use serde::{Deserialize, Serialize};

/// Rates and decays of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Steps in which the rate rises. They belong to no stage; the first stage begins behind them.
    pub warm_up: u64,
    /// In order.
    pub stages: Vec<Stage>,
}

/// A part of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// The share of all steps that are done when it ends; 1 for the last stage.
    pub until: f64,
    /// The learning rate at its first step, and the one that it would have in the step behind it.
    pub rate: (f64, f64),
    /// The same of the weight decay.
    pub decay: (f64, f64),
    /// How one becomes the other.
    pub curve: Curve,
}

/// How a value becomes another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Curve {
    /// Evenly.
    #[serde(rename = "linear")]
    Linear,
    /// As half a wave of a cosine: slowly at both ends.
    #[serde(rename = "cosine")]
    Cosine,
}

impl Curve {
    /// All of them, with their names.
    pub const ALL: [(&'static str, Self); 2] = [("linear", Self::Linear), ("cosine", Self::Cosine)];

    /// The value at a place from 0 to 1.
    fn at(self, (from, to): (f64, f64), place: f64) -> f64 {
        let share = match self {
            Self::Linear => place,
            Self::Cosine => (1.0 - (std::f64::consts::PI * place).cos()) / 2.0,
        };
        from + (to - from) * share
    }
}

impl Schedule {
    /// Rate and decay of a step, counted from 1, of so many.
    ///
    /// While it rises, the rate of step `s` is `s / (warm_up + 1)` of the first stage's first one, and the decay is the first stage's first one.
    /// The step number `i` from 0 of a stage of `n` steps is at `i / n` of its curve, so a rate that falls to nothing is not yet there.
    pub fn at(&self, step: u64, steps: u64) -> (f64, f64) {
        let done = step.saturating_sub(1);
        let Some(first) = self.stages.first() else { return (0.0, 0.0) };
        if done < self.warm_up {
            return (first.rate.0 * step as f64 / (self.warm_up + 1) as f64, first.decay.0);
        }
        let mut begin = self.warm_up;
        for stage in &self.stages {
            let end = stage.end(steps).max(begin);
            if done < end {
                let place = (done - begin) as f64 / (end - begin) as f64;
                return (stage.curve.at(stage.rate, place), stage.curve.at(stage.decay, place));
            }
            begin = end;
        }
        let last = self.stages.last().unwrap_or(first);
        (last.rate.1, last.decay.1)
    }
}

impl Stage {
    /// Steps of the run that are done when it ends.
    pub(crate) fn end(&self, steps: u64) -> u64 {
        (self.until * steps as f64).round() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(until: f64, rate: (f64, f64), decay: (f64, f64), curve: Curve) -> Stage {
        Stage { until, rate, decay, curve }
    }

    /// What BitNet b1.58 was trained with, over 12 steps of which 2 are a warm-up.
    fn recipe(curve: Curve) -> Schedule {
        let first = stage(0.5, (1.5e-3, 8e-4), (0.1, 0.0), curve);
        let second = stage(1.0, (5e-4, 0.0), (0.0, 0.0), Curve::Linear);
        Schedule { warm_up: 2, stages: vec![first, second] }
    }

    fn close((rate, decay): (f64, f64), expected: (f64, f64)) -> bool {
        (rate - expected.0).abs() < 1e-15 && (decay - expected.1).abs() < 1e-15
    }

    #[test]
    fn the_recipe_has_the_values_that_a_hand_computes() {
        let schedule = recipe(Curve::Linear);
        // Warm-up: thirds of 1.5e-3. First stage: 4 steps, in each of which the rate falls by 0.175e-3 and the decay by 0.025. Second stage: 6
        // steps, in each of which the rate falls by a sixth of 5e-4.
        let expected = [
            (0.5e-3, 0.1),
            (1.0e-3, 0.1),
            (1.5e-3, 0.1),
            (1.325e-3, 0.075),
            (1.15e-3, 0.05),
            (0.975e-3, 0.025),
            (5e-4, 0.0),
            (25e-4 / 6.0, 0.0),
            (20e-4 / 6.0, 0.0),
            (15e-4 / 6.0, 0.0),
            (10e-4 / 6.0, 0.0),
            (5e-4 / 6.0, 0.0),
        ];
        for (step, expected) in (1..).zip(expected) {
            assert!(close(schedule.at(step, 12), expected), "step {step}: {:?}", schedule.at(step, 12));
        }
    }

    #[test]
    fn a_cosine_falls_slowly_at_both_ends() {
        let schedule = recipe(Curve::Cosine);
        // (1 - cos(pi / 4)) / 2 and (1 - cos(3 pi / 4)) / 2.
        let (early, late) = (0.146_446_609_406_726_24, 0.853_553_390_593_273_8);
        assert!(close(schedule.at(3, 12), (1.5e-3, 0.1)));
        assert!(close(schedule.at(4, 12), (1.5e-3 - 0.7e-3 * early, 0.1 - 0.1 * early)));
        assert!(close(schedule.at(5, 12), (1.15e-3, 0.05)));
        assert!(close(schedule.at(6, 12), (1.5e-3 - 0.7e-3 * late, 0.1 - 0.1 * late)));
    }

    #[test]
    fn shares_are_rounded_to_whole_steps() {
        let schedule = recipe(Curve::Linear);
        // Half of 5 steps is 3 steps; two of them are the warm-up.
        let rates = [0.5e-3, 1.0e-3, 1.5e-3, 5e-4, 2.5e-4];
        for (step, rate) in (1..).zip(rates) {
            assert!((schedule.at(step, 5).0 - rate).abs() < 1e-15, "step {step}");
        }
        // Beyond its last step a run stays where it would have arrived.
        assert_eq!(schedule.at(6, 5), (0.0, 0.0));
    }

    #[test]
    fn one_stage_without_a_warm_up_begins_at_once() {
        let stages = vec![stage(1.0, (1.0, 0.5), (0.25, 0.25), Curve::Linear)];
        let schedule = Schedule { warm_up: 0, stages };
        assert_eq!([1, 2].map(|step| schedule.at(step, 2)), [(1.0, 0.25), (0.75, 0.25)]);
    }
}
