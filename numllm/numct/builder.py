"""NumCT: choice questions about the numbers of a corpus, and the audit that shows they are not guessable.

A question is one sentence whose number is replaced by `BLANK`, a few sentences of context before it, and options
in one written form: the answer and, as wrong options, numbers of the same unit and kind from elsewhere in the
document ("document"), answers of earlier questions ("corpus") and perturbed numbers ("perturbed").

Wrong options are drawn several times and the draw is kept that leaves the known ways to guess without reading (the
middle value, the roundest, the longest, the most frequent …) nearest to pure chance; see `_Balance`.

Everything is drawn from one generator a document, seeded by the seed and the document's id, in the order in which
the documents come: the same documents and seed give the same questions.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ..errors import DataError
from ..files import Progress, no_progress
from ..numbers import Number, chinese_to_int, find_numbers, int_to_chinese
from .tags import TAGS, derivation, is_rule, target_of

__all__ = ["BLANK", "audit", "build"]

BLANK = "____"
"""What stands in a question for the number that is asked."""

_LETTERS = "ABCDE"
_KINDS = ("amount", "rate", "price", "count", "duration", "index")
_VAGUE_COUNTS = frozenset("个 项 种 类 次 位 条 点 步 组 轮 分 层 口 例 单位 道 部 期 副 场 片 门 座".split())
_NATURAL = (0, 1, 2, 2, 3, 3, 3)  # wrong options that are numbers of the document or the corpus, as often as listed
_SPREAD = 16  # a wrong option is less than so many times larger or smaller than the answer
_REMEMBERED = 400  # answers of one unit and form that may come again as wrong options
_FREQUENCY_TARGET = 0.8  # of pure chance, see _Balance
_COMMON = 8.0  # questions that the most frequent answer may win above its target before it is left out
_DRAWS = 5  # draws of wrong options among which the most balanced is kept
_MIN_PROSE = 10  # Chinese characters a sentence needs besides its number
_MAX_SENTENCE = 220
_MAX_CONTEXT = 420
_UNIT8 = 10**8  # values are compared as whole multiples of 1e-8 of the base unit


# ---------------------------------------------------------------------------------------- sentences


@dataclass(frozen=True, slots=True)
class _Sentence:
    text: str
    offset: int  # of the text in its line
    numbers: tuple[Number, ...]  # with offsets in the line
    section: int  # sentences of one section may be each other's context


_SPECIAL = re.compile(
    r"\s*(?:(?P<fence>```|~~~|\$\$)|(?P<heading>#|={3,}\s*$|-{3,}\s*$)|"
    r"(?P<other>$|\||!\[|<|\[!|:::|---|===|\* \* \*|\{%|%|@|>\s*\[!|[借贷][：:]))"
)
_LIST_MARK = re.compile(
    r"\s*(?:(?:[-*+>•·]\s+|\d{1,3}[.、．)）]\s*(?!\d)|[（(](?:[一二三四五六七八九十百]{1,4}|\d{1,3})[)）]\s*|[一二三四五六七八九十]{1,3}、)\s*)*"
)
_LINK = re.compile(r"!?\[([^\[\]]{0,200})\]\([^()\s]{0,400}\)")
_MARKS = re.compile(r"\*\*|__|~~|`|</?[A-Za-z][^<>]{0,4000}>|\\(?=[\[\]\-=#.*_()>~|])|&(?:nbsp|emsp|ensp);")
_BREAKS = re.compile(r"[。！？；!?;（）()“”《》「」『』\[\]【】]")
_OPEN, _CLOSE = "（(“《「『[【", "）)”》」』]】"
_CJK = re.compile(r"[\u4e00-\u9fff]")


def _pieces(line: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each sentence of a line; nothing is split inside brackets or quotation marks."""
    start = depth = 0
    for match in _BREAKS.finditer(line):
        c = match.group()
        if c in _OPEN:
            depth += 1
        elif c in _CLOSE:
            depth = max(0, depth - 1)
        elif depth == 0:
            yield start, match.end()
            start = match.end()
    if start < len(line):
        yield start, len(line)


def _sentences(text: str) -> list[_Sentence]:
    """The prose sentences of a document in order, with their numbers; headings, tables and code left out."""
    found: list[_Sentence] = []
    section, fenced = 0, False
    for raw in text.splitlines():
        special = _SPECIAL.match(raw)
        if special is not None and special.lastgroup == "fence":
            closed = raw.lstrip().startswith("$$") and raw.count("$$") == 2
            fenced = not fenced and not closed
        elif fenced or special is not None:
            section += special is not None and special.lastgroup == "heading" and not fenced
        elif raw.count("|") < 2 and "\t" not in raw:
            _add_line(raw, section, found)
    return found


def _add_line(raw: str, section: int, found: list[_Sentence]) -> None:
    """Appends the sentences of one line of prose, cleaned of Markdown, to `found`."""
    line = _LINK.sub(r"\1", raw) if "[" in raw else raw
    line = _MARKS.sub("", line).rstrip()
    mark = _LIST_MARK.match(line)
    line = line[mark.end() :] if mark is not None else line
    numbers = find_numbers(line)
    at, count = 0, len(numbers)
    for start, end in _pieces(line):
        piece = line[start:end]
        text = piece.strip()
        if not text:
            continue
        shift = start + len(piece) - len(piece.lstrip())
        first = at
        while at < count and numbers[at].end <= end:
            at += 1
        found.append(_Sentence(text, shift, tuple(numbers[first:at]), section))


# -------------------------------------------------------------------------------------------- form


@dataclass(frozen=True, slots=True)
class _Form:
    """How a number is written: every option of a question is a whole `m` rendered in the answer's form.

    The value of an option, in units of 1e-8 of the base unit, is `m * scale`.
    """

    style: str  # "a" Arabic, "c" Chinese numeral, "p" 百分之, "f" N分之M (m is M * 1000 + N)
    head: str  # before the blank within the number: a currency sign
    prefix: str  # first characters of each option: a minus, 百分之
    suffix: str  # last characters of each option: magnitude, per cent sign
    tail: str  # behind the blank within the number: the unit
    decimals: int
    separator: str
    wide: bool
    percent: bool
    two: str  # how a Chinese 2 is written before this unit
    scale: int

    def render(self, m: int) -> str:
        """The option text of `m`."""
        if self.style == "a":
            digits = f"{m:0{self.decimals + 1}d}"
            whole, rest = (digits[: -self.decimals], digits[-self.decimals :]) if self.decimals else (digits, "")
            if self.separator and len(whole) > 3:
                whole = f"{int(whole):,}".replace(",", self.separator)
            body = f"{whole}.{rest}" if rest else whole
            if self.wide:
                body = body.translate(_WIDEN)
        elif self.style == "f":
            body = f"{int_to_chinese(m % 1000)}分之{int_to_chinese(m // 1000)}"
        else:
            body = int_to_chinese(m) if m != 2 else self.two
            if m >= 200 and self.two == "两":
                body = re.sub(r"^二(?=[百千万亿])", "两", body)
        return f"{self.prefix}{body}{self.suffix}"

    def value(self, m: int) -> float:
        """The value of an option as a float, for comparisons of size only."""
        return (m // 1000) / (m % 1000) if self.style == "f" else m * self.scale / _UNIT8


_Shape = tuple[str, str, str, int, str]  # kind, unit, style, decimals, prefix and suffix: what looks alike
_WIDEN = str.maketrans("0123456789.,", "０１２３４５６７８９．，")
_ARABIC_FORM = re.compile(
    r"(?P<head>[A-Z]{0,3}\\?[¥￥$＄€£￡]?\s?)(?P<sign>[-−－﹣]?)"
    r"(?P<whole>[0-9０-９]{1,3}(?:[, ，][0-9０-９]{3})+|[0-9０-９]+)"
    r"(?:[.．](?P<rest>[0-9０-９]+))?(?P<suffix>(?:\s?(?:[十百千]?[万亿]|[百千])(?![克米瓦]))?(?:\s?[%％‰‱]|\s?\$?\\%\$?)?)(?P<tail>[^0-9０-９]*)"
)
_SHARE_FORM = re.compile(r"(?P<sign>负?)(?P<prefix>[百千万]分之)(?P<body>[零一二三四五六七八九十百两]+)")
_FRACTION_FORM = re.compile(r"(?P<n>[二三四五六七八九十]+)分之(?P<m>[一二三四五六七八九十]+)")
_CHINESE_FORM = re.compile(r"(?P<body>[一二三四五六七八九十百千万亿两零]+)(?P<tail>[^一二三四五六七八九十零]*)")
_SHARES = {"百": 100, "千": 1000, "万": 10_000}
_TAIL_UNITS = re.compile(r"(?!.*[多余半角])(?:\s?[\u4e00-\u9fffA-Za-z/／（）()]{0,12})\Z")
_TWO_LIANG = frozenset("年 倍 个月 周 天 小时 人 名 家 台 件 股 吨 辆 个工作日 个季度 个会计年度 个交易日".split())


def _form(number: Number, separator: str) -> tuple[_Form, int] | None:
    """(form, m) of a number whose digits can be varied and written back; None for other ways to write."""
    value = number.value
    if "/" in value and "分之" not in number.text:
        return None
    text = number.text
    c = text[0]
    if c in "百千万" or (c == "负" and "分之" in text):
        match = _SHARE_FORM.fullmatch(text)
        m = chinese_to_int(match.group("body")) if match is not None else None
        if match is None or m is None:
            return None
        scale = _UNIT8 // _SHARES[match.group("prefix")[0]]
        prefix = match.group("sign") + match.group("prefix")
        form = _Form("p", "", prefix, "", "", 0, "", False, prefix == "百分之", "二", scale)
    elif "分之" in text:
        match = _FRACTION_FORM.fullmatch(text)
        if match is None:
            return None
        n, m = chinese_to_int(match.group("n")), chinese_to_int(match.group("m"))
        if n is None or m is None or not 0 < m < n <= 20:
            return None
        form = _Form("f", "", "", "", "", 0, "", False, False, "二", 0)
        m = m * 1000 + n
    elif c in "一二三四五六七八九十两":
        match = _CHINESE_FORM.fullmatch(text)
        m = chinese_to_int(match.group("body")) if match is not None else None
        if match is None or m is None or m >= 10**13 or not _TAIL_UNITS.match(match.group("tail")):
            return None
        tail, body = match.group("tail"), match.group("body")
        if not tail:
            return None
        two = "两" if "两" in body or ("二" not in body and tail in _TWO_LIANG) else "二"
        exact = _units8(value)
        if exact is None or exact % m:
            return None
        form = _Form("c", "", "", "", tail, 0, "", False, False, two, exact // m)
    else:
        match = _ARABIC_FORM.fullmatch(text)
        if match is None or not _TAIL_UNITS.match(match.group("tail")):
            return None
        whole, rest = match.group("whole"), match.group("rest") or ""
        if not 0 < len(whole) + len(rest) <= 15 or (len(whole) > 1 and whole[0] in "0０"):
            return None
        wide = not (whole + rest).isascii()
        plain = whole.replace(",", "").replace(" ", "").replace("，", "")
        m = int(plain + rest)
        if m == 0:
            return None
        if len(plain) > 3:
            separator = whole[len(whole) - 4] if len(whole) > len(plain) else ""
            separator = "," if separator == "，" else separator
        exact = _units8(value)
        if exact is None or abs(exact) % m:
            return None
        scale = abs(exact) // m
        head, sign, suffix, tail = match.group("head", "sign", "suffix", "tail")
        percent = suffix.strip(" $\\") in ("%", "％")
        form = _Form("a", head, sign, suffix, tail, len(rest), separator, wide, percent, "", scale)
    if form.head + form.render(m) + form.tail != text:
        return None
    return form, m


def _units8(value: str) -> int | None:
    """A decimal value in units of 1e-8, or None when it is no whole number of them."""
    if "/" in value or ":" in value:
        return None
    number = Decimal(value).scaleb(8) if len(value) < 24 else None
    return int(number) if number is not None and number == number.to_integral_value() else None


def _significant(m: int) -> tuple[int, int]:
    """(s, z): m = s * 10**z with s not divisible by ten."""
    z = 0
    while m % 10 == 0:
        m //= 10
        z += 1
    return m, z


# ---------------------------------------------------------------------------------- wrong options

_PARTS = (2, 3, 3, 4, 4, 5, 6, 8, 10)  # denominators of fractions, as often as listed
_STEPS = (1, 1, 1, 2, 2, 3, -1, -1, -1, -2, -2, -3)
_STRETCH = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4, 1.5, 2.0)


def _perturb(m: int, form: _Form, rng: random.Random) -> int:
    """A number that `m` may be mistaken for, as round as `m`: a digit stepped or two exchanged, a scale of ten,
    a stretch by 10 to 50 %, the complement of a percentage. 0 when the draw gives none."""
    draw = rng.random()
    if form.style == "f":
        n = _PARTS[int(draw * len(_PARTS))]
        top = 1 + int(rng.random() * (n - 1))
        return top * 1000 + n if math.gcd(top, n) == 1 else 0
    s, z = _significant(m)
    digits = str(s)
    count = len(digits)
    if draw < 0.12:
        if not z and count > 1:
            return 0
        return m * 10 if draw < 0.06 else (m // 10 if z else 0)
    if draw < 0.2 and form.percent:
        whole = 100 * 10**form.decimals
        return whole - m if m < whole and _significant(whole - m)[1] == z else 0
    if count > 1 and draw < 0.35:
        i = int(rng.random() * count)
        j = int(rng.random() * count)
        swapped = list(digits)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        if swapped[0] == "0" or swapped[-1] == "0" or swapped[i] == swapped[j]:
            return 0
        return int("".join(swapped)) * 10**z
    if count > 1 and draw < 0.62:
        stretched = round(s * _STRETCH[int(rng.random() * len(_STRETCH))])
        if stretched % 10 == 0 or (s % 5 == 0) != (stretched % 5 == 0) or abs(len(str(stretched)) - count) > 1:
            return 0
        return stretched * 10**z
    # step one digit; a last 5 stays, so that 2.5 meets 3.5 rather than 2.6
    places = count - 1 if count > 1 and digits[-1] == "5" else count
    i = 0 if rng.random() < 0.4 else int(rng.random() * places)
    digit = int(digits[i]) + _STEPS[int(rng.random() * len(_STEPS))]
    last = i == count - 1
    if not 0 <= digit <= 9 or (digit == 0 and (i == 0 or last)) or (digit == 5 and last and count > 1):
        return 0
    return int(f"{digits[:i]}{digit}{digits[i + 1 :]}") * 10**z


class _Balance:
    """Running sums of how often each way to guess would have found the answer, by kind, less its target.

    The target is pure chance, but for the two frequencies less: they are counted over what has been read so far, and
    a real answer goes on to occur where a perturbed number does not.
    """

    def __init__(self, options: int) -> None:
        chance = 1.0 / options
        self.targets = [chance] * (options + 4) + [_FREQUENCY_TARGET * chance] * 2 + [chance]
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(self.targets))

    def cost(self, kind: str, hits: Sequence[float]) -> float:
        """How far the sums of `kind` would be from zero with `hits`, up to a constant."""
        return sum(
            (s + 0.5 * (h - t)) * (h - t) for s, h, t in zip(self.sums[kind], hits, self.targets, strict=True)
        )

    def too_common(self, kind: str, hits: Sequence[float]) -> bool:
        """Whether one answer (12 个月) is so frequent that whoever names the usual number would be right too often:
        no wrong option can mend that, so the question is left out."""
        at = len(self.targets) - 2
        return hits[at] == 1.0 and self.sums[kind][at] > _COMMON

    def add(self, kind: str, hits: Sequence[float]) -> None:
        """Counts a question."""
        sums = self.sums[kind]
        for i, h in enumerate(hits):
            sums[i] += h - self.targets[i]


def _share(keys: Sequence[float], best: Callable[[Sequence[float]], float]) -> float:
    """The chance that a guesser who takes the best key, ties drawn, takes the first."""
    top = best(keys)
    return 1.0 / keys.count(top) if keys[0] == top else 0.0  # type: ignore[attr-defined]


@dataclass(slots=True)
class _Asked:
    """A number that can be asked, with what its wrong options are judged by."""

    form: _Form
    m: int
    kind: str
    unit: str
    taken: set[int]  # values, in 1e-8, that stand in the question or the context
    near: list[float]  # sorted logarithms of the sizes of the numbers in question and context
    frequency: Counter[tuple[str, int]]
    answers: Counter[int]
    bounds: tuple[int, int | None]  # values, in 1e-8, that the sentence sets an option between: `____元以上50万元以下`
    size: tuple[int, int, int] = field(init=False)  # digits before trailing zeros, digits, trailing zeros of m
    features: dict[int, tuple[float, int, int, int, int, float]] = field(default_factory=dict)
    near_to: dict[int, list[int]] = field(default_factory=dict)  # perturbed numbers by what they were made from

    def __post_init__(self) -> None:
        s, z = _significant(self.m)
        self.size = len(str(s)), len(str(self.m)), z

    def look(self, m: int) -> tuple[float, int, int, int, int, float]:
        """(value, length, significant digits, frequency in the texts and among earlier answers, distance to the
        nearest number of question and context) of an option."""
        found = self.features.get(m)
        if found is None:
            form, near = self.form, self.near
            value = form.value(m)
            distance = 0.0
            if near:
                size = math.log(value)
                at = bisect.bisect(near, size)
                distance = min(abs(size - near[at - 1]), abs(size - near[min(at, len(near) - 1)]))
            found = (
                value,
                len(str(m)) if form.style == "a" else len(form.render(m)),
                len(str(_significant(m)[0])) if form.style != "f" else 1,
                self.frequency.get((self.unit, m * form.scale), 0),
                self.answers.get(m, 0),
                distance,
            )
            self.features[m] = found
        return found

    def allowed(self, m: int) -> bool:
        """Whether `m` may be a wrong option: written like the answer, no value of the text, no impossible rate."""
        if m <= 0 or m == self.m:
            return False
        form = self.form
        if form.style == "f":
            return form.value(m) != form.value(self.m)
        value = m * form.scale
        if value in self.taken or value <= self.bounds[0]:
            return False
        if not self.m < _SPREAD * m < _SPREAD * _SPREAD * self.m or m >= 10**13:
            return False
        if self.bounds[1] is not None and value >= self.bounds[1]:
            return False
        whole = 100 * 10**form.decimals
        if self.kind == "rate" and self.m < whole and m >= whole and form.scale <= _UNIT8 // 100:
            return False
        return self.kind != "duration" or m * form.scale <= max(60, 4 * self.m * form.scale // _UNIT8) * _UNIT8

    def like(self, m: int) -> bool:
        """Whether `m` is as round as the answer and of about its length: neither stands out when written alike."""
        if m <= 0:
            return False
        s, z = _significant(m)
        decimals = self.form.decimals
        return (
            abs(len(str(s)) - self.size[0]) <= 1
            and abs(len(str(m)) - self.size[1]) <= 2
            and min(z, decimals) == min(self.size[2], decimals)
        )

    def neighbour(self, base: int, chosen: dict[int, str], rng: random.Random) -> int:
        """Adds to `chosen` a number that `base` may be mistaken for and returns it, or 0 when there is none left."""
        known = self.near_to.get(base)
        if known is None:
            known = []
            for draw in range(24):
                m = _perturb(base, self.form, rng)
                if m and m not in known and self.allowed(m):
                    known.append(m)
                if len(known) == 5 or (draw > 8 and len(known) >= 3):
                    break
            self.near_to[base] = known
        free = [m for m in known if m not in chosen]
        if not free:
            return 0
        m = free[int(rng.random() * len(free))]
        chosen[m] = "perturbed"
        return m

    def hits(self, wrong: Sequence[int]) -> list[float]:
        """For each way to guess, the chance that it finds the answer among these options."""
        looks = [self.look(self.m)] + [self.look(m) for m in wrong]
        values, lengths, rounds, frequencies, answers, distances = zip(*looks, strict=True)
        rank = sum(v < values[0] for v in values)
        found = [0.0] * len(looks)
        found[rank] = 1.0
        found.append(_share(lengths, max))
        found.append(_share(lengths, min))
        found.append(_share(rounds, min))
        found.append(_share(rounds, max))
        found.append(_share(frequencies, max))
        found.append(_share(answers, max))
        found.append(_share(distances, min))
        return found


def _draw(
    asked: _Asked, natural: Sequence[tuple[int, str]], wanted: int, rng: random.Random
) -> list[tuple[int, str]] | None:
    """One set of wrong options as (m, tier), or None when too few are to be had.

    Perturbed numbers are made from the answer and from other wrong options alike, in shapes that look the same
    from every option: were all made from the answer, it would be the one that all others resemble.
    """
    count = min(wanted, _NATURAL[int(rng.random() * len(_NATURAL))])
    chosen: dict[int, str] = {}
    for _ in range(2 * count if natural else 0):
        m, tier = natural[int(rng.random() * len(natural))]
        chosen.setdefault(m, tier)
        if len(chosen) == count:
            break
    missing = wanted - len(chosen)
    if len(chosen) == 0:
        # a star whose middle is each option equally often
        hub = asked.m if rng.random() < 1 / (wanted + 1) else asked.neighbour(asked.m, chosen, rng)
        for _ in range(wanted - len(chosen)):
            if not hub or not asked.neighbour(hub, chosen, rng):
                return None
    elif missing > len(chosen):
        # pairs: every natural option, the answer among them, gets a neighbour of its own
        bases = [asked.m, *chosen]
        for i in range(missing):
            if not asked.neighbour(bases[i % len(bases)], chosen, rng):
                return None
    elif missing:
        # one neighbour: the answer's half the time, so that the answer is in the pair's half as often as out of it
        for i in range(missing):
            own = i == 0 and rng.random() < 0.5
            if not asked.neighbour(asked.m if own else rng.choice(list(chosen)), chosen, rng):
                return None
    return list(chosen.items())


def _natural_options(
    asked: _Asked, document: Sequence[int], corpus: Sequence[int], rng: random.Random
) -> list[tuple[int, str]]:
    """Wrong options that are real numbers of the same unit, kind and form, as (m, tier): values that stand elsewhere
    in the document, and answers of earlier questions. Both are drawn as often as they occur."""
    form = asked.form
    found: list[tuple[int, str]] = []
    if form.style != "f":
        for value in document if len(document) <= 12 else rng.sample(document, 12):
            m, rest = divmod(value, form.scale)
            if not rest and asked.like(m) and asked.allowed(m):
                found.append((m, "document"))
    for m in corpus if len(corpus) <= 16 else rng.sample(corpus, 16):
        if asked.like(m) and asked.allowed(m):
            found.append((m, "corpus"))
    return found


# ------------------------------------------------------------------------------------------ build


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
    if not 2 <= options <= len(_LETTERS):
        raise ValueError(f"options must be from 2 to {len(_LETTERS)}, got {options}")
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
    balance: _Balance = field(init=False)
    frequency: Counter[tuple[str, int]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    seen: set[bytes] = field(default_factory=set)
    earlier: dict[_Shape, list[int]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[_Shape, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))

    def __post_init__(self) -> None:
        self.balance = _Balance(self.options)

    def position(self) -> int:
        """Where the next answer stands: every block of `options` questions uses each position once."""
        if not self.positions:
            self.positions = list(range(self.options))
            self.rng.shuffle(self.positions)
        return self.positions.pop()


def _of_document(
    row: dict[str, Any], state: _State, limit: int | None, rng: random.Random
) -> Iterator[dict[str, Any]]:
    sentences = _sentences(row["text"])
    pools: dict[tuple[str, str], list[int]] = defaultdict(list)
    separator = ""
    for sentence in sentences:
        for number in sentence.numbers:
            if not number.variable or number.low is not None:
                continue
            if not separator and "," in number.text:
                separator = ","
            exact = _units8(number.value)
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
    if not number.variable or number.low is not None or number.kind not in _KINDS or not number.unit:
        return False
    if number.kind == "count" and number.unit in _VAGUE_COUNTS:
        return False
    return number.value not in ("0", "1", "-1") and ":" not in number.value


def _of_sentence(
    row: dict[str, Any],
    sentences: Sequence[_Sentence],
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
    if len(text) > _MAX_SENTENCE or BLANK in text or len(_CJK.findall(text)) < _MIN_PROSE:
        return
    key = hashlib.blake2b(text.encode(), digest_size=8).digest()
    if key in state.seen:
        return
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
            state.seen.add(key)
            yield question


def _ask(
    row: dict[str, Any],
    sentence: _Sentence,
    number: Number,
    window: Sequence[Number],
    context: str,
    pools: dict[tuple[str, str], list[int]],
    separator: str,
    state: _State,
    rng: random.Random,
) -> dict[str, Any] | None:
    """The question about one number, or None where it would be unfair."""
    parsed = _form(number, separator)
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
        target = target_of(number, m, form.scale, _UNIT8)
        relation = derivation(text, *span, target, siblings, window)
    before = context[context.rfind("。", 0, -1) + 1 :]
    if relation is not None:
        tag = "derivable"
    elif is_rule(text, before, number, len(str(_significant(m)[0])), siblings):
        tag = "recall"
    if tag not in state.tags:
        return None
    taken: set[int] = set()
    near: list[float] = []
    for n in others:
        for value in (n.value, n.low, n.high):
            exact = _units8(value) if value is not None and n.kind in _KINDS + ("other",) else None
            if exact:
                taken.add(abs(exact))
                near.append(math.log(abs(exact) / _UNIT8))
    written = form.prefix + form.suffix.strip() + (form.tail if number.kind == "rate" else "")
    shape = (number.kind, number.unit, form.style, form.decimals, written)
    asked = _Asked(
        form,
        m,
        number.kind,
        number.unit,
        taken,
        sorted(near),
        state.frequency,
        state.answers[shape],
        _bounds(sentence, number),
    )
    earlier = state.earlier[shape]
    natural = _natural_options(asked, pools.get((number.kind, number.unit), ()), earlier, rng)
    best: tuple[float, list[tuple[int, str]], list[float]] | None = None
    failed = 0
    for _ in range(_DRAWS):
        drawn = _draw(asked, natural, state.options - 1, rng)
        if drawn is None:
            failed += 1
            if failed == 3:
                break
            continue
        hits = asked.hits([m for m, _ in drawn])
        cost = state.balance.cost(number.kind, hits) + 0.05 * rng.random()
        if best is None or cost < best[0]:
            best = cost, drawn, hits
    if best is None:
        return None
    _, wrong, hits = best
    if state.balance.too_common(number.kind, hits):
        return None
    state.balance.add(number.kind, hits)
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
        "answer": _LETTERS[position],
        "context": context,
        "number": {"text": number.text, "value": number.value, "unit": number.unit, "kind": number.kind},
        "tag": tag,
        "relation": relation,
        "source_id": row["id"],
        "distractors": [tier for _, tier in wrong],
        "split": row.get("split", "train"),
    }


def _bounds(sentence: _Sentence, number: Number) -> tuple[int, int | None]:
    """The values between which an option must lie because the number is an end of a range in words."""
    low, high = 0, None
    at = sentence.numbers.index(number)
    for step in (-1, 1):
        if not 0 <= at + step < len(sentence.numbers):
            continue
        other = sentence.numbers[at + step]
        first, second = (other, number) if step < 0 else (number, other)
        gap = sentence.text[first.end - sentence.offset : second.start - sentence.offset]
        exact = _units8(other.value) if other.unit == number.unit and other.kind == number.kind else None
        if exact is not None and gap and _BETWEEN.fullmatch(gap) is not None:
            low, high = (exact, high) if step < 0 else (low, exact)
    return low, high


_BETWEEN = re.compile(r"\s?(?:及?以上)?(?:至|到|不满|不足|不超过|（含[^）]{0,8}）|[-－—~～])?\s?")


def _stands_in(answer: str, form: _Form, text: str) -> bool:
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


# ------------------------------------------------------------------------------------------ audit


def _option_numbers(row: dict[str, Any]) -> list[Number | None]:
    """Each option as the number it is in its place in the question."""
    stem, _, rest = row["question"].partition(BLANK)
    left, right = stem[-12:], rest[:12]
    found: list[Number | None] = []
    for option in row["options"]:
        last = len(left) + len(option)
        numbers = find_numbers(f"{left}{option}{right}")
        found.append(next((n for n in numbers if n.start < last and n.end > len(left)), None))
    return found


def _float(value: str) -> float:
    top, _, bottom = value.partition("/")
    try:
        return float(top) / float(bottom) if bottom else float(top)
    except ValueError:
        return math.nan


_PLAIN_DIGIT = re.compile("[0-9０-９]")


def _digits(option: str) -> str:
    """The significant digits of an option."""
    folded = option.translate(str.maketrans("０１２３４５６７８９", "0123456789"))
    digits = "".join(re.findall("[0-9]", folded))
    if not digits:
        match = re.search("[零一二三四五六七八九十百千万亿两]+(?!分之)", option.rsplit("之", 1)[-1])
        value = chinese_to_int(match.group()) if match is not None else None
        digits = str(value) if value is not None else ""
    return digits.strip("0") or "0"


def _form_key(option: str) -> str:
    """An option with its digits masked: what can be seen of its form."""
    return re.sub("[零一二三四五六七八九两]+", "n", _PLAIN_DIGIT.sub("d", option))


def _distance(a: str, b: str) -> int:
    """Edit distance of two short texts."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def _guesses(
    row: dict[str, Any], answers: Counter[tuple[str, str]], frequency: Counter[tuple[str, str]]
) -> dict[str, list[float]]:
    """For each way to guess, a score of every option: the guesser takes the highest, ties drawn."""
    options: list[str] = row["options"]
    unit = row["number"]["unit"]
    numbers = _option_numbers(row)
    values = [math.nan if n is None else _float(n.value) for n in numbers]
    order = sorted(range(len(options)), key=lambda i: (math.isnan(values[i]), values[i]))
    rank = {i: r for r, i in enumerate(order)}
    half = (len(options) - 1) / 2
    digits = [_digits(option) for option in options]
    own = options[_LETTERS.index(row["answer"])]
    text = row["context"] + row["question"]
    near = [math.log(abs(v)) for n in find_numbers(text) if (v := _float(n.value)) and math.isfinite(v)]
    sizes = [math.log(abs(v)) if v and math.isfinite(v) else 0.0 for v in values]
    forms = Counter(_form_key(option) for option in options)
    texts = Counter(c for c in text)
    return {
        "middle": [-abs(abs(rank[i] - half) - 0.5) for i in range(len(options))],
        "smallest": [-float(rank[i]) for i in range(len(options))],
        "largest": [float(rank[i]) for i in range(len(options))],
        "roundest": [-float(len(d)) for d in digits],
        "least round": [float(len(d)) for d in digits],
        "longest": [float(len(option)) for option in options],
        "shortest": [-float(len(option)) for option in options],
        "most frequent answer": [float(answers[unit, o] - (o == own)) for o in options],
        "most frequent in the texts": [0.0 if n is None else float(frequency[n.unit, n.value]) for n in numbers],
        "nearest to a number of the text": [-min((abs(s - n) for n in near), default=0.0) for s in sizes],
        "odd one out by form": [-float(forms[_form_key(option)]) for option in options],
        "like the others": [-float(sum(_distance(o, other) for other in options)) for o in options],
        "unlike the others": [float(sum(_distance(o, other) for other in options)) for o in options],
        "smallest first digit": [-float(d[0]) for d in digits],
        "digits that stand in the text": [sum(texts[c] > 0 for c in o) / len(o) for o in options],
    }


def audit(rows: Iterable[dict[str, Any]], *, progress: Progress = no_progress) -> dict[str, Any]:
    """What a set of questions holds, and how well guessers do who see only options and surface.

    Returns `n`; counts `by_kind`, `by_unit`, `by_tag`, `by_tier`, `by_split`; `positions` (counts by letter,
    `chi_square`, its `p`); `cheats` {name: {"accuracy", "ci95"}} where a guesser draws among ties and "ci95" is the normal interval of
    its mean; `chance`. Frequencies leave the question's own answer out. All rows are held in memory.
    """
    held = list(rows)
    kinds: Counter[str] = Counter()
    units: Counter[str] = Counter()
    tiers: Counter[str] = Counter()
    tags: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    letters: Counter[str] = Counter()
    answers: Counter[tuple[str, str]] = Counter()
    frequency: Counter[tuple[str, str]] = Counter()
    for row in held:
        number = row["number"]
        kinds[number["kind"]] += 1
        units[number["unit"]] += 1
        tiers.update(row["distractors"])
        splits[row["split"]] += 1
        tags[row["tag"]] += 1
        letters[row["answer"]] += 1
        answers[number["unit"], row["options"][_LETTERS.index(row["answer"])]] += 1
        for n in find_numbers(row["context"] + row["question"]):
            frequency[n.unit, n.value] += 1
    sums: dict[str, list[float]] = defaultdict(list)
    for row in progress(held, total=len(held), description="audit", unit="question"):
        right = _LETTERS.index(row["answer"])
        for name, scores in _guesses(row, answers, frequency).items():
            top = max(scores)
            sums[name].append(1 / scores.count(top) if scores[right] == top else 0.0)
    width = max((len(row["options"]) for row in held), default=0)
    counts = [letters[letter] for letter in _LETTERS[:width]]
    square = _chi_square(counts)
    return {
        "n": len(held),
        "by_kind": dict(kinds.most_common()),
        "by_unit": dict(units.most_common()),
        "by_tag": dict(tags.most_common()),
        "by_tier": dict(tiers.most_common()),
        "by_split": dict(splits.most_common()),
        "positions": {
            **{letter: letters[letter] for letter in _LETTERS[:width]},
            "chi_square": square,
            "p": _chi_square_p(square, width - 1),
        },
        "chance": sum(1 / len(row["options"]) for row in held) / len(held) if held else 0.0,
        "cheats": {name: _mean_interval(scores) for name, scores in sums.items()},
    }


def _mean_interval(scores: Sequence[float]) -> dict[str, Any]:
    """Mean of the scores and its normal 95 % interval."""
    n = len(scores)
    mean = sum(scores) / n
    error = 1.96 * math.sqrt(sum((s - mean) ** 2 for s in scores) / n / n)
    return {"accuracy": mean, "ci95": [max(0.0, mean - error), min(1.0, mean + error)]}


def _chi_square(counts: Sequence[int]) -> float:
    """Pearson's statistic of counts against equal frequencies."""
    total = sum(counts)
    if not total:
        return 0.0
    expected = total / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def _chi_square_p(square: float, freedom: int) -> float:
    """P(X >= square) of a chi-square variable with `freedom` degrees, by the recurrence in steps of two."""
    if freedom <= 0 or square <= 0:
        return 1.0
    half = square / 2
    if freedom % 2:
        p, term, a = math.erfc(math.sqrt(half)), math.exp(-half) / math.sqrt(math.pi * half), 0.5
    else:
        p, term, a = math.exp(-half), math.exp(-half), 1.0
    while a < freedom / 2:
        term *= half / a
        p += term
        a += 1
    return min(1.0, p)
