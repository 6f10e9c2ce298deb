"""Compiles, without a GPU, every kernel variant that the launchers can choose, and reports on each as JSON.

Run as a program with targets as arguments, compute capabilities or AMD's names: `python compile_variants.py 80 gfx942`;
with --short it leaves out what differs from the rest by its name only.
The launchers themselves are called, with meta tensors, under a stand-in for Triton's driver that names the target, so
what is compiled is what a GPU of that generation would run, specialisations included.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from numllm_kernels import common, cross_entropy, lora, norm, producer, rope, swiglu, tiles


class NoGPU:
    """What triton.JITFunction.warmup asks of a driver: the target."""

    def __init__(self, target: str) -> None:
        self.amd = target.startswith("gfx")
        self.target = GPUTarget("hip", target, 64) if self.amd else GPUTarget("cuda", int(target), 32)
        self.capability = (9, 4) if self.amd else divmod(int(target), 10)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return hash(self.target.arch)  # compiled kernels are kept by device

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
    """What the tests ask of a compiled kernel. Wide accesses: of 16 bytes a thread."""
    found = {"shared": compiled.metadata.shared}
    if "amdgcn" in compiled.asm:
        code = compiled.asm["amdgcn"]
        wide = len(re.findall(r"(?:global|buffer)_load_dwordx4", code)), len(re.findall(r"_store_dwordx4", code))
        counts = {name: int(count) for name, count in re.findall(r"\.(\w+):\s+(\d+)\n", code)}
        return found | {
            "registers": counts["vgpr_count"], "stack": counts["private_segment_fixed_size"],
            "mfma": "v_mfma" in code, "wide_loads": wide[0], "wide_stores": wide[1],
        }
    ptx = compiled.asm["ptx"]
    registers, stack = registers_and_stack(compiled.asm["cubin"])
    return found | {
        "registers": registers, "stack": stack,
        "wgmma": "wgmma.mma_async" in ptx, "mma": "mma.sync" in ptx, "tcgen05": "tcgen05.mma" in ptx,
        "async_copies": ptx.count("cp.async.cg") + ptx.count("cp.async.ca"),
        "wide_loads": len(re.findall(r"ld\.global[\w.:]*\.v4\.b32", ptx)),
        "wide_stores": len(re.findall(r"st\.global[\w.:]*\.v4\.b32", ptx)),
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


def cases(short: bool) -> Iterator[tuple[str, torch.dtype, int, int]]:
    """(class of shape, dtype, tokens, rank): every tile of the table, with the ranks that need most of it."""
    yield "many", torch.bfloat16, 8192, 16
    if not short:
        yield "many", torch.float16, 8192, 32  # the largest rank that reads dY once with this tile
    yield "many", torch.bfloat16, 8192, 64
    if not short:
        yield "few", torch.bfloat16, 512, 64
    yield "few", torch.float16, 512, 8  # as above
    if not short:
        yield "fp32", torch.float32, 512, 16  # as above
    yield "fp32", torch.float32, 512, 64
    yield "many", torch.bfloat16, 8192, 128


def empty(*size: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of which only the shape is known."""
    return torch.empty(size, dtype=dtype, device="meta")


def lora_calls(short: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(label, calls of the launchers of a step, with s by a read of x and by what makes x)."""
    n = k = 4096
    words = 3, -5  # of a seed

    def step(dtype: torch.dtype, m: int, rank: int, drops: bool) -> None:
        x, dy, w = empty(m, k, dtype=dtype), empty(m, n, dtype=dtype), empty(n, k, dtype=dtype)
        a, b, bias = empty(rank, k, dtype=dtype), empty(n, rank, dtype=dtype), empty(n, dtype=dtype)
        choice = empty(rank, dtype=torch.float32), empty(rank, dtype=torch.int32), empty(m, dtype=torch.int32)
        shares = empty(m, dtype=torch.float32)
        s = lora.down(x, a, *choice)
        lora.linear(x, w, bias, s, b)
        ds, _ = lora.down_outer(dy, b, s, *choice)
        lora.linear(dy, w.T, None, ds, a.T)
        lora.outer(ds, x)
        producer.norm_down(x, w[0], 1e-6, a, *choice)
        producer.norm_down(x, w[0], 1e-6, a, *choice, added=dy, scale=0.3)
        producer.swiglu_down(x, dy, a, *choice)
        if drops:
            lora.down(x, a, *choice, shares, words)
            lora.up(ds, a.T, shares, words)
            lora.outer(ds, x, shares, words)

    for kind, dtype, m, rank in cases(short):
        drops = (kind, rank) in (("many", 16), ("many", 64), ("few", 64), ("fp32", 64))
        label = f"{kind}-{str(dtype).removeprefix('torch.')}-r{rank}{'-dropout' if drops else ''}"
        yield label, lambda dtype=dtype, m=m, rank=rank, drops=drops: step(dtype, m, rank, drops)


def block_calls(short: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(label, calls of the launchers of a block's other kernels, and of the loss)."""

    def norms(dtype: torch.dtype, rows: int, size: int) -> None:
        x, weight = empty(rows, size, dtype=dtype), empty(size, dtype=dtype)
        norm.norm(x, weight, 1e-6)
        norm.norm(x, weight, 1e-6, added=x, scale=0.3)
        rms = empty(rows, dtype=torch.float32)
        norm.norm_backward(x, x, weight, rms)
        norm.norm_backward(x, x, weight, rms, dh=x, scale=0.3)
        if size <= 8192:  # beyond, `elementwise` leaves weights that are trained to torch
            norm.norm_backward(x, x, weight, rms, needs_weight=True)
            norm.norm_backward(x, x, weight, rms, dh=x, scale=0.3, needs_weight=True)

    def others(dtype: torch.dtype) -> None:
        both = empty(8192, 2 * 18944, dtype=dtype)
        for gate, up in ((both, both), both.chunk(2, dim=-1)):
            swiglu.swiglu(gate, up)
            swiglu.swiglu_backward(gate, gate, up)
        for heads, kv_heads, size, rotated, neighbours in ((28, 4, 128, 128, False), (32, 2, 128, 64, True)):
            q, k = (empty(2, 4096, count, size, dtype=dtype).transpose(1, 2) for count in (heads, kv_heads))
            angles = empty(2, 1, 4096, rotated, dtype=dtype)
            for backward in (False, True):
                rope.rotate(q, k, angles, angles, neighbours=neighbours, backward=backward)
        labels, losses = empty(2048, dtype=torch.int64), empty(2048, dtype=torch.float32)
        for gradient in (True, False):
            cross_entropy.cross_entropy(empty(2048, 152064, dtype=dtype), labels, losses, gradient=gradient)

    sizes = {3584: 8192, 128: 8192 * 28, 8192: 8192, 16384: 8192}  # features of a row: rows
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        for size, rows in sizes.items():
            if not short or (dtype, size) in ((torch.bfloat16, 3584), (torch.bfloat16, 128), (torch.float32, 16384)):
                yield f"{name}-{size}", lambda dtype=dtype, rows=rows, size=size: norms(dtype, rows, size)
        if not short or dtype == torch.bfloat16:
            yield name, lambda dtype=dtype: others(dtype)


def variants(target: str, short: bool) -> Iterator[dict[str, Any]]:
    """Compiles the variants of one target, and yields their descriptions."""
    driver = NoGPU(target)
    triton.runtime.driver.set_active(driver)
    tiles.capability = lambda device: driver.capability
    common.most_warps = lambda: 16 if driver.amd else 32
    compiled: dict[str, tuple[str, Any]] = {}
    labels: list[str] = []

    def compile_only(kernel: Any, grid: tuple[int, ...], *args: Any, **settings: Any) -> None:
        result = kernel.warmup(*args, grid=grid, **settings)
        compiled.setdefault(result.hash, (f"{kernel.__name__}-{labels[-1]}", result))

    common.launch = compile_only
    # The block's kernels have next to no shared memory, and no instruction that 9.0 has and 8.x has not.
    blocks = () if short and target.startswith("8") else block_calls(short)
    for label, call in (*lora_calls(short and target in ("89", "gfx942")), *blocks):
        labels.append(label)
        call()
    for name, result in compiled.values():
        yield {"name": name, "target": target, **describe(result)}
    floats = empty(1, dtype=torch.float32)
    spilling = spilling_kernel.warmup(floats, floats, SIZE=65536 if driver.amd else 16384, num_warps=4, grid=(1,))
    yield {"name": "spilling", "target": target, **describe(spilling)}


if __name__ == "__main__":
    targets = [argument for argument in sys.argv[1:] if argument != "--short"]
    print(json.dumps([row for target in targets for row in variants(target, "--short" in sys.argv)]))
