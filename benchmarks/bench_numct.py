"""How fast questions are made of a corpus, and numbers found in it, by the source and by a compiled installation.

    NUMLLM_COMPILE=1 pip install --no-deps --target compiled .
    python -m benchmarks.bench_numct --corpus corpus/ --compiled compiled/ --out rows.jsonl

Candidates take turns, each time in a process of their own, and the process that makes questions starts those that help
it, as many as there are cores; their start counts. Two sets of questions: as `numllm numct` makes them by default, and
the larger one of `--per-sentence 4` with the writer's own numbers among the tags. Both must be the same for every
candidate. Numbers are found by one thread, document by document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import provenance, write_rows

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 7
SETS = {"default": {}, "larger": {"per_sentence": 4, "tags": ("recall", "derivable", "other", "given")}}
"""Name → arguments of `build`."""

_NUMBERS = """
import json, sys, time
from numllm.corpus import read_corpus
from numllm.numbers import find_numbers
texts = [row["text"] for row in read_corpus(sys.argv[1])]
begin = time.perf_counter()
found = sum(len(find_numbers(text)) for text in texts)
seconds = time.perf_counter() - begin
print(json.dumps({"count": found, "seconds": seconds, "bytes": sum(len(text.encode()) for text in texts)}))
"""
_QUESTIONS = """
import hashlib, json, sys, time
from numllm.corpus import read_corpus
from numllm.numct import build
begin = time.perf_counter()
rows = list(build(read_corpus(sys.argv[1]), jobs=int(sys.argv[2]), **json.loads(sys.argv[3])))
seconds = time.perf_counter() - begin
digest = hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()
print(json.dumps({"count": len(rows), "seconds": seconds, "sha256": digest}))
"""


def measured(place: str, program: str, *arguments: str) -> dict[str, Any]:
    """What a program prints that imports numllm from `place`."""
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments], env={**os.environ, "PYTHONPATH": place}, cwd=place,
        stdout=subprocess.PIPE, text=True, check=True,
    )
    return json.loads(run.stdout)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes one row a candidate and task."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="what `numllm corpus` wrote")
    parser.add_argument("--compiled", type=Path, help="folder of a compiled installation; measured beside the source")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    places = {"source": str(ROOT)}
    if options.compiled is not None:
        if not list(options.compiled.glob("numllm/numbers/finding.*.so")):
            parser.error(f"{options.compiled} holds no numllm that was installed with NUMLLM_COMPILE=1")
        places["compiled"] = str(options.compiled.resolve())
    corpus, jobs = str(options.corpus.resolve()), str(len(os.sched_getaffinity(0)))
    tasks = {"numbers": (_NUMBERS, corpus)}
    tasks |= {name: (_QUESTIONS, corpus, jobs, json.dumps(chosen)) for name, chosen in SETS.items()}
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(1 if options.quick else options.rounds):
        for task, (program, *given) in tasks.items():
            for name, place in places.items():
                results.setdefault((task, name), []).append(measured(place, program, *given))
    rows = []
    for (task, name), runs in results.items():
        first = results[task, "source"]
        if any({**run, "seconds": 0} != {**first[0], "seconds": 0} for run in runs):
            sys.exit(f"Error: {task}: {name} gives other results than the source")
        seconds = sorted(run["seconds"] for run in runs)
        ratios = [run["seconds"] / source["seconds"] for run, source in zip(runs, first, strict=True)]
        rows.append({
            "bench": "numct", "task": task, "candidate": name, "count": runs[0]["count"],
            "processes": 1 if task == "numbers" else int(jobs), "megabytes": first[0].get("bytes", 0) / 1e6,
            "seconds": seconds, "ratio_to_source": statistics.median(ratios),
        } | provenance(torch.device("cpu")))
        print(f"{task:<8} {name:<9} {runs[0]['count'] / statistics.median(seconds):>9,.0f} a second")
    write_rows(options.out, rows)


if __name__ == "__main__":
    main()
