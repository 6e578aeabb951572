//! How far two lists of numbers are apart: exactly, within a bound for each number, or as a whole.

use std::fmt;

/// Two lists that differ by more than they may.
#[derive(Clone, Debug, PartialEq)]
pub struct Mismatch {
    /// How many numbers are outside their bound.
    pub outside: usize,
    /// How many there are.
    pub total: usize,
    /// Where the bound is exceeded most.
    pub index: usize,
    /// What was expected there.
    pub expected: f64,
    /// What was found there.
    pub actual: f64,
    /// How far apart they may be there.
    pub bound: f64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.total == 0 {
            return write!(f, "expected {} numbers, found {}", self.expected, self.actual);
        }
        write!(
            f,
            "{} of {} numbers are outside their bound; worst at {}: expected {}, found {}, which is {:e} apart and may be {:e}",
            self.outside,
            self.total,
            self.index,
            self.expected,
            self.actual,
            distance(self.expected, self.actual),
            self.bound
        )
    }
}

/// Checks that the lists are equal; numbers that are not a number are equal to each other.
///
/// # Errors
///
/// If they are not.
pub fn exact(expected: &[f64], actual: &[f64]) -> Result<(), Mismatch> {
    bounded(expected, actual, |_| 0.0)
}

/// Checks that each number is at most `bound(index)` away from the expected one. Infinities must be the same, and a number that is not a number must
/// be met by another such.
///
/// # Errors
///
/// If there are others, or more or fewer of them.
pub fn bounded(expected: &[f64], actual: &[f64], bound: impl Fn(usize) -> f64) -> Result<(), Mismatch> {
    if expected.len() != actual.len() {
        let (expected, actual) = (expected.len() as f64, actual.len() as f64);
        return Err(Mismatch { outside: 0, total: 0, index: 0, expected, actual, bound: 0.0 });
    }
    let mut worst: Option<(f64, Mismatch)> = None;
    let mut outside = 0;
    for (index, (&expected, &actual)) in expected.iter().zip(actual).enumerate() {
        let bound = bound(index);
        let distance = distance(expected, actual);
        if distance <= bound {
            continue;
        }
        outside += 1;
        // An infinite excess is worse than any other; the first of equals is kept.
        let excess = if 0.0 < bound { distance / bound } else { distance };
        if worst.as_ref().is_none_or(|(most, _)| *most < excess) {
            worst = Some((excess, Mismatch { outside: 0, total: 0, index, expected, actual, bound }));
        }
    }
    match worst {
        None => Ok(()),
        Some((_, mismatch)) => Err(Mismatch { outside, total: expected.len(), ..mismatch }),
    }
}

/// How far two numbers are apart; infinitely if only one of them is a number.
fn distance(expected: f64, actual: f64) -> f64 {
    if expected == actual || expected.is_nan() && actual.is_nan() {
        return 0.0;
    }
    let distance = (expected - actual).abs();
    if distance.is_nan() { f64::INFINITY } else { distance }
}

/// The Euclidean norm of the difference, relative to that of `expected`.
///
/// # Panics
///
/// If the lists differ in length.
pub fn relative_l2(expected: &[f64], actual: &[f64]) -> f64 {
    assert_eq!(expected.len(), actual.len(), "lists of one length");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = norm(&mut expected.iter().zip(actual).map(|(expected, actual)| expected - actual));
    if difference == 0.0 { 0.0 } else { difference / norm(&mut expected.iter().copied()) }
}

/// The share of rows of `width` numbers whose largest is in the same column, the first of equals.
///
/// # Panics
///
/// If the lists differ in length, or are no whole number of rows.
pub fn argmax_agreement(expected: &[f64], actual: &[f64], width: usize) -> f64 {
    assert_eq!(expected.len(), actual.len(), "lists of one length");
    assert_eq!(expected.len() % width, 0, "a whole number of rows");
    let argmax = |row: &[f64]| (0..row.len()).rev().max_by(|&left, &right| row[left].total_cmp(&row[right]));
    let rows = expected.len() / width;
    let agreeing =
        expected.chunks(width).zip(actual.chunks(width)).filter(|(left, right)| argmax(left) == argmax(right));
    if rows == 0 { 1.0 } else { agreeing.count() as f64 / rows as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_place_is_reported() {
        let expected = [1.0, 2.0, f64::NAN, f64::INFINITY];
        assert_eq!(exact(&expected, &expected), Ok(()));
        let mismatch = bounded(&expected, &[1.25, 2.5, 0.0, f64::INFINITY], |_| 0.25).unwrap_err();
        assert_eq!((mismatch.outside, mismatch.total, mismatch.index), (2, 4, 2));
        assert!(exact(&expected, &expected[1..]).unwrap_err().to_string().contains("expected 4 numbers, found 3"));
        assert!(exact(&[f64::INFINITY], &[f64::NEG_INFINITY]).is_err());
    }

    #[test]
    fn wholes_are_compared() {
        assert_eq!(relative_l2(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert_eq!(relative_l2(&[3.0, 4.0], &[3.0, 9.0]), 1.0);
        assert_eq!(argmax_agreement(&[1.0, 2.0, 5.0, 5.0], &[0.0, 1.0, 2.0, 3.0], 2), 0.5);
    }
}
