//! What memory schedules cost: bytes on either side of the link, and how long copies and computation take together.
//!
//! Below `prefetch` a cost is the sum of its layers' ([`Work`]); all of its components only grow with more layers. `prefetch` turns work into time.
//!
//! **Time of a call.** Pieces are copied one after another into `d` slots used in turn, and computed one after another; a piece is computed when it is
//! there and everything before it is computed, and copied when its slot is free. Let `l` be the time of all copies, `r` that of computing the layers that
//! stay, evenly mixed with the streamed ones, `s` that of computing streamed layers, and `k` the pieces of a layer. In the long run a call takes the
//! largest of
//!
//! * `l`: the link never rests;
//! * `r + s`: the device never rests;
//! * `(l + s) / d`: a slot takes part in each `d`-th copy and is busy for a copy and a computation;
//! * `r + (s + m (l + s) + (k - 1 - m d) max(l, s)) / k`, for `m` from 1 to `(k - 1) / d`: while layers that stay run, slots fill up, and what is left of
//!   the next streamed layer comes after, `m` times waiting for a slot.
//!
//! These are the cycles of largest mean in the graph of who waits for whom, when streamed layers are evenly spread.

use std::cmp::Ordering;

use super::front::Dominates;
use super::profile::Profile;
use super::{Choice, Format};
use crate::emit::plan::placement::DISK_BUFFERS;
use crate::schedule::residency::{Residency, Tier};
use crate::target::Link;

/// The time of the layers of one kind of call, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Computing layers that stay.
    pub stay: u64,
    /// Computing streamed layers.
    pub streamed: u64,
    /// Whatever else a call computes.
    pub rest: u64,
    /// Bytes that are copied.
    pub copied_bytes: u64,
    /// Layers that are copied.
    pub copied_layers: u64,
}

impl Times {
    fn plus(self, other: Self) -> Self {
        Self {
            stay: self.stay.saturating_add(other.stay),
            streamed: self.streamed.saturating_add(other.streamed),
            rest: self.rest.saturating_add(other.rest),
            copied_bytes: self.copied_bytes.saturating_add(other.copied_bytes),
            copied_layers: self.copied_layers.saturating_add(other.copied_layers),
        }
    }

    fn components(&self) -> [u64; 5] {
        [self.rest, self.stay, self.streamed, self.copied_bytes, self.copied_layers]
    }

    /// Nanoseconds of it all with copies through `slots` slots of `1 / split` of a layer each.
    pub fn nanoseconds(&self, split: u32, slots: u32, gb_per_s: f64, copy_us: f64) -> u64 {
        let (stay, streamed) = (self.stay as f64, self.streamed as f64);
        if self.copied_layers == 0 {
            return self.rest.saturating_add(self.stay).saturating_add(self.streamed);
        }
        let (k, d) = (f64::from(split.max(1)), f64::from(slots.max(1)));
        let copies = self.copied_bytes as f64 / gb_per_s.max(1e-3) + self.copied_layers as f64 * k * copy_us * 1e3;
        let mut longest = copies.max(stay + streamed).max((copies + streamed) / d);
        let most_waits = (split.max(1) - 1) / slots.max(1);
        if 0 < most_waits {
            // It is linear in the number of waits, so one end is the largest.
            for waits in [1.0, f64::from(most_waits)] {
                let pieces = streamed + waits * (copies + streamed) + (k - 1.0 - waits * d) * copies.max(streamed);
                longest = longest.max(stay + pieces / k);
            }
        }
        self.rest.saturating_add(longest.round() as u64)
    }
}

/// The cost of some layers before it is known how they are copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes of the device.
    pub device_bytes: u64,
    /// Bytes of layers that are streamed.
    pub streamed_bytes: u64,
    /// Streamed layers.
    pub streamed: u32,
    /// A call that gives every sequence a token.
    pub decode: Times,
    /// The calls of the prompt together.
    pub first: Times,
    /// The profile that streamed layers have, and that of all else, by their numbers.
    pub profiles: [Option<usize>; 2],
}

impl Work {
    /// `layers` layers of a profile that stay.
    pub fn stay(index: usize, profile: &Profile, layers: u32) -> Self {
        let of = |rounds: u64| Times { stay: share(rounds, layers, profile.layers), ..Times::default() };
        Self {
            device_bytes: profile.layer_bytes().saturating_mul(u64::from(layers)),
            decode: of(profile.decode.rounds),
            first: of(profile.first.rounds),
            profiles: [None, Some(index)],
            ..Self::default()
        }
    }

    /// `layers` layers of a profile that are streamed.
    pub fn stream(index: usize, profile: &Profile, layers: u32) -> Self {
        let bytes = profile.layer_bytes().saturating_mul(u64::from(layers));
        let of = |rounds: u64, calls: u32| Times {
            streamed: share(rounds, layers, profile.layers),
            copied_bytes: bytes.saturating_mul(u64::from(calls)),
            copied_layers: u64::from(layers) * u64::from(calls),
            ..Times::default()
        };
        Self {
            streamed_bytes: bytes,
            streamed: layers,
            decode: of(profile.decode.rounds, 1),
            first: of(profile.first.rounds, profile.first_calls),
            profiles: [Some(index), None],
            ..Self::default()
        }
    }

    /// What a call needs beside its layers.
    pub fn call(index: usize, profile: &Profile) -> Self {
        let bytes = [profile.shared_bytes, profile.state_bytes, profile.scratch_bytes];
        let of = |rest: u64| Times { rest, ..Times::default() };
        Self {
            device_bytes: bytes.into_iter().fold(0, u64::saturating_add),
            decode: of(profile.decode.rest),
            first: of(profile.first.rest),
            profiles: [None, Some(index)],
            ..Self::default()
        }
    }

    /// Both.
    pub fn plus(self, other: Self) -> Self {
        Self {
            device_bytes: self.device_bytes.saturating_add(other.device_bytes),
            streamed_bytes: self.streamed_bytes.saturating_add(other.streamed_bytes),
            streamed: self.streamed + other.streamed,
            decode: self.decode.plus(other.decode),
            first: self.first.plus(other.first),
            profiles: [self.profiles[0].or(other.profiles[0]), self.profiles[1].or(other.profiles[1])],
        }
    }

    fn components(&self) -> [u64; 12] {
        let ([a, b, c, d, e], [f, g, h, i, j]) = (self.decode.components(), self.first.components());
        [a, b, c, d, e, f, g, h, i, j, self.device_bytes, self.streamed_bytes]
    }
}

/// The time of `layers` of `all` layers: a whole number of nanoseconds each, so that sums do not depend on how layers are grouped.
fn share(time: u64, layers: u32, all: u32) -> u64 {
    (time / u64::from(all.max(1))).saturating_mul(u64::from(layers))
}

impl Dominates for Work {
    fn dominates(&self, other: &Self) -> bool {
        // Pieces are as large as the profile's layers, so only work with the same pieces compares, or with none.
        let is_no_larger = self.profiles[0].is_none() || self.profiles[0] == other.profiles[0];
        // The profile of what stays has the embedding table, which may move.
        let is_alike = self.profiles[1].is_none() || self.profiles[1] == other.profiles[1];
        is_no_larger && is_alike && self.components().iter().zip(other.components()).all(|(own, other)| *own <= other)
    }

    fn order(&self, other: &Self) -> Ordering {
        self.components().cmp(&other.components()).then(self.profiles.cmp(&other.profiles))
    }
}

/// What running a model costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Nanoseconds of a call that gives every sequence a token.
    pub token_ns: u64,
    /// Nanoseconds until the first token is known.
    pub first_ns: u64,
    /// Bytes of the device, but for what the driver takes.
    pub device_bytes: u64,
    /// Bytes of weights and buffers beside the device: of host memory that is pinned, or, where the device's memory is the host's, of the file that is
    /// read in each call.
    pub host_bytes: u64,
    /// How that is done.
    pub choice: Choice,
}

impl Point {
    fn components(&self) -> [u64; 4] {
        [self.token_ns, self.first_ns, self.device_bytes, self.host_bytes]
    }
}

impl Dominates for Point {
    fn dominates(&self, other: &Self) -> bool {
        self.components().iter().zip(other.components()).all(|(own, other)| *own <= other)
    }

    fn order(&self, other: &Self) -> Ordering {
        self.components().cmp(&other.components()).then_with(|| self.choice.cmp(&other.choice))
    }
}

/// Work with its copies, before it is known where the embedding table is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// With the table on the device.
    pub point: Point,
    /// With the table in host memory, if there is one that can be.
    pub from_host: Option<Point>,
}

impl Dominates for Copied {
    fn dominates(&self, other: &Self) -> bool {
        let is_as_good = match (&self.from_host, &other.from_host) {
            (Some(own), Some(other)) => own.dominates(other),
            (_, other) => other.is_none(),
        };
        is_as_good && self.point.dominates(&other.point)
    }

    fn order(&self, other: &Self) -> Ordering {
        let of_host = || match (&self.from_host, &other.from_host) {
            (Some(own), Some(other)) => own.order(other),
            // What can do more comes first.
            (own, other) => other.is_some().cmp(&own.is_some()),
        };
        self.point
            .components()
            .cmp(&other.point.components())
            .then_with(of_host)
            .then_with(|| self.point.order(&other.point))
    }
}

/// What is known of a link and of profiles: how work becomes points.
#[derive(Clone, Copy, Debug)]
pub struct Model<'a> {
    /// The plans' sizes and times.
    pub profiles: &'a [Profile],
    /// How fast weights are copied.
    pub link: Link,
}

impl Model<'_> {
    /// Work with its copies in slots; none if they cannot be made so.
    pub fn prefetch(
        &self,
        work: &Work,
        split: u32,
        slots: u32,
        source: Tier,
        packs_copies: bool,
    ) -> Option<Copied> {
        if packs_copies && (source != Tier::Host || self.link.is_shared) {
            return None;
        }
        let [streamed, resident] = work.profiles;
        let resident = &self.profiles[resident?];
        let gb_per_s = match source {
            Tier::Host => self.link.host_gb_per_s,
            // It goes through the link as well, both at once.
            Tier::Disk => self.link.disk_gb_per_s.min(self.link.host_gb_per_s),
        };
        let of_streamed = streamed.map(|index| &self.profiles[index]);
        let (piece_bytes, slot_bytes) =
            of_streamed.map_or((0, 0), |profile| profile.slot_bytes(split, slots, work.streamed));
        let (of_layer, places) = match of_streamed {
            Some(profile) if packs_copies => profile.parcel_bytes(split),
            Some(profile) => (profile.layer_bytes(), 0),
            None => (0, 0),
        };
        let copied = |times: &Times| Times { copied_bytes: times.copied_layers.saturating_mul(of_layer), ..*times };
        let time = |times: &Times| copied(times).nanoseconds(split, slots, gb_per_s, self.link.copy_us);
        let Format { packing, kv, chunk } = &resident.format;
        let residency = match work.streamed {
            0 => Residency::default(),
            streamed => Residency { streamed, split, slots, host_embedding: false, source, packs_copies },
        };
        let streamed_bytes = u64::from(work.streamed).saturating_mul(of_layer);
        let point = Point {
            token_ns: time(&work.decode),
            first_ns: time(&work.first),
            device_bytes: work.device_bytes.saturating_add(slot_bytes).saturating_add(places),
            host_bytes: match source {
                // What is read in its file is best kept by the system, so what needs less of it is better.
                _ if self.link.is_shared => streamed_bytes,
                Tier::Host => streamed_bytes,
                Tier::Disk => piece_bytes.saturating_mul(u64::from(DISK_BUFFERS)),
            },
            choice: Choice {
                residency,
                packing: *packing,
                streamed_packing: of_streamed.map_or(*packing, |profile| profile.format.packing),
                kv: kv.clone(),
                chunk: *chunk,
            },
        };
        let from_host = self.embed_from_host(&point, resident);
        Some(Copied { point, from_host })
    }

    /// A point with the embedding table in host memory: its rows are gathered over the link. None if there is no such table.
    fn embed_from_host(&self, point: &Point, profile: &Profile) -> Option<Point> {
        if profile.embedding_bytes == 0 {
            return None;
        }
        let gather = |rows: u32, calls: u32| {
            let bytes = profile.embedding_row_bytes as f64 * f64::from(rows);
            (bytes / self.link.host_gb_per_s.max(1e-3) + f64::from(calls) * self.link.copy_us * 1e3).round() as u64
        };
        let mut moved = point.clone();
        moved.token_ns = point.token_ns.saturating_add(gather(profile.sequences, 1));
        moved.first_ns = point.first_ns.saturating_add(gather(profile.prompt, profile.first_calls));
        moved.device_bytes = point.device_bytes.saturating_sub(profile.embedding_bytes);
        moved.host_bytes = point.host_bytes.saturating_add(profile.embedding_bytes);
        moved.choice.residency.host_embedding = true;
        Some(moved)
    }
}
