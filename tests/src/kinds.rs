//! The kinds of filetests.
//!
//! To add one, say `rewrite`: write `kinds/rewrite.rs` with a type that implements [`Kind`], and put `pub mod rewrite;` and `&rewrite::Rewrite` below.
//! Its tests lie in `filetests/rewrite/`. [`run::program`] gives it the verified program of a case, [`Case::strings`] its options, and
//! [`run::sessions`] the numbers of the `; run:` lines, with which a kind that computes can do so and check the results.

pub mod text;
pub mod verify;
pub mod run;

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
pub const KINDS: &[&dyn Kind] = &[&text::Text, &verify::Verify, &run::Run];
