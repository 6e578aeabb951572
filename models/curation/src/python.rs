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

/// The text of a node.
pub(crate) fn text<'s>(node: Node<'_>, source: &'s str) -> &'s str {
    source.get(node.byte_range()).unwrap_or_default()
}

/// The children of a node that have names in the grammar.
pub(crate) fn named_children<'t>(node: Node<'t>) -> Vec<Node<'t>> {
    let mut cursor = node.walk();
    node.named_children(&mut cursor).collect()
}

/// What the names of a module stand for: a local name and the dotted path that was imported, or assigned to it once more.
#[derive(Debug, Default)]
pub(crate) struct Names {
    paths: BTreeMap<String, String>,
}

impl Names {
    /// Reads every import of a module, in functions too, and assignments of a path that starts with an imported name.
    pub(crate) fn of(root: Node<'_>, source: &str) -> Names {
        let mut names = Names::default();
        visit(root, |node| match node.kind() {
            "import_statement" => names.import(node, source),
            "import_from_statement" => names.import_from(node, source),
            "assignment" => names.assign(node, source),
            _ => {}
        });
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
