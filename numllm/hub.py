"""Checkpoints of the Hugging Face Hub: downloaded into its cache, only the files that are needed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from .errors import CheckpointError, DataError
from .files import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_BESIDE = ("*.json", "*.txt", "*.tiktoken", "*.model", "*.jinja")
"""Configuration, tokenizer, chat templates. No code, no pickles, no second copy of the weights in other formats."""


@functools.cache
def download(name: str) -> Path:
    """The folder in the Hub's cache of `owner/name` or `owner/name@revision` (a branch, a tag or a commit).

    Asked once a process, so that weights, tokenizer and template are of one commit though a branch may move.
    First what stands beside the weights, then the weight files that the index names. What is in the cache is not
    fetched again, a download that was broken off is taken up, progress is shown on stderr, and HF_HUB_OFFLINE,
    HF_HOME and the like are honoured. CheckpointError when it is not to be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(_BESIDE)))
        # The same commit, though the branch may move between the two calls.
        commit = folder.name if folder.parent.name == "snapshots" else revision or None
        return Path(snapshot_download(repository, revision=commit, allow_patterns=weight_files(folder)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{name}: no such folder, and not to be had from the Hub ({reason}); "
            "download it first and give the folder"
        ) from error


def weight_files(folder: Path) -> list[str]:
    """Names of the weight files of a folder, as patterns: those of its index, or the single file."""
    if not (folder / INDEX).is_file():
        return [SINGLE]
    try:
        index: Any = read_json(folder / INDEX)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict):
        raise CheckpointError(f"{folder / INDEX}: has no weight_map")
    # Taken literally: a name is no pattern.
    return sorted({str(name).translate({ord(mark): f"[{mark}]" for mark in "*?["}) for name in named.values()})
