"""The losses of a batch, and of both adapters' batches from one pass over the frozen model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .. import ops
from ..data import Batch
from ..lora import AdapterSet
from ..model import Transformer


def choice_loss(losses: Tensor, batch: Batch, text_weight: float = 0.0) -> Tensor:
    """Mean over questions of −log softmax(scores)[answer] + text_weight · text loss, a fp32 scalar.

    losses (S,): −log p of each scored token. An option's score is Σ weight · log p over its positions, that
    is its length-normalised log-likelihood (NumCT by likelihood); the text loss is the mean of −log p over the
    tokens of the text with the right option in it.
    """
    choice = batch.choice
    scores = losses.new_zeros(sum(choice.sizes)).index_add(0, choice.options, -losses * choice.weights)
    per_question = scores.split(choice.sizes)
    whole = torch.stack([question.logsumexp(0) for question in per_question]).sum()
    total = whole - scores[choice.answers].sum() + text_weight * (losses * choice.text).sum()
    return total / batch.count


def batch_loss(losses: Tensor, batch: Batch, text_weight: float = 0.0) -> Tensor:
    """The loss of a batch from −log p of its scored tokens: their mean, or `choice_loss`."""
    return losses.sum() / batch.count if batch.choice is None else choice_loss(losses, batch, text_weight)


def forward_losses(
    model: Transformer, adapters: AdapterSet, batches: Mapping[str, Batch], text_weight: float = 0.0
) -> dict[str, Tensor]:
    """Each adapter's loss (differentiable scalar) from one pass over all their rows, put side by side."""
    order = {name: adapters.names.index(name) for name in batches}
    parts = list(batches.values())
    rows = torch.cat([
        torch.full((len(batch.tokens),), order[name], dtype=torch.int32) for name, batch in batches.items()
    ]).to(parts[0].tokens.device)
    offsets = [0]
    for batch in parts[:-1]:
        offsets.append(offsets[-1] + batch.tokens.numel())
    branches = None
    if any(batch.branches is not None for batch in parts):
        branches = torch.cat([
            torch.zeros_like(batch.documents) if batch.branches is None else batch.branches for batch in parts
        ])
    with adapters.use(next(iter(batches)) if len(batches) == 1 else rows):
        x = model.hidden(
            torch.cat([batch.tokens for batch in parts]),
            documents=torch.cat([batch.documents for batch in parts]), branches=branches,
        )
    positions = torch.cat([batch.positions + at for batch, at in zip(parts, offsets, strict=True)])
    losses = ops.token_losses(
        x.flatten(0, 1)[positions], model.lm_head.weight, torch.cat([batch.labels for batch in parts])
    )
    split = losses.split([len(batch.labels) for batch in parts])
    return {
        name: batch_loss(part, batch, text_weight)
        for (name, batch), part in zip(batches.items(), split, strict=True)
    }
