"""Changes made entry by entry: those of ties, dare and dare-ties, which are of no low rank."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .factors import Parts
from .options import Options
from .selection import tile_rows

_ROUNDED = 1 - 2.0**-40
"""What rounding may take of an entry: a GPU sums in another order, and the smallest that is kept must be kept there."""

_SIGN = -1 << 63
"""The bit of an fp64 number's sign."""


@dataclasses.dataclass(frozen=True)
class EntrywiseDelta:
    """Δ of ties, dare and dare-ties: no factors; its rows are made when asked for."""

    parts: tuple[tuple[Tensor, Tensor], ...]
    """(b, a) of each Δᵢ, the weight left out."""
    weights: tuple[float, ...]
    thresholds: tuple[float, ...] | None
    """Smallest |entry| kept of each (ties); None: entries are drawn (dare)."""
    options: Options
    draws: tuple[int, ...]
    """Key of each part's random numbers."""
    triangles: Parts
    """As `Delta` has them."""

    def to(self, device: torch.device) -> EntrywiseDelta:
        """With its factors on a device."""
        return dataclasses.replace(self, parts=tuple((b.to(device), a.to(device)) for b, a in self.parts))

    def add_to(self, x: Tensor, first: int) -> None:
        """Adds rows first.. of Δ to x (rows, K) in place."""
        # Step by step over tiles that stay in a core's own cache; a GPU is fast at few steps over much.
        rows = len(x) if x.is_cuda else min(len(x), tile_rows(x.shape[1]))
        memory = x.new_empty(len(self.parts) + 3, rows, x.shape[1])
        drawn = torch.empty(rows, x.shape[1], dtype=torch.float64) if self.thresholds is None else None
        for start in range(0, len(x), rows):
            tile, at = x[start : start + rows], first + start
            weighted, spare = memory[:-3, : len(tile)], memory[-3:, : len(tile)]
            for index, ((b, a), weight, value) in enumerate(zip(self.parts, self.weights, weighted, strict=True)):
                scale = weight if drawn is None else weight / self.options.share
                torch.addmm(value, b[at : at + len(tile)], a, beta=0, alpha=scale, out=value)
                if drawn is None:
                    below = math.nextafter(self.thresholds[index] * abs(weight) * _ROUNDED, 0.0)
                    torch.ops.aten.hardshrink.out(value, below, out=value)  # 0 where not larger than `below`
                else:
                    value.mul_(self._kept(index, at, drawn[: len(tile)]).to(value.device))
            if self.options.method == "dare":
                for value in weighted[1:]:
                    weighted[0] += value
                tile += weighted[0]
            else:
                tile += elect(weighted, self.weights, divide=self.options.method == "ties", memory=spare)

    def _kept(self, index: int, first: int, drawn: Tensor) -> Tensor:
        """1 for entries that are kept and 0 for those dropped, rows first.. of a Δᵢ, in `drawn`.

        A stream of its own for every row: what is drawn depends on neither blocks nor threads.
        """
        bits = np.random.Philox(key=self.draws[index])
        generator, state = np.random.Generator(bits), bits.state
        for row, numbers in enumerate(drawn.numpy(), first):
            state["state"]["counter"][2] = row
            bits.state = state
            generator.random(out=numbers)
        return drawn.lt_(self.options.share)


def elect(weighted: Tensor, weights: Sequence[float], *, divide: bool, memory: Tensor | None = None) -> Tensor:
    """Sign election of mergekit: weighted (n, …), the wᵢ vᵢ in fp64, weights (n) → (…).

    Entries whose sign is that of Σ wᵢ vᵢ are summed and, to divide, their sum is divided by that of their weights.
    `weighted` is overwritten, the result lies in it. memory: (3, …) to work in.
    """
    total, divisor, agrees = weighted.new_empty(3, *weighted.shape[1:]) if memory is None else memory
    mixed, *others = weighted
    total.copy_(mixed)
    for value in others:
        total += value
    sign = total.view(torch.int64).bitwise_and_(_SIGN)
    for index, (value, weight) in enumerate(zip(weighted, weights, strict=True)):
        value.view(torch.int64).bitwise_xor_(sign)  # positive where it agrees
        value.clamp_min_(0.0)
        if divide:
            torch.gt(value, 0.0, out=agrees)
            divisor.add_(agrees, alpha=weight) if index else torch.mul(agrees, weight, out=divisor)
        if index:
            mixed += value
    if divide:
        mixed /= divisor.add_(torch.eq(divisor, 0.0, out=agrees))
    mixed.view(torch.int64).bitwise_xor_(sign)
    return mixed
