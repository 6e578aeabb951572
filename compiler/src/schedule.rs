//! From a graph to a sequence of groups: what becomes one kernel, in which order, and where its results lie.

pub mod view;
pub mod group;
pub mod rope_append;
pub mod fuse;
pub mod in_place;
pub mod memory;
pub mod residency;
pub mod tiers;

pub use group::{Group, Kind, Schedule, ScheduleError};
pub use residency::{Residency, Tier};
pub use rope_append::RopeAppend;
pub use view::{View, Views};
