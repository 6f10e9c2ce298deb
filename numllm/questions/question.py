"""A choice question, and what kind of numbers it asks about."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from ..numbers import find_numbers

LETTERS = "ABCDE"
BLANK = "____"
"""What stands for the asked number or term in a cloze question; longer runs of underscores count as one."""
BLANKS = re.compile("_{4,}")
NUMERIC_KINDS = ("calculation", "recall", "stem", "options", "both")
"""What `numeric_kind` can say of a numeric question."""

_DIGIT = re.compile("[0-9０-９]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A question with 2 to 5 options, lettered A to E. ValueError when made of parts that do not fit."""

    id: str
    question: str
    options: tuple[str, ...]
    answer: str | None
    """The letter of the right option, the letters in order where `multiple`; None where it is withheld."""
    context: str = ""
    """Text that stands directly before the question."""
    subject: str = ""
    domain: str = ""
    source: str = ""
    """Document or file it comes from."""
    number: dict[str, Any] | None = None
    """The asked number (NumCT): text, value, unit, kind."""
    cloze: bool = False
    """The options fill the one blank of the question; scored by likelihood unless told otherwise."""
    multiple: bool = False
    """Several options may be right: the answer is a set."""
    explanation: str = ""
    """Why the answer is right: examples of chain-of-thought prompts show it."""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError("the question is empty")
        if not 2 <= len(self.options) <= len(LETTERS):
            raise ValueError(f"wanted 2 to {len(LETTERS)} options, got {len(self.options)}")
        if not all(option.strip() for option in self.options):
            raise ValueError("an option is empty")
        letters = LETTERS[: len(self.options)]
        if self.answer is not None:
            ordered = "".join(letter for letter in letters if letter in self.answer)
            if not self.answer or ordered != self.answer or (len(self.answer) > 1 and not self.multiple):
                raise ValueError(f"the answer must be one of {', '.join(letters)}, got {self.answer!r}")
        if self.cloze and len(BLANKS.findall(self.question)) != 1:
            raise ValueError(f"a cloze question has exactly one blank {BLANK!r}")


def passages(question: Question) -> tuple[str, ...]:
    """The texts of a question that a reader of them could know it by: its stem (context and question), its options."""
    return (question.context + question.question, *question.options)


def is_numeric(question: Question) -> bool:
    """Whether the stem (context and question) or an option holds a numeric variable (see `numbers`)."""
    return numeric_kind(question) is not None


def has_digit(question: Question) -> bool:
    """The plain rule: whether the stem or an option holds a digit 0-9."""
    return any(_DIGIT.search(text) for text in (question.context, question.question, *question.options))


def numeric_kind(question: Question) -> str | None:
    """What the question does with its numeric variables, by their places alone; None where it has none.

    An option is a number when its variables cover at least half of its characters; the options are numbers
    when most of them are. "calculation": numbers in the stem, the options are numbers. "recall": none in the
    stem, the options are numbers. "stem": in the stem only. "options": only in options that say more than the
    number. "both": in the stem and in such options. A NumCT question's own blank counts as numeric options.
    """
    stem = any(number.variable for number in find_numbers(f"{question.context}{question.question}"))
    shares = []
    for option in question.options:
        covered = sum(number.end - number.start for number in find_numbers(option) if number.variable)
        shares.append(covered / max(len(option.strip()), 1))
    if question.number is not None or sum(share >= 0.5 for share in shares) > len(shares) / 2:
        return "calculation" if stem else "recall"
    if any(shares):
        return "both" if stem else "options"
    return "stem" if stem else None
