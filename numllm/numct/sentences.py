"""The prose sentences of a document, with their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..numbers import Number, find_numbers, may_vary

__all__ = ["CJK", "Sentence", "read_sentences"]


class Sentence(NamedTuple):
    """A sentence of prose with its numbers, and where it stands."""

    text: str
    offset: int  # of the text in its line
    numbers: tuple[Number, ...]  # with offsets in the line
    section: int  # sentences of one section may be each other's context
    title: str  # the first and the last of the headings it stands under
    example: bool  # whether a worked example has begun in its section, or its headings name one


_SPECIAL = re.compile(
    r"\s*(?:(?P<fence>```|~~~|\$\$)|(?P<heading>#|={3,}\s*$|-{3,}\s*$)|"
    r"(?P<other>$|\||!\[|<|\[!|:::|---|===|\* \* \*|\{%|%|@|>\s*\[!|[借贷][：:]))"
)
_LIST_MARK = re.compile(
    r"\s*(?:(?:[-*+>]\s+|[•·]+\s*|\d{1,3}[.、．)）]\s*(?!\d)|[（(](?:[一二三四五六七八九十百]{1,4}|\d{1,3})[)）]\s*|[一二三四五六七八九十]{1,3}、)\s*)*"
)
_LINK = re.compile(r"!?\[([^\[\]]{0,200})\]\([^()\s]{0,400}\)")
_MARKS = re.compile(r"\*\*|__|~~|`|</?[A-Za-z][^<>]{0,4000}>|\\(?=[\[\]\-=#.*_()>~|])|&(?:nbsp|emsp|ensp);")
_BREAKS = re.compile(r"[。！？；!?;（）()“”《》「」『』\[\]【】]")
_HEADING = re.compile(r"\s*(#{1,6})\s*(.*?)[\s#]*$")
_TITLE = 60  # characters of a heading that are kept
_OPENING = re.compile(r"[（(【\[]?\s*(?:例题?|案例|习题)\s?[0-9一二三四五六七八九十]")
_EXAMPLES = re.compile(
    r"示例|案例|例题|例子|举例|习题|练习|作业|(?<!问题)解答|情景|"
    r"(?:^|[ >])例(?:[0-9 一二三四五六七八九十]|$)|[Ee]xample"
)
_OPEN, _CLOSE = "（(“《「『[【", "）)”》」』]】"
CJK = re.compile(r"[\u4e00-\u9fff]")


def _pieces(line: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each sentence of a line; nothing is split inside brackets or quotation marks."""
    start = depth = 0
    for match in _BREAKS.finditer(line):
        c = match.group()
        if c in _OPEN:
            depth += 1
        elif c in _CLOSE:
            depth = max(0, depth - 1)
        elif depth == 0:
            yield start, match.end()
            start = match.end()
    if start < len(line):
        yield start, len(line)


def read_sentences(text: str, title: str = "") -> list[Sentence]:
    """The prose sentences of a document in order, with their numbers; headings, tables and code left out, and what
    stands in a section behind its last numeric variable, of which nothing can be asked.

    title: of the document, the heading above all of its own.
    """
    found: list[Sentence] = []
    headings = [(0, title)] if title else []  # those that a line stands under, with their levels
    section, fenced, named = 0, False, False
    lines: list[tuple[str, list[Number] | None]] = []  # with their numbers, None where they need not be known yet
    last = 0  # lines up to the last with a variable
    for raw in filter(None, text.splitlines()):
        special = _SPECIAL.match(raw)
        if special is None and not fenced:
            if raw.count("|") < 2 and "\t" not in raw:
                line = _cleaned(raw)
                numbers = find_numbers(line) if may_vary(line) else None
                lines.append((line, numbers))
                if numbers and any(number.variable for number in numbers):
                    last = len(lines)
        elif special is not None and special.lastgroup == "fence":
            closed = raw.lstrip().startswith("$$") and raw.count("$$") == 2
            fenced = not fenced and not closed
        elif not fenced and special is not None and special.lastgroup == "heading":
            if last:
                found += _of_section(lines[:last], section, _path(headings) if named else title)
            lines.clear()
            last = 0
            section += 1
            if (heading := _HEADING.match(raw)) is not None:
                level = len(heading[1])
                while headings and headings[-1][0] >= level:
                    headings.pop()
                headings.append((level, heading[2]))
                named = True
    if last:
        found += _of_section(lines[:last], section, _path(headings) if named else title)
    return found


def _path(headings: Sequence[tuple[int, str]]) -> str:
    """The first and the last of the headings that a line stands under, those within one another apart by `>`."""
    path: list[str] = []
    for level, heading in headings:
        shown = _MARKS.sub("", _LINK.sub(r"\1", heading))[:_TITLE].strip() if level else heading
        path += shown.split(" > ") if shown else []
    return " > ".join(dict.fromkeys([path[0], path[-1]])) if path else ""


def _cleaned(raw: str) -> str:
    """A line of prose without Markdown and the mark of a list."""
    line = _LINK.sub(r"\1", raw) if "[" in raw else raw
    line = _MARKS.sub("", line).rstrip()
    mark = _LIST_MARK.match(line)
    return line[mark.end() :] if mark is not None else line


def _of_section(lines: Sequence[tuple[str, list[Number] | None]], section: int, title: str) -> Iterator[Sentence]:
    """The sentences of a section, of its lines with their numbers."""
    example = _EXAMPLES.search(title) is not None
    for line, known in lines:
        numbers = find_numbers(line) if known is None else known
        at, count = 0, len(numbers)
        for start, end in _pieces(line):
            piece = line[start:end]
            text = piece.strip()
            if not text:
                continue
            shift = start + len(piece) - len(piece.lstrip())
            first = at
            while at < count and numbers[at].end <= end:
                at += 1
            example = example or _OPENING.match(text) is not None
            yield Sentence(text, shift, tuple(numbers[first:at]), section, title, example)
