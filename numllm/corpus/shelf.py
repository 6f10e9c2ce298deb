"""The shelf: which files there are, and what is held out."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .readers import READERS


@dataclass(frozen=True)
class Source:
    """A file to read."""

    path: Path
    name: str
    """Path below the given source, posix; what rows call "source"."""

    @property
    def group(self) -> str:
        return group_of(self.name)


def group_of(name: str) -> str:
    """The folder that statistics and repeated footers are counted by: the first below the source, or "."."""
    return name.split("/", 1)[0] if "/" in name else "."


def find_files(sources: Sequence[str | Path]) -> tuple[list[Source], Counter[str]]:
    """The readable files below `sources`, sorted by name, and a count of skipped ones by reason.

    Two sources that hold the same relative path keep apart: the later one's carries its folder's name.
    """
    if not sources:
        raise DataError("no source given; name at least one folder or file of textbooks")
    found: dict[str, Source] = {}
    skipped: Counter[str] = Counter()
    seen: set[str] = set()
    for source in map(Path, sources):
        if not source.exists():
            raise DataError(f"{source}: no such file or folder")
        root = source if source.is_dir() else source.parent
        for path, real in _walk(source, os.path.realpath(source)):
            if real in seen:
                continue
            seen.add(real)
            if path.suffix.lower() not in READERS:
                skipped[f"unsupported suffix {path.suffix.lower()}" if path.suffix else "no suffix"] += 1
                continue
            relative = encodable(path.relative_to(root).as_posix())
            name, k = relative, 1
            while name in found:
                prefix = encodable(root.resolve().name) + (f"-{k}" if k > 1 else "")
                name, k = f"{prefix}/{relative}", k + 1
            found[name] = Source(path, name)
    if not found:
        listed = ", ".join(str(s) for s in sources)
        raise DataError(
            f"{listed}: wanted files of {', '.join(sorted(READERS))}, found none (and {sum(skipped.values())} others)"
        )
    return [found[name] for name in sorted(found)], skipped


def _walk(source: Path, real: str) -> Iterator[tuple[Path, str]]:
    """The files of a source, and where they really lie; real: where the source does."""
    if not source.is_dir():
        yield source, real
        return
    try:
        with os.scandir(source) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{source}: the folder cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path, below = source / entry.name, os.path.join(real, entry.name)
        if entry.is_dir():
            if not entry.is_symlink():  # a link may lead back up
                yield from _walk(path, below)
        elif entry.is_file():
            yield path, os.path.realpath(below) if entry.is_symlink() else below


def held_out(seed: int, name: str, share: float) -> bool:
    """Whether `name` falls into the held-out share: the same answer in every run, whatever else is there."""
    value = int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8], "big")
    return value < share * 2**64


def encodable(text: str) -> str:
    """`text` with lone surrogates, which a file name that is not UTF-8 holds and JSON cannot, replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")
