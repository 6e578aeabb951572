//! How fast this machine runs each row of the kernel table from its caches, starts steps, and does plain arithmetic.
//!
//! All threads work at the same time, each on data of its own that fits the caches of a core, because that is how a plan runs: a rate is that of
//! one thread while the others compute, too. What is measured is the median of many runs of about a millisecond, so that a neighbour who
//! comes by does not count, in rounds over the whole table of which the best counts, so that one who stays for a while does not either. The
//! rows are taken from the table through their signatures; a row whose arguments have names that are not known here is left out, and stays
//! guessed.
//!
//! With one token, the matmuls of the best instruction set read their weights from memory, as decoding does: how much of the arithmetic hides
//! behind the reading is no property of either. Memory of a shared machine is not the same from one second to the next, so these rows
//! take turns, each with the read rate of its moment, and the median of the quotients counts, times the median read rate.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ir::DType;
use ir::packing::RowFormat;
use ir::plan::tuning::{MAX_RATE, TUNING_VERSION};
use ir::plan::{KernelRate, Tuning};
use kernels::{CpuKernel, Family, Isa, KernelDesc, TABLE};

use super::ceiling::{self, Buffer};
use super::pool::{Pool, Stages};
use crate::error::RuntimeError;

/// Columns of the weights: a multiple of every tile and of [`GROUP`].
const K: usize = 2560;
/// Bytes of a thread's weights: with activations and results they fit the second-level cache of any CPU that has one of 512 KiB.
const WEIGHT_BYTES: usize = 192 << 10;
/// Tokens that stand for many.
const MANY: u64 = 64;
/// Columns of a group of 4-bit weights.
const GROUP: usize = 64;
/// Queries and keys of attention: four heads on one head of keys, of 128 each, with so many keys that K and V fit the caches.
const HEADS: usize = 4;
const HEAD_DIM: usize = 128;
const KEYS: usize = 256;
/// How long a run should take.
const RUN: Duration = Duration::from_millis(1);
/// The fewest runs whose median counts.
const RUNS: usize = 5;
/// Times that each row reads its weights from memory.
const STREAM_ROUNDS: usize = 11;
/// The least bytes of weights that a thread reads from memory.
const PART_BYTES: usize = 1 << 20;
/// Times that everything is measured.
const ROUNDS: usize = 3;
/// Steps of a job that does nothing, by which the cost of a step is measured.
const STEPS: usize = 512;

/// Measures for about so long. `progress` is told how many of how many parts are done, and may stop it.
pub(super) fn measure(
    threads: usize,
    time: Duration,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Tuning, RuntimeError> {
    let mut pool = Pool::new(threads)?;
    let mut points: Vec<(&KernelDesc, u64)> = Vec::new();
    for desc in TABLE.iter().filter(|desc| desc.requires.is_available() && Task::new(desc, 1).is_some()) {
        points.extend([1, MANY].into_iter().filter(|tokens| desc.tokens.contains(tokens)).map(|tokens| (desc, tokens)));
    }
    let best = Isa::best_available();
    let is_streamed = |desc: &KernelDesc| desc.requires.isa == best && desc.signature.dims.contains(&"m");
    let streamed: Vec<usize> =
        (0..points.len()).filter(|&index| points[index].1 == 1 && is_streamed(points[index].0)).collect();
    // Steps and arithmetic are two more parts.
    let total = (ROUNDS * (points.len() + 2) + STREAM_ROUNDS * streamed.len()) as u64;
    let share = time / u32::try_from(total).expect("the table is short");
    let mut done = 0;
    let mut advance = || {
        done += 1;
        if progress(done, total).is_break() { Err(RuntimeError::Cancelled) } else { Ok(()) }
    };

    let (mut step, mut elementwise) = (Duration::MAX, 0.0_f64);
    let mut rates = vec![0.0_f64; points.len()];
    for _ in 0..ROUNDS {
        step = step.min(step_time(&mut pool, share)?);
        advance()?;
        elementwise = elementwise.max(elementwise_rate(&mut pool, share)?);
        advance()?;
        for ((desc, tokens), rate) in points.iter().zip(&mut rates) {
            *rate = rate.max(kernel_rate(&mut pool, desc, *tokens, share)?);
            advance()?;
        }
    }
    let weights = ceiling::read_buffer()?;
    let mut quotients = vec![Vec::new(); streamed.len()];
    let mut reads = Vec::new();
    for _ in 0..STREAM_ROUNDS {
        for (&index, quotients) in streamed.iter().zip(&mut quotients) {
            let read = ceiling::read_rate(&mut pool, &weights, 1)?;
            quotients.push(streamed_rate(&mut pool, points[index].0, &weights)? / read);
            reads.push(read);
            advance()?;
        }
    }
    let read_rate = median(&mut reads).max(1.0);
    for (&index, quotients) in streamed.iter().zip(&mut quotients) {
        // A thread's part, as all rates are.
        rates[index] = median(quotients) * read_rate;
    }
    let mut kernels: Vec<KernelRate> = Vec::new();
    for ((desc, tokens), rate) in points.into_iter().zip(rates) {
        let rate = per_us(rate);
        match kernels.last_mut().filter(|last| last.kernel == desc.name) {
            Some(last) => last.many_macs_per_us = Some(rate),
            None => {
                let many_macs_per_us = (tokens != 1).then_some(rate);
                kernels.push(KernelRate { kernel: desc.name.to_owned(), one_macs_per_us: rate, many_macs_per_us });
            }
        }
    }
    Ok(Tuning {
        version: TUNING_VERSION,
        target: native_target(),
        threads: threads as u32,
        read_bytes_per_us: per_us(read_rate),
        step_ns: step.as_nanos() as u64,
        elementwise_per_us: per_us(elementwise),
        kernels,
    })
}

/// The target that this CPU is best served with, by the name that the compiler gives it.
fn native_target() -> String {
    match Isa::best_available() {
        Isa::Scalar => std::env::consts::ARCH.to_owned(),
        isa => format!("{}:{isa}", std::env::consts::ARCH),
    }
}

/// A rate a second as a whole number a microsecond.
fn per_us(per_second: f64) -> u64 {
    ((per_second / 1e6).round() as u64).clamp(1, MAX_RATE)
}

/// The median time of runs of a job that are begun until `share` is over. `run` is told how often to repeat its work.
fn median_time(
    share: Duration,
    mut run: impl FnMut(u64) -> Result<(), RuntimeError>,
) -> Result<(Duration, u64), RuntimeError> {
    // The first run brings code and data into the caches and wakes the threads.
    run(1)?;
    let mut repeats = 1;
    loop {
        let start = Instant::now();
        run(repeats)?;
        let time = start.elapsed();
        if RUN.min(share / RUNS as u32) <= time || 1 << 24 <= repeats {
            break;
        }
        repeats *= 2;
    }
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < RUNS || start.elapsed() < share {
        let start = Instant::now();
        run(repeats)?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok((times[times.len() / 2], repeats))
}

/// Multiply-accumulates a second of one thread.
fn kernel_rate(pool: &mut Pool, desc: &KernelDesc, tokens: u64, share: Duration) -> Result<f64, RuntimeError> {
    let task = || Task::new(desc, tokens as usize).expect("rows without a task were left out");
    let tasks: Arc<Vec<Task>> = Arc::new((0..pool.threads()).map(|_| task()).collect());
    let macs = tasks[0].macs;
    let (time, repeats) = median_time(share, |repeats| {
        let tasks = Arc::clone(&tasks);
        pool.run_grid(tasks.len() as u64, move |begin, end| {
            for task in &tasks[begin as usize..end as usize] {
                (0..repeats).for_each(|_| task.run());
            }
        })
    })?;
    Ok(macs as f64 * repeats as f64 / time.as_secs_f64())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Multiply-accumulates a second of one thread with one token, while all threads together read `weights` once from memory.
fn streamed_rate(pool: &mut Pool, desc: &KernelDesc, weights: &Arc<Buffer>) -> Result<f64, RuntimeError> {
    let threads = pool.threads();
    let words = weights.words();
    // Parts overlap where there are very many threads, so that each is some rows.
    let each = (words.len() / threads).max(PART_BYTES / 8).min(words.len()) / LINE_WORDS * LINE_WORDS;
    let start = |thread: usize| thread * each % (words.len() - each + LINE_WORDS) / LINE_WORDS * LINE_WORDS;
    let task = |thread: usize| Task::with_weights(desc, 1, &words[start(thread)..][..each]);
    let tasks: Vec<Task> =
        (0..threads).map(|thread| task(thread).expect("rows without a task were left out")).collect();
    let (macs, tasks, weights) = (tasks[0].macs, Arc::new(tasks), Arc::clone(weights));
    let start = Instant::now();
    pool.run_grid(threads as u64, move |begin, end| {
        // The tasks point into it.
        let _weights = &weights;
        tasks[begin as usize..end as usize].iter().for_each(Task::run);
    })?;
    Ok(macs as f64 / start.elapsed().as_secs_f64())
}

/// The time of one step that all threads take part in and that does nothing.
fn step_time(pool: &mut Pool, share: Duration) -> Result<Duration, RuntimeError> {
    struct Nothing {
        units: u64,
    }
    impl Stages for Nothing {
        fn len(&self) -> usize {
            STEPS
        }
        fn units(&self, _stage: usize) -> u64 {
            self.units
        }
        fn execute(&self, _stage: usize, begin: u64, end: u64) {
            std::hint::black_box((begin, end));
        }
    }
    // More units than pieces, as all but the smallest steps have.
    let units = 64 * pool.threads() as u64;
    let (time, repeats) =
        median_time(share, |repeats| (0..repeats).try_for_each(|_| pool.run(Arc::new(Nothing { units }))))?;
    Ok(time / (STEPS as u32 * repeats as u32))
}

/// Elementwise f32 operations a second of one thread, from its first-level cache: `y * a + x` counts as two.
fn elementwise_rate(pool: &mut Pool, share: Duration) -> Result<f64, RuntimeError> {
    const VALUES: usize = 2048;
    const ROUNDS: u64 = 64;
    let threads = pool.threads() as u64;
    let (time, repeats) = median_time(share, |repeats| {
        pool.run_grid(threads, move |begin, end| {
            let x = std::hint::black_box([0.5_f32; VALUES]);
            let mut y = std::hint::black_box([1.0_f32; VALUES]);
            for _ in 0..(end - begin) * repeats * ROUNDS {
                for (y, x) in y.iter_mut().zip(&x) {
                    *y = *y * 0.5 + x;
                }
                std::hint::black_box(&mut y);
            }
        })
    })?;
    Ok((2 * VALUES as u64 * ROUNDS * repeats) as f64 / time.as_secs_f64())
}

/// One call of a kernel on data of its own.
struct Task {
    kernel: CpuKernel,
    args: Vec<*mut u8>,
    dims: Vec<i64>,
    units: i64,
    macs: u64,
    /// What the arguments point to.
    _buffers: Vec<Vec<Line>>,
}

/// Memory aligned as the buffers of a plan are.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u8; LINE_BYTES]);

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;
/// Words of 8 bytes in it.
const LINE_WORDS: usize = LINE_BYTES / 8;

// SAFETY: the pointers are into buffers that the task owns.
unsafe impl Send for Task {}
// SAFETY: a grid gives each task to one thread at a time, see `kernel_rate`; nobody else follows the pointers.
unsafe impl Sync for Task {}

impl Task {
    /// The task of a row for a number of tokens that it takes; `None` if this CPU cannot run it, or if it is of a family whose sizes are not those of
    /// inference.
    fn new(desc: &KernelDesc, n: usize) -> Option<Self> {
        Self::of_size(desc, n, WEIGHT_BYTES)
    }

    /// The same with weights that lie elsewhere: as many as there are. Any bytes are some weights.
    fn with_weights(desc: &KernelDesc, n: usize, weights: &[u64]) -> Option<Self> {
        let mut task = Self::of_size(desc, n, LINE_BYTES)?;
        let dim = |name: &str| desc.signature.dims.iter().position(|dim| *dim == name);
        let (k, group) = (K, dim("group").map_or(K, |_| GROUP));
        let row = match (desc.layout, desc.inputs.get(1)?) {
            (Some(layout), _) => layout.bytes(16, k as u64) as usize / 16,
            (None, &dtype) => k / group * row_bytes(dtype, group)?,
        };
        let m = size_of_val(weights) / row / 16 * 16;
        task.dims[dim("m")?] = m as i64;
        task.macs = (n * m * K) as u64;
        task.units = desc.signature.grid.units(|name| if name == "m" { m as i64 } else { 0 });
        for (index, arg) in desc.signature.args.iter().enumerate() {
            match arg.name {
                // Kernels only read them.
                "w" => task.args[index] = weights.as_ptr().cast_mut().cast(),
                "scale" | "out" => {
                    let mut buffer = vec![Line([0; LINE_BYTES]); (4 * n * m).div_ceil(LINE_BYTES)];
                    task.args[index] = buffer.as_mut_ptr().cast();
                    task._buffers.push(buffer);
                }
                _ => {}
            }
        }
        Some(task)
    }

    fn of_size(desc: &KernelDesc, n: usize, weight_bytes: usize) -> Option<Self> {
        if !matches!(desc.family, Family::TernaryMatmul | Family::DenseMatmul | Family::Attention) {
            return None;
        }
        let kernel = kernels::cpu::resolve(desc.name).ok()?;
        let has = |name: &str| desc.signature.dims.contains(&name);
        let group = if has("group") { GROUP } else { K };
        let m = match (desc.layout, desc.inputs.get(1)?) {
            (Some(layout), _) => weight_bytes * 16 / layout.bytes(16, K as u64) as usize,
            (None, &dtype) => weight_bytes / (K / group * row_bytes(dtype, group)?),
        };
        let m = (m / 16 * 16).max(16);
        let dim = |name: &str| match name {
            "n" => Some(n as i64),
            "k" => Some(K as i64),
            "m" => Some(m as i64),
            "group" => Some(group as i64),
            "heads" => Some(HEADS as i64),
            "kv_heads" => Some(1),
            "hd" => Some(HEAD_DIM as i64),
            "ctx" => Some(KEYS as i64),
            "window" | "sinks" => Some(0),
            "scale_bits" => Some(i64::from((1.0 / (HEAD_DIM as f32).sqrt()).to_bits())),
            _ => None,
        };
        let width = if has("hd") { HEADS * HEAD_DIM } else { m };
        let integers = |values: Vec<i32>| Some(values.into_iter().flat_map(i32::to_le_bytes).collect::<Vec<u8>>());
        let bytes = |name: &str| match name {
            "x" => rows(desc.inputs[0], n, K),
            "w" if desc.layout.is_some() => Some(ternary_bytes(desc.layout?.bytes(m as u64, K as u64) as usize)),
            "w" => rows(desc.inputs[1], m * K / group, group),
            "scale" => rows(DType::F32, 1, m),
            "q" => rows(DType::F32, n * HEADS, HEAD_DIM),
            "k" => rows(desc.inputs[1], KEYS, HEAD_DIM),
            "v" => rows(*desc.inputs.get(2)?, KEYS, HEAD_DIM),
            "seq" => integers(vec![0; n]),
            "pos" => integers((KEYS - n..KEYS).map(|position| position as i32).collect()),
            "span" => integers(vec![0; 2 * n]),
            "out" => Some(vec![0; 4 * n * width]),
            _ => None,
        };
        let dims: Vec<i64> = desc.signature.dims.iter().map(|name| dim(name)).collect::<Option<_>>()?;
        let macs = if has("m") {
            n * m * K
        } else if has("ctx") && has("heads") {
            // Each token sees all keys up to its own.
            2 * HEADS * HEAD_DIM * (KEYS - n + 1..=KEYS).sum::<usize>()
        } else {
            return None;
        };
        let mut buffers: Vec<Vec<Line>> =
            desc.signature.args.iter().map(|arg| bytes(arg.name).map(|bytes| lines(&bytes))).collect::<Option<_>>()?;
        let args = buffers.iter_mut().map(|buffer| buffer.as_mut_ptr().cast()).collect();
        let units = desc.signature.grid.units(|name| dim(name).unwrap_or(0));
        Some(Self { kernel, args, dims, units, macs: macs as u64, _buffers: buffers })
    }

    fn run(&self) {
        // SAFETY: the kernel was resolved for this CPU; arguments and dims are those of its signature, and each buffer has the bytes that the
        // dims imply; the units are the whole grid, which this thread alone computes.
        unsafe { (self.kernel)(self.args.as_ptr(), self.dims.as_ptr(), 0, self.units) }
    }
}

/// Bytes of a row of `k` values.
fn row_bytes(dtype: DType, k: usize) -> Option<usize> {
    RowFormat::new(dtype, k).map(RowFormat::stride).or_else(|| Some(dtype.bytes()? as usize * k))
}

/// `count` rows of `k` values between -1 and 1, as a type stores them.
fn rows(dtype: DType, count: usize, k: usize) -> Option<Vec<u8>> {
    let mut state = 1_u32;
    let mut row = || -> Vec<f32> {
        let mut value = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..k).map(|_| value()).collect()
    };
    let mut bytes = Vec::with_capacity(count * row_bytes(dtype, k)?);
    for _ in 0..count {
        let row = row();
        match (dtype, RowFormat::new(dtype, k)) {
            (_, Some(format)) => {
                let start = bytes.len();
                bytes.resize(start + format.stride(), 0);
                format.encode(&row, &mut bytes[start..]);
            }
            (DType::F32, _) => bytes.extend(row.iter().flat_map(|value| value.to_le_bytes())),
            // The upper half of a single is a bf16 next to it.
            (DType::BF16, _) => {
                bytes.extend(row.iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()))
            }
            _ => return None,
        }
    }
    Some(bytes)
}

/// Packed ternary weights: any byte is some weights, and these have all codes in all places.
fn ternary_bytes(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| [0x00, 0x55, 0xaa, 0x12, 0x48, 0x84, 0x21, 0x90][at % 8]).collect()
}

fn lines(bytes: &[u8]) -> Vec<Line> {
    let mut lines = vec![Line([0; LINE_BYTES]); bytes.len().div_ceil(LINE_BYTES).max(1)];
    for (line, chunk) in lines.iter_mut().zip(bytes.chunks(LINE_BYTES)) {
        line.0[..chunk.len()].copy_from_slice(chunk);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_available_row_that_multiplies_is_measured() {
        let tuning = measure(2, Duration::from_millis(50), &mut |_, _| ControlFlow::Continue(())).unwrap();
        assert_eq!(tuning.problems(), []);
        let multiplies =
            |desc: &&KernelDesc| matches!(desc.family, Family::TernaryMatmul | Family::DenseMatmul | Family::Attention);
        for desc in TABLE.iter().filter(|desc| desc.requires.is_available()).filter(multiplies) {
            let rate = tuning.kernels.iter().find(|rate| rate.kernel == desc.name);
            let rate = rate.unwrap_or_else(|| panic!("{} was not measured", desc.name));
            assert_eq!(rate.many_macs_per_us.is_some(), desc.tokens.contains(&MANY), "{}", desc.name);
        }
        assert_eq!(Tuning::from_ron(&tuning.to_ron()), Ok(tuning));
    }

    #[test]
    fn it_stops_when_told() {
        let result = measure(1, Duration::ZERO, &mut |done, _| match done {
            2 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        assert!(matches!(result, Err(RuntimeError::Cancelled)));
    }
}
