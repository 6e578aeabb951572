//! What blocks are in the IR: attention, feed-forward, norms and projections as functions over a builder.
//!
//! Only primitive ops are emitted: what can be fused is for the optimiser to find. Whatever depends on parameters alone (unpacking, scales,
//! widening) is computed once, when weights are packed.

use std::collections::BTreeMap;

use ir::op::attention::{Attention as AttentionOp, KvAppend, Rope};
use ir::op::elementwise::{Add, Cast, Div, Mul, Relu, Relu2, Silu};
use ir::op::matmul::Matmul;
use ir::op::movement::Reshape;
use ir::op::norm::{LayerNorm, RmsNorm};
use ir::op::ternary::{Dequantize, Quantize, Ternarise, TernaryRule, TernaryScale, Unpack};
use ir::op::{Op, Real};
use ir::{BuildError, Builder, DType, Dim, Shape, TensorType, ValueId};

use crate::adapter::{Adapters, Part};
use crate::spec::{
    Activation, Activations, Attention, FeedForward, Float, KvFormat, Linear, Norm, Place, Scale, Weights,
};
use crate::weights::Naming;
use ir::param::{Init, ParamBinding, Stored};

/// A graph in the making, and the parameters it has so far.
pub(crate) struct Scope {
    pub(crate) b: Builder,
    pub(crate) params: Vec<ParamBinding>,
    /// The adapters beside its projections.
    pub(crate) adapters: Option<Adapters>,
    pub(crate) adapter_params: Vec<ParamBinding>,
    /// What stands before every key: `layers.{}.` in a layer's body.
    prefix: &'static str,
    rounds: u32,
    naming: Naming,
    /// Parameters that were declared, by key: the tied embedding is used twice.
    declared: BTreeMap<String, ValueId>,
}

/// The inputs of a layer's body that are not the residual stream.
pub(crate) struct Tokens {
    pub(crate) n: Dim,
    pub(crate) seq: ValueId,
    pub(crate) pos: ValueId,
    pub(crate) span: ValueId,
    /// Cosines and sines `[n, d / 2]`, by head dimension `d`.
    pub(crate) rotations: BTreeMap<u32, (ValueId, ValueId)>,
}

/// The size of the key-value caches.
pub(crate) struct Cache {
    pub(crate) sequences: u32,
    pub(crate) context: u32,
    pub(crate) format: KvFormat,
}

impl Scope {
    /// An empty graph; `rounds` says how often a body is repeated, and is `None` for the entry.
    pub(crate) fn new(name: &str, rounds: Option<u32>, naming: Naming) -> Self {
        Self {
            b: Builder::new(name),
            params: Vec::new(),
            adapters: None,
            adapter_params: Vec::new(),
            prefix: if rounds.is_some() { "layers.{}." } else { "" },
            rounds: rounds.unwrap_or(1),
            naming,
            declared: BTreeMap::new(),
        }
    }

    fn declare(&mut self, name: &str, ty: TensorType, init: Init) -> ValueId {
        let key = format!("{}{name}", self.prefix);
        if let Some(&value) = self.declared.get(&key) {
            return value;
        }
        let packed = ty.dtype == DType::T2;
        let stored = if packed { Stored::Ternary(self.naming.ternary_layout()) } else { Stored::Float };
        let source = self.naming.source(&key, packed);
        let value = self.b.param(name, &key, ty.clone());
        self.declared.insert(key.clone(), value);
        self.params.push(ParamBinding { key, source, rounds: self.rounds, ty, stored, init });
        value
    }

    /// A parameter of real numbers, as it is stored.
    pub(crate) fn stored(&mut self, name: &str, dims: &[u64], float: Float, init: Init) -> ValueId {
        self.declare(name, TensorType::new(float.dtype(), Shape::of(dims)), init)
    }

    /// A parameter of real numbers, in f32.
    fn widened(&mut self, name: &str, dims: &[u64], float: Float, init: Init) -> Result<ValueId, BuildError> {
        let value = self.stored(name, dims, float, init);
        if float == Float::F32 { Ok(value) } else { self.b.op(Cast { to: DType::F32 }, &[value]) }
    }
}

/// What the adapter beside the projection called `name` adds to its output, if it has one.
fn adapted(scope: &mut Scope, name: &str, x: ValueId, [m, k]: [u64; 2]) -> Result<Option<ValueId>, BuildError> {
    let Some(adapters) = scope.adapters.clone().filter(|adapters| adapters.has(name)) else { return Ok(None) };
    let rank = u64::from(adapters.rank);
    let mut declare = |part: Part, dims: [u64; 2], init: Init| {
        let key = format!("{}{name}.{}.weight", scope.prefix, part.name());
        let source = scope.naming.adapter_source(&format!("{}{name}.weight", scope.prefix), part);
        let ty = TensorType::new(DType::F32, Shape::of(&dims));
        let value = scope.b.param(&format!("{name}.{}", part.name()), &key, ty.clone());
        let binding = ParamBinding { key, source, rounds: scope.rounds, ty, stored: Stored::Float, init };
        scope.adapter_params.push(binding);
        value
    };
    // The standard deviation of PEFT's initial values; with zeros in `B` an adapter starts out as nothing.
    let a = declare(Part::A, [rank, k], Init::Normal { std: (1.0 / (3.0 * k as f32)).sqrt() });
    let b = declare(Part::B, [m, rank], Init::Zeros);
    let inner = scope.b.named(&format!("{name}.inner"), Matmul {}, &[x, a])?;
    let ty = TensorType::new(DType::F32, Shape::default());
    let scaling = scope.b.constant(None, ty, [f64::from(adapters.scaling() as f32)]);
    // Between the two, where there are fewest numbers.
    let scaled = scope.b.op(Mul {}, &[inner, scaling])?;
    Ok(Some(scope.b.named(&format!("{name}.adapter"), Matmul {}, &[scaled, b])?))
}

/// The norm called `name`, of rows of `width`.
pub(crate) fn norm(scope: &mut Scope, name: &str, norm: Norm, x: ValueId, width: u64) -> Result<ValueId, BuildError> {
    let (Norm::Rms { eps, dtype } | Norm::Layer { eps, dtype }) = norm;
    let eps = Real::new(eps);
    let weight = scope.widened(&format!("{name}.weight"), &[width], dtype, Init::Ones)?;
    match norm {
        Norm::Rms { .. } => scope.b.named(name, RmsNorm { eps }, &[x, weight]),
        Norm::Layer { .. } => {
            let bias = scope.widened(&format!("{name}.bias"), &[width], dtype, Init::Zeros)?;
            scope.b.named(name, LayerNorm { eps }, &[x, weight, bias])
        }
    }
}

/// The ternary projection called `name` from `k` to `m`, with its adapter if it has one: `x` f32 `[.., k]` gives f32 `[.., m]`.
pub(crate) fn ternary_linear(
    scope: &mut Scope,
    name: &str,
    linear: &Linear,
    biases: Option<Float>,
    x: ValueId,
    sizes: [u64; 2],
) -> Result<ValueId, BuildError> {
    match adapted(scope, name, x, sizes)? {
        Some(adapter) => {
            let base = plain_linear(scope, name, &format!("{name}.base"), linear, biases, x, sizes)?;
            scope.b.named(name, Add {}, &[base, adapter])
        }
        None => plain_linear(scope, name, name, linear, biases, x, sizes),
    }
}

/// The ternary projection whose parameters are called `name` and whose result is called `result`.
fn plain_linear(
    scope: &mut Scope,
    name: &str,
    result: &str,
    linear: &Linear,
    biases: Option<Float>,
    x: ValueId,
    [m, k]: [u64; 2],
) -> Result<ValueId, BuildError> {
    let x = match linear.activations {
        Activations::F32 => x,
        Activations::Int8 => {
            let codes = format!("{}.q8", scope.b.graph().label(x));
            let codes = scope.b.named(&codes, Quantize {}, &[x])?;
            scope.b.op(Dequantize {}, &[codes])?
        }
    };
    let (ternary, derived) = ternary_weights(scope, name, linear.weights, [m, k])?;
    let scale = scale_of(scope, name, linear.scale, derived, [m, k])?;
    let unpacked = scope.b.op(Unpack {}, &[ternary])?;
    let weights = scope.b.op(Mul {}, &[unpacked, scale])?;
    let Some(float) = biases else { return scope.b.named(result, Matmul {}, &[x, weights]) };
    let product = scope.b.named(&format!("{name}.product"), Matmul {}, &[x, weights])?;
    let mut bias = scope.widened(&format!("{name}.bias"), &[m], float, Init::Zeros)?;
    if linear.scaled_biases {
        let scale = match linear.scale {
            Scale::Row(_) => scope.b.op(Reshape { shape: Shape::of(&[m]) }, &[scale])?,
            _ => scale,
        };
        bias = scope.b.op(Mul {}, &[bias, scale])?;
    }
    scope.b.named(result, Add {}, &[product, bias])
}

/// Ternary weights `[m, k]`, and their scale `[1]` where it follows from the real weights.
fn ternary_weights(
    scope: &mut Scope,
    name: &str,
    weights: Weights,
    [m, k]: [u64; 2],
) -> Result<(ValueId, Option<ValueId>), BuildError> {
    let key = format!("{name}.weight");
    // The standard deviation that keeps the variance of a projection's output that of its input.
    let init = Init::Normal { std: (1.0 / k as f32).sqrt() };
    Ok(match weights {
        Weights::Packed => {
            let ty = TensorType::new(DType::T2, Shape::of(&[m, k]));
            (scope.declare(&key, ty, Init::Ternary), None)
        }
        Weights::Absmean(float) => {
            let real = scope.stored(&key, &[m, k], float, init);
            let ternary = scope.b.op(Ternarise { rule: TernaryRule::AbsmeanTensor }, &[real])?;
            (ternary, Some(scope.b.op(TernaryScale {}, &[real])?))
        }
        Weights::ThresholdRow(float) => {
            let real = scope.stored(&key, &[m, k], float, init);
            (scope.b.op(Ternarise { rule: TernaryRule::ThresholdRow }, &[real])?, None)
        }
    })
}

/// What the ternary weights are multiplied by: `[1]`, or `[m, 1]` for one number a row.
fn scale_of(
    scope: &mut Scope,
    name: &str,
    scale: Scale,
    derived: Option<ValueId>,
    [m, k]: [u64; 2],
) -> Result<ValueId, BuildError> {
    let key = format!("{name}.scale");
    // Two thirds of equally likely ternary values are not zero, so this keeps variances.
    let unit = (1.5 / k as f32).sqrt();
    match (scale, derived) {
        (Scale::Derived, Some(derived)) => Ok(derived),
        (Scale::Derived, None) => unreachable!("a spec with a derived scale and weights without one has a problem"),
        (Scale::Multiplies(float), _) => scope.widened(&key, &[1], float, Init::Constant(unit)),
        (Scale::Row(float), _) => scope.widened(&key, &[m, 1], float, Init::Constant(unit)),
        (Scale::Divides(float), _) => {
            let divisor = scope.widened(&key, &[1], float, Init::Constant(1.0 / unit))?;
            let one = scope.b.constant(None, TensorType::new(DType::F32, Shape::of(&[1])), [1.0]);
            scope.b.op(Div {}, &[one, divisor])
        }
    }
}

/// Attention, from the residual stream `h` `[n, hidden]` to what it becomes.
pub(crate) fn attention(
    scope: &mut Scope,
    name: &str,
    (block, linear, kind): (&Attention, &Linear, Norm),
    h: ValueId,
    tokens: &Tokens,
    cache: &Cache,
) -> Result<ValueId, BuildError> {
    let hidden = scope.b.ty(h).shape.last_const().expect("the residual stream has a constant width");
    let (heads, kv_heads) = (u64::from(block.heads), u64::from(block.kv_heads));
    let head_dim = block.head_dim(u32::try_from(hidden).expect("a spec's width has 32 bits"));
    let d = u64::from(head_dim);
    let x =
        if block.norms.contains(&Place::Before) { norm(scope, &format!("{name}.norm"), kind, h, hidden)? } else { h };

    let mut project = |part: &str, heads: u64| -> Result<ValueId, BuildError> {
        let full = format!("{name}.{part}");
        let flat = ternary_linear(scope, &full, linear, block.biases, x, [heads * d, hidden])?;
        let shape = Shape::new([tokens.n.clone(), Dim::Const(heads), Dim::Const(d)]);
        scope.b.named(&format!("{full}.heads"), Reshape { shape }, &[flat])
    };
    let (mut q, mut k, v) = (project("q", heads)?, project("k", kv_heads)?, project("v", kv_heads)?);
    if block.qk_norm {
        q = norm(scope, &format!("{name}.q_norm"), kind, q, d)?;
        k = norm(scope, &format!("{name}.k_norm"), kind, k, d)?;
    }
    let (cos, sin) = tokens.rotations[&head_dim];
    q = scope.b.named(&format!("{name}.q.rotated"), Rope {}, &[q, cos, sin])?;
    k = scope.b.named(&format!("{name}.k.rotated"), Rope {}, &[k, cos, sin])?;

    let mut append = |part: &str, dtype: DType, rows: ValueId| -> Result<ValueId, BuildError> {
        // The first attention block's caches are `layers.{}.k_cache` and `layers.{}.v_cache`.
        let key = match name.strip_prefix("attention") {
            Some(suffix) => format!("{part}_cache{suffix}"),
            None => format!("{name}.{part}_cache"),
        };
        let dims = [u64::from(cache.sequences), kv_heads, u64::from(cache.context), d];
        let ty = TensorType::new(dtype, Shape::of(&dims));
        let state = scope.b.state(&key, &format!("{}{key}", scope.prefix), ty);
        let appended =
            scope.b.named(&format!("{key}.appended"), KvAppend {}, &[state, rows, tokens.seq, tokens.pos])?;
        scope.b.update(state, appended);
        Ok(appended)
    };
    let (k_dtype, v_dtype) = cache.format.dtypes();
    let (keys, values) = (append("k", k_dtype, k)?, append("v", v_dtype, v)?);

    let op = AttentionOp {
        scale: Real::new(1.0 / f64::from(head_dim).sqrt()),
        window: block.window.unwrap_or(0),
        sinks: block.sinks,
    };
    let inputs = [q, keys, values, tokens.seq, tokens.pos, tokens.span];
    let mixed = scope.b.named(&format!("{name}.mixed.heads"), op, &inputs)?;
    let shape = Shape::new([tokens.n.clone(), Dim::Const(heads * d)]);
    let mut mixed = scope.b.named(&format!("{name}.mixed"), Reshape { shape }, &[mixed])?;
    if block.norms.contains(&Place::Inside) {
        mixed = norm(scope, &format!("{name}.sub_norm"), kind, mixed, heads * d)?;
    }
    let out = ternary_linear(scope, &format!("{name}.o"), linear, block.biases, mixed, [hidden, heads * d])?;
    residual(scope, name, &block.norms, kind, h, out)
}

/// A feed-forward block, from the residual stream `h` `[n, hidden]` to what it becomes.
pub(crate) fn feed_forward(
    scope: &mut Scope,
    name: &str,
    (block, linear, kind): (&FeedForward, &Linear, Norm),
    h: ValueId,
) -> Result<ValueId, BuildError> {
    let hidden = scope.b.ty(h).shape.last_const().expect("the residual stream has a constant width");
    let width = u64::from(block.width);
    let x =
        if block.norms.contains(&Place::Before) { norm(scope, &format!("{name}.norm"), kind, h, hidden)? } else { h };
    let activation: Op = match block.activation {
        Activation::Relu2 => Relu2 {}.into(),
        Activation::Silu => Silu {}.into(),
        Activation::Relu => Relu {}.into(),
    };
    let mut project =
        |part: &str| ternary_linear(scope, &format!("{name}.{part}"), linear, block.biases, x, [width, hidden]);
    let mut inner = if block.gated {
        let (gate, up) = (project("gate")?, project("up")?);
        let bent = scope.b.named(&format!("{name}.activation"), activation, &[gate])?;
        scope.b.named(&format!("{name}.inner"), Mul {}, &[bent, up])?
    } else {
        let up = project("up")?;
        scope.b.named(&format!("{name}.inner"), activation, &[up])?
    };
    if block.norms.contains(&Place::Inside) {
        inner = norm(scope, &format!("{name}.sub_norm"), kind, inner, width)?;
    }
    let out = ternary_linear(scope, &format!("{name}.down"), linear, block.biases, inner, [hidden, width])?;
    residual(scope, name, &block.norms, kind, h, out)
}

/// The residual stream after a block.
fn residual(
    scope: &mut Scope,
    name: &str,
    norms: &[Place],
    kind: Norm,
    h: ValueId,
    out: ValueId,
) -> Result<ValueId, BuildError> {
    let hidden = scope.b.ty(h).shape.last_const().expect("the residual stream has a constant width");
    let sum = scope.b.named(&format!("{name}.residual"), Add {}, &[h, out])?;
    if norms.contains(&Place::After) {
        return norm(scope, &format!("{name}.post_norm"), kind, sum, hidden);
    }
    Ok(sum)
}
