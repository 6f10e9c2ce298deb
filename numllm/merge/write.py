"""A plan carried out: the merged checkpoint or adapter written to a folder, a report row for each weight."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapter import write_adapter
from ..checkpoint import INDEX
from ..files import Progress, write_json
from .factors import Parts, Target, compare_all
from .fold import Sums, fold
from .layout import OutFile, as_bytes, copy_range, index_of, reserve, start_writing_back, untouched, write_all
from .methods import Delta, EntrywiseDelta, delta_of
from .plan import MergePlan
from .pool import Pool
from .stage import Stage

Row = dict[str, Any]
Task = Callable[[], None]

PORTION = 256 << 20
"""Bytes of a file after which what is done is put on the list a killed merge is taken up from."""

COMPARED = 1 << 20
"""Numbers of adapters' triangles that wait at most for being compared: 500 weights of ranks 32, two of 512."""

WRITTEN_BACK = 8 << 20
"""Bytes of a weight after which the disk is set to work on them."""


def delta_for(plan: MergePlan, target: Target, *, balanced: bool = False) -> Delta | EntrywiseDelta | None:
    """`delta_of` under the plan's options; None where `fold` does without: no factors, or DoRA."""
    if not target.parts or target.rescaled:
        return None
    return delta_of(target, plan.names, plan.options, largest=plan.largest, balanced=balanced)


def row_of(plan: MergePlan, target: Target, delta: Delta | EntrywiseDelta | None, sums: Sums | None) -> Row:
    """A weight's entry in the report, but for what `add_comparisons` adds."""
    row: Row = {
        "name": target.info.name, "shape": list(target.info.shape), "dtype": target.info.dtype,
        "method": plan.options.method, "adapters": [plan.names[index] for index in target.adapters],
        "rank": target.total_rank, "rank_kept": plan.most_kept(target),
    }
    norm = math.sqrt(sums.change) if sums is not None else None
    if isinstance(delta, Delta):
        row |= {
            "rank_kept": delta.kept, "energy_kept": delta.energy, "singular_values": delta.singular.tolist(),
            "relative_gap": delta.gap,
        }
        if not target.wholes:
            norm = delta.norm
    if norm is not None:
        row["delta_norm"] = norm
    if sums is not None:
        size = math.sqrt(sums.square)
        row |= {
            "weight_norm": size, "delta_norm_relative": norm / size if size else None,
            "elements_changed": sums.changed,
        }
    return row


def add_comparisons(found: Sequence[tuple[Row, Parts]]) -> None:
    """Adds to each row how the adapters' changes of its weight lie to each other."""
    for (row, _), (cosines, angles) in zip(found, compare_all([parts for _, parts in found]), strict=True):
        row |= {"cosines": cosines, "principal_angles": angles}


def write_model(
    plan: MergePlan, files: Sequence[OutFile], stage: Stage, pool: Pool, progress: Progress
) -> dict[str, Row]:
    """The checkpoint, in the files given; those that are finished already are left as they are."""
    rows: dict[str, Row] = {}
    for line in (*stage.finished.values(), *stage.begun):
        rows |= line["noted"]
    with contextlib.ExitStack() as opened:
        sources: dict[Path, int] = {}
        for path in plan.base.files:
            sources[path] = os.open(path, os.O_RDONLY)
            opened.callback(os.close, sources[path])
        merging: list[tuple[int, int, Task]] = []
        copying: list[Task] = []
        for file in files:
            if file.name not in stage.finished:
                new = all(line["file"] != file.name for line in stage.begun)
                handle = os.open(stage.folder / file.name, os.O_RDWR | (os.O_CREAT | os.O_EXCL) * new, 0o666)
                opened.callback(os.close, handle)
                reserve(handle, file.size)
                write_all(handle, memoryview(file.header), 0)
                its, others = _Writing(plan, file, handle, sources, stage, pool, rows).tasks()
                its.sort(key=lambda task: -task[0])
                merging += [(-size, place, task) for place, (size, task) in enumerate(its)]
                copying += others
        # The largest first, so that the cores finish together; files in turns: one thread at a time writes to one.
        merging.sort(key=lambda task: task[:2])
        pool.run(_mixed([task for *_, task in merging], copying), progress, "merging")
    for name in plan.carried:
        if name == INDEX and [file.name for file in files] != [path.name for path in plan.base.files]:
            continue
        (stage.folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(plan.base.folder / name, stage.folder / name)
    if len(files) > 1 and not (stage.folder / INDEX).exists():
        write_json(stage.folder / INDEX, index_of(list(files), plan.base))
    return rows


def _mixed(merging: Sequence[Task], copying: Sequence[Task]) -> list[Task]:
    """All of them, those that copy spread over the first four fifths of the others: two that write to one file wait for
    each other, and copying does little else.
    """
    placed = [(place / len(merging), task) for place, task in enumerate(merging)]
    placed += [(0.8 * place / len(copying), task) for place, task in enumerate(copying)]
    return [task for _, task in sorted(placed, key=lambda each: each[0])]


class _Writing:
    """One weight file while its parts are written, in any order; the last part finishes it."""

    def __init__(
        self, plan: MergePlan, file: OutFile, handle: int, sources: Mapping[Path, int], stage: Stage, pool: Pool,
        rows: dict[str, Row],
    ) -> None:
        self.plan, self.file, self.handle, self.sources = plan, file, handle, sources
        self.stage, self.pool, self.rows = stage, pool, rows
        self._lock, self._left = threading.Lock(), 0
        begun = [line for line in stage.begun if line["file"] == file.name]
        self._done_before = {place for line in begun for place, _ in line["parts"]}
        self._noted: dict[str, Row] = {name: row for line in begun for name, row in line["noted"].items()}
        self._parts: list[tuple[int, int]] = []
        self._news: dict[str, Row] = {}
        self._to_compare: list[tuple[Row, Parts]] = []

    def tasks(self) -> tuple[list[tuple[int, Task]], list[Task]]:
        """(bytes, task) for each weight that is merged; tasks for what is copied."""
        targets = [self.plan.targets[name] for name, place in self.file.places.items()
                   if name in self.plan.targets and place not in self._done_before]
        merging: list[tuple[int, Task]] = [(target.info.nbytes, lambda t=target: self._merge(t)) for target in targets]
        runs = untouched(self.file, self.plan.base, self.plan.targets)
        copying: list[Task] = [lambda r=run: self._copy(*r) for run in runs if run[2] not in self._done_before]
        if not merging and not copying:  # it holds no tensor, or was killed when only its end was left to note
            copying.append(lambda: self._done(0, 0))
        self._left = len(merging) + len(copying)
        return merging, copying

    def _merge(self, target: Target) -> None:
        delta, sums = delta_for(self.plan, target), Sums()
        place, row = self.file.places[target.info.name], target.info.nbytes // target.info.shape[0]
        begun = 0
        for first, last, new in fold(target, delta, sums, self.plan.device):
            self.pool.check()
            write_all(self.handle, as_bytes(new), place + first * row)
            if (last - begun) * row >= WRITTEN_BACK or last == target.info.shape[0]:
                start_writing_back(self.handle, place + begun * row, place + last * row)
                begun = last
        found = row_of(self.plan, target, delta, sums)
        if delta is not None:
            self._compare_later(found, delta.triangles)
        self._done(place, target.info.nbytes, {found.pop("name"): found})

    def _compare_later(self, row: Row, triangles: Parts) -> None:
        """With others, when a portion is done; before, where those that wait take much memory."""
        with self._lock:
            self._to_compare.append((row, triangles))
            waiting = sum(b.numel() + a.numel() for _, parts in self._to_compare for b, a in parts.values())
            if waiting < COMPARED:
                return
            now, self._to_compare = self._to_compare, []
        add_comparisons(now)

    def _copy(self, source: Path, start: int, place: int, count: int) -> None:
        self.pool.check()
        copy_range(self.sources[source], self.handle, start, start + count, place)
        start_writing_back(self.handle, place, place + count)
        self._done(place, count)

    def _done(self, place: int, count: int, row: Mapping[str, Row] | None = None) -> None:
        with self._lock:
            self._news |= row or {}
            self.rows |= row or {}
            self._parts.append((place, count))
            self._left -= 1
            if self._left and sum(count for _, count in self._parts) < PORTION:
                return
            last, parts, news = self._left == 0, self._parts, self._news
            self._noted |= news
            self._parts, self._news = [], {}
            to_compare, self._to_compare = self._to_compare, []

        def finish() -> None:
            add_comparisons(to_compare)
            self.stage.finish(self.handle, self.file.name, *((self._noted,) if last else (news, parts)))

        self.pool.wait_beside(finish)


def padded(delta: Delta, rank: int) -> tuple[Tensor, Tensor]:
    """(a, b) of a module in the merged adapter: fp32, padded with zeros to the adapter's rank."""
    pad = rank - delta.kept
    a = torch.nn.functional.pad(delta.a.float(), (0, 0, 0, pad))
    return a, torch.nn.functional.pad(delta.b.float(), (0, pad))


def _adapter_targets(plan: MergePlan) -> list[str]:
    """Ends of module names that name the merged modules and no others; whole names where no end does."""
    modules = [target.module for target in plan.targets.values()]
    lasts = list(dict.fromkeys(module.rpartition(".")[2] for module in modules))
    covered = {
        name.removesuffix(".weight") for name in plan.base.tensors
        if name.endswith(".weight") and name.removesuffix(".weight").rpartition(".")[2] in lasts
    }
    return lasts if covered == set(modules) else modules


def write_as_adapter(plan: MergePlan, folder: Path, pool: Pool, progress: Progress) -> dict[str, Row]:
    """One PEFT adapter of uniform rank and scale 1, √σ on both factors."""
    def combined(target: Target) -> tuple[Row, Delta]:
        pool.check()
        delta = delta_for(plan, target, balanced=True)
        row = row_of(plan, target, delta, None)
        add_comparisons([(row, delta.triangles)])
        return row, delta

    tasks: list[Callable[[], Any]] = [lambda t=target: combined(t) for target in plan.targets.values()]
    results = pool.run(tasks, progress, "merging")
    rank = max(delta.kept for _, delta in results)
    recorded = {source.file.config.get("base_model_name_or_path") for source in plan.adapters}
    base_model = recorded.pop() if len(recorded) == 1 else None
    write_adapter(
        folder, {row["name"].removesuffix(".weight"): padded(delta, rank) for row, delta in results}, rank=rank,
        alpha=rank, targets=_adapter_targets(plan), base_model=base_model or plan.base_name,
    )
    return {row.pop("name"): row for row, _ in results}
