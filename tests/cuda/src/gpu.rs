//! The few calls of the CUDA driver that a test needs, each with its status checked.

use std::ffi::{CStr, CString, c_void};
use std::ptr;

use anyhow::{Context as _, Result, bail, ensure};
use cudarc::driver::sys;

/// The first device, with a context that is current on this thread.
pub(crate) struct Gpu {
    device: sys::CUdevice,
    stream: sys::CUstream,
}

/// Memory of the device, freed when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    address: sys::CUdeviceptr,
    bytes: usize,
}

/// A kernel of a module that stays loaded until the program ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function(sys::CUfunction);

/// A recorded sequence of launches.
pub(crate) struct Graph(sys::CUgraphExec);

/// One launch.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) function: Function,
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
    /// Addresses first, then numbers.
    pub(crate) addresses: Vec<u64>,
    pub(crate) numbers: Vec<i32>,
    /// Whether it may start before the launch ahead of it ends: it waits by itself.
    pub(crate) early: bool,
}

fn check(call: &str, status: sys::CUresult) -> Result<()> {
    if status == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = ptr::null();
    // SAFETY: it is a place for a pointer; any status is allowed.
    let known = unsafe { sys::cuGetErrorString(status, &raw mut text) };
    if known != sys::CUresult::CUDA_SUCCESS || text.is_null() {
        bail!("{call}: {status:?}");
    }
    // SAFETY: the driver's texts end in zero and live for ever.
    let text = unsafe { CStr::from_ptr(text) };
    bail!("{call}: {}", text.to_string_lossy())
}

impl Gpu {
    /// Opens the first device.
    pub(crate) fn open() -> Result<Self> {
        // SAFETY: it only looks for the library.
        let is_present = unsafe { sys::is_culib_present() };
        ensure!(is_present, "there is no CUDA driver on this machine");
        // SAFETY: the first call of the driver.
        check("cuInit", unsafe { sys::cuInit(0) })?;
        let (mut device, mut context, mut stream) = (0, ptr::null_mut(), ptr::null_mut());
        // SAFETY: a place for a device.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, 0) })?;
        // SAFETY: a place for a context.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, device) })?;
        // SAFETY: the context was made.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(context) })?;
        // Not one that runs beside the copies, which are of the default stream.
        // SAFETY: a place for a stream.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&raw mut stream, 0) })?;
        Ok(Self { device, stream })
    }

    /// What the driver calls the device.
    pub(crate) fn name(&self) -> Result<String> {
        let mut bytes = [0_u8; 128];
        // SAFETY: there is room for as many bytes as the call says.
        check("cuDeviceGetName", unsafe { sys::cuDeviceGetName(bytes.as_mut_ptr().cast(), 127, self.device) })?;
        Ok(CStr::from_bytes_until_nul(&bytes)?.to_string_lossy().into_owned())
    }

    /// One of the numbers that describe the device.
    pub(crate) fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<i32> {
        let mut value = 0;
        // SAFETY: a place for a number.
        check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, self.device) })?;
        Ok(value)
    }

    /// The compute capability.
    pub(crate) fn capability(&self) -> Result<(u32, u32)> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        Ok((self.attribute(MAJOR)?.unsigned_abs(), self.attribute(MINOR)?.unsigned_abs()))
    }

    /// Memory that holds nothing in particular.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<Buffer> {
        let mut address = 0;
        // SAFETY: a place for an address.
        check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes.max(1)) })?;
        Ok(Buffer { address, bytes })
    }

    /// Memory with these bytes.
    pub(crate) fn upload(&self, bytes: &[u8]) -> Result<Buffer> {
        let buffer = self.allocate(bytes.len())?;
        buffer.write(0, bytes)?;
        Ok(buffer)
    }

    /// Loads a cubin, which stays loaded, and finds a kernel in it that may use so much dynamic shared memory.
    pub(crate) fn load(&self, cubin: &[u8], name: &str, shared_bytes: u32) -> Result<Function> {
        let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
        let name = CString::new(name)?;
        // SAFETY: the bytes are an ELF file that NVRTC made.
        check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&raw mut module, cubin.as_ptr().cast()) })?;
        // SAFETY: the module is loaded and the name ends in zero.
        let status = unsafe { sys::cuModuleGetFunction(&raw mut function, module, name.as_ptr()) };
        check("cuModuleGetFunction", status)?;
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
        // SAFETY: the function is loaded. Devices without clusters know nothing of it, and need not.
        let _ = unsafe { sys::cuFuncSetAttribute(function, attribute, 1) };
        if 48 << 10 < shared_bytes {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded.
            let status = unsafe { sys::cuFuncSetAttribute(function, attribute, i32::try_from(shared_bytes)?) };
            check("cuFuncSetAttribute", status)?;
        }
        Ok(Function(function))
    }

    /// Enqueues a launch.
    pub(crate) fn launch(&self, launch: &Launch) -> Result<()> {
        let pointers = launch.addresses.iter().map(|address| ptr::from_ref(address).cast_mut().cast::<c_void>());
        let numbers = launch.numbers.iter().map(|number| ptr::from_ref(number).cast_mut().cast::<c_void>());
        let mut parameters: Vec<*mut c_void> = pointers.chain(numbers).collect();
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: self.stream,
            attrs: &raw mut attribute,
            numAttrs: u32::from(launch.early),
        };
        // SAFETY: the driver copies the parameters, which are those that the kernel's row says, before it returns; the buffers behind the
        // addresses are of the sizes that the dims imply, and alive until the stream is waited for.
        let status = unsafe {
            sys::cuLaunchKernelEx(&raw const config, launch.function.0, parameters.as_mut_ptr(), ptr::null_mut())
        };
        check("cuLaunchKernelEx", status)
    }

    /// Waits for all that was enqueued.
    pub(crate) fn wait(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// Records launches as a graph.
    pub(crate) fn record(&self, launches: &[Launch]) -> Result<Graph> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive and not capturing.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) })?;
        let launched = launches.iter().try_for_each(|launch| self.launch(launch));
        let (mut graph, mut exec) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the stream is capturing.
        let status = unsafe { sys::cuStreamEndCapture(self.stream, &raw mut graph) };
        launched?;
        check("cuStreamEndCapture", status)?;
        // SAFETY: the graph was captured.
        check("cuGraphInstantiate", unsafe { sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0) })?;
        // SAFETY: the executable graph does not need it any more.
        check("cuGraphDestroy", unsafe { sys::cuGraphDestroy(graph) })?;
        Ok(Graph(exec))
    }

    /// Milliseconds of each of `count` runs of a graph, after one that is not counted.
    pub(crate) fn time(&self, graph: &Graph, count: usize) -> Result<Vec<f32>> {
        let (mut start, mut end) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: a place for an event.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut start, 0) })?;
        // SAFETY: a place for an event.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut end, 0) })?;
        let mut times = Vec::new();
        for _ in 0..=count {
            // SAFETY: event and stream are alive.
            check("cuEventRecord", unsafe { sys::cuEventRecord(start, self.stream) })?;
            // SAFETY: graph and stream are alive.
            check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.0, self.stream) })?;
            // SAFETY: event and stream are alive.
            check("cuEventRecord", unsafe { sys::cuEventRecord(end, self.stream) })?;
            self.wait()?;
            let mut time = 0.0;
            // SAFETY: both events were recorded, and the stream was waited for.
            check("cuEventElapsedTime", unsafe { sys::cuEventElapsedTime_v2(&raw mut time, start, end) })?;
            times.push(time);
        }
        times.remove(0);
        Ok(times)
    }
}

impl Buffer {
    /// Its address on the device.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Overwrites a part.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        ensure!(offset + bytes.len() <= self.bytes, "a copy beyond the end of a buffer");
        let to = self.address + offset as u64;
        // SAFETY: the part is inside the buffer, as was just checked.
        check("cuMemcpyHtoD", unsafe { sys::cuMemcpyHtoD_v2(to, bytes.as_ptr().cast(), bytes.len()) })
    }

    /// Another buffer with the same bytes.
    pub(crate) fn duplicate(&self, gpu: &Gpu) -> Result<Self> {
        let copy = gpu.allocate(self.bytes)?;
        // SAFETY: both buffers are of this size.
        check("cuMemcpyDtoD", unsafe { sys::cuMemcpyDtoD_v2(copy.address, self.address, self.bytes) })?;
        Ok(copy)
    }

    /// All bytes.
    pub(crate) fn download(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.bytes];
        // SAFETY: there is room for all of the buffer.
        let status = unsafe { sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), self.address, self.bytes) };
        check("cuMemcpyDtoH", status).context("reading a result")?;
        Ok(bytes)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the buffer was allocated and is not used after this. A failure leaks it.
        let _ = unsafe { sys::cuMemFree_v2(self.address) };
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the graph was instantiated and is not used after this. A failure leaks it.
        let _ = unsafe { sys::cuGraphExecDestroy(self.0) };
    }
}
