"""The strongest way to guess: a logistic regression on what can be seen of the options.

Each option is described by what the simple cheats look at and by how it resembles the other options. A softmax over
the options' scores is fitted on one half of the questions and judged on the other, and the other way round.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["features", "regression_hits"]

_RIDGE = 1.0  # the penalty on squared weights; features have unit variance
_STEPS = 12  # of Newton's method


def features(
    scores: Mapping[str, Sequence[float]], values: Sequence[float], digits: Sequence[str]
) -> list[list[float]]:
    """One row of features for each option.

    scores: each cheat's scores; values: the options' values, nan where none; digits: their significant digits.
    """
    count = len(values)
    sizes = [math.log(abs(v)) if v and math.isfinite(v) else 0.0 for v in values]
    ordered = sorted(sizes)
    median = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    bags = [Counter(d) for d in digits]
    rows = []
    for i in range(count):
        others = [j for j in range(count) if j != i]
        gaps = sorted(abs(sizes[i] - sizes[j]) for j in others)
        d = digits[i]
        rows.append(
            [
                *(_rank(list(score), i) for score in scores.values()),
                sizes[i] - median,
                abs(sizes[i] - median),
                gaps[0],
                gaps[-1],
                sum(gaps),
                float(any(abs(gap - math.log(10)) < 1e-9 for gap in gaps)),
                float(sum(bags[i] == bags[j] and len(d) > 1 for j in others)),
                float(sum(_same(d, digits[j]) for j in others)),
                float(sum(d[0] == digits[j][0] for j in others)),
                float(sum(len(d) == len(digits[j]) for j in others)),
                float(sum(abs(values[i] + values[j] - 1) < 1e-9 for j in others)),
                float(sum(abs(values[i] + values[j] - 100) < 1e-9 for j in others)),
                float(d[-1] == "5"),
                float(d[-1] in "2468"),
                float(len(set(d)) < len(d)),
                *(float(d[0] == first) for first in "123456789"),
            ]
        )
    return rows


def _rank(scores: list[float], i: int) -> float:
    """Where option i stands among the options by a score: −1 lowest to 1 highest, ties in the middle."""
    below, above = sum(s < scores[i] for s in scores), sum(s > scores[i] for s in scores)
    return (below - above) / max(1, len(scores) - 1)


def _same(a: str, b: str) -> bool:
    """Whether two rows of digits of one length differ in one place."""
    return len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1


def regression_hits(rows: Sequence[Sequence[Sequence[float]]], answers: Sequence[int]) -> list[float]:
    """For each question, 1 where a regression fitted on the other half of the questions finds its answer, else 0.

    rows (questions, options, features), all with equally many options; answers: the right options' indices.
    """
    x = np.asarray(rows, dtype=np.float64)
    y = np.asarray(answers)
    x -= x.mean(axis=1, keepdims=True)
    spread = x.std(axis=(0, 1))
    x /= np.where(spread > 1e-12, spread, 1.0)
    hits = np.zeros(len(y))
    half = np.arange(len(y)) % 2 == 0
    for train in (half, ~half):
        weights = _fit(x[train], y[train])
        hits[~train] = (x[~train] @ weights).argmax(axis=1) == y[~train]
    return hits.tolist()


def _fit(x: Any, y: Any) -> Any:
    """Weights w that maximise Σ log softmax(x w)[y] − ridge/2 |w|², by Newton's method."""
    n, _, count = x.shape
    w = np.zeros(count)
    right = x[np.arange(n), y].sum(axis=0)
    for _ in range(_STEPS):
        z = x @ w
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        mean = np.einsum("no,nof->nf", p, x)
        gradient = right - mean.sum(axis=0) - _RIDGE * w
        curvature = np.einsum("no,nof,nog->fg", p, x, x) - mean.T @ mean + _RIDGE * np.eye(count)
        step = np.linalg.solve(curvature, gradient)
        w = w + step
        if np.abs(step).max() < 1e-8:
            break
    return w
