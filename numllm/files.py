"""Reading and writing that loses nothing: checked JSON in, files written aside, fsynced and renamed out."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import DataError, NumLLMError, short

Progress = Callable[..., Iterable[Any]]
"""`progress(iterable, total=None, description="", unit="it")` yields the items and shows how far it is."""


def no_progress(
    iterable: Iterable[Any], total: int | None = None, description: str = "", unit: str = "it"
) -> Iterable[Any]:
    """The silent `Progress`."""
    return iterable


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise KeyError(key)
        found[key] = value
    return found


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text. DataError, naming `where`, when it is broken or repeats a key."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except KeyError as error:
        raise DataError(f"{where}: the key {short(error.args[0])} stands twice in one object") from error
    except ValueError as error:
        raise DataError(f"{where}: holds a number of too many digits") from error
    except RecursionError as error:
        raise DataError(f"{where}: JSON nested too deeply") from error


def read_text(path: str | Path, encoding: str = "utf-8-sig") -> str:
    """The text of a file (a byte-order mark is dropped). DataError when missing or not in `encoding`."""
    path = Path(path)
    try:
        return path.read_bytes().decode(encoding)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: wanted a file, got a folder") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text (byte {error.start}); convert it to UTF-8 first"
        ) from error


def read_json(path: str | Path) -> Any:
    """The value in a JSON file. DataError, in one line, when missing, broken or with repeated keys."""
    return parse_json(read_text(path), str(path))


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each non-empty line. DataError names the line that is broken."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}, line {number}: not UTF-8 text") from error
                if not line:
                    continue
                row = parse_json(line, f"{path}, line {number}")
                if not isinstance(row, dict):
                    raise DataError(
                        f"{path}, line {number}: wanted a JSON object, got {type(row).__name__}"
                    )
                yield number, row
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` durable (fsync of the folder)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(path: Path, error: OSError) -> NumLLMError:
    return NumLLMError(f"{path}: cannot be written: {error.strerror or error}; nothing was left behind")


@contextlib.contextmanager
def write_aside(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """An open file that takes the place of `path` only when the block ends without an error.

    Written beside `path`, fsynced, renamed, the folder fsynced. On an error the target is as it was.
    An OSError inside the block (a full disk) becomes a NumLLMError that names `path`.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    encoding = None if "b" in mode else "utf-8"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def place_of(out: str | Path) -> Path:
    """Where the folder `out` is written that appears as a whole: a link stays one, what it leads to is replaced.

    NumLLMError where that would replace the current folder, or one around it: whoever stands there would see nothing.
    """
    place = Path(out).resolve()
    with contextlib.suppress(FileNotFoundError):  # a current folder that is gone already
        if Path.cwd().is_relative_to(place):
            raise NumLLMError(f"{out}: holds the current folder, and would be replaced as a whole; choose one in it")
    return place


def _put_back(path: Path) -> None:
    """Undoes a replacement of the folder `path` that was killed between its two renames, and clears away what one
    killed after them left.
    """
    start = f".{path.name}.old-"
    for old in sorted(path.parent.glob(f"{glob.escape(start)}*")):
        process = old.name.removeprefix(start)
        if not process.isdecimal() or _runs(int(process)):
            continue
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            continue
        try:
            os.replace(old, path)
        except OSError as error:
            raise NumLLMError(
                f"{old}: is what {path} was before a run was killed, and cannot be put back: {error.strerror}"
            ) from error


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


@contextlib.contextmanager
def new_folder(path: str | Path, *, overwrite: bool = False, aside: Path | None = None) -> Iterator[Path]:
    """A folder that appears at `path` whole, when the block ends without an error, or not at all.

    The block fills the folder it is given, which lies beside `path`; files are fsynced, then the folder
    is renamed into place. An existing non-empty `path` is refused unless `overwrite`, which replaces it.
    aside: the folder to fill, one that a killed run may have left on the same file system with work to take up.
    A folder that a run killed while replacing it had moved away is put back first.
    """
    path = Path(path)
    _put_back(path)
    if path.exists() and not path.is_dir():
        raise NumLLMError(f"{path}: wanted a folder to write, got a file; choose another --out")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise NumLLMError(f"{path}: the folder is not empty; choose another or remove it first")
    resumed = aside is not None
    aside = aside or path.with_name(f".{path.name}.partial-{os.getpid()}")
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    try:
        aside.mkdir(parents=True, exist_ok=resumed)
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
            else:
                sync_folder(file)
        sync_folder(aside)
        if path.exists():
            os.replace(path, old)
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def exclusive(
    out: Path, failure: type[NumLLMError] = NumLLMError, what: str = "process"
) -> Iterator[None]:
    """Only one `what` at a time writes to `out`; `failure` for the second. The kernel ends a dead one's hold."""
    path = out.with_name(f".{out.name}.lock")
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise failure(f"{out}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise failure(
                f"{out}: another {what} is writing this folder; wait for it or choose another --out"
            ) from error
        # The one who held it may have removed the file between our open and our lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                break
        os.close(handle)
    try:
        yield
    finally:
        path.unlink()
        os.close(handle)


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as UTF-8 JSON, one space of indent, through `write_aside`."""
    with write_aside(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=1, allow_nan=False)
        file.write("\n")


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes one JSON object a line through `write_aside`; the number of rows."""
    count = 0
    with write_aside(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def sha256(path: str | Path, check: Callable[[], object] = lambda: None) -> str:
    """Hexadecimal SHA-256 of a file's bytes. check: called for every 4 MiB, to give up by raising. OSError."""
    digest, memory = hashlib.sha256(), memoryview(bytearray(1 << 22))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(memory):
            check()
            digest.update(memory[:count])
    return digest.hexdigest()
