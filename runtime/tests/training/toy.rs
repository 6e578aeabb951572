//! A trainer that is quick and repeatable: it learns which id follows which.

use ir::DType;
use runtime::RuntimeError;
use runtime::training::shard::Draft;
use runtime::training::{Batch, StateInfo, Trainer, Update};

use crate::broken::Disk;

pub(crate) const VOCAB: usize = 11;
pub(crate) const TOKENS: usize = 8;

/// Logits of every pair of ids, and AdamW over them; all in f32, in one order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Toy {
    pub(crate) logits: Vec<f32>,
    mean: Vec<f32>,
    square: Vec<f32>,
    /// The logits, rounded: a state of another type.
    rounded: Vec<u16>,
    gradient: Vec<f32>,
    /// The call, counted from 0, whose loss is no number.
    pub(crate) bad_call: Option<usize>,
    /// The update, counted from 0, that leaves a parameter that is no number.
    pub(crate) bad_update: Option<usize>,
    calls: usize,
    updates: usize,
}

impl Toy {
    pub(crate) fn new() -> Self {
        let logits: Vec<f32> = (0..VOCAB * VOCAB).map(|at| (at * 37 % 19) as f32 / 19.0 - 0.5).collect();
        let zeros = vec![0.0; logits.len()];
        Self {
            rounded: logits.iter().map(|&value| round(value)).collect(),
            logits,
            mean: zeros.clone(),
            square: zeros.clone(),
            gradient: zeros,
            bad_call: None,
            bad_update: None,
            calls: 0,
            updates: 0,
        }
    }

    /// All that a step leaves for the next.
    pub(crate) fn bytes(&mut self) -> Vec<Vec<u8>> {
        (0..self.states().len())
            .map(|state| {
                let mut bytes = Vec::new();
                self.read_state(state, &mut bytes).unwrap();
                bytes
            })
            .collect()
    }

    fn state(&mut self, state: usize) -> &mut Vec<f32> {
        match state {
            0 => &mut self.logits,
            1 => &mut self.mean,
            _ => &mut self.square,
        }
    }
}

/// The upper half.
fn round(value: f32) -> u16 {
    (value.to_bits() >> 16) as u16
}

impl Trainer for Toy {
    fn tokens(&self) -> usize {
        TOKENS
    }

    fn accumulate(&mut self, batch: &Batch) -> Result<f32, RuntimeError> {
        let Batch { ids, seq, pos, span, rows, targets } = batch;
        assert_eq!([ids, seq, pos, rows, targets].map(Vec::len), [TOKENS; 5]);
        assert_eq!(span.len(), 2 * TOKENS);
        let wanted: Vec<usize> = (0..TOKENS).filter(|&token| targets[token] != -1).collect();
        assert!(!wanted.is_empty(), "the mean of nothing");
        let mut loss = 0.0;
        for &token in &wanted {
            let row = ids[token] as usize * VOCAB;
            let powers: Vec<f32> = (0..VOCAB).map(|id| self.logits[row + id].exp()).collect();
            let sum: f32 = powers.iter().sum();
            for (id, power) in powers.iter().enumerate() {
                let is_it = if id == targets[token] as usize { 1.0 } else { 0.0 };
                self.gradient[row + id] += (power / sum - is_it) / wanted.len() as f32;
            }
            loss -= (powers[targets[token] as usize] / sum).ln();
        }
        let is_bad = self.bad_call == Some(self.calls);
        self.calls += 1;
        Ok(if is_bad { f32::NAN } else { loss / wanted.len() as f32 })
    }

    fn update(&mut self, update: &Update) -> Result<f32, RuntimeError> {
        let (rate, decay) = (update.rate as f32, update.decay as f32);
        let left = |beta: f32| 1.0 - beta.powi(update.step as i32);
        let (mean_left, square_left) = (left(0.9), left(0.95));
        let mut norm = 0.0;
        for at in 0..self.logits.len() {
            let dy = self.gradient[at] / update.batches as f32;
            norm += dy * dy;
            self.mean[at] += (dy - self.mean[at]) * 0.1;
            self.square[at] += (dy * dy - self.square[at]) * 0.05;
            let change = (self.mean[at] / mean_left) / ((self.square[at] / square_left).sqrt() + 1e-6);
            self.logits[at] = self.logits[at] * (1.0 - rate * decay) - rate * change;
            self.gradient[at] = 0.0;
        }
        if self.bad_update == Some(self.updates) {
            self.logits[1] = f32::INFINITY;
        }
        self.updates += 1;
        self.rounded = self.logits.iter().map(|&value| round(value)).collect();
        Ok(norm.sqrt())
    }

    fn states(&self) -> Vec<StateInfo> {
        let state = |key: &str, dtype| StateInfo { key: key.to_owned(), dtype, shape: vec![VOCAB as u64; 2] };
        let wide = ["logits.master", "logits.first_moment", "logits.second_moment"].map(|key| state(key, DType::F32));
        wide.into_iter().chain([state("logits", DType::BF16)]).collect()
    }

    fn read_state(&mut self, state: usize, into: &mut Vec<u8>) -> Result<(), RuntimeError> {
        match state {
            3 => into.extend(self.rounded.iter().flat_map(|value| value.to_le_bytes())),
            _ => into.extend(self.state(state).iter().flat_map(|value| value.to_le_bytes())),
        }
        Ok(())
    }

    fn write_state(&mut self, state: usize, bytes: &[u8]) -> Result<(), RuntimeError> {
        assert_eq!(bytes.len(), VOCAB * VOCAB * if state == 3 { 2 } else { 4 });
        match state {
            3 => self.rounded = bytes.as_chunks().0.iter().map(|&value| u16::from_le_bytes(value)).collect(),
            _ => *self.state(state) = bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect(),
        }
        Ok(())
    }
}

/// Writes a few documents that can be learnt: in each, ids go up in steps of its own.
pub(crate) fn write_documents(dir: &std::path::Path) {
    for (split, documents) in [("train-00000", 0..9), ("train-00001", 9..14), ("validation-00000", 14..18)] {
        let mut draft = Draft::new(VOCAB as u32);
        for document in documents {
            let ids: Vec<u32> =
                (0..3 + document * 5 % 17).map(|at| (document + at * (1 + document % 3)) % 11).collect();
            draft.push(&ids).unwrap();
        }
        draft.write(&dir.join(format!("{split}.shard")), &mut Disk::new()).unwrap();
    }
}
