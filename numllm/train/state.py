"""What a run keeps on disk to go on from: its folder and its checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint import write_safetensors
from ..errors import DataError, NumLLMError, TrainError
from ..files import new_folder, parse_json, read_json, sha256, write_aside, write_json
from ..settings import to_toml
from ..train_config import TrainConfig
from .marks import checksum, differences
from .trainer import Event, Trainer


def verified(folder: Path) -> dict[str, Any]:
    """The state in a training checkpoint, after every file's checksum was found right. TrainError names the file."""
    try:
        content = read_json(folder / "state.json")
        seal = content.pop("sha256")
        if seal != checksum(content):
            raise TrainError(f"{folder / 'state.json'}: damaged, its checksum is wrong")
        for name, wanted in content["files"].items():
            if sha256(folder / name) != wanted:
                raise TrainError(f"{folder / name}: damaged, its checksum is wrong")
    except (AttributeError, KeyError, TypeError, DataError) as error:
        raise TrainError(f"{folder / 'state.json'}: damaged, not what a run writes") from error
    except OSError as error:
        raise TrainError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return content["state"]


def _tidy(folder: Path) -> None:
    """Clears what a killed process left beside the files and folders it was writing (see `files`)."""
    for old in folder.glob(".*.old-*"):
        replaced = folder / old.name[1:].rpartition(".old-")[0]
        if not replaced.exists():  # killed between the two renames that put a folder in another's place
            os.replace(old, replaced)
    for debris in [path for kind in ("partial", "old", "gone") for path in folder.glob(f".*.{kind}-*")]:
        if debris.is_dir():
            shutil.rmtree(debris)
        else:
            debris.unlink()


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
            known = read_json(self.path / "config.json")
            if not isinstance(known, dict) or not isinstance(known.get("fingerprint"), dict):
                raise TrainError(f"{self.path / 'config.json'}: damaged, not what a run writes; start a new run")
            different = differences(known["fingerprint"], marks)
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
            with write_aside(self.path / "config.toml") as file:
                file.write(to_toml(self._config))
            settings = {"settings": dataclasses.asdict(self._config), "fingerprint": self._marks}
            write_json(self.path / "config.json", settings)
            self._new = False
        for folder in (self.path, self.checkpoints, self.path / "adapters"):
            _tidy(folder)

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
        # A kill or a full disk may have cut the last line, a power cut may have left anything in those since the save.
        lines = self.metrics.read_bytes().split(b"\n")[:-1] if self.metrics.exists() else []
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                row = parse_json(line.decode(), str(self.metrics))
                rows += [row] if _before(row, trainer) else []
            except (DataError, KeyError, TypeError, UnicodeDecodeError, AttributeError):
                warnings.append({
                    "event": "warning", "message": f"{self.metrics}, line {number}: damaged, it is left out",
                })
        with write_aside(self.metrics) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
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
                write_json(aside / "state.json", content | {"sha256": checksum(content)})
            best = {best.step for best in trainer.best.values()}
            for step in self._steps()[: -self._config.keep]:
                if step not in best:
                    # Renamed first, so that a kill in between leaves no half checkpoint under its name.
                    doomed = self.checkpoints / f".step-{step}.gone-{os.getpid()}"
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


class NoFolder:
    """What processes that write nothing have in the place of a `RunFolder`."""

    def __init__(self, config: TrainConfig) -> None:
        self.path = Path(config.out)
        self.tokens = self.path / "tokens"

    def begin(self) -> None:
        """Nothing is made."""

    def close(self) -> None:
        """Nothing is held."""

    def take_up(self, trainer: Trainer) -> list[Event]:
        """The trainer follows that of the process that reads."""
        return []

    def append(self, rows: Iterable[Event]) -> None:
        """Nothing is written."""

    def save(self, trainer: Trainer) -> Path:
        """Where the checkpoint is written."""
        return self.path / "checkpoints" / f"step-{trainer.step}"

    def write_adapter(self, trainer: Trainer, name: str) -> Path:
        """Where the adapter is written."""
        return self.path / "adapters" / name

    def keep_batch(self, trainer: Trainer, name: str) -> Path:
        """Where the batch is kept."""
        return self.path / "skipped" / f"step-{trainer.step}-{name}.safetensors"


def _before(row: Mapping[str, Any], trainer: Trainer) -> bool:
    """Whether a metrics row was written before the state the trainer is in."""
    if row.get("kind") == "validation":
        return row["step"] <= trainer.validated
    return row["step"] <= trainer.step
