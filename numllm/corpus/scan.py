"""Patterns tried only where a match can begin: what `re` does by itself for patterns that begin with a literal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator


def matches(pattern: re.Pattern[str], first: re.Pattern[str], text: str, lead: str = "") -> Iterator[re.Match[str]]:
    """`pattern.finditer(text)`, for a pattern whose matches are not empty and begin where `first` matches, or with
    `lead`, one character that they may take along, before it."""
    at = 0
    while found := first.search(text, at):
        start = found.start()
        # At `at` a match has ended or a try has failed: what lies before it is out of reach.
        with_lead = lead and start > at and text[start - 1] == lead
        match = pattern.match(text, start - 1 if with_lead else start)
        if match:
            yield match
            at = match.end()
        else:
            at = start + 1


def replace(
    pattern: re.Pattern[str], first: re.Pattern[str], by: Callable[[re.Match[str]], str], text: str, lead: str = ""
) -> str:
    """`pattern.sub(by, text)`, for patterns as in `matches`."""
    parts, last = [], 0
    for found in matches(pattern, first, text, lead):
        parts += [text[last : found.start()], by(found)]
        last = found.end()
    if not parts:
        return text
    parts.append(text[last:])
    return "".join(parts)
