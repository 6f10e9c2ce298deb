"""A result read back from the disk and compared with the plan, as a stranger to the code that wrote it would."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..adapter import read_adapter
from ..checkpoint import Checkpoint, read_header, read_rows
from ..errors import MergeError
from ..files import Progress, no_progress, sha256
from .factors import Target
from .fold import fold
from .plan import MergePlan
from .pool import Pool
from .rounding import bits
from .write import delta_for, padded


def verify_merge(
    plan: MergePlan, folder: str | Path, *, as_: str = "model", sample: float = 1.0, progress: Progress = no_progress
) -> dict[str, bool]:
    """Reads a result back from disk and checks it against the plan: {check: True}.

    A model: every merged weight is computed again and compared bit by bit, everything else is compared with the
    base byte by byte. An adapter: its factors are computed again and compared. sample: the share of the tensors
    that is checked, drawn at random. MergeError at the first difference.
    """
    folder = Path(folder)
    if not 0 < sample <= 1:
        raise MergeError(f"the share to verify must be in (0, 1], got {sample}")
    with Pool() as pool:
        if as_ == "adapter":
            _verify_adapter(plan, folder, pool, progress)
            return {"adapter_reads_back": True, "factors_equal": True}
        return _verify_model(plan, folder, sample, pool, progress)


def _differs(path: Path, what: str) -> MergeError:
    return MergeError(f"{path}: {what} is not what was written; the disk or the memory is faulty")


def _verify_model(
    plan: MergePlan, folder: Path, sample: float, pool: Pool, progress: Progress
) -> dict[str, bool]:
    written = Checkpoint.open(folder)
    for path in written.files:
        _drop_cache(path)
    if list(map(_described, sorted(written.tensors.values(), key=lambda info: info.name))) != list(
        map(_described, sorted(plan.base.tensors.values(), key=lambda info: info.name))
    ):
        raise _differs(folder, "the set of tensors")
    for path in written.files:
        _, metadata = read_header(path)
        if any(metadata.get(key) != value for key, value in plan.base.metadata.items()):
            raise _differs(path, "the header")

    def merged(target: Target) -> None:
        out = written.tensors[target.info.name]
        for first, last, new in fold(target, delta_for(plan, target), device=plan.device):
            pool.check()
            if not np.array_equal(bits(read_rows(out, first, last)), bits(new)):
                raise _differs(out.file, out.name)

    def copied(name: str) -> None:
        pool.check()
        was, out = plan.base.tensors[name], written.tensors[name]
        with open(was.file, "rb") as left, open(out.file, "rb") as right:
            left.seek(was.start)
            right.seek(out.start)
            for at in range(0, was.nbytes, 1 << 20):
                size = min(1 << 20, was.nbytes - at)
                if left.read(size) != right.read(size):
                    raise _differs(out.file, name)

    names = list(plan.base.tensors)
    if sample < 1:
        names = random.SystemRandom().sample(names, max(1, round(sample * len(names))))
    names.sort(key=lambda name: -plan.base.tensors[name].nbytes)
    tasks: list[Callable[[], Any]] = [
        (lambda t=plan.targets[name]: merged(t)) if name in plan.targets else (lambda n=name: copied(n))
        for name in names
    ]
    pool.run(tasks, progress, "verifying")
    for name in plan.carried:
        if not name.endswith(".index.json") and sha256(plan.base.folder / name) != sha256(folder / name):
            raise _differs(folder / name, "the file")
    return {"headers_equal": True, "merged_weights_equal": True, "finite": True, "untouched_bytes_equal": True}


def _described(info: Any) -> tuple[str, str, tuple[int, ...]]:
    return info.name, info.dtype, info.shape


def _drop_cache(path: Path) -> None:
    """Makes the next read come from the disk, not from memory, where the system can be asked to."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _verify_adapter(plan: MergePlan, folder: Path, pool: Pool, progress: Progress) -> None:
    for path in folder.glob("adapter_model.*"):
        _drop_cache(path)
    written = read_adapter(folder, base_shapes={name: info.shape for name, info in plan.base.tensors.items()})
    if set(written.modules) != {target.module for target in plan.targets.values()}:
        raise _differs(folder, "the set of modules")

    def same(target: Target) -> None:
        pool.check()
        a, b = padded(delta_for(plan, target, balanced=True), written.rank)
        read = written.factors[target.module]
        if read.scale != 1 or not torch.equal(read.a, a) or not torch.equal(read.b, b):
            raise _differs(folder, target.module)

    pool.run([lambda t=target: same(t) for target in plan.targets.values()], progress, "verifying")
