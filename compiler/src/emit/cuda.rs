//! The kernels of a CUDA target: sources, and the cubins that NVRTC makes of them.

use ir::plan::KernelId;
use kernels::cuda::UnpackParcel;
use kernels::{Sm, Specialised};

use super::cuda_c::{self, fused::Fused};
use super::nvrtc::{Nvrtc, NvrtcError, Resources};
use crate::lower::nest::Lowered;

/// Why there are no kernels.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// NVRTC is missing, or refused one.
    #[error(transparent)]
    Nvrtc(#[from] NvrtcError),
    /// Registers ran out, and what did not fit goes to memory and back.
    #[error(
        "registers run out in kernels for {sm}, which makes them slow:{}\nWith --allow-spills they are taken as they are; another target or \
         context may do without",
        .kernels.iter().map(spill).collect::<String>()
    )]
    Spills {
        /// The target.
        sm: Sm,
        /// The kernels, and what each uses.
        kernels: Vec<(String, Resources)>,
    },
}

fn spill((kernel, used): &(String, Resources)) -> String {
    let Resources { registers, spill_store_bytes, spill_load_bytes, .. } = used;
    format!(
        "\n  {kernel}: {registers} registers, {spill_store_bytes} bytes of a thread stored and {spill_load_bytes} loaded"
    )
}

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

/// All kernels that a plan calls. Plain rows may spill: they are for any sizes, and not for speed; others may if `allow_spills`.
///
/// # Errors
///
/// If NVRTC refuses one, or registers run out; then all that spill are named.
pub fn assemble(
    nests: &[(KernelId, Lowered)],
    specialised: &[(KernelId, Specialised)],
    fused: &[(KernelId, Fused)],
    packs_copies: bool,
    sm: Sm,
    nvrtc: &Nvrtc,
    allow_spills: bool,
) -> Result<Vec<CudaKernel>, CudaError> {
    let head = |from: &str| format!("// target: cuda:{sm}\n// {from}\n");
    let generated = nests.iter().map(|(_, lowered)| {
        let text = head("generated from") + &cuda_c::source(&lowered.nest);
        (lowered.nest.name.clone(), lowered.nest.name.clone(), text, false)
    });
    let rows = specialised.iter().map(|(_, special)| {
        let text = head("a row of the kernel table") + &special.source();
        (special.label(), special.desc.name.to_owned(), text, special.desc.is_plain())
    });
    let fused = fused.iter().map(|(_, fused)| {
        let text = head(&format!("generated around {}", fused.special.label())) + &fused.source();
        (fused.name.clone(), fused.name.clone(), text, false)
    });
    let parcels = packs_copies.then(|| {
        let name = UnpackParcel::NAME.to_owned();
        (name.clone(), name, head("what unpacks streamed weights") + &UnpackParcel::source(), false)
    });
    let (mut kernels, mut spilling) = (Vec::new(), Vec::new());
    for (name, entry, source, may_spill) in generated.chain(rows).chain(fused).chain(parcels) {
        let cubin = nvrtc.compile(&format!("{name}.cu"), &source, &sm.to_string())?;
        let resources = cubin.kernels.into_iter().find(|kernel| kernel.kernel == entry).unwrap_or_default();
        if resources.spills() && !may_spill && !allow_spills {
            spilling.push((name.clone(), resources.clone()));
        }
        kernels.push(CudaKernel { name, source, cubin: cubin.bytes, resources });
    }
    if spilling.is_empty() { Ok(kernels) } else { Err(CudaError::Spills { sm, kernels: spilling }) }
}
