//! The best graph in an e-graph, with shared nodes counted once.
//!
//! One node is chosen for each class that is needed, so that the chosen nodes have no cycle and their costs add up to the least. Two steps:
//!
//! 1. Classes that are known at weight time are cheap whatever is chosen, so each takes the smallest *tree*, from nodes that are themselves
//!    known at weight time.
//! 2. All others are decided by branch and bound, users before operands. A class that several users share is charged in parts: with
//!    `p` classes that could use it, each pays `1/p` of what it costs at least. So the bound of a partial choice,
//!
//!    ```text
//!    bound = cost of decided nodes + sum over needed, undecided classes of floor(least / p) * (users decided so far)
//!    least(c) = min over nodes of (cost + sum over operands of floor(least / p))
//!    ```
//!
//!    only grows, and ends as the true cost. (Operands in a cycle with `c` count as 0 in `least`, which keeps it a bound.) For three
//!    matmuls against slices of a merged one, it is nearly the true cost at once.
//!
//! The search starts from the smallest trees and stops after a number of steps; it says whether the result is proved to be the best.

use std::collections::{BTreeMap, BTreeSet};

use egg::Id;
use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use super::analysis::infer_node;
use super::cost::{CostModel, WEIGHT_TIME_PS};
use super::{EGraph, ENode};

/// The chosen graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Choices {
    /// The node of each class that is needed. Children are canonical.
    pub nodes: BTreeMap<Id, ENode>,
    /// Picoseconds that they take together.
    pub cost: u64,
    /// Whether nothing in the e-graph is cheaper.
    pub proved: bool,
    /// Decisions that the search took.
    pub steps: u64,
}

/// A class without a finite term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("class {class} has no term without a cycle")]
pub struct NoTerm {
    /// The class.
    pub class: Id,
}

/// The cheapest nodes that compute `roots`. After `step_limit` decisions the best found so far is returned.
///
/// # Errors
///
/// If a root has no finite term, which no graph's e-graph has.
pub fn extract(egraph: &EGraph, roots: &[Id], model: &CostModel, step_limit: u64) -> Result<Choices, NoTerm> {
    let roots: BTreeSet<Id> = roots.iter().map(|root| egraph.find(*root)).collect();
    let mut candidates = candidates(egraph, &roots, model);
    let with_term = smallest_trees(&candidates);
    if let Some(&class) = roots.iter().find(|root| !with_term.contains_key(root)) {
        return Err(NoTerm { class });
    }
    for list in candidates.values_mut() {
        list.retain(|candidate| candidate.inputs.iter().all(|input| with_term.contains_key(input)));
    }
    let weight_trees = smallest_trees(&candidates);
    let weight_nodes = weight_time_nodes(egraph, &candidates, &weight_trees);
    fix_weight_time(egraph, &mut candidates, &weight_trees);
    drop_beaten(&mut candidates, &weight_nodes, &roots);
    let trees = smallest_trees(&candidates);
    let problem = Problem::new(&candidates, &roots);
    let mut search = Search::new(&problem, step_limit);
    search.adopt_trees(&trees);
    search.run();
    let Search { best, best_cost, steps, .. } = search;
    let mut nodes = BTreeMap::new();
    for (position, choice) in best.iter().enumerate() {
        if let Some(choice) = choice {
            let class = &problem.classes[position];
            nodes.insert(class.id, class.candidates[*choice].node.clone());
        }
    }
    add_weight_time(&weight_nodes, &mut nodes);
    Ok(Choices { nodes, cost: best_cost, proved: steps <= step_limit, steps })
}

/// A node that a class may become.
#[derive(Clone, Debug)]
struct Candidate {
    node: ENode,
    cost: u64,
    /// The classes of its tensor inputs, ascending, each once.
    inputs: Vec<Id>,
}

/// The candidates of all classes that the roots may need. Nodes that need their own class are left out, and those that another node
/// beats: one that costs no more and needs no other classes.
fn candidates(egraph: &EGraph, roots: &BTreeSet<Id>, model: &CostModel) -> BTreeMap<Id, Vec<Candidate>> {
    let mut found: BTreeMap<Id, Vec<Candidate>> = BTreeMap::new();
    let mut todo: Vec<Id> = roots.iter().copied().collect();
    while let Some(class) = todo.pop() {
        if found.contains_key(&class) {
            continue;
        }
        let is_weight_time = is_weight_time(egraph, class);
        let mut list: Vec<Candidate> = Vec::new();
        for node in &egraph[class].nodes {
            let Some(candidate) = candidate(egraph, node, is_weight_time, model) else { continue };
            let is_usable = !candidate.inputs.contains(&class)
                && (!is_weight_time || candidate.inputs.iter().all(|input| self::is_weight_time(egraph, *input)));
            if is_usable {
                list.push(candidate);
            }
        }
        list.sort_by(|left, right| {
            (left.cost, left.inputs.len(), &left.node).cmp(&(right.cost, right.inputs.len(), &right.node))
        });
        let mut kept: Vec<Candidate> = Vec::new();
        for candidate in list {
            let beaten = |by: &Candidate| by.inputs.iter().all(|input| candidate.inputs.contains(input));
            if !kept.iter().any(beaten) {
                kept.push(candidate);
            }
        }
        todo.extend(kept.iter().flat_map(|candidate| candidate.inputs.iter().copied()));
        found.insert(class, kept);
    }
    found
}

fn is_weight_time(egraph: &EGraph, class: Id) -> bool {
    egraph[class].data.tensor().is_some_and(|fact| fact.weight_time)
}

fn candidate(egraph: &EGraph, node: &ENode, is_weight_time: bool, model: &CostModel) -> Option<Candidate> {
    let node = egg::Language::map_children(node.clone(), |child| egraph.find(child));
    let ENode::Op { .. } = node else { return Some(Candidate { node, cost: 0, inputs: Vec::new() }) };
    let (op, facts, ty) = infer_node(egraph, &node).ok()?;
    let cost = if is_weight_time {
        WEIGHT_TIME_PS
    } else {
        let types: Vec<_> = facts.iter().filter_map(|fact| fact.tensor()).map(|fact| &fact.ty).collect();
        model.picoseconds(&op, &types, &ty)
    };
    let (_, inputs, _) = node.parts()?;
    let inputs: BTreeSet<Id> = inputs.iter().copied().collect();
    Some(Candidate { inputs: inputs.into_iter().collect(), node, cost })
}

/// For each class the candidate with the cheapest tree, and that tree's cost. Has no cycle, because a tree costs more than each of its
/// parts or is as cheap and was found later.
fn smallest_trees(candidates: &BTreeMap<Id, Vec<Candidate>>) -> BTreeMap<Id, (u64, usize)> {
    let mut trees: BTreeMap<Id, (u64, usize)> = BTreeMap::new();
    loop {
        let mut changed = false;
        for (&class, list) in candidates {
            for (position, candidate) in list.iter().enumerate() {
                let parts = candidate.inputs.iter().map(|input| trees.get(input).map(|(cost, _)| *cost));
                // Every op counts at least one, so that a cycle of free ops never looks like a tree.
                let own = candidate.cost.max(u64::from(!candidate.inputs.is_empty()));
                let Some(cost) = parts.into_iter().try_fold(own, |sum, part| Some(part?.saturating_add(sum))) else {
                    continue;
                };
                if trees.get(&class).is_none_or(|(known, _)| cost < *known) {
                    trees.insert(class, (cost, position));
                    changed = true;
                }
            }
        }
        if !changed {
            return trees;
        }
    }
}

/// The node with the smallest tree of each class that is known at weight time.
fn weight_time_nodes(
    egraph: &EGraph,
    candidates: &BTreeMap<Id, Vec<Candidate>>,
    trees: &BTreeMap<Id, (u64, usize)>,
) -> BTreeMap<Id, Candidate> {
    let classes = trees.iter().filter(|(class, _)| is_weight_time(egraph, **class));
    classes.map(|(class, &(_, position))| (*class, candidates[class][position].clone())).collect()
}

/// Leaves classes that are known at weight time one candidate: their smallest tree, with its whole cost and without inputs.
fn fix_weight_time(egraph: &EGraph, candidates: &mut BTreeMap<Id, Vec<Candidate>>, trees: &BTreeMap<Id, (u64, usize)>) {
    for (&class, list) in candidates {
        if let (true, Some(&(cost, position))) = (is_weight_time(egraph, class), trees.get(&class)) {
            *list = vec![Candidate { node: list[position].node.clone(), cost, inputs: Vec::new() }];
        }
    }
}

/// Adds the nodes below the chosen ones that are known at weight time.
fn add_weight_time(weight_nodes: &BTreeMap<Id, Candidate>, nodes: &mut BTreeMap<Id, ENode>) {
    let mut todo: Vec<Id> = nodes.keys().copied().collect();
    while let Some(class) = todo.pop() {
        let Some(candidate) = weight_nodes.get(&class) else { continue };
        for &input in &candidate.inputs {
            if nodes.insert(input, weight_nodes[&input].node.clone()).is_none() {
                todo.push(input);
            }
        }
    }
}

/// Drops candidates that another of their class beats: one whose inputs are all needed anyway by what the candidate itself needs, whatever is
/// chosen there, and that costs no more than the candidate with the inputs that only it could use. So a norm and its quantiser fall to the op
/// that is both, without a search. What is known at weight time may come on top, for its price.
fn drop_beaten(
    candidates: &mut BTreeMap<Id, Vec<Candidate>>,
    weight_nodes: &BTreeMap<Id, Candidate>,
    roots: &BTreeSet<Id>,
) {
    let prices: BTreeMap<Id, u64> =
        weight_nodes.keys().filter_map(|class| Some((*class, candidates.get(class)?.first()?.cost))).collect();
    loop {
        let needs = Needs::new(candidates);
        let owned = Owned::new(candidates, roots);
        let mut beaten: Vec<(Id, usize)> = Vec::new();
        for (&class, list) in &*candidates {
            let mut left: BTreeSet<usize> = (0..list.len()).collect();
            for (at, candidate) in list.iter().enumerate() {
                let needed = needs.of_all(&candidate.inputs);
                let price = |by: &Candidate| {
                    let others = by.inputs.iter().filter(|input| !needed.contains(needs.index[*input]));
                    let mut prices = others.map(|input| prices.get(input));
                    prices.try_fold(by.cost, |sum, price| Some(sum.saturating_add(*price?)))
                };
                let beats = |by: &usize| {
                    let by = &list[*by];
                    price(by).is_some_and(|price| price <= owned.cost(candidate, &by.inputs))
                };
                if left.iter().filter(|by| **by != at).any(beats) {
                    left.remove(&at);
                    beaten.push((class, at));
                }
            }
        }
        if beaten.is_empty() {
            return;
        }
        // From the back, so that positions stay right.
        for (class, at) in beaten.into_iter().rev() {
            candidates.get_mut(&class).expect("a beaten candidate has a class").remove(at);
        }
        drop_unreachable(candidates, roots);
    }
}

/// Which classes only one class could use.
struct Owned<'a> {
    candidates: &'a BTreeMap<Id, Vec<Candidate>>,
    users: BTreeMap<Id, usize>,
}

impl<'a> Owned<'a> {
    fn new(candidates: &'a BTreeMap<Id, Vec<Candidate>>, roots: &BTreeSet<Id>) -> Self {
        let mut users: BTreeMap<Id, usize> = roots.iter().map(|root| (*root, 1)).collect();
        for list in candidates.values() {
            let inputs: BTreeSet<Id> = list.iter().flat_map(|candidate| candidate.inputs.iter().copied()).collect();
            for input in inputs {
                *users.entry(input).or_default() += 1;
            }
        }
        Self { candidates, users }
    }

    /// What a candidate costs at least together with the inputs that only its class could use, but for those of the rival.
    fn cost(&self, candidate: &Candidate, rival: &[Id]) -> u64 {
        self.add(candidate, &mut rival.iter().copied().collect())
    }

    fn add(&self, candidate: &Candidate, counted: &mut BTreeSet<Id>) -> u64 {
        let mut cost = candidate.cost;
        for input in &candidate.inputs {
            if self.users[input] == 1 && counted.insert(*input) {
                let least = self.candidates[input].iter().map(|candidate| self.add(candidate, counted)).min();
                cost = cost.saturating_add(least.unwrap_or(0));
            }
        }
        cost
    }
}

/// For each class, the classes that every term of it contains.
struct Needs {
    index: BTreeMap<Id, usize>,
    sets: Vec<Option<Bits>>,
}

impl Needs {
    /// The largest solution of `needs(c) = c + what is in the needs of some input, for each of the candidates of c`. `None` stands for all
    /// classes, from which the sets only shrink.
    fn new(candidates: &BTreeMap<Id, Vec<Candidate>>) -> Self {
        let index: BTreeMap<Id, usize> = candidates.keys().enumerate().map(|(index, class)| (*class, index)).collect();
        let mut needs = Self { sets: vec![None; index.len()], index };
        loop {
            let mut changed = false;
            for (position, list) in candidates.values().enumerate() {
                let of_candidates =
                    list.iter().filter(|candidate| candidate.inputs.iter().all(|input| needs.is_known(input)));
                let common = of_candidates.map(|candidate| needs.of_all(&candidate.inputs)).reduce(Bits::intersection);
                let Some(mut set) = common else { continue };
                set.insert(position);
                if needs.sets[position].as_ref() != Some(&set) {
                    needs.sets[position] = Some(set);
                    changed = true;
                }
            }
            if !changed {
                return needs;
            }
        }
    }

    fn is_known(&self, class: &Id) -> bool {
        self.sets[self.index[class]].is_some()
    }

    /// What several classes need together.
    fn of_all(&self, classes: &[Id]) -> Bits {
        let sets = classes.iter().filter_map(|class| self.sets[self.index[class]].as_ref());
        sets.fold(Bits(vec![0; self.sets.len().div_ceil(64)]), |union, set| union.union(set))
    }
}

/// A set of small numbers.
#[derive(Clone, Debug, PartialEq)]
struct Bits(Vec<u64>);

impl Bits {
    fn insert(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn contains(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }

    fn union(mut self, other: &Bits) -> Bits {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
        self
    }

    fn intersection(mut self, other: Bits) -> Bits {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word &= other);
        self
    }
}

/// Drops classes that no root can reach any more.
fn drop_unreachable(candidates: &mut BTreeMap<Id, Vec<Candidate>>, roots: &BTreeSet<Id>) {
    let mut reached = BTreeSet::new();
    let mut todo: Vec<Id> = roots.iter().copied().collect();
    while let Some(class) = todo.pop() {
        if reached.insert(class) {
            todo.extend(candidates[&class].iter().flat_map(|candidate| candidate.inputs.iter().copied()));
        }
    }
    candidates.retain(|class, _| reached.contains(class));
}

/// The search problem over positions: users come before their operands, except within cycles.
struct Problem {
    classes: Vec<Class>,
    roots: BTreeSet<usize>,
}

struct Class {
    id: Id,
    candidates: Vec<Choice>,
    /// What each user pays of it at least.
    share: u64,
    /// Which cycle it is in; classes of different numbers are in no cycle together.
    cycle: usize,
}

struct Choice {
    node: ENode,
    cost: u64,
    inputs: Vec<usize>,
}

impl Problem {
    fn new(candidates: &BTreeMap<Id, Vec<Candidate>>, roots: &BTreeSet<Id>) -> Self {
        let mut digraph: DiGraph<Id, ()> = DiGraph::new();
        let at: BTreeMap<Id, NodeIndex> = candidates.keys().map(|&class| (class, digraph.add_node(class))).collect();
        for (class, list) in candidates {
            let inputs: BTreeSet<Id> = list.iter().flat_map(|candidate| candidate.inputs.iter().copied()).collect();
            for input in inputs {
                digraph.add_edge(at[class], at[&input], ());
            }
        }
        // Operands come first out of petgraph, and are wanted last.
        let mut cycles = tarjan_scc(&digraph);
        cycles.reverse();
        let mut position_of = BTreeMap::new();
        let mut order = Vec::new();
        for (cycle, members) in cycles.iter().enumerate() {
            let members: BTreeSet<Id> = members.iter().map(|&index| digraph[index]).collect();
            for id in members {
                position_of.insert(id, order.len());
                order.push((id, cycle));
            }
        }
        let roots: BTreeSet<usize> = roots.iter().filter_map(|root| position_of.get(root).copied()).collect();
        let mut classes: Vec<Class> = order
            .into_iter()
            .map(|(id, cycle)| {
                let choice = |candidate: &Candidate| Choice {
                    node: candidate.node.clone(),
                    cost: candidate.cost,
                    inputs: candidate.inputs.iter().map(|input| position_of[input]).collect(),
                };
                Class { id, candidates: candidates[&id].iter().map(choice).collect(), share: 0, cycle }
            })
            .collect();
        let mut users = vec![0_u64; classes.len()];
        for root in &roots {
            users[*root] += 1;
        }
        for class in &classes {
            let inputs: BTreeSet<usize> =
                class.candidates.iter().flat_map(|choice| choice.inputs.iter().copied()).collect();
            for input in inputs {
                users[input] += 1;
            }
        }
        for position in (0..classes.len()).rev() {
            let class = &classes[position];
            let least = class.candidates.iter().map(|choice| {
                let others = choice.inputs.iter().filter(|input| classes[**input].cycle != class.cycle);
                others.fold(choice.cost, |sum, input| sum.saturating_add(classes[*input].share))
            });
            classes[position].share = least.min().unwrap_or(u64::MAX / 4) / users[position].max(1);
        }
        Self { classes, roots }
    }
}

struct Search<'a> {
    problem: &'a Problem,
    choices: Vec<Option<usize>>,
    users: Vec<u64>,
    needed: BTreeSet<usize>,
    bound: u64,
    best: Vec<Option<usize>>,
    best_cost: u64,
    steps: u64,
    step_limit: u64,
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem, step_limit: u64) -> Self {
        let n_classes = problem.classes.len();
        let mut search = Self {
            problem,
            choices: vec![None; n_classes],
            users: vec![0; n_classes],
            needed: BTreeSet::new(),
            bound: 0,
            best: vec![None; n_classes],
            best_cost: u64::MAX,
            steps: 0,
            step_limit,
        };
        for &root in &problem.roots {
            search.need(root);
        }
        search
    }

    /// Takes the smallest trees as the first answer.
    fn adopt_trees(&mut self, trees: &BTreeMap<Id, (u64, usize)>) {
        let mut decided = Vec::new();
        while let Some(&position) = self.needed.first() {
            let class = &self.problem.classes[position];
            let choice = if class.candidates.len() == 1 { 0 } else { trees.get(&class.id).map_or(0, |tree| tree.1) };
            self.decide(position, choice);
            decided.push(position);
        }
        self.best_cost = self.bound;
        self.best = self.choices.clone();
        for position in decided.into_iter().rev() {
            self.undo(position);
        }
    }

    fn run(&mut self) {
        // What has one candidate is decided without branching, and taken back at the end.
        let mut forced = Vec::new();
        let branch = loop {
            let Some(&position) = self.needed.first() else { break None };
            if self.problem.classes[position].candidates.len() != 1 {
                break Some(position);
            }
            if self.closes_cycle(position, 0) {
                // A dead end: nothing below may be adopted.
                self.take_back(forced);
                return;
            }
            self.decide(position, 0);
            forced.push(position);
        };
        if self.bound < self.best_cost {
            match branch {
                Some(position) => self.branch(position),
                None => {
                    self.best_cost = self.bound;
                    self.best = self.choices.clone();
                }
            }
        }
        self.take_back(forced);
    }

    fn branch(&mut self, position: usize) {
        let class = &self.problem.classes[position];
        let mut order: Vec<(u64, usize)> =
            class.candidates.iter().enumerate().map(|(choice, candidate)| (self.delta(candidate), choice)).collect();
        order.sort_unstable();
        for (_, choice) in order {
            self.steps += 1;
            if self.step_limit < self.steps {
                return;
            }
            if self.closes_cycle(position, choice) {
                continue;
            }
            self.decide(position, choice);
            if self.bound < self.best_cost {
                self.run();
            }
            self.undo(position);
        }
    }

    /// What a candidate adds to the bound.
    fn delta(&self, candidate: &Choice) -> u64 {
        let open = candidate.inputs.iter().filter(|input| self.choices[**input].is_none());
        open.fold(candidate.cost, |sum, input| sum.saturating_add(self.problem.classes[*input].share))
    }

    fn need(&mut self, position: usize) {
        self.users[position] += 1;
        self.needed.insert(position);
        self.bound = self.bound.saturating_add(self.problem.classes[position].share);
    }

    fn decide(&mut self, position: usize, choice: usize) {
        let problem = self.problem;
        self.needed.remove(&position);
        self.bound -= problem.classes[position].share * self.users[position];
        self.choices[position] = Some(choice);
        let candidate = &problem.classes[position].candidates[choice];
        self.bound += candidate.cost;
        for &input in &candidate.inputs {
            if self.choices[input].is_none() {
                self.need(input);
            }
        }
    }

    /// The exact opposite of the last [`Search::decide`].
    fn undo(&mut self, position: usize) {
        let problem = self.problem;
        let Some(choice) = self.choices[position] else { return };
        let candidate = &problem.classes[position].candidates[choice];
        for &input in &candidate.inputs {
            if self.choices[input].is_none() {
                self.users[input] -= 1;
                self.bound -= problem.classes[input].share;
                if self.users[input] == 0 {
                    self.needed.remove(&input);
                }
            }
        }
        self.bound -= candidate.cost;
        self.choices[position] = None;
        self.needed.insert(position);
        self.bound += problem.classes[position].share * self.users[position];
    }

    fn take_back(&mut self, forced: Vec<usize>) {
        for position in forced.into_iter().rev() {
            self.undo(position);
        }
    }

    /// Whether a class would need itself through what is decided. Only classes of one cycle can.
    fn closes_cycle(&self, position: usize, choice: usize) -> bool {
        let classes = &self.problem.classes;
        let in_cycle = |input: &&usize| classes[**input].cycle == classes[position].cycle;
        let mut todo: Vec<usize> =
            classes[position].candidates[choice].inputs.iter().filter(in_cycle).copied().collect();
        let mut seen = BTreeSet::new();
        while let Some(at) = todo.pop() {
            if at == position {
                return true;
            }
            if let (true, Some(choice)) = (seen.insert(at), self.choices[at]) {
                todo.extend(classes[at].candidates[choice].inputs.iter().filter(in_cycle));
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egraph::Facts;
    use crate::egraph::analysis::LeafFact;
    use crate::target::Target;
    use ir::entity::Id as _;
    use ir::{DType, Shape, TensorType, ValueId};

    fn model() -> CostModel {
        CostModel::new("x86_64".parse::<Target>().unwrap().machine)
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % bound
        }
    }

    /// A random e-graph over two inputs: a few ops, then a few of its classes called equal, which makes sharing, choices and cycles.
    fn random_egraph(random: &mut Random) -> (EGraph, Vec<Id>) {
        let mut egraph = EGraph::new(Facts::default());
        let ty = TensorType::new(DType::F32, Shape::of(&[4]));
        let mut made: Vec<Id> = (0..2)
            .map(|index| {
                egraph.analysis.leaves.insert(ValueId::new(index), LeafFact { ty: ty.clone(), is_param: false });
                egraph.add(ENode::Value(ValueId::new(index)))
            })
            .collect();
        for _ in 0..6 + random.below(10) {
            let (left, right) = (made[random.below(made.len())], made[random.below(made.len())]);
            let node = match random.below(4) {
                0 => ENode::op("neg", [left]),
                1 => ENode::op("exp", [left]),
                2 => ENode::op("add", [left, right]),
                _ => ENode::op("sub", [left, right]),
            };
            made.push(egraph.add(node.unwrap()));
        }
        for _ in 0..random.below(8) {
            egraph.union(made[random.below(made.len())], made[random.below(made.len())]);
        }
        egraph.rebuild();
        let roots = (0..1 + random.below(2)).map(|_| made[made.len() - 1 - random.below(3)]).collect();
        (egraph, roots)
    }

    /// The least cost over all choices without a cycle, by trying them all.
    fn brute_force(egraph: &EGraph, model: &CostModel, chosen: &mut BTreeMap<Id, ENode>, todo: &[Id]) -> Option<u64> {
        let Some((&class, rest)) = todo.split_first() else { return (!has_cycle(egraph, chosen)).then_some(0) };
        let class = egraph.find(class);
        if chosen.contains_key(&class) {
            return brute_force(egraph, model, chosen, rest);
        }
        let mut least: Option<u64> = None;
        for node in &egraph[class].nodes {
            let candidate = candidate(egraph, node, false, model).unwrap();
            let todo: Vec<Id> = rest.iter().copied().chain(candidate.inputs.iter().copied()).collect();
            chosen.insert(class, candidate.node.clone());
            let cost = brute_force(egraph, model, chosen, &todo).map(|cost| cost + candidate.cost);
            chosen.remove(&class);
            least = [least, cost].into_iter().flatten().min();
        }
        least
    }

    fn has_cycle(egraph: &EGraph, chosen: &BTreeMap<Id, ENode>) -> bool {
        let mut done: BTreeSet<Id> = BTreeSet::new();
        loop {
            let before = done.len();
            for (class, node) in chosen {
                let (_, inputs, _) = node.parts().unwrap_or(("", &[], &[]));
                if inputs.iter().all(|input| done.contains(&egraph.find(*input))) {
                    done.insert(*class);
                }
            }
            if done.len() == before {
                return done.len() < chosen.len();
            }
        }
    }

    #[test]
    fn nothing_is_cheaper_than_what_is_extracted() {
        let model = model();
        let mut random = Random(1);
        let mut n_choices = 0;
        for round in 0..8000 {
            let (egraph, roots) = random_egraph(&mut random);
            let choices = extract(&egraph, &roots, &model, 100_000).unwrap();
            let least = brute_force(&egraph, &model, &mut BTreeMap::new(), &roots).unwrap();
            assert_eq!(choices.cost, least, "round {round}: {:?}", egraph.dump());
            assert!(choices.proved && !has_cycle(&egraph, &choices.nodes), "round {round}");
            let total: u64 =
                choices.nodes.values().map(|node| candidate(&egraph, node, false, &model).unwrap().cost).sum();
            assert_eq!(total, choices.cost, "round {round}");
            n_choices += choices.steps;
        }
        assert!(1000 < n_choices, "the random e-graphs ask for a search: {n_choices}");
    }

    #[test]
    fn a_step_limit_of_nothing_still_gives_a_graph() {
        let model = model();
        let mut random = Random(5);
        for _ in 0..200 {
            let (egraph, roots) = random_egraph(&mut random);
            let choices = extract(&egraph, &roots, &model, 0).unwrap();
            assert!(!has_cycle(&egraph, &choices.nodes));
            assert!(choices.proved == (choices.steps == 0));
        }
    }
}
