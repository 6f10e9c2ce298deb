"""Geometry of a PDF page: tables by their rules, columns, and what stands in them from the top."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .pdf_lines import Line, Run, Table, join, line_cells, line_text, runs, sorted_lines
from .pdf_page import Glyph, Page, Rule

_MAX_CELLS = 20_000


# ── tables by their rules ───────────────────────────────────────────────────────────────────────────


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
            found.append(Table(rows, xs[0], xs[-1], ys[0], page.number))
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
    for line in sorted_lines(runs(glyphs)):
        text = join(text, line_text(line))
    return text


# ── columns ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Column:
    """What stands between two sides, from top to bottom."""

    left: float
    right: float
    index: int
    """Place among the columns beside it, from 0; -1 for the full width of a page."""
    items: list[Run | Table] = field(default_factory=list)


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
        lines = sorted_lines(i for i in side if isinstance(i, Run))
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


def column_lines(column: Column, page: int) -> list[Line | Table]:
    """The lines and ruled tables of a column, from the top."""
    found: list[Line | Table] = [item for item in column.items if isinstance(item, Table)]
    for line in sorted_lines(item for item in column.items if isinstance(item, Run)):
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
