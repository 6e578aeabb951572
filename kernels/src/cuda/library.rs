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

/// [`crate::Family::Gemm`] by cuBLASLt, with the workspace that its documentation advises for compute capability 9.0, and what it
/// takes to begin that at a multiple of 256 bytes.
pub static CUBLASLT_GEMM: LibraryKernel = LibraryKernel {
    name: "gemm_bf16xbf16_f32__cublaslt",
    row: "gemm_bf16xbf16_f32__scalar__r16",
    workspace_bytes: (32 << 20) + 256,
};

impl LibraryKernel {
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
        assert_eq!(CUBLASLT_GEMM.desc().name, CUBLASLT_GEMM.row);
    }
}
