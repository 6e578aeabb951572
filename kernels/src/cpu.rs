//! Which CPU kernels this program holds, and how a name becomes a function.
//!
//! An algorithm is written once, in `generic`, over the vector operations of `lanes`; a file per ISA implements those operations and
//! declares thin entry points that turn the ISA's features on. The generic code is `#[inline(always)]`, because only inside an entry point
//! may the compiler use the features: a generic function that stays a function of its own would call every vector operation.

#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "every vector operation is unsafe for the one reason that the CPU must have it; a block each would hide the pointers"
)]
#![expect(
    clippy::needless_range_loop,
    reason = "loops over constant counts index several arrays and pointers alike, and have to unroll"
)]

mod lanes;

mod generic {
    //! The algorithms.

    pub(crate) mod args;
    pub(crate) mod attention;
    pub(crate) mod attention_gradient;
    pub(crate) mod cache_row;
    pub(crate) mod dense;
    pub(crate) mod dense_q4;
    pub(crate) mod dense_q8;
    pub(crate) mod exp;
    pub(crate) mod gemm;
    pub(crate) mod kv_append;
    pub(crate) mod mean_abs;
    pub(crate) mod sample;
    pub(crate) mod scatter_add;
    pub(crate) mod ternary_f32;
    pub(crate) mod ternary_q8;
    pub(crate) mod ternary_transposed;
    pub(crate) mod unpack;
}

pub(crate) mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64 {
    //! x86 with 64 bits.

    pub(crate) mod avx2;
    pub(crate) mod avx512_vnni;
}

#[cfg(target_arch = "aarch64")]
pub(crate) mod aarch64 {
    //! Arm with 64 bits.

    pub(crate) mod neon;
}

pub use self::lanes::prefetch;
use crate::desc::{Arch, CpuKernel};
use crate::error::KernelError;
use crate::table;

/// The function of the kernel called `name`, after confirming that the running CPU can execute it.
///
/// # Errors
///
/// [`KernelError::Unknown`], [`KernelError::Architecture`] or [`KernelError::Features`].
pub fn resolve(name: &str) -> Result<CpuKernel, KernelError> {
    let desc = table::find(name).ok_or_else(|| KernelError::Unknown { name: name.to_owned() })?;
    let isa = desc.requires.isa;
    let Some(entry) = desc.entry else {
        let arch = isa.arch().map_or("any", Arch::name);
        return Err(KernelError::Architecture { name: name.to_owned(), isa, arch });
    };
    let missing = desc.requires.missing();
    if !missing.is_empty() {
        return Err(KernelError::Features { name: name.to_owned(), isa, missing });
    }
    Ok(entry)
}

/// Declares entry points: functions of the calling convention, named as the rows of the table, each one instance of an algorithm with the
/// ISA's features turned on.
macro_rules! entries {
    (features $features:literal: $($name:ident = $algorithm:expr;)*) => {
        $($crate::cpu::entries! { @entry #[target_feature(enable = $features)] $name = $algorithm })*
    };
    (features none: $($name:ident = $algorithm:expr;)*) => {
        $($crate::cpu::entries! { @entry $name = $algorithm })*
    };
    (@entry $(#[$feature:meta])? $name:ident = $algorithm:expr) => {
        /// The row of this name.
        ///
        /// # Safety
        ///
        /// The contract of the crate.
        #[expect(non_snake_case, reason = "a kernel has one name, and its grammar separates parts by `__`")]
        $(#[$feature])?
        pub(crate) unsafe fn $name(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
            // SAFETY: the caller keeps the contract of the crate, and the CPU has the features of this function.
            unsafe { $algorithm(args, dims, begin, end) }
        }
    };
}
use entries;
