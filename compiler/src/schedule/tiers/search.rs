//! All memory schedules of a program, and the front of their costs.

use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use egg::{EGraph, Id, RecExpr, Runner, SimpleScheduler, StopReason, Symbol};

use super::cost::{Copied, Model, Point, Work};
use super::front::Front;
use super::language::{DEVICE, Node, name_of, tier_of};
use super::rules::rules;
use super::{Offers, Profile, bits, copies};
use crate::target::Link;

/// Far above what a search needs: 80 layers in 24 formats are about 2,000 nodes.
const NODES: usize = 200_000;
const ROUNDS: usize = 200;

/// How a search went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The schedule that was started from.
    pub start: String,
    /// Nodes of the e-graph.
    pub nodes: usize,
    /// Its classes.
    pub classes: usize,
    /// How often each rule was applied, in the order of their names.
    pub applied: Vec<(String, usize)>,
    /// Schedules that the points of the front were chosen from.
    pub weighed: usize,
    /// Whether every rule was applied wherever it can be: then the front is exact.
    pub is_exact: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let applied: Vec<String> = self.applied.iter().map(|(rule, times)| format!("{rule} {times}")).collect();
        let exactness = match self.is_exact {
            true => {
                "every rule was applied wherever it can be, and nothing was pruned but what another schedule is at least as good as in everything: the front is exact"
            }
            false => "a limit was met: there may be better schedules",
        };
        writeln!(f, "from {}", self.start)?;
        writeln!(f, "{} nodes in {} classes; {}", self.nodes, self.classes, applied.join(", "))?;
        write!(f, "{} schedules weighed; {exactness}", self.weighed)
    }
}

/// The front of all ways to run a program of which there are these profiles: one for each format, of the same layers.
pub fn search(profiles: &[Profile], offers: &Offers, link: Link) -> (Front<Point>, Report) {
    let Some(first) = profiles.first() else {
        let report =
            Report { start: String::new(), nodes: 0, classes: 0, applied: Vec::new(), weighed: 0, is_exact: true };
        return (Front::of(Vec::new()), report);
    };
    let start = start(first, offers);
    let rules = rules(offers, profiles);
    let runner = Runner::default()
        .with_expr(&start)
        .with_scheduler(SimpleScheduler)
        .with_node_limit(NODES)
        .with_iter_limit(ROUNDS)
        .with_time_limit(std::time::Duration::from_secs(60))
        .run(&rules);
    let mut applied: Vec<(String, usize)> = Vec::new();
    for iteration in &runner.iterations {
        for (rule, times) in &iteration.applied {
            match applied.iter_mut().find(|(known, _)| known == rule.as_str()) {
                Some((_, total)) => *total += times,
                None => applied.push((rule.to_string(), *times)),
            }
        }
    }
    applied.sort();
    let mut fronts =
        Fronts { schedules: &runner.egraph, model: Model { profiles, link }, works: HashMap::new(), weighed: 0 };
    let front = fronts.runs(runner.roots[0]);
    let report = Report {
        start: start.to_string(),
        nodes: runner.egraph.total_number_of_nodes(),
        classes: runner.egraph.number_of_classes(),
        applied,
        weighed: fronts.weighed,
        is_exact: matches!(runner.stop_reason, Some(StopReason::Saturated)),
    };
    (front, report)
}

/// Everything on the device, in the first format.
fn start(profile: &Profile, offers: &Offers) -> RecExpr<Node> {
    let mut start = RecExpr::default();
    let name = |start: &mut RecExpr<Node>, name: &str| start.add(Node::Name(Symbol::from(name)));
    let n = start.add(Node::Count(profile.layers));
    let packing = name(&mut start, bits(profile.format.packing));
    let kv = name(&mut start, &profile.format.kv);
    let chunk = start.add(Node::Count(profile.format.chunk));
    let body = start.add(Node::Layers([n, packing, packing, kv, chunk]));
    let split = start.add(Node::Count(offers.splits.first().copied().unwrap_or(1)));
    let slots = start.add(Node::Count(offers.slots.first().copied().unwrap_or(2)));
    let source = name(&mut start, offers.sources.first().map_or("host", |&tier| name_of(tier)));
    let packing = name(&mut start, copies(false));
    let body = start.add(Node::Prefetch([split, slots, source, packing, body]));
    let device = name(&mut start, DEVICE);
    start.add(Node::Run([device, body]));
    start
}

/// The fronts of classes, from the leaves up; no class holds itself.
struct Fronts<'a> {
    schedules: &'a EGraph<Node, ()>,
    model: Model<'a>,
    works: HashMap<Id, Rc<Front<Work>>>,
    weighed: usize,
}

impl Fronts<'_> {
    /// Of a class of `run`.
    fn runs(&mut self, class: Id) -> Front<Point> {
        let mut points = Vec::new();
        let schedules = self.schedules;
        for node in &schedules[class].nodes {
            let Node::Run([embedding, body]) = node else { continue };
            let bodies = self.prefetches(*body);
            match self.name(*embedding) == DEVICE {
                true => points.extend(bodies.points().iter().map(|copied| copied.point.clone())),
                false => points.extend(bodies.points().iter().filter_map(|copied| copied.from_host.clone())),
            }
        }
        self.weighed += points.len();
        Front::of(points)
    }

    /// Of a class of `prefetch`.
    fn prefetches(&mut self, class: Id) -> Front<Copied> {
        let mut points = Vec::new();
        let schedules = self.schedules;
        for node in &schedules[class].nodes {
            let Node::Prefetch([split, slots, source, packing, body]) = node else { continue };
            let (Some(split), Some(slots)) = (self.count(*split), self.count(*slots)) else { continue };
            let Some(source) = tier_of(self.name(*source)) else { continue };
            let packs_copies = self.name(*packing) == copies(true);
            let works = self.works(*body);
            let prefetch = |work| self.model.prefetch(work, split, slots, source, packs_copies);
            let found = works.points().iter().filter_map(prefetch);
            points.extend(found);
        }
        self.weighed += points.len();
        Front::of(points)
    }

    /// Of a class of layers.
    fn works(&mut self, class: Id) -> Rc<Front<Work>> {
        let class = self.schedules.find(class);
        if let Some(known) = self.works.get(&class) {
            return Rc::clone(known);
        }
        let mut works = Vec::new();
        let schedules = self.schedules;
        for node in &schedules[class].nodes {
            match node {
                Node::Stay([n, packing, _, kv, chunk]) => {
                    let index = self.profile(*packing, *kv, *chunk);
                    let work = index.zip(self.count(*n));
                    works.extend(work.map(|(index, n)| Work::stay(index, &self.model.profiles[index], n)));
                }
                Node::Stream([n, _, packing, kv, chunk]) => {
                    let index = self.profile(*packing, *kv, *chunk);
                    let work = index.zip(self.count(*n));
                    works.extend(work.map(|(index, n)| Work::stream(index, &self.model.profiles[index], n)));
                }
                Node::Both([left, right]) => {
                    let (left, right) = (self.works(*left), self.works(*right));
                    for &one in left.points() {
                        works.extend(right.points().iter().map(|&other| one.plus(other)));
                    }
                }
                Node::Call([packing, kv, chunk, body]) => {
                    let Some(index) = self.profile(*packing, *kv, *chunk) else { continue };
                    let around = Work::call(index, &self.model.profiles[index]);
                    works.extend(self.works(*body).points().iter().map(|&work| around.plus(work)));
                }
                // What is not decided yet costs what its decisions do.
                Node::Layers(_) | Node::Group(_) => {}
                Node::Run(_) | Node::Prefetch(_) | Node::Count(_) | Node::Name(_) => {}
            }
        }
        self.weighed += works.len();
        let front = Rc::new(Front::of(works));
        self.works.insert(class, Rc::clone(&front));
        front
    }

    fn count(&self, class: Id) -> Option<u32> {
        self.schedules[class].nodes.iter().find_map(|node| match node {
            Node::Count(count) => Some(*count),
            _ => None,
        })
    }

    fn name(&self, class: Id) -> &'static str {
        let name = self.schedules[class].nodes.iter().find_map(|node| match node {
            Node::Name(name) => Some(name.as_str()),
            _ => None,
        });
        name.unwrap_or("")
    }

    /// The profile of a format, if there is one.
    fn profile(&self, packing: Id, kv: Id, chunk: Id) -> Option<usize> {
        let (packing, kv, chunk) = (self.name(packing), self.name(kv), self.count(chunk)?);
        self.model.profiles.iter().position(|profile| {
            let format = &profile.format;
            bits(format.packing) == packing && format.kv == kv && format.chunk == chunk
        })
    }
}
