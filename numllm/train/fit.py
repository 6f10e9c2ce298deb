"""Making a step fit a device: which activation checkpointing it takes, and what to do when memory ran out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch

from ..checkpoint import expected_shapes
from ..config import ModelConfig
from ..data import Batch
from ..memory import CHECKPOINTING, Memory, estimate
from ..train_config import TrainConfig

ROOM = 0.92
"""Share of the free memory that a step may be estimated to take: allocators and libraries need the rest."""
_WAYS_OUT = {
    "weights": "--dtype bfloat16 halves them; --shard spreads them over several GPUs",
    "adapters": "a smaller --rank, or fewer --targets",
    "moments": "a smaller --rank, or fewer --targets",
    "gradients": "a smaller --rank, or fewer --targets",
    "logits": "fewer --micro-tokens",
}


def need(
    config: TrainConfig, model: ModelConfig, parts: list[dict[str, Batch]], *, dtype: torch.dtype, checkpointing: str,
    cuda: bool, processes: int = 1,
) -> Memory:
    """The estimated memory of a step whose `parts` go through the model one after the other: that of the largest.

    processes: those that share the weights, where the settings shard them.
    """
    part = max(parts, key=lambda part: sum(batch.tokens.numel() for batch in part.values()))
    found = estimate(
        model, {name: config.lora(name) for name in config.adapters},
        rows=sum(len(batch.tokens) for batch in part.values()), length=next(iter(part.values())).tokens.shape[1],
        labels=sum(len(batch.labels) for batch in part.values()), dtype=str(dtype).removeprefix("torch."),
        checkpointing=checkpointing, cuda=cuda,
    )
    return sharded(found, model, processes) if config.shard else found


def sharded(found: Memory, model: ModelConfig, processes: int) -> Memory:
    """The estimate for each of several processes that shard the blocks: a share of them, and two whole, one of which is
    in use and one on its way.
    """
    shapes = list(expected_shapes(model))
    blocks = sum(math.prod(shape) for name, shape in shapes if ".layers." in name)
    whole = found.weights * blocks // sum(math.prod(shape) for _, shape in shapes)
    gathered = min(2 * whole // model.layers, whole)
    return dataclasses.replace(found, weights=found.weights - whole + -(-whole // processes) + gathered)


def choose(needs: Mapping[str, Memory], free: int) -> str:
    """The least activation checkpointing with which a step fits beside the weights, which are loaded; else "full".

    needs: checkpointing → the estimate with it; free: bytes.
    """
    fitting = (kind for kind in CHECKPOINTING if needs[kind].total - needs[kind].weights <= ROOM * free)
    return next(fitting, "full")


def ran_out(error: RuntimeError) -> bool:
    """Whether it is torch's for memory that is not to be had, of a GPU or of the host."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def out_of_memory(needed: Memory, config: TrainConfig, checkpointing: str) -> str:
    """One line for a step that found no memory: what takes most, and the flag that helps."""
    largest = needed.largest
    if largest in ("activations", "backward"):
        more = {"none": "selective", "selective": "full"}.get(checkpointing)
        ways = [f"--checkpointing {more}"] if more else []
        ways += [] if config.micro_tokens == config.length else ["fewer --micro-tokens (accumulated to the same step)"]
        ways += [] if config.offload else ["--offload"]
        way = ", ".join(ways) or "a shorter --length"
    else:
        way = _WAYS_OUT[largest]
    size = getattr(needed, largest)
    return (
        f"out of memory: a step is estimated to need {needed.total / 2**30:.2f} GiB, most of it for {largest} "
        f"({size / 2**30:.2f} GiB); what helps: {way}"
    )
