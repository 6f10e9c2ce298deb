"""What operators ask of their arguments, each in one line: wanted, got, way out."""

from __future__ import annotations

import torch
from torch import Tensor


def check_shape(name: str, tensor: Tensor, wanted: tuple[int, ...], because: str) -> None:
    """ValueError unless the tensor has the wanted shape."""
    if tensor.shape != wanted:
        raise ValueError(f"{name} must be {wanted} ({because}), got {tuple(tensor.shape)}")


def check_frozen(**tensors: Tensor | None) -> None:
    """ValueError for a tensor that requires a gradient, of which none is formed."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise ValueError(
                f"{name} must be frozen, got one that requires a gradient; call {name}.requires_grad_(False)"
            )


def check_alike(x: Tensor, **tensors: Tensor | None) -> None:
    """TypeError unless all are of x's dtype, on its device."""
    for name, tensor in tensors.items():
        if tensor is not None and (tensor.dtype != x.dtype or tensor.device != x.device):
            raise TypeError(
                f"{name} must be of x's dtype and device, {x.dtype} on {x.device}; "
                f"got {tensor.dtype} on {tensor.device}"
            )


def check_dtype(dtype: torch.dtype, **tensors: Tensor | None) -> None:
    """TypeError unless all are of the dtype."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")


def check_device(x: Tensor, **tensors: Tensor | None) -> None:
    """ValueError unless all are on x's device."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} must be on x's device {x.device}, got {tensor.device}")
