"""Glyphs of a PDF page → runs and lines, and the text of a line. Knows no PDF library."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .clean import CJK_MARKS, HAN
from .markup import raised as lifted
from .pdf_page import Glyph

_WIDE = re.compile(f"[{HAN}{CJK_MARKS}]")
_SHARED = "“”‘’—…"
"""Marks of both scripts, as wide as a Chinese character in one and narrow in the other."""
_NOTE_MARK = re.compile(r"\[?\(?[\d①-⑳*†‡]{1,3}\)?\]?,?")
_NUMBER_OPEN = re.compile(r"\d[.,]$")
_SPREAD_GAP = 1.5
"""Gap in em beyond which the parts of a line are cells of a table."""


@dataclass
class Run:
    """Glyphs side by side on one baseline."""

    glyphs: list[Glyph]
    x0: float
    x1: float
    y: float
    size: float


@dataclass
class Table:
    """A table: rows of cells, its sides, its upper edge and its page."""

    rows: list[list[str]]
    x0: float
    x1: float
    y: float
    page: int


class Cell(NamedTuple):
    """A part of a line and its left and right edge."""

    x0: float
    x1: float
    text: str


@dataclass
class Line:
    """A line of text in a column whose sides are `left` and `right`."""

    text: str
    x0: float
    x1: float
    y: float
    size: float
    bold: bool
    page: int
    column: int
    left: float = 0.0
    right: float = 0.0
    cells: list[Cell] = field(default_factory=list)
    """The parts of the line where wide gaps divide it; one when none does."""


def runs(glyphs: Iterable[Glyph]) -> list[Run]:
    """Glyphs in the order of the file as runs: a run ends where the next glyph is off its line or over 0.7 em away."""
    found: list[Run] = []
    for glyph in glyphs:
        run = found[-1] if found else None
        if run:
            em = max(run.size, glyph.size)
            if abs(glyph.y - run.y) <= 0.45 * em and -0.3 * em <= glyph.x0 - run.x1 <= 0.7 * em:
                last = run.glyphs[-1]
                if glyph.text == last.text and glyph.x0 - last.x0 < 0.4 * (last.x1 - last.x0):
                    continue  # printed twice to look bold
                if glyph.size > run.size * 1.1:
                    run.y, run.size = glyph.y, glyph.size
                run.glyphs.append(glyph)
                run.x1 = max(run.x1, glyph.x1)
                continue
        found.append(Run([glyph], glyph.x0, glyph.x1, glyph.y, glyph.size))
    return found


def sorted_lines(items: Iterable[Run]) -> list[list[Run]]:
    """Runs as lines from the top, each from left to right."""
    found: list[list[Run]] = []
    height: list[tuple[float, float]] = []
    for run in sorted(items, key=lambda r: (-r.y, r.x0)):
        if found and abs(height[-1][0] - run.y) <= 0.45 * max(height[-1][1], run.size):
            if not any(_is_shadow(run, other) for other in found[-1]):
                found[-1].append(run)
            if run.size > height[-1][1]:
                height[-1] = (run.y, run.size)
        else:
            found.append([run])
            height.append((run.y, run.size))
    return [sorted(line, key=lambda r: r.x0) for line in found]


def _is_wide(glyph: Glyph) -> bool:
    """Whether a glyph is of Chinese type, between which gaps are larger."""
    if glyph.text in _SHARED:
        return glyph.x1 - glyph.x0 > 0.8 * glyph.size
    return bool(_WIDE.match(glyph.text))


def _is_shadow(a: Run, b: Run) -> bool:
    """Whether a run is printed over another one to make it look bold."""
    near = abs(a.x0 - b.x0) < 0.2 * a.size and abs(a.x1 - b.x1) < 0.2 * a.size
    return near and [g.text for g in a.glyphs] == [g.text for g in b.glyphs]


def line_text(line: Sequence[Run]) -> str:
    """The text of a line: spaces where the file or a gap has them, raised note marks gone, other ones as ^ and _."""
    size = max(run.size for run in line)
    base = next(run.y for run in line if run.size == size)
    text, last = "", None
    raised: list[Glyph] = []

    def end_raised() -> str:
        inner = "".join(g.text for g in raised)
        up = raised[0].y > base
        raised.clear()
        power = text.endswith("米") or not _WIDE.match(text[-1:])  # 厘米³, x²
        if up and _NOTE_MARK.fullmatch(inner) and not (power and inner.isdecimal()):
            return ""
        if up and not text:
            return inner + " "
        return lifted("sup" if up else "sub", inner)

    for glyph in (g for run in line for g in run.glyphs):
        off = glyph.y - base
        small = glyph.size < 0.85 * size and (off > 0.15 * size or off < -0.08 * size)
        if raised and (not small or (off > 0) != (raised[0].y > base)):
            text += end_raised()
        if small:
            raised.append(glyph)
        else:
            if text.endswith("\u00ad"):
                text = text[:-1] + "-"  # a hyphen inside the line
            gap = glyph.x0 - last.x1 if last else 0.0
            wide = _is_wide(glyph) or (last is not None and _is_wide(last))
            if text and text[-1] != " " and (glyph.spaced or gap > (0.45 if wide else 0.2) * size):
                text += " "
            text += glyph.text
        last = glyph
    return (text + end_raised() if raised else text).strip()


def line_cells(line: Sequence[Run]) -> list[Cell]:
    """The text of a line in parts, divided at gaps wider than 1.5 em."""
    size = max(run.size for run in line)
    parts: list[list[Run]] = []
    for run in line:
        if parts and run.x0 - parts[-1][-1].x1 <= _SPREAD_GAP * size:
            parts[-1].append(run)
        else:
            parts.append([run])
    return [Cell(part[0].x0, max(run.x1 for run in part), line_text(part)) for part in parts]


def join(text: str, following: str, spaced: bool = True) -> str:
    """Two lines as one: a hyphen at the end goes, Latin words keep a space between them, Chinese text has none.

    spaced: whether the book sets a space between Chinese and Latin words.
    """
    if not text or not following:
        return text or following
    if text[-1] == "\u00ad":
        return text[:-1] + following
    if text[-1] == "-" and text[-2:-1].isalpha() and text[-2:-1].isascii() and following[0].islower():
        return text[:-1] + following
    # Quotes and dashes belong to both scripts: what stands beyond them decides.
    sides = text.rstrip(_SHARED)[-1:] or text[-1], following.lstrip(_SHARED)[:1] or following[0]
    wide = [_WIDE.match(side) for side in sides]
    if any(wide):
        words = not all(wide) and text[-1].isalpha() and following[0].isalpha()
        return f"{text} {following}" if spaced and words else text + following
    if following[0] in "%‰,.)]}":
        return text + following
    if following[0].isdigit() and (text[-1].isdigit() or (_NUMBER_OPEN.search(text) and _WIDE.search(text[-40:]))):
        return text + following  # a number cut by the end of the line
    return f"{text} {following}"


def spread_table(lines: Sequence[Line]) -> Table:
    """Lines that wide gaps divide, as a table: cells that overlap from line to line are one column."""
    bands: list[list[float]] = []
    for cell in sorted((cell for line in lines for cell in line.cells), key=lambda c: c.x0):
        if bands and cell.x0 < bands[-1][1]:
            bands[-1][1] = max(bands[-1][1], cell.x1)
        else:
            bands.append([cell.x0, cell.x1])
    rows = []
    for line in lines:
        row = [""] * len(bands)
        for cell in line.cells:
            k = next(k for k, (_, end) in enumerate(bands) if cell.x0 < end)
            row[k] = join(row[k], cell.text)
        rows.append(row)
    edges = min(line.x0 for line in lines), max(line.x1 for line in lines)
    return Table(rows, *edges, lines[0].y, lines[0].page)
