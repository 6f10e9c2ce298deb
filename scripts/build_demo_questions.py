#!/usr/bin/env python3
"""Writes the demo's held-out questions, numllm/demo/questions/, from its workbook.

    python scripts/build_demo_questions.py

numeric.jsonl and validation.jsonl: see `numllm.demo.workbook_questions`; concepts.jsonl: the workbook's concept
questions, one after the other.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from numllm.demo import CONCEPTS, NUMERIC, VALIDATION, WORKBOOK, workbook_questions  # noqa: E402
from numllm.files import read_jsonl, write_jsonl  # noqa: E402


def main() -> None:
    """Writes the files and prints how many questions each has."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        heldout, validation = workbook_questions(Path(scratch))
    print(f"{write_jsonl(NUMERIC, heldout):,} numeric, {write_jsonl(VALIDATION, validation):,} validation questions")
    concepts = [
        {"id": f"{path.stem}-{line:02d}", **row}
        for path in sorted(WORKBOOK.glob("concepts-*.jsonl")) for line, row in read_jsonl(path)
    ]
    print(f"{write_jsonl(CONCEPTS, concepts):,} non-numeric questions")


if __name__ == "__main__":
    main()
