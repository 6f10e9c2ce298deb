"""Wrong options that a model gives itself: how it continues the text before a blank, sampled in batches.

Questions are built in rounds. In each, `build` asks for the continuations of the texts it would put a blank behind;
those not known yet are sampled and kept in a journal, so that a killed run goes on where it was. The last round is the
one that asks for nothing new. What a text is continued with depends on the seed and the question alone, so that the
rows do not depend on how often the run was killed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import Progress, no_progress
from .builder import build

__all__ = ["Proposals", "Sample", "build_with_model"]

Sample = Callable[[str, int, int], list[str]]
"""`sample(text, count, seed)` gives so many continuations of a text, drawn as one batch."""

_SAVED = 16  # questions in a line of the journal


class Proposals:
    """Continuations of texts by a model, by question and text; those asked for and not known are in `missing`."""

    def __init__(self, sample: Sample, journal: Path, *, model: str, samples: int = 16, seed: int = 0) -> None:
        """samples: of each text. model: tells it in the journal, which is refused (DataError) when it is another
        model's, or of other settings."""
        self.sample, self.journal, self.samples, self.seed = sample, journal, samples, seed
        self.head = {"model": model, "samples": samples, "seed": seed}
        self.missing: dict[str, str] = {}
        self.known: dict[str, list[str]] = {}
        self._read()

    def __call__(self, question: str, text: str) -> list[str]:
        """The continuations of the text before a question's blank; none yet where they are not known."""
        key = hashlib.blake2b(f"{question}\0{text}".encode(), digest_size=8).hexdigest()
        if key not in self.known and text.strip():
            self.missing[key] = text
        return self.known.get(key, [])

    def fetch(self, progress: Progress = no_progress) -> None:
        """Samples what is missing and adds it to the journal."""
        found: dict[str, list[str]] = {}
        texts = self.missing.items()
        for key, text in progress(texts, total=len(texts), description="model's numbers", unit="text"):
            found[key] = self.sample(text, self.samples, _seed(self.seed, key))
            if len(found) == _SAVED:
                self._add(found)
                found = {}
        self._add(found)
        self.missing.clear()

    def _read(self) -> None:
        """Takes up the journal; what a kill left of its last line is cut off."""
        if not self.journal.exists():
            return
        whole = self.journal.read_bytes()
        kept = whole[: whole.rfind(b"\n") + 1]
        lines = [json.loads(line) for line in kept.decode("utf-8").splitlines()]
        if lines and lines[0] != self.head:
            raise DataError(
                f"{self.journal}: holds numbers by {lines[0]}, wanted {self.head}; remove it, or choose another --out"
            )
        for line in lines[1:]:
            self.known.update(line)
        if len(kept) < len(whole):
            os.truncate(self.journal, len(kept))

    def _add(self, found: dict[str, list[str]]) -> None:
        if not found:
            return
        fresh = not self.journal.exists() or not self.journal.stat().st_size
        with open(self.journal, "a", encoding="utf-8") as file:
            if fresh:
                file.write(json.dumps(self.head, ensure_ascii=False) + "\n")
            file.write(json.dumps(found, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.known.update(found)


def _seed(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:6], "big")


def build_with_model(
    documents: Callable[[], Iterable[dict[str, Any]]], proposals: Proposals, *, left_out: Counter[str] | None = None,
    progress: Progress = no_progress, **settings: Any,
) -> list[dict[str, Any]]:
    """The rows of `build` with the model's numbers among the wrong options, in as many rounds as it takes: each
    settles at least the first question that the one before could not.

    documents: gives the corpus rows anew each time. left_out: counts, by reason, what the last round left out.
    """
    left_out = Counter() if left_out is None else left_out
    while True:
        left_out.clear()
        rows = list(build(documents(), propose=proposals, left_out=left_out, progress=progress, **settings))
        if not proposals.missing:
            return rows
        proposals.fetch(progress)
