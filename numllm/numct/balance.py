"""The running balance that keeps every known way to guess at pure chance."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

__all__ = ["Balance"]

Seen = Sequence[Sequence[float]]
"""For each trait its value for every option, the answer first: see `Asked.seen`."""
Traits = tuple[Seen, Sequence[Sequence[int]], Sequence[Sequence[float]]]
"""Traits as they are, as ranks, and as the adversary sees them."""

_TRAITS = 15
_FREQUENCIES = {3: 0.5, 4: 0.85}  # traits that count how often an option occurs: target, in parts of pure chance
_LOGS = (9, 10, 14)  # traits that are distances of logarithms: seen as they are, not as ranks
_FOUND = 0.85  # of pure chance, what the adversary may find: one that reads all questions twice finds more
_COMMON = 8.0  # questions that the most frequent answer may win above its target before it is left out
_RATE = 0.015  # step of the adversary's gradient
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
        self.common: dict[str, float] = defaultdict(float)  # questions the most frequent answer wins above its target
        self.found = 0.0  # questions the adversary has found above chance
        self.weights = [0.0] * (_TRAITS + 1)

    def cost(self, kind: str, seen: Seen) -> tuple[float, Traits]:
        """How far the sums of `kind` would be from zero with such options and how sure the adversary is; the traits
        in ranks, for `add`."""
        ranks = [_ranks(keys) for keys in seen]
        sums = self.sums[kind]
        simple = sum((sums[i] + 0.5 * h) * h for i, h in enumerate(self._hits(seen, ranks)))
        features = self._features(seen, ranks)
        return simple + _WEIGHT * (self._chances(features)[0] - 1 / self.options), (seen, ranks, features)

    def _hits(self, seen: Seen, ranks: Sequence[Sequence[int]]) -> list[float]:
        """For each way to guess, the chance that it finds the answer, less its target."""
        chance = 1.0 / self.options
        place = ranks[0][0]
        found = [-chance] * self.options
        found[(place + self.options - 1) // 2] += 1.0
        for trait in range(1, len(seen) - 1):
            keys = seen[trait]
            ties, rank = keys.count(keys[0]), ranks[trait][0]
            if trait in _FREQUENCIES:
                found.append((1.0 / ties if rank == self.options - ties else 0.0) - chance * _FREQUENCIES[trait])
            else:
                found.append((1.0 / ties if rank == self.options - ties else 0.0) - chance)
                found.append((1.0 / ties if rank == ties - self.options else 0.0) - chance)
        return found

    def _features(self, seen: Seen, ranks: Sequence[Sequence[int]]) -> list[Sequence[float]]:
        """What the adversary sees: logarithms as they are, other traits by rank, and how far out a value is."""
        return [*(seen[i] if i in _LOGS else rank for i, rank in enumerate(ranks)), [r * r for r in ranks[0]]]

    def _chances(self, features: Sequence[Sequence[float]]) -> list[float]:
        """The adversary's probability of each option."""
        scores = [0.0] * self.options
        for w, x in zip(self.weights, features, strict=True):
            for i, v in enumerate(x):
                scores[i] += w * v
        top = max(scores)
        exps = [math.exp(score - top) for score in scores]
        total = sum(exps)
        return [e / total for e in exps]

    def too_easy(self, kind: str, traits: Traits) -> bool:
        """Whether a question should be left out: its answer (12 个月) is so frequent that whoever names the usual
        number would be right too often, which no wrong option can mend, or the adversary has been right too often."""
        answers = traits[0][4]
        if max(answers[1:]) < answers[0] and self.common[kind] > _COMMON:
            return True
        chances = self._chances(traits[2])
        return self.found > 0 and chances[0] == max(chances)

    def add(self, kind: str, traits: Traits) -> None:
        """Counts a question; the adversary learns from it."""
        seen, ranks, features = traits
        sums = self.sums[kind]
        for i, hit in enumerate(self._hits(seen, ranks)):
            sums[i] += hit
        top = max(seen[4])
        self.common[kind] += (seen[4][0] == top) / seen[4].count(top) - _FREQUENCIES[4] / self.options
        chances = self._chances(features)
        self.found += (chances[0] == max(chances)) - _FOUND / self.options
        for f, x in enumerate(features):
            self.weights[f] += _RATE * (x[0] - sum(p * v for p, v in zip(chances, x, strict=True)))


def _ranks(keys: Sequence[float]) -> list[int]:
    """For each option, how many options are below it by a trait less how many are above."""
    ranks = [0] * len(keys)
    for i in range(1, len(keys)):
        key = keys[i]
        for j in range(i):
            if key > keys[j]:
                ranks[i] += 1
                ranks[j] -= 1
            elif key < keys[j]:
                ranks[i] -= 1
                ranks[j] += 1
    return ranks
