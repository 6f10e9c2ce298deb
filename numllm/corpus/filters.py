"""The filters that judge a document by itself."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from .clean import MATH
from .counts import Counts, count

MIN_CHARACTERS = 40
"""Fewer characters than this, headings and spaces not counted, make no document."""
MIN_HAN = 20
"""Fewer Chinese characters than this make no document."""
MIN_HAN_SHARE = 0.3
"""Least share of Chinese characters among Chinese and Latin letters, LaTeX not counted."""
MAX_GARBLED_SHARE = 0.005
"""Largest share of characters that no text holds: replacement and private-use ones, mojibake."""
MIN_SENTENCES_SHARE = 0.1
"""Least share of characters in lines with a mark of a sentence, of a document of several lines."""
_FEW_LINES = 5

_BROKEN = re.compile(
    "[\ufffd\ue000-\uf8ff\U000f0000-\U0010ffff]|锟斤拷|烫烫烫|屯屯屯"
    "|[ÃÂâäåæçèé][\u0080-\u00bf‚-›€™œž]{1,2}"  # UTF-8 read as Latin-1 or Windows-1252
)
_HEADING_LINE = re.compile(r"#{1,6} ")
_SENTENCE_MARK = re.compile("[。！？；，]")


def reasons_to_drop(texts: Sequence[str], counts: Counts) -> list[str | None]:
    """Why each of some documents is unfit for training, None of one that is fit; counts: those of the texts.

    "garbled", "too short", "too little Chinese" or "list without sentences". Tables and formulas are no lists.
    """
    lines = [text.split("\n") for text in texts]
    headings = [
        "".join(filter(_HEADING_LINE.match, part)) if "#" in text else ""
        for text, part in zip(texts, lines, strict=True)
    ]
    lines = [
        [line for line in part if not _HEADING_LINE.match(line)] if above else part
        for part, above in zip(lines, headings, strict=True)
    ]
    here = Counts(*(whole - above for whole, above in zip(counts, count(headings), strict=True)))
    sizes = np.array([len(text) - len(above) for text, above in zip(texts, headings, strict=True)]) - here.space
    formal = ["$" in text or "\\" in text for text in texts]
    words = count([MATH.sub("", _solid(part)) if has else "" for part, has in zip(lines, formal, strict=True)])
    han, latin = np.where(formal, words.han, here.han), np.where(formal, words.latin, here.latin)
    foreign = (han < MIN_HAN) | (han < MIN_HAN_SHARE * (han + latin))
    return list(map(_reason, lines, sizes.tolist(), here.suspect.tolist(), foreign.tolist()))


def _reason(lines: list[str], size: int, suspect: int, foreign: bool) -> str | None:
    if suspect:
        broken = sum(map(len, _BROKEN.findall(_solid(lines))))
        if broken > MAX_GARBLED_SHARE * size and broken > 1:
            return "garbled"
    if size < MIN_CHARACTERS:
        return "too short"
    if foreign:
        return "too little Chinese"
    return "list without sentences" if _is_bare_list(lines) else None


def _solid(lines: list[str]) -> str:
    """Lines as one, without white space."""
    return "".join("".join(lines).split())


def _is_bare_list(lines: list[str]) -> bool:
    lines = [line for line in lines if line.strip()]
    left = MIN_SENTENCES_SHARE * sum(map(len, lines))
    for line in lines:
        if _SENTENCE_MARK.search(line):
            left -= len(line)
            if left <= 0:
                return False
    return len(lines) >= _FEW_LINES and not any(" | " in line or "$" in line or "\\" in line for line in lines)
