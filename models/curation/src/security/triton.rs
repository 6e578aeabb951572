//! Triton kernels that read or write beyond their tensors: a block of addresses without a mask.

use std::collections::BTreeSet;

use tree_sitter::Node;

use super::{Call, Danger, Module, Rule};
use crate::judge::Severity::{High, Medium};
use crate::kernels::is_kernel;
use crate::python;

static UNMASKED_LOAD: Rule = Rule {
    id: "unmasked-load",
    bandit: "",
    severity: Medium,
    message: "reads a block without a mask: beyond the tensor, unless the block divides it",
};
static UNMASKED_STORE: Rule = Rule {
    id: "unmasked-store",
    bandit: "",
    severity: Medium,
    message: "writes a block without a mask: beyond the tensor, unless the block divides it",
};
static OTHER_WITHOUT_MASK: Rule = Rule {
    id: "other-without-mask",
    bandit: "",
    severity: High,
    message: "`other` stands for what a mask leaves out, and there is none",
};

/// Every rule of this file.
pub(super) static RULES: [&Rule; 3] = [&UNMASKED_LOAD, &UNMASKED_STORE, &OTHER_WITHOUT_MASK];

/// Finds the kernels of a module and what they access without a mask.
pub(super) fn find(nodes: &[Node<'_>], module: &Module<'_>, found: &mut Vec<Danger>) {
    if !module.imports("triton") {
        return;
    }
    for node in nodes.iter().copied() {
        if node.kind() == "function_definition" && is_kernel(node, &module.names, module.source) {
            accesses(node, module, found);
        }
    }
}

fn accesses(kernel: Node<'_>, module: &Module<'_>, found: &mut Vec<Danger>) {
    let ranges = ranges(kernel, module);
    python::visit(kernel, |node| {
        let Some(call) = Call::of(node, module).filter(|call| call.path.starts_with("triton.language.")) else {
            return;
        };
        let (rule, mask_at) = match call.name {
            "load" => (&UNMASKED_LOAD, 1),
            "store" | "atomic_add" | "atomic_max" | "atomic_min" | "atomic_xchg" | "atomic_or" | "atomic_and" => {
                (&UNMASKED_STORE, 2)
            }
            _ => return,
        };
        let Some(pointer) = call.argument("pointer", 0) else { return };
        // Pointers to blocks know their tensor, and say at the access which bounds to check.
        if call.argument("mask", mask_at).is_some() || call.keyword("boundary_check").is_some() {
            return;
        }
        if call.name == "load" && call.argument("other", 2).is_some() {
            found.push(Danger::at(&OTHER_WITHOUT_MASK, node));
        } else if is_block(pointer, &ranges, module) {
            found.push(Danger::at(rule, node));
        }
    });
}

/// The names that hold a range of a block, or something computed from one.
fn ranges<'s>(kernel: Node<'_>, module: &Module<'s>) -> BTreeSet<&'s str> {
    let mut names = BTreeSet::new();
    // Names may be used above the line that gives them what a loop carries: two passes find those.
    for _ in 0..2 {
        python::visit(kernel, |node| {
            if !matches!(node.kind(), "assignment" | "augmented_assignment") {
                return;
            }
            let (Some(left), Some(right)) = (node.child_by_field_name("left"), node.child_by_field_name("right"))
            else {
                return;
            };
            if left.kind() == "identifier" && is_block(right, &names, module) {
                names.insert(python::text(left, module.source));
            }
        });
    }
    names
}

/// Whether an expression has `tl.arange` in it, or a name that does; what is loaded or reduced is another matter.
fn is_block(node: Node<'_>, names: &BTreeSet<&str>, module: &Module<'_>) -> bool {
    let mut skipped = 0;
    let mut is_block = false;
    python::visit(node, |part| {
        if part.start_byte() < skipped {
            return;
        }
        match part.kind() {
            "identifier" => is_block |= names.contains(python::text(part, module.source)),
            "attribute" => {
                let name = part.child_by_field_name("attribute").map(|name| python::text(name, module.source));
                // `x.dtype` is no block any more.
                if name.is_some_and(|name| !["to", "T"].contains(&name)) {
                    skipped = part.end_byte();
                }
            }
            "call" => {
                let Some(call) = Call::of(part, module) else { return };
                is_block |= call.path == "triton.language.arange";
                // `offsets.to(tl.int64)` is as long as the offsets.
                if call.name != "to" {
                    skipped = part.end_byte();
                }
            }
            _ => {}
        }
    });
    is_block
}
