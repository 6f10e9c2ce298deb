"""Where tensors lie in the files written, and bytes copied to there without passing through the program."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import SINGLE, Checkpoint, TensorInfo
from ..errors import CheckpointError, MergeError

PIECE = 64 << 20
"""Bytes copied by one task."""

_NO_RANGE_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY}

_NO_RESERVING = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


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


def reserve(handle: int, size: int) -> None:
    """Gives a file its size and, where the file system can, its room, so that a full disk is told before the work."""
    try:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
            return
    except OSError as error:
        if error.errno not in _NO_RESERVING:
            raise
    os.truncate(handle, size)


def write_all(handle: int, data: memoryview, at: int) -> None:
    """Writes all of `data` at byte `at`."""
    while len(data):
        count = os.pwrite(handle, data, at)
        data, at = data[count:], at + count


def start_writing_back(handle: int, start: int, end: int) -> None:
    """Asks the system to begin putting bytes start..end-1 on the disk, where it can be asked: while they are on their
    way the merge goes on, and the fsync at the end has little left to wait for.
    """
    if _SYNC_FILE_RANGE is not None:
        _SYNC_FILE_RANGE(handle, start, end - start, 2)  # SYNC_FILE_RANGE_WRITE; errors come from the fsync


def _sync_file_range() -> Callable[..., int] | None:
    found = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if found is not None:
        found.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return found


_SYNC_FILE_RANGE = _sync_file_range()


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())


def copy_range(source: int, target: int, start: int, end: int, place: int) -> None:
    """Copies bytes start..end-1 of one open file to byte `place` of another: in the kernel where it can (which
    shares the blocks on file systems that have reflinks), else by reading and writing.
    """
    at = start
    while at < end and hasattr(os, "copy_file_range"):
        try:
            count = os.copy_file_range(source, target, end - at, at, place + at - start)
        except OSError as error:
            if error.errno not in _NO_RANGE_COPY:
                raise
            break
        if not count:
            break
        at += count
    while at < end:
        block = os.pread(source, min(1 << 20, end - at), at)
        if not block:
            raise CheckpointError("a weight file of the base became shorter while it was read")
        write_all(target, memoryview(block), place + at - start)
        at += len(block)
