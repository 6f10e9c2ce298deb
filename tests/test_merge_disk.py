"""Bytes of a merge on their way to the disk: every way puts the same ones there, and a failing disk is told."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from numllm.errors import CheckpointError
from numllm.merge import copy_range, disk
from numllm.merge.disk import PAGE, OutputFile, takes_direct

SIZE = (5 << 20) + 777


@pytest.fixture(scope="module")
def wanted() -> bytes:
    return random.Random(0).randbytes(SIZE)


@pytest.fixture(params=[True, False], ids=["direct", "buffered"])
def out(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[OutputFile]:
    if request.param and not takes_direct(tmp_path):
        pytest.skip("the file system of the tests has no direct writes")
    file = OutputFile(tmp_path / "out", SIZE, new=True, direct=request.param)
    yield file
    file.close()


@pytest.fixture
def source(tmp_path: Path, wanted: bytes) -> Iterator[int]:
    (tmp_path / "source").write_bytes(wanted)
    handle = os.open(tmp_path / "source", os.O_RDONLY)
    yield handle
    os.close(handle)


def spans(seed: int) -> list[tuple[int, int]]:
    """SIZE bytes cut at random: tiny runs within one page, runs of a few pages, runs longer than the memory."""
    rng, found, at = random.Random(seed), [], 0
    while at < SIZE:
        count = min(SIZE - at, rng.choice([2, 100, PAGE, 3 * PAGE + 10, 300_000, (2 << 20) + 6]))
        found.append((at, at + count))
        at += count
    rng.shuffle(found)
    return found


@pytest.mark.parametrize("short", [False, True], ids=["whole", "short-writes"])
@pytest.mark.parametrize("seed", range(3))
def test_streams_of_several_threads(
    out: OutputFile, tmp_path: Path, wanted: bytes, monkeypatch: pytest.MonkeyPatch, seed: int, short: bool
) -> None:
    pwrite, rng = os.pwrite, random.Random(seed)
    if short:
        monkeypatch.setattr(os, "pwrite", lambda handle, data, at: pwrite(
            handle, data[: max(1, len(data) // PAGE // 2) * PAGE], at
        ))
    data = torch.frombuffer(bytearray(wanted), dtype=torch.uint8)

    def work(mine: list[tuple[int, int]]) -> None:
        for first, last in mine:
            stream, at = out.stream(first), first
            while at < last:
                block = data[at : min(last, at + rng.choice([2, 5000, 100_000, 3 << 20]))].clone()
                stream.write(block)
                at += len(block)
                block.zero_()
            stream.finish()

    found = spans(seed)
    threads = [threading.Thread(target=work, args=(found[index::3],)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "out").read_bytes() == wanted


@pytest.mark.parametrize("seed", range(3))
def test_copies(out: OutputFile, tmp_path: Path, wanted: bytes, source: int, seed: int) -> None:
    for first, last in spans(seed):
        out.copy(source, first, last, first)
    assert (tmp_path / "out").read_bytes() == wanted


@pytest.mark.parametrize("shift", [0, PAGE, 8])
def test_blocks_are_shared_where_both_files_lie_alike(
    out: OutputFile, tmp_path: Path, wanted: bytes, source: int, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    """A file system with reflinks, played: it takes whole blocks only."""
    shared = []

    def ioctl(target: int, request: int, argument: bytes) -> int:
        handle, start, count, place = struct.unpack("=qQQQ", argument)
        assert request == 0x4020940D and handle == source
        assert start % PAGE == count % PAGE == place % PAGE == 0 < count
        shared.append(count)
        os.pwrite(target, os.pread(handle, count, start), place)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    out.copy(source, shift + 5, SIZE, 5)
    out.copy(source, 0, 5, 0)
    assert (tmp_path / "out").read_bytes()[5 : SIZE - shift] == wanted[shift + 5 :]
    assert sum(shared) == (0 if shift == 8 else (SIZE // PAGE - 1 - shift // PAGE) * PAGE)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_while_blocks_are_shared(
    out: OutputFile, source: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        out.copy(source, 0, SIZE, 0)


def test_a_source_that_shrinks(out: OutputFile, source: int) -> None:
    with pytest.raises(CheckpointError, match="shorter"):
        out.copy(source, 1, SIZE + 1, 0)
    with pytest.raises(CheckpointError, match="shorter"):
        copy_range(source, out.handle, 1, SIZE + 1, 0)


@pytest.mark.parametrize("function", ["open", "pwrite"])
@pytest.mark.parametrize(("number", "answer"), [
    (errno.EINVAL, False), (errno.EOPNOTSUPP, False), (errno.EIO, None), (errno.ENOSPC, None),
], ids=lambda value: errno.errorcode.get(value, "") if isinstance(value, int) and value else "")
def test_what_a_folder_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int, answer: bool | None
) -> None:
    """No is an answer, a failing disk is none."""
    def fail(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        if answer is None:
            with pytest.raises(OSError, match=os.strerror(number)):
                takes_direct(tmp_path)
        else:
            assert takes_direct(tmp_path) is answer
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, None])
def test_room_where_none_can_be_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    OutputFile(tmp_path / "out", SIZE, new=True, direct=False).close()
    assert (tmp_path / "out").stat().st_size == SIZE


def test_room_is_reserved(tmp_path: Path) -> None:
    OutputFile(tmp_path / "out", SIZE, new=True, direct=False).close()
    found = (tmp_path / "out").stat()
    assert found.st_size == SIZE and found.st_blocks * 512 >= SIZE


def test_the_cache_is_passed_by(tmp_path: Path, wanted: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the pages at a run's two ends."""
    if not takes_direct(tmp_path):
        pytest.skip("the file system of the tests has no direct writes")
    through, write_all = [], disk._write_all

    def count(handle: int, data: memoryview, at: int) -> None:
        through.append(len(data))
        write_all(handle, data, at)

    monkeypatch.setattr(disk, "_write_all", count)
    file = OutputFile(tmp_path / "out", SIZE, new=True, direct=True)
    stream = file.stream(10)
    stream.write(torch.frombuffer(bytearray(wanted[10:]), dtype=torch.uint8))
    stream.finish()
    file.close()
    assert (tmp_path / "out").read_bytes()[10:] == wanted[10:]
    assert 0 < sum(through) < 2 * PAGE
