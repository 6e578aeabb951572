//! Rotary embedding, the key-value cache, and attention over it.
//!
//! Tokens of a call come in any mixture of sequences: token `i` belongs to sequence `seq[i]` and stands at position `pos[i]` of it. A cache has
//! the type `[sequences, kv_heads, context, head_dim]`, in f32, in bf16 or in a row format; its rows are rounded or quantised once, when they are
//! appended. The keys of a head lie one after the other, because that is how they are read.

mod gradient;

use crate::builder::{BuildError, Builder};
use crate::dtype::DType;
use crate::graph::ValueId;
use crate::mask::{Mask, Span};
use crate::op::elementwise::{Add, Cast, Mul, Neg, Sub};
use crate::op::movement::{Reshape, Slice};
use crate::op::reduce::Sum;
use crate::op::ternary::through_format;
use crate::op::{Concrete, Op, OpDef, Real, TypeError, arity, expect_f32, op, straight_through};
use crate::reference::Tensor;
use crate::shape::{Dim, Shape, TensorType};
use crate::vjp::{Gradient, Gradients, VjpError, Zero, filled, sum_to};

pub use gradient::{AttentionCacheGradient, AttentionLse, AttentionQueryGradient};

/// What caches hold.
const CACHED: &str = "f32, bf16, q8 or q4";

fn is_cached(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::Q8 | DType::Q4)
}

fn expect_ids(input: &'static str, ty: &TensorType, shape: &Shape) -> Result<(), TypeError> {
    if ty.dtype != DType::I32 {
        return Err(TypeError::DType { input, expected: "i32", found: ty.dtype });
    }
    if ty.shape != *shape {
        return Err(TypeError::mismatch("tokens and their ids", shape, &ty.shape));
    }
    Ok(())
}

fn expect_rank(input: &'static str, ty: &TensorType, rank: usize, expected: &'static str) -> Result<(), TypeError> {
    if ty.shape.rank() == rank {
        return Ok(());
    }
    Err(TypeError::Rank { input, expected, found: ty.shape.clone() })
}

op! {
    /// Rotary position embedding (Su et al., 2021), halves rotated against each other: with `h = d / 2` and `i < h`,
    /// `out[i] = x[i] * cos[i] - x[i + h] * sin[i]` and `out[i + h] = x[i + h] * cos[i] + x[i] * sin[i]`.
    ///
    /// `x` is f32 `[n, heads, d]`; `cos` and `sin` are f32 `[n, d / 2]`.
    Rope = "rope" (x, cos, sin) {}
}

impl OpDef for Rope {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x, cos, sin] = arity(inputs)?;
        expect_f32("x", x)?;
        expect_f32("cos", cos)?;
        expect_f32("sin", sin)?;
        expect_rank("x", x, 3, "3 dimensions [n, heads, d]")?;
        let Some(d) = x.shape.last_const().filter(|d| d % 2 == 0) else {
            return Err(TypeError::Rank {
                input: "x",
                expected: "an even constant head dimension",
                found: x.shape.clone(),
            });
        };
        let table = Shape::new([x.shape.0[0].clone(), Dim::Const(d / 2)]);
        for ty in [cos, sin] {
            if ty.shape != table {
                return Err(TypeError::mismatch("tokens and half the head dimension", &table, &ty.shape));
            }
        }
        Ok((*x).clone())
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let half = out.dims[2] / 2;
        Tensor::from_fn(out, |at| {
            let i = at[2] % half;
            let (cos, sin) = (inputs[1].at(&[at[0], i]), inputs[2].at(&[at[0], i]));
            let (low, high) = (inputs[0].at(&[at[0], at[1], i]), inputs[0].at(&[at[0], at[1], i + half]));
            if at[2] < half { low * cos - high * sin } else { high * cos + low * sin }
        })
    }

    /// Rows are turned back by the opposite angle.
    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let [x, cos, sin] = [inputs[0], inputs[1], inputs[2]];
        let back = b.op(Neg {}, &[sin])?;
        let dx = b.op(Rope {}, &[dy, cos, back])?;
        let d = b.ty(x).shape.last_const().expect("the head dimension is constant");
        let halves = |b: &mut Builder, value: ValueId| -> Result<[ValueId; 2], BuildError> {
            let low = b.op(Slice { axis: 2, start: 0, end: d / 2 }, &[value])?;
            Ok([low, b.op(Slice { axis: 2, start: d / 2, end: d }, &[value])?])
        };
        let ([low, high], [dlow, dhigh]) = (halves(b, x)?, halves(b, dy)?);
        let table = b.ty(cos).shape.clone();
        // One pair of numbers turns all heads of a token.
        let over_heads = |b: &mut Builder, products: ValueId| -> Result<ValueId, BuildError> {
            let mut shape = b.ty(products).shape.clone();
            shape.0[1] = Dim::Const(1);
            let sums = sum_to(b, products, &shape)?;
            b.op(Reshape { shape: table.clone() }, &[sums])
        };
        let (straight_low, straight_high) = (b.op(Mul {}, &[dlow, low])?, b.op(Mul {}, &[dhigh, high])?);
        let straight = b.op(Add {}, &[straight_low, straight_high])?;
        let (cross_high, cross_low) = (b.op(Mul {}, &[dhigh, low])?, b.op(Mul {}, &[dlow, high])?);
        let cross = b.op(Sub {}, &[cross_high, cross_low])?;
        let (dcos, dsin) = (over_heads(b, straight)?, over_heads(b, cross)?);
        Ok([dx, dcos, dsin].map(Gradient::Of).into_iter().collect())
    }
}

op! {
    /// The cache with `x[i]` stored at (`seq[i]`, `pos[i]`), in the cache's own format. Nothing else of the cache changes, so lowering updates it
    /// in place.
    ///
    /// `cache` is f32, bf16, q8 or q4 `[sequences, kv_heads, context, d]`; `x` is f32 `[n, kv_heads, d]`; `seq` and `pos` are i32 `[n]`. A token whose
    /// sequence or position lies outside the cache is not stored.
    KvAppend = "kv_append" (cache, x, seq, pos) {}
}

impl OpDef for KvAppend {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [cache, x, seq, pos] = arity(inputs)?;
        if !is_cached(cache.dtype) {
            return Err(TypeError::DType { input: "cache", expected: CACHED, found: cache.dtype });
        }
        expect_f32("x", x)?;
        expect_rank("cache", cache, 4, "4 dimensions [sequences, kv_heads, context, d]")?;
        expect_rank("x", x, 3, "3 dimensions [n, kv_heads, d]")?;
        if [&cache.shape.0[1], &cache.shape.0[3]] != [&x.shape.0[1], &x.shape.0[2]] {
            return Err(TypeError::mismatch("heads and head dimension", &cache.shape, &x.shape));
        }
        let tokens = Shape::new([x.shape.0[0].clone()]);
        expect_ids("seq", seq, &tokens)?;
        expect_ids("pos", pos, &tokens)?;
        Ok((*cache).clone())
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let [cache, x, seq, pos] = inputs else { unreachable!("the arity was checked") };
        let mut result = (*cache).clone();
        let [sequences, heads, context, d] = out.dims[..] else { unreachable!("the rank was checked") };
        for (token, (&seq, &pos)) in seq.data.iter().zip(&pos.data).enumerate() {
            if !(0.0..sequences as f64).contains(&seq) || !(0.0..context as f64).contains(&pos) {
                continue;
            }
            for head in 0..heads {
                let row = &x.data[(token * heads + head) * d..][..d];
                let at = ((seq as usize * heads + head) * context + pos as usize) * d;
                result.data[at..at + d].copy_from_slice(&through_cache(out.dtype, row));
            }
        }
        result
    }

    /// The tokens of a call have places of their own, so what is at a place is the one row that was stored there.
    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let [x, seq, pos] = [inputs[1], inputs[2], inputs[3]];
        let nothing = filled(b, 0.0, &b.ty(x).shape.clone())?;
        let kept = b.op(KvAppend {}, &[dy, nothing, seq, pos])?;
        let stored = b.op(KvRows {}, &[dy, seq, pos])?;
        let integer = Gradient::Zero(Zero::Integer);
        Ok([Gradient::Of(kept), straight_through::store(stored), integer, integer].into_iter().collect())
    }
}

/// What is read back of a row that was stored in a cache.
fn through_cache(dtype: DType, row: &[f64]) -> Vec<f64> {
    match dtype {
        DType::BF16 => row.iter().map(|&value| half::bf16::from_f32(value as f32).to_f64()).collect(),
        _ => through_format(dtype, row),
    }
}

op! {
    /// What stands in a cache at (`seq[i]`, `pos[i]`), as f32 `[n, kv_heads, d]`; zeros for a token whose sequence or position lies outside.
    ///
    /// `cache` is f32, bf16, q8 or q4 `[sequences, kv_heads, context, d]`; `seq` and `pos` are i32 `[n]`.
    KvRows = "kv_rows" (cache, seq, pos) {}
}

impl OpDef for KvRows {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [cache, seq, pos] = arity(inputs)?;
        if !is_cached(cache.dtype) {
            return Err(TypeError::DType { input: "cache", expected: CACHED, found: cache.dtype });
        }
        expect_rank("cache", cache, 4, "4 dimensions [sequences, kv_heads, context, d]")?;
        let tokens = seq.shape.clone();
        expect_rank("seq", seq, 1, "1 dimension")?;
        expect_ids("seq", seq, &tokens)?;
        expect_ids("pos", pos, &tokens)?;
        let [_, heads, _, d] = &cache.shape.0[..] else { unreachable!("the rank was checked") };
        Ok(TensorType::new(DType::F32, tokens.dims().iter().chain([heads, d]).cloned().collect()))
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let [cache, seq, pos] = inputs else { unreachable!("the arity was checked") };
        let (sequences, context) = (cache.dims()[0] as f64, cache.dims()[2] as f64);
        Tensor::from_fn(out, |at| {
            let (seq, pos) = (seq.data[at[0]], pos.data[at[0]]);
            let is_inside = (0.0..sequences).contains(&seq) && (0.0..context).contains(&pos);
            if is_inside { cache.at(&[seq as usize, at[1], pos as usize, at[2]]) } else { 0.0 }
        })
    }

    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], _: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let empty = filled(b, 0.0, &b.ty(inputs[0]).shape.clone())?;
        let cache = b.op(KvAppend {}, &[empty, dy, inputs[1], inputs[2]])?;
        let integer = Gradient::Zero(Zero::Integer);
        Ok([Gradient::Of(cache), integer, integer].into_iter().collect())
    }
}

op! {
    /// `softmax(q . k * scale) . v` over the keys that [`Mask`] and the tokens' spans let each query see; heads of `q` share the key-value heads in
    /// equal groups, in order. A query that sees no key gives zeros.
    ///
    /// `q` is f32 `[n, heads, d]`; `k` and `v` are caches; `seq` and `pos` are i32 `[n]`; `span` is i32 `[n, 2]`: [`Span::first`], [`Span::reach`].
    /// Keys are met in tiles of 64 at multiples of 64, each with a maximum of its own, and the tiles are put together in ascending order (after Dao et
    /// al., 2022), so a result does not depend on what else is in the call.
    Attention = "attention" (q, k, v, seq, pos, span) {
        /// Multiplies the scores.
        scale: Real,
        /// See [`Mask::window`].
        window: u32,
        /// See [`Mask::sinks`].
        sinks: u32,
    }
}

impl OpDef for Attention {
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [q, k, v, seq, pos, span] = arity(inputs)?;
        expect_f32("q", q)?;
        expect_caches(q, &[("k", k), ("v", v)])?;
        expect_places(q, [seq, pos, span])?;
        Ok((*q).clone())
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let mask = Mask { window: self.window, sinks: self.sinks };
        let [q, k, v, seq, pos, span] = inputs else { unreachable!("the arity was checked") };
        let mut data = Vec::with_capacity(out.dims.iter().product());
        each_query([q, k, seq, pos, span], mask, self.scale, |query| {
            let (_, powers, sum) = query.powers();
            data.extend((0..out.dims[2]).map(|i| {
                let powers = query.keys.iter().zip(&powers);
                powers.map(|(&key, power)| power / sum * v.at(&[query.sequence, query.kv_head, key, i])).sum::<f64>()
            }));
        });
        Tensor::new(out.clone(), data)
    }

    /// The scores are made again from `q` and `k`; that their weights add up to 1 is what `lse` knows, and what of `dy` their changes cancel is `delta`.
    /// Where caches are bf16, `q`, `y` and `dy` are rounded so, too.
    fn vjp(&self, b: &mut Builder, inputs: &[ValueId], y: ValueId, dy: ValueId) -> Result<Gradients, VjpError> {
        let Attention { scale, window, sinks } = *self;
        let [q, k, v, seq, pos, span] = inputs.try_into().expect("the arity was checked");
        let (q, narrow_dy, dy, y) = match b.ty(k).dtype {
            DType::BF16 => {
                let (q, dy, y) = (narrowed(b, q)?, narrowed(b, dy)?, narrowed(b, y)?);
                let wide = |b: &mut Builder, x| b.op(Cast { to: DType::F32 }, &[x]);
                (q, dy, wide(b, dy)?, wide(b, y)?)
            }
            _ => (q, dy, dy, y),
        };
        let products = b.op(Mul {}, &[dy, y])?;
        let lse = b.op(AttentionLse { scale, window, sinks }, &[q, k, seq, pos, span])?;
        let rows = b.ty(lse).shape.clone();
        let sums = b.op(Sum {}, &[products])?;
        let delta = b.op(Reshape { shape: rows }, &[sums])?;
        let operands = [q, k, v, seq, pos, span, narrow_dy, lse, delta];
        let dq = b.op(AttentionQueryGradient { scale, window, sinks }, &operands)?;
        let both = b.op(AttentionCacheGradient { scale, window, sinks }, &operands)?;
        let mut gradients: Gradients = [Gradient::Of(dq)].into_iter().collect();
        let shape = b.ty(k).shape.clone();
        for start in 0..2 {
            let part = b.op(Slice { axis: 0, start, end: start + 1 }, &[both])?;
            gradients.push(Gradient::Of(b.op(Reshape { shape: shape.clone() }, &[part])?));
        }
        gradients.extend([Gradient::Zero(Zero::Integer); 3]);
        Ok(gradients)
    }
}

/// Checks caches that queries of this type are to read: alike, and with heads that the queries' heads share evenly.
/// `x` in bf16; what was widened from there is not rounded again.
fn narrowed(b: &mut Builder, x: ValueId) -> Result<ValueId, BuildError> {
    match (b.graph().op(x), b.graph().operands(x)) {
        (Some(Op::Cast(_)), &[narrow]) if b.ty(narrow).dtype == DType::BF16 => Ok(narrow),
        _ => b.op(Cast { to: DType::BF16 }, &[x]),
    }
}

fn expect_caches(q: &TensorType, caches: &[(&'static str, &TensorType)]) -> Result<(), TypeError> {
    expect_rank("q", q, 3, "3 dimensions [n, heads, d]")?;
    for &(name, cache) in caches {
        if !is_cached(cache.dtype) {
            return Err(TypeError::DType { input: name, expected: CACHED, found: cache.dtype });
        }
        expect_rank(name, cache, 4, "4 dimensions [sequences, kv_heads, context, d]")?;
    }
    let k = caches[0].1;
    if let Some((_, v)) = caches.iter().find(|(_, v)| v.shape != k.shape) {
        return Err(TypeError::mismatch("the shapes of `k` and `v`", &k.shape, &v.shape));
    }
    if k.shape.last() != q.shape.last() {
        return Err(TypeError::mismatch("head dimensions", &q.shape, &k.shape));
    }
    match (q.shape.0[1].as_const(), k.shape.0[1].as_const()) {
        (Some(heads), Some(kv_heads)) if 0 < kv_heads && heads % kv_heads == 0 => Ok(()),
        _ => Err(TypeError::mismatch("heads, as a multiple of the key-value heads,", &q.shape.0[1], &k.shape.0[1])),
    }
}

/// Checks the sequences, positions and spans of queries.
fn expect_places(q: &TensorType, [seq, pos, span]: [&TensorType; 3]) -> Result<(), TypeError> {
    let n = q.shape.0[0].clone();
    expect_ids("seq", seq, &Shape::new([n.clone()]))?;
    expect_ids("pos", pos, &Shape::new([n.clone()]))?;
    expect_ids("span", span, &Shape::new([n, Dim::Const(2)]))
}

/// One head of one query of a call, and what it sees.
struct Query {
    token: usize,
    head: usize,
    sequence: usize,
    kv_head: usize,
    /// The keys that it sees, in ascending order.
    keys: Vec<usize>,
    /// Their scores.
    scores: Vec<f64>,
}

impl Query {
    /// The largest score, the exponentials of what the scores are above it, and their sum.
    fn powers(&self) -> (f64, Vec<f64>, f64) {
        let max = self.scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = self.scores.iter().map(|score| (score - max).exp()).collect();
        let sum = powers.iter().sum();
        (max, powers, sum)
    }
}

/// Visits all queries, head by head. The operands are `q`, `k`, `seq`, `pos` and `span`.
fn each_query(operands: [&Tensor; 5], mask: Mask, scale: Real, mut visit: impl FnMut(Query)) {
    let [q, k, seq, pos, span] = operands;
    let [n, heads, d] = q.dims()[..] else { unreachable!("the rank was checked") };
    let (kv_heads, context) = (k.dims()[1], k.dims()[2]);
    for token in 0..n {
        let span = Span { first: span.at(&[token, 0]) as u32, reach: span.at(&[token, 1]) as u32 };
        let (sequence, query) = (seq.data[token] as usize, pos.data[token] as u32);
        let keys: Vec<usize> = (0..context).filter(|&key| mask.visible(query, span, key as u32)).collect();
        for head in 0..heads {
            let kv_head = head / (heads / kv_heads);
            let score = |&key: &usize| {
                let dot = |i| q.at(&[token, head, i]) * k.at(&[sequence, kv_head, key, i]);
                (0..d).map(dot).sum::<f64>() * scale.get()
            };
            let scores = keys.iter().map(score).collect();
            visit(Query { token, head, sequence, kv_head, keys: keys.clone(), scores });
        }
    }
}
