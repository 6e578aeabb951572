//! The search against trying everything out, and the time of copies and computation against a simulation.

use ir::packing::TernaryLayout::{Tile16, Tile16Base3};
use ir::plan::CallTime;

use super::cost::Times;
use super::*;
use crate::schedule::residency::cut;
use crate::target::Link;

/// A small generator of numbers: the same ones in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }
}

fn profiles(random: &mut Random) -> Vec<Profile> {
    let layers = 1 + random.below(6) as u32;
    let packings = random.pick(&[&[Tile16][..], &[Tile16Base3], &[Tile16, Tile16Base3]]);
    let kvs = random.pick(&[&["bf16"][..], &["bf16", "int4"]]);
    let chunks = random.pick(&[&[64][..], &[64, 512]]);
    let embedding = random.pick(&[0, 500]);
    let mut profiles = Vec::new();
    for &packing in packings {
        for &kv in kvs {
            for &chunk in chunks {
                let tensors: Vec<u64> = (0..1 + random.below(4)).map(|_| 1 + random.below(1000)).collect();
                let mut time = || CallTime { rounds: random.below(3000) * u64::from(layers), rest: random.below(300) };
                let (decode, first) = (time(), time());
                profiles.push(Profile {
                    format: Format { packing, kv: kv.to_owned(), chunk },
                    layers,
                    packed: tensors.iter().map(|bytes| bytes - bytes / 5).collect(),
                    tensors,
                    shared_bytes: embedding + random.below(1000),
                    embedding_bytes: embedding,
                    embedding_row_bytes: 4,
                    state_bytes: random.below(1000),
                    scratch_bytes: random.below(100),
                    decode,
                    first,
                    first_calls: 1 + random.below(3) as u32,
                    prompt: 100,
                    sequences: 1,
                });
            }
        }
    }
    profiles
}

fn offers(random: &mut Random) -> Offers {
    Offers {
        streaming: random.below(5) != 0,
        splits: random.pick(&[&[1][..], &[1, 2], &[1, 2, 4]]).to_vec(),
        slots: random.pick(&[&[1][..], &[2], &[1, 2, 3], &[2, 8]]).to_vec(),
        sources: random.pick(&[&[Tier::Host][..], &[Tier::Disk], &[Tier::Host, Tier::Disk]]).to_vec(),
        packs_copies: random.below(2) == 0,
        host_embedding: random.below(2) == 0,
        mixed_packing: random.below(2) == 0,
    }
}

/// Time of a token, time to the first, bytes of the device, bytes of the host: of every schedule, one by one.
fn everything(profiles: &[Profile], offers: &Offers, link: Link) -> Vec<[u64; 4]> {
    let mut points = Vec::new();
    for stay in profiles {
        for moved in profiles {
            let (one, other) = (&stay.format, &moved.format);
            if (&one.kv, one.chunk) != (&other.kv, other.chunk) || one.packing != other.packing && !offers.mixed_packing
            {
                continue;
            }
            for streamed in 0..=if offers.streaming { stay.layers } else { 0 } {
                for &split in &offers.splits {
                    for &slots in &offers.slots {
                        for &source in &offers.sources {
                            if 0 < streamed && slots < Residency::least_slots(split) {
                                continue;
                            }
                            for on_host in [false, true] {
                                if on_host && (!offers.host_embedding || stay.embedding_bytes == 0) {
                                    continue;
                                }
                                for packs in [false, true] {
                                    if !packs || offers.packs_copies && offers.streaming && source == Tier::Host {
                                        let how = (split, slots, source, packs);
                                        points.push(one_point(stay, moved, streamed, how, on_host, link));
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    points
}

fn one_point(
    stay: &Profile,
    moved: &Profile,
    streamed: u32,
    (split, slots, source, packs): (u32, u32, Tier, bool),
    on_host: bool,
    link: Link,
) -> [u64; 4] {
    let layer: u64 = moved.tensors.iter().sum();
    let packed: u64 = parcels(moved, split).iter().sum();
    let copied = if packs { packed } else { layer };
    let kept = u64::from(stay.layers - streamed);
    // Pieces go to slots in turn.
    let pieces: Vec<u64> = (0..streamed).flat_map(|_| cut(&moved.tensors, split)).collect();
    let largest = |slot: u32| pieces.iter().skip(slot as usize).step_by(slots as usize).max().copied().unwrap_or(0);
    let slot_bytes: u64 = (0..slots).map(largest).sum();
    let piece_bytes = pieces.iter().max().copied().unwrap_or(0);
    let time = |of_stay: CallTime, of_moved: CallTime, calls: u64| {
        let times = Times {
            stay: kept * (of_stay.rounds / u64::from(stay.layers)),
            streamed: u64::from(streamed) * (of_moved.rounds / u64::from(stay.layers)),
            rest: of_stay.rest,
            copied_bytes: copied * u64::from(streamed) * calls,
            copied_layers: u64::from(streamed) * calls,
        };
        let rate = if source == Tier::Host { link.host_gb_per_s } else { link.disk_gb_per_s };
        times.nanoseconds(split, slots, rate, if packs { link.parcel_us } else { link.copy_us })
    };
    let calls = u64::from(moved.first_calls);
    let mut point = [
        time(stay.decode, moved.decode, 1),
        time(stay.first, moved.first, calls),
        stay.shared_bytes
            + kept * stay.tensors.iter().sum::<u64>()
            + slot_bytes
            + if packs && 0 < streamed { 2 * parcels(moved, split).into_iter().max().unwrap_or(0) } else { 0 }
            + stay.state_bytes
            + stay.scratch_bytes,
        if source == Tier::Host { u64::from(streamed) * copied } else { 3 * piece_bytes },
    ];
    if on_host {
        let gather =
            |rows: f64, calls: f64| (rows * 4.0 / link.host_gb_per_s + calls * link.copy_us * 1e3).round() as u64;
        point[0] += gather(1.0, 1.0);
        point[1] += gather(100.0, f64::from(stay.first_calls));
        point[2] -= stay.embedding_bytes;
        point[3] += stay.embedding_bytes;
    }
    point
}

/// Bytes of the parcels of a layer.
fn parcels(profile: &Profile, split: u32) -> Vec<u64> {
    let mut at = 0;
    let parcel = |piece: u64| {
        let start = at;
        while profile.tensors[start..at].iter().sum::<u64>() < piece {
            at += 1;
        }
        (1024 + profile.packed[start..at].iter().sum::<u64>()).div_ceil(64) * 64
    };
    cut(&profile.tensors, split).into_iter().map(parcel).collect()
}

#[test]
fn the_front_is_that_of_trying_everything() {
    let mut random = Random(1);
    let (mut largest, mut streamed) = (0, 0);
    for round in 0..300 {
        let (profiles, offers) = (profiles(&mut random), offers(&mut random));
        // Times of calls fall below the copies', are like them, or above.
        let link = Link {
            host_gb_per_s: random.pick(&[0.1, 1.0, 10.0]),
            disk_gb_per_s: 0.05,
            copy_us: random.pick(&[0.0, 0.01]),
            parcel_us: random.pick(&[0.0, 0.02]),
            is_shared: false,
        };
        let (front, report) = search(&profiles, &offers, link);
        assert!(report.is_exact, "{report}");
        let all = everything(&profiles, &offers, link);
        let is_better = |one: &[u64; 4], other: &[u64; 4]| one != other && one.iter().zip(other).all(|(a, b)| a <= b);
        let mut wanted: Vec<[u64; 4]> =
            all.iter().filter(|point| !all.iter().any(|other| is_better(other, point))).copied().collect();
        wanted.sort_unstable();
        wanted.dedup();
        let found: Vec<[u64; 4]> = front
            .points()
            .iter()
            .map(|point| [point.token_ns, point.first_ns, point.device_bytes, point.host_bytes])
            .collect();
        assert_eq!(found, wanted, "round {round}: {offers:?}\n{report}");
        largest = largest.max(found.len());
        streamed += usize::from(front.points().iter().any(|point| 0 < point.choice.residency.streamed));
    }
    assert!(10 < largest && 100 < streamed, "the instances are too simple: {largest}, {streamed}");
}

/// Nanoseconds a call in the long run, with layers streamed in the order of the plan: each piece copied when its slot is free, computed when it is there.
fn simulate(layers: u32, streamed: u32, split: u32, slots: u32, copy: f64, compute: f64) -> f64 {
    let (mut link_free, mut device_free) = (0.0_f64, 0.0_f64);
    let mut ends: Vec<f64> = Vec::new();
    let mut calls = Vec::new();
    for _ in 0..12 {
        for layer in 0..layers {
            // Evenly among those that stay.
            let is_streamed = (layer + 1) * streamed / layers != layer * streamed / layers;
            if !is_streamed {
                device_free += compute;
                continue;
            }
            for _ in 0..split {
                let slot_free = ends.len().checked_sub(slots as usize).map_or(0.0, |earlier| ends[earlier]);
                link_free = link_free.max(slot_free) + copy / f64::from(split);
                device_free = device_free.max(link_free) + compute / f64::from(split);
                ends.push(device_free);
            }
        }
        calls.push(device_free);
    }
    (calls[11] - calls[3]) / 8.0
}

#[test]
fn times_are_those_of_a_simulation() {
    let mut worst: f64 = 0.0;
    for (layers, streamed) in [(80, 80), (80, 40), (80, 20), (80, 60), (30, 7), (12, 5), (80, 1)] {
        for split in [1, 2, 4, 8] {
            for slots in [2, 3, 4, 6, 8] {
                for copy in [300.0, 1_000.0, 4_000.0, 40_000.0] {
                    let compute = 1_000.0;
                    let simulated = simulate(layers, streamed, split, slots, copy, compute);
                    let times = Times {
                        stay: u64::from(layers - streamed) * 1_000,
                        streamed: u64::from(streamed) * 1_000,
                        rest: 0,
                        copied_bytes: u64::from(streamed) * copy as u64,
                        copied_layers: u64::from(streamed),
                    };
                    let predicted = times.nanoseconds(split, slots, 1.0, 0.0) as f64;
                    let error = predicted / simulated - 1.0;
                    if worst.abs() < error.abs() {
                        worst = error;
                        println!("{layers} {streamed} {split} {slots} {copy}: {predicted} {simulated}");
                    }
                }
            }
        }
    }
    // Gaps between streamed layers differ by one where their number does not divide that of all; the formula takes them to be equal.
    assert!(worst.abs() < 0.06, "{worst}");
}

#[test]
fn a_program_without_layers_or_formats_has_a_front() {
    let link = Link { host_gb_per_s: 1.0, disk_gb_per_s: 1.0, copy_us: 1.0, parcel_us: 1.0, is_shared: false };
    let (front, report) = search(&[], &Offers::resident(), link);
    assert!(front.points().is_empty() && report.is_exact);
    let mut random = Random(7);
    let profile = Profile { layers: 0, tensors: Vec::new(), ..profiles(&mut random).remove(0) };
    let (front, _) = search(&[profile], &Offers::streaming(vec![Tier::Host]), link);
    assert!(!front.points().is_empty());
}

#[test]
fn a_budget_takes_the_fastest_point_within_it_or_names_the_least() {
    let mut random = Random(3);
    let profiles = profiles(&mut random);
    let link = Link { host_gb_per_s: 1.0, disk_gb_per_s: 0.05, copy_us: 0.0, parcel_us: 0.0, is_shared: false };
    let offers = Offers::streaming(vec![Tier::Host]);
    let (front, _) = search(&profiles, &offers, link);
    let least = front.points().iter().map(|point| point.device_bytes).min().unwrap();
    for device_bytes in (0..20_000).step_by(250) {
        let limits = Limits { device_bytes, driver_bytes: 500, host_bytes: 3_000 };
        let within = front.points().iter().filter(|point| limits.hold(point));
        let time = |point: &Point| point.first_ns + 100 * point.token_ns;
        match (choose(&profiles, &offers, link, limits), within.map(time).min()) {
            (Ok(found), Some(fastest)) => {
                assert!(time(&found.point) == fastest && limits.hold(&found.point));
            }
            (Err(refusal), None) => assert!(least <= refusal.least.unwrap().device_bytes),
            (found, fastest) => panic!("{device_bytes}: {found:?} but {fastest:?}"),
        }
    }
}
