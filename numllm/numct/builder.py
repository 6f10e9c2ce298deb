"""NumCT: choice questions about the numbers of a corpus, and the audit that shows they are not guessable.

A question is one sentence whose number is replaced by `BLANK`, a few sentences of context before it, and options
in one written form: the answer and, as wrong options, numbers of the same unit and kind from elsewhere in the
document ("document"), answers of earlier questions ("corpus"), a model's own ("model"), what a relation gives when it
is worked out with a common mistake ("mistake") and perturbed numbers ("perturbed").

Wrong options are drawn several times and the draw is kept that leaves the known ways to guess without reading (the
middle value, the roundest, the longest, the most frequent …) nearest to pure chance; see `balance.Balance`.

Everything is drawn from one generator a document, seeded by the seed and the document's id, in the order in which
the documents come: the same documents and seed give the same questions.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import DataError
from ..files import Progress, no_progress
from .asking import KINDS, Document, State, ask, askable
from .cheats import BLANK, LETTERS
from .form import units8
from .sentences import CJK, read_sentences
from .tags import TAGS, is_statute

__all__ = ["build"]

_MIN_PROSE = 10  # Chinese characters a sentence needs besides its number
_MAX_SENTENCE = 300
_MAX_CONTEXT = 420


def build(
    documents: Iterable[dict[str, Any]],
    *,
    options: int = 4,
    context: int = 2,
    seed: int = 0,
    max_per_doc: int | None = None,
    per_sentence: int = 1,
    tags: Sequence[str] = TAGS,
    kind_weights: Mapping[str, float] | None = None,
    propose: Callable[[str, str], Sequence[str]] | None = None,
    progress: Progress = no_progress,
) -> Iterator[dict[str, Any]]:
    """Choice questions from corpus rows (`{"id", "text", "split", …}`), as rows of numct.jsonl, one by one.

    Args:
        documents: corpus rows; read once, one in memory at a time.
        options: answers to choose from, 2 to 5.
        context: sentences before the question that go with it, at most.
        seed: gives, with the documents and their order, the same questions again.
        max_per_doc: questions of one document at most, drawn from all over it.
        per_sentence: questions of one sentence at most.
        tags: of "recall", "derivable" and "other", those to keep.
        kind_weights: kinds of numbers (`KINDS`) that are kept in this proportion, to within 20 questions, as the rarest
            of them allows; a kind of weight 0 is left out, a kind that is not named comes as it is found.
        propose: called with a question's id and the text before its blank, gives continuations of it, by a model;
            the numbers they begin with are wrong options of tier "model" (see `proposals`).

    Each row holds `id, question, options, answer, context, number, tag, relation, source_id, distractors, split`.
    `tag` is "recall" (a rule's number), "derivable" (it follows from the other numbers as `relation` states:
    "1000000 × 0.05 = 50000", in base units or as the text writes it) or "other"; `relation` is None but for the
    second. `question` holds `BLANK` exactly once, with the number's unit or currency sign outside it. A sentence is
    asked once even where it stands in several documents (8 bytes a sentence are kept for that). DataError names a
    row without id or text.
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
        options, context, per_sentence, frozenset(tags), random.Random(f"numct positions {seed}"), weights, propose
    )
    for row in progress(documents, description="numct", unit="doc"):
        if not isinstance(row.get("id"), str) or not isinstance(row.get("text"), str):
            raise DataError(f"a corpus row needs the texts id and text, got the keys {', '.join(map(str, row))}")
        rng = random.Random(f"numct {seed} {row['id']}")
        yield from _of_document(row, state, max_per_doc, rng)


def _of_document(
    row: dict[str, Any], state: State, limit: int | None, rng: random.Random
) -> Iterator[dict[str, Any]]:
    sentences = read_sentences(row["text"])
    pools: dict[tuple[str, str], list[int]] = defaultdict(list)
    separator = ""
    for sentence in sentences:
        for number in sentence.numbers:
            if not number.variable or number.low is not None:
                continue
            if not separator and "," in number.text:
                separator = ","
            exact = units8(number.value)
            if exact is not None and exact > 0:
                pools[number.kind, number.unit].append(exact)
                state.frequency[number.unit, exact] += 1
    document = Document(
        row["id"], row.get("split", "train"), sentences, pools, separator, is_statute(row["text"])
    )
    order = [i for i, sentence in enumerate(sentences) if any(askable(n) for n in sentence.numbers)]
    if limit is not None:
        rng.shuffle(order)
    rows: list[tuple[int, dict[str, Any]]] = []
    for i in order:
        if limit is not None and len(rows) >= limit:
            break
        room = state.per_sentence if limit is None else min(state.per_sentence, limit - len(rows))
        for question in _of_sentence(document, i, room, state, rng):
            if limit is None:
                yield question
            else:
                rows.append((i, question))
    rows.sort(key=lambda pair: pair[0])
    for _, question in rows:
        yield question


def _of_sentence(
    document: Document, at: int, room: int, state: State, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """At most `room` questions of sentence `at`."""
    sentences = document.sentences
    sentence = sentences[at]
    text = sentence.text
    if len(text) > _MAX_SENTENCE or BLANK in text or len(CJK.findall(text)) < _MIN_PROSE:
        return
    key = hashlib.blake2b(text.encode(), digest_size=8).digest()
    if key in state.seen:
        return
    state.seen.add(key)
    before = [s for s in sentences[max(0, at - state.context) : at] if s.section == sentence.section]
    while before and sum(len(s.text) for s in before) > _MAX_CONTEXT:
        before.pop(0)
    window = [n for s in before for n in s.numbers]
    context = "".join(s.text if s.text.endswith(tuple("。！？；!?;")) else s.text + "\n" for s in before)
    candidates = [n for n in sentence.numbers if askable(n) and state.wanted(n.kind)]
    rng.shuffle(candidates)
    # kinds seen least come first, so that rates, amounts, prices and durations are all there
    candidates.sort(key=lambda n: state.share(n.kind) * (0.5 + rng.random()))
    made = 0
    for number in candidates:
        if made == room:
            break
        question = ask(document, sentence, number, window, context, state, rng)
        if question is not None:
            made += 1
            yield question


