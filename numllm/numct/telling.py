"""Whether a text gives an answer away."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence

from ..numbers import Number
from .form import Form
from .tags import KINDS

__all__ = ["WORTH", "Tells", "teller"]

WORTH = frozenset((*KINDS, "other"))
"""Kinds of numbers that stand for a quantity."""

Tells = Callable[[Sequence[Number], str], bool]
"""Whether the answer stands among numbers or in a text."""

_TEXTS = 64  # texts kept with their digits together
_GROUPED = re.compile(r"(?<=[0-9])[ ,，\u00a0\u2009](?=[0-9]{3}(?![0-9]))")
_DIGITS, _NUMERALS = frozenset("0123456789０１２３４５６７８９.,，"), frozenset("零一二三四五六七八九十百千万亿两")


def teller(number: Number, answer: str, form: Form) -> Tells:
    """Tells whether the answer stands among numbers or in a text, not as part of a longer number.

    A date, an ordinal or a label of its value (第三条 beside 三年) does not tell it: wrong options may stand so too.
    """
    value = number.value
    if form.style != "a":
        wanted, plain, inside = answer + form.tail[:1], str, _NUMERALS
    else:
        core = answer.removesuffix(form.suffix)
        wanted = _ungrouped(answer if len(core) < 3 else core)
        plain, inside = (_ungrouped, _DIGITS) if wanted[0].isdigit() else (str, frozenset())
        if len(core) < 3 and not form.suffix.strip() and (number.unit or len(core) < 2):
            wanted = ""  # a digit or two are found among the numbers only, but for the 10 of 311 − 310 + 10

    def tells(numbers: Sequence[Number], text: str) -> bool:
        for n in numbers:
            if (n.value == value or n.low == value or n.high == value) and n.kind in WORTH:
                return True
        return bool(wanted) and _stands(wanted, plain(text), inside)

    return tells


@functools.lru_cache(_TEXTS)
def _ungrouped(text: str) -> str:
    """A text with the digits of its numbers together; kept, since neighbouring numbers look at the same sentences."""
    return _GROUPED.sub("", text)


def _stands(wanted: str, text: str, inside: frozenset[str]) -> bool:
    """Whether `wanted` stands in a text with none of the characters `inside` a longer number beside it."""
    at = text.find(wanted)
    while at >= 0:
        end = at + len(wanted)
        if text[at - 1 : at] not in inside and text[end : end + 1] not in inside:
            return True
        at = text.find(wanted, at + 1)
    return False
