//! Weights that are copied to the device while others are computed with.
//!
//! Copies go through a stream of their own, one after the other in the order of use, each after an event that says that its slot is free, and
//! before one that says that the piece is there. Parcels are copied to places of their own, and a kernel in a third stream unpacks each into its slot.
//! The host only queues: it waits for nothing but, where pieces come from the disk, for the thread that reads them into a ring of pinned buffers.

use std::sync::Arc;

use ir::entity::Id;
use ir::plan::placement::Cycle;
use ir::plan::{Placement, Plan, Segment, Source, Transit, transit};

use super::driver::{Context, Event, Function, Launch, Memory, Pinned, Stream};
use super::{Kernel, KernelCode};
use crate::artifact::WeightMap;
use crate::device::reader::{self, Reader};
use crate::error::{ArtifactProblem, RuntimeError};

/// Threads that fill pinned memory: one alone is slower than memory.
const FILLERS: usize = 8;

/// The pieces, their slots, and the stream that brings the one to the other.
pub(super) struct Streaming {
    // Dropped first: it waits for what is still copied.
    copies: Stream,
    cycle: Cycle,
    /// For each slot, its address.
    slots: Vec<u64>,
    /// For each slot, when the piece that was copied to it last is there, and when the one before it was used last.
    copied: Vec<Event>,
    released: Vec<Event>,
    /// For each piece, the bytes that are copied.
    bytes: Vec<usize>,
    from: From,
}

/// Where pieces are copied from.
enum From {
    /// Each from memory of its own.
    Host(Vec<Pinned>),
    /// The same as parcels.
    Parcels { memory: Vec<Pinned>, unpacking: Unpacking },
    /// From buffers in turn, into which a thread reads them.
    Disk { handle: reader::Handle, ring: Arc<Ring>, next: u64, _reader: Reader },
}

/// What makes pieces of parcels.
struct Unpacking {
    // Dropped first: it waits for what is still unpacked.
    stream: Stream,
    function: Function,
    blocks: u32,
    threads: u32,
    /// Where parcels are copied to, in turn; when each has arrived, and when the one before it is unpacked.
    places: Vec<u64>,
    arrived: Vec<Event>,
    free: Vec<Event>,
    /// Which place is next.
    next: usize,
}

/// Pinned buffers, and when the last copy from each is done.
struct Ring {
    buffers: Vec<(*mut u8, usize)>,
    done: Vec<Event>,
    memory: Vec<Pinned>,
    context: Arc<Context>,
}

// SAFETY: the pointers are to the pinned memory beside them, which is used by the reader and by copies in turn.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

/// The ring as the reader sees it.
struct RingTarget(Arc<Ring>);

// SAFETY: a buffer is given back when the copy from it is queued, and given out when that copy is done.
unsafe impl reader::Target for RingTarget {
    fn buffer_of(&self, number: u64) -> usize {
        (number % self.0.buffers.len() as u64) as usize
    }

    fn buffer(&mut self, buffer: usize, bytes: usize) -> Result<&mut [u8], RuntimeError> {
        self.0.context.make_current()?;
        self.0.done[buffer].wait()?;
        let (start, room) = self.0.buffers[buffer];
        assert!(bytes <= room, "a piece of {bytes} bytes is larger than the {room} of a buffer");
        // SAFETY: the memory is pinned as long as the ring is there, has been initialised, and is the reader's alone now.
        Ok(unsafe { std::slice::from_raw_parts_mut(start, bytes) })
    }
}

impl Streaming {
    /// The streamed weights of a placement, whose slots begin at an address of the device; the copies of the first pieces are queued.
    pub(super) fn new(
        context: &Arc<Context>,
        plan: &Plan,
        weights: &WeightMap,
        kernels: &[Kernel],
        slots: &dyn Fn(u64, u64) -> u64,
    ) -> Result<Self, RuntimeError> {
        let placement = &plan.placement;
        let events = || placement.slots.iter().map(|_| Event::new(context)).collect::<Result<Vec<_>, _>>();
        let from = match (placement.source, &placement.transit) {
            (Source::Host, Some(transit)) => From::Parcels {
                memory: pinned_pieces(context, plan, weights)?,
                unpacking: Unpacking::new(context, transit, &kernels[transit.kernel.index()], slots)?,
            },
            (Source::Host, None) => From::Host(pinned_pieces(context, plan, weights)?),
            (Source::Disk { buffers }, _) => {
                let room = placement.slots.iter().map(|slot| slot.bytes as usize).max().unwrap_or(0);
                let ring = Arc::new(Ring::new(context, (buffers as usize).max(1), room)?);
                let pieces = weights.pieces(placement).ok_or(RuntimeError::StreamEnded)?;
                let reader = Reader::new(pieces, ring.buffers.len(), RingTarget(Arc::clone(&ring)))?;
                From::Disk { handle: reader.handle(), ring, next: 0, _reader: reader }
            }
        };
        let mut streaming = Self {
            copies: Stream::new(context)?,
            cycle: Cycle::new(placement),
            slots: placement.slots.iter().map(|slot| slots(slot.offset, slot.bytes)).collect(),
            copied: events()?,
            released: events()?,
            bytes: placement.copied_bytes().map(|bytes| bytes as usize).collect(),
            from,
        };
        streaming.copy_all_that_fit()?;
        Ok(streaming)
    }

    /// Lets a stream wait until a piece is in its slot.
    pub(super) fn wait_for(&self, piece: usize, compute: &Stream) -> Result<(), RuntimeError> {
        assert!(self.cycle.has(piece), "the plan was checked to read piece {piece} when it is there");
        compute.wait_for(&self.copied[self.cycle.slot(piece)])
    }

    /// Frees the slot of a piece when what a stream was given so far is done, and queues the copies that waited for it.
    pub(super) fn release(&mut self, piece: usize, compute: &Stream) -> Result<(), RuntimeError> {
        let slot = self.cycle.slot(piece);
        compute.mark(&self.released[slot])?;
        self.cycle.release(piece);
        self.copy_all_that_fit()
    }

    /// Bytes of all pieces.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.iter().map(|bytes| *bytes as u64).sum()
    }

    /// Copies every piece once more with nothing beside it, and returns the seconds that took: the slots are left as they were.
    pub(super) fn sweep(&mut self, context: &Arc<Context>) -> Result<f64, RuntimeError> {
        let (start, end) = (Event::new(context)?, Event::new(context)?);
        self.copies.wait()?;
        self.copies.mark(&start)?;
        for _ in 0..self.bytes.len() {
            let next = self.cycle.upcoming();
            self.cycle.release(next);
            self.copy_all_that_fit()?;
        }
        self.copies.mark(&end)?;
        self.copies.wait()?;
        if let From::Parcels { unpacking, .. } = &self.from {
            unpacking.stream.wait()?;
        }
        end.seconds_since(&start)
    }

    fn copy_all_that_fit(&mut self) -> Result<(), RuntimeError> {
        while let Some(piece) = self.cycle.copy_next() {
            let slot = self.cycle.slot(piece);
            let (to, bytes) = (self.slots[slot], self.bytes[piece]);
            match &mut self.from {
                From::Host(memory) => {
                    self.copies.wait_for(&self.released[slot])?;
                    self.copies.upload(&memory[piece], 0, to, bytes)?;
                }
                From::Parcels { memory, unpacking } => {
                    let place = unpacking.next;
                    self.copies.wait_for(&unpacking.free[place])?;
                    self.copies.upload(&memory[piece], 0, unpacking.places[place], bytes)?;
                    self.copies.mark(&unpacking.arrived[place])?;
                    unpacking.unpack(to, &self.released[slot], &self.copied[slot])?;
                    continue;
                }
                From::Disk { handle, ring, next, .. } => {
                    self.copies.wait_for(&self.released[slot])?;
                    let buffer = (*next % ring.memory.len() as u64) as usize;
                    if !handle.wait(*next) {
                        return Err(handle.error());
                    }
                    self.copies.upload(&ring.memory[buffer], 0, to, bytes)?;
                    self.copies.mark(&ring.done[buffer])?;
                    handle.free(buffer);
                    *next += 1;
                }
            }
            self.copies.mark(&self.copied[slot])?;
        }
        Ok(())
    }
}

impl Unpacking {
    fn new(
        context: &Arc<Context>,
        transit: &Transit,
        kernel: &Kernel,
        address: &dyn Fn(u64, u64) -> u64,
    ) -> Result<Self, RuntimeError> {
        let KernelCode::Own { function, threads, .. } = &kernel.code else {
            unreachable!("the plan was checked to unpack by a function of a cubin")
        };
        let events = || transit.places.iter().map(|_| Event::new(context)).collect::<Result<Vec<_>, _>>();
        Ok(Self {
            stream: Stream::new(context)?,
            function: function.clone(),
            blocks: transit.blocks,
            threads: *threads,
            places: transit.places.iter().map(|place| address(place.offset, place.bytes)).collect(),
            arrived: events()?,
            free: events()?,
            next: 0,
        })
    }

    /// Queues the unpacking of the parcel that was copied last into a slot, after the event that the slot is free and before that its piece is there.
    fn unpack(&mut self, to: u64, released: &Event, unpacked: &Event) -> Result<(), RuntimeError> {
        let place = self.next;
        self.next = (place + 1) % self.places.len();
        self.stream.wait_for(&self.arrived[place])?;
        self.stream.wait_for(released)?;
        self.stream.launch(&Launch {
            function: self.function.clone(),
            grid: [self.blocks, 1, 1],
            threads: self.threads,
            shared_bytes: 0,
            starts_early: false,
            pointers: vec![self.places[place], to],
            sizes: Vec::new(),
        })?;
        self.stream.mark(&self.free[place])?;
        self.stream.mark(unpacked)
    }
}

impl Ring {
    fn new(context: &Arc<Context>, buffers: usize, room: usize) -> Result<Self, RuntimeError> {
        let mut memory = (0..buffers).map(|_| Pinned::new(context, room)).collect::<Result<Vec<_>, _>>()?;
        let done = (0..buffers).map(|_| Event::new(context)).collect::<Result<Vec<_>, _>>()?;
        let buffers = memory.iter_mut().map(|memory| (memory.bytes_mut(room).as_mut_ptr(), room)).collect();
        Ok(Self { buffers, done, memory, context: Arc::clone(context) })
    }
}

/// Every piece in pinned memory, as it is copied.
fn pinned_pieces(context: &Arc<Context>, plan: &Plan, weights: &WeightMap) -> Result<Vec<Pinned>, RuntimeError> {
    let data = weights.data();
    let pieces: Vec<&Segment> = plan.placement.pieces().map(|(segment, _)| segment).collect();
    let pin = |segment: &Segment| -> Result<Pinned, RuntimeError> {
        let bytes = &data[segment.offset as usize..][..segment.bytes as usize];
        if plan.placement.transit.is_none() {
            return Pinned::with(context, bytes);
        }
        let runs = transit::runs(&plan.buffers, segment);
        let parcel_bytes = transit::parcel_bytes(&runs) as usize;
        let mut memory = Pinned::new(context, parcel_bytes)?;
        transit::pack(bytes, &runs, memory.bytes_mut(parcel_bytes)).map_err(|error| {
            let offset = segment.offset + error.offset;
            let problems = vec![ArtifactProblem::NotTernary { offset }];
            RuntimeError::Artifact { dir: weights.path().into(), problems }
        })?;
        Ok(memory)
    };
    let share = pieces.len().div_ceil(FILLERS).max(1);
    std::thread::scope(|scope| {
        let fill = |part: &[&Segment]| -> Result<Vec<Pinned>, RuntimeError> {
            context.make_current()?;
            part.iter().map(|segment| pin(segment)).collect()
        };
        let threads: Vec<_> = pieces.chunks(share).map(|part| scope.spawn(move || fill(part))).collect();
        let mut all = Vec::with_capacity(pieces.len());
        for thread in threads {
            all.extend(thread.join().expect("filling memory does not panic")?);
        }
        Ok(all)
    })
}

/// The weights that kernels read in the host's memory, in one pinned piece.
pub(super) struct HostWeights {
    memory: Pinned,
    /// Where each run of them starts among all weights, its bytes, and where it starts here.
    runs: Vec<(u64, u64, usize)>,
}

impl HostWeights {
    /// Those of a placement; none if there are none.
    pub(super) fn new(
        context: &Arc<Context>,
        placement: &Placement,
        weights: &WeightMap,
    ) -> Result<Option<Self>, RuntimeError> {
        let bytes = placement.host_bytes() as usize;
        if bytes == 0 {
            return Ok(None);
        }
        let mut memory = Pinned::new(context, bytes)?;
        let (mut rest, mut runs, mut at) = (memory.bytes_mut(bytes), Vec::new(), 0);
        for segment in placement.segments.iter().filter(|segment| segment.home == ir::plan::Home::Host) {
            let data = &weights.data()[segment.offset as usize..][..segment.bytes as usize];
            let (own, others) = rest.split_at_mut(data.len());
            own.copy_from_slice(data);
            runs.push((segment.offset, segment.bytes, at));
            (rest, at) = (others, at + data.len());
        }
        Ok(Some(Self { memory, runs }))
    }

    /// The address of a byte of all weights that is among them.
    pub(super) fn address(&self, offset: u64, bytes: u64) -> u64 {
        let run = self.runs.iter().find(|(start, length, _)| *start <= offset && offset - start < *length);
        let &(start, length, at) = run.expect("the executor asks for what the placement has in the host's memory");
        assert!(offset - start + bytes <= length, "{bytes} bytes at {offset} leave the host's weights");
        self.memory.device_address(at + (offset - start) as usize, bytes as usize)
    }
}

/// Copies the weights that stay on the device to it.
pub(super) fn upload_resident(placement: &Placement, weights: &WeightMap, to: &Memory) -> Result<(), RuntimeError> {
    crate::artifact::resident_segments(placement).try_for_each(|(at, segment)| to.write(at, &weights.data()[segment]))
}
