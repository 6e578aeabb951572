//! Dangerous calls in Python, by every name that imports give them, and what only looks like one.

use proptest::prelude::*;
use tritter_curation::judge::Severity;
use tritter_curation::security::{LANGUAGES, find_dangers, rules};

fn found(source: &str) -> Vec<(&'static str, usize)> {
    let dangers = find_dangers("python", source);
    let shown = dangers.iter().filter(|danger| Severity::Low < danger.rule.severity);
    shown.map(|danger| (danger.rule.id, danger.line)).collect()
}

#[test]
fn calls_are_found_by_every_name() {
    let source = "\
import subprocess as sp
from subprocess import run as go, PIPE
from pickle import loads
import os

sp.Popen('x', shell=True)
go('x', shell=flag)
loads(data)
os.system(
    command)
eval(text)
load = loads
load(data)
";
    let expected = [
        ("subprocess-shell", 6),
        ("subprocess-shell", 7),
        ("unpickle", 8),
        ("shell", 9),
        ("eval", 11),
        ("unpickle", 13),
    ];
    assert_eq!(found(source), expected);
}

#[test]
fn what_only_looks_like_one_is_none() {
    let source = "\
import subprocess, torch, yaml, requests, ast
from yaml import SafeLoader
model.eval()
torch.nn.Module.eval(model)
ast.literal_eval(text)
# eval(text)
print('eval(text)')
subprocess.run(['x'], shell=False)
subprocess.run(['x'], shell=0)
subprocess.run(['x'])
yaml.load(text, Loader=yaml.SafeLoader)
yaml.load(text, SafeLoader)
requests.get(url, verify=True)
requests.get(url, verify='ca.pem')
self.loads(data)
";
    assert_eq!(found(source), []);
}

#[test]
fn arguments_decide() {
    assert_eq!(found("import yaml\nyaml.load(text)\n"), [("yaml-load", 2)]);
    assert_eq!(found("import yaml\nyaml.load(text, Loader=yaml.Loader)\n"), [("yaml-load", 2)]);
    assert_eq!(found("import requests\nrequests.get(\n    url,\n    verify=False)\n"), [("unverified-request", 4)]);
    assert_eq!(found("eval("), []);
}

fn in_language(language: &str, source: &str) -> Vec<(&'static str, usize)> {
    find_dangers(language, source).iter().map(|danger| (danger.rule.id, danger.line)).collect()
}

/// What follows input, by rule and line.
fn followed(source: &str) -> Vec<(&'static str, usize)> {
    in_language("python", source).into_iter().filter(|(rule, _)| rule.starts_with("input-as-")).collect()
}

#[test]
fn input_is_followed_to_where_it_runs() {
    let source = "\
import os, sys, pickle, subprocess as sp, yaml
from flask import request

def code():
    text = input('? ').strip()
    again = f'x = {text}'
    exec(again)

def command(host):
    name = os.environ['NAME']
    other = 'ping ' + name
    os.system(other)
    sp.run('ping {}'.format(name), shell=True)
    sp.run(['ping', name])
    sp.run('ping ' + host, shell=True)

def sql(cursor):
    for name in sys.argv[1:]:
        cursor.execute('select * from t where name = %s' % name)
        cursor.execute('select * from t where name = %s', (name,))

def objects():
    data = request.get_data()
    pickle.loads(data)
    yaml.load(request.form['x'], Loader=yaml.SafeLoader)
    yaml.load(request.form['x'], Loader=yaml.Loader)

eval(sys.argv[1])
";
    let expected = [
        ("input-as-code", 7),
        ("input-as-command", 12),
        ("input-as-command", 13),
        ("input-as-sql", 19),
        ("input-as-object", 24),
        ("input-as-object", 26),
        ("input-as-code", 28),
    ];
    assert_eq!(followed(source), expected);
    let message = &find_dangers("python", source)
        .into_iter()
        .find(|danger| danger.line == 12 && danger.rule.id == "input-as-command");
    let message = message.as_ref().map(|danger| danger.message.as_ref());
    assert_eq!(message, Some("input from outside is given to a shell: os.environ of line 10"));
}

#[test]
fn what_is_clean_or_another_functions_is_not_followed() {
    let clean = [
        "x = input()\nx = 'constant'\neval(x)\n",
        "def f():\n    x = input()\n    return x\n\ndef g(x):\n    eval(x)\n",
        "x = int(input())\neval(x)\n",
        "x = len(input())\nos.system(x)\n",
        "import shlex, os\nx = shlex.quote(input())\nos.system('ls ' + x)\n",
        "x = checked(input())\neval(x)\n",
        "import sys\neval('1' if sys.argv else '2')\n",
        "model.eval(input())\n",
        "execute(input())\n",
    ];
    for source in clean {
        assert_eq!(followed(source), [], "{source}");
    }
    // A branch that may not be taken cleans nothing, and a loop carries what its end assigns.
    assert_eq!(followed("x = input()\nif y:\n    x = ''\neval(x)\n"), [("input-as-code", 4)]);
    assert_eq!(followed("x = ''\nwhile x != 'end':\n    eval(x)\n    x = input()\n"), [("input-as-code", 3)]);
    assert_eq!(followed("x = eval(y := input())\n"), [("input-as-code", 1)]);
    assert_eq!(followed("[eval(line) for line in input().split()]\n"), [("input-as-code", 1)]);
    assert_eq!(
        followed("def view(request):\n    q = request.GET['q']\n    db.execute('select ' + q)\n"),
        [("input-as-sql", 3)]
    );
}

#[test]
fn triton_blocks_have_masks() {
    let source = "\
import triton
import triton.language as tl

@triton.jit
def kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    offsets = row * BLOCK + tl.arange(0, BLOCK)
    scale = tl.load(x_ptr + row)
    x = tl.load(x_ptr + offsets, mask=offsets < n)
    y = tl.load(x_ptr + offsets.to(tl.int64))
    z = tl.load(x_ptr + offsets, other=0.0)
    b = tl.load(block_pointer, boundary_check=(0,))
    tl.store(y_ptr + offsets, x * scale, offsets < n)
    tl.store(y_ptr + offsets, x)
    tl.atomic_add(y_ptr + row, 1)

def not_a_kernel(x_ptr):
    tl.load(x_ptr + tl.arange(0, 16))
";
    let expected = [("unmasked-load", 10), ("other-without-mask", 11), ("unmasked-store", 14)];
    assert_eq!(in_language("python", source), expected);
}

#[test]
fn cuda_barriers_are_reached_by_all() {
    let source = "\
__global__ void kernel(float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) { x[i] = 0; __syncthreads(); }
    if (blockIdx.x == 0) { __syncthreads(); }
    for (int k = 0; k < n; k++) { __syncthreads(); }
    for (int k = threadIdx.x; k < n; k += 32) { __syncthreads(); }
    if (i >= n) return;
    __syncthreads();
}
void host() {
    cudaMalloc(&p, 4);
    check(cudaMalloc(&p, 4));
    cudaError_t e = cudaMalloc(&p, 4);
    if (cudaMalloc(&p, 4) != cudaSuccess) return;
    kernel<<<1, 32>>>(p, 4);
    cudaFree(p);
}
";
    let expected =
        [("divergent-barrier", 3), ("divergent-barrier", 6), ("barrier-after-return", 8), ("unchecked-cuda-call", 11)];
    assert_eq!(in_language("cuda", source), expected);
}

#[test]
fn rust_says_why_it_is_sound() {
    let source = "\
static mut COUNT: u32 = 0;
static LIMIT: u32 = 0;
fn f(x: u32) -> Result<f32, Error> {
    let y = unsafe { g(x) };
    // SAFETY: there is one.
    let z = unsafe { g(x) };
    let w: f32 = unsafe { std::mem::transmute(x) }; // SAFETY: all bits are floats.
    let n: u32 = text.parse().unwrap();
    let m = list.iter().map(|x| x.parse().unwrap());
    Command::new(\"sh\").arg(\"-c\").arg(format!(\"ls {dir}\")).spawn()?;
    Command::new(\"sh\").arg(\"-c\").arg(\"ls\").spawn()?;
    Command::new(\"ls\").arg(format!(\"{dir}\")).spawn()?;
    db.execute(&format!(\"DELETE FROM t WHERE name = {name}\"), [])?;
    db.execute(\"DELETE FROM t WHERE name = ?\", [name])?;
    Client::builder().danger_accept_invalid_certs(true).build()
}
#[test]
fn t() -> Result<(), Error> {
    x.unwrap();
    Ok(())
}
";
    let expected = [
        ("mutable-static", 1),
        ("unexplained-unsafe", 4),
        ("transmute", 7),
        ("unwrap-beside-result", 8),
        ("shell", 10),
        ("sql-text", 13),
        ("unverified-request", 15),
    ];
    assert_eq!(in_language("rust", source), expected);
}

#[test]
fn forms_that_are_no_calls_are_found() {
    let source = "\
password = 'secret'
host = '0.0.0.0'
try:
    f()
except Exception:
    pass
query = 'select * from t where x = ' + x
text = 'select * from the others'
";
    let expected = [("password-text", 1), ("all-interfaces", 2), ("ignored-error", 5), ("sql-text", 7)];
    assert_eq!(in_language("python", source), expected);
    assert_eq!(in_language("go", "eval(x)"), []);
    let mut ids: Vec<(&str, &str)> = rules().map(|(language, rule)| (language, rule.id)).collect();
    let n = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), n, "two rules of one language have one name");
}

proptest! {
    /// No text makes a stage fail.
    #[test]
    fn any_text_can_be_looked_at(text in "[a-z_()\\[\\]{}.,:;='\"#\n\t @<>&+*0-9\\\\]{0,200}") {
        for language in LANGUAGES {
            find_dangers(language, &text);
        }
    }
}
