//! Which weights stay on the device, which in the host's memory, and which are copied into slots, piece by piece.

use ir::plan::{ALIGNMENT, Code, Home, Placement, Role, Segment, Slot, Source, Transit, manifest, transit};
use kernels::cuda::UnpackParcel;

use super::{Emitter, PlanEmitError};
use crate::schedule::residency::{self, Residency, Tier};
use crate::target::Hardware;
use crate::training::START;
use crate::weights::{PlannedTensor, WeightPlan};

/// Places of parcels: one is unpacked while the next is copied.
pub const PARCEL_PLACES: u32 = 2;

/// Buffers that pieces are read ahead into, where they come from the disk to a GPU: one is read, one is copied, and one waits.
pub const DISK_BUFFERS: u32 = 3;

impl Emitter<'_> {
    /// Cuts the weights into segments, and makes room for those that are copied.
    pub(super) fn place_weights(&mut self) -> Result<(), PlanEmitError> {
        let residency = self.options.residency;
        let is_cpu = matches!(self.options.hardware, Hardware::Cpu { .. });
        // What only gives parameters their first values need not stay on a GPU: it is read once, over the link.
        let is_first = |tensor: &PlannedTensor| {
            let name = &self.program.graphs[tensor.graph].name;
            let is_start = name.strip_prefix(START).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
            !is_cpu && self.entries.training.is_some() && is_start
        };
        self.plan.placement = placement(&self.weights, residency, is_cpu, &is_first)?;
        if residency.packs_copies && !self.plan.placement.slots.is_empty() {
            if self.plan.placement.source != Source::Host {
                return Err(PlanEmitError::Parcels);
            }
            self.pack_copies();
        }
        let Placement { slots, transit, .. } = &self.plan.placement;
        let places = transit.iter().flat_map(|transit| &transit.places);
        if let Some(last) = slots.iter().chain(places).last() {
            let bytes = last.offset + last.bytes;
            self.shared_buffer("slots".to_owned(), Role::Slots, bytes, 1);
        }
        Ok(())
    }

    /// Lets pieces travel as parcels, with places for two of them behind the slots.
    fn pack_copies(&mut self) {
        let code = Code::Cuda {
            file: manifest::cubin(UnpackParcel::NAME),
            entry: UnpackParcel::NAME.to_owned(),
            threads: UnpackParcel::THREADS,
            shared_bytes: 0,
            waits: false,
        };
        let kernel = self.table_kernel(UnpackParcel::NAME.to_owned(), code);
        let placement = &self.plan.placement;
        let pieces = placement.pieces().map(|(segment, _)| transit::runs(&self.plan.buffers, segment));
        let parcels: Vec<u64> = pieces.map(|runs| transit::parcel_bytes(&runs)).collect();
        let mut offset = placement.slots.last().map_or(0, |last| last.offset + last.bytes.next_multiple_of(ALIGNMENT));
        let mut places = Vec::new();
        // Parcels take them in turn from call to call, so with an odd number of parcels each comes to each.
        let bytes = parcels.iter().copied().max().unwrap_or(0);
        for _ in 0..PARCEL_PLACES {
            places.push(Slot { offset, bytes });
            offset += bytes.next_multiple_of(ALIGNMENT);
        }
        self.plan.placement.transit = Some(Transit { kernel, blocks: UnpackParcel::BLOCKS, places, parcels });
    }
}

/// The placement that a residency asks for.
fn placement(
    weights: &WeightPlan,
    residency: Residency,
    is_cpu: bool,
    is_first: &dyn Fn(&PlannedTensor) -> bool,
) -> Result<Placement, PlanEmitError> {
    let tensors = weights.in_file_order();
    let body = streamed_body(weights.tensors());
    let rounds = body.map_or(0, |body| body.rounds);
    if rounds < residency.streamed {
        return Err(PlanEmitError::Residency { layers: rounds, streamed: residency.streamed });
    }
    let least = Residency::least_slots(residency.split);
    if 0 < residency.streamed && residency.slots < least {
        return Err(PlanEmitError::Slots { slots: residency.slots, split: residency.split, least });
    }
    // The layer's pieces, by where round 0 has their ends.
    let parts: Vec<u64> = body.map_or(Vec::new(), |body| body.piece_ends(weights.tensors(), residency.split));
    let homes = tensors.iter().map(|&(tensor, round)| {
        let is_streamed = body.is_some_and(|body| body.has(tensor) && residency.streams(round, rounds));
        match is_streamed {
            true => Kind::Piece { round, part: parts.partition_point(|end| *end <= tensor.offset) },
            false if (residency.host_embedding && tensor.is_gathered) || is_first(tensor) => Kind::Host,
            false => Kind::Resident,
        }
    });
    let source = match residency.source {
        // The memory of a CPU is that of its host: what is not there is read from the file, right into the slots.
        _ if is_cpu => Source::Disk { buffers: 0 },
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
