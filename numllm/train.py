"""Training both adapters on the frozen model: a generator of events that prints nothing.

Both adapters' rows go through each frozen product together; each adapter's columns see its own rows only, so
the gradients are those of two separate runs (see `lora`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import ops
from .checkpoint import Checkpoint, read_header, read_tensor, write_safetensors
from .config import TrainConfig
from .corpus import read_corpus
from .data import Batch, ChoiceBatches, TextBatches
from .errors import ConfigError, DataError, TrainError
from .files import Progress, new_folder, no_progress, read_json, read_jsonl, sha256, write_aside, write_json
from .lora import AdapterSet, attach
from .model import Transformer, load_model
from .questions import read_questions
from .settings import to_toml
from .tokenizer import Tokenizer

Event = dict[str, Any]
Source = Callable[[int], Batch]


def choice_loss(losses: Tensor, batch: Batch, text_weight: float = 0.0) -> Tensor:
    """Mean over questions of −log softmax(scores)[answer] + text_weight · text loss, a fp32 scalar.

    losses (S,): −log p of each scored token. An option's score is Σ weight · log p over its positions, that
    is its length-normalised log-likelihood (NumCT by likelihood); the text loss is the mean of −log p over the
    tokens of the text with the right option in it.
    """
    choice = batch.choice
    scores = losses.new_zeros(sum(choice.sizes)).index_add(0, choice.options, -losses * choice.weights)
    per_question = scores.split(choice.sizes)
    whole = torch.stack([question.logsumexp(0) for question in per_question]).sum()
    total = whole - scores[choice.answers].sum() + text_weight * (losses * choice.text).sum()
    return total / batch.count


def batch_loss(losses: Tensor, batch: Batch, text_weight: float = 0.0) -> Tensor:
    """The loss of a batch from −log p of its scored tokens: their mean, or `choice_loss`."""
    return losses.sum() / batch.count if batch.choice is None else choice_loss(losses, batch, text_weight)


def forward_losses(
    model: Transformer, adapters: AdapterSet, batches: Mapping[str, Batch], text_weight: float = 0.0
) -> dict[str, Tensor]:
    """Each adapter's loss (differentiable scalar) from one pass over all their rows, put side by side."""
    order = {name: adapters.names.index(name) for name in batches}
    parts = list(batches.values())
    rows = torch.cat([
        torch.full((len(batch.tokens),), order[name], dtype=torch.int32) for name, batch in batches.items()
    ]).to(parts[0].tokens.device)
    offsets = [0]
    for batch in parts[:-1]:
        offsets.append(offsets[-1] + batch.tokens.numel())
    branches = None
    if any(batch.branches is not None for batch in parts):
        branches = torch.cat([
            torch.zeros_like(batch.documents) if batch.branches is None else batch.branches for batch in parts
        ])
    with adapters.use(next(iter(batches)) if len(batches) == 1 else rows):
        x = model.hidden(
            torch.cat([batch.tokens for batch in parts]),
            documents=torch.cat([batch.documents for batch in parts]), branches=branches,
        )
    positions = torch.cat([batch.positions + at for batch, at in zip(parts, offsets, strict=True)])
    losses = ops.token_losses(
        x.flatten(0, 1)[positions], model.lm_head.weight, torch.cat([batch.labels for batch in parts])
    )
    split = losses.split([len(batch.labels) for batch in parts])
    return {
        name: batch_loss(part, batch, text_weight)
        for (name, batch), part in zip(batches.items(), split, strict=True)
    }


def _width(batches: Mapping[str, Batch]) -> dict[str, Batch]:
    """The batches with their rows padded to one width, so that they can go side by side."""
    width = max(batch.tokens.shape[1] for batch in batches.values())
    return {name: batch.widened(width) for name, batch in batches.items()}


class Trainer:
    """The state of one run: model, adapters, one optimizer an adapter, and the step it has reached."""

    def __init__(
        self, config: TrainConfig, model: Transformer, sources: Mapping[str, Source]
    ) -> None:
        self.config, self.model, self.sources = config, model, sources
        self.adapters = attach(
            model, {name: config.lora(name) for name in config.adapters}, seed=config.seed, impl=config.impl
        )
        self.optimizers = {
            name: torch.optim.AdamW(
                self.adapters.parameters(name), lr=0.0, weight_decay=config.weight_decay, fused=True
            )
            for name in config.adapters
        }
        self.step = 0

    def advance(self) -> list[Event]:
        """One step of every adapter; a metrics row for each. TrainError when an adapter cannot learn."""
        config, began = self.config, time.perf_counter()
        batches = _width({name: self.sources[name](self.step) for name in config.adapters})
        batches = {name: batch.to(self.model.device) for name, batch in batches.items()}
        losses = forward_losses(self.model, self.adapters, batches, config.text_weight)
        torch.stack(list(losses.values())).sum().backward()
        rows = []
        for name, loss in losses.items():
            parameters = self.adapters.parameters(name)
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip)
            if not torch.isfinite(norm) or not torch.isfinite(loss):
                raise TrainError(
                    f"step {self.step + 1}: the {name} adapter's loss is {loss.item()} and its gradient "
                    f"{norm.item()}; lower its rate, or train in another --dtype"
                )
            if self.step == 0 and norm == 0:
                raise TrainError(f"the {name} adapter received no gradient in the first step")
            rate = config.rate(name, self.step)
            self.optimizers[name].param_groups[0]["lr"] = rate
            self.optimizers[name].step()
            self.optimizers[name].zero_grad()
            if self.step == 0 and not any(b.any() for b in parameters[1::2]):
                raise TrainError(f"the {name} adapter did not move in the first step")
            rows.append({
                "step": self.step + 1, "adapter": name, "loss": loss.item(), "lr": rate,
                "grad_norm": norm.item(), "tokens": int((batches[name].documents >= 0).sum()),
            })
        seconds = time.perf_counter() - began
        total = sum(row["tokens"] for row in rows)
        for row in rows:
            row |= {"tokens_per_second": round(total / seconds, 1), "seconds": round(seconds, 4)}
        self.step += 1
        return rows

    def save(self, folder: Path) -> None:
        """Writes adapters and optimizer state; whole or not at all."""
        with new_folder(folder, overwrite=True) as aside:
            tensors = {}
            for name in self.config.adapters:
                self.adapters.save(name, aside / name, base_model=self.config.model)
                for index, state in self.optimizers[name].state_dict()["state"].items():
                    tensors |= {f"{name}.{index}.{key}": value for key, value in state.items()}
            write_safetensors(aside / "optimizer.safetensors", tensors)
            write_json(aside / "state.json", {"step": self.step})

    def load(self, folder: Path) -> None:
        """Takes up the state that `save` wrote."""
        header, _ = read_header(folder / "optimizer.safetensors")
        with torch.no_grad():
            for name in self.config.adapters:
                weights, _ = read_header(folder / name / "adapter_model.safetensors")
                for path, module in self.adapters.modules.items():
                    for part, factors in (("A", module.a), ("B", module.b)):
                        if name in factors:
                            info = weights[f"base_model.model.{path}.lora_{part}.weight"]
                            factors[name].copy_(read_tensor(info))
                state: dict[int, dict[str, Tensor]] = {}
                for key, info in header.items():
                    owner, index, leaf = key.split(".")
                    if owner == name:
                        state.setdefault(int(index), {})[leaf] = read_tensor(info)
                optimizer = self.optimizers[name]
                optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        self.step = read_json(folder / "state.json")["step"]


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


def fingerprint(config: TrainConfig, checkpoint: Checkpoint) -> dict[str, str]:
    """What a resumed run must find unchanged: the settings, the data, the model's config and headers."""
    settings = {
        key: value for key, value in dataclasses.asdict(config).items()
        if key not in ("out", "save_every", "keep", "device", "impl", "model", "corpus", "numct")
    }
    found = {"settings": json.dumps(settings, sort_keys=True)}
    for name in ("corpus", "numct"):
        path = getattr(config, name)
        if path is not None:
            path = Path(path)
            found[name] = sha256(path / "corpus.jsonl" if path.is_dir() else path)
    digest = hashlib.sha256(json.dumps(checkpoint.raw_config, sort_keys=True).encode())
    for info in sorted(checkpoint.tensors.values(), key=lambda info: info.name):
        digest.update(f"{info.name} {info.dtype} {info.shape} {info.file.name} {info.start}".encode())
    found["model"] = digest.hexdigest()
    return found


def _last_checkpoint(run: Path) -> Path | None:
    found = [
        (int(match.group(1)), path)
        for path in (run / "checkpoints").glob("step-*")
        if (match := re.fullmatch(r"step-(\d+)", path.name)) and (path / "state.json").is_file()
    ]
    return max(found)[1] if found else None


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
    last = _last_checkpoint(run) if resume else None
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
            _prune(run / "checkpoints", config.keep)
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


def _prune(folder: Path, keep: int) -> None:
    found = sorted(folder.glob("step-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in found[:-keep]:
        # Renamed first, so that a kill in between leaves no half checkpoint under its name.
        doomed = path.with_name(f".{path.name}.old-{os.getpid()}")
        os.replace(path, doomed)
        shutil.rmtree(doomed)
