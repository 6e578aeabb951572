//! Whether a nest means something: every structural and type rule, all problems at once.

use std::collections::HashSet;
use std::fmt;
use std::ops::Deref;

use ir::entity::Id;

use super::{Axis, BinaryOp, Elem, Expr, ExprId, Extent, Index, Nest, ReduceOp, ScalarId, Stage, Type, UnaryOp};

/// A nest that holds every rule, with what the rules found out. Only [`Verified::new`] makes one.
#[derive(Clone, Debug)]
pub struct Verified {
    nest: Nest,
    types: Vec<Type>,
    columnar: Vec<bool>,
}

impl Verified {
    /// Checks `nest`.
    ///
    /// # Errors
    ///
    /// Every problem it has.
    pub fn new(nest: Nest) -> Result<Self, NestErrors> {
        let mut checker = Checker { nest: &nest, types: Vec::new(), columnar: Vec::new(), errors: Vec::new() };
        checker.check_header();
        checker.check_exprs();
        // Stages are judged by the types of their expressions, so only once those are sound.
        if checker.errors.is_empty() {
            checker.check_stages();
        }
        let Checker { types, columnar, errors, .. } = checker;
        if errors.is_empty() { Ok(Self { nest, types, columnar }) } else { Err(NestErrors { nest: nest.name, errors }) }
    }

    /// The type of an expression.
    pub fn type_of(&self, id: ExprId) -> Type {
        self.types[id.index()]
    }

    /// Whether an expression depends on the column.
    pub fn is_columnar(&self, id: ExprId) -> bool {
        self.columnar[id.index()]
    }

    /// The expressions reachable from `roots` in arena order: first those that depend on no column, then the others.
    pub fn schedule(&self, roots: &[ExprId]) -> (Vec<ExprId>, Vec<ExprId>) {
        self.nest.reachable(roots).into_iter().partition(|id| !self.is_columnar(*id))
    }
}

impl Deref for Verified {
    type Target = Nest;

    fn deref(&self) -> &Nest {
        &self.nest
    }
}

/// All problems of one nest.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("nest `{nest}` is not well formed:{}", List(.errors))]
pub struct NestErrors {
    /// The nest's name.
    pub nest: String,
    /// The problems, in the order they were found.
    pub errors: Vec<NestError>,
}

struct List<'a>(&'a [NestError]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

/// Where in a nest a problem lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An axis of the row space.
    Outer(usize),
    /// An expression.
    Expr(ExprId),
    /// A stage.
    Stage(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Outer(axis) => write!(f, "axis {axis}"),
            Place::Expr(id) => write!(f, "{id}"),
            Place::Stage(stage) => write!(f, "stage {stage}"),
        }
    }
}

/// What is wrong with a nest. A nest is made by the compiler, so each is a bug of a lowering pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NestError {
    /// A name that is no identifier.
    #[error("the name `{name}` of a {of} is not a letter followed by letters, digits and `_`")]
    BadName {
        /// What has the name.
        of: &'static str,
        /// The name.
        name: String,
    },
    /// Two buffers or two sizes of one name.
    #[error("two of the {of}s are called `{name}`")]
    DuplicateName {
        /// What has the name.
        of: &'static str,
        /// The name.
        name: String,
    },
    /// A record without values.
    #[error("records of buffer `{buffer}` hold {k} values, not between 1 and {}", i32::MAX)]
    RecordSize {
        /// The buffer's name.
        buffer: String,
        /// The values.
        k: u64,
    },
    /// A size that only the outermost axis may take.
    #[error("{at} has a size that only a call knows, which only axis 0 may")]
    InnerDim {
        /// The axis.
        at: Place,
    },
    /// An extent out of range.
    #[error("{at} has the extent {extent}, not between {least} and {}", i32::MAX)]
    ExtentRange {
        /// Who has it.
        at: Place,
        /// The extent.
        extent: u64,
        /// The least allowed.
        least: u64,
    },
    /// A position outside the list it is for.
    #[error("{at} names {kind} {position} of {count}")]
    Unknown {
        /// Who names it.
        at: Place,
        /// What it names.
        kind: &'static str,
        /// The position.
        position: usize,
        /// How many there are.
        count: usize,
    },
    /// An operand that does not stand before its user.
    #[error("{at} uses {operand}, which does not stand before it")]
    Order {
        /// The user.
        at: Place,
        /// The operand.
        operand: ExprId,
    },
    /// An operand of the wrong type.
    #[error("{at} needs {expected} but {operand} is {found}")]
    Operand {
        /// The user.
        at: Place,
        /// The operand.
        operand: ExprId,
        /// What would do.
        expected: &'static str,
        /// What it is.
        found: Type,
    },
    /// A whole-record access to a plain buffer, or the reverse.
    #[error("{at} takes buffer `{buffer}` of {elem} for {taken_for}")]
    BufferKind {
        /// Who takes it.
        at: Place,
        /// The buffer's name.
        buffer: String,
        /// Its elements.
        elem: Elem,
        /// What they are taken for.
        taken_for: &'static str,
    },
    /// A store to an input.
    #[error("{at} stores to buffer `{buffer}`, which is only read")]
    ReadOnly {
        /// The stage.
        at: Place,
        /// The buffer's name.
        buffer: String,
    },
    /// A column where there is none.
    #[error("{at} has {what} that depends on the column")]
    Column {
        /// Who.
        at: Place,
        /// What must not.
        what: &'static str,
    },
    /// A store whose columns all go to one element.
    #[error("{at} stores every column of buffer `{buffer}` to one element")]
    Collision {
        /// The stage.
        at: Place,
        /// The buffer's name.
        buffer: String,
    },
    /// A load of a buffer that the same stage writes elsewhere.
    #[error("{at} writes buffer `{buffer}`, and {load} loads it at an index that the stage does not write")]
    InPlace {
        /// The stage.
        at: Place,
        /// The buffer's name.
        buffer: String,
        /// The load.
        load: ExprId,
    },
    /// A scalar used before it is set.
    #[error("{at} uses {scalar} before it is set")]
    Unset {
        /// The stage.
        at: Place,
        /// The scalar.
        scalar: ScalarId,
    },
    /// A scalar set twice.
    #[error("{at} sets {scalar} again")]
    SetAgain {
        /// The stage.
        at: Place,
        /// The scalar.
        scalar: ScalarId,
    },
    /// A scalar whose value has another type.
    #[error("{at} sets {scalar}, declared {declared}, to {found}")]
    ScalarType {
        /// The stage.
        at: Place,
        /// The scalar.
        scalar: ScalarId,
        /// Its declared type.
        declared: Type,
        /// The type of the value.
        found: Type,
    },
}

struct Checker<'a> {
    nest: &'a Nest,
    types: Vec<Type>,
    columnar: Vec<bool>,
    errors: Vec<NestError>,
}

impl Checker<'_> {
    fn check_header(&mut self) {
        let nest = self.nest;
        self.check_names("nest", [&nest.name]);
        self.check_names("buffer", nest.buffers.iter().map(|buffer| &buffer.name));
        self.check_names("dim", &nest.dims);
        for buffer in &nest.buffers {
            if let Elem::Q8 { k } | Elem::Q4 { k } = buffer.elem
                && !(1..=i32::MAX as u64).contains(&k)
            {
                self.errors.push(NestError::RecordSize { buffer: buffer.name.clone(), k });
            }
        }
        for (axis, extent) in nest.outer.iter().enumerate() {
            let at = Place::Outer(axis);
            // An empty inner axis would be divided by.
            self.check_extent(at, *extent, 1);
            if axis != 0 && matches!(extent, Extent::Dim(_)) {
                self.errors.push(NestError::InnerDim { at });
            }
        }
    }

    fn check_names<'n>(&mut self, of: &'static str, names: impl IntoIterator<Item = &'n String>) {
        let mut seen = HashSet::new();
        for name in names {
            let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic());
            if !starts_well || !name.chars().all(|each| each.is_ascii_alphanumeric() || each == '_') {
                self.errors.push(NestError::BadName { of, name: name.clone() });
            }
            if !seen.insert(name) {
                self.errors.push(NestError::DuplicateName { of, name: name.clone() });
            }
        }
    }

    fn check_position(&mut self, at: Place, kind: &'static str, position: usize, count: usize) -> bool {
        if count <= position {
            self.errors.push(NestError::Unknown { at, kind, position, count });
        }
        position < count
    }

    fn check_extent(&mut self, at: Place, extent: Extent, least: u64) {
        match extent {
            Extent::Dim(dim) => {
                self.check_position(at, "dim", dim, self.nest.dims.len());
            }
            // Columns and coordinates are i32 values of expressions.
            Extent::Const(extent) if extent < least || (i32::MAX as u64) < extent => {
                self.errors.push(NestError::ExtentRange { at, extent, least });
            }
            Extent::Const(_) => {}
        }
    }

    fn expect(&mut self, at: Place, operand: ExprId, expected: &'static str, fits: impl FnOnce(Type) -> bool) {
        let found = self.types[operand.index()];
        if !fits(found) {
            self.errors.push(NestError::Operand { at, operand, expected, found });
        }
    }

    /// Checks an index; the expressions it gathers by are known. Whether it depends on the column.
    fn check_index(&mut self, at: Place, index: &Index) -> bool {
        let mut columnar = index.column_stride() != 0;
        for term in &index.terms {
            match term.axis {
                Axis::Outer(axis) => {
                    self.check_position(at, "axis", axis, self.nest.outer.len());
                }
                Axis::Column => {}
                Axis::Gather { value, limit } => {
                    self.check_extent(at, limit, 1);
                    self.expect(at, value, "i32 to gather by", |ty| ty == Type::I32);
                    columnar |= self.columnar[value.index()];
                }
            }
        }
        columnar
    }

    /// Checks that a buffer exists and holds records or does not.
    fn check_buffer(&mut self, at: Place, buffer: usize, records: bool) -> Option<Elem> {
        if !self.check_position(at, "buffer", buffer, self.nest.buffers.len()) {
            return None;
        }
        let described = &self.nest.buffers[buffer];
        let elem = described.elem;
        if matches!(elem, Elem::Q8 { .. } | Elem::Q4 { .. }) != records {
            let taken_for = if records { "records" } else { "plain elements" };
            self.errors.push(NestError::BufferKind { at, buffer: described.name.clone(), elem, taken_for });
        }
        Some(elem)
    }

    fn check_exprs(&mut self) {
        for (id, expr) in self.nest.exprs.iter() {
            let at = Place::Expr(id);
            let misplaced: Vec<_> = expr.operands().into_iter().filter(|operand| id <= *operand).collect();
            let (ty, columnar) = if misplaced.is_empty() { self.check_expr(at, expr) } else { (Type::F32, false) };
            self.errors.extend(misplaced.into_iter().map(|operand| NestError::Order { at, operand }));
            self.types.push(ty);
            self.columnar.push(columnar);
        }
    }

    fn check_expr(&mut self, at: Place, expr: &Expr) -> (Type, bool) {
        let columnar = expr.operands().iter().any(|operand| self.columnar[operand.index()]);
        let number = |ty| ty != Type::Bool;
        match expr {
            Expr::F32 { .. } => (Type::F32, false),
            Expr::I32(_) => (Type::I32, false),
            Expr::Column => (Type::I32, true),
            Expr::Outer(axis) => {
                self.check_position(at, "axis", *axis, self.nest.outer.len());
                (Type::I32, false)
            }
            Expr::Dim(dim) => {
                self.check_position(at, "dim", *dim, self.nest.dims.len());
                (Type::I32, false)
            }
            Expr::Scalar(scalar) => {
                let known = self.check_position(at, "scalar", scalar.index(), self.nest.scalars.len());
                (if known { self.nest.scalars[*scalar] } else { Type::F32 }, false)
            }
            Expr::Load { buffer, index } => {
                let elem = self.check_buffer(at, *buffer, false);
                (elem.map_or(Type::F32, Elem::value_type), self.check_index(at, index))
            }
            Expr::LoadRow { buffer, record, element } => {
                self.check_buffer(at, *buffer, true);
                let by_record = self.check_index(at, record);
                (Type::F32, self.check_index(at, element) || by_record)
            }
            Expr::Unary(op, x) => {
                let ty = match op {
                    UnaryOp::Neg | UnaryOp::Abs => {
                        self.expect(at, *x, "f32 or i32", number);
                        self.types[x.index()]
                    }
                    UnaryOp::ToF32 => {
                        self.expect(at, *x, "i32", |ty| ty == Type::I32);
                        Type::F32
                    }
                    _ => {
                        self.expect(at, *x, "f32", |ty| ty == Type::F32);
                        if *op == UnaryOp::ToI32 { Type::I32 } else { Type::F32 }
                    }
                };
                (ty, columnar)
            }
            Expr::Binary(op, lhs, rhs) => {
                let ty = self.types[lhs.index()];
                match op {
                    BinaryOp::Div => self.expect(at, *lhs, "f32", |ty| ty == Type::F32),
                    _ => self.expect(at, *lhs, "f32 or i32", number),
                }
                self.expect(at, *rhs, "both of one type", |other| other == ty);
                let compares = matches!(op, BinaryOp::Less | BinaryOp::LessEqual | BinaryOp::Equal);
                (if compares { Type::Bool } else { ty }, columnar)
            }
            Expr::Select(condition, lhs, rhs) => {
                let ty = self.types[lhs.index()];
                self.expect(at, *condition, "bool", |ty| ty == Type::Bool);
                self.expect(at, *lhs, "f32 or i32", number);
                self.expect(at, *rhs, "both of one type", |other| other == ty);
                (ty, columnar)
            }
        }
    }

    fn check_stages(&mut self) {
        let mut set = HashSet::new();
        for (position, stage) in self.nest.stages.iter().enumerate() {
            let at = Place::Stage(position);
            let roots = stage.roots();
            let unknown: Vec<_> = roots.iter().filter(|root| self.types.len() <= root.index()).copied().collect();
            if !unknown.is_empty() {
                self.errors.extend(unknown.into_iter().map(|operand| NestError::Order { at, operand }));
                continue;
            }
            let used = self.nest.reachable(&roots);
            for &id in &used {
                if let Expr::Scalar(scalar) = self.nest.exprs[id]
                    && !set.contains(&scalar)
                {
                    self.errors.push(NestError::Unset { at, scalar });
                }
            }
            self.check_stage(at, stage, &used);
            if let Stage::Reduce { dst, .. } | Stage::Scalar { dst, .. } = stage
                && !set.insert(*dst)
            {
                self.errors.push(NestError::SetAgain { at, scalar: *dst });
            }
        }
    }

    fn check_stage(&mut self, at: Place, stage: &Stage, used: &[ExprId]) {
        match stage {
            Stage::Reduce { dst, op, len, body } => {
                self.check_extent(at, *len, 0);
                let found = match op {
                    ReduceOp::ArgMax => {
                        self.expect(at, *body, "f32", |ty| ty == Type::F32);
                        Type::I32
                    }
                    _ => {
                        self.expect(at, *body, "f32 or i32", |ty| ty != Type::Bool);
                        self.types[body.index()]
                    }
                };
                self.check_scalar(at, *dst, found);
            }
            Stage::Scalar { dst, value } => {
                if self.columnar[value.index()] {
                    self.errors.push(NestError::Column { at, what: "a scalar" });
                }
                self.check_scalar(at, *dst, self.types[value.index()]);
            }
            Stage::Store { len, writes } => {
                self.check_extent(at, *len, 0);
                for write in writes {
                    let columnar = self.check_index(at, &write.index);
                    let Some(elem) = self.check_written(at, write.buffer, false) else { continue };
                    let ty = elem.value_type();
                    let expected = if ty == Type::F32 { "f32 to store" } else { "i32 to store" };
                    self.expect(at, write.value, expected, |found| found == ty);
                    let name = &self.nest.buffers[write.buffer].name;
                    if !columnar && !matches!(len, Extent::Const(0 | 1)) {
                        self.errors.push(NestError::Collision { at, buffer: name.clone() });
                    }
                    for &load in used {
                        if let Expr::Load { buffer, index } = &self.nest.exprs[load]
                            && *buffer == write.buffer
                            && !writes.iter().any(|write| write.buffer == *buffer && write.index == *index)
                        {
                            self.errors.push(NestError::InPlace { at, buffer: name.clone(), load });
                        }
                    }
                }
            }
            Stage::StoreRow { buffer, record, body } => {
                if self.check_index(at, record) {
                    self.errors.push(NestError::Column { at, what: "a record index" });
                }
                self.expect(at, *body, "f32", |ty| ty == Type::F32);
                if self.check_written(at, *buffer, true).is_none() {
                    return;
                }
                for &load in used {
                    if matches!(&self.nest.exprs[load], Expr::LoadRow { buffer: loaded, .. } if loaded == buffer) {
                        let buffer = self.nest.buffers[*buffer].name.clone();
                        self.errors.push(NestError::InPlace { at, buffer, load });
                    }
                }
            }
        }
    }

    fn check_written(&mut self, at: Place, buffer: usize, records: bool) -> Option<Elem> {
        let elem = self.check_buffer(at, buffer, records)?;
        let described = &self.nest.buffers[buffer];
        if !described.write {
            self.errors.push(NestError::ReadOnly { at, buffer: described.name.clone() });
        }
        Some(elem)
    }

    fn check_scalar(&mut self, at: Place, scalar: ScalarId, found: Type) {
        if !self.check_position(at, "scalar", scalar.index(), self.nest.scalars.len()) {
            return;
        }
        let declared = self.nest.scalars[scalar];
        if declared != found || found == Type::Bool {
            self.errors.push(NestError::ScalarType { at, scalar, declared, found });
        }
    }
}
