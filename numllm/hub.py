"""Checkpoints of the Hugging Face Hub: downloaded into its cache, only the files that are needed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import CheckpointError, DataError
from .files import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_BESIDE = ("*.json", "*.txt", "*.tiktoken", "*.model", "*.jinja")
"""Configuration, tokenizer, chat templates. No code, no pickles, no second copy of the weights in other formats."""

_REQUESTS = 8
"""Headers fetched at a time."""


@functools.cache
def download(name: str) -> Path:
    """The folder in the Hub's cache of `owner/name` or `owner/name@revision` (a branch, a tag or a commit).

    Asked once a process, so that weights, tokenizer and template are of one commit though a branch may move.
    First what stands beside the weights, then the weight files that the index names. What is in the cache is not
    fetched again, a download that was broken off is taken up, progress is shown on stderr, and HF_HUB_OFFLINE,
    HF_HOME and the like are honoured. CheckpointError when it is not to be had.
    """
    from huggingface_hub import snapshot_download

    with _one_line(name):
        folder, repository, commit = _beside(name)
        wanted = [_literally(file) for file in weight_files(folder)]
        return Path(snapshot_download(repository, revision=commit, allow_patterns=wanted))


@contextlib.contextmanager
def outline(name: str) -> Iterator[tuple[Path, bool]]:
    """(folder, whether its weights hold their numbers) of `owner/name[@revision]`, for as long as the block lasts.

    Where the cache lacks weights, only their headers are fetched, and the folder is one of files that have the
    weights' names and sizes and a hole where their numbers are. CheckpointError as `download`.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    with tempfile.TemporaryDirectory(prefix="numllm-") as scratch:
        with _one_line(name):
            folder, repository, commit = _beside(name)
            weights = weight_files(folder)
            cached = [isinstance(try_to_load_from_cache(repository, file, revision=commit), str) for file in weights]
            outlined = Path(scratch) / name.replace("/", "--")
            if not all(cached):
                shutil.copytree(folder, outlined, ignore=shutil.ignore_patterns("*.safetensors"))
                safe = [file for file in weights if file == Path(file).name]  # `Checkpoint` refuses the others
                header = functools.partial(HfApi().parse_safetensors_file_metadata, repository, revision=commit)
                with concurrent.futures.ThreadPoolExecutor(_REQUESTS) as pool:
                    for file, found in zip(safe, pool.map(header, safe), strict=True):
                        _write_outline(outlined / file, found)
        yield (folder, True) if all(cached) else (outlined, False)


def _write_outline(path: Path, found: Any) -> None:
    """A file of the size of one of which huggingface_hub has read the header; where its numbers were is a hole."""
    header = {
        name: {"dtype": each.dtype, "shape": each.shape, "data_offsets": each.data_offsets}
        for name, each in found.tensors.items()
    }
    text = json.dumps({"__metadata__": found.metadata, **header} if found.metadata else header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + max((each.data_offsets[1] for each in found.tensors.values()), default=0))


def _beside(name: str) -> tuple[Path, str, str | None]:
    """(folder in the cache with what stands beside the weights, repository, commit)."""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(_BESIDE)))
    # The same commit later, though the branch may move.
    return folder, repository, folder.name if folder.parent.name == "snapshots" else revision or None


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """CheckpointError for whatever the Hub answers."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        SafetensorsParsingError,
    )

    try:
        yield
    except SafetensorsParsingError as error:
        raise CheckpointError(f"{name}: {error}") from error
    # Its base is the error of the HTTP library that huggingface_hub is made on, a lost connection's among them.
    except (*HfHubHTTPError.__bases__, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{name}: no such folder, and not to be had from the Hub ({reason}); "
            "download it first and give the folder"
        ) from error


def weight_files(folder: Path) -> list[str]:
    """Names of the weight files of a folder: those of its index, or the single file."""
    if not (folder / INDEX).is_file():
        return [SINGLE]
    try:
        index: Any = read_json(folder / INDEX)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict):
        raise CheckpointError(f"{folder / INDEX}: has no weight_map")
    return sorted({str(name) for name in named.values()})


def _literally(name: str) -> str:
    """The pattern that only this name matches."""
    return name.translate({ord(mark): f"[{mark}]" for mark in "*?["})
