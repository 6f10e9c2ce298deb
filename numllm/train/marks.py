"""What a resumed run must find as it was: the settings that matter, the data, the model, the tokenizer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..files import sha256
from ..train_config import TrainConfig

FREE = (
    "out", "save_every", "save_minutes", "keep", "device", "impl", "model", "corpus", "numct", "heldout_corpus",
    "heldout_numct", "micro_tokens", "checkpointing", "deterministic", "offload", "shard", "tensorboard", "peak_tflops",
)
"""Settings that may differ when a run goes on: where things are, and what changes no result but its rounding."""
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "qwen.tiktoken",
    "tokenizer.model",
)
_SAMPLE = 4096
"""Bytes of each tensor of the frozen model that go into its fingerprint."""


def data_files(config: TrainConfig) -> dict[str, Path]:
    """Setting → file, of the data a run reads."""
    found = {}
    for name in ("corpus", "numct", "heldout_corpus", "heldout_numct"):
        if (value := getattr(config, name)) is not None:
            path = Path(value)
            found[name] = path / "corpus.jsonl" if path.is_dir() else path
    return found


class Watch:
    """Tells which of some files changed since it was made or last asked, by size, time and inode."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = dict(files)
        self._seen = {name: self._look(path) for name, path in files.items()}

    @staticmethod
    def _look(path: Path) -> tuple[int, int, int] | None:
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns, found.st_ino

    def changed(self) -> list[str]:
        """The names of the files that changed."""
        now = {name: self._look(path) for name, path in self.files.items()}
        found = [name for name, seen in self._seen.items() if now[name] != seen]
        self._seen = now
        return found


def settings_mark(config: TrainConfig) -> dict[str, Any]:
    """The settings that must not change, as JSON reads them back."""
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key not in FREE}
    return {"settings": json.loads(json.dumps(settings))}


def data_marks(config: TrainConfig) -> dict[str, str]:
    """Setting → SHA-256 of the data file it names."""
    return {name: sha256(path) for name, path in data_files(config).items()}


def tokenizer_mark(folder: Path) -> str:
    """Of the tokenizer's files in a checkpoint's folder."""
    return checksum({path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name in _TOKENIZER})


def fingerprint(config: TrainConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """What a resumed run must find unchanged: the settings, the data's bytes, the model.

    Of the model: its config, the header and some bytes from the middle of every tensor, and the tokenizer's
    files: enough to tell apart two models of one shape without reading all of them.
    """
    found = settings_mark(config) | data_marks(config)
    digest = hashlib.sha256(json.dumps(checkpoint.raw_config, sort_keys=True).encode())
    for info in sorted(checkpoint.tensors.values(), key=lambda info: info.name):
        digest.update(f"{info.name} {info.dtype} {info.shape} {info.file.name} {info.start}".encode())
        with open(info.file, "rb") as file:
            file.seek(info.start + max(info.nbytes - _SAMPLE, 0) // 2)
            digest.update(file.read(min(_SAMPLE, info.nbytes)))
    found["model"] = digest.hexdigest()
    return found | {"tokenizer": tokenizer_mark(checkpoint.folder)}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, for people: settings by name with both values."""
    found = []
    old, new = before.get("settings", {}), now["settings"]
    for key in sorted({*old, *new}):
        was, is_now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(is_now, dict):
            found += [f"{key}.{k} was {was.get(k)!r} and is now {v!r}" for k, v in is_now.items() if was.get(k) != v]
        elif was != is_now:
            found.append(f"{key} was {was!r} and is now {is_now!r}")
    for key in sorted({*before, *now} - {"settings"}):
        if before.get(key) != now.get(key):
            found.append(f"the {key} changed")
    return found


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
