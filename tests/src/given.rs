//! Weights that a test has as numbers, as the compiler reads them.

use std::borrow::Cow;
use std::collections::HashMap;

use compiler::weights::{SourceTensor, WeightError, WeightSource};
use ir::DType;
use ir::packing::TernaryLayout;
use ir::reference::Tensor;

/// Parameters by key.
pub struct Given<'a>(pub &'a HashMap<String, Tensor>);

impl WeightSource for Given<'_> {
    fn tensor(&self, key: &str) -> Result<SourceTensor<'_>, WeightError> {
        let tensor = self.0.get(key).ok_or_else(|| WeightError::Unbound { key: key.to_owned() })?;
        let dims: Vec<u64> = tensor.dims().iter().map(|&dim| dim as u64).collect();
        let values = tensor.data.iter();
        let layout = TernaryLayout::RowMajor4;
        let bytes = match tensor.ty.dtype {
            DType::F32 => values.flat_map(|&value| (value as f32).to_le_bytes()).collect(),
            DType::F16 => values.flat_map(|&value| half::f16::from_f64(value).to_le_bytes()).collect(),
            DType::BF16 => values.flat_map(|&value| half::bf16::from_f64(value).to_le_bytes()).collect(),
            DType::I32 => values.flat_map(|&value| (value as i32).to_le_bytes()).collect(),
            DType::I8 => values.map(|&value| value as i8 as u8).collect(),
            DType::T2 => {
                let (rows, cols) = compiler::weights::as_matrix(&dims);
                layout.encode(&values.map(|&value| value as i8).collect::<Vec<_>>(), rows, cols)
            }
            DType::Q8 | DType::Q4 => unreachable!("parameters are plain numbers"),
        };
        let layout = (tensor.ty.dtype == DType::T2).then_some(layout);
        Ok(SourceTensor { dtype: tensor.ty.dtype, dims, layout, bytes: Cow::Owned(bytes) })
    }

    fn check(&self, key: &str) -> Result<(), WeightError> {
        self.tensor(key).map(|_| ())
    }
}
