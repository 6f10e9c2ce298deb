"""The weights of a checkpoint: matched with what its configuration says, and read into their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint import (
    Checkpoint,
    RowReader,
    TensorInfo,
    all_finite,
    expected_shapes,
    read_rows,
    row_blocks,
    row_spans,
    torch_dtype,
)
from .config import ModelConfig
from .errors import CheckpointError

BLOCK = 1 << 21
"""Elements that are converted at a time, or that a thread is given."""
AS_IT_IS = 1 << 19
"""Elements read at a time into their place: few calls, and still in a core's own cache when they are checked."""


def _leftover(name: str, config: ModelConfig) -> bool:
    """Tensors that some checkpoints hold and that carry nothing: old rotary buffers, the tied head."""
    return name.endswith(".rotary_emb.inv_freq") or (config.tied and name == f"{config.family.name('lm_head')}.weight")


def matched(checkpoint: Checkpoint, config: ModelConfig) -> Iterator[tuple[str, TensorInfo]]:
    """(name in the model, where it lies) of every weight, after checking that names, shapes and dtypes agree.

    A tied head may be stored instead of the embedding, or beside it if it is equal. CheckpointError otherwise.
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
                f"{info.file}: {info.name} has the shape {list(info.shape)}, config.json wants {list(shape)}"
            )
        if info.dtype not in ("F32", "F16", "BF16"):
            raise CheckpointError(f"{info.file}: {info.name} is {info.dtype}; supported: F32, F16, BF16")
        yield name, info
    for name, info in checkpoint.tensors.items():
        if name not in stored and not _leftover(name, config):
            raise CheckpointError(
                f"{info.file}: {config.architecture} has no tensor {name!r}; the checkpoint is of another model"
            )
    if config.tied and {embedding, head} <= set(checkpoint.tensors):
        blocks = (row_blocks(checkpoint.tensors[name]) for name in (embedding, head))
        if not all(torch.equal(one, other) for one, other in zip(*blocks, strict=True)):
            raise CheckpointError(
                f"{checkpoint.folder}: config.json ties the head to the embedding, but {head} differs from "
                f"{embedding}; set tie_word_embeddings to false or remove one"
            )


def read_weight(
    info: TensorInfo, dtype: torch.dtype, device: torch.device, *, unit_rows: bool,
    each: Callable[..., Iterator[None]] = map,
) -> Tensor:
    """A weight in `dtype` on `device`, a block of rows at a time; unit_rows: each row divided by its length.

    each: `map`, or that of a pool, whose threads then share what is only read and checked; of conversions torch's own
    threads do. CheckpointError when an element is NaN or infinite, or becomes so in `dtype`.
    """
    weight = torch.empty(info.shape, dtype=dtype, device=device)
    if weight.device.type == "cpu" and dtype == torch_dtype(info.dtype) and not unit_rows:
        with RowReader(info) as reader:

            def fill(span: tuple[int, int]) -> None:
                for first in range(*span, step):
                    _check(reader.read_into(weight[first : min(first + step, span[1])], first), info)

            step = max(1, AS_IT_IS * len(weight) // weight.numel())
            spans = list(row_spans(info, BLOCK))
            for _ in (each if len(spans) > 1 else map)(fill, spans):
                pass
        return weight
    for first, last in row_spans(info, BLOCK):
        block = read_rows(info, first, last)
        if unit_rows:
            block = F.normalize(block.float())
        block = block.to(dtype)
        _check(block, info)
        weight[first:last].copy_(block)
    return weight


def _check(block: Tensor, info: TensorInfo) -> None:
    if not all_finite(block):
        raise CheckpointError(
            f"{info.file}: {info.name} holds NaN or infinity as {block.dtype}; the checkpoint is damaged or needs "
            "another --dtype"
        )
