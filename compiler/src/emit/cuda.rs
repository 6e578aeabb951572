//! The kernels of a CUDA target: sources, and the cubins that NVRTC makes of them.

use ir::plan::KernelId;
use kernels::{Sm, Specialised};

use super::cuda_c;
use super::nvrtc::{Nvrtc, NvrtcError, Resources};
use crate::lower::nest::Lowered;

/// One kernel of an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaKernel {
    /// Its name in the plan, and that of its files.
    pub name: String,
    /// What was compiled.
    pub source: String,
    /// The machine code.
    pub cubin: Vec<u8>,
    /// What it uses of a multiprocessor.
    pub resources: Resources,
}

/// Why a CUDA kernel could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CudaEmitError {
    /// NVRTC is missing, or refused a source.
    #[error(transparent)]
    Nvrtc(#[from] NvrtcError),
    /// A kernel that was written for speed and runs out of registers, so that it would be slow for a reason that nobody sees.
    #[error("internal error: kernel `{kernel}` spills {stores} bytes to memory and reads {loads} back")]
    Spill {
        /// The kernel.
        kernel: String,
        /// Bytes that a thread stores.
        stores: u32,
        /// Bytes that a thread loads.
        loads: u32,
    },
}

/// All kernels that a plan calls.
///
/// # Errors
///
/// If NVRTC refuses one, or one does not fit into registers.
pub fn assemble(
    nests: &[(KernelId, Lowered)],
    specialised: &[(KernelId, Specialised)],
    sm: Sm,
    nvrtc: &Nvrtc,
) -> Result<Vec<CudaKernel>, CudaEmitError> {
    let head = |from: &str| format!("// target: cuda:{sm}\n// {from}\n");
    let generated = nests.iter().map(|(_, lowered)| {
        let text = head("generated from") + &cuda_c::source(&lowered.nest);
        (lowered.nest.name.clone(), lowered.nest.name.clone(), text, true)
    });
    let rows = specialised.iter().map(|(_, special)| {
        let text = head("a row of the kernel table") + &special.source();
        (special.label(), special.desc.name.to_owned(), text, special.desc.may_spill())
    });
    let mut kernels = Vec::new();
    for (name, entry, source, may_spill) in generated.chain(rows) {
        let cubin = nvrtc.compile(&format!("{name}.cu"), &source, &sm.to_string())?;
        let resources = cubin.kernels.into_iter().find(|kernel| kernel.kernel == entry).unwrap_or_default();
        if resources.spills() && !may_spill {
            let (stores, loads) = (resources.spill_store_bytes, resources.spill_load_bytes);
            return Err(CudaEmitError::Spill { kernel: name, stores, loads });
        }
        kernels.push(CudaKernel { name, source, cubin: cubin.bytes, resources });
    }
    Ok(kernels)
}
