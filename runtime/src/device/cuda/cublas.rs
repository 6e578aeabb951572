//! cuBLASLt, NVIDIA's library of dense products: loaded by its name when a plan calls for it, so that a plan without dense products in half precision needs
//! nothing but the driver.
//!
//! A product is prepared once: which of the library's algorithms computes it follows from its sizes, the library's version and the device, and from
//! nothing that changes between runs, so that a run gives the same bits again.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Arc;

use ir::DType;
use ir::op::matmul::Form;
use kernels::cuda::library::CUBLASLT_WORKSPACE_BYTES;
use libloading::Library;

use super::driver::{Context, Stream};
use crate::error::RuntimeError;

/// What the library is called, the newest version first.
const FILE_NAMES: &[&str] = if cfg!(windows) {
    &["cublasLt64_13.dll", "cublasLt64_12.dll"]
} else {
    &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"]
};

type Handle = *mut c_void;
type Status = c_int;

/// `cublasLtMatmulAlgo_t`: opaque, and plain data.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Heuristic {
    algorithm: Algorithm,
    workspace_bytes: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

/// `cudaDataType_t`.
const R_32F: c_int = 0;
const R_16BF: c_int = 14;
/// `cublasComputeType_t`: f32 sums.
const COMPUTE_32F: c_int = 68;
/// `cublasLtMatmulDescAttributes_t`, and the `cublasOperation_t` that they are set to.
const TRANSPOSE_A: c_int = 3;
const TRANSPOSE_B: c_int = 4;
const TRANSPOSED: c_int = 1;
/// `cublasLtMatmulPreferenceAttributes_t`.
const MOST_WORKSPACE: c_int = 1;
/// The alignments of `A`, `B`, `C` and `D`.
const ALIGNMENTS: [c_int; 4] = [5, 6, 7, 8];
/// The alignment that the library asks for where it is told of none.
const FULL_ALIGNMENT: u32 = 256;

type Create = unsafe extern "C" fn(*mut Handle) -> Status;
type Destroy = unsafe extern "C" fn(Handle) -> Status;
type CreateProduct = unsafe extern "C" fn(*mut Handle, c_int, c_int) -> Status;
type CreateLayout = unsafe extern "C" fn(*mut Handle, c_int, u64, u64, i64) -> Status;
type SetAttribute = unsafe extern "C" fn(Handle, c_int, *const c_void, usize) -> Status;
type Choose = unsafe extern "C" fn(
    Handle,
    Handle,
    Handle,
    Handle,
    Handle,
    Handle,
    Handle,
    c_int,
    *mut Heuristic,
    *mut c_int,
) -> Status;
type Multiply = unsafe extern "C" fn(
    Handle,
    Handle,
    *const f32,
    u64,
    Handle,
    u64,
    Handle,
    *const f32,
    u64,
    Handle,
    u64,
    Handle,
    *const Algorithm,
    u64,
    usize,
    *mut c_void,
) -> Status;

/// The functions of the library that are used.
struct Api {
    create: Create,
    destroy: Destroy,
    create_product: CreateProduct,
    destroy_product: Destroy,
    set_product: SetAttribute,
    create_layout: CreateLayout,
    destroy_layout: Destroy,
    create_preference: Create,
    destroy_preference: Destroy,
    set_preference: SetAttribute,
    choose: Choose,
    multiply: Multiply,
    /// Keeps the code of the functions.
    _library: Library,
}

impl Api {
    fn load(name: &str) -> Result<Self, libloading::Error> {
        // SAFETY: what NVIDIA's library does when it is loaded is to set up its own tables.
        let library = unsafe { Library::new(name) }?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type that it is given below is that of the library's header, in all versions from 11 on.
                *unsafe { library.get($name) }?
            };
        }
        Ok(Self {
            create: function!(b"cublasLtCreate\0"),
            destroy: function!(b"cublasLtDestroy\0"),
            create_product: function!(b"cublasLtMatmulDescCreate\0"),
            destroy_product: function!(b"cublasLtMatmulDescDestroy\0"),
            set_product: function!(b"cublasLtMatmulDescSetAttribute\0"),
            create_layout: function!(b"cublasLtMatrixLayoutCreate\0"),
            destroy_layout: function!(b"cublasLtMatrixLayoutDestroy\0"),
            create_preference: function!(b"cublasLtMatmulPreferenceCreate\0"),
            destroy_preference: function!(b"cublasLtMatmulPreferenceDestroy\0"),
            set_preference: function!(b"cublasLtMatmulPreferenceSetAttribute\0"),
            choose: function!(b"cublasLtMatmulAlgoGetHeuristic\0"),
            multiply: function!(b"cublasLtMatmul\0"),
            _library: library,
        })
    }
}

fn check(call: &'static str, status: Status) -> Result<(), RuntimeError> {
    /// `cublasStatus_t`.
    const NAMES: [(Status, &str); 8] = [
        (1, "the library is not initialised"),
        (3, "out of memory"),
        (7, "an argument is not valid"),
        (8, "the device lacks what it needs"),
        (11, "memory cannot be mapped"),
        (13, "the launch failed"),
        (14, "an internal error"),
        (15, "nothing in the library computes this"),
    ];
    if status == 0 {
        return Ok(());
    }
    let reason = NAMES.iter().find(|(number, _)| *number == status).map_or("unknown", |(_, text)| text);
    Err(RuntimeError::Cuda { call, reason: format!("{reason} (status {status})"), step: None })
}

/// The library, ready for one context.
pub(super) struct Cublas {
    api: Api,
    handle: Handle,
    context: Arc<Context>,
}

// SAFETY: the library allows a handle to be used from any thread, and from several.
unsafe impl Send for Cublas {}
// SAFETY: as above.
unsafe impl Sync for Cublas {}

impl Cublas {
    /// Loads the first library that the system's loader finds.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NoCublas`] with all names if there is none.
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, RuntimeError> {
        let mut tried = Vec::new();
        for name in FILE_NAMES {
            let api = match Api::load(name) {
                Ok(api) => api,
                Err(error) => {
                    tried.push((*name, error.to_string()));
                    continue;
                }
            };
            let mut handle = ptr::null_mut();
            // SAFETY: a place for a handle, with a context that is current.
            match check("cublasLtCreate", unsafe { (api.create)(&raw mut handle) }) {
                Ok(()) => return Ok(Self { api, handle, context: Arc::clone(context) }),
                // A driver that is older than the library, or the other way round; another version may do.
                Err(error) => tried.push((*name, error.to_string())),
            }
        }
        Err(RuntimeError::NoCublas { tried })
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        let _ = self.context.make_current();
        // SAFETY: it was created, and products that use it keep it.
        let _ = unsafe { (self.api.destroy)(self.handle) };
    }
}

/// A description that the library made, and how it is given back.
struct Description {
    handle: Handle,
    destroy: Destroy,
}

impl Description {
    /// What `create` puts into the place that it is given.
    fn new(
        call: &'static str,
        destroy: Destroy,
        create: impl FnOnce(*mut Handle) -> Status,
    ) -> Result<Self, RuntimeError> {
        let mut handle = ptr::null_mut();
        check(call, create(&raw mut handle))?;
        Ok(Self { handle, destroy })
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: it was created by the library that this function is of, which the product keeps.
        let _ = unsafe { (self.destroy)(self.handle) };
    }
}

/// The sizes of a product `[n, k] x [k, m]`, and how its operands lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sizes {
    pub(super) n: u64,
    pub(super) k: u64,
    pub(super) m: u64,
    pub(super) form: Form,
    /// The element type of the result, f32 or bf16.
    pub(super) to: DType,
    /// What the addresses of `x`, `w` and the result are multiples of, in bytes: see [`alignment`].
    pub(super) alignments: [u32; 3],
}

impl Sizes {
    /// An error with the sizes of the product that it is of.
    fn name(self, error: RuntimeError) -> RuntimeError {
        let Sizes { n, k, m, form, to, alignments } = self;
        match error {
            RuntimeError::Cuda { call, reason, step } => {
                let of =
                    format!("[{n}, {k}] x [{k}, {m}], {}, to {to} at multiples of {alignments:?} bytes", form.name());
                RuntimeError::Cuda { call, reason: format!("{reason}, for {of}"), step }
            }
            error => error,
        }
    }
}

/// What an address is a multiple of, as far as the library cares.
pub(super) fn alignment(address: u64) -> u32 {
    FULL_ALIGNMENT >> 8_u32.saturating_sub(address.trailing_zeros())
}

/// A product with all that it needs but its memory.
pub(super) struct Product {
    product: Description,
    x: Description,
    w: Description,
    out: Description,
    algorithm: Algorithm,
    sizes: Sizes,
    // Dropped last: the descriptions are its.
    library: Arc<Cublas>,
}

// SAFETY: descriptions are plain data of the library's, which nobody changes any more.
unsafe impl Send for Product {}
// SAFETY: as above.
unsafe impl Sync for Product {}

impl Product {
    /// The product of these sizes by the algorithm that the library thinks best.
    ///
    /// # Errors
    ///
    /// If the library has none.
    pub(super) fn new(library: &Arc<Cublas>, sizes: Sizes) -> Result<Self, RuntimeError> {
        let Sizes { n, k, m, form, to, alignments: [of_x, of_w, of_out] } = sizes;
        let Cublas { api, handle, .. } = &**library;
        let layout = |dtype: c_int, [rows, columns]: [u64; 2]| {
            // The library's matrices lie by columns: its rows are our columns.
            Description::new("cublasLtMatrixLayoutCreate", api.destroy_layout, |place| {
                // SAFETY: a place for a handle.
                unsafe { (api.create_layout)(place, dtype, columns, rows, columns as i64) }
            })
        };
        let x = layout(R_16BF, if form == Form::Tn { [k, n] } else { [n, k] })?;
        let w = layout(R_16BF, if form == Form::Nt { [m, k] } else { [k, m] })?;
        let out = layout(if to == DType::BF16 { R_16BF } else { R_32F }, [n, m])?;
        let product = Description::new("cublasLtMatmulDescCreate", api.destroy_product, |place| {
            // SAFETY: a place for a handle.
            unsafe { (api.create_product)(place, COMPUTE_32F, R_32F) }
        })?;
        // By columns the result is `out^T = w x^T`, so the library's A is `w`, and its B is `x`.
        let transposed = [(TRANSPOSE_A, form == Form::Nt), (TRANSPOSE_B, form == Form::Tn)];
        for (attribute, _) in transposed.into_iter().filter(|(_, is_transposed)| *is_transposed) {
            let value = ptr::from_ref(&TRANSPOSED).cast();
            // SAFETY: the description exists, and the attribute is an integer of 4 bytes.
            check("cublasLtMatmulDescSetAttribute", unsafe {
                (api.set_product)(product.handle, attribute, value, size_of::<c_int>())
            })?;
        }
        let preference = Description::new("cublasLtMatmulPreferenceCreate", api.destroy_preference, |place| {
            // SAFETY: a place for a handle.
            unsafe { (api.create_preference)(place) }
        })?;
        let bytes = CUBLASLT_WORKSPACE_BYTES - u64::from(FULL_ALIGNMENT);
        // SAFETY: the preference exists, and the attribute is a number of 8 bytes.
        check("cublasLtMatmulPreferenceSetAttribute", unsafe {
            (api.set_preference)(preference.handle, MOST_WORKSPACE, ptr::from_ref(&bytes).cast(), size_of::<u64>())
        })?;
        for (attribute, alignment) in ALIGNMENTS.into_iter().zip([of_w, of_x, of_out, of_out]) {
            // SAFETY: the preference exists, and the attribute is a number of 4 bytes.
            check("cublasLtMatmulPreferenceSetAttribute", unsafe {
                (api.set_preference)(preference.handle, attribute, ptr::from_ref(&alignment).cast(), size_of::<u32>())
            })?;
        }
        let (mut best, mut found) = (Heuristic::default(), 0);
        // SAFETY: all of them exist, and there is room for one result.
        let status = unsafe {
            (api.choose)(
                *handle,
                product.handle,
                w.handle,
                x.handle,
                out.handle,
                out.handle,
                preference.handle,
                1,
                &raw mut best,
                &raw mut found,
            )
        };
        check("cublasLtMatmulAlgoGetHeuristic", status).map_err(|error| sizes.name(error))?;
        check("cublasLtMatmulAlgoGetHeuristic", if found < 1 { 15 } else { best.state })
            .map_err(|error| sizes.name(error))?;
        Ok(Self { product, x, w, out, algorithm: best.algorithm, sizes, library: Arc::clone(library) })
    }

    /// Queues `out = x w`, where `workspace` is the address of as much memory as the kernel asks for, and of what it takes to begin at a multiple.
    pub(super) fn queue(&self, [x, w, out, workspace]: [u64; 4], stream: &Stream) -> Result<(), RuntimeError> {
        let (one, zero) = (1.0_f32, 0.0_f32);
        let Cublas { api, handle, .. } = &*self.library;
        // SAFETY: the descriptions exist, and were found to fit each other; the memory was found to hold them when the artifact was read. Both factors
        // are read before the call returns.
        let status = unsafe {
            (api.multiply)(
                *handle,
                self.product.handle,
                &raw const one,
                w,
                self.w.handle,
                x,
                self.x.handle,
                &raw const zero,
                out,
                self.out.handle,
                out,
                self.out.handle,
                &raw const self.algorithm,
                workspace.next_multiple_of(u64::from(FULL_ALIGNMENT)),
                (CUBLASLT_WORKSPACE_BYTES - u64::from(FULL_ALIGNMENT)) as usize,
                stream.handle(),
            )
        };
        check("cublasLtMatmul", status).map_err(|error| self.sizes.name(error))
    }
}
