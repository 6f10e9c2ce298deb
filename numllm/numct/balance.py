"""The running balance that keeps every known way to guess at pure chance.

For each question several sets of wrong options are drawn; those of many questions are judged at once, as arrays
(options, questions, draws, traits) with the answer as the first option. The questions are then settled one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Balance", "Traits"]

Array = NDArray[np.float64]

TRAITS = 15
_MARKS = 19  # what the adversary sees besides the traits: see `traits`
_ANSWERS = 4  # the trait that counts how often an option was an answer
_FREQUENCIES = {3: 0.5, _ANSWERS: 0.85}  # traits that count how often an option occurs: target, in parts of chance
_LOGS = (9, 10, 14)  # traits that are distances of logarithms: seen as they are, not as ranks
_FOUND = 0.5  # of pure chance, what the adversary may find: one that reads all questions twice finds more
_COMMON = 8.0  # questions that the most frequent answer may win above its target before it is left out
_RATE = 0.005  # step of the adversary, for features of unit size
_MEMORY = 0.998  # of the size of a feature, from question to question
_WEIGHT = 60.0  # of the adversary in the cost


@dataclass(slots=True)
class Traits:
    """What can be seen of the options of one question, for each of several draws."""

    answers: list[list[float]]  # (draws, options): how often each was an answer
    features: Array  # (draws, options, features): what the adversary sees
    hits: Array  # (draws, ways): the chance that each way to guess finds the answer, less its target


class Balance:
    """Running sums of how often each way to guess would have found the answer, by kind, less its target; and an
    adversary, a logistic regression over all traits that learns from every question made.

    The target is pure chance, but for the two frequencies less: they are counted over what has been read so far, and
    a real answer goes on to occur where a perturbed number does not. The adversary sees combinations of traits.
    """

    def __init__(self, options: int) -> None:
        self.options = options
        ways = options + 2 * (TRAITS - 2)
        self.sums: dict[str, Array] = defaultdict(lambda: np.zeros(ways))
        self.common: dict[str, float] = defaultdict(float)  # questions the most frequent answer wins above its target
        self.found = 0.0  # questions the adversary has found above chance
        count = TRAITS + 1 + _MARKS
        self.weights, self.sizes = np.zeros(count), np.full(count, 1e-2)
        targets = np.ones(TRAITS - 2)
        for trait, target in _FREQUENCIES.items():
            targets[trait - 1] = target
        self._targets = targets / options
        self._low = np.array([trait not in _FREQUENCIES for trait in range(1, TRAITS - 1)], dtype=np.float64)

    def judge(self, values: Array, marks: Array, draws: Sequence[int]) -> list[Traits]:
        """What each way to guess makes of the draws of each question; draws: how many it has."""
        larger = (values[:, None] > values).view(np.int8)
        below, above = np.add.reduce(larger, 1, dtype=np.int8), np.add.reduce(larger, 0, dtype=np.int8)
        ranks = np.subtract(below, above, dtype=np.float64)
        features = np.concatenate([ranks, ranks[..., :1] ** 2, marks], axis=-1)
        features[..., _LOGS] = values[..., _LOGS]
        features -= features.sum(0) / self.options
        features = np.ascontiguousarray(np.moveaxis(features, 0, 2))
        answers = np.moveaxis(values[..., _ANSWERS], 0, -1).tolist()
        hits = self._hits(below[0], above[0])
        return [Traits(answers[i][:count], features[i, :count], hits[i, :count]) for i, count in enumerate(draws)]

    def _hits(self, below: NDArray[np.int8], above: NDArray[np.int8]) -> Array:
        """For each way to guess, the chance that it finds the answer, less its target; below, above: by trait, how many
        options have less of it than the answer, and more."""
        count = self.options
        place = (below[..., 0] - above[..., 0] + count - 1) // 2
        middle = (place[..., None] == np.arange(count)) - 1.0 / count
        below, above = below[..., 1:-1], above[..., 1:-1]
        ties = count - below - above
        most = (above == 0) / ties - self._targets
        least = ((below == 0) / ties - 1.0 / count) * self._low
        return np.concatenate([middle, most, least], axis=-1)

    def costs(self, kind: str, traits: Traits, chances: Array) -> Array:
        """For each draw, how far the sums of `kind` would be from zero and how sure the adversary is."""
        simple = np.add.reduce((self.sums[kind] + 0.5 * traits.hits) * traits.hits, -1)
        return simple + _WEIGHT * (chances[:, 0] - 1 / self.options)

    def chances(self, traits: Traits) -> Array:
        """The adversary's probability of each option, (draws, options)."""
        scores = traits.features @ self.weights
        scores = np.exp(scores - np.maximum.reduce(scores, -1, keepdims=True))
        return scores / np.add.reduce(scores, -1, keepdims=True)

    def too_easy(self, kind: str, traits: Traits, chances: Array, draw: int) -> bool:
        """Whether a question should be left out: its answer (12 个月) is so frequent that whoever names the usual
        number would be right too often, which no wrong option can mend, or the adversary has been right too often."""
        own, *others = traits.answers[draw]
        if max(others) < own and self.common[kind] > _COMMON:
            return True
        return self.found > 0 and bool(chances[draw, 0] == np.maximum.reduce(chances[draw]))

    def add(self, kind: str, traits: Traits, chances: Array, draw: int) -> None:
        """Counts a question; the adversary learns from it."""
        self.sums[kind] += traits.hits[draw]
        answers = traits.answers[draw]
        top = max(answers)
        self.common[kind] += (answers[0] == top) / answers.count(top) - _FREQUENCIES[_ANSWERS] / self.options
        features, seen = traits.features[draw], chances[draw]
        self.found += float(seen[0] == np.maximum.reduce(seen)) - _FOUND / self.options
        self.sizes = _MEMORY * self.sizes + (1 - _MEMORY) * (np.add.reduce(features**2) / self.options)
        self.weights += _RATE * (features[0] - seen @ features) / np.sqrt(self.sizes + 1e-3)
