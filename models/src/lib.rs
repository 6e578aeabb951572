//! Language models declared in the IR: what specs there are, and how a spec or a checkpoint becomes a program.
//!
//! A model is data: a [`spec::Spec`], read from RON by [`spec::read`], shipped under [`shipped`], or made from a checkpoint's configuration by
//! [`import`]. [`build`] turns it into a verified [`ir::Program`] and says which tensor of a checkpoint is which parameter. Nothing here reads a
//! file: text and tensor lists come in, programs go out.

#![forbid(unsafe_code)]

pub mod adapter;
pub mod decoder;
pub mod import;
pub mod spec;
pub mod weights;

mod block;
mod error;

pub use decoder::{BuildOptions, HEAD_GROUP, HeadFormat, Model, build, build_adapted};
pub use error::{ImportError, ImportErrors, ModelError, OptionError, SpecError, SpecErrors};
pub use ir::param::{Init, ParamBinding, Stored, TensorInfo};
pub use spec::Spec;
pub use weights::Naming;

macro_rules! specs {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../specs/", $name, ".ron")))),*]
    };
}

/// The specs that come with the project, by name, small to large: `(name, the text of the file)`.
pub fn shipped() -> &'static [(&'static str, &'static str)] {
    specs! {
        "tiny" "bitnet-code-nano" "bitnet-2b-4t"
        "test" "125m" "350m" "1b" "3b" "7b" "10b" "13b" "30b" "33b" "40b" "65b" "70b"
    }
}

/// The text of the shipped spec of this name; upper and lower case are the same, so `70B` is `70b`.
pub fn find_shipped(name: &str) -> Option<&'static str> {
    shipped().iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, text)| *text)
}
