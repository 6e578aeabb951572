//! Which hardware a program is compiled for, and how fast it is taken to be.
//!
//! A target prints as its architecture and its instruction set, `x86_64:avx2`, or as CUDA and a compute capability, `cuda:sm_90a`, and parses
//! back. `native` is resolved when it is parsed, so
//! nothing downstream knows the word: the plan names a concrete target. The [`Machine`] is what the cost model weighs bytes against
//! operations with. It steers choices between equal programs, never what they compute.

pub mod machine;
pub mod cards;

use std::fmt;
use std::str::FromStr;

use kernels::{Arch, Isa, Sm};

pub use cards::{Card, Link};
pub use machine::{Machine, ProductRate, TuningMismatch};

/// A device to compile for.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    hardware: Hardware,
    /// How fast it is.
    pub machine: Machine,
}

/// What runs the code. An instruction set is always one of its architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hardware {
    /// A CPU.
    Cpu {
        /// Its architecture.
        arch: Arch,
        /// Its instruction set.
        isa: Isa,
    },
    /// A GPU of NVIDIA's, of this compute capability.
    Cuda(Sm),
}

/// Why a target could not be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Nothing of this name.
    #[error("there is no target `{found}`; known are {}", Target::NAMES.join(", "))]
    Unknown {
        /// What was asked for.
        found: String,
    },
    /// An instruction set of another architecture.
    #[error("`{isa}` belongs to {}, not to {arch}", isa.arch().map_or("any architecture".to_owned(), |arch| arch.to_string()))]
    Foreign {
        /// The architecture asked for.
        arch: Arch,
        /// The instruction set asked for.
        isa: Isa,
    },
}

impl Target {
    /// What can be parsed.
    pub const NAMES: &'static [&'static str] = &[
        "x86_64:avx512vnni",
        "x86_64:avx2",
        "x86_64",
        "aarch64:neon",
        "aarch64",
        "scalar",
        "native",
        "cuda:sm_80",
        "cuda:sm_86",
        "cuda:sm_89",
        "cuda:sm_90a",
        "cuda:sm_100",
        "cuda:sm_120",
    ];

    /// A target with the machine that is guessed for its instruction set.
    ///
    /// # Errors
    ///
    /// If the instruction set is of another architecture.
    pub fn new(arch: Arch, isa: Isa) -> Result<Self, TargetError> {
        match isa.arch() {
            Some(home) if home != arch => Err(TargetError::Foreign { arch, isa }),
            _ => Ok(Self::of(Hardware::Cpu { arch, isa })),
        }
    }

    /// A GPU, with the machine that is guessed for it.
    pub fn cuda(sm: Sm) -> Self {
        Self::of(Hardware::Cuda(sm))
    }

    fn of(hardware: Hardware) -> Self {
        Self { hardware, machine: Machine::guess(hardware) }
    }

    /// The same target on a machine that was measured.
    pub fn with_machine(self, machine: Machine) -> Self {
        Self { machine, ..self }
    }

    /// The same target on the machine of a tuning file.
    ///
    /// # Errors
    ///
    /// If the file was measured for another target or with other kernels; every disagreement is named.
    pub fn with_tuning(self, tuning: &ir::plan::Tuning) -> Result<Self, TuningMismatch> {
        let machine = Machine::from_tuning(&self, tuning)?;
        Ok(self.with_machine(machine))
    }

    /// The best that the running CPU has.
    pub fn native() -> Self {
        let isa = Isa::best_available();
        Self::of(Hardware::Cpu { arch: isa.arch().unwrap_or_else(host), isa })
    }

    /// What it is.
    pub fn hardware(&self) -> Hardware {
        self.hardware
    }

    /// The instruction set, if it is a CPU.
    pub fn isa(&self) -> Option<Isa> {
        match self.hardware {
            Hardware::Cpu { isa, .. } => Some(isa),
            Hardware::Cuda(_) => None,
        }
    }
}

/// The architecture that plain `scalar` means: that of this program, or x86 where no kernel is written for it.
fn host() -> Arch {
    Arch::host().unwrap_or(Arch::X86_64)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.hardware.fmt(f)
    }
}

impl fmt::Display for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hardware::Cpu { arch, isa: Isa::Scalar } => arch.fmt(f),
            Hardware::Cpu { arch, isa } => write!(f, "{arch}:{isa}"),
            Hardware::Cuda(sm) => write!(f, "cuda:{sm}"),
        }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let unknown = || TargetError::Unknown { found: text.to_owned() };
        match text {
            "native" => return Ok(Target::native()),
            "scalar" => return Target::new(host(), Isa::Scalar),
            _ => {}
        }
        if let Some(sm) = text.strip_prefix("cuda:") {
            return sm.parse().map(Target::cuda).map_err(|()| unknown());
        }
        let (arch, isa) = match text.split_once(':') {
            Some((arch, isa)) => (arch, isa.parse().map_err(|()| unknown())?),
            None => (text, Isa::Scalar),
        };
        let arch = [Arch::X86_64, Arch::Aarch64].into_iter().find(|known| known.name() == arch);
        Target::new(arch.ok_or_else(unknown)?, isa)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_parses_back() {
        for name in Target::NAMES {
            let target: Target = name.parse().unwrap();
            assert_eq!(target.to_string().parse::<Target>().unwrap(), target, "{name}");
            assert!(target.to_string() != "native" && target.to_string() != "scalar");
        }
        assert_eq!("x86_64".parse::<Target>().unwrap().isa(), Some(Isa::Scalar));
        assert_eq!("x86_64:avx512vnni".parse::<Target>().unwrap().to_string(), "x86_64:avx512vnni");
    }

    #[test]
    fn what_is_none_is_refused() {
        for name in [
            "",
            "x86_64:",
            "x86_64:sse9",
            "riscv64",
            "avx2",
            "x86_64:avx2:avx2",
            "cuda",
            "cuda:",
            "cuda:sm_90",
            "cuda:90a",
        ] {
            assert!(matches!(name.parse::<Target>(), Err(TargetError::Unknown { .. })), "{name}");
        }
        let foreign = "aarch64:avx2".parse::<Target>();
        assert_eq!(foreign, Err(TargetError::Foreign { arch: Arch::Aarch64, isa: Isa::Avx2 }));
    }
}
