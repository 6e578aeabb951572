//! Gradients of attention: inputs, what must come out by the bound of [`kernels::cuda::accuracy`], and times for whole batches.

use anyhow::Result;
use ir::DType;
use ir::mask::{Mask, Span};
use kernels::Family;
use kernels::cuda::{Accuracy, CudaKernelDesc, Rounding};

use crate::Compiler;
use crate::bench::{median, numbers, repeated};
use crate::bound::{Expected, ULP};
use crate::case::{Case, Random, f32s, i32s, rows};
use crate::check::{halves, launch, load};
use crate::gpu::{Buffer, Gpu};

/// Sequences of a case.
const SEQS: usize = 3;

/// The tokens of a case.
#[derive(Clone, Copy)]
enum Tokens {
    /// So many, of any sequences in any order, some of none.
    Any(usize),
    /// All positions of all sequences in order, every other sequence in documents of so many.
    Batch(usize),
}

pub(crate) fn cases(desc: &CudaKernelDesc) -> Vec<Case> {
    use Tokens::{Any, Batch};
    let exact: &[(Tokens, [usize; 6])] = &[
        (Any(1), [1, 1, 8, 1, 0, 0]),
        (Any(7), [4, 2, 15, 9, 0, 0]),
        (Any(7), [4, 2, 15, 9, 5, 2]),
        (Any(33), [6, 1, 64, 40, 5, 2]),
        (Batch(7), [7, 7, 40, 33, 0, 0]),
        (Any(40), [2, 2, 128, 300, 0, 0]),
        (Any(20), [5, 1, 256, 70, 17, 0]),
    ];
    let bounded: &[(Tokens, [usize; 6])] = &[
        (Any(17), [4, 2, 64, 70, 0, 0]),
        (Any(130), [4, 1, 64, 200, 33, 3]),
        (Any(300), [2, 2, 128, 200, 0, 0]),
        (Batch(50), [8, 2, 64, 130, 0, 0]),
        (Batch(100), [2, 2, 64, 512, 0, 0]),
        (Batch(64), [3, 1, 64, 320, 70, 5]),
        (Batch(33), [4, 4, 128, 100, 0, 0]),
        (Batch(90), [2, 1, 128, 256, 40, 2]),
        // More tokens than a word has bits for tiles of 64.
        (Batch(300), [2, 1, 64, 700, 0, 0]),
    ];
    let sizes = if desc.accuracy == Accuracy::Exact { exact } else { bounded };
    sizes.iter().map(|&(tokens, sizes)| case(desc, tokens, sizes)).collect()
}

fn case(desc: &CudaKernelDesc, tokens: Tokens, [heads, kv_heads, hd, ctx, window, sinks]: [usize; 6]) -> Case {
    let mut random = Random::new((heads * 31 + hd + ctx) as u64);
    let mut below = |limit: usize| random.below(limit as u64) as i32;
    let (label, mut places) = match tokens {
        Tokens::Any(n) => {
            let mut any = || {
                // One before and one behind the sequences that there are.
                let (seq, pos) = (below(SEQS + 2) - 1, below(ctx));
                let first = if below(3) == 0 { below(pos as usize + 1) } else { 0 };
                (seq, pos, [first, if below(4) == 0 { below(ctx) } else { 0 }])
            };
            ("random", (0..n).map(|_| any()).collect::<Vec<_>>())
        }
        Tokens::Batch(document) => {
            let of = |token: usize| {
                let (seq, pos) = (token / ctx, token % ctx);
                (seq as i32, pos as i32, [if seq % 2 == 0 { 0 } else { (pos / document * document) as i32 }, 0])
            };
            ("batch", (0..SEQS * ctx).map(of).collect())
        }
    };
    if let (Tokens::Any(_), Some(first)) = (tokens, places.first_mut()) {
        first.0 = 0;
    }
    let n = places.len();
    let dtype = desc.inputs[0];
    let mut numbers = |count: usize| rows(dtype, &random.floats(count as u64), hd);
    let (queries, caches) = (n * heads * hd, SEQS * kv_heads * ctx * hd);
    let [q, k, v, dy] = [queries, caches, caches, queries].map(&mut numbers);
    let attention = Attention {
        sizes: [n, heads, kv_heads, hd, ctx],
        scale: f64::from((hd as f32).sqrt().recip()),
        mask: Mask { window: window as u32, sinks: sinks as u32 },
        q: widened(dtype, &q),
        k: widened(dtype, &k),
        places: places.clone(),
    };
    let mut args = vec![(q, 16), (k, 16)];
    let ids = |each: &dyn Fn(&TokenPlace) -> Vec<i32>| (i32s(&places.iter().flat_map(each).collect::<Vec<_>>()), 4);
    let of_places = [ids(&|place| vec![place.0]), ids(&|place| vec![place.1]), ids(&|place| place.2.to_vec())];
    let bytes = match desc.family {
        Family::AttentionLse => {
            args.extend(of_places);
            4 * n * heads
        }
        family => {
            let (values, pulls) = (widened(dtype, &v), widened(dtype, &dy));
            let (mut lse, mut delta) = (Vec::new(), Vec::new());
            attention.each(|query| {
                lse.push(query.lse() as f32);
                let pull = |(row, score): (&usize, &f64)| {
                    let (dy, v) = (&pulls[query.at * hd..][..hd], &values[row * hd..][..hd]);
                    (score - query.lse()).exp() * dot(dy, v)
                };
                delta.push(query.rows.iter().zip(&query.scores).map(pull).sum::<f64>() as f32);
            });
            args.push((v, 16));
            args.extend(of_places);
            args.extend([(dy, 16), (f32s(&lse), 4), (f32s(&delta), 4)]);
            if family == Family::QueryGradient { 4 * queries } else { 8 * caches }
        }
    };
    args.push((vec![0xFF; bytes], 4));
    let scale_bits = (hd as f32).sqrt().recip().to_bits() as usize;
    let dims = [n, heads, kv_heads, hd, ctx, window, sinks, scale_bits, SEQS].map(|dim| dim as i64).to_vec();
    Case { label, dims, args }
}

/// The sequence, the position and the span of a token.
type TokenPlace = (i32, i32, [i32; 2]);

/// What scores are made of.
struct Attention {
    sizes: [usize; 5],
    scale: f64,
    mask: Mask,
    q: Vec<f64>,
    k: Vec<f64>,
    /// Sequence, position and span of each token.
    places: Vec<TokenPlace>,
}

/// A head of a token, with the rows of the caches that it sees.
struct Query {
    /// Its row among those of all tokens and heads.
    at: usize,
    rows: Vec<usize>,
    scores: Vec<f64>,
    /// How far each score may be off.
    errors: Vec<f64>,
}

impl Attention {
    fn each(&self, mut visit: impl FnMut(Query)) {
        let [n, heads, kv_heads, hd, ctx] = self.sizes;
        for at in 0..n * heads {
            let (seq, pos, [first, reach]) = self.places[at / heads];
            let span = Span { first: first as u32, reach: reach as u32 };
            let is_known = (0..SEQS as i32).contains(&seq);
            let row_0 = (seq.max(0) as usize * kv_heads + at % heads / (heads / kv_heads)) * ctx;
            let visible = (0..ctx).filter(|&key| is_known && self.mask.visible(pos as u32, span, key as u32));
            let rows: Vec<usize> = visible.map(|key| row_0 + key).collect();
            let q = &self.q[at * hd..][..hd];
            let key = |row: &usize| &self.k[row * hd..][..hd];
            let scores: Vec<f64> = rows.iter().map(|row| self.scale * dot(q, key(row))).collect();
            let sizes = rows.iter().map(|row| dot_of_sizes(q, key(row)));
            let errors = sizes
                .zip(&scores)
                .map(|(size, score)| self.scale * ULP * (hd + 8) as f64 * size + 4.0 * ULP * score.abs());
            let errors = errors.collect();
            visit(Query { at, rows, scores, errors });
        }
    }
}

impl Query {
    fn lse(&self) -> f64 {
        let most = self.scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = self.scores.iter().map(|score| (score - most).exp()).sum();
        if self.rows.is_empty() { 0.0 } else { most + sum.ln() }
    }
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

fn dot_of_sizes(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(left, right)| (left * right).abs()).sum()
}

fn widened(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        DType::BF16 => halves(bytes).into_iter().map(f64::from).collect(),
        _ => floats(bytes),
    }
}

fn floats(bytes: &[u8]) -> Vec<f64> {
    crate::check::floats(bytes).into_iter().map(f64::from).collect()
}

/// What a row must write.
pub(crate) fn expected(desc: &CudaKernelDesc, case: &Case, rounding: Rounding) -> Vec<Expected> {
    let dim = |name: &str| case.dim(desc, name) as usize;
    let bytes = |name: &str| {
        let at = desc.signature.args.iter().position(|arg| arg.name == name).expect("an argument of the row");
        case.args[at].0.as_slice()
    };
    let words = |name: &str| -> Vec<i32> {
        bytes(name).as_chunks::<4>().0.iter().map(|four| i32::from_le_bytes(*four)).collect()
    };
    let dtype = desc.inputs[0];
    let (seq, pos, span, hd) = (words("seq"), words("pos"), words("span"), dim("hd"));
    let attention = Attention {
        sizes: [dim("n"), dim("heads"), dim("kv_heads"), hd, dim("ctx")],
        scale: f64::from(f32::from_bits(dim("scale_bits") as u32)),
        mask: Mask { window: dim("window") as u32, sinks: dim("sinks") as u32 },
        q: widened(dtype, bytes("q")),
        k: widened(dtype, bytes("k")),
        places: (0..seq.len()).map(|token| (seq[token], pos[token], [span[2 * token], span[2 * token + 1]])).collect(),
    };
    let near = 1.0 / (1 << 20) as f64;
    let lost = |terms: usize| ULP * (terms + 64) as f64;
    let count = bytes("out").len() / 4;
    if desc.family == Family::AttentionLse {
        let mut expected = Vec::with_capacity(count);
        attention.each(|query| {
            let (value, error) = (query.lse(), query.errors.iter().copied().fold(0.0, f64::max));
            let bound = error + near + lost(query.rows.len()) + 4.0 * ULP * value.abs();
            expected.push(Expected { value, bound: if query.rows.is_empty() { 0.0 } else { bound } });
        });
        return expected;
    }
    let (v, dy, lse, delta) =
        (widened(dtype, bytes("v")), widened(dtype, bytes("dy")), floats(bytes("lse")), floats(bytes("delta")));
    let mut sums = vec![Sum::default(); count];
    let scale = attention.scale;
    attention.each(|query| {
        let at = query.at;
        let (own_q, own_dy) = (&attention.q[at * hd..][..hd], &dy[at * hd..][..hd]);
        for ((&row, score), error) in query.rows.iter().zip(&query.scores).zip(&query.errors) {
            let (key, value) = (&attention.k[row * hd..][..hd], &v[row * hd..][..hd]);
            let off = error + 4.0 * ULP * (score.abs() + lse[at].abs()) + near + rounding.weights;
            let part = (score - lse[at]).exp();
            let turn = part * (dot(own_dy, value) - delta[at]) * scale;
            let off_pull = ULP * (hd + 8) as f64 * dot_of_sizes(own_dy, value) + 2.0 * ULP * delta[at].abs();
            let off_turn = off.exp_m1() * turn.abs() + off.exp() * part * off_pull * scale;
            let mut add = |place: usize, (factor, off): (f64, f64), numbers: &[f64]| {
                for (sum, number) in sums[place * hd..][..hd].iter_mut().zip(numbers) {
                    sum.value += factor * number;
                    sum.error += off * number.abs();
                    sum.size += (factor.abs() + off) * number.abs();
                    sum.terms += 1;
                }
            };
            if desc.family == Family::QueryGradient {
                add(at, (turn, off_turn), key);
            } else {
                add(row, (turn, off_turn), own_q);
                add(count / hd / 2 + row, (part, off.exp_m1() * part), own_dy);
            }
        }
    });
    let expected = |sum: Sum| Expected { value: sum.value, bound: sum.error + lost(sum.terms) * sum.size };
    sums.into_iter().map(expected).collect()
}

/// A sum of products, with what its terms are off by and what they are without their signs.
#[derive(Clone, Copy, Default)]
struct Sum {
    value: f64,
    error: f64,
    size: f64,
    terms: usize,
}

/// Whole batches: sequences, positions of each, heads, KV heads and head dimension.
const BATCHES: [[i64; 5]; 4] =
    [[64, 1024, 8, 2, 64], [8, 1024, 12, 12, 64], [8, 1024, 16, 16, 64], [4, 2048, 16, 16, 128]];

/// Times a row of attention or of its gradients for whole batches.
pub(crate) fn bench(gpu: &Gpu, compiler: &Compiler, desc: &'static CudaKernelDesc) -> Result<()> {
    for [seqs, ctx, heads, kv_heads, hd] in BATCHES {
        let n = seqs * ctx;
        let dim = |name: &str| match name {
            "n" => n,
            "seqs" => seqs,
            "ctx" => ctx,
            "heads" => heads,
            "kv_heads" => kv_heads,
            "hd" => hd,
            "scale_bits" => i64::from((hd as f32).sqrt().recip().to_bits()),
            _ => 0,
        };
        if !(desc.takes)(&dim) {
            continue;
        }
        let [queries, caches] =
            [n * heads, n * kv_heads].map(|rows| [desc.inputs[0], desc.inputs[1]].map(|ty| repeated(ty, rows, hd)));
        let (q, k) = (gpu.upload(&queries[0])?, gpu.upload(&caches[1])?);
        let (seq, pos) =
            (numbers(gpu, (0..n).map(|i| (i / ctx) as i32))?, numbers(gpu, (0..n).map(|i| (i % ctx) as i32))?);
        let span = numbers(gpu, vec![0; 2 * n as usize])?;
        // An lse that no score is far above.
        let [lse, delta] = [8.0_f32, 0.0].map(|value| f32s(&vec![value; (n * heads) as usize]));
        let (lse, delta) = (gpu.upload(&lse)?, gpu.upload(&delta)?);
        let (products, out) = match desc.family {
            Family::AttentionLse => (1, n * heads),
            Family::QueryGradient => (3, n * heads * hd),
            Family::CacheGradient => (4, 2 * n * kv_heads * hd),
            _ => (2, n * heads * hd),
        };
        let out = gpu.allocate(4 * out as usize)?;
        let all = |name: &str| match name {
            "q" | "dy" => &q,
            "k" | "v" => &k,
            "seq" => &seq,
            "pos" => &pos,
            "span" => &span,
            "lse" => &lse,
            "delta" => &delta,
            _ => &out,
        };
        let addresses = desc.signature.args.iter().map(|arg| Buffer::address(all(arg.name))).collect();
        let one = launch(desc, load(gpu, compiler, desc, &dim)?, addresses, &dim);
        let seconds = median(gpu.time(&gpu.record(&[one.clone(), one])?, 7)?) / 2.0;
        let pairs = (seqs * ctx * (ctx + 1) / 2) as f64;
        println!(
            "{} {seqs} x {ctx}, heads={heads}/{kv_heads} hd={hd}: {:.1} us, {:.0} TFLOP/s",
            desc.name,
            seconds * 1e6,
            2e-12 * pairs * (products * heads * hd) as f64 / seconds
        );
    }
    Ok(())
}
