//! Numbers in the text form: digits that read back as the same bits.

use std::fmt::Write as _;

use crate::dtype::DType;
use crate::op::Real;

/// What a number is read and printed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Precision {
    /// An attribute: double precision, always with a point or an exponent, so that it is no integer.
    Attribute,
    /// An element of a constant of this type.
    Element(DType),
}

/// The prefix of a number given by its bits.
const BITS: &str = "bits.";

/// Reads a number, or says that it is none.
pub(super) fn read(text: &str, precision: Precision) -> Option<Real> {
    let value = match text {
        "nan" => f64::NAN,
        "inf" => f64::INFINITY,
        "-inf" => f64::NEG_INFINITY,
        _ => match text.strip_prefix(BITS) {
            Some(digits) if digits.len() == 16 => f64::from_bits(u64::from_str_radix(digits, 16).ok()?),
            Some(_) => return None,
            None => read_decimal(text, precision)?,
        },
    };
    Some(Real::new(value))
}

fn read_decimal(text: &str, precision: Precision) -> Option<f64> {
    // `str::parse` also takes words such as `infinity`.
    if !text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte)) {
        return None;
    }
    match precision {
        Precision::Element(DType::F32) => text.parse::<f32>().ok().map(f64::from),
        Precision::Element(DType::F16) => text.parse().ok().map(|value| half::f16::from_f64(value).to_f64()),
        Precision::Element(DType::BF16) => text.parse().ok().map(|value| half::bf16::from_f64(value).to_f64()),
        _ => text.parse().ok(),
    }
}

/// Appends a number.
pub(super) fn write(out: &mut String, value: Real, precision: Precision) {
    let start = out.len();
    let number = value.get();
    // Writing to a string does not fail.
    let _ = match precision {
        _ if number.is_nan() => write!(out, "nan"),
        Precision::Element(DType::F32) => write!(out, "{:?}", number as f32),
        Precision::Element(DType::I8 | DType::I32 | DType::T2) if is_whole(number) => write!(out, "{}", number as i64),
        _ => write!(out, "{number:?}"),
    };
    if read(&out[start..], precision) != Some(value) {
        out.truncate(start);
        let _ = write!(out, "{BITS}{:016x}", number.to_bits());
    }
}

fn is_whole(number: f64) -> bool {
    number.fract() == 0.0 && number.abs() < 1e15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back_as_the_same_bits() {
        let precisions = [Precision::Attribute].into_iter().chain(DType::ALL.map(Precision::Element));
        for precision in precisions {
            for value in [0.0, -0.0, 1.0, -1.0, 0.1, 1e-5, 1e300, 5e-324, f64::MAX, f64::INFINITY, f64::NEG_INFINITY] {
                for bits in [value.to_bits(), value.to_bits() ^ 1, (value as f32 as f64).to_bits(), f64::NAN.to_bits()]
                {
                    let value = Real::new(f64::from_bits(bits));
                    let mut text = String::new();
                    write(&mut text, value, precision);
                    assert_eq!(read(&text, precision), Some(value), "{precision:?} {text}");
                }
            }
        }
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (f64::from(0.1_f32), Precision::Element(DType::F32), "0.1"),
            (0.1, Precision::Element(DType::F32), "bits.3fb999999999999a"),
            (-1.0, Precision::Element(DType::T2), "-1"),
            (-0.0, Precision::Element(DType::I8), "bits.8000000000000000"),
            (1e-5, Precision::Attribute, "1e-5"),
            (1.0, Precision::Attribute, "1.0"),
            (f64::NEG_INFINITY, Precision::Attribute, "-inf"),
        ];
        for (value, precision, expected) in cases {
            let mut text = String::new();
            write(&mut text, Real::new(value), precision);
            assert_eq!(text, expected);
        }
    }
}
