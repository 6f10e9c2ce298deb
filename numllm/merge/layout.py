"""Where tensors lie in the files written."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ..checkpoint import SINGLE, Checkpoint, TensorInfo
from ..errors import MergeError

PIECE = 64 << 20
"""Bytes copied by one task."""


@dataclasses.dataclass(frozen=True)
class OutFile:
    """A weight file to be written: its header's bytes, then tensors of the base at their places."""

    name: str
    header: bytes
    places: Mapping[str, int]
    """Tensor name → first byte in the file, rising."""
    size: int


def like_base(base: Checkpoint) -> list[OutFile]:
    """The base's own files, shards and headers; a single file has the name that is looked for."""
    found = []
    for path in base.files:
        infos = [info for info in base.tensors.values() if info.file == path]
        size = path.stat().st_size
        first = min((info.start for info in infos), default=size)
        with open(path, "rb") as file:
            header = file.read(first)
        name = path.name if base.sharded else SINGLE
        found.append(OutFile(name, header, {info.name: info.start for info in infos}, size))
    return found


def in_shards(base: Checkpoint, largest: int) -> list[OutFile]:
    """Files of at most `largest` bytes of tensors, in the base's order; a tensor larger than that has its own.

    MergeError for a size that is not positive.
    """
    if largest < 1:
        raise MergeError(f"max shard size must be at least 1 byte, got {largest}")
    groups: list[list[TensorInfo]] = [[]]
    held = 0
    for info in base.tensors.values():
        if groups[-1] and held + info.nbytes > largest:
            groups.append([])
            held = 0
        groups[-1].append(info)
        held += info.nbytes
    found = []
    for number, infos in enumerate(groups, 1):
        name = SINGLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        # Large elements first, as safetensors has it, so that every tensor is aligned to its element's size.
        infos = sorted(infos, key=lambda info: -_element(info))
        entries: dict[str, object] = {"__metadata__": {"format": "pt", **base.metadata}}
        at, offsets = 0, {}
        for info in infos:
            entries[info.name] = {
                "dtype": info.dtype, "shape": list(info.shape), "data_offsets": [at, at + info.nbytes],
            }
            offsets[info.name] = at
            at += info.nbytes
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        header = struct.pack("<Q", len(text)) + text
        places = {name: len(header) + offset for name, offset in offsets.items()}
        found.append(OutFile(name, header, places, len(header) + at))
    return found


def _element(info: TensorInfo) -> int:
    return info.nbytes // max(1, torch.Size(info.shape).numel())


def index_of(files: list[OutFile], base: Checkpoint) -> dict[str, object]:
    """The index of several files."""
    return {
        "metadata": {"total_size": sum(info.nbytes for info in base.tensors.values())},
        "weight_map": {name: file.name for file in files for name in file.places},
    }


def untouched(file: OutFile, base: Checkpoint, targets: Mapping[str, object]) -> Iterator[tuple[Path, int, int, int]]:
    """(source, its first byte, first byte in the file, bytes) of what is copied, at most PIECE bytes each."""
    held: tuple[Path, int, int, int] | None = None
    runs = []
    for name, place in file.places.items():
        if name in targets:
            continue
        info = base.tensors[name]
        if held and held[0] == info.file and held[1] + held[3] == info.start and held[2] + held[3] == place:
            held = (*held[:3], held[3] + info.nbytes)
        else:
            runs += [held] if held else []
            held = info.file, info.start, place, info.nbytes
    for source, start, place, count in [*runs, *([held] if held else [])]:
        for at in range(0, count, PIECE):
            yield source, start + at, place + at, min(PIECE, count - at)
