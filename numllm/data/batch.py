"""A batch: rows of tokens, and the positions that are scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..positions import PADDING


@dataclasses.dataclass(frozen=True)
class Choice:
    """How the scored positions of a batch make up the options of its questions (loss "likelihood" or "both").

    options (S,) int64: the option each position belongs to, counted through the batch; weights (S,) fp32: its
    share in the option's score; sizes: options of each question; answers (Q,) int64: the right option of each.
    text (S,) fp32: the position's share in the text loss, the mean −log p of each question's right text.
    letters (S,) fp32: its share in the letter loss (loss "both"). digits (S,) int64: the digit that the position
    predicts in a right option, −1 elsewhere; digit_ids (10,) int64: the tokens of 0 to 9.
    """

    options: Tensor
    weights: Tensor
    sizes: list[int]
    answers: Tensor
    text: Tensor
    letters: Tensor
    digits: Tensor
    digit_ids: Tensor

    def part(self, inside: Tensor) -> Choice:
        """The choice over the positions (S,) bool `inside`, which holds all of a question's or none."""
        sizes = torch.tensor(self.sizes)
        owner = torch.arange(len(sizes)).repeat_interleave(sizes)[self.options[inside]]
        kept = owner.unique()
        shift = torch.zeros_like(sizes)
        shift[kept] = (sizes[kept].cumsum(0) - sizes[kept]) - (sizes.cumsum(0) - sizes)[kept]
        return Choice(
            options=self.options[inside] + shift[owner], weights=self.weights[inside], sizes=sizes[kept].tolist(),
            answers=self.answers[kept] + shift[kept], text=self.text[inside], letters=self.letters[inside],
            digits=self.digits[inside], digit_ids=self.digit_ids,
        )


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of tokens of one adapter, with the positions that are scored.

    tokens (B, T) int64; documents (B, T) int32, PADDING where empty; branches (B, T) int32 where documents are
    trees (see `Transformer.hidden`); positions (S,) flat indexes b·T + t from which a token is predicted;
    labels (S,) int64, the tokens that should be; count: label tokens, or questions, over which
    the loss is a mean; choice: for questions scored by likelihood.
    """

    tokens: Tensor
    documents: Tensor
    positions: Tensor
    labels: Tensor
    count: int
    branches: Tensor | None = None
    choice: Choice | None = None

    def widened(self, width: int) -> Batch:
        """The batch with its rows padded to `width` tokens."""
        rows, length = self.tokens.shape
        if width == length:
            return self
        more = (0, width - length)
        return dataclasses.replace(
            self,
            tokens=torch.nn.functional.pad(self.tokens, more),
            documents=torch.nn.functional.pad(self.documents, more, value=PADDING),
            branches=None if self.branches is None else torch.nn.functional.pad(self.branches, more),
            positions=self.positions // length * width + self.positions % length,
        )

    def part(self, first: int, last: int) -> Batch:
        """Rows first..last − 1. `count` stays the whole batch's, so the parts' losses and gradients sum to its own."""
        width = self.tokens.shape[1]
        inside = (self.positions >= first * width) & (self.positions < last * width)
        return dataclasses.replace(
            self,
            tokens=self.tokens[first:last],
            documents=self.documents[first:last],
            branches=None if self.branches is None else self.branches[first:last],
            positions=self.positions[inside] - first * width,
            labels=self.labels[inside],
            choice=None if self.choice is None else self.choice.part(inside),
        )

    def idle(self) -> Batch:
        """The rows without a label: their loss is 0."""
        return dataclasses.replace(self, positions=self.positions[:0], labels=self.labels[:0], choice=None)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            return _map(value, move) if isinstance(value, Choice) else value

        return _map(self, move)


def _map(instance: Any, function: Callable[[Any], Any]) -> Any:
    """A copy of a dataclass instance with `function` applied to every field."""
    fields = dataclasses.fields(instance)
    return dataclasses.replace(instance, **{f.name: function(getattr(instance, f.name)) for f in fields})
