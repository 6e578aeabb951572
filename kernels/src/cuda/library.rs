//! Products that a library of NVIDIA's computes: dense ones in half precision, where nothing of ours would be faster.

use crate::desc::KernelDesc;
use crate::table;

/// A kernel of a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LibraryKernel {
    /// Its name in plans.
    pub name: &'static str,
    /// The row for CPUs that says what is computed, over which arguments and dims. The order of its sums is the library's own.
    row: &'static str,
    /// Bytes of memory that a call needs beside its arguments, as a last one that it writes.
    pub workspace_bytes: u64,
}

/// [`crate::Family::Gemm`] by cuBLASLt, by its results' element types.
pub static CUBLASLT: [LibraryKernel; 2] = [
    cublaslt("gemm_bf16xbf16_f32__cublaslt", "gemm_bf16xbf16_f32__scalar__r16"),
    cublaslt("gemm_bf16xbf16_bf16__cublaslt", "gemm_bf16xbf16_bf16__scalar__r16"),
];

/// The workspace that the library's documentation advises for compute capability 9.0, and what it takes to begin that at a multiple of 256 bytes.
pub const CUBLASLT_WORKSPACE_BYTES: u64 = (32 << 20) + 256;

const fn cublaslt(name: &'static str, row: &'static str) -> LibraryKernel {
    LibraryKernel { name, row, workspace_bytes: CUBLASLT_WORKSPACE_BYTES }
}

impl LibraryKernel {
    /// The one of cuBLASLt with this name.
    pub fn find(name: &str) -> Option<&'static LibraryKernel> {
        CUBLASLT.iter().find(|library| library.name == name)
    }

    /// The row for CPUs that says what is computed.
    pub fn desc(&self) -> &'static KernelDesc {
        table::find(self.row).expect("the row is in the table, as a test makes sure")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_library_computes_is_in_the_table() {
        for library in &CUBLASLT {
            assert_eq!(library.desc().name, library.row);
            assert_eq!(LibraryKernel::find(library.name), Some(library));
        }
    }
}
