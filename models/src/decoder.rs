//! From a spec to a program: embedding, repeated layers, norm, head.
//!
//! The entry of every decoder takes, in this order:
//!
//! | input | type | meaning |
//! |---|---|---|
//! | `ids` | i32 `[n]` | the tokens of this call, of any mixture of sequences |
//! | `seq` | i32 `[n]` | the sequence of each |
//! | `pos` | i32 `[n]` | its position there |
//! | `span` | i32 `[n, 2]` | what it sees: see [`ir::mask::Span`] |
//! | `rows` | i32 `[m]` | the tokens of this call whose logits are wanted |
//! | `settings` | f32 `[m, 4]` | how to choose what follows each of them: see [`ir::op::sample::Sample`] |
//! | `draws` | i32 `[m, 2]` | the random bits for that |
//!
//! and gives `logits`, f32 `[m, vocab]`, and `next`, i32 `[m]`: the chosen ids. `n` is at most [`BuildOptions::chunk`], `m` at most [`BuildOptions::logits`].

use std::collections::BTreeMap;

use ir::graph::SymbolDecl;
use ir::op::control::Repeat;
use ir::op::elementwise::{Cast, Cos, Mul, Sin};
use ir::op::gather::Gather;
use ir::op::matmul::Matmul;
use ir::op::movement::Reshape;
use ir::op::sample::Sample;
use ir::op::ternary::{Dequantize, Quantize, QuantizeGroups};
use ir::param::{Init, ParamBinding};
use ir::verify::{Verified, verify};
use ir::{BuildError, DType, Dim, Graph, Program, Shape, Symbol, TensorType, ValueId};

use crate::adapter::Adapters;
use crate::block::{Cache, Scope, Tokens, attention, feed_forward, norm, ternary_linear};
use crate::error::{ModelError, OptionError};
use crate::spec::{Block, Head, KvFormat, Spec};
use crate::weights::Naming;

/// What a program is built for, beyond what its spec says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildOptions {
    /// The longest sequence, in tokens; at most the spec's.
    pub context: u32,
    /// How many sequences are held at a time.
    pub sequences: u32,
    /// The most tokens of one call.
    pub chunk: u32,
    /// The most rows of logits of one call; each takes the memory of a whole vocabulary.
    pub logits: u32,
    /// The format of the key-value cache.
    pub kv: KvFormat,
    /// The format of a dense head's weights.
    pub head: HeadFormat,
    /// Whose names the checkpoint uses.
    pub naming: Naming,
}

/// How the weights of a dense head are stored. A ternary head stays what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadFormat {
    /// As the checkpoint has them.
    #[default]
    Stored,
    /// int8 with a scale for each row, and int8 activations.
    Int8,
    /// 4 bits with a scale and a minimum for each [`HEAD_GROUP`] columns, and int8 activations.
    Int4,
}

/// The columns of a 4-bit head that share a scale. 64 of them take 32 bytes of codes and 8 of numbers: 5 bits a weight.
pub const HEAD_GROUP: u64 = 64;

/// A decoder in the IR, and where its parameters come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Two graphs: the body `layer`, and the entry `decoder`.
    pub program: Verified<Program>,
    /// The program's parameters, each key once: those of the layers first, then those of the entry.
    pub params: Vec<ParamBinding>,
    /// The parameters of adapters, by the names that the PEFT library gives them: they come from a file of their own.
    pub adapters: Vec<ParamBinding>,
}

impl Model {
    /// The number of parameters: weights, scales, biases and norms.
    pub fn parameter_count(&self) -> u64 {
        self.params.iter().map(ParamBinding::elements).sum()
    }
}

/// Builds the program of a spec.
///
/// # Errors
///
/// If the spec makes no sense, or the options do not fit it.
pub fn build(spec: &Spec, options: &BuildOptions) -> Result<Model, ModelError> {
    build_with(spec, options, None)
}

/// As [`build`], with adapters beside projections of the layers.
///
/// # Errors
///
/// As [`build`].
pub fn build_adapted(spec: &Spec, options: &BuildOptions, adapters: &Adapters) -> Result<Model, ModelError> {
    build_with(spec, options, Some(adapters))
}

fn build_with(spec: &Spec, options: &BuildOptions, adapters: Option<&Adapters>) -> Result<Model, ModelError> {
    let problems = spec.problems();
    if !problems.is_empty() {
        return Err(ModelError::Spec(problems));
    }
    check_options(spec, options)?;
    let tables = rotation_tables(spec);
    let (layer, mut params, adapters) = build_layer(spec, options, &tables, adapters)?;
    let (entry, entry_params) = build_entry(spec, options, &tables)?;
    params.extend(entry_params);
    let symbols = [("n", options.chunk), ("m", options.logits)]
        .map(|(name, max)| SymbolDecl { symbol: Symbol::new(name), max: u64::from(max) });
    let program = Program { name: spec.name.clone(), symbols: symbols.to_vec(), graphs: vec![layer, entry] };
    Ok(Model { program: verify(program)?, params, adapters })
}

fn check_options(spec: &Spec, options: &BuildOptions) -> Result<(), ModelError> {
    // Rows and sequences are counted in i32, and so are tokens.
    const MAX: u32 = i32::MAX as u32;
    let mut errors = Vec::new();
    if options.context == 0 || spec.context < options.context {
        errors.push(OptionError::Context { max: spec.context, found: options.context });
    }
    if options.sequences == 0 || MAX < options.sequences {
        errors.push(OptionError::Sequences { max: MAX, found: options.sequences });
    }
    if options.chunk == 0 || MAX < options.chunk {
        errors.push(OptionError::Chunk { max: MAX, found: options.chunk });
    }
    if options.logits == 0 || MAX < options.logits {
        errors.push(OptionError::Logits { max: MAX, found: options.logits });
    }
    if options.head == HeadFormat::Int4 && u64::from(spec.hidden) % HEAD_GROUP != 0 {
        errors.push(OptionError::HeadGroup { group: HEAD_GROUP, hidden: spec.hidden });
    }
    if errors.is_empty() { Ok(()) } else { Err(ModelError::Options(errors)) }
}

/// The head dimensions that need rotation tables, and how the tables are called: `""` for the first, then `"_2"` and so on.
fn rotation_tables(spec: &Spec) -> Vec<(u32, String)> {
    let mut tables: Vec<(u32, String)> = Vec::new();
    for block in &spec.blocks {
        if let Block::Attention(block) = block {
            let head_dim = block.head_dim(spec.hidden);
            if !tables.iter().any(|(known, _)| *known == head_dim) {
                tables.push((head_dim, suffix(tables.len())));
            }
        }
    }
    tables
}

/// What tells the things of one kind apart: nothing for the first.
fn suffix(position: usize) -> String {
    if position == 0 { String::new() } else { format!("_{}", position + 1) }
}

fn token_type(dtype: DType, width: &[u64]) -> TensorType {
    let dims = [Dim::sym("n")].into_iter().chain(width.iter().map(|&dim| Dim::Const(dim)));
    TensorType::new(dtype, dims.collect())
}

/// The body of the repeat: one layer's blocks.
fn build_layer(
    spec: &Spec,
    options: &BuildOptions,
    tables: &[(u32, String)],
    adapters: Option<&Adapters>,
) -> Result<(Graph, Vec<ParamBinding>, Vec<ParamBinding>), BuildError> {
    let mut scope = Scope::new("layer", Some(spec.layers), options.naming);
    scope.adapters = adapters.cloned();
    let mut h = scope.b.input("h", token_type(DType::F32, &[spec.hidden.into()]));
    let mut rotations = BTreeMap::new();
    for (head_dim, suffix) in tables {
        let ty = token_type(DType::F32, &[u64::from(head_dim / 2)]);
        let cos = scope.b.input(&format!("cos{suffix}"), ty.clone());
        let sin = scope.b.input(&format!("sin{suffix}"), ty);
        rotations.insert(*head_dim, (cos, sin));
    }
    let seq = scope.b.input("seq", token_type(DType::I32, &[]));
    let pos = scope.b.input("pos", token_type(DType::I32, &[]));
    let span = scope.b.input("span", token_type(DType::I32, &[2]));
    let tokens = Tokens { n: Dim::sym("n"), seq, pos, span, rotations };
    let cache = Cache { sequences: options.sequences, context: options.context, format: options.kv };
    let (mut n_attention, mut n_ffn) = (0, 0);
    for block in &spec.blocks {
        h = match block {
            Block::Attention(block) => {
                let name = format!("attention{}", suffix(n_attention));
                n_attention += 1;
                attention(&mut scope, &name, (block, &spec.linear, spec.norm), h, &tokens, &cache)?
            }
            Block::FeedForward(block) => {
                let name = format!("ffn{}", suffix(n_ffn));
                n_ffn += 1;
                feed_forward(&mut scope, &name, (block, &spec.linear, spec.norm), h)?
            }
        };
    }
    Ok((scope.b.finish(&[h]), scope.params, scope.adapter_params))
}

fn build_entry(
    spec: &Spec,
    options: &BuildOptions,
    tables: &[(u32, String)],
) -> Result<(Graph, Vec<ParamBinding>), BuildError> {
    let mut scope = Scope::new("decoder", None, options.naming);
    let (hidden, vocab) = (u64::from(spec.hidden), u64::from(spec.vocab));
    let ids = scope.b.input("ids", token_type(DType::I32, &[]));
    let seq = scope.b.input("seq", token_type(DType::I32, &[]));
    let pos = scope.b.input("pos", token_type(DType::I32, &[]));
    let span = scope.b.input("span", token_type(DType::I32, &[2]));
    let row_type = |dtype: DType, width: &[u64]| {
        let dims = [Dim::sym("m")].into_iter().chain(width.iter().map(|&dim| Dim::Const(dim)));
        TensorType::new(dtype, dims.collect())
    };
    let rows = scope.b.input("rows", row_type(DType::I32, &[]));
    let settings = scope.b.input("settings", row_type(DType::F32, &[4]));
    let draws = scope.b.input("draws", row_type(DType::I32, &[2]));

    // A tied table also makes the logits, which should start out about as large as 1.
    let std = if spec.head == Head::Tied { (1.0 / hidden as f32).sqrt() } else { 1.0 };
    let table = scope.stored("embedding.weight", &[vocab, hidden], spec.embedding, Init::Normal { std });
    let embedded = scope.b.named("embedding", Gather {}, &[table, ids])?;
    let mut inputs = vec![embedded];
    for (head_dim, suffix) in tables {
        inputs.extend(rotations(&mut scope, spec, pos, *head_dim, suffix)?);
    }
    inputs.extend([seq, pos, span]);
    let repeat = Repeat { body: "layer".into(), count: spec.layers };
    let h = scope.b.named("layers", repeat, &inputs)?;

    // Rows first: the norm and the head then see only the tokens whose logits are wanted.
    let mut last = scope.b.named("last", Gather {}, &[h, rows])?;
    if spec.final_norm {
        last = norm(&mut scope, "norm", spec.norm, last, hidden)?;
    }
    let logits = match spec.head {
        Head::Tied => dense_head(&mut scope, options.head, last, table)?,
        Head::Untied(float) => {
            let init = Init::Normal { std: (1.0 / hidden as f32).sqrt() };
            let weight = scope.stored("head.weight", &[vocab, hidden], float, init);
            dense_head(&mut scope, options.head, last, weight)?
        }
        Head::Ternary => ternary_linear(&mut scope, "head", &spec.linear, None, last, [vocab, hidden])?,
    };
    let next = scope.b.named("next", Sample {}, &[logits, settings, draws])?;
    Ok((scope.b.finish(&[logits, next]), scope.params))
}

/// Logits of rows, with the weights in the format asked for.
fn dense_head(scope: &mut Scope, format: HeadFormat, last: ValueId, weight: ValueId) -> Result<ValueId, BuildError> {
    if format == HeadFormat::Stored {
        return scope.b.named("logits", Matmul {}, &[last, weight]);
    }
    let shape = scope.b.ty(weight).shape.clone();
    let codes = scope.b.named("head.activations", Quantize {}, &[last])?;
    let x = scope.b.op(Dequantize {}, &[codes])?;
    let wide = match scope.b.ty(weight).dtype {
        DType::F32 => weight,
        _ => scope.b.op(Cast { to: DType::F32 }, &[weight])?,
    };
    let w = match format {
        HeadFormat::Int4 => {
            let codes = scope.b.named("head.codes", QuantizeGroups { group: HEAD_GROUP }, &[wide])?;
            let values = scope.b.op(Dequantize {}, &[codes])?;
            scope.b.op(Reshape { shape }, &[values])?
        }
        _ => {
            let codes = scope.b.named("head.codes", Quantize {}, &[wide])?;
            scope.b.op(Dequantize {}, &[codes])?
        }
    };
    scope.b.named("logits", Matmul {}, &[x, w])
}

/// Cosines and sines `[n, d / 2]` of `pos * theta^(-2 i / d)`.
fn rotations(
    scope: &mut Scope,
    spec: &Spec,
    pos: ValueId,
    head_dim: u32,
    suffix: &str,
) -> Result<[ValueId; 2], BuildError> {
    let half = u64::from(head_dim / 2);
    let frequencies = inverse_frequencies(spec.rope_theta, head_dim);
    let ty = TensorType::new(DType::F32, Shape::of(&[half]));
    let frequencies = scope.b.constant(Some(&format!("rope{suffix}.inv_freq")), ty, frequencies);
    let pos = scope.b.op(Cast { to: DType::F32 }, &[pos])?;
    let pos = scope.b.named("rope.pos", Reshape { shape: Shape::new([Dim::sym("n"), Dim::Const(1)]) }, &[pos])?;
    let angles = scope.b.named(&format!("rope{suffix}.angles"), Mul {}, &[pos, frequencies])?;
    let cos = scope.b.named(&format!("rope{suffix}.cos"), Cos {}, &[angles])?;
    let sin = scope.b.named(&format!("rope{suffix}.sin"), Sin {}, &[angles])?;
    Ok([cos, sin])
}

/// `theta^(-2 i / d)` for `i < d / 2`, rounded to f32 after each step as transformers and the original Tritter do.
fn inverse_frequencies(theta: f64, head_dim: u32) -> Vec<f64> {
    let steps = (0..head_dim / 2).map(|i| {
        let exponent = (2 * i) as f32 / head_dim as f32;
        let power = theta.powf(f64::from(exponent)) as f32;
        f64::from(1.0 / power)
    });
    steps.collect()
}
