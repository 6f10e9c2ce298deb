"""One question about one number: whether it is fair, its blank, tag, wrong options and their balance."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..numbers import Number
from .balance import Balance
from .cheats import BLANK, LETTERS
from .form import UNIT8, Form, Shape, read_form, significant, units8
from .options import Asked, draw, model_options, natural_options
from .sentences import Sentence
from .tags import derivation, is_rule, target_of

__all__ = ["KINDS", "Document", "State", "ask", "askable"]

KINDS = ("amount", "rate", "price", "count", "duration", "index")
"""Kinds of numbers that can be asked."""

_VAGUE_COUNTS = frozenset("个 项 种 类 次 位 条 点 步 组 轮 分 层 口 例 单位 道 部 期 副 场 片 门 座 票".split())
_OPENING = re.compile(r"[（(【\[]?\s*(?:例题?|案例|习题)\s?[0-9一二三四五六七八九十]")
_REMEMBERED = 400  # answers of one unit and form that may come again as wrong options
_DRAWS = 8  # draws of wrong options among which the most balanced is kept
_FAILURES = 6  # draws without result after which no more are made
_AHEAD = 20.0  # questions by which a kind may be ahead of its share


@dataclass(slots=True)
class State:
    """What goes on from document to document."""

    options: int
    context: int
    per_sentence: int
    tags: frozenset[str]
    rng: random.Random
    weights: Mapping[str, float] = field(default_factory=dict)
    propose: Callable[[str, str], Sequence[str]] | None = None  # (question's id, text before the blank) → continuations
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

    def share(self, kind: str) -> float:
        """How many questions of a kind there are, in units of its weight."""
        return self.kinds[kind] / self.weights.get(kind, 1.0)

    def wanted(self, kind: str) -> bool:
        """Whether one more question of a kind keeps the kinds that have weights in their proportion."""
        weight = self.weights.get(kind)
        if weight is None:
            return True
        least = min(self.share(other) for other, w in self.weights.items() if w > 0)
        return weight > 0 and self.kinds[kind] < weight * least + _AHEAD


@dataclass(frozen=True, slots=True)
class Document:
    """A corpus row as the questions see it."""

    id: str
    split: str
    sentences: Sequence[Sentence]
    pools: Mapping[tuple[str, str], list[int]]  # values in 1e-8 by kind and unit, as often as they stand in it
    separator: str  # between thousands
    statute: bool


def askable(number: Number) -> bool:
    """Whether a number is worth a question at all."""
    if not number.variable or number.low is not None or number.kind not in KINDS or not number.unit:
        return False
    if number.kind == "count" and number.unit in _VAGUE_COUNTS:
        return False
    return number.value not in ("0", "1", "-1") and ":" not in number.value


def ask(
    document: Document, sentence: Sentence, number: Number, window: Sequence[Number], context: str, state: State,
    rng: random.Random,
) -> dict[str, Any] | None:
    """The question about one number, or None where it would be unfair."""
    parsed = read_form(number, document.separator)
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
    elif is_rule(text, before, number, len(str(significant(m)[0])), siblings, document.statute):
        tag = "recall"
    elif _OPENING.match(text) is not None:
        return None  # what an example sets out from can be neither known nor worked out
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
    name = hashlib.sha256(f"{document.id}\0{text}\0{number.start}".encode()).hexdigest()[:16]
    natural = natural_options(asked, document.pools.get((number.kind, number.unit), ()), earlier, relation, rng)
    if state.propose is not None:
        natural += model_options(asked, context + stem, rest, state.propose(name, context + stem))
    wrong = _balanced(asked, natural, state, rng)
    if wrong is None:
        return None
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
    return {
        "id": name,
        "question": f"{stem}{BLANK}{rest}",
        "options": rendered,
        "answer": LETTERS[position],
        "context": context,
        "number": {"text": number.text, "value": number.value, "unit": number.unit, "kind": number.kind},
        "tag": tag,
        "relation": relation,
        "source_id": document.id,
        "distractors": [tier for _, tier in wrong],
        "split": document.split,
    }


def _balanced(
    asked: Asked, natural: Sequence[tuple[int, str]], state: State, rng: random.Random
) -> list[tuple[int, str]] | None:
    """The most balanced of several draws of wrong options, counted; None where none is to be had, or a guesser
    would have it too easy."""
    draws: list[list[tuple[int, str]]] = []
    failed = 0
    while len(draws) < _DRAWS and failed < _FAILURES:
        drawn = draw(asked, natural, state.options - 1, rng)
        if drawn is None:
            failed += 1
        else:
            draws.append(drawn)
    if not draws:
        return None
    traits = state.balance.judge(*asked.traits([[m for m, _ in drawn] for drawn in draws]))
    costs = state.balance.costs(asked.kind, traits)
    best = min(range(len(draws)), key=lambda i: costs[i] + 0.05 * rng.random())
    if state.balance.too_easy(asked.kind, traits, best):
        return None
    state.balance.add(asked.kind, traits, best)
    return draws[best]


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
