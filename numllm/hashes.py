"""SHA-256 of files, remembered until they are written again.

What a checkpoint's files hash to is part of every record of what was made of them, and to hash them takes as long as to
copy them. So the digest of a large file is kept in the user's cache (`sha256` in `$XDG_CACHE_HOME/numllm`, else
`~/.cache/numllm`) under the file's path, device, inode, size, and times of modification and of change (ctime), on this
machine. No program can set the last of these: whatever writes to the file, puts another in its place or sets its
times moves it. What goes past the system is not seen: a disk that spoils a block, a write to the bare device; and what
a program writes to the file as memory is seen only when it, or the system, has that written out. `NUMLLM_REMEMBER=0`
hashes everything every time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

from numllm_kernels.processor import cache_folder

from .errors import NumLLMError
from .files import sha256, write_aside

LARGE = 8 << 20
"""Bytes from which on a file's digest is remembered."""

SETTLED = 2.0
"""Seconds that the last change must lie back when hashing begins: a second one at the same tick of the file system's
clock would leave the same times behind."""

KEPT = 4096
"""Digests kept at most: the newest."""

_LINE = re.compile(r"([0-9a-f]{64}) ([0-9a-f]{64}) (\d{1,12}) ([0-9a-f]{16})")


@dataclasses.dataclass(frozen=True)
class Digest:
    """SHA-256 of a file."""

    sha256: str
    """Hexadecimal."""
    remembered: int | None = None
    """When the file was hashed, in seconds since 1970; None: just now."""

    @property
    def since(self) -> str | None:
        """That time, as 2026-11-30T16:20:05+00:00."""
        if self.remembered is None:
            return None
        return datetime.datetime.fromtimestamp(self.remembered, datetime.timezone.utc).isoformat()


def known(path: str | Path) -> Digest | None:
    """The digest remembered of a file as it is now. OSError."""
    return _find(_key(Path(path), os.stat(path)))


def digest(path: str | Path, *, afresh: bool = False, check: Callable[[], object] = lambda: None) -> Digest:
    """SHA-256 of a file: the one remembered, else by reading it.

    afresh: by reading it in any case. check: called every 4 MiB, to give up by raising. OSError.
    """
    path, now = Path(path), time.time()
    before = os.stat(path)
    key = _key(path, before)
    if not afresh and (found := _find(key)):
        return found
    found = Digest(sha256(path, check))
    if now - before.st_ctime >= SETTLED and _key(path, os.stat(path)) == key:
        _remember(key, found.sha256, int(now))
    return found


def _key(path: Path, about: os.stat_result) -> str | None:
    """What a digest is remembered under; None for a file that is not worth it."""
    if about.st_size < LARGE or os.environ.get("NUMLLM_REMEMBER") == "0":
        return None
    told = (
        platform.node(), os.path.realpath(path), about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns,
        about.st_ctime_ns,
    )
    return hashlib.sha256(repr(told).encode("utf-8", "surrogateescape")).hexdigest()


def _seal(key: str, sha256: str, when: int) -> str:
    """What shows a line whole."""
    return hashlib.sha256(f"{key} {sha256} {when}".encode()).hexdigest()[:16]


def _store() -> Path:
    return cache_folder() / "sha256"


def _read() -> str:
    try:
        return _store().read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _sound(line: str) -> re.Match[str] | None:
    found = _LINE.fullmatch(line)
    return found if found and _seal(found[1], found[2], int(found[3])) == found[4] else None


def _find(key: str | None) -> Digest | None:
    if key is None:
        return None
    text = _read()
    at = text.rfind(f"\n{key} ")
    found = _sound(text[at + 1 :].partition("\n")[0]) if at >= 0 else None
    return Digest(found[2], int(found[3])) if found else None


def _remember(key: str | None, sha256: str, when: int) -> None:
    """Adds a line, in one write, so that processes do not mix theirs; what cannot be written is not remembered."""
    if key is None:
        return
    with contextlib.suppress(OSError, NumLLMError):
        handle = os.open(_store(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            # A new line first: the last one may be half a line, that a full disk left.
            line = f"\n{key} {sha256} {when} {_seal(key, sha256, when)}".encode()
            os.write(handle, line)
            size = os.fstat(handle).st_size
        finally:
            os.close(handle)
        if size > 2 * KEPT * len(line):
            kept = [line for line in _read().splitlines() if _sound(line)][-KEPT:]
            with write_aside(_store()) as file:
                file.writelines(f"\n{line}" for line in kept)
