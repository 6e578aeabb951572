//! Parameters and checkpoints: which tensor is which parameter, how it is stored there, and what a random one is like.

use crate::dtype::DType;
use crate::packing::TernaryLayout;
use crate::shape::{Dim, TensorType};

/// A tensor of a checkpoint, as the headers of its files describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type as safetensors calls it: `BF16`, `F32`, `U8`.
    pub dtype: String,
    /// Its dimensions, outermost first.
    pub shape: Vec<u64>,
}

/// One parameter of a program, or one for each layer, and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamBinding {
    /// The parameter's key in the program; `{}` in it stands for the layer.
    pub key: String,
    /// The tensor's name in a checkpoint, with `{}` likewise.
    pub source: String,
    /// How many there are: the number of layers if the key holds `{}`, else 1.
    pub rounds: u32,
    /// The parameter's type in the program.
    pub ty: TensorType,
    /// How the checkpoint stores it.
    pub stored: Stored,
    /// What to put in its place where there is no checkpoint.
    pub init: Init,
}

/// How a checkpoint stores a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// As real numbers of the parameter's element type; or of another float type, all of whose values that one holds.
    Float,
    /// As ternary codes in bytes.
    Ternary(TernaryLayout),
}

/// What a parameter without a checkpoint is filled with, so that activations neither vanish nor explode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// -1, 0 and 1, equally likely.
    Ternary,
    /// All elements 1.
    Ones,
    /// All elements 0.
    Zeros,
    /// Normally distributed around 0.
    Normal {
        /// The standard deviation.
        std: f32,
    },
    /// All elements the same.
    Constant(f32),
}

impl ParamBinding {
    /// The key in one layer.
    pub fn key_of(&self, round: u32) -> String {
        self.key.replace("{}", &round.to_string())
    }

    /// The tensor's name in one layer.
    pub fn source_of(&self, round: u32) -> String {
        self.source.replace("{}", &round.to_string())
    }

    /// The dimensions of the parameter.
    pub fn dims(&self) -> Vec<u64> {
        self.ty.shape.dims().iter().filter_map(Dim::as_const).collect()
    }

    /// The number of elements in all layers together.
    pub fn elements(&self) -> u64 {
        self.dims().iter().product::<u64>() * u64::from(self.rounds)
    }

    /// The element type that the checkpoint's tensor should have, as safetensors calls it.
    pub fn stored_dtype(&self) -> &'static str {
        match (self.stored, self.ty.dtype) {
            (Stored::Ternary(_), _) => "U8",
            (Stored::Float, DType::BF16) => "BF16",
            (Stored::Float, DType::F16) => "F16",
            (Stored::Float, _) => "F32",
        }
    }

    /// The shape that the checkpoint's tensor should have; 1-sized axes may be missing or more.
    pub fn stored_shape(&self) -> Vec<u64> {
        let dims = self.dims();
        match (self.stored, &dims[..]) {
            (Stored::Ternary(TernaryLayout::Blocks4), &[rows, cols]) => vec![rows.div_ceil(4), cols],
            (Stored::Ternary(TernaryLayout::RowMajor4), &[rows, cols]) => vec![rows, cols.div_ceil(4)],
            (Stored::Ternary(layout), &[rows, cols]) => vec![layout.bytes(rows, cols)],
            _ => dims,
        }
    }

    /// Whether a tensor of this element type and shape can be read as the parameter.
    pub fn accepts(&self, dtype: &str, shape: &[u64]) -> bool {
        let wide = |shape: &[u64]| shape.iter().copied().filter(|&dim| dim != 1).collect::<Vec<_>>();
        let widens = self.stored == Stored::Float && self.ty.dtype == DType::F32 && matches!(dtype, "F16" | "BF16");
        (dtype == self.stored_dtype() || widens) && wide(shape) == wide(&self.stored_shape())
    }
}
