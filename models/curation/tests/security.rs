//! Dangerous calls in Python, by every name that imports give them, and what only looks like one.

use tritter_curation::security::find_dangers;

fn found(source: &str) -> Vec<(&'static str, usize)> {
    find_dangers(source).iter().map(|danger| (danger.rule.id, danger.line)).collect()
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
