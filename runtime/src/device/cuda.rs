//! A GPU as a device: its memory, the cubins of an artifact, and one stream.
//!
//! Weights that stay on the device are uploaded once; they and the slab are one allocation, refused before anything is allocated if it does not fit.
//! The others are copied while calls run, see [`streaming`]. A program is a CUDA graph: what differs from call to call of the same sizes (ids, positions, sequences) is read from the slab, so that the same graph runs
//! again. A kernel that waits itself for those before it is started while they still run, which hides the time that a start takes. Only when
//! times are wanted, or weights are copied beside them, are the launches queued one by one, with events between them.

mod cublas;
mod driver;
mod streaming;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ir::DType;
use ir::entity::Id;
use ir::op::matmul::Form;
use ir::plan::{Certificate, Code, Plan, Role, placement};
use kernels::Sm;
use kernels::cuda::library::LibraryKernel;

use self::cublas::{Cublas, Product, Sizes, alignment};
use self::driver::{Context, Event, Function, Graph, Launch, Memory, Module, Pinned, Stream};
use self::streaming::{HostWeights, Streaming};
use super::{Device, Place, READINGS, Ticket, Work};
use crate::artifact::{CUDA_TARGETS, WeightMap};
use crate::error::{ArtifactProblem, RuntimeError};

/// Memory that is left to the driver, for graphs and the code of kernels.
const RESERVED_BYTES: u64 = 64 << 20;

/// What the slab starts at a multiple of: what the widest copies like.
const SLAB_ALIGNMENT: u64 = 256;

/// Calls that are queued beyond the one whose result is waited for: while one is computed, the host queues the next.
const CALLS_AHEAD: usize = 2;

/// Bytes of each of the two buffers whose copying measures memory: far more than the cache.
const RATE_BYTES: u64 = 1 << 30;
/// The least that says something about memory: twice the cache of an H100.
const LEAST_RATE_BYTES: u64 = 100 << 20;

/// The GPU that the driver shows first.
pub struct CudaDevice {
    // Dropped in this order: the stream waits for what still runs.
    stream: Stream,
    /// What brings the weights that do not stay on the device, if there are such.
    streaming: Option<Box<Streaming>>,
    memory: Arc<Memories>,
    kernels: Vec<Kernel>,
    /// Whether something failed while weights were streamed, so that nobody knows what is in the slots.
    has_failed: bool,
    /// What was taken of the device's memory.
    taken: MemoryUse,
    /// Bytes that the budget has beyond what the model takes, if there is one.
    budget_left: Option<u64>,
    /// What the input buffers of the slab will hold when the next program runs, and for calls before that what they held: a call is queued while
    /// the copies of others are under way.
    inputs: Vec<Staging>,
    /// The one of them that is written next.
    staging: usize,
    /// Where the inputs lie in the slab.
    input_bytes: Range<u64>,
    /// The part of the slab's inputs that is yet to be copied; empty if none is.
    written: Range<u64>,
    /// Whether something that was queued may not be done.
    is_busy: bool,
    /// What was read last.
    outputs: Pinned,
    /// The last readings of integers, by their numbers.
    readings: Vec<Staging>,
    /// How many there were.
    n_readings: u64,
    name: String,
    /// Whether kernels can be started before those before them are done.
    has_early_start: bool,
    context: Arc<Context>,
}

/// Memory of the host with a copy from or to it.
struct Staging {
    memory: Pinned,
    /// When the last copy is done.
    done: Event,
}

impl Staging {
    fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, RuntimeError> {
        Ok(Self { memory: Pinned::new(context, bytes)?, done: Event::new(context)? })
    }
}

/// What programs point to.
struct Memories {
    /// The weights that stay on the device, and after them the slab.
    device: Memory,
    resident_bytes: u64,
    slab_start: u64,
    /// Weights that are read over the link.
    host: Option<HostWeights>,
}

impl Memories {
    fn slab(&self, offset: u64, bytes: u64) -> u64 {
        self.device.address(self.slab_start + offset, bytes)
    }

    fn address(&self, place: Place, bytes: u64) -> u64 {
        match place {
            Place::Slab(offset) => self.slab(offset, bytes),
            Place::Resident(offset) => {
                assert!(offset + bytes <= self.resident_bytes, "{bytes} bytes at {place:?} leave the resident weights");
                self.device.address(offset, bytes)
            }
            Place::Host(offset) => match &self.host {
                Some(host) => host.address(offset, bytes),
                None => unreachable!("places of the host are of weights that the plan has there"),
            },
        }
    }
}

/// What a model takes of a device's memory, as its driver counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes in use before anything of the model was there: the driver's context, and whatever other programs have.
    pub before: u64,
    /// Bytes in use since.
    pub now: u64,
    /// Bytes of the device.
    pub total: u64,
}

impl MemoryUse {
    /// Bytes in use by a model whose driver was taken to need `overhead`: all that is in use, unless other programs use the device as well; then what
    /// the model took since it was opened, and that overhead.
    pub fn of_model(self, overhead: u64) -> u64 {
        if self.before <= overhead { self.now } else { self.now.saturating_sub(self.before).saturating_add(overhead) }
    }
}

struct Kernel {
    name: String,
    code: KernelCode,
}

enum KernelCode {
    /// A function of a cubin.
    Own { function: Function, threads: u32, shared_bytes: u32, waits: bool },
    /// A dense product of cuBLASLt's, with results of f32 or bf16.
    Product { library: Arc<Cublas>, to: DType },
}

/// A list of launches with all addresses resolved.
pub struct CudaProgram {
    graph: Option<Graph>,
    steps: Vec<Step>,
    /// Keeps what the addresses are of.
    _memory: Arc<Memories>,
}

enum Step {
    Launch { kernel: usize, launch: Launch },
    Product { kernel: usize, product: Arc<Product>, places: [u64; 4] },
    Copy { from: u64, to: u64, bytes: u64 },
    Await { piece: usize },
    Release { piece: usize },
}

/// Major and minor version of the compute capability of the GPU that the driver shows first.
///
/// # Errors
///
/// If there is none.
pub fn capability() -> Result<(u32, u32), RuntimeError> {
    Context::new()?.capability()
}

impl CudaDevice {
    /// A device with an artifact's weights, cubins and memory.
    ///
    /// # Errors
    ///
    /// If there is no GPU, it is another than the artifact was compiled for, the model does not fit into its memory, or the driver refuses a
    /// cubin.
    pub fn new(plan: &Plan, weights: &WeightMap, cubins: &BTreeMap<String, Vec<u8>>) -> Result<Self, RuntimeError> {
        let context = Context::new()?;
        let name = context.name()?;
        let (major, minor) = context.capability()?;
        let sm = plan.target.strip_prefix(CUDA_TARGETS).and_then(|sm| sm.parse::<Sm>().ok());
        if !sm.is_some_and(|sm| sm.runs_on(major, minor)) {
            let reason = format!("this machine has an {name} of compute capability {major}.{minor}");
            let problems = vec![ArtifactProblem::Target { target: plan.target.clone(), reason }];
            return Err(RuntimeError::Artifact { dir: weights.path().into(), problems });
        }
        let placement = &plan.placement;
        let slab_start = placement.resident_bytes.next_multiple_of(SLAB_ALIGNMENT);
        let needed = slab_start.saturating_add(plan.slab_bytes).saturating_add(RESERVED_BYTES);
        let (free, total) = context.memory_bytes()?;
        let before = total - free;
        if free < needed {
            return Err(RuntimeError::DeviceMemory { needed, free });
        }
        let kernels = load_kernels(&context, plan, cubins, weights)?;
        let memory = Arc::new(Memories {
            device: Memory::zeroed(&context, slab_start + plan.slab_bytes)?,
            resident_bytes: placement.resident_bytes,
            slab_start,
            host: HostWeights::new(&context, placement, weights)?,
        });
        streaming::upload_resident(placement, weights, &memory.device)?;
        let streaming = match placement::slots_buffer(plan) {
            None => None,
            Some(buffer) => {
                let address = |offset, bytes| memory.slab(buffer.offset + offset, bytes);
                Some(Box::new(Streaming::new(&context, plan, weights, &kernels, &address)?))
            }
        };
        let budget = plan.budget.device_bytes;
        let input_bytes = input_bytes(plan, weights)?;
        // As much as a call can give, so that no call has to ask for more.
        let of_output = |output: &ir::plan::Io| plan.buffer(output.buffer).bytes as usize;
        let output_bytes = plan.outputs.iter().map(of_output).max().unwrap_or(0);
        let reading_bytes = plan.outputs.get(1).map_or(0, of_output);
        let stagings =
            |bytes: usize| (0..READINGS).map(|_| Staging::new(&context, bytes)).collect::<Result<Vec<_>, _>>();
        Ok(Self {
            stream: Stream::new(&context)?,
            memory,
            kernels,
            streaming,
            has_failed: false,
            taken: MemoryUse { before, now: 0, total },
            budget_left: budget.map(|budget| budget.saturating_sub(Certificate::of(plan).device_bytes())),
            inputs: stagings((input_bytes.end - input_bytes.start) as usize)?,
            staging: 0,
            readings: stagings(reading_bytes)?,
            n_readings: 0,
            input_bytes,
            written: 0..0,
            is_busy: false,
            outputs: Pinned::new(&context, output_bytes)?,
            has_early_start: 9 <= major,
            name: format!("{name} (compute capability {major}.{minor})"),
            context,
        })
    }

    /// Bytes a second that the device reads and writes together when it copies within its memory; 0 if what the model's budget leaves is too little
    /// to measure it with.
    ///
    /// # Errors
    ///
    /// If there is no room for two large buffers, or the device fails.
    pub fn copy_rate(&mut self) -> Result<f64, RuntimeError> {
        const COPIES: u32 = 8;
        self.context.make_current()?;
        let (free, _) = self.context.memory_bytes()?;
        let left = self.budget_left.map_or(free, |left| left.min(free));
        let bytes = RATE_BYTES.min(left / 4);
        if bytes < LEAST_RATE_BYTES {
            return Ok(0.0);
        }
        let (from, to) = (Memory::zeroed(&self.context, bytes)?, Memory::zeroed(&self.context, bytes)?);
        let (start, end) = (Event::new(&self.context)?, Event::new(&self.context)?);
        let copy = || self.stream.copy(from.address(0, bytes), to.address(0, bytes), bytes);
        copy()?;
        self.stream.mark(&start)?;
        (0..COPIES).try_for_each(|_| copy())?;
        self.stream.mark(&end)?;
        self.stream.wait()?;
        Ok(2.0 * f64::from(COPIES) * bytes as f64 / end.seconds_since(&start)?)
    }

    /// Bytes a second that are copied to the device from where streamed weights wait, with nothing beside it; none if none are streamed.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn link_rate(&mut self) -> Result<Option<f64>, RuntimeError> {
        self.guarded(|device| {
            device.wait()?;
            let Some(streaming) = &mut device.streaming else { return Ok(None) };
            let seconds = streaming.sweep(&device.context)?;
            Ok(Some(streaming.bytes() as f64 / seconds))
        })
    }

    /// Uses the device, unless something failed before while weights were streamed: whatever it was, what is in the slots is not known then.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, RuntimeError>) -> Result<T, RuntimeError> {
        if self.has_failed {
            return Err(RuntimeError::StreamEnded);
        }
        let result = self.context.make_current().and_then(|()| work(self));
        self.has_failed = result.is_err() && self.streaming.is_some();
        result
    }

    /// What is taken of the device's memory now.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn memory_use(&mut self) -> Result<MemoryUse, RuntimeError> {
        self.context.make_current()?;
        let (free, total) = self.context.memory_bytes()?;
        self.taken.now = total - free;
        Ok(self.taken)
    }

    /// Puts integers into the slab: with the next upload if they are inputs, else at once.
    fn stage(&mut self, offset: u64, values: &[i32]) -> Result<(), RuntimeError> {
        let end = offset + 4 * values.len() as u64;
        if offset < self.input_bytes.start || self.input_bytes.end < end {
            // What still runs may read it.
            if self.is_busy {
                self.wait()?;
            }
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            return self.memory.device.write(self.memory.slab_start + offset, &bytes);
        }
        let Staging { memory, done } = &mut self.inputs[self.staging];
        if self.written.is_empty() {
            // The copy of an earlier call may be under way.
            done.wait()?;
        }
        memory.write_i32((offset - self.input_bytes.start) as usize, values);
        self.written = match self.written.is_empty() {
            true => offset..end,
            false => self.written.start.min(offset)..self.written.end.max(end),
        };
        Ok(())
    }

    /// Does all steps: by their graph, or one by one.
    fn run_steps(&mut self, program: &CudaProgram, times: Option<&mut Vec<Duration>>) -> Result<(), RuntimeError> {
        self.upload()?;
        self.is_busy = true;
        let Some(times) = times else {
            return match &program.graph {
                Some(graph) => self.stream.run(graph),
                None => program.steps.iter().try_for_each(|step| self.queue_step(step)),
            };
        };
        let events = (0..=program.steps.len()).map(|_| Event::new(&self.context)).collect::<Result<Vec<_>, _>>()?;
        self.stream.mark(&events[0])?;
        for (step, event) in program.steps.iter().zip(&events[1..]) {
            self.queue_step(step)?;
            self.stream.mark(event)?;
        }
        self.wait()?;
        for pair in events.windows(2) {
            times.push(Duration::from_secs_f64(pair[1].seconds_since(&pair[0])?.max(0.0)));
        }
        Ok(())
    }

    /// Queues one step; an error says which.
    fn queue_step(&mut self, step: &Step) -> Result<(), RuntimeError> {
        match (step, &mut self.streaming) {
            (Step::Await { piece }, Some(streaming)) => streaming.wait_for(*piece, &self.stream),
            (Step::Release { piece }, Some(streaming)) => streaming.release(*piece, &self.stream),
            (step, _) => self.queue(step),
        }
    }

    /// Queues one step that needs nothing but its memory; an error says which.
    fn queue(&self, step: &Step) -> Result<(), RuntimeError> {
        match step {
            Step::Await { .. } | Step::Release { .. } => Ok(()),
            Step::Launch { kernel, launch } => {
                self.stream.launch(launch).map_err(|error| error.at(&self.kernels[*kernel].name))
            }
            Step::Product { kernel, product, places } => {
                product.queue(*places, &self.stream).map_err(|error| error.at(&self.kernels[*kernel].name))
            }
            Step::Copy { from, to, bytes } => self.stream.copy(*from, *to, *bytes),
        }
    }

    /// The sizes and addresses of a dense product, whose arguments the artifact's reader has checked.
    fn product(&self, args: &[Place], dims: &[i64], to: DType) -> (Sizes, [u64; 4]) {
        let (&[x, w, out, workspace], &[n, k, m, form]) = (args, dims) else {
            unreachable!("the artifact's reader has counted them")
        };
        let places = [x, w, out, workspace].map(|place| self.memory.address(place, 0));
        let [x, w, out, _] = places.map(alignment);
        let [n, k, m] = [n, k, m].map(i64::unsigned_abs);
        let form = Form::ALL[usize::try_from(form).unwrap_or(0).min(Form::ALL.len() - 1)];
        (Sizes { n, k, m, form, to, alignments: [x, w, out] }, places)
    }

    /// Returns when all that was queued is done.
    fn wait(&mut self) -> Result<(), RuntimeError> {
        self.stream.wait()?;
        self.is_busy = false;
        Ok(())
    }

    /// Queues the copy of the inputs that were written, in one piece: nothing but inputs lies between them.
    fn upload(&mut self) -> Result<(), RuntimeError> {
        let written = std::mem::replace(&mut self.written, 0..0);
        let bytes = written.end - written.start;
        if bytes == 0 {
            return Ok(());
        }
        let to = self.memory.slab(written.start, bytes);
        self.is_busy = true;
        let Staging { memory, done } = &self.inputs[self.staging];
        self.stream.upload(memory, (written.start - self.input_bytes.start) as usize, to, bytes as usize)?;
        self.stream.mark(done)?;
        self.staging = (self.staging + 1) % self.inputs.len();
        Ok(())
    }
}

/// The part of the slab that the inputs have for themselves.
fn input_bytes(plan: &Plan, weights: &WeightMap) -> Result<Range<u64>, RuntimeError> {
    let inputs = plan.buffers.iter().filter(|buffer| buffer.role == Role::Input);
    let start = inputs.clone().map(|input| input.offset).min().unwrap_or(0);
    let end = inputs.filter_map(|input| input.end()).max().unwrap_or(start);
    let is_between = |buffer: &&ir::plan::Buffer| {
        !matches!(buffer.role, Role::Input | Role::Weight)
            && buffer.offset < end
            && buffer.end().is_none_or(|buffer_end| start < buffer_end)
    };
    match plan.buffers.iter().find(is_between) {
        None => Ok(start..end),
        Some(other) => {
            let problems = vec![ArtifactProblem::Interface { what: format!("`{}` lies between inputs", other.name) }];
            Err(RuntimeError::Artifact { dir: weights.path().into(), problems })
        }
    }
}

/// The kernels of a plan, from its cubins.
fn load_kernels(
    context: &Arc<Context>,
    plan: &Plan,
    cubins: &BTreeMap<String, Vec<u8>>,
    weights: &WeightMap,
) -> Result<Vec<Kernel>, RuntimeError> {
    let mut modules: BTreeMap<&str, Arc<Module>> = BTreeMap::new();
    let mut cublas: Option<Arc<Cublas>> = None;
    let mut kernels = Vec::with_capacity(plan.kernels.len());
    for kernel in &plan.kernels {
        let refuse = |problem| RuntimeError::Artifact { dir: weights.path().into(), problems: vec![problem] };
        let name = kernel.name.clone();
        let (file, entry, threads, shared_bytes, waits) = match &kernel.code {
            Code::Cuda { file, entry, threads, shared_bytes, waits } => (file, entry, *threads, *shared_bytes, *waits),
            Code::CublasLt => {
                let to = LibraryKernel::find(&name).map_or(DType::F32, |kernel| kernel.desc().output);
                let library = match &cublas {
                    Some(library) => Arc::clone(library),
                    None => Arc::clone(cublas.insert(Arc::new(Cublas::new(context)?))),
                };
                kernels.push(Kernel { name, code: KernelCode::Product { library, to } });
                continue;
            }
            Code::Table | Code::Generated { .. } => return Err(refuse(ArtifactProblem::Foreign { kernel: name })),
        };
        let Some(cubin) = cubins.get(file) else {
            return Err(refuse(ArtifactProblem::NoCubin { kernel: name, file: file.clone() }));
        };
        let of_kernel = |error: RuntimeError| error.at(&kernel.name);
        let module = match modules.get(file.as_str()) {
            Some(module) => Arc::clone(module),
            None => {
                let module = Arc::new(Module::load(context, cubin).map_err(of_kernel)?);
                modules.insert(file, Arc::clone(&module));
                module
            }
        };
        let function = module.function(entry, shared_bytes).map_err(of_kernel)?;
        kernels.push(Kernel { name, code: KernelCode::Own { function, threads, shared_bytes, waits } });
    }
    Ok(kernels)
}

impl Device for CudaDevice {
    type Program = CudaProgram;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn load(&self, works: &[Work]) -> Result<CudaProgram, RuntimeError> {
        self.context.make_current()?;
        let mut steps = Vec::with_capacity(works.len());
        let mut products: BTreeMap<Sizes, Arc<Product>> = BTreeMap::new();
        for work in works {
            steps.push(match work {
                Work::Launch { kernel, grid, args, dims } => {
                    let Kernel { name, code } = &self.kernels[kernel.index()];
                    let (function, threads, shared_bytes, waits) = match code {
                        KernelCode::Own { function, threads, shared_bytes, waits } => {
                            (function, *threads, *shared_bytes, *waits)
                        }
                        KernelCode::Product { library, to } => {
                            let (sizes, places) = self.product(args, dims, *to);
                            let product = match products.get(&sizes) {
                                Some(product) => Arc::clone(product),
                                None => {
                                    let product = Product::new(library, sizes).map_err(|error| error.at(name))?;
                                    Arc::clone(products.entry(sizes).or_insert(Arc::new(product)))
                                }
                            };
                            steps.push(Step::Product { kernel: kernel.index(), product, places });
                            continue;
                        }
                    };
                    let too_large = |what: String| RuntimeError::Cuda {
                        call: "cuLaunchKernel",
                        reason: format!("{what} is beyond what a launch can have"),
                        step: Some(name.clone()),
                    };
                    let mut blocks = [0; 3];
                    for (blocks, units) in blocks.iter_mut().zip(grid) {
                        *blocks = u32::try_from(*units).map_err(|_| too_large(format!("a grid of {units} blocks")))?;
                    }
                    let size = |&dim: &i64| i32::try_from(dim).map_err(|_| too_large(format!("a size of {dim}")));
                    let launch = Launch {
                        function: function.clone(),
                        grid: blocks,
                        threads,
                        shared_bytes,
                        // Only a kernel can be waited for so, and below 9.0 none.
                        starts_early: waits
                            && self.has_early_start
                            && matches!(steps.last(), Some(Step::Launch { .. })),
                        pointers: args.iter().map(|&place| self.memory.address(place, 0)).collect(),
                        sizes: dims.iter().map(size).collect::<Result<_, _>>()?,
                    };
                    Step::Launch { kernel: kernel.index(), launch }
                }
                Work::Copy { from, to, bytes } => Step::Copy {
                    from: self.memory.address(*from, *bytes),
                    to: self.memory.slab(*to, *bytes),
                    bytes: *bytes,
                },
                Work::Await { piece } => Step::Await { piece: *piece },
                Work::Release { piece } => Step::Release { piece: *piece },
            });
        }
        // A graph of nothing cannot be launched everywhere, and one that runs again cannot wait for another copy each time.
        let streams = steps.iter().any(|step| matches!(step, Step::Await { .. }));
        let graph = match streams || steps.is_empty() {
            true => None,
            false => Some(self.stream.record(|| steps.iter().try_for_each(|step| self.queue(step)))?),
        };
        Ok(CudaProgram { graph, steps, _memory: Arc::clone(&self.memory) })
    }

    fn run(&mut self, program: &CudaProgram, times: Option<&mut Vec<Duration>>) -> Result<(), RuntimeError> {
        self.guarded(|device| device.run_steps(program, times))
    }

    fn write_i32(&mut self, offset: u64, values: &[i32]) -> Result<(), RuntimeError> {
        if values.is_empty() {
            return Ok(());
        }
        self.guarded(|device| device.stage(offset, values))
    }

    fn copy(&mut self, from: u64, to: u64, bytes: u64) -> Result<(), RuntimeError> {
        self.guarded(|device| {
            device.upload()?;
            device.is_busy = true;
            device.stream.copy(device.memory.slab(from, bytes), device.memory.slab(to, bytes), bytes)
        })
    }

    fn queue_read(&mut self, offset: u64, count: usize) -> Result<Ticket, RuntimeError> {
        self.guarded(|device| {
            let bytes = 4 * count;
            let from = device.memory.slab(offset, bytes as u64);
            let ticket = Ticket { number: device.n_readings, count };
            device.n_readings += 1;
            let Staging { memory, done } = &mut device.readings[(ticket.number % READINGS) as usize];
            // The reading before it in this place may be under way, though nobody asks for it any more.
            done.wait()?;
            if memory.bytes() < bytes {
                *memory = Pinned::new(&device.context, bytes)?;
            }
            device.is_busy = true;
            device.stream.download(from, memory, bytes)?;
            device.stream.mark(done)?;
            Ok(ticket)
        })
    }

    fn finish_read(&mut self, ticket: Ticket) -> Result<&[i32], RuntimeError> {
        ticket.expect_kept(self.n_readings);
        let place = (ticket.number % READINGS) as usize;
        self.guarded(|device| device.readings[place].done.wait())?;
        Ok(self.readings[place].memory.i32(ticket.count))
    }

    fn runs_ahead(&self) -> usize {
        CALLS_AHEAD
    }

    fn read_f32(&mut self, offset: u64, count: usize) -> Result<&[f32], RuntimeError> {
        assert!(offset.is_multiple_of(4), "floats at byte {offset} are not aligned");
        self.guarded(|device| {
            let bytes = 4 * count;
            let from = device.memory.slab(offset, bytes as u64);
            if device.outputs.bytes() < bytes {
                device.outputs = Pinned::new(&device.context, bytes)?;
            }
            if 0 < bytes {
                device.stream.download(from, &mut device.outputs, bytes)?;
                device.wait()?;
            }
            Ok(())
        })?;
        Ok(self.outputs.f32(count))
    }
}
