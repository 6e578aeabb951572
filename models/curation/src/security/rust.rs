//! Rust that is dangerous as it is written: `unsafe` without its reason, bits taken for another type, commands and SQL made of texts.

use tree_sitter::Node;

use super::{Danger, Rule, parse};
use crate::judge::Severity::{self, High, Low, Medium};
use crate::python::{named_children, text, visit};

const fn rule(id: &'static str, severity: Severity, message: &'static str) -> Rule {
    Rule { id, bandit: "", severity, message }
}

static UNEXPLAINED: Rule =
    rule("unexplained-unsafe", Low, "does not say why it is sound: no comment `SAFETY:` before it");
static TRANSMUTE: Rule = rule("transmute", Medium, "takes bits for another type, whatever they are");
static UNINITIALISED: Rule = rule("uninitialised", High, "a value that nobody has written");
static MUTABLE_STATIC: Rule = rule("mutable-static", Medium, "any thread may write it while another reads");
static SHELL: Rule = rule("shell", High, "gives a text that is put together to a shell");
static UNVERIFIED: Rule = rule("unverified-request", High, "takes any certificate");
static SQL: Rule = rule("sql-text", High, "puts text into SQL; parameters keep it apart");
static UNWRAP: Rule =
    rule("unwrap-beside-result", Low, "ends the program, where the function could give the error back");

/// Every rule of this file.
pub(super) static RULES: [&Rule; 8] =
    [&UNEXPLAINED, &TRANSMUTE, &UNINITIALISED, &MUTABLE_STATIC, &SHELL, &UNVERIFIED, &SQL, &UNWRAP];

/// Finds what a source has.
pub(super) fn find(source: &str) -> Vec<Danger> {
    let Some(tree) = parse(tree_sitter_rust::LANGUAGE.into(), source) else { return Vec::new() };
    let mut found = Vec::new();
    let rows: Vec<&str> = source.lines().collect();
    visit(tree.root_node(), |node| match node.kind() {
        "unsafe_block" if !is_explained(node, &rows) => found.push(Danger::at(&UNEXPLAINED, node)),
        "impl_item" if is_unsafe(node) && !is_explained(node, &rows) => found.push(Danger::at(&UNEXPLAINED, node)),
        "static_item" if named_children(node).iter().any(|child| child.kind() == "mutable_specifier") => {
            found.push(Danger::at(&MUTABLE_STATIC, node));
        }
        "call_expression" => call(node, source, &mut found),
        _ => {}
    });
    found
}

fn is_unsafe(item: Node<'_>) -> bool {
    item.child(0).is_some_and(|first| first.kind() == "unsafe")
}

/// Whether the line, or the comments and attributes above the statement that it is in, say `SAFETY`.
fn is_explained(node: Node<'_>, rows: &[&str]) -> bool {
    let mut first = node;
    while let Some(parent) = first.parent().filter(|parent| {
        !matches!(
            parent.kind(),
            "block" | "declaration_list" | "source_file" | "match_block" | "field_initializer_list"
        )
    }) {
        first = parent;
    }
    let says = |row: &&str| row.to_ascii_lowercase().contains("safety");
    let is_beside = |row: usize| rows.get(row).is_some_and(says);
    let above = |row: usize| {
        let above = rows[..row.min(rows.len())].iter().rev().map(|row| row.trim_start());
        above.take_while(|row| row.starts_with("//") || row.starts_with("#[")).any(|row| says(&row))
    };
    let (start, own) = (first.start_position().row, node.start_position().row);
    // The first comment within the block may say it too.
    let within = || {
        node.end_position().row != own
            && rows.get(own + 1).is_some_and(|row| row.trim_start().starts_with("//") && says(row))
    };
    is_beside(own) || above(own) || above(start) || within()
}

fn call(node: Node<'_>, source: &str, found: &mut Vec<Danger>) {
    let Some(function) = node.child_by_field_name("function") else { return };
    // `transmute::<A, B>` is a generic function with a path in it.
    let function = if function.kind() == "generic_function" {
        function.child_by_field_name("function").unwrap_or(function)
    } else {
        function
    };
    let arguments = node.child_by_field_name("arguments").map_or(Vec::new(), named_children);
    match function.kind() {
        "identifier" | "scoped_identifier" => {
            let path = text(function, source);
            let is_in_memory = |name: &str| {
                path.rsplit("::").next() == Some(name)
                    && (path == name || path.contains("mem::") || path.contains("intrinsics::"))
            };
            if is_in_memory("transmute") || is_in_memory("transmute_copy") {
                found.push(Danger::at(&TRANSMUTE, node));
            } else if path.ends_with("mem::uninitialized") {
                found.push(Danger::at(&UNINITIALISED, node));
            } else if path.ends_with("query")
                && path.contains("sqlx")
                && arguments.first().is_some_and(|sql| is_made(*sql, source))
            {
                found.push(Danger::at(&SQL, node));
            }
        }
        "field_expression" => method(node, function, &arguments, source, found),
        _ => {}
    }
}

fn method(node: Node<'_>, function: Node<'_>, arguments: &[Node<'_>], source: &str, found: &mut Vec<Danger>) {
    let name = function.child_by_field_name("field").map_or("", |name| text(name, source));
    let object = function.child_by_field_name("value").map_or("", |object| text(object, source));
    // An argument of a list that does not parse as one.
    let first = arguments.first().copied();
    let of_first = || first.map_or("", |first| text(first, source));
    match name {
        "assume_init" if object.ends_with("MaybeUninit::uninit()") => found.push(Danger::at(&UNINITIALISED, node)),
        "danger_accept_invalid_certs" | "danger_accept_invalid_hostnames" if of_first() == "true" => {
            found.push(Danger::at(&UNVERIFIED, node));
        }
        "arg" if first.is_some_and(|command| is_made(command, source)) && starts_shell(object) => {
            found.push(Danger::at(&SHELL, node));
        }
        "execute" | "query" | "query_row" | "prepare" if first.is_some_and(|sql| is_sql_made(sql, source)) => {
            found.push(Danger::at(&SQL, node));
        }
        "unwrap" | "expect" if gives_result(node, source) => {
            found.push(Danger::at(&UNWRAP, function.child_by_field_name("field").unwrap_or(node)))
        }
        _ => {}
    }
}

/// Whether a chain of calls is `Command::new("sh").arg("-c")`, of whatever shell.
fn starts_shell(object: &str) -> bool {
    const SHELLS: &[&str] = &["sh", "bash", "zsh", "/bin/sh", "/bin/bash", "cmd", "cmd.exe", "powershell"];
    let starts = SHELLS.iter().any(|shell| object.contains(&format!("Command::new(\"{shell}\")")));
    starts && ["\"-c\"", "\"/C\"", "\"/c\"", "\"-Command\""].iter().any(|flag| object.contains(flag))
}

/// Whether an expression puts a text together.
fn is_made(node: Node<'_>, source: &str) -> bool {
    let text = text(node, source).trim_start_matches('&').trim_start();
    text.starts_with("format!") && text.contains('{') || node.kind() == "binary_expression" && text.contains('+')
}

fn is_sql_made(node: Node<'_>, source: &str) -> bool {
    let upper = text(node, source).to_ascii_uppercase();
    is_made(node, source)
        && ["SELECT ", "INSERT INTO ", "UPDATE ", "DELETE FROM "].iter().any(|word| upper.contains(word))
}

/// Whether the function that a node is in, no closure of it, gives a `Result`.
fn gives_result(node: Node<'_>, source: &str) -> bool {
    let mut outer = node.parent();
    while let Some(node) = outer {
        match node.kind() {
            "closure_expression" | "async_block" => return false,
            "function_item" => {
                let given = node.child_by_field_name("return_type").map_or("", |given| text(given, source));
                // Tests give results as well, and may end.
                return given.contains("Result<") && !has_test_attribute(node, source);
            }
            _ => outer = node.parent(),
        }
    }
    false
}

fn has_test_attribute(function: Node<'_>, source: &str) -> bool {
    let mut before = function.prev_named_sibling();
    while let Some(node) = before.filter(|node| matches!(node.kind(), "attribute_item" | "line_comment")) {
        if text(node, source).contains("test") {
            return true;
        }
        before = node.prev_named_sibling();
    }
    false
}
