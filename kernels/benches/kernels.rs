//! How fast is each row of the kernel table, beside what the machine can do?
//!
//! ```text
//! cargo bench -p tritter-kernels -- [--threads N] [--rounds N] [WORD ...]
//! ```
//!
//! What is measured has every WORD in the name of the row or in the sizes; without a word, all rows but the scalar ones. Each line has the row, the sizes, the best and
//! the median time of a call, the bytes that the call has to move at least once (weights or cache, activations and results) over that time, and its
//! multiply-accumulates over that time. Shares are of the two ceilings at the top, which are measured in turn with the rows, once a round:
//! the rate at which the same threads read a buffer of [`BYTES`], and the rate of the CPU's int8 dot product on registers. Weights are
//! larger than a last-level cache, so the first share is one of DRAM. `kv_append` also has the time of one value.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

use half::bf16;
use ir::DType;
use ir::packing::RowFormat;
use tritter_kernels::{self as kernels, Family, Isa, KernelDesc, TABLE};

/// Bytes of what comes from memory: several times a last-level cache of 32 MB.
const BYTES: usize = 128 << 20;
/// Columns of the weights: the width of a model of 2 billion parameters.
const K: usize = 2560;
/// Rows of the weights where arithmetic is measured.
const M_SMALL: usize = 6912;
/// Columns of a group of 4-bit weights.
const GROUP: usize = 128;
/// Pieces that each thread takes, one after the other.
const PIECES: i64 = 16;
/// Logits of a row.
const VOCABULARY: usize = 128_256;

fn main() {
    let mut words = Vec::new();
    let mut threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut rounds = 7;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|text| text.parse().ok()).expect("an option is followed by a number");
        match arg.as_str() {
            "--threads" => threads = number(),
            "--rounds" => rounds = number(),
            // What cargo adds.
            "--bench" => {}
            _ => words.push(arg),
        }
    }
    let wanted = |desc: &&KernelDesc| {
        let has_one_row = matches!(desc.family, Family::KvAppend | Family::Sample);
        let is_best = !words.is_empty() || desc.requires.isa != Isa::Scalar || has_one_row;
        desc.requires.is_available() && is_best
    };
    let buffer: Vec<u64> = (0..BYTES as u64 / 8).collect();
    let mut reads = Vec::new();
    let mut dots = Vec::new();
    let mut lines = Vec::new();
    for desc in TABLE.iter().filter(wanted) {
        for point in points(desc) {
            let line = format!("{} {}", desc.name, point.label);
            if !words.iter().all(|word| line.contains(word.as_str())) {
                continue;
            }
            let mut work = (point.make)();
            let mut times = Vec::new();
            for _ in 0..rounds {
                reads.push(read_rate(&buffer, threads));
                dots.push(dot_rate(threads));
                times.push(work.call(desc, threads));
            }
            let time = median(&mut times);
            let bytes = work.moved as f64 / time;
            let macs = work.macs as f64 / time;
            let (best, name, label) = (times[0], desc.name, &point.label);
            print!("{name:<42} {label:<34} {:8.3} {:8.3} ms {:6.2} GB/s", best * 1e3, time * 1e3, bytes / 1e9);
            match work.values {
                0 => println!(" {:7.1} GMAC/s", macs / 1e9),
                values => println!(" {:7.2} ns a value", time * 1e9 / values as f64),
            }
            lines.push((desc.name, point.label, bytes, macs));
        }
    }
    let (read, dot) = (median(&mut reads), median(&mut dots));
    let highest = |rates: &[f64]| rates.last().copied().unwrap_or(f64::NAN) / 1e9;
    println!("\nceilings, {threads} threads, median and best of all rounds:");
    println!(
        "read {:.2} {:.2} GB/s, int8 dot {:.0} {:.0} GMAC/s",
        read / 1e9,
        highest(&reads),
        dot / 1e9,
        highest(&dots)
    );
    for (name, label, bytes, macs) in lines {
        println!("{name:<42} {label:<34} {:6.1} % of read {:6.1} % of dot", 100.0 * bytes / read, 100.0 * macs / dot);
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One measurement of a row.
struct Point {
    label: String,
    make: Box<dyn Fn() -> Work>,
}

/// Buffers and dims of a call.
struct Work {
    dims: Vec<i64>,
    buffers: Vec<Vec<u32>>,
    /// Bytes that a call has to move.
    moved: usize,
    macs: usize,
    /// Values that an append encodes.
    values: usize,
}

impl Work {
    /// Seconds of one call of the whole grid.
    fn call(&mut self, desc: &KernelDesc, threads: usize) -> f64 {
        let entry = kernels::cpu::resolve(desc.name).expect("only available rows are measured");
        let args: Vec<usize> = self.buffers.iter_mut().map(|buffer| buffer.as_mut_ptr() as usize).collect();
        let dim = |name: &str| {
            self.dims[desc.signature.dims.iter().position(|dim| *dim == name).expect("grids are over dims")]
        };
        let units = desc.signature.grid.units(dim);
        // Whole groups of units that share what they read, as the pool cuts them.
        let piece = (units / (PIECES * threads as i64)).max(1);
        let grain = desc.grain(dim) as i64;
        let piece = (piece + grain - 1) / grain * grain;
        let next = AtomicI64::new(0);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let args: Vec<*mut u8> = args.iter().map(|&arg| arg as *mut u8).collect();
                    loop {
                        let begin = next.fetch_add(piece, Ordering::Relaxed);
                        if units <= begin {
                            break;
                        }
                        let end = units.min(begin + piece);
                        // SAFETY: `resolve` has confirmed the CPU, the buffers are made from the dims, pieces lie inside the grid and
                        // do not overlap.
                        unsafe { entry(args.as_ptr(), self.dims.as_ptr(), begin, end) };
                    }
                });
            }
        });
        start.elapsed().as_secs_f64()
    }
}

/// What is measured of a row.
fn points(desc: &'static KernelDesc) -> Vec<Point> {
    match desc.family {
        Family::TernaryMatmul | Family::DenseMatmul => [1, 2, 4, 8, 16, 128]
            .into_iter()
            .filter(|n| desc.tokens.contains(n) && (*n == 1 || *desc.tokens.end() != 1))
            .map(|n| {
                let n = n as usize;
                let m = if n <= 16 { BYTES / row_bytes(desc) / 16 * 16 } else { M_SMALL };
                Point { label: format!("n={n} k={K} m={m}"), make: Box::new(move || matmul(desc, n, m)) }
            })
            .collect(),
        Family::Attention => [("decode", 8, 8, 4096), ("decode", 8, 8, 600), ("prefill", 512, 1, 512)]
            .into_iter()
            .map(|(what, n, seqs, ctx)| Point {
                label: format!("{what} n={n} ctx={ctx} 20/5 of 128"),
                make: Box::new(move || attention(desc, n, seqs, ctx)),
            })
            .collect(),
        Family::KvAppend => {
            vec![Point { label: "n=512, 5 of 128".to_owned(), make: Box::new(|| append(desc)) }]
        }
        // No CPU has a row of them.
        Family::RopeAppend | Family::RopeAttention | Family::TernaryMatmulTransposed | Family::Unpack => Vec::new(),
        // Training is measured in whole steps.
        Family::Gemm
        | Family::AttentionLse
        | Family::QueryGradient
        | Family::CacheGradient
        | Family::ScatterAdd
        | Family::MeanAbs => Vec::new(),
        Family::Sample => [("greedy", [0.0, 0.0, 1.0, 0.0]), ("top-k 40, top-p 0.9", [0.8, 40.0, 0.9, 0.0])]
            .into_iter()
            .map(|(what, settings)| Point {
                label: format!("{what} of {VOCABULARY}"),
                make: Box::new(move || sample(settings)),
            })
            .collect(),
    }
}

/// Bytes of one row of weights.
fn row_bytes(desc: &KernelDesc) -> usize {
    let dtype = desc.inputs[1];
    match (desc.layout, dtype) {
        (Some(layout), _) => layout.bytes(16, K as u64) as usize / 16,
        (None, DType::Q4) => K / GROUP * record(dtype, GROUP).stride(),
        (None, DType::Q8) => record(dtype, K).stride(),
        (None, _) => K * dtype.bytes().expect("dense weights have whole bytes") as usize,
    }
}

fn record(dtype: DType, k: usize) -> RowFormat {
    RowFormat::new(dtype, k).expect("it is a row format")
}

fn matmul(desc: &KernelDesc, n: usize, m: usize) -> Work {
    let w = match desc.inputs[1] {
        DType::T2 => {
            words(m.next_multiple_of(16) * row_bytes(desc), |at| (at as u32).wrapping_mul(0x9E37_79B1) & 0x6565_6565)
        }
        DType::Q4 => rows(DType::Q4, m * K / GROUP, GROUP),
        dtype => rows(dtype, m, K),
    };
    let x = rows(desc.inputs[0], n, K);
    let out = vec![0; n * m];
    let moved = m * row_bytes(desc) + 4 * (x.len() + out.len());
    let mut dims = vec![n as i64, K as i64, m as i64];
    if desc.signature.dims.len() == 4 {
        dims.push(GROUP as i64);
    }
    let mut buffers = vec![x, w];
    if desc.layout.is_some() {
        buffers.push(rows(DType::F32, 1, m));
    }
    buffers.push(out);
    Work { dims, buffers, moved, macs: n * m * K, values: 0 }
}

fn attention(desc: &KernelDesc, n: usize, seqs: usize, ctx: usize) -> Work {
    let (heads, kv_heads, hd) = (20, 5, 128);
    let cache = |dtype| rows(dtype, seqs * ctx * kv_heads, hd);
    let (k, v) = (cache(desc.inputs[1]), cache(desc.inputs[2]));
    let (per_seq, last) = (n / seqs, ctx - n / seqs);
    let pos: Vec<u32> = (0..n).map(|token| (last + token % per_seq) as u32).collect();
    let seq: Vec<u32> = (0..n).map(|token| (token / per_seq) as u32).collect();
    let keys: usize = pos.iter().map(|pos| *pos as usize + 1).sum();
    let moved = 4 * (k.len() + v.len() + 2 * n * heads * hd);
    let scale = 1.0 / (hd as f32).sqrt();
    let dims = [n, heads, kv_heads, hd, ctx, 0, 0, scale.to_bits() as usize].map(|dim| dim as i64).to_vec();
    let q = rows(DType::F32, n * heads, hd);
    let buffers = vec![q, k, v, seq, pos, vec![0; 2 * n], vec![0; n * heads * hd]];
    Work { dims, buffers, moved, macs: 2 * keys * heads * hd, values: 0 }
}

fn sample(settings: [f32; 4]) -> Work {
    let logits = rows(DType::F32, 1, VOCABULARY);
    let settings = words(16, |at| settings[at].to_bits());
    let buffers = vec![logits, settings, vec![0; 2], vec![0; 1]];
    Work { dims: vec![1, VOCABULARY as i64], buffers, moved: 4 * VOCABULARY, macs: 0, values: VOCABULARY }
}

fn append(desc: &KernelDesc) -> Work {
    let (n, kv_heads, hd, ctx) = (512, 5, 128, 512);
    let row = RowFormat::new(desc.output, hd).map_or(desc.output.bytes().unwrap_or(0) as usize * hd, RowFormat::stride);
    let buffers = vec![
        rows(DType::F32, n * kv_heads, hd),
        vec![0; n],
        (0..n as u32).collect(),
        vec![0; ctx * kv_heads * row / 4],
    ];
    let dims = [n, kv_heads, hd, ctx, kv_heads * hd, 1].map(|dim| dim as i64).to_vec();
    let values = n * kv_heads * hd;
    Work { dims, buffers, moved: n * kv_heads * (4 * hd + row), macs: 0, values }
}

fn words(bytes: usize, word: impl Fn(usize) -> u32) -> Vec<u32> {
    (0..bytes.div_ceil(4)).map(word).collect()
}

/// `count` rows of `k` values between -1 and 1 as `dtype` stores them. A few dozen rows are encoded and repeated.
fn rows(dtype: DType, count: usize, k: usize) -> Vec<u32> {
    let mut state = 1_u32;
    let mut bytes = Vec::new();
    let templates = count.min(36);
    for _ in 0..templates {
        let mut row = Vec::with_capacity(k);
        for _ in 0..k {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            row.push((state >> 8) as f32 / (1 << 23) as f32 - 1.0);
        }
        match dtype {
            DType::F32 => bytes.extend(row.iter().flat_map(|value| value.to_le_bytes())),
            DType::BF16 => bytes.extend(row.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes())),
            _ => {
                let format = record(dtype, k);
                let mut codes = vec![0; format.stride()];
                format.encode(&row, &mut codes);
                bytes.extend(codes);
            }
        }
    }
    let template: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    template.iter().copied().cycle().take(template.len() / templates.max(1) * count).collect()
}

/// Bytes a second that the threads read from the buffer.
fn read_rate(buffer: &[u64], threads: usize) -> f64 {
    let sink = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for part in buffer.chunks(buffer.len().div_ceil(threads)) {
            let sink = &sink;
            scope.spawn(move || {
                let mut acc = [0_u64; 8];
                for line in part.as_chunks::<8>().0 {
                    prefetch(line);
                    for (acc, value) in acc.iter_mut().zip(line) {
                        *acc = acc.wrapping_add(*value);
                    }
                }
                sink.fetch_add(acc.iter().fold(0, |sum, each| sum.wrapping_add(*each)), Ordering::Relaxed);
            });
        }
    });
    let time = start.elapsed().as_secs_f64();
    std::hint::black_box(sink.into_inner());
    size_of_val(buffer) as f64 / time
}

#[cfg(target_arch = "x86_64")]
fn prefetch(line: &[u64; 8]) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: SSE is part of the architecture, and a prefetch of any address is a hint that does not fault.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(256).cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch(_line: &[u64; 8]) {}

/// Int8 multiply-accumulates a second of all threads; 0 where no loop is written for the CPU.
fn dot_rate(threads: usize) -> f64 {
    const ROUNDS: u64 = 1_000_000;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| dot_loop(ROUNDS));
        }
    });
    let macs =
        if (kernels::Requires { isa: Isa::Avx512Vnni }).is_available() { 640 * ROUNDS * threads as u64 } else { 0 };
    macs as f64 / start.elapsed().as_secs_f64()
}

#[cfg(target_arch = "x86_64")]
fn dot_loop(rounds: u64) {
    if !(kernels::Requires { isa: Isa::Avx512Vnni }).is_available() {
        return;
    }
    // SAFETY: only registers that are declared are changed, and the CPU has the instructions.
    unsafe {
        std::arch::asm!(
            "2:",
            "vpdpbusd zmm0, zmm16, zmm17",
            "vpdpbusd zmm1, zmm16, zmm17",
            "vpdpbusd zmm2, zmm16, zmm17",
            "vpdpbusd zmm3, zmm16, zmm17",
            "vpdpbusd zmm4, zmm16, zmm17",
            "vpdpbusd zmm5, zmm16, zmm17",
            "vpdpbusd zmm6, zmm16, zmm17",
            "vpdpbusd zmm7, zmm16, zmm17",
            "vpdpbusd zmm8, zmm16, zmm17",
            "vpdpbusd zmm9, zmm16, zmm17",
            "dec {rounds}",
            "jnz 2b",
            rounds = inout(reg) rounds => _,
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _,
            out("zmm5") _, out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _,
            options(nomem, nostack),
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn dot_loop(_rounds: u64) {}
