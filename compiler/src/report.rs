//! What the compiler did and why: the text of an artifact, and the numbers behind it.

pub mod html;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ir::entity::Id;
use ir::plan::{Certificate, Plan, Role, Step};

use crate::emit::cuda::CudaKernel;
use crate::emit::nvrtc::Resources;
use crate::rewrite;
use crate::target::Machine;
use crate::weights::WeightPlan;

/// One stage in readable form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// A file name: its number in the order of the stages, and what it shows.
    pub name: String,
    /// The text.
    pub text: String,
}

/// The outcome of a compilation. Its text is the same for the same input; times are kept apart.
#[derive(Debug)]
pub struct Report {
    /// The model.
    pub model: String,
    /// The target.
    pub target: String,
    /// How fast the machine was taken to be.
    pub machine: Machine,
    /// What the optimiser did.
    pub rewriting: rewrite::Report,
    /// Bytes by what they are for.
    pub memory: Memory,
    /// For each phase: its name, its most tokens, and how often one call runs each kernel.
    pub phases: Vec<(String, u64, BTreeMap<String, u64>)>,
    /// What each kernel of a CUDA target uses of a multiprocessor, by its name in the plan.
    pub resources: Vec<(String, Resources)>,
    /// How long each pass took.
    pub times: Vec<(&'static str, Duration)>,
}

/// The certificate in short: bytes by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Packed weights, wherever they are.
    pub weights: u64,
    /// Those that stay on the device.
    pub resident: u64,
    /// Those that are copied for each call.
    pub streamed: u64,
    /// Those that are read from the host's memory.
    pub host: u64,
    /// What the driver is taken to need.
    pub overhead: u64,
    /// The slots that streamed weights are copied to.
    pub slots: u64,
    /// Key-value caches.
    pub states: u64,
    /// Inputs and outputs.
    pub io: u64,
    /// Scratch, shared by all phases.
    pub scratch: u64,
    /// The slab: all but the weights.
    pub slab: u64,
    /// Memory of the host that is kept for weights, beside a GPU.
    pub pinned: u64,
}

impl Memory {
    /// All that is taken of the device's memory.
    pub fn peak(self) -> u64 {
        self.overhead.saturating_add(self.resident).saturating_add(self.slab)
    }
}

impl Memory {
    /// What the device's memory is taken for, and bytes.
    pub fn parts(self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self { overhead, resident, slots, states, io, scratch, .. } = self;
        let always = [("weights", resident), ("caches", states), ("in, out", io), ("scratch", scratch)];
        let sometimes = [("driver", overhead), ("slots", slots)];
        sometimes.into_iter().filter(|(_, bytes)| *bytes != 0).chain(always)
    }
}

impl Report {
    /// The report on a plan.
    pub fn new(
        plan: &Plan,
        machine: &Machine,
        weights: &WeightPlan,
        rewriting: rewrite::Report,
        cuda: &[CudaKernel],
        times: Vec<(&'static str, Duration)>,
    ) -> Self {
        let mut memory = Memory {
            weights: weights.bytes(),
            resident: plan.placement.resident_bytes,
            streamed: plan.placement.streamed_bytes(),
            host: plan.placement.host_bytes(),
            overhead: plan.budget.overhead_bytes,
            slab: plan.slab_bytes,
            pinned: Certificate::of(plan).host_bytes(),
            ..Memory::default()
        };
        for buffer in &plan.buffers {
            let bytes = buffer.end().map_or(u64::MAX, |end| end - buffer.offset);
            match buffer.role {
                Role::State => memory.states = memory.states.saturating_add(bytes),
                Role::Input | Role::Output => memory.io = memory.io.saturating_add(bytes),
                Role::Slots => memory.slots = memory.slots.saturating_add(bytes),
                Role::Weight | Role::Scratch(_) => {}
            }
        }
        let kept = memory.states.saturating_add(memory.io).saturating_add(memory.slots);
        memory.scratch = memory.slab.saturating_sub(kept);
        let phases = plan.phases.iter().map(|phase| {
            let mut calls = BTreeMap::new();
            count(plan, &phase.steps, 1, &mut calls);
            (phase.name.clone(), phase.max_tokens, calls)
        });
        let phases = phases.collect();
        Self {
            model: plan.model.clone(),
            target: plan.target.clone(),
            machine: machine.clone(),
            rewriting,
            memory,
            phases,
            resources: cuda.iter().map(|kernel| (kernel.name.clone(), kernel.resources.clone())).collect(),
            times,
        }
    }
}

fn count(plan: &Plan, steps: &[Step], times: u64, calls: &mut BTreeMap<String, u64>) {
    for step in steps {
        match step {
            Step::Call(call) => *calls.entry(plan.kernels[call.kernel.index()].name.clone()).or_insert(0) += times,
            Step::Copy { .. } => *calls.entry("copy".to_owned()).or_insert(0) += times,
            Step::Repeat { count: rounds, steps, .. } => count(plan, steps, times * u64::from(*rounds), calls),
        }
    }
}

/// Bytes as people read them.
pub fn human_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.2} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.2} TB")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "model    {}", self.model)?;
        writeln!(f, "target   {}", self.target)?;
        writeln!(f, "machine  {}", self.machine)?;
        writeln!(f)?;
        writeln!(f, "memory   {} in all", human_bytes(self.memory.peak()))?;
        self.memory.parts().try_for_each(|(what, bytes)| writeln!(f, "  {what:<8} {:>12}", human_bytes(bytes)))?;
        let Memory { streamed, host, .. } = self.memory;
        for (bytes, what) in [(streamed, "copied to slots for each call"), (host, "read from the host's memory")] {
            if bytes != 0 {
                writeln!(f, "  and {} of weights are {what}", human_bytes(bytes))?;
            }
        }
        for (name, tokens, calls) in &self.phases {
            let total: u64 = calls.values().sum();
            writeln!(f, "\nphase {name}, up to {tokens} tokens: {total} calls")?;
            for (kernel, times) in calls {
                writeln!(f, "  {times:>5} x {kernel}")?;
            }
        }
        if !self.resources.is_empty() {
            writeln!(
                f,
                "\nregisters of a thread, bytes of shared memory of a block, bytes of a thread's stack, bytes it spills"
            )?;
        }
        for (kernel, Resources { registers, shared_bytes, stack_bytes, spill_store_bytes, .. }) in &self.resources {
            writeln!(f, "  {registers:>5} {shared_bytes:>6} {stack_bytes:>6} {spill_store_bytes:>6}  {kernel}")?;
        }
        writeln!(f, "\nrewriting\n{}", self.rewriting)
    }
}
