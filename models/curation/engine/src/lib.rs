//! Runs the stages of curation over corpora of any size: they are functions of DataFusion's plans, which run in this process or on the executors of a
//! Ballista scheduler, and give the same output, byte for byte, on any number of threads, executors and restarts.
//!
//! * [`corpus`]: what the inputs have, cut into partitions.
//! * [`evaluations`]: what nothing may be of.
//! * [`share`]: what a partition is made of, and the key under which its verdicts are kept.
//! * [`mod@read`]: documents of files, JSONL and Parquet.
//! * [`verdict`]: what is written of a document.
//! * [`functions`]: the stages, as functions over columns.
//! * [`place`]: where plans run.
//! * [`mod@shingles`]: what near copies are told by, on disk.
//! * [`mod@copies`]: what a corpus has twice, as plans.
//! * [`mod@kernels`]: Triton kernels, as an output of their own.
//! * [`output`]: Parquet, JSONL, and the report.
//! * [`mod@run`]: all of it.
//!
//! Invariant: `tritter-curation` knows nothing of this crate; a stage is a plain function there, and this crate has no rule of its own.

#![forbid(unsafe_code)]

pub mod corpus;
pub mod evaluations;
pub mod share;
pub mod read;
pub mod verdict;
pub mod functions;
pub mod place;
pub mod shingles;
pub mod copies;
pub mod kernels;
pub mod output;
pub mod run;
pub mod keep;
pub mod error;

pub use error::EngineError;
