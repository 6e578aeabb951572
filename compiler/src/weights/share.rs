//! Which stored tensors are others, or parts of others: the forward and the backward pass of a training step read the same frozen weights, and where one
//! of them reads the rows of several matrices as one, the other finds its own among them.

use ir::graph::{Def, Graph};
use ir::packing::TernaryLayout;
use ir::plan::ALIGNMENT;
use ir::{Op, Program, ValueId};

use super::{StoredTensor, keys_of, stored_bytes};

/// A value that a graph reads as a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The graph's position in the program.
    pub(crate) graph: usize,
    /// The value.
    pub(crate) value: ValueId,
    /// How it is to be stored.
    pub(crate) stored: StoredTensor,
    /// How many rounds have one of their own.
    pub(crate) rounds: u32,
}

/// Where a wanted tensor lies: the position of the one that is stored, and bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Home {
    pub(super) of: usize,
    pub(super) offset: u64,
}

/// For each wanted tensor the one that it lies in, which may be itself. Only what follows from parameters is looked for elsewhere.
pub(super) fn homes(program: &Program, all: &[Wanted]) -> Vec<Home> {
    let of_parameters: Vec<bool> =
        all.iter().map(|wanted| !keys_of(&program.graphs[wanted.graph], wanted.value).is_empty()).collect();
    let mut homes: Vec<Home> = (0..all.len()).map(|of| Home { of, offset: 0 }).collect();
    for (at, wanted) in all.iter().enumerate().filter(|(at, _)| of_parameters[*at]) {
        let found = all.iter().enumerate().filter(|(of, _)| *of != at && of_parameters[*of]).find_map(|(of, whole)| {
            let is_alike = (whole.stored, whole.rounds) == (wanted.stored, wanted.rounds);
            let offset = if is_alike { part_of(program, whole, wanted) } else { None }?;
            // Of equal ones the first is stored.
            let is_equal = size(program, whole) == size(program, wanted);
            (!is_equal || of < at).then_some(Home { of, offset })
        });
        homes[at] = found.unwrap_or(homes[at]);
    }
    // The first of equal tensors may itself be part of another.
    (0..homes.len())
        .map(|at| {
            let mut home = homes[at];
            while homes[home.of].of != home.of {
                let next = homes[home.of];
                home = Home { of: next.of, offset: home.offset + next.offset };
            }
            home
        })
        .collect()
}

fn size(program: &Program, wanted: &Wanted) -> u64 {
    stored_bytes(program.graphs[wanted.graph].ty(wanted.value), wanted.stored)
}

/// Bytes from the start of a tensor to another of the same form that its bytes hold.
fn part_of(program: &Program, whole: &Wanted, part: &Wanted) -> Option<u64> {
    let (graph, other) = (&program.graphs[whole.graph], &program.graphs[part.graph]);
    let row = rows_before(graph, whole.value, other, part.value)?;
    let ty = graph.ty(whole.value);
    let rows = ty.shape.dims().first()?.as_const()?;
    let bytes = match whole.stored.layout {
        // Blocks of rows lie one after the other.
        Some(TernaryLayout::Tile16) if row % TernaryLayout::Tile16.row_block()? == 0 => {
            TernaryLayout::Tile16.bytes(row, ty.shape.last_const()?)
        }
        Some(_) => return (row == 0 && ty.shape == other.ty(part.value).shape).then_some(0),
        None => stored_bytes(ty, whole.stored).checked_div(rows)?.checked_mul(row)?,
    };
    (bytes % ALIGNMENT == 0).then_some(bytes)
}

/// The row at which a value lies in another, seen through concatenations of rows.
fn rows_before(graph: &Graph, whole: ValueId, other: &Graph, part: ValueId) -> Option<u64> {
    if is_same(graph, whole, other, part) {
        return Some(0);
    }
    let (Some(Op::Concat(concat)), &[first, second]) = (graph.op(whole), graph.operands(whole)) else { return None };
    if concat.axis != 0 {
        return None;
    }
    rows_before(graph, first, other, part).or_else(|| {
        let before = graph.ty(first).shape.dims().first()?.as_const()?;
        Some(before + rows_before(graph, second, other, part)?)
    })
}

/// Whether two values follow in the same way from the same parameters.
fn is_same(graph: &Graph, value: ValueId, other_graph: &Graph, other: ValueId) -> bool {
    if graph.ty(value) != other_graph.ty(other) {
        return false;
    }
    match (&graph.values[value].def, &other_graph.values[other].def) {
        (Def::Param { key }, Def::Param { key: other }) => key == other,
        (Def::Const(constant), Def::Const(other)) => constant == other,
        (Def::Op { op, inputs }, Def::Op { op: other, inputs: others }) => {
            let mut pairs = inputs.iter().zip(others);
            op == other && pairs.all(|(&input, &other)| is_same(graph, input, other_graph, other))
        }
        _ => false,
    }
}
