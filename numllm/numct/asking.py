"""From a number that can be asked to its question: wrong options drawn, judged, one draw settled on, written."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .balance import Balance, Traits
from .candidates import Candidate, Reading
from .form import Shape
from .options import Asked, draw, model_options, natural_options
from .tags import BLANK, LETTERS
from .traits import traits

__all__ = ["Drawn", "State", "Wrong", "draw_options", "judge", "settle", "write"]

_REMEMBERED = 400  # answers of one unit and form that may come again as wrong options
_DRAWS = 8  # draws of wrong options among which the most balanced is kept
_FAILURES = 6  # draws without result after which no more are made
_AHEAD = 20.0  # questions by which a kind may be ahead of its share

Wrong = list[tuple[int, str]]
"""Wrong options: the whole number that each renders, and its tier."""


@dataclass(slots=True)
class State:
    """What goes on from document to document."""

    options: int
    per_sentence: int
    rng: random.Random
    weights: Mapping[str, float] = field(default_factory=dict)
    propose: Callable[[str, str], Sequence[str]] | None = None  # (question's id, text before the blank) → continuations
    left_out: Counter[str] = field(default_factory=Counter)  # numbers that are not asked, by reason
    positions: list[int] = field(default_factory=list)
    balance: Balance = field(init=False)
    frequency: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    """By unit, how often values in 1e-8 stand in the texts read so far."""
    shown: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    """The same of the questions that are wanted of them, with their contexts: who reads a set counts there."""
    kinds: Counter[str] = field(default_factory=Counter)
    seen: set[bytes] = field(default_factory=set)
    earlier: dict[Shape, list[int]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[Shape, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))

    def __post_init__(self) -> None:
        self.balance = Balance(self.options)

    def position(self) -> int:
        """Where the next answer stands: every block of `options` questions uses each position once."""
        if not self.positions:
            self.positions = list(range(self.options))
            self.rng.shuffle(self.positions)
        return self.positions.pop()

    def share(self, kind: str) -> float:
        """How many questions of a kind there are, in units of its weight."""
        return self.kinds[kind] / self.weights.get(kind, 1.0)

    def wanted(self, kind: str) -> bool:
        """Whether one more question of a kind keeps the kinds that have weights in their proportion."""
        weight = self.weights.get(kind)
        if weight is None:
            return True
        least = min(self.share(other) for other, w in self.weights.items() if w > 0)
        return weight > 0 and self.kinds[kind] < weight * least + _AHEAD


@dataclass(frozen=True, slots=True)
class Drawn:
    """A number that is asked, with several draws of wrong options, each (m, tier)."""

    one: Candidate
    asked: Asked
    draws: Sequence[Wrong]


def draw_options(one: Candidate, reading: Reading, state: State, rng: random.Random) -> Drawn:
    """Several draws of wrong options for a number; none where too few are to be had."""
    kind, unit = one.shape[:2]
    asked = Asked(
        one.form, one.m, kind, unit, one.limits, one.near, state.frequency[unit], state.shown[unit],
        state.answers[one.shape], one.digits,
    )
    pool = reading.pools.get((kind, unit), ())
    natural = natural_options(asked, pool, state.earlier[one.shape], one.relation, rng)
    if state.propose is not None:
        left = one.context + one.stem
        natural += model_options(asked, left, one.rest, state.propose(one.id, left))
    draws: list[Wrong] = []
    failed = 0
    while len(draws) < _DRAWS and failed < _FAILURES:
        drawn = draw(asked, natural, state.options - 1, rng)
        if drawn is None:
            failed += 1
        else:
            draws.append(drawn)
    return Drawn(one, asked, draws)


def judge(drawn: Sequence[Drawn], state: State) -> list[Traits]:
    """What can be seen of the options of each; each has draws."""
    if not drawn:
        return []
    seen = traits([(one.asked, [[m for m, _ in wrong] for wrong in one.draws]) for one in drawn])
    return state.balance.judge(*seen, [len(one.draws) for one in drawn])


def settle(drawn: Drawn, seen: Traits, state: State, rng: random.Random) -> Wrong | None:
    """The most balanced of the draws, counted; None where a guesser would have it too easy."""
    one, kind = drawn.one, drawn.asked.kind
    chances = state.balance.chances(seen)
    costs = state.balance.costs(kind, seen, chances).tolist()
    best = min(range(len(costs)), key=lambda i: costs[i] + 0.05 * rng.random())
    if state.balance.too_easy(kind, seen, chances, best):
        return None
    state.balance.add(kind, seen, chances, best)
    state.kinds[kind] += 1
    state.answers[one.shape][one.m] += 1
    earlier = state.earlier[one.shape]
    if len(earlier) < _REMEMBERED:
        earlier.append(one.m)
    else:
        earlier[rng.randrange(_REMEMBERED)] = one.m
    return drawn.draws[best]


def write(
    one: Candidate, wrong: Wrong, reading: Reading, state: State, rng: random.Random
) -> dict[str, Any]:
    """The question as a row of numct.jsonl, its answer at the next position."""
    form = one.form
    rng.shuffle(wrong)
    position = state.position()
    rendered = [form.render(m) for m, _ in wrong]
    rendered.insert(position, form.render(one.m))
    return {
        "id": one.id,
        "question": f"{one.stem}{BLANK}{one.rest}",
        "options": rendered,
        "answer": LETTERS[position],
        "context": one.context,
        "number": one.number,
        "tag": one.tag,
        "relation": one.relation,
        "source_id": reading.id,
        "distractors": [tier for _, tier in wrong],
        "split": reading.split,
    }
