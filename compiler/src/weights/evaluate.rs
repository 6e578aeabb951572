//! The value of a weight-time expression in one round, as the bytes that kernels read.

use std::borrow::Cow;
use std::ops::Range;

use ir::graph::{Def, Graph};
use ir::op::ternary::{TernaryRule, absmean};
use ir::op::{Concrete, Op, OpDef};
use ir::packing::{RowFormat, TernaryLayout};
use ir::reference::{Tensor, key_of_round};
use ir::{DType, ValueId};

use super::{SourceTensor, StoredTensor, WeightError, WeightSource, as_param};

/// Evaluates values of one graph in one round.
pub(crate) struct Evaluator<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) source: &'a dyn WeightSource,
    /// `None` outside of repeated bodies.
    pub(crate) round: Option<u32>,
}

impl<'a> Evaluator<'a> {
    /// The bytes of a value as it is to be stored, handed to `write` in pieces of bounded size where the type allows.
    pub(crate) fn write(
        &self,
        value: ValueId,
        stored: StoredTensor,
        write: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<std::io::Result<()>, WeightError> {
        if let Some(layout) = stored.layout {
            return self.write_ternary(value, layout, write);
        }
        if let Some(key) = as_param(self.graph, value) {
            let tensor = self.param(key, value)?;
            if tensor.dtype == stored.dtype {
                return Ok(write(&tensor.bytes));
            }
            // A change of type, piece by piece.
            let size = tensor.dtype.bytes().unwrap_or(1) as usize;
            for piece in tensor.bytes.chunks(size << 16) {
                let values = to_f64(piece, tensor.dtype);
                if let Err(error) = write(&to_bytes(&values, stored.dtype, 1)) {
                    return Ok(Err(error));
                }
            }
            return Ok(Ok(()));
        }
        if let Some(result) = self.write_quantised(value, write)? {
            return Ok(result);
        }
        let tensor = self.dense(value)?;
        let columns = tensor.dims().last().copied().unwrap_or(1);
        Ok(write(&to_bytes(&tensor.data, stored.dtype, columns)))
    }

    /// A parameter in a row format, record by record: a head may be the largest tensor of a model.
    fn write_quantised(
        &self,
        value: ValueId,
        write: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<Option<std::io::Result<()>>, WeightError> {
        let Some(Op::Quantize(_) | Op::QuantizeGroups(_)) = self.graph.op(value) else { return Ok(None) };
        let mut source = self.graph.operands(value)[0];
        if let Some(Op::Cast(_)) = self.graph.op(source) {
            source = self.graph.operands(source)[0];
        }
        let Some(key) = as_param(self.graph, source) else { return Ok(None) };
        let tensor = self.param(key, source)?;
        let ty = self.graph.ty(value);
        let k = ty.shape.last_const().unwrap_or(1) as usize;
        let format = RowFormat::new(ty.dtype, k).expect("the op gives a row format");
        let row_bytes = k * tensor.dtype.bytes().unwrap_or(1) as usize;
        // Some hundred records at a time.
        for piece in tensor.bytes.chunks(row_bytes << 8) {
            let values: Vec<f32> = to_f64(piece, tensor.dtype).into_iter().map(|value| value as f32).collect();
            let mut records = vec![0; piece.len() / row_bytes * format.stride()];
            for (row, record) in values.chunks(k).zip(records.chunks_mut(format.stride())) {
                format.encode(row, record);
            }
            if let Err(error) = write(&records) {
                return Ok(Some(Err(error)));
            }
        }
        Ok(Some(Ok(())))
    }

    /// The tensor of a parameter, checked against the type that the graph declares.
    fn param(&self, key: &str, value: ValueId) -> Result<SourceTensor<'a>, WeightError> {
        let key = key_of_round(key, self.round);
        let tensor = self.source.tensor(&key)?;
        let ty = self.graph.ty(value);
        let dims: Option<Vec<u64>> = ty.shape.dims().iter().map(ir::Dim::as_const).collect();
        let is_packed = tensor.layout.is_some() == (ty.dtype == DType::T2);
        if dims.as_ref() != Some(&tensor.dims) || tensor.dtype != ty.dtype || !is_packed {
            return Err(WeightError::Shape {
                tensor: key,
                expected: ty.to_string(),
                found: format!("{}{:?}", tensor.dtype, tensor.dims),
            });
        }
        Ok(tensor)
    }

    /// Any value, in f64: for scales, norms and tables. Matrices take the ways above.
    fn dense(&self, value: ValueId) -> Result<Tensor, WeightError> {
        let ty = self.graph.ty(value);
        let dims: Vec<usize> = ty.shape.dims().iter().map(|dim| dim.as_const().unwrap_or(0) as usize).collect();
        let out = Concrete { dtype: ty.dtype, dims };
        Ok(match &self.graph.values[value].def {
            Def::Param { key } => {
                let tensor = self.param(key, value)?;
                let data = match tensor.layout {
                    Some(layout) => {
                        let (rows, cols) = super::as_matrix(&tensor.dims);
                        let decoded = layout.decode(&tensor.bytes, rows, cols);
                        let bad = |code| WeightError::BadCode { key: key_of_round(key, self.round), code };
                        let values = decoded.map_err(bad)?;
                        values.into_iter().map(f64::from).collect()
                    }
                    None => to_f64(&tensor.bytes, tensor.dtype),
                };
                Tensor::new(out, data)
            }
            Def::Const(constant) => Tensor::new(out, constant.values().collect()),
            Def::Op { op, inputs } => {
                let mut operands = Vec::with_capacity(inputs.len());
                for &input in inputs {
                    operands.push(self.dense(input)?);
                }
                let mut tensor = op.reference(&operands.iter().collect::<Vec<_>>(), &out);
                if ty.dtype == DType::F32 {
                    // Each step is rounded, as it would be at run time.
                    tensor.data.iter_mut().for_each(|value| *value = f64::from(*value as f32));
                }
                tensor
            }
            Def::Input | Def::State { .. } => unreachable!("weight-time values depend on parameters alone"),
        })
    }

    fn write_ternary(
        &self,
        value: ValueId,
        layout: TernaryLayout,
        write: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<std::io::Result<()>, WeightError> {
        let rows = self.rows(value)?;
        let (n_rows, cols) = (rows.rows(), rows.cols());
        // A matrix that has the wanted packing already is copied.
        if let Some(parts) = rows.packed_parts(layout) {
            for part in parts {
                if let Err(error) = write(part) {
                    return Ok(Err(error));
                }
            }
            return Ok(Ok(()));
        }
        let block = layout.row_block().unwrap_or(n_rows).max(1);
        let mut values = Vec::new();
        for start in (0..n_rows).step_by(block as usize) {
            let end = (start + block).min(n_rows);
            values.resize(((end - start) * cols) as usize, 0);
            rows.read(start..end, &mut values)?;
            if let Err(error) = write(&layout.encode(&values, end - start, cols)) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    /// A ternary value, readable by rows.
    fn rows(&self, value: ValueId) -> Result<TernaryRows<'a>, WeightError> {
        Ok(match &self.graph.values[value].def {
            Def::Param { key } => {
                TernaryRows::Packed { key: key_of_round(key, self.round), tensor: self.param(key, value)? }
            }
            Def::Op { op: Op::Ternarise(ternarise), inputs } if as_param(self.graph, inputs[0]).is_some() => {
                let key = as_param(self.graph, inputs[0]).unwrap_or_default();
                let tensor = self.param(key, inputs[0])?;
                let mean = match ternarise.rule {
                    TernaryRule::AbsmeanTensor => streamed_absmean(&tensor),
                    TernaryRule::ThresholdRow => 0.0,
                };
                TernaryRows::Real { tensor, rule: ternarise.rule, mean }
            }
            Def::Op { op: Op::Concat(concat), inputs } if concat.axis == 0 => {
                let (first, second) = (self.rows(inputs[0])?, self.rows(inputs[1])?);
                TernaryRows::Concat(Box::new(first), Box::new(second))
            }
            _ => {
                let tensor = self.dense(value)?;
                let dims = tensor.dims().iter().map(|&dim| dim as u64).collect();
                let values: Vec<i8> = tensor.data.iter().map(|&value| value as i8).collect();
                let (rows, cols) = (tensor.dims()[0] as u64, tensor.dims()[1] as u64);
                let layout = TernaryLayout::RowMajor4;
                let bytes = Cow::Owned(layout.encode(&values, rows, cols));
                let tensor = SourceTensor { dtype: DType::T2, dims, layout: Some(layout), bytes };
                TernaryRows::Packed { key: self.graph.label(value), tensor }
            }
        })
    }
}

/// A ternary matrix that is decoded a few rows at a time.
enum TernaryRows<'a> {
    Packed { key: String, tensor: SourceTensor<'a> },
    Real { tensor: SourceTensor<'a>, rule: TernaryRule, mean: f32 },
    Concat(Box<TernaryRows<'a>>, Box<TernaryRows<'a>>),
}

impl TernaryRows<'_> {
    fn rows(&self) -> u64 {
        match self {
            TernaryRows::Packed { tensor, .. } | TernaryRows::Real { tensor, .. } => tensor.dims[0],
            TernaryRows::Concat(first, second) => first.rows() + second.rows(),
        }
    }

    fn cols(&self) -> u64 {
        match self {
            TernaryRows::Packed { tensor, .. } | TernaryRows::Real { tensor, .. } => tensor.dims[1],
            TernaryRows::Concat(first, _) => first.cols(),
        }
    }

    /// The bytes, if all of the matrix has this packing already and its parts end where a block of rows does.
    fn packed_parts(&self, layout: TernaryLayout) -> Option<Vec<&[u8]>> {
        match self {
            TernaryRows::Packed { tensor, .. } if tensor.layout == Some(layout) => Some(vec![&tensor.bytes]),
            TernaryRows::Concat(first, second) if first.rows() % layout.row_block()? == 0 => {
                let mut parts = first.packed_parts(layout)?;
                parts.extend(second.packed_parts(layout)?);
                Some(parts)
            }
            _ => None,
        }
    }

    fn read(&self, range: Range<u64>, out: &mut [i8]) -> Result<(), WeightError> {
        match self {
            TernaryRows::Packed { key, tensor } => {
                let layout = tensor.layout.expect("the parameter was checked to be packed");
                layout
                    .decode_rows(&tensor.bytes, tensor.dims[0], tensor.dims[1], range, out)
                    .map_err(|code| WeightError::BadCode { key: key.clone(), code })
            }
            TernaryRows::Real { tensor, rule, mean } => {
                let size = tensor.dtype.bytes().unwrap_or(1);
                let row_bytes = tensor.dims[1] * size;
                let bytes = &tensor.bytes[(range.start * row_bytes) as usize..(range.end * row_bytes) as usize];
                let weights: Vec<f32> = to_f64(bytes, tensor.dtype).into_iter().map(|weight| weight as f32).collect();
                let values = match rule {
                    TernaryRule::AbsmeanTensor => {
                        let inverse = 1.0 / mean;
                        let round = |weight: &f32| (weight * inverse).round_ties_even().clamp(-1.0, 1.0) as i8;
                        weights.iter().map(round).collect()
                    }
                    TernaryRule::ThresholdRow => rule.ternarise(&weights, (range.end - range.start) as usize),
                };
                out.copy_from_slice(&values);
                Ok(())
            }
            TernaryRows::Concat(first, second) => {
                let split = first.rows().clamp(range.start, range.end);
                let (low, high) = out.split_at_mut(((split - range.start) * self.cols()) as usize);
                if range.start < split {
                    first.read(range.start..split, low)?;
                }
                if split < range.end {
                    second.read(split - first.rows()..range.end - first.rows(), high)?;
                }
                Ok(())
            }
        }
    }
}

/// [`absmean`] of a stored tensor without widening all of it at once.
fn streamed_absmean(tensor: &SourceTensor<'_>) -> f32 {
    let size = tensor.dtype.bytes().unwrap_or(1) as usize;
    let elements = tensor.bytes.len() / size.max(1);
    if elements == 0 {
        return absmean(&[]);
    }
    let mut sum = 0.0_f64;
    for piece in tensor.bytes.chunks(size << 16) {
        for weight in to_f64(piece, tensor.dtype) {
            sum += weight.abs();
        }
    }
    ((sum / elements as f64) as f32).max(ir::packing::ABSMAX_FLOOR)
}

/// Stored numbers, widened.
fn to_f64(bytes: &[u8], dtype: DType) -> Vec<f64> {
    match dtype {
        DType::F32 => bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
        DType::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        DType::BF16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        DType::I32 => bytes.chunks_exact(4).map(|b| f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
        _ => bytes.iter().map(|&b| f64::from(b as i8)).collect(),
    }
}

/// Stored numbers as f32.
pub(crate) fn widen(bytes: &[u8], dtype: DType) -> Vec<u8> {
    to_bytes(&to_f64(bytes, dtype), DType::F32, 1)
}

/// Numbers as stored; row formats have `columns` values a row.
fn to_bytes(values: &[f64], dtype: DType, columns: usize) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&value| half::f16::from_f64(value).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&value| half::bf16::from_f64(value).to_le_bytes()).collect(),
        DType::I32 => values.iter().flat_map(|&value| (value as i32).to_le_bytes()).collect(),
        DType::Q8 | DType::Q4 => {
            let format = RowFormat::new(dtype, columns).expect("the type is a row format");
            let rows = values.chunks(columns.max(1));
            rows.flat_map(|row| {
                let row: Vec<f32> = row.iter().map(|&value| value as f32).collect();
                let mut record = vec![0; format.stride()];
                format.encode(&row, &mut record);
                record
            })
            .collect()
        }
        DType::I8 | DType::T2 => values.iter().map(|&value| value as i8 as u8).collect(),
    }
}
