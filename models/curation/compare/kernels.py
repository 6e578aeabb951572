"""Counts `@triton.jit` functions with Python's own `ast` and compares them, by file and line, with what `tritter-curate kernels` finds.

python kernels.py TRITTER_CURATE DIRECTORY
"""

import ast
import json
import pathlib
import subprocess
import sys


def is_jit(decorator):
    if isinstance(decorator, ast.Call):
        decorator = decorator.func
    return ast.unparse(decorator) == "triton.jit"


def main(program, directory):
    expected = set()
    for path in sorted(pathlib.Path(directory).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef) and any(map(is_jit, node.decorator_list)):
                expected.add((str(path), node.lineno, node.name))
    output = subprocess.run([program, "kernels", "--copies", directory], check=True, stdout=subprocess.PIPE).stdout
    kernels = [json.loads(line) for line in output.splitlines()]
    found = {(kernel["path"], kernel["line"], kernel["name"]) for kernel in kernels}
    for kernel in kernels:
        ast.parse(kernel["text"])
    print(f"ast: {len(expected)}; found: {len(found)}; missing: {len(expected - found)}; further: {len(found - expected)}")
    print(f"with helpers: {sum(bool(kernel['helpers']) for kernel in kernels)}; with a launcher: {sum(0 < kernel['n_launchers'] for kernel in kernels)}; every extract parses")
    for missing in sorted(expected - found):
        print("missing:", missing)
    return 1 if expected - found else 0


sys.exit(main(*sys.argv[1:]))
