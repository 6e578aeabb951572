//! GPUs, as the management library of their driver knows them.

use std::ffi::OsStr;

use nvml_wrapper::Nvml;

/// A GPU of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gpu {
    /// What its driver calls it.
    pub(crate) name: String,
    /// Its compute capability: major and minor version.
    pub(crate) capability: (u32, u32),
    /// Bytes of its memory.
    pub(crate) total: u64,
    /// Those that nobody uses now.
    pub(crate) free: u64,
}

/// The GPUs of this machine, in the driver's order; none where there is no driver.
pub(crate) fn gpus() -> Vec<Gpu> {
    // Only the name with a version is there without a toolkit for developers.
    let versioned = Nvml::builder().lib_path(OsStr::new("libnvidia-ml.so.1")).init();
    let Ok(nvml) = versioned.or_else(|_| Nvml::init()) else { return Vec::new() };
    let gpu = |index| {
        let device = nvml.device_by_index(index).ok()?;
        let capability = device.cuda_compute_capability().ok()?;
        let memory = device.memory_info().ok()?;
        Some(Gpu {
            name: device.name().ok()?,
            capability: (u32::try_from(capability.major).ok()?, u32::try_from(capability.minor).ok()?),
            total: memory.total,
            free: memory.free,
        })
    };
    (0..nvml.device_count().unwrap_or(0)).filter_map(gpu).collect()
}
