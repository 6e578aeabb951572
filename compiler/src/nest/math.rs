//! What every operation computes, bit for bit: one definition over [`Arithmetic`], for the interpreter, for vectors and for scalars.
//!
//! A back end supplies the operations that every target has and rounds alike (IEEE add, multiply, divide, square root, comparisons, integer
//! arithmetic on bits). What a target may lack, or may round in its own way, is a sequence here.

use kernels::math::{EXP_COEFFICIENTS, EXP_HIGH, EXP_LOW, LN2_HIGH, LN2_LOW, LOG2_E};

use super::{BinaryOp, Type, UnaryOp};

/// The operations of a back end on its values: f32, i32, comparison results, and the f64 in which sines are computed.
///
/// Every float operation rounds to nearest even; integer arithmetic wraps. There is no fused multiply-add on purpose.
#[expect(missing_docs, reason = "the methods are the arithmetic they are named after")]
pub trait Arithmetic {
    type F32: Copy;
    type I32: Copy;
    type Bool: Copy;
    type F64: Copy;

    fn f32(&mut self, value: f32) -> Self::F32;
    fn add(&mut self, lhs: Self::F32, rhs: Self::F32) -> Self::F32;
    fn sub(&mut self, lhs: Self::F32, rhs: Self::F32) -> Self::F32;
    fn mul(&mut self, lhs: Self::F32, rhs: Self::F32) -> Self::F32;
    fn div(&mut self, lhs: Self::F32, rhs: Self::F32) -> Self::F32;
    fn sqrt(&mut self, x: Self::F32) -> Self::F32;
    fn less(&mut self, lhs: Self::F32, rhs: Self::F32) -> Self::Bool;
    fn less_equal(&mut self, lhs: Self::F32, rhs: Self::F32) -> Self::Bool;
    fn equal(&mut self, lhs: Self::F32, rhs: Self::F32) -> Self::Bool;
    fn select(&mut self, condition: Self::Bool, lhs: Self::F32, rhs: Self::F32) -> Self::F32;

    fn i32(&mut self, value: i32) -> Self::I32;
    fn int_add(&mut self, lhs: Self::I32, rhs: Self::I32) -> Self::I32;
    fn int_sub(&mut self, lhs: Self::I32, rhs: Self::I32) -> Self::I32;
    fn int_mul(&mut self, lhs: Self::I32, rhs: Self::I32) -> Self::I32;
    fn int_less(&mut self, lhs: Self::I32, rhs: Self::I32) -> Self::Bool;
    fn int_less_equal(&mut self, lhs: Self::I32, rhs: Self::I32) -> Self::Bool;
    fn int_equal(&mut self, lhs: Self::I32, rhs: Self::I32) -> Self::Bool;
    fn int_select(&mut self, condition: Self::Bool, lhs: Self::I32, rhs: Self::I32) -> Self::I32;
    fn and(&mut self, lhs: Self::I32, rhs: Self::I32) -> Self::I32;
    fn or(&mut self, lhs: Self::I32, rhs: Self::I32) -> Self::I32;
    fn xor(&mut self, lhs: Self::I32, rhs: Self::I32) -> Self::I32;
    /// To the left; `by` is less than 32.
    fn shift_left(&mut self, x: Self::I32, by: u32) -> Self::I32;
    /// To the right, filling with the sign; `by` is less than 32.
    fn shift_right_signed(&mut self, x: Self::I32, by: u32) -> Self::I32;
    /// To the right, filling with zeros; `by` is less than 32.
    fn shift_right(&mut self, x: Self::I32, by: u32) -> Self::I32;

    fn f32_to_bits(&mut self, x: Self::F32) -> Self::I32;
    fn bits_to_f32(&mut self, x: Self::I32) -> Self::F32;
    fn int_to_f32(&mut self, x: Self::I32) -> Self::F32;
    /// Towards zero, saturating, 0 for NaN.
    fn truncate(&mut self, x: Self::F32) -> Self::I32;

    fn f64(&mut self, value: f64) -> Self::F64;
    fn widen(&mut self, x: Self::F32) -> Self::F64;
    fn narrow(&mut self, x: Self::F64) -> Self::F32;
    fn wide_add(&mut self, lhs: Self::F64, rhs: Self::F64) -> Self::F64;
    fn wide_sub(&mut self, lhs: Self::F64, rhs: Self::F64) -> Self::F64;
    fn wide_mul(&mut self, lhs: Self::F64, rhs: Self::F64) -> Self::F64;
    /// `x` with its sign flipped where the lowest bit of the bits of `parity` is set.
    fn wide_flip_if_odd(&mut self, x: Self::F64, parity: Self::F64) -> Self::F64;

    /// The nearest whole number, ties to even; zeros keep the sign of `x`.
    fn round(&mut self, x: Self::F32) -> Self::F32 {
        round_by_magic(self, x)
    }
    /// The largest whole number that is not greater.
    fn floor(&mut self, x: Self::F32) -> Self::F32 {
        floor_by_magic(self, x)
    }
}

const TWO_POW_23: f32 = 8_388_608.0;

/// Adding it to an f32 of magnitude below 2^22 rounds that to a whole number, ties to even, and leaves the number in the low bits.
pub const ROUND_MAGIC: f32 = 12_582_912.0;

/// The same for an f64 of magnitude below 2^51.
pub const ROUND_MAGIC_WIDE: f64 = 6_755_399_441_055_744.0;

/// The constants of [`log`]: `ln x = e ln 2 + f - f^2 / 2 + f^3 p(f)` with `x = 2^e (1 + f)` (Moshier, Cephes `logf`).
mod log_constants {
    /// `sqrt(1/2)`: mantissas below it are doubled.
    pub(super) const SQRT_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;
    /// The coefficients of `p`, highest power first.
    pub(super) const POLYNOMIAL: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_8e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
}

/// The constants of [`sin`] and [`cos`], in f64: the argument is reduced by multiples of pi, split so that the first product is exact.
mod sin_constants {
    /// The upper 30 bits of pi: times a multiple below 2^22 it is exact.
    pub(super) const PI_HIGH: f64 = f64::from_bits(0x4009_21fb_5400_0000);
    /// `pi - PI_HIGH`.
    pub(super) const PI_LOW: f64 = 1.984187159361081e-09;
    /// `sin r = r + r^3 p(r^2)`; the Taylor coefficients of `p`, highest power first. For `|r| <= pi/2` the rest is below 7e-12.
    pub(super) const POLYNOMIAL: [f64; 7] = [
        -1.0 / 1_307_674_368_000.0,
        1.0 / 6_227_020_800.0,
        -1.0 / 39_916_800.0,
        1.0 / 362_880.0,
        -1.0 / 5_040.0,
        1.0 / 120.0,
        -1.0 / 6.0,
    ];
}

/// [`Arithmetic::round`] for a target without an instruction for it.
pub fn round_by_magic<A: Arithmetic + ?Sized>(a: &mut A, x: A::F32) -> A::F32 {
    // Adding 2^23 leaves no bits for a fraction; what is not smaller is whole already, and NaN is not smaller.
    let magnitude = abs(a, x);
    let limit = a.f32(TWO_POW_23);
    let shifted = a.add(magnitude, limit);
    let rounded = a.sub(shifted, limit);
    let (bits, sign_bit) = (a.f32_to_bits(x), a.i32(i32::MIN));
    let sign = a.and(bits, sign_bit);
    let rounded = a.f32_to_bits(rounded);
    let rounded = a.or(rounded, sign);
    let rounded = a.bits_to_f32(rounded);
    let has_fraction = a.less(magnitude, limit);
    a.select(has_fraction, rounded, x)
}

/// [`Arithmetic::floor`] for a target without an instruction for it.
pub fn floor_by_magic<A: Arithmetic + ?Sized>(a: &mut A, x: A::F32) -> A::F32 {
    let rounded = a.round(x);
    let one = a.f32(1.0);
    let below = a.sub(rounded, one);
    let too_large = a.less(x, rounded);
    a.select(too_large, below, rounded)
}

/// A value with its type, as an expression evaluates to.
pub enum Value<A: Arithmetic + ?Sized> {
    /// An f32.
    F32(A::F32),
    /// An i32.
    I32(A::I32),
    /// A comparison's result.
    Bool(A::Bool),
}

impl<A: Arithmetic + ?Sized> Clone for Value<A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A: Arithmetic + ?Sized> Copy for Value<A> {}

impl<A: Arithmetic + ?Sized> Value<A> {
    /// The f32.
    ///
    /// # Panics
    ///
    /// If it is none; a verified nest never asks.
    pub fn f32(self) -> A::F32 {
        match self {
            Value::F32(value) => value,
            Value::I32(_) | Value::Bool(_) => panic!("a verified nest has an f32 here"),
        }
    }

    /// The i32.
    ///
    /// # Panics
    ///
    /// If it is none; a verified nest never asks.
    pub fn i32(self) -> A::I32 {
        match self {
            Value::I32(value) => value,
            Value::F32(_) | Value::Bool(_) => panic!("a verified nest has an i32 here"),
        }
    }

    /// The comparison's result.
    ///
    /// # Panics
    ///
    /// If it is none; a verified nest never asks.
    pub fn bool(self) -> A::Bool {
        match self {
            Value::Bool(value) => value,
            Value::F32(_) | Value::I32(_) => panic!("a verified nest has a bool here"),
        }
    }

    /// Its type.
    pub fn ty(&self) -> Type {
        match self {
            Value::F32(_) => Type::F32,
            Value::I32(_) => Type::I32,
            Value::Bool(_) => Type::Bool,
        }
    }
}

/// A function of one value.
pub fn unary<A: Arithmetic + ?Sized>(a: &mut A, op: UnaryOp, x: Value<A>) -> Value<A> {
    match (op, x) {
        (UnaryOp::Neg, Value::I32(x)) => {
            let zero = a.i32(0);
            Value::I32(a.int_sub(zero, x))
        }
        (UnaryOp::Abs, Value::I32(x)) => {
            let zero = a.i32(0);
            let (negated, negative) = (a.int_sub(zero, x), a.int_less(x, zero));
            Value::I32(a.int_select(negative, negated, x))
        }
        (UnaryOp::ToF32, x) => Value::F32(a.int_to_f32(x.i32())),
        (UnaryOp::ToI32, x) => {
            let rounded = a.round(x.f32());
            Value::I32(a.truncate(rounded))
        }
        (UnaryOp::Neg, x) => Value::F32(neg(a, x.f32())),
        (UnaryOp::Abs, x) => Value::F32(abs(a, x.f32())),
        (UnaryOp::Exp, x) => Value::F32(exp(a, x.f32())),
        (UnaryOp::Log, x) => Value::F32(log(a, x.f32())),
        (UnaryOp::Sqrt, x) => Value::F32(a.sqrt(x.f32())),
        (UnaryOp::Rsqrt, x) => {
            let (one, root) = (a.f32(1.0), a.sqrt(x.f32()));
            Value::F32(a.div(one, root))
        }
        (UnaryOp::Recip, x) => {
            let one = a.f32(1.0);
            Value::F32(a.div(one, x.f32()))
        }
        (UnaryOp::Relu, x) => {
            let zero = a.f32(0.0);
            let positive = a.less(zero, x.f32());
            Value::F32(a.select(positive, x.f32(), zero))
        }
        (UnaryOp::Round, x) => Value::F32(a.round(x.f32())),
        (UnaryOp::Floor, x) => Value::F32(a.floor(x.f32())),
        (UnaryOp::Sin, x) => Value::F32(sin(a, x.f32())),
        (UnaryOp::Cos, x) => Value::F32(cos(a, x.f32())),
    }
}

/// A function of two values of one type.
pub fn binary<A: Arithmetic + ?Sized>(a: &mut A, op: BinaryOp, lhs: Value<A>, rhs: Value<A>) -> Value<A> {
    if let (Value::I32(lhs), Value::I32(rhs)) = (lhs, rhs) {
        return int_binary(a, op, lhs, rhs);
    }
    let (lhs, rhs) = (lhs.f32(), rhs.f32());
    match op {
        BinaryOp::Add => Value::F32(a.add(lhs, rhs)),
        BinaryOp::Sub => Value::F32(a.sub(lhs, rhs)),
        BinaryOp::Mul => Value::F32(a.mul(lhs, rhs)),
        BinaryOp::Div => Value::F32(a.div(lhs, rhs)),
        BinaryOp::Min => Value::F32(number_of_two(a, lhs, rhs, fold_min)),
        BinaryOp::Max => Value::F32(number_of_two(a, lhs, rhs, fold_max)),
        BinaryOp::Less => Value::Bool(a.less(lhs, rhs)),
        BinaryOp::LessEqual => Value::Bool(a.less_equal(lhs, rhs)),
        BinaryOp::Equal => Value::Bool(a.equal(lhs, rhs)),
    }
}

fn int_binary<A: Arithmetic + ?Sized>(a: &mut A, op: BinaryOp, lhs: A::I32, rhs: A::I32) -> Value<A> {
    match op {
        BinaryOp::Add => Value::I32(a.int_add(lhs, rhs)),
        BinaryOp::Sub => Value::I32(a.int_sub(lhs, rhs)),
        BinaryOp::Mul => Value::I32(a.int_mul(lhs, rhs)),
        BinaryOp::Min => Value::I32(int_min(a, lhs, rhs)),
        BinaryOp::Max => Value::I32(int_max(a, lhs, rhs)),
        BinaryOp::Less => Value::Bool(a.int_less(lhs, rhs)),
        BinaryOp::LessEqual => Value::Bool(a.int_less_equal(lhs, rhs)),
        BinaryOp::Equal => Value::Bool(a.int_equal(lhs, rhs)),
        BinaryOp::Div => unreachable!("the verifier refuses the division of integers"),
    }
}

/// `lhs` where the condition holds, else `rhs`.
pub fn select<A: Arithmetic + ?Sized>(a: &mut A, condition: A::Bool, lhs: Value<A>, rhs: Value<A>) -> Value<A> {
    match (lhs, rhs) {
        (Value::I32(lhs), Value::I32(rhs)) => Value::I32(a.int_select(condition, lhs, rhs)),
        (lhs, rhs) => Value::F32(a.select(condition, lhs.f32(), rhs.f32())),
    }
}

/// The larger of an accumulator that is a number and `x`, which may be none.
pub fn fold_max<A: Arithmetic + ?Sized>(a: &mut A, acc: A::F32, x: A::F32) -> A::F32 {
    let larger = a.less(acc, x);
    a.select(larger, x, acc)
}

/// The smaller of an accumulator that is a number and `x`, which may be none.
pub fn fold_min<A: Arithmetic + ?Sized>(a: &mut A, acc: A::F32, x: A::F32) -> A::F32 {
    let smaller = a.less(x, acc);
    a.select(smaller, x, acc)
}

/// The larger of two i32.
pub fn int_max<A: Arithmetic + ?Sized>(a: &mut A, lhs: A::I32, rhs: A::I32) -> A::I32 {
    let larger = a.int_less(lhs, rhs);
    a.int_select(larger, rhs, lhs)
}

/// The smaller of two i32.
pub fn int_min<A: Arithmetic + ?Sized>(a: &mut A, lhs: A::I32, rhs: A::I32) -> A::I32 {
    let smaller = a.int_less(rhs, lhs);
    a.int_select(smaller, rhs, lhs)
}

/// The fold of two values that may both be NaN.
fn number_of_two<A: Arithmetic + ?Sized>(
    a: &mut A,
    lhs: A::F32,
    rhs: A::F32,
    fold: impl FnOnce(&mut A, A::F32, A::F32) -> A::F32,
) -> A::F32 {
    let folded = fold(a, lhs, rhs);
    let is_number = a.equal(lhs, lhs);
    a.select(is_number, folded, rhs)
}

/// `-x`: the sign bit flipped.
pub fn neg<A: Arithmetic + ?Sized>(a: &mut A, x: A::F32) -> A::F32 {
    let (bits, sign) = (a.f32_to_bits(x), a.i32(i32::MIN));
    let flipped = a.xor(bits, sign);
    a.bits_to_f32(flipped)
}

/// `|x|`: the sign bit cleared.
pub fn abs<A: Arithmetic + ?Sized>(a: &mut A, x: A::F32) -> A::F32 {
    let (bits, mask) = (a.f32_to_bits(x), a.i32(i32::MAX));
    let cleared = a.and(bits, mask);
    a.bits_to_f32(cleared)
}

/// `e^x`: the sequence of [`kernels::math::exp_f32`] with its constants, but with a multiplication and an addition, each rounded, in place of
/// every fused one, because not every target can fuse. Relative error under 2e-7 where the result is normal; NaN stays.
pub fn exp<A: Arithmetic + ?Sized>(a: &mut A, x: A::F32) -> A::F32 {
    let (low, high) = (a.f32(EXP_LOW), a.f32(EXP_HIGH));
    let too_low = a.less(x, low);
    let y = a.select(too_low, low, x);
    let too_high = a.less(high, y);
    let y = a.select(too_high, high, y);
    let (log2_e, magic) = (a.f32(LOG2_E), a.f32(ROUND_MAGIC));
    let scaled = a.mul(y, log2_e);
    let shifted = a.add(scaled, magic);
    let n = a.sub(shifted, magic);
    let (ln2_high, ln2_low) = (a.f32(LN2_HIGH), a.f32(LN2_LOW));
    let product = a.mul(n, ln2_high);
    let r = a.sub(y, product);
    let product = a.mul(n, ln2_low);
    let r = a.sub(r, product);
    let p = horner(a, &EXP_COEFFICIENTS, r);
    // 2^n need not be a normal number, so it is applied in two halves; the low bits of `shifted` are n.
    let (bits, magic_bits) = (a.f32_to_bits(shifted), a.i32(ROUND_MAGIC.to_bits() as i32));
    let n = a.int_sub(bits, magic_bits);
    let first = a.shift_right_signed(n, 1);
    let second = a.int_sub(n, first);
    let (first, second) = (power_of_two(a, first), power_of_two(a, second));
    let p = a.mul(p, first);
    a.mul(p, second)
}

/// `2^n` for `n` between -126 and 127.
fn power_of_two<A: Arithmetic + ?Sized>(a: &mut A, n: A::I32) -> A::F32 {
    let bias = a.i32(127);
    let biased = a.int_add(n, bias);
    let bits = a.shift_left(biased, 23);
    a.bits_to_f32(bits)
}

/// The natural logarithm: minus infinity of zeros, NaN of what is below.
pub fn log<A: Arithmetic + ?Sized>(a: &mut A, x: A::F32) -> A::F32 {
    use log_constants::{POLYNOMIAL, SQRT_HALF};
    // Subnormal numbers are scaled up first, exactly.
    let (smallest, scale) = (a.f32(f32::MIN_POSITIVE), a.f32(TWO_POW_23));
    let is_small = a.less(x, smallest);
    let scaled = a.mul(x, scale);
    let normal = a.select(is_small, scaled, x);
    let (bias, bias_small) = (a.i32(126), a.i32(126 + 23));
    let bias = a.int_select(is_small, bias_small, bias);
    // x = 2^e m with m in [1/2, 1).
    let bits = a.f32_to_bits(normal);
    let exponent = a.shift_right(bits, 23);
    let e = a.int_sub(exponent, bias);
    let (mantissa_mask, half_exponent) = (a.i32(0x007f_ffff), a.i32(0x3f00_0000));
    let m = a.and(bits, mantissa_mask);
    let m = a.or(m, half_exponent);
    let m = a.bits_to_f32(m);
    // Then with 1 + f in [sqrt(1/2), sqrt(2)).
    let sqrt_half = a.f32(SQRT_HALF);
    let is_low = a.less(m, sqrt_half);
    let (minus_one, zero) = (a.i32(-1), a.i32(0));
    let correction = a.int_select(is_low, minus_one, zero);
    let e = a.int_add(e, correction);
    let e = a.int_to_f32(e);
    let doubled = a.add(m, m);
    let m = a.select(is_low, doubled, m);
    let one = a.f32(1.0);
    let f = a.sub(m, one);

    let square = a.mul(f, f);
    let p = horner(a, &POLYNOMIAL, f);
    let p = a.mul(p, f);
    let p = a.mul(p, square);
    let low = a.f32(LN2_LOW);
    let product = a.mul(e, low);
    let p = a.add(p, product);
    let half = a.f32(0.5);
    let product = a.mul(square, half);
    let p = a.sub(p, product);
    let result = a.add(f, p);
    let high = a.f32(LN2_HIGH);
    let product = a.mul(e, high);
    let result = a.add(result, product);

    let (infinity, zero) = (a.f32(f32::INFINITY), a.f32(0.0));
    let is_finite = a.less(x, infinity);
    let result = a.select(is_finite, result, x);
    let (minus_infinity, nan) = (a.f32(f32::NEG_INFINITY), a.f32(f32::NAN));
    let is_positive = a.less(zero, x);
    let is_zero = a.equal(x, zero);
    let special = a.select(is_zero, minus_infinity, nan);
    a.select(is_positive, result, special)
}

/// The sine of `x` radians. Within 1e-7 for `|x| <= 2^20`; larger arguments give some number, the same on every target.
pub fn sin<A: Arithmetic + ?Sized>(a: &mut A, x: A::F32) -> A::F32 {
    // x = n pi + r, so sin x = (-1)^n sin r.
    let x = a.widen(x);
    let (inverse_pi, magic) = (a.f64(std::f64::consts::FRAC_1_PI), a.f64(ROUND_MAGIC_WIDE));
    let scaled = a.wide_mul(x, inverse_pi);
    let shifted = a.wide_add(scaled, magic);
    let n = a.wide_sub(shifted, magic);
    let sine = sin_reduced(a, x, n);
    let sine = a.wide_flip_if_odd(sine, shifted);
    a.narrow(sine)
}

/// The cosine of `x` radians, with the bounds of [`sin`].
pub fn cos<A: Arithmetic + ?Sized>(a: &mut A, x: A::F32) -> A::F32 {
    // x = (n + 1/2) pi + r, so cos x = -(-1)^n sin r: the sign is that of n - 1.
    let x = a.widen(x);
    let (inverse_pi, half) = (a.f64(std::f64::consts::FRAC_1_PI), a.f64(0.5));
    let (magic, one) = (a.f64(ROUND_MAGIC_WIDE), a.f64(1.0));
    let scaled = a.wide_mul(x, inverse_pi);
    let scaled = a.wide_sub(scaled, half);
    let shifted = a.wide_add(scaled, magic);
    let n = a.wide_sub(shifted, magic);
    let n = a.wide_add(n, half);
    let sine = sin_reduced(a, x, n);
    let shifted = a.wide_add(shifted, one);
    let sine = a.wide_flip_if_odd(sine, shifted);
    a.narrow(sine)
}

/// `sin(x - n pi)`.
fn sin_reduced<A: Arithmetic + ?Sized>(a: &mut A, x: A::F64, n: A::F64) -> A::F64 {
    use sin_constants::{PI_HIGH, PI_LOW, POLYNOMIAL};
    let (high, low) = (a.f64(PI_HIGH), a.f64(PI_LOW));
    let product = a.wide_mul(n, high);
    let r = a.wide_sub(x, product);
    let product = a.wide_mul(n, low);
    let r = a.wide_sub(r, product);
    let square = a.wide_mul(r, r);
    let mut p = a.f64(POLYNOMIAL[0]);
    for &coefficient in &POLYNOMIAL[1..] {
        let coefficient = a.f64(coefficient);
        p = a.wide_mul(p, square);
        p = a.wide_add(p, coefficient);
    }
    let p = a.wide_mul(p, square);
    let p = a.wide_mul(p, r);
    a.wide_add(p, r)
}

/// A polynomial of `x`, coefficients from the highest power.
fn horner<A: Arithmetic + ?Sized>(a: &mut A, coefficients: &[f32], x: A::F32) -> A::F32 {
    let mut p = a.f32(coefficients[0]);
    for &coefficient in &coefficients[1..] {
        let coefficient = a.f32(coefficient);
        p = a.mul(p, x);
        p = a.add(p, coefficient);
    }
    p
}

/// The value of a bf16, whose 16 bits are the low half of `x`; the upper half is zero.
pub fn bf16_to_f32<A: Arithmetic + ?Sized>(a: &mut A, x: A::I32) -> A::F32 {
    let bits = a.shift_left(x, 16);
    a.bits_to_f32(bits)
}

/// The nearest bf16, ties to even, in the low half of an i32 whose upper half is zero; NaN stays, quiet.
pub fn f32_to_bf16<A: Arithmetic + ?Sized>(a: &mut A, x: A::F32) -> A::I32 {
    let bits = a.f32_to_bits(x);
    let upper = a.shift_right(bits, 16);
    let (one, below_half, quiet) = (a.i32(1), a.i32(0x7fff), a.i32(0x40));
    let odd = a.and(upper, one);
    let increment = a.int_add(odd, below_half);
    let rounded = a.int_add(bits, increment);
    let rounded = a.shift_right(rounded, 16);
    let nan = a.or(upper, quiet);
    let is_number = a.equal(x, x);
    a.int_select(is_number, rounded, nan)
}

/// The value of an f16, whose 16 bits are the low half of `x`; the upper half is zero.
pub fn f16_to_f32<A: Arithmetic + ?Sized>(a: &mut A, x: A::I32) -> A::F32 {
    // Exponent and mantissa moved into place differ by a factor 2^112 from the value, subnormal numbers included: the product is exact.
    let (magnitude_mask, sign_mask, exponent_mask) = (a.i32(0x7fff), a.i32(0x8000), a.i32(0x7c00));
    let magnitude = a.and(x, magnitude_mask);
    let shifted = a.shift_left(magnitude, 13);
    let unscaled = a.bits_to_f32(shifted);
    let scale = a.f32(f32::from_bits((127 + 112) << 23));
    let scaled = a.mul(unscaled, scale);
    let scaled = a.f32_to_bits(scaled);
    // Infinity and NaN take the greatest exponent instead.
    let greatest = a.i32(0x7f80_0000);
    let not_finite = a.or(shifted, greatest);
    let is_finite = a.int_less(magnitude, exponent_mask);
    let bits = a.int_select(is_finite, scaled, not_finite);
    let sign = a.and(x, sign_mask);
    let sign = a.shift_left(sign, 16);
    let bits = a.or(bits, sign);
    a.bits_to_f32(bits)
}

/// The nearest f16, ties to even, in the low half of an i32 whose upper half is zero; overflow is infinite, NaN stays, quiet.
pub fn f32_to_f16<A: Arithmetic + ?Sized>(a: &mut A, x: A::F32) -> A::I32 {
    let (bits, sign_mask) = (a.f32_to_bits(x), a.i32(i32::MIN));
    let sign = a.and(bits, sign_mask);
    let magnitude = a.xor(bits, sign);
    // Normal: rebias the exponent, and let the rounding carry run into it.
    let mantissa_end = a.shift_right(magnitude, 13);
    let (one, below_half) = (a.i32(1), a.i32(0x0fff));
    let odd = a.and(mantissa_end, one);
    let increment = a.int_add(odd, below_half);
    let rebias = a.i32(112 << 23);
    let rebiased = a.int_sub(magnitude, rebias);
    let rounded = a.int_add(rebiased, increment);
    let normal = a.shift_right(rounded, 13);
    // Subnormal: the addition of 1/2 leaves as many mantissa bits as the format has there, rounded half to even.
    let half = a.f32(0.5);
    let half_bits = a.f32_to_bits(half);
    let value = a.bits_to_f32(magnitude);
    let sum = a.add(value, half);
    let sum = a.f32_to_bits(sum);
    let subnormal = a.int_sub(sum, half_bits);
    let (smallest_normal, overflow) = (a.i32(113 << 23), a.i32(143 << 23));
    let is_subnormal = a.int_less(magnitude, smallest_normal);
    let result = a.int_select(is_subnormal, subnormal, normal);
    // From 65536 on infinite; a NaN keeps the upper bits of its payload.
    let infinity = a.i32(0x7c00);
    let is_small = a.int_less(magnitude, overflow);
    let result = a.int_select(is_small, result, infinity);
    let (quiet, payload_mask) = (a.i32(0x7e00), a.i32(0x03ff));
    let payload = a.and(mantissa_end, payload_mask);
    let nan = a.or(payload, quiet);
    let is_number = a.equal(x, x);
    let result = a.int_select(is_number, result, nan);
    let sign = a.shift_right(sign, 16);
    a.or(result, sign)
}
