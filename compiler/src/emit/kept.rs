//! What a unit keeps in a row on the stack, so that several passes over its columns do not each compute it again.
//!
//! There is one row. It holds the value of one expression, from the first stage that uses it to the last; and in a stage that quantises, after the
//! last use of that one, the value that is quantised, which takes a pass to find its range and another to write its codes. A column's value goes
//! where the column's value was, so the second may be computed from the first.

use cranelift_codegen::ir::{InstBuilder, MemFlagsData, StackSlotData, StackSlotKind, Value, types};

use super::clif::Emitter;
use super::values::{At, Scope};
use crate::nest::{Elem, Expr, ExprId, Extent, Nest, Stage, Type, Verified};

/// Columns of the widest row that is kept: 48 KiB of the 64 that a kernel may use of its stack.
const COLUMNS: u64 = 12 << 10;

/// The expression that is kept between stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) id: ExprId,
    /// The first stage that uses it, which computes it.
    first: usize,
    /// The last one.
    last: usize,
}

/// What the row is for an expression while the columns of a stage are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    /// It is stored there once it is computed.
    Written(ExprId),
    /// It is there.
    Read(ExprId),
}

/// The expression that is worth keeping most: the one with the most before it of those that several stages use and none of them changes.
pub(super) fn kept(nest: &Verified) -> Option<Kept> {
    let reached: Vec<_> = nest.stages.iter().map(|stage| nest.reachable(&stage.roots())).collect();
    let candidates = nest.exprs.ids().filter(|&id| is_computed(nest, id)).filter_map(|id| {
        let before = nest.reachable(&[id]);
        let users: Vec<_> = (0..nest.stages.len()).filter(|stage| reached[*stage].contains(&id)).collect();
        let mut lens = users.iter().map(|stage| columns(nest, &nest.stages[*stage]));
        let len = lens.next()??;
        let is_kept =
            1 < users.len() && lens.all(|other| other == Some(len)) && nest.reads_only(id, |buffer| !buffer.write);
        is_kept.then(|| (before.len(), Kept { id, first: users[0], last: users[users.len() - 1] }))
    });
    // Of equals the first.
    candidates.reduce(|best, next| if best.0 < next.0 { next } else { best }).map(|(_, kept)| kept)
}

/// Whether a row of an expression's values takes more to compute than to load.
fn is_computed(nest: &Verified, id: ExprId) -> bool {
    let is_operation = matches!(nest.exprs[id], Expr::Unary(..) | Expr::Binary(..) | Expr::Select(..));
    is_operation && nest.is_columnar(id) && nest.type_of(id) == Type::F32
}

/// The columns of a stage, if the row has room for them.
fn columns(nest: &Nest, stage: &Stage) -> Option<u64> {
    let len = match stage {
        Stage::Reduce { len: Extent::Const(len), .. } | Stage::Store { len: Extent::Const(len), .. } => *len,
        Stage::StoreRow { buffer, .. } => match nest.buffers[*buffer].elem {
            Elem::Q8 { k } | Elem::Q4 { k } => k,
            _ => return None,
        },
        Stage::Reduce { .. } | Stage::Store { .. } | Stage::Scalar { .. } => return None,
    };
    (0 < len && len <= COLUMNS).then_some(len)
}

/// For the row: it is aligned to the widest access.
fn flags() -> MemFlagsData {
    MemFlagsData::trusted()
}

impl Emitter<'_> {
    /// What the row is for the kept expression in a stage.
    pub(super) fn kept_in(&self, stage: usize) -> Option<Row> {
        let kept = self.kept.filter(|kept| kept.first <= stage && stage <= kept.last)?;
        Some(if kept.first == stage { Row::Written(kept.id) } else { Row::Read(kept.id) })
    }

    /// Whether the row takes what a stage quantises: nothing else needs it from there on, and it is not there already.
    pub(super) fn keeps_quantised(&self, stage: usize, body: ExprId) -> bool {
        let is_free = self.kept.is_none_or(|kept| kept.last <= stage || stage < kept.first);
        let is_there = self.kept_in(stage).is_some_and(|row| row == Row::Written(body) || row == Row::Read(body));
        is_free && !is_there && is_computed(self.nest, body) && columns(self.nest, &self.nest.stages[stage]).is_some()
    }

    /// The address of the row.
    fn row(&mut self) -> Value {
        let nest = self.nest;
        let slot = *self.row_slot.get_or_insert_with(|| {
            let widest = nest.stages.iter().filter_map(|stage| columns(nest, stage)).max().unwrap_or(1);
            self.builder.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, widest as u32 * 4, 4))
        });
        self.builder.ins().stack_addr(types::I64, slot, 0)
    }

    fn place(&mut self, at: At) -> (Value, i32) {
        let row = self.row();
        let bytes = self.builder.ins().imul_imm_s(at.column, 4);
        (self.builder.ins().iadd(row, bytes), at.shift as i32 * 4)
    }

    pub(super) fn store_kept(&mut self, at: At, value: Value) {
        let (address, offset) = self.place(at);
        self.builder.ins().store(flags(), value, address, offset);
    }

    pub(super) fn load_kept(&mut self, at: At) -> Value {
        let (address, offset) = self.place(at);
        self.builder.ins().load(at.width.ty(Type::F32), flags(), address, offset)
    }

    /// What a stage quantises, in its first pass.
    pub(super) fn first_value(&mut self, scope: &Scope, at: At, body: ExprId, is_kept: bool) -> Value {
        let value = self.value(scope, at, body);
        if is_kept {
            self.store_kept(at, value);
        }
        value
    }

    /// The same in the passes after it.
    pub(super) fn value_again(&mut self, scope: &Scope, at: At, body: ExprId, is_kept: bool) -> Value {
        let is_there = is_kept || scope.row_of == Some(Row::Written(body));
        if is_there { self.load_kept(at) } else { self.value(scope, at, body) }
    }
}
