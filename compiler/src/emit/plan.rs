//! Schedules and kernels as an [`ir::plan::Plan`]: every buffer with its place, every phase with its steps.
//!
//! Layers are rolled: a body's steps stand once, and the weights and states of round `r` lie `r` strides behind those of round 0. The carried
//! value of a repeat has one buffer. Its last writer writes it in place where nothing of the round still reads the old value; else a copy ends
//! the round.

mod buffers;
mod fused;
pub mod placement;
mod repeat;
mod rope_append;

use std::collections::HashMap;
use std::ops::RangeInclusive;

use ir::entity::Id;
use ir::graph::Def;
use ir::packing::{RowFormat, TernaryLayout};
use ir::plan::{
    Access, Arg, Budget, Buffer, BufferId, Call, Code, Expr, Grid, Io, Kernel, KernelId, Phase, Placement, Plan, Role,
    Step, SymbolBound, Training, VERSION, manifest,
};
use ir::{Dim, Graph, Op, Program, TensorType, ValueId};
use kernels::cuda::library::{CUBLASLT, LibraryKernel};
use kernels::{CudaKernelDesc, Family, KernelDesc, Signature, Specialised};

use crate::egraph::cost;
use crate::emit::cuda_c::{self, fused::Fused};
use crate::emit::work::{self, KEYS};
use crate::lower::cpu::{self, NoKernel};
use crate::lower::cuda;
use crate::lower::nest::{self, Lowered, NestLowerError};
use crate::nest::Extent;
use crate::schedule::group::Joining;
use crate::schedule::in_place;
use crate::schedule::memory::{self, Request};
use crate::schedule::{Group, Kind, Residency, Schedule, ScheduleError};
use crate::target::{Hardware, Machine};
use crate::training::{ACCUMULATE, Facts, START};
use crate::weights::WeightPlan;

/// What the plan says of itself.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// The target.
    pub hardware: Hardware,
    /// How fast it is taken to be.
    pub machine: Machine,
    /// Positions of a sequence.
    pub context: u64,
    /// Sequences.
    pub sequences: u64,
    /// Where the layers' weights are.
    pub residency: Residency,
    /// What running the plan may take.
    pub budget: Budget,
    /// What is known of a program that is a step of training.
    pub training: Option<Facts>,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanEmitError {
    /// A graph cannot be scheduled.
    #[error("graph `{graph}` cannot be scheduled:\n{}", list(.errors))]
    Schedule {
        /// The graph.
        graph: String,
        /// All reasons.
        errors: Vec<ScheduleError>,
    },
    /// No kernel of the table fits an op.
    #[error(transparent)]
    NoKernel(#[from] NoKernel),
    /// No code can be generated for an op.
    #[error(transparent)]
    Nest(#[from] NestLowerError),
    /// A size beyond 2^64 bytes.
    #[error("`{value}` of type {ty} has more than 2^64 bytes; make the context, the chunk or the model smaller")]
    TooLarge {
        /// The value.
        value: String,
        /// Its type.
        ty: String,
    },
    /// More layers are to be streamed than there are.
    #[error("{streamed} layers are to be streamed, the model repeats {layers}; stream at most as many")]
    Residency {
        /// Layers of the body that is repeated.
        layers: u32,
        /// Those to be streamed.
        streamed: u32,
    },
    /// With fewer slots nothing could be copied while a layer is computed.
    #[error(
        "layers streamed in {split} pieces need at least {least} slots, to copy one piece while others are read; {slots} was asked for"
    )]
    Slots {
        /// Those asked for.
        slots: u32,
        /// Pieces of a layer.
        split: u32,
        /// The fewest that do.
        least: u32,
    },
    /// Nothing packs parcels but the memory of a GPU's host.
    #[error(
        "streamed weights travel in 1.6 bits from the host's memory to a GPU only; choose 2bit, or stream from the host"
    )]
    Parcels,
    /// The entry has another signature than the runtime calls.
    #[error(
        "the entry must take (ids, seq, pos, span, rows) and return logits, or take (settings, draws) as well and also return the ids that it \
         chose; for training it takes (ids, span, targets, first) and returns the loss, and the update takes (settings): {0}"
    )]
    Signature(String),
}

fn list(errors: &[ScheduleError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A plan whose generated kernels have no code yet, and what it needs beside itself.
#[derive(Debug)]
pub struct Emitted {
    /// The plan; the places of generated kernels are filled in by the assembler.
    pub plan: Plan,
    /// The tensors of the weights file.
    pub weights: WeightPlan,
    /// The generated kernels, with the ids that the plan calls them by.
    pub nests: Vec<(KernelId, Lowered)>,
    /// The rows of the CUDA table that are called, as they are specialised.
    pub specialised: Vec<(KernelId, Specialised)>,
    /// The products that are called with nests in their kernels.
    pub fused: Vec<(KernelId, Fused)>,
}

/// The plan of a program.
///
/// # Errors
///
/// If a value has no place, or an op no kernel.
pub fn emit(program: &Program, options: &PlanOptions) -> Result<Emitted, PlanEmitError> {
    let entries = Entries::of(program, options);
    let max_tokens = max_tokens(program, options);
    let few: &[(&'static str, u64)] = match options.hardware {
        Hardware::Cpu { .. } => &[("decode", 1), ("batch", 16)],
        Hardware::Cuda(_) => &[("decode", 1), ("few", 8), ("batch", 16), ("short", 128), ("medium", 512)],
    };
    let group = |graph| {
        let joining = if options.training.is_some() { Joining::Nests } else { Joining::Values };
        let schedule = crate::schedule::group::group(graph, options.hardware, joining);
        schedule.map_err(|errors| PlanEmitError::Schedule { graph: Graph::clone(graph).name, errors })
    };
    let grouped = || program.graphs.iter().map(group).collect::<Result<Vec<_>, _>>();
    let mut schedules = Schedules { any: grouped()?, phases: Vec::new() };
    let mut low = 1;
    let phases: Vec<(&str, RangeInclusive<u64>, usize)> = match entries.training {
        Some((start, accumulate)) => {
            let phases = [(ACCUMULATE, accumulate), (START, start), ("update", entries.last)];
            phases.map(|(name, entry)| (name, max_tokens..=max_tokens, entry)).into()
        }
        None => {
            let ranges = few.iter().copied().chain([("prefill", max_tokens)]).filter_map(|(name, high)| {
                let tokens = low..=high.min(max_tokens);
                low = low.max(tokens.end() + 1);
                (!tokens.is_empty()).then_some((name, tokens, entries.last))
            });
            ranges.collect()
        }
    };
    for (name, tokens, entry) in phases {
        let graphs = match options.hardware {
            Hardware::Cpu { .. } => None,
            Hardware::Cuda(sm) => {
                Some(grouped()?.into_iter().map(|schedule| cuda::fuse(schedule, &tokens, sm)).collect())
            }
        };
        schedules.phases.push(PhaseSchedules { name, tokens, entry, graphs });
    }
    let mut emitter = Emitter::new(program, options, &schedules, entries);
    emitter.lower_nests()?;
    emitter.collect_weights()?;
    emitter.place_weights()?;
    emitter.fixed_buffers()?;
    let phases = schedules.phases.iter().enumerate().map(|(index, phase)| emitter.phase(index, phase));
    let phases = phases.collect::<Result<Vec<_>, _>>()?;
    emitter.finish(phases)
}

/// The graphs of a program that calls begin with.
#[derive(Clone, Copy, Debug)]
struct Entries {
    /// Of a step of training: the one that gives parameters their first values, and the one that adds gradients up.
    training: Option<(usize, usize)>,
    /// The last of all graphs.
    last: usize,
}

impl Entries {
    fn of(program: &Program, options: &PlanOptions) -> Self {
        let find = |name: &str| {
            let is_it = |graph: &Graph| options.training.is_some() && graph.name == name;
            program.graphs.iter().position(is_it)
        };
        Self { training: find(START).zip(find(ACCUMULATE)), last: program.graphs.len() - 1 }
    }

    fn all(self) -> impl Iterator<Item = usize> {
        self.training.into_iter().flat_map(|(start, accumulate)| [start, accumulate]).chain([self.last])
    }
}

/// The most tokens of a call.
fn max_tokens(program: &Program, options: &PlanOptions) -> u64 {
    let bound = program.symbols.iter().find(|decl| decl.symbol.name() == "n").map(|decl| decl.max);
    bound.or(options.training.map(|facts| facts.batch.tokens())).unwrap_or(0)
}

/// The groups of all graphs.
struct Schedules<'a> {
    /// For calls of any number of tokens.
    any: Vec<Schedule<'a>>,
    /// The phases, those of fewer tokens first.
    phases: Vec<PhaseSchedules<'a>>,
}

/// A range of tokens in a call, and what is particular to it.
struct PhaseSchedules<'a> {
    name: &'static str,
    tokens: RangeInclusive<u64>,
    /// The graph that it runs.
    entry: usize,
    /// The groups of all graphs, where they may be others than for any number of tokens.
    graphs: Option<Vec<Schedule<'a>>>,
}

/// Where a value lies.
#[derive(Clone, Debug)]
struct Place {
    buffer: BufferId,
    /// Bytes from the buffer's start.
    offset: Expr,
}

/// The places of the values of one graph.
type Places = HashMap<ValueId, Place>;

/// The graph of a nest, its values and its outputs: all that it depends on.
type NestKey = (usize, Vec<ValueId>, Vec<ValueId>);

fn nest_key(graph_index: usize, group: &Group) -> NestKey {
    (graph_index, group.values.clone(), group.outputs.clone())
}

struct Emitter<'a> {
    program: &'a Program,
    options: &'a PlanOptions,
    schedules: &'a Schedules<'a>,
    entries: Entries,
    plan: Plan,
    /// Nests by their graphs and groups.
    nests: HashMap<NestKey, (KernelId, Lowered)>,
    /// How often each name of generated code was taken.
    names: HashMap<String, usize>,
    /// Products with what is computed in their kernels.
    fused: Vec<(KernelId, Fused)>,
    /// Kernels of the tables by their names in the plan.
    table_kernels: HashMap<String, KernelId>,
    specialised: Vec<(KernelId, Specialised)>,
    weights: WeightPlan,
    /// The fixed places of weights, states and inputs, by graph.
    fixed: Vec<Places>,
    /// The states of a step of training that the next one needs.
    kept: Vec<Io>,
    /// Where results are put, by graph.
    results: Vec<Vec<(ValueId, Place)>>,
    /// Those of ternary weights, by graph and packing: only ternary matmuls read them, each in its own packing.
    packed: HashMap<(usize, ValueId, TernaryLayout), Place>,
    /// Bytes of the slab that all phases share: states, inputs, outputs.
    shared_bytes: u64,
    arena_bytes: u64,
}

impl<'a> Emitter<'a> {
    fn new(program: &'a Program, options: &'a PlanOptions, schedules: &'a Schedules<'a>, entries: Entries) -> Self {
        let mut symbols: Vec<SymbolBound> = program
            .symbols
            .iter()
            .map(|decl| SymbolBound { name: decl.symbol.name().to_owned(), max: decl.max })
            .collect();
        let max_tokens = max_tokens(program, options);
        if options.training.is_some() {
            symbols.extend(["n", "m"].map(|name| SymbolBound { name: name.to_owned(), max: max_tokens }));
        }
        symbols.push(SymbolBound { name: KEYS.to_owned(), max: max_tokens.saturating_mul(options.context) });
        let plan = Plan {
            version: VERSION,
            model: program.name.clone(),
            target: options.hardware.to_string(),
            machine: options.machine.plan_machine(),
            context: options.context,
            sequences: options.sequences,
            vocab: 0,
            slab_bytes: 0,
            weights_bytes: 0,
            placement: Placement::resident(0),
            budget: options.budget,
            symbols,
            inputs: Vec::new(),
            outputs: Vec::new(),
            buffers: Vec::new(),
            kernels: Vec::new(),
            phases: Vec::new(),
            training: None,
        };
        Self {
            program,
            options,
            schedules,
            entries,
            plan,
            nests: HashMap::new(),
            names: HashMap::new(),
            fused: Vec::new(),
            table_kernels: HashMap::new(),
            specialised: Vec::new(),
            weights: WeightPlan::default(),
            fixed: program.graphs.iter().map(|_| Places::new()).collect(),
            kept: Vec::new(),
            results: program.graphs.iter().map(|_| Vec::new()).collect(),
            packed: HashMap::new(),
            shared_bytes: 0,
            arena_bytes: 0,
        }
    }

    fn max_of(&self, symbol: &str) -> u64 {
        self.plan.symbols.iter().find(|bound| bound.name == symbol).map_or(0, |bound| bound.max)
    }

    /// Whether a graph runs at all: a body that is repeated no times needs nothing.
    fn runs(&self, graph: &Graph) -> bool {
        self.rounds(graph) != 0
    }

    /// How often a graph runs when each entry does once.
    fn rounds(&self, graph: &Graph) -> u64 {
        if self.entries.all().any(|entry| self.program.graphs[entry].name == graph.name) {
            return 1;
        }
        let callers = self.program.graphs.iter().flat_map(|caller| {
            let bodies = caller.values.ids().filter_map(|id| caller.op(id)?.body());
            bodies.filter(|(body, _)| *body == graph.name).map(move |(_, count)| u64::from(count) * self.rounds(caller))
        });
        callers.sum()
    }

    /// Generates the nests of all graphs; phases call the same where they have the same groups.
    fn lower_nests(&mut self) -> Result<(), PlanEmitError> {
        let schedules = self.schedules;
        let of_phases = schedules.phases.iter().filter_map(|phase| phase.graphs.as_ref());
        for of_graphs in [&schedules.any].into_iter().chain(of_phases) {
            for (graph_index, schedule) in of_graphs.iter().enumerate() {
                let is_run = self.runs(schedule.graph);
                for group in schedule.groups.iter().filter(|group| is_run && group.kind == Kind::Nest) {
                    self.lower_nest(graph_index, schedule, group)?;
                }
            }
        }
        Ok(())
    }

    fn lower_nest(&mut self, graph_index: usize, schedule: &Schedule<'_>, group: &Group) -> Result<(), PlanEmitError> {
        let key = nest_key(graph_index, group);
        if self.nests.contains_key(&key) {
            return Ok(());
        }
        let name = unique(&mut self.names, nest_name(schedule.graph, group));
        let lowered = nest::lower(schedule, group, &name)?;
        let id = KernelId::new(self.plan.kernels.len());
        let code = match self.options.hardware {
            Hardware::Cpu { .. } => Code::Generated { offset: 0, bytes: 0 },
            Hardware::Cuda(_) => Code::Cuda {
                file: manifest::cubin(&name),
                entry: name.clone(),
                threads: cuda_c::units(&lowered.nest).threads,
                shared_bytes: 0,
                waits: true,
            },
        };
        self.plan.kernels.push(Kernel { name, code });
        self.nests.insert(key, (id, lowered));
        Ok(())
    }

    /// The position of one of the program's graphs.
    fn index_of(&self, graph: &Graph) -> usize {
        let position = self.schedules.any.iter().position(|schedule| std::ptr::eq(schedule.graph, graph));
        position.expect("steps are made from the schedules")
    }

    /// Bytes of a value at the largest sizes that calls of `max_tokens` tokens have.
    fn bytes(&self, graph: &Graph, value: ValueId, max_tokens: u64) -> Result<u64, PlanEmitError> {
        let ty = graph.ty(value);
        let too_large = || PlanEmitError::TooLarge { value: graph.label(value), ty: ty.to_string() };
        let lookup = |symbol: &str| Some(if symbol == "n" { max_tokens } else { self.max_of(symbol) });
        bytes_expr(ty).evaluate(&lookup).filter(|bytes| *bytes < 1 << 62).ok_or_else(too_large)
    }

    fn phase(&mut self, index: usize, phase: &'a PhaseSchedules<'a>) -> Result<Phase, PlanEmitError> {
        let first_scratch = self.plan.buffers.len();
        let schedules = phase.graphs.as_ref().unwrap_or(&self.schedules.any);
        let (mut places, wanted) = (self.fixed[phase.entry].clone(), self.results[phase.entry].clone());
        let mut ctx = PhaseCtx { emitter: self, index, schedules, tokens: phase.tokens.clone() };
        let steps = ctx.graph(phase.entry, &mut places, &wanted)?;
        let lifetimes = memory::lifetimes(&steps);
        let requests = (first_scratch..self.plan.buffers.len()).filter_map(|position| {
            let buffer = BufferId::new(position);
            let lifetime = *lifetimes.get(&buffer)?;
            Some(Request { buffer, bytes: self.plan.buffers[position].bytes, lifetime })
        });
        let arena = memory::place(requests.collect());
        for (buffer, offset) in &arena.offsets {
            self.plan.buffers[buffer.index()].offset = self.shared_bytes + offset;
        }
        self.arena_bytes = self.arena_bytes.max(arena.bytes);
        Ok(Phase { name: phase.name.to_owned(), max_tokens: *phase.tokens.end(), steps })
    }

    fn finish(mut self, mut phases: Vec<Phase>) -> Result<Emitted, PlanEmitError> {
        if let Some(Facts { betas, .. }) = self.options.training {
            let update = phases.pop();
            let states = std::mem::take(&mut self.kept);
            self.plan.training =
                phases.pop().zip(update).map(|(start, update)| Training { betas, states, start, update });
        }
        self.plan.phases = phases;
        self.plan.slab_bytes = self.shared_bytes.saturating_add(self.arena_bytes);
        let mut nests: Vec<(KernelId, Lowered)> = self.nests.into_values().collect();
        nests.sort_by_key(|(kernel, _)| *kernel);
        let Self { plan, weights, specialised, fused, .. } = self;
        Ok(Emitted { plan, weights, nests, specialised, fused })
    }

    /// The row of the target's table that computes an op in calls of a range of tokens.
    fn row(&self, graph: &Graph, value: ValueId, tokens: &RangeInclusive<u64>) -> Result<Row, NoKernel> {
        let of_library = || match graph.op(value)? {
            Op::Gemm(gemm) => CUBLASLT.iter().find(|library| library.desc().output == gemm.to),
            _ => None,
        };
        Ok(match self.options.hardware {
            Hardware::Cpu { isa, .. } => Row::Cpu(cpu::choose(graph, value, tokens, isa)?),
            Hardware::Cuda(sm) => match of_library() {
                Some(library) => Row::Library(library),
                None => Row::Cuda(cuda::choose(graph, value, tokens, sm)?),
            },
        })
    }

    fn table_kernel(&mut self, name: String, code: Code) -> KernelId {
        if let Some(&kernel) = self.table_kernels.get(&name) {
            return kernel;
        }
        let kernel = KernelId::new(self.plan.kernels.len());
        self.plan.kernels.push(Kernel { name: name.clone(), code });
        self.table_kernels.insert(name, kernel);
        kernel
    }

    /// The kernel of a launch. One that waits for its inputs itself begins with what is there already, so it may start early only where that is.
    fn cuda_kernel(&mut self, launch: &cuda::Launch, is_early: bool) -> KernelId {
        let label = launch.special.label();
        let desc = launch.special.desc;
        let code = Code::Cuda {
            file: manifest::cubin(&label),
            entry: desc.name.to_owned(),
            threads: desc.launch.threads,
            shared_bytes: launch.shared_bytes,
            waits: desc.waits() && is_early,
        };
        let is_new = !self.specialised.iter().any(|(_, special)| special.label() == label);
        let name = if is_early { label } else { format!("{label}__late") };
        let kernel = self.table_kernel(name, code);
        if is_new {
            self.specialised.push((kernel, launch.special.clone()));
        }
        kernel
    }
}

/// A row of one of the tables.
#[derive(Clone, Copy)]
enum Row {
    Cpu(&'static KernelDesc),
    Cuda(&'static CudaKernelDesc),
    Library(&'static LibraryKernel),
}

impl Row {
    fn signature(self) -> &'static Signature {
        match self {
            Row::Cpu(desc) => desc.signature,
            Row::Cuda(desc) => desc.signature,
            Row::Library(library) => library.desc().signature,
        }
    }

    /// What a rate belongs to.
    fn kind(self) -> (Family, &'static [ir::DType], Option<TernaryLayout>) {
        match self {
            Row::Cpu(desc) => (desc.family, desc.inputs, desc.layout),
            Row::Cuda(desc) => (desc.family, desc.inputs, desc.layout),
            Row::Library(library) => (library.desc().family, library.desc().inputs, library.desc().layout),
        }
    }
}

struct PhaseCtx<'e, 'a> {
    emitter: &'e mut Emitter<'a>,
    index: usize,
    /// The groups of all graphs.
    schedules: &'a [Schedule<'a>],
    tokens: RangeInclusive<u64>,
}

impl<'a> PhaseCtx<'_, 'a> {
    /// The steps of one run of a graph. Values of `wanted` are put where it says.
    fn graph(
        &mut self,
        graph_index: usize,
        places: &mut Places,
        wanted: &[(ValueId, Place)],
    ) -> Result<Vec<Step>, PlanEmitError> {
        let schedules = self.schedules;
        let schedule = &schedules[graph_index];
        let graph = schedule.graph;
        let mut steps = Vec::new();
        for (value, place) in wanted {
            // What is given is copied first: rounds overwrite what they carry.
            if matches!(graph.values[schedule.views.resolve(*value).base].def, Def::Input) {
                steps.push(self.copy(graph, *value, self.place(schedule, *value, places), place.clone()));
            }
            // A value with storage of its own is computed right where it is wanted.
            if schedule.groups.iter().any(|group| group.outputs.contains(value)) && may_preplace(schedule, *value) {
                places.insert(*value, place.clone());
            }
        }
        let last_uses = in_place::last_uses(schedule);
        for (position, group) in schedule.groups.iter().enumerate() {
            for (state, value) in in_place::overwritten(schedule, group) {
                let place = places[&state].clone();
                places.entry(value).or_insert(place);
            }
            self.write_over(schedule, graph_index, group, places, &|value| last_uses.get(&value) == Some(&position));
            match group.kind {
                Kind::Kernel => steps.push(self.table_call(schedule, group.values[0], places)?),
                Kind::Nest => steps.push(self.nest_call(schedule, graph_index, group, places)?),
                Kind::RopeAppend(group) => steps.push(self.rope_append(schedule, group, places)?),
                Kind::Fused { product } => steps.push(self.fused_call(schedule, group, product, places)?),
                Kind::Repeat => self.repeat(schedule, group, places, &mut steps)?,
            }
        }
        for (value, place) in wanted {
            let source = self.place(schedule, *value, places);
            let is_given = matches!(graph.values[schedule.views.resolve(*value).base].def, Def::Input);
            if source.buffer != place.buffer && !is_given {
                steps.push(self.copy(graph, *value, source, place.clone()));
            }
        }
        for update in &graph.updates {
            let source = self.place(schedule, update.value, places);
            let target = places[&update.state].clone();
            if source.buffer != target.buffer {
                steps.push(self.copy(graph, update.value, source, target));
            }
        }
        Ok(steps)
    }

    /// Puts results of a nest where operands lie that are scratch and that nothing reads any more, if the nest may write there.
    fn write_over(
        &self,
        schedule: &Schedule<'_>,
        graph_index: usize,
        group: &Group,
        places: &mut Places,
        ends_here: &dyn Fn(ValueId) -> bool,
    ) {
        if group.kind != Kind::Nest {
            return;
        }
        let Lowered { nest, buffers } = &self.emitter.nests[&nest_key(graph_index, group)].1;
        let is_computed = |value: ValueId| schedule.groups.iter().any(|group| group.outputs.contains(&value));
        let mut taken: Vec<usize> = Vec::new();
        for (written, &value) in buffers.iter().enumerate().filter(|(position, _)| nest.buffers[*position].write) {
            if places.contains_key(&value) {
                continue;
            }
            let ty = schedule.graph.ty(value);
            let found = buffers.iter().enumerate().find_map(|(read, &operand)| {
                let old = schedule.graph.ty(operand);
                let is_free = ends_here(operand)
                    && is_computed(operand)
                    && (&old.dtype, old.shape.elements()) == (&ty.dtype, ty.shape.elements())
                    && !taken.contains(&read)
                    && nest.may_lie_on(written, read);
                let place = places.get(&operand).filter(|_| is_free)?;
                let Buffer { role, .. } = self.emitter.plan.buffer(place.buffer);
                let is_own = *role == Role::Scratch(self.index) && place.offset.as_const() == Some(0);
                is_own.then(|| (read, place.clone()))
            });
            if let Some((read, place)) = found {
                taken.push(read);
                places.insert(value, place);
            }
        }
    }

    fn copy(&self, graph: &Graph, value: ValueId, from: Place, to: Place) -> Step {
        Step::Copy {
            from: Arg { access: Access::Read, buffer: from.buffer, offset: from.offset },
            to: Arg { access: Access::Write, buffer: to.buffer, offset: to.offset },
            bytes: bytes_expr(graph.ty(value)),
        }
    }

    /// Where a value lies, seen through dense views.
    fn place(&self, schedule: &Schedule<'_>, value: ValueId, places: &Places) -> Place {
        let view = schedule.views.resolve(value);
        let base = &places[&view.base];
        let element = schedule.graph.ty(view.base).dtype.bytes().unwrap_or(0);
        let bytes = u64::try_from(view.offset).unwrap_or(0) * element;
        Place { buffer: base.buffer, offset: base.offset.clone() + Expr::from(bytes) }
    }

    /// The place of a value that a group computes, made now unless it was wanted somewhere.
    fn output(&mut self, graph: &Graph, value: ValueId, places: &mut Places) -> Result<Place, PlanEmitError> {
        if let Some(place) = places.get(&value) {
            return Ok(place.clone());
        }
        let bytes = self.emitter.bytes(graph, value, *self.tokens.end())?;
        let buffer = self.scratch(format!("{}.{}", graph.name, graph.label(value)), bytes);
        let place = Place { buffer, offset: Expr::from(0) };
        places.insert(value, place.clone());
        Ok(place)
    }

    /// A buffer for this phase alone.
    fn scratch(&mut self, name: String, bytes: u64) -> BufferId {
        let buffer = BufferId::new(self.emitter.plan.buffers.len());
        let role = Role::Scratch(self.index);
        self.emitter.plan.buffers.push(Buffer {
            name,
            role,
            offset: 0,
            bytes,
            rounds: 1,
            stride: 0,
            is_ternary: false,
        });
        buffer
    }

    fn table_call(
        &mut self,
        schedule: &Schedule<'_>,
        value: ValueId,
        places: &mut Places,
    ) -> Result<Step, PlanEmitError> {
        let graph = schedule.graph;
        let row = self.emitter.row(graph, value, &self.tokens)?;
        let signature = row.signature();
        let operands = graph.operands(value);
        // The cache is an append's first operand, and the last argument of its kernel.
        let is_append = matches!(graph.op(value), Some(Op::KvAppend(_)));
        let inputs = if is_append { &operands[1..] } else { operands };
        let first = operands.len() - inputs.len();
        let place = |position| self.operand_place(schedule, value, position, places);
        let mut places_in_order: Vec<Place> = (first..operands.len()).map(place).collect();
        places_in_order.push(match is_append {
            true => self.place(schedule, operands[0], places),
            false => self.output(graph, value, places)?,
        });
        let mut args = args(signature, places_in_order);
        if let Row::Library(library) = row {
            let label = format!("{}.{}.workspace", graph.name, graph.label(value));
            let buffer = self.scratch(label, library.workspace_bytes);
            args.push(Arg { access: Access::Write, buffer, offset: Expr::from(0) });
        }
        let x_stride = if is_append { schedule.views.resolve(operands[1]).strides[0] } else { 0 };
        let dim = |name: &str| cpu::dim(graph, value, name, x_stride).expect("every dim of a signature has a value");
        let (kernel, grid, dims) = match row {
            Row::Cpu(KernelDesc { name, .. }) | Row::Library(LibraryKernel { name, .. }) => {
                let code = if matches!(row, Row::Library(_)) { Code::CublasLt } else { Code::Table };
                let grid = match signature.grid {
                    kernels::Grid::CeilDiv(name, size) => dim(name).div_ceil(size),
                    kernels::Grid::Product(left, right) => dim(left) * dim(right),
                    kernels::Grid::One(name) => dim(name),
                };
                let kernel = self.emitter.table_kernel((*name).to_owned(), code);
                (kernel, Grid::from(grid), signature.dims.iter().map(|name| dim(name)).collect())
            }
            Row::Cuda(desc) => {
                let launch = cuda::launch(desc, graph, value, &dim)?;
                let is_early = match desc.family {
                    Family::TernaryMatmul | Family::TernaryMatmulTransposed | Family::DenseMatmul => {
                        operands[1..].iter().all(|&operand| schedule.views.is_weight_time(operand))
                    }
                    Family::Attention => self.has_old_caches(schedule, value, places),
                    // They wait before anything else.
                    Family::KvAppend
                    | Family::RopeAppend
                    | Family::RopeAttention
                    | Family::Gemm
                    | Family::Sample
                    | Family::AttentionLse
                    | Family::QueryGradient
                    | Family::CacheGradient
                    | Family::Unpack
                    | Family::ScatterAdd
                    | Family::MeanAbs => true,
                };
                (self.emitter.cuda_kernel(&launch, is_early), launch.grid, launch.dims)
            }
        };
        let (family, inputs, layout) = row.kind();
        let rate = self.emitter.options.machine.plan_rate(family, inputs, layout);
        let rate = match row {
            Row::Cuda(CudaKernelDesc { tile: Some(tile), .. }) => {
                let size = |name: &str| dim(name).as_const().unwrap_or(1);
                rate.times(tile.share(*self.tokens.end(), size("k"), size("m")))
            }
            Row::Cuda(_) if family == Family::Attention => {
                let tokens = Some(*self.tokens.end());
                rate.times(kernels::cuda::full_turns(grid.units(&|_: &str| tokens).unwrap_or(1)))
            }
            _ => rate,
        };
        Ok(Step::Call(Call {
            kernel,
            grid,
            args,
            dims,
            moves: self.moves(schedule, value),
            macs: work::macs(graph, value),
            ops: Expr::from(0),
            rate,
            start_ns: self.emitter.options.machine.row_start_ns(family, inputs),
            from: format!("{}.{}", graph.name, graph.describe(value)),
        }))
    }

    /// Where the operand of a table kernel lies: ternary weights in the packing that the op reads.
    fn operand_place(&self, schedule: &Schedule<'_>, value: ValueId, position: usize, places: &Places) -> Place {
        let graph = schedule.graph;
        let operand = graph.operands(value)[position];
        let layout = graph.op(value).and_then(|op| cost::packing_of(op, position));
        let packed = layout.and_then(|layout| {
            let base = schedule.views.resolve(operand).base;
            self.emitter.packed.get(&(self.emitter.index_of(graph), base, layout))
        });
        packed.cloned().unwrap_or_else(|| self.place(schedule, operand, places))
    }

    /// Whether the caches of an attention differ from what earlier calls left by nothing but appends at the places of its own tokens, and whether these
    /// places are inputs: a kernel may then read older rows before the steps ahead of it are done.
    fn has_old_caches(&self, schedule: &Schedule<'_>, value: ValueId, places: &Places) -> bool {
        let graph = schedule.graph;
        let &[_, keys, values, seq, pos, span] = graph.operands(value) else { return false };
        let is_input = |&id: &ValueId| {
            let place = places.get(&schedule.views.resolve(id).base);
            place.is_some_and(|place| self.emitter.plan.buffer(place.buffer).role == Role::Input)
        };
        let is_append = |cache: ValueId| match (graph.op(cache), graph.operands(cache)) {
            (Some(Op::KvAppend(_)), &[state, _, at_seq, at_pos]) => {
                matches!(graph.values[state].def, Def::State { .. }) && (at_seq, at_pos) == (seq, pos)
            }
            _ => false,
        };
        is_append(keys) && is_append(values) && [seq, pos, span].iter().all(is_input)
    }

    /// Bytes that a table kernel reads and writes.
    fn moves(&self, schedule: &Schedule<'_>, value: ValueId) -> Expr {
        let graph = schedule.graph;
        let written = match graph.op(value) {
            Some(Op::KvAppend(_)) => Expr::from(0),
            _ => bytes_expr(graph.ty(value)),
        };
        let positions = 0..graph.operands(value).len();
        positions.fold(written, |total, position| total + self.operand_moves(schedule, value, position))
    }

    /// Bytes of an operand that a table kernel reads: weights once, and of caches only what is visible.
    fn operand_moves(&self, schedule: &Schedule<'_>, value: ValueId, position: usize) -> Expr {
        let graph = schedule.graph;
        let operand = graph.operands(value)[position];
        let ty = graph.ty(operand);
        match graph.op(value) {
            Some(Op::Attention(_)) if position == 1 || position == 2 => {
                Expr::symbol(KEYS) * Expr::product(&ty.shape.0[1..2]) * Expr::from(row_bytes(ty))
            }
            // An append writes one row for each that it reads.
            Some(Op::KvAppend(_)) if position == 0 => {
                let rows = &graph.ty(graph.operands(value)[1]).shape.0;
                Expr::product(&rows[..2]) * Expr::from(row_bytes(ty))
            }
            _ if schedule.views.is_weight_time(operand) => {
                let layout = graph.op(value).and_then(|op| cost::packing_of(op, position));
                let bytes = self.emitter.weights.bytes_of(self.emitter.index_of(graph), operand, layout);
                Expr::from(bytes.unwrap_or(0))
            }
            _ => bytes_expr(ty),
        }
    }

    fn nest_call(
        &mut self,
        schedule: &Schedule<'_>,
        graph_index: usize,
        group: &Group,
        places: &mut Places,
    ) -> Result<Step, PlanEmitError> {
        let graph = schedule.graph;
        for &value in &group.outputs {
            self.output(graph, value, places)?;
        }
        let (kernel, lowered) = &self.emitter.nests[&nest_key(graph_index, group)];
        let nest = &lowered.nest;
        let mut args = Vec::new();
        let mut moves = Expr::from(0);
        for (buffer, &value) in nest.buffers.iter().zip(&lowered.buffers) {
            let place = places[&value].clone();
            let access = if buffer.write { Access::Write } else { Access::Read };
            args.push(Arg { access, buffer: place.buffer, offset: place.offset });
            moves = moves + touched_bytes(graph, group, value);
        }
        let extent = |extent: &Extent| match extent {
            Extent::Const(size) => Expr::from(*size),
            Extent::Dim(dim) => Expr::symbol(&nest.dims[*dim]),
        };
        let units = nest.outer.iter().fold(Expr::from(1), |units, outer| units * extent(outer));
        let grid = match self.emitter.options.hardware {
            Hardware::Cpu { .. } => units,
            Hardware::Cuda(_) => units.div_ceil(cuda_c::units(nest).of_block),
        };
        let machine = &self.emitter.options.machine;
        let one = |expr: &Expr| expr.evaluate(&|_: &str| Some(1)).unwrap_or(0);
        let (of_one, blocks_of_one) = (one(&moves), one(&grid).max(1));
        let labels: Vec<String> = group.outputs.iter().map(|&value| graph.describe(value)).collect();
        Ok(Step::Call(Call {
            kernel: *kernel,
            grid: Grid::from(grid),
            args,
            dims: nest.dims.iter().map(|name| Expr::symbol(name)).collect(),
            moves,
            macs: Expr::from(0),
            ops: work::ops(graph, group),
            rate: machine.plan_elementwise_rate(),
            start_ns: machine.start_ns(of_one / blocks_of_one),
            from: format!("{}.{}", graph.name, labels.join("+")),
        }))
    }
}

/// Whether a value can be computed in a buffer given from outside: it has storage of its own, and is no append to a cache.
fn may_preplace(schedule: &Schedule<'_>, value: ValueId) -> bool {
    let is_of_rounds = matches!(schedule.graph.op(value), Some(Op::Repeat(_) | Op::Scan(_)));
    schedule.views.resolve(value).base == value && !is_of_rounds
}

/// The arguments of a row of a table, whose places are in the order of its signature.
fn args(signature: &Signature, places: Vec<Place>) -> Vec<Arg> {
    let args = signature.args.iter().zip(places).map(|(arg, place)| Arg {
        access: match arg.access {
            kernels::Access::Read => Access::Read,
            kernels::Access::Write => Access::Write,
            kernels::Access::Update => Access::Update,
        },
        buffer: place.buffer,
        offset: place.offset,
    });
    args.collect()
}

/// Bytes of one row of a type along its innermost dimension.
fn row_bytes(ty: &TensorType) -> u64 {
    let k = ty.shape.last_const().unwrap_or(1);
    match RowFormat::new(ty.dtype, k as usize) {
        Some(format) => format.stride() as u64,
        None => k.saturating_mul(ty.dtype.bytes().unwrap_or(1)),
    }
}

/// Bytes of a value in memory.
fn bytes_expr(ty: &TensorType) -> Expr {
    match (ty.dtype.is_row_format(), ty.shape.last()) {
        (true, _) | (_, Some(Dim::Const(_))) => Expr::product(ty.shape.outer()) * Expr::from(row_bytes(ty)),
        _ => Expr::product(ty.shape.dims()) * Expr::from(ty.dtype.bytes().unwrap_or(1)),
    }
}

/// Bytes of a buffer that a nest touches: of a table that rows are gathered from, only those rows.
fn touched_bytes(graph: &Graph, group: &Group, value: ValueId) -> Expr {
    let is_table = |user: &ValueId| {
        matches!(graph.op(*user), Some(Op::Gather(_) | Op::KvRows(_))) && graph.operands(*user)[0] == value
    };
    match group.values.iter().find(|user| is_table(user)) {
        Some(&gathered) => {
            let rows = Expr::product(graph.ty(gathered).shape.outer());
            rows * Expr::from(row_bytes(graph.ty(value)))
        }
        None => bytes_expr(graph.ty(value)),
    }
}

/// The name of a generated kernel: its graph and what it computes.
fn nest_name(graph: &Graph, group: &Group) -> String {
    let labels: Vec<String> = group.outputs.iter().map(|&value| graph.describe(value)).collect();
    let text = format!("{}_{}", graph.name, labels.join("_"));
    let mut name: String = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        name.insert_str(0, "nest_");
    }
    name
}

fn unique(names: &mut HashMap<String, usize>, name: String) -> String {
    let count = names.entry(name.clone()).or_insert(0);
    *count += 1;
    match *count {
        1 => name,
        count => unique(names, format!("{name}_{count}")),
    }
}
