"""Bytes put into the files of a result: in order or copied, past the page cache where the file system lets them."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError

PAGE = 4096
"""Bytes: direct writes begin and end at multiples of this, in the file and in memory."""

BUFFER = 1 << 20
"""Bytes a thread gathers for one direct write, or copies at a time."""

WRITTEN_BACK = 8 << 20
"""Bytes of a buffered stream after which the disk is set to work on them."""

_REFUSED = {
    errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM, errno.EBADF, errno.ETXTBSY,
}
"""How a file system says that it does not do a thing at all, in place of doing it and failing."""

_FICLONERANGE = 0x4020940D

_SHORTER = "a weight file of the base became shorter while it was read"

_memory = threading.local()


def takes_direct(folder: Path) -> bool:
    """Whether files in a folder can be written past the page cache: found by writing one page so. OSError when the
    disk fails or is full.
    """
    if not hasattr(os, "O_DIRECT"):
        return False
    path = folder / ".direct"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
        try:
            return os.pwrite(handle, _buffer()[:PAGE], 0) == PAGE
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        return False
    finally:
        path.unlink(missing_ok=True)


class OutputFile:
    """A file of a known size, room for which is taken at once, filled in any order by several threads.

    Written directly, bytes are neither copied into the page cache nor left to be put on the disk by the fsync at the
    end; only pages that are not filled whole by one stream go through the cache. new: False takes up an existing file.
    """

    def __init__(self, path: Path, size: int, *, new: bool, direct: bool) -> None:
        self.handle = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL) * new, 0o666)
        self._direct: int | None = None
        self._clones = True
        try:
            _reserve(self.handle, size)
            if direct:
                self._direct = os.open(path, os.O_WRONLY | os.O_DIRECT)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Closes it; what is on the disk is what `os.fsync(handle)` put there."""
        for handle in (self.handle, self._direct):
            if handle is not None:
                os.close(handle)

    def put(self, data: bytes, place: int) -> None:
        """Writes a few bytes at `place`."""
        _write_all(self.handle, memoryview(data), place)

    def stream(self, place: int) -> Stream:
        """Writes one run of bytes from `place` on. A thread has one stream at a time."""
        return Stream(self, self._direct, place)

    def copy(self, source: int, start: int, end: int, place: int) -> None:
        """Copies bytes start..end-1 of an open file to byte `place`: blocks are shared where the file system can;
        else they go through memory to direct writes, or from file to file in the kernel, or by reading and writing.
        """
        first, last = start + -start % PAGE, end - end % PAGE
        if self._clones and first < last and (place - start) % PAGE == 0:
            self._clones = _clone(source, self.handle, first, last, place + first - start)
            if self._clones:
                copy_range(source, self.handle, start, first, place)
                copy_range(source, self.handle, last, end, place + last - start)
                return
        if self._direct is None:
            copy_range(source, self.handle, start, end, place)
            _start_writing_back(self.handle, place, place + end - start)
            return
        stream = self.stream(place)
        while start < end:
            start += stream.read_from(source, start, end)
        stream.finish()


class Stream:
    """One run of bytes written in order. Direct: gathered in memory that lies to the page as the file does."""

    def __init__(self, file: OutputFile, direct: int | None, place: int) -> None:
        self._handle, self._direct = file.handle, direct
        self._at = place - place % PAGE if direct is not None else place
        """Where in the file the memory's first byte belongs; buffered: what is not yet set to be written back."""
        self._begun = self._filled = place - self._at

    def write(self, data: Tensor) -> None:
        """Takes the bytes of a contiguous tensor, which may change afterwards."""
        values = data.view(-1).view(torch.uint8).numpy()
        if self._direct is None:
            _write_all(self._handle, memoryview(values), self._at + self._filled)
            self._filled += len(values)
            if self._filled >= WRITTEN_BACK:
                self.finish()
            return
        memory, done = np.frombuffer(_buffer(), dtype=np.uint8), 0
        while done < len(values):
            count = min(len(values) - done, BUFFER - self._filled)
            memory[self._filled : self._filled + count] = values[done : done + count]
            self._take(count)
            done += count

    def read_from(self, source: int, start: int, end: int) -> int:
        """Takes bytes from `start` on of an open file, no further than `end`, straight into the memory of a direct
        stream; how many.
        """
        count = os.preadv(source, [_buffer()[self._filled : min(BUFFER, self._filled + end - start)]], start)
        if not count:
            raise CheckpointError(_SHORTER)
        self._take(count)
        return count

    def _take(self, count: int) -> None:
        self._filled += count
        if self._filled == BUFFER:
            self._flush()

    def finish(self) -> None:
        """Writes what is left; the stream's bytes are then with the system."""
        if self._direct is not None:
            self._flush()
        else:
            _start_writing_back(self._handle, self._at, self._at + self._filled)
            self._at, self._filled = self._at + self._filled, 0

    def _flush(self) -> None:
        data = _buffer()
        first, last = self._begun + -self._begun % PAGE, self._filled - self._filled % PAGE
        if first < last:
            first += os.pwrite(self._direct, data[first:last], self._at + first)
            spans = [(self._begun, self._begun + -self._begun % PAGE), (first, self._filled)]
        else:
            spans = [(self._begun, self._filled)]
        for begin, end in spans:  # pages shared with another stream, and what a short write left
            _write_all(self._handle, data[begin:end], self._at + begin)
        self._at, self._begun, self._filled = self._at + self._filled, 0, 0


def _buffer() -> memoryview:
    """The thread's own memory, BUFFER bytes from the start of a page."""
    if not hasattr(_memory, "view"):
        _memory.view = memoryview(mmap.mmap(-1, BUFFER))
    return _memory.view


def _reserve(handle: int, size: int) -> None:
    """Gives a file its size and, where the file system can, its room, so that a full disk is told before the work."""
    try:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
            return
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
    os.truncate(handle, size)


def _clone(source: int, target: int, start: int, end: int, place: int) -> bool:
    """Lets two files share blocks, if the file system does that."""
    try:
        fcntl.ioctl(target, _FICLONERANGE, struct.pack("=qQQQ", source, start, end - start, place))
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        return False
    return True


def copy_range(source: int, target: int, start: int, end: int, place: int) -> None:
    """Copies bytes start..end-1 of one open file to byte `place` of another: in the kernel where it can, else by
    reading and writing.
    """
    at = start
    while at < end and hasattr(os, "copy_file_range"):
        try:
            count = os.copy_file_range(source, target, end - at, at, place + at - start)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            break
        if not count:
            break
        at += count
    while at < end:
        block = os.pread(source, min(BUFFER, end - at), at)
        if not block:
            raise CheckpointError(_SHORTER)
        _write_all(target, memoryview(block), place + at - start)
        at += len(block)


def _write_all(handle: int, data: memoryview, at: int) -> None:
    """Writes all of `data` at byte `at`."""
    while len(data):
        count = os.pwrite(handle, data, at)
        data, at = data[count:], at + count


def _start_writing_back(handle: int, start: int, end: int) -> None:
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
