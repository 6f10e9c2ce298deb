"""What stats.json says of a corpus: counts by source, what went and why, lengths, numbers, samples."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from .documents import Document, Read
from .rows import SPLITS
from .shelf import Source

EXAMPLES = 5
LENGTH_STEP = 100
"""Characters of a bar of the histogram of lengths."""
_NUMBERED = 500
"""Documents in which numbers are counted."""
_SAMPLES = 10
_SAMPLE_CHARACTERS = 1500
_TOTALS = ("documents", "characters", "chinese_characters")


class _Least:
    """The `size` items with the least keys of all that are offered: a sample that depends on nothing but them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[int, Any]] = []

    def offer(self, digest: str, item: Any) -> None:
        key = -int(digest[:15], 16)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, (key, item))
        elif key > self._heap[0][0]:
            heapq.heapreplace(self._heap, (key, item))

    def items(self) -> list[Any]:
        return [item for _, item in sorted(self._heap, reverse=True)]


class Statistics:
    """Counts, as files are read and documents are kept or dropped."""

    def __init__(self, groups: Iterable[str]) -> None:
        self.groups: dict[str, Counter[str]] = {group: Counter() for group in groups}
        self.failed: list[dict[str, str]] = []
        self.notes: list[dict[str, str]] = []
        self.footers: Counter[str] = Counter()
        self._dropped: dict[str, dict[str, Any]] = {}
        self._lengths: Counter[int] = Counter()
        self._numbered = _Least(_NUMBERED)
        self._samples = _Least(_SAMPLES)

    def read(self, file: Source, result: Read) -> None:
        """Counts a file that was read, or was not."""
        counter = self.groups[file.group]
        counter["files"] += 1
        counter["bytes"] += result.size
        counter["failed"] += result.reason is not None
        if result.reason is not None:
            self.failed.append({"source": file.name, "reason": result.reason})
        self.notes += ({"source": file.name, "note": note} for note in result.notes)

    def readable(self, group: str) -> int:
        """Files of a group that could be read."""
        return self.groups[group]["files"] - self.groups[group]["failed"]

    def keep(self, source: Source, document: Document, split: str, line: bytes) -> None:
        """Counts a document of the corpus, written as `line`."""
        counter = self.groups[source.group]
        counter["documents"] += 1
        counter["characters"] += document.characters
        counter["chinese_characters"] += document.han
        counter["tokens"] += document.tokens
        counter[split] += 1
        counter[f"{split}_characters"] += document.characters
        counter[f"{split}_tokens"] += document.tokens
        self._lengths[document.characters // LENGTH_STEP] += 1
        self._numbered.offer(document.digest, line)
        self._samples.offer(document.digest, line)

    def drop(self, source: Source, entry: dict[str, str], characters: int) -> None:
        """Counts a document that goes; entry: its line in dropped.jsonl."""
        part = self._dropped.setdefault(entry["reason"], {"count": 0, "characters": 0, "examples": []})
        part["count"] += 1
        part["characters"] += characters
        self.groups[source.group]["dropped"] += 1
        if len(part["examples"]) < EXAMPLES:
            part["examples"].append({key: value for key, value in entry.items() if key != "reason"})

    def dropped(self) -> dict[str, dict[str, Any]]:
        """Reason → count, characters and the first examples."""
        return dict(sorted(self._dropped.items()))

    def _numbers(self) -> dict[str, Any]:
        """Numbers by kind in the documents whose digests are least, each for 1,000 characters."""
        from ..numbers import find_numbers  # not needed by the processes that read and cut

        kinds: Counter[str] = Counter()
        documents = variable = characters = 0
        for line in self._numbered.items():
            text = json.loads(line)["text"]
            documents, characters = documents + 1, characters + len(text)
            for number in find_numbers(text):
                kinds[number.kind] += 1
                variable += number.variable
        return {
            "documents": documents,
            "characters": characters,
            "variable_per_thousand": _per_thousand(variable, characters),
            "per_thousand": {
                kind: _per_thousand(count, characters)
                for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
            },
        }

    def result(self, *, by_document: bool, tokens: bool) -> dict[str, Any]:
        """What stats.json holds; nothing in it depends on time, machine or the number of jobs."""
        counted = (*_TOTALS, "tokens") if tokens else _TOTALS
        sizes = ("documents", "characters", "tokens") if tokens else ("documents", "characters")
        last = max(self._lengths)
        totals = sum(self.groups.values(), Counter())
        return {
            "files": totals["files"],
            "files_read": totals["files"] - totals["failed"],
            "bytes": totals["bytes"],
            "failed": self.failed,
            "notes": self.notes,
            **{key: totals[key] for key in counted},
            "splits": {
                split: {key: totals[split if key == "documents" else f"{split}_{key}"] for key in sizes}
                for split in SPLITS
            },
            "split_by": "document" if by_document else "file",
            "dropped": self.dropped(),
            "repeated_edges": {
                "count": sum(self.footers.values()),
                "examples": [
                    {"text": text, "files": count}
                    for text, count in sorted(self.footers.items(), key=lambda item: (-item[1], item[0]))[:20]
                ],
            },
            "lengths": {"step": LENGTH_STEP, "documents": [self._lengths[k] for k in range(last + 1)]},
            "numbers": self._numbers(),
            "sources": {
                group: {
                    key: counts[key]
                    for key in (
                        "files", "failed", "bytes", *counted, "dropped", "train", "heldout", "train_characters",
                        "heldout_characters",
                    )
                }
                for group, counts in sorted(self.groups.items())
            },
            "samples": [
                {key: row[key] for key in ("id", "source", "title", "split")}
                | {"text": row["text"][:_SAMPLE_CHARACTERS]}
                for row in map(json.loads, self._samples.items())
            ],
        }


def _per_thousand(count: int, characters: int) -> float:
    return round(1000 * count / characters, 3) if characters else 0.0
