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
from .rounding import Rounder, bits

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


def _dora(target: Target) -> list[tuple[float, Tensor, Tensor, Tensor]]:
    """(weight, magnitude (N, 1), b, a) of the parts that rescale rows."""
    return [
        (part.weight, read_tensor(part.factors.magnitude).double()[:, None], *part.read())
        for part in target.parts if part.factors.magnitude is not None
    ]


def fold(
    target: Target, delta: Delta | EntrywiseDelta | None, sums: Sums | None = None
) -> Iterator[tuple[int, int, Tensor]]:
    """(first row, one past the last, the merged rows in the base's dtype), block by block; a block lasts until the
    next is asked for. delta: the sum of the parts; None where there are none or where DoRA rescales rows:

        W' = W + Σ w (diag(m / ‖W + Δᵢ‖_row) (W + Δᵢ) − W)

    MergeError when the base holds NaN or infinity, or a sum overflows the dtype.
    """
    info, rows = target.info, target.info.shape[0]
    columns, dtype = math.prod(info.shape[1:]), torch_dtype(info.dtype)
    # Products of so many rows at a time run at the full speed of the vector units.
    step = min(rows, ROWS * -(-methods.BLOCK // (ROWS * columns)))
    sum_, round_ = torch.empty(step, columns, dtype=torch.float64), Rounder(step * columns, dtype)
    differ = np.empty((step, columns), dtype=bool)
    dora = _dora(target) if target.rescaled else []
    plain = [(part.weight, *part.read()) for part in target.parts
             if dora and part.factors.magnitude is None]
    # 1 − Σ w is exactly 0 where one tensor replaces the base's, which is then copied to the bit.
    rest = 1.0 - sum(whole.weight for whole in target.wholes if whole.replaces)
    # No entry of Δ is larger than its Frobenius norm: blocks far from the dtype's end need no look for overflow.
    limit = 0.999 * torch.finfo(dtype).max
    limit -= delta.norm if isinstance(delta, Delta) and not target.wholes else math.inf
    with RowReader(info, step) as reader:
        for first in range(0, rows, step):
            last = min(first + step, rows)
            read = reader.read(first, last)
            old = read.view(last - first, columns)
            x = sum_[: last - first].copy_(old)
            square = float(torch.dot(x.view(-1), x.view(-1)))
            if not math.isfinite(square):  # no finite fp32 has a square near fp64's limit
                raise MergeError(f"{info.file}: {info.name} holds NaN or infinity; the base is damaged")
            before = x.clone() if target.wholes or dora else None
            if target.wholes:
                x *= rest
                for whole in target.wholes:
                    x.add_(read_rows(whole.info, first, last).double().view(x.shape), alpha=whole.weight)
            for weight, magnitude, b, a in dora:
                y = torch.addmm(before, b[first:last], a)
                y *= magnitude[first:last] / torch.linalg.vector_norm(y, dim=1, keepdim=True)
                x.add_(y.sub_(before), alpha=weight)
            for weight, b, a in plain:
                x.addmm_(b[first:last], a, alpha=weight)
            if delta is not None:
                delta.add_to(x, first)
            if sums is not None and (before is not None or isinstance(delta, EntrywiseDelta)):
                change = x - (before if before is not None else old.double())
                sums.change += float(change.square().sum())
            new = round_(x.view(-1)).view(old.shape)
            if math.sqrt(square) > limit and not all(math.isfinite(float(extreme)) for extreme in torch.aminmax(new)):
                raise MergeError(
                    f"{info.name}: the merged weight overflows {info.dtype}; lower the adapters' weights or convert "
                    "the base to BF16 or F32 first"
                )
            if sums is not None:
                sums.square += square
                sums.changed += int(np.count_nonzero(np.not_equal(bits(old), bits(new), out=differ[: last - first])))
            yield first, last, new.view(read.shape)
