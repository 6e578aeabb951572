//! What the plan of a program in one format says of sizes and times.

use ir::packing::TernaryLayout;
use ir::plan::{CallSizes, CallTime, Role, transit};

use super::Format;
use crate::Planned;
use crate::emit::plan::placement::PARCEL_PLACES;
use crate::schedule::residency;
use crate::weights::PlannedTensor;

/// What is done with a model, as far as its times depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Tokens of the prompt of the sequence whose first token is waited for; at least 1.
    pub prompt: u32,
    /// Sequences that decode together, behind prompts of this length.
    pub sequences: u32,
}

/// Sizes and times of a program in one format, with all weights on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The format.
    pub format: Format,
    /// Layers: the rounds of the repeated body whose weights take the most bytes.
    pub layers: u32,
    /// Bytes of the tensors of one layer, in the order of the weights file.
    pub tensors: Vec<u64>,
    /// The same as they are copied in parcels, see [`ir::plan::transit`].
    pub packed: Vec<u64>,
    /// Bytes of all other weights.
    pub shared_bytes: u64,
    /// The part of these that rows are gathered from and nothing else.
    pub embedding_bytes: u64,
    /// Bytes of one row of it.
    pub embedding_row_bytes: u64,
    /// Bytes of the slab that last from call to call.
    pub state_bytes: u64,
    /// All other bytes of the slab.
    pub scratch_bytes: u64,
    /// One call that gives every sequence a token.
    pub decode: CallTime,
    /// All calls of the prompt.
    pub first: CallTime,
    /// How many these are.
    pub first_calls: u32,
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens of a decoding call.
    pub sequences: u32,
}

impl Profile {
    /// The profile of a plan.
    pub fn new(format: Format, planned: &Planned, workload: Workload) -> Self {
        let Planned { program, plan, weights } = planned;
        let rolled = weights.tensors().iter().filter(|tensor| 1 < tensor.rounds);
        let graph = rolled.clone().max_by_key(|tensor| tensor.stride.saturating_mul(u64::from(tensor.rounds)));
        let graph = graph.map(|tensor| tensor.graph);
        let mut of_layer: Vec<_> = rolled.filter(|tensor| Some(tensor.graph) == graph).collect();
        of_layer.sort_by_key(|tensor| tensor.offset);
        let layers = of_layer.first().map_or(0, |tensor| tensor.rounds);
        let tensors: Vec<u64> = of_layer.iter().map(|tensor| tensor.bytes).collect();
        let is_ternary = |tensor: &PlannedTensor| tensor.stored.layout == Some(TernaryLayout::Tile16);
        let packed = of_layer.iter().map(|tensor| transit::packed_bytes(tensor.bytes, is_ternary(tensor))).collect();
        let layer_bytes: u64 = tensors.iter().sum();
        let gathered = weights.tensors().iter().filter(|tensor| tensor.rounds == 1 && tensor.is_gathered);
        let (mut embedding_bytes, mut embedding_row_bytes) = (0, 0);
        for tensor in gathered {
            let rows =
                program.graphs[tensor.graph].ty(tensor.value).shape.dims().first().and_then(|dim| dim.as_const());
            embedding_bytes += tensor.bytes;
            embedding_row_bytes += tensor.bytes / rows.unwrap_or(1).max(1);
        }
        let states = plan.buffers.iter().filter(|buffer| buffer.role == Role::State);
        let state_bytes: u64 = states
            .map(|buffer| buffer.stride.saturating_mul(u64::from(buffer.rounds.max(1))))
            .fold(0, u64::saturating_add);

        let Workload { prompt, sequences } = workload;
        let chunk = u64::from(format.chunk.max(1));
        let starts = (0..u64::from(prompt.max(1))).step_by(usize::try_from(chunk).unwrap_or(usize::MAX));
        let calls: Vec<CallSizes> =
            starts.map(|start| CallSizes::behind(start, chunk.min(u64::from(prompt.max(1)) - start))).collect();
        let first = calls.iter().fold(CallTime::default(), |sum, &call| {
            let time = plan.predict_call(call).unwrap_or(CallTime { rounds: u64::MAX, rest: u64::MAX });
            CallTime { rounds: sum.rounds.saturating_add(time.rounds), rest: sum.rest.saturating_add(time.rest) }
        });
        let tokens = u64::from(sequences.max(1));
        let keys = tokens.saturating_mul(u64::from(prompt) + 1);
        let decode = plan.predict_call(CallSizes { tokens, rows: tokens, keys });
        Self {
            format,
            layers,
            shared_bytes: plan.weights_bytes.saturating_sub(layer_bytes.saturating_mul(u64::from(layers))),
            tensors,
            packed,
            embedding_bytes,
            embedding_row_bytes,
            state_bytes,
            scratch_bytes: plan.slab_bytes.saturating_sub(state_bytes),
            decode: decode.unwrap_or(CallTime { rounds: u64::MAX, rest: u64::MAX }),
            first,
            first_calls: u32::try_from(calls.len()).unwrap_or(u32::MAX),
            prompt,
            sequences,
        }
    }

    /// Bytes of the weights of one layer.
    pub fn layer_bytes(&self) -> u64 {
        self.tensors.iter().sum()
    }

    /// Bytes of the largest piece of a layer that is cut so, and of all slots together, where pieces take one after another in turn: each is as large
    /// as the largest piece that comes there.
    pub fn slot_bytes(&self, split: u32, slots: u32, streamed: u32) -> (u64, u64) {
        let pieces = residency::cut(&self.tensors, split);
        let mut sizes = vec![0_u64; slots.max(1) as usize];
        // After so many layers the same pieces come to the same slots again.
        let layers = u64::from(streamed).min(u64::from(slots.max(1)));
        let in_turn = (0..layers).flat_map(|_| &pieces);
        for (piece, slot) in in_turn.zip((0..sizes.len()).cycle()) {
            sizes[slot] = sizes[slot].max(*piece);
        }
        let largest = sizes.iter().copied().max().unwrap_or(0);
        (largest, sizes.into_iter().fold(0, u64::saturating_add))
    }

    /// Bytes that are copied of a layer that is cut so and travels in parcels, and of the places of parcels.
    pub fn parcel_bytes(&self, split: u32) -> (u64, u64) {
        let mut parcels = Vec::new();
        let (mut tensors, mut packed) = (self.tensors.iter(), self.packed.iter());
        for piece in residency::cut(&self.tensors, split) {
            let (mut bytes, mut of_piece) = (0, Vec::new());
            while bytes < piece {
                let (Some(tensor), Some(packed)) = (tensors.next(), packed.next()) else { break };
                bytes += tensor;
                of_piece.push(*packed);
            }
            parcels.push(transit::parcel_of(of_piece.into_iter()));
        }
        let largest = parcels.iter().copied().max().unwrap_or(0);
        (parcels.iter().sum(), largest.saturating_mul(PARCEL_PLACES.into()))
    }

    /// Bytes of the device with all weights on it, but for what the driver takes.
    pub fn resident_bytes(&self) -> u64 {
        let layers = self.layer_bytes().saturating_mul(u64::from(self.layers));
        [self.shared_bytes, layers, self.state_bytes, self.scratch_bytes].into_iter().fold(0, u64::saturating_add)
    }
}
