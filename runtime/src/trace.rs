//! Where the time of calls goes: step by step, under the names that the compiler gave them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ir::plan::{Plan, Step};

use crate::executor::{Cost, Origin, Part, Sizes, cost_of, flat_steps};

/// Times of the steps of all calls that it was given to.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// By phase and position of the step in it.
    rows: BTreeMap<(usize, usize), Row>,
    calls: u64,
    /// Each call and each of its launches, if they are kept.
    timeline: Option<Timeline>,
}

#[derive(Clone, Debug)]
struct Timeline {
    /// What times count from.
    begun: Instant,
    calls: Vec<CallSpan>,
    steps: Vec<StepSpan>,
}

/// When a call ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallSpan {
    /// The phase.
    pub phase: String,
    /// Tokens.
    pub tokens: u64,
    /// Rows whose logits were computed.
    pub rows: u64,
    /// Since the trace began.
    pub start: Duration,
    /// All its launches together.
    pub time: Duration,
}

/// When a launch ran. Those of a call follow each other without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepSpan {
    row: (usize, usize),
    /// The round of its repeat: the layer.
    pub round: Option<u64>,
    /// What it moved and computed.
    pub cost: Cost,
    /// Since the trace began.
    pub start: Duration,
    /// How long it took.
    pub time: Duration,
}

/// One step of the plan, summed over the rounds of its repeat and over calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The phase.
    pub phase: String,
    /// What of the program it computes.
    pub from: String,
    /// The kernel, or `copy`.
    pub kernel: String,
    /// How often it ran.
    pub launches: u64,
    /// What it moved and computed.
    pub cost: Cost,
    /// How long that took.
    pub time: Duration,
}

impl Row {
    /// Bytes a second.
    pub fn bytes_per_second(&self) -> f64 {
        if self.time.is_zero() { 0.0 } else { self.cost.bytes as f64 / self.time.as_secs_f64() }
    }
}

impl Trace {
    /// A trace that also keeps when each launch ran: about 100 bytes for each.
    pub fn with_timeline() -> Self {
        let timeline = Timeline { begun: Instant::now(), calls: Vec::new(), steps: Vec::new() };
        Self { timeline: Some(timeline), ..Self::default() }
    }

    /// When each call ran, if that was kept.
    pub fn call_spans(&self) -> &[CallSpan] {
        self.timeline.as_ref().map_or(&[], |timeline| &timeline.calls)
    }

    /// When each launch ran, and what of the plan it is, if that was kept.
    pub fn step_spans(&self) -> impl Iterator<Item = (&Row, &StepSpan)> {
        let steps = self.timeline.iter().flat_map(|timeline| &timeline.steps);
        steps.map(|span| (&self.rows[&span.row], span))
    }

    /// All steps that ran, in the order of the plan.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    /// Calls that were traced.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Time of all steps.
    pub fn time(&self) -> Duration {
        self.rows().map(|row| row.time).sum()
    }

    /// Adds one call: when it began, and for each work where it came from and how long it took.
    pub(crate) fn add(
        &mut self,
        plan: &Plan,
        (phase, sizes): (usize, Sizes),
        begun: Instant,
        origins: &[Origin],
        times: &[Duration],
    ) {
        self.calls += 1;
        let Some(of_call) = plan.all_phases().nth(phase) else { unreachable!("the phase was run") };
        let steps = flat_steps(of_call);
        let mut start = Duration::ZERO;
        if let Some(timeline) = &mut self.timeline {
            start = begun.saturating_duration_since(timeline.begun);
            timeline.calls.push(CallSpan {
                phase: of_call.name.clone(),
                tokens: sizes.n,
                rows: sizes.m,
                start,
                time: times.iter().sum(),
            });
        }
        for (origin, time) in origins.iter().zip(times) {
            let step = steps[origin.step];
            let (position, cost) = match origin.part {
                Part::Step => (origin.step, cost_of(plan, step, sizes, origin.round)),
                Part::Wait(bytes) => (WAITS, Cost { bytes, weight_bytes: bytes, ..Cost::default() }),
                // It takes no time, and is nothing to look at.
                Part::Release => {
                    start += *time;
                    continue;
                }
            };
            let row = self.rows.entry((phase, position));
            let row =
                row.or_insert_with(|| if position == WAITS { waits(plan, phase) } else { new_row(plan, phase, step) });
            row.launches += 1;
            row.cost = row.cost.plus(cost);
            row.time += *time;
            if let Some(timeline) = &mut self.timeline {
                let row = (phase, position);
                timeline.steps.push(StepSpan { row, round: origin.round, cost, start, time: *time });
                start += *time;
            }
        }
    }
}

/// The position of the row for all waiting for weights, after those of all steps.
const WAITS: usize = usize::MAX;

fn waits(plan: &Plan, phase: usize) -> Row {
    let (phase, from) = (name(plan, phase), "streamed weights".to_owned());
    Row { phase, from, kernel: "wait".to_owned(), launches: 0, cost: Cost::default(), time: Duration::ZERO }
}

fn new_row(plan: &Plan, phase: usize, step: &Step) -> Row {
    let (from, kernel) = match step {
        Step::Call(call) => (call.from.clone(), plan.kernel(call.kernel).name.clone()),
        Step::Copy { to, .. } => (plan.buffer(to.buffer).name.clone(), "copy".to_owned()),
        Step::Repeat { .. } => unreachable!("flat steps have no repeats"),
    };
    Row { phase: name(plan, phase), from, kernel, launches: 0, cost: Cost::default(), time: Duration::ZERO }
}

fn name(plan: &Plan, phase: usize) -> String {
    let Some(phase) = plan.all_phases().nth(phase) else { unreachable!("the phase was run") };
    phase.name.clone()
}
