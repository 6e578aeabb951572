//! How much memory training would take on a GPU: **a count, not a plan**. What its plans will hold is counted from the program's parameters and from
//! the plan of its forward pass.
//!
//! | part | QLoRA | full |
//! |---|---|---|
//! | weights | all packed, as for inference | the same, as the copy that the forward pass reads |
//! | trained parameters | adapters of rank 16 on every ternary matrix of the layers, in bf16, with a master in f32 | a master in f32 for every parameter |
//! | gradients | bf16 for the adapters | f32 for every parameter |
//! | AdamW | two moments in f32 for each | the same |
//! | activations | what enters a layer, for each layer; all that one layer computes, twice: its values again, and their gradients; and what stands around the layers | the same |
//!
//! One sequence is trained on at a time. Activations are those of a call that holds all its tokens; caches, which training does not need, are left out.

use ir::DType;
use ir::param::ParamBinding;
use ir::plan::{Expr, Role};

use crate::Planned;

/// Rows of the smaller matrices of an adapter.
pub const RANK: u64 = 16;

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Adapters beside packed weights.
    Qlora,
    /// Every parameter.
    Full,
}

/// Bytes by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrainingBytes {
    /// Packed weights.
    pub weights: u64,
    /// Trained parameters, in all forms that are kept.
    pub trained: u64,
    /// Their gradients.
    pub gradients: u64,
    /// The optimiser's states.
    pub optimizer: u64,
    /// Activations.
    pub activations: u64,
}

impl TrainingBytes {
    /// All of it.
    pub fn total(self) -> u64 {
        let Self { weights, trained, gradients, optimizer, activations } = self;
        [weights, trained, gradients, optimizer, activations].into_iter().fold(0, u64::saturating_add)
    }
}

/// The count for a program with these parameters, where `forward` is its plan with calls of as many tokens as a sequence has.
pub fn count(params: &[ParamBinding], forward: &Planned, method: Method) -> TrainingBytes {
    let (elements, of_trained, of_gradients) = match method {
        Method::Qlora => (params.iter().map(adapter_elements).sum(), 2 + 4, 2),
        Method::Full => (params.iter().map(ParamBinding::elements).fold(0, u64::saturating_add), 4, 4),
    };
    let elements: u64 = elements;
    TrainingBytes {
        weights: forward.plan.weights_bytes,
        trained: elements.saturating_mul(of_trained),
        gradients: elements.saturating_mul(of_gradients),
        optimizer: elements.saturating_mul(8),
        activations: activations(forward),
    }
}

/// Elements of the adapters of a parameter, in all layers.
fn adapter_elements(param: &ParamBinding) -> u64 {
    let is_of_layer = 1 < param.rounds && param.ty.dtype == DType::T2;
    match param.dims()[..] {
        [rows, columns] if is_of_layer => (rows + columns).saturating_mul(RANK).saturating_mul(u64::from(param.rounds)),
        _ => 0,
    }
}

/// What is kept between the forward and the backward pass, and what the latter needs at its widest.
fn activations(forward: &Planned) -> u64 {
    let Planned { program, plan, .. } = forward;
    let Some((last, entry)) = plan.phases.iter().enumerate().next_back().zip(program.graphs.last()) else { return 0 };
    let tokens = last.1.max_tokens;
    let of_call = |symbol: &str| if symbol == "n" { Some(tokens) } else { Some(1) };
    let mut bytes = 0_u64;
    // What layers hand on: the values that a repeated body gives.
    for graph in program.graphs.iter().filter(|graph| graph.name != entry.name) {
        let rounds = program.rounds(&graph.name);
        for &output in &graph.outputs {
            let ty = graph.ty(output);
            let elements = Expr::product(ty.shape.dims()).evaluate(&of_call);
            let each = elements.unwrap_or(u64::MAX).saturating_mul(ty.dtype.bytes().unwrap_or(1));
            bytes = bytes.saturating_add(each.saturating_mul(rounds));
        }
    }
    // What one layer computes and what stands around layers: with no place used twice, and gradients of the same sizes.
    let scratch = plan.buffers.iter().filter(|buffer| buffer.role == Role::Scratch(last.0));
    let io = plan.buffers.iter().filter(|buffer| matches!(buffer.role, Role::Input | Role::Output));
    scratch.chain(io).fold(bytes, |sum, buffer| sum.saturating_add(buffer.bytes.saturating_mul(2)))
}
