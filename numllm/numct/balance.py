"""The running balance that keeps every known way to guess at pure chance."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

__all__ = ["Balance"]

Seen = Sequence[Sequence[float]]
"""For each trait its value for every option, the answer first: see `Asked.seen`."""

_FREQUENCIES = {3: 0.65, 4: 0.85}  # traits that count how often an option occurs: target, in parts of pure chance
_LOGS = (9, 10)  # traits that are distances of logarithms: seen as they are, not as ranks
_COMMON = 8.0  # questions that the most frequent answer may win above its target before it is left out
_RATE = 0.05  # step of the adversary's gradient
_WEIGHT = 6.0  # of the adversary in the cost


class Balance:
    """Running sums of how often each way to guess would have found the answer, by kind, less its target; and an
    adversary, a logistic regression over all traits that learns from every question made.

    The target is pure chance, but for the two frequencies less: they are counted over what has been read so far, and
    a real answer goes on to occur where a perturbed number does not. The adversary sees combinations of traits.
    """

    def __init__(self, options: int) -> None:
        self.options = options
        self.sums: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        self.weights: dict[int, float] = defaultdict(float)

    def hits(self, seen: Seen) -> list[float]:
        """For each way to guess, the chance that it finds the answer, less its target."""
        chance = 1.0 / self.options
        values = seen[0]
        rank = sum(v < values[0] for v in values)
        found = [float(i == rank) - chance for i in range(len(values))]
        for trait, keys in enumerate(seen[1:], 1):
            target = chance * _FREQUENCIES.get(trait, 1.0)
            found.append(_share(keys, max) - target)
            if trait not in _FREQUENCIES:
                found.append(_share(keys, min) - target)
        return found

    def chances(self, seen: Seen) -> tuple[list[float], list[list[float]]]:
        """The adversary's probability of each option, and the features it sees."""
        features: list[Sequence[float]] = [keys if i in _LOGS else _ranks(keys) for i, keys in enumerate(seen)]
        features.append([x * x for x in features[0]])
        scores = [sum(self.weights[f] * x[i] for f, x in enumerate(features)) for i in range(len(seen[0]))]
        top = max(scores)
        exps = [math.exp(score - top) for score in scores]
        total = sum(exps)
        return [e / total for e in exps], features

    def cost(self, kind: str, seen: Seen) -> float:
        """How far the sums of `kind` would be from zero with such options, and how sure the adversary is."""
        sums = self.sums[kind]
        simple = sum((sums[i] + 0.5 * h) * h for i, h in enumerate(self.hits(seen)))
        mine = self.chances(seen)[0][0] - 1 / self.options
        return simple + _WEIGHT * mine

    def too_common(self, kind: str, seen: Seen) -> bool:
        """Whether one answer (12 个月) is so frequent that whoever names the usual number would be right too often:
        no wrong option can mend that, so the question is left out."""
        return _share(seen[4], max) == 1.0 and self.sums[kind][-1] > _COMMON

    def add(self, kind: str, seen: Seen) -> None:
        """Counts a question; the adversary learns from it."""
        sums = self.sums[kind]
        for i, hit in enumerate(self.hits(seen)):
            sums[i] += hit
        sums[-1] += _share(seen[4], max) - _FREQUENCIES[4] / self.options
        chances, features = self.chances(seen)
        for f, x in enumerate(features):
            expected = sum(p * v for p, v in zip(chances, x, strict=True))
            self.weights[f] += _RATE * (x[0] - expected)


def _share(keys: Sequence[float], best: Callable[[Sequence[float]], float]) -> float:
    """The chance that a guesser who takes the best key, ties drawn, takes the first."""
    top = best(keys)
    return 1.0 / keys.count(top) if keys[0] == top else 0.0  # type: ignore[attr-defined]


def _ranks(keys: Sequence[float]) -> list[float]:
    """Where each option stands by a trait: −1 lowest to 1 highest, ties in the middle."""
    last = len(keys) - 1
    return [(sum(k < key for k in keys) - sum(k > key for k in keys)) / last for key in keys]
