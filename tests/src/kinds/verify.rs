//! `verify`: what the parser or the verifier has to say, under the program's lines.

use ir::verify::Cause;

use super::Kind;
use crate::filetest::Case;

/// Expects the errors of the parser, or if there are none those of the verifier, or `ok`.
pub struct Verify;

impl Kind for Verify {
    fn name(&self) -> &'static str {
        "verify"
    }

    fn options(&self) -> &'static [&'static str] {
        &[]
    }

    fn run(&self, case: &Case) -> anyhow::Result<Option<String>> {
        let (program, map) = match ir::text::parse_with_positions(&case.text) {
            Ok(parsed) => parsed,
            Err(errors) => return Ok(Some(errors.show(&case.text))),
        };
        Ok(Some(match ir::verify(program.clone()) {
            Ok(_) => "ok".to_owned(),
            Err(errors) => ir::text::show_verify_errors(&program, &errors, Some((&case.text, &map))),
        }))
    }
}

/// The names of the causes that the verifier finds in a file; none if the parser refuses it.
pub fn causes(case: &Case) -> Vec<&'static str> {
    let program = ir::text::parse(&case.text).ok();
    let errors = program.and_then(|program| ir::verify(program).err());
    errors.map_or(Vec::new(), |errors| errors.0.iter().map(|error| cause_name(&error.cause)).collect())
}

/// A list of all causes that the compiler keeps complete: a new variant of [`Cause`] does not build until it stands here.
macro_rules! all_causes {
    ($($name:ident)*) => {
        /// Names of all causes.
        pub const CAUSES: &[&str] = &[$(stringify!($name)),*];

        fn cause_name(cause: &Cause) -> &'static str {
            match cause { $(Cause::$name { .. } => stringify!($name),)* }
        }
    };
}

all_causes! {
    Empty DuplicateGraph DuplicateSymbol UnknownSymbol TooLarge UnboundSymbol Order NoValue Type WrongType Inputs NoOutputs Constant UpdateTarget
    DoubleUpdate UpdateType KeyType DuplicateState Round NoBody NestedRepeat SharedBody BodySignature NoScan StackedType
}

/// The causes that no text can have: operands that do not stand before their users and inputs that are not listed are errors of the parser.
pub const NOT_IN_TEXT: [&str; 3] = ["Order", "NoValue", "Inputs"];
