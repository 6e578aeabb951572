//! Which tensor of a checkpoint is which parameter of a model, how it is stored there, and what a random one is like.

use ir::packing::TernaryLayout;
use ir::{DType, TensorType};

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

/// Whose names a checkpoint uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// Our keys.
    Own,
    /// Those of `BitNetForCausalLM` in Hugging Face's transformers.
    HuggingFace,
    /// Those of the original Tritter.
    Tritter,
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
        self.ty.shape.dims().iter().filter_map(ir::Dim::as_const).collect()
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

impl Naming {
    /// The layout in which checkpoints of these names pack ternary weights.
    pub fn ternary_layout(self) -> TernaryLayout {
        match self {
            Naming::HuggingFace => TernaryLayout::Blocks4,
            Naming::Own | Naming::Tritter => TernaryLayout::RowMajor4,
        }
    }

    /// The name of the tensor that holds the parameter `key`. A key that such checkpoints have no name for keeps its own.
    pub fn source(self, key: &str, packed: bool) -> String {
        let (layer, rest) = match key.strip_prefix("layers.{}.") {
            Some(rest) => ("layers.{}.", rest),
            None => ("", key),
        };
        let Some((module, leaf)) = rest.rsplit_once('.') else { return key.to_owned() };
        let projection = |module: &str| {
            let (block, name) = module.split_once('.').unwrap_or(("", module));
            matches!(name, "q" | "k" | "v" | "o" | "gate" | "up" | "down").then(|| (block.to_owned(), name.to_owned()))
        };
        match self {
            Naming::Own => key.to_owned(),
            Naming::HuggingFace => {
                let module = match (module, projection(module)) {
                    ("head", _) => return format!("lm_head.{leaf}"),
                    (_, Some((block, name))) if block == "attention" => format!("self_attn.{name}_proj"),
                    (_, Some((_, name))) => format!("mlp.{name}_proj"),
                    ("embedding", _) => "embed_tokens".to_owned(),
                    ("attention.norm", _) => "input_layernorm".to_owned(),
                    ("attention.sub_norm", _) => "self_attn.attn_sub_norm".to_owned(),
                    ("ffn.norm", _) => "post_attention_layernorm".to_owned(),
                    ("ffn.sub_norm", _) => "mlp.ffn_sub_norm".to_owned(),
                    (module, None) => module.to_owned(),
                };
                let leaf = if leaf == "scale" { "weight_scale" } else { leaf };
                format!("model.{layer}{module}.{leaf}")
            }
            Naming::Tritter => {
                let is_projection = projection(module).is_some() || module == "head";
                let module = match (module, projection(module)) {
                    ("head", _) => "lm_head".to_owned(),
                    (_, Some((block, name))) if block == "attention" => format!("attention.{name}_proj"),
                    (_, Some((_, name))) => format!("mlp.{name}_proj"),
                    ("embedding", _) => "embed_tokens.embedding".to_owned(),
                    ("attention.norm", _) => "input_layernorm".to_owned(),
                    ("ffn.post_norm", _) => "post_mlp_layernorm".to_owned(),
                    (module, None) => module.to_owned(),
                };
                let leaf = if packed && is_projection && leaf == "weight" { "packed_weight" } else { leaf };
                format!("{layer}{module}.{leaf}")
            }
        }
    }
}
