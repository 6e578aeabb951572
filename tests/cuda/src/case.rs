//! Inputs for a kernel of each family, around the edges of its tiles.

use half::bf16;
use ir::DType;
use ir::packing::{RowFormat, TernaryLayout};
use kernels::Family;
use kernels::cuda::{Accuracy, CudaKernelDesc};

use crate::gradient;

/// One call of a kernel.
pub(crate) struct Case {
    pub(crate) label: &'static str,
    /// In the order of the signature.
    pub(crate) dims: Vec<i64>,
    /// Every argument in the order of the signature: what it holds before the call, and the alignment that the contract asks for.
    pub(crate) args: Vec<(Vec<u8>, usize)>,
}

impl Case {
    /// The value of a dim of the row.
    pub(crate) fn dim(&self, desc: &CudaKernelDesc, name: &str) -> i64 {
        let at = desc.signature.dims.iter().position(|dim| *dim == name).expect("the dim is one of the signature");
        self.dims[at]
    }
}

/// Numbers that depend on nothing but their seed (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Between -2 and 2; one in eight is exactly zero, of either sign.
    pub(crate) fn float(&mut self) -> f32 {
        match self.below(16) {
            0 => 0.0,
            1 => -0.0,
            _ => (self.below(1 << 24) as f32 / (1 << 22) as f32) - 2.0,
        }
    }

    pub(crate) fn floats(&mut self, count: u64) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}

/// All cases of a row.
pub(crate) fn cases(desc: &CudaKernelDesc) -> Vec<Case> {
    match desc.family {
        Family::TernaryMatmul | Family::DenseMatmul => matmuls(desc),
        Family::Attention => attentions(desc),
        Family::KvAppend => appends(desc),
        Family::RopeAppend => rope_appends(desc),
        Family::RopeAttention => rope_attentions(desc),
        Family::Sample => samples(),
        Family::AttentionLse | Family::QueryGradient | Family::CacheGradient => gradient::cases(desc),
        // A library computes it.
        Family::Gemm => Vec::new(),
        Family::ScatterAdd => scatters(),
        Family::MeanAbs => means(desc),
        Family::TernaryMatmulTransposed => transposed(),
        Family::Unpack => unpacked(),
    }
}

pub(crate) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(crate) fn i32s(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Rows of `k` numbers in a dtype.
pub(crate) fn rows(dtype: DType, values: &[f32], k: usize) -> Vec<u8> {
    match dtype {
        DType::BF16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        DType::Q8 | DType::Q4 => {
            let format = RowFormat::new(dtype, k).expect("the dtype is a row format");
            let mut bytes = vec![0; values.len() / k * format.stride()];
            for (row, record) in values.chunks(k).zip(bytes.chunks_mut(format.stride())) {
                format.encode(row, record);
            }
            bytes
        }
        _ => f32s(values),
    }
}

/// The alignment that activations have.
fn alignment(dtype: DType) -> usize {
    if dtype == DType::Q8 { 8 } else { 4 }
}

fn matmuls(desc: &CudaKernelDesc) -> Vec<Case> {
    let mut cases = Vec::new();
    let is_grouped = desc.inputs[1] == DType::Q4;
    let ks: &[u64] = if is_grouped { &[64, 128, 640] } else { &[1, 15, 16, 17, 40, 63, 64, 65, 331, 512, 1040, 2560] };
    let all = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 64, 100, 129, 260];
    let tokens: Vec<u64> = all.into_iter().filter(|n| desc.tokens.contains(n)).collect();
    for (at, &k) in ks.iter().enumerate() {
        // Some sizes with each k, since each pair is a program of its own; and each pair with some numbers of tokens.
        for m in [1, 15, 16, 17, 33, 64, 100, 129, 257].into_iter().skip(at % 3).step_by(3) {
            for n in tokens.iter().copied().skip(m as usize % 2).step_by(2) {
                cases.push(matmul(desc, "random", n, k, m, &mut |random| random.float()));
            }
        }
    }
    if desc.tile.is_some() {
        // More tiles than blocks, so that a block has several.
        for (k, m) in [(200, 5000), (331, 4999)] {
            cases.push(matmul(desc, "turns", 1100, k, m, &mut |random| random.float()));
        }
    }
    if *desc.tokens.end() == 8 {
        // Sizes for which blocks are large or share columns.
        for (k, m) in [(331, 12_800), (2560, 13_824), (4113, 79), (6912, 160), (6912, 2560), (7001, 161)] {
            for n in [3, 8] {
                cases.push(matmul(desc, "blocks", n, k, m, &mut |random| random.float()));
            }
        }
    }
    for &n in tokens.iter().take(4) {
        // Sums as large as they get.
        let k = if is_grouped { 5120 } else { 20_509 };
        cases.push(matmul(desc, "extreme", n, k, 33, &mut |_| -1.0));
        cases.push(matmul(desc, "deep", n, k, 33, &mut |random| random.float()));
    }
    cases
}

fn matmul(
    desc: &CudaKernelDesc,
    label: &'static str,
    n: u64,
    k: u64,
    m: u64,
    x: &mut dyn FnMut(&mut Random) -> f32,
) -> Case {
    let mut random = Random::new(n * 1_000_003 + k * 1009 + m);
    let activations: Vec<f32> = (0..n * k).map(|_| x(&mut random)).collect();
    let mut args = vec![(rows(desc.inputs[0], &activations, k as usize), alignment(desc.inputs[0]))];
    let mut dims = vec![n as i64, k as i64, m as i64];
    if let Some(layout) = desc.layout {
        let w: Vec<i8> = (0..m * k).map(|_| if label == "extreme" { -1 } else { random.below(3) as i8 - 1 }).collect();
        args.push((TernaryLayout::encode(layout, &w, m, k), 16));
        args.push((f32s(&random.floats(m)), 4));
    } else {
        let group = if k.is_multiple_of(128) { 128 } else { 64 };
        let width = if desc.inputs[1] == DType::Q4 { group } else { k };
        let w: Vec<f32> = if label == "extreme" { vec![-1.0; (m * k) as usize] } else { random.floats(m * k) };
        args.push((rows(desc.inputs[1], &w, width as usize), 16));
        if desc.inputs[1] == DType::Q4 {
            dims.push(group as i64);
        }
    }
    args.push((vec![0xFF; (4 * n * m) as usize], 4));
    Case { label, dims, args }
}

fn attentions(desc: &CudaKernelDesc) -> Vec<Case> {
    let mut cases = Vec::new();
    let tokens: Vec<u64> = [1, 2, 5, 16, 17, 70].into_iter().filter(|n| desc.tokens.contains(n)).collect();
    let is_bounded = desc.accuracy != Accuracy::Exact;
    for (heads, kv_heads, hd, ctx, window, sinks) in [
        (1, 1, 64, 70, 0, 0),
        (4, 2, 128, 200, 0, 0),
        (4, 2, 128, 200, 33, 3),
        (6, 2, 40, 130, 0, 0),
        (20, 5, 128, 1100, 0, 0),
        (20, 5, 128, 2300, 1200, 70),
        (8, 1, 96, 64, 17, 0),
        (4, 2, 15, 90, 0, 0),
        (5, 1, 256, 300, 0, 0),
    ] {
        for &n in &tokens {
            cases.push(attention(desc, "random", n, [heads, kv_heads, hd, ctx, window, sinks]));
        }
    }
    // What is in no row's way must be nearly exact: queries that are bf16 already.
    for (sizes, tokens) in [
        ([8, 2, 64, 1000, 0, 0], [1, 16, 257]),
        ([4, 1, 128, 600, 130, 9], [2, 16, 130]),
        ([8, 1, 128, 4098, 0, 0], [1, 3, 17]),
        ([12, 6, 128, 1100, 0, 0], [1, 5, 20]),
        ([7, 7, 64, 700, 300, 20], [1, 4, 70]),
    ] {
        for n in tokens.into_iter().filter(|n| is_bounded && desc.tokens.contains(n)) {
            cases.push(attention(desc, "bf16 queries", n, sizes));
        }
    }
    // All positions of both sequences, which meet within a block.
    for sizes in [[8, 2, 64, 130, 0, 0], [2, 2, 64, 512, 0, 0], [4, 1, 128, 200, 33, 3]] {
        let n = 2 * sizes[3];
        if is_bounded && desc.tokens.contains(&n) {
            cases.push(attention(desc, "batch", n, sizes));
        }
    }
    cases
}

fn attention(
    desc: &CudaKernelDesc,
    label: &'static str,
    n: u64,
    [heads, kv_heads, hd, ctx, window, sinks]: [u64; 6],
) -> Case {
    let mut random = Random::new(n * 7919 + heads * 31 + hd + ctx + window);
    let seqs = 2;
    let mut q = random.floats(n * heads * hd);
    if label == "bf16 queries" {
        q.iter_mut().for_each(|q| *q = bf16::from_f32(*q).to_f32());
    }
    let k = random.floats(seqs * ctx * kv_heads * hd);
    let v = random.floats(seqs * ctx * kv_heads * hd);
    // Tokens of many sequences in any order, or two prompts one after the other.
    let mut seq: Vec<i32> = (0..n).map(|_| random.below(seqs) as i32).collect();
    let mut pos: Vec<i32> = (0..n).map(|_| random.below(ctx) as i32).collect();
    if label != "random" && n <= ctx {
        seq = (0..n).map(|token| i32::from(n * 2 / 3 <= token)).collect();
        pos = (0..n).map(|token| (ctx - n + token) as i32).collect();
    }
    if label == "batch" {
        seq = (0..n).map(|token| (token / ctx) as i32).collect();
        pos = (0..n).map(|token| (token % ctx) as i32).collect();
    }
    let mut span = Vec::new();
    for position in &pos {
        let first = if random.below(3) == 0 { random.below(*position as u64 + 1) as i32 } else { 0 };
        span.extend([first, if random.below(4) == 0 { random.below(ctx) as i32 } else { 0 }]);
    }
    let scale = (hd as f32).sqrt().recip();
    Case {
        label,
        dims: [n, heads, kv_heads, hd, ctx, window, sinks]
            .map(|dim| dim as i64)
            .into_iter()
            .chain([i64::from(scale.to_bits())])
            .collect(),
        args: vec![
            (f32s(&q), 4),
            (rows(desc.inputs[1], &k, hd as usize), 16),
            (rows(*desc.inputs.get(2).unwrap_or(&desc.inputs[1]), &v, hd as usize), 16),
            (i32s(&seq), 4),
            (i32s(&pos), 4),
            (i32s(&span), 4),
            (vec![0xFF; (4 * n * heads * hd) as usize], 4),
        ],
    }
}

fn scatters() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, rows, width) in [(1_u64, 1_u64, 1_u64), (5, 3, 17), (100, 40, 128), (300, 129, 96), (64, 1000, 200)] {
        let mut random = Random::new(n + width);
        let x = random.floats(n * width);
        // Some of them outside.
        let ids: Vec<i32> = (0..n).map(|_| random.below(rows + 4) as i32 - 2).collect();
        let out = vec![0xFF; (4 * rows * width) as usize];
        let args = vec![(f32s(&x), 4), (i32s(&ids), 4), (out, 4)];
        cases.push(Case { label: "random", dims: [n, rows, width].map(|dim| dim as i64).to_vec(), args });
    }
    cases
}

fn transposed() -> Vec<Case> {
    let mut cases = Vec::new();
    for (m, k) in [(1_u64, 1_u64), (15, 17), (128, 128), (331, 129), (300, 640)] {
        for n in [1_u64, 7, 8, 33] {
            let mut random = Random::new(n * 1_000_003 + k * 1009 + m);
            let w: Vec<i8> = (0..m * k).map(|_| random.below(3) as i8 - 1).collect();
            let args = vec![
                (f32s(&random.floats(n * m)), 4),
                (TernaryLayout::Tile16.encode(&w, m, k), 16),
                (f32s(&random.floats(m)), 4),
                (vec![0xFF; 4 * (n * k) as usize], 4),
            ];
            cases.push(Case { label: "random", dims: [n, k, m].map(|dim| dim as i64).to_vec(), args });
        }
    }
    cases
}

fn unpacked() -> Vec<Case> {
    let sizes = [(1_u64, 1_u64), (15, 17), (128, 128), (331, 129), (40, 264), (300, 640)];
    let case = |(m, k): (u64, u64)| {
        let mut random = Random::new(k * 1009 + m);
        let w: Vec<i8> = (0..m * k).map(|_| random.below(3) as i8 - 1).collect();
        let args = vec![(TernaryLayout::Tile16.encode(&w, m, k), 16), (vec![0xFF; 2 * (m * k) as usize], 16)];
        Case { label: "random", dims: [m, k].map(|dim| dim as i64).to_vec(), args }
    };
    sizes.map(case).into()
}

fn means(desc: &CudaKernelDesc) -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, k) in [(1_u64, 1_u64), (1, 100_003), (3, 511), (40, 513), (257, 96)] {
        for least in [0.0_f32, 1e-5, 3.0] {
            let mut random = Random::new(n + k);
            let weights = rows(desc.inputs[0], &random.floats(n * k), k as usize);
            let args = vec![(weights, 4), (vec![0xFF; 4 * n as usize], 4)];
            let dims = vec![n as i64, k as i64, i64::from(least.to_bits())];
            cases.push(Case { label: "random", dims, args });
        }
    }
    cases
}

fn appends(desc: &CudaKernelDesc) -> Vec<Case> {
    let mut cases = Vec::new();
    for n in [1_u64, 3, 17] {
        for (kv_heads, hd) in [(1_u64, 64_u64), (3, 40), (5, 128), (2, 15)] {
            let mut random = Random::new(n * 31 + hd);
            let (ctx, seqs) = (24_u64, 2_u64);
            let x_stride = kv_heads * hd + 8;
            let x = rows_to_append(&mut random, n * x_stride);
            let (seq, pos) = places(n, seqs, ctx);
            let cache = random.floats(seqs * ctx * kv_heads * hd);
            cases.push(Case {
                label: "random",
                dims: [n, kv_heads, hd, ctx, x_stride, seqs].map(|dim| dim as i64).to_vec(),
                args: vec![
                    (f32s(&x), 4),
                    (i32s(&seq), 4),
                    (i32s(&pos), 4),
                    (rows(desc.output, &cache, hd as usize), 16),
                ],
            });
        }
    }
    cases
}

/// Among others no number, infinities, and what lies between two bf16.
fn rows_to_append(random: &mut Random, count: u64) -> Vec<f32> {
    let mut x = random.floats(count);
    let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MAX];
    x.iter_mut().skip(1).step_by(3).zip(values).for_each(|(x, value)| *x = value);
    x
}

/// A sequence and a position of its own for each token, and one outside.
fn places(n: u64, seqs: u64, ctx: u64) -> (Vec<i32>, Vec<i32>) {
    let seq = (0..n).map(|token| (token % seqs) as i32).collect();
    let pos = (0..n).map(|token| if token == 2 { ctx as i32 } else { token as i32 }).collect();
    (seq, pos)
}

fn rope_appends(desc: &CudaKernelDesc) -> Vec<Case> {
    let mut cases = Vec::new();
    let sizes = [(1, 1, 64), (4, 2, 128), (20, 5, 128), (6, 3, 40), (7, 7, 30), (8, 1, 256), (34, 1, 16), (12, 2, 130)];
    for (at, (heads, kv_heads, hd)) in sizes.into_iter().enumerate() {
        for n in [1, 2, 3, 5, 16, 17, 70].into_iter().filter(|n| desc.tokens.contains(n)) {
            let mut random = Random::new(n * 31 + heads * 7 + hd);
            let (ctx, seqs) = (71, 2);
            // Of one buffer, as they come from a joined product, or with gaps of any size.
            let joined = (heads + 2 * kv_heads) * hd;
            let [q_stride, k_stride, v_stride] =
                if at % 2 == 0 { [joined; 3] } else { [heads * hd + 8, kv_heads * hd + 3, kv_heads * hd + 5] };
            let [q, k, v] = [q_stride, k_stride, v_stride].map(|stride| f32s(&rows_to_append(&mut random, n * stride)));
            let [cos, sin] = [(); 2].map(|()| f32s(&random.floats(n * hd / 2)));
            let (seq, pos) = places(n, seqs, ctx);
            let caches = [1, 2].map(|input| {
                let cache = random.floats(seqs * ctx * kv_heads * hd);
                (rows(desc.inputs[input], &cache, hd as usize), 16)
            });
            let dims = [n, heads, kv_heads, hd, ctx, q_stride, k_stride, v_stride, seqs];
            let rotated = (vec![0xFF; (4 * n * heads * hd) as usize], 4);
            let args = [q, k, v, cos, sin, i32s(&seq), i32s(&pos)].map(|bytes| (bytes, 4));
            cases.push(Case {
                label: "random",
                dims: dims.map(|dim| dim as i64).to_vec(),
                args: args.into_iter().chain([rotated]).chain(caches).collect(),
            });
        }
    }
    cases
}

/// Calls of an attention with its queries not yet turned and the new keys and values not yet in the caches; tokens see all older keys, or windows, or spans
/// that end before the token, or behind it, and one has no place.
fn rope_attentions(desc: &CudaKernelDesc) -> Vec<Case> {
    let mut cases = Vec::new();
    for [heads, kv_heads, hd, ctx, window, sinks] in [
        [1, 1, 64, 70, 0, 0],
        [4, 2, 128, 200, 33, 3],
        [20, 5, 128, 1100, 0, 0],
        [20, 5, 128, 2300, 1200, 70],
        [8, 1, 128, 4098, 0, 0],
        [12, 6, 128, 1100, 0, 0],
        [7, 7, 64, 700, 300, 20],
        [48, 6, 128, 900, 100, 0],
    ] {
        let (end, window_start) = (ctx as i32, (ctx - window.max(1)) as i32);
        for (label, pos, first, reach) in [
            ("first", 0, 0, 0),
            ("second", 1, 0, 0),
            ("middle", end / 2 + 1, 0, 0),
            ("last", end - 1, 0, 0),
            ("from", end - 2, window_start / 2, 0),
            ("reach", end / 3, 0, end),
            ("apart", end - 1, 0, end / 4),
            ("unseen", end / 2, end / 2 + 3, 0),
            ("outside", end, 0, 0),
        ] {
            let mut case = attention(desc, label, 1, [heads, kv_heads, hd, ctx, window, sinks]);
            let mut random = Random::new(heads * 7 + hd + ctx + pos as u64);
            let strides = [(heads + 2 * kv_heads) * hd, kv_heads * hd + 3, kv_heads * hd];
            let new = strides.map(|stride| (f32s(&random.floats(stride)), 4));
            let tables = [(); 2].map(|()| (f32s(&random.floats(hd / 2)), 4));
            let [_, k, v, seq, _, _, out] = <[_; 7]>::try_from(case.args).expect("the arguments of an attention");
            let places = [seq, (i32s(&[pos]), 4), (i32s(&[first, reach]), 4)];
            case.args = new.into_iter().chain(tables).chain(places).chain([k, v, out]).collect();
            case.dims.extend(strides.iter().map(|stride| *stride as i64).chain([2]));
            cases.push(case);
        }
        // Tokens of two sequences that see each other's rows, or of sequences of their own.
        for n in [2, 5, 8].into_iter().filter(|n| desc.tokens.contains(n)) {
            for label in ["prompts", "mixed"] {
                let mut case = attention(desc, "prompts", n, [heads, kv_heads, hd, ctx, window, sinks]);
                let mut random = Random::new(heads * 7 + hd + ctx + n);
                let strides = [(heads + 2 * kv_heads) * hd, kv_heads * hd + 3, kv_heads * hd];
                let new = strides.map(|stride| (f32s(&random.floats(n * stride)), 4));
                let tables = [(); 2].map(|()| (f32s(&random.floats(n * hd / 2)), 4));
                let [_, k, v, mut seq, mut pos, span, out] =
                    <[_; 7]>::try_from(case.args).expect("the arguments of an attention");
                if label == "mixed" {
                    // Places far from each other, in no order; one is outside.
                    let place = |token: i32| if token == 1 { end } else { (token * 37 + 5) % end };
                    seq = (i32s(&(0..n as i32).map(|token| token % 2).collect::<Vec<_>>()), 4);
                    pos = (i32s(&(0..n as i32).map(place).collect::<Vec<_>>()), 4);
                }
                case.label = label;
                case.args = new.into_iter().chain(tables).chain([seq, pos, span, k, v, out]).collect();
                case.dims.extend(strides.iter().map(|stride| *stride as i64).chain([2]));
                cases.push(case);
            }
        }
    }
    cases
}

/// Rows of logits with every combination of filters: all kinds of numbers, equals among them, and rows without any.
fn samples() -> Vec<Case> {
    let mut cases = Vec::new();
    for v in [1_u64, 2, 31, 33, 1000, 20_011] {
        let mut random = Random::new(v);
        let (mut logits, mut settings, mut draws) = (Vec::new(), Vec::new(), Vec::new());
        for temperature in [0.0, 0.7, 1.0, 40.0, f32::INFINITY, -1.0] {
            for (top_k, top_p, min_p) in [
                (0.0, 1.0, 0.0),
                (5.0, 1.0, 0.0),
                (0.0, 0.9, 0.0),
                (40.0, 0.5, 0.0),
                (0.0, 1.0, 0.3),
                (3.0, 0.0, 0.01),
                (0.0, 0.9, 1.5),
                (f32::NAN, f32::NAN, f32::NAN),
            ] {
                for kind in 0..4 {
                    logits.extend((0..v).map(|id| match kind {
                        0 => random.float() * 8.0,
                        // Few values, so many equals.
                        1 => random.float().round(),
                        2 => [f32::NAN, f32::NEG_INFINITY, -0.0, 0.0, 3.5][random.below(5) as usize],
                        _ => {
                            if id + 1 == v {
                                f32::INFINITY
                            } else {
                                f32::NEG_INFINITY
                            }
                        }
                    }));
                    settings.extend([temperature, top_k, top_p, min_p]);
                    draws.extend([random.next() as i32, (random.next() as i32) << 8]);
                }
            }
        }
        let n = settings.len() / 4;
        cases.push(Case {
            label: "filters",
            dims: vec![n as i64, v as i64],
            args: vec![(f32s(&logits), 4), (f32s(&settings), 4), (i32s(&draws), 4), (vec![0xFF; 4 * n], 4)],
        });
    }
    cases
}
