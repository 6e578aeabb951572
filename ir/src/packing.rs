//! How values sit in bytes, as data: ternary layouts, and the row formats of quantised activations and KV caches.
//!
//! Nothing here depends on the CPU that runs it: a layout is a property of a file or a buffer, and a target that wants another one gets it
//! by an explicit repacking at compile time. Every ternary layout stores the *code* `value + 1` (0, 1 or 2); padding holds code 1, so it
//! multiplies as zero.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::dtype::DType;

/// Where the code of row `r` and column `c` of a ternary matrix `[rows, cols]` (one row an output) lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TernaryLayout {
    /// Four codes a byte along a row, the first in the lowest bits; rows padded to whole bytes. The original Tritter's files.
    RowMajor4,
    /// Four rows a byte: with `b = ceil(rows / 4)` byte rows, row `r` has bits `2 * (r / b)` of byte row `r % b`. Hugging Face BitNet.
    Blocks4,
    /// Tiles of 16 rows by 16 columns, 64 bytes each, tiles of one row block contiguous.
    ///
    /// Byte `4 * (r % 16) + c % 4` of a tile holds, in bits `2 * (c % 16 / 4)`, the code of (r, c). So one 64-byte load masked with
    /// `0x03 << 2i` gives, for 16 rows at once, the four codes that meet activations `4i .. 4i + 4`: no shift, no shuffle.
    Tile16,
    /// Five codes a byte in base 3 (1.6 bit a weight), tiles of 16 rows by 20 columns, 64 bytes each, as in [`TernaryLayout::Tile16`].
    ///
    /// Digit `i` of byte `4 * (r % 16) + c % 4` is the code of (r, c) with `i = c % 20 / 4`. The byte is `ceil(d * 256 / 243)` of
    /// `d = sum_i code_i * 3^(4 - i)`, so that digit `i` is the carry of `3 * (byte * 3^i mod 256)`.
    Tile16Base3,
}

/// A byte of a packed matrix that no packing writes: damage, or another layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadCode {
    /// Row of the matrix.
    pub row: u64,
    /// Column of the matrix.
    pub col: u64,
    /// The byte found there.
    pub byte: u8,
}

impl TernaryLayout {
    /// All layouts.
    pub const ALL: [TernaryLayout; 4] =
        [TernaryLayout::RowMajor4, TernaryLayout::Blocks4, TernaryLayout::Tile16, TernaryLayout::Tile16Base3];

    /// The name in plans and reports.
    pub fn name(self) -> &'static str {
        match self {
            TernaryLayout::RowMajor4 => "row_major4",
            TernaryLayout::Blocks4 => "blocks4",
            TernaryLayout::Tile16 => "tile16",
            TernaryLayout::Tile16Base3 => "tile16_base3",
        }
    }

    /// Bytes of a matrix of this size.
    pub fn bytes(self, rows: u64, cols: u64) -> u64 {
        match self {
            TernaryLayout::RowMajor4 => rows * cols.div_ceil(4),
            TernaryLayout::Blocks4 => rows.div_ceil(4) * cols,
            TernaryLayout::Tile16 => rows.div_ceil(16) * cols.div_ceil(16) * 64,
            TernaryLayout::Tile16Base3 => rows.div_ceil(16) * cols.div_ceil(20) * 64,
        }
    }

    /// Rows that share bytes with each other and with no row outside: a matrix can be written in pieces of this many rows. `None`: only
    /// as a whole.
    pub fn row_block(self) -> Option<u64> {
        match self {
            TernaryLayout::RowMajor4 => Some(1),
            TernaryLayout::Blocks4 => None,
            TernaryLayout::Tile16 | TernaryLayout::Tile16Base3 => Some(16),
        }
    }

    /// Where the codes of one row are.
    fn line(self, rows: u64, cols: u64, row: u64) -> Line {
        let tiled = |width: u64| (row / 16) * cols.div_ceil(width) * 64 + 4 * (row % 16);
        let (start, digit) = match self {
            TernaryLayout::RowMajor4 => (row * cols.div_ceil(4), 0),
            TernaryLayout::Blocks4 => ((row % rows.div_ceil(4)) * cols, row / rows.div_ceil(4)),
            TernaryLayout::Tile16 => (tiled(16), 0),
            TernaryLayout::Tile16Base3 => (tiled(20), 0),
        };
        Line { layout: self, start: start as usize, digit: digit as u32 }
    }

    /// What a digit of 1 at a position adds to a byte.
    fn weight(self, position: u32) -> u8 {
        match self {
            TernaryLayout::Tile16Base3 => 3_u8.pow(4 - position),
            _ => 1 << (2 * position),
        }
    }

    fn digit(self, byte: u8, position: u32) -> u8 {
        match self {
            TernaryLayout::Tile16Base3 => {
                let shifted = byte.wrapping_mul(3_u8.pow(position));
                ((u16::from(shifted) * 3) >> 8) as u8
            }
            _ => (byte >> (2 * position)) & 3,
        }
    }

    /// The bytes of a matrix whose values (-1, 0, 1) are `values`, row by row.
    ///
    /// # Panics
    ///
    /// If `values` has another length than `rows * cols`, or holds another value.
    pub fn encode(self, values: &[i8], rows: u64, cols: u64) -> Vec<u8> {
        assert_eq!(values.len() as u64, rows * cols, "one value for each row and column");
        let digits = if self == TernaryLayout::Tile16Base3 { 5 } else { 4 };
        // All bytes start as padding, which is code 1 everywhere; a value is what its code differs by.
        let padding: u8 = (0..digits).map(|position| self.weight(position)).sum();
        let mut bytes = vec![padding; self.bytes(rows, cols) as usize];
        for row in 0..rows {
            let line = self.line(rows, cols, row);
            for (col, &value) in values[(row * cols) as usize..((row + 1) * cols) as usize].iter().enumerate() {
                assert!((-1..=1).contains(&value), "a ternary value is -1, 0 or 1");
                let (byte, position) = line.locate(col);
                bytes[byte] = bytes[byte].wrapping_add((value as u8).wrapping_mul(self.weight(position)));
            }
        }
        if self == TernaryLayout::Tile16Base3 {
            bytes.iter_mut().for_each(|byte| *byte = (u32::from(*byte) * 256).div_ceil(243) as u8);
        }
        bytes
    }

    /// Reads the rows of `range` as values -1, 0, 1 into `out`, row by row.
    ///
    /// # Errors
    ///
    /// [`BadCode`] for the first code that is none of the three.
    ///
    /// # Panics
    ///
    /// If `bytes` or `out` has another length than the sizes say.
    pub fn decode_rows(
        self,
        bytes: &[u8],
        rows: u64,
        cols: u64,
        range: Range<u64>,
        out: &mut [i8],
    ) -> Result<(), BadCode> {
        assert_eq!(bytes.len() as u64, self.bytes(rows, cols), "the matrix has another size");
        assert_eq!(out.len() as u64, (range.end - range.start) * cols, "the output has another size");
        for (at, row) in range.enumerate() {
            let line = self.line(rows, cols, row);
            for (col, value) in out[at * cols as usize..(at + 1) * cols as usize].iter_mut().enumerate() {
                let (byte, position) = line.locate(col);
                let code = self.digit(bytes[byte], position);
                if 2 < code {
                    return Err(BadCode { row, col: col as u64, byte: bytes[byte] });
                }
                *value = code as i8 - 1;
            }
        }
        Ok(())
    }

    /// Reads the whole matrix as values, row by row.
    ///
    /// # Errors
    ///
    /// As [`TernaryLayout::decode_rows`].
    ///
    /// # Panics
    ///
    /// As [`TernaryLayout::decode_rows`].
    pub fn decode(self, bytes: &[u8], rows: u64, cols: u64) -> Result<Vec<i8>, BadCode> {
        let mut values = vec![0; (rows * cols) as usize];
        self.decode_rows(bytes, rows, cols, 0..rows, &mut values)?;
        Ok(values)
    }
}

/// One row of a packed matrix.
#[derive(Clone, Copy)]
struct Line {
    layout: TernaryLayout,
    /// The byte of the first column.
    start: usize,
    /// The position in its bytes, where that is the same for the whole row.
    digit: u32,
}

impl Line {
    /// Byte and digit position of the code in a column.
    fn locate(self, col: usize) -> (usize, u32) {
        match self.layout {
            TernaryLayout::RowMajor4 => (self.start + col / 4, (col % 4) as u32),
            TernaryLayout::Blocks4 => (self.start + col, self.digit),
            TernaryLayout::Tile16 => (self.start + col / 16 * 64 + col % 4, (col % 16 / 4) as u32),
            TernaryLayout::Tile16Base3 => (self.start + col / 20 * 64 + col % 4, (col % 20 / 4) as u32),
        }
    }
}

impl fmt::Display for TernaryLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TernaryLayout {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|layout| layout.name() == text).ok_or(())
    }
}

/// The smallest magnitude that a row of activations is scaled by, as in BitNet: a row of zeros has this as its absolute maximum.
pub const ABSMAX_FLOOR: f32 = 1e-5;

/// How one row (the last axis, `k` values) of [`DType::Q8`] or [`DType::Q4`] is stored: codes first, then 8 bytes of numbers.
///
/// | | codes | then | value |
/// |---|---|---|---|
/// | q8 | `k` bytes of int8, zero-padded to a multiple of 16 | f32 `scale`, i32 sum of the codes | `code * scale` |
/// | q4 | `ceil(k / 2)` bytes, low nibble first, zero-padded to a multiple of 4 | f32 `scale`, f32 `minimum` | `minimum + code * scale` |
///
/// Records follow each other without gaps, so a q8 record starts at a multiple of 8 bytes and a q4 record at a multiple of 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowFormat {
    dtype: DType,
    k: usize,
}

impl RowFormat {
    /// The format of rows of `k` values, if `dtype` is a row format.
    pub fn new(dtype: DType, k: usize) -> Option<Self> {
        dtype.is_row_format().then_some(Self { dtype, k })
    }

    /// Bytes before the scale.
    pub fn code_bytes(self) -> usize {
        match self.dtype {
            DType::Q4 => self.k.div_ceil(2).next_multiple_of(4),
            _ => self.k.next_multiple_of(16),
        }
    }

    /// Bytes of one record.
    pub fn stride(self) -> usize {
        self.code_bytes() + 8
    }

    /// Writes one record.
    ///
    /// q8: with `a = max(max |x|, 1e-5)` and `s = 127 / a`, codes are `round_half_even(x * s)` and the scale is `a / 127`, all in single
    /// precision. q4: with `minimum` and `maximum` of the row, `scale = (maximum - minimum) / 15` and codes are
    /// `round_half_even((x - minimum) / scale)`, all 0 where the scale is 0. A value that is not a number takes code 0.
    ///
    /// # Panics
    ///
    /// If `row` or `record` has another length than the format says.
    pub fn encode(self, row: &[f32], record: &mut [u8]) {
        assert_eq!(row.len(), self.k, "a row of another length");
        assert_eq!(record.len(), self.stride(), "a record of another length");
        let (codes, numbers) = record.split_at_mut(self.code_bytes());
        codes.fill(0);
        match self.dtype {
            DType::Q4 => {
                // The sum makes one zero of two, so that the record does not depend on the order of the row.
                let minimum = row.iter().copied().fold(f32::INFINITY, f32::min) + 0.0;
                let maximum = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let scale = (maximum - minimum) / 15.0;
                for (at, &value) in row.iter().enumerate() {
                    let code = if 0.0 < scale { round_half_even((value - minimum) / scale) as u8 & 15 } else { 0 };
                    codes[at / 2] |= code << (4 * (at % 2));
                }
                numbers[..4].copy_from_slice(&scale.to_le_bytes());
                numbers[4..].copy_from_slice(&minimum.to_le_bytes());
            }
            _ => {
                let absmax = row.iter().fold(0.0_f32, |max, value| max.max(value.abs())).max(ABSMAX_FLOOR);
                let scale = 127.0 / absmax;
                let mut sum = 0_i32;
                for (at, &value) in row.iter().enumerate() {
                    let code = round_half_even(value * scale).clamp(-128.0, 127.0) as i8;
                    codes[at] = code as u8;
                    sum += i32::from(code);
                }
                numbers[..4].copy_from_slice(&(absmax / 127.0).to_le_bytes());
                numbers[4..].copy_from_slice(&sum.to_le_bytes());
            }
        }
    }

    /// Reads one record back.
    ///
    /// # Panics
    ///
    /// If `row` or `record` has another length than the format says.
    pub fn decode(self, record: &[u8], row: &mut [f32]) {
        assert_eq!(row.len(), self.k, "a row of another length");
        assert_eq!(record.len(), self.stride(), "a record of another length");
        let (codes, numbers) = record.split_at(self.code_bytes());
        let number = |at: usize| [numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3]];
        let scale = f32::from_le_bytes(number(0));
        for (at, value) in row.iter_mut().enumerate() {
            *value = match self.dtype {
                DType::Q4 => {
                    let code = (codes[at / 2] >> (4 * (at % 2))) & 15;
                    f32::from_le_bytes(number(4)) + f32::from(code) * scale
                }
                _ => f32::from(codes[at] as i8) * scale,
            };
        }
    }
}

/// The nearest whole number, ties to even, where `|x| < 2^22`: adding and taking away 1.5 * 2^23 leaves no room for a fraction. Unlike
/// [`f32::round_ties_even`] this is no call of a library on any target.
fn round_half_even(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that visit every code in every position without a period that a layout could share.
    fn values(rows: u64, cols: u64) -> Vec<i8> {
        let mut state = 1_u32;
        (0..rows * cols)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 24) % 3) as i8 - 1
            })
            .collect()
    }

    #[test]
    fn every_layout_round_trips_at_its_edges() {
        for layout in TernaryLayout::ALL {
            for rows in [1, 2, 3, 4, 5, 15, 16, 17, 33] {
                for cols in [1, 3, 4, 5, 15, 16, 17, 19, 20, 21, 40, 64, 67] {
                    let values = values(rows, cols);
                    let bytes = layout.encode(&values, rows, cols);
                    assert_eq!(bytes.len() as u64, layout.bytes(rows, cols), "{layout} {rows}x{cols}");
                    assert_eq!(layout.decode(&bytes, rows, cols).unwrap(), values, "{layout} {rows}x{cols}");
                }
            }
        }
    }

    #[test]
    fn base_three_bytes_round_trip_exhaustively() {
        let layout = TernaryLayout::Tile16Base3;
        for number in 0..243_u32 {
            let row: Vec<i8> = (0..20)
                .map(|col| if col % 4 == 0 { (number / 3_u32.pow(4 - col / 4) % 3) as i8 - 1 } else { 0 })
                .collect();
            let bytes = layout.encode(&row, 1, 20);
            assert_eq!(layout.decode(&bytes, 1, 20).unwrap(), row, "{number}");
        }
    }

    #[test]
    fn a_code_of_three_is_refused_with_its_place() {
        let mut bytes = TernaryLayout::RowMajor4.encode(&[0; 12], 2, 6);
        bytes[3] |= 3;
        let error = TernaryLayout::RowMajor4.decode(&bytes, 2, 6).unwrap_err();
        assert_eq!((error.row, error.col), (1, 4));
    }

    #[test]
    fn constant_and_zero_rows_have_no_nan() {
        for dtype in [DType::Q8, DType::Q4] {
            for value in [0.0, -3.5, 1e-30] {
                let format = RowFormat::new(dtype, 7).unwrap();
                let mut record = vec![0xAA; format.stride()];
                format.encode(&[value; 7], &mut record);
                let mut row = [f32::NAN; 7];
                format.decode(&record, &mut row);
                assert!(row.iter().all(|read| (read - value).abs() <= 1e-5), "{dtype} {value}: {row:?}");
            }
        }
    }
}
