//! CUDA that hangs or goes on after a failure: barriers that not all threads of a block reach, and calls whose errors nobody reads.
//!
//! Sources are read with the grammar of C++; a launch's `<<<grid, block>>>` is none of it and becomes an expression with errors, which no rule looks at.

use std::ops::Range;

use tree_sitter::Node;

use super::{Danger, Rule, parse};
use crate::judge::Severity::{High, Low, Medium};
use crate::python::{named_children, text, visit};

static DIVERGENT_BARRIER: Rule = Rule {
    id: "divergent-barrier",
    bandit: "",
    severity: High,
    message: "a barrier in a branch that threads of one block take differently: it hangs or does nothing",
};
static BARRIER_AFTER_RETURN: Rule = Rule {
    id: "barrier-after-return",
    bandit: "",
    severity: Medium,
    message: "a barrier that threads which have returned do not reach",
};
static UNCHECKED_CALL: Rule =
    Rule { id: "unchecked-cuda-call", bandit: "", severity: Low, message: "nobody reads whether the call has failed" };

/// Every rule of this file.
pub(super) static RULES: [&Rule; 3] = [&DIVERGENT_BARRIER, &BARRIER_AFTER_RETURN, &UNCHECKED_CALL];

/// Barriers of a whole block.
const BARRIERS: &[&str] = &["__syncthreads", "__syncthreads_count", "__syncthreads_and", "__syncthreads_or"];

/// Finds what a source has.
pub(super) fn find(source: &str) -> Vec<Danger> {
    let Some(tree) = parse(tree_sitter_cpp::LANGUAGE.into(), source) else { return Vec::new() };
    let mut found = Vec::new();
    visit(tree.root_node(), |node| match node.kind() {
        "function_definition" => barriers(node, source, &mut found),
        "expression_statement" => unchecked(node, source, &mut found),
        _ => {}
    });
    found
}

/// The name that a call calls.
fn callee<'s>(node: Node<'_>, source: &'s str) -> Option<&'s str> {
    let callee = (node.kind() == "call_expression").then(|| node.child_by_field_name("function"))??;
    (callee.kind() == "identifier").then(|| text(callee, source))
}

fn barriers(function: Node<'_>, source: &str, found: &mut Vec<Danger>) {
    let names = differing_names(function, source);
    let mut returned = None;
    visit(function, |node| {
        if node.kind() == "return_statement" && differing_branch(node, function, &names, source).is_some() {
            returned.get_or_insert(node.start_byte());
        }
        if !callee(node, source).is_some_and(|name| BARRIERS.contains(&name)) {
            return;
        }
        if differing_branch(node, function, &names, source).is_some() {
            found.push(Danger::at(&DIVERGENT_BARRIER, node));
        } else if returned.is_some() {
            found.push(Danger::at(&BARRIER_AFTER_RETURN, node));
        }
    });
}

/// The names whose values differ between the threads of a block, with the bytes where they stand for that: those computed from `threadIdx`.
fn differing_names<'s>(function: Node<'_>, source: &'s str) -> Vec<(&'s str, Range<usize>)> {
    let mut names = Vec::new();
    visit(function, |node| {
        let (name, value) = match node.kind() {
            "init_declarator" => (node.child_by_field_name("declarator"), node.child_by_field_name("value")),
            "assignment_expression" => (node.child_by_field_name("left"), node.child_by_field_name("right")),
            _ => return,
        };
        let (Some(name), Some(value)) = (name, value) else { return };
        if name.kind() == "identifier" && differs(value, &names, source) {
            // A name is of the block or the loop that declares it.
            let mut scope = node;
            while let Some(outer) = scope.parent().filter(|_| {
                scope != function
                    && (node.kind() != "init_declarator"
                        || !["compound_statement", "for_statement"].contains(&scope.kind()))
            }) {
                scope = outer;
            }
            names.push((text(name, source), scope.byte_range()));
        }
    });
    names
}

/// Whether an expression has `threadIdx` in it, or a name that does. What is read from memory may be the same for all, and votes of a block are.
fn differs(node: Node<'_>, names: &[(&str, Range<usize>)], source: &str) -> bool {
    let mut differs = false;
    let mut skipped = 0;
    visit(node, |part| {
        if part.start_byte() < skipped {
            return;
        }
        if matches!(part.kind(), "subscript_expression" | "call_expression" | "pointer_expression") {
            skipped = part.end_byte();
        } else if part.kind() == "identifier" {
            let name = text(part, source);
            let at = part.start_byte();
            differs |= name == "threadIdx" || names.iter().any(|(other, scope)| *other == name && scope.contains(&at));
        }
    });
    differs
}

/// The innermost branch or loop round a node whose condition differs between threads.
fn differing_branch<'t>(
    node: Node<'t>,
    function: Node<'t>,
    names: &[(&str, Range<usize>)],
    source: &str,
) -> Option<Node<'t>> {
    let mut inner = node;
    while let Some(outer) = inner.parent().filter(|outer| *outer != function) {
        let condition = match outer.kind() {
            "if_statement"
            | "while_statement"
            | "do_statement"
            | "for_statement"
            | "switch_statement"
            | "conditional_expression" => outer.child_by_field_name("condition"),
            _ => None,
        };
        // The condition itself is evaluated by all.
        if let Some(condition) = condition.filter(|condition| *condition != inner)
            && differs(condition, names, source)
        {
            return Some(outer);
        }
        inner = outer;
    }
    None
}

/// `cudaMalloc(…);` as a statement of its own. That memory, streams and events are given back without a look is usual.
fn unchecked(statement: Node<'_>, source: &str, found: &mut Vec<Danger>) {
    let children = named_children(statement);
    let [call] = children[..] else { return };
    let is_unchecked = callee(call, source).is_some_and(|name| {
        let rest = name.strip_prefix("cuda").unwrap_or_default();
        let gives_back = ["Free", "Destroy", "Unregister", "GetLastError", "PeekAtLastError", "ProfilerSt"];
        rest.starts_with(|c: char| c.is_ascii_uppercase()) && !gives_back.iter().any(|word| rest.contains(word))
    });
    if is_unchecked {
        found.push(Danger::at(&UNCHECKED_CALL, call));
    }
}
