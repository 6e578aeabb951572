//! What lies where and when: for each phase the part of the slab that changes hands, over the steps of a call, under what stays in its place.

use std::collections::BTreeMap;

use ir::entity::Id;
use ir::plan::{Arg, Buffer, BufferId, Plan, Role, Step};

use super::call::{Launch, PhaseCall};
use super::markup::{Markup, Px, shortened};
use crate::report::human_bytes;
use crate::schedule::memory::{Lifetime, lifetimes};

const WIDTH: f64 = 1240.0;
/// Room for addresses.
const LEFT: f64 = 84.0;
/// Height of what stays, for each role.
const BAND: f64 = 22.0;
/// Height of the part that is drawn to scale.
const ARENA: f64 = 360.0;
/// Room for the names of steps.
const NAMES: f64 = 132.0;
/// Room at the right for the last step's name, which leans that way.
const RIGHT: f64 = 96.0;

/// What a role is called, in the order in which the slab has them; weights come first, scratch is drawn apart.
const BANDS: [(&str, &str); 5] =
    [("weight", "weights"), ("slots", "slots"), ("state", "caches"), ("input", "inputs"), ("output", "outputs")];

fn role_class(role: Role) -> &'static str {
    match role {
        Role::Weight => "weight",
        Role::State => "state",
        Role::Input => "input",
        Role::Output => "output",
        Role::Slots => "slots",
        Role::Scratch(_) => "scratch",
    }
}

/// The memory map of a phase.
pub(super) fn map(out: &mut Markup, plan: &Plan, call: &PhaseCall<'_>) {
    let lives = lifetimes(&call.phase.steps);
    let is_here = |buffer: &Buffer| buffer.role == Role::Scratch(call.index);
    let scratch: Vec<(BufferId, &Buffer)> = plan
        .buffers
        .iter()
        .enumerate()
        .filter(|(_, buffer)| is_here(buffer))
        .map(|(index, buffer)| (BufferId::new(index), buffer))
        .collect();
    let start = scratch.iter().map(|(_, buffer)| buffer.offset).min().unwrap_or(0);
    let end = scratch.iter().filter_map(|(_, buffer)| buffer.end()).max().unwrap_or(start);
    out.element("p", &[("class", &"lead")], |out| {
        out.leaf("strong", &[], human_bytes(end - start));
        let n = scratch.len();
        let sum = scratch.iter().map(|(_, buffer)| buffer.bytes).fold(0, u64::saturating_add);
        out.text(format!(" of scratch hold {n} buffers of {} in all, because ", human_bytes(sum)));
        out.text("what is no longer read makes room. Bands above are not to scale.");
    });
    let bands: Vec<(&str, &str, Vec<&Buffer>)> = BANDS
        .iter()
        .map(|&(class, label)| {
            (class, label, plan.buffers.iter().filter(|buffer| role_class(buffer.role) == class).collect())
        })
        .filter(|(_, _, buffers): &(_, _, Vec<&Buffer>)| !buffers.is_empty())
        .collect();
    let top = bands.len() as f64 * (BAND + 3.0) + 8.0;
    let arena = if scratch.is_empty() { 0.0 } else { ARENA };
    let scale_x = (WIDTH - LEFT - RIGHT) / (call.end.max(1) as f64);
    // Time `t` is the column from `t - 1` to `t`.
    let x = |time: usize| LEFT + (time as f64 - 1.0) * scale_x;
    let y = |address: u64| top + (address.saturating_sub(start)) as f64 / (end - start).max(1) as f64 * arena;
    let view = format!("0 0 {} {}", Px(WIDTH), Px(top + arena + NAMES));
    let attributes: super::markup::Attributes<'_> =
        &[("class", &"memory"), ("viewBox", &view), ("role", &"img"), ("aria-label", &"memory map")];
    out.element("svg", attributes, |out| {
        for (at, (class, label, buffers)) in bands.iter().enumerate() {
            band(out, plan, (class, label), buffers, at as f64 * (BAND + 3.0));
        }
        for rounds in &call.repeats {
            let (left, right) = (x(rounds.times.0), x(rounds.times.1 + 1));
            let attributes: super::markup::Attributes<'_> = &[
                ("class", &"repeat"),
                ("x", &Px(left)),
                ("y", &Px(top - 4.0)),
                ("width", &Px(right - left)),
                ("height", &Px(arena + 8.0)),
            ];
            out.shape("rect", attributes, format!("{} rounds", rounds.count));
        }
        for part in 0..=4 {
            let address = start + (end - start) / 4 * part;
            let at = Px(y(address));
            out.empty(
                "line",
                &[("class", &"grid"), ("x1", &Px(LEFT)), ("x2", &Px(x(call.end + 1))), ("y1", &at), ("y2", &at)],
            );
            let text = format!("+{}", human_bytes(address - start));
            out.leaf("text", &[("class", &"address"), ("x", &Px(LEFT - 8.0)), ("y", &Px(y(address) + 4.0))], text);
        }
        for (id, buffer) in &scratch {
            let Some(life) = lives.get(id) else { continue };
            let (left, right) = (x(life.first) + 0.5, x(life.last + 1) - 0.5);
            let (high, low) = (y(buffer.offset), y(buffer.offset.saturating_add(buffer.bytes)));
            let height = (low - high - 0.5).max(0.8);
            let attributes: super::markup::Attributes<'_> = &[
                ("class", &format!("scratch hue{}", id.index() % 6)),
                ("x", &Px(left)),
                ("y", &Px(high)),
                ("width", &Px(right - left)),
                ("height", &Px(height)),
            ];
            out.shape("rect", attributes, describe(*id, buffer, Some((call, life))));
            let fits = ((right - left - 8.0) / 6.3).max(0.0) as usize;
            if 14.0 <= height && 4 <= fits {
                let name = buffer.name.split_once('.').map_or(buffer.name.as_str(), |(_, name)| name);
                let (tx, ty) = (Px(left + 4.0), Px(high + height.min(18.0) / 2.0 + 4.0));
                out.leaf("text", &[("class", &"in-bar"), ("x", &tx), ("y", &ty)], shortened(name, fits));
            }
        }
        for launch in &call.launches {
            let (at, below) = (x(launch.time) + scale_x / 2.0, top + arena + 14.0);
            let turn = format!("translate({} {}) rotate(50)", Px(at - 3.0), Px(below));
            let text = format!("{} {}", launch.time, short_name(launch));
            out.element("text", &[("class", &"step"), ("transform", &turn)], |out| {
                out.leaf("title", &[], launch.describe());
                out.text(shortened(&text, 24));
            });
        }
    });
    table(out, plan, call, &lives, &scratch);
}

fn short_name<'a>(launch: &Launch<'a>) -> &'a str {
    launch.name.split_once('.').map_or(launch.name, |(_, name)| name)
}

/// What stays in its place: all buffers of a role, each as wide as its share.
fn band(out: &mut Markup, plan: &Plan, (class, label): (&str, &str), buffers: &[&Buffer], y: f64) {
    let bytes = |buffer: &Buffer| buffer.bytes.saturating_mul(u64::from(buffer.rounds.max(1)));
    let total = buffers.iter().map(|buffer| bytes(buffer)).fold(0, u64::saturating_add);
    out.leaf("text", &[("class", &"address"), ("x", &Px(LEFT - 8.0)), ("y", &Px(y + BAND / 2.0 + 4.0))], label);
    let room = WIDTH - LEFT - RIGHT;
    let mut left = LEFT;
    for buffer in buffers {
        let width = bytes(buffer) as f64 / total.max(1) as f64 * room;
        let id = plan.buffers.iter().position(|other| std::ptr::eq(other, *buffer)).unwrap_or(0);
        let attributes: super::markup::Attributes<'_> = &[
            ("class", &class),
            ("x", &Px(left)),
            ("y", &Px(y)),
            ("width", &Px((width - 0.6).max(0.4))),
            ("height", &Px(BAND)),
        ];
        out.shape("rect", attributes, describe(BufferId::new(id), buffer, None));
        left += width;
    }
    let text = format!(
        "{} in {} {}",
        human_bytes(total),
        buffers.len(),
        if buffers.len() == 1 { "buffer" } else { "buffers" }
    );
    out.leaf("text", &[("class", &"over-band"), ("x", &Px(LEFT + 7.0)), ("y", &Px(y + BAND / 2.0 + 4.0))], text);
}

fn describe(id: BufferId, buffer: &Buffer, life: Option<(&PhaseCall<'_>, &Lifetime)>) -> String {
    let Buffer { name, offset, bytes, rounds, .. } = buffer;
    let space = if buffer.role == Role::Weight { "of the weights" } else { "of the slab" };
    let mut text = format!("{name} ({id})\n{} at byte {offset} {space}", human_bytes(*bytes));
    if 1 < *rounds {
        text += &format!(
            "\none for each of {rounds} rounds, {} in all",
            human_bytes(bytes.saturating_mul(u64::from(*rounds)))
        );
    }
    if let Some((call, life)) = life {
        text += &format!("\nfrom {} to {}", step_name(call, life.first), step_name(call, life.last));
    }
    text
}

/// What runs at a time.
fn step_name(call: &PhaseCall<'_>, time: usize) -> String {
    match call.launches.iter().find(|launch| launch.time == time) {
        Some(launch) => format!("step {time}, {}", launch.name),
        None => match call.repeats.iter().find(|rounds| rounds.times.0 == time) {
            Some(_) => format!("step {time}, before the first round"),
            None => format!("step {time}, after the last round"),
        },
    }
}

/// Every buffer that the phase uses, for whoever does not point at drawings.
fn table(
    out: &mut Markup,
    plan: &Plan,
    call: &PhaseCall<'_>,
    lives: &BTreeMap<BufferId, Lifetime>,
    scratch: &[(BufferId, &Buffer)],
) {
    let kept = plan.buffers.iter().enumerate().filter(|(_, buffer)| !matches!(buffer.role, Role::Scratch(_)));
    let kept = kept.map(|(index, buffer)| (BufferId::new(index), buffer));
    let all: Vec<(BufferId, &Buffer)> = kept.chain(scratch.iter().copied()).collect();
    let accesses = accesses(call);
    out.element("details", &[], |out| {
        out.leaf("summary", &[], format!("All {} buffers of this phase", all.len()));
        out.element("table", &[("class", &"buffers")], |out| {
            out.element("tr", &[], |out| {
                for head in ["buffer", "name", "role", "bytes", "rounds", "offset", "first step", "last step", "uses"] {
                    out.leaf("th", &[], head);
                }
            });
            for (id, buffer) in all {
                let life = lives.get(&id);
                let time = |time: Option<usize>| time.map_or_else(|| "–".to_owned(), |time| time.to_string());
                out.element("tr", &[], |out| {
                    out.leaf("td", &[], id);
                    out.leaf("td", &[], &buffer.name);
                    out.element("td", &[], |out| {
                        out.element("i", &[("class", &format!("dot {}", role_class(buffer.role)))], |_| {});
                        out.text(role_class(buffer.role));
                    });
                    for number in [
                        human_bytes(buffer.bytes),
                        buffer.rounds.max(1).to_string(),
                        buffer.offset.to_string(),
                        time(life.map(|life| life.first)),
                        time(life.map(|life| life.last)),
                        accesses.get(&id).copied().unwrap_or(0).to_string(),
                    ] {
                        out.leaf("td", &[("class", &"number")], number);
                    }
                });
            }
        });
    });
}

/// How many launches use each buffer.
fn accesses(call: &PhaseCall<'_>) -> BTreeMap<BufferId, usize> {
    let mut counts = BTreeMap::new();
    for launch in &call.launches {
        let args: Vec<&Arg> = match launch.step {
            Step::Call(call) => call.args.iter().collect(),
            Step::Copy { from, to, .. } => vec![from, to],
            Step::Repeat { .. } => Vec::new(),
        };
        let mut buffers: Vec<BufferId> = args.iter().map(|arg| arg.buffer).collect();
        buffers.sort_unstable();
        buffers.dedup();
        buffers.into_iter().for_each(|buffer| *counts.entry(buffer).or_insert(0) += 1);
    }
    counts
}
