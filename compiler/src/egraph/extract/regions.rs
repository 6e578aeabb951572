//! Where the choices of an e-graph fall apart: regions that can be searched one by one.

use std::collections::{BTreeMap, BTreeSet};

use egg::Id;
use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::unionfind::UnionFind;

use super::candidates::{Candidates, Needs};

/// Classes whose choices concern each other only.
pub(super) struct Region {
    /// Their candidates. Inputs that lie in another region are left out: they are needed, and paid for, whatever is chosen here.
    pub(super) candidates: Candidates,
    /// The classes among them that are needed in any case.
    pub(super) roots: BTreeSet<Id>,
}

/// Cuts candidates at the classes that every graph of the roots contains. Classes that could use the same other class are in one region, and
/// so are those of one cycle, because only together can they avoid it.
pub(super) fn regions(candidates: Candidates, roots: &BTreeSet<Id>) -> Vec<Region> {
    let always = Needs::new(&candidates).of_roots(roots);
    let index: BTreeMap<Id, usize> = candidates.keys().enumerate().map(|(index, class)| (*class, index)).collect();
    let mut joined = UnionFind::new(index.len());
    for (class, list) in &candidates {
        for input in list.iter().flat_map(|candidate| &candidate.inputs) {
            if !always.contains(input) {
                joined.union(index[class], index[input]);
            }
        }
    }
    for members in cycles(&candidates) {
        for pair in members.windows(2) {
            joined.union(index[&pair[0]], index[&pair[1]]);
        }
    }
    let mut regions: BTreeMap<usize, Region> = BTreeMap::new();
    for (class, mut list) in candidates {
        let at = joined.find(index[&class]);
        for candidate in &mut list {
            candidate.inputs.retain(|input| joined.find(index[input]) == at);
        }
        let region =
            regions.entry(at).or_insert_with(|| Region { candidates: BTreeMap::new(), roots: BTreeSet::new() });
        if always.contains(&class) {
            region.roots.insert(class);
        }
        region.candidates.insert(class, list);
    }
    regions.into_values().collect()
}

/// The classes in groups: those of one cycle together, users before operands.
pub(super) fn cycles(candidates: &Candidates) -> Vec<Vec<Id>> {
    let mut digraph: DiGraph<Id, ()> = DiGraph::new();
    let at: BTreeMap<Id, NodeIndex> = candidates.keys().map(|&class| (class, digraph.add_node(class))).collect();
    for (class, list) in candidates {
        let inputs: BTreeSet<Id> = list.iter().flat_map(|candidate| candidate.inputs.iter().copied()).collect();
        for input in inputs {
            digraph.add_edge(at[class], at[&input], ());
        }
    }
    // Operands come first out of petgraph, and are wanted last.
    let groups = tarjan_scc(&digraph).into_iter().rev();
    groups
        .map(|members| {
            let members: BTreeSet<Id> = members.into_iter().map(|index| digraph[index]).collect();
            members.into_iter().collect()
        })
        .collect()
}
