//! What a program is.
//!
//! A [`Program`] is a list of [`Graph`]s: the bodies of its rolled layers, and last the entry. A graph is a list of [`graph::Value`]s in SSA
//! form, each the input, parameter, state or constant that it is called, or the one result of one [`op::Op`].
//!
//! **When a value is computed.** Operands stand before their users; beyond that nothing is promised, and a value that no output or update
//! needs may never be computed. Ops have no side effects. A state keeps its old value for the whole run; its [`graph::Update`] says what it is
//! from the next run on. A back end may store the new value over the old one once every reader of the old one has run.
//!
//! **Repeats.** [`op::control::Repeat`] carries one value through `count` rounds of its body. In round `r` the `{}` in the keys of the body's
//! parameters and states stands for `r`. Bodies are not repeated inside bodies, and each has one repeat.
//!
//! **Scans.** [`op::control::Scan`] is a repeat whose rounds also read and give a part each of stacked values, and which may run backwards:
//! what a layer's forward pass leaves for its backward pass, and the gradients of each layer's parameters.
//!
//! **Gradients.** Each op gives those of its inputs or says why there are none: [`vjp`] says what a gradient of an integer op is.
//!
//! **Symbols.** A dimension is a constant or a symbol, such as `n`, the tokens of this call. Symbols are bound by the inputs of the entry at
//! each run, lie between 0 and their declared maximum, and are not computed with.
//!
//! **Numbers.** Ops compute in f32 or exact integers. Other float types exist for parameters only and are widened where they are read.
//! Reductions have one order that all targets keep, written in the docs of the op: so the same program gives the same bits whatever runs it,
//! wherever the docs do not say otherwise.

#![forbid(unsafe_code)]

pub mod entity;
pub mod dtype;
pub mod shape;
pub mod packing;
pub mod mask;
pub mod op;
pub mod graph;
pub mod builder;
pub mod vjp;
pub mod verify;
pub mod reference;
pub mod param;
pub mod plan;
pub mod text;

pub use builder::{BuildError, Builder};
pub use dtype::DType;
pub use graph::{Graph, Program, ValueId};
pub use op::Op;
pub use shape::{Dim, Shape, Symbol, TensorType};
pub use verify::{Verified, verify};
