"""A unit that is told once, before the numerals: 营业收入（万元） 1,234.5 1,456.7, 单位：千元 短期借款 350,000."""

from __future__ import annotations

import functools
import re

from .core import Core, magnitude_at
from .measures import measure_at
from .units import UNITS, Unit

__all__ = ["closes_unit", "unit_before"]

_FARTHEST, _HEADED = 120, 300  # characters to a unit in brackets, and to one in a head
_WORD = r"(?:人民币|币种[:：]人民币\s?)?(?P<unit>[^（）()\s0-9，。；、:：]{1,8})"
_GAP = r"[^\S\n]"
_CELL = r"(?:[-−(（]?[0-9][0-9,.]{0,20}%?[)）]?)"
_ROW = re.compile(  # the numeral is the first behind the unit, or one of a row of them in one line
    rf"[（(](?:单位[:：]\s?)?{_WORD}[)）]{_GAP}{{0,4}}[:：|]?{_GAP}{{0,4}}(?:[为是约达]\s?)?"
    rf"(?:{_CELL}(?:{_GAP}{{0,8}}\|{_GAP}{{0,8}}|{_GAP}{{1,8}}|[、和与及])){{0,12}}[-−(（]?\Z"
)
_CLOSED = re.compile(rf"[（(]{_WORD}[)）]\Z")
# or it stands among words, where it must not be an ordinal
_HEAD = re.compile(rf"(?:单位\s?[:：]|(?<=金额)单位[为是])\s?{_WORD}(?=[\s）),，;；:：。])。?[^。]*\Z")
_AMONG = re.compile(rf"[（(]{_WORD}[)）](?:\s?[:：]|{_GAP})[^。|\n=＝≈×÷+*/]*(?<!率)(?<!率[为是约达：:])\Z")


def unit_before(text: str, start: int, raw: str) -> Unit | None:
    """The unit that a caption gives the numeral `raw` that begins at start, a negative one in its brackets, and has no
    unit of its own; None where there is none.

    `shift` of the unit holds the magnitude in it (万元: 4).
    """
    begin = max(0, start - _FARTHEST)
    closed = text.rfind("）", begin, start) >= 0 or text.rfind(")", begin, start) >= 0
    head_at = text.rfind("单位", max(0, start - _HEADED), start)
    if not closed and head_at < 0:
        return None
    if len(plain := raw.strip("()（）")) == 4 and plain.isdigit() and "1900" <= plain <= "2099":
        return None
    row = _ROW.search(text, begin, start) if closed else None
    if row is not None and (unit := _unit(row.group("unit"))) is not None:
        return unit
    if raw.isdigit() and len(raw) < 3:
        return None
    nearest = None
    while closed and (among := _AMONG.search(text, begin, start)) is not None:
        nearest, begin = _unit(among.group("unit")) or nearest, among.start() + 1
    if nearest is not None:
        return nearest
    head = _HEAD.search(text, max(0, head_at - 2), start) if head_at >= 0 else None
    return _unit(head.group("unit")) if head is not None else None


def closes_unit(text: str, end: int) -> bool:
    """Whether a unit in brackets ends at `end`: 净额（万元）."""
    closed = _CLOSED.search(text, max(0, end - 16), end)
    return closed is not None and _unit(closed.group("unit")) is not None


@functools.lru_cache(64)
def _unit(word: str) -> Unit | None:
    """The unit that a word names with its magnitude: 万元, 元/股, %, 百万港元."""
    if word == "月":
        return UNITS["个月"]
    end, power = magnitude_at(word, 0)
    found = measure_at(word, Core(0, end, "1", 0, False, "a", False, False, ""))
    if found is None or found.end != len(word) or found.unit.grade == 0:
        return None
    if word.isascii() and word.isalpha() and len(word) == 1:  # f(t)
        return None
    return found.unit._replace(shift=found.unit.shift + power)
