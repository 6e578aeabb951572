//! The gradients of attention, from what sums it up for each query: the log of the sum of its exponentials, and what of the result's gradient is
//! common to all of its keys (after Dao et al., 2022).
//!
//! With `s[j]` the scores of the keys `j` that a query sees, `lse = log(sum_j exp(s[j]))` and `p[j] = exp(s[j] - lse)`, attention is
//! `y = sum_j p[j] * v[j]`. Its weights change with the scores by `p[j] * (dy . v[j] - delta)`, where `delta = sum_j p[j] * (dy . v[j]) = dy . y`.
//! So a score by itself, with these two numbers of its query, is all that a key's part in the gradients needs.

use super::{Query, each_query, expect_caches, expect_places};
use crate::builder::Builder;
use crate::dtype::DType;
use crate::graph::ValueId;
use crate::mask::Mask;
use crate::op::{Concrete, OpDef, OpParts, Real, TypeError, arity, op};
use crate::reference::Tensor;
use crate::shape::{Dim, Shape, TensorType};
use crate::vjp::{Gradients, VjpError};

op! {
    /// The log of the sum of the exponentials of the scores that each query of [`super::Attention`] sees, by head: f32 `[n, heads]`. Of a query that
    /// sees no key it is 0, and nothing is weighed with it.
    ///
    /// `q` is f32 or bf16 `[n, heads, d]`; `k` is a cache; `seq`, `pos` and `span` are those of the attention.
    AttentionLse = "attention_lse" (q, k, seq, pos, span) {
        /// See [`super::Attention::scale`].
        scale: Real,
        /// See [`Mask::window`].
        window: u32,
        /// See [`Mask::sinks`].
        sinks: u32,
    }
}

impl OpDef for AttentionLse {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [q, k, seq, pos, span] = arity(inputs)?;
        expect_float("q", q)?;
        expect_caches(q, &[("k", k)])?;
        expect_places(q, [seq, pos, span])?;
        Ok(TensorType::new(DType::F32, Shape::new([q.shape.0[0].clone(), q.shape.0[1].clone()])))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let mask = Mask { window: self.window, sinks: self.sinks };
        let operands = inputs.try_into().expect("the arity was checked");
        let mut data = Vec::with_capacity(out.dims.iter().product());
        each_query(operands, mask, self.scale, |query| {
            let (max, _, sum) = query.powers();
            data.push(if query.keys.is_empty() { 0.0 } else { max + sum.ln() });
        });
        Tensor::new(out.clone(), data)
    }

    fn vjp(&self, _: &mut Builder, _: &[ValueId], _: ValueId, _: ValueId) -> Result<Gradients, VjpError> {
        Err(VjpError::SecondOrder(Self::NAME))
    }
}

op! {
    /// The gradient of [`super::Attention`] in its queries, from that of its result, `dy`: with `t[j] = p[j] * (dy . v[j] - delta) * scale` it is the sum
    /// of `t[j] * k[j]`, in ascending order.
    ///
    /// `q` and `dy` are f32 or bf16 `[n, heads, d]`, both alike; `k` and `v` are caches; `lse` is what [`AttentionLse`] gives, and `delta` is the sum of
    /// `dy` times the attention's result, f32 `[n, heads]`. The gradient is f32 of the shape of `q`.
    AttentionQueryGradient = "attention_query_gradient" (q, k, v, seq, pos, span, dy, lse, delta) {
        /// See [`super::Attention::scale`].
        scale: Real,
        /// See [`Mask::window`].
        window: u32,
        /// See [`Mask::sinks`].
        sinks: u32,
    }
}

impl OpDef for AttentionQueryGradient {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [q, ..] = expect_operands(inputs)?;
        Ok(q.with_dtype(DType::F32))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let (k, [_, heads, d]) = (inputs[1], shape_of(inputs[0]));
        let mut result = Tensor::zeros(out.clone());
        let mask = Mask { window: self.window, sinks: self.sinks };
        each_weight(inputs, mask, self.scale, |query, key, Weight { t, .. }| {
            for i in 0..d {
                let k = k.at(&[query.sequence, query.kv_head, key, i]);
                result.data[(query.token * heads + query.head) * d + i] += t * k;
            }
        });
        result
    }

    fn vjp(&self, _: &mut Builder, _: &[ValueId], _: ValueId, _: ValueId) -> Result<Gradients, VjpError> {
        Err(VjpError::SecondOrder(Self::NAME))
    }
}

op! {
    /// The gradients of [`super::Attention`] in its keys and its values, which have the scores in common: f32 `[2, sequences, kv_heads, context, d]`, those
    /// of the keys first. With `t[j]` as for [`AttentionQueryGradient`], whose operands these are, that of `k[j]` is the sum of `t[j] * q` and that of
    /// `v[j]` the sum of `p[j] * dy`, over all queries and heads that share the key, in ascending order.
    AttentionCacheGradient = "attention_cache_gradient" (q, k, v, seq, pos, span, dy, lse, delta) {
        /// See [`super::Attention::scale`].
        scale: Real,
        /// See [`Mask::window`].
        window: u32,
        /// See [`Mask::sinks`].
        sinks: u32,
    }
}

impl OpDef for AttentionCacheGradient {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [_, k, ..] = expect_operands(inputs)?;
        Ok(TensorType::new(DType::F32, [Dim::Const(2)].iter().chain(k.shape.dims()).cloned().collect()))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let (q, dy, [_, _, d]) = (inputs[0], inputs[6], shape_of(inputs[0]));
        let [_, _, kv_heads, context, _] = out.dims[..] else { unreachable!("the rank was checked") };
        let mut result = Tensor::zeros(out.clone());
        let of_values = result.data.len() / 2;
        let mask = Mask { window: self.window, sinks: self.sinks };
        each_weight(inputs, mask, self.scale, |query, key, Weight { p, t }| {
            let row = ((query.sequence * kv_heads + query.kv_head) * context + key) * d;
            for i in 0..d {
                let at = [query.token, query.head, i];
                result.data[row + i] += t * q.at(&at);
                result.data[of_values + row + i] += p * dy.at(&at);
            }
        });
        result
    }

    fn vjp(&self, _: &mut Builder, _: &[ValueId], _: ValueId, _: ValueId) -> Result<Gradients, VjpError> {
        Err(VjpError::SecondOrder(Self::NAME))
    }
}

fn expect_float(input: &'static str, ty: &TensorType) -> Result<(), TypeError> {
    match ty.dtype {
        DType::F32 | DType::BF16 => Ok(()),
        found => Err(TypeError::DType { input, expected: "f32 or bf16", found }),
    }
}

/// Checks the operands of a gradient.
fn expect_operands<'a>(inputs: &[&'a TensorType]) -> Result<[&'a TensorType; 9], TypeError> {
    let operands @ [q, k, v, seq, pos, span, dy, lse, delta] = *arity::<9>(inputs)?;
    expect_float("q", q)?;
    expect_caches(q, &[("k", k), ("v", v)])?;
    expect_places(q, [seq, pos, span])?;
    if dy != q {
        return Err(TypeError::mismatch("the queries and the gradient of their results", q, dy));
    }
    let each = TensorType::new(DType::F32, Shape::new([q.shape.0[0].clone(), q.shape.0[1].clone()]));
    for ty in [lse, delta] {
        if *ty != each {
            return Err(TypeError::mismatch("queries by head and a number of each", &each, ty));
        }
    }
    Ok(operands)
}

fn shape_of(q: &Tensor) -> [usize; 3] {
    q.dims().try_into().expect("the rank was checked")
}

/// What a key counts for a query.
struct Weight {
    p: f64,
    t: f64,
}

/// Visits all queries and the keys that they see, from the operands of a gradient.
fn each_weight(inputs: &[&Tensor], mask: Mask, scale: Real, mut visit: impl FnMut(&Query, usize, Weight)) {
    let [q, k, v, seq, pos, span, dy, lse, delta] = inputs else { unreachable!("the arity was checked") };
    let d = q.dims()[2];
    each_query([q, k, seq, pos, span], mask, scale, |query| {
        let Query { token, head, sequence, kv_head, .. } = query;
        let at = [token, head];
        for (&key, score) in query.keys.iter().zip(&query.scores) {
            let product = |i| dy.at(&[token, head, i]) * v.at(&[sequence, kv_head, key, i]);
            let pull: f64 = (0..d).map(product).sum();
            let p = (score - lse.at(&at)).exp();
            visit(&query, key, Weight { p, t: p * (pull - delta.at(&at)) * scale.get() });
        }
    });
}
