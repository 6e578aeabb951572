//! How a token is chosen from a row of logits: one definition for kernels and for hosts that change logits first.
//!
//! [`ir::op::sample::Sample`] says what is computed. Weights are whole numbers, so no sum depends on its order, and any number of threads that add
//! them in any way choose the same token. Nothing is sorted and nothing allocated: where the order by probability is to be cut is found byte by
//! byte of the logits' bits, from histograms.

use crate::math::exp_f32;

/// What is chosen if there is nothing to choose from.
pub const NOTHING: i32 = -1;

/// The weight of the most probable token.
const ONE: f32 = (1_u64 << 40) as f32;

/// How to choose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Logits are divided by it; 0 takes the largest, and anything below chooses nothing.
    pub temperature: f32,
    /// Only the so many most probable; less than 1 is all.
    pub top_k: f32,
    /// Only the fewest most probable that have this part of all weight; 1 is all.
    pub top_p: f32,
    /// Only those with this part of the most probable one's weight; 0 is all.
    pub min_p: f32,
}

impl Settings {
    /// The most probable token.
    pub const GREEDY: Settings = Settings { temperature: 0.0, top_k: 0.0, top_p: 1.0, min_p: 0.0 };
    /// No token at all.
    pub const NONE: Settings = Settings { temperature: -1.0, ..Settings::GREEDY };

    /// As an operand of the op has them.
    pub fn to_row(self) -> [f32; 4] {
        [self.temperature, self.top_k, self.top_p, self.min_p]
    }

    /// From an operand of the op.
    pub fn from_row([temperature, top_k, top_p, min_p]: [f32; 4]) -> Self {
        Self { temperature, top_k, top_p, min_p }
    }
}

/// Logits that are compared side by side.
const LANES: usize = 16;
/// Logits whose largest is found before anybody asks where it is.
const CHUNK: usize = 32 * LANES;

/// The first of the largest logits that are numbers above minus infinity; [`NOTHING`] if there is none.
pub fn greedy(logits: &[f32]) -> i32 {
    // Where one lane stands does not depend on the lane before it, so that a compiler makes vectors of them.
    let larger = |best: f32, logit: f32| if best < logit { logit } else { best };
    let mut best = (NOTHING, f32::NEG_INFINITY);
    for (at, chunk) in logits.chunks(CHUNK).enumerate() {
        let (rows, rest) = chunk.as_chunks::<LANES>();
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for row in rows {
            for (lane, &logit) in lanes.iter_mut().zip(row) {
                *lane = larger(*lane, logit);
            }
        }
        let largest = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |best, &logit| larger(best, logit));
        if best.1 < largest {
            let first = chunk.iter().position(|&logit| logit == largest).expect("it is one of them");
            best = ((at * CHUNK + first) as i32, largest);
        }
    }
    best.0
}

/// The id that 64 random bits choose; [`NOTHING`] if no logit is a number above minus infinity, or the temperature is negative.
pub fn choose(logits: &[f32], settings: &Settings, draw: u64) -> i32 {
    let Settings { temperature, top_k, top_p, min_p } = *settings;
    if temperature < 0.0 || temperature.is_nan() {
        return NOTHING;
    }
    let best = greedy(logits);
    if best == NOTHING || temperature == 0.0 {
        return best;
    }
    let largest = logits[best as usize];
    let weight = |logit: f32| {
        // Infinite logits share all weight among themselves.
        let below = if logit == largest { 0.0 } else { (logit - largest) / temperature };
        // What is no number becomes 0.
        (exp_f32(below) * ONE) as u64
    };
    let mut cut = Cut::NOWHERE;
    if 1.0 <= top_k && (top_k as u64) < cut.kept(logits).count() as u64 {
        cut = Cut::find(logits, cut, |_| 1, top_k as u64);
    }
    if top_p < 1.0 {
        let total: u64 = cut.kept(logits).map(|(_, logit)| weight(logit)).sum();
        let part = (f64::from(top_p.max(0.0)) * (1_u64 << 32) as f64) as u128;
        let needed = (u128::from(total) * part).div_ceil(1 << 32) as u64;
        cut = Cut::find(logits, cut, weight, needed.max(1));
    }
    // The most probable is always kept.
    let least = (min_p.clamp(0.0, 1.0) * ONE) as u64;
    let kept = || cut.kept(logits).map(|(id, logit)| (id, weight(logit))).filter(|(_, weight)| least <= *weight);
    let total: u64 = kept().map(|(_, weight)| weight).sum();
    let mut left = ((u128::from(total) * u128::from(draw)) >> 64) as u64;
    for (id, weight) in kept() {
        if left < weight {
            return id as i32;
        }
        left -= weight;
    }
    unreachable!("what is left is less than the weight of the most probable token and the others, which are kept")
}

/// Where logits in their order, largest first and equals by their ids, are cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// The key of the last that is kept.
    key: u32,
    /// How many with that key are kept.
    equals: u64,
}

/// A number whose order is that of the logits; zeros have one.
fn key(logit: f32) -> u32 {
    let bits = (logit + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

impl Cut {
    const NOWHERE: Cut = Cut { key: 0, equals: u64::MAX };

    /// The ids that are kept with their logits, ascending.
    fn kept(self, logits: &[f32]) -> impl Iterator<Item = (usize, f32)> {
        let numbers = logits.iter().copied().enumerate().filter(|(_, logit)| f32::NEG_INFINITY < *logit);
        let mut equals = self.equals;
        numbers.filter(move |(_, logit)| match key(*logit).cmp(&self.key) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Equal => {
                let is_kept = 0 < equals;
                equals = equals.saturating_sub(1);
                is_kept
            }
        })
    }

    /// The cut after the fewest, of those that are kept so far, whose measures add up to `needed`; all together they do.
    fn find(logits: &[f32], so_far: Cut, measure: impl Fn(f32) -> u64, needed: u64) -> Cut {
        let (mut prefix, mut needed) = (0_u32, needed);
        // From the second byte on, only what has the bytes found so far counts.
        for shift in [24, 16, 8, 0] {
            let mut sums = [0_u64; 256];
            for (_, logit) in so_far.kept(logits) {
                let key = key(logit);
                if shift == 24 || key >> (shift + 8) == prefix {
                    sums[(key >> shift & 255) as usize] += measure(logit);
                }
            }
            let mut byte = 255;
            while 0 < byte && sums[byte] < needed {
                needed -= sums[byte];
                byte -= 1;
            }
            prefix = prefix << 8 | byte as u32;
        }
        // Equal logits have equal measures.
        let each = so_far.kept(logits).find(|(_, logit)| key(*logit) == prefix).map_or(1, |(_, logit)| measure(logit));
        Cut { key: prefix, equals: needed.div_ceil(each.max(1)) }
    }
}
