//! How a lowering pass writes a nest: constructors that share equal expressions.

use std::collections::HashMap;

use ir::entity::IdVec;

use super::{
    BinaryOp, Buffer, Elem, Expr, ExprId, Extent, Index, Nest, NestErrors, ReduceOp, ScalarId, Stage, Type, UnaryOp,
    Verified, Write,
};

/// Builds one [`Nest`]. Types are checked by [`NestBuilder::finish`], all at once, not here.
#[derive(Debug)]
pub struct NestBuilder {
    nest: Nest,
    known: HashMap<Expr, ExprId>,
}

impl NestBuilder {
    /// A nest without buffers, rows or stages.
    pub fn new(name: &str) -> Self {
        let nest = Nest {
            name: name.to_owned(),
            buffers: Vec::new(),
            dims: Vec::new(),
            outer: Vec::new(),
            scalars: IdVec::default(),
            exprs: IdVec::default(),
            stages: Vec::new(),
        };
        Self { nest, known: HashMap::new() }
    }

    /// Checks the nest and hands it over.
    ///
    /// # Errors
    ///
    /// Every problem of the nest.
    pub fn finish(self) -> Result<Verified, NestErrors> {
        Verified::new(self.nest)
    }

    /// A buffer that is only read.
    pub fn input(&mut self, name: &str, elem: Elem) -> usize {
        self.buffer(name, elem, false, false)
    }

    /// A parameter of the model.
    pub fn weight(&mut self, name: &str, elem: Elem) -> usize {
        self.buffer(name, elem, false, true)
    }

    /// A buffer that is written, and perhaps read.
    pub fn output(&mut self, name: &str, elem: Elem) -> usize {
        self.buffer(name, elem, true, false)
    }

    fn buffer(&mut self, name: &str, elem: Elem, write: bool, is_weight: bool) -> usize {
        self.nest.buffers.push(Buffer { name: name.to_owned(), elem, write, is_weight });
        self.nest.buffers.len() - 1
    }

    /// The size of this name, known at each call; the same extent for the same name.
    pub fn dim(&mut self, name: &str) -> Extent {
        let known = self.nest.dims.iter().position(|dim| dim == name);
        Extent::Dim(known.unwrap_or_else(|| {
            self.nest.dims.push(name.to_owned());
            self.nest.dims.len() - 1
        }))
    }

    /// The next axis of the row space, inside those before it. Returns its position.
    pub fn outer(&mut self, extent: Extent) -> usize {
        self.nest.outer.push(extent);
        self.nest.outer.len() - 1
    }

    /// An expression; an equal one is not made twice.
    pub fn expr(&mut self, expr: Expr) -> ExprId {
        match self.known.get(&expr) {
            Some(id) => *id,
            None => {
                let id = self.nest.exprs.push(expr.clone());
                self.known.insert(expr, id);
                id
            }
        }
    }

    /// An f32 constant.
    pub fn f32(&mut self, value: f32) -> ExprId {
        self.expr(Expr::F32 { bits: value.to_bits() })
    }

    /// An i32 constant.
    pub fn i32(&mut self, value: i32) -> ExprId {
        self.expr(Expr::I32(value))
    }

    /// The column, as i32.
    pub fn column(&mut self) -> ExprId {
        self.expr(Expr::Column)
    }

    /// The unit's coordinate on an axis, as i32.
    pub fn coordinate(&mut self, axis: usize) -> ExprId {
        self.expr(Expr::Outer(axis))
    }

    /// An extent as i32.
    pub fn extent(&mut self, extent: Extent) -> ExprId {
        match extent {
            Extent::Const(size) => self.i32(i32::try_from(size).unwrap_or(i32::MAX)),
            Extent::Dim(dim) => self.expr(Expr::Dim(dim)),
        }
    }

    /// An element of a plain buffer.
    pub fn load(&mut self, buffer: usize, index: Index) -> ExprId {
        self.expr(Expr::Load { buffer, index })
    }

    /// A dequantised value of a q8 or q4 buffer.
    pub fn load_row(&mut self, buffer: usize, record: Index, element: Index) -> ExprId {
        self.expr(Expr::LoadRow { buffer, record, element })
    }

    /// A function of one value.
    pub fn unary(&mut self, op: UnaryOp, x: ExprId) -> ExprId {
        self.expr(Expr::Unary(op, x))
    }

    /// A function of two values.
    pub fn binary(&mut self, op: BinaryOp, lhs: ExprId, rhs: ExprId) -> ExprId {
        self.expr(Expr::Binary(op, lhs, rhs))
    }

    /// `lhs` where `condition` holds, else `rhs`.
    pub fn select(&mut self, condition: ExprId, lhs: ExprId, rhs: ExprId) -> ExprId {
        self.expr(Expr::Select(condition, lhs, rhs))
    }

    /// `lhs + rhs`.
    pub fn add(&mut self, lhs: ExprId, rhs: ExprId) -> ExprId {
        self.binary(BinaryOp::Add, lhs, rhs)
    }

    /// `lhs - rhs`.
    pub fn sub(&mut self, lhs: ExprId, rhs: ExprId) -> ExprId {
        self.binary(BinaryOp::Sub, lhs, rhs)
    }

    /// `lhs * rhs`.
    pub fn mul(&mut self, lhs: ExprId, rhs: ExprId) -> ExprId {
        self.binary(BinaryOp::Mul, lhs, rhs)
    }

    /// `lhs / rhs`.
    pub fn div(&mut self, lhs: ExprId, rhs: ExprId) -> ExprId {
        self.binary(BinaryOp::Div, lhs, rhs)
    }

    /// `max(x, 0)^2`.
    pub fn relu2(&mut self, x: ExprId) -> ExprId {
        let positive = self.unary(UnaryOp::Relu, x);
        self.mul(positive, positive)
    }

    /// `1 + e^-x`, the divisor of the logistic functions.
    fn one_plus_exp_neg(&mut self, x: ExprId) -> ExprId {
        let negative = self.unary(UnaryOp::Neg, x);
        let power = self.unary(UnaryOp::Exp, negative);
        let one = self.f32(1.0);
        self.add(one, power)
    }

    /// `1 / (1 + e^-x)`.
    pub fn sigmoid(&mut self, x: ExprId) -> ExprId {
        let divisor = self.one_plus_exp_neg(x);
        let one = self.f32(1.0);
        self.div(one, divisor)
    }

    /// `x / (1 + e^-x)`.
    pub fn silu(&mut self, x: ExprId) -> ExprId {
        let divisor = self.one_plus_exp_neg(x);
        self.div(x, divisor)
    }

    /// `1 - 2 / (e^2x + 1)`, the hyperbolic tangent with an absolute error of about 1e-7.
    pub fn tanh(&mut self, x: ExprId) -> ExprId {
        let twice = self.add(x, x);
        let power = self.unary(UnaryOp::Exp, twice);
        let (one, two) = (self.f32(1.0), self.f32(2.0));
        let divisor = self.add(power, one);
        let quotient = self.div(two, divisor);
        self.sub(one, quotient)
    }

    fn scalar_stage(&mut self, ty: Type, stage: impl FnOnce(ScalarId) -> Stage) -> ExprId {
        let dst = self.nest.scalars.push(ty);
        self.nest.stages.push(stage(dst));
        self.expr(Expr::Scalar(dst))
    }

    /// Appends a reduction of an f32 (an arg-max of an f32, to i32) and returns its scalar.
    pub fn reduce(&mut self, op: ReduceOp, len: Extent, body: ExprId) -> ExprId {
        let ty = if op == ReduceOp::ArgMax { Type::I32 } else { Type::F32 };
        self.scalar_stage(ty, |dst| Stage::Reduce { dst, op, len, body })
    }

    /// Appends a reduction of an i32 and returns its scalar.
    pub fn reduce_i32(&mut self, op: ReduceOp, len: Extent, body: ExprId) -> ExprId {
        self.scalar_stage(Type::I32, |dst| Stage::Reduce { dst, op, len, body })
    }

    /// Appends a stage that computes an f32 once per unit, at this point of the order.
    pub fn scalar(&mut self, value: ExprId) -> ExprId {
        self.scalar_stage(Type::F32, |dst| Stage::Scalar { dst, value })
    }

    /// Appends a stage that computes an i32 once per unit, at this point of the order.
    pub fn scalar_i32(&mut self, value: ExprId) -> ExprId {
        self.scalar_stage(Type::I32, |dst| Stage::Scalar { dst, value })
    }

    /// Appends a store to one buffer.
    pub fn store(&mut self, len: Extent, buffer: usize, index: Index, value: ExprId) {
        self.store_all(len, vec![Write { buffer, index, value }]);
    }

    /// Appends a store to several places whose values are computed together.
    pub fn store_all(&mut self, len: Extent, writes: Vec<Write>) {
        self.nest.stages.push(Stage::Store { len, writes });
    }

    /// Appends the quantisation of a row into a record.
    pub fn store_row(&mut self, buffer: usize, record: Index, body: ExprId) {
        self.nest.stages.push(Stage::StoreRow { buffer, record, body });
    }
}
