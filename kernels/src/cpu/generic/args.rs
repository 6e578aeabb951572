//! How a kernel reads its argument and dim arrays.

/// The base pointers and dims of one call, by their position in the row's signature.
#[derive(Clone, Copy)]
pub(crate) struct Args {
    args: *const *mut u8,
    dims: *const i64,
}

impl Args {
    /// # Safety
    ///
    /// `args` and `dims` hold as many entries as are asked for below.
    #[inline(always)]
    pub(crate) unsafe fn new(args: *const *mut u8, dims: *const i64) -> Self {
        Self { args, dims }
    }

    /// The pointer at `position`.
    ///
    /// # Safety
    ///
    /// The signature has that many arguments.
    #[inline(always)]
    pub(crate) unsafe fn pointer<T>(self, position: usize) -> *mut T {
        // SAFETY: as the caller promises.
        unsafe { (*self.args.add(position)).cast() }
    }

    /// The dim at `position`.
    ///
    /// # Safety
    ///
    /// The signature has that many dims.
    #[inline(always)]
    pub(crate) unsafe fn dim(self, position: usize) -> i64 {
        // SAFETY: as the caller promises.
        unsafe { *self.dims.add(position) }
    }

    /// The dim at `position`, a size.
    ///
    /// # Safety
    ///
    /// The signature has that many dims, and sizes are not negative.
    #[inline(always)]
    pub(crate) unsafe fn size(self, position: usize) -> usize {
        // SAFETY: as the caller promises.
        let dim = unsafe { self.dim(position) };
        debug_assert!(0 <= dim, "dim {position} is {dim}");
        dim as usize
    }
}
