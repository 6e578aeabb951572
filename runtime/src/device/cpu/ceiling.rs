//! How fast this machine could be: the rates that a plan's steps are held against, measured with the pool that runs the plan.
//!
//! The *read rate* is bytes a second that all threads together read from memory with nothing else to do. The *dot rate* is int8
//! multiply-accumulates a second of the best dot instruction of the CPU on registers, so that no memory, not even a cache, has a part in
//! it. The dot rate is the best of several runs, because nothing but a thread that lost its CPU makes it lower. The read rate is the median of
//! the runs of the best way of reading: other machines draw on the same memory, from one millisecond to the next, and what a plan is held
//! against is what memory delivers over some time, not in the luckiest sweep.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kernels::{Isa, Requires};
use memmap2::MmapMut;

use super::pool::Pool;
use crate::error::RuntimeError;

/// Runs of the dot loop, and of each way of reading.
pub(super) const RUNS: usize = 5;
/// Bytes of the buffer that is read, beside the caches: a multiple of any last-level cache that is not reported.
const READ_BYTES: u64 = 256 << 20;
/// The most that is allocated for the measurement.
const MAX_READ_BYTES: u64 = 1 << 30;
/// Rounds of the instruction loop: some tenths of a millisecond.
const DOT_ROUNDS: u64 = 100_000;
/// Loops a thread.
const DOT_LOOPS: u64 = 16;
/// The ways of reading that are tried: machines differ in what suits them best, and kernels do either.
const WAYS: [fn(&[u64]) -> u64; 6] = [sum::<1, 0>, sum::<1, 16>, sum::<1, 32>, sum::<4, 0>, sum::<4, 8>, sum::<8, 0>];

/// Memory that no cache holds.
pub(super) fn read_buffer() -> Result<Arc<Buffer>, RuntimeError> {
    Ok(Arc::new(Buffer::new((4 * last_level_cache_bytes()).clamp(READ_BYTES, MAX_READ_BYTES))?))
}

/// Bytes a second that all threads read from memory, in the median of so many runs of each way.
pub(super) fn read_rate(pool: &mut Pool, buffer: &Arc<Buffer>, runs: usize) -> Result<f64, RuntimeError> {
    let bytes = size_of_val(buffer.words()) as u64;
    let sink = Arc::new(AtomicU64::new(0));
    let mut rates = [const { Vec::new() }; WAYS.len()];
    // The ways take turns, so that all see the same neighbours.
    for _ in 0..runs {
        for (way, rates) in WAYS.into_iter().zip(&mut rates) {
            let (buffer, sink) = (Arc::clone(buffer), Arc::clone(&sink));
            let start = Instant::now();
            pool.run_grid(bytes / 8, move |begin, end| {
                sink.fetch_add(way(&buffer.words()[begin as usize..end as usize]), Ordering::Relaxed);
            })?;
            rates.push(bytes as f64 / start.elapsed().as_secs_f64());
        }
    }
    std::hint::black_box(sink.load(Ordering::Relaxed));
    let medians = rates.map(|mut rates: Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates.get(runs / 2).copied().unwrap_or(0.0)
    });
    Ok(medians.into_iter().fold(0.0, f64::max))
}

/// Words that are read, on huge pages where the system has them: a ceiling should not wait for address translations.
pub(super) struct Buffer {
    map: MmapMut,
}

impl Buffer {
    /// Words that repeat now and then. Pages that were never written would all be the same one, and in a cache. As floats they are between -1
    /// and 1, and no subnormals.
    pub(super) fn new(bytes: u64) -> Result<Self, RuntimeError> {
        let error = |source| RuntimeError::Memory { bytes, purpose: "measuring memory", source };
        let mut map = MmapMut::map_anon(bytes as usize).map_err(error)?;
        // A hint that a system may not know.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        for (index, word) in map.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let mantissas = (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) & 0x807F_FFFF_807F_FFFF;
            *word = (mantissas | 0x3E80_0000_3E80_0000).to_ne_bytes();
        }
        Ok(Self { map })
    }

    pub(super) fn words(&self) -> &[u64] {
        // SAFETY: any bytes are words, and all of them are initialised.
        let (before, words, after) = unsafe { self.map.align_to::<u64>() };
        debug_assert!(before.is_empty() && after.is_empty(), "a map starts at a page");
        words
    }
}

/// The wrapping sum, read from `STREAMS` places in turn, as a kernel does that takes several rows at once, with a prefetch of the line that is
/// `AHEAD` lines ahead; 0 is without.
fn sum<const STREAMS: usize, const AHEAD: usize>(values: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if (Requires { isa: Isa::Avx2 }).is_available() {
        // SAFETY: the CPU has the features.
        return unsafe { sum_avx2::<STREAMS, AHEAD>(values) };
    }
    sum_lines::<STREAMS, AHEAD>(values)
}

/// As [`sum`], in wider vectors.
///
/// # Safety
///
/// The CPU has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn sum_avx2<const STREAMS: usize, const AHEAD: usize>(values: &[u64]) -> u64 {
    sum_lines::<STREAMS, AHEAD>(values)
}

/// Eight independent sums a stream, which become vectors and wait for nothing but memory.
#[inline(always)]
fn sum_lines<const STREAMS: usize, const AHEAD: usize>(values: &[u64]) -> u64 {
    let (lines, rest) = values.as_chunks::<8>();
    let length = lines.len() / STREAMS;
    let (whole, last_lines) = lines.split_at(length * STREAMS);
    let streams: [&[[u64; 8]]; STREAMS] = std::array::from_fn(|stream| &whole[stream * length..][..length]);
    let mut acc = [[0_u64; 8]; STREAMS];
    for position in 0..length {
        for (stream, acc) in streams.iter().zip(&mut acc) {
            let line = &stream[position];
            if AHEAD != 0 {
                prefetch(line, AHEAD);
            }
            for (acc, value) in acc.iter_mut().zip(line) {
                *acc = acc.wrapping_add(*value);
            }
        }
    }
    let sums = acc.as_flattened().iter().chain(last_lines.as_flattened()).chain(rest);
    sums.fold(0, |sum, value| sum.wrapping_add(*value))
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch(line: &[u64; 8], lines_ahead: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

    let ahead = line.as_ptr().wrapping_add(8 * lines_ahead);
    // SAFETY: SSE is part of the architecture, and a prefetch of any address is a hint that does not fault.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn prefetch(_line: &[u64; 8], _lines_ahead: usize) {}

/// Bytes of the largest cache that the system reports, or 0.
pub(super) fn last_level_cache_bytes() -> u64 {
    let size = |index: u32| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let text = std::fs::read_to_string(path).ok()?;
        let text = text.trim();
        match text.strip_suffix('K') {
            Some(kib) => kib.parse::<u64>().ok().map(|kib| kib << 10),
            None => text.strip_suffix('M')?.parse::<u64>().ok().map(|mib| mib << 20),
        }
    };
    (0..8).filter_map(size).max().unwrap_or(0)
}

/// Int8 multiply-accumulates a second of all threads together.
pub(super) fn dot_rate(pool: &mut Pool) -> Result<f64, RuntimeError> {
    let isa = [Isa::Avx512Vnni, Isa::Avx2, Isa::Neon].into_iter().find(|&isa| Requires { isa }.is_available());
    let isa = isa.unwrap_or(Isa::Scalar);
    let mut best = 0.0_f64;
    for _ in 0..RUNS {
        let macs = Arc::new(AtomicU64::new(0));
        let shared = Arc::clone(&macs);
        let start = Instant::now();
        pool.run_grid(DOT_LOOPS * pool.threads() as u64, move |begin, end| {
            for _ in begin..end {
                shared.fetch_add(dot_loop(isa), Ordering::Relaxed);
            }
        })?;
        best = best.max(macs.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Runs the best dot instruction of `isa`, which the CPU has, and returns how many multiply-accumulates that were.
fn dot_loop(isa: Isa) -> u64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller has made sure of the features.
        Isa::Avx512Vnni => unsafe { x86_64::vnni() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller has made sure of the features.
        Isa::Avx2 => unsafe { x86_64::avx2() },
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => aarch64::dotprod(),
        _ => scalar(),
    }
}

/// What the compiler makes of a plain dot product.
fn scalar() -> u64 {
    let (x, w) = (std::hint::black_box([3_i8; 64]), std::hint::black_box([1_i8; 64]));
    let mut acc = 0_i32;
    for _ in 0..DOT_ROUNDS / 8 {
        let (x, w) = (std::hint::black_box(&x), std::hint::black_box(&w));
        acc = acc.wrapping_add(x.iter().zip(w).map(|(x, w)| i32::from(*x) * i32::from(*w)).sum::<i32>());
    }
    std::hint::black_box(acc);
    DOT_ROUNDS / 8 * 64
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    //! The loops for x86. Ten independent sums hide the latency of five cycles on two ports.

    use std::arch::asm;

    use super::DOT_ROUNDS;

    /// `vpdpbusd` on 64 bytes.
    ///
    /// # Safety
    ///
    /// The CPU has AVX-512 VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) unsafe fn vnni() -> u64 {
        // SAFETY: only registers that are declared are changed, and the CPU has the instructions.
        unsafe {
            asm!(
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
                rounds = inout(reg) DOT_ROUNDS => _,
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _,
                out("zmm5") _, out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _,
                options(nomem, nostack),
            );
        }
        DOT_ROUNDS * 10 * 64
    }

    /// `vpmaddubsw` and `vpaddw` on 32 bytes: products of ternary codes are so small that dozens of them add up in 16 bits, so what
    /// widens them now and then is not counted.
    ///
    /// # Safety
    ///
    /// The CPU has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2() -> u64 {
        // SAFETY: only registers that are declared are changed, and the CPU has the instructions.
        unsafe {
            asm!(
                "2:",
                "vpmaddubsw ymm4, ymm14, ymm15",
                "vpaddw ymm0, ymm0, ymm4",
                "vpmaddubsw ymm5, ymm14, ymm15",
                "vpaddw ymm1, ymm1, ymm5",
                "vpmaddubsw ymm6, ymm14, ymm15",
                "vpaddw ymm2, ymm2, ymm6",
                "vpmaddubsw ymm7, ymm14, ymm15",
                "vpaddw ymm3, ymm3, ymm7",
                "dec {rounds}",
                "jnz 2b",
                rounds = inout(reg) DOT_ROUNDS => _,
                out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
                out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
                options(nomem, nostack),
            );
        }
        DOT_ROUNDS * 4 * 32
    }
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    //! The loop for Arm. Sixteen independent sums hide the latency of four cycles on four ports.

    use std::arch::asm;

    use super::DOT_ROUNDS;

    /// `sdot` on 16 bytes. It runs only on a CPU that was found to have it.
    pub(super) fn dotprod() -> u64 {
        // SAFETY: only registers that are declared are changed; the caller has found the CPU to have the instruction.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "2:",
                "sdot v0.4s, v16.16b, v17.16b",
                "sdot v1.4s, v16.16b, v17.16b",
                "sdot v2.4s, v16.16b, v17.16b",
                "sdot v3.4s, v16.16b, v17.16b",
                "sdot v4.4s, v16.16b, v17.16b",
                "sdot v5.4s, v16.16b, v17.16b",
                "sdot v6.4s, v16.16b, v17.16b",
                "sdot v7.4s, v16.16b, v17.16b",
                "sdot v18.4s, v16.16b, v17.16b",
                "sdot v19.4s, v16.16b, v17.16b",
                "sdot v20.4s, v16.16b, v17.16b",
                "sdot v21.4s, v16.16b, v17.16b",
                "sdot v22.4s, v16.16b, v17.16b",
                "sdot v23.4s, v16.16b, v17.16b",
                "sdot v24.4s, v16.16b, v17.16b",
                "sdot v25.4s, v16.16b, v17.16b",
                "subs {rounds}, {rounds}, #1",
                "b.ne 2b",
                rounds = inout(reg) DOT_ROUNDS => _,
                out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
                out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _, out("v24") _,
                out("v25") _,
                options(nomem, nostack),
            );
        }
        DOT_ROUNDS * 16 * 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dot_loop_of_this_cpu_counts_its_work() {
        for isa in Isa::ALL.into_iter().filter(|&isa| Requires { isa }.is_available()) {
            assert!(DOT_ROUNDS <= dot_loop(isa), "{isa}");
        }
    }

    #[test]
    fn all_ways_read_everything() {
        for length in [0, 7, 64, 1003] {
            let values: Vec<u64> = (0..length).collect();
            for way in WAYS {
                assert_eq!(way(&values), values.iter().sum::<u64>());
            }
        }
    }
}
