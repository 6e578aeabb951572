//! How a nest reads in dumps and golden files.
//!
//! ```text
//! nest rms_norm(n; x: f32, w: weight f32, y: write f32)
//! for i0 in n {
//!   s0: f32 = sum j in 64 {
//!     e3 = x[64*i0 + j]
//!     e3 * e3
//!   }
//!   ...
//! ```
//!
//! An expression used once stands where it is used; one used several times is named in front, in each stage anew.

use std::fmt;

use ir::entity::Id;

use super::{Axis, BinaryOp, Elem, Expr, ExprId, Extent, Index, Nest, Stage};

impl fmt::Display for Nest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nest {}({}", self.name, self.dims.join(", "))?;
        for (position, buffer) in self.buffers.iter().enumerate() {
            let separator = match (position, self.dims.is_empty()) {
                (0, true) => "",
                (0, false) => "; ",
                _ => ", ",
            };
            let kind = match (buffer.write, buffer.is_weight) {
                (true, _) => "write ",
                (false, true) => "weight ",
                (false, false) => "",
            };
            write!(f, "{separator}{}: {kind}{}", buffer.name, buffer.elem)?;
        }
        write!(f, ")\nfor ")?;
        for (axis, extent) in self.outer.iter().enumerate() {
            let separator = if axis == 0 { "" } else { ", " };
            write!(f, "{separator}i{axis} in {}", self.extent(*extent))?;
        }
        writeln!(f, "{}{{", if self.outer.is_empty() { "once " } else { " " })?;
        for stage in &self.stages {
            Body::new(self, stage).write(f, stage)?;
        }
        writeln!(f, "}}")
    }
}

impl Nest {
    fn extent(&self, extent: Extent) -> String {
        match extent {
            Extent::Const(size) => size.to_string(),
            Extent::Dim(dim) => self.dims.get(dim).cloned().unwrap_or_else(|| format!("dim{dim}")),
        }
    }

    fn buffer_name(&self, buffer: usize) -> String {
        self.buffers.get(buffer).map_or_else(|| format!("buffer{buffer}"), |buffer| buffer.name.clone())
    }
}

/// One stage: which of its expressions have a name.
struct Body<'a> {
    nest: &'a Nest,
    named: Vec<ExprId>,
}

impl<'a> Body<'a> {
    fn new(nest: &'a Nest, stage: &Stage) -> Self {
        let roots = stage.roots();
        let used = nest.reachable(&roots);
        let mut uses = vec![0; nest.exprs.len()];
        for id in roots.iter().copied().chain(used.iter().flat_map(|id| nest.exprs[*id].operands())) {
            uses[id.index()] += 1;
        }
        let is_leaf = |id: &ExprId| {
            !matches!(
                nest.exprs[*id],
                Expr::Load { .. } | Expr::LoadRow { .. } | Expr::Unary(..) | Expr::Binary(..) | Expr::Select(..)
            )
        };
        let named = used.into_iter().filter(|id| 1 < uses[id.index()] && !is_leaf(id)).collect();
        Self { nest, named }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, stage: &Stage) -> fmt::Result {
        match stage {
            Stage::Reduce { dst, op, len, body } => {
                let ty = self.nest.scalars[*dst];
                writeln!(f, "  {dst}: {ty} = {} j in {} {{", op.name(), self.nest.extent(*len))?;
                self.write_named(f)?;
                writeln!(f, "    {}\n  }}", self.value(*body))
            }
            Stage::Scalar { dst, value } => {
                let ty = self.nest.scalars[*dst];
                writeln!(f, "  {dst}: {ty} = {{")?;
                self.write_named(f)?;
                writeln!(f, "    {}\n  }}", self.value(*value))
            }
            Stage::Store { len, writes } => {
                writeln!(f, "  store j in {} {{", self.nest.extent(*len))?;
                self.write_named(f)?;
                for write in writes {
                    let place = self.place(write.buffer, &write.index);
                    writeln!(f, "    {place} = {}", self.value(write.value))?;
                }
                writeln!(f, "  }}")
            }
            Stage::StoreRow { buffer, record, body } => {
                let k = match self.nest.buffers.get(*buffer).map(|buffer| buffer.elem) {
                    Some(Elem::Q8 { k } | Elem::Q4 { k }) => k,
                    _ => 0,
                };
                writeln!(f, "  quantise j in {k} {{")?;
                self.write_named(f)?;
                writeln!(f, "    {} = {}\n  }}", self.place(*buffer, record), self.value(*body))
            }
        }
    }

    fn write_named(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.named.iter().try_for_each(|&id| writeln!(f, "    {id} = {}", self.definition(id)))
    }

    fn value(&self, id: ExprId) -> String {
        if self.named.contains(&id) { id.to_string() } else { self.definition(id) }
    }

    /// A value that binds tighter than any operator.
    fn operand(&self, id: ExprId) -> String {
        let text = self.value(id);
        let is_infix = |op| !matches!(op, BinaryOp::Min | BinaryOp::Max);
        match self.nest.exprs[id] {
            Expr::Binary(op, ..) if is_infix(op) && !self.named.contains(&id) => format!("({text})"),
            _ => text,
        }
    }

    fn definition(&self, id: ExprId) -> String {
        match &self.nest.exprs[id] {
            Expr::F32 { bits } => format!("{:?}", f32::from_bits(*bits)),
            Expr::I32(value) => format!("{value}i"),
            Expr::Load { buffer, index } => self.place(*buffer, index),
            Expr::LoadRow { buffer, record, element } => {
                format!("{}[{}]", self.place(*buffer, record), self.index(element))
            }
            Expr::Scalar(scalar) => scalar.to_string(),
            Expr::Column => "j".to_owned(),
            Expr::Outer(axis) => format!("i{axis}"),
            Expr::Dim(dim) => self.nest.extent(Extent::Dim(*dim)),
            Expr::Unary(op, x) => format!("{}({})", op.name(), self.value(*x)),
            Expr::Binary(op, lhs, rhs) => {
                let sign = match op {
                    BinaryOp::Add => "+",
                    BinaryOp::Sub => "-",
                    BinaryOp::Mul => "*",
                    BinaryOp::Div => "/",
                    BinaryOp::Less => "<",
                    BinaryOp::LessEqual => "<=",
                    BinaryOp::Equal => "==",
                    BinaryOp::Min | BinaryOp::Max => {
                        return format!("{}({}, {})", op.name(), self.value(*lhs), self.value(*rhs));
                    }
                };
                format!("{} {sign} {}", self.operand(*lhs), self.operand(*rhs))
            }
            Expr::Select(condition, lhs, rhs) => {
                format!("select({}, {}, {})", self.value(*condition), self.value(*lhs), self.value(*rhs))
            }
        }
    }

    fn place(&self, buffer: usize, index: &Index) -> String {
        format!("{}[{}]", self.nest.buffer_name(buffer), self.index(index))
    }

    fn index(&self, index: &Index) -> String {
        let mut text = String::new();
        for term in &index.terms {
            let axis = match &term.axis {
                Axis::Outer(axis) => format!("i{axis}"),
                Axis::Column => "j".to_owned(),
                Axis::Gather { value, limit } => {
                    format!("clamp({}, {})", self.value(*value), self.nest.extent(*limit))
                }
            };
            push_summand(&mut text, term.stride, &axis);
        }
        if index.offset != 0 || text.is_empty() {
            push_summand(&mut text, index.offset, "");
        }
        text
    }
}

/// Appends `+ stride*axis`, or the bare number if there is no axis.
fn push_summand(text: &mut String, stride: i64, axis: &str) {
    let magnitude = stride.unsigned_abs();
    text.push_str(match (text.is_empty(), stride < 0) {
        (true, false) => "",
        (true, true) => "-",
        (false, false) => " + ",
        (false, true) => " - ",
    });
    match (magnitude, axis.is_empty()) {
        (_, true) => text.push_str(&magnitude.to_string()),
        (1, false) => text.push_str(axis),
        (_, false) => text.push_str(&format!("{magnitude}*{axis}")),
    }
}
