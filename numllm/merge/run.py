"""A merge from folders to a folder: plan, check the output, write, verify, publish, report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from numllm_kernels import processor

from .. import __version__
from ..adapter import adapter_names, read_adapter
from ..checkpoint import Checkpoint
from ..collector import frozen_heap
from ..errors import MergeError
from ..files import Progress, no_progress, place_of, read_text, write_aside, write_json
from ..hashes import Digest, digest, known
from .fold import fold
from .layout import OutFile, in_shards, like_base
from .options import ENTRYWISE, Options
from .plan import CARD, REPORT, MergePlan, Source, plan_merge, read_weights, stamp
from .pool import Pool
from .stage import staged
from .verify import verify_merge
from .write import delta_for, row_of, write_as_adapter, write_model

HASHING, MOVING = 0.7e-9, 0.6e-9
"""Processor seconds a byte: SHA-256; reading, writing and copying."""

GAP = 1e-6
"""A relative gap σₖ − σₖ₊₁ below which the cut is called arbitrary."""


def _check_out(plan: MergePlan, out: Path, needed: int) -> int:
    """Refuses an output that would touch an input or does not fit; the bytes free."""
    real = out.resolve()
    folders = [source.file.folder for source in plan.adapters]
    folders += [source.start.folder for source in plan.adapters if source.start]
    for folder in [plan.base.folder, *folders]:
        other = folder.resolve()
        if real.is_relative_to(other) or other.is_relative_to(real):
            raise MergeError(f"{out}: the output must lie apart from the inputs, but it and {folder} overlap")
    place = next(parent for parent in (real, *real.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise MergeError(f"{out}: needs {needed:,} bytes, the disk has {free:,} free; choose another --out")
    return free


def _provenance(plan: MergePlan, digests: Mapping[Path, Digest]) -> dict[str, Any]:
    """Of the base and each adapter "sha256", file → digest, and "remembered", file → when, of those not made now."""
    def told(files: Mapping[str, Path], key: str = "sha256") -> dict[str, Any]:
        found: dict[str, Any] = {key: {name: digests[path].sha256 for name, path in files.items()}}
        when = {name: since for name, path in files.items() if (since := digests[path].since)}
        return found | ({key.replace("sha256", "remembered"): when} if when else {})

    base = {path.relative_to(plan.base.folder).as_posix(): path for path in digests
            if path.is_relative_to(plan.base.folder)}
    adapters = []
    for source in plan.adapters:
        entry: dict[str, Any] = {
            "name": source.name, "weight": source.weight, "rank": source.file.rank,
            **told({path.name: path for path in source.file.files}),
        }
        if source.weights:
            entry["weights"] = dict(source.weights)
        if source.start:
            entry |= told({path.name: path for path in source.start.files}, "start_sha256")
        adapters.append(entry)
    return {"base": {"name": plan.base_name, **told(base)}, "adapters": adapters}


def _fingerprint(plan: MergePlan, as_: str, files: Sequence[OutFile]) -> str:
    """What decides every byte of the result: a run that finds another's files takes them only if it is equal."""
    settings = {
        "numllm": __version__, "as": as_, "options": dataclasses.asdict(plan.options), "device": str(plan.device),
        "adapters": [(source.name, source.weight, dict(source.weights)) for source in plan.adapters],
        "inputs": [(str(path.resolve()), *stamps) for path, stamps in plan.stamps.items()],
        "files": [(file.name, file.size) for file in files],
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _sums(plan: MergePlan) -> str:
    """What adds B A to weights; compiles it where that has not been done yet."""
    if plan.device is not None:
        return f"torch on {plan.device}"
    if plan.options.method in ENTRYWISE:
        return "torch"
    return "compiled" if processor.library() else f"torch: {processor.why_not()}"


def _seconds(plan: MergePlan, as_: str) -> float:
    """How long it may take: one row block of the largest weight is merged, the rest reckoned by size."""
    target = max(plan.targets.values(), key=lambda target: target.info.nbytes)
    for _ in range(2):  # libraries and memory come with the first time
        begun = time.perf_counter()
        delta = delta_for(plan, target)
        once = time.perf_counter() - begun
        first, last, _ = next(fold(target, delta, device=plan.device))
        block = time.perf_counter() - begun - once
    shapes = [each.info.shape for each in plan.targets.values()]
    rows = sum(map(math.prod, shapes)) / math.prod(target.info.shape[1:])
    with Pool() as pool:
        threads = pool.threads
    arithmetic = once * sum(map(sum, shapes)) / sum(target.info.shape)
    arithmetic += block * rows / (last - first) if as_ == "model" else 0.0
    moved = sum(path.stat().st_size for path in plan.base.files) if as_ == "model" else 0
    hashed = sum(size for path, (size, *_) in plan.stamps.items() if known(path) is None)
    return (arithmetic + HASHING * hashed + MOVING * moved) / threads


@frozen_heap()
def run_merge(
    plan: MergePlan, out: str | Path, *, as_: str = "model", max_shard: int | None = None, overwrite: bool = False,
    dry_run: bool = False, verify: bool = False, sample: float = 1.0, progress: Progress = no_progress,
) -> dict[str, Any]:
    """Writes what was planned to the folder `out`, which appears whole or not at all; the report.

    as_: "model" (a checkpoint with the base's files, shards and names; max_shard: in files of at most so many
    bytes of tensors) or "adapter" (one PEFT adapter of uniform rank and scale 1). dry_run: checks the output
    too, writes nothing. verify: reads the result (a share `sample` of its tensors) back before it appears. The
    report, in `numllm_merge.json` as well, holds "overall", "inputs" (SHA-256 of each, which may be remembered unless
    verify: `numllm.hashes`) and "tensors".

    A run that was killed leaves `.<out>.merging` beside `out`; the same merge started again takes up its
    finished files, any other starts afresh.

    MergeError when the output overlaps an input, does not fit the disk, overflows its dtype or reads back
    differently, when an input changes meanwhile, or when another merge is writing `out`.
    """
    if as_ not in ("model", "adapter"):
        raise MergeError(f"as must be model or adapter, got {as_!r}")
    if as_ == "adapter" and plan.needs_model:
        raise MergeError(f"the result cannot be an adapter: {plan.needs_model}; write it as a model")
    if max_shard is not None and as_ != "model":
        raise MergeError("max shard size goes with a result that is a model")
    out, begun = place_of(out), time.perf_counter()
    files = like_base(plan.base) if max_shard is None else in_shards(plan.base, max_shard)
    bound = max((kept for target in plan.targets.values() if (kept := plan.most_kept(target))), default=None)
    if as_ == "model":
        needed = sum(file.size for file in files) + sum((plan.base.folder / n).stat().st_size for n in plan.carried)
    else:
        needed = 4 * bound * sum(sum(target.info.shape) for target in plan.targets.values())
    overall: dict[str, Any] = {
        "method": plan.options.method, "as": as_, "adapters": len(plan.adapters), "tensors": len(plan.base.tensors),
        "tensors_changed": len(plan.targets), "rank_kept": bound, "bytes": needed,
        "bytes_free": _check_out(plan, out, needed), "sums": _sums(plan) if as_ == "model" else None,
        "verified": False, "checks": {"plan": True}, "warnings": [],
    }
    report: dict[str, Any] = {"numllm": __version__, "overall": overall, "inputs": {}, "tensors": {}}
    if dry_run:
        rows = [row_of(plan, target, None, None) for target in plan.targets.values()]
        report["tensors"] = {row.pop("name"): row for row in rows}
        overall["seconds_expected"] = _seconds(plan, as_)
        return report
    with staged(out, _fingerprint(plan, as_, files), overwrite=overwrite) as stage:
        overall["files_taken_up"], overall["bytes_taken_up"] = len(stage.finished), stage.bytes_taken_up
        with Pool() as pool:
            hashing = {
                path: pool.submit(lambda p=path: digest(p, afresh=verify, check=pool.check)) for path in plan.stamps
            }
            if as_ == "model":
                rows = write_model(plan, files, stage, pool, progress)
            else:
                rows = write_as_adapter(plan, stage.folder, pool, progress)
            digests = {path: future.result() for path, future in hashing.items()}
        report["inputs"] = _provenance(plan, digests)
        overall["hashes_remembered"] = sum(found.remembered is not None for found in digests.values())
        report["tensors"] = {name: rows[name] for name in plan.targets}
        _sum_up(overall, report["tensors"])
        if verify:
            overall["checks"] |= verify_merge(plan, stage.folder, as_=as_, sample=sample, progress=progress)
            overall["verified"] = True
        changed = [path for path, before in plan.stamps.items() if stamp(path) != before]
        if changed:
            raise MergeError(f"{changed[0]}: changed while it was being merged; start again")
        overall["checks"]["inputs_unchanged"] = True
        overall["seconds"] = time.perf_counter() - begun
        write_json(stage.folder / REPORT, report)
        with write_aside(stage.folder / CARD) as file:
            file.write(_card(plan, report))
    overall["seconds"] = time.perf_counter() - begun
    return report


def _sum_up(overall: dict[str, Any], rows: Mapping[str, dict[str, Any]]) -> None:
    squares = [(math.fsum(s * s for s in row["singular_values"]), row["energy_kept"])
               for row in rows.values() if "singular_values" in row]
    total = math.fsum(square for square, _ in squares)
    if squares:
        overall["energy_kept"] = math.fsum(square * kept for square, kept in squares) / total if total else 1.0
    overall["rank_kept"] = max((kept for row in rows.values() if (kept := row["rank_kept"])), default=None)
    if overall["as"] == "model":
        overall["elements_changed"] = sum(row["elements_changed"] for row in rows.values())
    close = [name for name, row in rows.items() if row.get("relative_gap") is not None and row["relative_gap"] < GAP]
    if close:
        overall["warnings"].append(
            f"{len(close)} weights are cut between two singular values that are equal (first {close[0]}): which "
            "direction is kept there is a matter of chance; choose another rank"
        )


def _card(plan: MergePlan, report: Mapping[str, Any]) -> str:
    """The README.md of the result, in the Hub's form."""
    overall, inputs = report["overall"], report["inputs"]
    lines = ["---", f"base_model: {json.dumps(plan.base_name, ensure_ascii=False)}"]
    if overall["as"] == "adapter":
        lines.append("library_name: peft")
    else:
        lines.append("library_name: transformers")
    lines += ["tags: [merge, lora]", *_license(plan.base.folder / CARD), "---", "", "# Merged LoRA adapters", ""]
    lines += [
        f"{overall['tensors_changed']} of {overall['tensors']} tensors of `{plan.base_name}` were changed by "
        f"numllm {report['numllm']}, method `{overall['method']}`.", "", "| adapter | weight | rank |",
        "| --- | ---: | ---: |",
        *(f"| {entry['name']} | {'per module' if 'weights' in entry else entry['weight']} | {entry['rank']} |"
          for entry in inputs["adapters"]),
        "", f"Settings, singular values and checks of every weight stand in `{REPORT}`. SHA-256 of the inputs:", "",
        "| file | SHA-256 |", "| --- | --- |",
        *(f"| base: {name} | `{digest}` |" for name, digest in inputs["base"]["sha256"].items()),
        *(f"| {entry['name']}: {name} | `{digest}` |"
          for entry in inputs["adapters"] for name, digest in entry["sha256"].items()),
    ]
    if overall["hashes_remembered"]:
        lines += ["", f"{overall['hashes_remembered']} of these were made before and remembered, as the files had not "
                  f"been written since: `remembered` in `{REPORT}` says when."]
    return "\n".join(lines) + "\n"


def _license(card: Path) -> list[str]:
    """The licence lines of the base's card."""
    if not card.is_file():
        return []
    parts = read_text(card).split("---\n", 2)
    head = parts[1] if len(parts) == 3 and not parts[0] else ""
    return [line for line in head.splitlines() if line.startswith(("license:", "license_name:", "license_link:"))]


def _device(name: str) -> torch.device | None:
    """None for cpu. MergeError for a device that is not there."""
    if name == "cpu":
        return None
    try:
        device = torch.device(name)
        if device.type != "cuda":
            raise MergeError(f"device must be cpu or cuda, got {name!r}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MergeError(f"device {name!r} is not available here; merge on cpu") from error
    return device


def merge(
    base: str | Path, adapters: Sequence[tuple[str | Path, float]], out: str | Path, *, method: str = "svd",
    rank: int | None = None, energy: float | None = None, noise: bool = False, density: float | None = None,
    seed: int = 0, weights: str | Path | None = None, starts: Mapping[str | Path, str | Path] | None = None,
    as_: str = "model", max_shard: int | None = None, dry_run: bool = False, verify: bool = False,
    sample: float = 1.0, overwrite: bool = False, device: str = "cpu", progress: Progress = no_progress,
) -> dict[str, Any]:
    """Merges adapters (folder, weight) into a checkpoint (folder, Hub id or demo): `plan_merge`, then `run_merge`.

    weights: a file of weights for adapters or single modules (`read_weights`). starts: adapter folder → the
    adapter as it was before training, for those whose start was taken off the base (PiSSA, OLoRA, CorDA).
    device: where the sums of a merged model are made, in fp64: cpu or cuda, cuda:1, …
    The other settings are those of `Options` and `run_merge`.
    """
    options = Options(method=method, rank=rank, energy=energy, noise=noise, density=density, seed=seed)
    checkpoint = Checkpoint.open(base)
    names = adapter_names([folder for folder, _ in adapters])
    begun = {Path(folder).resolve(): start for folder, start in (starts or {}).items()}
    sources = []
    for (folder, weight), name in zip(adapters, names, strict=True):
        start = begun.pop(Path(folder).resolve(), None)
        sources.append(Source(
            read_adapter(folder, whole=True), float(weight), name,
            read_adapter(start, whole=True) if start is not None else None,
        ))
    if begun:
        raise MergeError(f"a start is given for {next(iter(begun))}, which is none of the adapters")
    if weights is not None:
        sources = list(read_weights(Path(weights), sources))
    plan = plan_merge(checkpoint, sources, options, base_name=str(base), device=_device(device))
    return run_merge(
        plan, out, as_=as_, max_shard=max_shard, overwrite=overwrite, dry_run=dry_run, verify=verify, sample=sample,
        progress=progress,
    )
