//! Branch and bound over one region: which candidate each class becomes.
//!
//! Classes are decided users before operands. One that several users share is charged in parts: with `p` classes that could use it, each pays
//! `1/p` of what it costs at least. So the bound of a partial choice,
//!
//! ```text
//! bound = cost of decided nodes + sum over needed, undecided classes of floor(least / p) * (users decided so far)
//! least(c) = min over nodes of (cost + sum over operands of floor(least / p))
//! ```
//!
//! only grows as decisions are taken, and ends as the true cost. (Operands in a cycle with `c` count as 0 in `least`, which keeps it a bound.)
//! For three matmuls against slices of a merged one, it is nearly the true cost at once.

use std::collections::{BTreeMap, BTreeSet};

use egg::Id;

use super::candidates::{Candidate, Candidates, Trees};
use super::regions::cycles;
use crate::egraph::ENode;

/// The search problem over positions: users come before their operands, except within cycles.
pub(super) struct Problem {
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
    /// The problem of these candidates; `roots` are needed in any case.
    pub(super) fn new(candidates: &Candidates, roots: &BTreeSet<Id>) -> Self {
        let cycles = cycles(candidates);
        let mut position_of = BTreeMap::new();
        let mut order = Vec::new();
        for (cycle, members) in cycles.iter().enumerate() {
            for &id in members {
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

/// The search itself.
pub(super) struct Search<'a> {
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

/// What a search found.
pub(super) struct Found {
    /// The node of each class that is needed.
    pub(super) nodes: BTreeMap<Id, ENode>,
    /// What they cost together.
    pub(super) cost: u64,
    /// Decisions taken; more than the limit if it was met.
    pub(super) steps: u64,
}

impl<'a> Search<'a> {
    /// The cheapest choice, or the best that `step_limit` decisions find.
    pub(super) fn run(problem: &'a Problem, trees: &Trees, step_limit: u64) -> Found {
        let mut search = Search::new(problem, step_limit);
        search.adopt_trees(trees);
        search.descend();
        let mut nodes = BTreeMap::new();
        for (class, choice) in problem.classes.iter().zip(&search.best) {
            if let Some(choice) = choice {
                nodes.insert(class.id, class.candidates[*choice].node.clone());
            }
        }
        Found { nodes, cost: search.best_cost, steps: search.steps }
    }

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
    fn adopt_trees(&mut self, trees: &Trees) {
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

    fn descend(&mut self) {
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
                self.descend();
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
