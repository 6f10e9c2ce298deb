"""Pictures of how near each kernel comes to what the device can do, drawn from rows, the same rows to the same bytes.

A kernel that must do F operations and move B bytes takes at least max(F / product rate, B / copy rate): its roof. The
rates are those of `bench_rates` on the same device, measured, not a data sheet's. Above: achieved TFLOP/s over the
operations per byte (roofline, Williams et al. 2009), numllm alone. Below: every candidate's share of the roof.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from html import escape
from typing import Any, NamedTuple

from numllm.report.figures import COLOURS

Row = Mapping[str, Any]

INK, PALE, GRID = "#2b2f36", "#6b717b", "#d9dce1"
WIDE, LEFT, RIGHT = 860, 250, 150
TOP, CHART, LINE = 60, 250, 24
"""Pixels: head, height of the upper chart, height of a line of the lower one."""
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


Work = tuple[str, float | None, float | None]
"""Of a row: label, operations, bytes; None: not counted."""
Mark = tuple[str, bool]
"""Colour, and whether the dot is full."""


class Rates(NamedTuple):
    """Of a device: bytes and operations a second."""

    copy: float
    product: float


class Point(NamedTuple):
    """A candidate's row: what it is of, its operations and bytes (None: not counted), its seconds."""

    label: str
    candidate: str
    flops: float | None
    moved: float | None
    seconds: float

    def floor(self, rates: Rates) -> float:
        """Seconds that the device must take."""
        return max((self.flops or 0) / rates.product, (self.moved or 0) / rates.copy)

    def by_product(self, rates: Rates) -> bool:
        """Whether operations, not bytes, are what bounds it."""
        return (self.flops or 0) / rates.product >= (self.moved or 0) / rates.copy


def lora_linear(row: Row) -> Work:
    """Label; operations of y, dX, dA and dB, the frozen linear's without the adapters'; bytes of x, w, y, dy and dx
    once each in forward and backward, x once more for dA. "out" of linears that read one x: "896 + 128 + 128".
    """
    outs = [int(size) for size in str(row["out"]).split(" + ")]
    m, k, n = row["tokens"], row["in"], sum(outs)
    adapted = row["candidate"] != "frozen linear"
    flops = 4 * m * n * k + adapted * 6 * m * row["adapters"] * row["rank"] * (n + len(outs) * k)
    moved = BYTES[row["dtype"]] * (2 * (m * k + n * k + m * n) + adapted * m * k)
    return f"linear {k} → {row['out']}, {row['adapters']} adapter{'s' * (row['adapters'] > 1)}", flops, moved


def loss(row: Row) -> Work:
    """Label; operations of the logits and of dx; bytes of x and dx once, and of the head in forward and backward."""
    s, v, d = row["tokens"], row["vocabulary"], row["width"]
    return f"loss over {v:,} words", 4 * s * v * d, BYTES[row["dtype"]] * (2 * s * d + 2 * v * d)


def train_step(row: Row) -> Work:
    """Label; 4 P a token; the bytes of a whole step are not counted."""
    return f"training step, {row['case']}, {row['layers']} layers", row.get("flops"), None


def as_told(row: Row) -> Work:
    """What the row itself says."""
    return row.get("case", row["bench"]), row.get("flops"), row.get("bytes")


WORK = {"lora_linear": lora_linear, "loss": loss, "train_step": train_step}
"""Benchmark → what its rows' work is; of others, `as_told`."""


def pictures(rows: Iterable[Row], slug: Callable[[str], str]) -> dict[str, str]:
    """File name → SVG, one a device, number of threads and precision that there are rates of and rows under them.

    slug: device's name → part of a file's name.
    """
    rows = [row for row in rows if "ms" in row]
    roofs: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        if row["bench"] == "rates":
            kind = roofs.setdefault((row["device"], row["threads"]), {})
            kind[row.get("dtype", "copy")] = row.get("bytes", row.get("flops")) / row["ms"]["p50"] * 1000
    found = {}
    for (device, threads), known in roofs.items():
        for dtype in sorted(known.keys() - {"copy"}):
            points = []
            for row in rows:
                if row["bench"] == "rates" or (device, threads, dtype) != tuple(
                    row.get(key) for key in ("device", "threads", "dtype")
                ):
                    continue
                label, flops, moved = WORK.get(row["bench"], as_told)(row)
                if flops or moved:
                    points.append(Point(label, row["candidate"], flops, moved, row["ms"]["p50"] / 1000))
            if points and "copy" in known:
                on = f", {threads} thread{'s' * (threads > 1)}" if threads else ""
                name = f"roofline-{slug(device)}{f'-{threads}-thread' if threads else ''}-{dtype}.svg"
                found[name] = draw(f"{device}, {dtype}{on}", Rates(known["copy"], known[dtype]), points)
    return found


def rate(value: float, unit: str) -> str:
    """A rate of three digits with its unit."""
    size, prefix = (1e12, "T") if value >= 1e12 else (1e9, "G")
    digits = max(0, 2 - math.floor(math.log10(value / size)))
    number = f"{value / size:,.{digits}f}"
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {prefix}{unit}"


class _Svg:
    def __init__(self) -> None:
        self.parts: list[str] = []

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", size: int = 11, colour: str = INK) -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">'
            f"{escape(text)}</text>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, dash: str = "") -> None:
        style = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width}"{style}/>'
        )

    def dot(self, x: float, y: float, mark: Mark, tip: str) -> None:
        colour, full = mark
        fill, edge, width = (colour, "white", 1) if full else ("white", colour, 2)
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.6" fill="{fill}" fill-opacity="0.9" stroke="{edge}" '
            f'stroke-width="{width}"><title>{escape(tip)}</title></circle>'
        )


def draw(title: str, rates: Rates, points: list[Point]) -> str:
    """The picture of one device and precision."""
    svg = _Svg()
    labels = list(dict.fromkeys(point.label for point in points))
    names = list(dict.fromkeys(point.candidate for point in points))
    colours = {
        name: (COLOURS[index % len(COLOURS)], index < len(COLOURS))
        for index, name in enumerate(sorted(names, key=_ours_first))
    }
    svg.text(16, 24, f"Roofline: {title}", size=15)
    svg.text(16, 42, f"measured: copy {rate(rates.copy, 'B/s')}, product {rate(rates.product, 'FLOP/s')}", colour=PALE)
    bounded = [p for p in points if p.flops and p.moved and p.candidate.startswith("numllm")]
    top = TOP
    if bounded:
        _upper(svg, rates, bounded, colours)
        top += CHART + 50
    high = top + LINE * len(labels) + 66 + 18 * -(-len(names) // 4)
    _lower(svg, rates, points, labels, colours, top)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {high}" width="{WIDE}" height="{high}" '
        f'font-family="system-ui, sans-serif" role="img"><title>{escape(title)}</title>'
        f'<rect width="{WIDE}" height="{high}" fill="white"/>' + "\n".join(svg.parts) + "</svg>\n"
    )


def _ours_first(name: str) -> tuple[bool, str]:
    return not name.startswith("numllm"), name


def _upper(svg: _Svg, rates: Rates, points: list[Point], colours: Mapping[str, Mark]) -> None:
    """TFLOP/s over operations per byte, both logarithmic, under the two roofs."""
    ridge = rates.product / rates.copy
    intensities = [point.flops / point.moved for point in points]
    low_x = math.floor(math.log10(min(*intensities, ridge) / 2))
    high_x = math.ceil(math.log10(max(*intensities, ridge) * 2))
    high_y = math.log10(rates.product * 1.6)
    low_y = math.log10(min(rates.copy * 10**low_x, *(p.flops / p.seconds for p in points)) / 1.5)
    left, right, bottom = 92, WIDE - RIGHT, TOP + CHART

    def x(value: float) -> float:
        return left + (math.log10(value) - low_x) / (high_x - low_x) * (right - left)

    def y(value: float) -> float:
        return bottom - (math.log10(value) - low_y) / (high_y - low_y) * (bottom - TOP)

    for power in range(low_x, high_x + 1):
        svg.line(x(10**power), TOP, x(10**power), bottom, GRID)
        svg.text(x(10**power), bottom + 15, f"{10.0**power:g}", anchor="middle", colour=PALE)
    for power in range(math.ceil(low_y), math.floor(high_y) + 1):
        svg.line(left, y(10**power), right, y(10**power), GRID)
        svg.text(left - 6, y(10**power) + 4, rate(10.0**power, "FLOP/s"), anchor="end", size=10, colour=PALE)
    svg.text((left + right) / 2, bottom + 31, "operations per byte that must move", anchor="middle")
    svg.line(x(10**low_x), y(rates.copy * 10**low_x), x(ridge), y(rates.product), INK, 1.8)
    svg.line(x(ridge), y(rates.product), right, y(rates.product), INK, 1.8)
    svg.text(right + 8, y(rates.product) + 4, f"product {rate(rates.product, 'FLOP/s')}")
    middle = math.sqrt(10**low_x * ridge)
    svg.text(x(middle) + 12, y(rates.copy * middle) + 14, f"copy {rate(rates.copy, 'B/s')}")
    for point in points:
        reached = point.flops / point.seconds
        tip = f"{point.label}, {point.candidate}: {rate(reached, 'FLOP/s')}"
        svg.dot(x(point.flops / point.moved), y(reached), colours[point.candidate], tip)


def _lower(
    svg: _Svg, rates: Rates, points: list[Point], labels: list[str], colours: Mapping[str, Mark], top: float
) -> None:
    """A line a kernel and shape: each candidate's share of the roof, and which roof that is."""
    right, bottom = WIDE - RIGHT, top + LINE * len(labels)
    most = max(1.0, *(point.floor(rates) / point.seconds for point in points))

    def x(share: float) -> float:
        return LEFT + share / most * (right - LEFT)

    for tenth in range(0, 11, 2):
        svg.line(x(tenth / 10), top, x(tenth / 10), bottom, INK if tenth == 10 else GRID, 1.4 if tenth == 10 else 1)
        svg.text(x(tenth / 10), bottom + 15, f"{tenth * 10}", anchor="middle", colour=PALE)
    svg.text((LEFT + right) / 2, bottom + 32, "reached, % of the roof", anchor="middle")
    for place, label in enumerate(labels):
        y = top + LINE * (place + 0.5)
        mine = [point for point in points if point.label == label]
        shares = [point.floor(rates) / point.seconds for point in mine]
        svg.text(LEFT - 10, y + 4, label, anchor="end")
        svg.line(x(min(shares)), y, x(max(shares)), y, GRID, 3)
        for point, share in zip(mine, shares, strict=True):
            svg.dot(x(share), y, colours[point.candidate], f"{point.candidate}: {100 * share:.0f} %")
        for point in (point for point in mine if point.candidate == "numllm"):
            unit, done = ("FLOP/s", point.flops) if point.by_product(rates) else ("B/s", point.moved)
            share = 100 * point.floor(rates) / point.seconds
            svg.text(right + 14, y + 4, f"{share:.0f} %, {rate(done / point.seconds, unit)}")
    svg.text(right + 14, top - 8, "numllm", colour=PALE)
    for index, (name, mark) in enumerate(colours.items()):
        at = 24 + index % 4 * 205, bottom + 56 + 18 * (index // 4)
        svg.dot(at[0], at[1] - 4, mark, name)
        svg.text(at[0] + 11, at[1], name)
