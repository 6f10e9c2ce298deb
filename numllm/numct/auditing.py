"""The audit of a set of questions: what it holds, and that its answers cannot be guessed."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..files import Progress, no_progress
from ..numbers import find_numbers
from .cheats import guesses
from .regression import regression_hits
from .tags import LETTERS

__all__ = ["audit"]


def audit(
    rows: Iterable[dict[str, Any]], left_out: Mapping[str, int] | None = None, *, progress: Progress = no_progress
) -> dict[str, Any]:
    """What a set of questions holds, and how well guessers do who see only options and surface.

    Returns `n`; counts `by_kind`, `by_unit`, `by_tag`, `by_tier`, `by_split`; `left_out`, as given: why numbers were
    not asked (see `build`); `positions` (counts by letter, `chi_square`, its `p`); `cheats` {name: {"accuracy",
    "ci95"}} where a guesser draws among ties and "ci95" is the normal interval of its mean; `chance`. Frequencies
    leave the question's own answer out. All rows are held in memory.
    """
    held = list(rows)
    kinds: Counter[str] = Counter()
    units: Counter[str] = Counter()
    tiers: Counter[str] = Counter()
    tags: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    letters: Counter[str] = Counter()
    answers: Counter[tuple[str, str]] = Counter()
    frequency: Counter[tuple[str, str]] = Counter()
    for row in held:
        number = row["number"]
        kinds[number["kind"]] += 1
        units[number["unit"]] += 1
        tiers.update(row["distractors"])
        splits[row["split"]] += 1
        tags[row["tag"]] += 1
        letters[row["answer"]] += 1
        answers[number["unit"], row["options"][LETTERS.index(row["answer"])]] += 1
        for n in find_numbers(row["context"] + row["question"]):
            frequency[n.unit, n.value] += 1
    sums: dict[str, list[float]] = defaultdict(list)
    seen: list[list[list[float]]] = []
    for row in progress(held, total=len(held), description="audit", unit="question"):
        right = LETTERS.index(row["answer"])
        cheats, described = guesses(row, answers, frequency)
        seen.append(described)
        for name, scores in cheats.items():
            top = max(scores)
            sums[name].append(1 / scores.count(top) if scores[right] == top else 0.0)
    if len(held) > 1 and len({len(described) for described in seen}) == 1:
        rights = [LETTERS.index(row["answer"]) for row in held]
        sums["logistic regression"] = regression_hits(seen, rights)
    width = max((len(row["options"]) for row in held), default=0)
    counts = [letters[letter] for letter in LETTERS[:width]]
    square = _chi_square(counts)
    return {
        "n": len(held),
        "by_kind": dict(kinds.most_common()),
        "by_unit": dict(units.most_common()),
        "by_tag": dict(tags.most_common()),
        "by_tier": dict(tiers.most_common()),
        "by_split": dict(splits.most_common()),
        "left_out": dict((+Counter(left_out or {})).most_common()),
        "positions": {
            **{letter: letters[letter] for letter in LETTERS[:width]},
            "chi_square": square,
            "p": _chi_square_p(square, width - 1),
        },
        "chance": sum(1 / len(row["options"]) for row in held) / len(held) if held else 0.0,
        "cheats": {name: _mean_interval(scores) for name, scores in sums.items()},
    }


def _mean_interval(scores: Sequence[float]) -> dict[str, Any]:
    """Mean of the scores and its normal 95 % interval."""
    n = len(scores)
    mean = sum(scores) / n
    error = 1.96 * math.sqrt(sum((s - mean) ** 2 for s in scores) / n / n)
    return {"accuracy": mean, "ci95": [max(0.0, mean - error), min(1.0, mean + error)]}


def _chi_square(counts: Sequence[int]) -> float:
    """Pearson's statistic of counts against equal frequencies."""
    total = sum(counts)
    if not total:
        return 0.0
    expected = total / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def _chi_square_p(square: float, freedom: int) -> float:
    """P(X >= square) of a chi-square variable with `freedom` degrees, by the recurrence in steps of two."""
    if freedom <= 0 or square <= 0:
        return 1.0
    half = square / 2
    if freedom % 2:
        p, term, a = math.erfc(math.sqrt(half)), math.exp(-half) / math.sqrt(math.pi * half), 0.5
    else:
        p, term, a = math.exp(-half), math.exp(-half), 1.0
    while a < freedom / 2:
        term *= half / a
        p += term
        a += 1
    return min(1.0, p)
