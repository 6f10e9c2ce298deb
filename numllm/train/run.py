"""A whole run: data, model, steps, validation, checkpoints, adapters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from ..errors import TrainError
from ..files import Progress, no_progress
from ..train_config import TrainConfig
from .board import Board
from .fit import ran_out
from .inputs import Inputs
from .marks import Watch
from .meter import Meter
from .state import NoFolder, RunFolder
from .trainer import Event, Source, Trainer
from .validation import Validation, score
from .world import World


def train(
    config: TrainConfig, *, model: nn.Module | None = None, batches: Mapping[str, Source] | None = None,
    resume: bool = False, stop: Callable[[], bool] = lambda: False, progress: Progress = no_progress,
    world: World | None = None,
) -> Iterator[Event]:
    """Trains the adapters of `config` into its run folder.

    model: a frozen model of one's own, instead of that of `config.model` (which stays the adapters' base_model): a
    module with `hidden(tokens, *, documents, branches, select)` as `Transformer` has it, `lm_head`, `device`, `dtype`;
    the adapters are put on its linears, and stay there.
    batches: adapter → batches of one's own, instead of those of corpus and numct: a function of the step, from 0, that
    always gives the same `data.Batch` for it. world: the processes of the run (`joined`); each makes the same global
    batch and takes its rows.

    Yields {"event": "start", …}, then a {"event": "step", **metrics row, "mfu", "memory"} for each adapter and step, a
    {"event": "validation", **metrics row} for each adapter that is validated, {"event": "saved", "path"} for each
    checkpoint, {"event": "ended", "adapter", "step"} for an adapter that stops improving, {"event": "warning",
    "message"}, and {"event": "done", "adapters": {name: folder}, "best": {name: step}}; or {"event":
    "interrupted", "step"} after `stop()` turned true and the state was saved. With validation the adapters are
    the best ones seen, else the last. `resume` continues from the last checkpoint, bit for bit as if never
    stopped; it is refused when data, model or settings changed. TrainError, ConfigError, DataError and
    CheckpointError in one line.
    """
    world = world or World(device=config.device)
    inputs = Inputs(config, model, batches)
    world.check_same(inputs.marks)
    folder = RunFolder(config, inputs.marks, resume=resume) if world.first else NoFolder(config)
    board = None
    try:
        inputs.read(folder.tokens, world, progress)
        trainer = Trainer(config, inputs.load(world, progress), inputs.batches, world)
        folder.begin()  # not before all settings have proved possible: what is refused leaves no run behind
        meter = Meter(trainer.model, config.peak_tflops, world.size)
        if resume:
            yield from folder.take_up(trainer)
            world.follow(trainer)
        if config.tensorboard and world.first:
            board = Board(folder.path / "tensorboard", trainer.step)
        yield {
            "event": "start", "step": trainer.step, "steps": config.steps, "adapters": list(config.adapters),
            "trained_parameters": sum(p.numel() for name in config.adapters for p in trainer.adapters.parameters(name)),
            "checkpointing": trainer.checkpointing,
            "epoch_steps": {
                name: round(source.epoch_steps, 2) for name, source in inputs.batches.items()
                if hasattr(source, "epoch_steps")
            },
            "processes": world.size,
        }
        for event in _loop(trainer, folder, inputs.validation, inputs.watch, meter, stop, progress):
            if board is not None:
                board.note(event)
            yield event
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise TrainError(f"{place}{error.strerror or error}; mend that and continue with --resume") from error
    except RuntimeError as error:
        if not ran_out(error):
            raise
        raise TrainError(
            "out of memory outside of a step: for the model, a validation or a checkpoint; what helps: "
            "--dtype bfloat16, a shorter --length, a smaller --rank, or --shard over several GPUs"
        ) from error
    finally:
        if board is not None:
            board.close()
        folder.close()


class _Stop(Exception):
    """A stop was asked for during a validation."""


def _loop(
    trainer: Trainer, folder: RunFolder | NoFolder, validation: Validation | None, watch: Watch, meter: Meter,
    stop: Callable[[], bool], progress: Progress,
) -> Iterator[Event]:
    """The steps from where the trainer stands to the end, each event when it has happened and is on disk."""
    config, world = trainer.config, trainer.world
    mapped = Watch({name: folder.tokens / name for name in ("tokens.bin", "ends.bin")})
    saved, saved_at, warned = (trainer.step, trainer.validated), time.monotonic(), False

    def stoppable(items: Iterable[Any], *arguments: Any, **named: Any) -> Iterator[Any]:
        for item in progress(items, *arguments, **named):
            if world.any(stop()):
                raise _Stop
            yield item

    while trainer.active or trainer.unvalidated():
        for name in mapped.changed():
            raise TrainError(
                f"{mapped.files[name]} changed during the run, which reads it; what was done since the last "
                "checkpoint is dropped; continue with --resume"
            )
        interrupted, due = world.any(stop()), False
        if not interrupted and not trainer.unvalidated():
            rows = trainer.advance()
            folder.append(rows)
            used = meter(rows)
            for row in rows:
                yield {"event": "step", **row, **used}
            for source in trainer.sources.values():
                if (cut := getattr(source, "cut", None)) and not warned:
                    warned = True
                    yield {"event": "warning", "message": (
                        f"question {min(cut)} is longer than --length {config.length}: it loses its beginning, and so "
                        "may others"
                    )}
            if (name := trainer.stuck()) is not None:
                raise _stuck(trainer, folder, name, rows)
            due = trainer.step % config.save_every == 0
            if config.save_minutes is not None:
                due = due or world.any(time.monotonic() - saved_at >= 60 * config.save_minutes)
        if not interrupted and (names := trainer.unvalidated()):
            try:
                found = {name: validation(trainer.model, trainer.adapters, name, stoppable) for name in names}
            except _Stop:
                interrupted = True
            else:
                rows = trainer.judge({name: (row, score(name, row)) for name, row in found.items()})
                folder.append(rows)
                for row in rows:
                    yield {"event": "validation", **row}
                    if trainer.ended.get(row["adapter"]) == trainer.step:
                        yield {"event": "ended", "adapter": row["adapter"], "step": trainer.step}
                due = due or any(row["best"] for row in rows)
        due = due or interrupted or not (trainer.active or trainer.unvalidated())
        if due and (trainer.step, trainer.validated) != saved:
            world.check_equal([p for name in config.adapters for p in trainer.adapters.parameters(name)])
            path = folder.save(trainer)
            saved, saved_at = (trainer.step, trainer.validated), time.monotonic()
            yield {"event": "saved", "path": str(path)}
            for name in watch.changed():
                yield {"event": "warning", "message": (
                    f"{watch.files[name]} changed during the run, which goes on with what it read at its start; "
                    "it can only be resumed when the file is put back"
                )}
        if interrupted:
            yield {"event": "interrupted", "step": trainer.step}
            return
    folders = {name: str(folder.write_adapter(trainer, name)) for name in config.adapters}
    yield {
        "event": "done", "step": trainer.step, "adapters": folders,
        "best": {name: best.step for name, best in trainer.best.items() if best.step is not None},
    }


def _stuck(trainer: Trainer, folder: RunFolder | NoFolder, name: str, rows: list[Event]) -> TrainError:
    """The error of a run that skips every step, its last batch kept for inspection."""
    path = folder.keep_batch(trainer, name)
    (row,) = (row for row in rows if row["adapter"] == name)
    return TrainError(
        f"step {row['step']}: the {name} adapter skipped {trainer.guards[name].skipped} steps in a row (loss "
        f"{row['loss']}, gradient {row['grad_norm']}: {row['skipped']}); its batch is in {path}; start a new run "
        "with a lower rate for it, or in another --dtype"
    )
