//! From artifact to numbers: opens a compiled model and runs it. Contains no compiler.
//!
//! An [`Artifact`] is a directory that the compiler wrote. Opening one confirms everything that can be confirmed: the version, size and hash
//! of every file, the rules of the plan, that each weight lies where the plan expects it, and that this CPU has what the code needs. It
//! holds machine code, so opening an artifact means trusting it like an executable.
//!
//! A [`Session`] is an opened artifact with its memory: caches and activations in one slab that is allocated once, and how far each
//! sequence has come. [`Session::forward`] runs one call of the plan; prefill, generation, evaluation and measurement are loops over it.
//! The [`Executor`] turns a phase of the plan into a flat list of launches for the sizes at hand and gives it to a [`device::Device`].
//!
//! ```no_run
//! # use tritter_runtime as runtime;
//! # fn main() -> Result<(), runtime::RuntimeError> {
//! let mut session = runtime::Session::open("model.tritter".as_ref(), &runtime::Options::default())?;
//! let logits = session.prefill(0, &[1, 111, 108], session.max_tokens(), &mut |_, _| std::ops::ControlFlow::Continue(()))?;
//! let best = runtime::sample::greedy(logits);
//! # let _ = best;
//! # Ok(())
//! # }
//! ```
//!
//! Invariant: nothing is allocated in the slab's place after opening, and executable memory is never writable.
//! Invariant: what a call computes does not depend on the number of threads, on how tokens are cut into calls, or on which other sequences
//! are in the call, as far as the kernels promise it; see the numerics in the documentation of `kernels`.

#![deny(unsafe_op_in_unsafe_fn)]

pub mod artifact;
pub mod session;
pub mod executor;
pub mod device;
pub mod draft;
pub mod slab;
pub mod sample;
pub mod stop;
pub mod generate;
pub mod evaluate;
pub mod training;
pub mod context;
pub mod bench;
pub mod tune;
pub mod trace;
pub mod error;

pub use artifact::{Artifact, WeightPages};
pub use error::{ArtifactProblem, RuntimeError};
pub use executor::{Cost, Executor};
pub use generate::{Generation, generate};
pub use sample::{Sampler, Sampling};
pub use session::{Choice, Ids, Logits, Options, Session, Token};
pub use trace::Trace;
