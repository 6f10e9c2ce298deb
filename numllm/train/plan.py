"""What a run would do and take, from its data and a few measured steps; nothing is written."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..data import Batch
from ..files import Progress, no_progress
from ..train_config import TrainConfig
from .inputs import Inputs
from .meter import Meter
from .trainer import Source, Trainer
from .world import World

MEASURED = 3
"""Steps measured after a first one that warms up."""


def plan(
    config: TrainConfig, *, model: nn.Module | None = None, batches: Mapping[str, Source] | None = None,
    world: World | None = None, progress: Progress = no_progress,
) -> dict[str, Any]:
    """The plan of a training run; the arguments are those of `train`.

    → {"event": "plan", "steps", "checkpointing", "processes", "trained_parameters", "checkpoint_bytes",
    "bytes_per_step" (given to the all-reduces by each process), "adapters": {name: {"rows", "tokens", "labels" (of a
    step), "epochs" (of the run, None when unknown)}}, "tokens" (of the run), "memory": {"estimated": {term: bytes,
    "total"} or None, "measured"}, "seconds_per_step", "tokens_per_second", "mfu", "seconds" (of the run, without
    validation and checkpoints)}.
    """
    world = world or World(device=config.device)
    inputs = Inputs(config, model, batches)
    inputs.read(None, world, progress)
    trainer = Trainer(config, inputs.load(world, progress), inputs.batches, world)
    meter = Meter(trainer.model, config.peak_tflops, world.size)
    first = {name: source(0) for name, source in inputs.batches.items()}
    steps = max(config.end(name) for name in config.adapters)
    shown = progress(range(min(MEASURED + 1, steps)), description="measuring", unit="step")
    measured = [trainer.advance() for _ in shown]
    steady = measured[1:] or measured
    seconds = statistics.median(rows[0]["seconds"] for rows in steady)
    tokens = sum(
        statistics.mean(row["tokens"] for rows in measured for row in rows if row["adapter"] == name) * config.end(name)
        for name in config.adapters
    )
    used = [meter(rows) for rows in steady]
    needed = trainer.need(trainer.checkpointing)
    trained = sum(p.numel() for name in config.adapters for p in trainer.adapters.parameters(name))
    return {
        "event": "plan", "steps": steps, "checkpointing": trainer.checkpointing, "processes": world.size,
        "trained_parameters": trained,
        "checkpoint_bytes": 12 * trained,  # factors and two moments, fp32
        "bytes_per_step": world.sent // len(measured),
        "adapters": {name: _adapter(config, name, batch, inputs.batches[name]) for name, batch in first.items()},
        "tokens": round(tokens),
        "memory": {
            "estimated": None if needed is None else dataclasses.asdict(needed) | {"total": needed.total},
            "measured": used[-1]["memory"],
        },
        "seconds_per_step": seconds,
        "tokens_per_second": statistics.median(rows[0]["tokens_per_second"] for rows in steady),
        "mfu": None if used[0]["mfu"] is None else statistics.median(step["mfu"] for step in used),
        "seconds": seconds * steps,
    }


def _adapter(config: TrainConfig, name: str, batch: Batch, source: Source) -> dict[str, Any]:
    epoch = getattr(source, "epoch_steps", None)
    return {
        "rows": len(batch.tokens), "tokens": int((batch.documents >= 0).sum()), "labels": len(batch.labels),
        "epochs": None if epoch is None else round(config.end(name) / epoch, 2),
    }
