"""Modules that adapters have whole, trained beside the low rank: a head, an embedding, norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .low_rank import Selection


class Whole(nn.Module):
    """A frozen module f with weights W, and weights Wᵢ of adapters' own.

    y = f(W; x) + Σ wᵢ (f(Wᵢ; x) − f(W; x)) over the adapters i that a row goes through, wᵢ their weights: of one with
    weight 1, f(Wᵢ; x). base: f with W. copies[name]: parameter's name in f → its value, fp32 when trained.
    """

    def __init__(self, base: nn.Module, selection: Selection) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.copies = nn.ModuleDict()
        self.scale: dict[str, float] = {}
        self._selection = selection

    def add(self, name: str, values: dict[str, Tensor], weight: float = 1.0, *, trainable: bool) -> None:
        """Gives an adapter weights of its own: parameter's name → value."""
        device = self.weight.device
        self.copies[name] = nn.ParameterDict({
            leaf: nn.Parameter(value.to(device).contiguous(), requires_grad=trainable)
            for leaf, value in values.items()
        })
        self.scale[name] = weight

    def remove(self, name: str) -> None:
        """Takes an adapter off."""
        if name in self.scale:
            del self.copies[name], self.scale[name]

    @property
    def names(self) -> set[str]:
        """The adapters that have it whole."""
        return set(self.scale)

    @property
    def weight(self) -> Tensor:
        """The frozen weight."""
        return self.base.weight

    def stored(self, name: str) -> dict[str, tuple[int, list[Tensor]]]:
        """As in `LoRALinear`."""
        return {leaf: (0, [value]) for leaf, value in self.copies[name].items()} if name in self.scale else {}

    def parameters_of(self, name: str) -> list[nn.Parameter]:
        """What it trains of an adapter."""
        return list(self.copies[name].values()) if name in self.scale else []

    def forward(self, x: Tensor) -> Tensor:
        """f's input → f's output, through the adapters that are on."""
        selection = self._selection
        on = [(index, name) for index, name in enumerate(selection.active) if name in self.scale]
        if selection.rows is None and len(on) == 1 and self.scale[on[0][1]] == 1:
            return self._through(on[0][1], x)
        y = base = self.base(x)
        rows = selection.rows_of(x)
        for index, name in on:
            own = self._through(name, x)
            if rows is None:
                y = y + self.scale[name] * (own - base)
                continue
            own = own if self.scale[name] == 1 else base + self.scale[name] * (own - base)
            y = torch.where((rows == index).view(-1, *[1] * (y.dim() - 1)), own, y)
        return y

    def _through(self, name: str, x: Tensor) -> Tensor:
        values = {leaf: value.to(self.weight.dtype) for leaf, value in self.copies[name].items()}
        return functional_call(self.base, values, (x,))
