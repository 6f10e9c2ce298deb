"""What a run keeps on disk to go on from: its folder, its checkpoints, and what must not have changed."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, write_safetensors
from ..errors import DataError, NumLLMError, TrainError
from ..files import new_folder, parse_json, read_json, sha256, write_aside, write_json
from ..train_config import TrainConfig
from .trainer import Event, Trainer

FREE = (
    "out", "save_every", "save_minutes", "keep", "device", "impl", "model", "corpus", "numct", "heldout_corpus",
    "heldout_numct", "micro_tokens", "checkpointing", "offload",
)
"""Settings that may differ when a run goes on: where things are, and what changes no result but its rounding."""
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "qwen.tiktoken",
    "tokenizer.model",
)
_SAMPLE = 4096
"""Bytes of each tensor of the frozen model that go into its fingerprint."""


def data_files(config: TrainConfig) -> dict[str, Path]:
    """Setting → file, of the data a run reads."""
    found = {}
    for name in ("corpus", "numct", "heldout_corpus", "heldout_numct"):
        if (value := getattr(config, name)) is not None:
            path = Path(value)
            found[name] = path / "corpus.jsonl" if path.is_dir() else path
    return found


class Watch:
    """Tells which of some files changed since it was made or last asked, by size, time and inode."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = dict(files)
        self._seen = {name: self._look(path) for name, path in files.items()}

    @staticmethod
    def _look(path: Path) -> tuple[int, int, int] | None:
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns, found.st_ino

    def changed(self) -> list[str]:
        """The names of the files that changed."""
        now = {name: self._look(path) for name, path in self.files.items()}
        found = [name for name, seen in self._seen.items() if now[name] != seen]
        self._seen = now
        return found


def fingerprint(config: TrainConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """What a resumed run must find unchanged: the settings, the data's bytes, the model.

    Of the model: its config, the header and some bytes from the middle of every tensor, and the tokenizer's
    files: enough to tell apart two models of one shape without reading all of them.
    """
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key not in FREE}
    found: dict[str, Any] = {"settings": json.loads(json.dumps(settings))}
    found |= {name: sha256(path) for name, path in data_files(config).items()}
    digest = hashlib.sha256(json.dumps(checkpoint.raw_config, sort_keys=True).encode())
    for info in sorted(checkpoint.tensors.values(), key=lambda info: info.name):
        digest.update(f"{info.name} {info.dtype} {info.shape} {info.file.name} {info.start}".encode())
        with open(info.file, "rb") as file:
            file.seek(info.start + max(info.nbytes - _SAMPLE, 0) // 2)
            digest.update(file.read(min(_SAMPLE, info.nbytes)))
    found["model"] = digest.hexdigest()
    tokenizer = [path for path in sorted(checkpoint.folder.iterdir()) if path.name in _TOKENIZER]
    found["tokenizer"] = _seal({path.name: sha256(path) for path in tokenizer})
    return found


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, for people: settings by name with both values."""
    found = []
    old, new = before.get("settings", {}), now["settings"]
    for key in sorted({*old, *new}):
        was, is_now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(is_now, dict):
            found += [f"{key}.{k} was {was.get(k)!r} and is now {v!r}" for k, v in is_now.items() if was.get(k) != v]
        elif was != is_now:
            found.append(f"{key} was {was!r} and is now {is_now!r}")
    for key in sorted({*before, *now} - {"settings"}):
        if before.get(key) != now.get(key):
            found.append(f"the {key} changed")
    return found


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def verified(folder: Path) -> dict[str, Any]:
    """The state in a training checkpoint, after every file's checksum was found right. TrainError names the file."""
    try:
        content = read_json(folder / "state.json")
        seal = content.pop("sha256")
        if seal != _seal(content):
            raise TrainError(f"{folder / 'state.json'}: damaged, its checksum is wrong")
        for name, wanted in content["files"].items():
            if sha256(folder / name) != wanted:
                raise TrainError(f"{folder / name}: damaged, its checksum is wrong")
    except (AttributeError, KeyError, TypeError, DataError) as error:
        raise TrainError(f"{folder / 'state.json'}: damaged, not what a run writes") from error
    except OSError as error:
        raise TrainError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return content["state"]


class RunFolder:
    """The folder of one run: config.json, metrics.jsonl, tokens/, checkpoints/step-N, adapters/.

    One process at a time has it (a lock that ends with the process). A new one holds no run before `begin`.
    """

    def __init__(self, config: TrainConfig, marks: Mapping[str, Any], *, resume: bool) -> None:
        """Makes the folder, or with `resume` checks that the run in it is this one. TrainError says what differs.

        marks: the run's `fingerprint`.
        """
        self.path = Path(config.out)
        self.metrics, self.checkpoints = self.path / "metrics.jsonl", self.path / "checkpoints"
        self.tokens = self.path / "tokens"
        self._config, self._marks = config, dict(marks)
        self._new = not (self.path / "config.json").exists()
        if not self._new and not resume:
            raise TrainError(f"{self.path}: holds a run already; continue it with --resume or choose another --out")
        if resume and self._new:
            raise TrainError(f"{self.path}: there is no run to resume")
        if resume:
            different = _differences(read_json(self.path / "config.json")["fingerprint"], marks)
            if different:
                raise TrainError(
                    f"{self.path}: cannot resume: {'; '.join(different)}; set it back or start a new run"
                )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w", encoding="utf-8")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise TrainError(f"{self.path}: another process is training into this folder") from error
        except OSError as error:
            raise TrainError(f"{self.path}: cannot be written: {error.strerror}") from error

    def begin(self) -> None:
        """Makes it the folder of a run that can be resumed, or clears what a killed one left half written."""
        if self._new:
            with write_aside(self.metrics):
                pass
            settings = {"settings": dataclasses.asdict(self._config), "fingerprint": self._marks}
            write_json(self.path / "config.json", settings)
            self._new = False
        for debris in self.checkpoints.glob(".step-*"):
            shutil.rmtree(debris, ignore_errors=True)

    def close(self) -> None:
        """Lets other processes have the folder; what never came to be a run goes."""
        if self._new:
            (self.path / ".lock").unlink(missing_ok=True)
            shutil.rmtree(self.tokens, ignore_errors=True)
            with contextlib.suppress(OSError):  # it holds something else
                self.path.rmdir()
        self._lock.close()

    def _steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        found = (re.fullmatch(r"step-(\d+)", path.name) for path in self.checkpoints.glob("step-*"))
        return sorted(int(match.group(1)) for match in found if match)

    def step(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.checkpoints / f"step-{step}"

    def take_up(self, trainer: Trainer) -> list[Event]:
        """Brings the trainer to the newest whole checkpoint, the metrics with it; warnings about damaged ones.

        TrainError when there are checkpoints and none is whole.
        """
        warnings: list[Event] = []
        damaged: list[Path] = []
        state = None
        for step in reversed(self._steps()):
            try:
                state = verified(self.step(step))
            except TrainError as error:
                warnings.append({"event": "warning", "message": f"{error}; going on from an earlier checkpoint"})
                damaged.append(self.step(step))
                continue
            trainer.load(self.step(step), state)
            break
        if state is None and damaged:
            raise TrainError(f"{self.checkpoints}: no checkpoint is whole; start a new run with another --out")
        for folder in damaged:
            shutil.rmtree(folder)
        for name, best in trainer.best.items():
            if best.step is not None and best.step != trainer.step and not self.step(best.step).exists():
                best.score = best.step = None
                warnings.append({
                    "event": "warning",
                    "message": f"the {name} adapter's best checkpoint is gone; the next validation counts as the best",
                })
        # A kill or a full disk may have cut the last line.
        lines = self.metrics.read_bytes().split(b"\n")[:-1] if self.metrics.exists() else []
        rows = [parse_json(line.decode(), str(self.metrics)) for line in lines]
        with write_aside(self.metrics) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows if _before(row, trainer))
        return warnings

    def append(self, rows: Iterable[Event]) -> None:
        """Adds rows to metrics.jsonl."""
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        except OSError as error:
            raise TrainError(
                f"{self.metrics}: cannot be written: {error.strerror}; mend that and continue with --resume"
            ) from error

    def save(self, trainer: Trainer) -> Path:
        """Writes a checkpoint, whole or not at all, then removes those that are neither new nor best."""
        folder = self.step(trainer.step)
        try:
            with open(self.metrics, "rb") as file:  # a checkpoint must not outlive the rows before it
                os.fsync(file.fileno())
            with new_folder(folder, overwrite=True) as aside:
                content: dict[str, Any] = {"state": trainer.save(aside)}
                content["files"] = {
                    path.relative_to(aside).as_posix(): sha256(path)
                    for path in sorted(aside.rglob("*")) if path.is_file()
                }
                write_json(aside / "state.json", content | {"sha256": _seal(content)})
            best = {best.step for best in trainer.best.values()}
            for step in self._steps()[: -self._config.keep]:
                if step not in best:
                    # Renamed first, so that a kill in between leaves no half checkpoint under its name.
                    doomed = self.checkpoints / f".step-{step}.old-{os.getpid()}"
                    os.replace(self.step(step), doomed)
                    shutil.rmtree(doomed)
        except (OSError, NumLLMError) as error:
            raise TrainError(f"{error}; mend that and continue with --resume") from error
        return folder


    def write_adapter(self, trainer: Trainer, name: str) -> Path:
        """Writes a finished adapter, the best where it was validated; its folder."""
        best, out = trainer.best[name].step, self.path / "adapters" / name
        with new_folder(out, overwrite=True) as aside:
            if best is not None and best != trainer.step:
                verified(self.step(best))
                shutil.copytree(self.step(best) / name, aside, dirs_exist_ok=True)
            else:
                trainer.adapters.save(name, aside, base_model=self._config.model)
        return out

    def keep_batch(self, trainer: Trainer, name: str) -> Path:
        """Writes the adapter's last batch for inspection: its tensors, as safetensors; the file."""
        batch = trainer.batches[name]
        path = self.path / "skipped" / f"step-{trainer.step}-{name}.safetensors"
        parts = {key: getattr(batch, key) for key in ("tokens", "documents", "branches", "positions", "labels")}
        write_safetensors(path, {key: value for key, value in parts.items() if value is not None})
        return path


def _before(row: Mapping[str, Any], trainer: Trainer) -> bool:
    """Whether a metrics row was written before the state the trainer is in."""
    if row.get("kind") == "validation":
        return row["step"] <= trainer.validated
    return row["step"] <= trainer.step
