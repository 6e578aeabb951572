//! Why a model could not be declared: one variant for each cause, lists where there are several.

use std::fmt;

use ir::BuildError;
use ir::verify::VerifyErrors;

use crate::spec::{Problem, SpecCause};

/// Why a model could not be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// The spec breaks rules; all of them are listed. Only a spec made in memory gets so far: a file's are reported by [`crate::spec::read`].
    #[error("the spec makes no sense:\n{}", lines(.0))]
    Spec(Vec<Problem>),
    /// The options do not fit the spec; all that do not are listed.
    #[error("{}", lines(.0))]
    Options(Vec<OptionError>),
    /// An op does not accept what the spec feeds it. Always a bug: the rules of specs are there to exclude it.
    #[error("internal error: a spec without a problem gives a graph with one: {0}")]
    Build(Box<BuildError>),
    /// The program breaks an invariant. Always a bug.
    #[error("internal error: the program is not well formed:\n{0}")]
    Verify(#[from] VerifyErrors),
}

impl From<BuildError> for ModelError {
    fn from(error: BuildError) -> Self {
        ModelError::Build(Box::new(error))
    }
}

/// Why an option does not fit a spec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A context of nothing, or longer than the model's.
    #[error("the context must be between 1 and the model's {max}, found {found}")]
    Context {
        /// The longest.
        max: u32,
        /// What was asked for.
        found: u32,
    },
    /// A 4-bit head of a width that does not fall into groups.
    #[error("a 4-bit head needs a hidden size that is a multiple of {group}, found {hidden}; use int8")]
    HeadGroup {
        /// The columns of a group.
        group: u64,
        /// The hidden size.
        hidden: u32,
    },
    /// No sequences, or more than ids of sequences.
    #[error("the number of sequences must be between 1 and {max}, found {found}")]
    Sequences {
        /// The most.
        max: u32,
        /// What was asked for.
        found: u32,
    },
    /// A call without logits, or with more rows of them than indices of rows.
    #[error("the rows of logits must be between 1 and {max}, found {found}")]
    Logits {
        /// The most.
        max: u32,
        /// What was asked for.
        found: u32,
    },
    /// A call of no tokens, or of more than indices of rows.
    #[error("the chunk must be between 1 and {max} tokens, found {found}")]
    Chunk {
        /// The most.
        max: u32,
        /// What was asked for.
        found: u32,
    },
}

/// One thing that is wrong with a spec's file, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct SpecError {
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub col: u32,
    /// What is wrong.
    pub cause: SpecCause,
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.col, self.cause)
    }
}

/// Everything that is wrong with a spec's file, in the order of the text. Never empty.
#[derive(Clone, Debug, PartialEq)]
pub struct SpecErrors(pub Vec<SpecError>);

/// Why a checkpoint could not be imported.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ImportError {
    /// The configuration is not JSON, or no JSON object.
    #[error("config.json: {0}")]
    Json(String),
    /// Neither the configuration nor the names of the tensors are those of a family that can be imported.
    #[error(
        "this is the checkpoint of no known family: config.json has model_type {model_type}, and the tensors are named {example}"
    )]
    UnknownFamily {
        /// `model_type` of the configuration.
        model_type: String,
        /// The first tensor's name.
        example: String,
    },
    /// A key of the configuration is missing.
    #[error("config.json: there is no `{key}`")]
    MissingKey {
        /// The key.
        key: &'static str,
    },
    /// A key of the configuration has the wrong kind of value.
    #[error("config.json: `{key}` must be {expected}, found {found}")]
    Kind {
        /// The key.
        key: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// The configuration asks for something that no model here does.
    #[error("config.json: `{key}` is {found}, which is not supported: {reason}")]
    Unsupported {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What is supported, or why it is not.
        reason: &'static str,
    },
    /// The dimensions of the configuration make no sense together.
    #[error("config.json: {0}")]
    Problem(Problem),
    /// A tensor that the model needs is not there.
    #[error("there is no tensor `{source_name}` ({dtype} {shape:?}), the model's `{key}`")]
    MissingTensor {
        /// Our name of the parameter.
        key: String,
        /// The name that the checkpoint should have it under.
        source_name: String,
        /// The element type it should have, as safetensors calls it.
        dtype: &'static str,
        /// The shape it should have.
        shape: Vec<u64>,
    },
    /// A tensor has another element type or shape than the model needs.
    #[error(
        "tensor `{source_name}`, the model's `{key}`, must be {expected_dtype} {expected_shape:?}, found {dtype} {shape:?}"
    )]
    Misshapen {
        /// Our name of the parameter.
        key: String,
        /// The checkpoint's name.
        source_name: String,
        /// The element type it should have.
        expected_dtype: &'static str,
        /// The shape it should have.
        expected_shape: Vec<u64>,
        /// The element type it has.
        dtype: String,
        /// The shape it has.
        shape: Vec<u64>,
    },
    /// Two tensors have one name, in two files of a sharded checkpoint.
    #[error("there are two tensors `{0}`")]
    DuplicateTensor(String),
    /// The configuration and the tensors agree, and still no model could be built of them. Always a bug.
    #[error("{0}")]
    Model(Box<ModelError>),
}

/// Everything that is wrong with a checkpoint. Never empty.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportErrors(pub Vec<ImportError>);

fn lines<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&lines(&self.0))
    }
}

impl std::error::Error for SpecErrors {}

impl fmt::Display for ImportErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&lines(&self.0))
    }
}

impl std::error::Error for ImportErrors {}
