//! Does every row of the kernel table compute what its family means?
//!
//! For each row that this CPU can run, over sizes around the edges of its tiles: buffers start at odd places and are guarded on both sides,
//! the grid is run whole and in odd pieces in reverse, the result must have the bits of the scalar row, and that must lie within a bound of
//! a plain evaluation in f64. Bounds come from the magnitudes and the number of roundings of the case; where the arithmetic is exact they
//! are 0.

use std::fmt::Write as _;

use half::bf16;
use ir::DType;
use ir::mask::{Mask, Span};
use ir::packing::{RowFormat, TernaryLayout};
use tritter_kernels as kernels;

use kernels::{Family, KernelDesc, TABLE};

/// Half a unit in the last place of 1: the largest relative error of one rounding.
const ROUNDING: f64 = 1.0 / (1_u64 << 24) as f64;
/// The relative error of `exp_f32`.
const EXP_ERROR: f64 = 1.2e-7;
/// Bytes around each buffer that must not change.
const GUARD: usize = 64;

#[test]
fn ternary_matmuls_conform() {
    conform(Family::TernaryMatmul, ternary_cases);
}

#[test]
fn dense_matmuls_conform() {
    conform(Family::DenseMatmul, dense_cases);
}

#[test]
fn attention_conforms() {
    conform(Family::Attention, attention_cases);
}

#[test]
fn kv_appends_conform() {
    conform(Family::KvAppend, append_cases);
}

#[test]
fn gradients_conform() {
    conform(Family::Gemm, training::products);
    conform(Family::AttentionLse, training::gradients);
    conform(Family::QueryGradient, training::gradients);
    conform(Family::CacheGradient, training::gradients);
    conform(Family::TernaryMatmulTransposed, training::transposed);
    conform(Family::Unpack, training::unpacked);
    conform(Family::ScatterAdd, training::scatters);
    conform(Family::MeanAbs, training::means);
}

#[test]
fn samples_conform() {
    conform(Family::Sample, sample_cases);
}

#[path = "conformance/training.rs"]
mod training;

/// One call of a kernel, and what has to come out.
struct Case {
    label: String,
    dims: Vec<i64>,
    inputs: Vec<Buffer>,
    /// What the output holds before the call.
    output: Buffer,
    expected: Expected,
}

/// A buffer's bytes and the alignment that the contract asks for.
#[derive(Clone)]
struct Buffer {
    bytes: Vec<u8>,
    align: usize,
}

enum Expected {
    /// f32 results, each with the distance that it may have.
    Near(Vec<(f64, f64)>),
    /// These bytes.
    Bytes(Vec<u8>),
    /// Whatever the scalar row computes: infinities and NaN.
    AsScalar,
}

/// Holds every available row of `family` to the cases that `cases` makes for it.
fn conform(family: Family, cases: fn(&KernelDesc, &mut dyn FnMut(Case))) {
    let rows: Vec<_> = TABLE.iter().filter(|desc| desc.family == family).collect();
    assert!(!rows.is_empty());
    for desc in rows {
        if !desc.requires.is_available() {
            println!("skipped {}: this machine has no {}", desc.name, desc.requires.isa);
            continue;
        }
        let mut count = 0;
        cases(desc, &mut |case| {
            count += 1;
            check(desc, &case);
        });
        assert!(0 < count, "{} has no case", desc.name);
    }
}

fn check(desc: &KernelDesc, case: &Case) {
    let name: kernels::KernelName = desc.name.parse().unwrap();
    let scalar = kernels::find(&desc.name.replace(name.isa.name(), "scalar")).unwrap();
    let wanted = run(scalar, case, false);
    let at = |text: &str| format!("{} {} {:?}: {text}", desc.name, case.label, case.dims);
    for (pieces, what) in [(false, "whole"), (true, "in pieces")] {
        let got = run(desc, case, pieces);
        if let Some(difference) = first_difference(desc.output, &got, &wanted) {
            panic!("{}", at(&format!("{what}, not as scalar: {difference}")));
        }
    }
    match &case.expected {
        Expected::AsScalar => {}
        Expected::Bytes(bytes) => {
            if let Some(difference) = first_difference(DType::I8, &wanted, bytes) {
                panic!("{}", at(&difference));
            }
        }
        Expected::Near(values) => {
            let results = floats(&wanted);
            assert_eq!(results.len(), values.len(), "{}", at("a result of another length"));
            let outside = |&(index, (expected, bound)): &(usize, (f64, f64))| {
                let distance = (f64::from(results[index]) - expected).abs();
                distance.is_nan() || bound < distance
            };
            let failures: Vec<_> = values.iter().copied().enumerate().filter(outside).collect();
            let mut report = String::new();
            for &(index, (expected, bound)) in failures.iter().take(5) {
                let actual = results[index];
                let _ = writeln!(report, "  [{index}] expected {expected:e}, actual {actual:e}, bound {bound:e}");
            }
            assert!(failures.is_empty(), "{}", at(&format!("{} outside\n{report}", failures.len())));
        }
    }
}

/// Calls the kernel on guarded copies of the buffers, and gives the output.
fn run(desc: &KernelDesc, case: &Case, in_pieces: bool) -> Vec<u8> {
    let entry = kernels::cpu::resolve(desc.name).unwrap_or_else(|error| panic!("{error}"));
    let buffers: Vec<&Buffer> = case.inputs.iter().chain([&case.output]).collect();
    let mut guarded: Vec<Guarded> =
        buffers.iter().enumerate().map(|(index, buffer)| Guarded::new(buffer, index)).collect();
    assert_eq!(guarded.len(), desc.signature.args.len(), "{}", desc.name);
    assert_eq!(case.dims.len(), desc.signature.dims.len(), "{}", desc.name);
    let args: Vec<*mut u8> = guarded.iter_mut().map(Guarded::pointer).collect();
    let dim = |name: &str| case.dims[desc.signature.dims.iter().position(|dim| *dim == name).unwrap()];
    let units = desc.signature.grid.units(dim);
    let mut cuts = vec![0, units];
    if in_pieces {
        cuts.extend([1, units / 3, units / 2 + 1, units - 1].into_iter().filter(|cut| (0..=units).contains(cut)));
        cuts.sort_unstable();
    }
    for cut in cuts.windows(2).rev() {
        // SAFETY: `resolve` has confirmed the CPU; the buffers have the sizes that the dims imply, since each case makes them from its
        // dims; they do not overlap and nobody else uses them; the cuts lie inside the grid.
        unsafe { entry(args.as_ptr(), case.dims.as_ptr(), cut[0], cut[1]) };
    }
    for (index, (guarded, buffer)) in guarded.iter().zip(&buffers).enumerate() {
        let place = || format!("{} {} {:?}: argument {index}", desc.name, case.label, case.dims);
        assert!(guarded.guards_hold(), "{}: written outside", place());
        let is_output = index + 1 == buffers.len();
        assert!(is_output || guarded.bytes() == buffer.bytes, "{}: an input was written", place());
    }
    guarded.last().unwrap().bytes().to_vec()
}

/// A copy of a buffer inside a larger allocation, aligned as little as the contract allows.
struct Guarded {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Guarded {
    fn new(buffer: &Buffer, index: usize) -> Self {
        let len = buffer.bytes.len();
        let mut memory = vec![0xA5; len + 2 * GUARD + 64];
        let base = memory.as_ptr() as usize;
        // The wanted remainder modulo 64 is an odd multiple of the alignment.
        let remainder = (buffer.align * (2 * index + 1)) % 64;
        let start = GUARD + (remainder + 64 - (base + GUARD) % 64) % 64;
        memory[start..start + len].copy_from_slice(&buffer.bytes);
        Self { memory, start, len }
    }

    fn pointer(&mut self) -> *mut u8 {
        self.memory[self.start..].as_mut_ptr()
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    fn guards_hold(&self) -> bool {
        let after = self.start + self.len;
        self.memory[..self.start].iter().chain(&self.memory[after..]).all(|&byte| byte == 0xA5)
    }
}

/// The first place where two outputs differ; two NaNs are alike.
fn first_difference(dtype: DType, got: &[u8], wanted: &[u8]) -> Option<String> {
    if dtype != DType::F32 {
        let index = got.iter().zip(wanted).position(|(got, wanted)| got != wanted)?;
        return Some(format!("byte {index}: expected {}, actual {}", wanted[index], got[index]));
    }
    let (got, wanted) = (floats(got), floats(wanted));
    let differ = |(got, wanted): (&f32, &f32)| got.to_bits() != wanted.to_bits() && !(got.is_nan() && wanted.is_nan());
    let index = got.iter().zip(&wanted).position(differ)?;
    let count = got.iter().zip(&wanted).filter(|pair| differ(*pair)).count();
    Some(format!(
        "[{index}] expected {:e}, actual {:e}, bound 0; {count} of {} outside",
        wanted[index],
        got[index],
        got.len()
    ))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

impl Buffer {
    fn bytes(bytes: Vec<u8>) -> Self {
        Self { bytes, align: 1 }
    }

    fn f32(values: &[f32]) -> Self {
        Self { bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(), align: 4 }
    }

    fn i32(values: &[i32]) -> Self {
        Self { bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(), align: 4 }
    }

    fn bf16(values: &[bf16]) -> Self {
        Self { bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(), align: 2 }
    }

    /// Room for `count` f32, all NaN, so that one that is not written shows.
    fn unwritten(count: usize) -> Self {
        Self::f32(&vec![f32::NAN; count])
    }
}

/// Numbers that differ from run to run of nothing but their seed (xorshift64*).
struct Random(u64);

impl Random {
    fn new(seed: usize) -> Self {
        Self((seed as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Between -2 and 2; one in eight is exactly zero, of either sign.
    fn float(&mut self) -> f32 {
        match self.below(16) {
            0 => 0.0,
            1 => -0.0,
            _ => (self.below(1 << 24) as f32 / (1 << 22) as f32) - 2.0,
        }
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    fn ternary(&mut self, count: usize) -> Vec<i8> {
        (0..count).map(|_| self.below(3) as i8 - 1).collect()
    }
}

/// The numbers of tokens of `grid` that a row takes.
fn tokens(desc: &KernelDesc, grid: &[usize]) -> Vec<usize> {
    grid.iter().copied().filter(|n| desc.tokens.contains(&(*n as u64))).collect()
}

fn ternary_cases(desc: &KernelDesc, check: &mut dyn FnMut(Case)) {
    let layout = desc.layout.unwrap();
    let mut seed = 0;
    for n in tokens(desc, &[0, 1, 2, 3, 4, 5, 8, 11, 12, 13, 15, 31]) {
        for k in [0, 1, 15, 16, 17, 20, 21, 31, 32, 33, 40, 159, 160, 161, 331] {
            for m in [1, 15, 16, 17, 32, 37, 48, 67] {
                seed += 1;
                let mut random = Random::new(seed);
                let w = random.ternary(m * k);
                let scale = random.floats(m);
                let case = match desc.inputs[0] {
                    DType::Q8 => {
                        let x: Vec<i8> = (0..n * k).map(|_| random.below(256) as u8 as i8).collect();
                        q8_case("random", &x, &w, &scale, (n, k, m), layout)
                    }
                    _ => f32_case("random", &random.floats(n * k), &w, &scale, (n, k, m), layout),
                };
                check(case);
            }
        }
    }
    for n in tokens(desc, &[1, 2, 13]) {
        // Sums as large as they get: what saturates or overflows shows here.
        for (x, w) in [(-128, 1), (127, 1), (-128, -1), (127, -1)] {
            // Beyond the piece of 20480 columns that base 3 with AVX-512 adds up at once.
            let (k, m) = (20_509, 33);
            let w = vec![w; m * k];
            let case = match desc.inputs[0] {
                DType::Q8 => q8_case("extreme", &vec![x; n * k], &w, &vec![1.0; m], (n, k, m), layout),
                _ => f32_case("extreme", &vec![f32::from(x); n * k], &w, &vec![1.0; m], (n, k, m), layout),
            };
            check(case);
        }
        if desc.inputs[0] == DType::F32 {
            let mut random = Random::new(n);
            let (k, m) = (45, 19);
            let mut x = random.floats(n * k);
            x[7] = f32::INFINITY;
            x[n * k - 1] = f32::NAN;
            let mut case = f32_case("infinite", &x, &random.ternary(m * k), &random.floats(m), (n, k, m), layout);
            case.expected = Expected::AsScalar;
            check(case);
        }
    }
}

fn q8_case(
    label: &str,
    x: &[i8],
    w: &[i8],
    scale: &[f32],
    (n, k, m): (usize, usize, usize),
    layout: TernaryLayout,
) -> Case {
    let format = RowFormat::new(DType::Q8, k).unwrap();
    let mut records = Vec::new();
    let mut expected = Vec::new();
    for token in 0..n {
        let codes = &x[token * k..][..k];
        let x_scale = 0.5 / (token as f32 + 3.0);
        records.extend(q8_record(codes, x_scale));
        for row in 0..m {
            let w = &w[row * k..][..k];
            let acc: i32 = codes.iter().zip(w).map(|(&code, &w)| i32::from(code) * i32::from(w)).sum();
            expected.push((f64::from(acc as f32 * x_scale * scale[row]), 0.0));
        }
    }
    assert_eq!(records.len(), n * format.stride());
    ternary_case(label, Buffer::bytes(records), w, scale, (n, k, m), layout, expected)
}

fn f32_case(
    label: &str,
    x: &[f32],
    w: &[i8],
    scale: &[f32],
    (n, k, m): (usize, usize, usize),
    layout: TernaryLayout,
) -> Case {
    let mut expected = Vec::new();
    for token in 0..n {
        for row in 0..m {
            let products = (0..k).map(|col| f64::from(x[token * k + col]) * f64::from(w[row * k + col]));
            let magnitude: f64 = products.clone().map(f64::abs).sum();
            // A quarter of the products in each accumulator, two levels of sums, the scale.
            let bound = roundings(k.div_ceil(4) + 3) * magnitude * f64::from(scale[row].abs());
            expected.push((products.sum::<f64>() * f64::from(scale[row]), bound));
        }
    }
    ternary_case(label, Buffer::f32(x), w, scale, (n, k, m), layout, expected)
}

fn ternary_case(
    label: &str,
    x: Buffer,
    w: &[i8],
    scale: &[f32],
    (n, k, m): (usize, usize, usize),
    layout: TernaryLayout,
    expected: Vec<(f64, f64)>,
) -> Case {
    Case {
        label: label.to_owned(),
        dims: vec![n as i64, k as i64, m as i64],
        inputs: vec![x, Buffer::bytes(layout.encode(w, m as u64, k as u64)), Buffer::f32(scale)],
        output: Buffer::unwritten(n * m),
        expected: Expected::Near(expected),
    }
}

/// The relative error that `count` roundings one after the other may add up to.
fn roundings(count: usize) -> f64 {
    let sum = count as f64 * ROUNDING;
    sum / (1.0 - sum)
}

fn dense_cases(desc: &KernelDesc, check: &mut dyn FnMut(Case)) {
    match desc.inputs[1] {
        DType::Q8 => byte_cases(desc, check),
        DType::Q4 => grouped_cases(desc, check),
        _ => float_cases(desc, check),
    }
}

/// One q8 record.
fn q8_record(codes: &[i8], scale: f32) -> Vec<u8> {
    let mut record: Vec<u8> = codes.iter().map(|&code| code as u8).collect();
    record.resize(RowFormat::new(DType::Q8, codes.len()).unwrap().code_bytes(), 0);
    record.extend(scale.to_le_bytes());
    record.extend(codes.iter().map(|&code| i32::from(code)).sum::<i32>().to_le_bytes());
    record
}

fn byte_cases(desc: &KernelDesc, check: &mut dyn FnMut(Case)) {
    let mut seed = 3000;
    for n in tokens(desc, &[0, 1, 2, 3, 4, 5, 7, 8, 13, 16, 19]) {
        for k in [0, 1, 15, 16, 17, 63, 64, 65, 80, 127, 128, 131, 333, 2600] {
            // With 37 rows activations are copied, unless there are 19 of the longest.
            for m in [1, 3, 4, 5, 8, 13, 37] {
                for extreme in [false, true] {
                    if 333 < k && (m != 37 || ![2, 16, 19].contains(&n)) {
                        continue;
                    }
                    seed += 1;
                    let mut random = Random::new(seed);
                    // Products as large as they get, of either sign: what saturates shows here.
                    let mut codes = |count: usize| -> Vec<i8> {
                        let extremes = [-128, 127, -127, -128];
                        let each = |_| if extreme { extremes[random.below(4)] } else { random.below(256) as u8 as i8 };
                        (0..count).map(each).collect()
                    };
                    let (x, w) = (codes(n * k), codes(m * k));
                    let scale = |row: usize| 0.5 / (row as f32 + 3.0);
                    let records = |codes: &[i8], rows: usize| -> Vec<u8> {
                        (0..rows).flat_map(|row| q8_record(&codes[row * k..][..k], scale(row))).collect()
                    };
                    let mut expected = Vec::new();
                    for token in 0..n {
                        for row in 0..m {
                            let pairs = x[token * k..][..k].iter().zip(&w[row * k..][..k]);
                            let acc: i32 = pairs.map(|(&x, &w)| i32::from(x) * i32::from(w)).sum();
                            expected.push((f64::from(acc as f32 * scale(token) * scale(row)), 0.0));
                        }
                    }
                    check(Case {
                        label: if extreme { "extreme".to_owned() } else { "random".to_owned() },
                        dims: vec![n as i64, k as i64, m as i64],
                        inputs: vec![Buffer::bytes(records(&x, n)), Buffer::bytes(records(&w, m))],
                        output: Buffer::unwritten(n * m),
                        expected: Expected::Near(expected),
                    });
                }
            }
        }
    }
}

fn grouped_cases(desc: &KernelDesc, check: &mut dyn FnMut(Case)) {
    let mut seed = 5000;
    for n in tokens(desc, &[0, 1, 2, 3, 5, 8, 13, 16, 17, 33]) {
        for (group, groups) in
            [(64, 0), (64, 1), (64, 3), (64, 40), (128, 1), (128, 5), (192, 2), (64, kernels::MAX_GROUPS)]
        {
            for m in [1, 4, 7, 8] {
                seed += 1;
                if groups == kernels::MAX_GROUPS && 4 < m {
                    continue;
                }
                let mut random = Random::new(seed);
                let k = group * groups;
                let extreme = seed % 3 == 0;
                let x: Vec<i8> =
                    (0..n * k).map(|_| if extreme { -128 } else { random.below(256) as u8 as i8 }).collect();
                let scale = |row: usize| 0.5 / (row as f32 + 3.0);
                let format = RowFormat::new(DType::Q4, group).unwrap();
                let (mut records, mut weights) = (Vec::new(), Vec::new());
                for _ in 0..m * groups {
                    let mut record = vec![0; format.stride()];
                    let row: Vec<f32> = random.floats(group);
                    format.encode(&row, &mut record);
                    if extreme {
                        record[..format.code_bytes()].fill(0xFF);
                    }
                    let numbers = floats(&record[format.code_bytes()..]);
                    let code = |col: usize| f64::from((record[col / 2] >> (4 * (col % 2))) & 15);
                    weights.extend((0..group).map(|col| (code(col) * f64::from(numbers[0]), f64::from(numbers[1]))));
                    records.extend(record);
                }
                let mut expected = Vec::new();
                for token in 0..n {
                    for row in 0..m {
                        let (mut sum, mut magnitude) = (0.0, 0.0);
                        for (&x, &(scaled, minimum)) in x[token * k..][..k].iter().zip(&weights[row * k..][..k]) {
                            sum += f64::from(x) * (scaled + minimum);
                            magnitude += f64::from(x).abs() * (scaled.abs() + minimum.abs());
                        }
                        // One rounding a group, four levels of the tree, the minima and the scale.
                        let bound = roundings(groups + 6) * magnitude * f64::from(scale(token));
                        expected.push((sum * f64::from(scale(token)), bound));
                    }
                }
                let x = (0..n).flat_map(|token| q8_record(&x[token * k..][..k], scale(token))).collect();
                check(Case {
                    label: if extreme { "extreme".to_owned() } else { "random".to_owned() },
                    dims: vec![n as i64, k as i64, m as i64, group as i64],
                    inputs: vec![Buffer::bytes(x), Buffer::bytes(records)],
                    output: Buffer::unwritten(n * m),
                    expected: Expected::Near(expected),
                });
            }
        }
    }
}

fn float_cases(desc: &KernelDesc, check: &mut dyn FnMut(Case)) {
    let mut seed = 1000;
    for n in tokens(desc, &[0, 1, 2, 3, 5, 8, 13]) {
        for k in [0, 1, 31, 32, 33, 63, 64, 65, 97, 257] {
            for m in [1, 2, 3, 4, 5, 7, 8, 13] {
                for special in [false, true] {
                    seed += 1;
                    let mut random = Random::new(seed);
                    let mut x = random.floats(n * k);
                    if special && 0 < n * k {
                        x[(n * k) / 2] = [f32::INFINITY, f32::NAN, 1e-40, f32::MAX][seed % 4];
                    }
                    let w = random.floats(m * k);
                    let halves: Vec<bf16> = w.iter().map(|&value| bf16::from_f32(value)).collect();
                    let is_half = desc.inputs[1] == DType::BF16;
                    let w: Vec<f32> = if is_half { halves.iter().map(|half| half.to_f32()).collect() } else { w };
                    let mut expected = Vec::new();
                    for token in 0..n {
                        for row in 0..m {
                            let products = (0..k).map(|at| f64::from(x[token * k + at]) * f64::from(w[row * k + at]));
                            let magnitude: f64 = products.clone().map(f64::abs).sum();
                            // Each lane has one product in 32, and the tree five levels.
                            expected.push((products.sum(), roundings(k.div_ceil(32) + 5) * magnitude));
                        }
                    }
                    check(Case {
                        label: if special { "special".to_owned() } else { "random".to_owned() },
                        dims: vec![n as i64, k as i64, m as i64],
                        inputs: vec![Buffer::f32(&x), if is_half { Buffer::bf16(&halves) } else { Buffer::f32(&w) }],
                        output: Buffer::unwritten(n * m),
                        expected: if special { Expected::AsScalar } else { Expected::Near(expected) },
                    });
                }
            }
        }
    }
}

/// The masks of the table in `ir::mask`, and their mixtures, as the span of a token at `pos`.
fn span(kind: usize, pos: usize, ctx: usize, random: &mut Random) -> (&'static str, Span) {
    let (name, first, reach) = match kind {
        0 => ("causal", 0, 0),
        1 => ("bidirectional", 0, ctx),
        2 => ("prefix", 0, random.below(ctx + 1)),
        3 => ("document", random.below(pos + 1), 0),
        4 => ("document with a prefix beyond the cache", random.below(pos + 1), ctx + 70),
        _ => ("nothing", pos + 1, 0),
    };
    (name, Span { first: first as u32, reach: reach as u32 })
}

fn attention_cases(desc: &KernelDesc, check: &mut dyn FnMut(Case)) {
    let heads = [(1, 1), (2, 1), (3, 1), (4, 2), (5, 1), (6, 3), (7, 7), (9, 1)];
    let mut seed = 0;
    for hd in [1, 2, 7, 31, 32, 33, 64, 80, 127, 128, 255, 256] {
        for ctx in [1, 63, 64, 65, 130, 200] {
            for kind in 0..6 {
                for windowed in [false, true] {
                    seed += 1;
                    // Heads, windows, sinks and tokens take turns: all their products with the rest would take minutes.
                    let (heads, kv_heads) = heads[seed % heads.len()];
                    let window = if windowed { [1, 5, 64, 100, 3][seed / 2 % 5] } else { 0 };
                    let mask = Mask { window, sinks: [0, 4, 70][seed / 3 % 3] };
                    let n = [1, 2, 0, 3, 9, 1, 2, 18][seed / 7 % 8];
                    check(attention_case(desc, seed, kind, mask, [n, heads, kv_heads, hd, ctx]));
                }
            }
        }
    }
}

fn attention_case(desc: &KernelDesc, seed: usize, kind: usize, mask: Mask, sizes: [usize; 5]) -> Case {
    let [n, heads, kv_heads, hd, ctx] = sizes;
    let seqs = 2;
    let mut random = Random::new(seed);
    let scale = 1.0 / (hd as f32).sqrt();
    let q = random.floats(n * heads * hd);
    // Tokens come in any mixture, or as a prompt does: in runs of one sequence, with positions that follow each other.
    let runs = seed.is_multiple_of(2);
    let (run, first) = (1 + random.below(12), random.below(ctx));
    let seq: Vec<usize> = (0..n).map(|at| if runs { at / run % seqs } else { random.below(seqs) }).collect();
    let pos: Vec<usize> = (0..n).map(|at| if runs { (first + at) % ctx } else { random.below(ctx) }).collect();
    let mut label = "";
    let mut spans = Vec::new();
    for pos in &pos {
        let (name, span) = span(kind, *pos, ctx, &mut random);
        label = name;
        spans.push(span);
    }
    let visible = |token: usize, key: usize| mask.visible(pos[token] as u32, spans[token], key as u32);
    // What no token sees is poisoned.
    let poisoned = |at_seq: usize, key: usize| !(0..n).any(|token| seq[token] == at_seq && visible(token, key));
    let mut cache = |dtype: DType| {
        let rows = random.floats(seqs * ctx * kv_heads * hd);
        let mut values = Vec::new();
        let mut bytes = Vec::new();
        for (index, row) in rows.chunks(hd).enumerate() {
            let (at_seq, key) = (index / ctx / kv_heads, index % ctx);
            let row: Vec<f32> = if poisoned(at_seq, key) { vec![f32::NAN; hd] } else { row.to_vec() };
            match RowFormat::new(dtype, hd) {
                None if dtype == DType::BF16 => {
                    let row = row.into_iter().map(bf16::from_f32);
                    bytes.extend(row.clone().flat_map(bf16::to_le_bytes));
                    values.extend(row.map(bf16::to_f32));
                }
                None => {
                    bytes.extend(row.iter().flat_map(|value| value.to_le_bytes()));
                    values.extend(row);
                }
                Some(format) => {
                    let mut record = vec![0; format.stride()];
                    format.encode(&row, &mut record);
                    if row[0].is_nan() {
                        record[format.code_bytes()..].fill(0xFF);
                    }
                    let mut decoded = vec![0.0; hd];
                    format.decode(&record, &mut decoded);
                    bytes.extend(record);
                    values.extend(decoded);
                }
            }
        }
        (Buffer { bytes, align: alignment(dtype) }, values)
    };
    let (k_buffer, k) = cache(desc.inputs[1]);
    let (v_buffer, v) = cache(desc.inputs[2]);
    let mut expected = Vec::new();
    for token in 0..n {
        for head in 0..heads {
            let q = &q[(token * heads + head) * hd..][..hd];
            let kv_head = head / (heads / kv_heads);
            let row = |key: usize| ((seq[token] * kv_heads + kv_head) * ctx + key) * hd;
            let keys: Vec<usize> = (0..ctx).filter(|key| visible(token, *key)).collect();
            expected.extend(naive_attention(q, f64::from(scale), &keys, |key| {
                (&k[row(key)..][..hd], &v[row(key)..][..hd])
            }));
        }
    }
    let as_i32 = |values: &[usize]| Buffer::i32(&values.iter().map(|&value| value as i32).collect::<Vec<_>>());
    let flat: Vec<i32> = spans.iter().flat_map(|span| [span.first as i32, span.reach as i32]).collect();
    let sizes = [n, heads, kv_heads, hd, ctx].map(|size| size as i64);
    let mut dims = sizes.to_vec();
    dims.extend([i64::from(mask.window), i64::from(mask.sinks), i64::from(scale.to_bits())]);
    Case {
        label: format!("{label} {mask:?}"),
        dims,
        inputs: vec![Buffer::f32(&q), k_buffer, v_buffer, as_i32(&seq), as_i32(&pos), Buffer::i32(&flat)],
        output: Buffer::unwritten(n * heads * hd),
        expected: Expected::Near(expected),
    }
}

/// Softmax over all keys at once, and the bound of each result.
///
/// With `d` the largest error of a score, every weight relative to the largest is off by at most `2 d`, the rounding of `s - m` and the
/// error of `exp`; each further tile scales it once more with the same errors. The numerator and the denominator both have that error and
/// one rounding for each key.
fn naive_attention<'a>(
    q: &[f32],
    scale: f64,
    keys: &[usize],
    row: impl Fn(usize) -> (&'a [f32], &'a [f32]),
) -> Vec<(f64, f64)> {
    if keys.is_empty() {
        return vec![(0.0, 0.0); q.len()];
    }
    let mut scores = Vec::new();
    let mut score_error = 0.0_f64;
    for &key in keys {
        let products = q.iter().zip(row(key).0).map(|(&q, &k)| f64::from(q) * f64::from(k));
        let magnitude: f64 = products.clone().map(f64::abs).sum();
        scores.push(products.sum::<f64>() * scale);
        score_error = score_error.max(roundings(q.len().div_ceil(32) + 6) * magnitude * scale);
    }
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let min = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let tiles = keys.len() / 64 + 4;
    let exponential = EXP_ERROR + ROUNDING * (2.0 + (max - min));
    let weight_error = 2.0 * score_error + (tiles + 1) as f64 * exponential;
    let error = 2.0 * (weight_error + roundings(keys.len() + 2 * tiles + 8));
    (0..q.len())
        .map(|d| {
            let terms = keys.iter().zip(&weights).map(|(&key, weight)| weight * f64::from(row(key).1[d]) / sum);
            let magnitude: f64 = terms.clone().map(f64::abs).sum();
            (terms.sum(), error * magnitude)
        })
        .collect()
}

/// What a cache of a dtype is aligned to: a number, or nothing for records.
fn alignment(dtype: DType) -> usize {
    dtype.bytes().map_or(1, |bytes| bytes as usize)
}

fn append_cases(desc: &KernelDesc, check: &mut dyn FnMut(Case)) {
    let mut seed = 0;
    for n in [0, 1, 2, 5] {
        for kv_heads in [1, 3] {
            for hd in [1, 2, 15, 16, 17, 64, 127] {
                for gap in [0, 5] {
                    seed += 1;
                    check(append_case(desc, seed, [n, kv_heads, hd, gap]));
                }
            }
        }
    }
}

fn append_case(desc: &KernelDesc, seed: usize, [n, kv_heads, hd, gap]: [usize; 4]) -> Case {
    let (seqs, ctx) = (2, 7);
    let mut random = Random::new(seed);
    let stride = kv_heads * hd + gap;
    let mut x = random.floats(n * stride);
    if seed.is_multiple_of(3) {
        // Constant rows, infinities and NaN must be encoded as `ir::packing` does it.
        x.iter_mut().take(hd).for_each(|value| *value = 0.25);
        // The two sums lie between two bf16, and the largest f32 rounds to infinity.
        let values =
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MAX];
        x.iter_mut().skip(hd).step_by(3).zip(values).for_each(|(x, value)| *x = value);
    }
    // Places differ from each other; some are outside of the cache.
    let places: Vec<(i32, i32)> = (0..n as i32)
        .map(|token| match random.below(8) {
            0 => (-1, token),
            1 => (seqs, token),
            2 => (0, -1),
            3 => (1, ctx),
            _ => (token % seqs, (3 * token) % ctx),
        })
        .collect();
    let format = RowFormat::new(desc.output, hd);
    let number_bytes = desc.output.bytes().unwrap_or(0) as usize;
    let row_bytes = format.map_or(number_bytes * hd, RowFormat::stride);
    let before = vec![0x5C; (seqs * ctx) as usize * kv_heads * row_bytes];
    let mut after = before.clone();
    for (token, &(seq, pos)) in places.iter().enumerate() {
        if !(0..seqs).contains(&seq) || !(0..ctx).contains(&pos) {
            continue;
        }
        for head in 0..kv_heads {
            let row = &x[token * stride + head * hd..][..hd];
            let at = ((seq as usize * kv_heads + head) * ctx as usize + pos as usize) * row_bytes;
            let record = &mut after[at..at + row_bytes];
            match format {
                Some(format) => format.encode(row, record),
                None if desc.output == DType::BF16 => {
                    let row = row.iter().copied().map(bf16::from_f32);
                    record.copy_from_slice(&row.flat_map(bf16::to_le_bytes).collect::<Vec<_>>());
                }
                None => record.copy_from_slice(&Buffer::f32(row).bytes),
            }
        }
    }
    let dims = [n, kv_heads, hd, ctx as usize, stride, seqs as usize].map(|size| size as i64);
    let (seq, pos): (Vec<i32>, Vec<i32>) = places.into_iter().unzip();
    Case {
        label: "append".to_owned(),
        dims: dims.to_vec(),
        inputs: vec![Buffer::f32(&x), Buffer::i32(&seq), Buffer::i32(&pos)],
        output: Buffer { bytes: before, align: alignment(desc.output) },
        expected: Expected::Bytes(after),
    }
}

fn sample_cases(_: &KernelDesc, check: &mut dyn FnMut(Case)) {
    for v in [1, 2, 3, 31, 255, 256, 257, 3000] {
        for kind in 0..4 {
            check(sample_case(v, kind));
        }
    }
}

/// Rows of logits of one kind with every combination of filters.
fn sample_case(v: usize, kind: usize) -> Case {
    let mut random = Random::new(v * 4 + kind);
    let (mut logits, mut settings, mut draws, mut expected) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for temperature in [0.0, 0.5, 1.0, 100.0, f32::INFINITY, -1.0, f32::NAN] {
        for top_k in [0.0, 1.0, 2.0, 7.0, 1e6] {
            for (top_p, min_p) in [
                (1.0, 0.0),
                (0.0, 0.0),
                (0.3, 0.0),
                (0.95, 0.0),
                (1.0, 0.4),
                (0.8, 1.0),
                (0.9, 1.5),
                (f32::NAN, f32::NAN),
            ] {
                let row: Vec<f32> = (0..v)
                    .map(|id| match kind {
                        0 => random.floats(1)[0] * 6.0,
                        1 => random.floats(1)[0].round(),
                        2 => [f32::NAN, f32::NEG_INFINITY, -0.0, 0.0, 3.5, -1e30][random.below(6)],
                        _ if id % 5 == 4 => f32::INFINITY,
                        _ => f32::NEG_INFINITY,
                    })
                    .collect();
                let halves = [random.next() as u32 ^ (random.next() as u32) << 9, random.next() as u32];
                expected.push(sorted_choice(&row, [temperature, top_k, top_p, min_p], halves));
                logits.extend(row);
                settings.extend([temperature, top_k, top_p, min_p]);
                draws.extend(halves.map(|half| half as i32));
            }
        }
    }
    let n = expected.len();
    Case {
        label: format!("logits of kind {kind}"),
        dims: vec![n as i64, v as i64],
        inputs: vec![Buffer::f32(&logits), Buffer::f32(&settings), Buffer::i32(&draws)],
        output: Buffer { bytes: vec![0x5C; 4 * n], align: 4 },
        expected: Expected::Bytes(expected.iter().flat_map(|id| id.to_le_bytes()).collect()),
    }
}

/// What [`ir::op::sample::Sample`] says, by sorting.
fn sorted_choice(logits: &[f32], [temperature, top_k, top_p, min_p]: [f32; 4], [low, high]: [u32; 2]) -> i32 {
    let mut order: Vec<usize> = (0..logits.len()).filter(|&id| f32::NEG_INFINITY < logits[id]).collect();
    order.sort_by(|&left, &right| logits[right].partial_cmp(&logits[left]).unwrap().then(left.cmp(&right)));
    let (Some(&best), true) = (order.first(), 0.0 <= temperature) else { return -1 };
    if temperature == 0.0 {
        return best as i32;
    }
    let one = (1_u64 << 40) as f32;
    let weight = |id: usize| {
        let below = if logits[id] == logits[best] { 0.0 } else { (logits[id] - logits[best]) / temperature };
        (kernels::math::exp_f32(below) * one) as u128
    };
    if 1.0 <= top_k {
        order.truncate(top_k as usize);
    }
    if top_p < 1.0 {
        let total: u128 = order.iter().map(|&id| weight(id)).sum();
        let needed = (total * (f64::from(top_p) * (1_u64 << 32) as f64) as u128).div_ceil(1 << 32).max(1);
        let mut sum = 0;
        let last = order.iter().position(|&id| {
            sum += weight(id);
            needed <= sum
        });
        order.truncate(last.unwrap() + 1);
    }
    order.retain(|&id| (min_p.clamp(0.0, 1.0) * one) as u128 <= weight(id));
    order.sort_unstable();
    let total: u128 = order.iter().map(|&id| weight(id)).sum();
    let mut left = (total * (u128::from(high) << 32 | u128::from(low))) >> 64;
    for id in order {
        if left < weight(id) {
            return id as i32;
        }
        left -= weight(id);
    }
    unreachable!("the weights add up to the total")
}
