//! Which nodes a class may become, and which of them can be dropped without a search.

use std::collections::{BTreeMap, BTreeSet};

use egg::Id;

use crate::egraph::analysis::infer_node;
use crate::egraph::cost::{CostModel, WEIGHT_TIME_PS};
use crate::egraph::{EGraph, ENode};

/// A node that a class may become.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// The node, with canonical children.
    pub(super) node: ENode,
    /// Its own cost in picoseconds.
    pub(super) cost: u64,
    /// The classes of its tensor inputs, ascending, each once.
    pub(super) inputs: Vec<Id>,
}

/// The candidates of each class.
pub(super) type Candidates = BTreeMap<Id, Vec<Candidate>>;

/// For each class that has a tree, the cost of the cheapest and the candidate at its root.
pub(super) type Trees = BTreeMap<Id, (u64, usize)>;

/// The candidates of all classes that the roots may need. Nodes that need their own class are left out, and those that another node
/// beats: one that costs no more and needs no other classes.
pub(super) fn candidates(egraph: &EGraph, roots: &BTreeSet<Id>, model: &CostModel) -> Candidates {
    let mut found: Candidates = BTreeMap::new();
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

pub(super) fn candidate(egraph: &EGraph, node: &ENode, is_weight_time: bool, model: &CostModel) -> Option<Candidate> {
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
pub(super) fn smallest_trees(candidates: &Candidates) -> Trees {
    let mut trees: Trees = BTreeMap::new();
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

/// Drops candidates with an input that has no term.
pub(super) fn drop_without_term(candidates: &mut Candidates, with_term: &Trees) {
    for list in candidates.values_mut() {
        list.retain(|candidate| candidate.inputs.iter().all(|input| with_term.contains_key(input)));
    }
}

/// The node with the smallest tree of each class that is known at weight time.
pub(super) fn weight_time_nodes(egraph: &EGraph, candidates: &Candidates, trees: &Trees) -> BTreeMap<Id, Candidate> {
    let classes = trees.iter().filter(|(class, _)| is_weight_time(egraph, **class));
    classes.map(|(class, &(_, position))| (*class, candidates[class][position].clone())).collect()
}

/// Leaves classes that are known at weight time one candidate: their smallest tree, with its whole cost and without inputs.
pub(super) fn fix_weight_time(egraph: &EGraph, candidates: &mut Candidates, trees: &Trees) {
    for (&class, list) in candidates {
        if let (true, Some(&(cost, position))) = (is_weight_time(egraph, class), trees.get(&class)) {
            *list = vec![Candidate { node: list[position].node.clone(), cost, inputs: Vec::new() }];
        }
    }
}

/// Adds the nodes below the chosen ones that are known at weight time.
pub(super) fn add_weight_time(weight_nodes: &BTreeMap<Id, Candidate>, nodes: &mut BTreeMap<Id, ENode>) {
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
pub(super) fn drop_beaten(candidates: &mut Candidates, weight_nodes: &BTreeMap<Id, Candidate>, roots: &BTreeSet<Id>) {
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
    candidates: &'a Candidates,
    users: BTreeMap<Id, usize>,
}

impl<'a> Owned<'a> {
    fn new(candidates: &'a Candidates, roots: &BTreeSet<Id>) -> Self {
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
pub(super) struct Needs {
    index: BTreeMap<Id, usize>,
    sets: Vec<Option<Bits>>,
}

impl Needs {
    /// The largest solution of `needs(c) = c + what is in the needs of some input, for each of the candidates of c`. `None` stands for all
    /// classes, from which the sets only shrink.
    pub(super) fn new(candidates: &Candidates) -> Self {
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

    /// The classes that every graph of these roots contains.
    pub(super) fn of_roots(&self, roots: &BTreeSet<Id>) -> BTreeSet<Id> {
        let needed = self.of_all(&roots.iter().copied().collect::<Vec<_>>());
        self.index.iter().filter(|(_, index)| needed.contains(**index)).map(|(class, _)| *class).collect()
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
fn drop_unreachable(candidates: &mut Candidates, roots: &BTreeSet<Id>) {
    let mut reached = BTreeSet::new();
    let mut todo: Vec<Id> = roots.iter().copied().collect();
    while let Some(class) = todo.pop() {
        if reached.insert(class) {
            todo.extend(candidates[&class].iter().flat_map(|candidate| candidate.inputs.iter().copied()));
        }
    }
    candidates.retain(|class, _| reached.contains(class));
}
