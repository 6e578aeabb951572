//! Cases for the kernels of gradients: what has to come out is what the ops' own semantics say.

use half::bf16;
use ir::DType;
use ir::op::attention::{AttentionCacheGradient, AttentionLse, AttentionQueryGradient};
use ir::op::gather::ScatterAdd;
use ir::op::matmul::{Form, Gemm};
use ir::op::{Concrete, Op, OpDef, Real};
use ir::reference::Tensor;
use ir::{Shape, mask::Mask};
use tritter_kernels::{Family, KernelDesc};

use super::{Buffer, Case, Expected, Random};

fn tensor(dims: &[usize], values: &[f32]) -> Tensor {
    Tensor::of(DType::F32, dims, values.iter().map(|&value| f64::from(value)))
}

fn integers(dims: &[usize], values: &[i32]) -> Tensor {
    Tensor::of(DType::I32, dims, values.iter().map(|&value| f64::from(value)))
}

/// Everything within so much of its own size and of the largest.
fn near(result: &Tensor, relative: f64) -> Expected {
    let largest = result.data.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    Expected::Near(result.data.iter().map(|&value| (value, relative * (value.abs() + largest))).collect())
}

pub(crate) fn gradients(desc: &KernelDesc, check: &mut dyn FnMut(Case)) {
    for (n, heads, kv_heads, hd, ctx) in
        [(0, 2, 1, 8, 3), (1, 1, 1, 1, 1), (7, 4, 2, 15, 9), (33, 6, 1, 64, 40), (70, 4, 4, 33, 70), (5, 2, 1, 16, 300)]
    {
        for mask in [Mask::default(), Mask { window: 5, sinks: 2 }] {
            check(gradient(desc, [n, heads, kv_heads, hd, ctx], mask));
        }
    }
}

fn gradient(desc: &KernelDesc, [n, heads, kv_heads, hd, ctx]: [usize; 5], mask: Mask) -> Case {
    const SEQS: usize = 2;
    let mut random = Random::new(n * 31 + hd);
    let dtype = desc.inputs[0];
    let mut numbers = |count: usize| match dtype {
        DType::BF16 => random.floats(count).into_iter().map(|value| bf16::from_f32(value).to_f32()).collect(),
        _ => random.floats(count),
    };
    let (q, dy) = (numbers(n * heads * hd), numbers(n * heads * hd));
    let (k, v) = (numbers(SEQS * kv_heads * ctx * hd), numbers(SEQS * kv_heads * ctx * hd));
    let seq: Vec<i32> = (0..n).map(|_| random.below(SEQS) as i32).collect();
    let pos: Vec<i32> = (0..n).map(|_| random.below(ctx) as i32).collect();
    let first =
        |random: &mut Random, pos: i32| if random.below(3) == 0 { random.below(pos as usize + 1) as i32 } else { 0 };
    let span: Vec<i32> = pos
        .iter()
        .flat_map(|&pos| [first(&mut random, pos), if random.below(4) == 0 { random.below(ctx) as i32 } else { 0 }])
        .collect();
    let scale = (hd as f32).sqrt().recip();
    let (real, Mask { window, sinks }) = (Real::new(f64::from(scale)), mask);
    let (queries, caches) = ([n, heads, hd], [SEQS, kv_heads, ctx, hd]);
    let of_queries = [tensor(&queries, &q), tensor(&caches, &k)];
    let places = [integers(&[n], &seq), integers(&[n], &pos), integers(&[n, 2], &span)];
    let lse_op = Op::AttentionLse(AttentionLse { scale: real, window, sinks });
    let lse_inputs: Vec<&Tensor> = of_queries.iter().chain(&places).collect();
    let lse = lse_op.reference(&lse_inputs, &Concrete { dtype: DType::F32, dims: vec![n, heads] });
    let lse: Vec<f32> = lse.data.iter().map(|&value| value as f32).collect();
    // Any number will do.
    let delta = random.floats(n * heads);
    let others = [tensor(&caches, &v), tensor(&queries, &dy), tensor(&[n, heads], &lse), tensor(&[n, heads], &delta)];
    let [value, pull, lse_tensor, delta_tensor] = &others;
    let mut inputs = lse_inputs;
    let (op, dims) = match desc.family {
        Family::AttentionLse => (lse_op, vec![n, heads]),
        Family::QueryGradient => (Op::from(AttentionQueryGradient { scale: real, window, sinks }), queries.to_vec()),
        _ => (Op::from(AttentionCacheGradient { scale: real, window, sinks }), vec![2, SEQS, kv_heads, ctx, hd]),
    };
    let buffer = |values: &[f32]| match dtype {
        DType::BF16 => {
            let bytes = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
            Buffer { bytes, align: 2 }
        }
        _ => Buffer::f32(values),
    };
    let places = [&seq, &pos, &span].map(|values| Buffer::i32(values));
    let mut buffers: Vec<Buffer> = [buffer(&q), buffer(&k)].into_iter().chain(places).collect();
    if desc.family != Family::AttentionLse {
        inputs.insert(2, value);
        inputs.extend([pull, lse_tensor, delta_tensor]);
        buffers.insert(2, buffer(&v));
        buffers.extend([buffer(&dy), Buffer::f32(&lse), Buffer::f32(&delta)]);
    }
    let result = op.reference(&inputs, &Concrete { dtype: DType::F32, dims });
    let sizes = [n, heads, kv_heads, hd, ctx, window as usize, sinks as usize, scale.to_bits() as usize, SEQS];
    Case {
        label: format!("{mask:?}"),
        dims: sizes.iter().map(|&size| size as i64).collect(),
        inputs: buffers,
        output: Buffer::f32(&vec![f32::NAN; result.data.len()]),
        expected: near(&result, 1e-5),
    }
}

pub(crate) fn products(desc: &KernelDesc, check: &mut dyn FnMut(Case)) {
    for (n, k, m) in [(0, 3, 4), (1, 1, 1), (5, 17, 3), (16, 64, 33), (37, 100, 20), (3, 0, 2)] {
        for (at, form) in Form::ALL.into_iter().enumerate() {
            let mut random = Random::new(n + k + at);
            // Whole numbers have exact sums, which are then rounded once.
            let whole = |random: &mut Random| random.below(9) as f32 - 4.0;
            let mut half = |count: usize| -> Vec<bf16> {
                let values = match desc.output {
                    DType::BF16 => (0..count).map(|_| whole(&mut random)).collect(),
                    _ => random.floats(count),
                };
                values.into_iter().map(bf16::from_f32).collect()
            };
            let (x, w) = (half(n * k), half(k * m));
            let wide = |values: &[bf16], dims: [usize; 2]| {
                Tensor::of(DType::BF16, &dims, values.iter().map(|value| value.to_f64()))
            };
            let buffer = |values: &[bf16]| Buffer {
                bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                align: 2,
            };
            let out = Concrete { dtype: desc.output, dims: vec![n, m] };
            let x_dims = if form == Form::Tn { [k, n] } else { [n, k] };
            let w_dims = if form == Form::Nt { [m, k] } else { [k, m] };
            let gemm = Gemm { form, to: desc.output };
            let result = gemm.reference(&[&wide(&x, x_dims), &wide(&w, w_dims)], &out);
            let (output, expected) = match desc.output {
                DType::BF16 => {
                    let rounded: Vec<bf16> = result.data.iter().map(|&value| bf16::from_f64(value)).collect();
                    (buffer(&vec![bf16::NAN; n * m]), Expected::Bytes(buffer(&rounded).bytes))
                }
                _ => (Buffer::f32(&vec![f32::NAN; n * m]), near(&result, 1e-6)),
            };
            let dims = [n, k, m, at].map(|size| size as i64).to_vec();
            check(Case { label: format!("{form:?}"), dims, inputs: vec![buffer(&x), buffer(&w)], output, expected });
        }
    }
}

pub(crate) fn scatters(_: &KernelDesc, check: &mut dyn FnMut(Case)) {
    for (n, rows, width) in [(0, 3, 4), (1, 1, 1), (5, 3, 17), (100, 64, 8), (300, 129, 96), (64, 1000, 20)] {
        let mut random = Random::new(n + width);
        let x = random.floats(n * width);
        // Some of them outside.
        let ids: Vec<i32> = (0..n).map(|_| random.below(rows + 4) as i32 - 2).collect();
        let op = ScatterAdd { shape: Shape::of(&[rows as u64, width as u64]) };
        let out = Concrete { dtype: DType::F32, dims: vec![rows, width] };
        let result = op.reference(&[&tensor(&[n, width], &x), &integers(&[n], &ids)], &out);
        check(Case {
            label: "random".to_owned(),
            dims: [n, rows, width].map(|size| size as i64).to_vec(),
            inputs: vec![Buffer::f32(&x), Buffer::i32(&ids)],
            output: Buffer::f32(&vec![f32::NAN; rows * width]),
            expected: near(&result, 1e-6),
        });
    }
}

pub(crate) fn transposed(desc: &KernelDesc, check: &mut dyn FnMut(Case)) {
    let layout = desc.layout.unwrap();
    for n in [0, 1, 7, 8, 9, 31] {
        for (m, k) in [(1, 1), (15, 16), (16, 15), (17, 33), (48, 64), (331, 45), (64, 200)] {
            let mut random = Random::new(n * 1009 + m * 31 + k);
            let (x, scale, w) = (random.floats(n * m), random.floats(m), random.ternary(m * k));
            let mut expected = Vec::new();
            for token in 0..n {
                for c in 0..k {
                    let terms = (0..m).map(|r| (x[token * m + r] * scale[r]) * f32::from(w[r * k + c]));
                    expected.extend(terms.fold(0.0_f32, |sum, term| sum + term).to_le_bytes());
                }
            }
            check(Case {
                label: "random".to_owned(),
                dims: vec![n as i64, k as i64, m as i64],
                inputs: vec![
                    Buffer::f32(&x),
                    Buffer::bytes(layout.encode(&w, m as u64, k as u64)),
                    Buffer::f32(&scale),
                ],
                output: Buffer::unwritten(n * k),
                expected: Expected::Bytes(expected),
            });
        }
    }
}

pub(crate) fn unpacked(desc: &KernelDesc, check: &mut dyn FnMut(Case)) {
    let layout = desc.layout.unwrap();
    for (m, k) in [(1, 1), (15, 16), (16, 15), (17, 33), (48, 64), (331, 45), (64, 200)] {
        let w = Random::new(m * 31 + k).ternary(m * k);
        let values = w.iter().map(|&value| bf16::from_f32(f32::from(value)));
        check(Case {
            label: "random".to_owned(),
            dims: vec![m as i64, k as i64],
            inputs: vec![Buffer::bytes(layout.encode(&w, m as u64, k as u64))],
            output: Buffer { bytes: vec![0xFF; 2 * m * k], align: 2 },
            expected: Expected::Bytes(values.flat_map(bf16::to_le_bytes).collect()),
        });
    }
}

pub(crate) fn means(desc: &KernelDesc, check: &mut dyn FnMut(Case)) {
    for (n, k) in [(0_usize, 3_usize), (1, 1), (1, 100_003), (3, 511), (40, 513)] {
        for least in [0.0_f32, 1e-5, 3.0] {
            let mut random = Random::new(n + k);
            let real = random.floats(n * k);
            let (buffer, real) = match desc.inputs[0] {
                DType::BF16 => {
                    let narrow: Vec<bf16> = real.iter().map(|&value| bf16::from_f32(value)).collect();
                    let bytes = narrow.iter().flat_map(|value| value.to_le_bytes()).collect();
                    (Buffer { bytes, align: 2 }, narrow.into_iter().map(bf16::to_f32).collect())
                }
                _ => (Buffer::f32(&real), real),
            };
            let mean = |row: &[f32]| {
                let sum: f64 = row.iter().map(|value| f64::from(value.abs())).sum();
                ((sum / row.len() as f64) as f32).max(least)
            };
            let expected: Vec<u8> = real.chunks(k).flat_map(|row| mean(row).to_le_bytes()).collect();
            check(Case {
                label: format!("at least {least}"),
                dims: vec![n as i64, k as i64, i64::from(least.to_bits())],
                inputs: vec![buffer],
                output: Buffer::f32(&vec![f32::NAN; n]),
                expected: Expected::Bytes(expected),
            });
        }
    }
}
