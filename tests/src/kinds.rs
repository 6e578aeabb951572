//! The kinds of filetests.

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
