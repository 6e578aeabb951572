//! What memory this machine has, before a device is touched: its GPUs by their driver, its own by its system.

pub(crate) mod formula;
pub(crate) mod gpu;
pub(crate) mod host;

pub(crate) use formula::Desktop;
pub(crate) use gpu::Gpu;
pub(crate) use host::HostMemory;

/// Bytes of a GiB.
const GIB: f64 = (1_u64 << 30) as f64;
