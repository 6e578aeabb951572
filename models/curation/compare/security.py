"""Compares the rules that say the same as a test of bandit with bandit, by file and line.

python security.py TRITTER_CURATE EXAMPLES      (needs `pip install bandit`; EXAMPLES is the folder of its source distribution)
"""

import collections
import json
import subprocess
import sys

TESTS = "B102,B301,B302,B306,B307,B323,B501,B506,B602,B605"


def main(program, examples):
    command = [sys.executable, "-m", "bandit", "-q", "--ignore-nosec", "-f", "json", "-r", examples, "-t", TESTS]
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE).stdout)
    # What is no Python 3 cannot be read by bandit.
    unread = {error["filename"] for error in report["errors"]}
    theirs = collections.Counter((result["test_id"], result["filename"], result["line_number"]) for result in report["results"])
    output = subprocess.run([program, "security", examples], check=True, stdout=subprocess.PIPE).stdout
    ours = collections.Counter()
    for line in output.splitlines():
        finding = json.loads(line)
        if finding["path"] not in unread:
            ours[finding["bandit"], finding["path"], finding["line"]] += 1
    for test in TESTS.split(","):
        n_theirs = sum(count for (id, _, _), count in theirs.items() if id == test)
        n_ours = sum(count for (id, _, _), count in ours.items() if id == test)
        print(f"{test}: bandit {n_theirs}, ours {n_ours}")
    for missing in sorted((theirs - ours).elements()):
        print("only bandit:", *missing)
    for further in sorted((ours - theirs).elements()):
        print("only ours:", *further)
    return 1 if theirs != ours else 0


sys.exit(main(*sys.argv[1:]))
