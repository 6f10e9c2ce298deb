"""The weights of a checkpoint: matched with what its configuration says, and read into their place."""

from __future__ import annotations

import ctypes
import functools
import itertools
import mmap
import re
import sys
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint import (
    Checkpoint,
    RowReader,
    TensorInfo,
    expected_shapes,
    read_rows,
    row_blocks,
    row_spans,
    torch_dtype,
)
from .config import ModelConfig
from .errors import CheckpointError
from .finite import all_finite

PIECE = 1 << 21
"""Elements that are read, checked and converted at a time."""

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE, in Linux since 5.14."""


def _leftover(name: str, config: ModelConfig) -> bool:
    """Tensors that some checkpoints hold and that carry nothing: old rotary buffers, the tied head."""
    return name.endswith(".rotary_emb.inv_freq") or (config.tied and name == f"{config.family.name('lm_head')}.weight")


def matched(
    checkpoint: Checkpoint, config: ModelConfig, *, headers_only: bool = False
) -> Iterator[tuple[str, TensorInfo]]:
    """(name in the model, where it lies) of every weight, after checking that names, shapes and dtypes agree.

    A tied head may be stored instead of the embedding, or beside it if it is equal, which headers_only takes for
    granted. CheckpointError otherwise.
    """
    expected = dict(expected_shapes(config))
    stored = {name: name for name in expected}
    embedding, head = next(iter(expected)), f"{config.family.name('lm_head')}.weight"
    if config.tied and embedding not in checkpoint.tensors and head in checkpoint.tensors:
        stored[embedding] = head
    for name, shape in expected.items():
        info = checkpoint.info(stored[name])
        if info.shape != shape:
            raise CheckpointError(
                f"{info.file}: {info.name} has the shape {list(info.shape)}, config.json wants {list(shape)}; one "
                "of the two is of another model"
            )
        if info.dtype not in ("F32", "F16", "BF16"):
            raise CheckpointError(f"{info.file}: {info.name} is {info.dtype}; convert it to F32, F16 or BF16")
        yield name, info
    for name, info in checkpoint.tensors.items():
        if name not in stored and not _leftover(name, config):
            raise CheckpointError(
                f"{info.file}: {config.architecture} has no tensor {name!r}; the checkpoint is of another model"
            )
    if config.tied and {embedding, head} <= set(checkpoint.tensors) and not headers_only:
        blocks = (row_blocks(checkpoint.tensors[name]) for name in (embedding, head))
        if not all(torch.equal(one, other) for one, other in zip(*blocks, strict=True)):
            raise CheckpointError(
                f"{checkpoint.folder}: config.json ties the head to the embedding, but {head} differs from "
                f"{embedding}; set tie_word_embeddings to false or remove one"
            )


def read_weights(
    weights: Iterable[tuple[str, TensorInfo]], dtype: torch.dtype, device: torch.device, *,
    unit_rows: Container[str] = (), threads: int = 1,
) -> Iterator[tuple[str, Tensor]]:
    """(name, weight in `dtype` on `device`) of each, in their order, a block of the model at a time.

    What is wanted as it lies on disk, on the CPU, is read and checked by `threads` threads at once; all else some rows
    at a time, converted by torch's own threads. unit_rows: names of the weights whose rows are divided by their
    lengths. CheckpointError when an element is NaN or infinite, or becomes so in `dtype`.
    """
    with ThreadPoolExecutor(max(1, threads - 1), "numllm-load") as pool:
        for _, group in itertools.groupby(weights, lambda weight: block_of(weight[0])):
            block = list(group)
            read: list[Tensor] = []
            pieces: list[Callable[[], None]] = []
            for name, info in block:
                if device.type == "cpu" and dtype == torch_dtype(info.dtype) and name not in unit_rows:
                    read.append(torch.empty(info.shape, dtype=dtype))
                    pieces += [partial(_fill, read[-1], info, *span) for span in row_spans(info, PIECE)]
                else:
                    read.append(_converted(info, dtype, device, unit_rows=name in unit_rows))
            _run(pieces, pool, threads)
            yield from zip((name for name, _ in block), read, strict=True)


def block_of(name: str) -> int | None:
    """The number of the block that a weight is in."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def _run(tasks: list[Callable[[], None]], pool: ThreadPoolExecutor, threads: int) -> None:
    """Runs tasks on this thread and threads - 1 of the pool, each of which takes the next when it is done with one.

    Handed out one by one they would wake a thread each, and the whole takes a third longer.
    """
    left = iter(tasks)

    def work() -> None:
        for task in left:
            task()

    helpers = [pool.submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        helper.result()


def _fill(weight: Tensor, info: TensorInfo, first: int, last: int) -> None:
    """Reads rows first..last-1 of a weight into their place, and checks them there."""
    block = weight[first:last]
    _populate(block)
    with RowReader(info) as reader:
        _check(reader.read_into(block, first), info)


def _converted(info: TensorInfo, dtype: torch.dtype, device: torch.device, *, unit_rows: bool) -> Tensor:
    weight = torch.empty(info.shape, dtype=dtype, device=device)
    for first, last in row_spans(info, PIECE):
        block = read_rows(info, first, last)
        if unit_rows:
            block = F.normalize(block.float())
        block = block.to(dtype)
        _check(block, info)
        weight[first:last].copy_(block)
    return weight


def _populate(block: Tensor) -> None:
    """Has the system put pages under fresh memory at once: a third cheaper than a fault for each while it is read into.

    An older kernel refuses, and nothing is lost.
    """
    if madvise := _madvise():
        start = block.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        madvise(start, block.data_ptr() + block.nbytes - start, _POPULATE_WRITE)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise


def _check(block: Tensor, info: TensorInfo) -> None:
    if not all_finite(block):
        raise CheckpointError(
            f"{info.file}: {info.name} holds NaN or infinity as {block.dtype}; the checkpoint is damaged or needs "
            "another --dtype"
        )
