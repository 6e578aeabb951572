//! Training: what a run of many steps asks of whatever computes one.
//!
//! A step is several calls of [`Trainer::accumulate`], one for each [`Batch`], and one of [`Trainer::update`]. What outlives a step are the
//! states ([`Trainer::states`]), and nothing else: a trainer whose states were written back goes on as if it had never stopped, bit for bit.
//!
//! [`run::train`] is a run: it reads documents ([`shard`], [`corpus`]), packs them into batches ([`batches`]), lets a trainer compute, and keeps
//! what must not be lost ([`checkpoint`]). It knows nothing of models or devices.
//!
//! Documents are packed behind each other into the sequences of batches. The position of a token in its sequence is both its place in the caches
//! and its rotary position, so those of a document do not begin at zero. That is fine, since rotary attention depends on distances only, and
//! each token sees none but the earlier tokens of its own document ([`ir::mask`]).

mod plan;
pub mod shard;
pub mod corpus;
pub mod batches;
pub mod schedule;
pub mod config;
pub mod storage;
pub mod checkpoint;
pub mod metrics;
pub mod report;
pub mod run;

use std::path::Path;

use ir::DType;

use crate::artifact::Artifact;
use crate::error::RuntimeError;
use crate::session::Options;

pub use plan::PlanTrainer;

/// What computes training steps.
pub trait Trainer {
    /// Tokens of a call: every batch has as many.
    fn tokens(&self) -> usize;

    /// Positions of a sequence: a batch has whole sequences, one behind the other. One, if nothing else is said.
    fn context(&self) -> usize {
        self.tokens()
    }

    /// How many ids there are, if that is known.
    fn vocabulary(&self) -> Option<u64> {
        None
    }

    /// Adds the gradients of a batch's mean loss to those of the earlier batches of this step, and returns the loss (nats a target).
    ///
    /// # Errors
    ///
    /// If the batch is not one that this trainer takes, or the device fails.
    fn accumulate(&mut self, batch: &Batch) -> Result<f32, RuntimeError>;

    /// Changes the parameters by the mean of the accumulated gradients, forgets these, and returns their global norm before clipping.
    ///
    /// # Errors
    ///
    /// If the device fails.
    fn update(&mut self, update: &Update) -> Result<f32, RuntimeError>;

    /// All that a step leaves for the next: parameters, masters, moments; the same in every run of one artifact.
    fn states(&self) -> Vec<StateInfo>;

    /// The bytes of a state, little-endian.
    ///
    /// # Errors
    ///
    /// If the device fails.
    fn read_state(&mut self, state: usize, into: &mut Vec<u8>) -> Result<(), RuntimeError>;

    /// Gives a state other bytes, little-endian.
    ///
    /// # Errors
    ///
    /// If there are not as many bytes as the state has, or the device fails.
    fn write_state(&mut self, state: usize, bytes: &[u8]) -> Result<(), RuntimeError>;

    /// Forgets the accumulated gradients and changes nothing else: a validation loss is that of batches which were accumulated in vain.
    ///
    /// As written here it is an update whose every effect is taken back, for which all states are copied. A trainer that can reach its gradients
    /// does better.
    ///
    /// # Errors
    ///
    /// If the device fails.
    fn forget(&mut self) -> Result<(), RuntimeError> {
        let mut kept = vec![Vec::new(); self.states().len()];
        for (state, bytes) in kept.iter_mut().enumerate() {
            self.read_state(state, bytes)?;
        }
        self.update(&Update { step: 1, rate: 0.0, decay: 0.0, batches: 1 })?;
        for (state, bytes) in kept.iter().enumerate() {
            self.write_state(state, bytes)?;
        }
        Ok(())
    }
}

/// Tokens that are trained on in one call. All arrays have [`Trainer::tokens`] entries, `span` two for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The ids.
    pub ids: Vec<i32>,
    /// The sequence of each token.
    pub seq: Vec<i32>,
    /// The position of each in its sequence.
    pub pos: Vec<i32>,
    /// [`ir::mask::Span::first`] and [`ir::mask::Span::reach`] of each: where its document begins in its sequence, and 0, since nothing after a token is
    /// to be seen.
    pub span: Vec<i32>,
    /// The tokens whose logits are wanted: all of them.
    pub rows: Vec<i32>,
    /// The id that follows each in its document; -1, which the loss ignores, where none does.
    pub targets: Vec<i32>,
}

/// What an update does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// The step, counted from 1.
    pub step: u64,
    /// The learning rate.
    pub rate: f64,
    /// The weight decay, as AdamW has it, not multiplied with the rate.
    pub decay: f64,
    /// How many batches were accumulated.
    pub batches: u32,
}

/// Something that a step leaves for the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateInfo {
    /// Its name.
    pub key: String,
    /// The type of its elements.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<u64>,
}

/// Opens the training plan of an artifact.
///
/// # Errors
///
/// If the artifact cannot be read, or [`RuntimeError::NotTrainable`] if it has no training plan.
pub fn open(dir: &Path, options: &Options) -> Result<Box<dyn Trainer>, RuntimeError> {
    let artifact = Artifact::open(dir, options.device, &mut |_, _| ())?;
    Ok(Box::new(PlanTrainer::new(artifact, options)?))
}
