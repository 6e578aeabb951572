//! How long a node takes on a target.
//!
//! A step takes `step + max(bytes / bandwidth, operations / rate)`, with a rate for each kind of product and number of tokens. That is
//! counted once for each [`Phase`], with the symbols at a typical value, and added up by how often the phase occurs. What depends on weights
//! only is computed when weights are packed and costs nothing; views cost nothing. Both get a picosecond-sized price, so that of two equal
//! graphs the smaller one wins.
//!
//! Times are whole picoseconds: sums do not depend on their order, and neither does the choice between graphs.
//!
//! **The phases and weights below are guesses**, like the rates of a [`crate::target::Machine`] that was not measured.

use ir::packing::{RowFormat, TernaryLayout};
use ir::{DType, Dim, Op, Shape, TensorType};
use kernels::Family;

use crate::target::{Machine, ProductRate};

/// A typical call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phase {
    /// The number of tokens, for every symbol but [`ROWS`].
    pub tokens: u64,
    /// How often it occurs.
    pub share: f64,
}

/// The symbol of the rows whose logits are wanted: one in each phase, because only the last token's are.
pub const ROWS: &str = "m";

/// One token decoded for each one read, which is read in chunks of 256: decode is by far the dearer.
pub const PHASES: [Phase; 2] = [Phase { tokens: 1, share: 1.0 }, Phase { tokens: 256, share: 1.0 / 256.0 }];

/// Keys that a query is taken to see. The same on both sides of every choice, so it only makes totals readable.
const CONTEXT: u64 = 1024;

/// Elementwise operations that one transcendental counts as.
const TRANSCENDENTAL: u64 = 16;

/// The price of a step that there is no kernel for, or that is not wanted: more than any that there is.
const EXCLUDED_SECONDS: f64 = 1e4;

/// The price of a view, in picoseconds.
const VIEW_PS: u64 = 16;

/// The price of a node that is computed when weights are packed, in picoseconds.
pub const WEIGHT_TIME_PS: u64 = 1;

/// The cost of nodes on one machine.
#[derive(Clone, Debug, PartialEq)]
pub struct CostModel {
    /// The rates.
    pub machine: Machine,
    /// The typical calls.
    pub phases: Vec<Phase>,
    /// The only packing of ternary weights that is wanted, if there is one.
    pub packing: Option<TernaryLayout>,
}

/// What one way to pack the weights of a matmul costs in one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PackingCost {
    /// Bytes of the packed weights.
    pub weight_bytes: u64,
    /// Seconds that all its bytes take from memory.
    pub read_seconds: f64,
    /// Seconds that its arithmetic takes on all threads.
    pub compute_seconds: f64,
}

impl PackingCost {
    /// Picoseconds of a phase's calls, without those of starting a step.
    pub fn picoseconds(&self, phase: Phase) -> u64 {
        (phase.share * self.read_seconds.max(self.compute_seconds) * 1e12).round() as u64
    }
}

impl CostModel {
    /// The model of a machine, with the usual phases.
    pub fn new(machine: Machine) -> Self {
        Self { machine, phases: PHASES.to_vec(), packing: None }
    }

    /// The same where ternary weights are packed in one way only.
    pub fn with_packing(self, packing: Option<TernaryLayout>) -> Self {
        Self { packing, ..self }
    }

    /// What a ternary matmul costs in a call of some tokens with its weights packed so.
    pub fn packing_cost(&self, phase: Phase, op: &Op, inputs: &[&TensorType], out: &TensorType) -> Option<PackingCost> {
        let layout = layout_of(op)?;
        if !self.machine.knows(Family::TernaryMatmul, inputs[0].dtype, inputs[1].dtype, Some(layout)) {
            return None;
        }
        let (bytes, Work::Product(rate, macs)) = traffic(&self.machine, phase, op, inputs, out) else { return None };
        Some(PackingCost {
            weight_bytes: packed_bytes(layout, inputs[1]),
            read_seconds: bytes as f64 / (self.machine.read_gb_per_s * 1e9),
            compute_seconds: rate.seconds(macs, rows(phase, out)) / f64::from(self.machine.threads.max(1)),
        })
    }

    /// Picoseconds that a node takes at run time, over all phases.
    pub fn picoseconds(&self, op: &Op, inputs: &[&TensorType], out: &TensorType) -> u64 {
        match op {
            Op::Reshape(_) | Op::Slice(_) | Op::Broadcast(_) => VIEW_PS,
            op if op.body().is_some() => 0,
            _ => {
                let seconds: f64 =
                    self.phases.iter().map(|phase| phase.share * self.seconds(*phase, op, inputs, out)).sum();
                (seconds * 1e12).round() as u64
            }
        }
    }

    fn seconds(&self, phase: Phase, op: &Op, inputs: &[&TensorType], out: &TensorType) -> f64 {
        let machine = &self.machine;
        let is_excluded = |layout: TernaryLayout| {
            let (x, w) = (inputs[0].dtype, inputs[1].dtype);
            // Every op has to have a price, but for activations that have one packing only the wish is none.
            let is_choice = machine.knows(Family::TernaryMatmul, x, w, Some(TernaryLayout::Tile16Base3));
            !machine.knows(Family::TernaryMatmul, x, w, Some(layout))
                || (is_choice && self.packing.is_some_and(|only| only != layout))
        };
        if layout_of(op).is_some_and(is_excluded) {
            return EXCLUDED_SECONDS;
        }
        let (bytes, work) = traffic(machine, phase, op, inputs, out);
        let threads = f64::from(machine.threads.max(1));
        let compute = match work {
            Work::Product(rate, macs) => rate.seconds(macs, rows(phase, out)) / threads,
            Work::Flops(flops) => flops as f64 / (machine.f32_gflop_per_s * 1e9 * threads),
        };
        machine.step_us * 1e-6 + compute.max(bytes as f64 / (machine.read_gb_per_s * 1e9))
    }
}

enum Work {
    /// Multiply-accumulates at a rate that depends on the number of tokens.
    Product(ProductRate, u64),
    Flops(u64),
}

/// Bytes read and written, and operations.
fn traffic(machine: &Machine, phase: Phase, op: &Op, inputs: &[&TensorType], out: &TensorType) -> (u64, Work) {
    let all_bytes = inputs.iter().map(|ty| bytes(phase, ty)).sum::<u64>() + bytes(phase, out);
    match op {
        Op::Matmul(_) | Op::TernaryMatmul(_) | Op::TernaryMatmulBase3(_) | Op::QuantizedMatmul(_) => {
            let macs = elements(phase, out) * inputs[0].shape.last().map_or(1, |dim| size(phase, dim));
            let (x, w) = (inputs[0].dtype, inputs[1].dtype);
            match layout_of(op) {
                None => (all_bytes, Work::Product(machine.rate(Family::DenseMatmul, x, w), macs)),
                Some(layout) => {
                    let bytes = all_bytes - bytes(phase, inputs[1]) + packed_bytes(layout, inputs[1]);
                    (bytes, Work::Product(machine.rate_of(Family::TernaryMatmul, x, w, Some(layout)), macs))
                }
            }
        }
        Op::Attention(_) => {
            let row = |cache: &TensorType| {
                let [_, kv_heads, _, d] = &cache.shape.0[..] else { unreachable!("the rank was checked") };
                bytes(phase, &TensorType::new(cache.dtype, Shape::new([kv_heads.clone(), d.clone()])))
            };
            let cache_bytes = CONTEXT * (row(inputs[1]) + row(inputs[2]));
            (
                cache_bytes + bytes(phase, inputs[0]) + bytes(phase, out),
                Work::Product(
                    machine.rate(Family::Attention, DType::F32, inputs[1].dtype),
                    2 * CONTEXT * elements(phase, out),
                ),
            )
        }
        Op::KvAppend(_) => (2 * bytes(phase, inputs[1]), Work::Flops(elements(phase, inputs[1]))),
        Op::Gather(_) => (2 * bytes(phase, out), Work::Flops(elements(phase, out))),
        _ => {
            let largest = inputs.iter().map(|ty| elements(phase, ty)).max().unwrap_or(0);
            (all_bytes, Work::Flops(operations(op) * largest.max(elements(phase, out))))
        }
    }
}

/// How the ternary weights of a matmul are packed.
pub fn layout_of(op: &Op) -> Option<TernaryLayout> {
    match op {
        Op::TernaryMatmul(_) | Op::TernaryMatmulTransposed(_) => Some(TernaryLayout::Tile16),
        Op::TernaryMatmulBase3(_) => Some(TernaryLayout::Tile16Base3),
        _ => None,
    }
}

/// Which operand of an op are packed ternary weights, and how they are packed.
pub fn packed_operand(op: &Op) -> Option<(usize, TernaryLayout)> {
    match op {
        Op::UnpackInCall(_) => Some((0, TernaryLayout::Tile16)),
        op => layout_of(op).map(|layout| (1, layout)),
    }
}

/// The packing of an operand, if it is such weights.
pub fn packing_of(op: &Op, position: usize) -> Option<TernaryLayout> {
    packed_operand(op).filter(|(packed, _)| *packed == position).map(|(_, layout)| layout)
}

/// Bytes of ternary weights, without those that fill the last tiles: a choice for large matrices, which small ones should not turn.
fn packed_bytes(layout: TernaryLayout, ty: &TensorType) -> u64 {
    let weights: u64 = ty.shape.dims().iter().map(|dim| dim.as_const().unwrap_or(0)).product();
    match layout {
        TernaryLayout::Tile16Base3 => weights.div_ceil(5),
        TernaryLayout::RowMajor4 | TernaryLayout::Blocks4 | TernaryLayout::Tile16 => weights.div_ceil(4),
    }
}

/// Elementwise operations that one element of an op counts as.
pub fn operations(op: &Op) -> u64 {
    match op {
        Op::Exp(_) | Op::Log(_) | Op::Sin(_) | Op::Cos(_) | Op::Sigmoid(_) | Op::Silu(_) | Op::Softmax(_) => {
            TRANSCENDENTAL
        }
        _ => 1,
    }
}

/// The rows of a result: the tokens that a product is computed for.
fn rows(phase: Phase, ty: &TensorType) -> u64 {
    ty.shape.outer().iter().map(|dim| size(phase, dim)).product()
}

fn size(phase: Phase, dim: &Dim) -> u64 {
    match dim {
        Dim::Const(size) => *size,
        Dim::Sym(symbol) if symbol.name() == ROWS => 1,
        Dim::Sym(_) => phase.tokens,
    }
}

fn elements(phase: Phase, ty: &TensorType) -> u64 {
    ty.shape.dims().iter().map(|dim| size(phase, dim)).product()
}

fn bytes(phase: Phase, ty: &TensorType) -> u64 {
    let elements = elements(phase, ty);
    match ty.dtype.bytes() {
        Some(bytes) => elements * bytes,
        None => {
            let width = ty.shape.last().map_or(1, |dim| size(phase, dim));
            match RowFormat::new(ty.dtype, width as usize) {
                Some(format) => elements.checked_div(width).unwrap_or(0) * format.stride() as u64,
                None => elements.div_ceil(4),
            }
        }
    }
}
