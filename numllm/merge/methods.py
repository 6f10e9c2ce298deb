"""Ways to make one change of a weight out of several adapters' changes.

| method | definition |
|---|---|
| exact | Σ wᵢ Δᵢ, Δᵢ = sᵢ Bᵢ Aᵢ |
| svd | the closest matrix of rank k to that |
| linear | PEFT's: (Σ √cᵢ Bᵢ)(Σ √cᵢ Aᵢ), cᵢ = wᵢ sᵢ; has cross terms Bᵢ Aⱼ, so it is lossy; for comparison |
| peft-ties | PEFT's "ties": trim each factor, elect signs from unweighted values, mean over those that agree |
| ties | mergekit's: trim each Δᵢ, elect signs from weighted values, Σ w Δ / Σ w over those that agree |
| dare | mergekit's "dare_linear": drop entries of Δᵢ at random, rescale by 1/density, Σ wᵢ Δᵢ |
| dare-ties | mergekit's "dare_ties": the same drop, then the sign election without the division |
| knots | KnOTS (arXiv 2410.19735): [Δ₁ … Δₙ] = U Σ [V₁ … Vₙ], ties on the Vᵢ, U Σ V |
| core | Core Space (arXiv 2509.17786): Δᵢ = U Mᵢ Vᵀ in shared bases of R columns, ties on the Mᵢ |

Everything is fp64. All but ties, dare and dare-ties stay in factored form; those three work on the entries of
the Δᵢ, made row block by row block.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import row_blocks
from ..errors import MergeError
from .factors import Product, Target, compare, stack

METHODS = ("svd", "exact", "linear", "ties", "dare", "dare-ties", "peft-ties", "knots", "core")
ENTRYWISE = ("ties", "dare", "dare-ties")
TRIMMED = ("ties", "dare", "dare-ties", "peft-ties", "knots", "core")
BLOCK = 1 << 19
"""Elements of a row block: few calls a weight, so that threads seldom wait for the interpreter, and copies in fp64 and
fp32 that fit the last cache."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to merge. MergeError when the settings do not go together."""

    method: str = "svd"
    rank: int | None = None
    """svd: directions kept; None: the largest rank among the adapters, unless energy or noise says otherwise."""
    energy: float | None = None
    """svd: keep the fewest directions with this share of Σσ²."""
    noise: bool = False
    """svd: keep directions until the rest is below what rounding to the weight's dtype does anyway."""
    density: float | None = None
    """Share of the entries kept by methods that trim; None: all in `peft-ties`, 0.5 in the others."""
    seed: int = 0
    """For the random choice of dare."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise MergeError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.rank is not None and (self.method != "svd" or self.rank < 1):
            raise MergeError(
                f"rank goes with method svd and is at least 1, got rank {self.rank} with method {self.method}"
            )
        if self.energy is not None and (self.method != "svd" or not 0 < self.energy <= 1):
            raise MergeError(
                f"energy goes with method svd and is in (0, 1], got {self.energy} with method {self.method}"
            )
        if self.noise and self.method != "svd":
            raise MergeError(f"rank auto goes with method svd, got method {self.method}")
        if (self.rank is not None) + (self.energy is not None) + self.noise > 1:
            raise MergeError("rank, energy and rank auto exclude each other; give one")
        if self.density is not None and (self.method not in TRIMMED or not 0 < self.density <= 1):
            raise MergeError(
                f"density goes with {', '.join(TRIMMED)} and is in (0, 1], got {self.density} with {self.method}"
            )

    @property
    def share(self) -> float:
        """The density in force."""
        return 0.5 if self.density is None else self.density


@dataclasses.dataclass(frozen=True)
class Delta:
    """Δ = b a, b (N, k), a (k, K), fp64, and what is known of the whole sum."""

    b: Tensor
    a: Tensor
    singular: Tensor
    """All singular values before truncation, falling, fp64."""
    kept: int
    cosines: dict[str, float | None]
    angles: dict[str, dict[str, list]]

    @property
    def energy(self) -> float:
        """Σ_{j≤k} σⱼ² / Σ σⱼ²; 1 where Δ is zero."""
        total = float(self.singular.square().sum())
        return float(self.singular[: self.kept].square().sum()) / total if total else 1.0

    @property
    def norm(self) -> float:
        """‖Δₖ‖_F."""
        return float(torch.linalg.vector_norm(self.singular[: self.kept]))

    @property
    def gap(self) -> float | None:
        """(σₖ − σₖ₊₁) / σₖ where something is cut: near 0 the directions kept are a matter of chance."""
        if not 0 < self.kept < len(self.singular) or not self.singular[self.kept - 1]:
            return None
        last, first = self.singular[self.kept - 1 : self.kept + 1].tolist()
        return (last - first) / last

    def to(self, device: torch.device) -> Delta:
        """With its factors on a device."""
        return dataclasses.replace(self, b=self.b.to(device), a=self.a.to(device))

    def add_to(self, x: Tensor, first: int) -> None:
        """Adds rows first.. of Δ to x (rows, K) in place."""
        x.addmm_(self.b[first : first + len(x)], self.a)


_ROUNDED = 1 - 2.0**-40
"""What rounding may take of an entry: a GPU sums in another order, and the smallest that is kept must be kept there."""


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
    cosines: dict[str, float | None]
    angles: dict[str, dict[str, list]]

    def to(self, device: torch.device) -> EntrywiseDelta:
        """With its factors on a device."""
        return dataclasses.replace(self, parts=tuple((b.to(device), a.to(device)) for b, a in self.parts))

    def add_to(self, x: Tensor, first: int) -> None:
        """Adds rows first.. of Δ to x (rows, K) in place."""
        made = []
        for index, (b, a) in enumerate(self.parts):
            value = b[first : first + len(x)] @ a
            if self.thresholds is not None:
                value = torch.where(value.abs() >= self.thresholds[index] * _ROUNDED, value, 0.0)
            else:
                value = value * (self._kept(index, first, value.shape).to(x.device) / self.options.share)
            made.append(value)
        values, weights = torch.stack(made), torch.tensor(self.weights, dtype=torch.float64, device=x.device)
        if self.options.method == "dare":
            x += torch.tensordot(weights, values, dims=1)
        else:
            x += elect(values, weights, divide=self.options.method == "ties")

    def _kept(self, index: int, first: int, shape: torch.Size) -> Tensor:
        # A stream of its own for every row: what is drawn depends on neither blocks nor threads.
        rows = [
            np.random.Generator(np.random.Philox(key=self.draws[index], counter=[0, 0, row, 0])).random(shape[1])
            for row in range(first, first + shape[0])
        ]
        return torch.from_numpy(np.stack(rows) < self.options.share)


def elect(values: Tensor, weights: Tensor, *, divide: bool) -> Tensor:
    """Sign election of mergekit: values (n, …), weights (n,) → (…).

    Entries whose weighted sign is that of Σ wᵢ vᵢ are summed with their weights and divided by the sum of these.
    """
    weights = weights.view(-1, *[1] * (values.dim() - 1))
    weighted = values * weights
    mask = weighted.sign() == torch.where(weighted.sum(dim=0) >= 0, 1.0, -1.0)
    mixed = (weighted * mask).sum(dim=0)
    if not divide:
        return mixed
    divisor = (weights * mask).sum(dim=0)
    return mixed / torch.where(divisor == 0, 1.0, divisor)


def trim(value: Tensor, density: float) -> Tensor:
    """The ⌊density · n⌋ entries of largest size; the others 0."""
    count = int(density * value.numel())
    kept = torch.zeros(value.numel(), dtype=torch.bool)
    kept[value.abs().flatten().topk(count).indices] = True
    return value * kept.view(value.shape)


def smallest_kept(blocks: Callable[[], Iterator[Tensor]], count: int) -> float:
    """The count-th largest |entry| of a matrix that comes in fp64 blocks, which are made three times.

    The bits of non-negative fp64 numbers rise with the numbers: the first two passes find the 32 leading bits of
    the one that is sought, the third collects the few entries that have them. ∞ for count 0.
    """
    if count < 1:
        return math.inf
    above, prefix = 0, 0
    for shift in (47, 31):
        histogram = np.zeros(1 << 16, dtype=np.int64)
        for block in blocks():
            bits = block.abs().numpy().ravel().view(np.int64) >> shift
            if shift == 31:
                bits = bits[bits >> 16 == prefix] & 0xFFFF
            histogram += np.bincount(bits, minlength=1 << 16)
        larger = np.cumsum(histogram[::-1])
        place = int(np.searchsorted(larger, count - above))
        above += int(larger[place - 1]) if place else 0
        prefix = prefix << 16 | (1 << 16) - 1 - place
    found = []
    for block in blocks():
        values = block.abs().numpy().ravel()
        found.append(values[values.view(np.int64) >> 31 == prefix])
    candidates = np.concatenate(found)
    place = len(candidates) - (count - above)
    return float(np.partition(candidates, place)[place])


def delta_of(
    target: Target, names: Sequence[str], options: Options, *, largest: int = 1, balanced: bool = False
) -> Delta | EntrywiseDelta:
    """Δ of a weight's parts. names: the adapters'. largest: rank kept by svd where the options give none.

    balanced: as √σ on both factors, for an adapter of scale 1. Where all of the sum is kept and it need not be
    balanced, b and a are B̂ and  themselves, with no SVD between.
    """
    read = [part.read() for part in target.parts]
    weights = [part.weight for part in target.parts]
    kept, known = target.full_rank, options.energy is None and not options.noise
    if options.method == "svd" and known:
        kept = min(options.rank or largest, kept)
    product = Product(*stack(read, weights), vectors=balanced or kept < target.full_rank or not known)
    split = product.split([len(a) for _, a in read])
    cosines, angles = compare({names[part.adapter]: pair for part, pair in zip(target.parts, split, strict=True)})
    if options.method in ENTRYWISE:
        thresholds = None
        if options.method == "ties":
            count = int(options.share * math.prod(target.info.shape))
            thresholds = tuple(smallest_kept(lambda b=b, a=a: _rows(b, a), count) for b, a in read)
        draws = tuple(
            int.from_bytes(hashlib.sha256(
                f"{options.seed}\0{names[part.adapter]}\0{target.info.name}".encode()
            ).digest()[:16], "big") for part in target.parts
        )
        return EntrywiseDelta(tuple(read), tuple(weights), thresholds, options, draws, cosines, angles)
    combine = {"linear": _peft_factors, "peft-ties": _peft_factors, "knots": _knots, "core": _core}
    if options.method in combine:
        product = Product(*combine[options.method](target, read, weights, options), vectors=balanced)
        kept = len(product.singular)
    if not known:
        kept = _enough(target, product.singular, options)
    if kept == len(product.singular) and not balanced:
        return Delta(product.b, product.a, product.singular, kept, cosines, angles)
    u, singular, v = product.svd(kept)
    root = singular[:kept].sqrt() if balanced else singular[:kept]
    return Delta(u * root, v * root[:, None] if balanced else v, singular, kept, cosines, angles)


def _rows(b: Tensor, a: Tensor) -> Iterator[Tensor]:
    step = max(1, BLOCK // a.shape[1])
    for first in range(0, len(b), step):
        yield b[first : first + step] @ a


def _enough(target: Target, singular: Tensor, options: Options) -> int:
    """The fewest directions whose tail Σ_{j>k} σⱼ² is small enough, at least 1."""
    tails = torch.cat([singular.square().flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])
    bound = rounding_noise(target) if options.noise else (1 - (options.energy or 1.0)) * float(tails[0])
    return max(1, int((tails > bound).sum()))


def rounding_noise(target: Target) -> float:
    """Σ ulp(Wᵢⱼ)² / 12: the squared error that rounding to the dtype makes on average."""
    digits, smallest = {"F32": (24, -126), "F16": (11, -14), "BF16": (8, -126)}[target.info.dtype]
    total = 0.0
    for block in row_blocks(target.info):
        exponents = torch.frexp(block.double()).exponent.masked_fill_(block == 0, smallest + 1)
        total += float(torch.exp2(2.0 * (exponents.clamp_min_(smallest + 1) - digits).double()).sum())
    return total / 12


Pairs = list[tuple[Tensor, Tensor]]


def _peft_factors(target: Target, read: Pairs, weights: list[float], options: Options) -> tuple[Tensor, Tensor]:
    """PEFT's "linear" and "ties", on A and on B. The sign of cᵢ goes to A."""
    ranks = {len(a) for _, a in read}
    if len(ranks) > 1:
        raise MergeError(
            f"{target.info.name}: method {options.method} adds up factors, so the adapters must have one rank, got "
            f"{', '.join(map(str, sorted(ranks)))}; use svd"
        )
    scales = [part.factors.scale for part in target.parts]
    roots = torch.tensor(
        [math.sqrt(abs(weight * scale)) for weight, scale in zip(weights, scales, strict=True)], dtype=torch.float64
    )
    signs = torch.tensor([math.copysign(1, w * s) for w, s in zip(weights, scales, strict=True)], dtype=torch.float64)
    b = torch.stack([b / scale for (b, _), scale in zip(read, scales, strict=True)])
    a = torch.stack([a for _, a in read])

    def mix(values: Tensor, roots: Tensor) -> Tensor:
        roots = roots[:, None, None]
        if options.method == "linear":
            return (values * roots).sum(dim=0)
        if options.density is not None and options.density < 1:
            values = torch.stack([trim(value, options.density) for value in values])
        mask = values.sign() == torch.where(values.sum(dim=0) >= 0, 1.0, -1.0)
        return (values * roots * mask).sum(dim=0) / mask.sum(dim=0).clamp_min(1)

    return mix(b, roots), mix(a, roots * signs)


def _trimmed_election(values: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    return elect(
        torch.stack([trim(value, density) for value in values]), torch.tensor(weights, dtype=torch.float64), divide=True
    )


def _knots(target: Target, read: Pairs, weights: list[float], options: Options) -> tuple[Tensor, Tensor]:
    # [Δ₁ … Δₙ] = B̂ blockdiag(Aᵢ) = Q_B (R_B blockdiag(R_Aᵢᵀ)) blockdiag(Q_Aᵢᵀ): only the R × R middle is decomposed.
    b, _ = stack(read, [1.0] * len(read))
    q_b, r_b = torch.linalg.qr(b)
    bases = [torch.linalg.qr(a.T) for _, a in read]
    u, singular, v = torch.linalg.svd(r_b @ torch.block_diag(*[r.T for _, r in bases]), full_matrices=False)
    pieces = v.split([q.shape[1] for q, _ in bases], dim=1)
    shares = [piece @ q.T for piece, (q, _) in zip(pieces, bases, strict=True)]
    return q_b @ (u * singular), _trimmed_election(shares, weights, options.share)


def _core(target: Target, read: Pairs, weights: list[float], options: Options) -> tuple[Tensor, Tensor]:
    left = torch.linalg.svd(torch.cat([b for b, _ in read], dim=1), full_matrices=False).U
    right = torch.linalg.svd(torch.cat([a for _, a in read]), full_matrices=False).Vh
    cores = [(left.T @ b) @ (a @ right.T) for b, a in read]
    return left @ _trimmed_election(cores, weights, options.share), right
