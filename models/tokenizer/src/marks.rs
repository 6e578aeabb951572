//! Marks of syntax: the numbers of keywords and operators of eight languages, and of what has no bytes.
//!
//! The numbers are part of every vocabulary that has marks, so these lists only ever grow at their ends. Keywords have the marks from 0 on, operators
//! those from 736 on, what has no bytes those from 1236 on, as in the original's vocabulary.

use std::collections::HashMap;
use std::sync::LazyLock;

const FIRST_OPERATOR: u32 = 736;
const FIRST_STRUCTURE: u32 = 1236;

/// A block is indented from here on.
pub const INDENT: u32 = FIRST_STRUCTURE;
/// A block ends here.
pub const DEDENT: u32 = FIRST_STRUCTURE + 1;
/// What stands before the part that is to be filled in.
pub const FIM_PREFIX: u32 = FIRST_STRUCTURE + 2;
/// The part that is to be filled in.
pub const FIM_MIDDLE: u32 = FIRST_STRUCTURE + 3;
/// What stands after it.
pub const FIM_SUFFIX: u32 = FIRST_STRUCTURE + 4;

/// Python's first, then those that Rust, JavaScript, TypeScript, C, C++, Go and Java add.
const KEYWORDS: &[&str] = &[
    "False",
    "None",
    "True",
    "and",
    "as",
    "assert",
    "async",
    "await",
    "break",
    "class",
    "continue",
    "def",
    "del",
    "elif",
    "else",
    "except",
    "finally",
    "for",
    "from",
    "global",
    "if",
    "import",
    "in",
    "is",
    "lambda",
    "nonlocal",
    "not",
    "or",
    "pass",
    "raise",
    "return",
    "try",
    "while",
    "with",
    "yield",
    "match",
    "case",
    "type",
    "print",
    "exec", // Rust
    "Self",
    "const",
    "crate",
    "dyn",
    "enum",
    "extern",
    "false",
    "fn",
    "impl",
    "let",
    "loop",
    "mod",
    "move",
    "mut",
    "pub",
    "ref",
    "self",
    "static",
    "struct",
    "super",
    "trait",
    "true",
    "union",
    "unsafe",
    "use",
    "where",
    "macro_rules!",
    "default",
    "gen",
    "raw",
    "bool",
    "char",
    "f32",
    "f64",
    "i8",
    "i16",
    "i32",
    "i64",
    "i128",
    "isize",
    "str",
    "u8",
    "u16",
    "u32",
    "u64",
    "u128",
    "usize", // JavaScript
    "catch",
    "debugger",
    "delete",
    "do",
    "export",
    "extends",
    "function",
    "get",
    "instanceof",
    "new",
    "null",
    "of",
    "set",
    "switch",
    "target",
    "this",
    "throw",
    "typeof",
    "undefined",
    "using",
    "var",
    "void", // TypeScript
    "abstract",
    "accessor",
    "any",
    "asserts",
    "declare",
    "global",
    "implements",
    "infer",
    "interface",
    "keyof",
    "module",
    "namespace",
    "never",
    "number",
    "object",
    "override",
    "private",
    "protected",
    "public",
    "readonly",
    "require",
    "satisfies",
    "string",
    "symbol",
    "unique",
    "unknown",
    // C
    "auto",
    "double",
    "float",
    "goto",
    "inline",
    "int",
    "long",
    "register",
    "restrict",
    "short",
    "signed",
    "sizeof",
    "typedef",
    "unsigned",
    "volatile",
    "NULL",
    "_Alignas",
    "_Alignof",
    "_Atomic",
    "_Generic",
    "_Noreturn",
    "alignas",
    "alignof",
    "noreturn",
    "offsetof",
    "size_t",
    "#define",
    "#elif",
    "#else",
    "#endif",
    "#if",
    "#ifdef",
    "#ifndef",
    "#include", // C++
    "co_await",
    "co_return",
    "co_yield",
    "concept",
    "consteval",
    "constexpr",
    "constinit",
    "decltype",
    "explicit",
    "final",
    "friend",
    "mutable",
    "noexcept",
    "nullptr",
    "operator",
    "requires",
    "static_assert",
    "template",
    "thread_local",
    "typename",
    "virtual", // Go
    "chan",
    "defer",
    "fallthrough",
    "func",
    "go",
    "iota",
    "map",
    "nil",
    "package",
    "range",
    "select", // Java
    "boolean",
    "byte",
    "exports",
    "native",
    "non-sealed",
    "open",
    "opens",
    "permits",
    "provides",
    "record",
    "sealed",
    "strictfp",
    "synchronized",
    "throws",
    "to",
    "transient",
    "transitive",
    "uses",
    "when",
    "with",
    "yield",
    "@interface",
];

const OPERATORS: &[&str] = &[
    "+", "-", "*", "/", "%", "=", "==", "!=", "<", ">", "<=", ">=", "&", "|", "^", "~", "<<", ">>", "(", ")", "{", "}",
    "[", "]", ",", ";", ":", ".", "->", "=>", "**", "//", "@", ":=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=",
    "<<=", ">>=", "**=", "//=", "@=", "<>", "...", "!", "?", "&&", "||", "::", "..", "..=", "#", "$", "'", "\"", "++",
    "--", "===", "!==", ">>>", ">>>=", "?.", "??", "??=", "&&=", "||=", "<-", "&^", "&^=", ".*", "->*", "<=>", "`",
    "${", "\\", "\"\"\"", "#!", "|>", "@@", "&raw", "-?:", "+?:", "?:", "{|", "|}", "/*", "*/", "##",
];

static NUMBERS: LazyLock<HashMap<&str, u32>> = LazyLock::new(|| {
    // A word that a later language has again keeps its first number.
    let words = (0..).zip(KEYWORDS).chain((FIRST_OPERATOR..).zip(OPERATORS));
    let mut numbers = HashMap::new();
    for (number, word) in words {
        numbers.entry(*word).or_insert(number);
    }
    numbers
});

/// The mark of a keyword or an operator.
pub fn of_text(text: &str) -> Option<u32> {
    NUMBERS.get(text).copied()
}

/// What a mark stands for; nothing where it has no bytes, or is none.
pub fn text(mark: u32) -> &'static str {
    let words = match mark {
        ..FIRST_OPERATOR => KEYWORDS.get(mark as usize),
        FIRST_OPERATOR..FIRST_STRUCTURE => OPERATORS.get((mark - FIRST_OPERATOR) as usize),
        _ => None,
    };
    words.copied().unwrap_or_default()
}
