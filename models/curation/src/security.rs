//! Finds code that is dangerous as it is written, in the syntax trees of Python (Triton among it), Rust and CUDA: names are resolved through imports, arguments
//! decide where they do, and input from outside is followed to where it harms.
//!
//! `model.eval()` is a method of a model and no call of the built-in `eval`; text in comments and strings is no call at all.

mod calls;
mod statements;
mod taint;
mod triton;
mod cuda;
mod rust;

use std::borrow::Cow;

use tree_sitter::{Node, Parser, Tree};

use crate::judge::Severity;
use crate::python::{self, Names};

/// A rule: what is wrong, and how bad it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name.
    pub id: &'static str,
    /// The test of bandit that says the same of Python; empty if none does.
    pub bandit: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, for people.
    pub message: &'static str,
}

/// A dangerous place.
#[derive(Debug, Clone)]
pub struct Danger {
    /// The rule that found it.
    pub rule: &'static Rule,
    /// Its line, from 1.
    pub line: usize,
    /// Its column, in bytes from 1.
    pub column: usize,
    /// The rule's message, or what is wrong at this place.
    pub message: Cow<'static, str>,
}

/// Languages that have rules, by the names of [`crate::quality::code::LANGUAGES`].
pub const LANGUAGES: &[&str] = &["python", "rust", "cuda"];

/// Every dangerous place of a source in a language of [`LANGUAGES`], in the order of the text; none in other languages.
pub fn find_dangers(language: &str, source: &str) -> Vec<Danger> {
    let mut found = match language {
        "python" => find_in_python(source),
        "rust" => rust::find(source),
        "cuda" => cuda::find(source),
        _ => Vec::new(),
    };
    found.sort_by_key(|danger| (danger.line, danger.column, danger.rule.id));
    found
}

/// Every rule, by language.
pub fn rules() -> impl Iterator<Item = (&'static str, &'static Rule)> {
    let python = calls::RULES.iter().map(|rule| &rule.rule).chain(statements::rules()).chain(taint::RULES);
    let python = python.chain(triton::RULES).map(|rule| ("python", rule));
    python
        .chain(rust::RULES.into_iter().map(|rule| ("rust", rule)))
        .chain(cuda::RULES.into_iter().map(|rule| ("cuda", rule)))
}

fn find_in_python(source: &str) -> Vec<Danger> {
    let Some(tree) = python::parse(source) else { return Vec::new() };
    let nodes = python::nodes(tree.root_node());
    let module = Module { source, names: Names::of(&nodes, source), imports: python::imports(&nodes, source) };
    let mut found = Vec::new();
    calls::find(&nodes, &module, &mut found);
    statements::find(&nodes, &module, &mut found);
    taint::find(&nodes, &module, &mut found);
    triton::find(&nodes, &module, &mut found);
    found
}

/// A Python module whose tree is looked at.
struct Module<'s> {
    source: &'s str,
    names: Names,
    /// What it imports, by full paths.
    imports: Vec<String>,
}

impl Module<'_> {
    /// Whether a module, or something in it, is imported.
    fn imports(&self, module: &str) -> bool {
        self.imports
            .iter()
            .any(|path| path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    }
}

impl Danger {
    /// A finding of a rule at the start of a node.
    fn at(rule: &'static Rule, node: Node<'_>) -> Danger {
        let place = node.start_position();
        Danger { rule, line: place.row + 1, column: place.column + 1, message: rule.message.into() }
    }
}

/// A call with its parts.
struct Call<'t, 's> {
    node: Node<'t>,
    /// The path that is called, resolved through imports; empty if it is no path.
    path: String,
    /// The last part of what is called.
    name: &'s str,
    positional: Vec<Node<'t>>,
    keywords: Vec<(&'s str, Node<'t>)>,
}

impl<'t, 's> Call<'t, 's> {
    /// The call that a node is.
    fn of(node: Node<'t>, module: &Module<'s>) -> Option<Call<'t, 's>> {
        if node.kind() != "call" {
            return None;
        }
        let callee = python::bare(node.child_by_field_name("function")?);
        let path = module.names.path(callee, module.source).unwrap_or_default();
        let name = match callee.kind() {
            "attribute" => python::text(callee.child_by_field_name("attribute")?, module.source),
            "identifier" => python::text(callee, module.source),
            _ => "",
        };
        let arguments = node.child_by_field_name("arguments")?;
        let (mut positional, mut keywords) = (Vec::new(), Vec::new());
        // A lone generator has no list around it.
        let arguments =
            if arguments.kind() == "argument_list" { python::named_children(arguments) } else { vec![arguments] };
        for argument in arguments {
            match argument.kind() {
                "comment" | "dictionary_splat" => {}
                "keyword_argument" => {
                    let name = argument.child_by_field_name("name").map(|name| python::text(name, module.source));
                    if let (Some(name), Some(value)) = (name, argument.child_by_field_name("value")) {
                        keywords.push((name, python::bare(value)));
                    }
                }
                _ => positional.push(python::bare(argument)),
            }
        }
        Some(Call { node, path, name, positional, keywords })
    }

    fn keyword(&self, name: &str) -> Option<Node<'t>> {
        self.keywords.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    /// A keyword argument, or the positional one in its place.
    fn argument(&self, name: &str, at: usize) -> Option<Node<'t>> {
        self.keyword(name).or_else(|| self.positional.get(at).copied())
    }
}

/// Parses a source of another language than Python.
fn parse(language: tree_sitter::Language, source: &str) -> Option<Tree> {
    let mut parser = Parser::new();
    parser.set_language(&language).ok()?;
    parser.parse(source, None)
}
