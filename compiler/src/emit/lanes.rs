//! The arithmetic of nests in Cranelift IR: one column at a time, or four in a 128-bit vector.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{ConstantData, Endianness, InstBuilder, MemFlagsData, Type, Value, types};
use cranelift_frontend::FunctionBuilder;

use crate::nest;
use crate::nest::math::{Arithmetic, floor_by_magic, round_by_magic};

/// How many columns a value holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// One, in a scalar.
    One,
    /// Four neighbours, in a vector.
    Four,
}

impl Width {
    /// The Cranelift type of a nest's type. A comparison's result is a byte, or a mask of whole lanes.
    pub(super) fn ty(self, ty: nest::Type) -> Type {
        match (self, ty) {
            (Width::One, nest::Type::F32) => types::F32,
            (Width::One, nest::Type::I32) => types::I32,
            (Width::One, nest::Type::Bool) => types::I8,
            (Width::Four, nest::Type::F32) => types::F32X4,
            (Width::Four, nest::Type::I32 | nest::Type::Bool) => types::I32X4,
        }
    }
}

/// Emits operations on values of one width at the end of the current block.
pub(super) struct Lanes<'a, 'f> {
    pub(super) builder: &'a mut FunctionBuilder<'f>,
    pub(super) width: Width,
    /// Whether the target rounds to whole numbers by an instruction.
    pub(super) has_round: bool,
}

/// A value in double precision; four columns need two vectors.
#[derive(Clone, Copy)]
pub(super) struct Wide {
    low: Value,
    high: Option<Value>,
}

/// A bitcast, with the byte order that lanes of other sizes need.
pub(super) fn bitcast(builder: &mut FunctionBuilder<'_>, ty: Type, x: Value) -> Value {
    let flags = MemFlagsData::new().with_endianness(Endianness::Little);
    if builder.func.dfg.value_type(x) == ty { x } else { builder.ins().bitcast(ty, flags, x) }
}

impl Lanes<'_, '_> {
    fn constant(&mut self, scalar: Value, vector: Type) -> Value {
        match self.width {
            Width::One => scalar,
            Width::Four => self.builder.ins().splat(vector, scalar),
        }
    }

    fn f32_type(&self) -> Type {
        self.width.ty(nest::Type::F32)
    }

    fn i32_type(&self) -> Type {
        self.width.ty(nest::Type::I32)
    }

    fn fcmp(&mut self, condition: FloatCC, lhs: Value, rhs: Value) -> Value {
        self.builder.ins().fcmp(condition, lhs, rhs)
    }

    fn icmp(&mut self, condition: IntCC, lhs: Value, rhs: Value) -> Value {
        self.builder.ins().icmp(condition, lhs, rhs)
    }

    fn choose(&mut self, condition: Value, lhs: Value, rhs: Value) -> Value {
        match self.width {
            Width::One => self.builder.ins().select(condition, lhs, rhs),
            Width::Four => {
                let ty = self.builder.func.dfg.value_type(lhs);
                let mask = bitcast(self.builder, ty, condition);
                self.builder.ins().bitselect(mask, lhs, rhs)
            }
        }
    }

    /// The bytes of two vectors in another order.
    fn shuffle(&mut self, ty: Type, lhs: Value, rhs: Value, bytes: [u8; 16]) -> Value {
        let lhs = bitcast(self.builder, types::I8X16, lhs);
        let rhs = bitcast(self.builder, types::I8X16, rhs);
        let order = self.builder.func.dfg.immediates.push(ConstantData::from(&bytes[..]));
        let shuffled = self.builder.ins().shuffle(lhs, rhs, order);
        bitcast(self.builder, ty, shuffled)
    }

    fn wide(&mut self, lhs: Wide, rhs: Wide, mut op: impl FnMut(&mut Self, Value, Value) -> Value) -> Wide {
        let low = op(self, lhs.low, rhs.low);
        let high = lhs.high.zip(rhs.high).map(|(lhs, rhs)| op(self, lhs, rhs));
        Wide { low, high }
    }
}

impl Arithmetic for Lanes<'_, '_> {
    type F32 = Value;
    type I32 = Value;
    type Bool = Value;
    type F64 = Wide;

    fn f32(&mut self, value: f32) -> Value {
        let scalar = self.builder.ins().f32const(value);
        self.constant(scalar, types::F32X4)
    }
    fn add(&mut self, lhs: Value, rhs: Value) -> Value {
        self.builder.ins().fadd(lhs, rhs)
    }
    fn sub(&mut self, lhs: Value, rhs: Value) -> Value {
        self.builder.ins().fsub(lhs, rhs)
    }
    fn mul(&mut self, lhs: Value, rhs: Value) -> Value {
        self.builder.ins().fmul(lhs, rhs)
    }
    fn div(&mut self, lhs: Value, rhs: Value) -> Value {
        self.builder.ins().fdiv(lhs, rhs)
    }
    fn sqrt(&mut self, x: Value) -> Value {
        self.builder.ins().sqrt(x)
    }
    fn less(&mut self, lhs: Value, rhs: Value) -> Value {
        self.fcmp(FloatCC::LessThan, lhs, rhs)
    }
    fn less_equal(&mut self, lhs: Value, rhs: Value) -> Value {
        self.fcmp(FloatCC::LessThanOrEqual, lhs, rhs)
    }
    fn equal(&mut self, lhs: Value, rhs: Value) -> Value {
        self.fcmp(FloatCC::Equal, lhs, rhs)
    }
    fn select(&mut self, condition: Value, lhs: Value, rhs: Value) -> Value {
        self.choose(condition, lhs, rhs)
    }

    fn i32(&mut self, value: i32) -> Value {
        let scalar = self.builder.ins().iconst(types::I32, i64::from(value as u32));
        self.constant(scalar, types::I32X4)
    }
    fn int_add(&mut self, lhs: Value, rhs: Value) -> Value {
        self.builder.ins().iadd(lhs, rhs)
    }
    fn int_sub(&mut self, lhs: Value, rhs: Value) -> Value {
        self.builder.ins().isub(lhs, rhs)
    }
    fn int_mul(&mut self, lhs: Value, rhs: Value) -> Value {
        self.builder.ins().imul(lhs, rhs)
    }
    fn int_less(&mut self, lhs: Value, rhs: Value) -> Value {
        self.icmp(IntCC::SignedLessThan, lhs, rhs)
    }
    fn int_less_equal(&mut self, lhs: Value, rhs: Value) -> Value {
        self.icmp(IntCC::SignedLessThanOrEqual, lhs, rhs)
    }
    fn int_equal(&mut self, lhs: Value, rhs: Value) -> Value {
        self.icmp(IntCC::Equal, lhs, rhs)
    }
    fn int_select(&mut self, condition: Value, lhs: Value, rhs: Value) -> Value {
        self.choose(condition, lhs, rhs)
    }
    fn and(&mut self, lhs: Value, rhs: Value) -> Value {
        self.builder.ins().band(lhs, rhs)
    }
    fn or(&mut self, lhs: Value, rhs: Value) -> Value {
        self.builder.ins().bor(lhs, rhs)
    }
    fn xor(&mut self, lhs: Value, rhs: Value) -> Value {
        self.builder.ins().bxor(lhs, rhs)
    }
    fn shift_left(&mut self, x: Value, by: u32) -> Value {
        self.builder.ins().ishl_imm_s(x, i64::from(by))
    }
    fn shift_right_signed(&mut self, x: Value, by: u32) -> Value {
        self.builder.ins().sshr_imm_s(x, i64::from(by))
    }
    fn shift_right(&mut self, x: Value, by: u32) -> Value {
        self.builder.ins().ushr_imm_s(x, i64::from(by))
    }

    fn f32_to_bits(&mut self, x: Value) -> Value {
        let ty = self.i32_type();
        bitcast(self.builder, ty, x)
    }
    fn bits_to_f32(&mut self, x: Value) -> Value {
        let ty = self.f32_type();
        bitcast(self.builder, ty, x)
    }
    fn int_to_f32(&mut self, x: Value) -> Value {
        let ty = self.f32_type();
        self.builder.ins().fcvt_from_sint(ty, x)
    }
    fn truncate(&mut self, x: Value) -> Value {
        let ty = self.i32_type();
        self.builder.ins().fcvt_to_sint_sat(ty, x)
    }

    fn f64(&mut self, value: f64) -> Wide {
        let scalar = self.builder.ins().f64const(value);
        match self.width {
            Width::One => Wide { low: scalar, high: None },
            Width::Four => {
                let vector = self.builder.ins().splat(types::F64X2, scalar);
                Wide { low: vector, high: Some(vector) }
            }
        }
    }
    fn widen(&mut self, x: Value) -> Wide {
        match self.width {
            Width::One => Wide { low: self.builder.ins().fpromote(types::F64, x), high: None },
            Width::Four => {
                let upper =
                    self.shuffle(types::F32X4, x, x, [8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15]);
                let low = self.builder.ins().fvpromote_low(x);
                Wide { low, high: Some(self.builder.ins().fvpromote_low(upper)) }
            }
        }
    }
    fn narrow(&mut self, x: Wide) -> Value {
        match x.high {
            None => self.builder.ins().fdemote(types::F32, x.low),
            Some(high) => {
                let low = self.builder.ins().fvdemote(x.low);
                let high = self.builder.ins().fvdemote(high);
                self.shuffle(types::F32X4, low, high, [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23])
            }
        }
    }
    fn wide_add(&mut self, lhs: Wide, rhs: Wide) -> Wide {
        self.wide(lhs, rhs, |this, lhs, rhs| this.builder.ins().fadd(lhs, rhs))
    }
    fn wide_sub(&mut self, lhs: Wide, rhs: Wide) -> Wide {
        self.wide(lhs, rhs, |this, lhs, rhs| this.builder.ins().fsub(lhs, rhs))
    }
    fn wide_mul(&mut self, lhs: Wide, rhs: Wide) -> Wide {
        self.wide(lhs, rhs, |this, lhs, rhs| this.builder.ins().fmul(lhs, rhs))
    }
    fn wide_flip_if_odd(&mut self, x: Wide, parity: Wide) -> Wide {
        self.wide(x, parity, |this, x, parity| {
            let ty = this.builder.func.dfg.value_type(x);
            let bits_type = if ty == types::F64 { types::I64 } else { types::I64X2 };
            let bits = bitcast(this.builder, bits_type, x);
            let parity = bitcast(this.builder, bits_type, parity);
            let sign = this.builder.ins().ishl_imm_s(parity, 63);
            let flipped = this.builder.ins().bxor(bits, sign);
            bitcast(this.builder, ty, flipped)
        })
    }

    fn round(&mut self, x: Value) -> Value {
        if self.has_round { self.builder.ins().nearest(x) } else { round_by_magic(self, x) }
    }
    fn floor(&mut self, x: Value) -> Value {
        if self.has_round { self.builder.ins().floor(x) } else { floor_by_magic(self, x) }
    }
}
