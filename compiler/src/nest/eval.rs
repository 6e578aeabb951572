//! What a nest computes, slowly and with every access checked: the oracle of generated code.

use std::ops::Range;

use ir::entity::Id;

use super::math::{self, Arithmetic, Value};
use super::{Axis, Elem, Expr, ExprId, Extent, Index, LANES, ReduceOp, Stage, Type, Verified};

/// Why a nest could not be evaluated: the buffers, or the sizes, are not those it was made for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// Another number of buffers or sizes.
    #[error("nest `{nest}` takes {expected} {of}, not {found}")]
    Arguments {
        /// The nest's name.
        nest: String,
        /// Buffers or dims.
        of: &'static str,
        /// How many it takes.
        expected: usize,
        /// How many it got.
        found: usize,
    },
    /// An access outside its buffer.
    #[error("nest `{nest}` touches byte {byte} of buffer `{buffer}`, which has {len}")]
    OutOfBounds {
        /// The nest's name.
        nest: String,
        /// The buffer's name.
        buffer: String,
        /// The first byte touched.
        byte: i64,
        /// The size of the buffer.
        len: usize,
    },
}

/// Computes the units of `units`. `buffers` and `dims` are in the order of the nest.
///
/// # Errors
///
/// [`EvalError`] at the first access outside a buffer; what was computed before stays written.
pub fn eval(nest: &Verified, buffers: &mut [&mut [u8]], dims: &[i64], units: Range<i64>) -> Result<(), EvalError> {
    for (of, expected, found) in [("buffers", nest.buffers.len(), buffers.len()), ("dims", nest.dims.len(), dims.len())]
    {
        if expected != found {
            return Err(EvalError::Arguments { nest: nest.name.clone(), of, expected, found });
        }
    }
    let mut unit = Unit { nest, buffers, dims, coordinates: Vec::new(), scalars: vec![None; nest.scalars.len()] };
    for number in units {
        unit.locate(number);
        for stage in &nest.stages {
            unit.run(stage)?;
        }
    }
    Ok(())
}

/// f32, i32 and f64 as Rust has them, which is what IEEE 754 and two's complement say.
#[derive(Debug)]
pub struct Exact;

/// The values of expressions, by id, as far as they are computed.
type Values = Vec<Option<Value<Exact>>>;

struct Unit<'a, 'b> {
    nest: &'a Verified,
    buffers: &'a mut [&'b mut [u8]],
    dims: &'a [i64],
    coordinates: Vec<i64>,
    scalars: Vec<Option<Value<Exact>>>,
}

impl Unit<'_, '_> {
    fn extent(&self, extent: Extent) -> i64 {
        match extent {
            Extent::Const(size) => size as i64,
            Extent::Dim(dim) => self.dims[dim].max(0),
        }
    }

    /// Sets the coordinates of unit `number`, the last axis fastest.
    fn locate(&mut self, number: i64) {
        let mut rest = number;
        self.coordinates = vec![0; self.nest.outer.len()];
        for axis in (0..self.nest.outer.len()).rev() {
            let size = if axis == 0 { i64::MAX } else { self.extent(self.nest.outer[axis]) };
            self.coordinates[axis] = rest % size;
            rest /= size;
        }
    }

    fn run(&mut self, stage: &Stage) -> Result<(), EvalError> {
        let (row, columns) = self.nest.schedule(&stage.roots());
        let mut values: Values = vec![None; self.nest.exprs.len()];
        self.compute(&row, 0, &mut values)?;
        match stage {
            Stage::Scalar { dst, value } => self.scalars[dst.index()] = values[value.index()],
            Stage::Reduce { dst, op, len, body } => {
                let len = self.extent(*len);
                let result = if *op == ReduceOp::ArgMax {
                    let max = self.fold(ReduceOp::Max, len, &columns, *body, &mut values)?;
                    self.first_equal(max, len, &columns, *body, &mut values)?
                } else {
                    self.fold(*op, len, &columns, *body, &mut values)?
                };
                self.scalars[dst.index()] = Some(result);
            }
            Stage::Store { len, writes } => {
                for column in 0..self.extent(*len) {
                    self.compute(&columns, column, &mut values)?;
                    for write in writes {
                        let index = self.index(&write.index, column, &values);
                        self.store(write.buffer, index, get(&values, write.value))?;
                    }
                }
            }
            Stage::StoreRow { buffer, record, body } => {
                let elem = self.nest.buffers[*buffer].elem;
                let (Elem::Q8 { k } | Elem::Q4 { k }) = elem else {
                    unreachable!("a verified nest stores rows only to buffers of records");
                };
                let mut quantised = vec![0.0_f32; k as usize];
                for (column, value) in quantised.iter_mut().enumerate() {
                    self.compute(&columns, column as i64, &mut values)?;
                    *value = get(&values, *body).f32();
                }
                let index = self.index(record, 0, &values);
                let stride = elem.stride() as usize;
                let bytes = self.bytes(*buffer, index * stride as i64, stride)?;
                if let Some(format) = elem.row_format() {
                    format.encode(&quantised, bytes);
                }
            }
        }
        Ok(())
    }

    /// Computes the expressions `ids`, whose operands are computed or among them, for one column.
    fn compute(&mut self, ids: &[ExprId], column: i64, values: &mut Values) -> Result<(), EvalError> {
        let nest = self.nest;
        for &id in ids {
            let value = match &nest.exprs[id] {
                Expr::F32 { bits } => Value::F32(f32::from_bits(*bits)),
                Expr::I32(value) => Value::I32(*value),
                Expr::Column => Value::I32(column as i32),
                Expr::Outer(axis) => Value::I32(self.coordinates[*axis] as i32),
                Expr::Dim(dim) => Value::I32(self.extent(Extent::Dim(*dim)) as i32),
                Expr::Scalar(scalar) => self.scalars[scalar.index()].expect("a verified nest sets scalars before use"),
                Expr::Load { buffer, index } => {
                    let index = self.index(index, column, values);
                    self.load(*buffer, index)?
                }
                Expr::LoadRow { buffer, record, element } => {
                    let record = self.index(record, column, values);
                    let element = self.index(element, column, values);
                    self.load_row(*buffer, record, element)?
                }
                Expr::Unary(op, x) => math::unary(&mut Exact, *op, get(values, *x)),
                Expr::Binary(op, lhs, rhs) => math::binary(&mut Exact, *op, get(values, *lhs), get(values, *rhs)),
                Expr::Select(condition, lhs, rhs) => {
                    let condition = get(values, *condition).bool();
                    math::select(&mut Exact, condition, get(values, *lhs), get(values, *rhs))
                }
            };
            values[id.index()] = Some(value);
        }
        Ok(())
    }

    /// Folds the columns in the written order: lanes first, then the tree over them.
    fn fold(
        &mut self,
        op: ReduceOp,
        len: i64,
        columns: &[ExprId],
        body: ExprId,
        values: &mut Values,
    ) -> Result<Value<Exact>, EvalError> {
        let mut lanes = [initial(op, self.nest.type_of(body)); LANES];
        for column in 0..len {
            self.compute(columns, column, values)?;
            let lane = &mut lanes[column as usize % LANES];
            *lane = combine(op, *lane, get(values, body));
        }
        let mut half = LANES / 2;
        while 0 < half {
            for lane in 0..half {
                lanes[lane] = combine(op, lanes[lane], lanes[lane + half]);
            }
            half /= 2;
        }
        Ok(lanes[0])
    }

    fn first_equal(
        &mut self,
        max: Value<Exact>,
        len: i64,
        columns: &[ExprId],
        body: ExprId,
        values: &mut Values,
    ) -> Result<Value<Exact>, EvalError> {
        for column in 0..len {
            self.compute(columns, column, values)?;
            if get(values, body).f32() == max.f32() {
                return Ok(Value::I32(column as i32));
            }
        }
        Ok(Value::I32(0))
    }

    fn index(&self, index: &Index, column: i64, values: &Values) -> i64 {
        index.terms.iter().fold(index.offset, |sum, term| {
            let value = match term.axis {
                Axis::Outer(axis) => self.coordinates[axis],
                Axis::Column => column,
                Axis::Gather { value, limit } => i64::from(get(values, value).i32()).min(self.extent(limit) - 1).max(0),
            };
            sum + term.stride * value
        })
    }

    fn bytes(&mut self, buffer: usize, byte: i64, count: usize) -> Result<&mut [u8], EvalError> {
        let len = self.buffers[buffer].len();
        let range = usize::try_from(byte).ok().and_then(|byte| Some(byte..byte.checked_add(count)?));
        match range {
            Some(range) if range.end <= len => Ok(&mut self.buffers[buffer][range]),
            _ => Err(EvalError::OutOfBounds {
                nest: self.nest.name.clone(),
                buffer: self.nest.buffers[buffer].name.clone(),
                byte,
                len,
            }),
        }
    }

    fn array<const N: usize>(&mut self, buffer: usize, byte: i64) -> Result<[u8; N], EvalError> {
        let bytes = self.bytes(buffer, byte, N)?;
        Ok(std::array::from_fn(|at| bytes[at]))
    }

    fn load(&mut self, buffer: usize, index: i64) -> Result<Value<Exact>, EvalError> {
        let elem = self.nest.buffers[buffer].elem;
        let byte = index * elem.stride() as i64;
        Ok(match elem {
            Elem::F32 => Value::F32(f32::from_le_bytes(self.array(buffer, byte)?)),
            Elem::I32 => Value::I32(i32::from_le_bytes(self.array(buffer, byte)?)),
            Elem::I8 => Value::I32(i32::from(i8::from_le_bytes(self.array(buffer, byte)?))),
            Elem::BF16 => {
                let bits = i32::from(u16::from_le_bytes(self.array(buffer, byte)?));
                Value::F32(math::bf16_to_f32(&mut Exact, bits))
            }
            Elem::F16 => {
                let bits = i32::from(u16::from_le_bytes(self.array(buffer, byte)?));
                Value::F32(math::f16_to_f32(&mut Exact, bits))
            }
            Elem::Q8 { .. } | Elem::Q4 { .. } => unreachable!("a verified nest loads records by LoadRow"),
        })
    }

    fn load_row(&mut self, buffer: usize, record: i64, element: i64) -> Result<Value<Exact>, EvalError> {
        let elem = self.nest.buffers[buffer].elem;
        let format = elem.row_format().expect("a verified nest loads rows of records");
        let start = record * elem.stride() as i64;
        let numbers = start + format.code_bytes() as i64;
        let scale = f32::from_le_bytes(self.array(buffer, numbers)?);
        Ok(Value::F32(match elem {
            Elem::Q4 { .. } => {
                let minimum = f32::from_le_bytes(self.array(buffer, numbers + 4)?);
                let [byte] = self.array(buffer, start + (element >> 1))?;
                let code = (byte >> (4 * (element & 1))) & 15;
                minimum + f32::from(code) * scale
            }
            _ => f32::from(i8::from_le_bytes(self.array(buffer, start + element)?)) * scale,
        }))
    }

    fn store(&mut self, buffer: usize, index: i64, value: Value<Exact>) -> Result<(), EvalError> {
        let elem = self.nest.buffers[buffer].elem;
        let byte = index * elem.stride() as i64;
        let bytes = self.bytes(buffer, byte, elem.stride() as usize)?;
        match elem {
            Elem::F32 => bytes.copy_from_slice(&value.f32().to_le_bytes()),
            Elem::I32 => bytes.copy_from_slice(&value.i32().to_le_bytes()),
            Elem::I8 => bytes.copy_from_slice(&(value.i32().clamp(-128, 127) as i8).to_le_bytes()),
            Elem::BF16 => bytes.copy_from_slice(&(math::f32_to_bf16(&mut Exact, value.f32()) as u16).to_le_bytes()),
            Elem::F16 => bytes.copy_from_slice(&(math::f32_to_f16(&mut Exact, value.f32()) as u16).to_le_bytes()),
            Elem::Q8 { .. } | Elem::Q4 { .. } => unreachable!("a verified nest stores records by StoreRow"),
        }
        Ok(())
    }
}

fn get(values: &Values, id: ExprId) -> Value<Exact> {
    values[id.index()].expect("operands are computed before their users")
}

/// What a reduction starts from.
fn initial(op: ReduceOp, ty: Type) -> Value<Exact> {
    match (op, ty) {
        (ReduceOp::Sum, Type::I32) => Value::I32(0),
        (ReduceOp::Min, Type::I32) => Value::I32(i32::MAX),
        (_, Type::I32) => Value::I32(i32::MIN),
        (ReduceOp::Sum, _) => Value::F32(0.0),
        (ReduceOp::Min, _) => Value::F32(f32::INFINITY),
        (ReduceOp::Max | ReduceOp::ArgMax, _) => Value::F32(f32::NEG_INFINITY),
    }
}

fn combine(op: ReduceOp, acc: Value<Exact>, x: Value<Exact>) -> Value<Exact> {
    match (op, acc, x) {
        (ReduceOp::Sum, Value::I32(acc), Value::I32(x)) => Value::I32(acc.wrapping_add(x)),
        (ReduceOp::Min, Value::I32(acc), Value::I32(x)) => Value::I32(acc.min(x)),
        (_, Value::I32(acc), Value::I32(x)) => Value::I32(acc.max(x)),
        (ReduceOp::Sum, acc, x) => Value::F32(acc.f32() + x.f32()),
        (ReduceOp::Min, acc, x) => Value::F32(math::fold_min(&mut Exact, acc.f32(), x.f32())),
        (ReduceOp::Max | ReduceOp::ArgMax, acc, x) => Value::F32(math::fold_max(&mut Exact, acc.f32(), x.f32())),
    }
}

impl Arithmetic for Exact {
    type F32 = f32;
    type I32 = i32;
    type Bool = bool;
    type F64 = f64;

    fn f32(&mut self, value: f32) -> f32 {
        value
    }
    fn add(&mut self, lhs: f32, rhs: f32) -> f32 {
        lhs + rhs
    }
    fn sub(&mut self, lhs: f32, rhs: f32) -> f32 {
        lhs - rhs
    }
    fn mul(&mut self, lhs: f32, rhs: f32) -> f32 {
        lhs * rhs
    }
    fn div(&mut self, lhs: f32, rhs: f32) -> f32 {
        lhs / rhs
    }
    fn sqrt(&mut self, x: f32) -> f32 {
        x.sqrt()
    }
    fn less(&mut self, lhs: f32, rhs: f32) -> bool {
        lhs < rhs
    }
    fn less_equal(&mut self, lhs: f32, rhs: f32) -> bool {
        lhs <= rhs
    }
    fn equal(&mut self, lhs: f32, rhs: f32) -> bool {
        lhs == rhs
    }
    fn select(&mut self, condition: bool, lhs: f32, rhs: f32) -> f32 {
        if condition { lhs } else { rhs }
    }
    fn i32(&mut self, value: i32) -> i32 {
        value
    }
    fn int_add(&mut self, lhs: i32, rhs: i32) -> i32 {
        lhs.wrapping_add(rhs)
    }
    fn int_sub(&mut self, lhs: i32, rhs: i32) -> i32 {
        lhs.wrapping_sub(rhs)
    }
    fn int_mul(&mut self, lhs: i32, rhs: i32) -> i32 {
        lhs.wrapping_mul(rhs)
    }
    fn int_less(&mut self, lhs: i32, rhs: i32) -> bool {
        lhs < rhs
    }
    fn int_less_equal(&mut self, lhs: i32, rhs: i32) -> bool {
        lhs <= rhs
    }
    fn int_equal(&mut self, lhs: i32, rhs: i32) -> bool {
        lhs == rhs
    }
    fn int_select(&mut self, condition: bool, lhs: i32, rhs: i32) -> i32 {
        if condition { lhs } else { rhs }
    }
    fn and(&mut self, lhs: i32, rhs: i32) -> i32 {
        lhs & rhs
    }
    fn or(&mut self, lhs: i32, rhs: i32) -> i32 {
        lhs | rhs
    }
    fn xor(&mut self, lhs: i32, rhs: i32) -> i32 {
        lhs ^ rhs
    }
    fn shift_left(&mut self, x: i32, by: u32) -> i32 {
        x << by
    }
    fn shift_right_signed(&mut self, x: i32, by: u32) -> i32 {
        x >> by
    }
    fn shift_right(&mut self, x: i32, by: u32) -> i32 {
        ((x as u32) >> by) as i32
    }
    fn f32_to_bits(&mut self, x: f32) -> i32 {
        x.to_bits() as i32
    }
    fn bits_to_f32(&mut self, x: i32) -> f32 {
        f32::from_bits(x as u32)
    }
    fn int_to_f32(&mut self, x: i32) -> f32 {
        x as f32
    }
    fn truncate(&mut self, x: f32) -> i32 {
        x as i32
    }
    fn f64(&mut self, value: f64) -> f64 {
        value
    }
    fn widen(&mut self, x: f32) -> f64 {
        f64::from(x)
    }
    fn narrow(&mut self, x: f64) -> f32 {
        x as f32
    }
    fn wide_add(&mut self, lhs: f64, rhs: f64) -> f64 {
        lhs + rhs
    }
    fn wide_sub(&mut self, lhs: f64, rhs: f64) -> f64 {
        lhs - rhs
    }
    fn wide_mul(&mut self, lhs: f64, rhs: f64) -> f64 {
        lhs * rhs
    }
    fn wide_flip_if_odd(&mut self, x: f64, parity: f64) -> f64 {
        f64::from_bits(x.to_bits() ^ (parity.to_bits() << 63))
    }
}
