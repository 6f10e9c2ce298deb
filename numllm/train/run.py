"""A whole run: data, model, steps, checkpoints, adapters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..checkpoint import Checkpoint
from ..corpus import read_corpus
from ..data import ChoiceBatches, TextBatches
from ..errors import ConfigError, DataError, TrainError
from ..files import Progress, new_folder, no_progress, read_json, read_jsonl, write_aside, write_json
from ..model import load_model
from ..questions import read_questions
from ..settings import to_toml
from ..tokenizer import Tokenizer
from ..train_config import TrainConfig
from .state import fingerprint, last_checkpoint, prune
from .trainer import Event, Source, Trainer


def _sources(config: TrainConfig, tokenizer: Tokenizer) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    if "domain" in config.adapters and config.corpus is None:
        raise ConfigError("the domain adapter needs a corpus; give --corpus or --adapters numeric")
    if "numeric" in config.adapters and config.numct is None:
        raise ConfigError("the numeric adapter needs choice questions; give --numct or --adapters domain")
    if "domain" in config.adapters:
        texts = [row["text"] for row in read_corpus(Path(config.corpus)) if row["split"] == "train"]
        sources["domain"] = TextBatches(
            texts, tokenizer, rows=config.rows, length=config.length, seed=config.seed
        )
    if "numeric" in config.adapters:
        questions = read_questions([Path(config.numct)], split="train")
        sources["numeric"] = ChoiceBatches(
            questions, tokenizer, size=config.questions, length=config.length, loss=config.loss,
            text=config.text_weight > 0, seed=config.seed,
        )
    return sources


def _prepare_run(config: TrainConfig, checkpoint: Checkpoint, resume: bool) -> Path | None:
    """The training checkpoint to take up, if any; the run folder is made and checked."""
    run = Path(config.out)
    marks = fingerprint(config, checkpoint)
    if (run / "config.json").exists():
        if not resume:
            raise TrainError(f"{run}: holds a run already; continue it with --resume or choose another --out")
        before = read_json(run / "config.json")["fingerprint"]
        for key, value in marks.items():
            if before.get(key) != value:
                raise TrainError(
                    f"{run}: cannot resume, the {key} changed since the run began; start a new run"
                )
    elif resume:
        raise TrainError(f"{run}: there is no run to resume")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainError(f"{run}: cannot be made: {error.strerror}") from error
    last = last_checkpoint(run) if resume else None
    step = int(last.name.split("-")[1]) if last else 0
    rows = []
    if resume and (run / "metrics.jsonl").exists():
        rows = [row for _, row in read_jsonl(run / "metrics.jsonl") if row["step"] <= step]
    with write_aside(run / "metrics.jsonl") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    if not resume:
        with write_aside(run / "config.toml") as file:
            file.write(to_toml(config))
        write_json(run / "config.json", {"settings": dataclasses.asdict(config), "fingerprint": marks})
    return last


def train(
    config: TrainConfig, *, resume: bool = False, stop: Callable[[], bool] = lambda: False,
    progress: Progress = no_progress,
) -> Iterator[Event]:
    """Trains the adapters of `config` into its run folder.

    Yields {"event": "start", …}, then a {"event": "step", **metrics row} for each adapter and step,
    {"event": "saved", "path"} for each checkpoint, and {"event": "done", "adapters": {name: folder}}; or
    {"event": "interrupted", "path"} after `stop()` turned true and the state was saved. `resume` continues
    from the last checkpoint, bit for bit as if never stopped; it is refused when data, model or settings
    changed. TrainError, ConfigError, DataError and CheckpointError in one line.
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
    try:
        sources = _sources(config, tokenizer)
    except DataError as error:
        raise TrainError(str(error)) from error
    last = _prepare_run(config, checkpoint, resume)
    dtype = getattr(torch, config.dtype) if config.dtype else None
    model = load_model(checkpoint, dtype=dtype, device=config.device, progress=progress)
    trainer = Trainer(config, model, sources)
    if last is not None:
        trainer.load(last)
    run = Path(config.out)
    trained = sum(p.numel() for name in config.adapters for p in trainer.adapters.parameters(name))
    yield {
        "event": "start", "step": trainer.step, "steps": config.steps, "adapters": list(config.adapters),
        "trained_parameters": trained,
        "epoch_steps": {name: round(source.epoch_steps, 2) for name, source in sources.items()},
    }
    saved = trainer.step
    while trainer.step < config.steps:
        interrupted = stop()
        if not interrupted:
            rows = trainer.advance()
            _append(run / "metrics.jsonl", rows)
            for row in rows:
                yield {"event": "step", **row}
        due = trainer.step % config.save_every == 0 or trainer.step == config.steps
        if (due or interrupted) and trainer.step > saved:
            folder = run / "checkpoints" / f"step-{trainer.step}"
            trainer.save(folder)
            saved = trainer.step
            prune(run / "checkpoints", config.keep)
            yield {"event": "saved", "path": str(folder)}
        if interrupted:
            yield {"event": "interrupted", "step": trainer.step}
            return
    folders = {}
    for name in config.adapters:
        with new_folder(run / "adapters" / name, overwrite=True) as aside:
            trainer.adapters.save(name, aside, base_model=config.model)
        folders[name] = str(run / "adapters" / name)
    yield {"event": "done", "step": trainer.step, "adapters": folders}


def _append(path: Path, rows: list[Event]) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    except OSError as error:
        raise TrainError(
            f"{path}: cannot be written: {error.strerror}; mend that and continue with --resume"
        ) from error
