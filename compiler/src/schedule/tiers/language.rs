//! The language of memory schedules.
//!
//! | node | meaning |
//! |---|---|
//! | `(run EMBEDDING BODY)` | a model whose embedding table is in that tier, if it is only gathered from |
//! | `(prefetch SPLIT SLOTS SOURCE PACKING BODY)` | streamed layers are cut into `SPLIT` pieces, which are copied from `SOURCE` into `SLOTS` slots, their ternary weights packed so on the way |
//! | `(layers N RESIDENT STREAMED KV CHUNK)` | `N` layers somewhere, packed as their tier has it, with what else a call needs in this format |
//! | `(call RESIDENT KV CHUNK BODY)` | the layers of a body, and all that a call needs beside them |
//! | `(group N RESIDENT STREAMED KV CHUNK)` | `N` layers somewhere |
//! | `(stay N RESIDENT STREAMED KV CHUNK)` | `N` layers in the device's memory |
//! | `(stream N RESIDENT STREAMED KV CHUNK)` | `N` layers that are copied for each call |
//! | `(both A B)` | the layers of both, evenly mixed |
//!
//! Layers that stay say how streamed ones beside them are packed, and the other way round, though they do not depend on it: without that, groups that
//! differ in it would hold an equal node and so be one class, and schedules with three packings would seem to be possible.

use egg::{Id, Symbol, define_language};

use crate::schedule::residency::Tier;

define_language! {
    /// One node of a memory schedule. Counts are of layers, pieces, slots or tokens; names are those of tiers, packings and formats of caches.
    pub(crate) enum Node {
        Count(u32),
        "run" = Run([Id; 2]),
        "prefetch" = Prefetch([Id; 5]),
        "layers" = Layers([Id; 5]),
        "call" = Call([Id; 4]),
        "group" = Group([Id; 5]),
        "stay" = Stay([Id; 5]),
        "stream" = Stream([Id; 5]),
        "both" = Both([Id; 2]),
        Name(Symbol),
    }
}

/// The name of the tier that is the device's own memory.
pub(crate) const DEVICE: &str = "device";

/// What a tier that is streamed from is called.
pub(crate) fn name_of(tier: Tier) -> &'static str {
    match tier {
        Tier::Host => "host",
        Tier::Disk => "disk",
    }
}

/// The tier of a name.
pub(crate) fn tier_of(name: &str) -> Option<Tier> {
    [Tier::Host, Tier::Disk].into_iter().find(|tier| name_of(*tier) == name)
}
