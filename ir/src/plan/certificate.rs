//! What running a plan takes of memory, allocation by allocation, and the proof that it is no more than was promised.
//!
//! It follows from the plan alone: the runtime allocates what stands here before the first call, and nothing after it. Scratch buffers of
//! different phases share their bytes, so the slab is counted once, up to the end of its last buffer; [`super::check()`] proves that what shares
//! bytes does not live at the same time.

use serde::{Deserialize, Serialize};

use super::{Buffer, Plan, Role, Source};

/// What running a plan may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Bytes that a GPU's driver is taken to need beside: its context, the code of kernels, graphs.
    pub overhead_bytes: u64,
    /// The most bytes of the device's memory; none if nothing was asked for.
    pub device_bytes: Option<u64>,
    /// The most bytes of the host's memory that are kept for weights, beside a GPU; none if nothing was asked for.
    pub host_bytes: Option<u64>,
}

/// Something that is allocated before the first call and kept to the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// What it is for.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// When its contents live.
    pub lifetime: Lifetime,
}

/// When the contents of an allocation live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// From the start to the end.
    Always,
    /// While a piece of the weights is copied and read.
    Piece,
    /// Within a call of one of the phases, which all use the same bytes; those of each phase, by its name.
    Call(Vec<(String, u64)>),
}

/// All allocations of a device and of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// In the device's memory; on a CPU, in the process.
    pub device: Vec<Allocation>,
    /// In the host's memory, pinned, beside a GPU.
    pub host: Vec<Allocation>,
}

/// A plan takes more than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} needs {needed} bytes, the budget is {budget}")]
pub struct BudgetError {
    /// Whose memory.
    pub what: &'static str,
    /// Bytes of all allocations.
    pub needed: u64,
    /// Bytes allowed.
    pub budget: u64,
}

impl Certificate {
    /// The allocations of a plan that keeps the rules of [`super::check()`].
    pub fn of(plan: &Plan) -> Self {
        let always = |name: &str, bytes| Allocation { name: name.to_owned(), bytes, lifetime: Lifetime::Always };
        let of_role = |is_it: &dyn Fn(Role) -> bool| {
            let buffers = plan.buffers.iter().filter(|buffer| is_it(buffer.role));
            buffers.map(span).fold(0, u64::saturating_add)
        };
        let slots = of_role(&|role| role == Role::Slots);
        let states = of_role(&|role| role == Role::State);
        let io = of_role(&|role| matches!(role, Role::Input | Role::Output));
        let shared = slots.saturating_add(states).saturating_add(io);
        let phases = plan.all_phases().enumerate().map(|(index, phase)| {
            let scratch = plan.buffers.iter().filter(|buffer| buffer.role == Role::Scratch(index));
            let ends = scratch.filter_map(Buffer::end);
            (phase.name.clone(), ends.max().unwrap_or(shared).saturating_sub(shared))
        });
        let calls = Allocation {
            name: "scratch".to_owned(),
            bytes: plan.slab_bytes.saturating_sub(shared),
            lifetime: Lifetime::Call(phases.collect()),
        };
        let slots = Allocation { name: "slots".to_owned(), bytes: slots, lifetime: Lifetime::Piece };
        let device = vec![
            always("driver", plan.budget.overhead_bytes),
            always("weights", plan.placement.resident_bytes),
            always("caches", states),
            always("inputs and outputs", io),
            slots,
            calls,
        ];
        let largest = plan.placement.slots.iter().map(|slot| slot.bytes).max().unwrap_or(0);
        let staging = match plan.placement.source {
            Source::Host => always("streamed weights", plan.placement.streamed_bytes()),
            Source::Disk { buffers } => always("buffers for streamed weights", largest.saturating_mul(buffers.into())),
        };
        let host = match plan.placement.source {
            // Without buffers between them the device's memory is the host's, and what is read in the file is kept or not as the system likes.
            Source::Disk { buffers: 0 } => Vec::new(),
            _ => vec![always("weights read over the link", plan.placement.host_bytes()), staging],
        };
        let is_there = |all: Vec<Allocation>| all.into_iter().filter(|one| one.bytes != 0).collect();
        Self { device: is_there(device), host: is_there(host) }
    }

    /// Bytes of the device's memory at any time: nothing is allocated or freed between calls, so it is the sum.
    pub fn device_bytes(&self) -> u64 {
        total(&self.device)
    }

    /// Bytes of the host's memory.
    pub fn host_bytes(&self) -> u64 {
        total(&self.host)
    }

    /// Confirms that a plan takes no more than it may.
    ///
    /// # Errors
    ///
    /// For the device and for its host, if it does.
    pub fn prove(plan: &Plan) -> Result<Self, Vec<BudgetError>> {
        let certificate = Self::of(plan);
        let limits = [
            ("the device's memory", certificate.device_bytes(), plan.budget.device_bytes),
            ("the host's memory", certificate.host_bytes(), plan.budget.host_bytes),
        ];
        let broken = limits.into_iter().filter_map(|(what, needed, budget)| {
            let budget = budget.filter(|budget| *budget < needed)?;
            Some(BudgetError { what, needed, budget })
        });
        let broken: Vec<BudgetError> = broken.collect();
        if broken.is_empty() { Ok(certificate) } else { Err(broken) }
    }
}

/// Bytes from a buffer's first to its last, over all rounds.
fn span(buffer: &Buffer) -> u64 {
    let aligned = |bytes: u64| bytes.checked_next_multiple_of(super::ALIGNMENT).unwrap_or(u64::MAX);
    aligned(buffer.end().map_or(u64::MAX, |end| end - buffer.offset))
}

fn total(allocations: &[Allocation]) -> u64 {
    allocations.iter().map(|one| one.bytes).fold(0, u64::saturating_add)
}
