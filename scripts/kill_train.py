"""Kills training at random instants and lets its disk fail: every run resumes from its last checkpoint to the bytes
and metrics of a run that nothing happened to.

    python -m scripts.kill_train --kills 60 --faults 60

The run trains both adapters on a model of random weights, validates as it goes and keeps its best checkpoints. A kill
is SIGKILL after a random time; a fault is ENOSPC or EIO from the n-th open, write, fsync, rename or mkdir on, n random.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from numllm import files
from numllm.config import LoRAConfig
from numllm.errors import NumLLMError
from numllm.train import state, train
from numllm.train_config import TrainConfig


class _Disk:
    """A disk whose `fails_at`-th operation fails with `number`, as all that follow do."""

    def __init__(self, fails_at: int, number: int) -> None:
        self.left, self.number = fails_at, number

    def count(self, name: Any) -> None:
        """One operation."""
        self.left -= 1
        if self.left <= 0:
            raise OSError(self.number, os.strerror(self.number), str(name))

    def wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted."""

        def called(*arguments: Any, **named: Any) -> Any:
            self.count(arguments[0])
            return function(*arguments, **named)

        return called

    def open(self, path: Any, mode: str = "r", **named: Any) -> Any:
        """`open`; files opened for writing count their writes."""
        file = builtins.open(path, mode, **named)
        if "r" not in mode:
            self.count(path)
            file = _File(file, self, path)
        return file

    def install(self) -> None:
        """Puts this disk under the process."""
        for name in ("fsync", "replace", "mkdir"):
            setattr(os, name, self.wrapped(getattr(os, name)))
        for module in (files, state):
            module.open = self.open  # type: ignore[attr-defined]


class _File:
    """A file whose writes are counted, and reach the disk in halves."""

    def __init__(self, file: Any, disk: _Disk, path: Any) -> None:
        self._file, self._disk, self._path = file, disk, path

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> None:
        """Half of the data, one operation, the other half."""
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._disk.count(self._path)
        self._file.write(data[half:])

    def writelines(self, lines: Any) -> None:
        """`write` of each."""
        for line in lines:
            self.write(line)


def settings(world: Path, out: str, steps: int) -> TrainConfig:
    """The run: short, with all that is written as it goes."""
    return TrainConfig(
        model=str(world / "base"), corpus=str(world / "corpus"), numct=str(world / "numct.jsonl"), out=str(world / out),
        steps=steps, length=96, rows=2, questions=2, save_every=2, keep=2, validate_every=3, validation_size=2,
        heldout_corpus=str(world / "corpus" / "corpus.jsonl"), heldout_numct=str(world / "numct.jsonl"),
        domain=LoRAConfig(rank=2, alpha=4.0), numeric=LoRAConfig(rank=2, alpha=4.0),
        domain_rate=1e-2, numeric_rate=1e-2,
    )


def _events(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """The run from wherever it is."""
    return train(config, resume=(Path(config.out) / "config.json").exists())


def _outcome(run: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The adapters' bytes, and the metrics without what a clock measured."""
    written = sorted((run / "adapters").rglob("*.safetensors"))
    adapters = {path.relative_to(run).as_posix(): path.read_bytes() for path in written}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return adapters, [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows]


def _child(config: TrainConfig, disk: _Disk | None) -> int:
    """Starts the run in a process of its own, which exits with 0, or with 1 for an error in one line."""
    child = os.fork()
    if child:
        return child
    code = 2
    try:
        if disk is not None:
            disk.install()
        for _ in _events(config):
            pass
        code = 0
    except NumLLMError as error:
        code = 1 if "\n" not in str(error) else 3
    finally:
        os._exit(code)


def campaign(world: Path, kills: int, faults: int, seed: int, steps: int) -> dict[str, int]:
    """Counts of what was seen; AssertionError when a run does not resume, or not to the same bytes.

    world: a folder with base, corpus and numct.jsonl. Each run is hit again and again until it has come to its end.
    Everything is computed by one thread: a forked process has no others of its parent's pool, and would wait for them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _campaign(world, kills, faults, seed, steps)
    finally:
        torch.set_num_threads(threads)


def _campaign(world: Path, kills: int, faults: int, seed: int, steps: int) -> dict[str, int]:
    rng = random.Random(seed)
    seen = dict.fromkeys((
        "killed", "finished before the kill", "faults met", "faults not reached", "runs", "hits of the run hit most",
    ), 0)
    begun = time.perf_counter()
    os.waitpid(_child(settings(world, "wanted", steps), None), 0)
    took = time.perf_counter() - begun
    wanted = _outcome(world / "wanted")
    shutil.rmtree(world / "wanted")

    def finish() -> None:
        for _ in _events(config):
            pass
        for what, found, expected in zip(("adapters", "metrics"), _outcome(world / "hit"), wanted, strict=True):
            assert found == expected, f"the run that was hit came to other {what}"
        debris = [path.name for path in (world / "hit").rglob(".*") if path.name != ".lock"]
        assert not debris, f"the run left {debris}"
        shutil.rmtree(world / "hit")

    plan = ["kill"] * kills + ["fault"] * faults
    rng.shuffle(plan)
    config, hits = settings(world, "hit", steps), 0
    for kind in plan:
        if kind == "kill":
            child = _child(config, None)
            time.sleep(rng.random() * took * 0.6)
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            seen["killed" if os.WIFSIGNALED(status) else "finished before the kill"] += 1
        else:
            disk = _Disk(rng.randrange(1, 150), rng.choice((errno.ENOSPC, errno.EIO)))
            _, status = os.waitpid(_child(config, disk), 0)
            code = os.WEXITSTATUS(status)
            assert os.WIFEXITED(status) and code in (0, 1), f"a failing disk gave the exit status {code}"
            seen["faults met" if code else "faults not reached"] += 1
        hits += 1
        if (world / "hit" / "adapters" / "numeric").exists() or rng.random() < 0.15:
            finish()
            seen["runs"] += 1
            seen["hits of the run hit most"] = max(hits, seen["hits of the run hit most"])
            hits = 0
    if hits:
        finish()
        seen["runs"] += 1
    return seen


def main() -> None:
    """Prints the counts."""
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import tiny

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        world = Path(scratch)
        tiny.base(world / "base")
        tiny.corpus(world / "corpus")
        tiny.numct(world / "numct.jsonl")
        print(json.dumps(campaign(world, args.kills, args.faults, args.seed, args.steps)))


if __name__ == "__main__":
    main()
