"""PDF books as blocks: running heads go, lines become paragraphs across columns and pages, headings are found."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from .blocks import Block, Reading
from .clean import common_share, han_count
from .pdf_layout import Line, Run, Table, column_lines, columns, crossing, gutter, runs, tables
from .pdf_page import Document, Page
from .pdf_text import paragraphs

_SAMPLE = 40
"""Pages looked at beforehand for the size of the body text and for columns."""
MAX_UNKNOWN = 0.05
"""Largest share of characters on a page that its fonts do not explain."""
MIN_COMMON = 0.6
"""Least share of everyday characters among the Chinese ones of a page; real text has over 0.9."""
_PAGE_NUMBER = re.compile(
    r"[-—–―·.~\s]*第?\s*[\dⅰ-ⅿivxlcIVXLC]{1,5}\s*页?(?:\s*[/共，, ]+\s*\d{1,5}\s*页?)?[-—–―·.~\s]*"
)
_COUNTER = re.compile(r"^[-—–·.~]*(?:\d+|[ivxlc]+)[-—–·.~]*|(?:\d+|[ivxlc]+)[-—–·.~]*$|(?<=第)\d+(?=页)")


def read_pdf(path: Path) -> Reading:
    """The blocks of a PDF, each with the number of the page it begins on, and notes on pages left out.

    DataError for files that are damaged, encrypted, scanned without text, or whose fonts do not say which
    characters they show on more than half of the pages.
    """
    with open(path, "rb") as file:
        document = Document(file)
        book = _Book()
        sample = list(document.pages(max(1, len(document.sheets) // _SAMPLE)))
        book.survey(sample)
        for page in sample if len(sample) == len(document.sheets) else document.pages():
            book.add(page)
        marks = document.outline()
    return Reading(book.blocks(marks), book.notes())


@dataclass
class _Book:
    """Lines and tables of all pages, and what is known of the whole."""

    size: float = 10.0
    """The most common size of characters, in points."""
    middle: float | None = None
    """The gutter that most pages of two columns share."""
    flow: list[Line | Table] = field(default_factory=list)
    places: list[tuple[int, float]] = field(default_factory=list)
    """(page, its height) of each entry of `flow`."""
    pages: int = 0
    garbled: list[int] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)

    # ── pages → lines ──
    def survey(self, sample: list[Page]) -> None:
        """Finds the size of the body text and the gutter on pages spread evenly over the book."""
        layouts = [items for page in sample if (items := _items(page))]
        free = [run for items in layouts for run in items if isinstance(run, Run)]  # type in tables is often smaller
        sizes = Counter(round(2 * glyph.size) / 2 for run in free for glyph in run.glyphs)
        if not sizes:
            return
        self.size = max(sizes, key=sizes.__getitem__)
        found = [at for items in layouts if (at := gutter(items, self.size)) is not None]
        if found:
            middle = statistics.median(found)
            fits = sum(crossing(items, middle) <= 0.1 * len(items) + 1 for items in layouts)
            self.middle = middle if 2 * fits > len(layouts) else None

    def add(self, page: Page) -> None:
        self.pages += 1
        if page.damaged:
            self.damaged.append(page.number)
        if not page.glyphs:
            if page.images:
                self.pictures.append(page.number)
            return
        if is_garbled(page):
            self.garbled.append(page.number)
            return
        if page.cut:
            self.cut.append(page.number)
        items = _items(page)
        at = gutter(items, self.size)
        if at is None and self.middle is not None and crossing(items, self.middle) <= 0.25 * len(items) + 1:
            at = self.middle
        for column in columns(items, 0.0, page.width, self.size, at):
            for item in column_lines(column, page.number):
                self.flow.append(item)
                self.places.append((page.number, page.height))

    def notes(self) -> list[str]:
        parts = (
            (self.garbled, "left out: their fonts do not say which characters they show"),
            (self.pictures, "hold pictures without text; recognise their text first (OCR)"),
            (self.damaged, "are damaged; what follows the damage is missing"),
            (self.cut, "hold more characters than are read; the rest of them is missing"),
        )
        return [f"{len(pages)} of {self.pages} pages ({_listed(pages)}) {what}" for pages, what in parts if pages]

    # ── lines → paragraphs ──
    def blocks(self, marks: list[tuple[str, int]]) -> list[Block]:
        """The book as blocks; `marks` are its bookmarks."""
        if 2 * len(self.garbled) > self.pages - len(self.pictures) and self.garbled:
            raise DataError(
                "a PDF whose fonts do not say which characters they show, on"
                f" {len(self.garbled)} of {self.pages} pages; recognise their text from pictures (OCR)"
            )
        if not self.flow:
            what = "pages that are pictures (scanned?); recognise their text first (OCR)" if self.pictures else "pages"
            raise DataError(f"a PDF without text: {self.pages} {what}")
        return paragraphs(list(self._without_furniture()), self.size, marks)

    def _without_furniture(self) -> Iterator[Line | Table]:
        """The lines without running heads and page numbers.

        A height near the upper or lower edge at which most lines say, page numbers apart, what another page says
        there holds furniture: all small type at that height goes. Body text hardly ever says the same again.
        """
        edges: dict[int, tuple[float, float]] = {}
        rows: dict[int, set[float]] = {}
        for (page, _), item in zip(self.places, self.flow, strict=True):
            rows.setdefault(page, set()).add(round(item.y, 1))
        for page, ys in rows.items():
            ordered = sorted(ys)
            edges[page] = (ordered[:2][-1], ordered[-2:][0])  # the second row from below and from above
        slots: dict[tuple[bool, int], list[int]] = {}
        for k, ((page, height), item) in enumerate(zip(self.places, self.flow, strict=True)):
            low, high = edges[page]
            if isinstance(item, Line) and item.y >= high - 1 and item.y > 0.8 * height:
                slots.setdefault((True, round((height - item.y) / 3)), []).append(k)
            elif isinstance(item, Line) and item.y <= low + 1 and item.y < 0.2 * height:
                slots.setdefault((False, round(item.y / 3)), []).append(k)
        gone: set[int] = set()
        for members in slots.values():
            keys = [_furniture_key(self.flow[k].text) for k in members]  # type: ignore[union-attr]
            seen: dict[str, set[int]] = {}
            for k, key in zip(members, keys, strict=True):
                seen.setdefault(key, set()).add(self.places[k][0])
            repeated = sum(len(seen[key]) > 1 for key in keys)
            if repeated > 0.6 * len(members):
                small = zip(members, keys, strict=True)
                gone.update(k for k, key in small if len(seen[key]) > 1 or self.flow[k].size <= 1.05 * self.size)  # type: ignore[union-attr]
        for k, item in enumerate(self.flow):
            ys = rows[self.places[k][0]]
            if k in gone:
                continue
            if isinstance(item, Line) and _PAGE_NUMBER.fullmatch(item.text) and len(ys) > 1:
                if round(item.y, 1) in (min(ys), max(ys)):
                    continue
            yield item


def _items(page: Page) -> list[Run | Table]:
    framed, rest = tables(page, page.glyphs)
    return [*framed, *runs(rest)]


def is_garbled(page: Page) -> bool:
    """Whether the fonts of a page do not say, or say wrongly, which characters it shows."""
    if page.unknown > 1 and page.unknown > MAX_UNKNOWN * len(page.glyphs):
        return True
    text = "".join(glyph.text for glyph in page.glyphs)
    return han_count(text) >= 30 and common_share(text) < MIN_COMMON


def _furniture_key(text: str) -> str:
    """A line without the numbers that change from page to page: at its ends, and between 第 and 页."""
    return _COUNTER.sub("0", "".join(text.split()))


def _listed(pages: list[int]) -> str:
    """Page numbers as ranges, the first few of them: 3-5, 9 …"""
    spans: list[list[int]] = []
    for page in pages:
        if spans and page == spans[-1][1] + 1:
            spans[-1][1] = page
        else:
            spans.append([page, page])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans[:8])
    return shown + (" …" if len(spans) > 8 else "")
