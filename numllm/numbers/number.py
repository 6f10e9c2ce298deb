"""A number as it stands in a text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Number", "make", "variables"]


@dataclass(frozen=True, slots=True)
class Number:
    """One number as it stands in a text; `text == source[start:end]`.

    A range (`7至15年`) is one Number whose `low` and `high` are its ends and whose `value` is its low end.
    """

    text: str
    """The characters of the number: currency sign, minus, digits, magnitude and unit."""
    start: int
    """Offset of the first character."""
    end: int
    """Offset behind the last character."""
    value: str
    """Exact decimal in the base unit (`3.5亿元` is "350000000", `5%` is "0.05"), or "p/q" in lowest terms where
    no finite decimal exists (`三分之一` is "1/3"). Dates are ISO 8601 as far as given ("2024-03", a masked year
    keeps its mask as X: "20X4"), times "14:30", ratios of three "5:3:2", identifiers their own characters."""
    unit: str
    """ISO code for money ("CNY"), "CNY/股" for a price, "1" for rates, "year" "quarter" "month" "week" "day"
    "workday" "tradingday" "hour" "minute" "second" for durations, the classifier for counts, "" for none."""
    kind: str
    """amount, rate, price, count, duration, index, date, time, ordinal, identifier, formula or other."""
    variable: bool
    """True for a quantity with a meaning of its own, False for dates, headings, citations, labels and so on."""
    low: str | None = None
    """Lower end of a range, as `value`."""
    high: str | None = None
    """Upper end of a range, as `value`."""


def variables(numbers: Iterable[Number]) -> list[Number]:
    """Those of `numbers` that are numeric variables."""
    return [number for number in numbers if number.variable]


def make(text: str, start: int, end: int, value: str, unit: str, kind: str, variable: bool) -> tuple[Number, int]:
    """The Number of text[start:end], and where it ends."""
    return Number(text[start:end], start, end, value, unit, kind, variable), end
