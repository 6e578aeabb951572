//! Straight-through estimators, all of them: what training takes for the derivative of rounding (Bengio et al., 2013).
//!
//! Rounding has the derivative zero wherever it has one, so nothing would ever be learned through it. Training takes the rounded value for the
//! value itself instead. With `t` the ternary values and `a` the scale of real weights `W`, and `c` the codes and `r` the row scale of
//! activations `x`:
//!
//! | rounding | is taken for | so the gradient of the input is |
//! |---|---|---|
//! | `t = ternarise(W)` by absmean | `W / a`, with `a` held | that of `t`, divided by `a`: through `t * a` it arrives as it was |
//! | `t = ternarise(W)` by a row's threshold | `W`: its scale is a parameter of its own | that of `t` |
//! | `a = ternary_scale(W)`, `row_threshold(W)` | a constant | nothing |
//! | `r * c = quantize(x)`, in rows or in groups | `x` | that of the dequantised value |
//! | a row stored in a cache of few bits | the row | that of what is read back |
//!
//! None of them is clipped: a weight far outside keeps its gradient, as in BitNet b1.58 (Ma et al., 2024) and in the original Tritter.

use crate::builder::{BuildError, Builder};
use crate::graph::ValueId;
use crate::op::elementwise::Div;
use crate::op::ternary::{TernaryRule, TernaryScale};
use crate::vjp::{Gradient, Zero};

/// The gradient of real weights from that of their ternary values.
pub(crate) fn ternarise(
    b: &mut Builder,
    rule: TernaryRule,
    weights: ValueId,
    dy: ValueId,
) -> Result<Gradient, BuildError> {
    Ok(Gradient::Of(match rule {
        TernaryRule::AbsmeanTensor => {
            let scale = b.op(TernaryScale {}, &[weights])?;
            b.op(Div {}, &[dy, scale])?
        }
        TernaryRule::ThresholdRow => dy,
    }))
}

/// The gradient of real weights from that of their scale or thresholds.
pub(crate) fn ternary_scale() -> Gradient {
    Gradient::Zero(Zero::Held)
}

/// The gradient of rows from that of what was stored of them, quantised or in half precision.
pub(crate) fn store(dy: ValueId) -> Gradient {
    Gradient::Of(dy)
}
