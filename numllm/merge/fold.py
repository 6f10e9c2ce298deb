"""One weight of the base with its change folded in: streamed in row blocks, summed in fp64, rounded once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import RowReader, read_rows, read_tensor, torch_dtype
from ..errors import MergeError
from . import methods
from .factors import Target
from .methods import Delta, EntrywiseDelta
from .rounding import Rounder, bits, nearest

ROWS = 24
"""Rows of a block or tile are a multiple of this: products of so many run at the full speed of the vector units."""

TILE = 1 << 16
"""Elements that go through all steps of the arithmetic before the next do: in fp64, and what is made of them, they stay
in a core's own cache. What need not be done so often, as reading and writing, is done for a block.
"""


@dataclasses.dataclass
class Sums:
    """What the row blocks of one weight add up to."""

    square: float = 0.0
    """‖W‖²_F."""
    change: float = 0.0
    """‖W' − W‖²_F before rounding, where Δ alone does not say it."""
    changed: int = 0
    """Elements whose bits differ from the base's."""


class _Change:
    """All that is done to a weight, in fp64 on one device."""

    def __init__(self, target: Target, delta: Delta | EntrywiseDelta | None, device: torch.device) -> None:
        def moved(*tensors: Tensor) -> list[Tensor]:
            return [tensor.to(device) for tensor in tensors]

        self._device, self._wholes = device, target.wholes
        self._delta = delta.to(device) if delta is not None else None
        dora = [part for part in target.parts if part.factors.magnitude is not None]
        self._dora = [
            (part.weight, *moved(read_tensor(part.factors.magnitude).double()[:, None], *part.read())) for part in dora
        ]
        self._plain = [(part.weight, *moved(*part.read())) for part in target.parts
                       if dora and part.factors.magnitude is None]
        # 1 − Σ w is exactly 0 where one tensor replaces the base's, which is then copied to the bit.
        self._rest = 1.0 - sum(whole.weight for whole in target.wholes if whole.replaces)
        self.known = isinstance(delta, Delta) and not target.wholes
        """Whether Δ is B A and nothing else, so that its norm is known beforehand."""

    def add_to(self, x: Tensor, first: int) -> None:
        """Makes rows first.. of W' of those of W, x (rows, K), in place."""
        last, before = first + x.shape[0], x.clone() if self._wholes or self._dora else x
        if self._wholes:
            x *= self._rest
            for whole in self._wholes:
                rows = read_rows(whole.info, first, last).to(self._device).double()
                x.add_(rows.view(x.shape), alpha=whole.weight)
        for weight, magnitude, b, a in self._dora:
            y = torch.addmm(before, b[first:last], a)
            y *= magnitude[first:last] / torch.linalg.vector_norm(y, dim=1, keepdim=True)
            x.add_(y.sub_(before), alpha=weight)
        for weight, b, a in self._plain:
            x.addmm_(b[first:last], a, alpha=weight)
        if self._delta is not None:
            self._delta.add_to(x, first)


def fold(
    target: Target, delta: Delta | EntrywiseDelta | None, sums: Sums | None = None, device: torch.device | None = None
) -> Iterator[tuple[int, int, Tensor]]:
    """(first row, one past the last, the merged rows in the base's dtype), block by block; a block lasts until the
    next is asked for. delta: the sum of the parts; None where there are none or where DoRA rescales rows:

        W' = W + Σ w (diag(m / ‖W + Δᵢ‖_row) (W + Δᵢ) − W)

    device: where the arithmetic is done; None: here. MergeError when the base holds NaN or infinity, or a sum
    overflows the dtype.
    """
    info, rows = target.info, target.info.shape[0]
    columns, dtype = math.prod(info.shape[1:]), torch_dtype(info.dtype)
    step = min(rows, ROWS * -(-methods.BLOCK // (ROWS * columns)))
    tile = step if device else min(step, ROWS * max(1, TILE // (ROWS * columns)))
    there = device or torch.device("cpu")
    change, sum_ = _Change(target, delta, there), torch.empty(tile, columns, dtype=torch.float64, device=there)
    rounder = None if device else Rounder(step * columns, tile * columns, dtype)
    differ = np.empty((step, columns), dtype=bool)
    # No entry of Δ is larger than its Frobenius norm: blocks far from the dtype's end need no look for overflow.
    limit = 0.999 * torch.finfo(dtype).max - (delta.norm if change.known else math.inf)
    with RowReader(info, step) as reader:
        for first in range(0, rows, step):
            last = min(first + step, rows)
            read = reader.read(first, last)
            old, square = read.view(last - first, columns), 0.0
            for at in range(0, last - first, tile):
                was = old[at : at + tile].to(there)
                x = sum_[: was.shape[0]].copy_(was)
                flat = x.view(-1)
                square += float(torch.dot(flat, flat))
                change.add_to(x, first + at)
                if rounder:
                    rounder.put(flat, at * columns)
                if sums is not None and not change.known:
                    sums.change += float((x - was.double()).square().sum())
            if not math.isfinite(square):  # no finite fp32 has a square near fp64's limit
                raise MergeError(f"{info.file}: {info.name} holds NaN or infinity; the base is damaged")
            new = (rounder.block(old.numel()) if rounder else nearest(flat, dtype).cpu()).view(old.shape)
            safe = math.sqrt(square) <= limit
            if not safe and not all(math.isfinite(float(extreme)) for extreme in torch.aminmax(new)):
                raise MergeError(
                    f"{info.name}: the merged weight overflows {info.dtype}; lower the adapters' weights or convert "
                    "the base to BF16 or F32 first"
                )
            if sums is not None:
                sums.square += square
                sums.changed += int(np.count_nonzero(np.not_equal(bits(old), bits(new), out=differ[: last - first])))
            yield first, last, new.view(read.shape)
