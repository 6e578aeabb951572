//! The harness: what the tests beside this folder are made of.
//!
//! * [`filetest`] runs `filetests/**/*.tri`: a program, how to test it, and what must come out, in one file. `TRITTER_BLESS=1` writes down what
//!   came out instead.
//! * [`kinds`] are the ways to test a file. A new kind is one file in `kinds/` and one line in [`kinds::KINDS`].
//! * [`compare`] tells how far two lists of numbers are apart, and where.
//! * [`gradient`] makes losses and gradients of programs that have none.
//! * [`source`] reads Rust sources for the tidy test.
//! * [`random`] makes well-typed random programs, and inputs for them, that shrink.
//! * [`fixture`] finds and makes checkpoints; [`session`] compiles and runs them in one process, [`binary`] in those of the two programs;
//!   [`given`] are weights that a test has as numbers.

#![forbid(unsafe_code)]

pub mod filetest;
pub mod kinds;
pub mod compare;
pub mod random;
pub mod gradient;
pub mod source;
pub mod fixture;
pub mod session;
pub mod binary;
pub mod given;

use std::path::{Path, PathBuf};

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace").to_owned()
}

/// All files below a folder whose name ends in `.extension`, sorted; none if there is no such folder.
///
/// # Errors
///
/// If a folder cannot be read.
pub fn files_below(folder: &Path, extension: &str) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if !folder.is_dir() {
        return Ok(files);
    }
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path, extension)?);
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
