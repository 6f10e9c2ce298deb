"""HTML inside other text: tags, entities, and tables, by the standard library's parser."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

from .clean import normalise

_NAMES = (
    "a|abbr|acronym|address|article|aside|b|base|basefont|bdi|bdo|big|blockquote|body|br|button|caption|center|cite|code"
    "|col|colgroup|dd|del|details|dfn|div|dl|dt|em|figcaption|figure|font|footer|form|h[1-6]|head|header|hr|html|i"
    "|iframe|img|input|ins|kbd|label|li|link|main|mark|meta|nav|nobr|ol|p|picture|pre|q|s|samp|section|small"
    "|source|span|strike|strong|style|sub|summary|sup|table|tbody|td|tfoot|th|thead|time|title|tr|tt|u|ul|var"
    "|video|[a-z]{1,3}:[a-z]+"
)
TAG = re.compile(rf"<(/?)({_NAMES})(?:\s+[A-Za-z_:][\w:.-]{{0,60}}\s*=[^<>]{{0,4000}}|\s*/?)>", re.IGNORECASE)
"""A tag of HTML or of Word's namespaces; `a < b` and XML names in prose are none."""
_BREAKS = re.compile(
    r"(?:br|p|div|li|tr|h[1-6]|ul|ol|dl|dd|dt|table|blockquote|center|summary|details|section)\Z",
    re.IGNORECASE,
)
_REMOVED = re.compile(r"<(del|s|strike)(?:\s[^<>]*)?>.{0,3000}?</\1\s*>", re.IGNORECASE | re.DOTALL)
_NOTE_MARK = re.compile(
    r"<sup\b[^<>]*>\s*(?:<a\b[^<>]*>)?\s*\[[^\[\]<>]{1,6}\]\s*(?:</a>)?\s*</sup>", re.IGNORECASE
)
_RAISED = re.compile(r"<(su[bp])\b[^<>]*>(.{0,200}?)</\1\s*>", re.IGNORECASE | re.DOTALL)
_ATTRIBUTES = r'(?:[ \t\r\n]+[A-Za-z][A-Za-z:-]*="[^"<>]*")*'
_LAID_OUT = "br|center|col|colgroup|div|h[1-6]|li|ol|p|table|tbody|td|th|thead|tr|ul"
_TOKEN = re.compile(
    rf"</?(?:a|b|em|font|i|o:p|span|strong|u){_ATTRIBUTES}[ \t\r\n]*>"
    rf"|<(?:/({_LAID_OUT})|({_LAID_OUT})({_ATTRIBUTES})[ \t\r\n]*)>|([^<]+)",
    re.IGNORECASE | re.ASCII,
)
"""A tag that says nothing of a table; the name of a closing tag, that of an opening tag and its attributes, or text:
what nearly all tables consist of."""
_ATTRIBUTE = re.compile('([A-Za-z:-]+)="([^"]*)"')
_WHITE = re.compile(r"\s+")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


def raised(tag: str, inner: str) -> str:
    """The text of a `sup` or `sub` element in a line: ^2, _i, ^(n-1); marks that point to a note, * or †, go."""
    if not inner.strip("*†‡§•・·"):
        return ""
    mark = "^" if tag == "sup" else "_"
    return mark + (inner if len(inner) == 1 or inner.isdigit() else f"({inner})")


def _raise(found: re.Match[str]) -> str:
    inner = TAG.sub("", found[2]).strip()
    return raised(found[1].lower(), inner) if inner else ""


def unescape(text: str) -> str:
    """`text` with its HTML entities (those that end in a semicolon) replaced."""
    return _ENTITY.sub(lambda found: html.unescape(found[0]), text)


def strip_tags(text: str) -> str:
    """`text` without HTML tags: block tags become line ends, struck-out text goes, x<sup>2</sup> becomes x^2."""
    if "<" not in text:
        return text
    if "</" in text:
        text = _NOTE_MARK.sub("", _REMOVED.sub("", text))
        text = _RAISED.sub(_raise, text)

    def tag(found: re.Match[str]) -> str:
        if found[2].lower() == "li" and not found[1]:
            return "\n- "
        return "\n" if _BREAKS.match(found[2]) else ""

    return TAG.sub(tag, text)


def join_cell(text: str) -> str:
    """The lines of a table cell as one line; a line that ends without punctuation is closed by ；."""
    if "\n" not in text:
        return text.removeprefix("- ").strip()
    lines = [line.removeprefix("- ").strip() for line in text.split("\n")]
    joined = ""
    for line in filter(None, lines):
        if joined:
            joined += "" if joined[-1] in "。；！？：，、" else " " if joined[-1] in ";:.!?," else "；"
        joined += line
    return joined


def format_rows(rows: list[list[str]]) -> str:
    """Rows of cells as readable lines, `a | b | c`; empty rows and columns that are empty throughout go."""
    width = max((len(row) for row in rows), default=0)
    used = [any(len(row) > k and row[k] for row in rows) for k in range(width)]
    lines = []
    for row in rows:
        cells = [cell for k, cell in enumerate(row) if used[k]]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            line = " | ".join(cells)
            lines.append((re.sub(r" {2,}", " ", line) if "  " in line else line).strip())
    return "\n".join(lines)


@dataclass
class _Table:
    rows: list[list[str]] = field(default_factory=list)
    hanging: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Column → (rows still covered, text) of cells with a rowspan."""
    cell: list[str] | None = None
    spans: tuple[int, int] = (1, 1)
    row: list[str] | None = None

    def open_row(self) -> None:
        self.close_row()
        self.row = []

    def _fill(self, row: list[str]) -> None:
        while (column := len(row)) in self.hanging:
            left, text = self.hanging.pop(column)
            if left > 1:
                self.hanging[column] = (left - 1, text)
            row.append(text)

    def close_cell(self) -> None:
        if self.cell is None:
            return
        if self.row is None:
            self.row = []
        text = normalise("".join(self.cell))
        text = "\n".join(line for line in (part.strip() for part in text.split("\n")) if line)
        columns, rows = self.spans
        self._fill(self.row)
        for k in range(columns):
            if rows > 1:
                # A short label is said again in each row it covers: a row must be readable alone.
                self.hanging[len(self.row)] = (rows - 1, text if k == 0 and len(text) <= 30 else "")
            self.row.append(text if k == 0 else "")
        self.cell = None

    def close_row(self) -> None:
        self.close_cell()
        if self.row is not None:
            self._fill(self.row)
            self.rows.append(self.row)
        self.row = None

    def text(self) -> str:
        self.close_row()
        filled = [row for row in self.rows if any(row)]
        if filled and all(sum(map(bool, row)) == 1 for row in filled):  # one column: a frame around prose
            return "\n".join(cell for row in filled for cell in row if cell)
        return format_rows([[join_cell(cell) for cell in row] for row in filled])


class _TableParser(HTMLParser):
    """Collects (is a table, text) pieces in order; a table inside a cell becomes lines of that cell."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[tuple[bool, str]] = []
        self.tables: list[_Table] = []
        self.outside: list[str] = []
        self.ignored = 0
        self.lifted: list[tuple[str, list[str], int]] = []
        """Open `sup` and `sub` elements: their tag, where their text goes, and from which place on."""

    def feed(self, data: str) -> None:
        """Reads markup; the standard parser, which looks at each tag with several patterns, from the first on that is
        not simple."""
        at = 0
        for token in _TOKEN.finditer(data):
            if token.start() > at:
                break
            at = token.end()
            closed, opened, attributes, text = token.groups()
            if text:
                self.handle_data(html.unescape(text))
            elif closed:
                self.handle_endtag(closed.lower())
            elif opened:
                tag = opened.lower()
                cell = tag in ("td", "th")
                self.handle_starttag(tag, [(n.lower(), v) for n, v in _ATTRIBUTE.findall(attributes)] if cell else [])
        if at < len(data):
            super().feed(data[at:])

    def updatepos(self, i: int, j: int) -> int:
        """Counts no lines: nobody asks for them."""
        return j

    def parse_marked_section(self, i: int, report: int = 1) -> int:
        """Skips Word's `<![if …]>`, on which the standard parser raises AssertionError."""
        end = self.rawdata.find(">", i)
        return end + 1 if end >= 0 else -1

    def _sink(self) -> list[str] | None:
        if self.ignored:
            return None
        return self.tables[-1].cell if self.tables else self.outside

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("style", "script", "del", "s", "strike"):
            self.ignored += 1
        elif tag == "table":
            self._flush_outside()
            self.tables.append(_Table())
        elif tag == "tr" and self.tables:
            self.tables[-1].open_row()
        elif tag in ("td", "th") and self.tables:
            self.tables[-1].close_cell()
            values = dict(attrs)
            self.tables[-1].spans = (_span(values.get("colspan"), 60), _span(values.get("rowspan"), 400))
            self.tables[-1].cell = []
        elif (sink := self._sink()) is not None:
            if tag in ("sup", "sub"):
                self.lifted.append((tag, sink, len(sink)))
            elif tag == "li":
                sink.append("\n- ")
            elif _BREAKS.match(tag):
                sink.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("style", "script", "del", "s", "strike"):
            self.ignored = max(0, self.ignored - 1)
        elif tag == "table" and self.tables:
            self._close_table()
        elif tag == "tr" and self.tables:
            self.tables[-1].close_row()
        elif tag in ("td", "th") and self.tables:
            self.tables[-1].close_cell()
        elif tag in ("sup", "sub"):
            self._lower(tag)
        elif (sink := self._sink()) is not None and _BREAKS.match(tag):
            sink.append("\n")

    def _lower(self, tag: str) -> None:
        """Ends a `sup` or `sub`: its text gets its mark; that of a note, [3], goes."""
        while self.lifted:
            opened, sink, at = self.lifted.pop()
            if opened == tag:
                inner = "".join(sink[at:]).strip()
                note = tag == "sup" and re.fullmatch(r"\[[^\[\]]{1,6}\]", inner)
                sink[at:] = [raised(tag, inner)] if inner and not note else []
                return

    def handle_data(self, data: str) -> None:
        sink = self._sink()
        if sink is not None:
            # Line ends of the source are spaces to HTML.
            sink.append(_WHITE.sub(" ", data.replace("\u3000", " ").replace("\xa0", " ")))

    def _flush_outside(self) -> None:
        if not self.tables:
            text = normalise("".join(self.outside))
            if text:
                self.pieces.append((False, text))
            self.outside = []

    def _close_table(self) -> None:
        table = self.tables.pop()
        text = table.text()
        if self.tables:
            if (cell := self.tables[-1].cell) is not None and text:
                cell.append(f"\n{text}\n")
        elif text:
            self.pieces.append((" | " in text, text))

    def finish(self) -> list[tuple[bool, str]]:
        self.close()
        while self.tables:
            self._close_table()
        self._flush_outside()
        return self.pieces


def _span(value: str | None, limit: int) -> int:
    return (
        min(max(int(value), 1), limit)
        if value and value.isascii() and value.isdigit() and len(value) < 6
        else 1
    )


def read_tables(markup: str) -> list[tuple[bool, str]]:
    """HTML holding tables as pieces in order: (True, rows `a | b | c`) or (False, the text between tables).

    A table of one column, the usual frame of Word around prose, comes back as text. A cell over several
    rows is repeated in each when it is short; struck-out text, styles and comments are left out.
    """
    parser = _TableParser()
    parser.feed(markup)
    return parser.finish()
