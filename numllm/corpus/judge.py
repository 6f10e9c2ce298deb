"""Documents judged by themselves, many at a time: what they hold, why one goes, what it is compared with others by.

Most documents are so short that a call of numpy takes longer than its work: they are laid end to end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..overlap import RUN, Hashes, Runs, gram_hashes, joined_letters, letters, spelled
from .counts import count
from .duplicates import sketches
from .filters import reasons_to_drop
from .relevance import Relevance

OFF_TOPIC = "not about finance"
SAMPLE = 8
"""One in so many runs of 20 letters is kept to find held-out text that stands in other documents."""
_UNSAMPLED = np.uint64(SAMPLE - 1)
_TOGETHER = 1 << 16
"""Characters of the documents that are laid end to end: what numpy makes of them stays in the cache of a core."""


class Judged(NamedTuple):
    """A document, and what is known of it by itself."""

    text: str
    """What is left of it without the passages that share a run with a question."""
    asked: list[dict[str, str]]
    """Those passages: question, run, text."""
    reason: str | None
    """Why it is dropped whatever the others are."""
    han: int
    """Chinese characters."""
    sketch: bytes
    """uint16 (128,); b"" of one that is dropped, as its runs."""
    runs: bytes
    """Sampled runs of 20 letters, uint32 each."""


def judge(books: Sequence[Sequence[str]], asked: Runs | None, relevance: Relevance | None) -> list[list[Judged]]:
    """Judges the documents of books; asked: the runs of the questions that no document may share."""
    off_topic = [relevance is not None and not relevance.book(book) for book in books]
    documents = ((text, off) for book, off in zip(books, off_topic, strict=True) for text in book)
    judged = itertools.chain.from_iterable(_judge(batch, asked, relevance) for batch in _batches(documents))
    return [list(itertools.islice(judged, len(book))) for book in books]


def _batches(documents: Iterator[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    batch, size = [], 0
    for document in documents:
        if batch and size + len(document[0]) > _TOGETHER:
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += len(document[0])
    if batch:
        yield batch


def _judge(
    documents: Sequence[tuple[str, bool]], asked: Runs | None, relevance: Relevance | None
) -> Iterator[Judged]:
    left = [(text, []) if asked is None else without_asked(text, asked) for text, _ in documents]
    texts = [text for text, _ in left]
    counts = count(texts)
    reasons = reasons_to_drop(texts, counts)
    for place, (text, (_, off)) in enumerate(zip(texts, documents, strict=True)):
        if reasons[place] is None and off and relevance is not None and not relevance(text):
            reasons[place] = OFF_TOPIC
    plain, ends = joined_letters([text for text, reason in zip(texts, reasons, strict=True) if reason is None])
    compared = zip(sketches(plain, ends), _sampled(gram_hashes(plain, RUN), ends), strict=True)
    for (text, gone), reason, han in zip(left, reasons, counts.han.tolist(), strict=True):
        sketch, runs = (part.tobytes() for part in next(compared)) if reason is None else (b"", b"")
        yield Judged(text, gone, reason, han, sketch, runs)


def _sampled(hashes: Hashes, ends: NDArray[np.int64]) -> list[NDArray[np.uint32]]:
    """The sampled runs of each of several documents, whose letters lie end to end."""
    places = np.flatnonzero(hashes & _UNSAMPLED == 0)
    owners = np.searchsorted(ends, places, "right")
    whole = places + RUN <= ends[owners]  # others reach into the next document
    runs = (hashes[places[whole]] >> np.uint64(32)).astype(np.uint32)
    bounds = np.searchsorted(owners[whole], np.arange(len(ends) + 1)).tolist()
    return [runs[start:end] for start, end in itertools.pairwise(bounds)]


def without_asked(text: str, asked: Runs) -> tuple[str, list[dict[str, str]]]:
    """A text without the paragraphs that a run of a question touches, and those: question, run, text."""
    gone: list[dict[str, str]] = []
    while True:
        plain = letters(text)
        found = list(asked.find(plain, gram_hashes(plain, asked.length)))
        if not found:
            return text, gone
        parts = text.split("\n\n")
        ends = np.cumsum([len(letters(part)) for part in parts])
        touched: dict[int, dict[str, str]] = {}
        for place, name in found:
            run = spelled(plain[place : place + asked.length])
            first, last = np.searchsorted(ends, (place, place + asked.length - 1), "right").tolist()
            for part in range(first, last + 1):
                touched.setdefault(part, {"question": name, "run": run, "text": parts[part]})
        gone += [touched[part] for part in sorted(touched)]
        text = "\n\n".join(part for k, part in enumerate(parts) if k not in touched)
