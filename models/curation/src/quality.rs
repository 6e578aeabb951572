//! Judges the quality of a document by rule sets whose thresholds are published: three for text of the web, one for code; and measures code.
//!
//! Each rule set is a function that gives the reason of its first rule that rejects the document, by the name that datatrove gives it where it has the set.
//! Measures are kept apart from verdicts: a corpus stores the measures, and filters late.

mod characters;
pub mod code;
pub mod web;

pub use characters::{n_sentences, words};

/// Why a document is rejected.
pub type Reason = &'static str;

/// One rule set's answer.
pub type Verdict = Result<(), Reason>;
