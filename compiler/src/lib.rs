//! From graph to artifact.
//!
//! [`compile`] turns a verified program into a plan, machine code and a list of tensors; [`artifact::write`] packs the weights and writes all of
//! it as a directory that the runtime reads. Read [`pipeline`] first: it is the list of passes.
//!
//! Invariants: the library takes any graph and knows no model; only [`artifact`] writes files and only [`weights::checkpoint`] reads them; no
//! pass reads the clock or the environment, so a compilation is a function of program, target and options.

#![deny(unsafe_code)]

pub mod pipeline;
pub mod target;
pub mod rewrite;
pub mod egraph;
pub mod schedule;
pub mod lower;
pub mod nest;
pub mod emit;
pub mod weights;
pub mod artifact;
pub mod report;
pub mod autodiff;
pub mod optimiser;
pub mod training;

mod error;

pub use error::CompileError;
pub use pipeline::{Compiled, Options, Planned, PlanningOptions, compile, compile_step, plan};
pub use target::Target;
