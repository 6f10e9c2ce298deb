"""What produced a result: the command, the hashes of the files it read, the versions of what it ran on."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import __version__
from ..files import Progress, no_progress
from ..hashes import digest

_OF_A_MODEL = ("*.safetensors", "*.json", "*.tiktoken", "merges.txt", "chat_template.jinja")


def model_files(folder: Path) -> list[Path]:
    """The files of a checkpoint or an adapter that a score depends on."""
    return sorted({file for pattern in _OF_A_MODEL for file in folder.glob(pattern) if file.is_file()})


def hashes(files: Iterable[Path], *, progress: Progress = no_progress) -> dict[str, str]:
    """Path → SHA-256 of files, which may be remembered (`numllm.hashes`); the files of the folders among them."""
    every = [
        file for path in files
        for file in (sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path])
    ]
    return {
        str(file): digest(file).sha256
        for file in progress(every, total=len(every), description="hashing", unit="file")
    }


def provenance(command: str, digests: dict[str, str]) -> dict[str, Any]:
    """{"command", "sha256", "versions"} for a result."""
    versions = {"numllm": __version__, "python": platform.python_version()}
    for package in ("torch", "tokenizers"):
        versions[package] = importlib.metadata.version(package)
    return {"command": command, "sha256": digests, "versions": versions}
