"""What a run keeps on disk to go on from: its checkpoints, and what must not have changed since it began."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from ..checkpoint import Checkpoint
from ..files import sha256
from ..train_config import TrainConfig


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


def last_checkpoint(run: Path) -> Path | None:
    found = [
        (int(match.group(1)), path)
        for path in (run / "checkpoints").glob("step-*")
        if (match := re.fullmatch(r"step-(\d+)", path.name)) and (path / "state.json").is_file()
    ]
    return max(found)[1] if found else None


def prune(folder: Path, keep: int) -> None:
    found = sorted(folder.glob("step-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in found[:-keep]:
        # Renamed first, so that a kill in between leaves no half checkpoint under its name.
        doomed = path.with_name(f".{path.name}.old-{os.getpid()}")
        os.replace(path, doomed)
        shutil.rmtree(doomed)
