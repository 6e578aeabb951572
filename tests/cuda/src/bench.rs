//! How long a row takes, where its weights come from memory: launches in one graph, each with weights of its own, more than the L2 holds.

use anyhow::{Result, ensure};
use ir::DType;
use kernels::Family;
use kernels::cuda::{Accuracy, CudaKernelDesc};
use kernels::extent::arg_bytes;

use crate::Compiler;
use crate::case::{Random, rows};
use crate::check::{launch, load};
use crate::gpu::{Buffer, Gpu, Launch};
use crate::gradient;

/// Matrices of one layer of a 2B model, outputs by inputs: QKV, output projection, gate and up, down.
const LAYER: [(i64, i64); 4] = [(3840, 2560), (2560, 2560), (13824, 2560), (2560, 6912)];
const LAYERS: usize = 30;
/// Entries of its vocabulary.
const VOCABULARY: i64 = 128_256;
/// Weights of one graph: several times any L2.
const COLD_BYTES: usize = 400 << 20;
/// Timed runs of a graph, of which the median counts.
const RUNS: usize = 21;

/// A dim of the model.
pub(crate) fn typical(name: &str) -> i64 {
    match name {
        "n" => 1,
        "k" => 2560,
        "m" => 13824,
        "group" | "hd" | "x_stride" => 128,
        "v" => VOCABULARY,
        "heads" => 20,
        "kv_heads" => 5,
        "ctx" => 4096,
        "scale_bits" => i64::from(128_f32.sqrt().recip().to_bits()),
        "seqs" => 1,
        // Of queries, keys and values that one product gives.
        "q_stride" | "k_stride" | "v_stride" => (20 + 2 * 5) * 128,
        _ => 0,
    }
}

/// Times everything that is known of these rows.
pub(crate) fn run(gpu: &Gpu, compiler: &Compiler, rows: &[&'static CudaKernelDesc], explore: bool) -> Result<()> {
    let rate = read_rate(gpu, compiler)?;
    println!("read rate {:.2} TB/s", rate / 1e12);
    let mut all: Vec<&'static CudaKernelDesc> = rows.to_vec();
    if explore {
        all.extend(rows.iter().flat_map(|desc| geometries(desc)));
    }
    for desc in all {
        match desc.family {
            Family::TernaryMatmul => {
                // Other geometries are compared where they matter most.
                for n in tokens(desc).into_iter().filter(|n| !explore || ![2, 4, 8].contains(n)) {
                    for (m, k) in LAYER {
                        matmul(gpu, compiler, desc, (n, k, m), rate)?;
                    }
                    layers(gpu, compiler, desc, n, rate)?;
                }
            }
            Family::DenseMatmul => {
                for n in tokens(desc) {
                    matmul(gpu, compiler, desc, (n, 2560, VOCABULARY), rate)?;
                }
            }
            Family::Attention if 1 < *desc.tokens.start() => {
                for tokens in [4096, 32768] {
                    prefill(gpu, compiler, desc, tokens)?;
                }
                gradient::bench(gpu, compiler, desc)?;
            }
            Family::Attention | Family::RopeAttention => {
                for (n, heads, kv_heads, ctx) in [
                    (1, 20, 5, 512),
                    (8, 20, 5, 512),
                    (1, 20, 5, 4096),
                    (1, 20, 5, 32768),
                    (1, 20, 5, 131_072),
                    (1, 32, 8, 131_072),
                ] {
                    let takes = |name: &str| match name {
                        "heads" => heads,
                        "kv_heads" => kv_heads,
                        other => typical(other),
                    };
                    // The exact rows are too slow for long caches.
                    let is_slow = desc.accuracy == Accuracy::Exact && 4096 < ctx;
                    if !is_slow && desc.tokens.contains(&(n as u64)) && (desc.takes)(&takes) {
                        attention(gpu, compiler, desc, (n, heads, kv_heads, ctx), rate)?;
                    }
                }
            }
            // The exact rows are for small sizes.
            Family::AttentionLse | Family::QueryGradient | Family::CacheGradient => {
                if desc.accuracy != Accuracy::Exact {
                    gradient::bench(gpu, compiler, desc)?;
                }
            }
            Family::RopeAppend => {
                for n in [1, 8, 512, 4096].into_iter().filter(|n| desc.tokens.contains(&(*n as u64))) {
                    rope_append(gpu, compiler, desc, n, rate)?;
                }
            }
            Family::KvAppend
            | Family::Gemm
            | Family::Sample
            | Family::ScatterAdd
            | Family::MeanAbs
            | Family::TernaryMatmulTransposed
            | Family::Unpack => {}
        }
    }
    Ok(())
}

/// The numbers of tokens that are timed.
fn tokens(desc: &CudaKernelDesc) -> Vec<i64> {
    let few: Vec<i64> = [1, 2, 4, 8, 16].into_iter().filter(|n| desc.tokens.contains(&(*n as u64))).collect();
    if *desc.tokens.end() == u64::MAX && desc.family == Family::TernaryMatmul && !desc.is_plain() {
        return vec![64, 128, 512, 1024, 4096];
    }
    // Rows for the same sizes have the smaller numbers timed.
    few.into_iter().filter(|n| !desc.name.ends_with("t16") || *n == 16).collect()
}

/// A row with other threads and defines.
fn geometries(desc: &'static CudaKernelDesc) -> Vec<&'static CudaKernelDesc> {
    // The blocks of a cluster share the columns: their grid has another axis.
    let is_cluster = desc.defines.iter().any(|(name, _)| *name == "CLUSTER");
    if is_cluster || !desc.source.contains("ROW_BLOCKS") {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (row_blocks, rows, threads, min_blocks) in
        [("1", 16, 256, "4"), ("1", 16, 512, "2"), ("2", 32, 256, "3"), ("2", 32, 512, "2")]
    {
        let mut launch = desc.launch;
        launch.threads = threads;
        launch.grid[0] = kernels::cuda::Blocks::CeilDiv("m", rows);
        let defines = desc.defines.iter().map(|(name, value)| match *name {
            "ROW_BLOCKS" => (*name, row_blocks),
            "MIN_BLOCKS" => (*name, min_blocks),
            _ => (*name, *value),
        });
        let defines: &'static [_] = Box::leak(defines.collect::<Vec<_>>().into_boxed_slice());
        let other = CudaKernelDesc { launch, defines, tokens: desc.tokens.clone(), fuses: desc.fuses.clone(), ..*desc };
        found.push(&*Box::leak(Box::new(other)));
    }
    found
}

/// Weights of a matmul, and what the rest of its arguments are.
struct Matmul {
    desc: &'static CudaKernelDesc,
    kernel: (crate::gpu::Function, u32),
    dims: (i64, i64, i64),
    weights: Vec<Buffer>,
    x: Buffer,
    scale: Buffer,
    out: Buffer,
}

impl Matmul {
    fn new(
        gpu: &Gpu,
        compiler: &Compiler,
        desc: &'static CudaKernelDesc,
        dims: (i64, i64, i64),
        copies: Option<usize>,
    ) -> Result<Self> {
        let (n, k, m) = dims;
        let dim = dim_of(dims);
        let scalar = kernels::TABLE
            .iter()
            .find(|row| (row.family, row.inputs, row.layout) == (desc.family, desc.inputs, desc.layout));
        let bytes = scalar.and_then(|row| arg_bytes(row, "w", &dim, 1)).map_or(0, |bytes| bytes as usize);
        ensure!(0 < bytes, "{} has no weights", desc.name);
        let mut random = Random::new(1);
        // Ternary codes are never 3; of the other dtypes any bytes will do but for scales that are no numbers.
        let block: Vec<u8> = match desc.layout {
            Some(_) => (0..bytes).map(|_| (0..4).fold(0, |byte, _| byte << 2 | random.below(3) as u8)).collect(),
            None => {
                let width = if desc.inputs[1] == DType::Q4 { dim("group") } else { k };
                let row = rows(desc.inputs[1], &random.floats(width as u64 * 64), width as usize);
                row.iter().copied().cycle().take(bytes).collect()
            }
        };
        let copies = copies.unwrap_or_else(|| COLD_BYTES.div_ceil(bytes));
        let mut weights = vec![gpu.upload(&block)?];
        for _ in 1..copies {
            weights.push(weights[0].duplicate(gpu)?);
        }
        let x = rows(desc.inputs[0], &random.floats((n * k) as u64), k as usize);
        let scale: Vec<u8> = random.floats(m as u64).iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok(Self {
            desc,
            kernel: load(gpu, compiler, desc, &dim)?,
            dims,
            weights,
            x: gpu.upload(&x)?,
            scale: gpu.upload(&scale)?,
            out: gpu.allocate(4 * (n * m) as usize)?,
        })
    }

    fn launch(&self, copy: usize, early: bool) -> Launch {
        let w = self.weights[copy].address();
        let addresses = match self.desc.family {
            Family::TernaryMatmul => vec![self.x.address(), w, self.scale.address(), self.out.address()],
            _ => vec![self.x.address(), w, self.out.address()],
        };
        Launch { early, ..launch(self.desc, self.kernel, addresses, &dim_of(self.dims)) }
    }
}

fn dim_of((n, k, m): (i64, i64, i64)) -> impl Fn(&str) -> i64 {
    move |name| match name {
        "n" => n,
        "k" => k,
        "m" => m,
        other => typical(other),
    }
}

pub(crate) fn median(mut times: Vec<f32>) -> f64 {
    times.sort_by(f32::total_cmp);
    f64::from(times[times.len() / 2]) * 1e-3
}

/// One size: launches that wait for each other, and launches that start early.
fn matmul(
    gpu: &Gpu,
    compiler: &Compiler,
    desc: &'static CudaKernelDesc,
    dims: (i64, i64, i64),
    rate: f64,
) -> Result<()> {
    let matmul = Matmul::new(gpu, compiler, desc, dims, None)?;
    let copies = matmul.weights.len();
    // One launch has the whole L2 to itself if the weights alone are more.
    let launches = copies.max(4);
    let mut seconds = [0.0; 2];
    for early in [false, true] {
        let graph = gpu.record(&(0..launches).map(|at| matmul.launch(at % copies, early)).collect::<Vec<_>>())?;
        seconds[usize::from(early)] = median(gpu.time(&graph, RUNS)?) / launches as f64;
    }
    let (n, k, m) = dims;
    let texts = seconds.map(|seconds| {
        format!("{:.2} us, {}", seconds * 1e6, share(bytes_of(&matmul), (n * k * m) as f64, seconds, rate))
    });
    println!("{} {} {m}x{k} n={n}: {}; early {}", desc.name, geometry(desc), texts[0], texts[1]);
    Ok(())
}

/// How near a time is to what bounds it: the read rate where weights are read for few tokens, else just the operations.
fn share(bytes: f64, products: f64, seconds: f64, rate: f64) -> String {
    match products < 100.0 * bytes {
        true => format!("{:.0} % of the read rate", 100.0 * bytes / seconds / rate),
        false => format!("{:.0} TOP/s", 2e-12 * products / seconds),
    }
}

fn bytes_of(matmul: &Matmul) -> f64 {
    let (_, k, m) = matmul.dims;
    match matmul.desc.inputs[1] {
        DType::T2 => (m * k) as f64 / 4.0,
        DType::Q8 => (m * (k + 8)) as f64,
        DType::Q4 => (m * (k / 2 + k / 16)) as f64,
        DType::BF16 => (2 * m * k) as f64,
        _ => (4 * m * k) as f64,
    }
}

fn geometry(desc: &CudaKernelDesc) -> String {
    let defines: Vec<String> = desc.defines.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("[{} threads {}]", desc.launch.threads, defines.join(" "))
}

/// The linears of all layers in one graph.
fn layers(gpu: &Gpu, compiler: &Compiler, desc: &'static CudaKernelDesc, n: i64, rate: f64) -> Result<()> {
    let matmuls = LAYER.map(|(m, k)| Matmul::new(gpu, compiler, desc, (n, k, m), Some(LAYERS)));
    let matmuls = matmuls.into_iter().collect::<Result<Vec<_>>>()?;
    let bytes: f64 = matmuls.iter().map(|matmul| bytes_of(matmul) * LAYERS as f64).sum();
    let products = LAYER.map(|(m, k)| (n * k * m) as f64 * LAYERS as f64).iter().sum();
    let mut texts = Vec::new();
    for early in [false, true] {
        let launches: Vec<Launch> =
            (0..LAYERS).flat_map(|layer| matmuls.iter().map(move |matmul| matmul.launch(layer, early))).collect();
        let seconds = median(gpu.time(&gpu.record(&launches)?, RUNS)?);
        texts.push(format!("{:.3} ms, {}", seconds * 1e3, share(bytes, products, seconds, rate)));
    }
    println!("{} {} {LAYERS} layers n={n}: {}; early {}", desc.name, geometry(desc), texts[0], texts[1]);
    Ok(())
}

/// Queries, or a cache `[seqs, kv_heads, ctx]`, of rows that repeat.
pub(crate) fn repeated(dtype: DType, rows_of_all: i64, hd: i64) -> Vec<u8> {
    let some = rows(dtype, &Random::new(1).floats(64 * hd as u64), hd as usize);
    let bytes = some.len() / 64 * rows_of_all as usize;
    some.iter().copied().cycle().take(bytes).collect()
}

/// Numbers of tokens.
pub(crate) fn numbers(gpu: &Gpu, values: impl IntoIterator<Item = i32>) -> Result<Buffer> {
    gpu.upload(&values.into_iter().flat_map(i32::to_le_bytes).collect::<Vec<_>>())
}

/// The last token of each of `n` full caches.
fn attention(
    gpu: &Gpu,
    compiler: &Compiler,
    desc: &'static CudaKernelDesc,
    (n, heads, kv_heads, ctx): (i64, i64, i64, i64),
    rate: f64,
) -> Result<()> {
    let dim = |name: &str| match name {
        "n" => n,
        "ctx" => ctx,
        "heads" => heads,
        "kv_heads" => kv_heads,
        "q_stride" | "k_stride" | "v_stride" => (heads + 2 * kv_heads) * typical("hd"),
        other => typical(other),
    };
    let hd = dim("hd");
    let [k, v] = [1, 2].map(|input| repeated(desc.inputs[input], n * ctx * kv_heads, hd));
    let bytes = (k.len() + v.len()) as f64;
    let copies = (COLD_BYTES / 2).div_ceil(bytes as usize).min(64);
    let mut caches = vec![(gpu.upload(&k)?, gpu.upload(&v)?)];
    for _ in 1..copies {
        caches.push((caches[0].0.duplicate(gpu)?, caches[0].1.duplicate(gpu)?));
    }
    let q = gpu.upload(&repeated(DType::F32, n * heads, hd))?;
    // Of rows that rotate and append: a product of queries, keys and values, and a table of angles.
    let joined = gpu.upload(&repeated(DType::F32, n * (heads + 2 * kv_heads), hd))?;
    let table = gpu.upload(&repeated(DType::F32, n, hd / 2))?;
    let (seq, pos) = (numbers(gpu, 0..n as i32)?, numbers(gpu, vec![ctx as i32 - 1; n as usize])?);
    let span = numbers(gpu, vec![0; 2 * n as usize])?;
    let out = gpu.allocate(4 * (n * heads * hd) as usize)?;
    let kernel = load(gpu, compiler, desc, &dim)?;
    let mut seconds = [0.0; 2];
    let launches = copies.max(4);
    for early in [false, true] {
        let each = |at: usize| {
            let (k, v) = &caches[at % copies];
            let addresses = match desc.family {
                Family::RopeAttention => vec![&joined, &joined, &joined, &table, &table, &seq, &pos, &span, k, v, &out],
                _ => vec![&q, k, v, &seq, &pos, &span, &out],
            };
            let addresses = addresses.into_iter().map(Buffer::address).collect();
            Launch { early, ..launch(desc, kernel, addresses, &dim) }
        };
        let graph = gpu.record(&(0..launches).map(each).collect::<Vec<_>>())?;
        seconds[usize::from(early)] = median(gpu.time(&graph, RUNS)?) / launches as f64;
    }
    let texts = seconds
        .map(|seconds| format!("{:.2} us, {:.0} % of the read rate", seconds * 1e6, 100.0 * bytes / seconds / rate));
    println!("{} heads={heads}/{kv_heads} hd={hd} keys={ctx} n={n}: {}; early {}", desc.name, texts[0], texts[1]);
    Ok(())
}

/// Tokens of as many sequences, or a prompt of one.
fn rope_append(gpu: &Gpu, compiler: &Compiler, desc: &'static CudaKernelDesc, n: i64, rate: f64) -> Result<()> {
    let seqs = if n < 16 { n } else { 1 };
    let dim = |name: &str| match name {
        "n" => n,
        "seqs" => seqs,
        other => typical(other),
    };
    let (heads, kv_heads, hd) = (dim("heads"), dim("kv_heads"), dim("hd"));
    let joined = heads + 2 * kv_heads;
    let x = repeated(DType::F32, n * joined, hd);
    let caches = [1, 2].map(|input| repeated(desc.inputs[input], seqs * dim("ctx") * kv_heads, hd));
    // What is read and written of activations and tables, and the rows of the caches.
    let rows: usize = caches.iter().map(|cache| cache.len() / (seqs * dim("ctx")) as usize).sum();
    let bytes = (4 * n * hd * (joined + heads + 1)) as f64 + (n as usize * rows) as f64;
    let copies = (COLD_BYTES / 2).div_ceil(x.len()).min(32);
    let mut buffers = vec![(gpu.upload(&x)?, gpu.allocate(4 * (n * heads * hd) as usize)?)];
    for _ in 1..copies {
        buffers.push((buffers[0].0.duplicate(gpu)?, gpu.allocate(4 * (n * heads * hd) as usize)?));
    }
    let table = gpu.upload(&repeated(DType::F32, n, hd / 2))?;
    let (seq, pos) = (numbers(gpu, (0..n).map(|i| (i % seqs) as i32))?, numbers(gpu, (0..n).map(|i| i as i32))?);
    let [k_cache, v_cache] = [gpu.upload(&caches[0])?, gpu.upload(&caches[1])?];
    let kernel = load(gpu, compiler, desc, &dim)?;
    let launches = copies.max(4);
    let mut seconds = [0.0; 2];
    for early in [false, true] {
        let each = |at: usize| {
            let (x, rotated) = &buffers[at % copies];
            let part = |heads: i64| x.address() + (4 * heads * hd) as u64;
            let mut addresses = vec![part(0), part(heads), part(heads + kv_heads)];
            addresses.extend([&table, &table, &seq, &pos, rotated, &k_cache, &v_cache].map(Buffer::address));
            Launch { early, ..launch(desc, kernel, addresses, &dim) }
        };
        let graph = gpu.record(&(0..launches).map(each).collect::<Vec<_>>())?;
        seconds[usize::from(early)] = median(gpu.time(&graph, RUNS)?) / launches as f64;
    }
    let texts = seconds
        .map(|seconds| format!("{:.2} us, {:.0} % of the read rate", seconds * 1e6, 100.0 * bytes / seconds / rate));
    println!("{} heads={heads}/{kv_heads} hd={hd} n={n}: {}; early {}", desc.name, texts[0], texts[1]);
    Ok(())
}

/// A whole prompt of one sequence.
fn prefill(gpu: &Gpu, compiler: &Compiler, desc: &'static CudaKernelDesc, n: i64) -> Result<()> {
    let dim = |name: &str| match name {
        "n" | "ctx" => n,
        "heads" => 32,
        "kv_heads" => 8,
        other => typical(other),
    };
    let (heads, hd) = (dim("heads"), dim("hd"));
    let [k, v] = [1, 2].map(|input| repeated(desc.inputs[input], n * dim("kv_heads"), hd));
    let (k, v) = (gpu.upload(&k)?, gpu.upload(&v)?);
    let q = gpu.upload(&repeated(DType::F32, n * heads, hd))?;
    let (seq, pos) = (numbers(gpu, vec![0; n as usize])?, numbers(gpu, 0..n as i32)?);
    let span = numbers(gpu, vec![0; 2 * n as usize])?;
    let out = gpu.allocate(4 * (n * heads * hd) as usize)?;
    let kernel = load(gpu, compiler, desc, &dim)?;
    let addresses = [&q, &k, &v, &seq, &pos, &span, &out].map(Buffer::address).to_vec();
    let one = launch(desc, kernel, addresses, &dim);
    let seconds = median(gpu.time(&gpu.record(&[one.clone(), one])?, 7)?) / 2.0;
    // Two products of `hd` with half of all pairs of tokens.
    let products = (heads * hd * n * (n + 1)) as f64;
    println!(
        "{} heads={heads}/{} hd={hd} prompt of {n}: {:.1} us, {:.0} TFLOP/s",
        desc.name,
        dim("kv_heads"),
        seconds * 1e6,
        2e-12 * products / seconds
    );
    Ok(())
}

/// A kernel that only reads.
const READ: &str = r#"
extern "C" __global__ void __launch_bounds__(512) read_all(const uint4 *from, unsigned *out, int count) {
    unsigned sum = 0;
    int i = blockIdx.x * 512 + threadIdx.x, all = gridDim.x * 512;
    for (; i + 7 * all < count; i += 8 * all) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = __ldg(from + i + j * all);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    if (sum == 12345) *out = sum;
}
"#;

/// Bytes a second that the device reads from memory.
fn read_rate(gpu: &Gpu, compiler: &Compiler) -> Result<f64> {
    let bytes = 1_usize << 30;
    let buffer = gpu.allocate(bytes)?;
    let out = gpu.allocate(4)?;
    let cubin = compiler.nvrtc.compile("read_all", READ, &compiler.sm.to_string())?;
    let function = gpu.load(&cubin.bytes, "read_all", 0)?;
    let launch = Launch {
        function,
        grid: [132 * 4, 1, 1],
        threads: 512,
        shared_bytes: 0,
        addresses: vec![buffer.address(), out.address()],
        numbers: vec![(bytes / 16) as i32],
        early: false,
    };
    let graph = gpu.record(&[launch.clone(), launch])?;
    Ok(2.0 * bytes as f64 / median(gpu.time(&graph, RUNS)?))
}
