//! Where activations and caches live: one allocation that is made once.

use memmap2::{MmapMut, MmapRaw};

use crate::error::RuntimeError;

/// Anonymous memory, zero at first, aligned to a page. The system gives pages to it as they are touched, so a long context costs only what
/// is used of it.
#[derive(Debug)]
pub struct Slab {
    map: MmapRaw,
    bytes: u64,
}

impl Slab {
    /// Allocates so many bytes.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Memory`] if the system has no room for them.
    pub fn new(bytes: u64) -> Result<Self, RuntimeError> {
        let error = |source| RuntimeError::Memory { bytes, purpose: "caches and activations", source };
        let length = usize::try_from(bytes).map_err(|_| error(std::io::ErrorKind::OutOfMemory.into()))?;
        let map = MmapMut::map_anon(length.max(1)).map_err(error)?;
        // Huge pages save most address translations of a large cache. It is a hint that a system may not know.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map: map.into(), bytes })
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its start.
    pub fn base(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_sizes_are_errors_and_not_aborts() {
        for bytes in [u64::MAX, 1 << 60] {
            assert!(matches!(Slab::new(bytes), Err(RuntimeError::Memory { .. })), "{bytes}");
        }
    }

    #[test]
    fn it_is_aligned_and_may_be_empty() {
        for bytes in [0, 1, 4096, 100_000] {
            let slab = Slab::new(bytes).unwrap();
            assert_eq!((slab.bytes(), slab.base() as u64 % ir::plan::ALIGNMENT), (bytes, 0));
        }
    }
}
