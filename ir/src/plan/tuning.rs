//! The tuning file: what `tritter tune` measured on a machine, and `tritterc --tuning` takes its rates from.
//!
//! All rates are whole numbers a microsecond, so that the same file is the same compilation to the last bit. A file is read whole and checked
//! whole: every number that no machine can have is reported, not only the first.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The version of the tuning file that this build writes and reads.
pub const TUNING_VERSION: u32 = 2;

/// The usual file name.
pub const TUNING: &str = "tuning.ron";

/// The largest rate that is believed: 10^15 a second.
pub const MAX_RATE: u64 = 1_000_000_000;

/// The longest step that is believed: a tenth of a second.
pub const MAX_STEP_NS: u64 = 100_000_000;

/// The most threads that are believed.
pub const MAX_THREADS: u32 = 65_536;

/// How fast a machine was measured to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// [`TUNING_VERSION`] of the build that wrote it.
    pub version: u32,
    /// The target that the machine is best served with, such as `x86_64:avx512vnni`.
    pub target: String,
    /// Threads that measured.
    pub threads: u32,
    /// Bytes that all threads together read from memory in a microsecond.
    pub read_bytes_per_us: u64,
    /// Nanoseconds to start a step on all threads and to end it.
    pub step_ns: u64,
    /// Elementwise f32 operations of one thread in a microsecond, from cache.
    pub elementwise_per_us: u64,
    /// Rows of the kernel table that the machine can run.
    pub kernels: Vec<KernelRate>,
}

/// The speed of one row of the kernel table, while all threads run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelRate {
    /// The row.
    pub kernel: String,
    /// Multiply-accumulates of one thread in a microsecond with one token: of matmuls of the best instruction set with weights from memory, of all
    /// else from cache.
    pub one_macs_per_us: u64,
    /// The same with many tokens, from cache; none if the row takes only one.
    pub many_macs_per_us: Option<u64>,
}

/// One thing that is wrong with a tuning file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TuningError {
    /// Another version of the format.
    #[error("the tuning file has version {found}, this build reads {TUNING_VERSION}; run `tritter tune` again")]
    Version {
        /// The version found.
        found: u32,
    },
    /// Not RON, or not a tuning file.
    #[error("the tuning file is damaged at {line}:{col}: {message}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        col: usize,
        /// What the reader says.
        message: String,
    },
    /// A number that no machine has.
    #[error("`{field}` is {found}, it must be between {min} and {max}")]
    Nonsense {
        /// Which number: its field, with the kernel where there is one.
        field: String,
        /// The number.
        found: u64,
        /// The smallest that is believed.
        min: u64,
        /// The largest that is believed.
        max: u64,
    },
    /// The target is no name.
    #[error("`{found}` is not the name of a target")]
    Target {
        /// What stands there.
        found: String,
    },
    /// A kernel that stands there twice.
    #[error("kernel `{kernel}` is there twice")]
    Twice {
        /// The kernel.
        kernel: String,
    },
}

/// All that is wrong. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TuningErrors(pub Vec<TuningError>);

impl fmt::Display for TuningErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, error) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for TuningErrors {}

impl Tuning {
    /// The file's text, the same for the same rates.
    pub fn to_ron(&self) -> String {
        let config = ron::ser::PrettyConfig::new().depth_limit(2).indentor("  ").struct_names(false);
        let mut text = ron::ser::to_string_pretty(self, config).expect("rates are plain data, which always serialises");
        text.push('\n');
        text
    }

    /// Reads and checks a file's text.
    ///
    /// # Errors
    ///
    /// If it is of another version or damaged; else every number that is nonsense.
    pub fn from_ron(text: &str) -> Result<Self, TuningErrors> {
        /// The one field that every version has; others are skipped, so a newer file is called newer, not damaged.
        #[derive(Deserialize)]
        struct VersionOnly {
            version: u32,
        }
        let syntax = |error: ron::error::SpannedError| {
            TuningErrors(vec![TuningError::Syntax {
                line: error.span.start.line,
                col: error.span.start.col,
                message: error.code.to_string(),
            }])
        };
        let VersionOnly { version } = ron::from_str(text).map_err(syntax)?;
        if version != TUNING_VERSION {
            return Err(TuningErrors(vec![TuningError::Version { found: version }]));
        }
        let tuning: Tuning = ron::from_str(text).map_err(syntax)?;
        let errors = tuning.problems();
        if errors.is_empty() { Ok(tuning) } else { Err(TuningErrors(errors)) }
    }

    /// Every number that no machine can have.
    pub fn problems(&self) -> Vec<TuningError> {
        let mut errors = Vec::new();
        let mut within = |field: &str, found: u64, min: u64, max: u64| {
            if found < min || max < found {
                errors.push(TuningError::Nonsense { field: field.to_owned(), found, min, max });
            }
        };
        within("threads", self.threads.into(), 1, MAX_THREADS.into());
        within("read_bytes_per_us", self.read_bytes_per_us, 1, MAX_RATE);
        // A single thread starts its steps for next to nothing.
        within("step_ns", self.step_ns, 0, MAX_STEP_NS);
        within("elementwise_per_us", self.elementwise_per_us, 1, MAX_RATE);
        for rate in &self.kernels {
            within(&format!("one_macs_per_us of {}", rate.kernel), rate.one_macs_per_us, 1, MAX_RATE);
            if let Some(many) = rate.many_macs_per_us {
                within(&format!("many_macs_per_us of {}", rate.kernel), many, 1, MAX_RATE);
            }
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-');
        if self.target.is_empty() || !self.target.chars().all(is_name) {
            errors.push(TuningError::Target { found: self.target.clone() });
        }
        let mut seen = BTreeSet::new();
        for rate in self.kernels.iter().filter(|rate| !seen.insert(&rate.kernel)) {
            errors.push(TuningError::Twice { kernel: rate.kernel.clone() });
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuning() -> Tuning {
        Tuning {
            version: TUNING_VERSION,
            target: "x86_64:avx512vnni".to_owned(),
            threads: 2,
            read_bytes_per_us: 29_500,
            step_ns: 900,
            elementwise_per_us: 9_000,
            kernels: vec![
                KernelRate { kernel: "a".to_owned(), one_macs_per_us: 180_000, many_macs_per_us: None },
                KernelRate { kernel: "b".to_owned(), one_macs_per_us: 90_000, many_macs_per_us: Some(470_000) },
            ],
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let text = tuning().to_ron();
        assert_eq!(Tuning::from_ron(&text), Ok(tuning()), "{text}");
        assert_eq!(Tuning::from_ron(&text).unwrap().to_ron(), text);
    }

    #[test]
    fn all_nonsense_is_reported_at_once() {
        let mut wrong = tuning();
        wrong.threads = 0;
        wrong.read_bytes_per_us = 0;
        wrong.step_ns = MAX_STEP_NS + 1;
        wrong.elementwise_per_us = MAX_RATE + 1;
        wrong.target = "x86 64".to_owned();
        wrong.kernels[0].one_macs_per_us = 0;
        wrong.kernels[1].many_macs_per_us = Some(u64::MAX);
        wrong.kernels.push(wrong.kernels[0].clone());
        let errors = Tuning::from_ron(&wrong.to_ron()).unwrap_err();
        assert_eq!(errors.0.len(), 9, "{errors}");
        assert!(errors.to_string().contains("`many_macs_per_us of b` is 18446744073709551615"), "{errors}");
    }

    #[test]
    fn another_version_is_called_that_whatever_else_it_holds() {
        let text = "(version: 9, planets: [3])";
        assert_eq!(Tuning::from_ron(text), Err(TuningErrors(vec![TuningError::Version { found: 9 }])));
        let text = tuning().to_ron().replace("threads", "strands");
        assert!(matches!(Tuning::from_ron(&text).unwrap_err().0[..], [TuningError::Syntax { line: 4, .. }]));
        assert!(matches!(Tuning::from_ron("").unwrap_err().0[..], [TuningError::Syntax { .. }]));
    }

    /// Every text is either refused, or means rates that are written as another text of the same meaning. Texts are a good one with bytes
    /// changed, dropped, doubled and moved.
    #[test]
    fn damaged_files_are_refused_or_make_sense() {
        let good = tuning().to_ron().into_bytes();
        let mut state = 1_u64;
        let mut below = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % bound.max(1)
        };
        let mut accepted = 0;
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..1 + below(3) {
                let at = below(bytes.len());
                let until = (at + below(12)).min(bytes.len());
                match below(5) {
                    0 => bytes[at] = below(256) as u8,
                    1 => bytes[at] = b"0123456789-(),:\"[]"[below(18)],
                    2 => drop(bytes.drain(at..until)),
                    3 => {
                        let part = bytes[at..until].to_vec();
                        let to = below(bytes.len());
                        bytes.splice(to..to, part);
                    }
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let text = String::from_utf8_lossy(&bytes);
            match Tuning::from_ron(&text) {
                Ok(read) => {
                    accepted += 1;
                    assert_eq!(read.problems(), []);
                    assert_eq!(Tuning::from_ron(&read.to_ron()), Ok(read));
                }
                Err(errors) => assert!(!errors.0.is_empty() && !errors.to_string().is_empty(), "{text}"),
            }
        }
        assert!(0 < accepted, "some changes are of a digit only");
    }
}
