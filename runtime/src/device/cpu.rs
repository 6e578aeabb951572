//! The CPU as a device: threads, memory and functions.
//!
//! All of a call's work is one job of the pool, whose stages are the launches in order. Launches of one unit each in a row are one stage,
//! because one thread can do them without asking the others.

mod ceiling;
mod code;
mod pool;
mod tune;

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ir::entity::Id;
use ir::plan::{self, Home, Placement, Plan, Segment, Tuning, placement};
use kernels::{CpuKernel, KernelDesc};
use memmap2::Mmap;

use self::code::{Code, GeneratedKernel};
use self::pool::{Pool, Stages};
use super::reader::{self, Reader};
use super::{Device, Place, READINGS, Ticket, Work};
use crate::artifact::WeightMap;
use crate::error::{ArtifactProblem, RuntimeError};
use crate::slab::Slab;

/// Bytes of a stream that a waiting thread reads ahead: they fit the second-level cache of most CPUs, and half of it of those with 512 KiB.
const READ_AHEAD: u64 = 256 << 10;
/// Bytes of one bit of it: as many lines as a core has under way at once.
const READ_AHEAD_BIT: u64 = 16 * LINE;
/// Bytes of a tensor that is fetched whole for a generated kernel: the gains of a norm are few, and what is larger is gathered from.
const GAINS: u64 = 64 << 10;
/// Bytes of a cache line.
const LINE: u64 = 64;
/// Bytes that are one unit of a copy.
const COPY_UNIT: u64 = 16 << 10;

/// The CPU that this program runs on.
pub struct CpuDevice {
    memory: Arc<Memory>,
    kernels: Vec<Function>,
    /// Where the tensors of the resident weights start, and their bytes.
    tensors: BTreeMap<u64, u64>,
    pool: Pool,
    /// What brings the weights that are not resident, if there are such.
    streaming: Option<Streaming>,
    /// What the read rate was measured on, if it was.
    read_buffer: Option<Arc<ceiling::Buffer>>,
    /// What was read last, by the numbers of the readings.
    readings: [Vec<i32>; READINGS as usize],
    /// How many readings there were.
    n_readings: u64,
}

/// What programs point to.
struct Memory {
    /// All weights, of which only rows are read if some have memory of their own.
    weights: WeightMap,
    /// Those that stay in memory, if not all do.
    resident: Option<Mmap>,
    slab: Slab,
    /// Kept for the functions in it.
    _code: Code,
}

/// What a launch calls.
#[derive(Clone, Copy)]
enum Function {
    Table(&'static KernelDesc, CpuKernel),
    Generated(GeneratedKernel),
    /// Copies from the first argument to the second; the dims are the bytes of all units and of one.
    Copy,
    /// Waits for a piece of the streamed weights.
    Await(usize),
    /// Gives its slot back.
    Release(usize),
}

/// Weights that are read into slots of the slab while others are computed with.
struct Streaming {
    handle: reader::Handle,
    /// For each piece, its slot.
    slots: Arc<[u32]>,
    /// How many calls there were.
    calls: u64,
    /// Bytes of all pieces.
    bytes: u64,
    _reader: Reader,
}

/// The slots as the reader sees them.
struct Slots {
    memory: Arc<Memory>,
    /// For each slot, where it starts in the slab.
    starts: Vec<u64>,
    /// For each piece, its slot.
    of_piece: Arc<[u32]>,
}

// SAFETY: a slot is given back by the release of its piece, which comes after all launches that read it, and read again only after the wait for
// the next piece in it.
unsafe impl reader::Target for Slots {
    fn buffer_of(&self, number: u64) -> usize {
        self.of_piece[(number % self.of_piece.len() as u64) as usize] as usize
    }

    fn buffer(&mut self, buffer: usize, bytes: usize) -> Result<&mut [u8], RuntimeError> {
        let start = self.memory.region(Place::Slab(self.starts[buffer]), bytes as u64);
        // SAFETY: the bytes are inside the slab, and nobody else uses them while the slot is the reader's.
        Ok(unsafe { std::slice::from_raw_parts_mut(start, bytes) })
    }
}

/// A list of launches with all pointers resolved.
pub struct CpuProgram {
    launches: Vec<Launch>,
    /// Launches that are done together: one of many units, or several of one unit each.
    stages: Vec<Range<usize>>,
    /// For each stage, the first after it that reads a stream.
    streams_after: Vec<Option<usize>>,
    /// For each stage, the gains that it reads.
    gains: Vec<Vec<Gains>>,
    args: Vec<*mut u8>,
    dims: Vec<i64>,
    /// Keeps what the pointers and functions point to.
    _memory: Arc<Memory>,
}

// SAFETY: the pointers are into memory that the program keeps alive, and are followed only by `CpuDevice::run`, which has exclusive use of
// the device; what the threads of one run share among them is the kernels' contract.
unsafe impl Send for CpuProgram {}
// SAFETY: as above; a shared program is only read.
unsafe impl Sync for CpuProgram {}

struct Launch {
    function: Function,
    units: u64,
    /// Where its pointers start in `CpuProgram::args`.
    args: usize,
    /// Where its sizes start in `CpuProgram::dims`.
    dims: usize,
    /// How many units are best done together.
    grain: u64,
    /// The weights that it reads once, in the order of its units, if it has such.
    stream: Option<Stream>,
}

/// Weights that a launch reads from start to end.
#[derive(Clone, Copy)]
struct Stream {
    start: *const u8,
    /// Bytes of one unit.
    unit_bytes: u64,
}

/// Few weights that a launch reads whole.
#[derive(Clone, Copy)]
struct Gains {
    start: *const u8,
    bytes: u64,
}

/// One run of a program.
struct Run {
    program: Arc<CpuProgram>,
    start: Instant,
    /// For each launch, when it was done, in nanoseconds after the start; empty if nobody wants to know.
    ends: Vec<AtomicU64>,
    pieces: Option<PiecesOfRun>,
}

/// The streamed weights of one run.
struct PiecesOfRun {
    handle: reader::Handle,
    /// For each piece, its slot.
    slots: Arc<[u32]>,
    /// The number of the reading that brings the first piece.
    first: u64,
    /// Whether a piece did not come: what is left is not done then.
    has_failed: AtomicBool,
}

/// How fast this machine is, see [`crate::tune::measure`].
pub(crate) fn tune(
    threads: usize,
    time: Duration,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Tuning, RuntimeError> {
    tune::measure(threads, time, progress)
}

/// Bytes of the largest cache that the system reports, or 0.
pub fn last_level_cache_bytes() -> u64 {
    ceiling::last_level_cache_bytes()
}

impl CpuDevice {
    /// A device with an artifact's weights, code and memory, and so many threads.
    ///
    /// # Errors
    ///
    /// If memory or threads cannot be had, or this CPU cannot run a kernel.
    pub fn new(plan: &Plan, weights: WeightMap, code: &[u8], threads: usize) -> Result<Self, RuntimeError> {
        let code = Code::new(code)?;
        let mut kernels = Vec::with_capacity(plan.kernels.len());
        let mut problems = Vec::new();
        for kernel in &plan.kernels {
            match &kernel.code {
                plan::Code::Table => match (kernels::cpu::resolve(&kernel.name), kernels::find(&kernel.name)) {
                    (Ok(function), Some(desc)) => kernels.push(Function::Table(desc, function)),
                    (Ok(_), None) => unreachable!("what was resolved is in the table"),
                    (Err(error), _) => problems.push(ArtifactProblem::Kernel(error)),
                },
                plan::Code::Cuda { .. } | plan::Code::CublasLt => {
                    problems.push(ArtifactProblem::Foreign { kernel: kernel.name.clone() })
                }
                plan::Code::Generated { offset, .. } => {
                    // SAFETY: artifacts are trusted as executables are: the compiler put a function there. The memory outlives its calls,
                    // because programs keep it.
                    kernels.push(Function::Generated(unsafe { code.entry(*offset) }));
                }
            }
        }
        if !problems.is_empty() {
            return Err(RuntimeError::Artifact { dir: weights.path().into(), problems });
        }
        let slab = Slab::new(plan.slab_bytes)?;
        let (placement, mut resident) = (&plan.placement, None);
        let weights = if placement.segments.iter().all(|segment| matches!(segment.home, Home::Device(_))) {
            weights
        } else {
            resident = Some(weights.resident(placement)?);
            weights
        };
        let memory = Arc::new(Memory { weights, resident, slab, _code: code });
        let streaming = match placement::slots_buffer(plan) {
            None => None,
            Some(buffer) => Some(Streaming::new(&memory, placement, buffer.offset)?),
        };
        Ok(Self {
            memory,
            kernels,
            tensors: resident_tensors(plan),
            pool: Pool::new(threads)?,
            streaming,
            read_buffer: None,
            readings: Default::default(),
            n_readings: 0,
        })
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Bytes a second that all threads together read from memory: the ceiling of decoding.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Panicked`], never on a sound machine.
    pub fn read_rate(&mut self) -> Result<f64, RuntimeError> {
        let buffer = match &self.read_buffer {
            Some(buffer) => Arc::clone(buffer),
            None => Arc::clone(self.read_buffer.insert(ceiling::read_buffer()?)),
        };
        ceiling::read_rate(&mut self.pool, &buffer, ceiling::RUNS)
    }

    /// Int8 multiply-accumulates a second that all threads together reach on registers: the ceiling of prefill.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Panicked`], never on a sound machine.
    pub fn dot_rate(&mut self) -> Result<f64, RuntimeError> {
        ceiling::dot_rate(&mut self.pool)
    }

    /// Bytes a second that streamed weights are read with, with nothing beside it; none if none are streamed.
    ///
    /// # Errors
    ///
    /// If they cannot be read.
    pub fn link_rate(&mut self) -> Result<Option<f64>, RuntimeError> {
        let Some(streaming) = &mut self.streaming else { return Ok(None) };
        let bytes = streaming.bytes as f64;
        streaming.sweep().map(|seconds| Some(bytes / seconds))
    }

    /// What a kernel of the table reads of the weights, if its units are rows of them: the largest of its weights.
    fn stream(&self, desc: &KernelDesc, units: u64, args: &[Place], dims: &[i64]) -> Option<Stream> {
        let weights = desc.signature.args.iter().zip(args).filter(|(_, place)| matches!(place, Place::Resident(_)));
        let sized = weights.filter_map(|(arg, &place)| {
            // Weights do not depend on how many sequences there are.
            Some((kernels::extent::arg_bytes(desc, arg.name, &|name| dim(desc, name, dims), 1)?, place))
        });
        let (bytes, place) = sized.max_by_key(|(bytes, _)| *bytes)?;
        Some(Stream { start: self.region(place, bytes), unit_bytes: bytes / units.max(1) })
    }

    /// The gains among the arguments of a generated kernel. Nobody else fetches them, and a row of activations is too short for the CPU to see
    /// by itself what comes next.
    fn gains(&self, args: &[Place]) -> Vec<Gains> {
        let tensors = args.iter().filter_map(|&place| match place {
            Place::Resident(offset) => Some((place, *self.tensors.get(&offset)?)),
            Place::Host(_) | Place::Slab(_) => None,
        });
        let few = tensors.filter(|(_, bytes)| *bytes <= GAINS);
        few.map(|(place, bytes)| Gains { start: self.region(place, bytes), bytes }).collect()
    }

    fn region(&self, place: Place, bytes: u64) -> *mut u8 {
        self.memory.region(place, bytes)
    }
}

impl Memory {
    /// The start of `bytes` bytes at a place.
    fn region(&self, place: Place, bytes: u64) -> *mut u8 {
        let of_bytes = |data: &[u8], offset| (data.as_ptr().cast_mut(), offset, data.len() as u64);
        let (base, offset, space) = match place {
            Place::Resident(offset) => of_bytes(self.resident.as_deref().unwrap_or(self.weights.data()), offset),
            Place::Host(offset) => of_bytes(self.weights.data(), offset),
            Place::Slab(offset) => (self.slab.base(), offset, self.slab.bytes()),
        };
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= space), "{bytes} bytes at {place:?} leave its {space} bytes");
        // SAFETY: the offset is inside the allocation, or one past its end.
        unsafe { base.add(offset as usize) }
    }
}

impl Streaming {
    /// A reader into the slots, which begin at a place of the slab.
    fn new(memory: &Arc<Memory>, placement: &Placement, slots_start: u64) -> Result<Self, RuntimeError> {
        let pieces = memory.weights.pieces(placement).ok_or(RuntimeError::StreamEnded)?;
        let of_piece: Arc<[u32]> = placement.pieces().map(|(_, slot)| slot).collect();
        let starts: Vec<u64> = placement.slots.iter().map(|slot| slots_start + slot.offset).collect();
        let n_slots = starts.len();
        let slots = Slots { memory: Arc::clone(memory), starts, of_piece: Arc::clone(&of_piece) };
        let reader = Reader::new(pieces, n_slots, slots)?;
        let bytes = placement.streamed_bytes();
        Ok(Self { handle: reader.handle(), slots: of_piece, calls: 0, bytes, _reader: reader })
    }

    /// Seconds to read every piece once more, with nothing beside it: the slots are left as they were.
    fn sweep(&mut self) -> Result<f64, RuntimeError> {
        let n_slots = self.slots.iter().max().map_or(0, |last| u64::from(*last) + 1);
        let PiecesOfRun { handle, slots, first, .. } = self.next();
        let wait = |number| if handle.wait(number) { Ok(()) } else { Err(handle.error()) };
        // What is in the slots was read before the clock starts, and is read again before it stops.
        wait(first + n_slots.min(slots.len() as u64) - 1)?;
        let start = Instant::now();
        for (piece, &slot) in slots.iter().enumerate() {
            wait(first + piece as u64)?;
            handle.free(slot as usize);
        }
        wait(first + slots.len() as u64 + n_slots.min(slots.len() as u64) - 1)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// The pieces of the next call, which reads all of them.
    fn next(&mut self) -> PiecesOfRun {
        let first = self.calls * self.slots.len() as u64;
        self.calls += 1;
        let (handle, slots) = (self.handle.clone(), Arc::clone(&self.slots));
        PiecesOfRun { handle, slots, first, has_failed: AtomicBool::new(false) }
    }
}

/// Where the tensors that stay in memory start there, and their bytes.
fn resident_tensors(plan: &Plan) -> BTreeMap<u64, u64> {
    let weights = plan.buffers.iter().filter(|buffer| buffer.role == plan::Role::Weight);
    let rounds = weights.flat_map(|buffer| {
        (0..u64::from(buffer.rounds)).map(|round| (buffer.offset + round * buffer.stride, buffer.bytes))
    });
    let resident = rounds.filter_map(|(offset, bytes)| match plan.placement.find(offset) {
        Some((_, Segment { offset: start, home: Home::Device(at), .. })) => Some((at + offset - start, bytes)),
        _ => None,
    });
    resident.collect()
}

impl Device for CpuDevice {
    type Program = Arc<CpuProgram>;

    fn name(&self) -> String {
        format!("CPU, {} threads", self.threads())
    }

    fn load(&self, works: &[Work]) -> Result<Arc<CpuProgram>, RuntimeError> {
        let mut program = CpuProgram {
            launches: Vec::with_capacity(works.len()),
            stages: Vec::new(),
            streams_after: Vec::new(),
            gains: Vec::new(),
            args: Vec::new(),
            dims: Vec::new(),
            _memory: Arc::clone(&self.memory),
        };
        let mut gains = Vec::with_capacity(works.len());
        for work in works {
            let (args, dims) = (program.args.len(), program.dims.len());
            gains.push(match work {
                Work::Launch { kernel, args, .. } if matches!(self.kernels[kernel.index()], Function::Generated(_)) => {
                    self.gains(args)
                }
                _ => Vec::new(),
            });
            let (mut grain, mut stream) = (1, None);
            let (function, units) = match work {
                Work::Launch { kernel, grid: [units, ..], args, dims } => {
                    program.args.extend(args.iter().map(|&place| self.region(place, 0)));
                    program.dims.extend(dims);
                    let function = self.kernels[kernel.index()];
                    if let Function::Table(desc, _) = function {
                        grain = desc.grain(|name| dim(desc, name, dims));
                        stream = self.stream(desc, *units, args, dims);
                    }
                    (function, *units)
                }
                Work::Copy { from, to, bytes } => {
                    // Units of a copy inside one region could overtake each other, so it is done in one.
                    let overlaps = match from {
                        Place::Resident(_) | Place::Host(_) => false,
                        Place::Slab(from) => *from < to + bytes && *to < from + bytes,
                    };
                    let unit = if overlaps { *bytes } else { COPY_UNIT };
                    program.args.extend([self.region(*from, *bytes), self.region(Place::Slab(*to), *bytes)]);
                    program.dims.extend([*bytes as i64, unit as i64]);
                    (Function::Copy, bytes.div_ceil(unit))
                }
                Work::Await { piece } => (Function::Await(*piece), 1),
                Work::Release { piece } => (Function::Release(*piece), 1),
            };
            program.launches.push(Launch { function, units, args, dims, grain, stream });
        }
        let is_single = |position: usize| program.launches[position].units == 1;
        for position in 0..program.launches.len() {
            match program.stages.last_mut() {
                Some(stage) if is_single(position) && is_single(stage.start) => stage.end = position + 1,
                _ => program.stages.push(position..position + 1),
            }
        }
        program.gains = program.stages.iter().map(|launches| gains[launches.clone()].concat()).collect();
        // From the end, because what comes first after a stage is what comes first after the next, or the next itself.
        let mut next = None;
        program.streams_after = vec![None; program.stages.len()];
        for (stage, launches) in program.stages.iter().enumerate().rev() {
            program.streams_after[stage] = next;
            if program.launches[launches.start].stream.is_some() {
                next = Some(stage);
            }
        }
        Ok(Arc::new(program))
    }

    fn run(&mut self, program: &Arc<CpuProgram>, times: Option<&mut Vec<Duration>>) -> Result<(), RuntimeError> {
        let count = if times.is_some() { program.launches.len() } else { 0 };
        let streams = program.launches.iter().any(|launch| matches!(launch.function, Function::Await(_)));
        let run = Arc::new(Run {
            program: Arc::clone(program),
            start: Instant::now(),
            ends: (0..count).map(|_| AtomicU64::new(0)).collect(),
            pieces: self.streaming.as_mut().filter(|_| streams).map(Streaming::next),
        });
        let done = self.pool.run(Arc::clone(&run) as Arc<dyn Stages>);
        if let (Err(_), Some(pieces)) = (&done, &run.pieces) {
            // Some of its pieces were never given back, and who waited for the next ones would wait forever.
            pieces.handle.end();
        }
        done?;
        if let Some(pieces) = run.pieces.as_ref().filter(|pieces| pieces.has_failed.load(Ordering::SeqCst)) {
            return Err(pieces.handle.error());
        }
        if let Some(times) = times {
            let mut last = 0;
            for end in &run.ends {
                let end = end.load(Ordering::Relaxed);
                times.push(Duration::from_nanos(end.saturating_sub(last)));
                last = end;
            }
        }
        Ok(())
    }

    fn write_i32(&mut self, offset: u64, values: &[i32]) -> Result<(), RuntimeError> {
        let to = self.region(Place::Slab(offset), 4 * values.len() as u64);
        // SAFETY: the bytes are inside the slab, which nobody else uses outside of `run`; `values` is not in it.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast(), to, 4 * values.len()) };
        Ok(())
    }

    fn copy(&mut self, from: u64, to: u64, bytes: u64) -> Result<(), RuntimeError> {
        let (from, to) = (self.region(Place::Slab(from), bytes), self.region(Place::Slab(to), bytes));
        // SAFETY: both regions are inside the slab, which nobody else uses outside of `run`; they may overlap.
        unsafe { std::ptr::copy(from, to, bytes as usize) };
        Ok(())
    }

    fn queue_read(&mut self, offset: u64, count: usize) -> Result<Ticket, RuntimeError> {
        let from = self.region(Place::Slab(offset), 4 * count as u64);
        let ticket = Ticket { number: self.n_readings, count };
        self.n_readings += 1;
        let reading = &mut self.readings[(ticket.number % READINGS) as usize];
        reading.clear();
        reading.resize(count, 0);
        // SAFETY: the bytes are inside the slab, which nobody else uses outside of `run`, and as many integers have room in `reading`.
        unsafe { std::ptr::copy_nonoverlapping(from, reading.as_mut_ptr().cast(), 4 * count) };
        Ok(ticket)
    }

    fn finish_read(&mut self, ticket: Ticket) -> Result<&[i32], RuntimeError> {
        ticket.expect_kept(self.n_readings);
        Ok(&self.readings[(ticket.number % READINGS) as usize])
    }

    fn runs_ahead(&self) -> usize {
        0
    }

    fn read_f32(&mut self, offset: u64, count: usize) -> Result<&[f32], RuntimeError> {
        let from = self.region(Place::Slab(offset), 4 * count as u64).cast::<f32>();
        assert!(from.is_aligned(), "floats at byte {offset} are not aligned");
        // SAFETY: the floats are inside the slab and aligned; any bits are a float; `self` is borrowed, so nothing writes the slab.
        Ok(unsafe { std::slice::from_raw_parts(from, count) })
    }
}

impl Stages for Run {
    fn len(&self) -> usize {
        self.program.stages.len()
    }

    fn units(&self, stage: usize) -> u64 {
        self.program.launches[self.program.stages[stage].start].units
    }

    fn grain(&self, stage: usize) -> u64 {
        self.program.launches[self.program.stages[stage].start].grain
    }

    fn streams_after(&self, stage: usize) -> Option<usize> {
        self.program.streams_after[stage]
    }

    fn read_ahead(&self, stage: usize, begin: u64, end: u64, bit: u64) -> ControlFlow<()> {
        let launch = &self.program.launches[self.program.stages[stage].start];
        let Some(Stream { start, unit_bytes }) = launch.stream else { return ControlFlow::Break(()) };
        let (from, to) = (begin * unit_bytes + bit * READ_AHEAD_BIT, end * unit_bytes);
        if to.min(begin * unit_bytes + READ_AHEAD) <= from {
            return ControlFlow::Break(());
        }
        for line in (from..to.min(from + READ_AHEAD_BIT)).step_by(LINE as usize) {
            kernels::cpu::prefetch(start.wrapping_add(line as usize));
        }
        ControlFlow::Continue(())
    }

    fn approach(&self, stage: usize) {
        for &Gains { start, bytes } in &self.program.gains[stage] {
            for line in (0..bytes).step_by(LINE as usize) {
                kernels::cpu::prefetch(start.wrapping_add(line as usize));
            }
        }
    }

    fn execute(&self, stage: usize, begin: u64, end: u64) {
        for position in self.program.stages[stage].clone() {
            let launch = &self.program.launches[position];
            match &self.pieces {
                None => self.program.call(launch, begin as i64, end as i64),
                Some(pieces) => self.stream(pieces, launch, begin as i64, end as i64),
            }
            if let Some(end) = self.ends.get(position) {
                // Each of its pieces does this before it counts as done, so the last one's time stays.
                end.fetch_max(self.start.elapsed().as_nanos() as u64, Ordering::Relaxed);
            }
        }
    }
}

impl Run {
    /// Does a launch of a run whose weights come while it runs. After a piece that did not come nothing more is computed.
    fn stream(&self, pieces: &PiecesOfRun, launch: &Launch, begin: i64, end: i64) {
        if pieces.has_failed.load(Ordering::SeqCst) {
            return;
        }
        match launch.function {
            Function::Await(piece) if !pieces.handle.wait(pieces.first + piece as u64) => {
                pieces.has_failed.store(true, Ordering::SeqCst);
            }
            Function::Release(piece) => pieces.handle.free(pieces.slots[piece] as usize),
            _ => self.program.call(launch, begin, end),
        }
    }
}

/// The value of a dim of a kernel's signature among `dims`, or 0.
fn dim(desc: &KernelDesc, name: &str, dims: &[i64]) -> i64 {
    let position = desc.signature.dims.iter().position(|dim| *dim == name);
    position.and_then(|position| dims.get(position)).copied().unwrap_or(0)
}

impl CpuProgram {
    fn call(&self, launch: &Launch, begin: i64, end: i64) {
        let (args, dims) = (self.args[launch.args..].as_ptr(), self.dims[launch.dims..].as_ptr());
        match launch.function {
            // SAFETY: the kernel was resolved for this CPU; the plan gives it the pointers and sizes of its signature, as the compiler
            // promised and the artifact's reader checked; the units are inside the grid and no other thread's.
            Function::Table(_, kernel) => unsafe { kernel(args, dims, begin, end) },
            // SAFETY: as above; the generated function is what the plan's grid, pointers and sizes were made for.
            Function::Generated(kernel) => unsafe { kernel(args, dims, begin, end) },
            // Without streamed weights there is nothing to wait for.
            Function::Await(_) | Function::Release(_) => {}
            Function::Copy => {
                let (bytes, unit) = (self.dims[launch.dims], self.dims[launch.dims + 1]);
                let (start, end) = ((begin * unit) as usize, bytes.min(end * unit) as usize);
                let (from, to) = (self.args[launch.args], self.args[launch.args + 1]);
                // SAFETY: `start` is inside the region of `bytes` bytes that `load` found to be inside its space.
                let from = unsafe { from.add(start) };
                // SAFETY: as above.
                let to = unsafe { to.add(start) };
                // SAFETY: both hold `end - start` bytes; what a thread writes no other thread reads, because regions that overlap are one
                // unit.
                unsafe { std::ptr::copy(from, to, end - start) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(threads: usize, slab_bytes: u64) -> CpuDevice {
        let plan = Plan {
            version: plan::VERSION,
            model: "test".to_owned(),
            target: String::new(),
            machine: plan::Machine {
                threads: 1,
                read_bytes_per_us: 1,
                link_bytes_per_us: 1,
                copy_ns: 0,
                step_ns: 0,
                call_ns: 0,
            },
            context: 0,
            sequences: 0,
            vocab: 0,
            slab_bytes,
            weights_bytes: 0,
            placement: plan::Placement::resident(0),
            budget: plan::Budget::default(),
            symbols: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            buffers: Vec::new(),
            kernels: Vec::new(),
            phases: Vec::new(),
            training: None,
        };
        CpuDevice::new(&plan, WeightMap::empty(), &[], threads).unwrap()
    }

    #[test]
    fn copies_take_every_byte_even_within_one_region() {
        let words = 20_000;
        for threads in [1, 3] {
            let mut device = device(threads, 1 << 20);
            let values: Vec<i32> = (0..words).collect();
            device.write_i32(0, &values).unwrap();
            let bytes = 4 * words as u64;
            let program = device.load(&[
                Work::Copy { from: Place::Slab(0), to: 4, bytes },
                Work::Copy { from: Place::Slab(4), to: 1 << 19, bytes },
            ]);
            let program = program.unwrap();
            let mut times = Vec::new();
            device.run(&program, Some(&mut times)).unwrap();
            assert_eq!(times.len(), 2);
            let read = device.read_f32(1 << 19, words as usize).unwrap();
            assert!(read.iter().zip(&values).all(|(read, value)| read.to_bits() as i32 == *value));
        }
    }

    #[test]
    #[should_panic(expected = "leave its")]
    fn places_outside_are_refused() {
        device(1, 64).load(&[Work::Copy { from: Place::Slab(0), to: 32, bytes: 33 }]).unwrap();
    }

    #[test]
    fn ceilings_are_positive() {
        let mut device = device(2, 64);
        assert!(0.0 < device.dot_rate().unwrap());
        assert!(0.0 < device.read_rate().unwrap());
    }
}
