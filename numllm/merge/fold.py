"""One weight of the base with its change folded in: streamed in row blocks, summed in fp64, rounded once."""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from numllm_kernels import processor

from ..checkpoint import RowReader, read_rows, read_tensor, torch_dtype
from ..errors import MergeError
from . import methods
from .factors import Target
from .methods import Delta, EntrywiseDelta
from .rounding import Rounder, bits, nearest

ROWS = processor.ALIGNED
"""A row block's rows are a multiple of this: products of so many run at the full speed of the vector units."""

COMPILED = 1 << 20
"""Elements of a row block that is made in one call, which goes through its memory once."""


@dataclasses.dataclass
class Sums:
    """What the row blocks of one weight add up to."""

    square: float = 0.0
    """‖W‖²_F."""
    change: float = 0.0
    """‖W' − W‖²_F before rounding, where Δ alone does not say it."""
    changed: int = 0
    """Elements whose bits differ from the base's."""

    def add(self, other: Sums) -> None:
        """Adds another block's."""
        self.square += other.square
        self.change += other.change
        self.changed += other.changed


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


class _Memory(threading.local):
    """A thread's memory for row blocks, used again for every weight: new pages cost as much as reading does."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def __call__(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """(rows, columns) of a dtype; until the next of that name is asked for."""
        size = rows * columns * dtype.itemsize
        if name not in self._held or len(self._held[name]) < size:
            self._held[name] = torch.empty(size, dtype=torch.uint8)
        return self._held[name][:size].view(dtype).view(rows, columns)


_MEMORY = _Memory()


class _Torch:
    """Row blocks by torch's calls, for every kind of change and on every device."""

    def __init__(self, target: Target, delta: Delta | EntrywiseDelta | None, device: torch.device | None) -> None:
        columns, dtype = math.prod(target.info.shape[1:]), torch_dtype(target.info.dtype)
        self._device = device or torch.device("cpu")
        self._change = _Change(target, delta, self._device)
        self.step = step = min(target.info.shape[0], ROWS * -(-methods.BLOCK // (ROWS * columns)))
        self._sum = torch.empty(step, columns, dtype=torch.float64, device=self._device)
        self._round = functools.partial(nearest, dtype=dtype) if device else Rounder(step * columns, dtype)
        self._differ = np.empty((step, columns), dtype=bool)
        # No entry of Δ is larger than its Frobenius norm: blocks far from the dtype's end need no look for overflow.
        self._limit = 0.999 * torch.finfo(dtype).max - (delta.norm if self._change.known else math.inf)

    def __call__(self, old: Tensor, first: int) -> tuple[Tensor, Sums, bool, bool]:
        there = old.to(self._device)
        x = self._sum[: len(old)].copy_(there)
        sums = Sums(float(torch.dot(x.view(-1), x.view(-1))))
        if not math.isfinite(sums.square):  # no finite fp32 has a square near fp64's limit
            return old, sums, False, False
        self._change.add_to(x, first)
        new = self._round(x.view(-1)).view(old.shape).cpu()
        finite = math.sqrt(sums.square) <= self._limit or all(
            math.isfinite(float(extreme)) for extreme in torch.aminmax(new)
        )
        if not self._change.known:
            difference = x.sub_(there).view(-1)
            sums.change = float(torch.dot(difference, difference))
        sums.changed = int(np.count_nonzero(np.not_equal(bits(old), bits(new), out=self._differ[: len(old)])))
        return new, sums, True, finite


class _Compiled:
    """Row blocks of W + B A and nothing else, each in one call."""

    def __init__(self, target: Target, delta: Delta) -> None:
        self._fold, (rows, columns) = processor.Fold(delta.b, delta.a), target.info.shape
        self.step = min(rows, ROWS * -(-COMPILED // (ROWS * columns)))

    def __call__(self, old: Tensor, first: int) -> tuple[Tensor, Sums, bool, bool]:
        new = _MEMORY("new", *old.shape, old.dtype)
        square, changed, sound, finite = self._fold(old, new, first)
        return new, Sums(square, changed=changed), sound, finite


def fold(
    target: Target, delta: Delta | EntrywiseDelta | None, sums: Sums | None = None, device: torch.device | None = None
) -> Iterator[tuple[int, int, Tensor]]:
    """(first row, one past the last, the merged rows in the base's dtype), block by block; a block lasts until the
    thread asks for another. delta: the sum of the parts; None where there are none or where DoRA rescales rows:

        W' = W + Σ w (diag(m / ‖W + Δᵢ‖_row) (W + Δᵢ) − W)

    device: where the arithmetic is done; None: here, compiled where it can be. MergeError when the base holds NaN or
    infinity, or a sum overflows the dtype.
    """
    info, (rows, *rest) = target.info, target.info.shape
    if isinstance(delta, Delta) and not target.wholes and device is None and processor.library():
        block: _Compiled | _Torch = _Compiled(target, delta)
    else:
        block = _Torch(target, delta, device)
    with RowReader(info) as reader:
        for first in range(0, rows, block.step):
            last = min(first + block.step, rows)
            old = reader.read_into(_MEMORY("old", last - first, math.prod(rest), torch_dtype(info.dtype)), first)
            new, found, sound, finite = block(old, first)
            if not sound:
                raise MergeError(f"{info.file}: {info.name} holds NaN or infinity; the base is damaged")
            if not finite:
                raise MergeError(
                    f"{info.name}: the merged weight overflows {info.dtype}; lower the adapters' weights or convert "
                    "the base to BF16 or F32 first"
                )
            if sums is not None:
                sums.add(found)
            yield first, last, new.view(last - first, *rest)
