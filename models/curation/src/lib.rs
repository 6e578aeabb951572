//! What of a code corpus to train on, and why: stages that each look at a document, and say what they found and where.
//!
//! A stage is a plain function, or a value built once from rules and used through `&self`: no stage has a global, reads a clock or the environment, or
//! does IO. Whatever drives them — the plans of `tritter-curation-engine`, one command of `tritter-curate` alone — gives the same answer for
//! the same document.
//!
//! * [`secrets`]: credentials, by rules that are data.
//! * [`security`]: calls that are dangerous as they are made.
//! * [`quality`]: published rule sets for text and for code, and measures of code.
//! * [`duplicates`]: exact copies and near ones.
//! * [`contamination`]: what of evaluation sets stands in a corpus.
//! * [`kernels`]: Triton kernels, each with its helpers and launchers.
//! * [`licence`]: SPDX expressions of files and projects.
//! * [`judge`]: all that look at one document, together: its label and why.
//! * [`report`]: what was found in a corpus, for people.

#![forbid(unsafe_code)]

pub mod contamination;
pub mod duplicates;
pub mod error;
mod hash;
pub mod judge;
pub mod kernels;
pub mod licence;
pub mod lines;
mod python;
pub mod quality;
pub mod report;
pub mod secrets;
pub mod security;

pub use error::CurationError;
pub use lines::Lines;
pub use secrets::Secrets;
