//! Does every row compute on the GPU what the scalar row computes on the CPU, or what its bound allows?
//!
//! Buffers start where the contract just allows it and are guarded on both sides, outputs are poisoned, and every launch runs twice: a
//! result that moves is a race.

use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use ir::DType;
use kernels::cuda::{Accuracy, CudaKernelDesc, Specialised};
use kernels::{Access, Family, Isa, KernelDesc, TABLE};

use crate::Compiler;
use crate::bound::{self, Expected};
use crate::case::{Case, cases};
use crate::gpu::{Buffer, Function, Gpu, Launch};
use crate::gradient;
use crate::rope;

/// Bytes around each buffer that must not change.
const GUARD: usize = 256;

/// Every `of`-th program of a row, from number `index` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    index: usize,
    of: usize,
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<usize>().map_err(|error| format!("`{text}`: {error}"));
        let (index, of) = text.split_once('/').ok_or_else(|| format!("`{text}` is no part such as 0/3"))?;
        let (index, of) = (number(index)?, number(of)?);
        if index < of { Ok(Self { index, of }) } else { Err(format!("there is no part {index} of {of}")) }
    }
}

/// Runs the cases of a part of a row.
pub(crate) fn conform(
    gpu: &Gpu,
    compiler: &Compiler,
    desc: &'static CudaKernelDesc,
    part: Part,
) -> Result<Conformance> {
    let mut cases = cases(desc);
    cases.retain(|case| (desc.takes)(&|name| case.dim(desc, name)));
    ensure!(!cases.is_empty(), "{} has no case", desc.name);
    let mut conformance = Conformance { cases: 0, worst: None };
    let (mut programs, mut last) = (0, None);
    for case in &cases {
        let label = Specialised::new(desc, |name| Some(case.dim(desc, name))).label();
        if last.as_ref() != Some(&label) {
            (programs, last) = (programs + 1, Some(label));
        }
        if programs % part.of != part.index {
            continue;
        }
        let of_bound = check(gpu, compiler, desc, case);
        let of_bound = of_bound.with_context(|| format!("{} {} {:?}", desc.name, case.label, case.dims))?;
        conformance.worst = of_bound.into_iter().chain(conformance.worst).reduce(f64::max);
        conformance.cases += 1;
    }
    Ok(conformance)
}

/// What came of the cases of a row.
pub(crate) struct Conformance {
    pub(crate) cases: usize,
    /// Of a row that is not exact: the largest difference, as a part of its bound.
    pub(crate) worst: Option<f64>,
}

/// A row for the constants of a case, loaded.
pub(crate) fn load(
    gpu: &Gpu,
    compiler: &Compiler,
    desc: &'static CudaKernelDesc,
    dim: &dyn Fn(&str) -> i64,
) -> Result<(Function, u32)> {
    let special = Specialised::new(desc, |name| Some(dim(name)));
    let shared =
        u32::try_from(special.shared_bytes().context("the shared memory depends on a dim that is not known")?)?;
    let cubin = compiler.compile(&special)?;
    Ok((gpu.load(&cubin.bytes, desc.name, shared)?, shared))
}

/// The launch of a row.
pub(crate) fn launch(
    desc: &CudaKernelDesc,
    (function, shared_bytes): (Function, u32),
    addresses: Vec<u64>,
    dim: &dyn Fn(&str) -> i64,
) -> Launch {
    Launch {
        function,
        grid: desc.launch.grid.map(|blocks| blocks.count(dim) as u32),
        threads: desc.launch.threads,
        shared_bytes,
        addresses,
        numbers: vec![dim("n") as i32],
        early: false,
    }
}

/// Whether a case agrees; for a row that is not exact, the largest part of the bound that was used.
fn check(gpu: &Gpu, compiler: &Compiler, desc: &'static CudaKernelDesc, case: &Case) -> Result<Option<f64>> {
    let dim = |name: &str| case.dim(desc, name);
    let wanted = match desc.accuracy {
        Accuracy::Exact if desc.family == Family::RopeAppend => {
            Wanted { bytes: rope::expected(desc, case)?, numbers: Vec::new() }
        }
        Accuracy::Exact => {
            let bytes = on_cpu(scalar(desc)?, case);
            Wanted { bytes: vec![Written { arg: case.args.len() - 1, dtype: desc.output, bytes }], numbers: Vec::new() }
        }
        Accuracy::Bounded(rounding) if desc.family == Family::RopeAttention => {
            let (caches, numbers) = rope::expected_attention(desc, case, rounding)?;
            Wanted { bytes: caches, numbers }
        }
        Accuracy::Bounded(rounding) if desc.family != Family::Attention => {
            Wanted { bytes: Vec::new(), numbers: gradient::expected(desc, case, rounding) }
        }
        Accuracy::Bounded(rounding) => Wanted { bytes: Vec::new(), numbers: bound::attention(desc, case, rounding)? },
    };
    let (mut first_round, mut worst) = (vec![None; case.args.len()], None);
    let loaded = load(gpu, compiler, desc, &dim)?;
    let guarded =
        case.args.iter().map(|(bytes, align)| Guarded::new(gpu, bytes, *align)).collect::<Result<Vec<_>>>()?;
    let launch = launch(desc, loaded, guarded.iter().map(Guarded::address).collect(), &dim);
    let is_read = |index: usize| desc.signature.args[index].access == Access::Read;
    for round in 0..2 {
        for (index, guarded) in guarded.iter().enumerate() {
            if !is_read(index) {
                guarded.reset()?;
            }
        }
        gpu.launch(&launch)?;
        gpu.wait()?;
        for (index, guarded) in guarded.iter().enumerate() {
            let name = desc.signature.args[index].name;
            let got = guarded.read().with_context(|| format!("`{name}`"))?;
            if is_read(index) {
                ensure!(got == case.args[index].0, "the input `{name}` was written");
                continue;
            }
            match wanted.bytes.iter().find(|written| written.arg == index) {
                Some(Written { dtype, bytes, .. }) => {
                    if let Some(difference) = first_difference(*dtype, &got, bytes) {
                        bail!("round {round}: `{name}`: {difference}");
                    }
                }
                None => {
                    ensure!(4 * wanted.numbers.len() == got.len(), "nothing is known of the output `{name}`");
                    worst = Some(largest_part(&got, &wanted.numbers)?);
                }
            }
            let first = first_round[index].get_or_insert_with(|| got.clone());
            ensure!(*first == got, "round {round}: `{name}`: other numbers than in the round before");
        }
    }
    Ok(worst)
}

/// What a kernel must write.
struct Wanted {
    /// The arguments that are written exactly.
    bytes: Vec<Written>,
    /// Of the one that is not, if there is one.
    numbers: Vec<Expected>,
}

/// What an argument must hold after a call.
pub(crate) struct Written {
    /// Its position in the signature.
    pub(crate) arg: usize,
    pub(crate) dtype: DType,
    pub(crate) bytes: Vec<u8>,
}

/// The largest difference, as a part of its bound.
fn largest_part(got: &[u8], wanted: &[Expected]) -> Result<f64> {
    let got = floats(got);
    let part = |(got, wanted): (&f32, &Expected)| (f64::from(*got) - wanted.value).abs() / wanted.bound.max(1e-30);
    // What is no number is beyond any bound.
    let is_outside = |pair: &(&f32, &Expected)| part(*pair).is_nan() || 1.0 < part(*pair);
    let count = got.iter().zip(wanted).filter(is_outside).count();
    if let Some((index, (got, wanted))) = got.iter().zip(wanted).enumerate().find(|(_, pair)| is_outside(pair)) {
        let Expected { value, bound } = wanted;
        bail!("[{index}] expected {value:e} +- {bound:e}, actual {got:e}; {count} outside");
    }
    Ok(got.iter().zip(wanted).map(part).fold(0.0, f64::max))
}

/// The scalar row that computes the same.
fn scalar(desc: &CudaKernelDesc) -> Result<&'static KernelDesc> {
    let computes_the_same = |row: &&KernelDesc| {
        row.requires.isa == Isa::Scalar
            && (row.family, row.inputs, row.output, row.layout) == (desc.family, desc.inputs, desc.output, desc.layout)
            && *desc.tokens.end() <= *row.tokens.end()
    };
    TABLE.iter().find(computes_the_same).with_context(|| format!("no scalar row computes what {} does", desc.name))
}

/// What the CPU makes of the last argument.
pub(crate) fn on_cpu(desc: &KernelDesc, case: &Case) -> Vec<u8> {
    // Rows of 8 bytes each, so that everything is aligned.
    let mut memory: Vec<Vec<u64>> = case.args.iter().map(|(bytes, _)| vec![0; bytes.len().div_ceil(8) + 1]).collect();
    for (memory, (bytes, _)) in memory.iter_mut().zip(&case.args) {
        for (word, bytes) in memory.iter_mut().zip(bytes.chunks(8)) {
            let mut eight = [0; 8];
            eight[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(eight);
        }
    }
    let args: Vec<*mut u8> = memory.iter_mut().map(|memory| memory.as_mut_ptr().cast()).collect();
    let at = |name: &str| case.dims[desc.signature.dims.iter().position(|dim| *dim == name).expect("a dim of the row")];
    let units = desc.signature.grid.units(at);
    let entry = desc.entry.expect("scalar rows are in every program");
    // SAFETY: scalar rows need nothing of the CPU; the buffers have the sizes that the dims imply, since each case makes them from its dims;
    // they do not overlap and nobody else uses them.
    unsafe { entry(args.as_ptr(), case.dims.as_ptr(), 0, units) };
    let bytes = memory.last().expect("a kernel has arguments").iter().flat_map(|word| word.to_le_bytes());
    bytes.take(case.args.last().expect("a kernel has arguments").0.len()).collect()
}

/// A buffer inside a larger one.
struct Guarded {
    buffer: Buffer,
    initial: Vec<u8>,
    start: usize,
}

impl Guarded {
    fn new(gpu: &Gpu, bytes: &[u8], align: usize) -> Result<Self> {
        let start = GUARD + align;
        let mut memory = vec![0xA5; start + bytes.len() + GUARD];
        memory[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(Self { buffer: gpu.upload(&memory)?, initial: bytes.to_vec(), start })
    }

    fn address(&self) -> u64 {
        self.buffer.address() + self.start as u64
    }

    fn reset(&self) -> Result<()> {
        self.buffer.write(self.start, &self.initial)
    }

    fn read(&self) -> Result<Vec<u8>> {
        let memory = self.buffer.download()?;
        let end = self.start + self.initial.len();
        let mut guards = memory[..self.start].iter().chain(&memory[end..]);
        ensure!(guards.all(|&byte| byte == 0xA5), "written outside");
        Ok(memory[self.start..end].to_vec())
    }
}

/// The first place where two outputs differ; two NaNs are alike.
fn first_difference(dtype: DType, got: &[u8], wanted: &[u8]) -> Option<String> {
    let (got, wanted) = match dtype {
        DType::F32 => (floats(got), floats(wanted)),
        DType::BF16 => (halves(got), halves(wanted)),
        _ => {
            let index = got.iter().zip(wanted).position(|(got, wanted)| got != wanted)?;
            return Some(format!("byte {index}: expected {}, actual {}", wanted[index], got[index]));
        }
    };
    let differ = |(got, wanted): (&f32, &f32)| got.to_bits() != wanted.to_bits() && !(got.is_nan() && wanted.is_nan());
    let index = got.iter().zip(&wanted).position(differ)?;
    let count = got.iter().zip(&wanted).filter(|pair| differ(*pair)).count();
    Some(format!("[{index}] expected {:e}, actual {:e}; {count} of {} differ", wanted[index], got[index], got.len()))
}

pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

/// Numbers in bf16, widened.
pub(crate) fn halves(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<2>().0.iter().map(|two| half::bf16::from_le_bytes(*two).to_f32()).collect()
}
