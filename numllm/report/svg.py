"""Small SVG charts, drawn without any library: they stand inside a page that needs no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .figures import COLOURS
from .tables import percent

Interval = tuple[float, float, float]
"""(value, low, high), shares of 1."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 12, 40


class Plot:
    """A frame from 0 to 1 on both axes, marked 0 to `top` on the vertical one; marks are added as shares of it."""

    def __init__(
        self, wide: int, high: int, *, horizontal: str = "", vertical: str = "accuracy, %", top: float = 100
    ) -> None:
        self.wide, self.high = wide, high
        self._parts: list[str] = []
        for tenth in range(0, 11, 2):
            y = self.y(tenth / 10)
            self._parts.append(
                f'<line class="grid" stroke="#d9dce1" x1="{_LEFT}" x2="{wide - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            self.text(_LEFT - 6, y + 3.5, f"{tenth * top / 10:,g}", "end")
        self.text((_LEFT + wide - _RIGHT) / 2, high - 5, horizontal, "middle")
        self._parts.append(
            f'<text transform="translate(11,{high / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(vertical)}</text>'
        )

    def x(self, share: float) -> float:
        """Pixels of a share of the width."""
        return _LEFT + share * (self.wide - _LEFT - _RIGHT)

    def y(self, share: float) -> float:
        """Pixels of a share of the height."""
        return self.high - _BOTTOM - share * (self.high - _TOP - _BOTTOM)

    def text(self, x: float, y: float, text: str, anchor: str = "middle") -> None:
        """Text at pixels."""
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False) -> None:
        """A line through points."""
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self._parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')

    def bar(self, x: float, width: float, value: Interval, colour: str, tip: str) -> None:
        """A bar from 0 with its interval; x and width are shares of the plot's width."""
        share, low, high = value
        self._parts.append(
            f'<rect x="{self.x(x):.1f}" y="{self.y(share):.1f}" width="{self.x(x + width) - self.x(x):.1f}" '
            f'height="{self.y(0) - self.y(share):.1f}" fill="{colour}"><title>{escape(tip)}</title></rect>'
        )
        if low < high:
            self.whisker(x + width / 2, low, high)

    def whisker(self, x: float, low: float, high: float) -> None:
        """An interval drawn upright."""
        at = self.x(x)
        for y1, y2, wide in ((low, high, 0), (low, low, 3), (high, high, 3)):
            self._parts.append(
                f'<line class="ink" stroke="#30343b" x1="{at - wide:.1f}" x2="{at + wide:.1f}" y1="{self.y(y1):.1f}" '
                f'y2="{self.y(y2):.1f}"/>'
            )

    def dot(self, x: float, y: float, radius: float, colour: str, tip: str) -> None:
        """A dot at shares."""
        self._parts.append(
            f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius:.1f}" fill="{colour}" fill-opacity="0.75">'
            f"<title>{escape(tip)}</title></circle>"
        )

    def __str__(self) -> str:
        return (
            f'<svg viewBox="0 0 {self.wide} {self.high}" width="{self.wide}" height="{self.high}" font-size="11" '
            'role="img">' + "".join(self._parts) + "</svg>"
        )


def legend(names: Sequence[str]) -> str:
    """The colour of each name, as HTML."""
    return '<p class="legend">' + " ".join(
        f'<span><i style="background:{COLOURS[index % len(COLOURS)]}"></i>{escape(name)}</span>'
        for index, name in enumerate(names)
    ) + "</p>"


def bars(groups: Mapping[str, Mapping[str, Mapping[str, Any] | None]], *, chance: float | None = None) -> str:
    """Group → name → tally: bars side by side with intervals, and a legend."""
    names = list(dict.fromkeys(name for tallies in groups.values() for name in tallies))
    step = 1 / len(groups)
    wide = step * 0.84 / len(names)
    plot = Plot(max(420, 60 + len(groups) * (24 + 16 * len(names))), 280)
    for place, (group, tallies) in enumerate(groups.items()):
        for index, name in enumerate(names):
            tally = tallies.get(name)
            if tally and tally["n"]:
                low, high = tally["ci95"]
                plot.bar(
                    place * step + step * 0.08 + index * wide, wide * 0.9, (tally["accuracy"], low, high),
                    COLOURS[index % len(COLOURS)],
                    f"{name}, {group}: {tally['correct']} of {tally['n']}, {100 * tally['accuracy']:.1f} %",
                )
        size = max(tally["n"] for tally in tallies.values() if tally)
        plot.text(plot.x((place + 0.5) * step), plot.y(0) + 15, group)
        plot.text(plot.x((place + 0.5) * step), plot.y(0) + 29, f"n = {size:,}")
    if chance is not None:
        plot.line([(0, chance), (1, chance)], "#8a8f98", dashed=True)
    return f"{plot}{legend(names)}"


def columns(values: Mapping[str, float], *, horizontal: str = "", vertical: str = "") -> str:
    """Label → value, not negative: a column for each; where there is no room for all labels some are left out."""
    most = max(values.values(), default=0) or 1
    step = 10 ** math.floor(math.log10(most / 5))
    top = 5 * step * next(factor for factor in (1, 2, 4, 5, 10) if 5 * step * factor >= most)
    wide = max(420, min(1000, 60 + 40 * len(values)))
    plot = Plot(wide, 260, horizontal=horizontal, vertical=vertical, top=top)
    every = -(-max(len(label) for label in values) * 7 * len(values) // (wide - 60)) if values else 1
    for place, (label, value) in enumerate(values.items()):
        share = value / top
        plot.bar((place + 0.08) / len(values), 0.84 / len(values), (share, share, share), COLOURS[0],
                 f"{label}: {value:,g}")
        if place % max(1, every) == 0:
            plot.text(plot.x((place + 0.5) / len(values)), plot.y(0) + 15, label)
    return str(plot)


def rows(values: Mapping[str, float], decimals: int = 0) -> str:
    """Label → value, not negative: a bar for each, from left to right, between its label and its value."""
    most = max(values.values(), default=0) or 1
    left, step, wide = 12 + 7 * max(map(len, values), default=0), 20, 360
    parts = []
    for place, (label, value) in enumerate(values.items()):
        y, long = place * step + 4, wide * value / most
        told = f"{value:,.{decimals}f}"
        parts.append(
            f'<text x="{left - 6}" y="{y + 11}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{left}" y="{y}" width="{long:.1f}" height="{step - 5}" fill="{COLOURS[0]}">'
            f"<title>{escape(label)}: {told}</title></rect>"
            f'<text x="{left + long + 5:.1f}" y="{y + 11}">{told}</text>'
        )
    size = f"{left + wide + 70} {len(values) * step + 8}"
    return f'<svg viewBox="0 0 {size}" width="{size.split()[0]}" font-size="11" role="img">{"".join(parts)}</svg>'


def scatter(points: Mapping[str, Sequence[tuple[float, float, int, str]]], horizontal: str, vertical: str) -> str:
    """Name → (x, y, questions, tip): dots whose area grows with the questions, and the diagonal."""
    plot = Plot(420, 400, horizontal=horizontal, vertical=vertical)
    for tenth in range(0, 11, 2):
        plot.text(plot.x(tenth / 10), plot.y(0) + 15, str(tenth * 10))
    plot.line([(0, 0), (1, 1)], "#8a8f98", dashed=True)
    for index, dots in enumerate(points.values()):
        for x, y, size, tip in dots:
            plot.dot(x, y, 2 + size**0.5 / 2, COLOURS[index % len(COLOURS)], tip)
    return f"{plot}{legend(list(points))}"


def curves(lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Name → bins of `evaluate.calibration`: accuracy against confidence, and the diagonal."""
    plot = Plot(420, 400, horizontal="confidence, %")
    for tenth in range(0, 11, 2):
        plot.text(plot.x(tenth / 10), plot.y(0) + 15, str(tenth * 10))
    plot.line([(0, 0), (1, 1)], "#8a8f98", dashed=True)
    for index, (name, bins) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        plot.line([(b["confidence"], b["accuracy"]) for b in bins], colour)
        for b in bins:
            plot.whisker(b["confidence"], *b["ci95"])
            tip = f"{name}: {b['n']} questions, sure {percent(b['confidence'])}, right {percent(b['accuracy'])}"
            plot.dot(b["confidence"], b["accuracy"], 3.5, colour, tip)
    return f"{plot}{legend(list(lines))}"
