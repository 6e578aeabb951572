//! The plan: all that the runtime needs to know to run a program, as one readable file.
//!
//! A plan is a program over buffers. There are two address spaces: the *weights*, a read-only file, and the *slab*, which the runtime allocates
//! once. A [`Placement`] says where the weights are while calls run. Buffers have fixed places in them. [`Phase`]s are lists of [`Step`]s for a range of tokens in a call; all share
//! weights, states, inputs and outputs, and each lays its scratch buffers out anew in the same part of the slab.
//!
//! These are the only types of the project that are stored on disk, hence the version, and the one check that writer and reader both run.

pub mod certificate;
pub mod check;
pub mod expr;
pub mod grid;
pub mod manifest;
pub mod placement;
pub mod predict;
pub mod training;
pub mod transit;
pub mod tuning;

use serde::{Deserialize, Serialize};

use crate::dtype::DType;
use crate::entity::id;

pub use certificate::{Budget, BudgetError, Certificate};
pub use check::{PlanError, PlanErrors, check};
pub use expr::Expr;
pub use grid::Grid;
pub use manifest::{Manifest, Part};
pub use placement::{Home, Placement, Segment, Slot, Source, Transit};
pub use predict::{CallSizes, CallTime};
pub use training::Training;
pub use tuning::{KernelRate, Tuning, TuningError, TuningErrors};

/// The version of the artifact format that this build writes and reads.
pub const VERSION: u32 = 8;

/// Every buffer starts at a multiple of this many bytes: a cache line, and the widest vector.
pub const ALIGNMENT: u64 = 64;

/// The symbol of a repeat's round inside its steps.
pub const ROUND: &str = "layer";

id!(
    /// A buffer of a plan.
    BufferId,
    "b"
);

id!(
    /// A kernel of a plan.
    KernelId,
    "k"
);

/// A whole plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`VERSION`] of the build that wrote it.
    pub version: u32,
    /// The model's name.
    pub model: String,
    /// The target that the kernels were chosen and generated for, such as `x86_64:avx512vnni`.
    pub target: String,
    /// How fast the compiler took the machine to be. It predicts times, and changes nothing that is computed.
    pub machine: Machine,
    /// Positions of one sequence that the caches hold.
    pub context: u64,
    /// Sequences that the caches hold.
    pub sequences: u64,
    /// Token ids are below this.
    pub vocab: u64,
    /// Bytes of the slab.
    pub slab_bytes: u64,
    /// Bytes of the weights' data.
    pub weights_bytes: u64,
    /// Where the weights are while calls run.
    pub placement: Placement,
    /// What running it may take.
    pub budget: Budget,
    /// Symbols that a call resolves, with their bounds.
    pub symbols: Vec<SymbolBound>,
    /// What the caller gives, in order: `ids`, `seq`, `pos`, `span`, `rows`.
    pub inputs: Vec<Io>,
    /// What the caller gets.
    pub outputs: Vec<Io>,
    /// All buffers; their ids are their positions.
    pub buffers: Vec<Buffer>,
    /// All kernels; their ids are their positions.
    pub kernels: Vec<Kernel>,
    /// In ascending order of tokens. A call takes the first that holds its tokens.
    pub phases: Vec<Phase>,
    /// What a plan for training does beside the calls of its one phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
}

/// How fast a machine is taken to be, measured or guessed.
///
/// A call of a kernel is predicted to take `start_ns + max(moves / read_bytes_per_us, (macs + ops) / rate)`, see [`Plan::predict_ns`], and streamed
/// weights `bytes / link_bytes_per_us` and `copy_ns` for each piece, see [`Plan::copy_ns`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Threads that the rates are of.
    pub threads: u32,
    /// Bytes that all threads together read from memory in a microsecond; at least 1.
    pub read_bytes_per_us: u64,
    /// Bytes that are copied to the device in a microsecond: over the link to a GPU, or from the disk; at least 1.
    pub link_bytes_per_us: u64,
    /// Nanoseconds of a copy to the device beside its bytes.
    pub copy_ns: u64,
    /// Nanoseconds to start a step on all threads and to end it.
    pub step_ns: u64,
    /// Nanoseconds of a call of the plan beside its steps.
    pub call_ns: u64,
}

impl Machine {
    /// Nanoseconds of a copy of so many bytes to the device.
    pub fn copy_time(&self, bytes: u64) -> u64 {
        let time = u128::from(bytes) * 1000 / u128::from(self.link_bytes_per_us.max(1));
        u64::try_from(time).unwrap_or(u64::MAX).saturating_add(self.copy_ns)
    }
}

/// How fast all threads together do the work of a call, in multiply-accumulates or elementwise operations a microsecond.
///
/// Products unpack each weight once and multiply it with every token, so `n` tokens take the time of the first, and for each further one the
/// time of a token among many. As text: `360000/940000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate {
    /// With one token.
    pub one: u64,
    /// With many.
    pub many: u64,
}

impl Rate {
    /// The same for every number of tokens.
    pub fn flat(rate: u64) -> Self {
        Self { one: rate, many: rate }
    }

    /// A part of the rate for many tokens; at least 1.
    pub fn times(self, share: f64) -> Self {
        Self { many: ((self.many as f64 * share).round() as u64).max(1), ..self }
    }

    /// Nanoseconds for `work` in a call of `tokens` tokens; none if a rate is 0.
    ///
    /// With `t = work / tokens` that is `t / one + (tokens - 1) * t / many`, rounded down.
    pub fn nanoseconds(self, work: u64, tokens: u64) -> u64 {
        if self.one == 0 || self.many == 0 {
            return 0;
        }
        let tokens = u128::from(tokens.max(1));
        let each = |rate: u64, tokens_of: u128| {
            let denominator = u128::from(rate).saturating_mul(tokens);
            (u128::from(work) * 1000).saturating_mul(tokens_of) / denominator
        };
        let total = each(self.one, 1).saturating_add(each(self.many, tokens - 1));
        u64::try_from(total).unwrap_or(u64::MAX)
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.one, self.many)
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> String {
        rate.to_string()
    }
}

impl TryFrom<String> for Rate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let malformed = || format!("`{text}` is not a rate like 360000/940000");
        let (one, many) = text.split_once('/').ok_or_else(malformed)?;
        let number = |text: &str| text.parse().map_err(|_| malformed());
        Ok(Self { one: number(one)?, many: number(many)? })
    }
}

/// A symbol and the largest value that the plan has room for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SymbolBound {
    /// The symbol.
    pub name: String,
    /// Its largest value.
    pub max: u64,
}

/// An input or output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Io {
    /// Its name.
    pub name: String,
    /// Where it lies.
    #[serde(with = "text")]
    pub buffer: BufferId,
    /// Its element type.
    #[serde(with = "text")]
    pub dtype: DType,
    /// Its dimensions.
    pub shape: Vec<Expr>,
}

/// A place in the weights or in the slab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Buffer {
    /// Where it comes from: a parameter's key, a state's key, or a value's name.
    pub name: String,
    /// What it is for, and so which address space it is in.
    pub role: Role,
    /// Where it starts, in bytes; that of round 0.
    pub offset: u64,
    /// Its bytes in one round, at the largest values of the symbols.
    pub bytes: u64,
    /// How many rounds have one of their own: more than 1 for the weights and states of repeated bodies.
    pub rounds: u32,
    /// Bytes from the start in one round to the start in the next.
    pub stride: u64,
    /// Whether its bytes are four codes of 2 bits each, none of them 3, so that they can be packed more tightly where they are copied.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_ternary: bool,
}

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A tensor of the weights file; `{}` in its name stands for the round.
    Weight,
    /// Kept in the slab from call to call; zero at first.
    State,
    /// Written by the caller, in the slab.
    Input,
    /// Read by the caller, in the slab.
    Output,
    /// Holds the slots that streamed weights are copied to.
    Slots,
    /// Used within one call of one phase, in the slab. The number is the phase among [`Plan::all_phases`].
    Scratch(usize),
}

/// Code that steps call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// The name: a row of the kernel table, a symbol of `cpu.bin`, or what the kernel's files are called.
    pub name: String,
    /// Where the code is.
    pub code: Code,
}

/// Where a kernel's code is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Code {
    /// The row of the kernel table with the kernel's name, built into the runtime.
    Table,
    /// Generated code in `cpu.bin`.
    Generated {
        /// Where it starts.
        offset: u64,
        /// How long it is.
        bytes: u64,
    },
    /// A function of a cubin.
    Cuda {
        /// The file of the artifact, see [`manifest::CUBINS`].
        file: String,
        /// The function in it.
        entry: String,
        /// Threads of a block.
        threads: u32,
        /// Bytes of dynamic shared memory of a block.
        shared_bytes: u32,
        /// Whether it waits itself for the kernels before it, and so may be started before they are done.
        waits: bool,
    },
    /// A product that cuBLASLt computes, which is loaded where it runs. Its last argument is memory to work in.
    CublasLt,
}

/// The steps for calls of some range of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// `decode`, `batch`, `prefill`, or another range between them.
    pub name: String,
    /// The most tokens in a call.
    pub max_tokens: u64,
    /// What to do, in order.
    pub steps: Vec<Step>,
}

/// All that the executor can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Calls a kernel over its grid.
    Call(Call),
    /// Copies bytes.
    Copy {
        /// Source.
        from: Arg,
        /// Destination.
        to: Arg,
        /// How many.
        bytes: Expr,
    },
    /// Does steps `count` times; the symbol [`ROUND`] is the round.
    Repeat {
        /// How often.
        count: u32,
        /// Whether the rounds run from the last to the first.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        reverse: bool,
        /// What.
        steps: Vec<Step>,
    },
}

/// One call of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The kernel.
    #[serde(with = "text")]
    pub kernel: KernelId,
    /// Units of work, which any threads may do in any order; the blocks of a CUDA kernel.
    pub grid: Grid,
    /// Buffers, in the order of the kernel's signature.
    pub args: Vec<Arg>,
    /// Sizes, in the order of the kernel's signature; for a CUDA kernel those that it was not compiled for.
    pub dims: Vec<Expr>,
    /// Bytes of weights, caches and activations that the call reads and writes: what a bandwidth is computed from.
    pub moves: Expr,
    /// Multiply-accumulates of the call: what a rate is computed from.
    pub macs: Expr,
    /// Elementwise operations of the call; 0 for kernels of the table.
    pub ops: Expr,
    /// How fast the compiler took `macs + ops` to be done.
    pub rate: Rate,
    /// Nanoseconds that the call was taken to need however fast all blocks together are: to start, and for what each block does by itself.
    pub start_ns: u64,
    /// The values of the program that this computes.
    pub from: String,
}

/// How a step uses a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads it.
    Read,
    /// Writes all that later steps will read, without reading it.
    Write,
    /// Changes a part of it, and keeps the rest.
    Update,
}

/// A place in a buffer, and what is done with it. As text: `read b3`, `write b4 + layer*4096`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Arg {
    /// What is done with it.
    pub access: Access,
    /// The buffer.
    pub buffer: BufferId,
    /// Bytes from the buffer's start in round 0. The rounds of a weight or state are part of this: `layer * stride`.
    pub offset: Expr,
}

impl std::fmt::Display for Arg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let access = match self.access {
            Access::Read => "read",
            Access::Write => "write",
            Access::Update => "update",
        };
        write!(f, "{access} {}", self.buffer)?;
        if self.offset != Expr::from(0) {
            write!(f, " + {}", self.offset)?;
        }
        Ok(())
    }
}

impl From<Arg> for String {
    fn from(arg: Arg) -> String {
        arg.to_string()
    }
}

impl TryFrom<String> for Arg {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let malformed = || format!("`{text}` is not like `read b3 + layer*64`");
        let (access, rest) = text.split_once(' ').ok_or_else(malformed)?;
        let access = match access {
            "read" => Access::Read,
            "write" => Access::Write,
            "update" => Access::Update,
            _ => return Err(malformed()),
        };
        let (buffer, offset) = match rest.split_once('+') {
            Some((buffer, offset)) => (buffer, Expr::try_from(offset.to_owned())?),
            None => (rest, Expr::from(0)),
        };
        let buffer = buffer.trim().parse().map_err(|()| malformed())?;
        Ok(Arg { access, buffer, offset })
    }
}

/// Serialises a type as the text that it displays as and parses from.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| D::Error::custom(format!("`{text}` is not a {}", std::any::type_name::<T>())))
    }
}

/// A plan could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Another version of the format.
    #[error(
        "the plan has version {found}, this build reads {VERSION}; compile the model again, or use the tritter that wrote it"
    )]
    Version {
        /// The version found.
        found: u32,
    },
    /// Not RON, or not a plan.
    #[error("the plan is damaged at {line}:{col}: {message}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        col: usize,
        /// What the reader says.
        message: String,
    },
    /// A plan that breaks its own rules.
    #[error("the plan is not consistent:\n{0}")]
    Invalid(PlanErrors),
}

impl Plan {
    /// The plan as RON, the same for the same plan.
    pub fn to_ron(&self) -> String {
        let config = ron::ser::PrettyConfig::new().depth_limit(5).indentor("  ").struct_names(false);
        let mut text = ron::ser::to_string_pretty(self, config).expect("plans are plain data, which always serialises");
        text.push('\n');
        text
    }

    /// Reads and checks a plan.
    ///
    /// # Errors
    ///
    /// If it is of another version, damaged, or breaks a rule of [`check()`].
    pub fn from_ron(text: &str) -> Result<Self, ReadError> {
        /// The one field that every version has. Other fields are skipped, so a newer plan is called newer, not damaged.
        #[derive(Deserialize)]
        struct VersionOnly {
            version: u32,
        }
        let syntax = |error: ron::error::SpannedError| ReadError::Syntax {
            line: error.span.start.line,
            col: error.span.start.col,
            message: error.code.to_string(),
        };
        let VersionOnly { version } = ron::from_str(text).map_err(syntax)?;
        if version != VERSION {
            return Err(ReadError::Version { found: version });
        }
        let plan: Plan = ron::from_str(text).map_err(syntax)?;
        check(&plan).map_err(ReadError::Invalid)?;
        Ok(plan)
    }

    /// The buffer of this id.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[crate::entity::Id::index(id)]
    }

    /// The kernel of this id.
    pub fn kernel(&self, id: KernelId) -> &Kernel {
        &self.kernels[crate::entity::Id::index(id)]
    }

    /// Nanoseconds that a step is taken to need, where `lookup` gives the values of the symbols; the steps of a repeat are not counted.
    ///
    /// A copy moves its bytes twice. What has no value, or is beyond 2^64, is the largest number.
    pub fn predict_ns(&self, step: &Step, lookup: &dyn Fn(&str) -> Option<u64>) -> u64 {
        let value = |expr: &Expr| expr.evaluate(lookup).unwrap_or(u64::MAX);
        let (start, bytes, compute) = match step {
            Step::Call(call) => {
                let work = value(&call.macs).saturating_add(value(&call.ops));
                // A head computes as many rows as are wanted, whatever the tokens.
                let has = |symbol: &str| call.macs.symbols().any(|other| other == symbol);
                let tokens = lookup(if has("m") && !has("n") { "m" } else { "n" }).unwrap_or(1);
                let moves = call.moves.evaluate(&|symbol: &str| predict::read(symbol, lookup(symbol)?, tokens));
                (call.start_ns, moves.unwrap_or(u64::MAX), call.rate.nanoseconds(work, tokens))
            }
            Step::Copy { bytes, .. } => (self.machine.step_ns, value(bytes).saturating_mul(2), 0),
            Step::Repeat { .. } => return 0,
        };
        let read = u128::from(bytes) * 1000 / u128::from(self.machine.read_bytes_per_us.max(1));
        let read = u64::try_from(read).unwrap_or(u64::MAX);
        start.saturating_add(read.max(compute))
    }

    /// Nanoseconds that the copies of streamed weights are taken to need for a call.
    pub fn copy_ns(&self) -> u64 {
        self.placement.copied_bytes().map(|bytes| self.machine.copy_time(bytes)).fold(0, u64::saturating_add)
    }

    /// All phases: those of calls, and behind them start and update of a plan for training.
    pub fn all_phases(&self) -> impl Iterator<Item = &Phase> {
        let training = self.training.iter().flat_map(|training| [&training.start, &training.update]);
        self.phases.iter().chain(training)
    }

    /// The phase that calls of so many tokens take.
    pub fn phase_of(&self, n_tokens: u64) -> Option<&Phase> {
        self.phases.iter().find(|phase| n_tokens <= phase.max_tokens)
    }
}

impl Buffer {
    /// One past its last byte, over all rounds; `None` if that is beyond 2^64.
    pub fn end(&self) -> Option<u64> {
        let last = self.stride.checked_mul(u64::from(self.rounds.max(1)) - 1)?;
        self.offset.checked_add(last)?.checked_add(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_print_and_parse_back() {
        let rate = Rate { one: 360_000, many: 940_000 };
        assert_eq!(Rate::try_from(String::from(rate)), Ok(rate));
        for text in ["", "3", "3/", "/3", "a/b", "3/4/5", "-1/2"] {
            assert!(Rate::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn the_first_token_costs_more_than_those_after_it() {
        let rate = Rate { one: 100, many: 400 };
        assert_eq!(rate.nanoseconds(1000, 1), 10_000);
        assert_eq!(rate.nanoseconds(8000, 8), 10_000 + 7 * 2_500);
        assert_eq!((rate.nanoseconds(0, 0), Rate::flat(0).nanoseconds(5, 1)), (0, 0));
        assert_eq!(Rate::flat(1).nanoseconds(u64::MAX, 1), u64::MAX);
        assert!(0 < Rate::flat(u64::MAX).nanoseconds(u64::MAX, u64::MAX));
    }
}
