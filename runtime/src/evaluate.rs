//! How well a model predicts a text: nats a token.
//!
//! The protocol: the ids of the whole text are cut into windows of `window` ids, the last one as long as the rest. Each window is scored on its
//! own from an empty cache; its first id is not scored, so a window of one id scores nothing. The score of an id is minus the natural logarithm
//! of its probability after the ids of its window before it, computed in f64 from the f32 logits.

use std::ops::ControlFlow;

use crate::error::RuntimeError;
use crate::session::Session;

/// What a model was found to do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// The sum of all scores.
    pub nats: f64,
    /// Ids that were scored.
    pub tokens: u64,
    /// Windows that they were in.
    pub windows: u64,
}

impl Evaluation {
    /// The mean score.
    pub fn nats_per_token(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.nats / self.tokens as f64 }
    }

    /// `e` to the mean score.
    pub fn perplexity(&self) -> f64 {
        self.nats_per_token().exp()
    }
}

/// How to score.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Ids of a window, 2 or more.
    pub window: usize,
    /// The most windows; the first ones are taken.
    pub limit: Option<usize>,
    /// The most tokens of a call.
    pub chunk: usize,
    /// Windows that are in a call together.
    pub batch: usize,
}

impl Windows {
    /// The windows that score something.
    pub fn of<'a>(&self, ids: &'a [u32]) -> impl Iterator<Item = &'a [u32]> + use<'a> {
        let limit = self.limit.unwrap_or(usize::MAX);
        ids.chunks(self.window.max(1)).take(limit).filter(|window| 2 <= window.len())
    }
}

/// Scores ids. `progress` is told how many of how many ids are done, and may stop it.
///
/// # Errors
///
/// [`RuntimeError::Window`]; as [`Session::score`]; [`RuntimeError::NoLogits`] if a score is not a number.
pub fn evaluate(
    session: &mut Session,
    ids: &[u32],
    windows: &Windows,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Evaluation, RuntimeError> {
    if windows.window < 2 {
        return Err(RuntimeError::Window { window: windows.window });
    }
    let lists: Vec<&[u32]> = windows.of(ids).collect();
    // The last id of a window is predicted and predicts nothing.
    let inputs: Vec<&[u32]> = lists.iter().map(|list| &list[..list.len() - 1]).collect();
    let total: u64 = inputs.iter().map(|list| list.len() as u64).sum();
    // By list, and added up in their order: the sum does not depend on how they were batched.
    let mut nats = vec![0.0_f64; lists.len()];
    let mut tokens = 0;
    session.score(&inputs, windows.chunk, windows.batch, &mut |list, position, logits| {
        nats[list] += nats_of(logits, lists[list][position + 1]);
        tokens += 1;
        progress(tokens, total)
    })?;
    let sum: f64 = nats.iter().sum();
    if sum.is_nan() {
        return Err(RuntimeError::NoLogits);
    }
    Ok(Evaluation { nats: sum, tokens, windows: lists.len() as u64 })
}

/// Minus the natural logarithm of the probability of `id`, which is in the vocabulary: of the softmax of the logits, in f64.
pub fn nats_of(logits: &[f32], id: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - f64::from(max)).exp()).sum();
    sum.ln() + f64::from(max) - f64::from(logits[id as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_those_of_the_softmax() {
        assert!((nats_of(&[0.0; 8], 3) - 8.0_f64.ln()).abs() < 1e-15);
        let shifted: Vec<f32> = [0.1_f64, 0.2, 0.7].iter().map(|p| (p.ln() + 500.0) as f32).collect();
        assert!((nats_of(&shifted, 1) - -(0.2_f64.ln())).abs() < 1e-4);
        assert!(nats_of(&[0.0, f32::NAN], 0).is_nan());
    }

    #[test]
    fn windows_that_score_nothing_are_left_out() {
        let ids: Vec<u32> = (0..9).collect();
        let windows = Windows { window: 4, limit: None, chunk: 1, batch: 1 };
        let lengths = |windows: Windows| windows.of(&ids).map(<[u32]>::len).collect::<Vec<_>>();
        assert_eq!(lengths(windows), [4, 4]);
        assert_eq!(lengths(Windows { window: 5, ..windows }), [5, 4]);
        assert_eq!(lengths(Windows { limit: Some(1), ..windows }), [4]);
    }
}
