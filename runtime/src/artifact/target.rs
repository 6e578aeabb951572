//! Which of an artifact's targets is run.

use kernels::{Isa, Sm};

use super::CUDA_TARGETS;
use super::check;
use crate::device::any::DeviceKind;
use crate::device::cuda;
use crate::error::{ArtifactProblem, RuntimeError};

/// The position of the best target that this machine has: a GPU's before a CPU's, then the one that is made for the most. The only one of an artifact
/// is taken whatever it is; whether it can be run is said when that is tried.
///
/// # Errors
///
/// [`RuntimeError::NoTarget`] if there are several and none is here, with the reason for each.
pub(super) fn choose(targets: &[&str], wanted: Option<DeviceKind>) -> Result<usize, RuntimeError> {
    if targets.len() < 2 {
        return Ok(0);
    }
    // A driver is asked only if it matters.
    let needs_gpu = wanted != Some(DeviceKind::Cpu) && targets.iter().any(|target| target.starts_with(CUDA_TARGETS));
    let gpu = if needs_gpu { Some(cuda::capability()) } else { None };
    let ranks: Vec<Result<Rank, String>> = targets.iter().map(|target| rank(target, wanted, gpu.as_ref())).collect();
    let best = ranks.iter().enumerate().filter_map(|(position, rank)| Some((rank.as_ref().ok()?, position)));
    // Of equals, the first.
    match best.max_by_key(|&(rank, position)| (rank, std::cmp::Reverse(position))) {
        Some((_, position)) => Ok(position),
        None => {
            let reasons =
                targets.iter().zip(ranks).filter_map(|(target, rank)| Some(((*target).to_owned(), rank.err()?)));
            Err(RuntimeError::NoTarget { targets: reasons.collect() })
        }
    }
}

/// How good a target is, better ones larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Cpu(u8),
    /// The number of the compute capability, and whether it is the specific one.
    Cuda(u16, bool),
}

fn rank(
    target: &str,
    wanted: Option<DeviceKind>,
    gpu: Option<&Result<(u32, u32), RuntimeError>>,
) -> Result<Rank, String> {
    let kind = if target.starts_with(CUDA_TARGETS) { DeviceKind::Cuda } else { DeviceKind::Cpu };
    if let Some(wanted) = wanted.filter(|wanted| *wanted != kind) {
        return Err(format!("it is not for {}", wanted.name()));
    }
    match target.strip_prefix(CUDA_TARGETS) {
        Some(name) => {
            let sm: Sm = name.parse().map_err(|()| "this version does not know it".to_owned())?;
            match gpu {
                Some(Ok((major, minor))) if sm.runs_on(*major, *minor) => Ok(Rank::Cuda(sm.number, sm.is_specific)),
                Some(Ok((major, minor))) => Err(format!("the GPU has compute capability {major}.{minor}")),
                Some(Err(error)) => Err(error.to_string()),
                None => Err("no GPU was asked for".to_owned()),
            }
        }
        None => {
            let mut problems = Vec::new();
            check::target_of(target, &mut problems);
            let reason = |problem: &ArtifactProblem| match problem {
                ArtifactProblem::Target { reason, .. } => reason.clone(),
                other => other.to_string(),
            };
            match problems.first() {
                Some(problem) => Err(reason(problem)),
                None => {
                    let isas = target.split_once(':').map_or("", |(_, isas)| isas);
                    let ranks = isas.split(',').filter_map(|isa| isa.parse::<Isa>().ok()).map(Isa::rank);
                    Ok(Rank::Cpu(ranks.max().unwrap_or(0)))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rank on a machine with this GPU.
    fn of(target: &str, wanted: Option<DeviceKind>, gpu: (u32, u32)) -> Result<Rank, String> {
        rank(target, wanted, Some(&Ok(gpu)))
    }

    #[test]
    fn the_best_of_what_runs_is_taken() {
        let hopper = |target| of(target, None, (9, 0));
        assert_eq!(hopper("cuda:sm_90a"), Ok(Rank::Cuda(90, true)));
        // Code for another major version does not run.
        assert!(hopper("cuda:sm_80").is_err() && hopper("cuda:sm_100").is_err() && hopper("cuda:sm_1").is_err());
        let ada = |target| of(target, None, (8, 9));
        assert!(ada("cuda:sm_80") < ada("cuda:sm_86") && ada("cuda:sm_86") < ada("cuda:sm_89"));
        assert!(of(std::env::consts::ARCH, None, (8, 9)) < ada("cuda:sm_80"), "a GPU before a CPU");
        assert!(of("cuda:sm_80", Some(DeviceKind::Cpu), (8, 0)).is_err());
        assert!(of(std::env::consts::ARCH, Some(DeviceKind::Cuda), (8, 0)).is_err());
    }

    #[test]
    fn the_only_target_is_taken_and_of_several_that_are_not_here_each_is_named() {
        assert!(matches!(choose(&["riscv64"], None), Ok(0)));
        let error = choose(&["riscv64", "s390x"], Some(DeviceKind::Cpu)).unwrap_err();
        let RuntimeError::NoTarget { targets } = error else { panic!("{error}") };
        assert_eq!(targets.len(), 2);
        assert!(matches!(choose(&["riscv64", std::env::consts::ARCH], Some(DeviceKind::Cpu)), Ok(1)));
    }
}
