"""A penalty that keeps the two adapters' updates of a linear apart."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ..lora import AdapterSet


def overlap(adapters: AdapterSet) -> Tensor:
    """Mean over linears and pairs i < j of ‖Aᵢ Aⱼᵀ‖²_F / (‖Aᵢ‖²_F ‖Aⱼ‖²_F), a fp32 scalar in [0, 1].

    0 where the adapters read orthogonal directions of a linear's input, so that neither acts on what the other
    has learnt to read (as in O-LoRA, arXiv 2310.14152, whose ‖Aᵢ Aⱼᵀ‖² is not normalised); differentiable in
    every A. 0 where no linear carries two adapters.
    """
    found = [
        (a @ b.T).square().sum() / (a.square().sum() * b.square().sum())
        for module in adapters.modules.values()
        for a, b in itertools.combinations(module.a.values(), 2)
    ]
    return torch.stack(found).mean() if found else torch.zeros(())


def add_penalty(adapters: AdapterSet, name: str, weight: float) -> None:
    """Adds weight · ∂overlap/∂A to the gradients of an adapter's own A; the other adapter is held fixed."""
    parameters = adapters.parameters(name)[0::2]
    gradients = torch.autograd.grad(weight * overlap(adapters), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:  # None where the linear carries this adapter alone
            parameter.grad += gradient
