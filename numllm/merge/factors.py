"""What adapters do to one weight, in factored form: stacking, decomposing and comparing B A products in fp64."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from numllm_kernels import processor

from ..adapter import FactorInfo, LoRAFactors
from ..checkpoint import TensorInfo
from ..errors import MergeError

BEYOND = 1e70
"""What ‖weight · B‖ ‖A‖ stays below: no dtype holds such a change, and fp64 the squares of what is made of it."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One adapter's share of a change: weight · scale · (B A − B₀ A₀)."""

    adapter: int
    """Index of the adapter."""
    factors: FactorInfo
    weight: float
    start: FactorInfo | None = None
    """B₀ A₀, where the adapter's start was taken off the base's weight."""

    @property
    def rank(self) -> int:
        """Columns it adds to B̂."""
        return self.factors.rank + (self.start.rank if self.start else 0)

    @property
    def files(self) -> tuple[TensorInfo, ...]:
        """Where its tensors lie."""
        infos = [self.factors.a, self.factors.b, self.factors.magnitude]
        if self.start:
            infos += [self.start.a, self.start.b]
        return tuple(info for info in infos if info is not None)

    def read(self) -> tuple[Tensor, Tensor]:
        """b (N, r), a (r, K), fp64, of scale · (B A − B₀ A₀), the weight left out. MergeError where they overflow."""
        return read_stacked([self])

    def check(self, factors: LoRAFactors) -> None:
        """MergeError where the product is BEYOND; numbers of fp32 and less are far from the end of fp64."""
        if factors.b.dtype != torch.float64 and abs(self.weight * factors.scale) < 1e50:
            return
        size = abs(self.weight * factors.scale)
        for x in (factors.b, factors.a):
            size *= float(torch.linalg.vector_norm(x.double()))
        if not size < BEYOND:
            raise MergeError(
                f"{self.factors.b.file}: {self.factors.b.name} and its A are too large, their product has the size "
                f"{size:.0e}; the adapter is damaged"
            )


def read_stacked(parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
    """[b₁ b₂ …] (N, R) and [a₁; a₂; …] (R, K) of what `Part.read` gives of each, in memory of their own. MergeError."""
    read: list[tuple[LoRAFactors, float]] = []
    for part in parts:
        mine = [(part.factors.read(), 1.0)]
        if part.start:
            mine.append((part.start.read(), -1.0))
        for factors, _ in mine:
            part.check(factors)
        read += mine
    ranks = [len(factors.a) for factors, _ in read]
    b = torch.empty(len(read[0][0].b), sum(ranks), dtype=torch.float64)
    a = torch.empty(sum(ranks), read[0][0].a.shape[1], dtype=torch.float64)
    for (factors, sign), b_part, a_part in zip(read, b.split(ranks, dim=1), a.split(ranks), strict=True):
        b_part.copy_(factors.b)
        if sign * factors.scale != 1:
            b_part.mul_(sign * factors.scale)
        a_part.copy_(factors.a)
    return b, a


@dataclasses.dataclass(frozen=True)
class Whole:
    """A tensor that replaces the base's with a weight, or is added to it with one."""

    adapter: int
    info: TensorInfo
    weight: float
    replaces: bool


@dataclasses.dataclass(frozen=True)
class Target:
    """A weight of the base that changes: W + Σ weight · scale · B A over its parts, + Σ weight · (X − W) over the
    tensors that replace it, + Σ weight · X over those that are added.
    """

    info: TensorInfo
    parts: tuple[Part, ...] = ()
    wholes: tuple[Whole, ...] = ()

    @property
    def module(self) -> str:
        """Name of the linear."""
        return self.info.name.removesuffix(".weight")

    @property
    def total_rank(self) -> int:
        """R, the sum of the adapters' ranks."""
        return sum(part.rank for part in self.parts)

    @property
    def full_rank(self) -> int:
        """The largest rank Δ can have."""
        return min(self.total_rank, *self.info.shape)

    @property
    def adapters(self) -> list[int]:
        """Indexes of the adapters that change it."""
        return sorted({each.adapter for each in (*self.parts, *self.wholes)})

    @property
    def rescaled(self) -> bool:
        """Whether DoRA also rescales the weight's own rows."""
        return any(part.factors.magnitude for part in self.parts)


class Product:
    """b a, b (N, R), a (R, K), fp64, by b = Q_b R_b and aᵀ = Q_a R_a: O((N + K) R²) work, done once.

    The triangles hold all but directions: b a and R_b R_aᵀ have the same singular values, and any columns of b and
    rows of a the same inner products and angles as those columns of R_b and R_a. vectors: whether the Q are made.
    """

    def __init__(self, b: Tensor, a: Tensor, *, vectors: bool) -> None:
        self.b, self.a = b, a
        if vectors:
            (*self._q_b, self.r_b), (*self._q_a, self.r_a) = _decomposed(b), _decomposed(a.T)
        else:
            self.r_b, self.r_a = _triangle(b), _triangle(a.T)

    @functools.cached_property
    def singular(self) -> Tensor:
        """All min(N, R, K) singular values, falling."""
        return torch.linalg.svdvals(self.r_b @ self.r_a.T)

    def split(self, ranks: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """b and a in parts of so many columns and rows, each multiplied by Q_bᵀ and Q_a: as `compare` wants them."""
        ends = list(itertools.accumulate(ranks))
        return [(self.r_b[:, end - rank : end], self.r_a[:, end - rank : end].T)
                for rank, end in zip(ranks, ends, strict=True)]

    def svd(self, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """U (N, k), σ (all), Vᵀ (k, K), k = rank or all of them. Signs are fixed: the entry of largest size in each
        column of U is positive.
        """
        u, singular, v = torch.linalg.svd(self.r_b @ self.r_a.T, full_matrices=False)
        (q_b, turn_b), (q_a, turn_a) = self._q_b, self._q_a
        u, v = q_b @ (turn_b @ u[:, :rank]), (v[:rank] @ turn_a.T) @ q_a.T
        signs = torch.where(u.amax(dim=0) >= -u.amin(dim=0), 1.0, -1.0).to(u.dtype)
        return u.mul_(signs), singular, v.mul_(signs[:, None])


def _triangle(x: Tensor) -> Tensor:
    """R of x = Q R."""
    found = processor.triangle(x)
    return torch.linalg.qr(x, "r")[1] if found is None else found


def _decomposed(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y (n, r), t (r, r), R (r, r) of x = (y t) R, y t of orthonormal columns.

    By two Cholesky factors where x lets them: y = x R₁⁻¹ is orthonormal to κ(x)² 2⁻⁵², and y R₂⁻¹ to 2⁻⁵² (Yamamoto and
    others, Roundoff error analysis of the CholeskyQR2 algorithm, 2015).
    """
    first = processor.triangle(x)
    if first is not None:
        one = torch.eye(len(first), dtype=torch.float64)
        y = x @ torch.linalg.solve_triangular(first, one, upper=True)
        second = processor.triangle(y)
        if second is not None:
            return y, torch.linalg.solve_triangular(second, one, upper=True), second @ first
    q, r = torch.linalg.qr(x)
    return q, torch.eye(len(r), dtype=torch.float64), r


def decompose(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (N, r), σ (r,) falling, Vᵀ (r, K) of b a, for b (N, R) and a (R, K), r = min(N, R, K), in fp64."""
    return Product(b, a, vectors=True).svd()


Parts = Mapping[str, tuple[Tensor, Tensor]]
"""Adapter → (b (N, r), a (r, K)) of its change of one weight, its weight included."""

Comparison = tuple[dict[str, float | None], dict[str, dict[str, list]]]
"""Pair of adapters → the cosine of their changes; pair → {"output": …, "input": …}, cosines of principal angles."""


def compare(parts: Parts) -> Comparison:
    """How adapters' changes of a weight lie to each other.

    cosines: pair → ⟨Δᵢ, Δⱼ⟩ / (‖Δᵢ‖ ‖Δⱼ‖), None where one is zero. angles: pair → {"output": …, "input": …}, the
    cosines of the principal angles between the column spaces of the B (what they write) and the row spaces of
    the A (what they read), falling: 1 is a shared direction, 0 an orthogonal one.
    """
    return compare_all([parts])[0]


def compare_all(weights: Sequence[Parts]) -> list[Comparison]:
    """`compare` of each. Those of equal sizes go together: the matrices are so small that calls are all they cost."""
    found: list[Comparison] = [({}, {}) for _ in weights]
    groups: dict[tuple, list[int]] = {}
    for place, parts in enumerate(weights):
        if len(parts) > 1:
            groups.setdefault(tuple((name, b.shape, a.shape) for name, (b, a) in parts.items()), []).append(place)
    for places in groups.values():
        names = list(weights[places[0]])
        b = [torch.stack([weights[place][name][0] for place in places]) for name in names]
        a = [torch.stack([weights[place][name][1].T for place in places]) for name in names]
        bases = {"output": [_basis(x) for x in b], "input": [_basis(x) for x in a]}

        def inner(i: int, j: int, b: list[Tensor] = b, a: list[Tensor] = a) -> list[float]:
            # ⟨BᵢAᵢ, BⱼAⱼ⟩ = Σ (BᵢᵀBⱼ) ∘ (AᵢAⱼᵀ): nothing of size N × K is made.
            return ((b[i].mT @ b[j]) * (a[i].mT @ a[j])).sum((1, 2)).tolist()

        squares = [inner(i, i) for i in range(len(names))]
        for i, j in itertools.combinations(range(len(names)), 2):
            pair = f"{names[i]} · {names[j]}"
            for place, product, *both in zip(places, inner(i, j), squares[i], squares[j], strict=True):
                size = math.sqrt(math.prod(max(square, 0.0) for square in both))
                found[place][0][pair] = max(-1.0, min(1.0, product / size)) if size else None
                found[place][1][pair] = {}
            for side, ((u, ranks), (v, others)) in ((side, (each[i], each[j])) for side, each in bases.items()):
                values = torch.linalg.svdvals(u.mT @ v).clamp_max_(1.0).tolist()
                for place, cosines, rank, other in zip(places, values, ranks, others, strict=True):
                    found[place][1][pair][side] = cosines[: min(rank, other)]
    return found


def _basis(x: Tensor) -> tuple[Tensor, list[int]]:
    """Orthonormal bases (G, n, r) of the columns of matrices (G, n, r), zeros after them; how many columns each has."""
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    within = s > s[:, :1] * 1e-12 * max(x.shape[1:])
    return u * within[:, None], within.sum(dim=1).tolist()
