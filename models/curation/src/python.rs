//! Python's syntax tree, as far as several stages need it: a walk that cannot overflow the stack, and names resolved through imports.

use std::collections::BTreeMap;

use tree_sitter::{Node, Parser, Tree};

/// Parses a module. Wrong syntax gives a tree with error nodes in it; `None` stands only for a grammar that this build cannot load.
pub(crate) fn parse(text: &str) -> Option<Tree> {
    let mut parser = Parser::new();
    parser.set_language(&tree_sitter_python::LANGUAGE.into()).ok()?;
    parser.parse(text, None)
}

/// Visits a node and all below it, parents first, in the order of the text.
pub(crate) fn visit<'t>(node: Node<'t>, mut visit: impl FnMut(Node<'t>)) {
    let mut cursor = node.walk();
    loop {
        visit(cursor.node());
        if cursor.goto_first_child() {
            continue;
        }
        while !cursor.goto_next_sibling() {
            if !cursor.goto_parent() {
                return;
            }
        }
    }
}

/// A node and all below it that have names in the grammar, parents first, in the order of the text: what several stages look through, walked once.
pub(crate) fn nodes(root: Node<'_>) -> Vec<Node<'_>> {
    let mut nodes = Vec::new();
    visit(root, |node| {
        if node.is_named() {
            nodes.push(node);
        }
    });
    nodes
}

/// The text of a node.
pub(crate) fn text<'s>(node: Node<'_>, source: &'s str) -> &'s str {
    source.get(node.byte_range()).unwrap_or_default()
}

/// The children of a node that have names in the grammar.
pub(crate) fn named_children<'t>(node: Node<'t>) -> Vec<Node<'t>> {
    let mut cursor = node.walk();
    node.named_children(&mut cursor).collect()
}

/// A node without the parentheses around it, which mean nothing.
pub(crate) fn bare(mut node: Node<'_>) -> Node<'_> {
    while node.kind() == "parenthesized_expression"
        && let Some(inner) = node.named_child(0)
    {
        node = inner;
    }
    node
}

/// What a node stands in, without parentheses.
pub(crate) fn parent(node: Node<'_>) -> Option<Node<'_>> {
    let mut parent = node.parent()?;
    while parent.kind() == "parenthesized_expression" {
        parent = parent.parent()?;
    }
    Some(parent)
}

/// A string literal, or several in a row, which are one.
pub(crate) struct Literal {
    /// The texts between interpolations, escapes resolved; those of an f-string that are empty are left out.
    pub(crate) pieces: Vec<String>,
    /// Whether it has interpolations.
    pub(crate) is_formatted: bool,
    /// Whether it is of bytes.
    pub(crate) is_bytes: bool,
}

impl Literal {
    /// The literal that a node is. A part of several in a row is none by itself.
    pub(crate) fn of(node: Node<'_>, source: &str) -> Option<Literal> {
        let strings = match node.kind() {
            "string" if node.parent().is_some_and(|parent| parent.kind() == "concatenated_string") => return None,
            "string" => vec![node],
            "concatenated_string" => named_children(node),
            _ => return None,
        };
        let mut literal = Literal { pieces: vec![String::new()], is_formatted: false, is_bytes: false };
        for string in strings.into_iter().filter(|string| string.kind() == "string") {
            literal.add(string, source);
        }
        if literal.is_formatted {
            literal.pieces.retain(|piece| !piece.is_empty());
        }
        Some(literal)
    }

    fn add(&mut self, string: Node<'_>, source: &str) {
        let mut is_raw = false;
        let mut cursor = string.walk();
        for part in string.children(&mut cursor) {
            match part.kind() {
                "string_start" => {
                    let prefix = text(part, source).to_ascii_lowercase();
                    is_raw = prefix.contains('r');
                    self.is_bytes |= prefix.contains('b');
                }
                "interpolation" => {
                    self.is_formatted = true;
                    self.pieces.push(String::new());
                }
                "string_content" => {
                    if let Some(piece) = self.pieces.last_mut() {
                        if is_raw { piece.push_str(text(part, source)) } else { unescape(text(part, source), piece) }
                    }
                }
                _ => {}
            }
        }
    }

    /// Its text, if it is text and has no interpolation.
    pub(crate) fn plain(node: Node<'_>, source: &str) -> Option<String> {
        let literal = Literal::of(bare(node), source)?;
        (!literal.is_formatted && !literal.is_bytes).then(|| literal.pieces.concat())
    }
}

/// Resolves the escapes that stand for white space, quotes and themselves; the others stay as they are.
fn unescape(text: &str, out: &mut String) {
    let mut rest = text.chars();
    while let Some(first) = rest.next() {
        if first != '\\' {
            out.push(first);
            continue;
        }
        match rest.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some('\n') => {}
            Some(quoted @ ('\\' | '\'' | '"')) => out.push(quoted),
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
}

/// The full path of everything that a module imports.
pub(crate) fn imports(nodes: &[Node<'_>], source: &str) -> Vec<String> {
    let mut paths = Vec::new();
    each_import(nodes, source, |path, _| paths.push(path));
    paths
}

/// Gives the full path of everything that is imported, with its statement.
pub(crate) fn each_import<'t>(nodes: &[Node<'t>], source: &str, mut found: impl FnMut(String, Node<'t>)) {
    for node in nodes.iter().copied() {
        let module = match node.kind() {
            "import_statement" => None,
            "import_from_statement" => node.child_by_field_name("module_name"),
            _ => continue,
        };
        let prefix = module.map_or(String::new(), |module| format!("{}.", text(module, source)));
        for child in named_children(node).into_iter().filter(|child| Some(*child) != module) {
            let name = match child.kind() {
                "aliased_import" => child.child_by_field_name("name"),
                "dotted_name" => Some(child),
                _ => None,
            };
            if let Some(name) = name {
                found(format!("{prefix}{}", text(name, source)), node);
            }
        }
    }
}

/// What the names of a module stand for: a local name and the dotted path that was imported, or assigned to it once more.
#[derive(Debug, Default)]
pub(crate) struct Names {
    paths: BTreeMap<String, String>,
}

impl Names {
    /// Reads every import of a module, in functions too, and assignments of a path that starts with an imported name.
    pub(crate) fn of(nodes: &[Node<'_>], source: &str) -> Names {
        let mut names = Names::default();
        for node in nodes {
            match node.kind() {
                "import_statement" => names.import(*node, source),
                "import_from_statement" => names.import_from(*node, source),
                "assignment" => names.assign(*node, source),
                _ => {}
            }
        }
        names
    }

    fn import(&mut self, node: Node<'_>, source: &str) {
        for child in named_children(node) {
            match child.kind() {
                "dotted_name" => {
                    let first = text(child, source).split('.').next().unwrap_or_default();
                    self.paths.insert(first.to_owned(), first.to_owned());
                }
                "aliased_import" => self.alias("", child, source),
                _ => {}
            }
        }
    }

    fn import_from(&mut self, node: Node<'_>, source: &str) {
        let Some(module) = node.child_by_field_name("module_name") else { return };
        let path = text(module, source);
        for child in named_children(node) {
            match child.kind() {
                "dotted_name" if child != module => {
                    let name = text(child, source);
                    self.paths.insert(name.to_owned(), format!("{path}.{name}"));
                }
                "aliased_import" => self.alias(path, child, source),
                _ => {}
            }
        }
    }

    fn alias(&mut self, module: &str, node: Node<'_>, source: &str) {
        let (Some(name), Some(alias)) = (node.child_by_field_name("name"), node.child_by_field_name("alias")) else {
            return;
        };
        let name = text(name, source);
        let path = if module.is_empty() { name.to_owned() } else { format!("{module}.{name}") };
        self.paths.insert(text(alias, source).to_owned(), path);
    }

    /// `name = path`, where the path's first name is imported.
    fn assign(&mut self, node: Node<'_>, source: &str) {
        let (Some(left), Some(right)) = (node.child_by_field_name("left"), node.child_by_field_name("right")) else {
            return;
        };
        if left.kind() == "identifier"
            && matches!(right.kind(), "identifier" | "attribute")
            && let Some(first) = text(right, source).split('.').next()
            && self.paths.contains_key(first)
            && let Some(path) = self.path(right, source)
        {
            self.paths.entry(text(left, source).to_owned()).or_insert(path);
        }
    }

    /// The dotted path that an expression names, its first part resolved: `sp.run` after `import subprocess as sp` is `subprocess.run`.
    pub(crate) fn path(&self, node: Node<'_>, source: &str) -> Option<String> {
        match node.kind() {
            "identifier" => {
                let name = text(node, source);
                Some(self.paths.get(name).map_or(name, String::as_str).to_owned())
            }
            "attribute" => {
                let object = self.path(node.child_by_field_name("object")?, source)?;
                Some(format!("{object}.{}", text(node.child_by_field_name("attribute")?, source)))
            }
            _ => None,
        }
    }
}
