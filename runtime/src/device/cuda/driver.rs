//! The driver's functions that are used, each with its status checked and each resource released by its owner.
//!
//! The library is loaded when the first context is made, so a program that never asks for a GPU runs where there is none. All objects belong
//! to the one context of [`Context`], which they keep alive, and all work goes through a [`Stream`].

use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys;

use crate::error::RuntimeError;

/// Makes an error of a status that is not success.
fn check(call: &'static str, status: sys::CUresult) -> Result<(), RuntimeError> {
    if status == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = ptr::null();
    // SAFETY: any status is allowed, and this is a place for a pointer.
    let _ = unsafe { sys::cuGetErrorString(status, &raw mut text) };
    let reason = if text.is_null() {
        format!("{status:?}")
    } else {
        // SAFETY: the driver's texts are static and end in zero.
        let text = unsafe { CStr::from_ptr(text) };
        format!("{} ({status:?})", text.to_string_lossy())
    };
    Err(RuntimeError::Cuda { call, reason, step: None })
}

/// Calls a function of the driver and checks its status.
macro_rules! driver {
    ($function:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: said where the macro is used.
        let status = unsafe { sys::$function($($argument),*) };
        check(stringify!($function), status)
    }};
}

/// The primary context of the first device.
#[derive(Debug)]
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: the driver allows a context to be made current on any thread.
unsafe impl Send for Context {}
// SAFETY: as above; the fields are only read.
unsafe impl Sync for Context {}

impl Context {
    /// The context of the first device that the driver shows; `CUDA_VISIBLE_DEVICES` chooses it.
    pub(super) fn new() -> Result<Arc<Self>, RuntimeError> {
        // SAFETY: loading the driver has no preconditions.
        if !unsafe { sys::is_culib_present() } {
            return Err(RuntimeError::NoCuda { reason: "the driver's library, libcuda, is not installed".to_owned() });
        }
        let absent = |error: RuntimeError| RuntimeError::NoCuda { reason: error.to_string() };
        // SAFETY: first of all calls.
        driver!(cuInit(0)).map_err(absent)?;
        let mut count = 0;
        // SAFETY: a place for a number.
        driver!(cuDeviceGetCount(&raw mut count)).map_err(absent)?;
        if count < 1 {
            return Err(RuntimeError::NoCuda { reason: "the driver shows no device".to_owned() });
        }
        let mut device = 0;
        // SAFETY: there is a first device.
        driver!(cuDeviceGet(&raw mut device, 0))?;
        let mut context = ptr::null_mut();
        // SAFETY: the device exists.
        driver!(cuDevicePrimaryCtxRetain(&raw mut context, device))?;
        let context = Arc::new(Self { device, context });
        context.make_current()?;
        Ok(context)
    }

    /// Makes it the one that this thread's calls are for.
    pub(super) fn make_current(&self) -> Result<(), RuntimeError> {
        // SAFETY: the context is retained.
        driver!(cuCtxSetCurrent(self.context))
    }

    /// The device's name.
    pub(super) fn name(&self) -> Result<String, RuntimeError> {
        let mut name = [0_u8; 128];
        // SAFETY: there is room for as many bytes, the last of which the driver makes zero.
        driver!(cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, self.device))?;
        Ok(CStr::from_bytes_until_nul(&name).map_or(String::new(), |name| name.to_string_lossy().into_owned()))
    }

    /// Major and minor version of the compute capability.
    pub(super) fn capability(&self) -> Result<(u32, u32), RuntimeError> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: a place for a number, and a device that exists; twice.
        driver!(cuDeviceGetAttribute(&raw mut major, MAJOR, self.device))?;
        driver!(cuDeviceGetAttribute(&raw mut minor, MINOR, self.device))?;
        Ok((major.unsigned_abs(), minor.unsigned_abs()))
    }

    /// Bytes of memory that can still be had, and of all memory.
    pub(super) fn memory_bytes(&self) -> Result<(u64, u64), RuntimeError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: places for two numbers.
        driver!(cuMemGetInfo_v2(&raw mut free, &raw mut total))?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was retained once. A failure leaks it, and nothing else.
        let _ = driver!(cuDevicePrimaryCtxRelease_v2(self.device));
    }
}

/// Memory of the device.
#[derive(Debug)]
pub(super) struct Memory {
    start: sys::CUdeviceptr,
    bytes: u64,
    context: Arc<Context>,
}

impl Memory {
    /// So many bytes, all zero.
    pub(super) fn zeroed(context: &Arc<Context>, bytes: u64) -> Result<Self, RuntimeError> {
        let mut start = 0;
        // SAFETY: a place for an address; the driver refuses sizes of 0.
        driver!(cuMemAlloc_v2(&raw mut start, bytes.max(1) as usize))?;
        let memory = Self { start, bytes, context: Arc::clone(context) };
        // SAFETY: the allocation has as many bytes.
        driver!(cuMemsetD8_v2(start, 0, bytes.max(1) as usize))?;
        // Streams of their own do not wait for what is done outside of streams. Waiting for the whole context would be refused while another thread
        // records a graph.
        // SAFETY: the default stream is always there.
        driver!(cuStreamSynchronize(ptr::null_mut()))?;
        Ok(memory)
    }

    /// The address of a byte.
    ///
    /// # Panics
    ///
    /// If `bytes` bytes from there on leave it.
    pub(super) fn address(&self, offset: u64, bytes: u64) -> u64 {
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.bytes), "{bytes} bytes at {offset} leave its {} bytes", self.bytes);
        self.start + offset
    }

    /// Copies `data` to a place, and returns when that is done.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<(), RuntimeError> {
        let to = self.address(offset, data.len() as u64);
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: both have as many bytes.
        driver!(cuMemcpyHtoD_v2(to, data.as_ptr().cast(), data.len()))?;
        // The last bytes may still be on their way when the call returns.
        // SAFETY: the default stream is always there.
        driver!(cuStreamSynchronize(ptr::null_mut()))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = self.context.make_current();
        // SAFETY: it was allocated, and programs that use it keep it.
        let _ = driver!(cuMemFree_v2(self.start));
    }
}

/// Memory of the host that the device copies to and from by itself.
#[derive(Debug)]
pub(super) struct Pinned {
    start: *mut c_void,
    bytes: usize,
    context: Arc<Context>,
}

// SAFETY: it is plain memory that its owner has for itself.
unsafe impl Send for Pinned {}
// SAFETY: as above; what is shared is only read.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, RuntimeError> {
        let memory = Self::uninitialised(context, bytes)?;
        // SAFETY: the allocation has as many bytes.
        unsafe { ptr::write_bytes(memory.start.cast::<u8>(), 0, bytes) };
        Ok(memory)
    }

    /// The same with these bytes.
    pub(super) fn with(context: &Arc<Context>, data: &[u8]) -> Result<Self, RuntimeError> {
        let memory = Self::uninitialised(context, data.len())?;
        // SAFETY: there is room for them, and `data` is no memory that was just allocated.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), memory.start.cast::<u8>(), data.len()) };
        Ok(memory)
    }

    fn uninitialised(context: &Arc<Context>, bytes: usize) -> Result<Self, RuntimeError> {
        let mut start = ptr::null_mut();
        // SAFETY: a place for an address.
        driver!(cuMemAllocHost_v2(&raw mut start, bytes.max(1)))?;
        Ok(Self { start, bytes, context: Arc::clone(context) })
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address by which kernels read a byte of it: with one address space for all memory, that of the host.
    pub(super) fn device_address(&self, offset: usize, bytes: usize) -> u64 {
        self.address(offset, bytes) as u64
    }

    /// All bytes of a part, to be written.
    pub(super) fn bytes_mut(&mut self, bytes: usize) -> &mut [u8] {
        let start = self.address(0, bytes).cast::<u8>();
        // SAFETY: the memory is initialised and this long; `self` is borrowed, and its owner has waited for the last copy from it.
        unsafe { std::slice::from_raw_parts_mut(start, bytes) }
    }

    /// The address of a byte.
    ///
    /// # Panics
    ///
    /// If `bytes` bytes from there on leave it.
    fn address(&self, offset: usize, bytes: usize) -> *mut c_void {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= self.bytes), "{bytes} bytes leave pinned memory");
        // SAFETY: the offset is inside the allocation, or one past its end.
        unsafe { self.start.cast::<u8>().add(offset).cast() }
    }

    /// Puts integers at a multiple of 4 bytes.
    pub(super) fn write_i32(&mut self, offset: usize, values: &[i32]) {
        let to = self.address(offset, 4 * values.len());
        // SAFETY: there is room for them, and `values` is no pinned memory.
        unsafe { ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), to.cast::<u8>(), 4 * values.len()) };
    }

    /// The first integers.
    pub(super) fn i32(&self, count: usize) -> &[i32] {
        let start = self.address(0, 4 * count).cast::<i32>();
        // SAFETY: the memory starts at a page, was initialised, and any bits are an integer; no copy into it is under way, because its owner has
        // waited for the last.
        unsafe { std::slice::from_raw_parts(start, count) }
    }

    /// The first floats.
    pub(super) fn f32(&self, count: usize) -> &[f32] {
        let start = self.address(0, 4 * count).cast::<f32>();
        // SAFETY: the memory starts at a page, was initialised, and any bits are a float; `self` is borrowed, so no copy into it is started.
        unsafe { std::slice::from_raw_parts(start, count) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.make_current();
        // SAFETY: it was allocated so, and the device that owned it waits for its copies.
        let _ = driver!(cuMemFreeHost(self.start));
    }
}

/// A cubin that is loaded.
#[derive(Debug)]
pub(super) struct Module {
    module: sys::CUmodule,
    context: Arc<Context>,
}

impl Module {
    pub(super) fn load(context: &Arc<Context>, cubin: &[u8]) -> Result<Self, RuntimeError> {
        let mut module = ptr::null_mut();
        // SAFETY: the image is an ELF file, which says itself how long it is; its reader was told by a hash that it is whole.
        driver!(cuModuleLoadData(&raw mut module, cubin.as_ptr().cast()))?;
        Ok(Self { module, context: Arc::clone(context) })
    }

    /// The kernel of this name, which may have so many bytes of dynamic shared memory.
    pub(super) fn function(self: &Arc<Self>, name: &str, shared_bytes: u32) -> Result<Function, RuntimeError> {
        use sys::CUfunction_attribute::{
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as SHARED_BYTES,
            CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED as LARGE_CLUSTERS,
        };
        let entry = CString::new(name).map_err(|error| RuntimeError::Cuda {
            call: "cuModuleGetFunction",
            reason: error.to_string(),
            step: None,
        })?;
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded, and the text ends in zero.
        driver!(cuModuleGetFunction(&raw mut function, self.module, entry.as_ptr()))?;
        // Kernels for Hopper may have clusters of 16 blocks. What a device without clusters says to this does not matter: its kernels have none.
        // SAFETY: the function exists.
        let _ = driver!(cuFuncSetAttribute(function, LARGE_CLUSTERS, 1));
        if 0 < shared_bytes {
            // SAFETY: the function exists.
            driver!(cuFuncSetAttribute(function, SHARED_BYTES, shared_bytes as i32))?;
        }
        Ok(Function { function, _module: Arc::clone(self) })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.context.make_current();
        // SAFETY: it was loaded, and its functions keep it.
        let _ = driver!(cuModuleUnload(self.module));
    }
}

/// A kernel.
#[derive(Clone, Debug)]
pub(super) struct Function {
    function: sys::CUfunction,
    /// Kept for the code.
    _module: Arc<Module>,
}

/// One launch with all that it needs.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) function: Function,
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
    /// Whether it may start while the kernel before it still runs.
    pub(super) starts_early: bool,
    /// The addresses it is given.
    pub(super) pointers: Vec<u64>,
    /// The sizes after them.
    pub(super) sizes: Vec<i32>,
}

/// A queue of work.
#[derive(Debug)]
pub(super) struct Stream {
    stream: sys::CUstream,
    context: Arc<Context>,
}

// SAFETY: the driver allows a stream to be used from any thread, one at a time.
unsafe impl Send for Stream {}
// SAFETY: as above; a shared stream is used only by whoever has the device.
unsafe impl Sync for Stream {}
// SAFETY: handles of the driver are not bound to threads.
unsafe impl Send for Module {}
// SAFETY: as above; a shared module is only read.
unsafe impl Sync for Module {}
// SAFETY: handles of the driver are not bound to threads.
unsafe impl Send for Function {}
// SAFETY: as above; a shared function is only read.
unsafe impl Sync for Function {}

impl Stream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, RuntimeError> {
        const NON_BLOCKING: u32 = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let mut stream = ptr::null_mut();
        // SAFETY: a place for a handle.
        driver!(cuStreamCreate(&raw mut stream, NON_BLOCKING))?;
        Ok(Self { stream, context: Arc::clone(context) })
    }

    /// What a library of NVIDIA's calls it.
    pub(super) fn handle(&self) -> *mut c_void {
        self.stream.cast()
    }

    /// Queues a kernel.
    pub(super) fn launch(&self, launch: &Launch) -> Result<(), RuntimeError> {
        let pointers = launch.pointers.iter().map(|pointer| ptr::from_ref(pointer).cast_mut().cast::<c_void>());
        let sizes = launch.sizes.iter().map(|size| ptr::from_ref(size).cast_mut().cast::<c_void>());
        let mut parameters: Vec<*mut c_void> = pointers.chain(sizes).collect();
        let [x, y, z] = launch.grid;
        // SAFETY: an attribute is plain data, for which zeros are a value.
        let mut early: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        early.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        early.value.programmaticStreamSerializationAllowed = 1;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: self.stream,
            attrs: &raw mut early,
            numAttrs: u32::from(launch.starts_early),
        };
        // SAFETY: the parameters are those of the kernel, as the compiler promised and the artifact's reader checked as far as it can; the
        // driver copies them before it returns.
        driver!(cuLaunchKernelEx(&raw const config, launch.function.function, parameters.as_mut_ptr(), ptr::null_mut()))
    }

    /// Queues a copy within the device; the regions were found to be inside their memories.
    pub(super) fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<(), RuntimeError> {
        driver!(cuMemcpyDtoDAsync_v2(to, from, bytes as usize, self.stream))
    }

    /// Queues a copy to the device. The host's bytes stay as they are until it is done.
    pub(super) fn upload(&self, from: &Pinned, offset: usize, to: u64, bytes: usize) -> Result<(), RuntimeError> {
        driver!(cuMemcpyHtoDAsync_v2(to, from.address(offset, bytes), bytes, self.stream))
    }

    /// Queues a copy from the device to the start of the host's memory, which is read when it is done.
    pub(super) fn download(&self, from: u64, to: &mut Pinned, bytes: usize) -> Result<(), RuntimeError> {
        driver!(cuMemcpyDtoHAsync_v2(to.address(0, bytes), from, bytes, self.stream))
    }

    /// Queues a graph.
    pub(super) fn run(&self, graph: &Graph) -> Result<(), RuntimeError> {
        // SAFETY: the graph exists, and what its nodes use is kept by the program that has it.
        driver!(cuGraphLaunch(graph.graph, self.stream))
    }

    /// Returns when all that was queued is done.
    pub(super) fn wait(&self) -> Result<(), RuntimeError> {
        // SAFETY: the stream exists.
        driver!(cuStreamSynchronize(self.stream))
    }

    /// What `queue` queues, as a graph, instead of doing it.
    pub(super) fn record(&self, queue: impl FnOnce() -> Result<(), RuntimeError>) -> Result<Graph, RuntimeError> {
        const MODE: sys::CUstreamCaptureMode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream exists and records nothing yet.
        driver!(cuStreamBeginCapture_v2(self.stream, MODE))?;
        let queued = queue();
        let mut recorded = ptr::null_mut();
        // SAFETY: it records; this also ends a recording that failed.
        let ended = driver!(cuStreamEndCapture(self.stream, &raw mut recorded));
        queued.and(ended)?;
        let mut graph = ptr::null_mut();
        // SAFETY: the recording is whole.
        let made = driver!(cuGraphInstantiateWithFlags(&raw mut graph, recorded, 0));
        // SAFETY: the recording is used no more.
        let _ = driver!(cuGraphDestroy(recorded));
        made?;
        Ok(Graph { graph, context: Arc::clone(&self.context) })
    }

    /// Lets what is queued from now on wait until what an event was queued after is done, in another stream.
    pub(super) fn wait_for(&self, event: &Event) -> Result<(), RuntimeError> {
        // SAFETY: both exist.
        driver!(cuStreamWaitEvent(self.stream, event.event, 0))
    }

    /// Queues the taking of a time.
    pub(super) fn mark(&self, event: &Event) -> Result<(), RuntimeError> {
        // SAFETY: both exist.
        driver!(cuEventRecord(event.event, self.stream))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.context.make_current();
        // What was queued is done first.
        let _ = self.wait();
        // SAFETY: it exists, and is used no more.
        let _ = driver!(cuStreamDestroy_v2(self.stream));
    }
}

/// Work that is queued as one.
#[derive(Debug)]
pub(super) struct Graph {
    graph: sys::CUgraphExec,
    context: Arc<Context>,
}

// SAFETY: handles of the driver are not bound to threads.
unsafe impl Send for Graph {}
// SAFETY: as above; a shared graph is only queued, by whoever has the device.
unsafe impl Sync for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.context.make_current();
        // SAFETY: it exists, and runs no more: whoever queued it has waited.
        let _ = driver!(cuGraphExecDestroy(self.graph));
    }
}

/// A point in time on the device.
#[derive(Debug)]
pub(super) struct Event {
    event: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: handles of the driver are not bound to threads.
unsafe impl Send for Event {}
// SAFETY: as above; waiting for an event changes nothing.
unsafe impl Sync for Event {}

impl Event {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, RuntimeError> {
        let mut event = ptr::null_mut();
        // SAFETY: a place for a handle.
        driver!(cuEventCreate(&raw mut event, 0))?;
        Ok(Self { event, context: Arc::clone(context) })
    }

    /// Returns when it has happened; at once if it was never to be taken.
    pub(super) fn wait(&self) -> Result<(), RuntimeError> {
        // SAFETY: it exists.
        driver!(cuEventSynchronize(self.event))
    }

    /// Seconds from another event to this one; both have happened.
    pub(super) fn seconds_since(&self, start: &Event) -> Result<f64, RuntimeError> {
        let mut milliseconds = 0.0_f32;
        // SAFETY: both exist.
        driver!(cuEventElapsedTime(&raw mut milliseconds, start.event, self.event))?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.context.make_current();
        // SAFETY: it exists, and is used no more.
        let _ = driver!(cuEventDestroy_v2(self.event));
    }
}
