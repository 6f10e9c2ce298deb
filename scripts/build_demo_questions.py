#!/usr/bin/env python3
"""Writes the demo's held-out questions, numllm/demo/questions/, from its workbook.

    python scripts/build_demo_questions.py

numeric.jsonl: NumCT questions about the workbook's numbers, by the builder with its defaults and seed 0;
concepts.jsonl: the workbook's concept questions, one after the other.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from numllm.corpus import build_corpus, read_corpus  # noqa: E402
from numllm.demo import CONCEPTS, NUMERIC, WORKBOOK  # noqa: E402
from numllm.files import read_jsonl, write_jsonl  # noqa: E402
from numllm.numct import build  # noqa: E402


def main() -> None:
    """Writes both files and prints how many questions each has."""
    with tempfile.TemporaryDirectory() as scratch:
        build_corpus([WORKBOOK], Path(scratch) / "corpus", holdout=0.0)
        rows = [row | {"split": "heldout"} for row in build(read_corpus(Path(scratch) / "corpus"))]
    print(f"{write_jsonl(NUMERIC, rows):,} numeric questions")
    concepts = [
        {"id": f"{path.stem}-{line:02d}", **row}
        for path in sorted(WORKBOOK.glob("concepts-*.jsonl")) for line, row in read_jsonl(path)
    ]
    print(f"{write_jsonl(CONCEPTS, concepts):,} non-numeric questions")


if __name__ == "__main__":
    main()
