//! Which weights stay on the device, which in the host's memory, and which are copied into slots, piece by piece.

use ir::plan::{ALIGNMENT, Home, Placement, Role, Segment, Slot};

use super::{Emitter, PlanEmitError};
use crate::schedule::Residency;
use crate::weights::{PlannedTensor, WeightPlan};

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
    let homes = tensors.iter().map(|&(tensor, round)| {
        let is_streamed = body.is_some_and(|body| body.has(tensor) && residency.streams(round, rounds));
        match is_streamed {
            true => Kind::Piece { round, part: body.map_or(0, |body| body.part(tensor, residency.split)) },
            false if residency.host_embedding && tensor.is_gathered => Kind::Host,
            false => Kind::Resident,
        }
    });
    let mut placement = Placement { source: residency.source, ..Placement::resident(0) };
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
    Piece { round: u32, part: u64 },
}

/// The layers that can be streamed: of all repeated bodies the one with the most weights.
#[derive(Clone, Copy)]
struct Body {
    graph: usize,
    rounds: u32,
    /// Where round 0 starts, and its bytes.
    start: u64,
    bytes: u64,
}

fn streamed_body(tensors: &[PlannedTensor]) -> Option<Body> {
    let rolled = tensors.iter().filter(|tensor| tensor.rounds != 1);
    let largest = rolled.max_by_key(|tensor| tensor.stride * u64::from(tensor.rounds))?;
    let of_body = tensors.iter().filter(|tensor| tensor.rounds != 1 && tensor.graph == largest.graph);
    let start = of_body.map(|tensor| tensor.offset).min()?;
    Some(Body { graph: largest.graph, rounds: largest.rounds, start, bytes: largest.stride })
}

impl Body {
    fn has(self, tensor: &PlannedTensor) -> bool {
        tensor.graph == self.graph && tensor.rounds != 1
    }

    /// Which of `split` pieces of its layer a tensor belongs to: that in which its middle lies.
    fn part(self, tensor: &PlannedTensor, split: u32) -> u64 {
        let split = u64::from(split.max(1));
        let middle = tensor.offset - self.start + tensor.bytes / 2;
        let part = u128::from(middle) * u128::from(split) / u128::from(self.bytes.max(1));
        (part as u64).min(split - 1)
    }
}
