"""One weight of the base with its change folded in: streamed in row blocks, summed in fp64, rounded once."""

from __future__ import annotations

import dataclasses
import functools
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
"""A row block's rows are a multiple of this."""


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
        last, before = first + len(x), x.clone() if self._wholes or self._dora else x
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
    # Products of so many rows at a time run at the full speed of the vector units.
    step = min(rows, ROWS * -(-methods.BLOCK // (ROWS * columns)))
    there = device or torch.device("cpu")
    change, sum_ = _Change(target, delta, there), torch.empty(step, columns, dtype=torch.float64, device=there)
    round_ = functools.partial(nearest, dtype=dtype) if device else Rounder(step * columns, dtype)
    differ = np.empty((step, columns), dtype=bool)
    # No entry of Δ is larger than its Frobenius norm: blocks far from the dtype's end need no look for overflow.
    limit = 0.999 * torch.finfo(dtype).max - (delta.norm if change.known else math.inf)
    with RowReader(info, step) as reader:
        for first in range(0, rows, step):
            last = min(first + step, rows)
            read = reader.read(first, last)
            old = read.view(last - first, columns)
            x = sum_[: last - first].copy_(old.to(there))
            square = float(torch.dot(x.view(-1), x.view(-1)))
            if not math.isfinite(square):  # no finite fp32 has a square near fp64's limit
                raise MergeError(f"{info.file}: {info.name} holds NaN or infinity; the base is damaged")
            change.add_to(x, first)
            new = round_(x.view(-1)).view(old.shape).cpu()
            safe = math.sqrt(square) <= limit
            if not safe and not all(math.isfinite(float(extreme)) for extreme in torch.aminmax(new)):
                raise MergeError(
                    f"{info.name}: the merged weight overflows {info.dtype}; lower the adapters' weights or convert "
                    "the base to BF16 or F32 first"
                )
            if sums is not None:
                sums.square += square
                if not change.known:
                    sums.change += float((x - old.to(there).double()).square().sum())
                sums.changed += int(np.count_nonzero(np.not_equal(bits(old), bits(new), out=differ[: last - first])))
            yield first, last, new.view(read.shape)
