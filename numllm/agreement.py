"""How far a merged model is from the model that was meant: the base with its adapters on, unmerged.

Beside the merge, which never builds a model: both are built here, one after the other, so the larger has to fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapter_config import CONFIG
from .checkpoint import Checkpoint
from .errors import MergeError
from .files import Progress, no_progress
from .lora import load_adapters
from .model import load_model


@torch.no_grad()
def _logits(
    base: str | Path, adapters: Sequence[tuple[str | Path, float]], tokens: Tensor, device: str, progress: Progress
) -> Tensor:
    """fp32 logits (B, L, V) on the CPU."""
    model = load_model(base, dtype=torch.float32, device=device, progress=progress)
    if not adapters:
        return model(tokens.to(device)).float().cpu()
    loaded = load_adapters(model, {f"adapter{index}": pair for index, pair in enumerate(adapters)})
    with loaded.use("all"):
        return model(tokens.to(device)).float().cpu()


def agreement(
    base: str | Path, adapters: Sequence[tuple[str | Path, float]], merged: str | Path, *, rows: int = 4,
    length: int = 64, seed: int = 0, device: str = "cpu", progress: Progress = no_progress,
) -> dict[str, Any]:
    """Logits of `merged` (a model, or an adapter for the base) against the base with the adapters (folder, weight)
    unmerged, both computed in fp32, on `rows` × `length` random tokens.

    {"tokens", "largest_difference", "kl" (mean KL(unmerged ‖ merged) in nats a token), "kl_of_adapters" (the same
    of unmerged against the bare base: what the adapters do at all), "same_top" (share of tokens with one top
    choice)}. An exact merge in fp32 has a kl near 0, one in bf16 that of its rounding; svd adds its truncation.

    MergeError when logits are not finite; AdapterError when an adapter does not run unmerged (it moved the base, …).
    """
    vocabulary = Checkpoint.open(base).config.vocab_size
    tokens = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))
    wanted = _logits(base, adapters, tokens, device, progress)
    bare = _logits(base, (), tokens, device, progress)
    if (Path(merged) / CONFIG).is_file():
        found = _logits(base, [(merged, 1.0)], tokens, device, progress)
    else:
        found = _logits(merged, (), tokens, device, progress)
    if not all(bool(torch.isfinite(logits).all()) for logits in (wanted, found)):
        raise MergeError(f"{merged}: logits are not finite, merged or unmerged; an adapter is too large")
    return {
        "tokens": tokens.numel(), "largest_difference": float((wanted - found).abs().max()),
        "kl": _kl(wanted, found), "kl_of_adapters": _kl(wanted, bare),
        "same_top": float((wanted.argmax(-1) == found.argmax(-1)).double().mean()),
    }


def _kl(left: Tensor, right: Tensor) -> float:
    p, q = left.double().log_softmax(-1), right.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())
