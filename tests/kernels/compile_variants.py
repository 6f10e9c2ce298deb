"""Compiles, without a GPU, every kernel variant that the launchers can choose, and reports on each as JSON.

Run as a program with compute capabilities as arguments: `python compile_variants.py 80 90`. The launchers
themselves are called, with meta tensors, under a stand-in for Triton's driver that names the target, so what is
compiled is what a GPU of that generation would run, specialisations included.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from numllm_kernels import lora, tiles


class NoGPU:
    """What triton.JITFunction.warmup asks of a driver: the target."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


def registers_and_stack(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of local memory) per thread of a kernel; spilled registers live in local memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", report))
    return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])


def describe(compiled: Any) -> dict[str, Any]:
    """What the tests ask of a compiled kernel."""
    ptx = compiled.asm["ptx"]
    registers, stack = registers_and_stack(compiled.asm["cubin"])
    return {
        "shared": compiled.metadata.shared, "registers": registers, "stack": stack,
        "wgmma": "wgmma.mma_async" in ptx, "mma": "mma.sync" in ptx, "tcgen05": "tcgen05.mma" in ptx,
        "async_copies": ptx.count("cp.async.cg") + ptx.count("cp.async.ca"),
    }


@triton.jit
def spilling_kernel(x, y, SIZE: tl.constexpr):
    """Holds more values than registers: the check on spills must see it."""
    i = tl.arange(0, SIZE)
    first = tl.load(x + i)
    second = tl.load(x + SIZE + i)
    tl.debug_barrier()
    tl.store(y + i, first * second)
    tl.debug_barrier()
    tl.store(y + SIZE + i, first + second)


def cases() -> Iterator[tuple[str, torch.dtype, int, int]]:
    """(class of shape, dtype, tokens, rank): every tile of the table, with the ranks that need most of it."""
    yield "many", torch.bfloat16, 8192, 16
    yield "many", torch.float16, 8192, 32  # the largest rank that reads dY once with this tile
    yield "many", torch.bfloat16, 8192, 64
    yield "few", torch.bfloat16, 512, 64
    yield "few", torch.float16, 512, 8  # as above
    yield "fp32", torch.float32, 512, 16  # as above
    yield "fp32", torch.float32, 512, 64
    yield "many", torch.bfloat16, 8192, 128


def variants(capability: int) -> Iterator[dict[str, Any]]:
    """Compiles all variants of one capability, and yields their descriptions."""
    triton.runtime.driver.set_active(NoGPU(capability))
    tiles.capability = lambda device: divmod(capability, 10)
    compiled: dict[str, tuple[str, Any]] = {}
    words = 3, -5

    def compile_only(kernel: Any, grid: tuple[int, ...], *args: Any, **settings: Any) -> None:
        result = kernel.warmup(*args, grid=grid, **settings)
        compiled.setdefault(result.hash, (f"{kernel.__name__}-{label}", result))

    def empty(*size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    lora._launch = compile_only
    n = k = 4096
    for kind, dtype, m, rank in cases():
        label = f"{kind}-{str(dtype).removeprefix('torch.')}-r{rank}"
        x, dy, w = empty(m, k, dtype=dtype), empty(m, n, dtype=dtype), empty(n, k, dtype=dtype)
        a, b, bias = empty(rank, k, dtype=dtype), empty(n, rank, dtype=dtype), empty(n, dtype=dtype)
        choice = empty(rank, dtype=torch.float32), empty(rank, dtype=torch.int32), empty(m, dtype=torch.int32)
        shares = empty(m, dtype=torch.float32)
        s = lora.down(x, a, *choice)
        lora.linear(x, w, bias, s, b)
        ds, _ = lora.down_outer(dy, b, s, *choice)
        lora.linear(dy, w.T, None, ds, a.T)
        lora.outer(ds, x)
        if (kind, rank) in (("many", 16), ("many", 64), ("few", 64), ("fp32", 64)):
            label += "-dropout"
            lora.down(x, a, *choice, shares, words)
            lora.up(ds, a.T, shares, words)
            lora.outer(ds, x, shares, words)
    for name, result in compiled.values():
        yield {"name": name, "capability": capability, **describe(result)}
    floats = empty(1, dtype=torch.float32)
    spilling = spilling_kernel.warmup(floats, floats, SIZE=16384, num_warps=4, grid=(1,))
    yield {"name": "spilling", "capability": capability, **describe(spilling)}


if __name__ == "__main__":
    print(json.dumps([row for capability in sys.argv[1:] for row in variants(int(capability))]))
