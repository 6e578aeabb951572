//! The kinds of filetests.
//!
//! | kind | is about |
//! |---|---|
//! | [`text`] | the canonical text of a program |
//! | [`verify`] | what the parser and the verifier refuse |
//! | [`run`] | what a program computes, by the reference |
//! | [`autodiff`] | the gradients of its loss |
//! | [`rewrite`] | what the optimiser makes of it |
//! | [`schedule`] | which values become one kernel |
//! | [`lower`] | rows of the kernel table, and nests |
//! | [`emit`] | the code of a nest |
//! | [`plan`] | steps and buffers |
//! | [`compiled`] | what an artifact computes, on each target |
//!
//! To add one, say `reduce`: write `kinds/reduce.rs` with a type that implements [`Kind`], and put `pub mod reduce;` and
//! `&reduce::Reduce` below. Its tests lie in `filetests/reduce/`. [`run::program`] gives it the verified program of a case,
//! [`Case::strings`] its options, and [`run::sessions`] the numbers of the `; run:` lines, with which a kind that computes can do so and
//! check the results.

pub mod text;
pub mod verify;
pub mod run;
pub mod autodiff;
pub mod rewrite;
pub mod schedule;
pub mod lower;
pub mod emit;
pub mod plan;
pub mod compiled;

use crate::filetest::Case;

/// One way to test a program.
pub trait Kind: Sync {
    /// What headers call it; also the folder of its tests.
    fn name(&self) -> &'static str;

    /// The options that it reads from headers.
    fn options(&self) -> &'static [&'static str];

    /// Tests the program. What it returns must be what the file says in the section of this kind; `None` if there is nothing to write down.
    ///
    /// # Errors
    ///
    /// If the test fails.
    fn run(&self, case: &Case) -> anyhow::Result<Option<String>>;
}

/// All kinds. A new one is a file beside `text.rs`, and a line here.
pub const KINDS: &[&dyn Kind] = &[
    &text::Text,
    &verify::Verify,
    &run::Run,
    &autodiff::Autodiff,
    &rewrite::Rewrite,
    &schedule::Groups,
    &lower::Lower,
    &emit::Emit,
    &plan::Short,
    &compiled::Compiled,
];
