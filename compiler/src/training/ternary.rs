//! Ternary values of parameters that change: what is a tensor of its own in inference is computed from the real weights in every call.
//!
//! `unpack(ternarise(W))` becomes arithmetic on `W`, by the definitions of [`ir::op::ternary::TernaryRule`]:
//!
//! ```text
//! absmean_tensor    min(max(round(W * (1 / ternary_scale(W))), -1), 1)
//! threshold_row     [t < W] - [W < -t]    with t = row_threshold(W)
//! ```
//!
//! Where precision allows bf16 and the values stay from the forward pass to the backward pass, which is so outside of layers, they are kept in it,
//! exactly.

use ir::graph::{Def, Graph};
use ir::op::elementwise::{Cast, Div, Less, Maximum, Minimum, Mul, Neg, Round, Sub};
use ir::op::ternary::{RowThreshold, TernaryRule, TernaryScale};
use ir::vjp::scalar;
use ir::{BuildError, Builder, DType, Op, ValueId};

use super::remake::Remake;

/// A graph in which no ternary value follows from a state; those that several values read are `stored` in this type.
pub(super) fn spell_out(graph: &Graph, stored: DType) -> Result<Graph, BuildError> {
    let readers = |id: ValueId| graph.values.ids().filter(|&user| graph.operands(user).contains(&id)).count();
    let remake = Remake::new(graph, |remake, id| match changing(graph, id) {
        Some((rule, weights)) => {
            let weights = remake.of(weights);
            let ternary = spelled(&mut remake.b, rule, weights)?;
            if stored == DType::F32 || readers(id) < 2 {
                return Ok(Some(ternary));
            }
            let narrow = remake.b.op(Cast { to: stored }, &[ternary])?;
            remake.b.op(Cast { to: DType::F32 }, &[narrow]).map(Some)
        }
        None => Ok(None),
    })?;
    Ok(remake.finish(graph))
}

/// The rule and the real weights of an op that unpacks ternary values of a state.
fn changing(graph: &Graph, id: ValueId) -> Option<(TernaryRule, ValueId)> {
    let (Some(Op::Unpack(_)), &[packed]) = (graph.op(id), graph.operands(id)) else { return None };
    let Some(Op::Ternarise(ternarise)) = graph.op(packed) else { return None };
    let weights = graph.operands(packed)[0];
    matches!(graph.values[weights].def, Def::State { .. }).then_some((ternarise.rule, weights))
}

fn spelled(b: &mut Builder, rule: TernaryRule, weights: ValueId) -> Result<ValueId, BuildError> {
    let wide = match b.ty(weights).dtype {
        DType::F32 => weights,
        _ => b.op(Cast { to: DType::F32 }, &[weights])?,
    };
    match rule {
        TernaryRule::AbsmeanTensor => {
            let scale = b.op(TernaryScale {}, &[weights])?;
            let (one, least) = (scalar(b, 1.0), scalar(b, -1.0));
            let inverse = b.op(Div {}, &[one, scale])?;
            let scaled = b.op(Mul {}, &[wide, inverse])?;
            let rounded = b.op(Round {}, &[scaled])?;
            let bounded = b.op(Maximum {}, &[rounded, least])?;
            b.op(Minimum {}, &[bounded, one])
        }
        TernaryRule::ThresholdRow => {
            let threshold = b.op(RowThreshold {}, &[weights])?;
            let negative = b.op(Neg {}, &[threshold])?;
            let above = b.op(Less {}, &[threshold, wide])?;
            let below = b.op(Less {}, &[wide, negative])?;
            let (above, below) = (b.op(Cast { to: DType::F32 }, &[above])?, b.op(Cast { to: DType::F32 }, &[below])?);
            b.op(Sub {}, &[above, below])
        }
    }
}
