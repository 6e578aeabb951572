"""Compares the verdict and the reason of every filter, document by document, with datatrove's.

Words and sentences are parameters of the filters: both sides get the same splits here, those of `quality::words` and `quality::n_sentences`.

python quality.py TRITTER_CURATE DIRECTORY...      (needs `pip install datatrove`)
"""

import collections
import json
import pathlib
import re
import subprocess
import sys
import tempfile

from datatrove.data import Document
from datatrove.pipeline.filters import c4_filters, fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter

WORD = re.compile(r"[^\s!-/:-@\[-^`{-~]+|[!-/:-@\[-^`{-~]")
N_DOCUMENTS = 5000


def words(text, language=None):
    return WORD.findall(text)


def sentences(text, language=None):
    return [part for part in re.split(r"(?<=[.?!])\s+", text) if part.strip()]


def verdict(filter, text):
    result = filter.filter(Document(text=text, id="0"))
    return "" if result is True else result[1]


def main(program, *directories):
    for module in (gopher_quality_filter, gopher_repetition_filter, fineweb_quality_filter):
        module.split_into_words = words
    c4_filters.split_into_sentences = sentences
    filters = {
        "gopher_quality": gopher_quality_filter.GopherQualityFilter(),
        "gopher_repetition": gopher_repetition_filter.GopherRepetitionFilter(),
        "fineweb": fineweb_quality_filter.FineWebQualityFilter(),
        "c4": c4_filters.C4QualityFilter(),
    }
    documents = []
    for directory in directories:
        for path in sorted(pathlib.Path(directory).rglob("*")):
            if not path.is_file() or not 0 < path.stat().st_size < 200_000:
                continue
            try:
                text = path.read_bytes().decode()
            except UnicodeDecodeError:
                continue
            if "\0" not in text and text.strip():
                documents.append({"path": str(path), "text": text})
    documents = documents[:: max(1, len(documents) // N_DOCUMENTS)][:N_DOCUMENTS]
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for document in documents:
            file.write(json.dumps(document) + "\n")
        file.flush()
        output = subprocess.run([program, "quality", file.name], check=True, stdout=subprocess.PIPE).stdout
    ours = [json.loads(line) for line in output.splitlines()]
    assert [our["path"] for our in ours] == [document["path"] for document in documents]
    reasons, differ = collections.Counter(), 0
    for document, our in zip(documents, ours):
        for name, filter in filters.items():
            theirs = verdict(filter, document["text"])
            reasons[name, theirs] += 1
            if theirs != (our[name] or ""):
                differ += 1
                print(f"{document['path']}: {name}: datatrove {theirs!r}, ours {our[name]!r}")
    for (name, reason), count in sorted(reasons.items()):
        print(f"{count:6} {name} {reason or 'passes'}")
    print(f"{len(documents)} documents, {len(filters)} filters: {differ} differ")
    return 1 if differ else 0


sys.exit(main(*sys.argv[1:]))
