"""What is finished of each file, under a name made of all it depends on: a run takes up what another has left."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..files import write_aside

_DIGEST = 16


def fingerprint(*values: Any) -> str:
    """A name for what depends on these values, which JSON can write."""
    text = json.dumps(values, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).hexdigest()


@functools.cache
def code() -> str:
    """A fingerprint of the program that reads and judges files: another version takes up nothing."""
    folder = Path(__file__).parent
    sources = [*sorted(folder.glob("*.py")), folder.parent / "overlap.py"]
    return fingerprint(*(hashlib.blake2b(path.read_bytes()).hexdigest() for path in sources))


class Place(NamedTuple):
    """Where a part lies."""

    log: str
    offset: int
    size: int


class Store:
    """Finished parts in a folder: a head, which JSON can write, and byte strings.

    Each process appends to a log of its own, so that parts cost no file each and none is written over. A part
    carries a digest: what a killed process or a dying machine left half written is as good as absent. `known` holds
    what lay there when the store was opened; a copy sent to another process takes that along.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, Place] = {}
        self._files: dict[str, IO[bytes]] = {}
        self._own: IO[bytes] | None = None
        for path in sorted(folder.glob("*.log")):
            self.known |= _scan(path)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "known": self.known, "_files": {}, "_own": None}

    def save(self, name: str, head: Any, *parts: bytes) -> Place:
        """Keeps a part under its name, of 32 characters; where it lies."""
        first = json.dumps([head, [len(part) for part in parts]], ensure_ascii=False).encode("utf-8", "surrogatepass")
        body = b"".join([first, b"\n", *parts])
        if self._own is None:
            path = self.folder / f"{os.getpid()}-{secrets.token_hex(4)}.log"
            self._own = open(path, "xb")  # noqa: SIM115  (open as long as the object)
        offset = self._own.tell()
        self._own.write(_frame(name, len(body)) + _digest(body) + body)
        self._own.flush()
        return Place(Path(self._own.name).name, offset, self._own.tell() - offset)

    def _bytes(self, place: Place) -> bytes:
        if place.log not in self._files:
            self._files[place.log] = open(self.folder / place.log, "rb")  # noqa: SIM115
        return os.pread(self._files[place.log].fileno(), place.size, place.offset)

    def load(self, place: Place | None) -> tuple[Any, list[memoryview]] | None:
        """(head, parts) of what lies at a place; None when it is not whole."""
        if place is None:
            return None
        data = memoryview(self._bytes(place))[_FRAME:]
        digest, body = data[:_DIGEST], data[_DIGEST:]
        if digest != _digest(body):
            return None
        at = data.obj.index(b"\n", _FRAME + _DIGEST) - _FRAME - _DIGEST
        head, sizes = json.loads(bytes(body[:at]).decode("utf-8", "surrogatepass"))
        ends = itertools.accumulate(sizes, initial=at + 1)
        return head, [body[start : start + size] for start, size in zip(ends, sizes, strict=False)]

    def keep_only(self, places: Iterable[Place]) -> None:
        """Writes the parts at these places into one log and removes the others, where that halves the folder."""
        kept = sorted(places)
        logs = list(self.folder.glob("*.log"))
        if sum(path.stat().st_size for path in logs) <= 2 * sum(place.size for place in kept):
            return
        with write_aside(self.folder / f"{os.getpid()}-{secrets.token_hex(4)}.log", "wb") as file:
            for place in kept:
                file.write(self._bytes(place))
        self.close()
        for path in logs:
            path.unlink()

    def close(self) -> None:
        """Closes the files."""
        for file in (*self._files.values(), *filter(None, [self._own])):
            file.close()
        self._files, self._own = {}, None


def _digest(body: bytes | memoryview) -> bytes:
    return hashlib.sha256(body).digest()[:_DIGEST]


def _frame(name: str, size: int) -> bytes:
    return f"{name} {size:016x}\n".encode()


_FRAME = len(_frame("0" * 2 * _DIGEST, 0))


def _scan(path: Path) -> Iterator[tuple[str, Place]]:
    """(name, place) of the parts of a log, up to the first that is not all there."""
    size, at = path.stat().st_size, 0
    with open(path, "rb") as file:
        while at + _FRAME + _DIGEST <= size:
            file.seek(at)
            frame = file.read(_FRAME)
            try:
                length = _FRAME + _DIGEST + int(frame[-17:-1], 16)
            except ValueError:
                return
            if at + length > size:
                return
            yield frame[: 2 * _DIGEST].decode("ascii", "replace"), Place(path.name, at, length)
            at += length
