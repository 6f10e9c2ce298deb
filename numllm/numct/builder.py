"""NumCT: choice questions about the numbers of a corpus, and the audit that shows they are not guessable.

A question is one sentence whose number is replaced by `BLANK`, a few sentences of context before it, and options
in one written form: the answer and, as wrong options, numbers of the same unit and kind from elsewhere in the
document ("document"), answers of earlier questions ("corpus"), a model's own ("model"), what a relation gives when it
is worked out with a common mistake ("mistake") and perturbed numbers ("perturbed").

Wrong options are drawn several times and the draw is kept that leaves the known ways to guess without reading (the
middle value, the roundest, the longest, the most frequent …) nearest to pure chance; see `balance.Balance`.

Everything is drawn from one generator a document, seeded by the seed and the document's id, in the order in which
the documents come: the same documents and seed give the same questions. They come in that order too, but for those
that were too easily guessed at first (see `rounds`).
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..collector import frozen_heap
from ..errors import DataError, NumLLMError
from ..files import Progress, no_progress
from ..workers import Lost, Workers
from .asking import State
from .candidates import Reading, candidates
from .rounds import Rounds
from .tags import ANSWERABLE, KINDS, LETTERS, TAGS

__all__ = ["build"]

_BATCH = 40_000  # characters of documents that a process reads at once: what others may have to wait for at the end


def build(
    documents: Iterable[dict[str, Any]],
    *,
    options: int = 4,
    context: int = 2,
    seed: int = 0,
    max_per_doc: int | None = None,
    per_sentence: int = 1,
    tags: Sequence[str] = ANSWERABLE,
    kind_weights: Mapping[str, float] | None = None,
    propose: Callable[[str, str], Sequence[str]] | None = None,
    left_out: Counter[str] | None = None,
    jobs: int = 1,
    progress: Progress = no_progress,
) -> Iterator[dict[str, Any]]:
    """Choice questions from corpus rows (`{"id", "text", "split", …}`), as rows of numct.jsonl, one by one.

    Args:
        documents: corpus rows; read once, few in memory at a time.
        options: answers to choose from, 2 to 5.
        context: sentences before the question that go with it, at most; more where the number follows from numbers
            further back in its section; with 0, none, and no headings.
        seed: gives, with the documents and their order, the same questions again.
        max_per_doc: questions of one document at most, drawn from all over it.
        per_sentence: questions of one sentence at most.
        tags: of "recall", "derivable", "other" and "given", those to keep.
        kind_weights: kinds of numbers (`KINDS`) that are kept in this proportion, to within 20 questions, as the rarest
            of them allows; a kind of weight 0 is left out, a kind that is not named comes as it is found.
        propose: called with a question's id and the text before its blank, gives continuations of it, by a model;
            the numbers they begin with are wrong options of tier "model" (see `proposals`).
        left_out: counts, by reason, the numbers that are not asked.
        jobs: processes, this one among them; the others read documents. The questions do not depend on it.

    Each row holds `id, question, options, answer, context, number, tag, relation, source_id, distractors, split`.
    `tag` is "recall" (a rule's number), "derivable" (it follows from the other numbers as `relation` states:
    "1000000 × 0.05 = 50000", in base units or as the text writes it), "other" (a fact of the text) or "given" (chosen
    by the writer, as in a worked example, and not to be worked out); `relation` is None but for the second. `context`
    is the headings, in a line, and the sentences before. `question` holds `BLANK` exactly once, with the number's unit
    or currency sign outside it. A sentence is asked once even where it stands in several documents (8 bytes a sentence
    are kept for that). DataError names a row without id or text.
    """
    if not 2 <= options <= len(LETTERS):
        raise ValueError(f"options must be from 2 to {len(LETTERS)}, got {options}")
    if context < 0 or per_sentence < 1 or (max_per_doc is not None and max_per_doc < 1):
        raise ValueError("context must be at least 0, per_sentence and max_per_doc at least 1")
    if not tags or not set(tags) <= set(TAGS):
        raise ValueError(f"tags must be some of {', '.join(TAGS)}, got {', '.join(tags) or 'none'}")
    weights = dict(kind_weights or {})
    if not set(weights) <= set(KINDS) or not all(weight >= 0 for weight in weights.values()):
        raise ValueError(f"kind_weights must give some of {', '.join(KINDS)} numbers from 0, got {weights}")
    if weights and not any(weights.values()) and set(weights) == set(KINDS):
        raise ValueError("kind_weights must leave a kind of number that is asked, got 0 for every one")
    state = State(
        options, per_sentence, random.Random(f"numct positions {seed}"), weights, propose,
        left_out if left_out is not None else Counter(),
    )
    rounds = Rounds(state, max_per_doc, seed)
    rows = map(_checked, progress(documents, description="numct", unit="doc"))
    work = functools.partial(candidates, context=context, tags=frozenset(tags))
    with frozen_heap():
        for reading in _readings(rows, work, jobs):
            yield from rounds.add(reading)
        yield from rounds.finish()


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(row.get("id"), str) or not isinstance(row.get("text"), str):
        raise DataError(f"a corpus row needs the texts id and text, got the keys {', '.join(map(str, row))}")
    return row


def _readings(
    rows: Iterable[dict[str, Any]], work: Callable[[Sequence[dict[str, Any]]], list[Reading]], jobs: int
) -> Iterator[Reading]:
    """Each row read, in order, by so many processes, this one among them where it would wait for the others."""
    if jobs == 1:
        for row in rows:
            yield from work([row])
        return
    with contextlib.closing(Workers(jobs - 1)) as workers:
        for batch in workers.ordered(work, _batches(rows), helping=True):
            if isinstance(batch, Lost):
                raise NumLLMError(f"reading documents for questions: {batch.reason}; try --jobs 1")
            yield from batch


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows in lists of about `_BATCH` characters."""
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        batch.append({key: row[key] for key in ("id", "text", "title", "split") if key in row})
        size += len(row["text"])
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
