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

/// All kernels that a plan calls.
///
/// # Errors
///
/// If NVRTC refuses one.
pub fn assemble(
    nests: &[(KernelId, Lowered)],
    specialised: &[(KernelId, Specialised)],
    sm: Sm,
    nvrtc: &Nvrtc,
) -> Result<Vec<CudaKernel>, NvrtcError> {
    let head = |from: &str| format!("// target: cuda:{sm}\n// {from}\n");
    let generated = nests.iter().map(|(_, lowered)| {
        let text = head("generated from") + &cuda_c::source(&lowered.nest);
        (lowered.nest.name.clone(), lowered.nest.name.clone(), text)
    });
    let rows = specialised.iter().map(|(_, special)| {
        let text = head("a row of the kernel table") + &special.source();
        (special.label(), special.desc.name.to_owned(), text)
    });
    let mut kernels = Vec::new();
    for (name, entry, source) in generated.chain(rows) {
        let cubin = nvrtc.compile(&format!("{name}.cu"), &source, &sm.to_string())?;
        let resources = cubin.kernels.into_iter().find(|kernel| kernel.kernel == entry).unwrap_or_default();
        kernels.push(CudaKernel { name, source, cubin: cubin.bytes, resources });
    }
    Ok(kernels)
}
