"""NumCT: choice questions about the numbers of a corpus, and the audit that shows they are not guessable.

A question is one sentence whose number is replaced by `BLANK`, a few sentences of context before it, and options
in one written form: the answer and, as wrong options, numbers of the same unit and kind from elsewhere in the
document ("document"), answers of earlier questions ("corpus"), what a relation gives when it is worked out with a
common mistake ("mistake") and perturbed numbers ("perturbed").

Wrong options are drawn several times and the draw is kept that leaves the known ways to guess without reading (the
middle value, the roundest, the longest, the most frequent …) nearest to pure chance; see `balance.Balance`.

Everything is drawn from one generator a document, seeded by the seed and the document's id, in the order in which
the documents come: the same documents and seed give the same questions.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import DataError
from ..files import Progress, no_progress
from ..numbers import Number
from .balance import Balance, Traits
from .cheats import BLANK, LETTERS
from .form import UNIT8, Form, Shape, read_form, significant, units8
from .options import Asked, draw, natural_options
from .sentences import CJK, Sentence, read_sentences
from .tags import TAGS, derivation, is_rule, target_of

__all__ = ["build"]

_VAGUE_COUNTS = frozenset("个 项 种 类 次 位 条 点 步 组 轮 分 层 口 例 单位 道 部 期 副 场 片 门 座".split())
KINDS = ("amount", "rate", "price", "count", "duration", "index")
_REMEMBERED = 400  # answers of one unit and form that may come again as wrong options
_DRAWS = 8  # draws of wrong options among which the most balanced is kept
_FAILURES = 6  # draws without result after which no more are made
_MIN_PROSE = 10  # Chinese characters a sentence needs besides its number
_MAX_SENTENCE = 220
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
    state = _State(options, context, per_sentence, frozenset(tags), random.Random(f"numct positions {seed}"))
    for row in progress(documents, description="numct", unit="doc"):
        if not isinstance(row.get("id"), str) or not isinstance(row.get("text"), str):
            raise DataError(f"a corpus row needs the texts id and text, got the keys {', '.join(map(str, row))}")
        rng = random.Random(f"numct {seed} {row['id']}")
        yield from _of_document(row, state, max_per_doc, rng)


@dataclass(slots=True)
class _State:
    """What goes on from document to document."""

    options: int
    context: int
    per_sentence: int
    tags: frozenset[str]
    rng: random.Random
    positions: list[int] = field(default_factory=list)
    balance: Balance = field(init=False)
    frequency: Counter[tuple[str, int]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    seen: set[bytes] = field(default_factory=set)
    earlier: dict[Shape, list[int]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[Shape, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))

    def __post_init__(self) -> None:
        self.balance = Balance(self.options)

    def position(self) -> int:
        """Where the next answer stands: every block of `options` questions uses each position once."""
        if not self.positions:
            self.positions = list(range(self.options))
            self.rng.shuffle(self.positions)
        return self.positions.pop()


def _of_document(
    row: dict[str, Any], state: _State, limit: int | None, rng: random.Random
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
    order = [i for i, sentence in enumerate(sentences) if any(_askable(n) for n in sentence.numbers)]
    if limit is not None:
        rng.shuffle(order)
    rows: list[tuple[int, dict[str, Any]]] = []
    for i in order:
        if limit is not None and len(rows) >= limit:
            break
        room = state.per_sentence if limit is None else min(state.per_sentence, limit - len(rows))
        for question in _of_sentence(row, sentences, i, room, pools, separator, state, rng):
            if limit is None:
                yield question
            else:
                rows.append((i, question))
    rows.sort(key=lambda pair: pair[0])
    for _, question in rows:
        yield question


def _askable(number: Number) -> bool:
    """Whether a number is worth a question at all."""
    if not number.variable or number.low is not None or number.kind not in KINDS or not number.unit:
        return False
    if number.kind == "count" and number.unit in _VAGUE_COUNTS:
        return False
    return number.value not in ("0", "1", "-1") and ":" not in number.value


def _of_sentence(
    row: dict[str, Any],
    sentences: Sequence[Sentence],
    at: int,
    room: int,
    pools: dict[tuple[str, str], list[int]],
    separator: str,
    state: _State,
    rng: random.Random,
) -> Iterator[dict[str, Any]]:
    """At most `room` questions of sentence `at`."""
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
    candidates = [n for n in sentence.numbers if _askable(n)]
    rng.shuffle(candidates)
    # kinds seen least come first, so that rates, amounts, prices and durations are all there
    candidates.sort(key=lambda n: state.kinds[n.kind] * (0.5 + rng.random()))
    made = 0
    for number in candidates:
        if made == room:
            break
        question = _ask(row, sentence, number, window, context, pools, separator, state, rng)
        if question is not None:
            made += 1
            yield question


def _ask(
    row: dict[str, Any],
    sentence: Sentence,
    number: Number,
    window: Sequence[Number],
    context: str,
    pools: dict[tuple[str, str], list[int]],
    separator: str,
    state: _State,
    rng: random.Random,
) -> dict[str, Any] | None:
    """The question about one number, or None where it would be unfair."""
    parsed = read_form(number, separator)
    if parsed is None:
        return None
    form, m = parsed
    if m == 1:
        return None  # nothing is smaller in this form: the answer could only be the least
    siblings = [n for n in sentence.numbers if n is not number]
    others = [*window, *siblings]
    if any(n.value == number.value or n.low == number.value or n.high == number.value for n in others):
        return None
    text = sentence.text
    answer = form.render(m)
    start = number.start - sentence.offset + len(form.head)
    stem, rest = text[:start], text[start + len(answer) :]
    if _stands_in(answer, form, f"{context}\n{stem}\n{rest}"):
        return None
    span = number.start - sentence.offset, number.end - sentence.offset
    tag, relation = "other", None
    if form.style != "f":
        target = target_of(number, m, form.scale, UNIT8)
        relation = derivation(text, *span, target, siblings, window)
    before = context[context.rfind("。", 0, -1) + 1 :]
    if relation is not None:
        tag = "derivable"
    elif is_rule(text, before, number, len(str(significant(m)[0])), siblings):
        tag = "recall"
    if tag not in state.tags:
        return None
    taken: set[int] = set()
    near: list[float] = []
    for n in others:
        for value in (n.value, n.low, n.high):
            exact = units8(value) if value is not None and n.kind in KINDS + ("other",) else None
            if exact:
                taken.add(abs(exact))
                near.append(math.log(abs(exact) / UNIT8))
    written = form.prefix + form.suffix.strip() + (form.tail if number.kind == "rate" else "")
    shape = (number.kind, number.unit, form.style, form.decimals, written)
    asked = Asked(
        form,
        m,
        number.kind,
        number.unit,
        taken,
        sorted(near),
        state.frequency,
        state.answers[shape],
        _bounds(sentence, number),
        frozenset(f"{context}{stem}{rest}"),
    )
    earlier = state.earlier[shape]
    natural = natural_options(asked, pools.get((number.kind, number.unit), ()), earlier, relation, rng)
    best: tuple[float, list[tuple[int, str]], Traits] | None = None
    failed = 0
    for _ in range(_DRAWS):
        drawn = draw(asked, natural, state.options - 1, rng)
        if drawn is None:
            failed += 1
            if failed == _FAILURES:
                break
            continue
        cost, traits = state.balance.cost(number.kind, asked.seen([m for m, _ in drawn]))
        cost += 0.05 * rng.random()
        if best is None or cost < best[0]:
            best = cost, drawn, traits
    if best is None:
        return None
    _, wrong, traits = best
    if state.balance.too_easy(number.kind, traits):
        return None
    state.balance.add(number.kind, traits)
    state.answers[shape][m] += 1
    if len(earlier) < _REMEMBERED:
        earlier.append(m)
    else:
        earlier[rng.randrange(_REMEMBERED)] = m
    state.kinds[number.kind] += 1
    rng.shuffle(wrong)
    position = state.position()
    rendered = [form.render(m) for m, _ in wrong]
    rendered.insert(position, answer)
    name = hashlib.sha256(f"{row['id']}\0{text}\0{number.start}".encode()).hexdigest()[:16]
    return {
        "id": name,
        "question": f"{stem}{BLANK}{rest}",
        "options": rendered,
        "answer": LETTERS[position],
        "context": context,
        "number": {"text": number.text, "value": number.value, "unit": number.unit, "kind": number.kind},
        "tag": tag,
        "relation": relation,
        "source_id": row["id"],
        "distractors": [tier for _, tier in wrong],
        "split": row.get("split", "train"),
    }


def _bounds(sentence: Sentence, number: Number) -> tuple[int, int | None]:
    """The values between which an option must lie because the number is an end of a range in words."""
    low, high = 0, None
    at = sentence.numbers.index(number)
    for step in (-1, 1):
        if not 0 <= at + step < len(sentence.numbers):
            continue
        other = sentence.numbers[at + step]
        first, second = (other, number) if step < 0 else (number, other)
        gap = sentence.text[first.end - sentence.offset : second.start - sentence.offset]
        exact = units8(other.value) if other.unit == number.unit and other.kind == number.kind else None
        if exact is not None and gap and _BETWEEN.fullmatch(gap) is not None:
            low, high = (exact, high) if step < 0 else (low, exact)
    return low, high


_BETWEEN = re.compile(r"\s?(?:及?以上)?(?:至|到|不满|不足|不超过|（含[^）]{0,8}）|[-－—~～])?\s?")


def _stands_in(answer: str, form: Form, text: str) -> bool:
    """Whether the answer's characters stand elsewhere, not as part of a longer number."""
    if form.style == "a":
        core = answer[: len(answer) - len(form.suffix)] if form.suffix else answer
        if len(core) < 3 and not form.suffix.strip():
            return False
        edge = r"[0-9０-９.,，]"
        wanted = answer if len(core) < 3 else core
    else:
        edge, wanted = "[零一二三四五六七八九十百千万亿两]", answer + form.tail[:1]
    if wanted not in text:
        return False
    return re.search(rf"(?<!{edge}){re.escape(wanted)}(?!{edge})", text) is not None
