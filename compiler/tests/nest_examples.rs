//! The nests that lowering makes, as it makes them: each runs as generated code and is near a plain formula in f64.

#[path = "nest_support/mod.rs"]
mod support;

use support::{Random, check, check_over, f32_bytes, i32_bytes, read_f32};
use tritter_compiler::nest::{Elem, ExprId, Extent, Index, NestBuilder, ReduceOp, UnaryOp, Verified, Write};

const EPS: f32 = 1e-5;

fn plain(random: &mut Random, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.plain()).collect()
}

fn assert_close(actual: &[f32], expected: &[f64], bound: f64) {
    assert_eq!(actual.len(), expected.len());
    for (at, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        assert!((f64::from(*actual) - expected).abs() <= bound, "element {at}: {actual}, expected {expected}");
    }
}

/// A row-major index `[rows, k]` of the outermost axis.
fn rows(k: u64) -> Index {
    Index::at(0).outer(0, k as i64).column(1)
}

/// The factor of an RMS norm over the columns of `x`: `1 / sqrt(mean(x^2) + eps)`.
fn inverse_rms(b: &mut NestBuilder, x: ExprId, k: u64) -> ExprId {
    let square = b.mul(x, x);
    let sum = b.reduce(ReduceOp::Sum, Extent::Const(k), square);
    let (count, eps) = (b.f32(k as f32), b.f32(EPS));
    let mean = b.div(sum, count);
    let shifted = b.add(mean, eps);
    let inverse = b.unary(UnaryOp::Rsqrt, shifted);
    b.scalar(inverse)
}

fn rms_norm_quantise(k: u64) -> Verified {
    let mut b = NestBuilder::new("rms_norm_quantise");
    let (x, w, y) = (b.input("x", Elem::F32), b.input("w", Elem::F32), b.output("y", Elem::Q8 { k }));
    let n = b.dim("n");
    b.outer(n);
    let x = b.load(x, rows(k));
    let inverse = inverse_rms(&mut b, x, k);
    let w = b.load(w, Index::at(0).column(1));
    let normed = b.mul(x, inverse);
    let scaled = b.mul(normed, w);
    b.store_row(y, Index::at(0).outer(0, 1), scaled);
    b.finish().unwrap()
}

fn rms_norm_f64(x: &[f32], w: &[f32]) -> Vec<f64> {
    let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
    let inverse = 1.0 / (mean + f64::from(EPS)).sqrt();
    x.iter().zip(w).map(|(x, w)| f64::from(*x) * inverse * f64::from(*w)).collect()
}

#[test]
fn rms_norm_and_quantise() {
    let mut random = Random::new(1);
    for k in [5, 64, 100] {
        let (n, size) = (4, k as usize);
        let (x, w) = (plain(&mut random, n * size), plain(&mut random, size));
        let elem = Elem::Q8 { k };
        let out = vec![0; n * elem.stride() as usize];
        let buffers = [f32_bytes(x.clone()), f32_bytes(w.clone()), out];
        let results = check(&rms_norm_quantise(k), &buffers, &[n as i64], &mut random);
        let format = elem.row_format().unwrap();
        for (row, record) in results[2].chunks_exact(format.stride()).enumerate() {
            let expected = rms_norm_f64(&x[row * size..][..size], &w);
            let mut decoded = vec![0.0; size];
            format.decode(record, &mut decoded);
            let absmax = expected.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
            assert_close(&decoded, &expected, absmax / 254.0 * 1.001);
        }
    }
}

#[test]
fn rms_norm_and_quantise_reads_well() {
    let text = rms_norm_quantise(64).to_string();
    let expected = "\
nest rms_norm_quantise(n; x: f32, w: f32, y: write q8[64])
for i0 in n {
  s0: f32 = sum j in 64 {
    e0 = x[64*i0 + j]
    e0 * e0
  }
  s1: f32 = {
    rsqrt((s0 / 64.0) + 1e-5)
  }
  quantise j in 64 {
    y[i0] = (x[64*i0 + j] * s1) * w[j]
  }
}
";
    assert_eq!(text, expected);
}

#[test]
fn gated_relu2_then_norm_then_quantise() {
    let (mut random, k, n) = (Random::new(2), 72_u64, 3_usize);
    let size = k as usize;
    let mut b = NestBuilder::new("relu2_mul_rms_norm_quantise");
    let (gate, up, w) = (b.input("gate", Elem::F32), b.input("up", Elem::F32), b.input("w", Elem::BF16));
    let y = b.output("y", Elem::Q8 { k });
    let rows_axis = b.dim("n");
    b.outer(rows_axis);
    // gate and up are the halves of one merged projection.
    let (gate, up) = (b.load(gate, rows(2 * k)), b.load(up, rows(2 * k)));
    let squared = b.relu2(gate);
    let h = b.mul(squared, up);
    let inverse = inverse_rms(&mut b, h, k);
    let w = b.load(w, Index::at(0).column(1));
    let normed = b.mul(h, inverse);
    let scaled = b.mul(normed, w);
    b.store_row(y, Index::at(0).outer(0, 1), scaled);
    let nest = b.finish().unwrap();

    let merged = plain(&mut random, n * 2 * size);
    let up = f32_bytes(merged[size..].iter().copied());
    let weights: Vec<_> = plain(&mut random, size).into_iter().map(half::bf16::from_f32).collect();
    let elem = Elem::Q8 { k };
    let buffers = [
        f32_bytes(merged.clone()),
        up,
        weights.iter().flat_map(|w| w.to_le_bytes()).collect(),
        vec![0; n * elem.stride() as usize],
    ];
    let results = check(&nest, &buffers, &[n as i64], &mut random);
    let format = elem.row_format().unwrap();
    let weights: Vec<_> = weights.iter().map(|w| w.to_f32()).collect();
    for (row, record) in results[3].chunks_exact(format.stride()).enumerate() {
        let (gate, up) = merged[row * 2 * size..][..2 * size].split_at(size);
        let h: Vec<_> = gate.iter().zip(up).map(|(gate, up)| gate.max(0.0).powi(2) * up).collect();
        let expected = rms_norm_f64(&h, &weights);
        let mut decoded = vec![0.0; size];
        format.decode(record, &mut decoded);
        let absmax = expected.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
        assert_close(&decoded, &expected, absmax / 254.0 * 1.001);
    }
}

/// The residual is updated in place, then normalised from where it was stored.
#[test]
fn residual_add_then_layer_norm() {
    let (mut random, k, n) = (Random::new(3), 50_u64, 3_usize);
    let size = k as usize;
    let mut b = NestBuilder::new("add_layer_norm");
    let (x, w, bias) = (b.input("x", Elem::F32), b.input("w", Elem::F32), b.input("bias", Elem::F32));
    let (r, y) = (b.output("r", Elem::F32), b.output("y", Elem::F32));
    let rows_axis = b.dim("n");
    b.outer(rows_axis);
    let columns = Extent::Const(k);
    let (x, old) = (b.load(x, rows(k)), b.load(r, rows(k)));
    let sum = b.add(old, x);
    b.store(columns, r, rows(k), sum);
    let count = b.f32(k as f32);
    let total = b.reduce(ReduceOp::Sum, columns, old);
    let mean = b.div(total, count);
    let centred = b.sub(old, mean);
    let square = b.mul(centred, centred);
    let total = b.reduce(ReduceOp::Sum, columns, square);
    let variance = b.div(total, count);
    let eps = b.f32(EPS);
    let shifted = b.add(variance, eps);
    let inverse = b.unary(UnaryOp::Rsqrt, shifted);
    let (w, bias) = (b.load(w, Index::at(0).column(1)), b.load(bias, Index::at(0).column(1)));
    let normed = b.mul(centred, inverse);
    let scaled = b.mul(normed, w);
    let moved = b.add(scaled, bias);
    b.store(columns, y, rows(k), moved);
    let nest = b.finish().unwrap();

    let [x, r] = [0, 1].map(|_| plain(&mut random, n * size));
    let [w, bias] = [0, 1].map(|_| plain(&mut random, size));
    let buffers = [x.clone(), w.clone(), bias.clone(), r.clone(), vec![0.0; n * size]].map(f32_bytes);
    let results = check(&nest, &buffers, &[n as i64], &mut random);
    let sums: Vec<f32> = x.iter().zip(&r).map(|(x, r)| r + x).collect();
    assert_eq!(read_f32(&results[3]), sums);
    let expected: Vec<f64> = sums
        .chunks_exact(size)
        .flat_map(|row| {
            let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            let mean = row.iter().sum::<f64>() / size as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / size as f64;
            let inverse = 1.0 / (variance + f64::from(EPS)).sqrt();
            let of = |at: usize, x: f64| (x - mean) * inverse * f64::from(w[at]) + f64::from(bias[at]);
            row.into_iter().enumerate().map(|(at, x)| of(at, x)).collect::<Vec<_>>()
        })
        .collect();
    assert_close(&read_f32(&results[4]), &expected, 1e-5);
}

/// Rotary embedding over `[n, heads]` rows, in place: both halves of a head are computed before either is stored. The angles come from the
/// positions, so nothing is tabulated.
#[test]
fn rope_in_place() {
    let (mut random, n, heads, half) = (Random::new(4), 5_usize, 3_usize, 20_usize);
    let d = 2 * half;
    let mut b = NestBuilder::new("rope");
    let (positions, frequencies) = (b.input("positions", Elem::I32), b.input("frequencies", Elem::F32));
    let x = b.output("x", Elem::F32);
    let rows_axis = b.dim("n");
    b.outer(rows_axis);
    b.outer(Extent::Const(heads as u64));
    let place = |offset: usize| Index::at(offset as i64).outer(0, (heads * d) as i64).outer(1, d as i64).column(1);
    let (low, high) = (b.load(x, place(0)), b.load(x, place(half)));
    let position = b.load(positions, Index::at(0).outer(0, 1));
    let position = b.unary(UnaryOp::ToF32, position);
    let frequency = b.load(frequencies, Index::at(0).column(1));
    let angle = b.mul(position, frequency);
    let (sin, cos) = (b.unary(UnaryOp::Sin, angle), b.unary(UnaryOp::Cos, angle));
    let (a, c) = (b.mul(low, cos), b.mul(high, sin));
    let rotated_low = b.sub(a, c);
    let (a, c) = (b.mul(high, cos), b.mul(low, sin));
    let rotated_high = b.add(a, c);
    b.store_all(
        Extent::Const(half as u64),
        vec![
            Write { buffer: x, index: place(0), value: rotated_low },
            Write { buffer: x, index: place(half), value: rotated_high },
        ],
    );
    let nest = b.finish().unwrap();

    let values = plain(&mut random, n * heads * d);
    let frequencies: Vec<f32> = (0..half).map(|i| 10_000_f32.powf(-(i as f32) / half as f32)).collect();
    let positions: Vec<i32> = (0..n).map(|at| at as i32 * 30_011).collect();
    let buffers = [i32_bytes(positions.iter().copied()), f32_bytes(frequencies.clone()), f32_bytes(values.clone())];
    let results = check(&nest, &buffers, &[n as i64], &mut random);
    let expected: Vec<f64> = (0..values.len())
        .map(|at| {
            let (token, within) = (at / (heads * d), at % d);
            let head = at - within;
            let angle = f64::from(positions[token] as f32 * frequencies[within % half]);
            let (low, high) = (f64::from(values[head + within % half]), f64::from(values[head + within % half + half]));
            if within < half { low * angle.cos() - high * angle.sin() } else { high * angle.cos() + low * angle.sin() }
        })
        .collect();
    assert_close(&read_f32(&results[2]), &expected, 2e-6);
}

#[test]
fn embedding_of_bf16_rows_takes_the_nearest_row_of_a_bad_id() {
    let (mut random, vocabulary, width) = (Random::new(5), 11_usize, 37_usize);
    let mut b = NestBuilder::new("embedding");
    let (table, ids, y) = (b.input("table", Elem::BF16), b.input("ids", Elem::I32), b.output("y", Elem::F32));
    let n = b.dim("n");
    b.outer(n);
    let id = b.load(ids, Index::at(0).outer(0, 1));
    let row = Index::at(0).gather(id, Extent::Const(vocabulary as u64), width as i64).column(1);
    let value = b.load(table, row);
    b.store(Extent::Const(width as u64), y, rows(width as u64), value);
    let nest = b.finish().unwrap();

    let table: Vec<_> = plain(&mut random, vocabulary * width).into_iter().map(half::bf16::from_f32).collect();
    let ids = [3, 0, 10, 11, i32::MAX, -1, i32::MIN];
    let buffers =
        [table.iter().flat_map(|each| each.to_le_bytes()).collect(), i32_bytes(ids), vec![0; ids.len() * width * 4]];
    let results = check(&nest, &buffers, &[ids.len() as i64], &mut random);
    let expected: Vec<f32> = [3, 0, 10, 10, 10, 0, 0]
        .iter()
        .flat_map(|row: &usize| table[row * width..][..width].iter().map(|each| each.to_f32()))
        .collect();
    assert_eq!(read_f32(&results[2]), expected);
}

/// Rows whose length only a call knows, and one fully masked row as in attention: minus infinity everywhere but at one place.
#[test]
fn softmax_of_rows_of_a_runtime_length() {
    let mut random = Random::new(6);
    for len in [1_usize, 7, 32, 61, 130] {
        let mut b = NestBuilder::new("softmax");
        let (x, y) = (b.input("x", Elem::F32), b.output("y", Elem::F32));
        b.outer(Extent::Const(3));
        let columns = b.dim("len");
        // Rows lie 200 apart, whatever their length.
        let place = Index::at(0).outer(0, 200).column(1);
        let value = b.load(x, place.clone());
        let max = b.reduce(ReduceOp::Max, columns, value);
        let below = b.sub(value, max);
        let power = b.unary(UnaryOp::Exp, below);
        b.store(columns, y, place.clone(), power);
        let stored = b.load(y, place.clone());
        let sum = b.reduce(ReduceOp::Sum, columns, stored);
        let share = b.div(stored, sum);
        b.store(columns, y, place, share);
        let nest = b.finish().unwrap();

        let mut values: Vec<f32> = plain(&mut random, 600).into_iter().map(|x| x * 5.0).collect();
        values[400..600].fill(f32::NEG_INFINITY);
        values[400 + len / 2] = -3.0;
        let buffers = [f32_bytes(values.clone()), f32_bytes(vec![0.0; 600])];
        let results = check(&nest, &buffers, &[len as i64], &mut random);
        let shares = read_f32(&results[1]);
        for row in 0..3 {
            let x = &values[row * 200..][..len];
            let max = x.iter().fold(f64::NEG_INFINITY, |max, x| max.max(f64::from(*x)));
            let powers: Vec<f64> = x.iter().map(|x| (f64::from(*x) - max).exp()).collect();
            let sum: f64 = powers.iter().sum();
            let expected: Vec<f64> = powers.iter().map(|power| power / sum).collect();
            assert_close(&shares[row * 200..][..len], &expected, 5e-7);
            assert!(shares[row * 200 + len..(row + 1) * 200].iter().all(|share| *share == 0.0));
        }
    }
}

#[test]
fn argmax_of_rows_is_the_first_of_equals() {
    let (mut random, len) = (Random::new(7), 1003_usize);
    let mut b = NestBuilder::new("argmax");
    let (x, y) = (b.input("x", Elem::F32), b.output("y", Elem::I32));
    let n = b.dim("n");
    b.outer(n);
    let value = b.load(x, rows(len as u64));
    let best = b.reduce(ReduceOp::ArgMax, Extent::Const(len as u64), value);
    b.store(Extent::Const(1), y, Index::at(0).outer(0, 1), best);
    let nest = b.finish().unwrap();

    let mut values = plain(&mut random, 4 * len);
    for (row, at) in [(0, 1002), (1, 500), (1, 37), (1, 69)] {
        values[row * len + at] = 100.0;
    }
    values[2 * len..3 * len].fill(f32::NAN);
    values[3 * len..].fill(f32::NEG_INFINITY);
    let buffers = [f32_bytes(values), i32_bytes([9; 4])];
    let results = check(&nest, &buffers, &[4], &mut random);
    assert_eq!(results[1], i32_bytes([1002, 37, 0, 0]));
}

/// `[n, h, d]` to `[h, n, d]` with a constant `n`, and to a transposed matrix.
#[test]
fn copies_between_strided_views() {
    let (n, h, d) = (3_usize, 4_usize, 9_usize);
    let mut b = NestBuilder::new("permute");
    let (x, y, z) = (b.input("x", Elem::F32), b.output("y", Elem::F32), b.output("z", Elem::F32));
    b.outer(Extent::Const(n as u64));
    b.outer(Extent::Const(h as u64));
    let value = b.load(x, Index::at(0).outer(0, (h * d) as i64).outer(1, d as i64).column(1));
    let swapped = Index::at(0).outer(0, d as i64).outer(1, (n * d) as i64).column(1);
    let transposed = Index::at(0).outer(0, h as i64).outer(1, 1).column((n * h) as i64);
    b.store_all(
        Extent::Const(d as u64),
        vec![Write { buffer: y, index: swapped, value }, Write { buffer: z, index: transposed, value }],
    );
    let nest = b.finish().unwrap();
    let values: Vec<f32> = (0..n * h * d).map(|at| at as f32).collect();
    let zeros = f32_bytes(vec![0.0; values.len()]);
    let results = check(&nest, &[f32_bytes(values), zeros.clone(), zeros], &[], &mut Random::new(8));
    let (y, z) = (read_f32(&results[1]), read_f32(&results[2]));
    for (row, (i, j)) in (0..n).flat_map(|i| (0..h).map(move |j| (i, j))).enumerate() {
        for k in 0..d {
            let value = (row * d + k) as f32;
            assert_eq!((y[(j * n + i) * d + k], z[k * n * h + row]), (value, value));
        }
    }
}

/// What composes from the exponential: saturating at both ends, never NaN.
#[test]
fn logistic_functions() {
    let mut b = NestBuilder::new("logistic");
    let x = b.input("x", Elem::F32);
    let outputs = ["sigmoid", "silu", "tanh"].map(|name| b.output(name, Elem::F32));
    let columns = b.dim("len");
    let place = Index::at(0).column(1);
    let value = b.load(x, place.clone());
    let values = [b.sigmoid(value), b.silu(value), b.tanh(value)];
    let writes = outputs.iter().zip(values);
    b.store_all(columns, writes.map(|(&buffer, value)| Write { buffer, index: place.clone(), value }).collect());
    let nest = b.finish().unwrap();
    let values: Vec<f32> = (-400..=400).map(|at| at as f32 * 0.5).collect();
    let zeros = f32_bytes(vec![0.0; values.len()]);
    let buffers = [f32_bytes(values.clone()), zeros.clone(), zeros.clone(), zeros];
    let results = check(&nest, &buffers, &[values.len() as i64], &mut Random::new(9));
    let of = |f: fn(f64) -> f64| -> Vec<f64> { values.iter().map(|x| f(f64::from(*x))).collect() };
    assert_close(&read_f32(&results[1]), &of(|x| 1.0 / (1.0 + (-x).exp())), 3e-7);
    assert_close(&read_f32(&results[2]), &of(|x| x / (1.0 + (-x).exp())), 3e-6);
    assert_close(&read_f32(&results[3]), &of(f64::tanh), 3e-7);
}

/// What a test changes of the nest below.
#[derive(Clone, Copy, PartialEq)]
enum Twist {
    None,
    /// The last stage reads the number of the target again.
    HitAtTheEnd,
    /// The number of the target is a scalar, behind which nobody waits.
    HitAsScalar,
    /// The last stage reads the next column.
    Shifted,
    /// A fold reads the row of another unit.
    OtherRow,
    /// Something is read when all is written.
    ReadAfter,
}

/// A loss of a row of logits, and its gradient: folds of the row, one number of it, and a result for each column.
fn loss(columns: u64, elem: Elem, twist: Twist) -> (Verified, usize, usize) {
    let mut b = NestBuilder::new("loss");
    let (x, targets) = (b.input("x", elem), b.input("targets", Elem::I32));
    let (losses, gradient) = (b.output("losses", Elem::F32), b.output("gradient", elem));
    let n = b.dim("n");
    b.outer(n);
    let len = Extent::Const(columns);
    let logit = b.load(x, rows(columns));
    let offset = if twist == Twist::OtherRow { columns as i64 } else { 0 };
    let folded = b.load(x, Index::at(offset).outer(0, columns as i64).column(1));
    let largest = b.reduce(ReduceOp::Max, len, folded);
    let difference = b.sub(logit, largest);
    let power = b.unary(UnaryOp::Exp, difference);
    let sum = b.reduce(ReduceOp::Sum, len, power);
    let target = b.load(targets, Index::at(0).outer(0, 1));
    let mut hit = b.load(x, Index::at(0).outer(0, columns as i64).gather(target, len, 1));
    if twist == Twist::HitAsScalar {
        hit = b.scalar(hit);
    }
    let log = b.unary(UnaryOp::Log, sum);
    let total = b.add(log, largest);
    let missed = b.sub(total, hit);
    if twist != Twist::HitAsScalar {
        b.store(Extent::Const(1), losses, Index::at(0).outer(0, 1), missed);
    }
    let mut part = b.div(power, sum);
    match twist {
        Twist::HitAtTheEnd | Twist::HitAsScalar => part = b.sub(part, hit),
        Twist::Shifted => {
            let next = b.load(x, Index::at(1).outer(0, columns as i64).column(1));
            part = b.sub(part, next);
        }
        Twist::None | Twist::OtherRow | Twist::ReadAfter => {}
    }
    b.store(len, gradient, rows(columns), part);
    if twist == Twist::ReadAfter {
        let sum = b.reduce(ReduceOp::Sum, len, logit);
        let again = b.output("again", Elem::F32);
        b.store(Extent::Const(1), again, Index::at(0).outer(0, 1), sum);
    }
    (b.finish().unwrap(), gradient, x)
}

#[test]
fn gradients_of_logits_may_lie_over_them() {
    let mut random = Random::new(40);
    for (columns, n) in [(1, 3), (37, 5), (64, 2), (1000, 3)] {
        for elem in [Elem::F32, Elem::BF16] {
            let (nest, gradient, x) = loss(columns, elem, Twist::None);
            assert!(nest.may_lie_on(gradient, x));
            assert!(!nest.may_lie_on(x, gradient) && !nest.may_lie_on(gradient, 1));
            let count = columns as usize * n;
            let content = |random: &mut Random| match elem {
                Elem::F32 => f32_bytes(plain(random, count)),
                _ => plain(random, count).into_iter().flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            };
            let ids = i32_bytes((0..n).map(|at| at as i32 * 7 % columns as i32));
            let buffers = [content(&mut random), ids, vec![0; 4 * n], content(&mut random)];
            check(&nest, &buffers, &[n as i64], &mut random);
            check_over(&nest, &buffers, &[n as i64], &mut random, (gradient, x));
        }
    }
    for twist in [Twist::HitAtTheEnd, Twist::HitAsScalar, Twist::Shifted, Twist::OtherRow, Twist::ReadAfter] {
        let (nest, gradient, x) = loss(64, Elem::F32, twist);
        assert!(!nest.may_lie_on(gradient, x), "{}", *nest);
    }
}
