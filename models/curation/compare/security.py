"""Compares the rules that say the same as a test of bandit with bandit, by file and line.

python security.py TRITTER_CURATE EXAMPLES      (needs `pip install bandit`; EXAMPLES is the folder of its source distribution)
"""

import collections
import json
import pathlib
import subprocess
import sys

# Tests that no rule of ours says: B703 takes what Django escapes for dangerous unless it can follow it to a constant.
UNMAPPED = {"B703"}
# `from .. import subprocess` imports a module of the package, and not the one that the test is about.
RELATIVE = {("B404", "imports-from.py", 6), ("B404", "imports-from.py", 7)}


def main(program, examples):
    command = [sys.executable, "-m", "bandit", "-q", "--ignore-nosec", "-f", "json", "-r", examples]
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE).stdout)
    # What is no Python 3 cannot be read by bandit.
    unread = {error["filename"] for error in report["errors"]}
    results = [result for result in report["results"] if result["test_id"] not in UNMAPPED]
    results = [result for result in results if (result["test_id"], pathlib.Path(result["filename"]).name, result["line_number"]) not in RELATIVE]
    theirs = collections.Counter((result["test_id"], result["filename"], result["line_number"]) for result in results)
    output = subprocess.run([program, "security", examples], check=True, stdout=subprocess.PIPE).stdout
    ours = collections.Counter()
    for line in output.splitlines():
        finding = json.loads(line)
        if finding["bandit"] and finding["path"] not in unread:
            ours[finding["bandit"], finding["path"], finding["line"]] += 1
    tests = sorted({test for test, _, _ in theirs | ours})
    differing = {test for test, _, _ in (theirs - ours) + (ours - theirs)}
    print(f"{len(tests)} tests: bandit {theirs.total()}, ours {ours.total()}, the same {(theirs & ours).total()}; {len(tests) - len(differing)} tests without a difference")
    for missing in sorted((theirs - ours).elements()):
        print("only bandit:", *missing)
    for further in sorted((ours - theirs).elements()):
        print("only ours:", *further)
    return 1 if theirs != ours else 0


sys.exit(main(*sys.argv[1:]))
