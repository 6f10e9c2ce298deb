"""How well a run uses its device: the share of the peak it reaches (MFU), and the memory it takes.

The frozen weights need 2 P operations a token forward and 2 P for dX backward, never dW: 4 P, not 6 P. P counts the
blocks' linears for every token, and the last MLP and the head for every label; attention, the adapters, padding and
what activation checkpointing computes again are not counted, so the share is of useful work, and a lower bound.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..model import Transformer

PEAK_TFLOPS = {
    "B200": 2250.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H800 PCIe": 756.0, "GH200": 989.4, "H200": 989.4,
    "H100": 989.4, "H800": 989.4, "H20": 148.0, "A100": 312.0, "A800": 312.0, "A40": 149.7, "A30": 165.0, "A10G": 70.0,
    "A10": 125.0, "L40S": 362.0, "L40": 181.0, "L20": 119.5, "L4": 121.0, "RTX 6000 Ada": 364.2, "RTX A6000": 154.8,
    "RTX 5090": 209.5, "RTX 4090": 165.2, "RTX 3090": 71.0,
}
"""Part of a GPU's name → dense TFLOP/s in bf16 with fp32 accumulation, by NVIDIA's data sheets and architecture papers
(half of the figure with sparsity where only that is given). The first that matches counts."""


def peak_tflops(name: str) -> float | None:
    """The peak of a GPU by the name CUDA gives it; None when it is not in the table, or a variant of one that is."""
    for part, peak in PEAK_TFLOPS.items():
        if re.search(rf"(?<![A-Z0-9]){part}(?![A-Z0-9]| (?:D|Ti|SUPER|Laptop)\b)", name):
            return peak
    return None


def memory(device: torch.device) -> int:
    """The most bytes held at once so far: of tensors on a GPU, of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def frozen_sizes(model: nn.Module) -> tuple[int, int]:
    """(elements of the linears that every token goes through, of those that labels alone do).

    The latter are the head and, in a `Transformer`, the last MLP.
    """
    last = model.model.layers[-1].mlp if isinstance(model, Transformer) else nn.Module()
    late = {id(model.lm_head.weight), *(id(weight) for weight in last.parameters())}
    weights = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Linear)}
    weights[id(model.lm_head.weight)] = model.lm_head.weight
    sizes = {key: weight.numel() for key, weight in weights.items()}
    return sum(n for key, n in sizes.items() if key not in late), sum(n for key, n in sizes.items() if key in late)


class Meter:
    """Tells of a step what the devices made of it.

    peak: TFLOP/s of one device; None: by the GPU's name in 16 bit, else unknown, and "mfu" is None.
    """

    def __init__(self, model: nn.Module, peak: float | None = None, devices: int = 1) -> None:
        self.device, self.devices = model.device, devices
        self.all, self.late = frozen_sizes(model)
        if peak is None and self.device.type == "cuda" and model.dtype in (torch.bfloat16, torch.float16):
            peak = peak_tflops(torch.cuda.get_device_name(self.device))
        self.peak = peak

    def flops(self, tokens: int, labels: int) -> int:
        """4 P, with the P that every token goes through and the P that labels alone do."""
        return 4 * (self.all * tokens + self.late * labels)

    def __call__(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """{"mfu", "memory"} after a step with these metrics rows, one an adapter."""
        rows = list(rows)
        mfu = None
        if self.peak is not None:
            done = sum(self.flops(row["tokens"], row["labels"]) for row in rows)
            mfu = round(done / rows[0]["seconds"] / (self.peak * 1e12 * self.devices), 4)
        return {"mfu": mfu, "memory": memory(self.device)}
