//! How nests become machine code: Cranelift IR for each, then bytes that need no linker.
//!
//! Every kernel is a function
//!
//! ```text
//! extern "sysv64" fn(args: *const *mut u8, dims: *const i64, begin: i64, end: i64)
//! ```
//!
//! on x86_64, whatever the operating system, and the standard procedure call of the architecture on aarch64. `args` are the base pointers of
//! the nest's buffers, `dims` its sizes, both in the nest's order; the units `begin..end` are computed. It calls nothing, allocates nothing,
//! uses less than 64 KiB of stack and holds no absolute address, so the bytes run wherever they are mapped.
//!
//! The caller promises that each base pointer is valid for all that the nest touches, and that `0 <= begin <= end <=` the nest's units.

pub mod plan;
pub mod work;
pub mod clif;
pub mod code;
pub mod cuda;
pub mod cuda_c;
#[expect(unsafe_code, reason = "NVRTC is a C library that is loaded at run time")]
pub mod nvrtc;
mod kept;
mod lanes;
mod quantise;
mod values;
pub mod writer;

use std::fmt;

use kernels::{Arch, Isa};

pub use code::{Code, Listing, Symbol, assemble};

/// What generated code may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CodeTarget {
    arch: Arch,
    isa: Isa,
}

impl CodeTarget {
    /// Code for the CPUs of `arch` that have `isa`, if there are such.
    pub fn new(arch: Arch, isa: Isa) -> Option<Self> {
        isa.arch().is_none_or(|needed| needed == arch).then_some(Self { arch, isa })
    }

    /// The architecture.
    pub fn arch(self) -> Arch {
        self.arch
    }

    /// The CPU features.
    pub fn isa(self) -> Isa {
        self.isa
    }

    /// Whether there is nothing beyond SSE2: no instruction that rounds to a whole number, and aligned vectors in memory operands.
    fn is_sse2(self) -> bool {
        self.arch == Arch::X86_64 && self.isa == Isa::Scalar
    }
}

impl fmt::Display for CodeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.arch, self.isa)
    }
}

/// Why there is no machine code. All but the first are bugs in tritter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmitError {
    /// Two kernels of one name.
    #[error("two nests are called `{name}`")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// Cranelift does not know the target or one of its settings.
    #[error("internal error: the code generator refuses the target {target}: {reason}")]
    Target {
        /// The target.
        target: CodeTarget,
        /// What it says.
        reason: String,
    },
    /// Cranelift refused a function.
    #[error("internal error: no {target} code for nest `{nest}`: {reason}")]
    Codegen {
        /// The nest's name.
        nest: String,
        /// The target.
        target: CodeTarget,
        /// What it says.
        reason: String,
    },
    /// The code refers to something outside itself.
    #[error("internal error: the {target} code of nest `{nest}` needs the linker: {relocation}")]
    Relocation {
        /// The nest's name.
        nest: String,
        /// The target.
        target: CodeTarget,
        /// The first relocation.
        relocation: String,
    },
}
