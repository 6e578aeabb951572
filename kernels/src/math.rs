//! Which operations, in which order, make up `exp` and the logarithm: shared by the kernels and by generated code.

/// Below this, `exp` is +0 in single precision: `e^-104 < 2^-150`, half the smallest subnormal.
pub const EXP_LOW: f32 = -104.0;
/// Above this, `exp` is infinite in single precision: `e^89 > 2^128`.
pub const EXP_HIGH: f32 = 89.0;
/// `log2(e)`.
pub const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// The upper part of `ln(2)`: with 9 significant bits, so that its product with an exponent is exact.
pub const LN2_HIGH: f32 = 355.0 / 512.0;
/// `ln(2) - LN2_HIGH`.
pub const LN2_LOW: f32 = -2.121_944_4e-4;
/// Coefficients of `e^r` for `|r| <= ln(2) / 2`, those of the highest power first (Cephes, `expf`).
pub const EXP_COEFFICIENTS: [f32; 8] =
    [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1, 1.0, 1.0];

/// `e^x` in single precision: relative error under 1.2e-7 where the result is normal, exactly 1 for 0, +0 for -inf, NaN for NaN.
///
/// ```text
/// y = x < EXP_LOW ? EXP_LOW : x          (NaN stays)
/// y = EXP_HIGH < y ? EXP_HIGH : y
/// n = round_ties_even(y * LOG2_E)
/// r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, y))
/// p = C0;  p = fma(p, r, Ci) for i = 1..8
/// a = n as i32 >> 1 (rounding down);  b = n as i32 - a
/// exp = (p * 2^a) * 2^b
/// ```
///
/// The power of two is applied in two halves because `2^n` itself need not be a normal number; the first product is exact, so that the
/// result is rounded once, also where it is subnormal or infinite.
#[inline]
pub fn exp_f32(x: f32) -> f32 {
    let y = if x < EXP_LOW { EXP_LOW } else { x };
    let y = if EXP_HIGH < y { EXP_HIGH } else { y };
    let n = (y * LOG2_E).round_ties_even();
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, y));
    let mut p = EXP_COEFFICIENTS[0];
    for coefficient in &EXP_COEFFICIENTS[1..] {
        p = p.mul_add(r, *coefficient);
    }
    mul_pow2(p, n)
}

/// Coefficients of `p` in `ln x = e ln 2 + f - f^2 / 2 + f^3 p(f)` with `x = 2^e (1 + f)`, those of the highest power first (Cephes, `logf`).
const LN_COEFFICIENTS: [f32; 9] = [
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

/// The natural logarithm of a sum of exponentials, in single precision: of a positive number that is normal; NaN for NaN.
///
/// ```text
/// x = 2^e * (1 + f) with 1 + f between sqrt(1/2) and sqrt(2)
/// p = C0;  p = p * f + Ci for i = 1..9
/// ln = (f + (((p * f) * f^2 + e * LN2_LOW) - f^2 * 0.5)) + e * LN2_HIGH
/// ```
#[inline]
pub(crate) fn ln_f32(x: f32) -> f32 {
    let bits = x.to_bits() as i32;
    let half = f32::from_bits(((bits & 0x007f_ffff) | 0x3f00_0000) as u32);
    let is_low = half < std::f32::consts::FRAC_1_SQRT_2;
    let e = ((bits >> 23) - 126 - i32::from(is_low)) as f32;
    let f = if is_low { half + half } else { half } - 1.0;
    let mut p = LN_COEFFICIENTS[0];
    for coefficient in &LN_COEFFICIENTS[1..] {
        p = p * f + coefficient;
    }
    let square = f * f;
    let ln = (f + (((p * f) * square + e * LN2_LOW) - square * 0.5)) + e * LN2_HIGH;
    // Infinity and what is no number stay.
    if x < f32::INFINITY { ln } else { x }
}

/// `(p * 2^a) * 2^b` with `a = n >> 1` and `b = n - a`, for integral `n` between -252 and 252.
#[inline]
pub(crate) fn mul_pow2(p: f32, n: f32) -> f32 {
    let n = n as i32;
    let a = n >> 1;
    let power = |exponent: i32| f32::from_bits(((exponent + 127) << 23) as u32);
    (p * power(a)) * power(n - a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_as_close_as_stated() {
        let mut worst = (0.0_f64, 0.0);
        let mut x = -87.33_f32;
        while x < 88.72 {
            let exact = f64::from(x).exp();
            let error = ((f64::from(exp_f32(x)) - exact) / exact).abs();
            if worst.0 < error {
                worst = (error, x);
            }
            x += 0.000_917;
        }
        assert!(worst.0 < 1.2e-7, "relative error {} at {}", worst.0, worst.1);
    }

    #[test]
    fn ln_is_close_from_one_to_more_than_there_are_keys() {
        let mut x = 1.0_f32;
        while x < 1e9 {
            let exact = f64::from(x).ln();
            assert!((f64::from(ln_f32(x)) - exact).abs() <= 1.2e-7 * exact.max(0.5), "{x}");
            x *= 1.000_37;
        }
        assert_eq!(ln_f32(1.0).to_bits(), 0);
        assert_eq!(ln_f32(f32::INFINITY), f32::INFINITY);
        assert!(ln_f32(f32::NAN).is_nan());
    }

    #[test]
    fn exp_of_special_values() {
        assert_eq!(exp_f32(0.0).to_bits(), 1.0_f32.to_bits());
        assert_eq!(exp_f32(-0.0).to_bits(), 1.0_f32.to_bits());
        assert_eq!(exp_f32(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp_f32(f32::MIN).to_bits(), 0);
        assert_eq!(exp_f32(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp_f32(88.8), f32::INFINITY);
        assert!(exp_f32(f32::NAN).is_nan());
        let subnormal = exp_f32(-100.0);
        assert!((f64::from(subnormal) - (-100.0_f64).exp()).abs() <= 1.5e-45, "{subnormal:e}");
    }
}
