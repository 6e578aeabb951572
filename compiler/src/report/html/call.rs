//! One call of a phase as a list of launches: when each runs, what it moves, and how long it is taken to need.

use ir::plan::{Call, CallSizes, Phase, Plan, ROUND, Step};

use crate::emit::work::KEYS;

/// The sizes of the call that times are predicted for: as many tokens of one sequence as the phase takes, the last that its context has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Tokens that are in the caches before it.
    pub(super) before: u64,
    /// Those of the call itself.
    pub(super) call: CallSizes,
}

impl Sizes {
    /// Those of a phase's longest call.
    pub(super) fn of(plan: &Plan, phase: &Phase) -> Self {
        let tokens = phase.max_tokens.min(plan.context).max(1);
        let before = plan.context.saturating_sub(tokens);
        Self { before, call: CallSizes::behind(before, tokens) }
    }

    fn value(self, symbol: &str) -> Option<u64> {
        match symbol {
            "n" => Some(self.call.tokens),
            "m" => Some(self.call.rows),
            KEYS => Some(self.call.keys),
            ROUND => Some(0),
            _ => None,
        }
    }
}

/// What a launch mostly is, which decides its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nature {
    /// A product with weights.
    Product,
    /// A product with keys and values.
    Attention,
    /// Elementwise work, reductions, appends.
    Elementwise,
    /// Bytes from here to there.
    Copy,
}

impl Nature {
    pub(super) const ALL: [Nature; 4] = [Nature::Product, Nature::Attention, Nature::Elementwise, Nature::Copy];

    /// The class of a style sheet.
    pub(super) fn class(self) -> &'static str {
        match self {
            Nature::Product => "product",
            Nature::Attention => "attention",
            Nature::Elementwise => "elementwise",
            Nature::Copy => "copy",
        }
    }

    /// What a legend says.
    pub(super) fn label(self) -> &'static str {
        match self {
            Nature::Product => "product with weights",
            Nature::Attention => "attention",
            Nature::Elementwise => "elementwise, norms, appends",
            Nature::Copy => "copy within the device",
        }
    }

    fn of(call: &Call) -> Self {
        if call.macs.symbols().any(|symbol| symbol == KEYS) {
            Nature::Attention
        } else if call.macs.as_const() == Some(0) {
            Nature::Elementwise
        } else {
            Nature::Product
        }
    }
}

/// What a launch is taken to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    Memory,
    Compute,
    /// Starting and ending it takes longer than its work.
    Launch,
}

impl Bound {
    pub(super) fn label(self) -> &'static str {
        match self {
            Bound::Memory => "memory",
            Bound::Compute => "compute",
            Bound::Launch => "launch",
        }
    }
}

/// One step that runs: those of a repeat stand for all of its rounds.
#[derive(Clone, Debug)]
pub(super) struct Launch<'a> {
    /// The step.
    pub(super) step: &'a Step,
    /// When it runs, as [`crate::schedule::memory::lifetimes`] counts.
    pub(super) time: usize,
    /// The position in the call's repeats of the one that it belongs to.
    pub(super) repeat: Option<usize>,
    /// What it computes.
    pub(super) name: &'a str,
    /// Its kernel.
    pub(super) kernel: &'a str,
    /// What it mostly is.
    pub(super) nature: Nature,
    /// Nanoseconds of one round.
    pub(super) ns: u64,
    /// Bytes that it reads and writes in one round.
    pub(super) bytes: u64,
    /// Its multiply-accumulates and elementwise operations in one round.
    pub(super) work: u64,
    /// What its time is taken for.
    pub(super) bound: Bound,
}

impl Launch<'_> {
    /// All of it in words.
    pub(super) fn describe(&self) -> String {
        let Self { name, kernel, ns, bytes, work, bound, .. } = self;
        format!(
            "{name}\nkernel {kernel}\n{}, bound by {}\nmoves {}\n{} operations",
            super::markup::human_ns(*ns),
            bound.label(),
            crate::report::human_bytes(*bytes),
            super::markup::human_count(*work)
        )
    }
}

/// A repeat among the launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rounds {
    /// The times at which it starts and ends.
    pub(super) times: (usize, usize),
    /// Positions of its launches: the first, and one past the last.
    pub(super) launches: (usize, usize),
    /// How often it runs.
    pub(super) count: u32,
}

/// A call of a phase.
#[derive(Clone, Debug)]
pub(super) struct PhaseCall<'a> {
    /// The phase.
    pub(super) phase: &'a Phase,
    /// Its position.
    pub(super) index: usize,
    /// The sizes.
    pub(super) sizes: Sizes,
    /// In order.
    pub(super) launches: Vec<Launch<'a>>,
    /// In order.
    pub(super) repeats: Vec<Rounds>,
    /// The last time.
    pub(super) end: usize,
}

impl<'a> PhaseCall<'a> {
    /// The longest call of a phase.
    pub(super) fn new(plan: &'a Plan, index: usize) -> Self {
        let phase = &plan.phases[index];
        let sizes = Sizes::of(plan, phase);
        let mut call = Self { phase, index, sizes, launches: Vec::new(), repeats: Vec::new(), end: 0 };
        for step in &phase.steps {
            call.end += 1;
            let Step::Repeat { count, steps, .. } = step else {
                call.launch(plan, step, None);
                continue;
            };
            let (start, first, repeat) = (call.end, call.launches.len(), call.repeats.len());
            for step in steps {
                call.end += 1;
                call.launch(plan, step, Some(repeat));
            }
            call.end += 1;
            let launches = (first, call.launches.len());
            call.repeats.push(Rounds { times: (start, call.end), launches, count: *count });
        }
        call
    }

    fn launch(&mut self, plan: &'a Plan, step: &'a Step, repeat: Option<usize>) {
        let lookup = |symbol: &str| self.sizes.value(symbol);
        let ns = plan.predict_ns(step, &lookup);
        let (name, kernel, nature, start, bytes, work, computing) = match step {
            Step::Call(call) => {
                let value = |expr: &ir::plan::Expr| expr.evaluate(&lookup).unwrap_or(u64::MAX);
                let work = value(&call.macs).saturating_add(value(&call.ops));
                let kernel = plan.kernel(call.kernel).name.as_str();
                // As times are predicted: a head computes as many rows as are wanted, whatever the tokens.
                let has = |symbol: &str| call.macs.symbols().any(|other| other == symbol);
                let tokens = lookup(if has("m") && !has("n") { "m" } else { "n" }).unwrap_or(1);
                let computing = call.rate.nanoseconds(work, tokens);
                (call.from.as_str(), kernel, Nature::of(call), call.start_ns, value(&call.moves), work, computing)
            }
            Step::Copy { from, bytes, .. } => {
                let bytes = bytes.evaluate(&lookup).unwrap_or(u64::MAX).saturating_mul(2);
                (plan.buffer(from.buffer).name.as_str(), "copy", Nature::Copy, plan.machine.step_ns, bytes, 0, 0)
            }
            Step::Repeat { .. } => return,
        };
        let working = ns.saturating_sub(start);
        let bound = if working <= start {
            Bound::Launch
        } else if working <= computing {
            Bound::Compute
        } else {
            Bound::Memory
        };
        self.launches.push(Launch { step, time: self.end, repeat, name, kernel, nature, ns, bytes, work, bound });
    }

    /// How often a launch runs in the call.
    pub(super) fn rounds(&self, launch: &Launch<'_>) -> u64 {
        launch.repeat.map_or(1, |repeat| u64::from(self.repeats[repeat].count))
    }

    /// Nanoseconds of all launches, one after another.
    pub(super) fn total_ns(&self) -> u64 {
        let times = self.launches.iter().map(|launch| launch.ns.saturating_mul(self.rounds(launch)));
        times.fold(0, u64::saturating_add)
    }

    /// Launches over all rounds.
    pub(super) fn total_launches(&self) -> u64 {
        self.launches.iter().map(|launch| self.rounds(launch)).sum()
    }

    /// The call in words.
    pub(super) fn describe(&self) -> String {
        let Sizes { before, call: CallSizes { tokens, .. } } = self.sizes;
        let tokens = if tokens == 1 { "1 token".to_owned() } else { format!("{tokens} tokens") };
        format!("{tokens} of one sequence behind {before} others")
    }
}
