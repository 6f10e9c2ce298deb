"""Figures, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import NumLLMError
from ..files import write_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#3b6fb6", "#e08a2e", "#4a9d6f", "#b5484d", "#7d6bb0", "#8a7560")
_NO_PLOTS = "figures need matplotlib; install it with: pip install 'numllm[plots]'"
_INK, _GRID = "#2b2f36", "#d9dce1"


def has_plots() -> bool:
    """Whether matplotlib, which the figures need, is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _kind(path: str | Path) -> str:
    """The format of a figure, by the ending of its file."""
    kind = Path(path).suffix.lower().lstrip(".") or "png"
    if kind not in ("png", "svg", "pdf"):
        raise NumLLMError(f"{path}: figures are written as .png, .svg or .pdf")
    return kind


def check_figure(path: str | Path) -> None:
    """NumLLMError when a figure could not be drawn there, before the work it would show is done."""
    _kind(path)
    if not has_plots():
        raise NumLLMError(_NO_PLOTS)


def _figures(wide: float, high: float, count: int) -> tuple[Figure, list[Axes]]:
    if not has_plots():
        raise NumLLMError(_NO_PLOTS)
    # Figure without pyplot: no global state, no window, any thread.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide, high), dpi=160, layout="constrained", facecolor="white")
    panels = [figure.add_subplot(count, 1, place + 1) for place in range(count)]
    for axes in panels:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(_GRID)
        axes.tick_params(colors=_INK, labelsize=9, length=0)
        axes.grid(axis="y", color=_GRID, linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, panels


def _figure(wide: float, high: float) -> tuple[Figure, Axes]:
    figure, (axes,) = _figures(wide, high, 1)
    return figure, axes


def _save(figure: Figure, path: str | Path) -> None:
    """Writes a PNG or SVG, by the ending, in one piece; the same figure gives the same bytes."""
    from matplotlib import rc_context

    path, kind = Path(path), _kind(path)
    stamp = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with write_aside(path, "wb") as file, rc_context({"svg.hashsalt": "numllm"}):
        figure.savefig(file, format=kind, metadata=stamp)


def smoothed(values: Sequence[float], span: float) -> list[float]:
    """Exponential mean of a series over about `span` values, freed of its start at 0 as in Adam."""
    keep, mean, weight, found = 1 - 1 / max(span, 1.0), 0.0, 0.0, []
    for value in values:
        mean = keep * mean + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        found.append(mean / weight)
    return found


def plot_loss(metrics: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """The loss of each adapter by step, from rows of metrics.jsonl: each step faint, the running mean strong.

    NumLLMError when matplotlib is missing or no row has a step and a loss.
    """
    series: dict[str, tuple[list[int], list[float]]] = {}
    for row in metrics:
        if row.get("step") is not None and row.get("loss") is not None:
            steps, losses = series.setdefault(str(row.get("adapter", "loss")), ([], []))
            steps.append(row["step"])
            losses.append(row["loss"])
    if not series:
        raise NumLLMError("there is no loss to plot; the metrics hold no row with a step and a loss")
    figure, axes = _figure(7.2, 3.8)
    for index, (name, (steps, losses)) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        mean = smoothed(losses, len(losses) / 20)
        axes.plot(steps, losses, color=colour, linewidth=0.8, alpha=0.28)
        axes.plot(
            steps, mean, color=colour, linewidth=1.9, label=f"{name}  {mean[-1]:.3f}",
            marker="o" if len(steps) == 1 else None,
        )
    axes.set_xlabel("step", color=_INK)
    axes.set_ylabel("loss", color=_INK)
    axes.set_title("Training loss by adapter", loc="left", fontsize=11, color=_INK)
    axes.margins(x=0.01)
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK)
    _save(figure, path)


def _groups(results: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any] | None]]:
    """Heading → each result's tally, of the groups in which some result has answered questions."""
    found: dict[str, list[Mapping[str, Any] | None]] = {
        "overall": [result["overall"] for result in results],
        "numeric": [result["numeric"] for result in results],
        "non-numeric": [result["non_numeric"] for result in results],
    }
    for domain in dict.fromkeys(name for result in results for name in result["by_domain"]):
        found[domain] = [result["by_domain"].get(domain) for result in results]
    return {
        name: tallies for name, tallies in found.items() if any(tally and tally["n"] for tally in tallies)
    }


def plot_bars(
    results: Mapping[str, Mapping[str, Any]], path: str | Path, *, chance: float | None = 0.25
) -> None:
    """Accuracies of evaluation results, name → result: a group of bars for overall, numeric, non-numeric and
    each domain, with 95 % intervals; `chance` is drawn as a dashed line.

    NumLLMError when matplotlib is missing or no result has answered questions.
    """
    groups = _groups(list(results.values()))
    if not groups:
        raise NumLLMError("there is no accuracy to plot; the results hold no answered questions")
    figure, axes = _figure(max(5.6, 1.4 + len(groups) * (0.4 + 0.3 * len(results))), 3.8)
    bar = min(0.8 / len(results), 0.5)
    for index, name in enumerate(results):
        shown = [(place, tallies[index]) for place, tallies in enumerate(groups.values())
                 if tallies[index] and tallies[index]["n"]]
        places = [place + (index - (len(results) - 1) / 2) * bar for place, _ in shown]
        heights = [100 * tally["accuracy"] for _, tally in shown]
        bounds = [[100 * bound for bound in tally["ci95"]] for _, tally in shown]
        spread = [
            [max(height - low, 0) for height, (low, _) in zip(heights, bounds, strict=True)],
            [max(high - height, 0) for height, (_, high) in zip(heights, bounds, strict=True)],
        ]
        axes.bar(places, heights, width=bar * 0.92, color=COLOURS[index % len(COLOURS)], label=name)
        axes.errorbar(places, heights, yerr=spread, fmt="none", ecolor=_INK, elinewidth=0.9, capsize=2.5)
        for place, height, up in zip(places, heights, spread[1], strict=True):
            axes.annotate(
                f"{height:.1f}", (place, height + up), xytext=(0, 2), textcoords="offset points",
                ha="center", fontsize=7.5, color=_INK,
            )
    if chance is not None:
        axes.axhline(100 * chance, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6)
        axes.annotate(
            "chance", (1, 100 * chance), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=8, color=_INK, annotation_clip=False,
        )
    sizes = [max(tally["n"] for tally in tallies if tally) for tallies in groups.values()]
    axes.set_xticks(
        range(len(groups)), [f"{name}\nn = {size:,}" for name, size in zip(groups, sizes, strict=True)]
    )
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylabel("accuracy, %", color=_INK)
    axes.set_ylim(0, min(axes.get_ylim()[1] * 1.12, 112))
    axes.set_title("Accuracy with 95 % intervals", loc="left", fontsize=11, color=_INK)
    figure.legend(
        frameon=False, fontsize=9, labelcolor=_INK, loc="outside lower center",
        ncols=max(1, min(len(results), 100 // (4 + max(map(len, results))))),
    )
    _save(figure, path)


def plot_layers(
    panels: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], path: str | Path, *, title: str
) -> None:
    """One panel a figure, one line a name, over the layers: {figure's label: {name: [(layer, value)]}}.

    NumLLMError when matplotlib is missing or there is nothing to plot.
    """
    shown = {label: lines for label, lines in panels.items() if any(lines.values())}
    if not shown:
        raise NumLLMError("there is nothing to plot by layer; no weight's name has a layer's number")
    figure, axes = _figures(7.2, 0.6 + 2.3 * len(shown), len(shown))
    for panel, (label, lines) in zip(axes, shown.items(), strict=True):
        for index, (name, points) in enumerate(lines.items()):
            panel.plot(
                *zip(*points, strict=True), color=COLOURS[index % len(COLOURS)], linewidth=1.6, label=name,
                linestyle=("-", "--", ":")[index // len(COLOURS) % 3], marker="o", markersize=2.5,
            )
        panel.set_ylabel(label, color=_INK)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.legend(frameon=False, fontsize=7.5, labelcolor=_INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[0].set_title(title, loc="left", fontsize=11, color=_INK)
    axes[-1].set_xlabel("layer", color=_INK)
    _save(figure, path)
