//! Low-rank adapters (Hu et al., 2021): small matrices beside the projections of a model, which are trained while the projections stay as they are.
//!
//! A projection `y = W x` becomes `y = W x + B (scaling * A x)`. The adapter meets its input in f32, before the projection quantises it.

use std::collections::BTreeSet;

/// The projections that adapters may stand beside: the names of `attention.{q,k,v,o}` and `ffn.{gate,up,down}`.
pub const TARGETS: [&str; 7] = ["q", "k", "v", "o", "gate", "up", "down"];

/// Which projections have adapters, and how large these are.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapters {
    /// The rows of `A` and columns of `B`; at least 1.
    pub rank: u32,
    /// What the scaling is a multiple of.
    pub alpha: f64,
    /// Whether it is divided by the root of the rank (Kalajdzievski, 2023) rather than by the rank.
    pub rank_stabilised: bool,
    /// The projections, by name: some of [`TARGETS`].
    pub targets: BTreeSet<String>,
}

impl Adapters {
    /// What adapters are multiplied by.
    pub fn scaling(&self) -> f64 {
        let rank = f64::from(self.rank);
        self.alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }

    /// Why nothing can be computed with them: a rank of 0, or an alpha that f32 makes nothing or no number of.
    pub fn refusal(&self) -> Option<&'static str> {
        let scaling = self.scaling() as f32;
        match (self.rank, scaling.is_finite() && scaling != 0.0) {
            (0, _) => Some("an adapter of rank 0 has no rows; give 1 or more"),
            (_, true) => None,
            (_, false) => Some("alpha by the rank is 0 or no number in f32; give an alpha near the rank"),
        }
    }

    /// Whether the projection of this full name, such as `attention.q`, has an adapter.
    pub(crate) fn has(&self, projection: &str) -> bool {
        projection.rsplit('.').next().is_some_and(|name| self.targets.contains(name))
    }
}

/// One of the two matrices of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `[rank, k]`: from the input down.
    A,
    /// `[m, rank]`: up to the output.
    B,
}

impl Part {
    /// What keys call it.
    pub fn name(self) -> &'static str {
        match self {
            Part::A => "lora_a",
            Part::B => "lora_b",
        }
    }

    /// What the PEFT library calls it.
    pub fn peft_name(self) -> &'static str {
        match self {
            Part::A => "lora_A",
            Part::B => "lora_B",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scaling_is_a_number() {
        let adapters = |rank, alpha| Adapters { rank, alpha, rank_stabilised: false, targets: BTreeSet::new() };
        for (rank, alpha) in [(16, 32.0), (1, 0.5), (8, -8.0)] {
            assert_eq!(adapters(rank, alpha).refusal(), None);
        }
        for (rank, alpha) in [(0, 8.0), (8, 0.0), (8, f64::NAN), (8, f64::INFINITY), (8, 1e300), (8, 1e-300)] {
            assert!(adapters(rank, alpha).refusal().is_some(), "{rank} {alpha}");
        }
    }
}
