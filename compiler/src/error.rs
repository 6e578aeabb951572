//! Why something could not be compiled.

use ir::plan::{BudgetError, PlanErrors};
use ir::verify::VerifyErrors;

use crate::emit::EmitError;
use crate::emit::cuda::CudaError;
use crate::emit::plan::PlanEmitError;
use crate::rewrite::RewriteError;

/// Why a program could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The optimiser failed.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    /// A pass broke the program. Always a bug in tritter.
    #[error("internal error: pass `{pass}` produced an invalid program:\n{errors}")]
    Pass {
        /// The pass.
        pass: &'static str,
        /// What is wrong with its result.
        errors: VerifyErrors,
    },
    /// No plan could be made.
    #[error(transparent)]
    Plan(#[from] PlanEmitError),
    /// No code could be generated.
    #[error(transparent)]
    Emit(#[from] EmitError),
    /// NVRTC is missing, a CUDA kernel could not be compiled, or its registers run out.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The plan takes more memory than it may.
    #[error("{}\nmake the context, the chunk or the sequences smaller, stream more layers, or take a smaller format of caches", lines(.0))]
    Budget(Vec<BudgetError>),
    /// The plan breaks its own rules. Always a bug in tritter.
    #[error("internal error: the plan is not consistent:\n{0}")]
    Check(#[from] PlanErrors),
}

fn lines(errors: &[BudgetError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
