"""The running balance that keeps every known way to guess at pure chance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

__all__ = ["Balance"]

_FREQUENCY_TARGET = 0.8  # of pure chance, see Balance
_COMMON = 8.0  # questions that the most frequent answer may win above its target before it is left out


class Balance:
    """Running sums of how often each way to guess would have found the answer, by kind, less its target.

    The target is pure chance, but for the two frequencies less: they are counted over what has been read so far, and
    a real answer goes on to occur where a perturbed number does not.
    """

    def __init__(self, options: int) -> None:
        chance = 1.0 / options
        self.targets = [chance] * (options + 4) + [_FREQUENCY_TARGET * chance] * 2 + [chance]
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(self.targets))

    def cost(self, kind: str, hits: Sequence[float]) -> float:
        """How far the sums of `kind` would be from zero with `hits`, up to a constant."""
        return sum(
            (s + 0.5 * (h - t)) * (h - t) for s, h, t in zip(self.sums[kind], hits, self.targets, strict=True)
        )

    def too_common(self, kind: str, hits: Sequence[float]) -> bool:
        """Whether one answer (12 个月) is so frequent that whoever names the usual number would be right too often:
        no wrong option can mend that, so the question is left out."""
        at = len(self.targets) - 2
        return hits[at] == 1.0 and self.sums[kind][at] > _COMMON

    def add(self, kind: str, hits: Sequence[float]) -> None:
        """Counts a question."""
        sums = self.sums[kind]
        for i, h in enumerate(hits):
            sums[i] += h - self.targets[i]


def share(keys: Sequence[float], best: Callable[[Sequence[float]], float]) -> float:
    """The chance that a guesser who takes the best key, ties drawn, takes the first."""
    top = best(keys)
    return 1.0 / keys.count(top) if keys[0] == top else 0.0  # type: ignore[attr-defined]
