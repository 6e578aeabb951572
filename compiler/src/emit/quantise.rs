//! A row as one record of a row format: the loops of [`crate::nest::Stage::StoreRow`], bit for bit `ir::packing::RowFormat::encode`.

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value, types};
use ir::packing::{ABSMAX_FLOOR, RowFormat};

use super::clif::{Bound, Emitter};
use super::lanes::{Width, bitcast};
use super::values::{At, Scope};
use crate::nest::math::{self, Arithmetic, ROUND_MAGIC};
use crate::nest::{Elem, ExprId, Index, ReduceOp, Type};

/// The codes of a q8 record are padded to a multiple of this; a loop turn writes as many.
const TURN: i64 = 16;

fn flags() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

/// A number of a row, once as scalar and once in all lanes of a vector.
#[derive(Clone, Copy)]
struct Both {
    one: Value,
    four: Value,
}

/// What is quantised.
#[derive(Clone, Copy)]
struct Quantised {
    body: ExprId,
    /// Whether the first pass leaves it in the row on the stack.
    is_kept: bool,
}

impl Both {
    fn at(self, width: Width) -> Value {
        match width {
            Width::One => self.one,
            Width::Four => self.four,
        }
    }
}

impl Emitter<'_> {
    pub(super) fn quantise_stage(
        &mut self,
        scope: &Scope,
        (stage, buffer): (usize, usize),
        record: &Index,
        body: ExprId,
    ) {
        let row = Quantised { body, is_kept: self.keeps_quantised(stage, body) };
        let elem = self.nest.buffers[buffer].elem;
        let place = self.row_address(scope, buffer, record);
        match (elem, elem.row_format()) {
            (Elem::Q8 { k }, Some(format)) => self.quantise_q8(scope, k as i64, format, place, row),
            (Elem::Q4 { k }, Some(format)) => self.quantise_q4(scope, k as i64, format, place, row),
            _ => unreachable!("a verified nest stores rows only to buffers of records"),
        }
    }

    fn both(&mut self, one: Value) -> Both {
        Both { one, four: self.builder.ins().splat(types::F32X4, one) }
    }

    /// `round_half_even(x)` as i32 for `|x| < 2^22`, and 0 for NaN.
    fn whole(&mut self, x: Value, width: Width) -> Value {
        let mut lanes = self.lanes(width);
        let (magic, magic_bits) = (lanes.f32(ROUND_MAGIC), lanes.i32(ROUND_MAGIC.to_bits() as i32));
        let shifted = lanes.add(x, magic);
        let bits = lanes.f32_to_bits(shifted);
        let code = lanes.int_sub(bits, magic_bits);
        let is_number = lanes.equal(shifted, shifted);
        let zero = lanes.i32(0);
        lanes.int_select(is_number, code, zero)
    }

    fn store_at(&mut self, value: Value, place: Value, byte: Value) {
        let address = self.builder.ins().iadd(place, byte);
        self.builder.ins().store(flags(), value, address, 0);
    }

    /// Zeros from byte `from` to the end of the codes.
    fn store_padding(&mut self, place: Value, from: i64, format: RowFormat) {
        let zero = self.builder.ins().iconst(types::I8, 0);
        for byte in from..format.code_bytes() as i64 {
            self.builder.ins().store(flags(), zero, place, byte as i32);
        }
    }

    fn quantise_q8(&mut self, scope: &Scope, k: i64, format: RowFormat, place: Value, row: Quantised) {
        let len = self.known(k);
        let absmax = self.absmax(scope, len, row);
        let lanes = &mut self.lanes(Width::One);
        let greatest = lanes.f32(127.0);
        let factor = lanes.div(greatest, absmax);
        let scale = lanes.div(absmax, greatest);
        let factor = self.both(factor);
        let code = |this: &mut Self, at: At| {
            let x = this.value_again(scope, at, row.body, row.is_kept);
            let scaled = this.lanes(at.width).mul(x, factor.at(at.width));
            this.whole(scaled, at.width)
        };

        let start = self.known(0);
        let turns_end = self.round_down(len, TURN);
        let sums = self.lanes(Width::Four).i32(0);
        let sums = self.for_loop(start, turns_end, TURN, &[sums], |this, column, sums| {
            let codes: Vec<_> = (0..4).map(|vector| code(this, At::four(column, vector * 4))).collect();
            let low = this.builder.ins().snarrow(codes[0], codes[1]);
            let high = this.builder.ins().snarrow(codes[2], codes[3]);
            let bytes = this.builder.ins().snarrow(low, high);
            this.store_at(bytes, place, column);
            let sum = codes.into_iter().fold(sums[0], |sum, codes| this.builder.ins().iadd(sum, codes));
            vec![sum]
        });
        let vectors_end = self.round_down(len, 4);
        let sums = self.for_loop(turns_end, vectors_end, 4, &sums, |this, column, sums| {
            let codes = code(this, At::four(column, 0));
            let halves = this.builder.ins().snarrow(codes, codes);
            let bytes = this.builder.ins().snarrow(halves, halves);
            let words = bitcast(&mut this.builder, types::I32X4, bytes);
            let word = this.builder.ins().extractlane(words, 0);
            this.store_at(word, place, column);
            vec![this.builder.ins().iadd(sums[0], codes)]
        });
        let lane: Vec<_> = (0..4_u8).map(|lane| self.builder.ins().extractlane(sums[0], lane)).collect();
        let sum = lane[1..].iter().fold(lane[0], |sum, &lane| self.builder.ins().iadd(sum, lane));
        let sum = self.for_loop(vectors_end, len, 1, &[sum], |this, column, sum| {
            let code = code(this, At::one(column, 0));
            let byte = this.builder.ins().ireduce(types::I8, code);
            this.store_at(byte, place, column);
            vec![this.builder.ins().iadd(sum[0], code)]
        });
        self.store_padding(place, k, format);
        let numbers = format.code_bytes() as i32;
        self.builder.ins().store(flags(), scale, place, numbers);
        self.builder.ins().store(flags(), sum[0], place, numbers + 4);
    }

    /// The largest magnitude of a row, or [`ABSMAX_FLOOR`]. No order of it is better than another, so it takes half the registers of a reduction.
    fn absmax(&mut self, scope: &Scope, len: Bound, row: Quantised) -> Value {
        let fold = |this: &mut Self, acc: Value, at: At| {
            let x = this.first_value(scope, at, row.body, row.is_kept);
            let lanes = &mut this.lanes(at.width);
            let magnitude = math::abs(lanes, x);
            math::fold_max(lanes, acc, magnitude)
        };
        let floor = self.lanes(Width::Four).f32(ABSMAX_FLOOR);
        let start = self.known(0);
        let turns_end = self.round_down(len, TURN);
        let four = self.for_loop(start, turns_end, TURN, &[floor; 4], |this, column, acc| {
            acc.iter().zip(0..).map(|(&acc, vector)| fold(this, acc, At::four(column, vector * 4))).collect()
        });
        let lanes = &mut self.lanes(Width::Four);
        let (even, odd) = (math::fold_max(lanes, four[0], four[1]), math::fold_max(lanes, four[2], four[3]));
        let one = math::fold_max(lanes, even, odd);
        let vectors_end = self.round_down(len, 4);
        let one = self.for_loop(turns_end, vectors_end, 4, &[one], |this, column, acc| {
            vec![fold(this, acc[0], At::four(column, 0))]
        });
        let lane: Vec<_> = (0..4_u8).map(|lane| self.builder.ins().extractlane(one[0], lane)).collect();
        let lanes = &mut self.lanes(Width::One);
        let (even, odd) = (math::fold_max(lanes, lane[0], lane[2]), math::fold_max(lanes, lane[1], lane[3]));
        let absmax = math::fold_max(lanes, even, odd);
        self.for_loop(vectors_end, len, 1, &[absmax], |this, column, acc| vec![fold(this, acc[0], At::one(column, 0))])
            [0]
    }

    fn quantise_q4(&mut self, scope: &Scope, k: i64, format: RowFormat, place: Value, row: Quantised) {
        let len = self.known(k);
        let minimum =
            self.reduce(ReduceOp::Min, Type::F32, len, |this, at| this.first_value(scope, at, row.body, row.is_kept));
        let maximum =
            self.reduce(ReduceOp::Max, Type::F32, len, |this, at| this.value_again(scope, at, row.body, row.is_kept));
        let mut lanes = self.lanes(Width::One);
        // One zero of two, as the format says.
        let plus_zero = lanes.f32(0.0);
        let minimum = lanes.add(minimum, plus_zero);
        let range = lanes.sub(maximum, minimum);
        let steps = lanes.f32(15.0);
        let scale = lanes.div(range, steps);
        // Codes are 0 where the scale is not positive: 15 or 0 is what they are masked with.
        let zero = lanes.f32(0.0);
        let is_positive = self.builder.ins().fcmp(FloatCC::LessThan, zero, scale);
        let mut lanes = self.lanes(Width::One);
        let (fifteen, none) = (lanes.i32(15), lanes.i32(0));
        let mask = lanes.int_select(is_positive, fifteen, none);
        let mask = Both { one: mask, four: self.builder.ins().splat(types::I32X4, mask) };
        let (low, step) = (self.both(minimum), self.both(scale));
        let code = |this: &mut Self, at: At| {
            let x = this.value_again(scope, at, row.body, row.is_kept);
            let mut lanes = this.lanes(at.width);
            let above = lanes.sub(x, low.at(at.width));
            let steps = lanes.div(above, step.at(at.width));
            let code = this.whole(steps, at.width);
            this.lanes(at.width).and(code, mask.at(at.width))
        };

        let start = self.known(0);
        let vectors_end = self.round_down(len, 4);
        self.for_loop(start, vectors_end, 4, &[], |this, column, _| {
            // As two i64, each with a code in either half: the upper one moves to bits 4..8.
            let codes = code(this, At::four(column, 0));
            let pairs = bitcast(&mut this.builder, types::I64X2, codes);
            let moved = this.builder.ins().ushr_imm_s(pairs, 28);
            let joined = this.builder.ins().bor(pairs, moved);
            let first = this.builder.ins().extractlane(joined, 0);
            let second = this.builder.ins().extractlane(joined, 1);
            let byte = this.builder.ins().ushr_imm_s(column, 1);
            let address = this.builder.ins().iadd(place, byte);
            this.builder.ins().istore8(flags(), first, address, 0);
            this.builder.ins().istore8(flags(), second, address, 1);
            Vec::new()
        });
        // At most three codes are left.
        for column in ((k & -4)..k).step_by(2) {
            let at = self.int(column);
            let mut byte = code(self, At::one(at, 0));
            if column + 1 < k {
                let next = code(self, At::one(at, 1));
                let moved = self.builder.ins().ishl_imm_s(next, 4);
                byte = self.builder.ins().bor(byte, moved);
            }
            self.builder.ins().istore8(flags(), byte, place, (column / 2) as i32);
        }
        self.store_padding(place, (k + 1) / 2, format);
        let numbers = format.code_bytes() as i32;
        self.builder.ins().store(flags(), scale, place, numbers);
        self.builder.ins().store(flags(), minimum, place, numbers + 4);
    }
}
