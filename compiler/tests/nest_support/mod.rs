//! How generated code is called by a test: mapped executable, its buffers unaligned, between guard bytes or against an unmapped page.

#![allow(dead_code, reason = "each test program uses a part of this module")]

use std::fs::File;

use kernels::{Arch, Isa};
use memmap2::{MmapMut, MmapOptions};
use tritter_compiler::emit::nvrtc::{Nvrtc, Search};
use tritter_compiler::emit::{CodeTarget, assemble, cuda_c};
use tritter_compiler::nest::eval::eval;
use tritter_compiler::nest::{Elem, Verified};

/// Reproducible numbers (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// An f32 that is not special: between -4 and 4.
    pub(crate) fn plain(&mut self) -> f32 {
        (self.below(1 << 24) as f32 / (1 << 21) as f32) - 4.0
    }

    /// Any kind of f32: mostly plain, sometimes of any exponent, sometimes special.
    pub(crate) fn wild(&mut self) -> f32 {
        const SPECIAL: [f32; 16] = [
            0.0,
            -0.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            f32::MIN_POSITIVE,
            1e-41,
            -1e-45,
            f32::MAX,
            0.5,
            -1.5,
            2.5,
            8_388_607.5,
            -4_194_303.5,
            88.8,
            -90.0,
        ];
        match self.below(20) {
            0 => self.pick(&SPECIAL),
            1 => f32::from_bits(self.next() as u32),
            _ => self.plain(),
        }
    }
}

pub(crate) fn f32_bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

pub(crate) fn i32_bytes(values: impl IntoIterator<Item = i32>) -> Vec<u8> {
    values.into_iter().flat_map(i32::to_le_bytes).collect()
}

pub(crate) fn read_f32(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|each| f32::from_le_bytes(*each)).collect()
}

/// The targets whose code this machine runs.
pub(crate) fn runnable() -> Vec<CodeTarget> {
    let Some(arch) = Arch::host() else { return Vec::new() };
    let best = Isa::best_available();
    Isa::ALL.into_iter().filter(|isa| isa.runs_on(best)).filter_map(|isa| CodeTarget::new(arch, isa)).collect()
}

/// All targets.
pub(crate) fn all_targets() -> Vec<CodeTarget> {
    let of = |arch| Isa::ALL.into_iter().filter_map(move |isa| CodeTarget::new(arch, isa));
    [Arch::X86_64, Arch::Aarch64].into_iter().flat_map(of).collect()
}

#[cfg(target_arch = "x86_64")]
type Function = unsafe extern "sysv64" fn(*const *mut u8, *const i64, i64, i64);
#[cfg(not(target_arch = "x86_64"))]
type Function = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64);

const PAGE: usize = 65536;
const GUARD: usize = 64;

/// Memory of one buffer that shows, or does not survive, an access outside it.
enum Fenced {
    /// Guard bytes on both sides of an unaligned range.
    Bytes { bytes: Vec<u8>, start: usize, len: usize },
    /// The range ends where the file ends: the page behind is mapped but does not exist.
    Page { _file: File, map: MmapMut, start: usize, len: usize },
}

impl Fenced {
    fn new(content: &[u8], random: &mut Random) -> Self {
        let len = content.len();
        if cfg!(target_os = "linux") && random.chance(50) {
            let size = len.next_multiple_of(PAGE);
            let file = tempfile::tempfile().unwrap();
            file.set_len(size as u64).unwrap();
            // SAFETY: the file is temporary and nobody else has it.
            let mut map = unsafe { MmapOptions::new().len(size + PAGE).map_mut(&file) }.unwrap();
            let start = size - len;
            map[start..size].copy_from_slice(content);
            Fenced::Page { _file: file, map, start, len }
        } else {
            let start = GUARD + random.below(16);
            let mut bytes = vec![0xA5; start + len + GUARD];
            bytes[start..start + len].copy_from_slice(content);
            Fenced::Bytes { bytes, start, len }
        }
    }

    fn pointer(&mut self) -> *mut u8 {
        match self {
            Fenced::Bytes { bytes, start, .. } => bytes[*start..].as_mut_ptr(),
            // Not through a slice: the range may be empty and end at the missing page.
            Fenced::Page { map, start, .. } => map.as_mut_ptr().wrapping_add(*start),
        }
    }

    fn content(&self) -> &[u8] {
        match self {
            Fenced::Bytes { bytes, start, len } => {
                let (before, rest) = bytes.split_at(*start);
                let (content, after) = rest.split_at(*len);
                assert!(before.iter().chain(after).all(|byte| *byte == 0xA5), "a guard byte was overwritten");
                content
            }
            Fenced::Page { map, start, len, .. } => {
                assert!(map[..*start].iter().all(|byte| *byte == 0), "a byte before the buffer was overwritten");
                &map[*start..*start + *len]
            }
        }
    }
}

/// The buffers after the generated code has run over all units, cut at random places.
pub(crate) fn run_code(
    nest: &Verified,
    target: CodeTarget,
    buffers: &[Vec<u8>],
    dims: &[i64],
    random: &mut Random,
) -> Vec<Vec<u8>> {
    run_code_over(nest, target, buffers, dims, random, None)
}

/// The same with the first buffer of a pair where the second is.
pub(crate) fn run_code_over(
    nest: &Verified,
    target: CodeTarget,
    buffers: &[Vec<u8>],
    dims: &[i64],
    random: &mut Random,
    over: Option<(usize, usize)>,
) -> Vec<Vec<u8>> {
    let code = assemble(&[nest], target, false).unwrap();
    let mut map = MmapMut::map_anon(code.bytes.len()).unwrap();
    map.copy_from_slice(&code.bytes);
    let map = map.make_exec().unwrap();
    let entry = map[code.symbols[0].offset as usize..].as_ptr();
    // SAFETY: the bytes are a function of this type, and the mapping lives until the last call.
    let function = unsafe { std::mem::transmute::<*const u8, Function>(entry) };

    let mut fenced: Vec<_> = buffers.iter().map(|buffer| Fenced::new(buffer, random)).collect();
    let mut args: Vec<_> = fenced.iter_mut().map(Fenced::pointer).collect();
    if let Some((written, read)) = over {
        args[written] = args[read];
    }
    let units = nest.units(dims).unwrap();
    let mut begin = 0;
    while begin < units {
        let end = begin + 1 + random.below((units - begin) as usize) as i64;
        // SAFETY: every buffer has the size the nest touches, which the interpreter has checked.
        unsafe { function(args.as_ptr(), dims.as_ptr(), begin, end) };
        begin = end;
    }
    // SAFETY: as above; no unit is computed.
    unsafe { function(args.as_ptr(), dims.as_ptr(), 0, 0) };
    let place = |at: usize| over.filter(|(written, _)| *written == at).map_or(at, |(_, read)| read);
    (0..fenced.len()).map(|at| fenced[place(at)].content().to_vec()).collect()
}

/// The bytes with every NaN made the same, and every zero minimum of a q4 record positive.
fn canonical(elem: Elem, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let canonical_f32 = |bytes: &mut [u8], keep_zero: bool| {
        let value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if value.is_nan() {
            bytes.copy_from_slice(&f32::NAN.to_le_bytes());
        } else if value == 0.0 && !keep_zero {
            bytes.copy_from_slice(&[0; 4]);
        }
    };
    match elem {
        Elem::F32 => bytes.chunks_exact_mut(4).for_each(|each| canonical_f32(each, true)),
        Elem::F16 | Elem::BF16 => {
            for each in bytes.chunks_exact_mut(2) {
                let bits = u16::from_le_bytes([each[0], each[1]]);
                let infinity = if elem == Elem::F16 { 0x7c00 } else { 0x7f80 };
                if infinity < bits & 0x7fff {
                    each.fill(0xff);
                }
            }
        }
        Elem::I8 | Elem::I32 => {}
        Elem::Q8 { .. } | Elem::Q4 { .. } => {
            let format = elem.row_format().unwrap();
            for record in bytes.chunks_exact_mut(format.stride()) {
                let numbers = &mut record[format.code_bytes()..];
                canonical_f32(&mut numbers[..4], true);
                if matches!(elem, Elem::Q4 { .. }) {
                    canonical_f32(&mut numbers[4..], false);
                }
            }
        }
    }
    bytes
}

/// What the interpreter computes.
pub(crate) fn interpret(nest: &Verified, buffers: &[Vec<u8>], dims: &[i64]) -> Vec<Vec<u8>> {
    let mut expected = buffers.to_vec();
    let mut slices: Vec<_> = expected.iter_mut().map(Vec::as_mut_slice).collect();
    let units = nest.units(dims).unwrap();
    eval(nest, &mut slices, dims, 0..units).unwrap_or_else(|error| panic!("{error}\n{}", **nest));
    expected
}

/// Panics at the first byte in which the buffers of generated code differ from those of the interpreter.
pub(crate) fn assert_same(nest: &Verified, target: CodeTarget, expected: &[Vec<u8>], actual: &[Vec<u8>]) {
    for (buffer, (expected, actual)) in nest.buffers.iter().zip(expected.iter().zip(actual)) {
        let (expected, actual) = (canonical(buffer.elem, expected), canonical(buffer.elem, actual));
        let Some(at) = expected.iter().zip(&actual).position(|(left, right)| left != right) else { continue };
        let word = at & !3..((at & !3) + 4).min(expected.len());
        panic!(
            "{target}: byte {at} of `{}`: expected {:02x?}, found {:02x?}\n{}",
            buffer.name,
            &expected[word.clone()],
            &actual[word],
            **nest
        );
    }
}

/// NVRTC, where `TRITTER_NVRTC` says that it is.
fn nvrtc() -> Option<Nvrtc> {
    let explicit = std::env::var_os("TRITTER_NVRTC").filter(|path| !path.is_empty())?;
    let search = Search { explicit: Some(explicit.into()), ..Search::default() };
    Some(Nvrtc::load(&search).unwrap_or_else(|error| panic!("{error}")))
}

/// Panics if NVRTC refuses the CUDA C of a nest. Where there is no NVRTC, it is only printed.
pub(crate) fn check_cuda(nest: &Verified) {
    let source = cuda_c::source(nest);
    let entry = format!("{}(", nest.name);
    assert!(source.contains(&entry), "{source}");
    thread_local! {
        static NVRTC: Option<Nvrtc> = nvrtc();
    }
    NVRTC.with(|nvrtc| {
        let Some(nvrtc) = nvrtc else { return };
        for arch in ["sm_80", "sm_90a"] {
            nvrtc.compile(&nest.name, &source, arch).unwrap_or_else(|error| panic!("{error}\n{source}"));
        }
    });
}

/// Runs the code of every target of this machine with a result over what it is computed from: nothing else may change by it.
pub(crate) fn check_over(
    nest: &Verified,
    buffers: &[Vec<u8>],
    dims: &[i64],
    random: &mut Random,
    (written, read): (usize, usize),
) {
    // What the nest does not write of the place is what it was.
    let mut apart = buffers.to_vec();
    apart[written] = buffers[read].clone();
    let mut expected = interpret(nest, &apart, dims);
    expected[read] = expected[written].clone();
    for target in runnable() {
        let actual = run_code_over(nest, target, buffers, dims, random, Some((written, read)));
        assert_same(nest, target, &expected, &actual);
    }
}

/// Runs the interpreter and, for every target of this machine, the generated code; all must agree. Returns what they computed. The code for GPUs is
/// compiled, if it can be.
pub(crate) fn check(nest: &Verified, buffers: &[Vec<u8>], dims: &[i64], random: &mut Random) -> Vec<Vec<u8>> {
    check_cuda(nest);
    let expected = interpret(nest, buffers, dims);
    for target in runnable() {
        let actual = run_code(nest, target, buffers, dims, random);
        assert_same(nest, target, &expected, &actual);
    }
    expected
}
