//! The choice of the next token from its logits.

use crate::builder::Builder;
use crate::dtype::DType;
use crate::graph::ValueId;
use crate::op::{Concrete, OpDef, TypeError, arity, expect_f32, expect_matrix, op};
use crate::reference::Tensor;
use crate::shape::{Dim, Shape, TensorType};
use crate::vjp::{Gradient, Gradients, VjpError, Zero};

op! {
    /// A token for each row of logits: `logits` is f32 `[m, v]`, `settings` f32 `[m, 4]` (temperature, top-k, top-p, min-p), `draws` i32 `[m, 2]`
    /// (the lower and the upper half of 64 random bits); the result is i32 `[m]`.
    ///
    /// Logits that are not numbers, or minus infinity, are never chosen. A temperature of 0 takes the largest, the first of equals. Else weights are
    /// whole numbers, so that sums of them are exact in any order: `w = floor(2^40 * exp((logit - largest) / temperature))`. Most probable first,
    /// equals by their ids, top-k (0 is all) keeps so many; top-p (1 is all) the fewest whose weights add up to that part of what is left, always
    /// one; min-p, taken as 1 if it is more, those with at least that part of the largest weight. With `u` the random bits, the choice is the first id in ascending order at
    /// which the sum of the kept weights exceeds `u * total / 2^64`, rounded down. If there is nothing to choose, or the temperature is negative,
    /// it is -1.
    Sample = "sample" (logits, settings, draws) {}
}

/// Sizes of the last axis of the second and the third operand.
const WIDTHS: [(&str, u64); 2] = [("settings", 4), ("draws", 2)];

impl OpDef for Sample {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [logits, settings, draws] = arity(inputs)?;
        expect_f32("logits", logits)?;
        expect_f32("settings", settings)?;
        let (rows, _) = expect_matrix("logits", logits)?;
        if draws.dtype != DType::I32 {
            return Err(TypeError::DType { input: "draws", expected: "i32", found: draws.dtype });
        }
        for (ty, (_, width)) in [settings, draws].into_iter().zip(WIDTHS) {
            let expected = Shape::new([rows.clone(), Dim::Const(width)]);
            if ty.shape != expected {
                return Err(TypeError::mismatch("rows of logits and what each is sampled with", &expected, &ty.shape));
            }
        }
        Ok(TensorType::new(DType::I32, Shape::new([rows.clone()])))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let rows = inputs[0].rows().zip(inputs[1].rows()).zip(inputs[2].rows());
        Tensor::from_rows(out, rows.map(|((logits, settings), draws)| vec![choose(logits, settings, draws)]))
    }

    fn vjp(&self, _: &mut Builder, _: &[ValueId], _: ValueId, _: ValueId) -> Result<Gradients, VjpError> {
        Ok([Gradient::Zero(Zero::Flat), Gradient::Zero(Zero::Flat), Gradient::Zero(Zero::Integer)]
            .into_iter()
            .collect())
    }
}

fn choose(logits: &[f64], settings: &[f64], draws: &[f64]) -> f64 {
    let [temperature, top_k, top_p, min_p] = settings else { unreachable!("the type was checked") };
    let mut order: Vec<usize> = (0..logits.len()).filter(|&id| f64::NEG_INFINITY < logits[id]).collect();
    // Stable, so equals stay in the order of their ids.
    order.sort_by(|&left, &right| logits[right].partial_cmp(&logits[left]).expect("NaNs are left out"));
    let (Some(&best), true) = (order.first(), 0.0 <= *temperature) else { return -1.0 };
    if *temperature == 0.0 {
        return best as f64;
    }
    let one = (1_u64 << 40) as f64;
    let weight = |id: usize| {
        let below = if logits[id] == logits[best] { 0.0 } else { logits[id] - logits[best] };
        (one * (below / temperature).exp()) as u128
    };
    let total = |kept: &[usize]| kept.iter().map(|&id| weight(id)).sum::<u128>();
    if 1.0 <= *top_k {
        order.truncate(*top_k as usize);
    }
    if *top_p < 1.0 {
        let part = (top_p.max(0.0) * (1_u64 << 32) as f64) as u128;
        let needed = (total(&order) * part).div_ceil(1 << 32).max(1);
        let mut sum = 0;
        let enough = order.iter().position(|&id| {
            sum += weight(id);
            needed <= sum
        });
        order.truncate(enough.map_or(order.len(), |last| last + 1));
    }
    order.retain(|&id| (min_p.clamp(0.0, 1.0) * one) as u128 <= weight(id));
    order.sort_unstable();
    let half = |draw: f64| u128::from(draw as i32 as u32);
    let mut left = (total(&order) * (half(draws[1]) << 32 | half(draws[0]))) >> 64;
    for id in order {
        if left < weight(id) {
            return id as f64;
        }
        left -= weight(id);
    }
    -1.0
}
