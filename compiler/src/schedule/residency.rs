//! Where the weights of layers are while calls run: on the device, or copied there piece by piece for each call.
//!
//! What all rounds share is on the device always, but for an embedding table that may stay in host memory. A streamed layer is cut into pieces of
//! nearly equal bytes; a piece is copied into one of a few slots, each as large as the largest piece. Pieces are copied in the order of their use,
//! round and round over the tokens, each as soon as its slot is free. Streamed layers stand evenly among those that stay.

/// Where the layers' weights are while calls run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Residency {
    /// Layers whose weights are copied for each call.
    pub streamed: u32,
    /// Pieces of a streamed layer.
    pub split: u32,
    /// Places for pieces.
    pub slots: u32,
    /// Whether an embedding table that is only gathered from stays in host memory.
    pub host_embedding: bool,
    /// Where pieces come from.
    pub source: Tier,
}

/// A memory that weights are streamed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// Pinned host memory.
    Host,
    /// A disk, through a pinned ring in host memory.
    Disk,
}

impl Default for Residency {
    /// Nothing is streamed.
    fn default() -> Self {
        Self { streamed: 0, split: 1, slots: 0, host_embedding: false, source: Tier::Host }
    }
}
