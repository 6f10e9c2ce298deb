"""The LoRA embedding as a module: a frozen embedding with any number of adapters on it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .low_rank import LowRank


class LoRAEmbedding(LowRank):
    """A frozen embedding with low-rank adapters: y = W[token] + (B[token] ⊙ m) A, W (V, D), A (r, D), B (V, r)."""

    def stored(self, name: str) -> dict[str, tuple[int, list[Tensor]]]:
        """As in `LoRALinear`: PEFT's factors are those of Wᵀ."""
        return {
            "lora_embedding_A": (0, [self.b[name].T]), "lora_embedding_B": (1, [self.a[name].T]),
        } if name in self.scale else {}

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) → (B, T, D), through the adapters that are on."""
        y, rows = self.base(tokens), self._selection.rows
        for index, name in enumerate(self._selection.active):
            if name not in self.scale:
                continue
            low = F.embedding(tokens, self.b[name]) * self.scale[name]
            if rows is not None:
                low = torch.where((rows == index).view(-1, *[1] * (low.dim() - 1)), low, 0)
            y = y + low.to(y.dtype) @ self.a[name].to(y.dtype)
        return y
