"""A whole run: data, model, steps, validation, checkpoints, adapters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..chat import Chat
from ..checkpoint import Checkpoint
from ..corpus import read_corpus
from ..data import ChoiceBatches, TextBatches, prepared
from ..errors import DataError, TrainError
from ..files import Progress, no_progress
from ..model import load_model
from ..questions import read_questions
from ..tokenizer import Tokenizer
from ..train_config import TrainConfig
from .state import RunFolder, Watch, data_files, fingerprint
from .trainer import Event, Source, Trainer
from .validation import Validation, score


def _sources(
    config: TrainConfig, tokenizer: Tokenizer, folder: Path, marks: Mapping[str, Any], progress: Progress
) -> dict[str, Source]:
    """Adapter → its batches; the corpus's tokens are kept in `folder`."""
    sources: dict[str, Source] = {}
    if "domain" in config.adapters:
        texts = (row["text"] for row in read_corpus(Path(config.corpus)) if row["split"] == "train")
        sources["domain"] = TextBatches(
            prepared(
                progress(texts, description="tokens", unit="document"), tokenizer, folder,
                f"{marks['corpus']} {marks['tokenizer']}",
            ), tokenizer,
            rows=config.rows, tokens=config.tokens, length=config.length, seed=config.seed,
        )
    if "numeric" in config.adapters:
        questions = read_questions([Path(config.numct)], split="train")
        sources["numeric"] = ChoiceBatches(
            questions, tokenizer, size=config.questions, tokens=config.tokens, length=config.length, loss=config.loss,
            text=config.text_weight > 0, letter_weight=config.letter_weight,
            varied=config.varied, chat=Chat.open(config.model, tokenizer) if config.chat else None, seed=config.seed,
        )
        if config.digit_weight and not sources["numeric"].has_digits:
            raise TrainError("digit_weight needs a tokenizer with a token for each digit; leave it at 0")
    return sources


def train(
    config: TrainConfig, *, resume: bool = False, stop: Callable[[], bool] = lambda: False,
    progress: Progress = no_progress,
) -> Iterator[Event]:
    """Trains the adapters of `config` into its run folder.

    Yields {"event": "start", …}, then a {"event": "step", **metrics row} for each adapter and step, a
    {"event": "validation", **metrics row} for each adapter that is validated, {"event": "saved", "path"} for each
    checkpoint, {"event": "ended", "adapter", "step"} for an adapter that stops improving, {"event": "warning",
    "message"}, and {"event": "done", "adapters": {name: folder}, "best": {name: step}}; or {"event":
    "interrupted", "step"} after `stop()` turned true and the state was saved. With validation the adapters are
    the best ones seen, else the last. `resume` continues from the last checkpoint, bit for bit as if never
    stopped; it is refused when data, model or settings changed. TrainError, ConfigError, DataError and
    CheckpointError in one line.
    """
    checkpoint = Checkpoint.open(config.model)
    if config.length > checkpoint.config.context:
        raise TrainError(
            f"length {config.length} is more than the model's context of {checkpoint.config.context}"
        )
    tokenizer = Tokenizer.open(config.model)
    if tokenizer.vocab_size > checkpoint.config.vocab_size:
        raise TrainError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {checkpoint.config.vocab_size}"
        )
    watch = Watch(data_files(config))
    try:
        marks = fingerprint(config, checkpoint)
    except OSError as error:
        raise TrainError(f"{error.filename}: cannot be read: {error.strerror}") from error
    folder = RunFolder(config, marks, resume=resume)
    try:
        try:
            sources = _sources(config, tokenizer, folder.tokens, marks, progress)
            validation = Validation(config, tokenizer) if config.validate_every else None
        except DataError as error:
            raise TrainError(str(error)) from error
        for name in watch.changed():
            raise TrainError(f"{watch.files[name]}: changed while it was being read; start again")
        folder.begin()
        dtype = getattr(torch, config.dtype) if config.dtype else None
        model = load_model(checkpoint, dtype=dtype, device=config.device, progress=progress)
        trainer = Trainer(config, model, sources)
        if resume:
            yield from folder.take_up(trainer)
        yield {
            "event": "start", "step": trainer.step, "steps": config.steps, "adapters": list(config.adapters),
            "trained_parameters": sum(p.numel() for name in config.adapters for p in trainer.adapters.parameters(name)),
            "checkpointing": trainer.checkpointing,
            "epoch_steps": {name: round(source.epoch_steps, 2) for name, source in sources.items()},
        }
        yield from _loop(trainer, folder, validation, watch, stop, progress)
    finally:
        folder.close()


class _Stop(Exception):
    """A stop was asked for during a validation."""


def _loop(
    trainer: Trainer, folder: RunFolder, validation: Validation | None, watch: Watch, stop: Callable[[], bool],
    progress: Progress,
) -> Iterator[Event]:
    """The steps from where the trainer stands to the end, each event when it has happened and is on disk."""
    config = trainer.config
    mapped = Watch({name: folder.tokens / name for name in ("tokens.bin", "ends.bin")})
    saved, saved_at = (trainer.step, trainer.validated), time.monotonic()

    def stoppable(items: Iterable[Any], *arguments: Any, **named: Any) -> Iterator[Any]:
        for item in progress(items, *arguments, **named):
            if stop():
                raise _Stop
            yield item

    while trainer.active or trainer.unvalidated():
        interrupted, due = stop(), False
        if not interrupted and not trainer.unvalidated():
            rows = trainer.advance()
            folder.append(rows)
            for row in rows:
                yield {"event": "step", **row}
            if (name := trainer.stuck()) is not None:
                raise _stuck(trainer, folder, name, rows)
            due = trainer.step % config.save_every == 0
            if config.save_minutes is not None:
                due = due or time.monotonic() - saved_at >= 60 * config.save_minutes
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
            for name in mapped.changed():
                raise TrainError(
                    f"{mapped.files[name]} changed during the run, which reads it; what was done since the last "
                    "checkpoint is dropped; continue with --resume"
                )
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


def _stuck(trainer: Trainer, folder: RunFolder, name: str, rows: list[Event]) -> TrainError:
    """The error of a run that skips every step, its last batch kept for inspection."""
    path = folder.keep_batch(trainer, name)
    (row,) = (row for row in rows if row["adapter"] == name)
    return TrainError(
        f"step {row['step']}: the {name} adapter skipped {trainer.guards[name].skipped} steps in a row (loss "
        f"{row['loss']}, gradient {row['grad_norm']}: {row['skipped']}); its batch is in {path}; lower its rate, or "
        "train in another --dtype"
    )
