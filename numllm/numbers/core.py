"""A numeral without its unit, and the magnitude words that may stand behind it."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from .numerals import decimal_string, exact_decimal
from .units import MAGNITUDES, NOT_MAGNITUDE, SPACE

__all__ = ["Core", "MANY", "magnitude_at"]

MANY = "多余来"


class Core(NamedTuple):
    """A numeral without its unit: digits x 10**exponent, or an exact fraction."""

    start: int  # with a currency sign and minus
    end: int
    digits: str
    exponent: int
    negative: bool
    style: str  # "a" Arabic, "c" Chinese
    lone: bool  # one Chinese character
    scaled: bool  # a magnitude (万) or 分之 was read
    currency: str
    fraction: Fraction | None = None

    def value(self, shift: int = 0) -> str:
        if self.fraction is not None:
            return exact_decimal(self.fraction * Fraction(10) ** shift)
        return decimal_string(self.digits, self.exponent + shift, self.negative)


def magnitude_at(text: str, j: int) -> tuple[int, int]:
    """(end, power of ten) of the magnitude at j; (j, 0) when there is none."""
    k = j + 1 if text[j : j + 1] in SPACE and j < len(text) else j
    two = text[k : k + 2]
    if not two or two[0] not in "十百千万亿":
        return j, 0
    for word in (two, two[0]):
        power = MAGNITUDES.get(word)
        if power is not None:
            end = k + len(word)
            after = text[end : end + 1]
            if after and after in NOT_MAGNITUDE[word[-1]]:
                continue
            return end, power
    return j, 0
