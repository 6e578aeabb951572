//! The text form `.tri`: how it is written, printed, parsed, and how messages are shown under its lines.
//!
//! ```text
//! program @nano
//! symbol n <= 512
//!
//! graph @layer(h: f32[n, 64]) -> f32[n, 64] {
//!   param norm: f32[64] = "layers.{}.norm"
//!   state seen: f32[1] = "layers.{}.seen"
//!   const one: f32[1] = [1.0]
//!   x = rms_norm h, norm, eps=1e-5
//!   v5 = add seen, one
//!   update seen = v5
//!   return x
//! }
//! ```
//!
//! **Lines.** One statement a line; `;` starts a comment. Line breaks are free inside `(...)` and `[...]`. The types of results are inferred; one
//! that a graph declares otherwise is printed, and read, as `x: f32[4] = add a, b`. The `program` line may be left out: the program is then
//! called as its entry.
//!
//! **Order.** Statements that define values stand in the order of their ids, then come the updates, last `return`. Inputs that stand before all
//! other values are listed in the parentheses; a later one has a line `input x: f32[n]`.
//!
//! **Names.** A name is plain if it is made of ASCII letters, digits, `_`, `.` and inner `-`, and starts with a letter or `_`; every other name, and
//! one that would be read as something else (`return`, `v12`), stands in quotes. A value without a name is printed as its id. Of several values
//! with one name, the first is printed as `name` and the others as `name#id`, such as `x#12`: what follows `#` tells them apart and is no part
//! of the name. So every program can be printed, and `parse(print(p)) == p` for all whose operands stand before their users.
//!
//! **Numbers.** The elements of a constant are read in its own precision (`0.1` in an f32 constant is the nearest f32), attributes in double
//! precision; both are printed with digits that read back as the same number, the fewest where that is f32 or f64. `inf`, `-inf` and `nan` are numbers; any other bit
//! pattern is `bits.` and 16 hexadecimal digits of the f64.
//!
//! [`print`](fn@print) is canonical: equal programs give equal text, and `print(parse(text)) == text` for text that it printed. It keeps all values;
//! [`crate::Graph::compact`] before, to drop and renumber.

pub mod parse;
pub mod print;
mod lex;
mod number;
pub mod show;

use crate::entity::Id;
use crate::graph::{Program, ValueId};
use crate::op::{PartsError, TypeError};
use crate::shape::Symbol;
use crate::verify::{Cause, VerifyError};

pub use parse::{parse, parse_with_positions};
pub use print::{print, print_annotated, print_with_positions};
pub use show::{show, show_verify_errors};

/// A stretch of one line of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The line, from 1.
    pub line: u32,
    /// The column of the first character, from 1, in characters.
    pub column: u32,
    /// How many characters, at least 1.
    pub width: u32,
}

/// Something that a text says wrongly, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{}: {cause}", position.line, position.column)]
pub struct ParseError {
    /// Where.
    pub position: Position,
    /// What.
    pub cause: ParseCause,
}

/// What a text can say wrongly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseCause {
    /// A character that begins nothing.
    #[error("unexpected `{0}`")]
    Character(String),
    /// A string without its closing quote on the same line.
    #[error("this string is not closed")]
    OpenString,
    /// A backslash followed by something else than `"`, `\`, `n`, `t`, `r` or `u{...}`.
    #[error("unknown escape in a string; known are \\\" \\\\ \\n \\t \\r \\u{{...}}")]
    Escape,
    /// Something else should stand here.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// What.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// A number out of range or of the wrong kind.
    #[error("`{found}` is not {expected}")]
    Number {
        /// The number.
        found: String,
        /// What would do.
        expected: &'static str,
    },
    /// No such element type.
    #[error("`{0}` is not an element type: f32, f16, bf16, i8, i32, t2, q8, q4")]
    DType(String),
    /// More dimensions than any type may have.
    #[error("a type has at most {} dimensions", crate::shape::MAX_RANK)]
    Rank,
    /// Two values with one name.
    #[error("`{name}` is defined in line {line} already; write `{name}#2` for another value of this name")]
    Redefined {
        /// The name.
        name: String,
        /// Where it was defined first.
        line: u32,
    },
    /// An operand that is not defined before.
    #[error("no value `{0}` is defined above")]
    UnknownValue(String),
    /// No such op.
    #[error("there is no op `{name}`{}", closest.map(|op| format!("; did you mean `{op}`?")).unwrap_or_default())]
    UnknownOp {
        /// What stands there.
        name: String,
        /// The op whose name is closest, if one is close.
        closest: Option<&'static str>,
    },
    /// An attribute that the op does not have.
    #[error("`{op}` has no attribute `{name}`; its attributes: {}", list(known))]
    UnknownAttribute {
        /// The op.
        op: String,
        /// The attribute.
        name: String,
        /// Those that it has.
        known: &'static [&'static str],
    },
    /// An attribute given twice.
    #[error("attribute `{0}` is given twice")]
    DuplicateAttribute(String),
    /// An attribute left out.
    #[error("`{op}` needs the attribute `{name}`")]
    MissingAttribute {
        /// The op.
        op: String,
        /// The attribute.
        name: &'static str,
    },
    /// An attribute of the wrong kind.
    #[error(transparent)]
    Attribute(PartsError),
    /// The operands do not fit the op.
    #[error("`{op}` of ({types}): {source}")]
    Type {
        /// The op.
        op: &'static str,
        /// The operands' types.
        types: String,
        /// Why not.
        source: TypeError,
    },
    /// A graph's declared result types are not those of its outputs.
    #[error("the graph is declared to return {declared}, but returns {found}")]
    Returns {
        /// The types in the header.
        declared: String,
        /// The types of the outputs.
        found: String,
    },
    /// A statement after `return`.
    #[error("nothing may follow `return` in a graph")]
    AfterReturn,
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Everything that a text says wrongly, in the order of the text. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseErrors(pub Vec<ParseError>);

impl ParseErrors {
    /// The text with each message under its line; see [`show`](fn@show).
    pub fn show(&self, text: &str) -> String {
        let notes: Vec<_> = self.0.iter().map(|error| (error.position, error.cause.to_string())).collect();
        show(text, &notes)
    }
}

impl std::fmt::Display for ParseErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if 0 < index {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ParseErrors {}

/// Where the parts of a program stand in its text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceMap {
    /// The `program` line, or the start of the text.
    pub program: Option<Position>,
    /// One for each declared symbol.
    pub symbols: Vec<Position>,
    /// One for each graph.
    pub graphs: Vec<GraphMap>,
}

/// Where the parts of a graph stand in its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphMap {
    /// The graph's name.
    pub header: Position,
    /// One for each value: its name where it is defined.
    pub values: Vec<Position>,
    /// One for each update: the state's name.
    pub updates: Vec<Position>,
}

impl SourceMap {
    /// Where the value `value` of graph number `graph` is defined.
    pub fn value(&self, graph: usize, value: ValueId) -> Option<Position> {
        self.graphs.get(graph)?.values.get(value.index()).copied()
    }

    /// Where an error of the verifier belongs.
    pub fn locate(&self, program: &Program, error: &VerifyError) -> Position {
        self.locate_exactly(program, error).or(self.program).unwrap_or(Position { line: 1, column: 1, width: 1 })
    }

    fn locate_exactly(&self, program: &Program, error: &VerifyError) -> Option<Position> {
        let symbol = |symbol: &Symbol, nth: usize| {
            let mut found = program.symbols.iter().zip(&self.symbols).filter(|(decl, _)| decl.symbol == *symbol);
            found.nth(nth).map(|(_, position)| *position)
        };
        match &error.cause {
            Cause::DuplicateSymbol(name) => return symbol(name, 1),
            Cause::UnboundSymbol(name) => return symbol(name, 0),
            _ => {}
        }
        let name = error.graph.as_ref()?;
        // Of graphs with one name, the duplicate is the later one.
        let nth = usize::from(matches!(error.cause, Cause::DuplicateGraph));
        let (index, graph) = program.graphs.iter().enumerate().filter(|(_, graph)| graph.name == *name).nth(nth)?;
        let map = self.graphs.get(index)?;
        let Some((value, _)) = error.value else { return Some(map.header) };
        let update_of_value = |nth: usize| {
            let mut found = graph.updates.iter().zip(&map.updates).filter(|(update, _)| update.state == value);
            found.nth(nth).map(|(_, position)| *position)
        };
        let update = match &error.cause {
            Cause::UpdateTarget | Cause::UpdateType { .. } => update_of_value(0),
            Cause::DoubleUpdate => update_of_value(1),
            _ => None,
        };
        update.or_else(|| self.value(index, value)).or(Some(map.header))
    }
}

/// Words that begin a statement, and so must be quoted where they are names of values.
const KEYWORDS: [&str; 6] = ["param", "state", "input", "const", "update", "return"];

/// Whether a name can stand without quotes anywhere.
fn is_plain(name: &str) -> bool {
    let mut bytes = name.bytes();
    let starts = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    starts && bytes.all(lex::continues_name) && !name.ends_with('-') && !name.contains("--")
}

/// Whether a name is read as the id of a value without a name: `v` and digits.
fn is_id(name: &str) -> bool {
    name.strip_prefix('v').is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}
