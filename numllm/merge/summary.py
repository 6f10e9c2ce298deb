"""A report read for a user: where adapters agree, collide or ignore each other, and what truncation costs."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

SAME = 0.1
"""Cosine of two deltas from which they are said to agree (or, below its negative, to collide). Deltas of unrelated
adapters lie within a few times 1/√(NK) of 0, thousandths for the linears of a language model."""


def place(name: str) -> tuple[int | None, str]:
    """(layer, kind) of a weight's name: "model.layers.3.self_attn.q_proj.weight" → (3, "q_proj")."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None, name.removesuffix(".weight").rpartition(".")[2]


def overlap(cosines: Iterable[float]) -> float | None:
    """Mean of cos² θ over principal angles: the share of the smaller space that lies in the larger; None if empty."""
    squares = [cosine**2 for cosine in cosines]
    return statistics.fmean(squares) if squares else None


def relation(cosine: float | None) -> str:
    """"agree", "collide" or "ignore"."""
    if cosine is None or abs(cosine) < SAME:
        return "ignore"
    return "agree" if cosine > 0 else "collide"


def by_kind(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each kind of weight and, where adapters meet, each pair of them; means over the layers.

    {"kind", "weights", "rank_kept" (least–most), "energy_kept", "delta_norm_relative", "pair", "cosine",
    "shared_output", "shared_input" (`overlap`), "agree", "collide", "ignore" (numbers of weights)}.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, row in report["tensors"].items():
        groups.setdefault(place(name)[1], []).append(row)
    found = []
    for kind, rows in groups.items():
        kept = sorted({row["rank_kept"] for row in rows if row.get("rank_kept") is not None})
        shared: dict[str, Any] = {
            "kind": kind, "weights": len(rows),
            "rank_kept": "–".join(str(rank) for rank in (kept[:1] + kept[-1:] if len(kept) > 1 else kept)) or None,
            "energy_kept": _mean(row.get("energy_kept") for row in rows),
            "delta_norm_relative": _mean(row.get("delta_norm_relative") for row in rows),
        }
        pairs = list(dict.fromkeys(pair for row in rows for pair in row.get("cosines", ())))
        for pair in pairs or [None]:
            row = dict(shared)
            if pair is not None:
                meeting = [each for each in rows if pair in each["cosines"]]
                relations = [relation(each["cosines"][pair]) for each in meeting]
                row |= {
                    "pair": pair, "cosine": _mean(each["cosines"][pair] for each in meeting),
                    **{f"shared_{side}": _mean(overlap(each["principal_angles"][pair][side]) for each in meeting)
                       for side in ("output", "input")},
                    **{name: relations.count(name) for name in ("agree", "collide", "ignore")},
                }
            found.append(row)
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.fmean(present) if present else None


def by_layer(report: Mapping[str, Any]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Figure → line → (layer, value), for plots: "change" and "energy" by kind of weight, "cosine" by pair."""
    found: dict[str, dict[str, dict[int, list[float]]]] = {"change": {}, "energy": {}, "cosine": {}}
    for name, row in report["tensors"].items():
        layer, kind = place(name)
        if layer is None:
            continue
        values = {("change", kind): row.get("delta_norm_relative"), ("energy", kind): row.get("energy_kept")}
        values |= {("cosine", pair): value for pair, value in row.get("cosines", {}).items()}
        for (figure, line), value in values.items():
            if value is not None:
                found[figure].setdefault(line, {}).setdefault(layer, []).append(value)
    return {
        figure: {line: [(layer, statistics.fmean(values)) for layer, values in sorted(layers.items())]
                 for line, layers in lines.items()}
        for figure, lines in found.items()
    }
