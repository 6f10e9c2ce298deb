"""What a run is made from, by files or by the caller: the frozen model, each adapter's batches, what is held out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import Checkpoint
from ..corpus import read_corpus
from ..data import ChoiceBatches, TextBatches
from ..errors import ConfigError, DataError, TrainError
from ..files import Progress, no_progress
from ..model import load_model
from ..questions import read_questions
from ..tokenizer import Tokenizer
from ..train_config import TrainConfig
from .state import Watch, data_files, fingerprint, settings_mark
from .trainer import Source
from .validation import Validation
from .world import World


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Everything a run reads, opened and checked; only the model's weights wait for `load`."""

    batches: Mapping[str, Source]
    validation: Validation | None
    watch: Watch
    marks: dict[str, Any]
    """What a resumed run must find unchanged."""
    load: Callable[[World, Progress], nn.Module]
    """The frozen model, on the world's device, sharded where the settings say so."""


def open_inputs(
    config: TrainConfig, model: nn.Module | None = None, batches: Mapping[str, Source] | None = None
) -> Inputs:
    """Opens what the settings name, or takes the caller's own model and batches (see `train`).

    TrainError, ConfigError, DataError and CheckpointError in one line.
    """
    checkpoint = None if model is not None else Checkpoint.open(config.model)
    if checkpoint is not None and config.length > checkpoint.config.context:
        raise TrainError(f"length {config.length} is more than the model's context of {checkpoint.config.context}")
    tokenizer = None
    if batches is None or config.validate_every:
        tokenizer = Tokenizer.open(config.model)
        size = model.lm_head.weight.shape[0] if checkpoint is None else checkpoint.config.vocab_size
        if tokenizer.vocab_size > size:
            raise TrainError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {size}")
    watch = Watch(data_files(config))
    try:
        sources = _from_files(config, tokenizer) if batches is None else _own(config, batches)
        validation = Validation(config, tokenizer) if config.validate_every else None
        marks = fingerprint(config, checkpoint) if checkpoint is not None else settings_mark(config) | _of(model)
    except DataError as error:
        raise TrainError(str(error)) from error
    except OSError as error:
        raise TrainError(f"{error.filename}: cannot be read: {error.strerror}") from error
    for name in watch.changed():
        raise TrainError(f"{watch.files[name]}: changed while it was being read; start again")

    def load(world: World, progress: Progress = no_progress) -> nn.Module:
        shard = world.sharder() if config.shard else None
        if model is not None:
            if shard is not None:
                raise TrainError("a model of one's own is sharded by its owner; leave shard off")
            return model
        dtype = getattr(torch, config.dtype) if config.dtype else None
        return load_model(checkpoint, dtype=dtype, device=world.device, progress=progress, placed=shard)

    return Inputs(sources, validation, watch, marks, load)


def _from_files(config: TrainConfig, tokenizer: Tokenizer) -> dict[str, Source]:
    if "domain" in config.adapters and config.corpus is None:
        raise ConfigError("the domain adapter needs a corpus; give --corpus or --adapters numeric")
    if "numeric" in config.adapters and config.numct is None:
        raise ConfigError("the numeric adapter needs choice questions; give --numct or --adapters domain")
    sources: dict[str, Source] = {}
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


def _own(config: TrainConfig, batches: Mapping[str, Source]) -> dict[str, Source]:
    missing = [name for name in config.adapters if name not in batches]
    if missing or len(batches) > len(config.adapters):
        raise ConfigError(f"batches must be for {', '.join(config.adapters)}, got {', '.join(batches) or 'none'}")
    return {name: batches[name] for name in config.adapters}


def _of(model: nn.Module) -> dict[str, str]:
    """The mark of a caller's model: names, shapes and dtypes of its weights, and the first values of each."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        first = weight.detach().flatten()[:64].double().cpu().tolist()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)} {first}".encode())
    return {"model": digest.hexdigest()}
