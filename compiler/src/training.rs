//! Programs and plans for training.
//!
//! A step of training is two graphs over the same states: one adds the gradients of a batch to those of the batches before it, and one changes the
//! parameters by what was added up. [`Step::new`] makes both of a model's program, and [`crate::pipeline::compile_step`] one plan of them.
//!
//! | what | as |
//! |---|---|
//! | a trained parameter | a state under its key; one of half precision also a state `KEY.master` in f32 |
//! | its gradient, added up over batches | a state `KEY.gradient`, f32 |
//! | the optimiser's | states `KEY.first_moment` and `KEY.second_moment`, f32 |
//! | a parameter that is not trained | a weight, as for inference |
//! | sequences | whole: a batch has as many tokens as sequences times positions, in this order, so that what inference keeps in caches is what the batch itself computed |

pub mod count;
mod accumulate;
mod batch;
mod frozen;
mod precision;
mod remake;
mod step;
mod summaries;
mod ternary;

pub use batch::Batch;
pub use precision::Precision;
pub use step::{ACCUMULATE, Facts, START, Step, StepError, StepOptions};
