//! Which weights stay on the device, which in the host's memory, and which are copied into slots, piece by piece.

use ir::plan::{ALIGNMENT, Home, Placement, Role, Segment, Slot, Source};

use super::{Emitter, PlanEmitError};
use crate::schedule::residency::{self, Residency, Tier};
use crate::weights::{PlannedTensor, WeightPlan};

/// Buffers that pieces are read ahead into, where they come from the disk to a GPU: one is read, one is copied, and one waits.
pub const DISK_BUFFERS: u32 = 3;

impl Emitter<'_> {
    /// Cuts the weights into segments, and makes room for those that are copied.
    pub(super) fn place_weights(&mut self) -> Result<(), PlanEmitError> {
        let residency = self.options.residency;
        self.plan.placement = placement(&self.weights, residency)?;
        let Placement { slots, .. } = &self.plan.placement;
        if let Some(last) = slots.last() {
            let bytes = last.offset + last.bytes;
            self.shared_buffer("slots".to_owned(), Role::Slots, bytes, 1);
        }
        Ok(())
    }
}

/// The placement that a residency asks for.
fn placement(weights: &WeightPlan, residency: Residency) -> Result<Placement, PlanEmitError> {
    let tensors = weights.in_file_order();
    let body = streamed_body(weights.tensors());
    let rounds = body.map_or(0, |body| body.rounds);
    if rounds < residency.streamed {
        return Err(PlanEmitError::Residency { layers: rounds, streamed: residency.streamed });
    }
    if 0 < residency.streamed && residency.slots < 2 {
        return Err(PlanEmitError::Slots { slots: residency.slots });
    }
    // The layer's pieces, by where round 0 has their ends.
    let parts: Vec<u64> = body.map_or(Vec::new(), |body| body.piece_ends(weights.tensors(), residency.split));
    let homes = tensors.iter().map(|&(tensor, round)| {
        let is_streamed = body.is_some_and(|body| body.has(tensor) && residency.streams(round, rounds));
        match is_streamed {
            true => Kind::Piece { round, part: parts.partition_point(|end| *end <= tensor.offset) },
            false if residency.host_embedding && tensor.is_gathered => Kind::Host,
            false => Kind::Resident,
        }
    });
    let source = match residency.source {
        Tier::Host => Source::Host,
        Tier::Disk => Source::Disk { buffers: DISK_BUFFERS },
    };
    let mut placement = Placement { source, ..Placement::resident(0) };
    let mut kinds: Vec<Kind> = Vec::new();
    for (&(tensor, round), kind) in tensors.iter().zip(homes) {
        let (offset, bytes) = (tensor.offset_in(round), tensor.bytes);
        match placement.segments.last_mut() {
            Some(last) if kinds.last() == Some(&kind) => last.bytes += bytes,
            _ if bytes == 0 => continue,
            _ => {
                let slot = kinds.iter().filter(|kind| matches!(kind, Kind::Piece { .. })).count() as u32;
                let home = match kind {
                    Kind::Piece { .. } => Home::Slot(slot % residency.slots),
                    Kind::Host => Home::Host,
                    // Its place is known when all segments before it are as long as they will be.
                    Kind::Resident => Home::Device(0),
                };
                placement.segments.push(Segment { offset, bytes, home });
                kinds.push(kind);
            }
        }
    }
    let mut slots = vec![0; residency.slots as usize];
    for segment in &mut placement.segments {
        match &mut segment.home {
            Home::Device(at) => {
                *at = placement.resident_bytes;
                placement.resident_bytes += segment.bytes;
            }
            Home::Slot(slot) => slots[*slot as usize] = segment.bytes.max(slots[*slot as usize]),
            Home::Host => {}
        }
    }
    let mut offset = 0;
    for bytes in slots.into_iter().filter(|bytes| *bytes != 0) {
        placement.slots.push(Slot { offset, bytes });
        offset += bytes.next_multiple_of(ALIGNMENT);
    }
    Ok(placement)
}

/// What becomes of a tensor; neighbours of the same kind are one segment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Resident,
    Host,
    Piece { round: u32, part: usize },
}

/// The layers that can be streamed: of all repeated bodies the one with the most weights.
#[derive(Clone, Copy)]
struct Body {
    graph: usize,
    rounds: u32,
}

fn streamed_body(tensors: &[PlannedTensor]) -> Option<Body> {
    let rolled = tensors.iter().filter(|tensor| tensor.rounds != 1);
    let largest = rolled.max_by_key(|tensor| tensor.stride.saturating_mul(u64::from(tensor.rounds)))?;
    Some(Body { graph: largest.graph, rounds: largest.rounds })
}

impl Body {
    fn has(self, tensor: &PlannedTensor) -> bool {
        tensor.graph == self.graph && tensor.rounds != 1
    }

    /// Where the pieces of round 0 end.
    fn piece_ends(self, tensors: &[PlannedTensor], split: u32) -> Vec<u64> {
        let mut own: Vec<&PlannedTensor> = tensors.iter().filter(|tensor| self.has(tensor)).collect();
        own.sort_by_key(|tensor| tensor.offset);
        let mut end = own.first().map_or(0, |first| first.offset);
        let bytes: Vec<u64> = own.iter().map(|tensor| tensor.bytes).collect();
        let pieces = residency::cut(&bytes, split).into_iter();
        pieces
            .map(|bytes| {
                end += bytes;
                end
            })
            .collect()
    }
}
