//! The best graph in an e-graph, with shared nodes counted once.
//!
//! One node is chosen for each class that is needed, so that the chosen nodes have no cycle and their costs add up to the least. Four steps:
//!
//! 1. Classes that are known at weight time are cheap whatever is chosen, so each takes the smallest *tree*, from nodes that are themselves
//!    known at weight time.
//! 2. Candidates that another of their class beats in every graph are dropped (`candidates`).
//! 3. Classes that every graph contains cut the rest into regions, which do not depend on each other: a layer falls apart at the residual
//!    stream (`regions`).
//! 4. Each region is searched by branch and bound (`search`), from the smallest trees, for a number of decisions. The result says whether it
//!    is proved to be the best.

mod candidates;

mod regions;

mod search;

use std::collections::{BTreeMap, BTreeSet};

use egg::Id;

use self::candidates::{
    add_weight_time, candidates, drop_beaten, drop_without_term, fix_weight_time, smallest_trees, weight_time_nodes,
};
use self::regions::regions;
use self::search::{Problem, Search};
use super::cost::CostModel;
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

/// The cheapest nodes that compute `roots`. After `step_limit` decisions in a region the best found so far is returned.
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
    drop_without_term(&mut candidates, &with_term);
    let weight_trees = smallest_trees(&candidates);
    let weight_nodes = weight_time_nodes(egraph, &candidates, &weight_trees);
    fix_weight_time(egraph, &mut candidates, &weight_trees);
    drop_beaten(&mut candidates, &weight_nodes, &roots);
    let trees = smallest_trees(&candidates);
    let mut choices = Choices { nodes: BTreeMap::new(), cost: 0, proved: true, steps: 0 };
    for region in regions(candidates, &roots) {
        let problem = Problem::new(&region.candidates, &region.roots);
        let found = Search::run(&problem, &trees, step_limit);
        choices.nodes.extend(found.nodes);
        choices.cost += found.cost;
        choices.proved &= found.steps <= step_limit;
        choices.steps += found.steps;
    }
    add_weight_time(&weight_nodes, &mut choices.nodes);
    Ok(choices)
}

#[cfg(test)]
mod tests {
    use super::candidates::candidate;
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
