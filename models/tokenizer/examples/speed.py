"""Ids and speed of the example `speed` against the package tiktoken of PyPI, on one core and in turns.

    pip install tiktoken
    cargo build --release -p tritter-tokenizer --features tiktoken --example speed
    python3 models/tokenizer/examples/speed.py TABLES FILE... [--speed target/release/examples/speed] [--vocabulary cl100k_base]

TABLES is a folder with `cl100k_base.tiktoken` and the like, as the crate tiktoken-rs has in `assets`: nothing is fetched. Each file must be UTF-8.
"""

import argparse
import array
import base64
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import tiktoken

PATTERNS = {
    "r50k_base": r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
    "cl100k_base": r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s""",
    "o200k_base": "|".join([
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""", r"""\s*[\r\n]+""", r"""\s+(?!\S)""", r"""\s+""",
    ]),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=pathlib.Path)
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--speed", default="target/release/examples/speed")
    parser.add_argument("--vocabulary", default="cl100k_base", choices=PATTERNS)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    lines = (args.tables / f"{args.vocabulary}.tiktoken").read_text().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    theirs = tiktoken.Encoding(args.vocabulary, pat_str=PATTERNS[args.vocabulary], mergeable_ranks=ranks, special_tokens={})

    for file in args.files:
        text = file.read_bytes().decode()
        size = len(text.encode())
        ours_seconds, theirs_seconds = [], []
        for _ in range(args.rounds):
            with tempfile.NamedTemporaryFile() as ids:
                report = json.loads(subprocess.check_output([args.speed, args.vocabulary, file, ids.name]))
                ours = pathlib.Path(ids.name).read_bytes()
            ours_seconds.append(report["seconds"])
            start = time.perf_counter()
            expected = theirs.encode_ordinary(text)
            theirs_seconds.append(time.perf_counter() - start)
            assert array.array("I", expected).tobytes() == ours, f"{file}: the ids differ"
        first = statistics.median(round[0] for round in ours_seconds)
        later = statistics.median(seconds for round in ours_seconds for seconds in round[1:])
        their = statistics.median(theirs_seconds)
        mega = size / 1e6
        print(f"{file.name} {args.vocabulary}: {mega:.1f} MB, {report['ids']} ids, all equal; tritter {mega / first:.0f} MB/s with an empty cache, "
              f"{mega / later:.0f} after, tiktoken {tiktoken.__version__} {mega / their:.1f}: {their / first:.1f} times")


main()
