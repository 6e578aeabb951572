//! Rotary embedding, the key-value cache, and attention over it.
//!
//! Tokens of a call come in any mixture of sequences: token `i` belongs to sequence `seq[i]` and stands at position `pos[i]` of it. A cache has
//! the type `[sequences, kv_heads, context, head_dim]`, in f32, in bf16 or in a row format; its rows are rounded or quantised once, when they are
//! appended. The keys of a head lie one after the other, because that is how they are read.

use crate::dtype::DType;
use crate::mask::{Mask, Span};
use crate::op::ternary::through_format;
use crate::op::{Concrete, OpDef, Real, TypeError, arity, expect_f32, op};
use crate::reference::Tensor;
use crate::shape::{Dim, Shape, TensorType};

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
}

/// What is read back of a row that was stored in a cache.
fn through_cache(dtype: DType, row: &[f64]) -> Vec<f64> {
    match dtype {
        DType::BF16 => row.iter().map(|&value| half::bf16::from_f32(value as f32).to_f64()).collect(),
        _ => through_format(dtype, row),
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
        expect_rank("q", q, 3, "3 dimensions [n, heads, d]")?;
        for (name, cache) in [("k", k), ("v", v)] {
            if !is_cached(cache.dtype) {
                return Err(TypeError::DType { input: name, expected: CACHED, found: cache.dtype });
            }
            expect_rank(name, cache, 4, "4 dimensions [sequences, kv_heads, context, d]")?;
        }
        if k.shape != v.shape {
            return Err(TypeError::mismatch("the shapes of `k` and `v`", &k.shape, &v.shape));
        }
        if k.shape.last() != q.shape.last() {
            return Err(TypeError::mismatch("head dimensions", &q.shape, &k.shape));
        }
        match (q.shape.0[1].as_const(), k.shape.0[1].as_const()) {
            (Some(heads), Some(kv_heads)) if 0 < kv_heads && heads % kv_heads == 0 => {}
            _ => {
                return Err(TypeError::mismatch(
                    "heads, as a multiple of the key-value heads,",
                    &q.shape.0[1],
                    &k.shape.0[1],
                ));
            }
        }
        let n = q.shape.0[0].clone();
        expect_ids("seq", seq, &Shape::new([n.clone()]))?;
        expect_ids("pos", pos, &Shape::new([n.clone()]))?;
        expect_ids("span", span, &Shape::new([n, Dim::Const(2)]))?;
        Ok((*q).clone())
    }

    fn reference(&self, inputs: &[&Tensor], out: &Concrete) -> Tensor {
        let [q, k, v, seq, pos, span] = inputs else { unreachable!("the arity was checked") };
        let mask = Mask { window: self.window, sinks: self.sinks };
        let [n, heads, d] = out.dims[..] else { unreachable!("the rank was checked") };
        let (kv_heads, context) = (k.dims()[1], k.dims()[2]);
        let mut data = Vec::with_capacity(n * heads * d);
        for token in 0..n {
            let span = Span { first: span.at(&[token, 0]) as u32, reach: span.at(&[token, 1]) as u32 };
            let (sequence, query) = (seq.data[token] as usize, pos.data[token] as u32);
            let keys: Vec<usize> = (0..context).filter(|&key| mask.visible(query, span, key as u32)).collect();
            for head in 0..heads {
                let kv_head = head / (heads / kv_heads);
                let scores: Vec<f64> = keys
                    .iter()
                    .map(|&key| {
                        let dot = |i| q.at(&[token, head, i]) * k.at(&[sequence, kv_head, key, i]);
                        (0..d).map(dot).sum::<f64>() * self.scale.get()
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let powers: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                let sum: f64 = powers.iter().sum();
                data.extend((0..d).map(|i| {
                    let terms = keys.iter().zip(&powers);
                    let total: f64 = terms.map(|(&key, power)| power * v.at(&[sequence, kv_head, key, i])).sum();
                    if keys.is_empty() { 0.0 } else { total / sum }
                }));
            }
        }
        Tensor::new(out.clone(), data)
    }
}
