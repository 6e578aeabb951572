"""Compares what `tritter-curate contamination` finds with a plain search over sets of word tuples, by document and item.

python contamination.py TRITTER_CURATE CORPUS ITEMS.jsonl      (objects with a `text`)
"""

import collections
import json
import pathlib
import re
import subprocess
import sys

RUN, SHORTEST = 13, 8


def words(text):
    return [word.lower() if word.isascii() else "".join(c.lower() if c.isascii() else c for c in word) for word in re.findall(r"[A-Za-z0-9_\x80-\U0010ffff]+", text)]


def runs(text, length):
    text = words(text)
    return {tuple(text[at : at + length]) for at in range(len(text) - length + 1)}


def main(program, corpus, items):
    by_length = collections.defaultdict(lambda: collections.defaultdict(set))
    for number, line in enumerate(open(items), 1):
        text = json.loads(line)["text"]
        length = min(RUN, len(words(text)))
        if SHORTEST <= length:
            for run in runs(text, length):
                by_length[length][run].add(f"{items}:{number}")
    expected = set()
    for path in sorted(pathlib.Path(corpus).rglob("*.py")):
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError:
            continue
        # Folders of that name hold other people's packages.
        if "\0" in text or "venv" in path.relative_to(corpus).parts:
            continue
        for length, items_of in by_length.items():
            for run in runs(text, length) & items_of.keys():
                expected.update((str(path), item) for item in items_of[run])
    command = [program, "contamination", corpus, "--ending", ".py", "--against", items]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    found = {(overlap["path"], overlap["item"]) for overlap in map(json.loads, output.splitlines())}
    print(f"plain search: {len(expected)} pairs of document and item; found {len(found)}; missing {len(expected - found)}; further {len(found - expected)}")
    for missing in sorted(expected - found):
        print("missing:", *missing)
    return 1 if expected != found else 0


sys.exit(main(*sys.argv[1:]))
