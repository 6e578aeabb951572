//! What every plan keeps, checked by the one who writes it and the one who reads it.
//!
//! Independent of how the compiler lays buffers out: lifetimes are computed again from the steps. The rules: ids exist; sizes and offsets are
//! below 2^64 and lie inside the slab or the weights for all rounds; expressions use known symbols; scratch buffers that live at the same time
//! do not overlap, nor does anything else in the slab; a scratch buffer is written before it is read; streamed weights are in their slots when
//! they are read, see [`placement`].

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use super::placement::{self, PlacementError};
use super::{ALIGNMENT, Access, Arg, BufferId, Call, Code, Expr, Grid, Phase, Plan, ROUND, Role, Step, manifest};
use super::{BudgetError, Certificate};
use crate::entity::Id;

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// An id is of no buffer.
    #[error("{place}: there is no buffer {buffer}")]
    NoBuffer {
        /// Where.
        place: String,
        /// The id.
        buffer: BufferId,
    },
    /// An id is of no kernel.
    #[error("{place}: there is no kernel {kernel}")]
    NoKernel {
        /// Where.
        place: String,
        /// The id.
        kernel: super::KernelId,
    },
    /// A buffer leaves its address space.
    #[error("buffer {buffer} `{name}` ends at byte {end}, its space has {space}")]
    OutOfSpace {
        /// The buffer.
        buffer: BufferId,
        /// Its name.
        name: String,
        /// One past its last byte; a value beyond 2^64 is given as the largest.
        end: u64,
        /// Bytes of the slab or the weights.
        space: u64,
    },
    /// A buffer does not start where vectors may.
    #[error("buffer {buffer} `{name}` starts at byte {offset} with a stride of {stride}: not multiples of {ALIGNMENT}")]
    Alignment {
        /// The buffer.
        buffer: BufferId,
        /// Its name.
        name: String,
        /// Where it starts.
        offset: u64,
        /// Bytes from round to round.
        stride: u64,
    },
    /// Two buffers that live at the same time share bytes.
    #[error("buffers {first} `{first_name}` and {second} `{second_name}` overlap while both live")]
    Overlap {
        /// One.
        first: BufferId,
        /// Its name.
        first_name: String,
        /// The other.
        second: BufferId,
        /// Its name.
        second_name: String,
    },
    /// An expression has a symbol that nothing resolves, or a value beyond 2^64.
    #[error("{place}: `{expr}` has no value")]
    NoValue {
        /// Where.
        place: String,
        /// The expression.
        expr: Expr,
    },
    /// A step's place lies outside its buffer.
    #[error("{place}: byte {offset} of {buffer} is outside it")]
    Outside {
        /// Where.
        place: String,
        /// The buffer.
        buffer: BufferId,
        /// The byte.
        offset: u64,
    },
    /// The weights cannot be where they are said to be.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// It takes more memory than it may.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// More rounds than any model has layers, or rounds of a buffer on top of each other.
    #[error(
        "{what} has {rounds} rounds, {stride} bytes apart; at most {MAX_ROUNDS} are believed, each as far apart as it is long"
    )]
    Rounds {
        /// A buffer or a repeat.
        what: String,
        /// Its rounds.
        rounds: u32,
        /// Bytes from one to the next; 0 for a repeat.
        stride: u64,
    },
    /// A place in a weight that depends on more than the round, so that nobody knows before a call which weights it reads.
    #[error("{place}: `{offset}` in weight {buffer} depends on more than `{ROUND}`")]
    WeightPlace {
        /// Where.
        place: String,
        /// The buffer.
        buffer: BufferId,
        /// The place.
        offset: Expr,
    },
    /// A step uses the slots of streamed weights by itself.
    #[error("{place}: {buffer} is for streamed weights")]
    SlotsUsed {
        /// Where.
        place: String,
        /// The buffer.
        buffer: BufferId,
    },
    /// A scratch buffer of another phase is used.
    #[error("{place}: {buffer} belongs to another phase")]
    OtherPhase {
        /// Where.
        place: String,
        /// The buffer.
        buffer: BufferId,
    },
    /// A weight is written.
    #[error("{place}: weight {buffer} is written")]
    WeightWritten {
        /// Where.
        place: String,
        /// The buffer.
        buffer: BufferId,
    },
    /// A scratch buffer is read before anything is in it.
    #[error("{place}: {buffer} is read before it is written")]
    ReadBeforeWrite {
        /// Where.
        place: String,
        /// The buffer.
        buffer: BufferId,
    },
    /// The machine that is assumed reads nothing.
    #[error("the plan assumes a machine that reads 0 bytes a microsecond")]
    NoReadRate,
    /// The machine that is assumed copies nothing.
    #[error("the plan assumes a machine that copies 0 bytes a microsecond")]
    NoLinkRate,
    /// A call that computes, and never ends at the rate assumed.
    #[error("{place}: it has work to do, and a rate of {rate} is assumed")]
    NoRate {
        /// Where.
        place: String,
        /// The rate.
        rate: super::Rate,
    },
    /// A grid that its kernel's code cannot have.
    #[error("{place}: a grid of `{grid}` has too many axes or units")]
    Grid {
        /// Where.
        place: String,
        /// The grid.
        grid: Grid,
    },
    /// A CUDA kernel whose file or block no device could take.
    #[error("kernel `{name}`: {file} with {threads} threads and {shared_bytes} bytes cannot be launched")]
    Launch {
        /// The kernel.
        name: String,
        /// Its file.
        file: String,
        /// Threads of a block.
        threads: u32,
        /// Bytes of dynamic shared memory of a block.
        shared_bytes: u32,
    },
    /// Phases are not in ascending order of tokens, or there are none, or the last holds fewer than the bound of `n`.
    #[error("phases must ascend in tokens and end at the bound of `n`")]
    Phases,
    /// A repeat inside a repeat, whose rounds could not be told apart.
    #[error("{place}: repeats do not nest")]
    Nested {
        /// Where.
        place: String,
    },
}

/// All broken rules. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanErrors(pub Vec<PlanError>);

impl fmt::Display for PlanErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, error) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PlanErrors {}

/// Rounds of a repeat or a buffer that are believed: far more than the layers of any model.
const MAX_ROUNDS: u32 = 65_536;

/// Shared memory that a block of any device may have, at most.
const MAX_SHARED_BYTES: u32 = 227 << 10;

/// Checks every rule.
///
/// # Errors
///
/// All that are broken.
pub fn check(plan: &Plan) -> Result<(), PlanErrors> {
    let mut errors = Vec::new();
    spaces(plan, &mut errors);
    let tokens: Vec<u64> = plan.phases.iter().map(|phase| phase.max_tokens).collect();
    let bound = plan.symbols.iter().find(|symbol| symbol.name == "n").map(|symbol| symbol.max);
    if tokens.last().copied() != bound || bound.is_none() || !tokens.is_sorted_by(|left, right| left < right) {
        errors.push(PlanError::Phases);
    }
    if plan.machine.read_bytes_per_us == 0 {
        errors.push(PlanError::NoReadRate);
    }
    if plan.machine.link_bytes_per_us == 0 {
        errors.push(PlanError::NoLinkRate);
    }
    for kernel in &plan.kernels {
        let Code::Cuda { file, threads, shared_bytes, .. } = &kernel.code else { continue };
        let is_block = (1..=1024).contains(threads) && *shared_bytes <= MAX_SHARED_BYTES;
        if !is_block || !manifest::is_cubin(file) {
            let (name, file) = (kernel.name.clone(), file.clone());
            errors.push(PlanError::Launch { name, file, threads: *threads, shared_bytes: *shared_bytes });
        }
    }
    for io in plan.inputs.iter().chain(&plan.outputs) {
        if plan.buffers.len() <= io.buffer.index() {
            errors.push(PlanError::NoBuffer { place: format!("`{}`", io.name), buffer: io.buffer });
        }
    }
    let mut lives = Vec::new();
    for (index, phase) in plan.all_phases().enumerate() {
        let mut walk = Walk {
            plan,
            index,
            phase,
            errors: &mut errors,
            uses: BTreeMap::new(),
            time: 0,
            written: HashSet::new(),
            repeats: Vec::new(),
        };
        walk.steps(&phase.steps, None);
        lives.push(walk.lives());
    }
    if errors.is_empty() {
        overlaps(plan, &lives, &mut errors);
        let mut of_placement = Vec::new();
        placement::check(plan, &mut of_placement);
        errors.extend(of_placement.into_iter().map(PlanError::from));
        let over = Certificate::prove(plan).err().unwrap_or_default();
        errors.extend(over.into_iter().map(PlanError::from));
    }
    if errors.is_empty() { Ok(()) } else { Err(PlanErrors(errors)) }
}

fn spaces(plan: &Plan, errors: &mut Vec<PlanError>) {
    for (index, buffer) in plan.buffers.iter().enumerate() {
        let id = BufferId::new(index);
        let is_apart = buffer.rounds <= 1 || buffer.bytes <= buffer.stride;
        if MAX_ROUNDS < buffer.rounds || !is_apart {
            let (what, rounds, stride) = (format!("buffer {id} `{}`", buffer.name), buffer.rounds, buffer.stride);
            errors.push(PlanError::Rounds { what, rounds, stride });
        }
        let space = if buffer.role == Role::Weight { plan.weights_bytes } else { plan.slab_bytes };
        let end = buffer.end();
        if end.is_none_or(|end| space < end) {
            let end = end.unwrap_or(u64::MAX);
            errors.push(PlanError::OutOfSpace { buffer: id, name: buffer.name.clone(), end, space });
        }
        if buffer.offset % ALIGNMENT != 0 || buffer.stride % ALIGNMENT != 0 {
            let (offset, stride) = (buffer.offset, buffer.stride);
            errors.push(PlanError::Alignment { buffer: id, name: buffer.name.clone(), offset, stride });
        }
    }
}

/// First and last time that a scratch buffer is used in one phase.
type Uses = BTreeMap<BufferId, (usize, usize)>;

struct Walk<'a> {
    plan: &'a Plan,
    index: usize,
    phase: &'a Phase,
    errors: &'a mut Vec<PlanError>,
    uses: Uses,
    time: usize,
    written: HashSet<BufferId>,
    /// Times at which repeats start and end.
    repeats: Vec<(usize, usize)>,
}

impl Walk<'_> {
    fn steps(&mut self, steps: &[Step], rounds: Option<u32>) {
        for (position, step) in steps.iter().enumerate() {
            self.time += 1;
            let place = || {
                let inside = if rounds.is_some() { "repeat, " } else { "" };
                format!("phase `{}`, {inside}step {position}", self.phase.name)
            };
            match step {
                Step::Call(call) => {
                    let place = format!("{} `{}`", place(), call.from);
                    if self.plan.kernels.len() <= call.kernel.index() {
                        self.errors.push(PlanError::NoKernel { place: place.clone(), kernel: call.kernel });
                    }
                    for expr in [&call.moves].into_iter().chain(&call.dims) {
                        self.value(&place, expr, rounds);
                    }
                    self.grid(&place, call, rounds);
                    let work = [&call.macs, &call.ops].map(|expr| self.value(&place, expr, rounds));
                    if work.into_iter().flatten().any(|work| work != 0) && (call.rate.one == 0 || call.rate.many == 0) {
                        self.errors.push(PlanError::NoRate { place: place.clone(), rate: call.rate });
                    }
                    // All reads of a call happen before, or in the same unit as, its writes.
                    for arg in call.args.iter().filter(|arg| arg.access != Access::Write) {
                        self.arg(&place, arg, rounds);
                    }
                    for arg in call.args.iter().filter(|arg| arg.access == Access::Write) {
                        self.arg(&place, arg, rounds);
                    }
                }
                Step::Copy { from, to, bytes } => {
                    let place = place();
                    self.value(&place, bytes, rounds);
                    self.arg(&place, from, rounds);
                    self.arg(&place, to, rounds);
                }
                Step::Repeat { count, steps, .. } => {
                    if rounds.is_some() {
                        let place = place();
                        self.errors.push(PlanError::Nested { place });
                        continue;
                    }
                    if MAX_ROUNDS < *count {
                        self.errors.push(PlanError::Rounds { what: place(), rounds: *count, stride: 0 });
                        continue;
                    }
                    self.repeat(*count, steps);
                }
            }
        }
    }

    /// A grid has as many axes as its kernel's code may have, and as many units along each.
    fn grid(&mut self, place: &str, call: &Call, rounds: Option<u32>) {
        let units: Vec<_> = call.grid.0.iter().map(|axis| self.value(place, axis, rounds)).collect();
        let kernel = self.plan.kernels.get(call.kernel.index());
        let most: &[u64] = match kernel.map(|kernel| &kernel.code) {
            Some(Code::Cuda { .. }) => &[(1 << 31) - 1, 65_535, 65_535],
            _ => &[u64::MAX],
        };
        let is_wrong = |(position, units): (usize, &Option<u64>)| {
            most.get(position).is_none_or(|most| units.is_some_and(|units| *most < units))
        };
        if units.is_empty() || units.iter().enumerate().any(is_wrong) {
            self.errors.push(PlanError::Grid { place: place.to_owned(), grid: call.grid.clone() });
        }
    }

    fn repeat(&mut self, count: u32, steps: &[Step]) {
        let start = self.time;
        self.steps(steps, Some(count));
        self.time += 1;
        self.repeats.push((start, self.time));
    }

    /// First and last use of each buffer. One that is used inside a repeat and also before or after it holds its value through all rounds.
    fn lives(mut self) -> Uses {
        for (first, last) in self.uses.values_mut() {
            for &(start, end) in &self.repeats {
                let is_inside = |time: usize| start <= time && time <= end;
                if is_inside(*first) != is_inside(*last) {
                    *first = if is_inside(*first) { start } else { *first };
                    *last = if is_inside(*last) { end } else { *last };
                }
            }
        }
        self.uses
    }

    fn value(&mut self, place: &str, expr: &Expr, rounds: Option<u32>) -> Option<u64> {
        let value = expr.evaluate(&|symbol| {
            if symbol == ROUND {
                return rounds.map(|rounds| u64::from(rounds.max(1)) - 1);
            }
            if symbol == "n" {
                return Some(self.phase.max_tokens);
            }
            self.plan.symbols.iter().find(|bound| bound.name == symbol).map(|bound| bound.max)
        });
        if value.is_none() {
            self.errors.push(PlanError::NoValue { place: place.to_owned(), expr: expr.clone() });
        }
        value
    }

    fn arg(&mut self, place: &str, arg: &Arg, rounds: Option<u32>) {
        let Some(buffer) = self.plan.buffers.get(arg.buffer.index()) else {
            self.errors.push(PlanError::NoBuffer { place: place.to_owned(), buffer: arg.buffer });
            return;
        };
        if let Some(offset) = self.value(place, &arg.offset, rounds) {
            let extent = buffer.end().map_or(0, |end| end - buffer.offset);
            if extent <= offset && !(extent == 0 && offset == 0) {
                self.errors.push(PlanError::Outside { place: place.to_owned(), buffer: arg.buffer, offset });
            }
        }
        match buffer.role {
            Role::Weight if arg.access != Access::Read => {
                self.errors.push(PlanError::WeightWritten { place: place.to_owned(), buffer: arg.buffer });
            }
            Role::Weight if arg.offset.symbols().any(|symbol| symbol != ROUND) => {
                let (buffer, offset) = (arg.buffer, arg.offset.clone());
                self.errors.push(PlanError::WeightPlace { place: place.to_owned(), buffer, offset });
            }
            Role::Slots => self.errors.push(PlanError::SlotsUsed { place: place.to_owned(), buffer: arg.buffer }),
            Role::Scratch(phase) if phase != self.index => {
                self.errors.push(PlanError::OtherPhase { place: place.to_owned(), buffer: arg.buffer });
            }
            Role::Scratch(_) => {
                if arg.access == Access::Write {
                    self.written.insert(arg.buffer);
                } else if !self.written.contains(&arg.buffer) {
                    self.errors.push(PlanError::ReadBeforeWrite { place: place.to_owned(), buffer: arg.buffer });
                }
                let time = self.time;
                self.uses.entry(arg.buffer).and_modify(|(_, last)| *last = time).or_insert((time, time));
            }
            _ => {}
        }
    }
}

fn overlaps(plan: &Plan, lives: &[Uses], errors: &mut Vec<PlanError>) {
    let mut in_slab: Vec<usize> =
        (0..plan.buffers.len()).filter(|&index| plan.buffers[index].role != Role::Weight).collect();
    in_slab.sort_by_key(|&index| plan.buffers[index].offset);
    for (position, &first) in in_slab.iter().enumerate() {
        let end = plan.buffers[first].end().expect("spaces were checked");
        for &second in &in_slab[position + 1..] {
            if end <= plan.buffers[second].offset {
                break;
            }
            if plan.buffers[first].bytes == 0 || plan.buffers[second].bytes == 0 {
                continue;
            }
            if may_live_together(plan, lives, first, second) {
                errors.push(PlanError::Overlap {
                    first: BufferId::new(first),
                    first_name: plan.buffers[first].name.clone(),
                    second: BufferId::new(second),
                    second_name: plan.buffers[second].name.clone(),
                });
            }
        }
    }
}

fn may_live_together(plan: &Plan, lives: &[Uses], first: usize, second: usize) -> bool {
    match (plan.buffers[first].role, plan.buffers[second].role) {
        (Role::Scratch(left), Role::Scratch(right)) if left != right => false,
        (Role::Scratch(phase), Role::Scratch(_)) => {
            let uses = lives.get(phase);
            let of = |index| uses.and_then(|uses| uses.get(&BufferId::new(index)));
            match (of(first), of(second)) {
                (Some(left), Some(right)) => left.0 <= right.1 && right.0 <= left.1,
                _ => false,
            }
        }
        _ => true,
    }
}
