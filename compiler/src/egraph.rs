//! Many equal graphs at once: the e-graph of one [`ir::Graph`], what is known of its classes, and the best graph out of it.
//!
//! Invariant: `egg` is named only here, below, and where rules are declared.

pub mod language;

pub mod analysis;

pub mod convert;

pub mod cost;

pub mod extract;

pub mod explain;

pub use analysis::{Fact, Facts};
pub use language::ENode;

/// The e-graph of one graph.
pub type EGraph = egg::EGraph<ENode, Facts>;
