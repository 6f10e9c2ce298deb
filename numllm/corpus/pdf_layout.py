"""Geometry of a PDF page: glyphs → runs → columns → lines in reading order, and tables. Knows no PDF library."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .clean import CJK_MARKS, HAN
from .markup import raised as lifted
from .pdf_page import Glyph, Page, Rule

_WIDE = re.compile(f"[{HAN}{CJK_MARKS}]")
_SHARED = "“”‘’—…"
"""Marks of both scripts, as wide as a Chinese character in one and narrow in the other."""
_NOTE_MARK = re.compile(r"\[?\(?[\d①-⑳*†‡]{1,3}\)?\]?,?")
_NUMBER_OPEN = re.compile(r"\d[.,]$")
_SPREAD_GAP = 1.5
"""Gap in em beyond which the parts of a line are cells of a table."""
_MAX_CELLS = 20_000


@dataclass
class Run:
    """Glyphs side by side on one baseline."""

    glyphs: list[Glyph]
    x0: float
    x1: float
    y: float
    size: float

    @property
    def top(self) -> float:
        return self.y + 0.85 * self.size

    @property
    def bottom(self) -> float:
        return self.y - 0.2 * self.size


@dataclass
class Table:
    """A table found by its rules: rows of cells, and the box it fills."""

    rows: list[list[str]]
    x0: float
    x1: float
    top: float
    bottom: float
    page: int

    @property
    def y(self) -> float:
        return self.top


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


@dataclass
class Column:
    """What stands between two sides, from top to bottom."""

    left: float
    right: float
    index: int
    """Place among the columns beside it, from 0; -1 for the full width of a page."""
    items: list[Run | Table] = field(default_factory=list)


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


# ── tables by their rules ────────────────────────────────────────────────────────────────────────────


def _places(values: Iterable[float]) -> list[float]:
    """Positions that differ by more than 3 points, each the first of its neighbours."""
    found: list[float] = []
    for value in sorted(values):
        if not found or value - found[-1] > 3:
            found.append(value)
    return found


def _meshes(page: Page) -> list[tuple[list[Rule], list[Rule]]]:
    """Level and upright rules that touch each other, as groups."""
    level, upright = page.level, page.upright
    if not level or not upright or len(level) * len(upright) > 4_000_000:
        return []
    parent = list(range(len(level) + len(upright)))

    def find(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    for i, flat in enumerate(level):
        for j, tall in enumerate(upright):
            if (
                flat.start - 3 <= tall.at <= flat.end + 3
                and tall.start - 3 <= flat.at <= tall.end + 3
                and find(i) != find(len(level) + j)
            ):
                parent[find(i)] = find(len(level) + j)
    groups: dict[int, tuple[list[Rule], list[Rule]]] = {}
    for k in range(len(parent)):
        group = groups.setdefault(find(k), ([], []))
        if k < len(level):
            group[0].append(level[k])
        else:
            group[1].append(upright[k - len(level)])
    return list(groups.values())


def tables(page: Page, glyphs: list[Glyph]) -> tuple[list[Table], list[Glyph]]:
    """The ruled tables of a page and the glyphs outside them; a frame around one cell is no table."""
    found: list[Table] = []
    for level, upright in _meshes(page):
        ys, xs = _places(rule.at for rule in level)[::-1], _places(rule.at for rule in upright)
        if len(ys) < 2 or len(xs) < 3 or (len(ys) - 1) * (len(xs) - 1) > _MAX_CELLS:
            continue
        inside = [g for g in glyphs if xs[0] <= (g.x0 + g.x1) / 2 <= xs[-1] and ys[-1] <= g.y + 0.3 * g.size <= ys[0]]
        if not inside:
            continue
        chosen = set(map(id, inside))
        glyphs = [g for g in glyphs if id(g) not in chosen]
        if rows := _cells(inside, xs, ys, level, upright):
            found.append(Table(rows, xs[0], xs[-1], ys[0], ys[-1], page.number))
    return found, glyphs


def _cells(
    glyphs: list[Glyph], xs: list[float], ys: list[float], level: list[Rule], upright: list[Rule]
) -> list[list[str]]:
    """The texts of a table's cells; a cell over several fields stands in the first of them."""
    wide, high = len(xs) - 1, len(ys) - 1
    walls = [[False] * wide for _ in range(high)]  # is there a rule on the right of field (row, column)?
    floors = [[False] * wide for _ in range(high)]
    for rule in upright:
        column = _index(xs, rule.at) - 1
        for row in range(high):
            if 0 <= column < wide and rule.start - 3 <= (ys[row] + ys[row + 1]) / 2 <= rule.end + 3:
                walls[row][column] = True
    for rule in level:
        row = _index(ys[::-1], rule.at)
        row = high - row - 1
        for column in range(wide):
            if 0 <= row < high and rule.start - 3 <= (xs[column] + xs[column + 1]) / 2 <= rule.end + 3:
                floors[row][column] = True
    home = {(row, column): (row, column) for row in range(high) for column in range(wide)}
    for row in range(high):
        for column in range(wide):
            if column and not walls[row][column - 1]:
                home[row, column] = home[row, column - 1]
            elif row and not floors[row - 1][column]:
                home[row, column] = home[row - 1, column]
    filled: dict[tuple[int, int], list[Glyph]] = {}
    for glyph in glyphs:
        column = min(max(sum(x <= (glyph.x0 + glyph.x1) / 2 for x in xs) - 1, 0), wide - 1)
        row = min(max(sum(y >= glyph.y + 0.3 * glyph.size for y in ys) - 1, 0), high - 1)
        filled.setdefault(home[row, column], []).append(glyph)
    texts = {place: cell_text(inside) for place, inside in filled.items()}
    rows = [[texts.get((row, column), "") for column in range(wide)] for row in range(high)]
    return [row for row in rows if any(row)]


def _index(places: list[float], at: float) -> int:
    return min(range(len(places)), key=lambda k: abs(places[k] - at))


def cell_text(glyphs: list[Glyph]) -> str:
    """The lines of a cell as one text."""
    text = ""
    for line in _lines(runs(glyphs)):
        text = join(text, line_text(line))
    return text


# ── columns ──────────────────────────────────────────────────────────────────────────────────────────


def gutter(items: Sequence[Run | Table], size: float) -> float | None:
    """The x that divides the items into two columns of prose; None when they stand in one.

    The white strip with the fewest items across it must leave columns at least 8 em wide, and in both of
    them most lines must fill more than half of the width: cells of a table do not.
    """
    if len(items) < 8:
        return None
    left, right = min(i.x0 for i in items), max(i.x1 for i in items)
    width = right - left
    if width < 18 * size:
        return None
    step = max(size / 4, width / 4000)
    bins = [0] * (int(width / step) + 2)
    for item in items:
        bins[int((item.x0 - left) / step)] += 1
        bins[min(int((item.x1 - left) / step) + 1, len(bins) - 1)] -= 1
    cover, total = [], 0
    for change in bins:
        total += change
        cover.append(total)
    first, last = int(8 * size / step), int((width - 8 * size) / step)
    if last <= first:
        return None
    most = min(cover[first:last]) + max(1, 0.03 * len(items))  # a title or a page number may stand across
    if most > 0.6 * max(cover) + 1:
        return None
    best, start = (0, 0), None
    for k in range(first, last + 1):
        if k < last and cover[k] <= most:
            start = k if start is None else start
        elif start is not None:
            best, start = max(best, (k - start, start)), None
    if best[0] * step < 0.5 * size:
        return None
    at = left + (best[1] + best[0] / 2) * step
    sides = [i for i in items if i.x1 <= at], [i for i in items if i.x0 >= at]
    for side, wide in zip(sides, (at - left, right - at), strict=True):
        lines = _lines(i for i in side if isinstance(i, Run))
        fill = [line[-1].x1 - line[0].x0 for line in lines] + [i.x1 - i.x0 for i in side if isinstance(i, Table)]
        if len(fill) < 4 and not any(isinstance(i, Table) for i in side):
            return None
        if not fill or statistics.median(fill) < 0.55 * (wide - best[0] * step / 2):
            return None
    return at if crossing(items, at) <= 0.5 * len(items) else None


def crossing(items: Sequence[Run | Table], at: float) -> int:
    """How many items reach from the left of x = `at` to its right."""
    return sum(item.x0 < at - 2 and item.x1 > at + 2 for item in items)


def columns(
    items: Sequence[Run | Table], left: float, right: float, size: float, known: float | None = None, depth: int = 0
) -> list[Column]:
    """The items as columns in reading order; `known` is a gutter that holds even where one side is empty.

    Where items cross the gutter the page is read across, above and below it the left column comes first.
    """
    at = gutter(items, size) if known is None else known
    if at is None or depth == 2:
        return [Column(left, right, -1 if depth == 0 else 0, sorted(items, key=lambda i: -i.y))] if items else []
    found: list[Column] = []
    band: list[Run | Table] = []

    def close() -> None:
        sides = [i for i in band if (i.x0 + i.x1) / 2 < at], [i for i in band if (i.x0 + i.x1) / 2 >= at]
        for k, (side, edges) in enumerate(zip(sides, ((left, at), (at, right)), strict=True)):
            for column in columns(side, *edges, size, None, depth + 1):
                column.index += 1 + k if depth == 0 else 3 * k
                found.append(column)
        band.clear()

    for item in sorted(items, key=lambda i: -i.y):
        if item.x0 < at - 2 and item.x1 > at + 2:
            close()
            if not found or found[-1].index != -1:
                found.append(Column(left, right, -1))
            found[-1].items.append(item)
        else:
            band.append(item)
    close()
    return found


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────


def _lines(items: Iterable[Run]) -> list[list[Run]]:
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


def column_lines(column: Column, page: int) -> list[Line | Table]:
    """The lines and ruled tables of a column, from the top."""
    found: list[Line | Table] = [item for item in column.items if isinstance(item, Table)]
    for line in _lines(item for item in column.items if isinstance(item, Run)):
        size = max(run.size for run in line)
        glyphs = [g for run in line for g in run.glyphs]
        text = line_text(line)
        if text:
            found.append(
                Line(
                    text,
                    line[0].x0,
                    max(run.x1 for run in line),
                    next(run.y for run in line if run.size == size),
                    size,
                    sum(g.bold for g in glyphs) > 0.8 * len(glyphs),
                    page,
                    column.index,
                    cells=line_cells(line),
                )
            )
    return sorted(found, key=lambda i: -i.y)


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
    return Table(rows, *edges, lines[0].y, lines[-1].y, lines[0].page)
