//! Element types, and what values they hold.

use std::fmt;
use std::str::FromStr;

/// The type of a tensor's elements.
///
/// The last two are *row formats*: the last axis is one record, whose codes share the numbers stored beside them (see
/// [`crate::packing::RowFormat`]). Their mathematical value is the dequantised one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an [`DType::F32`].
    BF16,
    /// Signed byte.
    I8,
    /// Signed 32-bit integer: ids, positions, exact accumulators.
    I32,
    /// Ternary: -1, 0 or +1. How it sits in bytes is a [`crate::packing::TernaryLayout`].
    T2,
    /// Rows of int8 codes with one scale each, symmetric: `value = code * absmax / 127`.
    Q8,
    /// Rows of 4-bit codes with one scale and one minimum each: `value = minimum + code * scale`.
    Q4,
}

impl DType {
    /// All of them, in the order they are documented.
    pub const ALL: [DType; 8] =
        [DType::F32, DType::F16, DType::BF16, DType::I8, DType::I32, DType::T2, DType::Q8, DType::Q4];

    /// The name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I8 => "i8",
            DType::I32 => "i32",
            DType::T2 => "t2",
            DType::Q8 => "q8",
            DType::Q4 => "q4",
        }
    }

    /// Whether arithmetic on it is rounded: f32, f16 or bf16.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }

    /// Whether its elements are exact integers: i8, i32 or ternary.
    pub fn is_integer(self) -> bool {
        matches!(self, DType::I8 | DType::I32 | DType::T2)
    }

    /// Whether its last axis is stored as records of codes and scales.
    pub fn is_row_format(self) -> bool {
        matches!(self, DType::Q8 | DType::Q4)
    }

    /// Bytes of one element, for the types that have a whole number of them each.
    pub fn bytes(self) -> Option<u64> {
        match self {
            DType::F32 | DType::I32 => Some(4),
            DType::F16 | DType::BF16 => Some(2),
            DType::I8 => Some(1),
            DType::T2 | DType::Q8 | DType::Q4 => None,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == text).ok_or(())
    }
}
