"""How well and how fast numbers are found in the annotated sentences, beside what else there is.

    python -m benchmarks.bench_numbers --out rows.jsonl

Candidates: numllm; `cn2an.transform`, which rewrites the Chinese numerals of a sentence (its values are those digits
and percentages that the rewritten sentence holds); and a plain regular expression for digits with the usual signs and
magnitudes. Neither peer gives spans, units or kinds of what it reads, so the comparison is of values alone: a
sentence's values that are plain decimals, as a multiset, against the annotated ones. Time is of the same sentences,
best of the rounds, single thread.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import provenance, write_rows
from numllm.numbers import find_numbers

DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "numbers.jsonl"
ROUNDS = 5
_PLAIN = re.compile(r"(-?[0-9][0-9,]*(?:\.[0-9]+)?)(%|‰)?([百千]?[万亿])?")
_WORTH = {"%": Decimal("0.01"), "‰": Decimal("0.001"), "万": 10**4, "亿": 10**8, "百万": 10**6, "千万": 10**7}
_WORTH |= {"百亿": 10**10, "千亿": 10**11}


def values(texts: Iterable[str]) -> Counter[Decimal]:
    """The plain decimals among the texts of values, as numbers."""
    found: Counter[Decimal] = Counter()
    for text in texts:
        try:
            found[Decimal(text).normalize()] += 1
        except InvalidOperation:
            continue
    return found


def by_pattern(text: str) -> list[str]:
    """Values by the plain regular expression."""
    found = []
    for digits, sign, size in _PLAIN.findall(text):
        value = Decimal(digits.replace(",", ""))
        found.append(str(value * _WORTH.get(sign, 1) * _WORTH.get(size, 1)))
    return found


def by_numllm(text: str) -> list[str]:
    """Values by numllm."""
    return [number.value for number in find_numbers(text)]


def candidates() -> dict[str, tuple[Callable[[str], list[str]], str]]:
    """Name → (function from a sentence to its values, version); cn2an where it is installed."""
    found = {
        "numllm": (by_numllm, importlib.metadata.version("numllm")),
        "regular expression": (by_pattern, ""),
    }
    try:
        import cn2an
    except ImportError:
        return found

    def by_cn2an(text: str) -> list[str]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of every 万 that is none of its numerals
            return by_pattern(cn2an.transform(text))

    found["cn2an"] = (by_cn2an, importlib.metadata.version("cn2an"))
    return found


def measure(name: str, read: Callable[[str], list[str]], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Precision, recall and F1 of values, sentences on which it fails with an error, and megabytes a second."""
    right = found = wanted = errors = 0
    for row in rows:
        try:
            mine = values(read(row["text"]))
        except Exception:  # a peer's own failure is a result, counted
            mine, errors = Counter(), errors + 1
        truth = values(number["value"] for number in row["numbers"])
        right += (mine & truth).total()
        found, wanted = found + mine.total(), wanted + truth.total()
    texts = [row["text"] for row in rows]
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for text in texts:
            try:
                read(text)
            except Exception:  # counted above; its time counts too
                continue
        seconds.append(time.perf_counter() - begin)
    size = sum(len(text.encode()) for text in texts)
    return {
        "bench": "numbers",
        "candidate": name,
        "sentences": len(rows),
        "numbers": wanted,
        "precision": right / found if found else 0.0,
        "recall": right / wanted,
        "f1": 2 * right / (found + wanted),
        "errors": errors,
        "megabytes_per_second": size / 1e6 / min(seconds),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes one row a candidate and part of the set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    made = []
    for name, (read, version) in candidates().items():
        made.append(measure(name, read, rows) | {"version": version} | provenance(torch.device("cpu")))
        print(f"{name:<20} F1 {made[-1]['f1']:.3f}  {made[-1]['megabytes_per_second']:.2f} MB/s")
    write_rows(options.out, made)


if __name__ == "__main__":
    main()
