//! What lies where and when: for each phase the part of the slab that changes hands, over the steps of a call, under what stays in its place.

use std::collections::BTreeMap;

use ir::entity::Id;
use ir::plan::{Arg, Buffer, BufferId, Plan, Role, Step};

use super::call::PhaseCall;
use super::markup::{Attributes, Markup, Px, shortened};
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
    let all = plan.buffers.iter().enumerate().map(|(index, buffer)| (BufferId::new(index), buffer));
    let scratch: Vec<Placed<'_>> = all
        .filter(|(_, buffer)| buffer.role == Role::Scratch(call.index))
        .filter_map(|(id, buffer)| Some(Placed { id, buffer, life: *lives.get(&id)? }))
        .collect();
    let ruler = Ruler::new(&scratch);
    out.element("p", &[("class", &"lead")], |out| {
        let sum = scratch.iter().map(|placed| placed.buffer.bytes).fold(0, u64::saturating_add);
        out.leaf("strong", &[], human_bytes(ruler.end() - ruler.start()));
        out.text(format!(" of scratch hold {} buffers of {} in all, because ", scratch.len(), human_bytes(sum)));
        out.text("what is no longer read makes room. Heights go by square roots of bytes, so that small buffers can be seen.");
    });
    let of_role = |class: &str| -> Vec<&Buffer> {
        plan.buffers.iter().filter(|buffer| role_class(buffer.role) == class).collect()
    };
    let bands = BANDS.iter().map(|&(class, label)| (class, label, of_role(class)));
    let bands: Vec<_> = bands.filter(|(_, _, buffers)| !buffers.is_empty()).collect();
    let top = bands.len() as f64 * (BAND + 3.0) + 8.0;
    let columns = Columns { width: (WIDTH - LEFT - RIGHT) / call.end.max(1) as f64 };
    let view = format!("0 0 {} {}", Px(WIDTH), Px(top + ruler.height() + NAMES));
    let attributes: Attributes<'_> =
        &[("class", &"memory"), ("viewBox", &view), ("role", &"img"), ("aria-label", &"memory map")];
    out.element("svg", attributes, |out| {
        for (at, (class, label, buffers)) in bands.iter().enumerate() {
            band(out, plan, (class, label), buffers, at as f64 * (BAND + 3.0));
        }
        out.element("g", &[("transform", &format!("translate(0 {})", Px(top)))], |out| {
            arena(out, call, &scratch, &ruler, columns);
            steps(out, call, ruler.height() + 14.0, columns);
        });
    });
    table(out, plan, call, &lives, &scratch);
}

/// A scratch buffer and when it is used.
#[derive(Clone, Copy)]
struct Placed<'a> {
    id: BufferId,
    buffer: &'a Buffer,
    life: Lifetime,
}

impl Placed<'_> {
    fn end(&self) -> u64 {
        self.buffer.offset.saturating_add(self.buffer.bytes)
    }
}

/// Where times are: `t` is the column from `t - 1` to `t`.
#[derive(Clone, Copy)]
struct Columns {
    width: f64,
}

impl Columns {
    fn x(self, time: usize) -> f64 {
        LEFT + (time as f64 - 1.0) * self.width
    }
}

/// Where addresses are: between two at which buffers start or end, by the square root of the bytes between them.
struct Ruler {
    /// In ascending order.
    addresses: Vec<u64>,
    /// Where each is.
    places: Vec<f64>,
}

impl Ruler {
    fn new(scratch: &[Placed<'_>]) -> Self {
        let mut addresses: Vec<u64> = scratch.iter().flat_map(|placed| [placed.buffer.offset, placed.end()]).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let mut places = Vec::new();
        let mut place = 0.0;
        for (at, address) in addresses.iter().enumerate() {
            if let Some(before) = at.checked_sub(1) {
                place += ((address - addresses[before]) as f64).sqrt();
            }
            places.push(place);
        }
        let scale = if place == 0.0 { 0.0 } else { ARENA / place };
        places.iter_mut().for_each(|place| *place *= scale);
        Self { addresses, places }
    }

    fn start(&self) -> u64 {
        self.addresses.first().copied().unwrap_or(0)
    }

    fn end(&self) -> u64 {
        self.addresses.last().copied().unwrap_or(0)
    }

    fn height(&self) -> f64 {
        self.places.last().copied().unwrap_or(0.0)
    }

    /// Where an address is at which a buffer starts or ends.
    fn y(&self, address: u64) -> f64 {
        self.addresses.binary_search(&address).map_or(0.0, |at| self.places[at])
    }

    /// The addresses to be named: as many as there is room for.
    fn marks(&self) -> Vec<(u64, f64)> {
        let mut marks: Vec<(u64, f64)> = Vec::new();
        for (&address, &place) in self.addresses.iter().zip(&self.places) {
            if marks.last().is_none_or(|(_, last)| last + 15.0 <= place) {
                marks.push((address, place));
            }
        }
        marks
    }
}

/// The scratch buffers over the steps that they live in.
fn arena(out: &mut Markup, call: &PhaseCall<'_>, scratch: &[Placed<'_>], ruler: &Ruler, columns: Columns) {
    for rounds in &call.repeats {
        let (left, right) = (columns.x(rounds.times.0), columns.x(rounds.times.1 + 1));
        let attributes: Attributes<'_> = &[
            ("class", &"repeat"),
            ("x", &Px(left)),
            ("y", &"-4"),
            ("width", &Px(right - left)),
            ("height", &Px(ruler.height() + 8.0)),
        ];
        out.shape("rect", attributes, format!("{} rounds", rounds.count));
    }
    for (address, y) in ruler.marks() {
        let (left, right, at) = (Px(LEFT), Px(columns.x(call.end + 1)), Px(y));
        out.empty("line", &[("class", &"grid"), ("x1", &left), ("x2", &right), ("y1", &at), ("y2", &at)]);
        let text = format!("+{}", human_bytes(address - ruler.start()));
        out.leaf("text", &[("class", &"address"), ("x", &Px(LEFT - 8.0)), ("y", &Px(y + 4.0))], text);
    }
    for placed in scratch {
        let Placed { id, buffer, life } = placed;
        let (left, right) = (columns.x(life.first) + 0.5, columns.x(life.last + 1) - 0.5);
        let (high, low) = (ruler.y(buffer.offset), ruler.y(placed.end()));
        let height = (low - high - 0.5).max(0.8);
        let attributes: Attributes<'_> = &[
            ("class", &format!("scratch hue{}", id.index() % 6)),
            ("x", &Px(left)),
            ("y", &Px(high)),
            ("width", &Px(right - left)),
            ("height", &Px(height)),
        ];
        out.shape("rect", attributes, describe(*id, buffer, Some((call, life))));
        let fits = ((right - left - 8.0) / 6.7).max(0.0) as usize;
        if 13.0 <= height && 4 <= fits {
            let (tx, ty) = (Px(left + 4.0), Px(high + height.min(18.0) / 2.0 + 4.0));
            let name = shortened(without_graph(&buffer.name), fits);
            out.leaf("text", &[("class", &"in-bar"), ("x", &tx), ("y", &ty)], name);
        }
    }
}

/// What runs in each column, below it.
fn steps(out: &mut Markup, call: &PhaseCall<'_>, y: f64, columns: Columns) {
    for launch in &call.launches {
        let x = columns.x(launch.time) + columns.width / 2.0 - 3.0;
        let turn = format!("translate({} {}) rotate(50)", Px(x), Px(y));
        out.element("text", &[("class", &"step"), ("transform", &turn)], |out| {
            out.leaf("title", &[], launch.describe());
            out.text(shortened(&format!("{} {}", launch.time, without_graph(launch.name)), 24));
        });
    }
}

/// A name within its graph.
fn without_graph(name: &str) -> &str {
    name.split_once('.').map_or(name, |(_, name)| name)
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
        let attributes: Attributes<'_> = &[
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
    scratch: &[Placed<'_>],
) {
    let kept = plan.buffers.iter().enumerate().filter(|(_, buffer)| !matches!(buffer.role, Role::Scratch(_)));
    let kept = kept.map(|(index, buffer)| (BufferId::new(index), buffer));
    let all: Vec<(BufferId, &Buffer)> = kept.chain(scratch.iter().map(|placed| (placed.id, placed.buffer))).collect();
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
