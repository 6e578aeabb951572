//! Which layers stay on the device, which are streamed to it, and in what form: a small program over groups of layers and memory tiers, and all
//! programs equal to it.
//!
//! The program says what runs, not where things are: `(run device (prefetch 1 2 host (layers 80 2bit 2bit bf16 512)))`. [`rules`] put every layer into a
//! tier, cut streamed layers into more pieces, give them more slots, and try the other formats that are offered; an e-graph holds all that comes of it.
//! [`search`] keeps, for each class, every cost that no other is at least as good as in everything: a [`front`] over time of a token, time to the first
//! token, bytes of the device and bytes of the host.
//!
//! **The front is exact.** The cost of a node is a sum, a product with a constant or a maximum of those of its operands, in all of their components; none
//! of these falls when a component rises. So what one point of a class is no better than in anything can be left out in every context, and nothing else
//! is left out: no limit is met and no point is rounded. A test compares with trying everything out.
//!
//! Sizes and times are not computed here: they are read from the plans of the program in each form ([`Profile`]). Only how copies and computation wait for
//! each other is, in [`cost`], and a test compares that with a simulation of slots and copies.

mod language;
mod rules;
pub mod profile;
pub mod cost;
pub mod front;
pub mod search;
pub mod choose;

#[cfg(test)]
mod tests;

use std::fmt;

use ir::packing::TernaryLayout;

use super::residency::{Residency, Tier};

pub use choose::{Found, Limits, Nearest, Refusal, choose};
pub use cost::Point;
pub use front::Front;
pub use profile::{Profile, Workload};
pub use search::{Report, search};

/// What a plan is made for, of what can be chosen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Format {
    /// How ternary weights are packed.
    pub packing: TernaryLayout,
    /// The key-value cache's format, by its name.
    pub kv: String,
    /// The most tokens of a call.
    pub chunk: u32,
}

/// How a packing is called: by its bits.
pub fn bits(packing: TernaryLayout) -> &'static str {
    match packing {
        TernaryLayout::Tile16Base3 => "1.6bit",
        TernaryLayout::RowMajor4 | TernaryLayout::Blocks4 | TernaryLayout::Tile16 => "2bit",
    }
}

/// How ternary weights are packed while they are copied, by its bits.
pub(crate) fn copies(packs: bool) -> &'static str {
    bits(if packs { TernaryLayout::Tile16Base3 } else { TernaryLayout::Tile16 })
}

/// What is offered beyond the formats that there are plans for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offers {
    /// Whether layers may be streamed at all.
    pub streaming: bool,
    /// Into how many pieces a streamed layer may be cut.
    pub splits: Vec<u32>,
    /// How many slots there may be.
    pub slots: Vec<u32>,
    /// Where weights may be streamed from.
    pub sources: Vec<Tier>,
    /// Whether ternary weights may be packed more tightly while they are copied, and unpacked on the device.
    pub packs_copies: bool,
    /// Whether an embedding table may stay in host memory.
    pub host_embedding: bool,
    /// Whether streamed and resident layers may be packed in different ways: only where a plan can have kernels for both.
    pub mixed_packing: bool,
}

impl Offers {
    /// Nothing but layers that stay.
    pub fn resident() -> Self {
        Self {
            streaming: false,
            splits: vec![1],
            slots: vec![2],
            sources: vec![Tier::Host],
            packs_copies: false,
            host_embedding: false,
            mixed_packing: false,
        }
    }

    /// Streaming, in pieces of a layer down to an eighth, through two to eight slots: with one, copies and computation would take turns.
    pub fn streaming(sources: Vec<Tier>) -> Self {
        Self {
            streaming: true,
            splits: vec![1, 2, 4, 8],
            slots: vec![2, 3, 4, 6, 8],
            sources,
            packs_copies: true,
            host_embedding: true,
            mixed_packing: false,
        }
    }
}

/// One way to run a model.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Choice {
    /// Where layers' weights are.
    pub residency: Residency,
    /// How the ternary weights of layers that stay, and all others, are packed.
    pub packing: TernaryLayout,
    /// How those of streamed layers are.
    pub streamed_packing: TernaryLayout,
    /// The key-value cache's format.
    pub kv: String,
    /// The most tokens of a call.
    pub chunk: u32,
}

impl fmt::Display for Choice {
    /// The program in the language of the e-graph, without how layers are grouped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { residency, packing, streamed_packing, kv, chunk } = self;
        let Residency { streamed, split, slots, host_embedding, source, packs_copies } = residency;
        let embedding = if *host_embedding { "host" } else { "device" };
        let source = language::name_of(*source);
        let call = format!("call {} {kv} {chunk}", bits(*packing));
        match streamed {
            0 => write!(f, "(run {embedding} ({call} (stay all {})))", bits(*packing)),
            1.. => {
                let layers =
                    format!("(both (stay rest {}) (stream {streamed} {}))", bits(*packing), bits(*streamed_packing));
                write!(f, "(run {embedding} (prefetch {split} {slots} {source} {} ({call} {layers})))", copies(*packs_copies))
            }
        }
    }
}
