//! Which CPU a program is compiled for, and how fast it is taken to be.
//!
//! A target prints as its architecture and its instruction set, `x86_64:avx2`, and parses back. `native` is resolved when it is parsed, so
//! nothing downstream knows the word: the plan names a concrete target. The [`Machine`] is what the cost model weighs bytes against
//! operations with. It steers choices between equal programs, never what they compute.

pub mod machine;

use std::fmt;
use std::str::FromStr;

use kernels::{Arch, Isa};

pub use machine::{Machine, ProductRate, TuningMismatch};

/// A CPU to compile for.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    arch: Arch,
    isa: Isa,
    /// How fast it is.
    pub machine: Machine,
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
    pub const NAMES: &'static [&'static str] =
        &["x86_64:avx512vnni", "x86_64:avx2", "x86_64", "aarch64:neon", "aarch64", "scalar", "native"];

    /// A target with the machine that is guessed for its instruction set.
    ///
    /// # Errors
    ///
    /// If the instruction set is of another architecture.
    pub fn new(arch: Arch, isa: Isa) -> Result<Self, TargetError> {
        match isa.arch() {
            Some(home) if home != arch => Err(TargetError::Foreign { arch, isa }),
            _ => Ok(Self { arch, isa, machine: Machine::guess(isa) }),
        }
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
        let arch = isa.arch().unwrap_or_else(host);
        Self { arch, isa, machine: Machine::guess(isa) }
    }

    /// The architecture.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

/// The architecture that plain `scalar` means: that of this program, or x86 where no kernel is written for it.
fn host() -> Arch {
    Arch::host().unwrap_or(Arch::X86_64)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.isa {
            Isa::Scalar => write!(f, "{}", self.arch),
            isa => write!(f, "{}:{isa}", self.arch),
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
        assert_eq!("x86_64".parse::<Target>().unwrap().isa(), Isa::Scalar);
        assert_eq!("x86_64:avx512vnni".parse::<Target>().unwrap().to_string(), "x86_64:avx512vnni");
    }

    #[test]
    fn what_is_none_is_refused() {
        for name in ["", "x86_64:", "x86_64:sse9", "riscv64", "avx2", "x86_64:avx2:avx2"] {
            assert!(matches!(name.parse::<Target>(), Err(TargetError::Unknown { .. })), "{name}");
        }
        let foreign = "aarch64:avx2".parse::<Target>();
        assert_eq!(foreign, Err(TargetError::Foreign { arch: Arch::Aarch64, isa: Isa::Avx2 }));
    }
}
