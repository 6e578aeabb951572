//! How a phase of the plan becomes work for a device: every expression is evaluated for the sizes of the call, every repeat unrolled.
//!
//! The result depends only on the phase and on the symbols `n` and `m`, and a model is called with the same few of them over and over, so
//! it is kept: a token of decoding evaluates nothing. What a call costs depends on the symbol `keys`, too; that is evaluated when it is
//! asked for.

use std::collections::BTreeMap;
use std::time::Instant;

use ir::plan::{Arg, CallSizes, Code, Expr, Home, Phase, Plan, ROUND, Role, Step, placement};

use crate::device::{Device, Place, Work};
use crate::error::RuntimeError;
use crate::trace::Trace;

/// Prepared calls that are kept. One is some hundred launches, about 100 bytes each; a session has one for decoding, one for whole
/// chunks, and one for the rest of a prompt.
const KEPT: usize = 8;

/// A plan on a device.
pub struct Executor<D: Device> {
    plan: Plan,
    device: D,
    /// The most recently used last.
    prepared: Vec<Prepared<D::Program>>,
}

/// The symbols of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Tokens.
    pub n: u64,
    /// Rows whose logits are wanted.
    pub m: u64,
    /// Keys that all tokens see together. Only costs depend on it.
    pub keys: u64,
}

impl Sizes {
    /// The symbols whose values a call resolves.
    pub(crate) const SYMBOLS: [&str; 3] = ["n", "m", "keys"];

    fn of(&self, symbol: &str, round: Option<u64>) -> Option<u64> {
        match symbol {
            "n" => Some(self.n),
            "m" => Some(self.m),
            "keys" => Some(self.keys),
            ROUND => round,
            _ => None,
        }
    }
}

/// What a call moves and computes, by the compiler's account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of weights, caches and activations that are read and written.
    pub bytes: u64,
    /// The part of those bytes that is moved whatever the sizes of the call are: weights.
    pub weight_bytes: u64,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Nanoseconds that it is taken to need on the machine that the compiler assumed.
    pub nanoseconds: u64,
}

impl Cost {
    /// Both, one after the other.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            weight_bytes: self.weight_bytes.saturating_add(other.weight_bytes),
            macs: self.macs.saturating_add(other.macs),
            nanoseconds: self.nanoseconds.saturating_add(other.nanoseconds),
        }
    }
}

struct Prepared<P> {
    n: u64,
    m: u64,
    /// Which of all phases.
    phase: usize,
    program: P,
    /// For each work of the program, where it came from.
    origins: Vec<Origin>,
}

/// Where a work came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// The position of the step among [`flat_steps`].
    pub(crate) step: usize,
    /// The round of its repeat.
    pub(crate) round: Option<u64>,
    /// What it is.
    pub(crate) part: Part,
}

/// What a work is to the step that it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The step itself.
    Step,
    /// The waiting for weights that it reads, of so many bytes.
    Wait(u64),
    /// That it needs weights no more.
    Release,
}

/// The steps of a phase with those of repeats in their places, once each.
pub(crate) fn flat_steps(phase: &Phase) -> Vec<&Step> {
    let mut flat = Vec::new();
    for step in &phase.steps {
        match step {
            Step::Repeat { steps, .. } => flat.extend(steps),
            step => flat.push(step),
        }
    }
    flat
}

/// What a step costs in a call of these sizes.
pub(crate) fn cost_of(plan: &Plan, step: &Step, sizes: Sizes, round: Option<u64>) -> Cost {
    let lookup = |symbol: &str| sizes.of(symbol, round);
    let value = |expr: &Expr| expr.evaluate(&lookup).unwrap_or(u64::MAX);
    let nanoseconds = plan.predict_ns(step, &lookup);
    match step {
        Step::Call(call) => {
            let nothing = |symbol: &str| if symbol == ROUND { round } else { Some(0) };
            let weight_bytes = call.moves.evaluate(&nothing).unwrap_or(u64::MAX);
            Cost { bytes: value(&call.moves), weight_bytes, macs: value(&call.macs), nanoseconds }
        }
        Step::Copy { bytes, .. } => Cost { bytes: value(bytes).saturating_mul(2), nanoseconds, ..Cost::default() },
        Step::Repeat { .. } => Cost::default(),
    }
}

impl<D: Device> Executor<D> {
    /// An executor of a plan that was checked, on a device that was made for it.
    pub fn new(plan: Plan, device: D) -> Self {
        Self { plan, device, prepared: Vec::new() }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The device.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }

    /// Runs the phase that takes `sizes.n` tokens.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::TooManyTokens`] if no phase does, and what the device reports.
    pub fn run(&mut self, sizes: Sizes, trace: Option<&mut Trace>) -> Result<(), RuntimeError> {
        let phase = self.phase_of(sizes)?;
        self.run_phase(phase, sizes, trace)
    }

    /// Runs the phase of this number among all.
    ///
    /// # Errors
    ///
    /// What the device reports.
    pub fn run_phase(&mut self, phase: usize, sizes: Sizes, trace: Option<&mut Trace>) -> Result<(), RuntimeError> {
        self.prepare(phase, sizes)?;
        let prepared = self.prepared.last().expect("a call was just prepared");
        match trace {
            None => self.device.run(&prepared.program, None),
            Some(trace) => {
                let mut times = Vec::with_capacity(prepared.origins.len());
                let begun = Instant::now();
                self.device.run(&prepared.program, Some(&mut times))?;
                trace.add(&self.plan, (prepared.phase, sizes), begun, &prepared.origins, &times);
                Ok(())
            }
        }
    }

    /// What a call of these sizes moves and computes.
    ///
    /// # Errors
    ///
    /// As [`Executor::run`].
    pub fn cost(&mut self, sizes: Sizes) -> Result<Cost, RuntimeError> {
        let phase = self.phase_of(sizes)?;
        self.prepare(phase, sizes)?;
        let prepared = self.prepared.last().expect("a call was just prepared");
        let steps = flat_steps(&self.plan.phases[prepared.phase]);
        let of_steps = prepared.origins.iter().filter(|origin| origin.part == Part::Step);
        let costs = of_steps.map(|origin| cost_of(&self.plan, steps[origin.step], sizes, origin.round));
        let mut cost = costs.fold(Cost::default(), Cost::plus);
        let call = CallSizes { tokens: sizes.n, rows: sizes.m, keys: sizes.keys };
        let time = self.plan.predict_call(call).unwrap_or_default();
        cost.nanoseconds = time.beside(self.plan.copy_ns());
        Ok(cost)
    }

    /// The phase that takes so many tokens.
    fn phase_of(&self, sizes: Sizes) -> Result<usize, RuntimeError> {
        let phase = self.plan.phases.iter().position(|phase| sizes.n <= phase.max_tokens);
        let max = self.plan.phases.last().map_or(0, |phase| phase.max_tokens);
        phase.ok_or(RuntimeError::TooManyTokens { tokens: sizes.n as usize, max })
    }

    /// Makes the last of `prepared` the one of this phase and these sizes.
    fn prepare(&mut self, phase: usize, sizes: Sizes) -> Result<(), RuntimeError> {
        let is_it = |prepared: &Prepared<_>| (prepared.phase, prepared.n, prepared.m) == (phase, sizes.n, sizes.m);
        if let Some(position) = self.prepared.iter().position(is_it) {
            let prepared = self.prepared.remove(position);
            self.prepared.push(prepared);
            return Ok(());
        }
        let slots = placement::slots_buffer(&self.plan).map_or(0, |buffer| buffer.offset);
        let pieces = self.plan.placement.piece_numbers();
        let (plan, works, origins, uses) = (&self.plan, Vec::new(), Vec::new(), Vec::new());
        let mut resolver = Resolver { plan, sizes, slots, pieces, works, origins, uses };
        let mut position = 0;
        let Some(wanted) = self.plan.all_phases().nth(phase) else { unreachable!("callers name a phase") };
        for step in &wanted.steps {
            match step {
                Step::Repeat { count, reverse, steps } => {
                    for round in 0..u64::from(*count) {
                        let round = if *reverse { u64::from(*count) - 1 - round } else { round };
                        for (inner, step) in steps.iter().enumerate() {
                            resolver
                                .resolve(step, Origin { step: position + inner, round: Some(round), part: Part::Step });
                        }
                    }
                    position += steps.len();
                }
                step => {
                    resolver.resolve(step, Origin { step: position, round: None, part: Part::Step });
                    position += 1;
                }
            }
        }
        let (works, origins) = resolver.finish();
        let program = self.device.load(&works)?;
        if KEPT <= self.prepared.len() {
            self.prepared.remove(0);
        }
        self.prepared.push(Prepared { n: sizes.n, m: sizes.m, phase, program, origins });
        Ok(())
    }
}

/// Evaluates steps for the sizes of a call.
struct Resolver<'a> {
    plan: &'a Plan,
    sizes: Sizes,
    /// Where the slots' buffer starts.
    slots: u64,
    /// For each segment of the weights, which of the pieces it is.
    pieces: Vec<Option<usize>>,
    works: Vec<Work>,
    origins: Vec<Origin>,
    /// Works that read pieces, and which.
    uses: Vec<(usize, usize)>,
}

impl Resolver<'_> {
    fn resolve(&mut self, step: &Step, origin: Origin) {
        let value = |expr: &Expr| {
            let value = expr.evaluate(&|symbol| self.sizes.of(symbol, origin.round));
            value.expect("the plan was checked to resolve at the largest values of its symbols")
        };
        let mut uses = Vec::new();
        let mut place = |arg: &Arg| {
            let buffer = self.plan.buffer(arg.buffer);
            let offset = buffer.offset + value(&arg.offset);
            if buffer.role != Role::Weight {
                return Place::Slab(offset);
            }
            // A tensor of no bytes is nowhere.
            let Some((position, segment)) = self.plan.placement.find(offset) else { return Place::Resident(0) };
            let within = offset - segment.offset;
            match segment.home {
                Home::Device(at) => Place::Resident(at + within),
                Home::Host => Place::Host(offset),
                Home::Slot(slot) => {
                    uses.extend(self.pieces[position]);
                    Place::Slab(self.slots + self.plan.placement.slots[slot as usize].offset + within)
                }
            }
        };
        let work = match step {
            Step::Call(call) => {
                // A kernel of the table cuts its grid over rows of weights, so a call without tokens still has units; and some take
                // one token, not none. Generated kernels have nothing in them that their grid does not count.
                let is_table = !matches!(self.plan.kernel(call.kernel).code, Code::Generated { .. });
                let is_empty = |dim: &Expr| value(dim) == 0 && dim.symbols().any(|symbol| symbol != ROUND);
                let mut grid = [1; 3];
                grid.iter_mut().zip(&call.grid.0).for_each(|(units, axis)| *units = value(axis));
                if grid.contains(&0) || (is_table && call.dims.iter().any(is_empty)) {
                    return;
                }
                let args = call.args.iter().map(&mut place).collect();
                let dims = call.dims.iter().map(|dim| value(dim) as i64).collect();
                Work::Launch { kernel: call.kernel, grid, args, dims }
            }
            Step::Copy { from, to, bytes } => {
                let bytes = value(bytes);
                if bytes == 0 {
                    return;
                }
                let (from, Place::Slab(to)) = (place(from), place(to)) else {
                    unreachable!("the plan was checked to write no weights");
                };
                Work::Copy { from, to, bytes }
            }
            Step::Repeat { .. } => unreachable!("the plan was checked to have no repeats in repeats"),
        };
        self.uses.extend(uses.into_iter().map(|piece| (self.works.len(), piece)));
        self.works.push(work);
        self.origins.push(origin);
    }

    /// The works with the waiting for each piece before its first use, and its release after its last.
    fn finish(self) -> (Vec<Work>, Vec<Origin>) {
        if self.uses.is_empty() {
            return (self.works, self.origins);
        }
        let mut spans: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
        for (work, piece) in self.uses {
            spans.entry(piece).and_modify(|(_, last)| *last = work).or_insert((work, work));
        }
        assert_eq!(
            spans.len(),
            self.plan.placement.pieces().count(),
            "the plan was checked to read all pieces in a call, or none"
        );
        let mut begins = vec![Vec::new(); self.works.len()];
        let mut ends = begins.clone();
        for (&piece, &(first, last)) in &spans {
            begins[first].push(piece);
            ends[last].push(piece);
        }
        let bytes: Vec<u64> = self.plan.placement.pieces().map(|(segment, _)| segment.bytes).collect();
        let (mut works, mut origins) = (Vec::new(), Vec::new());
        for (position, (work, origin)) in self.works.into_iter().zip(self.origins).enumerate() {
            for &piece in &begins[position] {
                works.push(Work::Await { piece });
                origins.push(Origin { part: Part::Wait(bytes[piece]), ..origin });
            }
            works.push(work);
            origins.push(origin);
            for &piece in &ends[position] {
                works.push(Work::Release { piece });
                origins.push(Origin { part: Part::Release, ..origin });
            }
        }
        (works, origins)
    }
}
