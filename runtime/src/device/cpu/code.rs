//! Executable memory: how the bytes of `cpu.bin` become functions.

use memmap2::{Mmap, MmapMut};

use crate::error::RuntimeError;

/// The calling convention of generated code: that of the kernel table with a fixed ABI, so that the compiler need not know Rust's.
#[cfg(target_arch = "x86_64")]
pub(crate) type GeneratedKernel =
    unsafe extern "sysv64" fn(args: *const *mut u8, dims: *const i64, begin: i64, end: i64);

/// The calling convention of generated code: that of the kernel table with a fixed ABI, so that the compiler need not know Rust's.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) type GeneratedKernel = unsafe extern "C" fn(args: *const *mut u8, dims: *const i64, begin: i64, end: i64);

/// Generated code in memory of its own. It was written before it became executable, and is not writable since.
pub(crate) struct Code {
    map: Option<Mmap>,
}

impl Code {
    /// Takes a copy of the code, so that nobody can change it through the file.
    pub(crate) fn new(bytes: &[u8]) -> Result<Self, RuntimeError> {
        if bytes.is_empty() {
            return Ok(Self { map: None });
        }
        let error = |source| RuntimeError::Memory { bytes: bytes.len() as u64, purpose: "generated code", source };
        let mut map = MmapMut::map_anon(bytes.len()).map_err(error)?;
        map.copy_from_slice(bytes);
        let map = map.make_exec().map_err(error)?;
        synchronise(&map);
        Ok(Self { map: Some(map) })
    }

    /// The function that starts at `offset`.
    ///
    /// # Panics
    ///
    /// If that is outside the code.
    ///
    /// # Safety
    ///
    /// A whole function of this convention starts there, and it is called only while `self` lives.
    pub(crate) unsafe fn entry(&self, offset: u64) -> GeneratedKernel {
        let map = self.map.as_ref().filter(|map| offset < map.len() as u64);
        let code = map.expect("the artifact was checked to hold its kernels")[offset as usize..].as_ptr();
        // SAFETY: `code` points to executable memory, and the caller vouches for what lies there.
        unsafe { std::mem::transmute::<*const u8, GeneratedKernel>(code) }
    }
}

/// Makes written code visible to instruction fetch. x86 does that by itself.
#[cfg(not(target_arch = "aarch64"))]
fn synchronise(_code: &[u8]) {}

/// Makes written code visible to instruction fetch: cleans the data cache, then invalidates the instruction cache, line by line.
#[cfg(target_arch = "aarch64")]
fn synchronise(code: &[u8]) {
    use std::arch::asm;

    let types: u64;
    // SAFETY: reads a register that user code may read: the logarithms of the line sizes in words.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) types, options(nomem, nostack)) };
    let (data_line, code_line) = (4_usize << ((types >> 16) & 15), 4_usize << (types & 15));
    let (start, end) = (code.as_ptr() as usize, code.as_ptr() as usize + code.len());
    for line in (start / data_line * data_line..end).step_by(data_line) {
        // SAFETY: cleaning a line of mapped memory changes no value.
        unsafe { asm!("dc cvau, {}", in(reg) line, options(nostack)) };
    }
    // SAFETY: a barrier has no operands.
    unsafe { asm!("dsb ish", options(nostack)) };
    for line in (start / code_line * code_line..end).step_by(code_line) {
        // SAFETY: invalidating a line of mapped memory changes no value.
        unsafe { asm!("ic ivau, {}", in(reg) line, options(nostack)) };
    }
    // SAFETY: barriers have no operands.
    unsafe { asm!("dsb ish", "isb", options(nostack)) };
}
