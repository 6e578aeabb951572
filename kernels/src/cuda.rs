//! The CUDA kernels: one table of sources, and how a row becomes the source text of one specialisation.
//!
//! A row of [`CUDA_TABLE`] says what a row of [`crate::TABLE`] says, with a compute capability where a CPU has an instruction set, and with a
//! source and the geometry of a launch where a CPU kernel has a function. Names follow the grammar of the crate; `<isa>` is `cuda` where any
//! supported device will do, else the capability without its underscore (`sm80`, `sm90a`).
//!
//! # Calling convention
//!
//! A kernel is compiled for sizes that are known: [`Specialised`] fixes every dim that is a constant, and its source is a prologue that states
//! them, then the row's text. The prologue defines
//!
//! * `KERNEL`, the name of the entry, which is the row's name: `extern "C" __global__ void KERNEL(...)`;
//! * `THREADS`, the threads of a block, all in x;
//! * a `constexpr` for each constant dim, its name in capitals: `constexpr int K = 2560;`;
//! * the row's [`CudaKernelDesc::defines`].
//!
//! The entry takes the pointers of the signature in order, then the dims that are no constants, each as `int`, in the signature's order. Only
//! [`PER_CALL`] are not, even where a program happens to know them: `n`, the tokens. A line
//! `#include "lib/NAME.cuh"` in a source stands for the text of a header of this crate, which is put there once, so that what is compiled is one
//! text and no file is looked for.
//!
//! A block writes what no other block of the launch writes, or does so by integer atomics whose result does not depend on their order. The
//! contract of the CPU kernels holds for values, dims and access; in addition every base pointer is aligned to 16 bytes for weights, caches and
//! queries in bf16, to 8 for records of activations, and to the element for the rest.
//!
//! # Numerics
//!
//! Those of the crate, bit for bit, unless the row says otherwise and bounds the difference ([`accuracy`]). Sources are compiled with
//! `--fmad=false`; where the order has an `fma`, they call `fmaf`.

pub mod accuracy;
pub mod library;
mod unpack_parcel;

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use ir::DType;
use ir::DType::{BF16, F32, I32, Q4, Q8, T2};
use ir::packing::TernaryLayout;
use ir::packing::TernaryLayout::Tile16;

use crate::MAX_HEAD_DIM;
use crate::desc::{Family, Signature};
use crate::table::{ANY, signature};
pub use accuracy::{Accuracy, Rounding};
pub use unpack_parcel::UnpackParcel;

/// Registers of a multiprocessor.
const REGISTERS: u64 = 65_536;

/// The dims that are arguments of every entry and never constants.
pub const PER_CALL: &[&str] = &["n"];

/// A compute capability, as compilers call it: `sm_90a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sm {
    /// Ten times the major version plus the minor one.
    pub number: u16,
    /// Whether it is the architecture-specific form, whose code runs on nothing else.
    pub is_specific: bool,
}

impl Sm {
    /// The least that kernels are written for.
    pub const LEAST: Sm = Sm { number: 80, is_specific: false };

    /// What can be compiled for.
    pub const ALL: [Sm; 6] = [
        Sm { number: 80, is_specific: false },
        Sm { number: 86, is_specific: false },
        Sm { number: 89, is_specific: false },
        Sm { number: 90, is_specific: true },
        Sm { number: 100, is_specific: false },
        Sm { number: 120, is_specific: false },
    ];

    /// Whether source that needs `self` may be compiled for `target`.
    pub fn compiles_for(self, target: Sm) -> bool {
        match self.is_specific {
            true => self == target,
            false => self.number <= target.number,
        }
    }

    /// Whether machine code for `self` runs on a device of this compute capability: the same one, or a later minor version.
    pub fn runs_on(self, major: u32, minor: u32) -> bool {
        let (own_major, own_minor) = (u32::from(self.number / 10), u32::from(self.number % 10));
        own_major == major && if self.is_specific { own_minor == minor } else { own_minor <= minor }
    }
}

impl fmt::Display for Sm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}", self.number, if self.is_specific { "a" } else { "" })
    }
}

impl FromStr for Sm {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|sm| sm.to_string() == text).ok_or(())
    }
}

/// One row of the table.
#[derive(Debug)]
pub struct CudaKernelDesc {
    /// The one name it goes by everywhere, that of its entry included.
    pub name: &'static str,
    /// What it computes.
    pub family: Family,
    /// Element types of what it computes with, as in [`crate::KernelDesc::inputs`].
    pub inputs: &'static [DType],
    /// Element type of what it writes.
    pub output: DType,
    /// How its ternary weights are packed, if it has any.
    pub layout: Option<TernaryLayout>,
    /// The numbers of tokens, dim `n`, that it takes.
    pub tokens: RangeInclusive<u64>,
    /// The least compute capability it can be compiled for.
    pub requires: Sm,
    /// Its arguments and dims. The grid of the signature is that of the CPU kernels.
    pub signature: &'static Signature,
    /// Its source: a file under `kernels/cuda`.
    pub source: &'static str,
    /// Macros of the prologue, where several rows share a source.
    pub defines: &'static [(&'static str, &'static str)],
    /// How it is launched.
    pub launch: Launch,
    /// What a turn computes, where that is all in which rows differ.
    pub tile: Option<Tile>,
    /// How its results compare with those of the scalar row.
    pub accuracy: Accuracy,
    /// Whether it takes these dims. Those that are known only at a call are 0.
    pub takes: fn(Dims<'_>) -> bool,
    /// What may be computed in the same launch, before and behind it, if anything.
    pub fuses: Option<Fuses>,
}

/// What a product may have generated code for in its launch: the activations before it, and a function of its columns behind it. The source says how.
#[derive(Clone, Debug)]
pub struct Fuses {
    /// How many parts of the product, of as many rows each, may meet in one column of the result, at most.
    pub parts: u64,
    /// The columns of the weights, `k`, with which it has registers for what is behind it.
    pub columns: RangeInclusive<u64>,
    /// How blocks compute the activations, each for itself, if they can.
    pub activations: Option<Activations>,
}

/// What blocks that compute activations may be.
#[derive(Clone, Copy, Debug)]
pub struct Activations {
    /// The most columns.
    pub columns: u64,
    /// How many blocks there may be.
    pub blocks: u64,
    /// Registers of a thread, by the columns: activations stay in them, and more of them leave room for fewer blocks at once.
    pub registers: fn(u64) -> u64,
}

/// The dims of an op, by the names of the signature.
pub type Dims<'a> = &'a dyn Fn(&str) -> i64;

/// The part of a result that a cluster of blocks computes in one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Rows of the weights.
    pub rows: u64,
    /// Tokens.
    pub tokens: u64,
    /// Blocks of the cluster, each with a part of the columns.
    pub blocks: u64,
}

impl Tile {
    /// Multiprocessors of the devices that rows with tiles are for, an H100 or an H200.
    const MULTIPROCESSORS: u64 = 132;

    /// Clusters that run at once, each of which takes tile after tile. The multiprocessors of a cluster are neighbours, so that some are left over.
    pub const fn clusters(self) -> u64 {
        (Self::MULTIPROCESSORS - 11 * (self.blocks - 1)) / self.blocks
    }

    /// The part of the rate of its inner loop that a product of these sizes reaches: the rest goes to turns that are not full, and to ends of turns.
    pub fn share(self, n: u64, k: u64, m: u64) -> f64 {
        let step = (200 + 37 * self.tokens / 10) as f64;
        let of_step = (128 * self.rows * self.tokens * self.clusters() * self.blocks) as f64;
        let ideal = n as f64 * k as f64 * m as f64 / of_step * step;
        (ideal / self.nanoseconds(n, k, m).max(1) as f64).min(1.0)
    }

    /// About how long a product takes, in nanoseconds: turns of all clusters, of which each has steps of 128 columns, results to write, and sums to
    /// exchange. The numbers are measured on an H100.
    pub fn nanoseconds(self, n: u64, k: u64, m: u64) -> u64 {
        let turns = m.div_ceil(self.rows).saturating_mul(n.div_ceil(self.tokens)).div_ceil(self.clusters());
        let steps = k.div_ceil(128).div_ceil(self.blocks);
        let exchange = if self.blocks == 1 { 0 } else { 2200 };
        turns.saturating_mul(
            steps.saturating_mul(200 + 37 * self.tokens / 10).saturating_add(200 + 26 * self.tokens + exchange),
        )
    }
}

/// The part of its turns that a launch fills whose blocks have a multiprocessor each: so many blocks take whole turns of all multiprocessors.
pub fn full_turns(blocks: u64) -> f64 {
    let blocks = blocks.max(1);
    blocks as f64 / (blocks.div_ceil(Tile::MULTIPROCESSORS) * Tile::MULTIPROCESSORS) as f64
}

/// The geometry of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: Shared,
    /// Blocks in x, y and z. At most 65,535 in y and z.
    pub grid: [Blocks; 3],
}

/// A number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// So many.
    Count(u64),
    /// The dim itself.
    Dim(&'static str),
    /// `ceil(dim / size)`.
    CeilDiv(&'static str, u64),
    /// The product of two dims.
    Product(&'static str, &'static str),
}

impl CudaKernelDesc {
    /// Whether it is a plain row, with `cuda` in its name: one that is taken only where no other fits.
    pub fn is_plain(&self) -> bool {
        self.name.contains("__cuda__")
    }

    /// Whether it may be started before the kernels before it are done, because it waits for them itself before it touches memory that they write:
    /// by `wait_for_previous()`, first of all, or by `wait_for_inputs()`, after it has begun with what is older than the call.
    pub fn waits(&self) -> bool {
        self.source.contains("wait_for_previous();") || self.source.contains("wait_for_inputs();")
    }
}

impl Blocks {
    /// The number, where `dim` gives the value of a dim by its name.
    pub fn count(self, dim: impl Fn(&str) -> i64) -> i64 {
        match self {
            Blocks::Count(count) => count as i64,
            Blocks::Dim(name) => dim(name),
            Blocks::CeilDiv(name, size) => (dim(name) + size as i64 - 1) / size as i64,
            Blocks::Product(left, right) => dim(left) * dim(right),
        }
    }
}

/// Bytes of dynamic shared memory: `fixed + sum(dim * bytes)` over dims that are constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Whatever the dims are.
    pub fixed: u64,
    /// Bytes for each of a dim.
    pub each: &'static [(&'static str, u64)],
}

impl Shared {
    /// None at all.
    pub const NONE: Shared = Shared { fixed: 0, each: &[] };

    /// The bytes, where `dim` gives the value of a dim by its name.
    pub fn bytes(self, dim: impl Fn(&str) -> i64) -> u64 {
        self.each.iter().fold(self.fixed, |sum, (name, bytes)| sum + dim(name).max(0) as u64 * bytes)
    }
}

/// A row with all dims fixed that are known.
#[derive(Clone, Debug)]
pub struct Specialised {
    /// The row.
    pub desc: &'static CudaKernelDesc,
    /// The known dims with their values, in the order of the signature.
    pub constants: Vec<(&'static str, i64)>,
}

impl Specialised {
    /// The row for the dims that `known` gives a value for, but for those of [`PER_CALL`].
    pub fn new(desc: &'static CudaKernelDesc, known: impl Fn(&str) -> Option<i64>) -> Self {
        let dims = desc.signature.dims.iter().filter(|dim| !PER_CALL.contains(dim));
        let constants = dims.filter_map(|&dim| Some((dim, known(dim)?))).collect();
        Self { desc, constants }
    }

    /// The name of the row and its constants, such as `dense_matmul_q8xq8_f32__cuda__r4__k640_m4096`: unlike for every other specialisation.
    pub fn label(&self) -> String {
        let constants: Vec<String> = self.constants.iter().map(|(dim, value)| format!("{dim}{value}")).collect();
        format!("{}__{}", self.desc.name, constants.join("_"))
    }

    /// The value of a dim, if it is known.
    pub fn constant(&self, dim: &str) -> Option<i64> {
        self.constants.iter().find(|(name, _)| *name == dim).map(|(_, value)| *value)
    }

    /// Registers of a thread whose block computes activations, where the row says so.
    pub fn registers(&self) -> Option<u64> {
        let activations = self.desc.fuses.as_ref()?.activations?;
        Some((activations.registers)(self.constant("k")?.unsigned_abs()))
    }

    /// The dims that the entry takes as arguments.
    pub fn parameters(&self) -> impl Iterator<Item = &'static str> {
        self.desc.signature.dims.iter().copied().filter(|dim| self.constant(dim).is_none())
    }

    /// Bytes of dynamic shared memory of a block; `None` if a dim that they depend on is not known.
    pub fn shared_bytes(&self) -> Option<u64> {
        let shared = self.desc.launch.shared;
        let is_known = shared.each.iter().all(|(dim, _)| self.constant(dim).is_some());
        is_known.then(|| shared.bytes(|dim| self.constant(dim).unwrap_or(0)))
    }

    /// The text to be compiled: the prologue, then the source with its headers.
    pub fn source(&self) -> String {
        expand(&format!("// {}\n{}", self.label(), self.text(self.desc.name, false)))
    }

    /// The text with its `#include` lines, for an entry of another name, whose blocks may compute their activations.
    pub fn text(&self, entry: &str, computes_activations: bool) -> String {
        let mut text = format!("#define KERNEL {entry}\n");
        let registers = self.registers().filter(|_| computes_activations);
        for (name, value) in self.desc.defines {
            // Activations stay in registers, so that there are fewer blocks at once.
            text += &match registers.filter(|_| *name == "MIN_BLOCKS") {
                Some(registers) => {
                    let blocks = REGISTERS / registers / u64::from(self.desc.launch.threads);
                    format!("#define {name} {blocks}\n")
                }
                None => format!("#define {name} {value}\n"),
            };
        }
        text += &format!("constexpr int THREADS = {};\n", self.desc.launch.threads);
        for (dim, value) in &self.constants {
            let ty = if i32::try_from(*value).is_ok() { "int" } else { "long long" };
            text += &format!("constexpr {ty} {} = {value};\n", dim.to_uppercase());
        }
        text + "\n" + self.desc.source
    }
}

/// A source with the texts of the headers of this crate in the place of its `#include "lib/NAME.cuh"` lines, each where it is first named.
pub fn expand(source: &str) -> String {
    let mut text = String::new();
    include(source, &mut Vec::new(), &mut text);
    text
}

fn include(source: &str, included: &mut Vec<&'static str>, text: &mut String) {
    for line in source.lines() {
        let name = line.strip_prefix("#include \"lib/").and_then(|rest| rest.strip_suffix('"'));
        match name.and_then(|name| HEADERS.iter().find(|(header, _)| *header == name)) {
            Some((name, _)) if included.contains(name) => {}
            Some((name, header)) => {
                included.push(name);
                include(header, included, text);
            }
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
}

/// The headers that sources may name, without `lib/`.
static HEADERS: &[(&str, &str)] = &[
    ("launch.cuh", include_str!("../cuda/lib/launch.cuh")),
    ("exact.cuh", include_str!("../cuda/lib/exact.cuh")),
    ("mma.cuh", include_str!("../cuda/lib/mma.cuh")),
    ("copy.cuh", include_str!("../cuda/lib/copy.cuh")),
    ("stage.cuh", include_str!("../cuda/lib/stage.cuh")),
    ("cluster.cuh", include_str!("../cuda/lib/cluster.cuh")),
    ("rows.cuh", include_str!("../cuda/lib/rows.cuh")),
    ("barrier.cuh", include_str!("../cuda/lib/barrier.cuh")),
    ("attention.cuh", include_str!("../cuda/lib/attention.cuh")),
    ("gradient.cuh", include_str!("../cuda/lib/gradient.cuh")),
    ("scores.cuh", include_str!("../cuda/lib/scores.cuh")),
    ("mask.cuh", include_str!("../cuda/lib/mask.cuh")),
];

/// The row called `name`.
pub fn find_cuda(name: &str) -> Option<&'static CudaKernelDesc> {
    CUDA_TABLE.iter().find(|desc| desc.name == name)
}

/// So few tokens that blocks of one token leave most of a device idle.
const FEW: RangeInclusive<u64> = 1..=16;

/// A row that any supported device runs.
macro_rules! plain {
    ($name:ident, $source:literal, $defines:tt, $family:ident, $inputs:expr => $output:expr, $layout:expr, $threads:literal, [$x:expr, $y:expr]) => {
        plain!($name, $source, $defines, $family, $inputs => $output, $layout, $threads, [$x, $y], ANY)
    };
    ($name:ident, $source:literal, $defines:tt, $family:ident, $inputs:expr => $output:expr, $layout:expr, $threads:literal, [$x:expr, $y:expr],
     $tokens:expr) => {
        row!($name, $source, $defines, Sm::LEAST, $tokens, $family, $inputs => $output, $layout, $threads, Shared::NONE, [$x, $y, ONE])
    };
}

/// A row for certain devices: what it needs, and how many tokens it takes.
macro_rules! row {
    ($name:ident, $source:literal, [$($define:ident = $value:literal),*], $requires:expr, $tokens:expr, $family:ident,
     $inputs:expr => $output:expr, $layout:expr, $threads:literal, $shared:expr, [$x:expr, $y:expr, $z:expr]) => {
        CudaKernelDesc {
            name: stringify!($name),
            family: Family::$family,
            inputs: &$inputs,
            output: $output,
            layout: $layout,
            tokens: $tokens,
            requires: $requires,
            signature: signature(Family::$family, &$inputs),
            source: include_str!(concat!("../cuda/", $source)),
            defines: &[$((stringify!($define), $value)),*],
            launch: Launch { threads: $threads, shared: $shared, grid: [$x, $y, $z] },
            tile: None,
            accuracy: Accuracy::Exact,
            takes: any_dims,
            fuses: None,
        }
    };
}

/// A row for the product of one token with all its columns in a block, which other computations may join. Activations that are computed in a block stay
/// in its registers and in 48 KiB of shared memory: more columns leave room for fewer blocks.
macro_rules! gemv {
    ($name:ident, [$($define:ident = $value:literal),*], $rows:literal, $parts:literal) => {
        CudaKernelDesc {
            fuses: Some(Fuses {
                parts: $parts,
                columns: 1..=u64::MAX,
                activations: Some(Activations { columns: 8192, blocks: FUSED_BLOCKS, registers: fused_registers }),
            }),
            ..row!($name, "ternary_gemv.cu", [TOKEN_TILES = "1", ONE_TOKEN = "true", $($define = $value),*], SM_80, 1..=1, TernaryMatmul,
                [Q8, T2] => F32, Some(Tile16), 256, Shared::NONE, [Blocks::CeilDiv("m", $rows), ONE, ONE])
        }
    };
}

/// A row for dense products of up to 8 or 16 tokens: two blocks of two warps on each multiprocessor of an H100, each warp with two times 8 rows of weights.
macro_rules! dense_few {
    ($name:ident, $tokens:literal, $count:literal, $range:expr) => {
        CudaKernelDesc {
            takes: rows_fit_four_times,
            ..row!($name, "dense_gemm_q8.cu", [TOKENS = $tokens, STAGES = "2"], SM_90A, $range, DenseMatmul, [Q8, Q8] => F32, None, 64,
                Shared { fixed: 128 * $count + 4 * 320, each: &[("k", $count + 4 * 8)] }, [Blocks::Count(2 * 132), ONE, ONE])
        }
    };
}

/// A row of attention that cuts the keys over the blocks of a cluster and their warps.
macro_rules! split {
    ($rounding:ident, $takes:ident, $name:ident, [$($define:ident = $value:literal),*], $requires:expr, $tokens:expr, $inputs:expr, $threads:literal,
     $shared:expr, $cluster:literal) => {
        CudaKernelDesc {
            accuracy: Accuracy::Bounded(Rounding::$rounding),
            takes: $takes,
            ..row!($name, "attention_split.cu", [$($define = $value),*], $requires, $tokens, Attention, $inputs => F32, None, $threads, $shared,
                [Blocks::Count($cluster), Blocks::Dim("kv_heads"), Blocks::Dim("n")])
        }
    };
}

/// The same with what rope_append does.
macro_rules! split_appending {
    ($rounding:ident, $takes:ident, $name:ident, [$($define:ident = $value:literal),*], $requires:expr, $tokens:expr, $inputs:expr, $threads:literal,
     $shared:expr, $cluster:literal) => {
        CudaKernelDesc {
            accuracy: Accuracy::Bounded(Rounding::$rounding),
            takes: $takes,
            ..row!($name, "attention_split.cu", [APPENDS = "1", $($define = $value),*], $requires, $tokens, RopeAttention, $inputs => F32, None,
                $threads, $shared, [Blocks::Count($cluster), Blocks::Dim("kv_heads"), Blocks::Dim("n")])
        }
    };
}

/// A row of Hopper's for ternary products of many tokens.
macro_rules! tiled {
    ($name:ident, [$($define:ident = $value:literal),*], $shared:expr, $tile:expr) => {
        CudaKernelDesc {
            tile: Some($tile),
            ..row!($name, "ternary_gemm_wgmma.cu", [$($define = $value),*], SM_90A, ANY, TernaryMatmul, [Q8, T2] => F32, Some(Tile16), 384,
                Shared { fixed: $shared, each: &[] }, [Blocks::Count($tile.clusters() * $tile.blocks), ONE, ONE])
        }
    };
}

/// A row of attention on tensor cores, with what it rounds.
macro_rules! rounded {
    ($rounding:ident, $($row:tt)*) => {
        CudaKernelDesc {
            accuracy: Accuracy::Bounded(Rounding::$rounding),
            takes: tensor_attention_dims,
            ..row!($($row)*)
        }
    };
}

/// A row for gradients of attention on tensor cores, with so many tiles of 64 rows of bf16 in shared memory.
macro_rules! gradient {
    ($takes:ident, $name:ident, $source:literal, $defines:tt, $tokens:expr, $family:ident, $tiles:literal, [$x:expr, $y:expr]) => {
        CudaKernelDesc {
            accuracy: Accuracy::Bounded(Rounding::BF16_WEIGHTS),
            takes: $takes,
            ..row!($name, $source, $defines, SM_80, $tokens, $family, [BF16, BF16] => F32, None, 128,
                Shared { fixed: 0, each: &[("hd", $tiles * 64 * 2)] }, [$x, $y, ONE])
        }
    };
}

/// A row that rotates and appends.
macro_rules! rope_append {
    ($name:ident, [$($define:ident = $value:literal),*], $k:expr, $v:expr) => {
        CudaKernelDesc {
            takes: rope_append_dims,
            ..row!($name, "rope_append.cu", [$($define = $value),*, TOKENS = "2"], SM_80, ANY, RopeAppend, [F32, $k, $v] => F32, None, 128,
                Shared::NONE, [Blocks::Dim("kv_heads"), Blocks::CeilDiv("n", 2), ONE])
        }
    };
}

fn any_dims(_dim: Dims<'_>) -> bool {
    true
}

/// Rows that a block of few threads is done with soon, so that many are under way.
fn short_rows_dims(dim: Dims<'_>) -> bool {
    dim("k") <= 1 << 13
}

/// Rows of which one is enough for several blocks, and that need not be many to fill a device.
fn long_rows_dims(dim: Dims<'_>) -> bool {
    1 << 15 <= dim("k") && dim("n") < 1 << 16
}

/// Head dimensions that tiles of tensor cores divide; records of which pairs are whole units of a copy; and scores that grow with the products.
fn tensor_attention_dims(dim: Dims<'_>) -> bool {
    let scale = u32::try_from(dim("scale_bits")).map_or(0.0, f32::from_bits);
    [64, 128].contains(&dim("hd")) && dim("ctx") % 2 == 0 && scale.is_normal() && 0.0 < scale
}

/// As many heads for each KV head as registers have sums of.
fn split_dims(dim: Dims<'_>) -> bool {
    tensor_attention_dims(dim) && dim("heads") <= 8 * dim("kv_heads")
}

/// KV heads of which an H100 has as many clusters of 16 blocks at once, while clusters of 8 would leave half of it idle.
const FEW_KV_HEADS: i64 = 5;

fn few_split_dims(dim: Dims<'_>) -> bool {
    split_dims(dim) && dim("kv_heads") <= FEW_KV_HEADS
}

fn many_split_dims(dim: Dims<'_>) -> bool {
    split_dims(dim) && FEW_KV_HEADS < dim("kv_heads")
}

/// Rows that blocks of 128 share out with one block for each multiprocessor and few of them idle. The blocks are of one part or two, whose columns are
/// whole; all words of a warp are on their way at once.
fn one_turn_of_128(dim: Dims<'_>) -> bool {
    (100..=132).contains(&(dim("m").max(0) as u64).div_ceil(128)) && dim("m") % 128 == 0 && dim("k") <= 2560
}

/// So many columns that a warp of a block that has all of them cannot have all their words on the way, and rows for no more than the clusters of four
/// blocks that are there at once.
fn few_long_rows(dim: Dims<'_>) -> bool {
    4096 < dim("k") && dim("m") <= 32 * 80
}

/// Rows of which shared memory has four times 8, beside 16 tokens.
fn rows_fit_four_times(dim: Dims<'_>) -> bool {
    dim("k") <= 4608
}

/// Heads that halve and that KV heads share evenly. As long as those of attention, so that a row of each warp fits into shared memory.
fn rope_append_dims(dim: Dims<'_>) -> bool {
    let (hd, kv_heads) = (dim("hd"), dim("kv_heads"));
    hd % 2 == 0
        && (2..=MAX_HEAD_DIM as i64).contains(&hd)
        && 0 < kv_heads
        && kv_heads <= dim("heads")
        && dim("heads") % kv_heads == 0
}

/// Blocks of a product that computes its activations in each of them: about as many as an H100 has at once. More of them would compute the same
/// again and again, where a launch of its own does it once.
const FUSED_BLOCKS: u64 = 8 * 132;

/// Registers of a thread, of 256 in a block, that has activations of so many columns and the weights of 16 or 32 rows.
fn fused_registers(columns: u64) -> u64 {
    match columns {
        0..=2560 => 64,
        2561..=6912 => 128,
        _ => 255,
    }
}

/// So many tokens that a block has a whole tile of them.
const MANY: RangeInclusive<u64> = 17..=u64::MAX;

/// The same, with a bit for each 64 of them in 2 KiB of shared memory.
const TO_2_20: RangeInclusive<u64> = 17..=1 << 20;

const ONE: Blocks = Blocks::Count(1);
const SM_80: Sm = Sm { number: 80, is_specific: false };
const SM_90: Sm = Sm { number: 90, is_specific: false };
const SM_90A: Sm = Sm { number: 90, is_specific: true };

/// All CUDA kernels of this version. Of those that fit, the one for the fewest tokens is taken, then the one of the highest capability.
#[rustfmt::skip]
pub static CUDA_TABLE: &[CudaKernelDesc] = &[
    plain!(ternary_gemm_q8xt2_f32__cuda__r16, "plain/ternary_q8.cu", [], TernaryMatmul, [Q8, T2] => F32, Some(Tile16), 128,
        [Blocks::CeilDiv("m", 16), Blocks::Dim("n")]),
    plain!(ternary_matmul_f32xt2_f32__cuda__r16, "plain/ternary_f32.cu", [], TernaryMatmul, [F32, T2] => F32, Some(Tile16), 64,
        [Blocks::CeilDiv("m", 16), Blocks::Dim("n")]),
    plain!(ternary_matmul_transposed_f32xt2_f32__cuda__c128t8, "plain/ternary_transposed.cu", [], TernaryMatmulTransposed, [F32, T2] => F32, Some(Tile16),
        128, [Blocks::CeilDiv("k", 128), Blocks::CeilDiv("n", 8)]),
    plain!(unpack_t2_bf16__cuda__r16, "plain/unpack.cu", [], Unpack, [T2] => BF16, Some(Tile16), 256,
        [Blocks::CeilDiv("k", 256), Blocks::CeilDiv("n", 16)]),
    plain!(dense_matmul_f32xf32_f32__cuda__r4, "plain/dense_float.cu", [WEIGHT = "float"], DenseMatmul, [F32, F32] => F32, None, 128,
        [Blocks::CeilDiv("m", 4), Blocks::Dim("n")]),
    plain!(dense_matmul_f32xbf16_f32__cuda__r4, "plain/dense_float.cu", [WEIGHT = "bf16"], DenseMatmul, [F32, BF16] => F32, None, 128,
        [Blocks::CeilDiv("m", 4), Blocks::Dim("n")]),
    plain!(dense_matmul_q8xq8_f32__cuda__r4, "plain/dense_q8.cu", [], DenseMatmul, [Q8, Q8] => F32, None, 128,
        [Blocks::CeilDiv("m", 4), Blocks::Dim("n")]),
    plain!(dense_matmul_q8xq4_f32__cuda__r8, "plain/dense_q4.cu", [], DenseMatmul, [Q8, Q4] => F32, None, 128,
        [Blocks::CeilDiv("m", 8), Blocks::Dim("n")]),
    plain!(attention_f32xf32_f32__cuda__t64, "plain/attention.cu", [K_ROW = "RowF32", V_ROW = "RowF32"], Attention, [F32, F32, F32] => F32, None,
        128, [Blocks::Dim("heads"), Blocks::Dim("n")]),
    plain!(attention_f32xf32_f32__cuda__t1024, "plain/attention_few.cu", [K_ROW = "RowF32", V_ROW = "RowF32"], Attention, [F32, F32, F32] => F32, None,
        512, [Blocks::Dim("heads"), Blocks::Dim("n")], FEW),
    plain!(attention_f32xbf16_f32__cuda__t64, "plain/attention.cu", [K_ROW = "RowBf16", V_ROW = "RowBf16"], Attention, [F32, BF16, BF16] => F32, None,
        128, [Blocks::Dim("heads"), Blocks::Dim("n")]),
    plain!(attention_f32xbf16_f32__cuda__t1024, "plain/attention_few.cu", [K_ROW = "RowBf16", V_ROW = "RowBf16"], Attention, [F32, BF16, BF16] => F32, None,
        512, [Blocks::Dim("heads"), Blocks::Dim("n")], FEW),
    plain!(attention_f32xq8q4_f32__cuda__t64, "plain/attention.cu", [K_ROW = "RowQ8", V_ROW = "RowQ4"], Attention, [F32, Q8, Q4] => F32, None,
        128, [Blocks::Dim("heads"), Blocks::Dim("n")]),
    plain!(attention_f32xq8q4_f32__cuda__t1024, "plain/attention_few.cu", [K_ROW = "RowQ8", V_ROW = "RowQ4"], Attention, [F32, Q8, Q4] => F32, None,
        512, [Blocks::Dim("heads"), Blocks::Dim("n")], FEW),
    plain!(attention_f32xq4_f32__cuda__t64, "plain/attention.cu", [K_ROW = "RowQ4", V_ROW = "RowQ4"], Attention, [F32, Q4, Q4] => F32, None,
        128, [Blocks::Dim("heads"), Blocks::Dim("n")]),
    plain!(attention_f32xq4_f32__cuda__t1024, "plain/attention_few.cu", [K_ROW = "RowQ4", V_ROW = "RowQ4"], Attention, [F32, Q4, Q4] => F32, None,
        512, [Blocks::Dim("heads"), Blocks::Dim("n")], FEW),
    plain!(kv_append_f32_f32__cuda__t1, "plain/kv_append.cu", [ROW = "RowF32"], KvAppend, [F32] => F32, None, 128,
        [Blocks::Dim("kv_heads"), Blocks::CeilDiv("n", 4)]),
    plain!(kv_append_f32_bf16__cuda__t1, "plain/kv_append.cu", [ROW = "RowBf16"], KvAppend, [F32] => BF16, None, 128,
        [Blocks::Dim("kv_heads"), Blocks::CeilDiv("n", 4)]),
    plain!(kv_append_f32_q8__cuda__t1, "plain/kv_append.cu", [ROW = "RowQ8"], KvAppend, [F32] => Q8, None, 128,
        [Blocks::Dim("kv_heads"), Blocks::CeilDiv("n", 4)]),
    plain!(kv_append_f32_q4__cuda__t1, "plain/kv_append.cu", [ROW = "RowQ4"], KvAppend, [F32] => Q4, None, 128,
        [Blocks::Dim("kv_heads"), Blocks::CeilDiv("n", 4)]),
    rope_append!(rope_append_f32xf32_f32__sm80__t2, [K_ROW = "RowF32", V_ROW = "RowF32"], F32, F32),
    rope_append!(rope_append_f32xbf16_f32__sm80__t2, [K_ROW = "RowBf16", V_ROW = "RowBf16"], BF16, BF16),
    rope_append!(rope_append_f32xq8q4_f32__sm80__t2, [K_ROW = "RowQ8", V_ROW = "RowQ4"], Q8, Q4),
    rope_append!(rope_append_f32xq4_f32__sm80__t2, [K_ROW = "RowQ4", V_ROW = "RowQ4"], Q4, Q4),
    plain!(attention_lse_f32xf32_f32__cuda__t64, "plain/attention_lse.cu", [NUMBER = "float"], AttentionLse, [F32, F32] => F32, None,
        64, [Blocks::Dim("heads"), Blocks::Dim("n")]),
    plain!(attention_lse_bf16xbf16_f32__cuda__t64, "plain/attention_lse.cu", [NUMBER = "bf16"], AttentionLse, [BF16, BF16] => F32, None,
        64, [Blocks::Dim("heads"), Blocks::Dim("n")]),
    plain!(query_gradient_f32xf32_f32__cuda__t1, "plain/attention_gradient.cu", [OF_QUERIES = "1", NUMBER = "float"], QueryGradient, [F32, F32] => F32, None,
        128, [Blocks::Dim("heads"), Blocks::Dim("n")]),
    plain!(query_gradient_bf16xbf16_f32__cuda__t1, "plain/attention_gradient.cu", [OF_QUERIES = "1", NUMBER = "bf16"], QueryGradient, [BF16, BF16] => F32, None,
        128, [Blocks::Dim("heads"), Blocks::Dim("n")]),
    plain!(cache_gradient_f32xf32_f32__cuda__t1, "plain/attention_gradient.cu", [OF_QUERIES = "0", NUMBER = "float"], CacheGradient, [F32, F32] => F32, None,
        128, [Blocks::Product("seqs", "kv_heads"), Blocks::CeilDiv("ctx", 32)]),
    plain!(cache_gradient_bf16xbf16_f32__cuda__t1, "plain/attention_gradient.cu", [OF_QUERIES = "0", NUMBER = "bf16"], CacheGradient, [BF16, BF16] => F32, None,
        128, [Blocks::Product("seqs", "kv_heads"), Blocks::CeilDiv("ctx", 32)]),
    gradient!(tensor_attention_dims, attention_lse_bf16xbf16_f32__sm80__t64, "attention_lse.cu", [ROWS = "64"], MANY, AttentionLse, 2,
        [Blocks::Dim("heads"), Blocks::CeilDiv("n", 64)]),
    gradient!(tensor_attention_dims, query_gradient_bf16xbf16_f32__sm80__t64, "query_gradient.cu", [ROWS = "64"], MANY, QueryGradient, 4,
        [Blocks::Dim("heads"), Blocks::CeilDiv("n", 64)]),
    gradient!(tensor_attention_dims, cache_gradient_bf16xbf16_f32__sm80__t64, "cache_gradient.cu", [ROWS = "64", MOST_TOKENS = "1048576"], TO_2_20,
        CacheGradient, 4, [Blocks::Product("seqs", "kv_heads"), Blocks::CeilDiv("ctx", 64)]),
    plain!(scatter_add_f32_f32__cuda__t1, "plain/scatter_add.cu", [], ScatterAdd, [F32] => F32, None, 256, [Blocks::Dim("rows"), ONE]),
    plain!(mean_abs_f32_f32__cuda__t1, "mean_abs.cu", [WEIGHT = "float", CLUSTER = "1"], MeanAbs, [F32] => F32, None, 512,
        [Blocks::Dim("n"), ONE]),
    plain!(mean_abs_bf16_f32__cuda__t1, "mean_abs.cu", [WEIGHT = "bf16", CLUSTER = "1"], MeanAbs, [BF16] => F32, None, 512,
        [Blocks::Dim("n"), ONE]),
    CudaKernelDesc {
        takes: short_rows_dims,
        ..row!(mean_abs_f32_f32__sm80__t1, "mean_abs.cu", [WEIGHT = "float", CLUSTER = "1"], SM_80, ANY, MeanAbs, [F32] => F32, None, 128,
            Shared::NONE, [Blocks::Dim("n"), ONE, ONE])
    },
    CudaKernelDesc {
        takes: short_rows_dims,
        ..row!(mean_abs_bf16_f32__sm80__t1, "mean_abs.cu", [WEIGHT = "bf16", CLUSTER = "1"], SM_80, ANY, MeanAbs, [BF16] => F32, None, 128,
            Shared::NONE, [Blocks::Dim("n"), ONE, ONE])
    },
    CudaKernelDesc {
        takes: long_rows_dims,
        ..row!(mean_abs_f32_f32__sm90__t1, "mean_abs.cu", [WEIGHT = "float", CLUSTER = "8"], SM_90, ANY, MeanAbs, [F32] => F32, None, 1024,
            Shared::NONE, [Blocks::Count(8), Blocks::Dim("n"), ONE])
    },
    CudaKernelDesc {
        takes: long_rows_dims,
        ..row!(mean_abs_bf16_f32__sm90__t1, "mean_abs.cu", [WEIGHT = "bf16", CLUSTER = "8"], SM_90, ANY, MeanAbs, [BF16] => F32, None, 1024,
            Shared::NONE, [Blocks::Count(8), Blocks::Dim("n"), ONE])
    },
    plain!(sample_f32_i32__cuda__t1, "sample.cu", [CLUSTER = "1"], Sample, [F32] => I32, None, 512, [ONE, Blocks::Dim("n")]),
    row!(sample_f32_i32__sm90__t8, "sample.cu", [CLUSTER = "8"], SM_90, ANY, Sample, [F32] => I32, None, 512, Shared::NONE,
        [Blocks::Count(8), Blocks::Dim("n"), ONE]),
    gemv!(ternary_gemv_q8xt2_f32__sm80__r16t1, [ROW_BLOCKS = "1", MIN_BLOCKS = "(K <= 6912 ? 4 : 2)"], 16, 1),
    gemv!(ternary_gemv_q8xt2_f32__sm80__r32t1, [ROW_BLOCKS = "2", MIN_BLOCKS = "3"], 32, 2),
    CudaKernelDesc {
        fuses: Some(Fuses { parts: 2, columns: 1..=u64::MAX, activations: None }),
        ..row!(ternary_gemm_q8xt2_f32__sm80__r32t8, "ternary_gemv.cu", [ROW_BLOCKS = "2", TOKEN_TILES = "1", ONE_TOKEN = "false", MIN_BLOCKS = "3"],
            SM_80, 1..=8, TernaryMatmul, [Q8, T2] => F32, Some(Tile16), 256, Shared::NONE, [Blocks::CeilDiv("m", 32), ONE, ONE])
    },
    CudaKernelDesc {
        fuses: Some(Fuses { parts: 1, columns: 1..=4096, activations: None }),
        ..row!(ternary_gemm_q8xt2_f32__sm80__r16t16, "ternary_gemv.cu", [ROW_BLOCKS = "1", TOKEN_TILES = "2", ONE_TOKEN = "false", MIN_BLOCKS = "(K <= 6912 && 900 <= __CUDA_ARCH__ && __CUDA_ARCH__ < 1000 ? 2 : 1)"],
            SM_80, 1..=16, TernaryMatmul, [Q8, T2] => F32, Some(Tile16), 512, Shared::NONE, [Blocks::CeilDiv("m", 16), ONE, ONE])
    },
    CudaKernelDesc {
        takes: one_turn_of_128,
        fuses: Some(Fuses { parts: 2, columns: 1..=u64::MAX, activations: None }),
        ..row!(ternary_gemm_q8xt2_f32__sm90a__r128t8, "ternary_gemv.cu", [ROW_BLOCKS = "8", TOKEN_TILES = "1", ONE_TOKEN = "false", MIN_BLOCKS = "1", AHEAD = "5"],
            SM_90A, 1..=8, TernaryMatmul, [Q8, T2] => F32, Some(Tile16), 256, Shared::NONE, [Blocks::CeilDiv("m", 128), ONE, ONE])
    },
    CudaKernelDesc {
        takes: few_long_rows,
        fuses: Some(Fuses { parts: 1, columns: 1..=u64::MAX, activations: None }),
        ..row!(ternary_gemm_q8xt2_f32__sm90a__r80t8c4, "ternary_gemv.cu", [ROW_BLOCKS = "5", TOKEN_TILES = "1", ONE_TOKEN = "false", MIN_BLOCKS = "2", AHEAD = "4", CLUSTER = "4"],
            SM_90A, 1..=8, TernaryMatmul, [Q8, T2] => F32, Some(Tile16), 256, Shared::NONE, [Blocks::Count(4), Blocks::CeilDiv("m", 80), ONE])
    },
    row!(ternary_gemm_q8xt2_f32__sm80__r128t128, "ternary_gemm.cu", [STAGES = "4"], SM_80, ANY, TernaryMatmul, [Q8, T2] => F32, Some(Tile16),
        128, Shared { fixed: 4 * (16384 + 8 * 576), each: &[] }, [Blocks::CeilDiv("m", 128), Blocks::CeilDiv("n", 128), ONE]),
    tiled!(ternary_gemm_q8xt2_f32__sm90a__r256t64, [STAGES = "8", TOKENS = "64", SPLIT = "1"], 8 * (8192 + 16 * 576) + 1024,
        Tile { rows: 256, tokens: 64, blocks: 1 }),
    tiled!(ternary_gemm_q8xt2_f32__sm90a__r256t64c2, [STAGES = "7", TOKENS = "64", SPLIT = "2"], 7 * (8192 + 16 * 576) + 1024 + 4 * 8192,
        Tile { rows: 256, tokens: 64, blocks: 2 }),
    tiled!(ternary_gemm_q8xt2_f32__sm90a__r256t64c4, [STAGES = "6", TOKENS = "64", SPLIT = "4"], 6 * (8192 + 16 * 576) + 1024 + 6 * 8192,
        Tile { rows: 256, tokens: 64, blocks: 4 }),
    tiled!(ternary_gemm_q8xt2_f32__sm90a__r256t128, [STAGES = "6", TOKENS = "128", SPLIT = "1"], 6 * (16384 + 16 * 576) + 1024,
        Tile { rows: 256, tokens: 128, blocks: 1 }),
    tiled!(ternary_gemm_q8xt2_f32__sm90a__r256t128c2, [STAGES = "6", TOKENS = "128", SPLIT = "2"], 6 * (16384 + 16 * 576) + 1024 + 8 * 8192,
        Tile { rows: 256, tokens: 128, blocks: 2 }),
    tiled!(ternary_gemm_q8xt2_f32__sm90a__r256t160, [STAGES = "6", TOKENS = "160", SPLIT = "1"], 6 * (20480 + 16 * 576) + 1024,
        Tile { rows: 256, tokens: 160, blocks: 1 }),
    row!(dense_matmul_q8xq8_f32__sm80__r8t1, "dense_gemv_q8.cu", [ROWS_OF_WARP = "2", TOKENS = "1"], SM_80, 1..=1, DenseMatmul,
        [Q8, Q8] => F32, None, 128, Shared::NONE, [Blocks::CeilDiv("m", 8), ONE, ONE]),
    row!(dense_matmul_q8xq8_f32__sm80__r16t8, "dense_gemv_q8.cu", [ROWS_OF_WARP = "4", TOKENS = "8"], SM_80, 1..=8, DenseMatmul,
        [Q8, Q8] => F32, None, 128, Shared::NONE, [Blocks::CeilDiv("m", 16), ONE, ONE]),
    row!(dense_matmul_q8xq8_f32__sm80__r16t16, "dense_gemv_q8.cu", [ROWS_OF_WARP = "4", TOKENS = "16"], SM_80, 1..=16, DenseMatmul,
        [Q8, Q8] => F32, None, 128, Shared::NONE, [Blocks::CeilDiv("m", 16), ONE, ONE]),
    dense_few!(dense_matmul_q8xq8_f32__sm90a__r8t8, "8", 8, 1..=8),
    dense_few!(dense_matmul_q8xq8_f32__sm90a__r8t16, "16", 16, 1..=16),
    row!(dense_matmul_f32xbf16_f32__sm80__r32t8, "dense_gemv_bf16.cu", [TOKENS = "8"], SM_80, ANY, DenseMatmul,
        [F32, BF16] => F32, None, 128, Shared::NONE, [Blocks::CeilDiv("m", 32), Blocks::CeilDiv("n", 8), ONE]),
    row!(attention_f32xf32_f32__sm90__t512, "attention_decode.cu", [K_ROW = "RowF32", V_ROW = "RowF32", CLUSTER = "8", CHUNK = "512"], SM_90, 1..=16,
        Attention, [F32, F32, F32] => F32, None, 256, Shared { fixed: 4 * 516 * 4 + 512 * 32, each: &[("hd", 256)] },
        [Blocks::Count(8), Blocks::Dim("heads"), Blocks::Dim("n")]),
    row!(attention_f32xbf16_f32__sm90__t512, "attention_decode.cu", [K_ROW = "RowBf16", V_ROW = "RowBf16", CLUSTER = "8", CHUNK = "512"], SM_90, 1..=16,
        Attention, [F32, BF16, BF16] => F32, None, 256, Shared { fixed: 4 * 516 * 4 + 512 * 32, each: &[("hd", 256)] },
        [Blocks::Count(8), Blocks::Dim("heads"), Blocks::Dim("n")]),
    row!(attention_f32xq8q4_f32__sm90__t512, "attention_decode.cu", [K_ROW = "RowQ8", V_ROW = "RowQ4", CLUSTER = "8", CHUNK = "512"], SM_90, 1..=16,
        Attention, [F32, Q8, Q4] => F32, None, 256, Shared { fixed: 4 * 516 * 4 + 512 * 32, each: &[("hd", 256)] },
        [Blocks::Count(8), Blocks::Dim("heads"), Blocks::Dim("n")]),
    row!(attention_f32xq4_f32__sm90__t512, "attention_decode.cu", [K_ROW = "RowQ4", V_ROW = "RowQ4", CLUSTER = "8", CHUNK = "512"], SM_90, 1..=16,
        Attention, [F32, Q4, Q4] => F32, None, 256, Shared { fixed: 4 * 516 * 4 + 512 * 32, each: &[("hd", 256)] },
        [Blocks::Count(8), Blocks::Dim("heads"), Blocks::Dim("n")]),
    split!(TWO_BF16, few_split_dims, attention_f32xbf16_f32__sm90a__t16w4c16,
        [K_ROW = "BF16_ROW", V_ROW = "BF16_ROW", CLUSTER = "16", STEP = "16", STAGES = "3"], SM_90A, 1..=1, [F32, BF16, BF16], 128,
        Shared { fixed: 0, each: &[("hd", 192 * 4)] }, 16),
    split!(TWO_BF16, many_split_dims, attention_f32xbf16_f32__sm90a__t16w8c8,
        [K_ROW = "BF16_ROW", V_ROW = "BF16_ROW", CLUSTER = "8", STEP = "16", STAGES = "3"], SM_90A, 1..=1, [F32, BF16, BF16], 256,
        Shared { fixed: 0, each: &[("hd", 384 * 4)] }, 8),
    split!(TWO_BF16, split_dims, attention_f32xbf16_f32__sm90__t16w2c8,
        [K_ROW = "BF16_ROW", V_ROW = "BF16_ROW", CLUSTER = "8", STEP = "16", STAGES = "3"], SM_90, FEW, [F32, BF16, BF16], 64,
        Shared { fixed: 0, each: &[("hd", 96 * 4)] }, 8),
    split!(CODES, few_split_dims, attention_f32xq8q4_f32__sm90a__t64w8c16,
        [K_ROW = "Q8_ROW", V_ROW = "Q4_ROW", CLUSTER = "16", STEP = "64", STAGES = "2"], SM_90A, 1..=1, [F32, Q8, Q4], 256,
        Shared { fixed: 1024 * 16, each: &[("hd", 1024 / 2 * 3)] }, 16),
    split!(CODES, many_split_dims, attention_f32xq8q4_f32__sm90a__t64w8c8,
        [K_ROW = "Q8_ROW", V_ROW = "Q4_ROW", CLUSTER = "8", STEP = "64", STAGES = "2"], SM_90A, 1..=1, [F32, Q8, Q4], 256,
        Shared { fixed: 1024 * 16, each: &[("hd", 1024 / 2 * 3)] }, 8),
    split!(CODES, split_dims, attention_f32xq8q4_f32__sm90__t32w4c8,
        [K_ROW = "Q8_ROW", V_ROW = "Q4_ROW", CLUSTER = "8", STEP = "32", STAGES = "2"], SM_90, FEW, [F32, Q8, Q4], 128,
        Shared { fixed: 256 * 16, each: &[("hd", 256 / 2 * 3)] }, 8),
    split!(CODES, few_split_dims, attention_f32xq4_f32__sm90a__t64w8c16,
        [K_ROW = "Q4_ROW", V_ROW = "Q4_ROW", CLUSTER = "16", STEP = "64", STAGES = "3"], SM_90A, 1..=1, [F32, Q4, Q4], 256,
        Shared { fixed: 1536 * 16, each: &[("hd", 1536)] }, 16),
    split!(CODES, many_split_dims, attention_f32xq4_f32__sm90a__t64w8c8,
        [K_ROW = "Q4_ROW", V_ROW = "Q4_ROW", CLUSTER = "8", STEP = "64", STAGES = "3"], SM_90A, 1..=1, [F32, Q4, Q4], 256,
        Shared { fixed: 1536 * 16, each: &[("hd", 1536)] }, 8),
    split!(CODES, split_dims, attention_f32xq4_f32__sm90__t32w4c8,
        [K_ROW = "Q4_ROW", V_ROW = "Q4_ROW", CLUSTER = "8", STEP = "32", STAGES = "3"], SM_90, FEW, [F32, Q4, Q4], 128,
        Shared { fixed: 384 * 16, each: &[("hd", 384)] }, 8),
    split_appending!(TWO_BF16, few_split_dims, rope_attention_f32xbf16_f32__sm90a__t16w4c16,
        [K_ROW = "BF16_ROW", V_ROW = "BF16_ROW", CLUSTER = "16", STEP = "16", STAGES = "3"], SM_90A, 1..=1, [F32, BF16, BF16], 128,
        Shared { fixed: 0, each: &[("hd", 192 * 4)] }, 16),
    split_appending!(TWO_BF16, many_split_dims, rope_attention_f32xbf16_f32__sm90a__t16w8c8,
        [K_ROW = "BF16_ROW", V_ROW = "BF16_ROW", CLUSTER = "8", STEP = "16", STAGES = "3"], SM_90A, 1..=1, [F32, BF16, BF16], 256,
        Shared { fixed: 0, each: &[("hd", 384 * 4)] }, 8),
    split_appending!(TWO_BF16, split_dims, rope_attention_f32xbf16_f32__sm90__t16w4c8,
        [K_ROW = "BF16_ROW", V_ROW = "BF16_ROW", CLUSTER = "8", STEP = "16", STAGES = "2"], SM_90, 1..=1, [F32, BF16, BF16], 128,
        Shared { fixed: 0, each: &[("hd", 128 * 4)] }, 8),
    split_appending!(TWO_BF16, split_dims, rope_attention_f32xbf16_f32__sm90a__t16w4c4,
        [K_ROW = "BF16_ROW", V_ROW = "BF16_ROW", CLUSTER = "4", STEP = "16", STAGES = "3", OTHERS = "1"], SM_90A, 1..=8, [F32, BF16, BF16], 128,
        Shared { fixed: 0, each: &[("hd", 192 * 4)] }, 4),
    split_appending!(CODES, few_split_dims, rope_attention_f32xq8q4_f32__sm90a__t64w8c16,
        [K_ROW = "Q8_ROW", V_ROW = "Q4_ROW", CLUSTER = "16", STEP = "64", STAGES = "2"], SM_90A, 1..=1, [F32, Q8, Q4], 256,
        Shared { fixed: 1024 * 16, each: &[("hd", 1024 / 2 * 3)] }, 16),
    split_appending!(CODES, many_split_dims, rope_attention_f32xq8q4_f32__sm90a__t64w8c8,
        [K_ROW = "Q8_ROW", V_ROW = "Q4_ROW", CLUSTER = "8", STEP = "64", STAGES = "2"], SM_90A, 1..=1, [F32, Q8, Q4], 256,
        Shared { fixed: 1024 * 16, each: &[("hd", 1024 / 2 * 3)] }, 8),
    split_appending!(CODES, split_dims, rope_attention_f32xq8q4_f32__sm90__t32w4c8,
        [K_ROW = "Q8_ROW", V_ROW = "Q4_ROW", CLUSTER = "8", STEP = "32", STAGES = "2"], SM_90, 1..=1, [F32, Q8, Q4], 128,
        Shared { fixed: 256 * 16, each: &[("hd", 256 / 2 * 3)] }, 8),
    split_appending!(CODES, few_split_dims, rope_attention_f32xq4_f32__sm90a__t64w8c16,
        [K_ROW = "Q4_ROW", V_ROW = "Q4_ROW", CLUSTER = "16", STEP = "64", STAGES = "3"], SM_90A, 1..=1, [F32, Q4, Q4], 256,
        Shared { fixed: 1536 * 16, each: &[("hd", 1536)] }, 16),
    split_appending!(CODES, many_split_dims, rope_attention_f32xq4_f32__sm90a__t64w8c8,
        [K_ROW = "Q4_ROW", V_ROW = "Q4_ROW", CLUSTER = "8", STEP = "64", STAGES = "3"], SM_90A, 1..=1, [F32, Q4, Q4], 256,
        Shared { fixed: 1536 * 16, each: &[("hd", 1536)] }, 8),
    split_appending!(CODES, split_dims, rope_attention_f32xq4_f32__sm90__t32w4c8,
        [K_ROW = "Q4_ROW", V_ROW = "Q4_ROW", CLUSTER = "8", STEP = "32", STAGES = "3"], SM_90, 1..=1, [F32, Q4, Q4], 128,
        Shared { fixed: 384 * 16, each: &[("hd", 384)] }, 8),
    rounded!(BF16_OPERANDS, attention_f32xbf16_f32__sm80__t64, "attention_prefill.cu", [K_ROW = "BF16_ROW", V_ROW = "BF16_ROW"], SM_80, MANY,
        Attention, [F32, BF16, BF16] => F32, None, 128, Shared { fixed: 0, each: &[("hd", 2 * 64 * 4)] },
        [Blocks::Dim("heads"), Blocks::CeilDiv("n", 64), ONE]),
    rounded!(BF16_DECODED, attention_f32xq8q4_f32__sm80__t64, "attention_prefill.cu", [K_ROW = "Q8_ROW", V_ROW = "Q4_ROW"], SM_80, MANY,
        Attention, [F32, Q8, Q4] => F32, None, 128, Shared { fixed: 64 * 16, each: &[("hd", 2 * 64 * 2 + 96)] },
        [Blocks::Dim("heads"), Blocks::CeilDiv("n", 64), ONE]),
    rounded!(BF16_DECODED, attention_f32xq4_f32__sm80__t64, "attention_prefill.cu", [K_ROW = "Q4_ROW", V_ROW = "Q4_ROW"], SM_80, MANY,
        Attention, [F32, Q4, Q4] => F32, None, 128, Shared { fixed: 64 * 16, each: &[("hd", 2 * 64 * 2 + 64)] },
        [Blocks::Dim("heads"), Blocks::CeilDiv("n", 64), ONE]),
    rounded!(BF16_OPERANDS, attention_f32xbf16_f32__sm90a__t128, "attention_flash.cu", [K_ROW = "BF16_ROW", V_ROW = "BF16_ROW"], SM_90A, MANY,
        Attention, [F32, BF16, BF16] => F32, None, 384, Shared { fixed: 1024, each: &[("hd", 2 * 128 * 5)] },
        [Blocks::Dim("heads"), Blocks::CeilDiv("n", 128), ONE]),
    rounded!(BF16_DECODED, attention_f32xq8q4_f32__sm90a__t128, "attention_flash.cu", [K_ROW = "Q8_ROW", V_ROW = "Q4_ROW"], SM_90A, MANY,
        Attention, [F32, Q8, Q4] => F32, None, 384, Shared { fixed: 1024 + 128 * 16, each: &[("hd", 2 * 128 * 5 + 192)] },
        [Blocks::Dim("heads"), Blocks::CeilDiv("n", 128), ONE]),
    rounded!(BF16_DECODED, attention_f32xq4_f32__sm90a__t128, "attention_flash.cu", [K_ROW = "Q4_ROW", V_ROW = "Q4_ROW"], SM_90A, MANY,
        Attention, [F32, Q4, Q4] => F32, None, 384, Shared { fixed: 1024 + 128 * 16, each: &[("hd", 2 * 128 * 5 + 128)] },
        [Blocks::Dim("heads"), Blocks::CeilDiv("n", 128), ONE]),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::name::KernelName;

    /// A load that is taken to be of what never changes is moved ahead of the wait for those that write it.
    #[test]
    fn kernels_that_wait_read_what_others_write_by_plain_loads() {
        for desc in CUDA_TABLE.iter().filter(|desc| desc.waits()) {
            assert!(!desc.source.contains("__ldg("), "{}", desc.name);
            for (at, _) in desc.source.match_indices("__restrict__") {
                // Positions and sequences are written ahead of a call.
                let is_input = desc.source[..at].ends_with("const int *");
                assert!(is_input || desc.source[..at].ends_with("float *"), "{}", desc.name);
                assert!(is_input || desc.source[at..].starts_with("__restrict__ out"), "{}", desc.name);
            }
        }
    }

    #[test]
    fn every_name_is_unique_and_says_what_its_row_says() {
        let mut names = HashSet::new();
        for desc in CUDA_TABLE {
            assert!(names.insert(desc.name), "{} is there twice", desc.name);
            let isa = desc.name.split("__").nth(1).unwrap_or("");
            let named = if isa == "cuda" { Sm::LEAST.to_string() } else { isa.replacen("sm", "sm_", 1) };
            assert_eq!(named, desc.requires.to_string(), "{}", desc.name);
            // The rest is the grammar of the CPU's names.
            let name: KernelName = desc.name.replace(&format!("__{isa}__"), "__scalar__").parse().unwrap();
            let mut dtypes = name.dtypes();
            if matches!(desc.family, Family::Attention | Family::RopeAppend | Family::RopeAttention)
                && dtypes.len() == 2
            {
                dtypes.push(dtypes[1]);
            }
            assert_eq!(
                (dtypes.as_slice(), name.output, name.layout),
                (desc.inputs, desc.output, desc.layout),
                "{}",
                desc.name
            );
        }
    }

    #[test]
    fn launches_are_over_the_dims_of_their_row() {
        for desc in CUDA_TABLE {
            let shared = desc.launch.shared.each.iter().map(|(dim, _)| *dim);
            let grid = desc.launch.grid.into_iter().flat_map(|blocks| match blocks {
                Blocks::Count(_) => vec![],
                Blocks::Dim(dim) | Blocks::CeilDiv(dim, _) => vec![dim],
                Blocks::Product(left, right) => vec![left, right],
            });
            assert!(shared.chain(grid).all(|dim| desc.signature.dims.contains(&dim)), "{}", desc.name);
            assert!((1..=1024).contains(&desc.launch.threads) && desc.launch.threads % 32 == 0, "{}", desc.name);
        }
    }

    #[test]
    fn the_source_of_a_specialisation_states_its_constants_and_is_one_text() {
        for desc in CUDA_TABLE {
            let special = Specialised::new(desc, |_| Some(64));
            assert_eq!(special.parameters().collect::<Vec<_>>(), ["n"], "{}", desc.name);
            let source = special.source();
            assert!(
                source.contains(&format!("#define KERNEL {}\n", desc.name)) && !source.contains("#include \"lib/"),
                "{source}"
            );
            assert!(source.contains("extern \"C\" __global__") && !special.label().contains("__n"), "{source}");
            assert!(special.shared_bytes().is_some());
        }
    }

    #[test]
    fn tiles_are_chosen_by_their_turns() {
        let best = |n: u64, k: u64, m: u64| {
            let tiles = CUDA_TABLE.iter().filter_map(|desc| desc.tile);
            tiles.min_by_key(|tile| tile.nanoseconds(n, k, m)).map(|tile| (tile.tokens, tile.blocks))
        };
        // Two full turns of 160 tokens, where 128 take three.
        assert_eq!(best(4096, 2560, 2560), Some((160, 1)));
        // One turn of 80 tiles; at a larger k it is worth cutting k in two.
        assert_eq!(best(512, 2560, 2560), Some((64, 1)));
        assert_eq!(best(512, 6912, 2560), Some((128, 2)));
        assert_eq!(best(64, 6912, 2560), Some((64, 4)));
        assert!(best(u64::MAX, u64::MAX, u64::MAX).is_some());
    }

    #[test]
    fn code_runs_where_its_capability_is() {
        assert_eq!("sm_90a".parse::<Sm>().map(|sm| (sm.runs_on(9, 0), sm.runs_on(10, 0))), Ok((true, false)));
        assert_eq!("sm_80".parse::<Sm>().map(|sm| (sm.runs_on(8, 6), sm.runs_on(9, 0))), Ok((true, false)));
        assert!("sm_90".parse::<Sm>().is_err() && Sm::LEAST.compiles_for(Sm { number: 90, is_specific: true }));
    }
}
