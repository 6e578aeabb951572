//! Finds Triton kernels: every function under `triton.jit`, by whatever name it goes in the module, with the functions that it calls and those that launch it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use tree_sitter::Node;

use crate::python::{self, Names};

/// A function that Triton compiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// The line of its `def`, from 1.
    pub line: usize,
    /// Where it is, decorators included, in bytes.
    pub span: Range<usize>,
    /// Whether it is under `triton.autotune`.
    pub autotuned: bool,
    /// Whether it is under `triton.heuristics`.
    pub has_heuristics: bool,
    /// The kernels of this module that it calls, directly or through others, by name.
    pub helpers: Vec<String>,
    /// Where the functions are that launch it, as `kernel[grid](...)`.
    pub launchers: Vec<Range<usize>>,
    /// The hash of its tokens without its name, comments and documentation: the same for copies that differ in nothing else.
    pub key: String,
}

struct Function<'t> {
    name: String,
    whole: Node<'t>,
    definition: Node<'t>,
}

/// Every kernel of a Python module, in the order of the text.
pub fn find_kernels(source: &str) -> Vec<Kernel> {
    // Most modules of a corpus never name it.
    if memchr::memmem::find(source.as_bytes(), b"triton").is_none() {
        return Vec::new();
    }
    let Some(tree) = python::parse(source) else { return Vec::new() };
    let names = Names::of(&python::nodes(tree.root_node()), source);
    let mut functions = Vec::new();
    python::visit(tree.root_node(), |node| {
        if node.kind() == "function_definition"
            && let Some(name) = node.child_by_field_name("name")
        {
            let whole = node.parent().filter(|parent| parent.kind() == "decorated_definition").unwrap_or(node);
            functions.push(Function { name: python::text(name, source).to_owned(), whole, definition: node });
        }
    });
    let decorated: Vec<(&Function<'_>, BTreeSet<String>)> = functions
        .iter()
        .map(|function| (function, decorators(function.whole, &names, source)))
        .filter(|(_, decorators)| decorators.contains("jit"))
        .collect();
    let kernels: BTreeSet<&str> = decorated.iter().map(|(function, _)| function.name.as_str()).collect();
    let calls: BTreeMap<&str, BTreeSet<&str>> = decorated
        .iter()
        .map(|(function, _)| (function.name.as_str(), called(function.definition, source, &kernels)))
        .collect();
    let launches: Vec<(&Function<'_>, BTreeSet<&str>)> = functions
        .iter()
        .filter(|function| !kernels.contains(function.name.as_str()))
        .map(|function| (function, launched(function.definition, source, &kernels)))
        .collect();
    decorated
        .iter()
        .map(|(function, decorators)| Kernel {
            name: function.name.clone(),
            line: function.definition.start_position().row + 1,
            span: function.whole.byte_range(),
            autotuned: decorators.contains("autotune"),
            has_heuristics: decorators.contains("heuristics"),
            helpers: reachable(&function.name, &calls),
            launchers: launches
                .iter()
                .filter(|(_, launched)| launched.contains(function.name.as_str()))
                .map(|(launcher, _)| launcher.whole.byte_range())
                .collect(),
            key: key(function.definition, source),
        })
        .collect()
}

/// Whether a function is under `triton.jit`.
pub(crate) fn is_kernel(definition: Node<'_>, names: &Names, source: &str) -> bool {
    let whole = definition.parent().filter(|parent| parent.kind() == "decorated_definition");
    whole.is_some_and(|whole| decorators(whole, names, source).contains("jit"))
}

impl Kernel {
    /// The kernel with what belongs to it, in the order of the text: imports, helpers, the kernel, launchers.
    pub fn text(&self, source: &str, kernels: &[Kernel]) -> String {
        let helpers =
            kernels.iter().filter(|kernel| self.helpers.contains(&kernel.name)).map(|kernel| kernel.span.clone());
        let mut spans: Vec<Range<usize>> = helpers.chain([self.span.clone()]).chain(self.launchers.clone()).collect();
        spans.sort_by_key(|span| (span.start, usize::MAX - span.end));
        let mut text = imports(source);
        let mut end = 0;
        for span in spans.into_iter().filter(|span| !span.is_empty()) {
            // A launcher may stand in another one's function.
            if end <= span.start {
                text.push_str(&dedented(source, span.clone()));
                text.push_str("\n\n");
                end = span.end;
            }
        }
        text
    }
}

/// The decorators of a function that are Triton's, by the last part of their paths.
fn decorators(whole: Node<'_>, names: &Names, source: &str) -> BTreeSet<String> {
    let decorators = python::named_children(whole).into_iter().filter(|child| child.kind() == "decorator");
    decorators
        .filter_map(|decorator| {
            let expression = decorator.named_child(0)?;
            let callee =
                if expression.kind() == "call" { expression.child_by_field_name("function")? } else { expression };
            let path = names.path(callee, source)?;
            let path = path.strip_prefix("triton.")?;
            Some(path.rsplit('.').next().unwrap_or(path).to_owned())
        })
        .collect()
}

/// Which of the kernels a function calls.
fn called<'k>(function: Node<'_>, source: &str, kernels: &BTreeSet<&'k str>) -> BTreeSet<&'k str> {
    callees(function, |callee| (callee.kind() == "identifier").then(|| python::text(callee, source)), kernels)
}

/// Which of the kernels a function launches: it calls a subscript of one.
fn launched<'k>(function: Node<'_>, source: &str, kernels: &BTreeSet<&'k str>) -> BTreeSet<&'k str> {
    let name = |callee: Node<'_>| {
        let value = (callee.kind() == "subscript").then(|| callee.child_by_field_name("value"))??;
        Some(python::text(value, source))
    };
    callees(function, name, kernels)
}

fn callees<'k, 's>(
    function: Node<'_>,
    name: impl Fn(Node<'_>) -> Option<&'s str>,
    kernels: &BTreeSet<&'k str>,
) -> BTreeSet<&'k str> {
    let mut found = BTreeSet::new();
    python::visit(function, |node| {
        if node.kind() == "call"
            && let Some(kernel) =
                node.child_by_field_name("function").and_then(&name).and_then(|name| kernels.get(name))
        {
            found.insert(*kernel);
        }
    });
    found
}

/// The kernels that a call of `from` can come to, without itself.
fn reachable(from: &str, calls: &BTreeMap<&str, BTreeSet<&str>>) -> Vec<String> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&str> = calls.get(from).into_iter().flatten().copied().collect();
    while let Some(name) = open.pop() {
        if name != from && reached.insert(name) {
            open.extend(calls.get(name).into_iter().flatten());
        }
    }
    reached.into_iter().map(str::to_owned).collect()
}

/// The hash of a function's leaves, its name, comments and strings that stand alone left out.
fn key(definition: Node<'_>, source: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    let name = definition.child_by_field_name("name");
    let mut skipped = 0;
    python::visit(definition, |node| {
        let is_statement = node.kind() == "expression_statement";
        let is_documentation = is_statement && node.named_child(0).is_some_and(|child| child.kind() == "string");
        if is_documentation || node.kind() == "comment" {
            skipped = node.end_byte();
        }
        if node.child_count() == 0 && skipped <= node.start_byte() && Some(node) != name {
            hasher.update(python::text(node, source).trim().as_bytes());
            hasher.update(&[0]);
        }
    });
    hasher.finalize().to_hex().to_string()
}

/// The import statements at the module's top, one a line.
fn imports(source: &str) -> String {
    let Some(tree) = python::parse(source) else { return String::new() };
    let statements = python::named_children(tree.root_node());
    let imports = statements
        .into_iter()
        .filter(|node| matches!(node.kind(), "import_statement" | "import_from_statement" | "future_import_statement"));
    let mut text: String = imports.map(|node| format!("{}\n", python::text(node, source))).collect();
    text.push('\n');
    text
}

/// A function's text, moved to the left margin if it stands in a class or a condition.
fn dedented(source: &str, span: Range<usize>) -> String {
    let line = memchr::memrchr(b'\n', &source.as_bytes()[..span.start]).map_or(0, |at| at + 1);
    let indent = &source[line..span.start];
    let text = &source[span];
    if indent.is_empty() || !indent.bytes().all(|byte| byte == b' ' || byte == b'\t') {
        return text.to_owned();
    }
    let lines: Vec<&str> = text.lines().map(|line| line.strip_prefix(indent).unwrap_or(line)).collect();
    lines.join("\n")
}
