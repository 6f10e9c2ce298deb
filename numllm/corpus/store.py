"""What is finished of each file, under a name made of all it depends on: a run takes up what another has left."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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


class Store:
    """Finished parts in a folder: a head, which JSON can write, and byte strings.

    A part is written aside and renamed, and carries a digest: one that a dying machine left half written is as good
    as absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, name: str, head: Any, *parts: bytes) -> None:
        """Keeps a part under its name."""
        first = json.dumps([head, [len(part) for part in parts]], ensure_ascii=False).encode("utf-8", "surrogatepass")
        body = b"".join([first, b"\n", *parts])
        aside = self.folder / f".{name}-{os.getpid()}"
        aside.write_bytes(hashlib.blake2b(body, digest_size=_DIGEST).digest() + body)
        aside.replace(self.folder / name)

    def load(self, name: str) -> tuple[Any, list[memoryview]] | None:
        """(head, parts) kept under a name; None when there is nothing, or nothing whole."""
        try:
            data = (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        body = memoryview(data)[_DIGEST:]
        if data[:_DIGEST] != hashlib.blake2b(body, digest_size=_DIGEST).digest():
            return None
        end = data.index(b"\n", _DIGEST)
        head, sizes = json.loads(data[_DIGEST:end].decode("utf-8", "surrogatepass"))
        parts, at = [], end + 1 - _DIGEST
        for size in sizes:
            parts.append(body[at : at + size])
            at += size
        return head, parts

    def keep_only(self, names: Iterable[str]) -> None:
        """Takes away every part but those named."""
        wanted = set(names)
        for path in self.folder.iterdir():
            if path.name not in wanted:
                path.unlink()
