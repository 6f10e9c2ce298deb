"""The rows of a corpus: their keys, and reading them back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import read_jsonl

KEYS = ("id", "text", "source", "title", "split", "sha256")
"""What every row holds, all strings; more keys may follow."""
SPLITS = ("train", "heldout")


def read_corpus(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a corpus folder or a corpus.jsonl, checked one by one.

    Each row holds the strings "id", "text", "source", "title", "split" ("train" or "heldout") and
    "sha256"; further keys pass. DataError names the line and the key that is missing or wrong, or an id
    that came before; also when there is no row at all.
    """
    path = Path(path)
    file = path / "corpus.jsonl" if path.is_dir() else path
    seen: set[str] = set()
    for number, row in read_jsonl(file):
        where = f"{file}, line {number}"
        for key in KEYS:
            if key not in row:
                raise DataError(
                    f"{where}: the key {key!r} is missing; is this a corpus written by numllm corpus?"
                )
            if not isinstance(row[key], str):
                raise DataError(f"{where}: {key!r} must be a string, got {type(row[key]).__name__}")
        if not row["id"] or not row["text"].strip():
            raise DataError(f"{where}: {'id' if not row['id'] else 'text'!r} is empty")
        if row["split"] not in SPLITS:
            raise DataError(f'{where}: \'split\' must be "train" or "heldout", got {row["split"]!r}')
        if row["id"] in seen:
            raise DataError(f"{where}: the 'id' {row['id']!r} stands on an earlier line already")
        seen.add(row["id"])
        yield row
    if not seen:
        raise DataError(f"{file}: holds no document")
