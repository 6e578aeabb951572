//! The code mode: token boundaries where the syntax has them, and marks for keywords, operators and blocks.
//!
//! A source is cut at the leaves of its syntax tree, as tree-sitter finds it, and each leaf is encoded by itself: no token has bytes of two leaves.
//! Where the tokenizer's layout has marks, keywords and operators are theirs, and the blocks of Python start and end with marks that have no bytes.
//! What lies between leaves is encoded too; a blank that precedes a leaf without a mark goes with it, as in texts. So decoding gives the bytes back,
//! whatever they are: where a source is broken its tree has errors and gaps, and its bytes are all still there.

use std::ops::Range;

use tree_sitter::{Node, Parser};

use crate::error::TokenizerError;
use crate::{Tokenizer, marks};

/// A language whose syntax is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// Python, Triton among it.
    Python,
    /// Rust.
    Rust,
    /// JavaScript, with JSX.
    JavaScript,
    /// TypeScript.
    TypeScript,
    /// TypeScript with JSX.
    Tsx,
    /// C.
    C,
    /// C++.
    Cpp,
    /// Go.
    Go,
    /// Java.
    Java,
}

impl Language {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Python,
        Self::Rust,
        Self::JavaScript,
        Self::TypeScript,
        Self::Tsx,
        Self::C,
        Self::Cpp,
        Self::Go,
        Self::Java,
    ];

    /// Its name, in small letters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Rust => "rust",
            Self::JavaScript => "javascript",
            Self::TypeScript => "typescript",
            Self::Tsx => "tsx",
            Self::C => "c",
            Self::Cpp => "cpp",
            Self::Go => "go",
            Self::Java => "java",
        }
    }

    /// The language of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|language| language.name() == name)
    }

    /// The language that files with this extension are in.
    pub fn of_extension(extension: &str) -> Option<Self> {
        Some(match extension {
            "py" | "pyi" | "pyw" => Self::Python,
            "rs" => Self::Rust,
            "js" | "jsx" | "mjs" | "cjs" => Self::JavaScript,
            "ts" | "mts" | "cts" => Self::TypeScript,
            "tsx" => Self::Tsx,
            "c" | "h" => Self::C,
            "cc" | "cpp" | "cxx" | "hh" | "hpp" | "hxx" | "cu" | "cuh" => Self::Cpp,
            "go" => Self::Go,
            "java" => Self::Java,
            _ => return None,
        })
    }

    fn grammar(self) -> tree_sitter::Language {
        match self {
            Self::Python => tree_sitter_python::LANGUAGE,
            Self::Rust => tree_sitter_rust::LANGUAGE,
            Self::JavaScript => tree_sitter_javascript::LANGUAGE,
            Self::TypeScript => tree_sitter_typescript::LANGUAGE_TYPESCRIPT,
            Self::Tsx => tree_sitter_typescript::LANGUAGE_TSX,
            Self::C => tree_sitter_c::LANGUAGE,
            Self::Cpp => tree_sitter_cpp::LANGUAGE,
            Self::Go => tree_sitter_go::LANGUAGE,
            Self::Java => tree_sitter_java::LANGUAGE,
        }
        .into()
    }
}

/// A part of a source that is one node of its syntax tree: a candidate to be filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its bytes.
    pub range: Range<usize>,
    /// What the grammar calls it.
    pub kind: String,
    /// How many nodes it is within.
    pub depth: usize,
}

/// The parts of a source that are whole nodes of its syntax tree, in the order in which they start, the outermost first; not its errors, what
/// holds one, nor the source as a whole.
///
/// # Errors
///
/// If the grammar is of another version than the parser.
pub fn spans(source: &[u8], language: Language) -> Result<Vec<Span>, TokenizerError> {
    let tree = parse(source, language)?;
    let mut spans = Vec::new();
    walk(tree.root_node(), |step| {
        if let Step::Enter(node, depth) = step
            && 0 < depth
            && node.is_named()
            && !node.has_error()
            && !node.byte_range().is_empty()
        {
            spans.push(Span { range: node.byte_range(), kind: node.kind().to_owned(), depth });
        }
    });
    Ok(spans)
}

impl Tokenizer {
    /// The ids of a source in some language; decoded they are its bytes.
    ///
    /// # Errors
    ///
    /// If the grammar is of another version than the parser.
    pub fn encode_code(&self, source: &[u8], language: Language) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::with_capacity(source.len() / 2);
        let mut end = 0;
        for piece in pieces(source, language)? {
            let Piece { range, mark, openings, closings } = piece;
            let mark = mark.and_then(|mark| self.mark_id(mark));
            let mut start = range.start;
            let follows_blank = end < start && source[start - 1] == b' ';
            if follows_blank && mark.is_none() && openings == 0 {
                start -= 1;
            }
            self.append_ids(&source[end..start], &mut ids);
            if let Some(indent) = self.mark_id(marks::INDENT) {
                ids.extend(std::iter::repeat_n(indent, openings));
            }
            match mark {
                Some(mark) => ids.push(mark),
                None => self.append_ids(&source[start..range.end], &mut ids),
            }
            if let Some(dedent) = self.mark_id(marks::DEDENT) {
                ids.extend(std::iter::repeat_n(dedent, closings));
            }
            end = range.end;
        }
        self.append_ids(&source[end..], &mut ids);
        Ok(ids)
    }

    /// The ids of a source of which one part is moved behind the rest, for a model that learns to fill it in: prefix, suffix, middle, each after its
    /// mark. Nothing where the layout has no such marks, or the part is none of the source.
    pub fn encode_to_fill(&self, source: &[u8], part: Range<usize>) -> Option<Vec<u32>> {
        let (prefix, middle, suffix) = (source.get(..part.start)?, source.get(part.clone())?, source.get(part.end..)?);
        let mut ids = Vec::new();
        for (mark, bytes) in [(marks::FIM_PREFIX, prefix), (marks::FIM_SUFFIX, suffix), (marks::FIM_MIDDLE, middle)] {
            ids.push(self.mark_id(mark)?);
            ids.extend(self.encode(bytes));
        }
        Some(ids)
    }

    fn mark_id(&self, mark: u32) -> Option<u32> {
        self.layout().and_then(|layout| layout.mark_id(mark))
    }

    fn append_ids(&self, bytes: &[u8], ids: &mut Vec<u32>) {
        if !bytes.is_empty() {
            ids.extend(self.encode(bytes));
        }
    }
}

/// A leaf.
struct Piece {
    range: Range<usize>,
    /// The mark of the keyword or operator that it is.
    mark: Option<u32>,
    /// How many blocks start with it.
    openings: usize,
    /// How many blocks end with it.
    closings: usize,
}

/// The leaves of a source, in order and apart from each other.
fn pieces(source: &[u8], language: Language) -> Result<Vec<Piece>, TokenizerError> {
    let tree = parse(source, language)?;
    let is_block = |node: &Node<'_>| language == Language::Python && node.kind() == "block";
    let mut pieces: Vec<Piece> = Vec::new();
    let (mut openings, mut n_open) = (0, 0);
    walk(tree.root_node(), |step| match step {
        Step::Enter(node, _) => {
            openings += usize::from(is_block(&node));
            let range = node.byte_range();
            let end = pieces.last().map_or(0, |piece| piece.range.end);
            if node.child_count() == 0 && !range.is_empty() && end <= range.start && range.end <= source.len() {
                let mark = mark(&node, &source[range.clone()]);
                pieces.push(Piece { range, mark, openings, closings: 0 });
                n_open += openings;
                openings = 0;
            }
        }
        Step::Leave(node) => {
            if is_block(&node) {
                if 0 < openings {
                    // The block has no leaf, so it has no place either.
                    openings -= 1;
                } else if let Some(piece) = pieces.last_mut().filter(|_| 0 < n_open) {
                    piece.closings += 1;
                    n_open -= 1;
                }
            }
        }
    });
    Ok(pieces)
}

/// The mark of a leaf that the grammar spells out, or that is a constant of the language; words in strings and comments have none.
fn mark(node: &Node<'_>, text: &[u8]) -> Option<u32> {
    let is_constant = matches!(
        node.kind(),
        "true"
            | "false"
            | "none"
            | "null"
            | "nil"
            | "iota"
            | "this"
            | "self"
            | "super"
            | "crate"
            | "primitive_type"
            | "undefined"
    );
    if node.is_named() && !is_constant {
        return None;
    }
    std::str::from_utf8(text).ok().and_then(marks::of_text)
}

fn parse(source: &[u8], language: Language) -> Result<tree_sitter::Tree, TokenizerError> {
    let wrong = |error: String| TokenizerError::Grammar { language: language.name(), error };
    let mut parser = Parser::new();
    parser.set_language(&language.grammar()).map_err(|error| wrong(error.to_string()))?;
    parser.parse(source, None).ok_or_else(|| wrong("the parser was stopped".to_owned()))
}

enum Step<'a> {
    Enter(Node<'a>, usize),
    Leave(Node<'a>),
}

/// Goes through a tree without recursion: sources may be nested deeper than a thread's stack is.
fn walk<'a>(root: Node<'a>, mut visit: impl FnMut(Step<'a>)) {
    let mut cursor = root.walk();
    let mut depth = 0;
    visit(Step::Enter(root, depth));
    loop {
        if cursor.goto_first_child() {
            depth += 1;
            visit(Step::Enter(cursor.node(), depth));
            continue;
        }
        loop {
            visit(Step::Leave(cursor.node()));
            if cursor.goto_next_sibling() {
                visit(Step::Enter(cursor.node(), depth));
                break;
            }
            if !cursor.goto_parent() {
                return;
            }
            depth -= 1;
        }
    }
}
