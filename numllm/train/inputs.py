"""What a run is made from, by files or by the caller: the frozen model, each adapter's batches, what is held out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ..chat import Chat
from ..checkpoint import Checkpoint, resolve
from ..corpus import read_corpus
from ..data import ChoiceBatches, TextBatches, in_memory, prepared
from ..errors import ConfigError, DataError, TrainError
from ..files import Progress, no_progress
from ..model import load_model
from ..questions import read_questions
from ..tokenizer import Tokenizer
from ..train_config import TrainConfig
from .marks import Watch, data_files, data_marks, fingerprint, settings_mark, tokenizer_mark
from .trainer import Source
from .validation import Validation
from .world import World


class Inputs:
    """Everything a run reads. marks: what a resumed run must find unchanged; watch: the data files.

    After `read`: batches (adapter → its batches), validation (None where there is none).
    """

    batches: Mapping[str, Source]
    validation: Validation | None

    def __init__(
        self, config: TrainConfig, model: nn.Module | None = None, batches: Mapping[str, Source] | None = None
    ) -> None:
        """Opens what the settings name, or takes the caller's own model and batches (see `train`).

        TrainError, ConfigError and CheckpointError in one line.
        """
        self.config, self._model, self._batches = config, model, batches
        self._checkpoint = None if model is not None else Checkpoint.open(config.model)
        context = math.inf if self._checkpoint is None else self._checkpoint.config.context
        if config.length > context:
            raise TrainError(f"length {config.length} is more than the model's context of {context}")
        self._tokenizer = None
        if batches is None or config.validate_every:
            self._tokenizer = Tokenizer.open(config.model)
            size = self._checkpoint.config.vocab_size if model is None else model.lm_head.weight.shape[0]
            if self._tokenizer.vocab_size > size:
                raise TrainError(f"the tokenizer has {self._tokenizer.vocab_size} tokens, the model only {size}")
        if batches is None:
            self._check_data()
        elif set(batches) != set(config.adapters):
            wanted, got = ", ".join(config.adapters), ", ".join(batches) or "none"
            raise ConfigError(f"batches must be for the adapters {wanted}, got {got}")
        self.watch = Watch(data_files(config))
        try:
            if self._checkpoint is None:
                self.marks = settings_mark(config) | data_marks(config) | {"model": _mark(model)}
                if self._tokenizer is not None:
                    self.marks["tokenizer"] = tokenizer_mark(resolve(config.model))
            else:
                self.marks = fingerprint(config, self._checkpoint)
        except OSError as error:
            raise TrainError(f"{error.filename}: cannot be read: {error.strerror}") from error

    def _check_data(self) -> None:
        if "domain" in self.config.adapters and self.config.corpus is None:
            raise ConfigError("the domain adapter needs a corpus; give --corpus or --adapters numeric")
        if "numeric" in self.config.adapters and self.config.numct is None:
            raise ConfigError("the numeric adapter needs choice questions; give --numct or --adapters domain")

    def read(self, folder: Path | None, world: World, progress: Progress = no_progress) -> None:
        """Reads the data. The first process keeps the corpus's tokens in `folder`, where the others find them; with
        None, or where they do not see it, they are in memory.
        """
        if not world.first:
            world.wait()
            folder = folder if folder is not None and folder.is_dir() else None
        try:
            self.batches = self._from_files(folder, progress) if self._batches is None else self._batches
            self.validation = Validation(self.config, self._tokenizer) if self.config.validate_every else None
        except DataError as error:
            raise TrainError(str(error)) from error
        for name in self.watch.changed():
            raise TrainError(f"{self.watch.files[name]}: changed while it was being read; start again")
        if world.first:
            world.wait()

    def _from_files(self, folder: Path | None, progress: Progress) -> dict[str, Source]:
        config, sources = self.config, {}
        if "domain" in config.adapters:
            texts = (row["text"] for row in read_corpus(Path(config.corpus)) if row["split"] == "train")
            shown = progress(texts, description="tokens", unit="document")
            sources["domain"] = TextBatches(
                in_memory(shown, self._tokenizer) if folder is None else
                prepared(shown, self._tokenizer, folder, f"{self.marks['corpus']} {self.marks['tokenizer']}"),
                self._tokenizer, rows=config.rows, tokens=config.tokens, length=config.length, seed=config.seed,
            )
        if "numeric" in config.adapters:
            questions = read_questions([Path(config.numct)], split="train")
            sources["numeric"] = ChoiceBatches(
                questions, self._tokenizer, size=config.questions, tokens=config.tokens, length=config.length,
                loss=config.loss, text=config.text_weight > 0, letter_weight=config.letter_weight,
                varied=config.varied, chat=Chat.open(config.model, self._tokenizer) if config.chat else None,
                seed=config.seed,
            )
            if config.digit_weight and not sources["numeric"].has_digits:
                raise TrainError("digit_weight needs a tokenizer with a token for each digit; leave it at 0")
        return sources

    def load(self, world: World, progress: Progress = no_progress) -> nn.Module:
        """The frozen model, on the world's device, sharded where the settings say so."""
        shard = world.sharder() if self.config.shard else None
        if self._model is not None:
            if shard is not None:
                raise TrainError("a model of one's own is sharded by its owner; leave shard off")
            return self._model
        dtype = getattr(torch, self.config.dtype) if self.config.dtype else None
        return load_model(self._checkpoint, dtype=dtype, device=world.device, progress=progress, placed=shard)


def _mark(model: nn.Module) -> str:
    """What a caller's model is told by: names, shapes and dtypes of its weights, and the first values of each."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        first = weight.detach().flatten()[:64].double().cpu().tolist()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)} {first}".encode())
    return digest.hexdigest()
