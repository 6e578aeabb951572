//! How the next token is chosen from a row of logits.
//!
//! The order of the filters is fixed: repetition penalty, temperature, top-k, top-p, min-p, then one draw. All but the first are the kernel's,
//! [`kernels::sample`], which devices run by themselves; its sums are of whole numbers, so the same seed gives the same tokens on every machine.
//! Logits that are not numbers are never chosen.

use kernels::sample::Settings;

use crate::error::RuntimeError;
use crate::session::Choice;

/// What to sample with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the largest.
    pub temperature: f64,
    /// Only the so many most probable ids; 0 is all.
    pub top_k: usize,
    /// Only the fewest most probable ids whose probabilities, after top-k, add up to this or more; 1 is all.
    pub top_p: f64,
    /// Only ids with at least this part of the probability of the most probable; 0 is all.
    pub min_p: f64,
    /// Logits of ids that occurred are divided by it if positive and multiplied by it if negative; 1 changes nothing.
    pub repetition_penalty: f64,
    /// Where the random numbers start.
    pub seed: u64,
}

impl Sampling {
    /// Always the most probable id.
    pub const GREEDY: Sampling =
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 };

    fn check(&self) -> Result<(), RuntimeError> {
        let options = [
            (
                "temperature",
                self.temperature,
                "0 or more",
                0.0 <= self.temperature && (self.temperature as f32).is_finite(),
            ),
            ("top-p", self.top_p, "more than 0 and at most 1", 0.0 < self.top_p && self.top_p <= 1.0),
            ("min-p", self.min_p, "between 0 and 1", (0.0..=1.0).contains(&self.min_p)),
            (
                "repetition-penalty",
                self.repetition_penalty,
                "more than 0",
                0.0 < self.repetition_penalty && self.repetition_penalty.is_finite(),
            ),
        ];
        for (option, value, range, is_inside) in options {
            if !is_inside {
                return Err(RuntimeError::Sampling { option, value, range });
            }
        }
        Ok(())
    }
}

/// Chooses tokens of one sequence, here or by telling a step how.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: Random,
    /// Whether an id occurred, as far as ids were seen.
    seen: Vec<bool>,
    /// Room for penalised logits, kept from row to row.
    penalised: Vec<f32>,
}

impl Sampler {
    /// A sampler that starts at the seed.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Sampling`] for the first option outside its range.
    pub fn new(sampling: Sampling) -> Result<Self, RuntimeError> {
        sampling.check()?;
        Ok(Self { sampling, random: Random::new(sampling.seed), seen: Vec::new(), penalised: Vec::new() })
    }

    /// Whether it changes logits by what occurred before, so that the host has to see both.
    pub fn needs_logits(&self) -> bool {
        self.sampling.repetition_penalty != 1.0
    }

    /// Notes ids that occurred, for the repetition penalty: the prompt, and each token that was chosen.
    pub fn see(&mut self, ids: &[u32]) {
        if !self.needs_logits() {
            return;
        }
        for &id in ids {
            let id = id as usize;
            if self.seen.len() <= id {
                self.seen.resize(id + 1, false);
            }
            self.seen[id] = true;
        }
    }

    /// How the next token is chosen. Each draw is for one token.
    pub fn choice(&mut self) -> Choice {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        let settings =
            Settings { temperature: temperature as f32, top_k: top_k as f32, top_p: top_p as f32, min_p: min_p as f32 };
        let draw = if temperature == 0.0 { 0 } else { self.random.bits() };
        Choice { settings, draw }
    }

    /// The next id.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NoLogits`] if no logit is a number above minus infinity.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, RuntimeError> {
        let Choice { settings, draw } = self.choice();
        let id = match self.needs_logits() {
            false => kernels::sample::choose(logits, &settings, draw),
            true => {
                self.penalise(logits);
                kernels::sample::choose(&self.penalised, &settings, draw)
            }
        };
        u32::try_from(id).map_err(|_| RuntimeError::NoLogits)
    }

    fn penalise(&mut self, logits: &[f32]) {
        let penalty = self.sampling.repetition_penalty;
        self.penalised.clear();
        self.penalised.extend(logits.iter().enumerate().map(|(id, &logit)| {
            let is_seen = self.seen.get(id).copied().unwrap_or(false);
            match (is_seen, 0.0 < logit) {
                (false, _) => logit,
                (true, true) => (f64::from(logit) / penalty) as f32,
                (true, false) => (f64::from(logit) * penalty) as f32,
            }
        }));
    }
}

/// The id of the largest logit, the first of equals; `None` if none is a number above minus infinity.
pub fn greedy(logits: &[f32]) -> Option<u32> {
    u32::try_from(kernels::sample::greedy(logits)).ok()
}

/// Random numbers: xoshiro256++ by Blackman and Vigna, its state filled from the seed by splitmix64, as its authors advise.
#[derive(Clone, Debug)]
pub struct Random {
    state: [u64; 4],
}

impl Random {
    /// A generator that starts at a seed; any is fine.
    pub fn new(seed: u64) -> Self {
        let mut mixed = seed;
        let mut splitmix = || {
            mixed = mixed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = mixed;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        Self { state: [splitmix(), splitmix(), splitmix(), splitmix()] }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let state = &mut self.state;
        let result = state[0].wrapping_add(state[3]).rotate_left(23).wrapping_add(state[0]);
        let shifted = state[1] << 17;
        state[2] ^= state[0];
        state[3] ^= state[1];
        state[1] ^= state[2];
        state[0] ^= state[3];
        state[2] ^= shifted;
        state[3] = state[3].rotate_left(45);
        result
    }

    /// A number in `[0, 1)`, a multiple of `2^-53`.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };

    fn logits(probabilities: &[f64]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln() as f32).collect()
    }

    /// How often each id is drawn in `draws`.
    fn frequencies(sampling: Sampling, logits: &[f32], draws: usize) -> Vec<f64> {
        let mut sampler = Sampler::new(sampling).unwrap();
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..draws {
            counts[sampler.sample(logits).unwrap() as usize] += 1.0 / draws as f64;
        }
        counts
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        // Five standard deviations of a frequency of 1/2 in 20,000 draws.
        let near = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 0.018);
        assert!(near, "{found:?} is not near {expected:?}");
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = logits(&[0.1, 0.2, 0.3, 0.4]);
        assert_close(&frequencies(PLAIN, &logits, 20_000), &[0.1, 0.2, 0.3, 0.4]);
        // A temperature of 1/2 squares them: 1, 4, 9, 16 parts of 30.
        let cold = Sampling { temperature: 0.5, ..PLAIN };
        assert_close(&frequencies(cold, &logits, 20_000), &[1.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0, 16.0 / 30.0]);
    }

    #[test]
    fn filters_keep_what_they_say() {
        let logits = logits(&[0.1, 0.2, 0.3, 0.4]);
        let none = Sampling { top_k: 0, top_p: 1.0, min_p: 0.0, ..PLAIN };
        for (sampling, expected) in [
            (Sampling { top_k: 2, ..none }, [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]),
            (Sampling { top_k: 1, ..none }, [0.0, 0.0, 0.0, 1.0]),
            (Sampling { top_k: 9, ..none }, [0.1, 0.2, 0.3, 0.4]),
            (Sampling { top_p: 0.65, ..none }, [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]),
            (Sampling { top_p: 0.75, ..none }, [0.0, 2.0 / 9.0, 3.0 / 9.0, 4.0 / 9.0]),
            (Sampling { top_p: 1e-9, ..none }, [0.0, 0.0, 0.0, 1.0]),
            (Sampling { min_p: 0.6, ..none }, [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]),
            (Sampling { min_p: 1.0, ..none }, [0.0, 0.0, 0.0, 1.0]),
            // Top-k leaves 3/7 and 4/7, so half of the probability is the first alone.
            (Sampling { top_k: 2, top_p: 0.5, ..none }, [0.0, 0.0, 0.0, 1.0]),
        ] {
            assert_close(&frequencies(sampling, &logits, 20_000), &expected);
        }
    }

    #[test]
    fn penalties_lower_what_was_seen_whatever_its_sign() {
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 2.0, ..Sampling::GREEDY }).unwrap();
        assert_eq!(sampler.sample(&[1.0, 1.5]).unwrap(), 1);
        sampler.see(&[1]);
        assert_eq!(sampler.sample(&[1.0, 1.5]).unwrap(), 0);
        assert_eq!(sampler.sample(&[-1.5, -1.0]).unwrap(), 0);
        assert_eq!(sampler.sample(&[1.0, 2.5]).unwrap(), 1);
    }

    #[test]
    fn the_same_seed_draws_the_same_and_another_one_differs() {
        let logits: Vec<f32> = (0..100).map(|id| (id % 7) as f32 / 3.0).collect();
        let draw = |seed| {
            let mut sampler = Sampler::new(Sampling { seed, top_p: 0.9, ..PLAIN }).unwrap();
            (0..50).map(|_| sampler.sample(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
    }

    #[test]
    fn random_numbers_are_those_of_the_published_generators() {
        // From the reference implementations: splitmix64 of 0, and xoshiro256++ of the state 1, 2, 3, 4.
        assert_eq!(Random::new(0).state[0], 0xE220_A839_7B1D_CDAF);
        let mut random = Random { state: [1, 2, 3, 4] };
        assert_eq!([random.bits(), random.bits(), random.bits()], [41_943_041, 58_720_359, 3_588_806_011_781_223]);
    }

    #[test]
    fn what_is_no_number_is_never_chosen() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for sampling in [PLAIN, Sampling::GREEDY, Sampling { top_p: 0.5, top_k: 3, min_p: 0.1, ..PLAIN }] {
            let mut sampler = Sampler::new(sampling).unwrap();
            assert_eq!(sampler.sample(&[nan, -inf, 0.0, nan]).unwrap(), 2);
            assert_eq!(sampler.sample(&[nan, 1.0, inf]).unwrap(), 2);
            assert!(matches!(sampler.sample(&[nan, -inf]), Err(RuntimeError::NoLogits)));
            assert!(matches!(sampler.sample(&[]), Err(RuntimeError::NoLogits)));
        }
        assert_eq!(greedy(&[nan, 1.0, 3.0, 3.0]), Some(2));
        assert_eq!(greedy(&[nan]), None);
    }

    #[test]
    fn options_outside_their_range_are_named() {
        for (sampling, option) in [
            (Sampling { temperature: -1.0, ..PLAIN }, "temperature"),
            (Sampling { temperature: f64::NAN, ..PLAIN }, "temperature"),
            (Sampling { top_p: 0.0, ..PLAIN }, "top-p"),
            (Sampling { min_p: 1.5, ..PLAIN }, "min-p"),
            (Sampling { repetition_penalty: 0.0, ..PLAIN }, "repetition-penalty"),
        ] {
            let error = Sampler::new(sampling).unwrap_err();
            assert!(matches!(error, RuntimeError::Sampling { option: found, .. } if found == option), "{error}");
        }
    }
}
