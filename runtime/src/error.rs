//! What can go wrong between an artifact and its numbers.

use std::path::PathBuf;

use ir::plan::{KernelId, ReadError};
use kernels::KernelError;

use crate::training::batches::Position;
use crate::training::checkpoint::CheckpointProblem;
use crate::training::config::ConfigProblem;
use crate::training::shard::ShardProblem;

/// Why an artifact could not be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A file or directory could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The manifest or the plan is of another version, damaged or inconsistent.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ReadError,
    },
    /// The artifact is incomplete, damaged, or not for this machine. Every problem is listed.
    #[error("{} cannot be used:\n{}", dir.display(), lines(problems))]
    Artifact {
        /// Its directory.
        dir: PathBuf,
        /// All problems, never none.
        problems: Vec<ArtifactProblem>,
    },
    /// The slab or executable memory could not be allocated.
    #[error("cannot allocate {bytes} bytes for {purpose}: {source}; compile with a smaller context or fewer sequences")]
    Memory {
        /// How much.
        bytes: u64,
        /// What for.
        purpose: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no GPU that CUDA can use.
    #[error("there is no CUDA device here: {reason}")]
    NoCuda {
        /// What is missing.
        reason: String,
    },
    /// NVIDIA's library of dense products is nowhere.
    #[error(
        "cuBLASLt, which computes dense products in bf16, was not found. Put the folder that has it where the loader looks (on Linux into \
         LD_LIBRARY_PATH: lib64 of a CUDA toolkit, or nvidia/cu13/lib of the Python wheel nvidia-cublas), or compile with --precision f32. Tried:{}",
        .tried.iter().map(|(name, problem)| format!("\n  {name}: {problem}")).collect::<String>()
    )]
    NoCublas {
        /// Every name that was tried, and what was wrong with it.
        tried: Vec<(&'static str, String)>,
    },
    /// A GPU, or its driver, failed.
    #[error("CUDA failed in {call}{}: {reason}", step.as_ref().map_or(String::new(), |step| format!(" at `{step}`")))]
    Cuda {
        /// The driver's function.
        call: &'static str,
        /// What the driver calls it.
        reason: String,
        /// The kernel that was to run, where it is known.
        step: Option<String>,
    },
    /// A model that does not fit into a GPU's memory.
    #[error(
        "the model needs {needed} bytes of the GPU's memory, {free} are free; compile with a smaller context or fewer sequences"
    )]
    DeviceMemory {
        /// Weights, caches and activations.
        needed: u64,
        /// What the driver can still give.
        free: u64,
    },
    /// Streamed weights could not be read while the model ran.
    #[error(
        "the weights in {} could not be read at byte {offset}: {source}; the file was changed or its disk fails, and the model cannot go on", path.display()
    )]
    Stream {
        /// The file.
        path: PathBuf,
        /// The first byte that was wanted.
        offset: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// Weights are streamed no more, after an error that was reported.
    #[error("the weights are streamed no more after the error before this; open the model again")]
    StreamEnded,
    /// The artifact was compiled for another kind of device than the caller wants.
    #[error(
        "the artifact was compiled for `{target}`, which does not run on {wanted}; compile it again with another --target"
    )]
    Device {
        /// The target of the plan.
        target: String,
        /// What was asked for.
        wanted: &'static str,
    },
    /// The artifact needs more memory than the caller allows.
    #[error("the artifact needs {needed} bytes of memory beside its weights, the limit is {limit}")]
    MemoryLimit {
        /// Bytes of the slab.
        needed: u64,
        /// [`crate::Options::max_slab_bytes`].
        limit: u64,
    },
    /// The threads could not be started.
    #[error("cannot start {threads} threads: {source}")]
    Threads {
        /// How many were wanted.
        threads: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// A kernel panicked. Always a bug in tritter; the caches may be damaged and every sequence has to be reset.
    #[error("internal error: a kernel panicked: {message}")]
    Panicked {
        /// What it said.
        message: String,
    },
    /// A token id is not in the vocabulary.
    #[error("token {index} has id {id}, the vocabulary has {vocab}")]
    TokenId {
        /// Which token of the call.
        index: usize,
        /// Its id.
        id: u32,
        /// The number of ids.
        vocab: u64,
    },
    /// A sequence that the caches have no room for.
    #[error("there is no sequence {sequence}, the artifact was compiled for {sequences}")]
    Sequence {
        /// The one asked for.
        sequence: usize,
        /// How many there are.
        sequences: u64,
    },
    /// A step of a program that gives only logits.
    #[error(
        "the program gives logits and chooses no tokens; run it token by token, or compile one that ends in `sample`"
    )]
    NoChoice,
    /// A step whose parts do not belong together.
    #[error(
        "a step of {sequences} sequences was given {ids} ids and {choices} choices; it takes one of each for each sequence"
    )]
    Choices {
        /// The sequences.
        sequences: usize,
        /// The ids: those given, or those that the last step chose.
        ids: usize,
        /// The choices.
        choices: usize,
    },
    /// A position beyond what the caches hold.
    #[error(
        "sequence {sequence} has no room for position {position}, the artifact was compiled for a context of {context}; \
         compile with a larger --context"
    )]
    ContextFull {
        /// The sequence.
        sequence: usize,
        /// The position that was to be written.
        position: u64,
        /// Positions that there are.
        context: u64,
    },
    /// A position that would leave a gap, or that stands twice in one call.
    #[error("token {index} has position {position} in sequence {sequence}, the next one to write is {next}")]
    Position {
        /// Which token of the call.
        index: usize,
        /// Its sequence.
        sequence: usize,
        /// Its position.
        position: u64,
        /// The first position that is free; earlier ones can be overwritten at the start of a call.
        next: u64,
    },
    /// A span that reaches beyond the context, or that starts after its token.
    #[error(
        "token {index} sees keys from {first} and at least to {reach}, which does not fit position {position} and context {context}"
    )]
    Span {
        /// Which token of the call.
        index: usize,
        /// First visible key.
        first: u32,
        /// End of the prefix.
        reach: u32,
        /// Position of the token.
        position: u64,
        /// Positions that there are.
        context: u64,
    },
    /// More tokens than one call takes.
    #[error("{tokens} tokens in one call, the artifact was compiled for {max}")]
    TooManyTokens {
        /// Tokens given.
        tokens: usize,
        /// The most that the plan takes.
        max: u64,
    },
    /// Rows are not ascending positions in the call's tokens, or are more than the plan takes.
    #[error(
        "row {row} of the wanted logits is not one of the {tokens} tokens in ascending order, or there are more than {max}"
    )]
    Rows {
        /// The row.
        row: usize,
        /// Tokens of the call.
        tokens: usize,
        /// The most rows of a call.
        max: u64,
    },
    /// A chunk size that the plan has no room for, or zero.
    #[error("a chunk of {chunk} tokens is not between 1 and {max}, what the artifact was compiled for")]
    Chunk {
        /// The chunk size.
        chunk: usize,
        /// The most tokens of a call.
        max: usize,
    },
    /// No token to continue from.
    #[error("there are no prompt tokens; give at least one")]
    EmptyPrompt,
    /// A window of an evaluation that is too short to score anything.
    #[error("a window of {window} ids scores nothing, it needs 2 or more")]
    Window {
        /// The window.
        window: usize,
    },
    /// A sampling option outside its range.
    #[error("{option} is {value}, it must be {range}")]
    Sampling {
        /// The option.
        option: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
    /// None of an artifact's targets is here.
    #[error(
        "this machine has none of the targets that the model was compiled for:{}\nCompile it for one that it has, such as --target native",
        .targets.iter().map(|(target, reason)| format!("\n  {target}: {reason}")).collect::<String>()
    )]
    NoTarget {
        /// The targets, and why each is not.
        targets: Vec<(String, String)>,
    },
    /// The logits are all NaN or minus infinity: damaged weights.
    #[error("no logit of this row is a number; the weights are damaged")]
    NoLogits,
    /// The tokenizer's file is not one of this version.
    #[error("{file}: {0}", file = ir::plan::manifest::TOKENIZER)]
    Tokenizer(tokenizer::TokenizerError),
    /// An artifact that was compiled to be run only.
    #[error("{} has no training plan; compile the model again for training", dir.display())]
    NotTrainable {
        /// Its directory.
        dir: PathBuf,
    },
    /// A file of tokens that is none, or damaged.
    #[error("{} cannot be used: {problem}", path.display())]
    Shard {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: ShardProblem,
    },
    /// Shards that do not belong together.
    #[error(
        "{} has a vocabulary of {found} ids, {} one of {expected}; write them with one tokenizer", path.display(), first.display()
    )]
    Vocabularies {
        /// The first shard.
        first: PathBuf,
        /// Ids of its vocabulary.
        expected: u32,
        /// The shard that has another one.
        path: PathBuf,
        /// Ids of that.
        found: u32,
    },
    /// More documents than their order has room for.
    #[error("the shards have {found} documents, more than {max}; join some of them")]
    TooManyDocuments {
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: u32,
    },
    /// Nothing can be trained on from a place on.
    #[error("the documents have nothing to train on at {position:?}")]
    NoDocument {
        /// The place.
        position: Position,
    },
    /// The configuration of a run cannot be used. Every problem is listed.
    #[error("{} cannot be used:\n{}", path.as_ref().map_or("the configuration".to_owned(), |path| path.display().to_string()), lines(problems))]
    Config {
        /// Its file, where it is known.
        path: Option<PathBuf>,
        /// All problems, never none.
        problems: Vec<ConfigProblem>,
    },
    /// A new run where another one has been.
    #[error("there is a run already, as far as {}; go on with --resume, or name another directory", newest.display())]
    RunExists {
        /// Its newest checkpoint.
        newest: PathBuf,
    },
    /// A new run where another one has been that has no checkpoint.
    #[error(
        "there was a run, as {} says, without a checkpoint now; begin it again with --resume, which forgets what it measured, or name another directory",
        metrics.display()
    )]
    NoCheckpoint {
        /// What it measured.
        metrics: PathBuf,
    },
    /// Two runs in one directory.
    #[error("another run is writing into {}", out.display())]
    RunBusy {
        /// The directory.
        out: PathBuf,
    },
    /// A run cannot go on from a checkpoint of another one.
    #[error(
        "the run cannot go on from {}, which was made with something else:{}", checkpoint.display(),
        differences.iter().map(|[what, then, now]| format!("\n  {what}: {then} there, {now} here")).collect::<String>()
    )]
    Resume {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// What differs, its value there, and its value here; never none.
        differences: Vec<[String; 3]>,
    },
    /// A checkpoint that is damaged, or of another model.
    #[error("checkpoint {} cannot be used: {problem}", dir.display())]
    Checkpoint {
        /// Its directory.
        dir: PathBuf,
        /// What is wrong with it.
        problem: CheckpointProblem,
    },
    /// A run could not write what it has to keep. What it had kept before stays.
    #[error("{source}; {}", kept(newest.as_ref()))]
    Save {
        /// Why.
        source: Box<RuntimeError>,
        /// The newest checkpoint that is whole.
        newest: Option<PathBuf>,
    },
    /// A number of a run is infinite or none.
    #[error("step {step}: the {what} is no finite number, so the run has ended; {}", kept(checkpoint.as_ref()))]
    Diverged {
        /// The step.
        step: u64,
        /// Which number.
        what: String,
        /// The last checkpoint. All that it has are finite numbers.
        checkpoint: Option<PathBuf>,
    },
    /// An artifact that was compiled to be trained only.
    #[error("{} was compiled for training: `tritter train` runs it; to generate, compile the model with tritterc compile", dir.display())]
    ForTraining {
        /// Its directory.
        dir: PathBuf,
    },
    /// A batch of another size.
    #[error("{found} {what} are given, {wanted} are wanted")]
    BatchSize {
        /// What of it.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there must be.
        wanted: usize,
    },
    /// A batch with a number that means nothing.
    #[error("a batch has {value} among its {what}, which is outside the model's vocabulary or sequences")]
    Batch {
        /// What of it.
        what: &'static str,
        /// The number.
        value: i64,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Cancelled,
}

/// One thing that is wrong with an artifact.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArtifactProblem {
    /// A file that every artifact has is not listed.
    #[error("the manifest does not list {file}; an artifact compiled without weights can be looked at, not run")]
    NotListed {
        /// The file.
        file: &'static str,
    },
    /// A name in the manifest that is not a plain file name.
    #[error("the manifest lists `{file}`, which is not a plain file name")]
    FileName {
        /// The name.
        file: String,
    },
    /// A file is missing or cannot be read.
    #[error("{file} cannot be read: {message}")]
    Unreadable {
        /// The file.
        file: String,
        /// What the system said.
        message: String,
    },
    /// A file has another size: it was cut off, or comes from another artifact.
    #[error("{file} has {found} bytes, the manifest says {expected}; it is incomplete, copy or compile it again")]
    Size {
        /// The file.
        file: String,
        /// Bytes of the manifest.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// A file has other contents.
    #[error("{file} is damaged: its BLAKE3 hash is {found}, the manifest says {expected}; copy or compile it again")]
    Hash {
        /// The file.
        file: String,
        /// Hash of the manifest.
        expected: String,
        /// Hash of the file.
        found: String,
    },
    /// A file that should be text is not.
    #[error("{file} is not UTF-8")]
    NotText {
        /// The file.
        file: String,
    },
    /// Compiled for a CPU that this is not.
    #[error("it was compiled for `{target}`, and {reason}; compile it again with --target native")]
    Target {
        /// The target of the plan.
        target: String,
        /// What does not fit.
        reason: String,
    },
    /// A kernel of the table that is not there, or that this CPU cannot run.
    #[error("{0}")]
    Kernel(KernelError),
    /// A step calls a kernel of the table in another way than its signature says: another version of the table.
    #[error("phase `{phase}`, `{from}`: kernel `{kernel}` is called with {what}; compile it again with this version")]
    Signature {
        /// The phase.
        phase: String,
        /// The step's provenance.
        from: String,
        /// The kernel.
        kernel: String,
        /// What does not agree.
        what: String,
    },
    /// Generated code that is not in the file.
    #[error("kernel {kernel} `{name}` lies at bytes {offset}..{end} of the generated code, which has {bytes}")]
    Code {
        /// The kernel.
        kernel: KernelId,
        /// Its name.
        name: String,
        /// Where it starts.
        offset: u64,
        /// Where it ends; a value beyond 2^64 is given as the largest.
        end: u64,
        /// Bytes of the file.
        bytes: u64,
    },
    /// A kernel for another kind of device than the plan's target.
    #[error("kernel `{kernel}` is not for the plan's target; compile it again")]
    Foreign {
        /// The kernel.
        kernel: String,
    },
    /// A cubin that is not among the files.
    #[error("the cubin {file} of kernel `{kernel}` is not there; copy or compile it again")]
    NoCubin {
        /// The kernel.
        kernel: String,
        /// Its file.
        file: String,
    },
    /// The header of the weights is damaged.
    #[error("the header of the weights cannot be read: {message}")]
    Header {
        /// What the reader said.
        message: String,
    },
    /// The weights' data starts where vectors may not.
    #[error("the weights' data starts at byte {offset}, which is not a multiple of {}", ir::plan::ALIGNMENT)]
    DataAlignment {
        /// Where it starts.
        offset: u64,
    },
    /// The weights have another size than the plan says.
    #[error("the weights have {found} bytes, the plan says {expected}")]
    WeightsSize {
        /// Bytes of the plan.
        expected: u64,
        /// Bytes of the file's data.
        found: u64,
    },
    /// A tensor of the plan is not in the weights.
    #[error("the weights have no tensor `{name}`")]
    NoTensor {
        /// Its name.
        name: String,
    },
    /// A tensor lies elsewhere or is of another size than the plan says.
    #[error("tensor `{name}` lies at bytes {found_start}..{found_end}, the plan expects {start}..{end}")]
    TensorPlace {
        /// Its name.
        name: String,
        /// Where the plan has its start.
        start: u64,
        /// And its end.
        end: u64,
        /// Where it starts.
        found_start: u64,
        /// And ends.
        found_end: u64,
    },
    /// Inputs, outputs or symbols that are not those of a decoder.
    #[error("the plan is not that of a decoder: {what}")]
    Interface {
        /// What is not as it should be.
        what: String,
    },
    /// Ternary weights that are none, where they are packed to be streamed.
    #[error(
        "the weights hold a code that is none of a ternary weight's, near byte {offset} of their data; compile the model again"
    )]
    NotTernary {
        /// About where, to 20 bytes.
        offset: u64,
    },
    /// A copy that leaves its buffer.
    #[error("phase `{phase}`, step {step}: {bytes} bytes are copied beyond the end of {buffer}")]
    CopyOutside {
        /// The phase.
        phase: String,
        /// The step.
        step: usize,
        /// Bytes copied.
        bytes: u64,
        /// The buffer.
        buffer: ir::plan::BufferId,
    },
}

/// Where a run stands that ended with an error.
fn kept(checkpoint: Option<&PathBuf>) -> String {
    match checkpoint {
        Some(checkpoint) => format!("the last good checkpoint is {}", checkpoint.display()),
        None => "there is no checkpoint yet".to_owned(),
    }
}

/// The problems, one a line.
fn lines<T: std::fmt::Display>(problems: &[T]) -> String {
    problems.iter().map(|problem| format!("  {problem}")).collect::<Vec<_>>().join("\n")
}

impl RuntimeError {
    /// The same with the step that it happened at, if it is one of the device's that names none yet.
    #[must_use]
    pub fn at(self, step: &str) -> Self {
        match self {
            RuntimeError::Cuda { call, reason, step: None } => {
                RuntimeError::Cuda { call, reason, step: Some(step.to_owned()) }
            }
            error => error,
        }
    }

    /// Wraps what the system said about a path.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> RuntimeError {
        let path = path.into();
        move |source| RuntimeError::Io { action, path, source }
    }
}
