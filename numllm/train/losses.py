"""The losses of a batch, and of both adapters' batches from one pass over the frozen model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import ops
from ..data import Batch
from ..errors import TrainError
from ..lora import AdapterSet, carries
from ..model import Transformer


def choice_loss(losses: Tensor, batch: Batch, text_weight: float = 0.0) -> Tensor:
    """Mean over questions of −log softmax(scores)[answer] + text_weight · text loss + letter loss, a fp32 scalar.

    losses (S,): −log p of each scored token. An option's score is Σ weight · log p over its positions, that
    is its length-normalised log-likelihood (NumCT by likelihood); the text loss is the mean of −log p over the
    tokens of the text with the right option in it, the letter loss −log p of the answer's letter times its weight.
    """
    choice = batch.choice
    scores = losses.new_zeros(sum(choice.sizes)).index_add(0, choice.options, -losses * choice.weights)
    per_question = scores.split(choice.sizes)
    whole = torch.stack([question.logsumexp(0) for question in per_question]).sum()
    total = whole - scores[choice.answers].sum() + text_weight * (losses * choice.text).sum()
    total = total + (losses * choice.letters).sum()
    return total / batch.count


def head_losses(
    head: nn.Module, x: Tensor, labels: Tensor, use: Callable[[slice], AbstractContextManager[None]]
) -> Tensor:
    """−log p of each label (S,), of states x (S, D), fp32: `ops.token_losses`, or through the adapters of the head.

    use(part): the selection of adapters for a part of the states. An adapted head is run again in backward, so its
    logits exist for `ops.head_rows` rows at a time as well.
    """
    if not carries(head):
        return ops.token_losses(x, head.weight, labels)

    def part_losses(first: int, rows: Tensor, part: Tensor) -> Tensor:
        with use(slice(first, first + len(rows))):
            return F.cross_entropy(head(rows).float(), part, reduction="none")

    size = ops.head_rows(head.weight.shape[0], cuda=x.is_cuda)
    return torch.cat([
        checkpoint(part_losses, first, x[first : first + size], labels[first : first + size], use_reentrant=False,
                   preserve_rng_state=False)
        for first in range(0, max(len(x), 1), size)
    ])


def digit_loss(x: Tensor, weight: Tensor, batch: Batch) -> Tensor:
    """Σ over digits of right options of E|d − digit| under the model's choice among the ten digits, over questions.

    x (S, D): hidden states of the scored positions; weight (V, D): the output layer. A fp32 scalar in 0..9 a digit: it
    tells a near miss from a far one, as cross-entropy does not (number token loss, arXiv 2411.02083).
    """
    choice = batch.choice
    inside = (choice.digits >= 0).nonzero()[:, 0]
    scores = (x[inside] @ weight[choice.digit_ids].T).float()
    distance = (torch.arange(10, device=x.device) - choice.digits[inside, None]).abs()
    return (scores.softmax(-1) * distance).sum() / batch.count


def batch_loss(losses: Tensor, batch: Batch, text_weight: float = 0.0) -> Tensor:
    """The loss of a batch from −log p of its scored tokens: their mean, or `choice_loss`."""
    return losses.sum() / batch.count if batch.choice is None else choice_loss(losses, batch, text_weight)


def forward_losses(
    model: Transformer, adapters: AdapterSet, batches: Mapping[str, Batch], text_weight: float = 0.0,
    digit_weight: float = 0.0, seed: int | None = None,
) -> dict[str, Tensor]:
    """Each adapter's loss (differentiable scalar) from one pass over all their rows, put side by side.

    digit_weight: of `digit_loss`, added to the loss of batches of choices scored by likelihood. seed: of dropout,
    where the model is in training mode.
    """
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
    tokens = torch.cat([batch.tokens for batch in parts])
    positions = torch.cat([batch.positions + at for batch, at in zip(parts, offsets, strict=True)])
    which = next(iter(batches)) if len(batches) == 1 else rows
    picked = positions // tokens.shape[1]

    def use(part: slice) -> AbstractContextManager[None]:
        return adapters.use(which, picked=picked[part], seed=None if seed is None else seed + (part.start or 0))

    with use(slice(None)):
        x = model.hidden(
            tokens, documents=torch.cat([batch.documents for batch in parts]), branches=branches, select=positions
        )
    losses = head_losses(model.lm_head, x, torch.cat([batch.labels for batch in parts]), use)
    sizes = [len(batch.labels) for batch in parts]
    found = {
        name: batch_loss(part, batch, text_weight)
        for (name, batch), part in zip(batches.items(), losses.split(sizes), strict=True)
    }
    if digit_weight:
        if carries(model.lm_head):
            raise TrainError("digit_weight is of the frozen head, and an adapter is on it; leave one of them off")
        for (name, batch), states in zip(batches.items(), x.split(sizes), strict=True):
            if batch.choice is not None:
                found[name] = found[name] + digit_weight * digit_loss(states, model.lm_head.weight, batch)
    return found
