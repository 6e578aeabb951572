//! Which values become one kernel, and in which order kernels run.
//!
//! Kinds of groups: one op that a row of the kernel table computes; one repeat or scan, with what its rounds leave; *nests*, sets of row-wise ops over the same rows, for which code
//! is generated; on GPUs what [`super::rope_append`] finds, and for calls of few tokens what [`super::fuse`] makes of these. A value joins the nest of a producer if both have the same rows and no path
//! between them leaves the nest and comes back, and so do, in steps of training, nests of which one reads the other. Row formats, rotary embeddings and joined tensors end a nest: their readers see whole rows.

use std::collections::BTreeSet;

use ir::entity::Id;
use ir::graph::{Def, Graph};
use ir::op::control::Scan;
use ir::{DType, Dim, Op, Shape, ValueId};
use petgraph::algo::{has_path_connecting, toposort};
use petgraph::graph::{DiGraph, NodeIndex};

use super::rope_append::{self, RopeAppend};
use super::view::{Views, is_widening};
use crate::target::Hardware;

/// What becomes one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// How it is computed.
    pub kind: Kind,
    /// Its values, operands before users.
    pub values: Vec<ValueId>,
    /// Those that others read: they get storage.
    pub outputs: Vec<ValueId>,
}

/// How a group is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By a row of the kernel table.
    Kernel,
    /// By generated code.
    Nest,
    /// By a row of the table that computes several values.
    RopeAppend(RopeAppend),
    /// By the steps of a body.
    Repeat,
    /// By a row of the kernel table with generated code in its kernel.
    Fused {
        /// The position in the group's values of the one that the row computes: those ahead of it are its activations, those behind it follow from it.
        product: usize,
    },
}

/// The groups of one graph, in the order in which they run.
#[derive(Debug)]
pub struct Schedule<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// What each value is.
    pub views: Views<'a>,
    /// In order.
    pub groups: Vec<Group>,
}

/// Why a graph cannot be scheduled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Only the outermost dimension of a stored value may be a symbol.
    #[error(
        "`{value}` has the type {ty}: only the outermost dimension of a stored value may be a symbol; permute it so"
    )]
    InnerSymbol {
        /// The value.
        value: String,
        /// Its type.
        ty: String,
    },
    /// A state's old value is needed after it is overwritten.
    #[error("the old value of state `{state}` is read after its update, and there is no copy of it")]
    StateOrder {
        /// The state.
        state: String,
    },
}

/// Whether a row of the kernel table computes this op.
fn is_kernel(op: &Op) -> bool {
    matches!(
        op,
        Op::TernaryMatmul(_)
            | Op::TernaryMatmulBase3(_)
            | Op::TernaryMatmulTransposed(_)
            | Op::UnpackInCall(_)
            | Op::Matmul(_)
            | Op::QuantizedMatmul(_)
            | Op::Gemm(_)
            | Op::Attention(_)
            | Op::KvAppend(_)
            | Op::Sample(_)
            | Op::AttentionLse(_)
            | Op::AttentionQueryGradient(_)
            | Op::AttentionCacheGradient(_)
            | Op::ScatterAdd(_)
            | Op::TernaryScale(_)
            | Op::RowThreshold(_)
    )
}

/// Whether readers of this op's result need whole rows of it, or what is left of a number in a narrow type, so that it must be stored.
fn ends_nest(graph: &Graph, value: ValueId) -> bool {
    let dtype = graph.ty(value).dtype;
    dtype.is_row_format()
        || matches!(dtype, DType::F16 | DType::BF16 | DType::I8)
        || matches!(graph.op(value), Some(Op::Rope(_) | Op::Concat(_) | Op::Argmax(_)))
        || graph.op(value).is_some_and(is_by_element)
}

/// Whether each element of an op's result is a unit of its nest, because it takes a loop of its own; else a row is.
pub(crate) fn is_by_element(op: &Op) -> bool {
    matches!(op, Op::SumTo(_) | Op::CrossEntropy(_))
}

/// Whether nests of which one reads the other become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joining {
    /// They do, and every nest widens for itself what is stored in 16 bits, which saves launches and what goes through memory between them: for steps of
    /// training, which are made of them.
    Nests,
    /// Only a value joins a nest. What a card needs for inference was measured so, and predictions are held to it.
    Values,
}

/// The groups of a graph on a target.
///
/// # Errors
///
/// Every value that has no place in memory.
pub fn group(graph: &Graph, hardware: Hardware, joining: Joining) -> Result<Schedule<'_>, Vec<ScheduleError>> {
    let live = graph.live();
    let mut views = Views::new(graph);
    materialise(graph, &live, joining, &mut views);
    let mut errors = Vec::new();
    let mut ctx = Ctx {
        graph,
        views: &views,
        joining,
        groups: Vec::new(),
        group_of: vec![None; graph.values.len()],
        edges: BTreeSet::new(),
    };
    for (id, value) in graph.values.iter() {
        let Def::Op { op, .. } = &value.def else { continue };
        if !live[id.index()] || views.is_weight_time(id) || (views.is_view(id) && !matches!(op, Op::KvAppend(_))) {
            continue;
        }
        if value.ty.shape.dims().iter().skip(1).any(|dim| matches!(dim, Dim::Sym(_))) {
            errors.push(ScheduleError::InnerSymbol { value: graph.label(id), ty: value.ty.to_string() });
            continue;
        }
        ctx.place(id, op);
    }
    let Ctx { mut groups, mut group_of, .. } = ctx;
    if let Hardware::Cuda(sm) = hardware {
        rope_append::fuse(graph, &views, &live, sm, &mut groups, &mut group_of);
    }
    find_outputs(graph, &views, &live, &group_of, &mut groups);
    let order = order(graph, &views, &group_of, groups.len());
    if order.is_none() {
        let states = graph.updates.iter().map(|update| ScheduleError::StateOrder { state: graph.label(update.state) });
        errors.extend(states);
    }
    match order {
        Some(order) if errors.is_empty() => {
            let mut groups: Vec<Option<Group>> = groups.into_iter().map(Some).collect();
            let in_order = order.into_iter().filter_map(|index| groups[index].take());
            let in_order = in_order.filter(|group| !group.values.is_empty()).collect();
            Ok(Schedule { graph, views, groups: in_order })
        }
        _ => Err(errors),
    }
}

/// Finds the movement results that kernels need in storage of their own.
fn materialise(graph: &Graph, live: &[bool], joining: Joining, views: &mut Views<'_>) {
    // Kernels of the table read a type as it is; nests widen as they load.
    let widen = |value: ValueId, views: &mut Views<'_>| {
        if let Some(wide) = views.widened(value) {
            views.materialise(wide);
        }
    };
    let need = |value: ValueId, views: &mut Views<'_>| {
        if views.is_weight_time(value) {
            return;
        }
        widen(value, views);
        if views.contiguous_offset(value).is_none() {
            views.materialise(value);
        }
    };
    if joining == Joining::Values {
        graph.values.ids().filter(|&id| is_widening(graph, id)).for_each(|wide| views.materialise(wide));
    }
    for (id, value) in graph.values.iter() {
        let Def::Op { op, inputs } = &value.def else { continue };
        if !live[id.index()] || views.is_weight_time(id) {
            continue;
        }
        match op {
            // A reshape that no strides express reads a dense copy.
            Op::Reshape(_) if views.resolve(id).base == id => views.materialise(inputs[0]),
            Op::KvAppend(_) => {
                for &input in &inputs[2..] {
                    need(input, views);
                }
                widen(inputs[1], views);
                // The kernel takes any distance between tokens, but heads lie side by side.
                let (ty, view) = (graph.ty(inputs[1]), views.resolve(inputs[1]));
                let inner = Shape::new(ty.shape.dims()[1..].iter().cloned());
                if !super::view::is_dense(&inner, &view.strides[1..]) {
                    views.materialise(inputs[1]);
                }
            }
            op if is_kernel(op) || op.body().is_some() => {
                for &input in inputs {
                    need(input, views);
                }
            }
            _ => {}
        }
    }
    for &output in &graph.outputs {
        need(output, views);
    }
    for update in &graph.updates {
        need(update.value, views);
    }
}

struct Ctx<'a> {
    graph: &'a Graph,
    views: &'a Views<'a>,
    joining: Joining,
    groups: Vec<Group>,
    group_of: Vec<Option<usize>>,
    /// From a group to one that needs it.
    edges: BTreeSet<(usize, usize)>,
}

impl Ctx<'_> {
    fn place(&mut self, id: ValueId, op: &Op) {
        let producers = self.producers(id);
        if let Op::Stacked(_) = op {
            let scan = self.graph.operands(id)[0];
            let home = self.group_of[scan.index()].expect("a scan stands before what is read of it");
            self.groups[home].values.push(id);
            self.group_of[id.index()] = Some(home);
            return;
        }
        let kind = match op {
            Op::Repeat(_) | Op::Scan(_) => Kind::Repeat,
            op if is_kernel(op) => Kind::Kernel,
            _ => Kind::Nest,
        };
        let home = match kind {
            Kind::Nest => self.joinable(id, &producers).or_else(|| self.of_loss(id, &producers)),
            Kind::Kernel | Kind::RopeAppend(_) | Kind::Repeat | Kind::Fused { .. } => None,
        };
        let home = home.unwrap_or_else(|| {
            self.groups.push(Group { kind, values: Vec::new(), outputs: Vec::new() });
            self.groups.len() - 1
        });
        self.groups[home].values.push(id);
        self.group_of[id.index()] = Some(home);
        self.edges.extend(producers.iter().copied().filter(|&producer| producer != home).map(|from| (from, home)));
        if kind == Kind::Nest && self.joining == Joining::Nests {
            producers.into_iter().filter(|&producer| producer != home).for_each(|other| self.merge(other, home));
        }
    }

    fn producers(&self, id: ValueId) -> BTreeSet<usize> {
        producers(self.graph, self.views, &self.group_of, id)
    }

    /// Makes one nest of two of which the second reads the first, if a row of the second needs nothing of the first but the same row.
    fn merge(&mut self, from: usize, into: usize) {
        let is_between =
            |group: usize| group != into && self.edges.contains(&(from, group)) && self.depends(into, group);
        let is_of_row = |&user: &ValueId| {
            let graph = self.graph;
            let is_owned =
                |operand: ValueId| self.group_of[storage_owner(graph, self.views, operand).index()] == Some(from);
            graph.operands(user).iter().all(|&operand| !is_owned(operand) || self.is_direct(user, operand))
        };
        let fits = self.groups[from].kind == Kind::Nest
            && self.rows_of(from).is_some_and(|rows| self.rows_of(into) == Some(rows))
            && self.groups[into].values.iter().all(is_of_row)
            && !(0..self.groups.len()).any(is_between);
        if !fits {
            return;
        }
        let values = std::mem::take(&mut self.groups[from].values);
        for value in &values {
            self.group_of[value.index()] = Some(into);
        }
        let all = &mut self.groups[into].values;
        all.extend(values);
        all.sort();
        let renamed = |group: usize| if group == from { into } else { group };
        let edges = self.edges.iter().map(|&(on, user)| (renamed(on), renamed(user)));
        self.edges = edges.filter(|(on, user)| on != user).collect();
    }

    /// The dimensions of the rows of a nest, if there are several: what is computed of one row is best given to several at work at the same time.
    fn rows_of(&self, group: usize) -> Option<&[Dim]> {
        let first = *self.groups[group].values.first()?;
        let rows = self.graph.ty(first).shape.outer();
        let is_by_row = !self.graph.op(first).is_some_and(is_by_element);
        (is_by_row && rows.iter().any(|dim| *dim != Dim::Const(1))).then_some(rows)
    }

    /// Whether an operand may be computed in the nest of a value: a row of the value needs the same row of it.
    fn is_direct(&self, id: ValueId, operand: ValueId) -> bool {
        let owner = storage_owner(self.graph, self.views, operand);
        owner == operand
            && self.group_of[owner.index()].is_some_and(|group| self.groups[group].kind == Kind::Nest)
            && (!ends_nest(self.graph, operand) || self.is_stored_narrow(id, operand))
            && self.graph.ty(operand).shape.outer() == self.graph.ty(id).shape.outer()
            && !self.views.is_view(operand)
            && !matches!(
                self.graph.op(id),
                Some(
                    Op::Gather(_)
                        | Op::Concat(_)
                        | Op::Reshape(_)
                        | Op::Permute(_)
                        | Op::Slice(_)
                        | Op::Broadcast(_)
                        | Op::SumTo(_)
                        | Op::CrossEntropy(_)
                        | Op::KvRows(_)
                )
            )
    }

    /// Whether a value is nothing but the type in which rotated rows are stored.
    fn is_stored_narrow(&self, id: ValueId, operand: ValueId) -> bool {
        self.joining == Joining::Nests
            && matches!((self.graph.op(id), self.graph.op(operand)), (Some(Op::Cast(_)), Some(Op::Rope(_))))
    }

    /// The nest of a loss whose gradient this is: what both need of a row of logits is then computed once.
    fn of_loss(&self, id: ValueId, producers: &BTreeSet<usize>) -> Option<usize> {
        let Some(Op::CrossEntropyGradient(_)) = self.graph.op(id) else { return None };
        let is_loss = |&other: &ValueId| {
            let same = self.graph.operands(other).iter().eq(&self.graph.operands(id)[..2]);
            same && matches!(self.graph.op(other), Some(Op::CrossEntropy(_)))
        };
        let home = self.group_of[self.graph.values.ids().find(is_loss)?.index()]?;
        let fits = self.joining == Joining::Nests && producers.iter().all(|&producer| !self.depends(producer, home));
        fits.then_some(home)
    }

    /// The nest of a producer that the value can join, the latest if there are several; in steps of training the one that waits for the most others, so
    /// that what is known early need not wait for what is not.
    fn joinable(&self, id: ValueId, producers: &BTreeSet<usize>) -> Option<usize> {
        let mut homes = BTreeSet::new();
        let mut through_memory = BTreeSet::new();
        for &operand in self.graph.operands(id) {
            let owner = storage_owner(self.graph, self.views, operand);
            let Some(group) = self.group_of[owner.index()] else { continue };
            if self.is_direct(id, operand) {
                homes.insert(group)
            } else {
                through_memory.insert(group)
            };
        }
        let mut homes: Vec<usize> = homes.into_iter().rev().collect();
        if self.joining == Joining::Nests && 1 < homes.len() {
            homes.sort_by_cached_key(|&home| {
                std::cmp::Reverse(
                    (0..self.groups.len()).filter(|&other| other != home && self.depends(home, other)).count(),
                )
            });
        }
        homes.into_iter().find(|&home| {
            !through_memory.contains(&home)
                && producers.iter().all(|&producer| producer == home || !self.depends(producer, home))
        })
    }

    /// Whether group `user` needs group `on`, directly or not.
    fn depends(&self, user: usize, on: usize) -> bool {
        let digraph = digraph(self.groups.len(), &self.edges);
        has_path_connecting(&digraph, NodeIndex::new(on), NodeIndex::new(user), None)
    }
}

/// The groups whose results a value reads, through views.
fn producers(graph: &Graph, views: &Views<'_>, group_of: &[Option<usize>], id: ValueId) -> BTreeSet<usize> {
    let operands = graph.operands(id).iter();
    operands.filter_map(|&operand| group_of[storage_owner(graph, views, operand).index()]).collect()
}

/// An order in which every group stands behind those it needs; `None` if there is none.
pub(super) fn order(
    graph: &Graph,
    views: &Views<'_>,
    group_of: &[Option<usize>],
    n_groups: usize,
) -> Option<Vec<usize>> {
    let mut edges = BTreeSet::new();
    for id in graph.values.ids() {
        let Some(home) = group_of[id.index()] else { continue };
        let producers = producers(graph, views, group_of, id).into_iter();
        edges.extend(producers.filter(|&producer| producer != home).map(|producer| (producer, home)));
    }
    state_order(graph, views, group_of, &mut edges);
    let runs_back = |id: &ValueId| matches!(graph.op(*id), Some(Op::Scan(Scan { reverse: 1, .. })));
    let back: Vec<usize> = graph.values.ids().filter(runs_back).filter_map(|id| group_of[id.index()]).collect();
    let order = sort(n_groups, &edges)?;
    Some(back.into_iter().fold(order, |order, scan| ahead_of(order, scan, &edges)))
}

/// The order with all that does not wait for a scan ahead of it. One that runs back holds all that the rounds forward have left: what else they or the
/// layers behind them left, the gradient of the logits above all, is better used up and forgotten by then.
fn ahead_of(order: Vec<usize>, scan: usize, edges: &BTreeSet<(usize, usize)>) -> Vec<usize> {
    let mut waits = BTreeSet::from([scan]);
    for &group in &order {
        if edges.iter().any(|(on, user)| *user == group && waits.contains(on)) {
            waits.insert(group);
        }
    }
    let (after, before): (Vec<usize>, Vec<usize>) = order.into_iter().partition(|group| waits.contains(group));
    before.into_iter().chain(after).collect()
}

/// The value whose computation a read of `value` waits for: through views, but an append is what fills the cache that it aliases.
pub(crate) fn storage_owner(graph: &Graph, views: &Views<'_>, mut value: ValueId) -> ValueId {
    loop {
        if matches!(graph.op(value), Some(Op::KvAppend(_))) || !views.is_view(value) {
            return value;
        }
        value = graph.operands(value)[0];
    }
}

/// Readers of a state's old value run before the append that overwrites it.
fn state_order(graph: &Graph, views: &Views<'_>, group_of: &[Option<usize>], edges: &mut BTreeSet<(usize, usize)>) {
    for (append, value) in graph.values.iter() {
        let Def::Op { op: Op::KvAppend(_), inputs } = &value.def else { continue };
        let Some(writer) = group_of[append.index()] else { continue };
        for reader in graph.values.ids() {
            let reads_old = reader != append
                && graph.operands(reader).iter().any(|&operand| storage_owner(graph, views, operand) == inputs[0]);
            match group_of[reader.index()] {
                Some(group) if reads_old && group != writer => {
                    edges.insert((group, writer));
                }
                _ => {}
            }
        }
    }
}

fn find_outputs(graph: &Graph, views: &Views<'_>, live: &[bool], group_of: &[Option<usize>], groups: &mut [Group]) {
    let mut is_output = vec![false; graph.values.len()];
    for id in graph.values.ids().filter(|id| live[id.index()] && !views.is_weight_time(*id)) {
        for &operand in graph.operands(id) {
            let owner = storage_owner(graph, views, operand);
            let is_inside = group_of[owner.index()].is_some() && group_of[owner.index()] == group_of[id.index()];
            is_output[owner.index()] |= !is_inside || owner != operand;
        }
    }
    for root in graph.outputs.iter().copied().chain(graph.updates.iter().map(|update| update.value)) {
        is_output[storage_owner(graph, views, root).index()] = true;
    }
    for group in groups {
        group.outputs = group.values.iter().copied().filter(|value| is_output[value.index()]).collect();
    }
}

fn digraph(n_groups: usize, edges: &BTreeSet<(usize, usize)>) -> DiGraph<(), ()> {
    let mut digraph = DiGraph::new();
    for _ in 0..n_groups {
        digraph.add_node(());
    }
    digraph.extend_with_edges(edges.iter().map(|&(from, to)| (NodeIndex::new(from), NodeIndex::<u32>::new(to))));
    digraph
}

/// An order of groups that keeps to the edges.
fn sort(n_groups: usize, edges: &BTreeSet<(usize, usize)>) -> Option<Vec<usize>> {
    // A depth-first order read from the last node gives the order of the program back wherever dependencies leave a choice.
    let mut reversed = DiGraph::<(), ()>::new();
    for _ in 0..n_groups {
        reversed.add_node(());
    }
    let flip = |index: usize| NodeIndex::<u32>::new(n_groups - 1 - index);
    reversed.extend_with_edges(edges.iter().map(|&(from, to)| (flip(from), flip(to))));
    let order = toposort(&reversed, None).ok()?;
    Some(order.into_iter().map(|node| n_groups - 1 - node.index()).collect())
}
