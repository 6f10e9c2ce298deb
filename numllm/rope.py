"""Rotary position embedding (arXiv 2104.09864): frequencies, their stretching for long contexts, the rotation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .model_config import Rope


def frequencies(rope: Rope, size: int, lengths: Tensor | None = None) -> Tensor:
    """Angle per position of each pair of the `size` rotated features, fp32: (size / 2,).

    θ^(−2i/size), stretched as `rope.kind` says: linear divides by the factor; llama3 (Llama 3.1's released code)
    divides long wavelengths and blends the middle; yarn (arXiv 2309.00071, NTK-by-parts) ramps by dimension;
    dynamic (NTK) and qwen (its released code) raise θ with the lengths of the sequences. For those two, lengths
    (...) may be given, and the result is (..., size / 2); without them it is that of any length up to the
    original context.
    """
    device = None if lengths is None else lengths.device
    exponents = torch.arange(0, size, 2, dtype=torch.int64, device=device).float() / size
    if lengths is not None:
        growth = lengths.clamp(min=rope.original_context).double() / rope.original_context
        if rope.kind == "dynamic":
            growth = rope.factor * growth - (rope.factor - 1)
        else:
            growth = 2 ** (growth.log2() + 1).ceil() - 1
        theta = (rope.theta * growth ** (size / (size - 2))).float()
        return 1.0 / theta[..., None] ** exponents
    plain = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        wavelength = 2 * math.pi / plain
        low, high = rope.low_freq_factor, rope.high_freq_factor
        share = (rope.original_context / wavelength - low) / (high - low)
        blended = (1 - share) * plain / rope.factor + share * plain
        longest, shortest = rope.original_context / low, rope.original_context / high
        stretched = torch.where(wavelength > longest, plain / rope.factor, blended)
        return torch.where(wavelength < shortest, plain, stretched)
    if rope.kind == "yarn":

        def dimension(turns: float) -> float:
            return size * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

        low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
        if rope.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        ramp = (torch.arange(size // 2).float() - low) / (high - low if high != low else 0.001)
        keep = 1 - ramp.clamp(0, 1)
        return plain / rope.factor * (1 - keep) + plain * keep
    return plain


def rotations(angles: Tensor, *, neighbours: bool) -> Tensor:
    """The angle of each feature, (..., E) of the pairs' (..., E / 2): a pair's first feature is turned by −angle."""
    signed = torch.stack((-angles, angles), dim=-1 if neighbours else -2)
    return signed.flatten(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, neighbours: bool = False) -> Tensor:
    """Each pair of features turned by its position's angle: x (B, H, T, E), cos, sin (B, 1, T, R ≤ E) → (B, H, T, E).

    Pairs are (xᵢ, xᵢ₊ᴿ⸝₂), or (x₂ᵢ, x₂ᵢ₊₁) with neighbours: x cos + x′ sin, x′ being x with each pair's features
    swapped, cos and sin those of `rotations`. Features from R on stay as they are.
    """
    size = cos.shape[-1]
    if size < x.shape[-1]:
        return torch.cat((rotate(x[..., :size], cos, sin, neighbours=neighbours), x[..., size:]), dim=-1)
    if neighbours:
        swapped = torch.stack((x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    else:
        swapped = x.roll(size // 2, dims=-1)
    return x * cos + swapped * sin
