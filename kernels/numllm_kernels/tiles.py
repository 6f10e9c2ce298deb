"""Tile sizes of the LoRA kernels by GPU generation and class of shape: a table, no tuning at run time.

Tuning picks by the clock, and other tiles add in another order: with a table the bits are the same every run.
kernels/README.md says where the numbers come from and which are measured.
"""

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor

PROGRAMS = 128
"""Programs wanted of a launch before a sum is split: about the multiprocessors of a data-centre GPU."""

MANY_ROWS = 1024
"""Tokens from which the tiles for many rows are used."""


def _tile(warps: int, stages: int, **blocks: int) -> dict[str, int]:
    sizes = {f"BLOCK_{name}": size for name, size in blocks.items()}
    return {**sizes, "num_warps": warps, "num_stages": stages}


# Fits 99 KiB of shared memory, the least of the GPUs since 2020 (compute capability 8.6, 8.9, 12.0).
_DEFAULT = {
    "down": {
        "many": _tile(4, 3, M=64, K=128), "few": _tile(4, 4, M=16, K=64), "fp32": _tile(8, 3, M=32, K=32),
    },
    "outer": {
        "many": _tile(4, 3, K=128, M=64), "few": _tile(4, 3, K=64, M=32), "fp32": _tile(4, 3, K=64, M=32),
    },
    "down_outer": {
        "many": _tile(8, 2, M=256, N=64), "few": _tile(4, 3, M=64, N=64), "fp32": _tile(4, 2, M=64, N=32),
    },
    "linear": {
        "many": _tile(8, 3, M=128, N=128, K=32), "few": _tile(4, 3, M=64, N=64, K=64),
        "fp32": _tile(8, 3, M=64, N=64, K=32),
    },
    "norm_down": {
        "many": _tile(4, 2, M=32, K=64), "few": _tile(8, 3, M=16, K=64), "fp32": _tile(8, 3, M=16, K=32),
    },
    "swiglu_down": {
        "many": _tile(8, 2, M=64, K=64), "few": _tile(4, 4, M=16, K=64), "fp32": _tile(8, 3, M=32, K=16),
    },
}

_AMPERE = {  # 163 KiB
    **_DEFAULT,
    "down": {**_DEFAULT["down"], "many": _tile(4, 4, M=64, K=128)},
    "down_outer": {**_DEFAULT["down_outer"], "many": _tile(8, 3, M=256, N=64)},
    "linear": {**_DEFAULT["linear"], "many": _tile(8, 4, M=128, N=128, K=32)},
    "norm_down": {**_DEFAULT["norm_down"], "many": _tile(8, 3, M=32, K=128)},
    "swiglu_down": {**_DEFAULT["swiglu_down"], "many": _tile(4, 3, M=64, K=64)},
}

_HOPPER = {  # 227 KiB
    **_AMPERE,
    "down": {**_DEFAULT["down"], "many": _tile(4, 5, M=64, K=128)},
    "outer": {**_DEFAULT["outer"], "many": _tile(4, 4, K=128, M=64)},
    "linear": {**_DEFAULT["linear"], "many": _tile(8, 3, M=128, N=256, K=64)},
    "norm_down": {**_DEFAULT["norm_down"], "many": _tile(8, 4, M=32, K=128)},
}

TILES = {(8, 0): _AMPERE, (9, 0): _HOPPER, (10, 0): _HOPPER, (10, 3): _HOPPER}
"""Compute capability → kernel → class ("many" or "few" rows in 16 bits, "fp32") → tile."""

FUSED: dict[tuple[int, int], bool] = {}
"""Compute capability → whether `lora.linear` beats cuBLAS over a low-rank start. Not measured: nowhere on."""

PRODUCED: dict[tuple[int, int], bool] = {}
"""Compute capability → whether `producer`'s kernels beat norm or SwiGLU and `lora.down` apart. Not measured: nowhere
on."""

MOST_RANKS = {"down": 64, "outer": 128, "down_outer": 64, "linear": 32, "norm_down": 128, "swiglu_down": 128}
"""Ranks that a kernel takes at once: registers and shared memory would not hold more. Beyond them the big operand is
read again, but by `linear`, which has read it."""


@functools.cache
def capability(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of a CUDA device; None for the CPU, where the interpreter runs."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


@functools.cache
def second_cache(device: torch.device) -> int:
    """Bytes of the last cache of a CUDA device; elsewhere those of an H100."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 50 * 2**20


def of(device: torch.device) -> dict[str, dict[str, dict[str, int]]]:
    """Kernel → class → tile on a device."""
    return TILES.get(capability(device), _DEFAULT)


def fused(device: torch.device) -> bool:
    """Whether the big product goes through the kernel with a low-rank epilogue rather than through cuBLAS."""
    return FUSED.get(capability(device), False)


def produced(device: torch.device) -> bool:
    """Whether the thin product is taken by what makes x rather than by a read of x."""
    return PRODUCED.get(capability(device), False)


def choose(kernel: str, x: Tensor, rank: int) -> dict[str, int | bool | str]:
    """Launch settings of a kernel: block sizes, warps, stages. x: the big operand (rows, …)."""
    kind = "fp32" if x.dtype == torch.float32 else "many" if x.shape[0] >= MANY_ROWS else "few"
    tile = of(x.device)[kernel][kind]
    block_r = min(max(16, triton.next_power_of_2(rank)), MOST_RANKS[kernel])
    # "ieee": fp32 products in fp32, not in TF32, as torch's default is.
    settings: dict[str, int | bool | str] = {**tile, "BLOCK_R": block_r, "PRECISION": "ieee"}
    if kernel == "linear":
        settings["GROUP_M"] = 8
    if kernel == "norm_down":
        settings["STAGES"] = tile["num_stages"]
    if kernel == "down_outer":
        settings["TURNED"] = (capability(x.device) or (0, 0))[0] not in (9, 10)
    return settings


def one_read(block_m: int, rank: int, element_size: int) -> bool:
    """Whether dS and dB out of one read of dY move fewer bytes than out of two.

    What it saves is a read of dY, M N e bytes for elements of e bytes. What it costs are the partials of dB,
    written and read, 8 (M / BLOCK_M) N R bytes. It pays for R < e BLOCK_M / 8; half of that leaves a margin.
    """
    return 16 * rank <= element_size * block_m
