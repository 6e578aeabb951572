//! RoPE of queries and keys and the appends of keys and values, as one group: on a GPU they are four launches, and launches are what decode waits for.
//!
//! The pattern is found from an attention: its keys are an append of rows that a RoPE makes for nothing else, its values are an append at the same places,
//! and its queries are a RoPE by the same tables. Where a row of the table computes all of it, and no other group would have to run in between, the four
//! become one group.
//!
//! In calls of one token the group takes the attention as well, if a row computes all of that and nothing else reads the queries or the caches. With more
//! tokens, those of one sequence would have to see each other's keys, which several blocks append.

use std::ops::RangeInclusive;

use ir::entity::Id;
use ir::graph::{Def, Graph};
use ir::plan::Expr;
use ir::{DType, Op, Shape, ValueId};
use kernels::{CudaKernelDesc, Family, Sm, extent};

use super::Schedule;
use super::fuse::{group_of, readers};
use super::group::{Group, Kind, order};
use super::view::{Views, is_dense};
use crate::lower::cpu::{self, Wanted};
use crate::lower::cuda;

/// The values of such a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeAppend {
    /// The rotated queries.
    pub queries: ValueId,
    /// The rotated keys, which have no storage.
    pub rows: ValueId,
    /// The cache with the keys.
    pub keys: ValueId,
    /// The cache with the values.
    pub values: ValueId,
    /// The attention, if it is in the group: then the queries have no storage either.
    pub attention: Option<ValueId>,
}

/// What such a group reads, but for the caches and the spans of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Inputs {
    /// The queries.
    pub q: ValueId,
    /// The keys.
    pub k: ValueId,
    /// The values.
    pub v: ValueId,
    /// The cosines.
    pub cos: ValueId,
    /// The sines.
    pub sin: ValueId,
    /// The sequence of each token.
    pub seq: ValueId,
    /// Its position.
    pub pos: ValueId,
}

impl RopeAppend {
    /// What it reads, in the order of the kernel's arguments.
    pub fn inputs(&self, graph: &Graph) -> Inputs {
        let (queries, rows) = (graph.operands(self.queries), graph.operands(self.rows));
        let values = graph.operands(self.values);
        Inputs {
            q: queries[0],
            k: rows[0],
            v: values[1],
            cos: queries[1],
            sin: queries[2],
            seq: values[2],
            pos: values[3],
        }
    }

    /// The value of a dim of the kernel, by its name in the signature.
    pub fn dim(&self, graph: &Graph, views: &Views<'_>, name: &str) -> Option<Expr> {
        let Inputs { q, k, v, .. } = self.inputs(graph);
        let (queries, cache) = (graph.ty(self.queries), graph.ty(self.keys));
        let stride = |value: ValueId| Some(Expr::from(u64::try_from(views.resolve(value).strides[0]).ok()?));
        match name {
            "n" => Some(Expr::from(&queries.shape.0[0])),
            "heads" => Some(Expr::from(&queries.shape.0[1])),
            "hd" => Some(Expr::from(&queries.shape.0[2])),
            "seqs" => Some(Expr::from(&cache.shape.0[0])),
            "kv_heads" => Some(Expr::from(&cache.shape.0[1])),
            "ctx" => Some(Expr::from(&cache.shape.0[2])),
            "q_stride" => stride(q),
            "k_stride" => stride(k),
            "v_stride" => stride(v),
            name => cpu::dim(graph, self.attention?, name, 0),
        }
    }

    /// The row of the table that computes it in calls of a range of tokens.
    pub fn row(
        &self,
        graph: &Graph,
        views: &Views<'_>,
        tokens: &RangeInclusive<u64>,
        sm: Sm,
    ) -> Option<&'static CudaKernelDesc> {
        let wanted = Wanted {
            family: if self.attention.is_some() { Family::RopeAttention } else { Family::RopeAppend },
            inputs: vec![DType::F32, graph.ty(self.keys).dtype, graph.ty(self.values).dtype],
            output: DType::F32,
            layout: None,
            tokens: tokens.clone(),
        };
        let size = |name: &str| self.dim(graph, views, name).and_then(|expr| expr.as_const()).unwrap_or(0);
        let size = |name: &str| i64::try_from(size(name)).unwrap_or(i64::MAX);
        let is_within = extent::broken_limit(Family::Attention, &wanted.inputs, &size).is_none();
        cuda::best(&wanted, sm, &size).filter(|_| is_within)
    }

    fn members(&self) -> [ValueId; 4] {
        [self.queries, self.rows, self.keys, self.values]
    }

    /// The pattern behind one attention.
    fn find(graph: &Graph, views: &Views<'_>, live: &[bool], attention: ValueId) -> Option<Self> {
        let [queries, keys, values] = *graph.operands(attention).first_chunk()?;
        let is = |value: ValueId, wanted: fn(&Op) -> bool| graph.op(value).is_some_and(wanted);
        let rotates = |op: &Op| matches!(op, Op::Rope(_));
        let appends = |op: &Op| matches!(op, Op::KvAppend(_));
        if !is(queries, rotates) || !is(keys, appends) || !is(values, appends) {
            return None;
        }
        let rows = graph.operands(keys)[1];
        if !is(rows, rotates) || rows == queries {
            return None;
        }
        let found = Self { queries, rows, keys, values, attention: None };
        let is_alike = graph.operands(queries)[1..] == graph.operands(rows)[1..]
            && graph.operands(keys)[2..] == graph.operands(values)[2..];
        (is_alike && found.is_read_once(graph, live) && found.is_in_place(graph, views)).then_some(found)
    }

    /// Whether nothing but their append reads the rotated keys.
    fn is_read_once(&self, graph: &Graph, live: &[bool]) -> bool {
        let users = graph.values.ids().filter(|user| live[user.index()] && graph.operands(*user).contains(&self.rows));
        let mut roots = graph.outputs.iter().copied().chain(graph.updates.iter().map(|update| update.value));
        users.into_iter().eq([self.keys]) && !roots.any(|root| root == self.rows)
    }

    /// Whether all that is read is computed before, and lies as the kernel reads it; and none of it in what the kernel writes.
    fn is_in_place(&self, graph: &Graph, views: &Views<'_>) -> bool {
        let Inputs { q, k, v, cos, sin, seq, pos } = self.inputs(graph);
        let caches = [self.keys, self.values].map(|append| views.resolve(append).base);
        let is_input = |&value: &ValueId| {
            let base = views.resolve(value).base;
            !views.is_weight_time(base) && base != self.queries && !caches.contains(&base)
        };
        let has_heads_in_row = |&value: &ValueId| {
            let inner = Shape::new(graph.ty(value).shape.dims()[1..].iter().cloned());
            is_dense(&inner, &views.resolve(value).strides[1..])
        };
        let is_dense = |&value: &ValueId| views.contiguous_offset(value).is_some();
        caches[0] != caches[1]
            && [q, k, v, cos, sin, seq, pos].iter().all(is_input)
            && [q, k, v].iter().all(has_heads_in_row)
            && [cos, sin, seq, pos].iter().all(is_dense)
    }
}

/// Makes one group of the four of each pattern that a row computes, where that leaves an order to run in. Groups may be left without values.
pub(super) fn fuse(
    graph: &Graph,
    views: &Views<'_>,
    live: &[bool],
    sm: Sm,
    groups: &mut [Group],
    group_of: &mut Vec<Option<usize>>,
) {
    for (attention, value) in graph.values.iter() {
        let is_attention = matches!(&value.def, Def::Op { op: Op::Attention(_), .. });
        if !live[attention.index()] || !is_attention {
            continue;
        }
        let Some(found) = RopeAppend::find(graph, views, live, attention) else { continue };
        let homes = found.members().map(|member| group_of[member.index()]);
        let is_free = |home: &Option<usize>| home.is_some_and(|home| !matches!(groups[home].kind, Kind::RopeAppend(_)));
        if !homes.iter().all(is_free) || found.row(graph, views, &(1..=u64::MAX), sm).is_none() {
            continue;
        }
        // An append is a group of its own, so its place in the order of the program is free.
        let Some(home) = homes[2].max(homes[3]) else { continue };
        let mut fused = group_of.clone();
        found.members().iter().for_each(|member| fused[member.index()] = Some(home));
        if order(graph, views, &fused, groups.len()).is_none() {
            continue;
        }
        *group_of = fused;
        for group in groups.iter_mut() {
            group.values.retain(|value| !found.members().contains(value));
        }
        groups[home] = Group { kind: Kind::RopeAppend(found), values: found.members().to_vec(), outputs: Vec::new() };
    }
}

/// Lets the groups take the attention behind them, where `takes` says that a row computes all of it.
pub fn take_attention<'a>(
    mut schedule: Schedule<'a>,
    takes: &dyn Fn(&Schedule<'a>, &RopeAppend) -> bool,
) -> Schedule<'a> {
    let groups: Vec<RopeAppend> = schedule.groups.iter().filter_map(rope_append).collect();
    for group in groups {
        let Some(attention) = only_reader(&schedule, &group) else { continue };
        let fused = RopeAppend { attention: Some(attention), ..group };
        let (home, position) = (group_of(&schedule, group.keys), group_of(&schedule, attention));
        let (Some(home), Some(position)) = (home, position) else { continue };
        if !takes(&schedule, &fused) {
            continue;
        }
        let appended = schedule.groups[home].outputs.iter().filter(|value| **value != group.queries);
        let outputs = appended.chain(&schedule.groups[position].outputs).copied().collect();
        let values = fused.members().into_iter().chain([attention]).collect();
        // Nothing in between reads what is now computed later.
        schedule.groups[position] = Group { kind: Kind::RopeAppend(fused), values, outputs };
        schedule.groups.remove(home);
    }
    schedule
}

fn rope_append(group: &Group) -> Option<RopeAppend> {
    match group.kind {
        Kind::RopeAppend(group) => Some(group),
        Kind::Kernel | Kind::Nest | Kind::Repeat | Kind::Fused { .. } => None,
    }
}

/// The attention that reads the queries and both caches at the places of the appends, if nothing else of the call does.
fn only_reader(schedule: &Schedule<'_>, group: &RopeAppend) -> Option<ValueId> {
    let graph = schedule.graph;
    let (users, is_all) = readers(schedule, group.queries);
    let &[attention] = &users[..] else { return None };
    let is_attention = matches!(graph.op(attention), Some(Op::Attention(_)));
    let &[q, keys, values, seq, pos, _] = graph.operands(attention) else { return None };
    let is_alike =
        (q, keys, values) == (group.queries, group.keys, group.values) && graph.operands(keys)[2..] == [seq, pos];
    // The new states are the caches themselves, wherever in the call they are written.
    let is_private = [keys, values].iter().all(|&cache| readers(schedule, cache).0 == users);
    (is_attention && is_all && is_alike && is_private).then_some(attention)
}
