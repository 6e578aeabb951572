//! The bound of [`kernels::cuda::accuracy`] for a case of attention, in f64 beside the reference.

use anyhow::{Context as _, Result};
use ir::DType;
use ir::mask::{Mask, Span};
use ir::packing::RowFormat;
use kernels::cuda::{CudaKernelDesc, Rounding};

use crate::case::Case;

/// What a number must be, and how far it may be from that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) value: f64,
    pub(crate) bound: f64,
}

/// What an addition in f32 may lose, relatively, where tensor cores truncate.
pub(crate) const ULP: f64 = 1.0 / (1 << 23) as f64;

/// What a row of attention must write.
pub(crate) fn attention(desc: &CudaKernelDesc, case: &Case, rounding: Rounding) -> Result<Vec<Expected>> {
    let dim = |name: &str| case.dim(desc, name) as usize;
    let (n, heads, kv_heads, hd, ctx) = (dim("n"), dim("heads"), dim("kv_heads"), dim("hd"), dim("ctx"));
    let scale = f64::from(f32::from_bits(case.dim(desc, "scale_bits") as u32));
    let mask = Mask { window: dim("window") as u32, sinks: dim("sinks") as u32 };
    let words = |index: usize| -> Vec<u32> {
        case.args[index].0.as_chunks::<4>().0.iter().map(|four| u32::from_le_bytes(*four)).collect()
    };
    let q: Vec<f64> = words(0).into_iter().map(|bits| f64::from(f32::from_bits(bits))).collect();
    let (seq, pos, span) = (words(3), words(4), words(5));
    let rows = |index: usize| Rows::decode(&case.args[index].0, desc.inputs[index], hd);
    let (keys, values) = (rows(1)?, rows(2)?);
    let mut expected = Vec::with_capacity(n * heads * hd);
    for token in 0..n {
        let [first, reach] = [span[2 * token], span[2 * token + 1]];
        let is_visible =
            |key: &usize| (pos[token] as i32) >= 0 && mask.visible(pos[token], Span { first, reach }, *key as u32);
        let visible: Vec<usize> = (0..ctx).filter(is_visible).collect();
        for head in 0..heads {
            let row_0 = (seq[token] as usize * kv_heads + head / (heads / kv_heads)) * ctx;
            let query = &q[(token * heads + head) * hd..][..hd];
            let rows: Vec<usize> = visible.iter().map(|key| row_0 + key).collect();
            expected.extend(one(query, scale, &keys, &values, &rows, rounding));
        }
    }
    Ok(expected)
}

/// Of one query and one head, with the rows that it sees.
fn one(query: &[f64], scale: f64, keys: &Rows, values: &Rows, rows: &[usize], rounding: Rounding) -> Vec<Expected> {
    let hd = query.len();
    let largest = query.iter().fold(0.0_f64, |most, q| most.max(q.abs()));
    let (mut scores, mut error) = (Vec::with_capacity(rows.len()), 0.0_f64);
    for &row in rows {
        let (key, sizes) = (keys.row(row), keys.sizes(row));
        let score = scale * query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>();
        let size: f64 = query.iter().zip(&sizes).map(|(q, k)| q.abs() * k).sum();
        let all: f64 = sizes.iter().sum();
        let operands = (rounding.queries + rounding.keys) * size + rounding.largest_query * largest * all;
        let sums = ULP * (hd + 8) as f64 * size;
        error = error.max(scale.abs() * (operands + sums) + 4.0 * ULP * score.abs());
        scores.push(score);
    }
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    let (mut value, mut size, mut raised) = (vec![0.0; hd], vec![0.0; hd], 0.0);
    for (&row, power) in rows.iter().zip(&powers) {
        let p = power / sum;
        let parts = values.row(row).iter().zip(values.sizes(row));
        for (at, (v, v_size)) in parts.enumerate() {
            value[at] += p * v;
            size[at] += p * v_size;
        }
        raised += p * rounding.raised * values.scale(row);
    }
    let relative = (2.0 * error + rounding.weights + rounding.values + 1.0 / (1 << 20) as f64).exp_m1();
    let lost = ULP * (rows.len() + 64) as f64;
    let bound = |size: f64| relative * size + lost * (2.0 * size + raised);
    value.into_iter().zip(size).map(|(value, size)| Expected { value, bound: bound(size) }).collect()
}

/// Rows of a cache, decoded, with what their sizes are measured by.
struct Rows {
    hd: usize,
    numbers: Vec<f64>,
    /// Scale and minimum of each record; none of what has no records.
    records: Vec<(f64, f64)>,
}

impl Rows {
    fn decode(bytes: &[u8], dtype: DType, hd: usize) -> Result<Self> {
        let Some(format) = RowFormat::new(dtype, hd) else {
            let pairs = bytes.as_chunks::<2>().0.iter();
            let numbers = pairs.map(|two| f64::from(half::bf16::from_le_bytes(*two).to_f32())).collect();
            return Ok(Self { hd, numbers, records: Vec::new() });
        };
        let (mut numbers, mut records) = (Vec::new(), Vec::new());
        for record in bytes.chunks(format.stride()) {
            let mut row = vec![0.0_f32; hd];
            format.decode(record, &mut row);
            numbers.extend(row.into_iter().map(f64::from));
            let tail = record.last_chunk::<8>().context("a record ends in two numbers")?;
            let [scale, minimum] = [0, 4].map(|at| {
                let four = [tail[at], tail[at + 1], tail[at + 2], tail[at + 3]];
                f64::from(f32::from_le_bytes(four))
            });
            records.push((scale, if dtype == DType::Q4 { minimum } else { 0.0 }));
        }
        Ok(Self { hd, numbers, records })
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.numbers[row * self.hd..][..self.hd]
    }

    /// The absolute values, where there is no minimum.
    fn sizes(&self, row: usize) -> Vec<f64> {
        let minimum = self.records.get(row).map_or(0.0, |record| record.1);
        self.row(row).iter().map(|number| minimum.abs() + (number - minimum).abs()).collect()
    }

    fn scale(&self, row: usize) -> f64 {
        self.records.get(row).map_or(0.0, |record| record.0)
    }
}
