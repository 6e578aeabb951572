//! The rewrites between memory schedules: every alternative that a class may hold is made by one of them.

use egg::{Applier, EGraph, Id, PatternAst, Rewrite, Subst, Symbol, Var, rewrite};

use super::language::{DEVICE, Node, name_of};
use super::{Offers, Profile, bits, copies};

type Schedules = EGraph<Node, ()>;
pub(crate) type Rule = Rewrite<Node, ()>;

/// The rules for what is offered and for the formats that there are profiles of.
pub(crate) fn rules(offers: &Offers, profiles: &[Profile]) -> Vec<Rule> {
    let mut rules = vec![
        // choose-format: a model may run in any of its formats, with all that a call needs in this one around its layers.
        rewrite!("choose-format";
            "(layers ?n ?resident ?streamed ?kv ?chunk)" =>
            "(call ?resident ?kv ?chunk (group ?n ?resident ?streamed ?kv ?chunk))"),
        // keep-layers: layers may stay on the device.
        rewrite!("keep-layers"; "(group ?n ?resident ?streamed ?kv ?chunk)" => "(stay ?n ?resident ?streamed ?kv ?chunk)"),
        // split-group: a group is two halves, each of which goes its own way. Layers are alike, so any number of them gets anywhere.
        rewrite!("split-group"; "(group ?n ?resident ?streamed ?kv ?chunk)" => {
            Halve { vars: ["?n", "?resident", "?streamed", "?kv", "?chunk"].map(var) }
        }),
    ];
    let formats = |pick: fn(&Profile) -> Node| {
        let mut values: Vec<Node> = Vec::new();
        for value in profiles.iter().map(pick) {
            if !values.contains(&value) {
                values.push(value);
            }
        }
        values
    };
    let packings = formats(|profile| Node::Name(Symbol::from(bits(profile.format.packing))));
    let kvs = formats(|profile| Node::Name(Symbol::from(profile.format.kv.as_str())));
    let chunks = formats(|profile| Node::Count(profile.format.chunk));
    let at = |values: &[Node], places: &[usize]| Alternatives {
        values: values.to_vec(),
        places: places.to_vec(),
        of: LAYERS.map(var),
        node: Node::Layers,
    };
    // try-...: another format of the caches, another size of a call, another packing of the layers.
    rules.push(rewrite!("try-cache"; "(layers ?n ?resident ?streamed ?kv ?chunk)" => { at(&kvs, &[3]) }));
    rules.push(rewrite!("try-chunk"; "(layers ?n ?resident ?streamed ?kv ?chunk)" => { at(&chunks, &[4]) }));
    if offers.mixed_packing {
        rules.push(rewrite!("pack-resident"; "(layers ?n ?resident ?streamed ?kv ?chunk)" => { at(&packings, &[1]) }));
        rules.push(rewrite!("pack-streamed"; "(layers ?n ?resident ?streamed ?kv ?chunk)" => { at(&packings, &[2]) }));
    } else {
        rules.push(rewrite!("pack"; "(layers ?n ?resident ?streamed ?kv ?chunk)" => { at(&packings, &[1, 2]) }));
    }
    if offers.streaming {
        // stream-layers: layers may be copied for each call.
        rules.push(rewrite!("stream-layers";
            "(group ?n ?resident ?streamed ?kv ?chunk)" => "(stream ?n ?resident ?streamed ?kv ?chunk)"));
        let counts = |counts: &[u32]| counts.iter().map(|&count| Node::Count(count)).collect::<Vec<_>>();
        let sources: Vec<Node> = offers.sources.iter().map(|&tier| Node::Name(Symbol::from(name_of(tier)))).collect();
        let at = |values: Vec<Node>, place| Alternatives {
            values,
            places: vec![place],
            of: PREFETCH.map(var),
            node: Node::Prefetch,
        };
        // cut-layers, add-slots, stream-from: how pieces get to the device.
        rules.push(rewrite!("cut-layers";
            "(prefetch ?split ?slots ?source ?copies ?body)" => { at(counts(&offers.splits), 0) }));
        rules.push(rewrite!("add-slots";
            "(prefetch ?split ?slots ?source ?copies ?body)" => { at(counts(&offers.slots), 1) }));
        let packings = [false, true].map(|packs| Node::Name(Symbol::from(copies(packs))));
        if offers.packs_copies {
            // pack-copies: ternary weights may travel packed more tightly than kernels read them.
            rules.push(rewrite!("pack-copies";
                "(prefetch ?split ?slots ?source ?copies ?body)" => { at(packings.to_vec(), 3) }));
        }
        rules.push(rewrite!("stream-from"; "(prefetch ?split ?slots ?source ?copies ?body)" => { at(sources, 2) }));
    }
    if offers.host_embedding {
        // embed-from-host: a table that rows are gathered from may stay in host memory.
        let from = format!("(run {DEVICE} ?body)").parse::<egg::Pattern<Node>>();
        let to = "(run host ?body)".parse::<egg::Pattern<Node>>();
        let (from, to) = (from.expect("it is a term"), to.expect("it is a term"));
        rules.push(Rewrite::new("embed-from-host", from, to).expect("both sides have the same variables"));
    }
    rules
}

const LAYERS: [&str; 5] = ["?n", "?resident", "?streamed", "?kv", "?chunk"];
const PREFETCH: [&str; 5] = ["?split", "?slots", "?source", "?copies", "?body"];

fn var(name: &str) -> Var {
    name.parse().expect("it is the name of a variable")
}

/// The number that a class is.
fn count_of(schedules: &Schedules, id: Id) -> Option<u32> {
    schedules[id].nodes.iter().find_map(|node| match node {
        Node::Count(count) => Some(*count),
        _ => None,
    })
}

/// A group of more than one layer as two halves.
struct Halve {
    vars: [Var; 5],
}

impl Applier<Node, ()> for Halve {
    fn apply_one(
        &self,
        schedules: &mut Schedules,
        class: Id,
        subst: &Subst,
        _: Option<&PatternAst<Node>>,
        _: Symbol,
    ) -> Vec<Id> {
        let [n, rest @ ..] = self.vars.map(|var| subst[var]);
        let Some(layers) = count_of(schedules, n).filter(|layers| 1 < *layers) else { return Vec::new() };
        let mut half = |layers: u32| {
            let n = schedules.add(Node::Count(layers));
            let [resident, streamed, kv, chunk] = rest;
            schedules.add(Node::Group([n, resident, streamed, kv, chunk]))
        };
        let halves = [half(layers.div_ceil(2)), half(layers / 2)];
        let both = schedules.add(Node::Both(halves));
        if schedules.union(class, both) { vec![class] } else { Vec::new() }
    }
}

/// A node with other values in some of its places, the same in all of them.
struct Alternatives<const N: usize> {
    values: Vec<Node>,
    places: Vec<usize>,
    of: [Var; N],
    node: fn([Id; N]) -> Node,
}

impl<const N: usize> Applier<Node, ()> for Alternatives<N> {
    fn apply_one(
        &self,
        schedules: &mut Schedules,
        class: Id,
        subst: &Subst,
        _: Option<&PatternAst<Node>>,
        _: Symbol,
    ) -> Vec<Id> {
        let mut changed = Vec::new();
        for value in &self.values {
            let value = schedules.add(value.clone());
            let mut children = self.of.map(|var| subst[var]);
            self.places.iter().for_each(|&place| children[place] = value);
            let other = schedules.add((self.node)(children));
            if schedules.union(class, other) {
                changed.push(class);
            }
        }
        changed
    }
}
