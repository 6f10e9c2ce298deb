"""The filters that judge a document by itself."""

from __future__ import annotations

import re

from ..overlap import code_points
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


def reason_to_drop(text: str, counts: Counts | None = None) -> str | None:
    """Why a document is unfit for training, None when it is fit; counts: those of the text, if they are there.

    "garbled", "too short", "too little Chinese" or "list without sentences". Tables and formulas are no lists.
    """
    lines = text.split("\n")
    here = counts or count(code_points(text))
    size = len(text) - here.space
    if "#" in text and (headings := "".join(filter(_HEADING_LINE.match, lines))):
        lines = [line for line in lines if not _HEADING_LINE.match(line)]
        above = count(code_points(headings))
        size -= len(headings) - above.space
        here = Counts(*(all_of - part for all_of, part in zip(here, above, strict=True)))
    if here.suspect:
        broken = sum(len(found) for found in _BROKEN.findall("".join("".join(lines).split())))
        if broken > MAX_GARBLED_SHARE * size and broken > 1:
            return "garbled"
    if size < MIN_CHARACTERS:
        return "too short"
    if "$" in text or "\\" in text:
        here = count(code_points(MATH.sub("", "".join("".join(lines).split()))))
    if here.han < MIN_HAN or here.han < MIN_HAN_SHARE * (here.han + here.latin):
        return "too little Chinese"
    return "list without sentences" if _is_bare_list(lines) else None


def _is_bare_list(lines: list[str]) -> bool:
    lines = [line for line in lines if line.strip()]
    left = MIN_SENTENCES_SHARE * sum(map(len, lines))
    for line in lines:
        if _SENTENCE_MARK.search(line):
            left -= len(line)
            if left <= 0:
                return False
    return len(lines) >= _FEW_LINES and not any(" | " in line or "$" in line or "\\" in line for line in lines)
