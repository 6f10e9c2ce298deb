"""A result written by one process at a time, which appears whole and takes up what a killed run finished."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, MergeError
from ..files import exclusive, new_folder, read_jsonl, write_jsonl

MANIFEST = ".manifest.jsonl"


class Stage:
    """The folder a merge fills, and the list of its finished files and parts of files.

    The list is one JSON line each, written after what it names is on the disk: a run that finds the folder left by a
    killed one with the same fingerprint takes those files and parts as they are.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self._manifest, self._lock = folder / MANIFEST, threading.Lock()
        taken = self._take_up(fingerprint)
        self.finished = {line["file"]: line for line in taken if line["parts"] is None}
        """File name → its line in the list: file, size, noted."""
        self.begun = [line for line in taken if line["file"] not in self.finished]
        """Lines of parts of files that are not finished: file, size, parts, noted."""
        keep = {MANIFEST, *(line["file"] for line in taken)}
        for path in folder.iterdir():
            if path.name not in keep:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        lines = [{"fingerprint": fingerprint}, *self.finished.values(), *self.begun]
        write_jsonl(self._manifest, lines)  # afresh: its last line may be half a one

    def _take_up(self, fingerprint: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        try:
            for number, line in read_jsonl(self._manifest):
                if number == 1 and line.get("fingerprint") != fingerprint:
                    return []
                if number > 1 and (self.folder / line["file"]).stat().st_size == line["size"]:
                    found.append({key: line[key] for key in ("file", "size", "parts", "noted")})
        except (DataError, OSError, KeyError):  # the line that was being written when the run was killed
            pass
        return found

    @property
    def bytes_taken_up(self) -> int:
        """What a killed run had finished."""
        whole = sum(line["size"] for line in self.finished.values())
        return whole + sum(count for line in self.begun for _, count in line["parts"])

    def finish(self, handle: int, name: str, noted: Any, parts: Sequence[tuple[int, int]] | None = None) -> None:
        """Puts an open file, or parts of it (first byte, bytes), on the disk and on the list."""
        os.fsync(handle)
        with self._lock, open(self._manifest, "a", encoding="utf-8") as file:
            line = {"file": name, "size": os.fstat(handle).st_size, "parts": parts, "noted": noted}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Takes the list away: the folder holds the result and nothing else."""
        self._manifest.unlink()


def locked(out: Path) -> contextlib.AbstractContextManager[None]:
    """Only one merge at a time writes to `out`; MergeError for the second."""
    return exclusive(out, MergeError, "merge")


@contextlib.contextmanager
def staged(out: Path, fingerprint: str, *, overwrite: bool) -> Iterator[Stage]:
    """A Stage whose folder takes the place of `out` when the block ends without an error; on one, nothing is left."""
    with locked(out):
        aside = out.with_name(f".{out.name}.merging")
        if aside.is_symlink():
            raise MergeError(f"{aside}: is a link where the merge keeps its unfinished files; remove it")
        with new_folder(out, overwrite=overwrite, aside=aside) as folder:
            stage = Stage(folder, fingerprint)
            yield stage
            stage.close()
