//! Which specs make no sense: every rule that a decoder's dimensions and choices must keep.

use std::fmt;

use super::{Attention, Block, FeedForward, Norm, Scale, Spec, TokenizerKind, Weights};

/// What can be wrong with a spec.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SpecCause {
    /// The text breaks off or goes on where it should not.
    #[error("expected {expected}, found {found}")]
    Unexpected {
        /// What could stand here.
        expected: &'static str,
        /// What does.
        found: String,
    },
    /// A text, comment or bracket is never closed.
    #[error("this {what} is never closed")]
    Unclosed {
        /// What is open.
        what: &'static str,
    },
    /// Brackets within brackets within brackets.
    #[error("brackets are nested deeper than {max}")]
    TooDeep {
        /// How deep they may be.
        max: u32,
    },
    /// Something that starts as a number but is none.
    #[error("`{found}` is not a number")]
    NotANumber {
        /// What stands there.
        found: String,
    },
    /// A backslash in a text that means nothing.
    #[error("this is no escape: \\n, \\t, \\r, \\0, \\\\, \\\" and \\u{{..}} are")]
    Escape,
    /// A field that does not exist.
    #[error("{of} has no field `{field}`, only {}", list(known))]
    UnknownField {
        /// Its name.
        field: String,
        /// What it would be a field of.
        of: &'static str,
        /// The fields there are.
        known: &'static [&'static str],
    },
    /// A field that must be there is not.
    #[error("{of} needs the field `{field}`")]
    MissingField {
        /// Its name.
        field: &'static str,
        /// What it is a field of.
        of: &'static str,
    },
    /// A field is given twice.
    #[error("`{field}` is given twice")]
    DuplicateField {
        /// Its name.
        field: String,
    },
    /// A value of the wrong kind.
    #[error("`{field}` must be {expected}, found {found}")]
    Kind {
        /// The field.
        field: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A name that means nothing here.
    #[error("`{field}` is one of {}, found {found}", list(known))]
    UnknownName {
        /// The field.
        field: String,
        /// The names there are.
        known: Vec<&'static str>,
        /// What stands there.
        found: String,
    },
    /// A number outside its bounds.
    #[error("`{field}` must be between {min} and {max}, found {found}")]
    Range {
        /// The field.
        field: &'static str,
        /// The smallest that makes sense.
        min: u64,
        /// The largest that makes sense.
        max: u64,
        /// What it is.
        found: u64,
    },
    /// A real number that makes no sense where it stands.
    #[error("`{field}` must be {expected}, found {found}")]
    Real {
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: f64,
    },
    /// A number that must divide another does not.
    #[error("`{whole}` is {whole_value}, which `{part}` ({part_value}) does not divide")]
    Indivisible {
        /// What is to be divided.
        whole: &'static str,
        /// Its value.
        whole_value: u64,
        /// What should divide it.
        part: &'static str,
        /// Its value.
        part_value: u64,
    },
    /// A head whose halves cannot be rotated against each other.
    #[error("the head dimension must be even, for the rotary embedding, found {0}")]
    OddHeadDim(u32),
    /// Attention sinks without a window.
    #[error("`sinks` means nothing without `window`")]
    SinksWithoutWindow,
    /// A list that must not be empty is.
    #[error("`{0}` is empty")]
    Empty(&'static str),
    /// A norm stands twice in one place.
    #[error("`{0}` stands twice in `norms`")]
    DuplicateNorm(&'static str),
    /// Weights and scale that do not go together.
    #[error("weights that are {weights} cannot have a scale that is {scale}: {reason}")]
    ScaleOfWeights {
        /// The weights.
        weights: &'static str,
        /// The scale.
        scale: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// More parameters than any machine holds: most likely a slip.
    #[error("the model would have {0} parameters, more than the 2^50 that any machine could hold")]
    TooLarge(u128),
}

/// One rule that a spec breaks, and the fields that it is about, the one to blame first: `blocks[0].kv_heads`.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Paths of the fields; never empty.
    pub fields: Vec<String>,
    /// What is wrong.
    pub cause: SpecCause,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fields.first() {
            Some(field) => write!(f, "{field}: {}", self.cause),
            None => write!(f, "{}", self.cause),
        }
    }
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The largest contracted dimension: sums of so many products of int8 codes are exact in i32.
const MAX_WIDTH: u64 = 1 << 24;
/// The longest context: positions are exact in f32 so far.
const MAX_CONTEXT: u64 = 1 << 24;
/// The largest head that the attention kernels hold in registers and on the stack.
const MAX_HEAD_DIM: u64 = 256;
/// Layers and heads beyond this are slips, not models.
const MAX_COUNT: u64 = 1 << 16;
/// Ids are i32.
const MAX_VOCAB: u64 = i32::MAX as u64;
/// Byte `b` is id `b + 8`.
const BYTES_VOCAB: u64 = 264;
const MAX_PARAMETERS: u128 = 1 << 50;

impl Spec {
    /// Every rule that the spec breaks; empty if it makes sense.
    pub fn problems(&self) -> Vec<Problem> {
        let mut check = Check { problems: Vec::new() };
        check.spec(self);
        check.problems
    }
}

struct Check {
    problems: Vec<Problem>,
}

impl Check {
    fn report(&mut self, fields: &[&str], cause: SpecCause) {
        self.problems.push(Problem { fields: fields.iter().map(|&field| field.to_owned()).collect(), cause });
    }

    fn range(&mut self, path: &str, field: &'static str, found: u32, min: u64, max: u64) {
        let found = u64::from(found);
        if found < min || max < found {
            self.report(&[path], SpecCause::Range { field, min, max, found });
        }
    }

    fn real(&mut self, path: &str, field: &'static str, found: f64, max: f64, expected: &'static str) {
        let fits = 0.0 < found && found <= max;
        if !fits {
            self.report(&[path], SpecCause::Real { field, expected, found });
        }
    }

    fn spec(&mut self, spec: &Spec) {
        if spec.name.trim().is_empty() {
            self.report(&["name"], SpecCause::Empty("name"));
        }
        self.range("vocab", "vocab", spec.vocab, 1, MAX_VOCAB);
        if spec.tokenizer == TokenizerKind::Bytes && 0 < spec.vocab && u64::from(spec.vocab) < BYTES_VOCAB {
            let found = u64::from(spec.vocab);
            let cause = SpecCause::Range { field: "vocab", min: BYTES_VOCAB, max: MAX_VOCAB, found };
            self.report(&["vocab", "tokenizer"], cause);
        }
        self.range("hidden", "hidden", spec.hidden, 1, MAX_WIDTH);
        self.range("layers", "layers", spec.layers, 1, MAX_COUNT);
        self.range("context", "context", spec.context, 1, MAX_CONTEXT);
        self.real("rope_theta", "rope_theta", spec.rope_theta, 1e30, "a positive number of at most 1e30");
        let (Norm::Rms { eps, .. } | Norm::Layer { eps, .. }) = spec.norm;
        self.real("norm.eps", "eps", eps, 1.0, "a positive number of at most 1");
        self.linear(spec);
        if spec.blocks.is_empty() {
            self.report(&["blocks"], SpecCause::Empty("blocks"));
        }
        for (position, block) in spec.blocks.iter().enumerate() {
            let path = format!("blocks[{position}]");
            match block {
                Block::Attention(block) => self.attention(spec, &path, block),
                Block::FeedForward(block) => self.feed_forward(&path, block),
            }
            let norms = block.norms();
            for (position, place) in norms.iter().enumerate() {
                if norms[..position].contains(place) {
                    self.report(&[&format!("{path}.norms[{position}]")], SpecCause::DuplicateNorm(place.name()));
                }
            }
        }
        let parameters = parameters_at_least(spec);
        if self.problems.is_empty() && MAX_PARAMETERS < parameters {
            self.report(&["layers", "hidden", "vocab", "blocks"], SpecCause::TooLarge(parameters));
        }
    }

    fn linear(&mut self, spec: &Spec) {
        let weights = match spec.linear.weights {
            Weights::Packed => "packed",
            Weights::Absmean(_) => "absmean",
            Weights::ThresholdRow(_) => "threshold_row",
        };
        let scale = match spec.linear.scale {
            Scale::Multiplies(_) => "multiplies",
            Scale::Divides(_) => "divides",
            Scale::Row(_) => "row",
            Scale::Derived => "derived",
        };
        let reason = match (spec.linear.weights, spec.linear.scale) {
            (Weights::Absmean(_), Scale::Derived) => return,
            (Weights::Absmean(_), _) => "their scale follows from them, so it is `derived`",
            (_, Scale::Derived) => "only `absmean` weights say what their scale is",
            _ => return,
        };
        let cause = SpecCause::ScaleOfWeights { weights, scale, reason };
        self.report(&["linear.scale", "linear.weights"], cause);
    }

    fn attention(&mut self, spec: &Spec, path: &str, block: &Attention) {
        let at = |field: &str| format!("{path}.{field}");
        let (heads, kv_heads) = (at("heads"), at("kv_heads"));
        self.range(&heads, "heads", block.heads, 1, MAX_COUNT);
        self.range(&kv_heads, "kv_heads", block.kv_heads, 1, MAX_COUNT);
        if 0 < block.kv_heads && !block.heads.is_multiple_of(block.kv_heads) {
            let cause = SpecCause::Indivisible {
                whole: "heads",
                whole_value: block.heads.into(),
                part: "kv_heads",
                part_value: block.kv_heads.into(),
            };
            self.report(&[&kv_heads, &heads], cause);
        }
        let head_dim = match block.head_dim {
            Some(head_dim) => Some(head_dim),
            None if block.heads == 0 || spec.hidden == 0 => None,
            None if !spec.hidden.is_multiple_of(block.heads) => {
                let cause = SpecCause::Indivisible {
                    whole: "hidden",
                    whole_value: spec.hidden.into(),
                    part: "heads",
                    part_value: block.heads.into(),
                };
                self.report(&[&heads, "hidden"], cause);
                None
            }
            None => Some(spec.hidden / block.heads),
        };
        if let Some(head_dim) = head_dim {
            let path = at("head_dim");
            let fields: &[&str] = if block.head_dim.is_some() { &[&path] } else { &[&heads, "hidden"] };
            let found = u64::from(head_dim);
            if found == 0 || MAX_HEAD_DIM < found {
                self.report(fields, SpecCause::Range { field: "head_dim", min: 2, max: MAX_HEAD_DIM, found });
            } else if head_dim % 2 != 0 {
                self.report(fields, SpecCause::OddHeadDim(head_dim));
            }
        }
        let context = u64::from(spec.context).max(1);
        let (window_path, sinks_path) = (at("window"), at("sinks"));
        if let Some(window) = block.window {
            let found = u64::from(window);
            if found == 0 || context < found {
                let cause = SpecCause::Range { field: "window", min: 1, max: context, found };
                self.report(&[&window_path, "context"], cause);
            }
            let found = u64::from(block.sinks);
            if context <= found {
                let cause = SpecCause::Range { field: "sinks", min: 0, max: context - 1, found };
                self.report(&[&sinks_path, "context"], cause);
            }
        } else if 0 < block.sinks {
            self.report(&[&sinks_path, &window_path], SpecCause::SinksWithoutWindow);
        }
    }

    fn feed_forward(&mut self, path: &str, block: &FeedForward) {
        self.range(&format!("{path}.width"), "width", block.width, 1, MAX_WIDTH);
    }
}

/// The size of all matrices, which is nearly that of the model. Sums of products of three numbers of 32 bits fit in 128 bits.
fn parameters_at_least(spec: &Spec) -> u128 {
    let hidden = u128::from(spec.hidden);
    let layer: u128 = spec
        .blocks
        .iter()
        .map(|block| match block {
            Block::Attention(block) => {
                let heads = 2 * (u128::from(block.heads) + u128::from(block.kv_heads));
                hidden * heads * u128::from(block.head_dim(spec.hidden))
            }
            Block::FeedForward(block) => hidden * u128::from(block.width) * if block.gated { 3 } else { 2 },
        })
        .sum();
    hidden * u128::from(spec.vocab) + u128::from(spec.layers) * layer
}
