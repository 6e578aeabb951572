//! The elementary functions of nests are as close as they say, and their special cases are right.

use tritter_compiler::nest::eval::Exact;
use tritter_compiler::nest::math::{self, Arithmetic};

/// Numbers of every sign and exponent, `n` of each.
fn all_exponents(n: u32) -> impl Iterator<Item = f32> {
    (0..n * 512).map(move |at| {
        let mantissa = (at % n).wrapping_mul(0x9e37_79b9) >> 9;
        f32::from_bits((at / n) << 23 | mantissa)
    })
}

/// Units in the last place of the single-precision number next to `exact`.
fn ulps(actual: f32, exact: f64) -> f64 {
    let nearest = exact as f32;
    let spacing = f64::from(f32::from_bits(nearest.abs().to_bits() + 1)) - f64::from(nearest.abs());
    (f64::from(actual) - exact).abs() / spacing
}

#[test]
fn exp_is_close() {
    let mut worst = 0.0_f64;
    let mut x = -87.3_f32;
    while x < 88.7 {
        let exact = f64::from(x).exp();
        worst = worst.max((f64::from(math::exp(&mut Exact, x)) / exact - 1.0).abs());
        x += 0.000_917;
    }
    assert!(worst < 2e-7, "{worst}");
    for (x, y) in [
        (0.0, 1.0),
        (-0.0, 1.0),
        (f32::NEG_INFINITY, 0.0),
        (f32::MIN, 0.0),
        (f32::INFINITY, f32::INFINITY),
        (88.8, f32::INFINITY),
    ] {
        assert_eq!(math::exp(&mut Exact, x), y, "{x}");
    }
    assert!(math::exp(&mut Exact, f32::NAN).is_nan());
    // Near that of the kernels, which differs only by fused multiply-adds.
    for x in all_exponents(64) {
        let (ours, theirs) = (math::exp(&mut Exact, x), kernels::math::exp_f32(x));
        let close = (ours - theirs).abs() <= 4e-7 * theirs;
        assert!(close || ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{x}");
    }
}

#[test]
fn log_is_close() {
    let mut worst = 0.0_f64;
    for x in all_exponents(500).filter(|x| 0.0 < *x && x.is_finite()) {
        worst = worst.max(ulps(math::log(&mut Exact, x), f64::from(x).ln()));
    }
    for at in 0..2_000_000 {
        let x = 0.5 + at as f32 * 1e-6;
        worst = worst.max(ulps(math::log(&mut Exact, x), f64::from(x).ln()));
    }
    assert!(worst < 2.0, "{worst}");
    assert_eq!(math::log(&mut Exact, 1.0).to_bits(), 0);
    assert_eq!(math::log(&mut Exact, 0.0), f32::NEG_INFINITY);
    assert_eq!(math::log(&mut Exact, -0.0), f32::NEG_INFINITY);
    assert_eq!(math::log(&mut Exact, f32::INFINITY), f32::INFINITY);
    for x in [-1.0, -1e-42, f32::NEG_INFINITY, f32::NAN] {
        assert!(math::log(&mut Exact, x).is_nan(), "{x}");
    }
}

#[test]
fn sine_and_cosine_are_close() {
    let limit = (1 << 20) as f32;
    let mut arguments: Vec<f32> = all_exponents(2000).filter(|x| x.abs() <= limit).collect();
    // Beside multiples of pi/2, where the reduction cancels most.
    for n in (0..667_544).step_by(37) {
        let x = (f64::from(n) * std::f64::consts::FRAC_PI_2) as f32;
        arguments.extend([x, -x, x.next_up(), x.next_down()]);
    }
    for x in arguments {
        let (sin, cos) = (math::sin(&mut Exact, x), math::cos(&mut Exact, x));
        assert!((f64::from(sin) - f64::from(x).sin()).abs() < 1e-7, "sin {x}: {sin}");
        assert!((f64::from(cos) - f64::from(x).cos()).abs() < 1e-7, "cos {x}: {cos}");
    }
    assert_eq!(math::sin(&mut Exact, 0.0), 0.0);
    assert_eq!(math::cos(&mut Exact, 0.0), 1.0);
    for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(math::sin(&mut Exact, x).is_nan() && math::cos(&mut Exact, x).is_nan(), "{x}");
    }
}

#[test]
fn rounding_is_that_of_ieee() {
    let halves = (-40..40).map(|at| at as f32 * 0.25);
    let edges = [8_388_607.5, 8_388_608.0, -8_388_607.5, 4_194_303.5, 0.499_999_97, -0.0, f32::INFINITY];
    for x in all_exponents(300).chain(halves).chain(edges) {
        let (round, floor) = (Exact.round(x), Exact.floor(x));
        assert!(round.to_bits() == x.round_ties_even().to_bits() || x.is_nan() && round.is_nan(), "{x}: {round}");
        assert!(floor.to_bits() == x.floor().to_bits() || x.is_nan() && floor.is_nan(), "{x}: {floor}");
    }
}

#[test]
fn half_precision_is_that_of_the_formats() {
    for bits in 0..=u16::MAX {
        let (f16, bf16) = (half::f16::from_bits(bits).to_f32(), half::bf16::from_bits(bits).to_f32());
        let ours = math::f16_to_f32(&mut Exact, i32::from(bits));
        assert!(ours.to_bits() == f16.to_bits() || ours.is_nan() && f16.is_nan(), "f16 {bits:04x}");
        let ours = math::bf16_to_f32(&mut Exact, i32::from(bits));
        assert!(ours.to_bits() == bf16.to_bits() || ours.is_nan() && bf16.is_nan(), "bf16 {bits:04x}");
    }
    // Every f16 and bf16, what lies halfway between neighbours, and beside that.
    let neighbours = |bits: u32| [-1, 0, 1].map(|by| f32::from_bits(bits.wrapping_add_signed(by)));
    let f16_halves = (0..=u16::MAX).map(|bits| half::f16::from_bits(bits).to_f32().to_bits());
    let f16_halves = f16_halves.flat_map(|bits| [bits, bits + (1 << 12)]);
    let bf16_halves = (0..=u32::from(u16::MAX)).flat_map(|bits| [bits << 16, (bits << 16) + (1 << 15)]);
    for x in f16_halves.chain(bf16_halves).flat_map(neighbours).chain(all_exponents(200)) {
        let expected = half::f16::from_f32(x);
        let actual = half::f16::from_bits(math::f32_to_f16(&mut Exact, x) as u16);
        assert!(actual.to_bits() == expected.to_bits() || actual.is_nan() && expected.is_nan(), "f16 of {x:e}");
        let expected = half::bf16::from_f32(x);
        let actual = half::bf16::from_bits(math::f32_to_bf16(&mut Exact, x) as u16);
        assert!(actual.to_bits() == expected.to_bits() || actual.is_nan() && expected.is_nan(), "bf16 of {x:e}");
    }
}
