"""A LoRA adapter out of two full checkpoints: the closest change of rank r to W_tuned − W_base."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapter import write_adapter
from ..checkpoint import Checkpoint, TensorInfo, read_tensor, row_blocks
from ..errors import MergeError
from ..files import Progress, new_folder, no_progress, place_of, write_json
from .plan import REPORT
from .stage import locked

HEADS = ("embed_tokens", "lm_head", "wte", "wpe", "tok_embeddings", "output")
"""Last names of modules that are matrices and no linears of a block."""


def low_rank(delta: Tensor, rank: int, energy: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(b (N, k), a (k, K), σ): the closest b a to delta (N, K), fp64, √σ on both; k ≤ rank.

    energy: the fewest k with this share of Σσ². There are no factors to start from, but the square matrix of the
    shorter side holds all of σ and one side of the singular vectors, so no N × K matrix is decomposed:
    Δᵀ Δ = V Σ² Vᵀ, U Σ = Δ V. σ is exact to about 1e-8 of the largest.
    """
    tall = delta.shape[0] >= delta.shape[1]
    x = delta if tall else delta.T
    squares, v = torch.linalg.eigh(x.T @ x)
    squares, v = squares.flip(0).clamp_min(0), v.flip(1)
    noise = float(squares[0]) * 1e-15 * max(delta.shape)
    count = min(rank, int((squares > noise).sum()))
    if energy is not None and count:
        total = float(squares.sum())
        reached = squares[:count].cumsum(0) >= energy * total
        count = int(reached.int().argmax()) + 1 if bool(reached.any()) else count
    v = v[:, :count]
    u = x @ v  # U Σ
    singular = torch.linalg.vector_norm(u, dim=0)
    sign = torch.where(u.amax(dim=0) >= -u.amin(dim=0), 1.0, -1.0).to(u.dtype) if count else singular
    root = singular.sqrt()
    left, right = u / root * sign, (v * root * sign).T
    b, a = (left, right) if tall else (right.T, left.T)
    return b, a, squares.sqrt()


@dataclasses.dataclass(frozen=True)
class _Difference:
    """Two checkpoints compared: what can be a LoRA, and what differs beside it."""

    linears: dict[str, tuple[TensorInfo, TensorInfo]]
    others: dict[str, float]
    """Name → ‖W_tuned − W_base‖ of tensors that differ and are no linears."""


def _difference(base: Checkpoint, tuned: Checkpoint, progress: Progress) -> _Difference:
    strange = sorted(set(base.tensors) ^ set(tuned.tensors))
    if strange:
        raise MergeError(f"{tuned.folder}: is not tuned from {base.folder}: {strange[0]} stands in one of them only")
    linears, others = {}, {}
    pairs = list(base.tensors.items())
    for name, before in progress(iter(pairs), total=len(pairs), description="comparing", unit="tensor"):
        after = tuned.tensors[name]
        if before.shape != after.shape:
            raise MergeError(f"{name}: is {before.shape} in the base and {after.shape} in the tuned checkpoint")
        if not before.dtype.startswith(("F", "BF")) or before.dtype.startswith("F8"):
            raise MergeError(f"{name} is {before.dtype}; LoRA is extracted from F32, F16 and BF16 weights")
        square = 0.0
        for x, y in zip(row_blocks(before), row_blocks(after), strict=True):
            square += float((y.double() - x.double()).square().sum())
        if not math.isfinite(square):
            raise MergeError(f"{name} holds NaN or infinity in one of the checkpoints")
        if not square:
            continue
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and len(before.shape) == 2 and module.rpartition(".")[2] not in HEADS:
            linears[module] = before, after
        else:
            others[name] = math.sqrt(square)
    return _Difference(linears, others)


def extract(
    base: str | Path, tuned: str | Path, out: str | Path, *, rank: int = 16, energy: float | None = None,
    overwrite: bool = False, progress: Progress = no_progress,
) -> dict[str, Any]:
    """Writes the adapter that brings `base` closest to `tuned` at this rank, as a PEFT folder; the report.

    Each linear's Δ = W_tuned − W_base is cut to its largest `rank` singular values (energy: to the fewest that
    hold this share of Σσ²); the adapter has one rank, padded with zeros, and scale 1. What differs and is no
    linear (norms, biases, embeddings) cannot be in it: it is listed in the report's "left_out" with its size.

    One weight at a time is in memory, in fp64. MergeError when the checkpoints are not of one model, are equal,
    or hold NaN.
    """
    if rank < 1 or (energy is not None and not 0 < energy <= 1):
        raise MergeError(f"rank must be at least 1 and energy in (0, 1], got {rank} and {energy}")
    out = place_of(out)
    before, after = Checkpoint.open(base), Checkpoint.open(tuned)
    for folder in (before.folder.resolve(), after.folder.resolve()):
        if out.is_relative_to(folder) or folder.is_relative_to(out):
            raise MergeError(f"{out}: the output must lie apart from the checkpoints, but it and {folder} overlap")
    found = _difference(before, after, progress)
    if not found.linears:
        raise MergeError(f"{tuned}: no linear differs from {base}; there is nothing to extract")
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    rows: dict[str, dict[str, Any]] = {}
    pairs = list(found.linears.items())
    for module, (x, y) in progress(iter(pairs), total=len(pairs), description="extracting", unit="weight"):
        b, a, singular = low_rank(read_tensor(y).double() - read_tensor(x).double(), rank, energy)
        factors[module] = a.float(), b.float()
        total = float(singular.square().sum())
        rows[f"{module}.weight"] = {
            "shape": list(x.shape), "rank_kept": len(a), "singular_values": singular[: 2 * rank].tolist(),
            "energy_kept": float(singular[: len(a)].square().sum()) / total, "delta_norm": math.sqrt(total),
        }
    most = max(len(a) for a, _ in factors.values())
    padded = {
        module: (torch.nn.functional.pad(a, (0, 0, 0, most - len(a))), torch.nn.functional.pad(b, (0, most - len(a))))
        for module, (a, b) in factors.items()
    }
    squares = [(row["delta_norm"] ** 2, row["energy_kept"]) for row in rows.values()]
    overall = {
        "weights": len(rows), "rank": most, "left_out": len(found.others),
        "energy_kept": math.fsum(s * e for s, e in squares) / math.fsum(s for s, _ in squares),
    }
    report = {"overall": overall, "left_out": found.others, "tensors": rows}
    with locked(out), new_folder(out, overwrite=overwrite) as folder:
        write_adapter(folder, padded, rank=most, alpha=most, targets=list(padded), base_model=str(base))
        write_json(folder / REPORT, report)
    return report
