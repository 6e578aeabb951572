//! Which CPU a program is compiled for, and how fast it is taken to be.
//!
//! A target prints as its architecture and its instruction set, `x86_64:avx2`, and parses back. `native` is resolved when it is parsed, so
//! nothing downstream knows the word: the plan names a concrete target. The [`Machine`] is what the cost model weighs bytes against
//! operations with. It steers choices between equal programs, never what they compute.

use std::fmt;
use std::str::FromStr;

use kernels::{Arch, Isa};

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

/// What the cost model knows of a machine. Every number is a rate that can be measured and put in its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Gigabytes a second that all threads together read from memory.
    pub read_gb_per_s: f64,
    /// 10^9 multiplications of int8 by ternary, added up, a second and thread.
    pub int8_gmac_per_s: f64,
    /// 10^9 multiplications of f32 by weights of any type, added up, a second and thread.
    pub f32_gmac_per_s: f64,
    /// 10^9 plain elementwise operations on f32 a second and thread.
    pub f32_gflop_per_s: f64,
    /// Microseconds to start one step.
    pub launch_us: f64,
    /// Microseconds until all threads have met after a step.
    pub barrier_us: f64,
    /// Threads that work.
    pub threads: u32,
}

impl Machine {
    /// What is assumed before anything is measured: all numbers here are **guesses**, for a desktop of four cores with two channels of
    /// memory. Nothing but the choice between equal programs hangs on them.
    pub fn guess(isa: Isa) -> Self {
        let (int8_gmac_per_s, f32_gmac_per_s, f32_gflop_per_s) = match isa {
            Isa::Scalar => (4.0, 1.0, 1.0),
            Isa::Avx2 => (60.0, 15.0, 12.0),
            Isa::Avx512Vnni => (200.0, 30.0, 20.0),
            Isa::Neon => (60.0, 12.0, 8.0),
        };
        Self {
            read_gb_per_s: 20.0,
            int8_gmac_per_s,
            f32_gmac_per_s,
            f32_gflop_per_s,
            launch_us: 0.5,
            barrier_us: 1.5,
            threads: 4,
        }
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
