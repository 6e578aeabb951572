//! Where the weights are while calls run: kept on the device, read from the host's memory, or copied into slots for each call.
//!
//! The weights file is cut into segments. Those that are streamed are *pieces*. They are copied in the order of the file, over and over, each as
//! soon as its slot of the slab is free, and a slot is free after the last use of the piece in it: that is all of the schedule, a [`Cycle`]. A call
//! uses each piece once, so what it finds in the slots is what the call before it left there, whatever the phases of the two are: [`check`] walks
//! through every phase and confirms that each piece is there when it is read, and that the slots are left as they were found.

use serde::{Deserialize, Serialize};

use super::{ALIGNMENT, Arg, Buffer, Code, KernelId, Phase, Plan, ROUND, Role, Step, transit};
use crate::entity::Id;

/// Where all weights are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Bytes of the weights that stay on the device.
    pub resident_bytes: u64,
    /// Where pieces wait until they are copied.
    pub source: Source,
    /// Where pieces are copied to, within the buffer of [`Role::Slots`].
    pub slots: Vec<Slot>,
    /// Runs of bytes of the weights, in their order and without gaps.
    pub segments: Vec<Segment>,
    /// How pieces travel, if they are packed for it.
    pub transit: Option<Transit>,
}

/// Pieces travel as parcels, which a kernel unpacks into their slots, see [`super::transit`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transit {
    /// The kernel, whose arguments are the addresses of a parcel and of its piece.
    #[serde(with = "super::text")]
    pub kernel: KernelId,
    /// Its blocks.
    pub blocks: u32,
    /// Where parcels are copied to, in turn, within the buffer of [`Role::Slots`] behind the slots.
    pub places: Vec<Slot>,
    /// For each piece the bytes of its parcel.
    pub parcels: Vec<u64>,
}

/// A place in the slab that pieces are copied to, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    /// Where it starts in the slots' buffer.
    pub offset: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// Where pieces wait until they are copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Source {
    /// In memory of the host that the device copies from by itself.
    #[default]
    Host,
    /// In the file. For a GPU they are read ahead into buffers of the host, each as large as a slot; for a CPU right into the slots.
    Disk {
        /// Buffers.
        buffers: u32,
    },
}

/// A run of bytes of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Where it starts in the weights.
    pub offset: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Where kernels read it.
    pub home: Home,
}

/// Where kernels read a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Home {
    /// In the device's memory, from that byte of the resident weights on.
    Device(u64),
    /// In the host's memory, over the link.
    Host,
    /// In that slot, into which it is copied for each call.
    Slot(u32),
}

impl Placement {
    /// All of `bytes` bytes on the device.
    pub fn resident(bytes: u64) -> Self {
        let all = Segment { offset: 0, bytes, home: Home::Device(0) };
        Self {
            resident_bytes: bytes,
            source: Source::default(),
            slots: Vec::new(),
            segments: if bytes == 0 { Vec::new() } else { vec![all] },
            transit: None,
        }
    }

    /// The segment that has a byte of the weights, and its position.
    pub fn find(&self, offset: u64) -> Option<(usize, &Segment)> {
        let position = self.segments.partition_point(|segment| segment.offset <= offset).checked_sub(1)?;
        let segment = &self.segments[position];
        (offset - segment.offset < segment.bytes).then_some((position, segment))
    }

    /// The streamed segments, in the order in which calls use them, with their slots.
    pub fn pieces(&self) -> impl Iterator<Item = (&Segment, u32)> {
        self.segments.iter().filter_map(|segment| match segment.home {
            Home::Slot(slot) => Some((segment, slot)),
            Home::Device(_) | Home::Host => None,
        })
    }

    /// For each segment, which of the pieces it is.
    pub fn piece_numbers(&self) -> Vec<Option<usize>> {
        let mut count = 0;
        let number = |segment: &Segment| match segment.home {
            Home::Slot(_) => {
                count += 1;
                Some(count - 1)
            }
            Home::Device(_) | Home::Host => None,
        };
        self.segments.iter().map(number).collect()
    }

    /// Bytes of the segments whose home is the host's memory.
    pub fn host_bytes(&self) -> u64 {
        self.segments.iter().filter(|segment| segment.home == Home::Host).map(|segment| segment.bytes).sum()
    }

    /// For each piece, the bytes that are copied.
    pub fn copied_bytes(&self) -> impl Iterator<Item = u64> {
        let parcels = self.transit.as_ref().map(|transit| &transit.parcels);
        let of_piece = move |(piece, (segment, _)): (usize, (&Segment, u32))| match parcels {
            Some(parcels) => parcels.get(piece).copied().unwrap_or(segment.bytes),
            None => segment.bytes,
        };
        self.pieces().enumerate().map(of_piece)
    }

    /// Bytes that are copied for each call.
    pub fn streamed_bytes(&self) -> u64 {
        self.copied_bytes().fold(0, u64::saturating_add)
    }
}

/// Which piece is in which slot, and which comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cycle {
    /// For each piece, its slot.
    slots: Vec<usize>,
    /// For each slot, the piece that is in it or on its way to it.
    held: Vec<Option<usize>>,
    /// The piece that is copied next.
    next: usize,
}

impl Cycle {
    /// All slots are free.
    pub fn new(placement: &Placement) -> Self {
        let slots: Vec<usize> = placement.pieces().map(|(_, slot)| slot as usize).collect();
        Self { slots, held: vec![None; placement.slots.len()], next: 0 }
    }

    /// The slot of a piece.
    pub fn slot(&self, piece: usize) -> usize {
        self.slots[piece]
    }

    /// The piece to copy now, if its slot is free; it is taken to be under way then.
    pub fn copy_next(&mut self) -> Option<usize> {
        let piece = self.next;
        let held = self.held.get_mut(*self.slots.get(piece)?)?;
        if held.is_some() {
            return None;
        }
        *held = Some(piece);
        self.next = (piece + 1) % self.slots.len();
        Some(piece)
    }

    /// Whether a piece is in its slot, or on its way to it.
    pub fn has(&self, piece: usize) -> bool {
        self.held[self.slots[piece]] == Some(piece)
    }

    /// The piece that is copied next, when its slot is free.
    pub fn upcoming(&self) -> usize {
        self.next
    }

    /// Frees the slot of a piece, whatever is in it.
    pub fn release(&mut self, piece: usize) {
        self.held[self.slots[piece]] = None;
    }
}

/// One broken rule of a placement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// The segments are not the weights.
    #[error(
        "the segments of the weights must go from 0 to {weights_bytes} without gaps, and segment {segment} does not"
    )]
    Cover {
        /// Position of the first that is wrong.
        segment: usize,
        /// Bytes of the weights.
        weights_bytes: u64,
    },
    /// A segment is not where vectors may start.
    #[error("segment {segment} does not start at a multiple of {ALIGNMENT} bytes")]
    Alignment {
        /// Its position.
        segment: usize,
    },
    /// A resident segment leaves the resident weights, or shares bytes with the one before it.
    #[error("segment {segment} does not lie after the one before it within the {resident_bytes} resident bytes")]
    Resident {
        /// Its position.
        segment: usize,
        /// Bytes of all.
        resident_bytes: u64,
    },
    /// A slot leaves the buffer of the slots, or shares bytes with the one before it.
    #[error("slot {slot} does not lie after the one before it within the slots' buffer")]
    Slots {
        /// The slot.
        slot: usize,
    },
    /// A parcel has no place that holds it, or is not what its piece is packed to.
    #[error("piece {piece} travels in other bytes than its tensors take, or in more than its place has")]
    Parcel {
        /// The piece.
        piece: usize,
    },
    /// Parcels that nothing can unpack, or that come from where nothing packs them.
    #[error(
        "parcels need at least two places, a kernel of the plan that unpacks them, and weights from the host's memory"
    )]
    Transit,
    /// There is room for pieces, and there are none.
    #[error("the plan has slots for streamed weights, and streams none")]
    Idle,
    /// A piece has no slot that holds it.
    #[error("segment {segment} does not fit slot {slot}")]
    Slot {
        /// Its position.
        segment: usize,
        /// The slot.
        slot: u32,
    },
    /// A tensor is cut, so that no kernel could read it.
    #[error("`{name}` of round {round} lies in more than one segment")]
    Cut {
        /// Its buffer.
        name: String,
        /// The round.
        round: u64,
    },
    /// A call reads a piece that is not in its slot by then.
    #[error("phase `{phase}`: `{from}` reads piece {piece}, which is not in its slot by then")]
    NotThere {
        /// The phase.
        phase: String,
        /// The step.
        from: String,
        /// The piece.
        piece: usize,
    },
    /// A call would end with other pieces in the slots than it began with.
    #[error("phase `{phase}` leaves other pieces in the slots than it found there")]
    Left {
        /// The phase.
        phase: String,
    },
    /// A call does not use a piece.
    #[error("phase `{phase}` never reads piece {piece}, so its slot never becomes free")]
    Unused {
        /// The phase.
        phase: String,
        /// The piece.
        piece: usize,
    },
}

/// Checks a plan's placement: segments, slots, and in every phase the order of copies and uses.
pub fn check(plan: &Plan, errors: &mut Vec<PlacementError>) {
    let before = errors.len();
    segments(plan, errors);
    if errors.len() == before && plan.placement.pieces().next().is_some() {
        plan.all_phases().for_each(|phase| walk(plan, phase, errors));
    }
}

/// The buffer that the slots lie in.
pub fn slots_buffer(plan: &Plan) -> Option<&Buffer> {
    plan.buffers.iter().find(|buffer| buffer.role == Role::Slots)
}

fn segments(plan: &Plan, errors: &mut Vec<PlacementError>) {
    let Placement { resident_bytes, segments, .. } = &plan.placement;
    let (resident_bytes, weights_bytes) = (*resident_bytes, plan.weights_bytes);
    let slots_bytes = slots_buffer(plan).map_or(0, |buffer| buffer.bytes);
    let mut slots_end = 0;
    for (position, slot) in plan.placement.slots.iter().enumerate() {
        let end = slot.offset.checked_add(slot.bytes).filter(|end| *end <= slots_bytes);
        if slot.offset < slots_end || slot.offset % ALIGNMENT != 0 || end.is_none() {
            errors.push(PlacementError::Slots { slot: position });
        }
        slots_end = end.unwrap_or(slots_end);
    }
    let (mut end, mut resident_end) = (0, 0);
    for (position, segment) in segments.iter().enumerate() {
        let next = segment.offset.checked_add(segment.bytes).filter(|next| *next <= weights_bytes);
        if segment.offset != end || segment.bytes == 0 || next.is_none() {
            errors.push(PlacementError::Cover { segment: position, weights_bytes });
            return;
        }
        end = segment.offset + segment.bytes;
        if segment.offset % ALIGNMENT != 0 {
            errors.push(PlacementError::Alignment { segment: position });
        }
        match segment.home {
            Home::Device(at) => {
                if at % ALIGNMENT != 0 {
                    errors.push(PlacementError::Alignment { segment: position });
                }
                let at_end = at.checked_add(segment.bytes).filter(|end| *end <= resident_bytes);
                if at < resident_end || at_end.is_none() {
                    errors.push(PlacementError::Resident { segment: position, resident_bytes });
                }
                resident_end = at_end.unwrap_or(resident_end);
            }
            Home::Host => {}
            Home::Slot(slot) => {
                if plan.placement.slots.get(slot as usize).is_none_or(|slot| slot.bytes < segment.bytes) {
                    errors.push(PlacementError::Slot { segment: position, slot });
                }
            }
        }
    }
    if end != weights_bytes {
        errors.push(PlacementError::Cover { segment: segments.len(), weights_bytes });
        return;
    }
    if let Some(transit) = &plan.placement.transit {
        parcels(plan, transit, slots_end, errors);
    }
    if slots_buffer(plan).is_some() && plan.placement.pieces().next().is_none() {
        errors.push(PlacementError::Idle);
    }
    for buffer in plan.buffers.iter().filter(|buffer| buffer.role == Role::Weight && 0 < buffer.bytes) {
        for round in 0..u64::from(buffer.rounds.max(1)) {
            // Buffers were found to lie inside the weights.
            let start = buffer.offset.saturating_add(buffer.stride.saturating_mul(round));
            let last = start.saturating_add(buffer.bytes - 1);
            let position = |offset| plan.placement.find(offset).map(|(position, _)| position);
            if position(start) != position(last) {
                errors.push(PlacementError::Cut { name: buffer.name.clone(), round });
            }
        }
    }
}

/// Parcels have places behind the slots, and the bytes that their pieces are packed to.
fn parcels(plan: &Plan, transit: &Transit, slots_end: u64, errors: &mut Vec<PlacementError>) {
    let slots_bytes = slots_buffer(plan).map_or(0, |buffer| buffer.bytes);
    let is_there =
        plan.kernels.get(transit.kernel.index()).is_some_and(|kernel| matches!(kernel.code, Code::Cuda { .. }));
    if transit.places.len() < 2 || !is_there || transit.blocks == 0 || plan.placement.source != Source::Host {
        errors.push(PlacementError::Transit);
        return;
    }
    let mut places_end = slots_end;
    for (position, place) in transit.places.iter().enumerate() {
        let end = place.offset.checked_add(place.bytes).filter(|end| *end <= slots_bytes);
        if place.offset < places_end || place.offset % ALIGNMENT != 0 || end.is_none() {
            errors.push(PlacementError::Slots { slot: plan.placement.slots.len() + position });
        }
        places_end = end.unwrap_or(places_end);
    }
    let pieces: Vec<&Segment> = plan.placement.pieces().map(|(segment, _)| segment).collect();
    if pieces.len() != transit.parcels.len() {
        errors.push(PlacementError::Parcel { piece: pieces.len().min(transit.parcels.len()) });
        return;
    }
    for (piece, (segment, &bytes)) in pieces.into_iter().zip(&transit.parcels).enumerate() {
        let runs = transit::runs(&plan.buffers, segment);
        // Parcels take places in turn from call to call, so each comes to each.
        let has_room = transit.places.iter().all(|place| bytes <= place.bytes);
        // Words are copied, so tensors start and end with one.
        let is_whole = runs.iter().all(|run| run.offset % 4 == 0 && run.bytes % 4 == 0);
        let is_packed = runs.len() <= transit::MOST_TENSORS && transit::parcel_bytes(&runs) == bytes;
        if !is_whole || !is_packed || !has_room {
            errors.push(PlacementError::Parcel { piece });
        }
    }
}

/// A step of a call, and the pieces that it reads.
struct Use<'a> {
    pieces: Vec<usize>,
    from: &'a str,
}

/// Goes through a call: all that a step reads must be in its slots at once, and with its last use a piece makes room for the next.
fn walk(plan: &Plan, phase: &Phase, errors: &mut Vec<PlacementError>) {
    let uses = uses(plan, phase);
    let n_pieces = plan.placement.pieces().count();
    let mut last = vec![None; n_pieces];
    for (time, one) in uses.iter().enumerate() {
        one.pieces.iter().for_each(|&piece| last[piece] = Some(time));
    }
    for (piece, last) in last.iter().enumerate() {
        if last.is_none() {
            errors.push(PlacementError::Unused { phase: phase.name.clone(), piece });
            return;
        }
    }
    let mut cycle = Cycle::new(&plan.placement);
    while cycle.copy_next().is_some() {}
    let found = cycle.clone();
    for (time, Use { pieces, from }) in uses.iter().enumerate() {
        if let Some(&piece) = pieces.iter().find(|&&piece| !cycle.has(piece)) {
            errors.push(PlacementError::NotThere { phase: phase.name.clone(), from: (*from).to_owned(), piece });
            return;
        }
        for &piece in pieces.iter().filter(|&&piece| last[piece] == Some(time)) {
            cycle.release(piece);
            while cycle.copy_next().is_some() {}
        }
    }
    if cycle != found {
        errors.push(PlacementError::Left { phase: phase.name.clone() });
    }
}

/// The steps of a call that use pieces, in their order.
fn uses<'a>(plan: &Plan, phase: &'a Phase) -> Vec<Use<'a>> {
    let numbers = plan.placement.piece_numbers();
    let mut uses = Vec::new();
    let mut step_uses = |step: &'a Step, round: u64| {
        let from: &str = match step {
            Step::Call(call) => &call.from,
            Step::Copy { .. } | Step::Repeat { .. } => "copy",
        };
        let mut pieces = pieces_of(plan, &numbers, step, round);
        pieces.sort_unstable();
        pieces.dedup();
        if !pieces.is_empty() {
            uses.push(Use { pieces, from });
        }
    };
    for step in &phase.steps {
        match step {
            Step::Repeat { count, steps, .. } => {
                for round in 0..u64::from(*count) {
                    steps.iter().for_each(|step| step_uses(step, round));
                }
            }
            step => step_uses(step, 0),
        }
    }
    uses
}

/// The pieces that a step reads in a round, given [`Placement::piece_numbers`]; for a repeat none, its steps read them.
pub fn pieces_of(plan: &Plan, numbers: &[Option<usize>], step: &Step, round: u64) -> Vec<usize> {
    let args: Vec<&Arg> = match step {
        Step::Call(call) => call.args.iter().collect(),
        Step::Copy { from, to, .. } => vec![from, to],
        Step::Repeat { .. } => Vec::new(),
    };
    let piece = |arg: &Arg| {
        let buffer = plan.buffers.get(arg.buffer.index()).filter(|buffer| buffer.role == Role::Weight)?;
        let offset = arg.offset.evaluate(&|symbol| (symbol == ROUND).then_some(round))?;
        let (position, _) = plan.placement.find(buffer.offset.checked_add(offset)?)?;
        numbers[position]
    };
    args.into_iter().filter_map(piece).collect()
}
