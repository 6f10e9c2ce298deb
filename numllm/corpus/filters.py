"""The filters that judge a document by itself."""

from __future__ import annotations

import re

from .clean import MATH, han_count

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

_LATIN = re.compile("[A-Za-z]+")
_SUSPECT = re.compile("[\ufffd\ue000-\uf8ff\U000f0000-\U0010ffff锟烫屯ÃÂâäåæçèé]")
"""A first character of what `_BROKEN` matches: one set, many times as fast to look for."""
_BROKEN = re.compile(
    "[\ufffd\ue000-\uf8ff\U000f0000-\U0010ffff]|锟斤拷|烫烫烫|屯屯屯"
    "|[ÃÂâäåæçèé][\u0080-\u00bf‚-›€™œž]{1,2}"  # UTF-8 read as Latin-1 or Windows-1252
)
_HEADING_LINE = re.compile(r"#{1,6} ")
_SENTENCE_MARK = re.compile("[。！？；，]")


def reason_to_drop(text: str) -> str | None:
    """Why a document is unfit for training, None when it is fit.

    "garbled", "too short", "too little Chinese" or "list without sentences". Tables and formulas are no lists.
    """
    lines = text.split("\n")
    if "#" in text:
        lines = [line for line in lines if not _HEADING_LINE.match(line)]
    body = "".join("".join(lines).split())
    if _SUSPECT.search(body):
        broken = sum(len(found) for found in _BROKEN.findall(body))
        if broken > MAX_GARBLED_SHARE * len(body) and broken > 1:
            return "garbled"
    if len(body) < MIN_CHARACTERS:
        return "too short"
    prose = MATH.sub("", body) if "$" in body or "\\" in body else body
    han, latin = han_count(prose), sum(map(len, _LATIN.findall(prose)))
    if han < MIN_HAN or han < MIN_HAN_SHARE * (han + latin):
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
