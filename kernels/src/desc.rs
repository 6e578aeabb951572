//! What the table says about one kernel: its inputs, its ABI, its grid and the CPU it needs.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use ir::DType;
use ir::packing::TernaryLayout;

/// One row of the table.
#[derive(Debug)]
pub struct KernelDesc {
    /// The one name it goes by everywhere.
    pub name: &'static str,
    /// What it computes.
    pub family: Family,
    /// Element types of what it computes with: activations and weights; queries, K and V as the caches hold them; the values to append; or
    /// logits.
    pub inputs: &'static [DType],
    /// Element type of what it writes.
    pub output: DType,
    /// How its ternary weights are packed, if it has any.
    pub layout: Option<TernaryLayout>,
    /// The numbers of tokens, dim `n`, that it takes.
    pub tokens: RangeInclusive<u64>,
    /// The CPU it needs.
    pub requires: Requires,
    /// Its arguments, dims and grid.
    pub signature: &'static Signature,
    /// The function; `None` where this program was built for another architecture.
    pub entry: Option<CpuKernel>,
}

impl KernelDesc {
    /// How many neighbouring units share what they read: a piece of the grid had best begin at a multiple of it.
    pub fn grain(&self, dim: impl Fn(&str) -> i64) -> u64 {
        /// Tokens from which on whole tokens matter more than an even split.
        const MANY: i64 = 16;
        match self.family {
            Family::Attention if dim("n") < MANY => (dim("heads") / dim("kv_heads").max(1)).max(1) as u64,
            Family::Attention => dim("heads").max(1) as u64,
            Family::TernaryMatmul
            | Family::TernaryMatmulTransposed
            | Family::Unpack
            | Family::DenseMatmul
            | Family::Gemm
            | Family::KvAppend
            | Family::RopeAppend
            | Family::RopeAttention
            | Family::Sample
            | Family::AttentionLse
            | Family::QueryGradient
            | Family::CacheGradient
            | Family::ScatterAdd
            | Family::MeanAbs => 1,
        }
    }
}

/// The one type of all CPU kernels: base pointers, dims, and the units `begin..end` of the grid to compute. The contract is in the
/// documentation of the crate.
pub type CpuKernel = unsafe fn(args: *const *mut u8, dims: *const i64, begin: i64, end: i64);

/// What a kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `out[n, m] = (x[n, k] . w[m, k]^T) * scale[m]` with ternary `w`.
    TernaryMatmul,
    /// `out[n, k] = (x[n, m] * scale[m]) . w[m, k]` with ternary `w`: what flows back through [`Family::TernaryMatmul`].
    TernaryMatmulTransposed,
    /// `out[m, k]`: ternary values in half precision.
    Unpack,
    /// `out[n, m] = x[n, k] . w[m, k]^T`.
    DenseMatmul,
    /// `out[n, m]`: the product of two matrices, of which each may lie transposed.
    Gemm,
    /// `out[n, heads, hd]`: softmax of the masked scores times V, over a KV cache.
    Attention,
    /// Writes the keys or the values of new tokens into a KV cache.
    KvAppend,
    /// Rotates the queries and keys of new tokens, and writes the keys and values into their KV caches. On GPUs only, where launches are dear.
    RopeAppend,
    /// Does what [`Family::RopeAppend`] does, and computes the attention of the rotated queries over the caches. On GPUs only.
    RopeAttention,
    /// `out[n]`: an id for each row of logits.
    Sample,
    /// `out[n, heads]`: the log of the sum of the exponentials of the scores of attention.
    AttentionLse,
    /// The gradient of attention in its queries.
    QueryGradient,
    /// The gradients of attention in its keys and its values.
    CacheGradient,
    /// Sums of rows by id.
    ScatterAdd,
    /// `out[rows]`: the mean of the magnitudes of each row.
    MeanAbs,
}

/// The ABI of a kernel: what each of its pointers and dims is.
#[derive(Debug, PartialEq, Eq)]
pub struct Signature {
    /// The pointers, in order: inputs, then outputs.
    pub args: &'static [Arg],
    /// The names of the dims, in order. Each is an `i64`.
    pub dims: &'static [&'static str],
    /// The number of units that the work consists of.
    pub grid: Grid,
}

/// One pointer argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arg {
    /// Its name in formulas.
    pub name: &'static str,
    /// What the kernel does with the buffer.
    pub access: Access,
}

/// What a kernel does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only reads it.
    Read,
    /// Writes all that belongs to its units, and never reads.
    Write,
    /// Writes parts of it and leaves the rest as it was.
    Update,
}

/// How many units a kernel's work has, as an expression over its dims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// `ceil(dim / size)`.
    CeilDiv(&'static str, u64),
    /// The product of two dims.
    Product(&'static str, &'static str),
    /// The dim itself.
    One(&'static str),
}

impl Grid {
    /// The number of units, where `dim` gives the value of a dim by its name.
    pub fn units(self, dim: impl Fn(&str) -> i64) -> i64 {
        match self {
            Grid::CeilDiv(name, size) => {
                let size = size as i64;
                (dim(name) + size - 1) / size
            }
            Grid::Product(left, right) => dim(left) * dim(right),
            Grid::One(name) => dim(name),
        }
    }
}

/// A CPU architecture that rows exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    /// x86 with 64 bits.
    X86_64,
    /// Arm with 64 bits.
    Aarch64,
}

impl Arch {
    /// The name, as in `target_arch`.
    pub fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// The architecture that this program was built for, if rows exist for it.
    pub fn host() -> Option<Self> {
        [Arch::X86_64, Arch::Aarch64].into_iter().find(|arch| arch.name() == std::env::consts::ARCH)
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of CPU features that kernels are written for. The order of the variants of one architecture is their rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Nothing beyond what every CPU of any architecture has.
    Scalar,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI, and all of [`Isa::Avx2`].
    Avx512Vnni,
    /// Advanced SIMD with the dot product instructions.
    Neon,
}

impl Isa {
    /// All of them, the better ones of an architecture later.
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::Avx512Vnni, Isa::Neon];

    /// The name in kernel names and in targets.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Neon => "neon",
        }
    }

    /// The architecture that has it; `None`: every one.
    pub fn arch(self) -> Option<Arch> {
        match self {
            Isa::Scalar => None,
            Isa::Avx2 | Isa::Avx512Vnni => Some(Arch::X86_64),
            Isa::Neon => Some(Arch::Aarch64),
        }
    }

    /// How good it is among those of one architecture: a higher rank has all that a lower one has.
    pub fn rank(self) -> u8 {
        match self {
            Isa::Scalar => 0,
            Isa::Avx2 | Isa::Neon => 1,
            Isa::Avx512Vnni => 2,
        }
    }

    /// The features it stands for, by the names of `target_feature`.
    pub fn features(self) -> &'static [&'static str] {
        match self {
            Isa::Scalar => &[],
            Isa::Avx2 => &["avx2", "fma"],
            Isa::Avx512Vnni => &["avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"],
            Isa::Neon => &["neon", "dotprod"],
        }
    }

    /// Whether code for `self` runs on a CPU that has `target`.
    pub fn runs_on(self, target: Isa) -> bool {
        self == Isa::Scalar || (self.arch() == target.arch() && self.rank() <= target.rank())
    }

    /// The best that the running CPU has.
    pub fn best_available() -> Isa {
        let available = Isa::ALL.into_iter().filter(|isa| Requires { isa: *isa }.is_available());
        available.max_by_key(|isa| isa.rank()).unwrap_or(Isa::Scalar)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|isa| isa.name() == text).ok_or(())
    }
}

/// What a kernel needs of the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requires {
    /// The features.
    pub isa: Isa,
}

impl Requires {
    /// Whether the running CPU has it.
    pub fn is_available(self) -> bool {
        self.isa.arch().is_none_or(|arch| Arch::host() == Some(arch)) && self.missing().is_empty()
    }

    /// The features that the running CPU lacks; all of them if they belong to another architecture.
    pub fn missing(self) -> Vec<&'static str> {
        self.isa.features().iter().copied().filter(|feature| !cpu_has(feature)).collect()
    }
}

/// Whether the running CPU has a feature; the macros of the standard library take only literals.
#[cfg(target_arch = "x86_64")]
fn cpu_has(feature: &str) -> bool {
    match feature {
        "avx2" => std::arch::is_x86_feature_detected!("avx2"),
        "fma" => std::arch::is_x86_feature_detected!("fma"),
        "avx512f" => std::arch::is_x86_feature_detected!("avx512f"),
        "avx512bw" => std::arch::is_x86_feature_detected!("avx512bw"),
        "avx512dq" => std::arch::is_x86_feature_detected!("avx512dq"),
        "avx512vl" => std::arch::is_x86_feature_detected!("avx512vl"),
        "avx512vnni" => std::arch::is_x86_feature_detected!("avx512vnni"),
        _ => false,
    }
}

#[cfg(target_arch = "aarch64")]
fn cpu_has(feature: &str) -> bool {
    match feature {
        "neon" => std::arch::is_aarch64_feature_detected!("neon"),
        "dotprod" => std::arch::is_aarch64_feature_detected!("dotprod"),
        _ => false,
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_has(_feature: &str) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
    }

    #[test]
    fn a_better_isa_runs_what_a_lesser_one_does() {
        assert!(Isa::Avx2.runs_on(Isa::Avx512Vnni) && !Isa::Avx512Vnni.runs_on(Isa::Avx2));
        assert!(!Isa::Avx2.runs_on(Isa::Neon) && !Isa::Neon.runs_on(Isa::Avx512Vnni));
        assert!(Isa::ALL.into_iter().all(|isa| Isa::Scalar.runs_on(isa) && isa.runs_on(isa)));
    }

    #[test]
    fn what_is_best_is_available() {
        assert!(Requires { isa: Isa::best_available() }.is_available());
    }
}
