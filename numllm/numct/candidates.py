"""What can be asked of one document: each number with its tag, its context and what its options are judged by.

Nothing here depends on other documents, so that documents may be read in any order, by several processes.

A reader must be able to answer: by recall of a rule, or by working the number out from others that are shown. The
context is the sentences before the asked one, under the headings it stands under. It reaches as far back, within the
section, as the numbers do that the asked one follows from; it begins anew after a sentence that gives the answer away.
A number that its writer chose (`tags.is_given`) and that does not follow from others is tagged "given": no reader can
answer, so that it is not asked unless wanted.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..numbers import Number, find_numbers
from .arithmetic import equation, may_be_equation
from .form import UNIT8, Form, Shape, read_form, significant, units8
from .limits import Limits, limits
from .options import SHOWN
from .relations import Target, chance_limit, find_relation, operand
from .sentences import CJK, Sentence, read_sentences
from .tags import BLANK, TAGS, is_given, is_manual, is_rule, is_statute, target_of
from .telling import WORTH, Tells, teller

__all__ = ["Candidate", "Reading", "candidates", "read"]

_VAGUE_COUNTS = frozenset("个 项 种 类 次 位 条 点 步 组 轮 分 层 口 例 单位 道 部 期 副 场 片 门 座 票".split())
_PEOPLE = frozenset("人 名 户 岁".split())
_MIN_PROSE = 10  # Chinese characters a sentence needs besides its number
_MIN_WORDS = 2  # and where an equation gives the number
_MAX_SENTENCE = 480
_MAX_CONTEXT = 420
_REACH, _MAX_REACH = 14, 800  # sentences, and their characters, in which the givens of an example are looked for
_MOST_GIVENS = 14  # of their numbers that are tried, the nearest
_ENDS = tuple("。！？；!?;")
_TITLES = 64  # headings kept with their numbers


@dataclass(slots=True)
class Candidate:
    """A number that can be asked."""

    id: str
    number: dict[str, str]  # its text, value, unit and kind
    form: Form
    m: int
    shape: Shape  # what its options look like
    tag: str
    relation: str | None
    context: str
    stem: str  # the question before its blank
    rest: str  # the question behind it
    limits: Limits  # of its wrong options
    near: list[float]  # sorted logarithms of the sizes of the numbers in question and context
    digits: str  # that stand in the question or the context, each once
    shown: list[tuple[str, int]]  # units and values, in 1e-8, that stand in the question or the context

    @property
    def kind(self) -> str:
        """The number's."""
        return self.shape[0]


class Found(NamedTuple):
    """A sentence with numbers that can be asked."""

    key: bytes  # of its text
    wanted: list[Candidate]
    others: list[str]  # the tags of those that are not wanted

    @property
    def size(self) -> int:
        """Numbers that can be asked."""
        return len(self.wanted) + len(self.others)


@dataclass(slots=True)
class Reading:
    """A corpus row as its questions see it."""

    id: str
    split: str
    pools: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """Values in 1e-8 by kind and unit, as often as they stand in it."""
    shown: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How often each unit and value in 1e-8 stands in the questions that are wanted and their contexts."""
    asked: list[Found] = field(default_factory=list)
    """Its sentences with numbers that can be asked."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Why numbers are not asked, and how many."""


def _askable(number: Number) -> bool:
    """Whether a number is worth a question at all; one without unit only where a written equation gives it."""
    if not number.variable or number.low is not None or number.kind not in WORTH:
        return False
    if number.kind == "count":
        few = len(number.text) == len(number.unit) + 1 and not number.text[0].isdigit()  # 三家: too easily guessed
        if number.unit in _VAGUE_COUNTS or (few and number.unit not in _PEOPLE):
            return False
    return number.value not in ("0", "1", "-1") and ":" not in number.value


def read(row: Mapping[str, Any], context: int, tags: Collection[str] = TAGS) -> Reading:
    """The numbers of a corpus row that can be asked, with a context of at most so many sentences, but for a number
    that follows from others further back; 0 for none at all. tags: those that are wanted."""
    sentences = read_sentences(row["text"], row.get("title", ""))
    reading = Reading(row["id"], row.get("split", "train"))
    if not sentences:
        return reading
    separator = ""
    for sentence in sentences:
        for number in sentence.numbers:
            if not number.variable or number.low is not None:
                continue
            if not separator and "," in number.text:
                separator = ","
            exact = units8(number.value)
            if exact is not None and exact > 0:
                reading.pools.setdefault((number.kind, number.unit), []).append(exact)
    statute, manual = is_statute(row["text"]), is_manual(row["text"])
    for at, sentence in enumerate(sentences):
        numbers = sentence.numbers and [number for number in sentence.numbers if _askable(number)]
        if not numbers:
            continue
        text = sentence.text
        if len(text) > _MAX_SENTENCE or BLANK in text:
            reading.left_out["sentence too long"] += len(numbers)
            continue
        worked = may_be_equation(text)
        if not worked:
            unitless = sum(not number.unit for number in numbers)
            reading.left_out["without a unit"] += unitless
            numbers = [number for number in numbers if number.unit] if unitless else numbers
        prose = len(CJK.findall(text)) if numbers else 0
        found = Found(hashlib.blake2b(text.encode(), digest_size=8).digest(), [], [])
        for number in numbers:
            one = _candidate(
                row["id"], sentences, at, number, separator, context, tags, statute, manual, prose, worked
            )
            if not isinstance(one, str):
                found.wanted.append(one)
                reading.shown.update(one.shown)
            elif one in TAGS:
                found.others.append(one)
            else:
                reading.left_out[one] += 1
        if found.wanted or found.others:
            reading.asked.append(found)
    return reading


def candidates(rows: Sequence[Mapping[str, Any]], context: int, tags: Collection[str] = TAGS) -> list[Reading]:
    """`read` of several rows."""
    return [read(row, context, tags) for row in rows]


def _candidate(
    document: str, sentences: Sequence[Sentence], at: int, number: Number, separator: str, context: int,
    tags: Collection[str], statute: bool, manual: bool, prose: int, worked: bool,
) -> Candidate | str:
    """The number as it can be asked, or its tag where that is not wanted, or why it cannot be asked.

    prose: Chinese characters of its sentence; worked: whether it may hold a written equation.
    """
    parsed = read_form(number, separator)
    if parsed is None:
        return "written in a form that cannot be varied"
    form, m = parsed
    if m == 1:
        return "the least that can be written so"  # it would be the smallest option of any
    sentence = sentences[at]
    text, siblings = sentence.text, [n for n in sentence.numbers if n is not number]
    answer = form.render(m)
    start = number.start - sentence.offset + len(form.head)
    stem, rest = text[:start], text[start + len(answer) :]
    tells = teller(number, answer, form)
    if tells(siblings, f"{stem}\n{rest}"):
        return "stands twice in its sentence"
    last = sentences[at - 1] if at and context and sentences[at - 1].section == sentence.section else None
    if last is not None and tells(last.numbers, last.text):
        return "told by the sentence before"  # without which the question may not be clear
    relation, tag, digits = None, "other", len(str(significant(m)[0]))
    derived = form.style != "f" and bool(siblings or context)
    if worked and derived and siblings:
        relation = equation(text[: number.start - sentence.offset], number.text, text[number.end - sentence.offset :])
    if relation is None and not number.unit:
        return "without a unit"
    if prose < (_MIN_PROSE if relation is None else _MIN_WORDS):
        return "no prose"
    before = list(_before(sentences, at, context, _MAX_CONTEXT, tells))
    target = None
    if derived and relation is None and chance_limit(m, text) >= 1:
        target = target_of(number, m, form.scale, UNIT8)
        found = find_relation(target, siblings, _numbers(before), text)
        relation = found.text if found is not None else None
    if relation is not None:
        tag = "derivable"
    elif not manual and is_rule(
        text, before[-1].text if before else "", number, digits, siblings, statute, sentence.example
    ):
        tag = "recall"
    elif target is not None and context and (givens := _givens(target, sentences, at, siblings, tells, len(before))):
        before, relation = givens
        tag = "derivable"
    elif is_given(text, number, digits, siblings, sentence.example or manual):
        tag = "given"
    if tag not in tags:
        return tag
    title = sentence.title if context and not tells(_title_numbers(sentence.title), sentence.title) else ""
    taken: set[int] = set()
    near: list[float] = []
    beside: list[tuple[str, int]] = []
    for n in (*_title_numbers(title), *_numbers(before), *siblings):
        if not n.value.isdecimal() and n.kind not in WORTH:
            continue
        for value in (n.value, n.low, n.high):
            exact = units8(value) if value is not None else None
            if exact:
                near.append(math.log(abs(exact) / UNIT8))
                if n.kind in WORTH:
                    taken.add(abs(exact))
                if value is n.value:
                    beside.append((n.unit, exact))
    told = _told(title, before)
    shown = told + stem + rest
    written = form.prefix + form.suffix.strip() + (form.tail if number.kind == "rate" else "")
    return Candidate(
        hashlib.sha256(f"{document}\0{text}\0{number.start}".encode()).hexdigest()[:16],
        {"text": number.text, "value": number.value, "unit": number.unit, "kind": number.kind}, form, m,
        (number.kind, number.unit, form.style, form.decimals, written), tag, relation, told, stem, rest,
        limits(form, m, number.kind, taken, _bounds(sentence, number)), sorted(near),
        "".join([digit for digit in SHOWN if digit in shown]), beside,
    )


def _numbers(sentences: Sequence[Sentence]) -> list[Number]:
    return [number for sentence in sentences for number in sentence.numbers]


def _before(
    sentences: Sequence[Sentence], at: int, most: int, characters: int, tells: Tells
) -> Iterator[Sentence]:
    """The sentences before one, in order: of its section, so many, and as long, at most, and none that tells the
    answer."""
    first, left, section = at, characters, sentences[at].section
    while first and at - first < most:
        one = sentences[first - 1]
        left -= len(one.text)
        if one.section != section or left < 0 or tells(one.numbers, one.text):
            break
        first -= 1
    yield from sentences[first:at]


def _givens(
    target: Target, sentences: Sequence[Sentence], at: int, siblings: Sequence[Number], tells: Tells,
    known: int,
) -> tuple[list[Sentence], str] | None:
    """(sentences, relation): how the target follows from numbers further back than the `known` sentences, and all
    sentences from the first that it needs."""
    before = list(_before(sentences, at, _REACH, _MAX_REACH, tells))
    if len(before) <= known:
        return None
    found = find_relation(target, siblings, _numbers(before), sentences[at].text, _MOST_GIVENS)
    if found is None:
        return None
    here = {(term.value, term.unit) for n in siblings if (term := operand(n)) is not None}
    needed = set(found.operands) - here
    for first in reversed(range(len(before))):
        needed -= {(term.value, term.unit) for n in before[first].numbers if (term := operand(n)) is not None}
        if not needed:
            return before[min(first, len(before) - known) :], found.text
    return before, found.text


@functools.lru_cache(_TITLES)
def _title_numbers(title: str) -> tuple[Number, ...]:
    return tuple(find_numbers(title))


def _told(title: str, before: Sequence[Sentence]) -> str:
    """What is shown before a question: its headings, in a line, and the sentences before it."""
    return (title + "\n" if title else "") + "".join(
        s.text if s.text.endswith(_ENDS) else s.text + "\n" for s in before
    )


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
