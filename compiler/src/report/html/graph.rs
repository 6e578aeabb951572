//! A graph as it was declared and as it runs: what the optimiser replaced, and which values become one launch.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use ir::entity::Id;
use ir::graph::Def;
use ir::plan::{Phase, Step};
use ir::{Graph, Op, Program, ValueId};

use super::Page;
use super::call::{Launch, PhaseCall};
use super::layout::{Layout, Size, layered};
use super::markup::{Markup, Px, human_ns, shortened};
use crate::emit::plan::PlanEmitError;
use crate::error::CompileError;
use crate::lower::cuda;
use crate::schedule::{Group, Kind, Schedule, group};
use crate::target::Hardware;

/// Width of a character, and height of a line.
const CHARACTER: f64 = 6.7;
const LINE: f64 = 14.0;
/// Within a box.
const PAD: f64 = 7.0;
/// Within a frame, and of its title.
const FRAME: f64 = 9.0;
const TITLE: f64 = 20.0;
/// Around a drawing.
const MARGIN: f64 = 10.0;
/// Characters of a line; what is longer is there when the box is pointed at.
const LONGEST: usize = 34;

/// What the optimiser changed of a graph.
#[derive(Debug)]
pub(super) struct Changes {
    before: Vec<Change>,
    after: Vec<Change>,
    /// Values of the source that have the same name in the result and are computed otherwise.
    pub(super) rewritten: Vec<ValueId>,
}

/// What became of a value, or where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// It is on both sides.
    Kept,
    /// It is on both sides, by another op there.
    Rewritten(String),
    /// It is on this side alone.
    Alone,
}

impl Change {
    fn class(&self) -> &'static str {
        match self {
            Change::Kept => "kept",
            Change::Rewritten(_) => "rewritten",
            Change::Alone => "alone",
        }
    }
}

impl Changes {
    /// Values are the same by their names; those without, by what they compute of which others.
    pub(super) fn between(before: &Graph, after: &Graph) -> Self {
        let mut numbers = BTreeMap::new();
        let keys = [before, after].map(|graph| keys(graph, &mut numbers));
        let [ops_before, ops_after] = [(before, &keys[0]), (after, &keys[1])].map(|(graph, keys)| {
            let values = graph.values.ids().map(|value| (keys[value.index()], operation(graph, value)));
            values.collect::<BTreeMap<usize, String>>()
        });
        let change = |graph: &Graph, keys: &[usize], there: &BTreeMap<usize, String>| -> Vec<Change> {
            let of = |value: ValueId| match there.get(&keys[value.index()]) {
                None => Change::Alone,
                Some(other) if *other == operation(graph, value) => Change::Kept,
                Some(other) => Change::Rewritten(other.clone()),
            };
            graph.values.ids().map(of).collect()
        };
        let changes = (change(before, &keys[0], &ops_after), change(after, &keys[1], &ops_before));
        let live = before.live();
        let is_rewritten = |id: &ValueId| live[id.index()] && matches!(changes.0[id.index()], Change::Rewritten(_));
        let rewritten = before.values.ids().filter(is_rewritten).collect();
        Self { before: changes.0, after: changes.1, rewritten }
    }

    fn count(&self, is_before: bool, shown: &[ValueId]) -> (usize, usize) {
        let changes = if is_before { &self.before } else { &self.after };
        let count = |is_it: &dyn Fn(&Change) -> bool| shown.iter().filter(|id| is_it(&changes[id.index()])).count();
        (count(&|change| matches!(change, Change::Rewritten(_))), count(&|change| *change == Change::Alone))
    }
}

/// What a value is told from others by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Name(String),
    Operation(String, Vec<usize>),
}

/// A number for each value of a graph; the same for what is the same in other graphs.
fn keys(graph: &Graph, numbers: &mut BTreeMap<Key, usize>) -> Vec<usize> {
    let mut keys: Vec<usize> = Vec::with_capacity(graph.values.len());
    for (id, value) in graph.values.iter() {
        let key = match &value.name {
            Some(name) => Key::Name(name.to_string()),
            None => {
                let operands = graph.operands(id).iter().map(|operand| keys[operand.index()]);
                Key::Operation(operation(graph, id), operands.collect())
            }
        };
        let next = numbers.len();
        keys.push(*numbers.entry(key).or_insert(next));
    }
    keys
}

/// The op of a value with its attributes; what it is, if it is none.
fn operation(graph: &Graph, value: ValueId) -> String {
    match &graph.values[value].def {
        Def::Input => "input".to_owned(),
        Def::Param { .. } => "param".to_owned(),
        Def::State { .. } => "state".to_owned(),
        Def::Const(_) => "const".to_owned(),
        Def::Op { op, .. } => {
            let attributes = op.attr_names().iter().zip(op.attrs()).map(|(name, attr)| format!(" {name}={attr}"));
            format!("{}{}", op.name(), attributes.collect::<String>())
        }
    }
}

/// The groups of all graphs, for the calls of one phase.
pub(super) struct PhaseGroups<'a> {
    schedules: Vec<Schedule<'a>>,
    /// For each graph and each of its groups the step that runs it.
    steps: Vec<Vec<Option<&'a Step>>>,
}

/// The groups of all phases, as the plan was made from them.
pub(super) fn groups<'a>(page: &Page<'a>) -> Result<Vec<PhaseGroups<'a>>, CompileError> {
    let program: &Program = &page.compiled.program;
    let mut low = 1;
    let mut all = Vec::new();
    for phase in &page.compiled.plan.phases {
        let tokens = low..=phase.max_tokens;
        low = phase.max_tokens.saturating_add(1);
        let schedules = program.graphs.iter().map(|graph| schedule(graph, page.target.hardware(), &tokens));
        let schedules = schedules.collect::<Result<Vec<_>, _>>()?;
        let steps = steps(&schedules, phase);
        all.push(PhaseGroups { schedules, steps });
    }
    Ok(all)
}

fn schedule<'a>(
    graph: &'a Graph,
    hardware: Hardware,
    tokens: &RangeInclusive<u64>,
) -> Result<Schedule<'a>, CompileError> {
    let schedule = group::group(graph, hardware, group::Joining::Values)
        .map_err(|errors| PlanEmitError::Schedule { graph: graph.name.clone(), errors })?;
    Ok(match hardware {
        Hardware::Cpu { .. } => schedule,
        Hardware::Cuda(sm) => cuda::fuse(schedule, tokens, sm),
    })
}

/// Which step runs each group. Every group is one step, in order; around a repeat there may be copies.
fn steps<'a>(schedules: &[Schedule<'_>], phase: &'a Phase) -> Vec<Vec<Option<&'a Step>>> {
    let mut found: Vec<Vec<Option<&Step>>> = schedules.iter().map(|_| Vec::new()).collect();
    let Some((entry, bodies)) = schedules.split_last() else { return found };
    let mut rest = phase.steps.iter().peekable();
    for group in &entry.groups {
        let Some(Op::Repeat(repeat)) = entry.graph.op(group.values[0]).filter(|_| group.kind == Kind::Repeat) else {
            found[bodies.len()].push(rest.next());
            continue;
        };
        while rest.next_if(|step| matches!(step, Step::Copy { .. })).is_some() {}
        // A body that is repeated no times has no step.
        let step = rest.next_if(|step| matches!(step, Step::Repeat { .. }));
        found[bodies.len()].push(step);
        let body = bodies.iter().position(|body| *body.graph.name == *repeat.body);
        if let (Some(Step::Repeat { steps, .. }), Some(body)) = (step, body)
            && found[body].is_empty()
        {
            found[body] = (0..bodies[body].groups.len()).map(|at| steps.get(at)).collect();
        }
    }
    found
}

/// A graph before and after, side by side.
pub(super) fn graph(
    out: &mut Markup,
    page: &Page<'_>,
    (index, changes): (usize, &Changes),
    phases: &[PhaseGroups<'_>],
    calls: &[PhaseCall<'_>],
) {
    let before = &page.source.graphs[index];
    out.element("div", &[("class", &"pair")], |out| {
        out.element("figure", &[], |out| declared(out, before, changes));
        out.element("figure", &[], |out| {
            // Phases that have the same groups share a drawing.
            let mut variants: Vec<Vec<usize>> = Vec::new();
            for at in 0..phases.len() {
                let groups = |phase: usize| &phases[phase].schedules[index].groups;
                match variants.iter_mut().find(|variant| groups(variant[0]) == groups(at)) {
                    Some(variant) => variant.push(at),
                    None => variants.push(vec![at]),
                }
            }
            let name = |variant: &Vec<usize>| {
                let names: Vec<&str> = variant.iter().map(|&at| calls[at].phase.name.as_str()).collect();
                if variants.len() == 1 { "all phases".to_owned() } else { names.join(", ") }
            };
            let names: Vec<String> = variants.iter().map(name).collect();
            super::tabs(out, &format!("graph{index}"), &names, |out, tab| {
                let variant: Vec<(&PhaseGroups<'_>, &PhaseCall<'_>)> =
                    variants[tab].iter().map(|&at| (&phases[at], &calls[at])).collect();
                optimised(out, index, changes, &variant);
            });
        });
    });
}

/// The graph as the model declares it.
fn declared(out: &mut Markup, graph: &Graph, changes: &Changes) {
    let live = graph.live();
    let is_shown = |id: &ValueId| live[id.index()] && !is_folded(graph, *id);
    let shown: Vec<ValueId> = graph.values.ids().filter(is_shown).collect();
    let (rewritten, gone) = changes.count(true, &shown);
    out.element("figcaption", &[], |out| {
        out.leaf("b", &[], "As declared");
        let n = shown.len();
        out.text(format!(" {n} values, of which {rewritten} are computed otherwise and {gone} not at all any more"));
    });
    let boxes: Vec<ValueBox> = shown
        .iter()
        .map(|&id| ValueBox::new(graph, id, &changes.before[id.index()], true, &|operand| is_folded(graph, operand)))
        .collect();
    let position: BTreeMap<ValueId, usize> = shown.iter().enumerate().map(|(at, &id)| (id, at)).collect();
    let operands = |id: ValueId| graph.operands(id).iter().filter_map(|operand| position.get(operand).copied());
    let mut edges: Vec<(usize, usize)> =
        shown.iter().enumerate().flat_map(|(to, &id)| operands(id).map(move |from| (from, to))).collect();
    edges.sort_unstable();
    edges.dedup();
    let sizes: Vec<Size> = boxes.iter().map(|one| one.size).collect();
    let layout = layered(&sizes, &edges);
    drawing(out, layout.size, &format!("{} as declared", graph.name), |out| {
        paths(out, &layout);
        boxes.iter().zip(&layout.places).for_each(|(one, &place)| one.draw(out, place));
    });
}

/// Parameters and constants stand in the boxes that read them.
fn is_folded(graph: &Graph, value: ValueId) -> bool {
    matches!(graph.values[value].def, Def::Param { .. } | Def::Const(_))
}

/// One launch, or a value that no launch computes.
struct Frame<'a> {
    boxes: Vec<ValueBox>,
    layout: Layout,
    size: Size,
    launch: Option<FrameTitle<'a>>,
}

struct FrameTitle<'a> {
    text: String,
    class: &'a str,
    title: String,
}

/// The graph as it runs: a frame for each launch. Views are left out, and so is what is computed of weights when they are packed.
fn optimised(out: &mut Markup, index: usize, changes: &Changes, phases: &[(&PhaseGroups<'_>, &PhaseCall<'_>)]) {
    let Some((first, _)) = phases.first() else { return };
    let schedule = &first.schedules[index];
    let graph = schedule.graph;
    let is_weight = |id: ValueId| schedule.views.is_weight_time(id);
    // Inputs and states that are read come first, each in a frame of its own, so that operands stand before their users.
    let mut members: Vec<Vec<ValueId>> = Vec::new();
    let mut frame_of: BTreeMap<ValueId, usize> = BTreeMap::new();
    let live = graph.live();
    let is_given = |id: &ValueId| live[id.index()] && matches!(graph.values[*id].def, Def::Input | Def::State { .. });
    let given: Vec<ValueId> = graph.values.ids().filter(is_given).collect();
    let grouped = schedule.groups.iter().map(|group| group.values.clone());
    for values in given.iter().map(|&id| vec![id]).chain(grouped) {
        frame_of.extend(values.iter().map(|&id| (id, members.len())));
        members.push(values);
    }
    // What a value reads, seen through views.
    let source = |operand: ValueId| {
        let mut at = operand;
        while !frame_of.contains_key(&at) {
            at = *graph.operands(at).first()?;
        }
        Some(at)
    };
    let mut edges = Vec::new();
    let mut frames = Vec::new();
    for (at, values) in members.iter().enumerate() {
        let mut inner = Vec::new();
        for (to, &id) in values.iter().enumerate() {
            for &operand in graph.operands(id).iter().filter(|operand| !is_weight(**operand)) {
                let Some(from) = source(operand) else { continue };
                match frame_of[&from] {
                    frame if frame == at => {
                        inner.extend(values.iter().position(|&other| other == from).map(|from| (from, to)));
                    }
                    frame => edges.push((frame, at)),
                }
            }
        }
        inner.sort_unstable();
        inner.dedup();
        let boxes: Vec<ValueBox> =
            values.iter().map(|&id| ValueBox::new(graph, id, &changes.after[id.index()], false, &is_weight)).collect();
        let launch = at.checked_sub(given.len()).map(|at| frame_title(schedule, (index, at), phases));
        frames.push(Frame::new(boxes, &inner, launch));
    }
    edges.sort_unstable();
    edges.dedup();
    let shown: Vec<ValueId> = members.concat();
    let (rewritten, new) = changes.count(false, &shown);
    out.element("figcaption", &[], |out| {
        out.leaf("b", &[], "As it runs");
        let (n, launches) = (shown.len(), schedule.groups.len());
        out.text(format!(" {n} values in {launches} launches, {rewritten} computed otherwise and {new} new"));
    });
    let sizes: Vec<Size> = frames.iter().map(|frame| frame.size).collect();
    let layout = layered(&sizes, &edges);
    drawing(out, layout.size, &format!("{} as it runs", graph.name), |out| {
        paths(out, &layout);
        frames.iter().zip(&layout.places).for_each(|(frame, &place)| frame.draw(out, place));
    });
}

/// What stands over a launch: how long it takes in the first of the phases that share the drawing, and when pointed at in all of them.
fn frame_title<'a>(
    schedule: &Schedule<'_>,
    (graph, at): (usize, usize),
    phases: &[(&PhaseGroups<'_>, &PhaseCall<'_>)],
) -> FrameTitle<'a> {
    let group: &Group = &schedule.groups[at];
    let steps =
        phases.iter().filter_map(|(groups, call)| Some((groups.steps[graph].get(at).copied().flatten()?, *call)));
    let mut title = format!(
        "{}.{}",
        schedule.graph.name,
        schedule.graph.describe(group.outputs.first().copied().unwrap_or(group.values[0]))
    );
    let mut first: Option<(String, &'static str)> = None;
    for (step, call) in steps {
        let launch = call.launches.iter().find(|launch| std::ptr::eq(launch.step, step));
        title += &format!("\n\n{}, {}", call.phase.name, call.describe());
        match (launch, step) {
            (Some(launch), _) => {
                title += &format!("\n{}", details(launch));
                first.get_or_insert_with(|| {
                    (format!("step {} · {}", launch.time, human_ns(launch.ns)), launch.nature.class())
                });
            }
            (None, Step::Repeat { count, steps, .. }) => {
                let inside = |launch: &&Launch<'_>| steps.iter().any(|step| std::ptr::eq(launch.step, step));
                let round = call.launches.iter().filter(inside).map(|launch| launch.ns).fold(0, u64::saturating_add);
                let all = human_ns(round.saturating_mul(u64::from(*count)));
                title += &format!("\n{count} rounds, {all} in all");
                first.get_or_insert_with(|| (format!("{count} rounds · {all}"), "repeat"));
            }
            (None, _) => {}
        }
    }
    let (text, class) = first.unwrap_or_else(|| ("does not run".to_owned(), "elementwise"));
    FrameTitle { text, class, title }
}

/// A launch in words, without its name.
fn details(launch: &Launch<'_>) -> String {
    let text = launch.describe();
    text.split_once('\n').map_or(text.clone(), |(_, rest)| rest.to_owned())
}

impl<'a> Frame<'a> {
    fn new(boxes: Vec<ValueBox>, edges: &[(usize, usize)], launch: Option<FrameTitle<'a>>) -> Self {
        let sizes: Vec<Size> = boxes.iter().map(|one| one.size).collect();
        let layout = layered(&sizes, edges);
        let (width, height) = layout.size;
        let size = match &launch {
            Some(title) => {
                let text = title.text.chars().count() as f64 * CHARACTER;
                (width.max(text) + 2.0 * FRAME, height + TITLE + FRAME)
            }
            None => (width, height),
        };
        Self { boxes, layout, size, launch }
    }

    fn draw(&self, out: &mut Markup, (x, y): (f64, f64)) {
        let Some(launch) = &self.launch else {
            self.boxes
                .iter()
                .zip(&self.layout.places)
                .for_each(|(one, place)| one.draw(out, (x + place.0, y + place.1)));
            return;
        };
        let class = format!("launch {}", launch.class);
        out.element("g", &[("class", &class), ("transform", &format!("translate({} {})", Px(x), Px(y)))], |out| {
            let (width, height) = (Px(self.size.0), Px(self.size.1));
            out.shape("rect", &[("width", &width), ("height", &height), ("rx", &"7")], &launch.title);
            out.leaf("text", &[("class", &"title"), ("x", &Px(FRAME)), ("y", &Px(TITLE - 6.0))], &launch.text);
            let left = (self.size.0 - self.layout.size.0) / 2.0;
            out.element("g", &[("transform", &format!("translate({} {})", Px(left), Px(TITLE)))], |out| {
                paths(out, &self.layout);
                self.boxes.iter().zip(&self.layout.places).for_each(|(one, &place)| one.draw(out, place));
            });
        });
    }
}

/// A value as it is drawn.
struct ValueBox {
    lines: Vec<String>,
    class: String,
    title: String,
    size: Size,
}

impl ValueBox {
    fn new(graph: &Graph, id: ValueId, change: &Change, is_before: bool, is_folded: &dyn Fn(ValueId) -> bool) -> Self {
        let value = &graph.values[id];
        let operation = operation(graph, id);
        let name = operation.split(' ').next().unwrap_or_default();
        let mut lines = vec![graph.describe(id), format!("{name} {}", value.ty)];
        let folded: Vec<String> = graph
            .operands(id)
            .iter()
            .filter(|operand| is_folded(**operand))
            .flat_map(|&operand| leaves(graph, operand))
            .collect();
        if let Some(first) = folded.first() {
            let more = if folded.len() == 1 { String::new() } else { format!(" +{}", folded.len() - 1) };
            lines.push(format!("{}{more}", shortened(first, LONGEST - 2 - more.len())));
        }
        let operands: Vec<String> = graph.operands(id).iter().map(|&operand| graph.label(operand)).collect();
        let mut title = format!("{} = {operation}", graph.label(id));
        if !operands.is_empty() {
            title += &format!("\nof {}", operands.join(", "));
        }
        title += &format!("\ntype {}", value.ty);
        if !folded.is_empty() {
            title += &format!("\nweights and constants: {}", folded.join(", "));
        }
        title += &match (change, is_before) {
            (Change::Kept, _) => String::new(),
            (Change::Rewritten(other), true) => format!("\nas it runs: {other}"),
            (Change::Rewritten(other), false) => format!("\nas declared: {other}"),
            (Change::Alone, true) => "\nis not computed any more".to_owned(),
            (Change::Alone, false) => "\nnew".to_owned(),
        };
        let is_kept = graph.outputs.contains(&id) || graph.updates.iter().any(|update| update.value == id);
        let lines: Vec<String> = lines.iter().map(|line| shortened(line, LONGEST)).collect();
        let longest = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0) as f64;
        let size = (longest * CHARACTER + 2.0 * PAD, lines.len() as f64 * LINE + PAD + 2.0);
        let kind = match &value.def {
            Def::Input | Def::State { .. } => " given",
            _ if is_kept => " result",
            _ => "",
        };
        let side = if is_before { "before" } else { "after" };
        Self { lines, class: format!("value {side} {}{kind}", change.class()), title, size }
    }

    fn draw(&self, out: &mut Markup, (x, y): (f64, f64)) {
        let place = format!("translate({} {})", Px(x), Px(y));
        out.element("g", &[("class", &self.class), ("transform", &place)], |out| {
            let (width, height) = (Px(self.size.0), Px(self.size.1));
            out.shape("rect", &[("width", &width), ("height", &height), ("rx", &"4")], &self.title);
            for (at, line) in self.lines.iter().enumerate() {
                let class = ["name", "op", "leaf"][at.min(2)];
                let y = Px(PAD + 7.5 + at as f64 * LINE);
                out.leaf("text", &[("class", &class), ("x", &Px(PAD)), ("y", &y)], line);
            }
        });
    }
}

/// The parameters and constants that a value which the compiler computes is made of, in order.
fn leaves(graph: &Graph, value: ValueId) -> Vec<String> {
    let mut found: Vec<ValueId> = Vec::new();
    let mut seen = vec![false; graph.values.len()];
    let mut rest = vec![value];
    while let Some(id) = rest.pop() {
        if std::mem::replace(&mut seen[id.index()], true) {
            continue;
        }
        match graph.operands(id) {
            [] => found.push(id),
            operands => rest.extend(operands.iter().rev()),
        }
    }
    found.into_iter().map(|id| graph.label(id)).collect()
}

fn paths(out: &mut Markup, layout: &Layout) {
    layout.paths.iter().for_each(|path| out.empty("path", &[("d", path)]));
}

fn drawing(out: &mut Markup, (width, height): Size, label: &str, content: impl FnOnce(&mut Markup)) {
    let (width, height) = (width + 2.0 * MARGIN, height + 2.0 * MARGIN);
    let view = format!("{} {} {} {}", Px(-MARGIN), Px(-MARGIN), Px(width), Px(height));
    out.element("div", &[("class", &"pane")], |out| {
        let attributes: super::markup::Attributes<'_> = &[
            ("class", &"graph"),
            ("viewBox", &view),
            ("width", &Px(width)),
            ("height", &Px(height)),
            ("role", &"img"),
            ("aria-label", &label),
        ];
        out.element("svg", attributes, content);
    });
}
