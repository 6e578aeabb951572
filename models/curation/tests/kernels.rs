//! The finder of Triton kernels: names that `triton.jit` goes by, helpers, launchers, keys.

use tritter_curation::kernels::{Kernel, find_kernels};

const MODULE: &str = r#"
import torch
import triton
import triton as tr
import triton.language as tl
from triton import jit, autotune as tuned
from numba import njit
compile = triton.jit

@triton.jit
def helper(x):
    """Squares."""
    return x * x  # once

@jit
def by_name(x):
    return helper(x)

@tuned(configs=[], key=["n"])
@tr.heuristics({"EVEN": lambda args: True})
@tr.jit(do_not_specialize=["n"])
def kernel(x_ptr, n, BLOCK: tl.constexpr):
    tl.store(x_ptr, by_name(tl.load(x_ptr)))

if torch.cuda.is_available():
    @compile
    def guarded(x):
        return x * x
else:
    guarded = None

@njit
def not_triton(x):
    return x

def evaluate(model):
    return model.eval()

class Op:
    @staticmethod
    def forward(x):
        kernel[(1,)](x, x.numel(), BLOCK=128)
        return x
"#;

fn names(kernels: &[Kernel]) -> Vec<&str> {
    kernels.iter().map(|kernel| kernel.name.as_str()).collect()
}

#[test]
fn kernels_are_found_by_every_name_of_jit() {
    let kernels = find_kernels(MODULE);
    assert_eq!(names(&kernels), ["helper", "by_name", "kernel", "guarded"]);
    let kernel = &kernels[2];
    assert!(kernel.autotuned && kernel.has_heuristics);
    assert!(!kernels[0].autotuned && !kernels[0].has_heuristics);
    assert!(MODULE[kernel.span.clone()].starts_with("@tuned"));
    assert_eq!(MODULE.lines().nth(kernel.line - 1), Some("def kernel(x_ptr, n, BLOCK: tl.constexpr):"));
}

#[test]
fn a_kernel_comes_with_what_it_calls_and_what_launches_it() {
    let kernels = find_kernels(MODULE);
    let kernel = &kernels[2];
    assert_eq!(kernel.helpers, ["by_name", "helper"]);
    assert_eq!(kernel.launchers.len(), 1);
    let text = kernel.text(MODULE, &kernels);
    assert!(text.starts_with("import torch\nimport triton\n"));
    for part in ["def helper", "def by_name", "def kernel", "\n@staticmethod\ndef forward(x):\n    kernel[(1,)]"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(!text.contains("not_triton"));
}

#[test]
fn copies_have_one_key() {
    let kernels = find_kernels(MODULE);
    // The same body under another name, without documentation and comment.
    assert_eq!(kernels[0].key, kernels[3].key);
    assert_ne!(kernels[0].key, kernels[1].key);
}

#[test]
fn other_modules_have_none() {
    assert!(find_kernels("import triton\n\n@triton.testing.perf_report\ndef bench(): pass\n").is_empty());
    assert!(find_kernels("def jit(f): return f\n\n@jit\ndef f(): pass  # triton\n").is_empty());
    assert!(find_kernels("@triton.jit\ndef (").is_empty());
}
