//! Which buffers of a nest may be one place in memory: a result over what it is computed from.

use super::{Axis, Expr, Extent, Index, Nest, Stage, Term};

impl Nest {
    /// Whether the buffer `written` may lie exactly on the buffer `read`, for units in any order and columns side by side.
    ///
    /// One stage writes it, each place once; that stage loads `read` at the place it writes and nowhere else, and later ones do not load it. Earlier
    /// ones may load any column of the unit's own row, if the threads of a unit meet before the next one writes: behind a fold or a store they do,
    /// behind a scalar they do not.
    pub fn may_lie_on(&self, written: usize, read: usize) -> bool {
        let (from, to) = (&self.buffers[read], &self.buffers[written]);
        let is_plain = from.elem == to.elem && from.elem.row_format().is_none();
        if !is_plain || from.write || from.is_weight || !to.write {
            return false;
        }
        let writes = |stage: &Stage| match stage {
            Stage::Store { writes, .. } => writes.iter().any(|write| write.buffer == written),
            Stage::StoreRow { buffer, .. } => *buffer == written,
            Stage::Reduce { .. } | Stage::Scalar { .. } => false,
        };
        let mut writers = self.stages.iter().enumerate().filter(|(_, stage)| writes(stage));
        let (Some((last, Stage::Store { len, writes })), None) = (writers.next(), writers.next()) else { return false };
        let mut own = writes.iter().filter(|write| write.buffer == written);
        let (Some(place), None) = (own.next(), own.next()) else { return false };
        let rest_is_sound = self.stages.iter().enumerate().all(|(position, stage)| {
            let mut loads = self.loads(stage, read);
            match stage {
                _ if position == last => loads.all(|index| *index == place.index),
                _ if last < position => loads.next().is_none(),
                Stage::Scalar { .. } => loads.next().is_none(),
                Stage::Reduce { len: columns, .. } | Stage::Store { len: columns, .. } => {
                    loads.all(|index| is_of_row(index, *columns, &place.index, *len))
                }
                Stage::StoreRow { .. } => loads.all(|index| is_of_row(index, *len, &place.index, *len)),
            }
        });
        rest_is_sound && is_row(&place.index)
    }

    /// Whether a buffer may not be as it was before, because stages write it or a buffer that may lie on it.
    pub fn may_change(&self, buffer: usize) -> bool {
        self.buffers[buffer].write || (0..self.buffers.len()).any(|written| self.may_lie_on(written, buffer))
    }

    /// Where a stage loads a buffer of plain elements.
    fn loads(&self, stage: &Stage, buffer: usize) -> impl Iterator<Item = &Index> {
        let reached = self.reachable(&stage.roots());
        reached.into_iter().filter_map(move |id| match &self.exprs[id] {
            Expr::Load { buffer: loaded, index } if *loaded == buffer => Some(index),
            _ => None,
        })
    }
}

/// Whether the columns of an index lie side by side, and nothing but the unit says where.
fn is_row(index: &Index) -> bool {
    index.column_stride() == 1 && index.gathered().next().is_none()
}

/// Whether an index stays, in a stage of `columns` columns, within the `len` elements that `row` has for the same unit.
fn is_of_row(index: &Index, columns: Extent, row: &Index, len: Extent) -> bool {
    let unit = |index: &Index| {
        let mut terms: Vec<(usize, i64)> = index
            .terms
            .iter()
            .filter_map(|term| match term.axis {
                Axis::Outer(axis) => Some((axis, term.stride)),
                Axis::Column | Axis::Gather { .. } => None,
            })
            .collect();
        terms.sort_unstable();
        (index.offset, terms)
    };
    let within: Vec<&Term> = index.terms.iter().filter(|term| !matches!(term.axis, Axis::Outer(_))).collect();
    let is_within = match within[..] {
        [] => true,
        [Term { axis: Axis::Column, stride: 1 }] => columns == len,
        [Term { axis: Axis::Gather { limit, .. }, stride: 1 }] => *limit == len,
        _ => false,
    };
    is_within && unit(index) == unit(row)
}
