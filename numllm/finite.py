"""NaN and infinity, in tensors and in files of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .checkpoint import RowReader, TensorInfo, row_spans, torch_dtype

if TYPE_CHECKING:
    import torch


def not_finite(infos: Iterable[TensorInfo]) -> TensorInfo | None:
    """The first of these tensors that holds NaN or infinity, None where none does; read a megabyte or two at a time,
    those of one dtype that lie one after the other as if they were one.
    """
    runs: list[list[TensorInfo]] = []
    for info in sorted(infos, key=lambda info: (info.file, info.start)):
        last = runs[-1][-1] if runs else None
        if last and (last.file, last.dtype, last.end) == (info.file, info.dtype, info.start):
            runs[-1].append(info)
        else:
            runs.append([info])
    for run in runs:
        if not _finite(dataclasses.replace(run[0], end=run[-1].end)):
            return next(info for info in run if not _finite(info))
    return None


def _finite(info: TensorInfo) -> bool:
    """`not_finite` of what lies from its start to its end, whatever its shape."""
    import torch

    dtype = torch_dtype(info.dtype)
    flat = dataclasses.replace(info, shape=(info.nbytes // dtype.itemsize,))
    if not flat.nbytes:
        return True
    memory = torch.empty(min(1 << 18, *flat.shape), dtype=dtype)
    with RowReader(flat) as reader:
        return all(
            all_finite(reader.read_into(memory[: last - first], first)) for first, last in row_spans(flat, len(memory))
        )


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no element of a contiguous tensor on the CPU is NaN or infinite.

    By the compiled kernel where there is one. Else by the bits: of the positive numbers those are the largest integers,
    of the negative ones the largest unsigned.
    """
    import torch

    from numllm_kernels import processor

    if tensor.numel() == 0:
        return True
    if tensor.dtype in processor.KINDS and processor.library(build=False):
        return processor.all_finite(tensor)
    exponent = {
        torch.float64: 0x7FF << 52, torch.float32: 0xFF << 23, torch.float16: 0x1F << 10, torch.bfloat16: 0xFF << 7,
    }[tensor.dtype]
    size = tensor.element_size()
    bits = tensor.view(-1).view(torch.uint8).numpy()
    sign = 1 << (8 * size - 1)
    return int(bits.view(f"i{size}").max()) < exponent and int(bits.view(f"u{size}").max()) < sign + exponent
