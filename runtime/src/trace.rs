//! Where the time of calls goes: step by step, under the names that the compiler gave them.

use std::collections::BTreeMap;
use std::time::Duration;

use ir::plan::{Plan, Step};

use crate::executor::{Cost, Origin, Sizes, cost_of, flat_steps};

/// Times of the steps of all calls that it was given to.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// By phase and position of the step in it.
    rows: BTreeMap<(usize, usize), Row>,
    calls: u64,
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

    /// Adds one call: for each work, where it came from, and how long it took.
    pub(crate) fn add(&mut self, plan: &Plan, phase: usize, sizes: Sizes, origins: &[Origin], times: &[Duration]) {
        self.calls += 1;
        let steps = flat_steps(&plan.phases[phase]);
        for (origin, time) in origins.iter().zip(times) {
            let step = steps[origin.step];
            let cost = cost_of(plan, step, sizes, origin.round);
            let row = self.rows.entry((phase, origin.step)).or_insert_with(|| new_row(plan, phase, step));
            row.launches += 1;
            row.cost = row.cost.plus(cost);
            row.time += *time;
        }
    }
}

fn new_row(plan: &Plan, phase: usize, step: &Step) -> Row {
    let (from, kernel) = match step {
        Step::Call(call) => (call.from.clone(), plan.kernel(call.kernel).name.clone()),
        Step::Copy { to, .. } => (plan.buffer(to.buffer).name.clone(), "copy".to_owned()),
        Step::Repeat { .. } => unreachable!("flat steps have no repeats"),
    };
    let phase = plan.phases[phase].name.clone();
    Row { phase, from, kernel, launches: 0, cost: Cost::default(), time: Duration::ZERO }
}
