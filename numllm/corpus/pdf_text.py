"""Lines of a PDF in reading order → paragraphs, headings, lists and tables, across columns and pages."""

from __future__ import annotations

import re
import statistics
from collections import Counter

from .blocks import Block
from .clean import HAN, normalise
from .lines import TOC_LEADER
from .markup import format_rows
from .pdf_layout import Line, Table, join, spread_table

_BULLET = re.compile(r"[•●▪■◆◇○–·] *(?=\S)|- (?=\S)")
_MARK = re.compile(
    rf"\d{{1,3}}[.)、．](?=\s|[{HAN}])|[（(][\d一二三四五六七八九十]{{1,3}}[）)]|[①-⑳]"
    r"|第[\d一二三四五六七八九十百]{1,5}[条章节]|[一二三四五六七八九十]{1,3}、"
)
_TOKEN = re.compile(
    rf"[（《“‘「『【〔(\[]*(?:[{HAN}]|[^\s{HAN}，。；：、！？）》”’」』】〕]+|.)[，。；：、！？）》”’」』】〕)\]]*"
)
_NOTE = re.compile(r"(?:[①-⑳*†‡]|\[\d{1,3}\]|〔\d{1,3}〕|\d{1,3}(?=[ \t]|[^\d\s.%,，、年月日)）])) ?")
_TERMINAL = "。！？；：.!?;:…”」』）"
_SENTENCE_END = re.compile(r"[。！？；，：,;]$")
_HEADING_LENGTH = 80
_LARGE = 1.07
"""Type this much larger than the body's is that of a heading."""
_SPREAD_ROWS = 3
"""Lines divided by wide gaps, one below the other, that make a table."""


def paragraphs(items: list[Line | Table], size: float, marks: list[tuple[str, int]]) -> list[Block]:
    """The lines and tables of a book, in reading order, as blocks.

    size: of the body text, in points. marks: bookmarks (title, depth); a line that says the title of
    one is a heading of its depth, other headings are told by larger or bolder type.
    """
    return _Text(items, size, marks).blocks()


def _alike(a: float, b: float) -> bool:
    return abs(a - b) <= 0.07 * max(a, b)


def _key(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).lower()


class _Text:
    """What holds for the whole book, and the passes over its lines."""

    def __init__(self, items: list[Line | Table], size: float, marks: list[tuple[str, int]]) -> None:
        self.items, self.size = items, size
        self.marks = {_key(title): depth for title, depth in reversed(marks) if _key(title)}
        lines = [item for item in items if isinstance(item, Line)]
        self._find_edges(lines)
        steps = [
            a.y - b.y
            for a, b in zip(lines, lines[1:], strict=False)
            if (a.page, a.column) == (b.page, b.column) and a.y > b.y and _alike(a.size, size) and _alike(b.size, size)
        ]
        self.leading = statistics.median(steps) / size if steps else 1.5
        """Distance of lines, in units of the type's size."""
        body = [line for line in lines if _alike(line.size, size)]
        self.indented = sum(0.8 * size < line.x0 - line.left < 3 * size for line in body) > 0.08 * len(body)
        """Whether paragraphs begin further in."""
        text = "\n".join(line.text for line in lines)
        apart = len(re.findall(f"[{HAN}] [A-Za-z]|[A-Za-z] [{HAN}]", text))
        self.spaced = apart >= len(re.findall(f"[{HAN}][A-Za-z]|[A-Za-z][{HAN}]", text))
        """Whether a space stands between Chinese and Latin words."""
        broken = any(line.text[-1:] in "-\u00ad" for line in lines)
        self.mostly_bold = False
        """Whether the body itself is set in bold, which then marks no heading."""
        self.words = set(re.findall(r"[A-Za-z]+(?:-[A-Za-z]+)+|[A-Za-z]+", text)) if broken else set()

    def _find_edges(self, lines: list[Line]) -> None:
        """Sets the sides of each line's column: the outermost ones that several of its lines share."""
        groups: dict[tuple[int, int], list[Line]] = {}
        for line in lines:
            groups.setdefault((line.page % 2, line.column), []).append(line)
        for group in groups.values():
            body = [line for line in group if _alike(line.size, self.size)] or group
            enough = max(2, 0.02 * len(body)) if len(body) > 3 else 1
            starts = Counter(round(line.x0 / 2) for line in body)
            ends = Counter(round(line.x1 / 2) for line in body)
            left = min((k for k in starts if starts[k] >= enough), default=min(starts))
            right = max((k for k in ends if ends[k] + ends[k - 1] >= enough), default=max(ends))
            for line in group:
                line.left, line.right = min(2.0 * left, line.x0), max(2.0 * right, line.x1)

    # ── where a paragraph ends ──
    def _short(self, a: Line, b: Line) -> bool:
        """Whether the first word of line b would have found room in line a."""
        token = _TOKEN.match(b.text)
        ems = sum(1.0 if c > "\u2e7f" or c in "“”‘’—…" else 0.55 for c in token[0]) if token else 0.0
        return a.right - a.x1 > (ems + 0.6) * a.size

    def _ends(self, first: Line, a: Line, b: Line) -> bool:
        """Whether the paragraph that begins with `first` and has come to line a ends before line b."""
        here = (a.page, a.column) == (b.page, b.column)
        if not _alike(a.size, b.size) or _BULLET.match(b.text):
            return True
        if here and not 0 < a.y - b.y <= 1.35 * self.leading * max(a.size, self.size):
            return True
        if self._short(a, b):
            return True
        inner_a, inner_b = a.x0 - a.left, b.x0 - b.left
        if inner_b > inner_a + 0.6 * b.size:  # set further in: a new paragraph, or below the mark of an item
            return not (a is first and (_BULLET.match(a.text) or _MARK.match(a.text)))
        done = a.text[-1:] in _TERMINAL
        if inner_b > 0.8 * b.size and abs(inner_a - inner_b) < 0.6 * b.size and a is first:
            return done
        if done and _MARK.match(b.text):
            return not self.indented or inner_b > 0.8 * b.size
        return done and not here and not self.indented

    # ── passes ──
    def blocks(self) -> list[Block]:
        flow, notes = self._without_notes()
        groups: list[list[Line] | Table] = []
        k = 0
        while k < len(flow):
            item = flow[k]
            while notes and notes[0][0].page < item.page and (isinstance(item, Table) or self._begins(groups, item)):
                groups += [notes.pop(0)]
            rows = self._spread(flow, k)
            if isinstance(item, Table):
                self._add_table(groups, item)
            elif len(rows) >= _SPREAD_ROWS:
                self._add_table(groups, spread_table(rows))
                k += len(rows) - 1
            elif TOC_LEADER.match(item.text):
                groups.append([])
            elif self._begins(groups, item):
                groups.append([item])
            else:
                groups[-1].append(item)  # type: ignore[union-attr]
            k += 1
        groups += notes
        return self._rendered([group for group in groups if group])

    def _begins(self, groups: list[list[Line] | Table], line: Line) -> bool:
        """Whether a line begins a paragraph."""
        last = groups[-1] if groups else None
        return not isinstance(last, list) or not last or self._ends(last[0], last[-1], line)

    def _spread(self, flow: list[Line | Table], k: int) -> list[Line]:
        """The lines from k on that wide gaps divide, a list's mark before its text not counted."""
        found: list[Line] = []
        for at in range(k, len(flow)):
            item = flow[at]
            if not isinstance(item, Line) or len(item.cells) < 2 or item.page != flow[k].page:
                break
            if found and item.column != found[0].column:
                break
            if len(item.cells) == 2 and (_MARK.fullmatch(item.cells[0].text) or len(item.cells[0].text) < 2):
                break
            found.append(item)
        return found

    @staticmethod
    def _add_table(groups: list[list[Line] | Table], table: Table) -> None:
        """Adds a table, or goes on with the one that the end of a page has cut."""
        last = groups[-1] if groups else None
        if isinstance(last, Table) and last.page < table.page and len(last.rows[0]) == len(table.rows[0]):
            again = table.rows[0] == last.rows[0]  # the head of the table, said again
            last.rows += table.rows[1:] if again else table.rows
            last.page = table.page
        else:
            groups.append(table)

    def _without_notes(self) -> tuple[list[Line | Table], list[list[Line] | Table]]:
        """The lines without the notes at the foot of pages, and those notes."""
        kept: list[Line | Table] = []
        notes: list[list[Line]] = []
        last = 0
        at = 0
        while at < len(self.items):
            first = self.items[at]
            end = at
            while (
                end < len(self.items)
                and self.items[end].page == first.page
                and (_column(self.items[end]) == _column(first))
            ):
                end += 1
            start = end
            while start > at and self._is_small(self.items[start - 1]):
                start -= 1
            while start < end and not _note_mark(self.items[start].text, last):  # type: ignore[union-attr]
                start += 1
            if start == at:
                start = end  # a column of small type only: a page of its own kind
            kept += self.items[at:start]
            for line in self.items[start:end]:
                if isinstance(line, Line):
                    if mark := _note_mark(line.text, last):
                        last = int(mark) if mark.strip().isdecimal() else last
                        line.text = line.text[len(mark) :]
                        notes.append([line])
                    else:
                        notes[-1].append(line)
            at = end
        return kept, [note for note in notes if note[0].text]

    def _is_small(self, item: Line | Table) -> bool:
        """Whether an item may belong to a note: a line of small type, but no row of a table."""
        return isinstance(item, Line) and item.size < 0.93 * self.size and len(item.cells) == 1

    # ── blocks ──
    def _rendered(self, groups: list[list[Line] | Table]) -> list[Block]:
        ranks = self._ranks(groups)
        below = max(self.marks.values(), default=0)
        blocks: list[Block] = []
        for group in groups:
            if isinstance(group, Table):
                rows = format_rows([[normalise(cell) for cell in row] for row in group.rows])
                kind = "table" if " | " in rows else "text"
                if rows:
                    blocks.append(Block(kind, rows, 0, str(group.page)))  # type: ignore[arg-type]
                continue
            text = normalise(self._joined(group))
            page = str(group[0].page)
            depth = self.marks.get(_key(text), 0) if len(text) <= 2 * _HEADING_LENGTH else 0
            if not depth and (style := self._style(group, text)):
                depth = below + ranks[style]
            if depth:
                blocks.append(Block("heading", text.replace("\n", " "), depth, page))
            elif _BULLET.match(text):
                item = _BULLET.sub("- ", text, count=1)
                if blocks and blocks[-1].kind == "list":
                    last = blocks.pop()
                    item, page = f"{last.text}\n{item}", last.page
                blocks.append(Block("list", item, 0, page))
            elif text:
                blocks.append(Block("text", text, 0, page))
        return blocks

    def _style(self, group: list[Line], text: str) -> tuple[float, bool] | None:
        """(size, bold) of a heading, None for other paragraphs."""
        size = round(2 * max(line.size for line in group)) / 2
        bold = all(line.bold for line in group)
        if len(group) > 3 or len(text) > _HEADING_LENGTH or not re.search(r"\w", text):
            return None
        if size > _LARGE * self.size:
            return size, bold
        lone = bold and size > 0.95 * self.size and len(text) <= 40 and not _SENTENCE_END.search(text)
        return (size, True) if lone and not self.mostly_bold else None

    def _ranks(self, groups: list[list[Line] | Table]) -> dict[tuple[float, bool], int]:
        """The styles of headings, the largest type first, as depths from 1."""
        body = [g for g in groups if isinstance(g, list) and _alike(g[0].size, self.size)]
        self.mostly_bold = 2 * sum(all(line.bold for line in g) for g in body) > len(body)
        styles = {
            style for g in groups if isinstance(g, list) and (style := self._style(g, normalise(self._joined(g))))
        }
        return {style: k for k, style in enumerate(sorted(styles, reverse=True), 1)}

    def _joined(self, lines: list[Line]) -> str:
        text = ""
        for line in lines:
            following = line.text
            if text.endswith(("\u00ad", "-")) and self.words:
                head, tail = re.search(r"[A-Za-z]*(?=.\Z)", text), re.match(r"[A-Za-z]+", following)
                if head and tail and f"{head[0]}-{tail[0]}" in self.words and head[0] + tail[0] not in self.words:
                    text = f"{text[:-1]}-{following}"
                    continue
            text = join(text, following, self.spaced)
        return text.replace("\u00ad", "-")


def _note_mark(text: str, last: int) -> str:
    """The mark that a note begins with, "" for other lines; a bare number must follow `last`, or begin anew."""
    found = _NOTE.match(text)
    if not found or (found[0].strip().isdecimal() and int(found[0]) not in (1, last + 1)):
        return ""
    return found[0]


def _column(item: Line | Table) -> int | None:
    return item.column if isinstance(item, Line) else None
