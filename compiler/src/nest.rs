//! What a generated kernel computes: the loop-nest IR, between a group of the schedule and code for a target.
//!
//! # Meaning
//!
//! A [`Nest`] is a kernel over *units*. The row space is the product of [`Nest::outer`]; unit `u` has the coordinates that div and mod give,
//! the last axis running fastest. A call names a range of units, and units are independent of each other, so any split of the row space over
//! threads gives the same bytes.
//!
//! For each unit the [`Stage`]s run in order. A stage is one loop over *columns* `j` in `0..len`, or one scalar:
//!
//! * [`Stage::Reduce`] folds an expression over the columns into a scalar of this unit;
//! * [`Stage::Scalar`] computes a scalar of this unit without any column;
//! * [`Stage::Store`] writes one element per column to each of its places. All values of a column are computed before the first of them is
//!   written, so a stage may work in place;
//! * [`Stage::StoreRow`] writes one record of a row format, exactly as [`ir::packing::RowFormat::encode`] does.
//!
//! Expressions are a DAG in an arena and have no effects. Both sides of a select are computed, and what does not depend on the column is
//! computed once per unit even if `len` is 0, so every load must be valid wherever it stands.
//!
//! # Order of evaluation
//!
//! Floats are evaluated as written, each operation rounded on its own: no fused multiply-add, no reassociation. [`ReduceOp::Sum`] uses
//! [`LANES`] lanes: lane `l` starts at 0 and adds the columns `j % 32 == l` in ascending order; then lanes are folded as `l += l + 16`, `+ 8`,
//! `+ 4`, `+ 2`, `+ 1`. `Max` and `Min` use the same lanes (which only decides between zeros of different signs) and ignore what is not a
//! number. Elementary functions are the sequences of [`math`]. [`eval`] computes exactly this, and generated code gives the same bits on
//! every target, except for the sign and payload of a NaN.
//!
//! # Memory
//!
//! A store stage may load from a buffer that it writes, but only at an index that it writes. Later stages of the same unit see what earlier
//! ones wrote. A unit must not load what another unit writes. Different buffers do not overlap, with one exception for updates in place: a
//! written buffer may lie exactly on an input where [`Nest::may_lie_on`] says so.

pub mod builder;
pub mod eval;
pub mod math;
pub mod sharing;
pub mod text;
pub mod verify;

use std::fmt;

use ir::DType;
use ir::entity::{Id, IdVec};
use ir::packing::RowFormat;

pub use builder::NestBuilder;
pub use verify::{NestError, NestErrors, Verified};

/// The lanes of a sum: the width of its written order, whatever the vectors of a target are.
pub const LANES: usize = 32;

/// One generated kernel. Public fields, because a lowering pass may build it as it likes; [`Verified::new`] says whether it means something.
#[derive(Clone, Debug, PartialEq)]
pub struct Nest {
    /// The kernel's name: a letter, then letters, digits and `_`.
    pub name: String,
    /// The memory it touches, in the order of its arguments.
    pub buffers: Vec<Buffer>,
    /// The names of the sizes known only at a call, in the order of its `dims` argument.
    pub dims: Vec<String>,
    /// The row space, outermost first. Only the first may be a [`Extent::Dim`].
    pub outer: Vec<Extent>,
    /// The element types of the unit's scalars.
    pub scalars: IdVec<ScalarId, Type>,
    /// All expressions; operands stand before their users.
    pub exprs: IdVec<ExprId, Expr>,
    /// What happens for each unit, in order.
    pub stages: Vec<Stage>,
}

/// One argument of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its name in dumps and in generated source.
    pub name: String,
    /// What its elements are.
    pub elem: Elem,
    /// Whether a stage may store to it.
    pub write: bool,
    /// Whether it is a parameter of the model, which nothing writes while the model runs: it can be read ahead of everything else.
    pub is_weight: bool,
}

/// What the elements of a buffer are. No alignment is assumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    /// 4 bytes, IEEE single precision.
    F32,
    /// 2 bytes, IEEE half precision; loaded exactly, stored rounded half to even.
    F16,
    /// 2 bytes, the upper half of an f32; loaded exactly, stored rounded half to even.
    BF16,
    /// 1 byte, loaded as i32; stored saturating.
    I8,
    /// 4 bytes.
    I32,
    /// Records of `k` int8 codes, see [`RowFormat`]; the index of a buffer counts records.
    Q8 {
        /// Values in a record.
        k: u64,
    },
    /// Records of `k` 4-bit codes, see [`RowFormat`]; the index of a buffer counts records.
    Q4 {
        /// Values in a record.
        k: u64,
    },
}

impl Elem {
    /// The bytes of one element, or of one record.
    pub fn stride(self) -> u64 {
        match self {
            Elem::F32 | Elem::I32 => 4,
            Elem::F16 | Elem::BF16 => 2,
            Elem::I8 => 1,
            Elem::Q8 { .. } | Elem::Q4 { .. } => self.row_format().map_or(0, |format| format.stride() as u64),
        }
    }

    /// The format of its records, if it has records.
    pub fn row_format(self) -> Option<RowFormat> {
        match self {
            Elem::Q8 { k } => RowFormat::new(DType::Q8, k as usize),
            Elem::Q4 { k } => RowFormat::new(DType::Q4, k as usize),
            _ => None,
        }
    }

    /// The type of a loaded value.
    pub fn value_type(self) -> Type {
        match self {
            Elem::I8 | Elem::I32 => Type::I32,
            Elem::F32 | Elem::F16 | Elem::BF16 | Elem::Q8 { .. } | Elem::Q4 { .. } => Type::F32,
        }
    }
}

impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Elem::F32 => f.write_str("f32"),
            Elem::F16 => f.write_str("f16"),
            Elem::BF16 => f.write_str("bf16"),
            Elem::I8 => f.write_str("i8"),
            Elem::I32 => f.write_str("i32"),
            Elem::Q8 { k } => write!(f, "q8[{k}]"),
            Elem::Q4 { k } => write!(f, "q4[{k}]"),
        }
    }
}

/// A number of columns or of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extent {
    /// Known when the kernel is generated.
    Const(u64),
    /// Position in [`Nest::dims`]. At a call it is at most [`i32::MAX`]; a negative size counts as 0.
    Dim(usize),
}

/// The type of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// IEEE single precision.
    F32,
    /// 32-bit integer; arithmetic wraps.
    I32,
    /// The result of a comparison; only a select takes it.
    Bool,
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Type::F32 => "f32",
            Type::I32 => "i32",
            Type::Bool => "bool",
        })
    }
}

macro_rules! nest_id {
    ($(#[$meta:meta])* $name:ident, $prefix:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u32);

        impl Id for $name {
            fn new(index: usize) -> Self {
                Self(u32::try_from(index).expect("a nest has fewer than 2^32 entities"))
            }
            fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

nest_id! {
    /// An expression of a nest.
    ExprId, "e"
}
nest_id! {
    /// A scalar of the unit: the result of a reduction or of a scalar stage.
    ScalarId, "s"
}

/// An element of a buffer: `offset + sum(stride * value of the axis)`, in elements (or in records).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Index {
    /// The constant part.
    pub offset: i64,
    /// The rest.
    pub terms: Vec<Term>,
}

/// One summand of an [`Index`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Term {
    /// What is multiplied.
    pub axis: Axis,
    /// By what.
    pub stride: i64,
}

/// What an index depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Axis {
    /// The coordinate of the unit on one axis of [`Nest::outer`].
    Outer(usize),
    /// The column.
    Column,
    /// An i32 value, clamped to `0 ..= limit - 1` (0 for a limit of 0): an id outside its table takes the nearest row of it.
    Gather {
        /// The value.
        value: ExprId,
        /// The rows there are.
        limit: Extent,
    },
}

impl Index {
    /// A constant index.
    pub fn at(offset: i64) -> Self {
        Self { offset, terms: Vec::new() }
    }

    /// Adds `stride` times the unit's coordinate on `axis`.
    #[must_use]
    pub fn outer(self, axis: usize, stride: i64) -> Self {
        self.term(Axis::Outer(axis), stride)
    }

    /// Adds `stride` times the column.
    #[must_use]
    pub fn column(self, stride: i64) -> Self {
        self.term(Axis::Column, stride)
    }

    /// Adds `stride` times an i32 value clamped to `0 ..= limit - 1`.
    #[must_use]
    pub fn gather(self, value: ExprId, limit: Extent, stride: i64) -> Self {
        self.term(Axis::Gather { value, limit }, stride)
    }

    fn term(mut self, axis: Axis, stride: i64) -> Self {
        self.terms.push(Term { axis, stride });
        self
    }

    /// Elements between neighbouring columns, gathered terms aside.
    pub fn column_stride(&self) -> i64 {
        self.terms.iter().filter(|term| term.axis == Axis::Column).map(|term| term.stride).sum()
    }

    /// The values it gathers by.
    pub fn gathered(&self) -> impl Iterator<Item = ExprId> {
        self.terms.iter().filter_map(|term| match term.axis {
            Axis::Gather { value, .. } => Some(value),
            Axis::Outer(_) | Axis::Column => None,
        })
    }
}

/// One value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// An f32 constant, as bits so that equal constants are equal.
    F32 {
        /// [`f32::to_bits`] of the value.
        bits: u32,
    },
    /// An i32 constant.
    I32(i32),
    /// An element of a plain buffer, widened to f32 or i32.
    Load {
        /// Position in [`Nest::buffers`].
        buffer: usize,
        /// Which element.
        index: Index,
    },
    /// A dequantised value of a q8 or q4 buffer: `code * scale`, or `minimum + code * scale`.
    LoadRow {
        /// Position in [`Nest::buffers`].
        buffer: usize,
        /// Which record.
        record: Index,
        /// Which value of the record; must stay below its `k`.
        element: Index,
    },
    /// A scalar that an earlier stage of this unit has set.
    Scalar(ScalarId),
    /// The column, as i32.
    Column,
    /// The unit's coordinate on one axis of [`Nest::outer`], as i32.
    Outer(usize),
    /// The size at this position of [`Nest::dims`], as i32.
    Dim(usize),
    /// A function of one value.
    Unary(UnaryOp, ExprId),
    /// A function of two values of one type.
    Binary(BinaryOp, ExprId, ExprId),
    /// The second value where the first holds, else the third.
    Select(ExprId, ExprId, ExprId),
}

impl Expr {
    /// All expressions it uses, those of its indices included.
    pub fn operands(&self) -> Vec<ExprId> {
        match self {
            Expr::F32 { .. } | Expr::I32(_) | Expr::Scalar(_) | Expr::Column | Expr::Outer(_) | Expr::Dim(_) => {
                Vec::new()
            }
            Expr::Load { index, .. } => index.gathered().collect(),
            Expr::LoadRow { record, element, .. } => record.gathered().chain(element.gathered()).collect(),
            Expr::Unary(_, x) => vec![*x],
            Expr::Binary(_, lhs, rhs) => vec![*lhs, *rhs],
            Expr::Select(condition, lhs, rhs) => vec![*condition, *lhs, *rhs],
        }
    }
}

macro_rules! op_names {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[$name] = &[$($name::$variant,)*];

            /// The name in the text form.
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }
    };
}

op_names! {
    /// Functions of one value. f32 to f32 unless it says otherwise; what they compute, bit for bit, is in [`math`].
    UnaryOp {
        /// `-x`, of f32 or i32.
        Neg = "neg",
        /// `|x|`, of f32 or i32.
        Abs = "abs",
        /// `e^x`, with a relative error under 2e-7 where the result is normal.
        Exp = "exp",
        /// The natural logarithm, within 2 units in the last place.
        Log = "log",
        /// The square root, correctly rounded.
        Sqrt = "sqrt",
        /// `1 / sqrt(x)`: a correctly rounded square root, then a division.
        Rsqrt = "rsqrt",
        /// `1 / x`.
        Recip = "recip",
        /// `x` where `0 < x`, else 0 (also for NaN).
        Relu = "relu",
        /// The nearest whole number, ties to even.
        Round = "round",
        /// The largest whole number that is not greater.
        Floor = "floor",
        /// The sine of `x` radians; within 1e-7 for `|x| <= 2^20`.
        Sin = "sin",
        /// The cosine of `x` radians; within 1e-7 for `|x| <= 2^20`.
        Cos = "cos",
        /// i32 to f32, rounded half to even.
        ToF32 = "f32",
        /// f32 to i32: rounded half to even, saturating, 0 for NaN.
        ToI32 = "i32",
    }
}

op_names! {
    /// Functions of two values of one type, f32 or i32.
    BinaryOp {
        /// `lhs + rhs`.
        Add = "add",
        /// `lhs - rhs`.
        Sub = "sub",
        /// `lhs * rhs`.
        Mul = "mul",
        /// `lhs / rhs`, f32 only.
        Div = "div",
        /// The smaller; `lhs` of equals; the number if only one is a number.
        Min = "min",
        /// The larger; `lhs` of equals; the number if only one is a number.
        Max = "max",
        /// `lhs < rhs`, a bool; false if either is NaN.
        Less = "lt",
        /// `lhs <= rhs`, a bool; false if either is NaN.
        LessEqual = "le",
        /// `lhs == rhs`, a bool; false if either is NaN.
        Equal = "eq",
    }
}

op_names! {
    /// How a reduction folds its columns.
    ReduceOp {
        /// The sum, in the written order; 0 of no column.
        Sum = "sum",
        /// The largest that is a number; minus infinity (or the least i32) if there is none.
        Max = "max",
        /// The smallest that is a number; infinity (or the greatest i32) if there is none.
        Min = "min",
        /// The first column of the largest f32, as i32; 0 if none is a number.
        ArgMax = "argmax",
    }
}

/// One step of a unit.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// Sets `dst` to the fold of `body` over the columns.
    Reduce {
        /// The scalar set.
        dst: ScalarId,
        /// The fold.
        op: ReduceOp,
        /// The columns.
        len: Extent,
        /// The value of a column.
        body: ExprId,
    },
    /// Sets `dst` to a value that depends on no column.
    Scalar {
        /// The scalar set.
        dst: ScalarId,
        /// The value.
        value: ExprId,
    },
    /// Writes an element per column and place. The values of a column are all computed before the first is written. No element is written
    /// twice.
    Store {
        /// The columns.
        len: Extent,
        /// What is written where, in this order.
        writes: Vec<Write>,
    },
    /// Quantises the columns `0..k` into one record of a q8 or q4 buffer, bit for bit as [`RowFormat::encode`] does.
    StoreRow {
        /// Position in [`Nest::buffers`].
        buffer: usize,
        /// Which record; depends on no column.
        record: Index,
        /// The value of a column, f32. It is evaluated several times.
        body: ExprId,
    },
}

/// One place that a [`Stage::Store`] writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// Position in [`Nest::buffers`].
    pub buffer: usize,
    /// Which element.
    pub index: Index,
    /// Its value.
    pub value: ExprId,
}

impl Stage {
    /// The expressions it evaluates, those of its indices included.
    pub fn roots(&self) -> Vec<ExprId> {
        match self {
            Stage::Reduce { body, .. } => vec![*body],
            Stage::Scalar { value, .. } => vec![*value],
            Stage::Store { writes, .. } => {
                writes.iter().flat_map(|write| write.index.gathered().chain([write.value])).collect()
            }
            Stage::StoreRow { record, body, .. } => record.gathered().chain([*body]).collect(),
        }
    }
}

impl Nest {
    /// The expressions reachable from `roots`, in arena order, so operands stand before their users.
    pub fn reachable(&self, roots: &[ExprId]) -> Vec<ExprId> {
        self.reachable_until(roots, None)
    }

    /// The same without what only `known` needs.
    pub fn reachable_until(&self, roots: &[ExprId], known: Option<ExprId>) -> Vec<ExprId> {
        let mut reached = vec![false; self.exprs.len()];
        let mut pending = roots.to_vec();
        while let Some(id) = pending.pop() {
            if !std::mem::replace(&mut reached[id.index()], true) && known != Some(id) {
                pending.extend(self.exprs[id].operands());
            }
        }
        self.exprs.ids().filter(|id| reached[id.index()]).collect()
    }

    /// Whether an expression depends on no scalar of a unit, and on memory only in buffers of a kind.
    pub fn reads_only(&self, id: ExprId, is_kind: impl Fn(&Buffer) -> bool) -> bool {
        self.reachable(&[id]).into_iter().all(|id| match &self.exprs[id] {
            Expr::Scalar(_) => false,
            Expr::Load { buffer, .. } | Expr::LoadRow { buffer, .. } => is_kind(&self.buffers[*buffer]),
            _ => true,
        })
    }

    /// The units of a call with these sizes, if they fit in an i64.
    pub fn units(&self, dims: &[i64]) -> Option<i64> {
        self.outer.iter().try_fold(1_i64, |units, extent| {
            let size = match *extent {
                Extent::Const(size) => i64::try_from(size).ok()?,
                Extent::Dim(dim) => dims.get(dim)?.max(&0).to_owned(),
            };
            units.checked_mul(size)
        })
    }
}
