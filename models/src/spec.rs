//! What a model spec says: the dimensions of a decoder and the blocks that it is composed of, as data.
//!
//! A spec is a RON file; `specs/` holds the shipped ones. [`read`] reports every wrong field of a file at once, each with its place, and
//! [`Spec::problems`] is the same judgement of a spec made in memory.
//!
//! ```ron
//! (
//!     name: "example",
//!     vocab: 320, hidden: 64, layers: 2, context: 512,
//!     rope_theta: 500000.0,
//!     embedding: bf16,
//!     norm: rms(eps: 1e-5, dtype: bf16),
//!     linear: (weights: packed, scale: multiplies(bf16), activations: int8),
//!     blocks: [
//!         attention(heads: 4, kv_heads: 2, norms: [before, inside]),
//!         feed_forward(width: 160, activation: relu2, gated: true, norms: [before, inside]),
//!     ],
//!     final_norm: true,
//!     head: tied,
//!     tokenizer: bytes,
//! )
//! ```

mod check;
mod read;
mod syntax;

use serde::{Deserialize, Serialize};

pub use check::{Problem, SpecCause};
pub use read::read;

use ir::DType;

/// A decoder: token embedding, `layers` times the same blocks, norm, head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// What the model is called.
    pub name: String,
    /// The number of token ids, and so of logits.
    pub vocab: u32,
    /// The width of the residual stream.
    pub hidden: u32,
    /// How often the blocks are repeated, each time with weights of their own.
    pub layers: u32,
    /// The longest sequence, in tokens.
    pub context: u32,
    /// The base of the rotary embedding's wavelengths.
    pub rope_theta: f64,
    /// How the token embedding is stored.
    pub embedding: Float,
    /// The kind of all norms; where they stand is said by the blocks.
    pub norm: Norm,
    /// The kind of all linear projections but the head.
    pub linear: Linear,
    /// The blocks of one layer, each added to the residual stream.
    pub blocks: Vec<Block>,
    /// Whether a norm stands before the head.
    pub final_norm: bool,
    /// What turns the last hidden state into logits.
    pub head: Head,
    /// The format of the key-value cache where the one who compiles does not choose.
    #[serde(default)]
    pub kv: KvFormat,
    /// How text becomes ids.
    pub tokenizer: TokenizerKind,
}

/// The kind of the norms. A layer norm has a bias, an RMS norm has none.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Norm {
    /// `x / sqrt(mean(x^2) + eps) * w`.
    Rms {
        /// Added to the mean square.
        eps: f64,
        /// How the weights are stored.
        dtype: Float,
    },
    /// `(x - mean(x)) / sqrt(variance(x) + eps) * w + b`.
    Layer {
        /// Added to the variance.
        eps: f64,
        /// How weights and biases are stored.
        dtype: Float,
    },
}

/// A ternary projection: `y = (W * scale) x + bias`, with `W` in {-1, 0, 1}.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    /// Where the ternary values come from.
    pub weights: Weights,
    /// Where their scale comes from.
    pub scale: Scale,
    /// In what form the projection meets its input.
    pub activations: Activations,
    /// Whether biases are multiplied by the scale too: `y = scale * (W x + bias)`, as Hugging Face's `autobitlinear` does.
    #[serde(default)]
    pub scaled_biases: bool,
}

/// Where ternary values come from. What is computed from real weights is computed once, when they are packed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// They are stored.
    Packed,
    /// From real weights by [`ir::op::ternary::TernaryRule::AbsmeanTensor`].
    Absmean(Float),
    /// From real weights by [`ir::op::ternary::TernaryRule::ThresholdRow`].
    ThresholdRow(Float),
}

/// Where the scale of ternary values comes from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// One stored number, by which the product is multiplied.
    Multiplies(Float),
    /// One stored number, by which the product is divided.
    Divides(Float),
    /// One stored number for each output, by which it is multiplied.
    Row(Float),
    /// The mean magnitude of the real weights: goes with [`Weights::Absmean`], and with nothing else.
    Derived,
}

/// One block: attention or feed-forward. Its result is added to its input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// Tokens look at each other.
    Attention(Attention),
    /// Each token by itself.
    FeedForward(FeedForward),
}

/// Grouped-query attention with a rotary embedding and a key-value cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// The number of query heads.
    pub heads: u32,
    /// The number of key-value heads, which groups of query heads share.
    pub kv_heads: u32,
    /// The width of a head; `hidden / heads` where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<u32>,
    /// Whether queries and keys are normalised over the head dimension, before they are rotated; one set of weights for all heads.
    #[serde(default)]
    pub qk_norm: bool,
    /// How many keys back a query sees, itself included; all where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
    /// With a window: so many first keys stay visible.
    #[serde(default)]
    pub sinks: u32,
    /// How the biases of the four projections are stored, if they have any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub biases: Option<Float>,
    /// Where norms stand.
    #[serde(default)]
    pub norms: Vec<Place>,
}

/// `down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))` without a gate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeedForward {
    /// The inner width.
    pub width: u32,
    /// What bends.
    pub activation: Activation,
    /// Whether there is a gate.
    pub gated: bool,
    /// How the biases of the projections are stored, if they have any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub biases: Option<Float>,
    /// Where norms stand.
    #[serde(default)]
    pub norms: Vec<Place>,
}

/// What turns the last hidden state into logits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// The token embedding, once more.
    Tied,
    /// A matrix of its own.
    Untied(Float),
    /// A ternary projection, of the kind of the others but without a bias.
    Ternary,
}

/// A type whose values are names in a spec.
pub(crate) trait Choice: Copy + Sized + 'static {
    /// All values with their names.
    const ALL: &'static [(&'static str, Self)];
}

macro_rules! choices {
    ($($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal,)* })*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
            pub enum $name {
                $($(#[$variant_meta])* #[serde(rename = $text)] $variant,)*
            }

            impl Choice for $name {
                const ALL: &'static [(&'static str, Self)] = &[$(($text, Self::$variant)),*];
            }

            impl $name {
                /// The name in specs.
                pub fn name(self) -> &'static str {
                    match self { $(Self::$variant => $text,)* }
                }
            }
        )*
    };
}

choices! {
    /// How real numbers are stored.
    Float {
        /// Single precision.
        F32 = "f32",
        /// Half precision.
        F16 = "f16",
        /// The upper half of single precision.
        Bf16 = "bf16",
    }
    /// In what form a projection meets its input.
    Activations {
        /// Quantised token by token to int8, with one scale each.
        Int8 = "int8",
        /// As it is.
        F32 = "f32",
    }
    /// What bends in a feed-forward block.
    Activation {
        /// `max(x, 0)^2`.
        Relu2 = "relu2",
        /// `x / (1 + e^-x)`.
        Silu = "silu",
        /// `max(x, 0)`.
        Relu = "relu",
    }
    /// Where a block has a norm.
    Place {
        /// Of the residual stream, before the block.
        Before = "before",
        /// Inside the block, before its last projection.
        Inside = "inside",
        /// Of the residual stream, after the block was added.
        After = "after",
    }
    /// In what format keys and values are cached.
    #[derive(Default)]
    KvFormat {
        /// Both in single precision.
        #[default]
        F32 = "f32",
        /// Both rounded to the upper half of single precision.
        Bf16 = "bf16",
        /// Both in 4 bits, with a scale and a minimum for each head of each token.
        Int4 = "int4",
        /// Keys in 8 bits, values in 4.
        K8v4 = "k8v4",
    }
    /// How text becomes ids.
    TokenizerKind {
        /// Byte `b` is id `b + 8`; ids below 8 have special meanings.
        Bytes = "bytes",
        /// Byte pairs; the table is a `tokenizer.json` that comes with the weights.
        Bpe = "bpe",
        /// Not at all: the model takes ids.
        None = "none",
    }
}

impl Float {
    /// The element type.
    pub fn dtype(self) -> DType {
        match self {
            Float::F32 => DType::F32,
            Float::F16 => DType::F16,
            Float::Bf16 => DType::BF16,
        }
    }
}

impl KvFormat {
    /// The element types of the caches of keys and of values.
    pub fn dtypes(self) -> (DType, DType) {
        match self {
            KvFormat::F32 => (DType::F32, DType::F32),
            KvFormat::Bf16 => (DType::BF16, DType::BF16),
            KvFormat::Int4 => (DType::Q4, DType::Q4),
            KvFormat::K8v4 => (DType::Q8, DType::Q4),
        }
    }
}

impl std::str::FromStr for KvFormat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().find(|(name, _)| *name == text).map(|(_, format)| *format).ok_or(())
    }
}

impl Attention {
    /// The width of a head in a model of this width.
    pub fn head_dim(&self, hidden: u32) -> u32 {
        self.head_dim.unwrap_or_else(|| hidden.checked_div(self.heads).unwrap_or(0))
    }
}

impl Block {
    /// Where norms stand.
    pub fn norms(&self) -> &[Place] {
        match self {
            Block::Attention(block) => &block.norms,
            Block::FeedForward(block) => &block.norms,
        }
    }
}

/// What a spec file may do beyond plain RON: an optional value needs no `Some`, and `attention(heads: 4)` no second parentheses.
pub(crate) fn ron_options() -> ron::Options {
    use ron::extensions::Extensions;
    ron::Options::default().with_default_extension(Extensions::IMPLICIT_SOME | Extensions::UNWRAP_VARIANT_NEWTYPES)
}

impl Spec {
    /// The same model with real weights where ternary ones are stored packed, for training: they are made ternary by the mean magnitude of their row
    /// where each row has a scale of its own, and by that of the matrix otherwise.
    #[must_use]
    pub fn trainable(&self) -> Self {
        let linear = match (self.linear.weights, self.linear.scale) {
            (Weights::Packed, Scale::Row(_)) => Linear { weights: Weights::ThresholdRow(Float::F32), ..self.linear },
            (Weights::Packed, _) => {
                Linear { weights: Weights::Absmean(Float::F32), scale: Scale::Derived, ..self.linear }
            }
            _ => self.linear,
        };
        Self { linear, ..self.clone() }
    }

    /// The spec as a file that [`read`] reads back.
    ///
    /// # Panics
    ///
    /// Never: a spec holds nothing that RON has no words for.
    pub fn to_ron(&self) -> String {
        let pretty = ron::ser::PrettyConfig::new().depth_limit(3).new_line("\n");
        let mut text = ron_options().to_string_pretty(self, pretty).expect("a spec is plain data");
        text.push('\n');
        text
    }
}
