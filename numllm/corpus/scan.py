"""Patterns tried only where a match can begin: what `re` does by itself for patterns that begin with a literal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator


def matches(pattern: re.Pattern[str], first: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """`pattern.finditer(text)`, for a pattern whose matches are not empty and begin where `first` matches."""
    at = 0
    while found := first.search(text, at):
        match = pattern.match(text, found.start())
        if match:
            yield match
            at = match.end()
        else:
            at = found.start() + 1


def replace(pattern: re.Pattern[str], first: re.Pattern[str], by: Callable[[re.Match[str]], str], text: str) -> str:
    """`pattern.sub(by, text)`, for patterns as in `matches`."""
    parts, last = [], 0
    for found in matches(pattern, first, text):
        parts += [text[last : found.start()], by(found)]
        last = found.end()
    if not parts:
        return text
    parts.append(text[last:])
    return "".join(parts)
