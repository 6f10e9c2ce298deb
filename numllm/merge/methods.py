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
the Δᵢ, made row block by row block: see `entrywise`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checkpoint import row_blocks
from ..errors import MergeError
from .entrywise import EntrywiseDelta, elect
from .factors import Parts, Product, Target, read_stacked
from .options import ENTRYWISE, Options
from .selection import smallest_kept

BLOCK = 1 << 19
"""Elements of a row block: few calls a weight, so that threads seldom wait for the interpreter, and copies in fp64 and
fp32 that fit the last cache."""


@dataclasses.dataclass(frozen=True)
class Delta:
    """Δ = b a, b (N, k), a (k, K), fp64, and what is known of the whole sum."""

    b: Tensor
    a: Tensor
    singular: Tensor
    """All singular values before truncation, falling, fp64."""
    kept: int
    triangles: Parts
    """Of each adapter its columns of the R of B̂ and Âᵀ: small, and as good for comparing."""

    @property
    def energy(self) -> float:
        """Σ_{j≤k} σⱼ² / Σ σⱼ²; 1 where Δ is zero."""
        if self.kept == len(self.singular):
            return 1.0
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


def trim(value: Tensor, density: float) -> Tensor:
    """The ⌊density · n⌋ entries of largest size; the others 0."""
    count = int(density * value.numel())
    kept = torch.zeros(value.numel(), dtype=torch.bool)
    kept[value.abs().flatten().topk(count).indices] = True
    return value * kept.view(value.shape)


def delta_of(
    target: Target, names: Sequence[str], options: Options, *, largest: int = 1, balanced: bool = False
) -> Delta | EntrywiseDelta:
    """Δ of a weight's parts. names: the adapters'. largest: rank kept by svd where the options give none.

    balanced: as √σ on both factors, for an adapter of scale 1. Where all of the sum is kept and it need not be
    balanced, b and a are B̂ and  themselves, with no SVD between.
    """
    b, a = read_stacked(target.parts)
    ranks, weights = [part.rank for part in target.parts], [part.weight for part in target.parts]
    read = list(zip(b.split(ranks, dim=1), a.split(ranks), strict=True))
    kept, known = target.full_rank, options.energy is None and not options.noise
    if options.method == "svd" and known:
        kept = min(options.rank or largest, kept)
    columns = [weight for weight, rank in zip(weights, ranks, strict=True) for _ in range(rank)]
    vectors = balanced or kept < target.full_rank or not known
    weighted = torch.tensor(columns, dtype=torch.float64)
    # In place where the adapters' own B are not looked at.
    weighted = b.mul_(weighted) if options.method in ("exact", "svd") else b * weighted
    product = Product(weighted, a, vectors=vectors)
    split = product.split(ranks)
    triangles = {names[part.adapter]: pair for part, pair in zip(target.parts, split, strict=True)}
    if options.method in ENTRYWISE:
        thresholds = None
        if options.method == "ties":
            count = int(options.share * math.prod(target.info.shape))
            thresholds = tuple(smallest_kept(b, a, count) for b, a in read)
        draws = tuple(
            int.from_bytes(hashlib.sha256(
                f"{options.seed}\0{names[part.adapter]}\0{target.info.name}".encode()
            ).digest()[:16], "big") for part in target.parts
        )
        return EntrywiseDelta(tuple(read), tuple(weights), thresholds, options, draws, triangles)
    combine = {"linear": _peft_factors, "peft-ties": _peft_factors, "knots": _knots, "core": _core}
    if options.method in combine:
        product = Product(*combine[options.method](target, read, weights, options), vectors=balanced)
        kept = len(product.singular)
    if not known:
        kept = _enough(target, product.singular, options)
    if kept == len(product.singular) and not balanced:
        return Delta(product.b, product.a, product.singular, kept, triangles)
    u, singular, v = product.svd(kept)
    root = singular[:kept].sqrt() if balanced else singular[:kept]
    return Delta(u * root, v * root[:, None] if balanced else v, singular, kept, triangles)


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
    weighted = torch.stack([trim(value, density) * weight for value, weight in zip(values, weights, strict=True)])
    return elect(weighted, weights, divide=True)


def _knots(target: Target, read: Pairs, weights: list[float], options: Options) -> tuple[Tensor, Tensor]:
    # [Δ₁ … Δₙ] = B̂ blockdiag(Aᵢ) = Q_B (R_B blockdiag(R_Aᵢᵀ)) blockdiag(Q_Aᵢᵀ): only the R × R middle is decomposed.
    b = torch.cat([b for b, _ in read], dim=1)
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
