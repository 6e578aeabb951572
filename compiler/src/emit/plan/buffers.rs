//! What lies at the same place in every phase: weights, states, inputs, outputs.

use std::collections::{HashMap, HashSet};

use ir::entity::Id;
use ir::packing::TernaryLayout;
use ir::plan::{ALIGNMENT, Buffer, BufferId, Expr, Io, ROUND, Role};
use ir::{Graph, Op, ValueId};

use super::{Emitter, Place, PlanEmitError, nest_key};
use crate::egraph::cost;
use crate::lower::cpu;
use crate::optimiser::{GRADIENT, gradient_of_all_rounds};
use crate::schedule::{Kind, Schedule};
use crate::training::ACCUMULATE;
use crate::weights::{StoredTensor, Wanted, is_of_rounds};

impl Emitter<'_> {
    /// Finds the weight-time values that steps read, and gives each a tensor and a buffer.
    pub(super) fn collect_weights(&mut self) -> Result<(), PlanEmitError> {
        let schedules = &self.schedules.any;
        let (mut all, mut known) = (Vec::new(), HashSet::new());
        for (graph_index, schedule) in schedules.iter().enumerate() {
            let graph = schedule.graph;
            if !self.runs(graph) {
                continue;
            }
            let is_body = self.entries.all().all(|entry| entry != graph_index);
            let all_rounds = u32::try_from(self.rounds(graph)).unwrap_or(u32::MAX);
            let mut want = |value: ValueId, stored: StoredTensor| {
                if schedule.views.is_weight_time(value) && known.insert((graph_index, value, stored.layout)) {
                    let rounds = if is_body && is_of_rounds(graph, value) { all_rounds } else { 1 };
                    all.push(Wanted { graph: graph_index, value, stored, rounds });
                }
            };
            for group in &schedule.groups {
                let read: Vec<ValueId> = match group.kind {
                    Kind::Nest => self.nests[&nest_key(graph_index, group)].1.buffers.clone(),
                    // It reads none.
                    Kind::RopeAppend(_) => Vec::new(),
                    Kind::Kernel | Kind::Repeat | Kind::Fused { .. } => {
                        let operands = graph.operands(group.values[0]).iter();
                        operands.map(|&operand| schedule.views.resolve(operand).base).collect()
                    }
                };
                for (position, value) in read.into_iter().enumerate() {
                    let reader = graph.op(group.values[0]).filter(|_| group.kind == Kind::Kernel);
                    let layout = reader.and_then(|op| cost::packing_of(op, position));
                    want(value, StoredTensor { dtype: cpu::stored_dtype_of(graph, value), layout });
                }
            }
            // What a body gives or a state becomes may be a weight as it is; it is copied from there.
            for value in graph.outputs.iter().copied().chain(graph.updates.iter().map(|update| update.value)) {
                let value = schedule.views.resolve(value).base;
                want(value, StoredTensor { dtype: graph.ty(value).dtype, layout: None });
            }
        }
        self.weights.fill(self.program, &all, &|graph, value| is_only_gathered(&schedules[graph], value));
        self.weights.lay_out();
        let first = self.plan.buffers.len();
        for tensor in self.weights.tensors() {
            self.plan.buffers.push(Buffer {
                name: tensor.name.clone(),
                role: Role::Weight,
                offset: tensor.offset,
                bytes: tensor.bytes,
                rounds: tensor.rounds,
                stride: tensor.stride,
                is_ternary: tensor.stored.layout == Some(TernaryLayout::Tile16),
            });
        }
        for (graph, value, layout, located) in self.weights.places() {
            let buffer = BufferId::new(first + located.tensor);
            let Buffer { rounds, stride, .. } = *self.plan.buffer(buffer);
            let place = Place { buffer, offset: round_offset(rounds, stride) + Expr::from(located.offset) };
            match layout {
                Some(layout) => drop(self.packed.insert((graph, value, layout), place)),
                None => drop(self.fixed[graph].insert(value, place)),
            }
        }
        self.plan.weights_bytes = self.weights.bytes();
        Ok(())
    }

    pub(super) fn shared_buffer(&mut self, name: String, role: Role, bytes: u64, rounds: u32) -> BufferId {
        let stride = bytes.next_multiple_of(ALIGNMENT);
        let id = BufferId::new(self.plan.buffers.len());
        self.plan.buffers.push(Buffer {
            name,
            role,
            offset: self.shared_bytes,
            bytes,
            rounds,
            stride,
            is_ternary: false,
        });
        self.shared_bytes = self.shared_bytes.saturating_add(stride.saturating_mul(u64::from(rounds)));
        id
    }

    /// The places of states, inputs and outputs.
    pub(super) fn fixed_buffers(&mut self) -> Result<(), PlanEmitError> {
        let max_tokens = self.max_of("n");
        let program = self.program;
        // Graphs that name the same state share it.
        let mut known: HashMap<String, BufferId> = HashMap::new();
        for (graph_index, graph) in program.graphs.iter().enumerate() {
            if !self.runs(graph) {
                continue;
            }
            let all_rounds = u32::try_from(self.rounds(graph)).unwrap_or(u32::MAX);
            for (value, key) in graph.states() {
                if key.contains("{}") && key.ends_with(GRADIENT) {
                    // A part of what other graphs know as one.
                    let bytes = self.bytes(graph, value, max_tokens)?;
                    let all = gradient_of_all_rounds(key);
                    let buffer = *known.entry(all.clone()).or_insert_with(|| {
                        self.shared_buffer(all, Role::State, bytes.saturating_mul(u64::from(all_rounds)), 1)
                    });
                    let place = Place { buffer, offset: Expr::symbol(ROUND) * Expr::from(bytes) };
                    self.fixed[graph_index].insert(value, place);
                    continue;
                }
                let rounds = if key.contains("{}") { all_rounds } else { 1 };
                let bytes = self.bytes(graph, value, max_tokens)?;
                let buffer = match known.get(&**key) {
                    Some(&buffer) => buffer,
                    None => {
                        let buffer = self.shared_buffer(key.to_string(), Role::State, bytes, rounds);
                        if !key.ends_with(GRADIENT) {
                            self.kept.push(io(graph, value, key.to_string(), buffer));
                        }
                        buffer
                    }
                };
                known.insert(key.to_string(), buffer);
                let stride = self.plan.buffer(buffer).stride;
                self.fixed[graph_index].insert(value, Place { buffer, offset: round_offset(rounds, stride) });
            }
        }
        let called: Vec<usize> = match self.entries.training {
            Some((_, accumulate)) => vec![accumulate, self.entries.last],
            None => vec![self.entries.last],
        };
        // Inputs lie side by side, because a GPU gets those that were written in one copy.
        let names = called.iter().map(|&entry| self.signature(entry)).collect::<Result<Vec<_>, _>>()?;
        called.iter().try_for_each(|&entry| self.inputs(entry, max_tokens))?;
        called.iter().zip(names).try_for_each(|(&entry, names)| self.outputs(entry, names, max_tokens))?;
        self.plan.vocab = vocabulary(&program.graphs[called[0]]);
        Ok(())
    }

    /// The names of an entry's results, if it is called as the runtime does.
    fn signature(&self, entry_index: usize) -> Result<&'static [&'static str], PlanEmitError> {
        const CHOOSING: [&str; 7] = ["ids", "seq", "pos", "span", "rows", "settings", "draws"];
        const TRAINING: [&str; 4] = ["ids", "span", "targets", "first"];
        let entry = &self.program.graphs[entry_index];
        let names: Vec<String> = entry.inputs.iter().map(|&input| entry.label(input)).collect();
        let is_last = entry_index == self.entries.last;
        match (self.entries.training, entry.outputs.len()) {
            (Some(_), 1) if !is_last && names == TRAINING => Ok(&["loss"]),
            (Some(_), 1) if is_last && names == ["settings"] => Ok(&["norm"]),
            (None, 1) if names == CHOOSING[..5] => Ok(&["logits"]),
            (None, 2) if names == CHOOSING => Ok(&["logits", "next"]),
            (_, n) => {
                let found = format!("it takes ({}) and returns {n} values", names.join(", "));
                Err(PlanEmitError::Signature(found))
            }
        }
    }

    fn inputs(&mut self, entry_index: usize, max_tokens: u64) -> Result<(), PlanEmitError> {
        let entry = &self.program.graphs[entry_index];
        for &input in &entry.inputs {
            let bytes = self.bytes(entry, input, max_tokens)?;
            let buffer = self.shared_buffer(entry.label(input), Role::Input, bytes, 1);
            self.plan.inputs.push(io(entry, input, entry.label(input), buffer));
            self.fixed[entry_index].insert(input, Place { buffer, offset: Expr::from(0) });
        }
        Ok(())
    }

    fn outputs(&mut self, entry_index: usize, names: &[&str], max_tokens: u64) -> Result<(), PlanEmitError> {
        let entry = &self.program.graphs[entry_index];
        for (&output, name) in entry.outputs.iter().zip(names) {
            if self.schedules.any[entry_index].views.is_weight_time(output) {
                return Err(PlanEmitError::Signature(format!("{name} do not depend on the inputs")));
            }
            let bytes = self.bytes(entry, output, max_tokens)?;
            let buffer = self.shared_buffer((*name).to_owned(), Role::Output, bytes, 1);
            self.plan.outputs.push(io(entry, output, (*name).to_owned(), buffer));
            self.results[entry_index].push((output, Place { buffer, offset: Expr::from(0) }));
        }
        Ok(())
    }
}

/// How many ids a graph knows: the logits of a row, or of a step of training the rows of the table that it looks its `ids` up in.
fn vocabulary(entry: &Graph) -> u64 {
    let tables = entry.values.ids().filter_map(|id| match (entry.op(id), entry.operands(id)) {
        (Some(Op::Gather(_)), &[table, ids]) if entry.label(ids) == "ids" => entry.ty(table).shape.0[0].as_const(),
        _ => None,
    });
    match entry.name == ACCUMULATE {
        true => tables.min().unwrap_or(0),
        false => entry.ty(entry.outputs[0]).shape.last_const().unwrap_or(0),
    }
}

/// Whether single rows of a value are read, and nothing else of it.
fn is_only_gathered(schedule: &Schedule<'_>, value: ValueId) -> bool {
    let graph = schedule.graph;
    let readers = graph.values.ids().filter(|&user| !schedule.views.is_weight_time(user));
    let mut operands = readers.flat_map(|user| graph.operands(user).iter().enumerate().map(move |at| (user, at)));
    let is_read = |(_, (_, operand)): &(ValueId, (usize, &ValueId))| schedule.views.resolve(**operand).base == value;
    let is_gather = |(user, (position, _)): (ValueId, (usize, &ValueId))| {
        position == 0 && matches!(graph.op(user), Some(Op::Gather(_)))
    };
    !graph.outputs.contains(&value) && operands.by_ref().filter(is_read).all(is_gather)
}

fn round_offset(rounds: u32, stride: u64) -> Expr {
    if rounds <= 1 { Expr::from(0) } else { Expr::symbol(ROUND) * Expr::from(stride) }
}

fn io(graph: &Graph, value: ValueId, name: String, buffer: BufferId) -> Io {
    let ty = graph.ty(value);
    Io { name, buffer, dtype: ty.dtype, shape: ty.shape.dims().iter().map(Expr::from).collect() }
}
