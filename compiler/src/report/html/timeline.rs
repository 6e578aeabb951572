//! When what runs in a call: launches in one lane, copies of streamed weights in another, and one layer enlarged.

use ir::plan::placement::{self, Cycle};
use ir::plan::{Machine, Plan};

use super::call::{Launch, Nature, PhaseCall};
use super::markup::{Markup, Px, human_count, human_ns, percent, shortened};
use crate::report::human_bytes;

/// Width of drawings, and of the names of lanes beside them.
const WIDTH: f64 = 1240.0;
const LEFT: f64 = 84.0;
/// Heights of a lane, and between lanes.
const LANE: f64 = 34.0;
const GAP: f64 = 10.0;
/// Room for the axis.
const AXIS: f64 = 26.0;
/// Calls that are simulated before the one that is shown: copies run across the ends of calls, and after the first one each finds what the one before
/// it left.
const WARM_CALLS: usize = 2;

/// What the device does between two times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    /// The position of the launch.
    launch: usize,
    round: u32,
    start: u64,
    end: u64,
    /// Whether it only waits for weights.
    is_wait: bool,
}

/// A piece on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Copied {
    piece: usize,
    slot: usize,
    bytes: u64,
    /// How long it takes, in the call or not.
    ns: u64,
    start: u64,
    end: u64,
}

/// One call among others like it, in nanoseconds from its start. Copies may begin before it or end after it.
#[derive(Debug)]
struct Simulated {
    spans: Vec<Span>,
    copies: Vec<Copied>,
    end: u64,
}

impl Simulated {
    fn wait_ns(&self) -> u64 {
        self.spans.iter().filter(|span| span.is_wait).map(|span| span.end - span.start).sum()
    }

    /// How long the link is busy within the call.
    fn copy_ns(&self) -> u64 {
        self.copies.iter().map(|copy| copy.end.min(self.end).saturating_sub(copy.start)).sum()
    }
}

/// Runs calls one after another: a piece is copied when its slot is free and the link is, and read when it is there. The [`Cycle`] is the one that the
/// runtime follows.
fn simulate(plan: &Plan, call: &PhaseCall<'_>) -> Simulated {
    let numbers = plan.placement.piece_numbers();
    let pieces: Vec<u64> = plan.placement.copied_bytes().collect();
    let order = in_order(call);
    let reads: Vec<Vec<usize>> = order
        .iter()
        .map(|&(launch, round)| placement::pieces_of(plan, &numbers, call.launches[launch].step, round.into()))
        .collect();
    let mut last_reads = vec![None; pieces.len()];
    reads.iter().enumerate().for_each(|(at, reads)| reads.iter().for_each(|&piece| last_reads[piece] = Some(at)));

    let mut cycle = Cycle::new(&plan.placement);
    let mut link =
        Link { pieces: &pieces, machine: plan.machine, free: 0, arrival: vec![0; pieces.len()], copies: Vec::new() };
    link.fill(&mut cycle, 0);
    let (mut now, mut start, mut spans) = (0_u64, 0, Vec::new());
    for _ in 0..=WARM_CALLS {
        (start, spans) = (now, Vec::new());
        link.copies.retain(|copy| start < copy.end);
        for (at, (&(launch, round), reads)) in order.iter().zip(&reads).enumerate() {
            let ready = reads.iter().map(|&piece| link.arrival[piece]).max().unwrap_or(0);
            if now < ready {
                spans.push(Span { launch, round, start: now - start, end: ready - start, is_wait: true });
                now = ready;
            }
            let end = now.saturating_add(call.launches[launch].ns);
            spans.push(Span { launch, round, start: now - start, end: end - start, is_wait: false });
            now = end;
            for &piece in reads.iter().filter(|&&piece| last_reads[piece] == Some(at)) {
                cycle.release(piece);
                link.fill(&mut cycle, now);
            }
        }
    }
    let copies = link.copies.into_iter().filter(|copy| copy.start < now);
    let shifted =
        |copy: Copied| Copied { start: copy.start.saturating_sub(start), end: copy.end.saturating_sub(start), ..copy };
    Simulated { spans, copies: copies.map(shifted).collect(), end: now - start }
}

/// Launches and their rounds in the order in which they run.
fn in_order(call: &PhaseCall<'_>) -> Vec<(usize, u32)> {
    let mut order = Vec::new();
    let mut at = 0;
    while at < call.launches.len() {
        let Some(repeat) = call.launches[at].repeat else {
            order.push((at, 0));
            at += 1;
            continue;
        };
        let rounds = &call.repeats[repeat];
        let launches = rounds.launches.0..rounds.launches.1;
        order.extend((0..rounds.count).flat_map(|round| launches.clone().map(move |launch| (launch, round))));
        at = rounds.launches.1;
    }
    order
}

/// What copies pieces, one after another.
struct Link<'a> {
    pieces: &'a [u64],
    machine: Machine,
    /// When it is done with all that it was given.
    free: u64,
    /// When each piece was there last.
    arrival: Vec<u64>,
    copies: Vec<Copied>,
}

impl Link<'_> {
    /// Copies all pieces whose slots are free.
    fn fill(&mut self, cycle: &mut Cycle, now: u64) {
        while let Some(piece) = cycle.copy_next() {
            let bytes = self.pieces[piece];
            let start = self.free.max(now);
            let time = self.machine.copy_time(bytes);
            self.free = start.saturating_add(time);
            self.arrival[piece] = self.free;
            self.copies.push(Copied { piece, slot: cycle.slot(piece), bytes, ns: time, start, end: self.free });
        }
    }
}

/// Nanoseconds of a call among others like it, with the waits for streamed weights.
pub(super) fn call_ns(plan: &Plan, call: &PhaseCall<'_>) -> u64 {
    simulate(plan, call).end
}

/// The timeline of a call.
pub(super) fn timeline(out: &mut Markup, plan: &Plan, call: &PhaseCall<'_>) {
    let simulated = simulate(plan, call);
    summary(out, plan, call, &simulated);
    legend(out, !simulated.copies.is_empty());
    whole(out, call, &simulated);
    for at in 0..call.repeats.len() {
        round(out, call, at);
    }
    table(out, call);
}

fn summary(out: &mut Markup, plan: &Plan, call: &PhaseCall<'_>, simulated: &Simulated) {
    out.element("p", &[("class", &"lead")], |out| {
        out.leaf("strong", &[], human_ns(simulated.end));
        out.text(format!(" for a call of {}: ", call.describe()));
        let tokens_per_s = call.sizes.call.tokens as f64 / simulated.end.max(1) as f64 * 1e9;
        out.text(format!(
            "{} launches, {} tokens a second predicted. ",
            call.total_launches(),
            super::markup::three_digits(tokens_per_s)
        ));
        if simulated.copies.is_empty() {
            return;
        }
        let streamed = plan.placement.streamed_bytes();
        out.text(format!(
            "{} are copied in {}; the link is busy {} of the time, and launches wait for weights {} of it.",
            human_bytes(streamed),
            human_ns(plan.copy_ns()),
            percent(simulated.copy_ns(), simulated.end),
            percent(simulated.wait_ns(), simulated.end)
        ));
    });
}

fn legend(out: &mut Markup, is_streamed: bool) {
    out.element("ul", &[("class", &"legend")], |out| {
        for nature in Nature::ALL {
            out.element("li", &[], |out| {
                out.element("i", &[("class", &nature.class())], |_| {});
                out.text(nature.label());
            });
        }
        if is_streamed {
            for (class, label) in [("stream", "weights on their way to a slot"), ("wait", "waiting for weights")] {
                out.element("li", &[], |out| {
                    out.element("i", &[("class", &class)], |_| {});
                    out.text(label);
                });
            }
        }
    });
}

/// The whole call: what is repeated as one block a round.
fn whole(out: &mut Markup, call: &PhaseCall<'_>, simulated: &Simulated) {
    let scale = (WIDTH - LEFT - 8.0) / simulated.end.max(1) as f64;
    let x = |ns: u64| LEFT + ns as f64 * scale;
    let lanes = if simulated.copies.is_empty() { 1.0 } else { 2.0 };
    let height = lanes * (LANE + GAP) + AXIS;
    svg(out, height, "the whole call", |out| {
        lane_name(out, "compute", 0.0);
        for (block, spans) in blocks(call, simulated) {
            let (start, end) = (spans.first().map_or(0, |span| span.start), spans.last().map_or(0, |span| span.end));
            let busy: u64 = spans.iter().filter(|span| !span.is_wait).map(|span| span.end - span.start).sum();
            let (class, title) = match block {
                Block::Launch(at) => {
                    let launch = &call.launches[at];
                    (launch.nature.class().to_owned(), launch.describe())
                }
                Block::Round(repeat, round) => {
                    let title = format!(
                        "round {round} of {}\n{} of launches\nfrom {} to {}",
                        call.repeats[repeat].count,
                        human_ns(busy),
                        human_ns(start),
                        human_ns(end)
                    );
                    (format!("round{}", if round % 2 == 0 { "" } else { " odd" }), title)
                }
            };
            rect(out, &class, (x(start), 0.0, x(end) - x(start), LANE), &title);
            for wait in spans.iter().filter(|span| span.is_wait) {
                let title = format!(
                    "{} waits {} for weights",
                    call.launches[wait.launch].name,
                    human_ns(wait.end - wait.start)
                );
                rect(out, "wait", (x(wait.start), 0.0, x(wait.end) - x(wait.start), LANE), &title);
            }
        }
        if !simulated.copies.is_empty() {
            lane_name(out, "copies", LANE + GAP);
            for copy in &simulated.copies {
                let (left, right) = (x(copy.start), x(copy.end.min(simulated.end)));
                let title = format!(
                    "piece {} to slot {}\n{} in {}",
                    copy.piece,
                    copy.slot,
                    human_bytes(copy.bytes),
                    human_ns(copy.ns)
                );
                rect(
                    out,
                    if copy.piece % 2 == 0 { "stream" } else { "stream odd" },
                    (left, LANE + GAP, right - left, LANE),
                    &title,
                );
            }
        }
        axis(out, simulated.end, &x, height - AXIS);
    });
}

/// What is one block in the drawing of the whole call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Launch(usize),
    Round(usize, u32),
}

fn blocks<'a>(call: &PhaseCall<'_>, simulated: &'a Simulated) -> Vec<(Block, &'a [Span])> {
    let block = |span: &Span| match call.launches[span.launch].repeat {
        Some(repeat) => Block::Round(repeat, span.round),
        None => Block::Launch(span.launch),
    };
    let chunks = simulated.spans.chunk_by(|left, right| block(left) == block(right));
    chunks.map(|spans| (block(&spans[0]), spans)).collect()
}

/// One round of a repeat, all of its launches.
fn round(out: &mut Markup, call: &PhaseCall<'_>, at: usize) {
    let rounds = call.repeats[at];
    let launches = &call.launches[rounds.launches.0..rounds.launches.1];
    let total = launches.iter().map(|launch| launch.ns).fold(0, u64::saturating_add);
    let scale = (WIDTH - LEFT - 8.0) / total.max(1) as f64;
    let x = |ns: u64| LEFT + ns as f64 * scale;
    out.element("h4", &[], |out| {
        out.text(format!("One round of {}, {} without waits", rounds.count, human_ns(total)));
    });
    svg(out, LANE + GAP + AXIS, "one round", |out| {
        lane_name(out, "compute", 0.0);
        let mut now = 0_u64;
        for launch in launches {
            let (left, width) = (x(now), launch.ns as f64 * scale);
            rect(out, launch.nature.class(), (left, 0.0, width, LANE), &launch.describe());
            let fits = ((width - 8.0) / 6.3).max(0.0) as usize;
            if 4 <= fits {
                let name = launch.name.split_once('.').map_or(launch.name, |(_, name)| name);
                let (tx, ty) = (Px(left + 5.0), Px(LANE / 2.0 + 4.0));
                out.leaf("text", &[("class", &"in-bar"), ("x", &tx), ("y", &ty)], shortened(name, fits));
            }
            now = now.saturating_add(launch.ns);
        }
        axis(out, total, &x, LANE + GAP);
    });
}

fn table(out: &mut Markup, call: &PhaseCall<'_>) {
    let total = call.total_ns();
    out.element("details", &[], |out| {
        out.leaf("summary", &[], format!("All {} steps of this phase", call.launches.len()));
        out.element("table", &[("class", &"steps")], |out| {
            out.element("tr", &[], |out| {
                for head in ["step", "computes", "kernel", "times", "one", "share", "moves", "operations", "bound by"] {
                    out.leaf("th", &[], head);
                }
            });
            for launch in &call.launches {
                row(out, call, launch, total);
            }
        });
    });
}

fn row(out: &mut Markup, call: &PhaseCall<'_>, launch: &Launch<'_>, total: u64) {
    let rounds = call.rounds(launch);
    out.element("tr", &[], |out| {
        out.leaf("td", &[("class", &"number")], launch.time);
        out.element("td", &[], |out| {
            out.element("i", &[("class", &format!("dot {}", launch.nature.class()))], |_| {});
            out.text(launch.name);
        });
        out.element("td", &[], |out| out.leaf("code", &[], launch.kernel));
        let share = percent(launch.ns.saturating_mul(rounds), total);
        for number in
            [rounds.to_string(), human_ns(launch.ns), share, human_bytes(launch.bytes), human_count(launch.work)]
        {
            out.leaf("td", &[("class", &"number")], number);
        }
        out.leaf("td", &[], launch.bound.label());
    });
}

fn svg(out: &mut Markup, height: f64, label: &str, content: impl FnOnce(&mut Markup)) {
    let view = format!("0 0 {} {}", Px(WIDTH), Px(height));
    out.element("svg", &[("class", &"lanes"), ("viewBox", &view), ("role", &"img"), ("aria-label", &label)], content);
}

fn lane_name(out: &mut Markup, name: &str, y: f64) {
    out.leaf("text", &[("class", &"lane"), ("x", &"0"), ("y", &Px(y + LANE / 2.0 + 4.0))], name);
}

fn rect(out: &mut Markup, class: &str, (x, y, width, height): (f64, f64, f64, f64), title: &str) {
    // What is thinner than a line is a line, so that it can be seen.
    let width = width.max(0.6);
    out.shape(
        "rect",
        &[("class", &class), ("x", &Px(x)), ("y", &Px(y)), ("width", &Px(width)), ("height", &Px(height))],
        title,
    );
}

/// Marks at round times, about eight of them.
fn axis(out: &mut Markup, end: u64, x: &dyn Fn(u64) -> f64, y: f64) {
    out.empty("line", &[("class", &"axis"), ("x1", &Px(x(0))), ("x2", &Px(x(end))), ("y1", &Px(y)), ("y2", &Px(y))]);
    for at in marks(end) {
        let place = Px(x(at));
        out.empty("line", &[("class", &"axis"), ("x1", &place), ("x2", &place), ("y1", &Px(y)), ("y2", &Px(y + 4.0))]);
        let text = if at == 0 { "0".to_owned() } else { human_ns(at) };
        out.leaf("text", &[("class", &"mark"), ("x", &place), ("y", &Px(y + 17.0))], text);
    }
}

/// Multiples of 1, 2 or 5 times a power of ten up to a number, at most nine.
pub(super) fn marks(end: u64) -> Vec<u64> {
    let steps = (0..19).flat_map(|power| [1, 2, 5].map(|factor| factor * 10_u64.pow(power)));
    let step = steps.into_iter().find(|step| end / step <= 8).unwrap_or(u64::MAX);
    // The last mark would be cut off at the right.
    (0..=end / step).map(|at| at * step).filter(|at| at.saturating_add(end / 40) <= end).collect()
}

#[cfg(test)]
mod tests {
    use ir::entity::Id;
    use ir::plan::{
        Access, Arg, Budget, Buffer, BufferId, Call, Code, Expr, Grid, Home, Kernel, KernelId, Machine, Phase,
        Placement, ROUND, Rate, Role, Segment, Slot, Source, Step, VERSION,
    };

    use super::*;

    /// Four rounds that each read 640 bytes in 640 ns, all of them streamed through two slots.
    fn plan(link_bytes_per_us: u64) -> Plan {
        let segments = (0..4).map(|at| Segment { offset: at * 640, bytes: 640, home: Home::Slot(at as u32 % 2) });
        let weight = Buffer {
            name: "w.{}".to_owned(),
            role: Role::Weight,
            offset: 0,
            bytes: 640,
            rounds: 4,
            stride: 640,
            is_ternary: false,
        };
        let offset = Expr::symbol(ROUND) * Expr::from(640);
        let call = Call {
            kernel: KernelId::new(0),
            grid: Grid::from(Expr::from(1)),
            args: vec![Arg { access: Access::Read, buffer: BufferId::new(0), offset }],
            dims: Vec::new(),
            moves: Expr::from(640),
            macs: Expr::from(0),
            ops: Expr::from(0),
            rate: Rate::flat(1),
            start_ns: 0,
            from: "layer.x".to_owned(),
        };
        let repeat = Step::Repeat { count: 4, reverse: false, steps: vec![Step::Call(call)] };
        Plan {
            version: VERSION,
            model: "m".to_owned(),
            target: "scalar".to_owned(),
            machine: Machine {
                threads: 1,
                read_bytes_per_us: 1000,
                link_bytes_per_us,
                copy_ns: 0,
                step_ns: 0,
                call_ns: 0,
            },
            context: 8,
            sequences: 1,
            vocab: 1,
            slab_bytes: 1280,
            weights_bytes: 2560,
            placement: Placement {
                resident_bytes: 0,
                transit: None,
                source: Source::Host,
                slots: [0, 640].map(|offset| Slot { offset, bytes: 640 }).to_vec(),
                segments: segments.collect(),
            },
            budget: Budget::default(),
            symbols: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            buffers: vec![weight],
            kernels: vec![Kernel { name: "k".to_owned(), code: Code::Table }],
            phases: vec![Phase { name: "decode".to_owned(), max_tokens: 1, steps: vec![repeat] }],
            training: None,
        }
    }

    #[test]
    fn a_slow_link_is_never_idle_and_a_quick_one_never_waited_for() {
        // A copy takes 1,280 ns: a call is four of them, and computes half of the time.
        let slow = plan(500);
        let simulated = simulate(&slow, &PhaseCall::new(&slow, 0));
        assert_eq!((simulated.end, simulated.wait_ns(), simulated.copy_ns()), (5120, 2560, 5120));
        // It takes 160 ns.
        let quick = plan(4000);
        let simulated = simulate(&quick, &PhaseCall::new(&quick, 0));
        assert_eq!((simulated.end, simulated.wait_ns(), simulated.copy_ns()), (2560, 0, 640));
        assert_eq!(simulated.copies.len(), 4);
    }

    #[test]
    fn marks_are_round_and_few() {
        assert_eq!(marks(1000), [0, 200, 400, 600, 800]);
        assert_eq!(marks(7), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(marks(0), [0]);
    }
}
