//! What lies at the same place in every phase: weights, states, inputs, outputs.

use std::collections::HashMap;

use ir::entity::Id;
use ir::packing::TernaryLayout;
use ir::plan::{ALIGNMENT, Buffer, BufferId, Expr, Io, ROUND, Role};
use ir::{Graph, Op, ValueId};

use super::{Emitter, Place, PlanEmitError, nest_key};
use crate::egraph::cost;
use crate::lower::cpu;
use crate::optimiser::GRADIENT;
use crate::schedule::{Kind, Schedule};
use crate::weights::StoredTensor;

impl Emitter<'_> {
    /// Finds the weight-time values that steps read, and gives each a tensor and a buffer.
    pub(super) fn collect_weights(&mut self) -> Result<(), PlanEmitError> {
        let schedules = &self.schedules.any;
        for (graph_index, schedule) in schedules.iter().enumerate() {
            let graph = schedule.graph;
            if !self.runs(graph) {
                continue;
            }
            let rounds = u32::try_from(self.rounds(graph)).unwrap_or(u32::MAX);
            let is_body = self.entries.all().all(|entry| entry != graph_index);
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
                    let reader = graph.op(group.values[0]).filter(|_| group.kind == Kind::Kernel && position == 1);
                    let layout = reader.and_then(cost::layout_of);
                    if !schedule.views.is_weight_time(value) || self.weights.contains(graph_index, value, layout) {
                        continue;
                    }
                    let dtype = cpu::stored_dtype_of(graph, value);
                    self.weights.add(self.program, graph_index, value, StoredTensor { dtype, layout }, is_body, rounds);
                }
            }
            // What a body gives or a state becomes may be a weight as it is; it is copied from there.
            for value in graph.outputs.iter().copied().chain(graph.updates.iter().map(|update| update.value)) {
                let value = schedule.views.resolve(value).base;
                if schedule.views.is_weight_time(value) && !self.weights.contains(graph_index, value, None) {
                    let stored = StoredTensor { dtype: graph.ty(value).dtype, layout: None };
                    self.weights.add(self.program, graph_index, value, stored, is_body, rounds);
                }
            }
        }
        for (graph_index, schedule) in schedules.iter().enumerate() {
            self.weights.mark_gathered(graph_index, &|value| is_only_gathered(schedule, value));
        }
        self.weights.lay_out();
        for tensor in self.weights.tensors() {
            let buffer = BufferId::new(self.plan.buffers.len());
            self.plan.buffers.push(Buffer {
                name: tensor.name.clone(),
                role: Role::Weight,
                offset: tensor.offset,
                bytes: tensor.bytes,
                rounds: tensor.rounds,
                stride: tensor.stride,
                is_ternary: tensor.stored.layout == Some(TernaryLayout::Tile16),
            });
            let place = Place { buffer, offset: round_offset(tensor.rounds, tensor.stride) };
            match tensor.stored.layout {
                Some(layout) => drop(self.packed.insert((tensor.graph, tensor.value, layout), place)),
                None => drop(self.fixed[tensor.graph].insert(tensor.value, place)),
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
        let mut known: HashMap<&str, BufferId> = HashMap::new();
        for (graph_index, graph) in program.graphs.iter().enumerate() {
            if !self.runs(graph) {
                continue;
            }
            let all_rounds = u32::try_from(self.rounds(graph)).unwrap_or(u32::MAX);
            for (value, key) in graph.states() {
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
                known.insert(key, buffer);
                let stride = self.plan.buffer(buffer).stride;
                self.fixed[graph_index].insert(value, Place { buffer, offset: round_offset(rounds, stride) });
            }
        }
        if let Some((_, accumulate)) = self.entries.training {
            self.interface(accumulate, max_tokens)?;
        }
        self.interface(self.entries.last, max_tokens)
    }

    /// Inputs and outputs of an entry.
    fn interface(&mut self, entry_index: usize, max_tokens: u64) -> Result<(), PlanEmitError> {
        const CHOOSING: [&str; 7] = ["ids", "seq", "pos", "span", "rows", "settings", "draws"];
        const TRAINING: [&str; 4] = ["ids", "span", "targets", "first"];
        let entry = &self.program.graphs[entry_index];
        let names: Vec<String> = entry.inputs.iter().map(|&input| entry.label(input)).collect();
        let is_accumulate = entry_index != self.entries.last;
        let outputs: &[&str] = match (self.entries.training, entry.outputs.len()) {
            (Some(_), 1) if is_accumulate && names == TRAINING => &["loss"],
            (Some(_), 1) if !is_accumulate && names == ["settings"] => &["norm"],
            (None, 1) if names == CHOOSING[..5] => &["logits"],
            (None, 2) if names == CHOOSING => &["logits", "next"],
            (_, n) => {
                let found = format!("it takes ({}) and returns {n} values", names.join(", "));
                return Err(PlanEmitError::Signature(found));
            }
        };
        for &input in &entry.inputs {
            let bytes = self.bytes(entry, input, max_tokens)?;
            let buffer = self.shared_buffer(entry.label(input), Role::Input, bytes, 1);
            self.plan.inputs.push(io(entry, input, entry.label(input), buffer));
            self.fixed[entry_index].insert(input, Place { buffer, offset: Expr::from(0) });
        }
        for (&output, name) in entry.outputs.iter().zip(outputs) {
            if self.schedules.any[entry_index].views.is_weight_time(output) {
                return Err(PlanEmitError::Signature(format!("{name} do not depend on the inputs")));
            }
            let bytes = self.bytes(entry, output, max_tokens)?;
            let buffer = self.shared_buffer((*name).to_owned(), Role::Output, bytes, 1);
            self.plan.outputs.push(io(entry, output, (*name).to_owned(), buffer));
            self.results[entry_index].push((output, Place { buffer, offset: Expr::from(0) }));
        }
        if *outputs != ["norm"] {
            self.plan.vocab = vocabulary(entry);
        }
        Ok(())
    }
}

/// How many ids a graph knows: the rows of the table that it looks its `ids` up in, or the logits of a row.
fn vocabulary(entry: &Graph) -> u64 {
    let tables = entry.values.ids().filter_map(|id| match (entry.op(id), entry.operands(id)) {
        (Some(Op::Gather(_)), &[table, ids]) if entry.label(ids) == "ids" => entry.ty(table).shape.0[0].as_const(),
        _ => None,
    });
    let logits = entry.ty(entry.outputs[0]).shape.last_const();
    if entry.outputs.len() == 1 && logits == Some(1) { tables.min().unwrap_or(0) } else { logits.unwrap_or(0) }
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
