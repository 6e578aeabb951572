//! Why a run could not start or go on. What a document holds is never an error; a corpus that is not of its format is.

use std::path::{Path, PathBuf};

use ballista_core::error::BallistaError;
use curation::CurationError;
use datafusion::arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use datafusion::parquet::errors::ParquetError;

/// Why a corpus could not be read, judged or written.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// There is nothing to judge.
    #[error(
        "the inputs have no document that is wanted: files of known languages, or with --ending those whose names end so"
    )]
    Empty,
    /// A line of a JSONL file is no object with a text.
    #[error("{place}: {error}")]
    Line {
        /// The file and the line's first byte.
        place: String,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// A Parquet file is not one, or is damaged.
    #[error("{path}: {error}")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: ParquetError,
    },
    /// A Parquet file has no column with texts.
    #[error("{0} has no column `text` or `content` of strings")]
    NoText(PathBuf),
    /// A file was written to during the run.
    #[error("the inputs changed while they were read; run the command again")]
    Changed,
    /// The stages of another version of the program left their mark in a plan.
    #[error("this program has other stages than the one that planned the run: start executors of the same version")]
    OtherStages,
    /// The rules of a stage are not well formed. Always a bug of the rules that come with this crate.
    #[error(transparent)]
    Rules(#[from] CurationError),
    /// The description of a partition does not parse. Always a bug in this crate, or damage on the way to an executor.
    #[error("the description of a partition is damaged: {0}")]
    Description(serde_json::Error),
    /// What went from plan to plan is of another run.
    #[error("{0}: another run writes to the same output; wait until it has ended, and run the command again")]
    OtherRun(PathBuf),
    /// A hash that a plan gave back is none. Always damage on the way from an executor.
    #[error("`{0}` is no hash of a content")]
    Hash(String),
    /// Columns are not what a function expects. Always a bug in this crate.
    #[error("internal error: {0}")]
    Columns(#[from] ArrowError),
    /// A plan could not be made or run.
    #[error("{}", plan_failure(.0))]
    Plan(Box<DataFusionError>),
    /// Nothing answers where a scheduler should.
    #[error("no scheduler answers at {address}: {error}")]
    NoScheduler {
        /// Where it should.
        address: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// The scheduler or an executor cannot work.
    #[error("the scheduler or executor cannot work: {0}")]
    Cluster(#[from] Box<BallistaError>),
    /// An address is none.
    #[error("`{0}` is no address of a scheduler or an executor: write HOST:PORT")]
    Address(String),
    /// The report's template is not well formed. Always a bug of the library.
    #[error("internal error: the report cannot be written: {0}")]
    Report(String),
}

impl EngineError {
    /// An error of the system at a path, to map with.
    pub fn at(path: &Path) -> impl FnOnce(std::io::Error) -> EngineError {
        move |error| EngineError::Io { path: path.to_owned(), error }
    }

    /// An error of a Parquet file, to map with.
    pub fn of_parquet(path: &Path) -> impl Fn(ParquetError) -> EngineError {
        move |error| EngineError::Parquet { path: path.to_owned(), error }
    }
}

/// What went wrong in a plan, without the engines that carried it: an error of this crate as it is, and what has no room with what helps.
fn plan_failure(error: &DataFusionError) -> String {
    let root = error.find_root();
    if let DataFusionError::External(cause) = root
        && let Some(cause) = cause.downcast_ref::<EngineError>()
    {
        return cause.to_string();
    }
    let text = root.to_string();
    if matches!(root, DataFusionError::ResourcesExhausted(_)) || text.contains(EXHAUSTED) {
        return "the plans need more memory than they may take: give them more with --memory, or use fewer --threads"
            .to_owned();
    }
    // From executors it comes as text, each layer before its cause.
    match text.rsplit_once("External error: ") {
        Some((_, cause)) => cause.lines().next().unwrap_or(cause).trim().to_owned(),
        None => format!("a plan failed: {}", text.lines().next().unwrap_or(&text)),
    }
}

/// How DataFusion's text of such an error begins.
const EXHAUSTED: &str = "Resources exhausted";

impl From<DataFusionError> for EngineError {
    fn from(error: DataFusionError) -> Self {
        EngineError::Plan(Box::new(error))
    }
}

impl From<BallistaError> for EngineError {
    fn from(error: BallistaError) -> Self {
        EngineError::Cluster(Box::new(error))
    }
}

impl From<EngineError> for DataFusionError {
    fn from(error: EngineError) -> Self {
        DataFusionError::External(Box::new(error))
    }
}
