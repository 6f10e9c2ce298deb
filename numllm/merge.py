"""Folds LoRA adapters into a checkpoint, on its safetensors files, without building the model.

For the adapters i with weights wᵢ and scales sᵢ, stacked into B̂ = [wᵢ sᵢ Bᵢ] (N × R) and  = [Aᵢ] (R × K):

    Δ = Σ wᵢ sᵢ Bᵢ Aᵢ = B̂ Â        W' = round(W + Δₖ)

`exact` takes Δ whole; `svd` takes the closest Δₖ of rank k, from the QR of B̂ and Âᵀ and the SVD of the small
R_B R_Aᵀ, so no dense N × K matrix is ever decomposed. ‖Δ − Δₖ‖²_F = Σ_{j>k} σⱼ². The sum is taken in fp64
and rounded once: every element is the number of the base's dtype nearest to the exact sum.

Plan (from headers) → check → write → verify. A thread holds one row block and one module's factors at a time;
only a merged adapter is held whole before it is written.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import __version__
from .adapter import AdapterFile, FactorInfo, read_adapter, write_adapter
from .checkpoint import INDEX, Checkpoint, TensorInfo, read_header, read_rows, torch_dtype
from .errors import CheckpointError, MergeError
from .files import Progress, new_folder, no_progress, sha256, write_json

METHODS = ("svd", "exact")
REPORT = "numllm_merge.json"
BLOCK = 1 << 17
"""Elements of a row block: its fp64 copy fits a core's cache."""
PIECE = 64 << 20
"""Bytes copied by one task."""

_LEFT_BEHIND = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".onnx", ".onnx_data", ".h5", ".msgpack",
    ".ot", ".npz", ".tflite", ".llamafile", ".index.json",
)  # fmt: skip
"""Ends of the names of files that hold weights, in any format, or that point to them."""

_NO_RANGE_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY}


@dataclasses.dataclass(frozen=True)
class Target:
    """A weight of the base that changes: Δ = Σ coefficient · B A over its parts."""

    info: TensorInfo
    parts: tuple[tuple[int, FactorInfo, float], ...]
    """(index of the adapter, its factors, weight · scale)."""
    kept: int
    """Rank of Δₖ."""

    @property
    def module(self) -> str:
        """Name of the linear."""
        return self.info.name.removesuffix(".weight")

    @property
    def total_rank(self) -> int:
        """R, the sum of the adapters' ranks."""
        return sum(factors.rank for _, factors, _ in self.parts)


@dataclasses.dataclass(frozen=True)
class MergePlan:
    """A checked merge: nothing in it is left to go wrong but the reading and the writing."""

    base: Checkpoint
    base_name: str
    adapters: tuple[tuple[AdapterFile, float, str], ...]
    """(adapter, weight, name)."""
    method: str
    targets: dict[str, Target]
    """Weight name → what happens to it, in the order of the base's files."""
    carried: tuple[str, ...]
    """Files beside the weights that go along, relative to the base's folder."""
    stamps: dict[Path, tuple[int, int, int]]
    """Size, time of change and inode of every input, to tell whether one changes while it is read."""

    @property
    def model_bytes(self) -> int:
        """Size of the merged checkpoint."""
        return sum(path.stat().st_size for path in self.base.files) + sum(
            (self.base.folder / name).stat().st_size for name in self.carried
        )

    @property
    def adapter_rank(self) -> int:
        """The one rank of the merged adapter: the largest that any module keeps."""
        return max(target.kept for target in self.targets.values())


@dataclasses.dataclass(frozen=True)
class Delta:
    """Δₖ = b a, b (N, k), a (k, K), fp64, and what is known of Δ."""

    b: Tensor
    a: Tensor
    singular: Tensor
    """All singular values of Δ, falling, fp64."""
    kept: int
    cosines: dict[str, float | None]
    """Adapter pair → ⟨Δᵢ, Δⱼ⟩ / (‖Δᵢ‖ ‖Δⱼ‖) of their weighted deltas; None where one is zero."""

    @property
    def energy(self) -> float:
        """Σ_{j≤k} σⱼ² / Σ σⱼ²; 1 where Δ is zero."""
        total = float(self.singular.square().sum())
        return float(self.singular[: self.kept].square().sum()) / total if total else 1.0

    @property
    def norm(self) -> float:
        """‖Δₖ‖_F."""
        return float(torch.linalg.vector_norm(self.singular[: self.kept]))


def plan_merge(
    base: Checkpoint, adapters: Sequence[tuple[AdapterFile, float, str]], *, method: str = "svd",
    rank: int | None = None, base_name: str | None = None,
) -> MergePlan:
    """Checks that the adapters (file, weight, name) can be merged into the base, from the headers.

    method: "svd" keeps `rank` directions of each weight's Δ (None: the largest rank among the adapters; at or
    above the sum of their ranks it is the exact sum), "exact" keeps all.

    MergeError or AdapterError, in one line, when it cannot be done right.
    """
    if method not in METHODS:
        raise MergeError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if rank is not None and (method != "svd" or rank < 1):
        raise MergeError(f"rank goes with method svd and is at least 1, got rank {rank} with method {method}")
    if not adapters:
        raise MergeError("a merge needs at least one adapter, got none")
    _check_adapters(adapters)
    _check_base(base)
    shapes = {name: info.shape for name, info in base.tensors.items()}
    parts: dict[str, list[tuple[int, FactorInfo, float]]] = {}
    for index, (adapter, weight, _) in enumerate(adapters):
        _check_tied(base, adapter)
        adapter.check_fits(shapes)
        for copy, info in adapter.base_copies.items():
            _check_copy(base, adapter, copy, info)
        for module, factors in adapter.modules.items():
            parts.setdefault(f"{module}.weight", []).append((index, factors, weight * factors.scale))
    largest = max(adapter.rank for adapter, _, _ in adapters)
    targets = {}
    for name, info in base.tensors.items():
        if name not in parts:
            continue
        if info.dtype not in ("F32", "F16", "BF16"):
            raise MergeError(
                f"{base.folder}: {name} is {info.dtype}; an adapter can be folded into F32, F16 and BF16 weights "
                "only, so take the checkpoint before it was quantised"
            )
        total = sum(factors.rank for _, factors, _ in parts[name])
        kept = total if method == "exact" else min(rank or largest, total)
        targets[name] = Target(info, tuple(parts[name]), min(kept, *info.shape))
    carried = _carried(base.folder)
    inputs = [*base.files, *(base.folder / name for name in carried)]
    inputs += [path for adapter, _, _ in adapters for path in adapter.files]
    return MergePlan(
        base, base_name or base.folder.name, tuple(adapters), method, targets, carried,
        {path: _stamp(path) for path in inputs},
    )


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise MergeError(f"{path}: cannot be read: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns, found.st_ino


def _check_adapters(adapters: Sequence[tuple[AdapterFile, float, str]]) -> None:
    seen: dict[Path, str] = {}
    for adapter, weight, name in adapters:
        if not math.isfinite(weight) or weight == 0:
            raise MergeError(f"adapter {name}: its weight must be a finite number other than 0, got {weight}")
        real = adapter.folder.resolve()
        if real in seen:
            raise MergeError(f"adapter {name} is given twice; give it once, with the sum of the weights")
        seen[real] = name
        if not any(bool(factors.b.any()) for factors in adapter.factors.values()):
            raise MergeError(f"adapter {name} changes nothing: its B are all zero; it was never trained")


def _check_base(base: Checkpoint) -> None:
    quantised = base.raw_config.get("quantization_config")
    if quantised:
        kind = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        raise MergeError(
            f"{base.folder}: the base is quantised ({kind or 'quantization_config'}); merge into the checkpoint "
            "it was made from and quantise the result"
        )


def _check_tied(base: Checkpoint, adapter: AdapterFile) -> None:
    nested = base.raw_config.get("text_config")
    says = [config.get("tie_word_embeddings") for config in (base.raw_config, nested) if isinstance(config, dict)]
    tied = True in says or not any(name.endswith("lm_head.weight") for name in base.tensors)
    for module in adapter.modules:
        if tied and module.rpartition(".")[2] in ("lm_head", "embed_tokens"):
            raise MergeError(
                f"{adapter.folder}: has factors for {module}, but the base ties its head to its embedding: a change "
                "of one would change both; merge into a base saved with tie_word_embeddings=false"
            )


def _check_copy(base: Checkpoint, adapter: AdapterFile, module: str, copy: TensorInfo) -> None:
    """A weight of the base stored with the adapter must be the base's own."""
    info = base.tensors.get(f"{module}.weight")
    same = info is not None and info.shape == copy.shape
    if same:
        rows = max(1, BLOCK // max(1, math.prod(info.shape[1:])))
        for first in range(0, info.shape[0], rows):
            last = min(first + rows, info.shape[0])
            if not torch.equal(read_rows(info, first, last).double(), read_rows(copy, first, last).double()):
                same = False
                break
    if not same:
        raise MergeError(
            f"{adapter.folder}: stores its own {module}.weight, which is not the base's; it was trained on another "
            "or a resized base"
        )


def _carried(folder: Path) -> tuple[str, ...]:
    """Names of the files that go along: all but weights, hidden files, adapters' and old merge reports.

    A PEFT configuration is left behind: beside the merged weights transformers would load it on top of them.
    """
    found = []
    root = folder.resolve()
    cache = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    for where in (folder, folder / "additional_chat_templates"):
        for path in sorted(where.iterdir()) if where.is_dir() else ():
            name = path.relative_to(folder).as_posix()
            if path.name.startswith(".") or path.name.endswith(_LEFT_BEHIND) or not path.is_file():
                continue
            if path.name in ("adapter_config.json", REPORT):
                continue
            real = path.resolve()
            if not real.is_relative_to(root) and not real.is_relative_to(cache):
                raise MergeError(f"{path}: is a link to outside its folder; copy the file instead")
            found.append(name)
    if (folder / INDEX).is_file():
        found.append(INDEX)
    return tuple(found)


def stack(target: Target) -> tuple[Tensor, Tensor]:
    """B̂ = [wᵢ sᵢ Bᵢ] (N, R) and  = [Aᵢ] (R, K), fp64."""
    read = [(factors.read(), coefficient) for _, factors, coefficient in target.parts]
    b = torch.cat([factors.b.double() * coefficient for factors, coefficient in read], dim=1)
    return b, torch.cat([factors.a.double() for factors, _ in read])


def decompose(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (N, r), σ (r,) falling, Vᵀ (r, K) of b a, for b (N, R) and a (R, K), r = min(N, R, K), in fp64.

    O((N + K) R² + R³) work. Signs are fixed: the entry of largest size in each column of U is positive.
    """
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, singular, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    u, v = q_b @ u, v @ q_a.T
    signs = torch.where(u.amax(dim=0) >= -u.amin(dim=0), 1.0, -1.0).to(u.dtype)
    return u.mul_(signs), singular, v.mul_(signs[:, None])


def _cosines(target: Target, names: Sequence[str], b: Tensor, a: Tensor) -> dict[str, float | None]:
    # ⟨BᵢAᵢ, BⱼAⱼ⟩ = Σ (BᵢᵀBⱼ) ∘ (AᵢAⱼᵀ): all pairs are blocks of one product of Gram matrices.
    if len(target.parts) < 2:
        return {}
    owner = torch.tensor([index for index, factors, _ in target.parts for _ in range(factors.rank)])
    products = (b.T @ b) * (a @ a.T)
    indexes = [index for index, _, _ in target.parts]
    inner = {(i, j): float(products[owner == i][:, owner == j].sum()) for i in indexes for j in indexes if i <= j}
    found: dict[str, float | None] = {}
    for (i, j), product in inner.items():
        if i < j:
            size = math.sqrt(max(inner[i, i], 0.0) * max(inner[j, j], 0.0))
            found[f"{names[i]} · {names[j]}"] = max(-1.0, min(1.0, product / size)) if size else None
    return found


def delta_of(target: Target, names: Sequence[str], *, balanced: bool = False) -> Delta:
    """Δₖ of a weight. names: the adapters'. balanced: as √σ on both factors, for an adapter of scale 1.

    Where all of Δ is kept and it need not be balanced, b and a are B̂ and  themselves, with no SVD between.
    """
    b, a = stack(target)
    cosines = _cosines(target, names, b, a)
    if target.kept == min(target.total_rank, *target.info.shape) and not balanced:
        r_b, r_a = torch.linalg.qr(b, mode="r").R, torch.linalg.qr(a.T, mode="r").R
        return Delta(b, a, torch.linalg.svdvals(r_b @ r_a.T), target.kept, cosines)
    u, singular, v = decompose(b, a)
    kept = singular[: target.kept]
    if balanced:
        root = kept.sqrt()
        b, a = u[:, : target.kept] * root, v[: target.kept] * root[:, None]
    else:
        b, a = u[:, : target.kept] * kept, v[: target.kept]
    return Delta(b, a, singular, target.kept, cosines)


class Rounder:
    """x (n,) contiguous fp64 → the nearest numbers of fp32, fp16 or bf16, ties to even, in memory used again.

    Going through fp32, as a plain conversion does, rounds twice and errs where the fp32 number falls in the
    middle between two of the narrow dtype; those few are found by their bits and done again.
    """

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.single = torch.empty(size, dtype=torch.float32)
        self.narrow = self.single if dtype == torch.float32 else torch.empty(size, dtype=dtype)
        self.bits = np.empty(size, dtype=np.uint32)
        self.doubtful = np.empty(size, dtype=bool)

    def __call__(self, x: Tensor) -> Tensor:
        """The rounded numbers (n,); they last until the next call."""
        n = len(x)
        single = self.single[:n].copy_(x)
        if self.narrow is self.single:
            return single
        narrow = self.narrow[:n].copy_(single)
        bits, doubtful = self.bits[:n], self.doubtful[:n]
        raw = single.numpy().view(np.uint32)
        if narrow.dtype == torch.bfloat16:
            np.bitwise_and(raw, np.uint32(0xFFFF), out=bits)
            np.equal(bits, np.uint32(0x8000), out=doubtful)
        else:
            np.bitwise_and(raw, np.uint32(0x1FFF), out=bits)
            np.equal(bits, np.uint32(0x1000), out=doubtful)
            # Below 2⁻¹⁴ fp16 is subnormal and the middle is not a fixed pattern of bits.
            np.bitwise_and(raw, np.uint32(0x7FFFFFFF), out=bits)
            doubtful |= bits < 0x38800000
        where = torch.from_numpy(np.flatnonzero(doubtful))
        if len(where):
            narrow[where] = _to_odd(x[where]).to(narrow.dtype)
        return narrow


def _to_odd(x: Tensor) -> Tensor:
    """fp64 → fp32, towards zero, the last bit set where that was not exact: a later rounding is then right."""
    single = x.float()
    error = x - single.double()
    inexact = error != 0
    beyond = inexact & ((error < 0) ^ single.signbit())
    return ((single.view(torch.int32) - beyond.int()) | inexact.int()).view(torch.float32)


def _integers(tensor: Tensor) -> Tensor:
    """The bits of a floating-point tensor."""
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


@dataclasses.dataclass
class _Sums:
    """What the row blocks of one weight add up to."""

    square: float = 0.0
    """‖W‖²_F."""
    changed: int = 0
    """Elements whose bits differ from the base's."""


def fold(target: Target, delta: Delta, sums: _Sums | None = None) -> Iterator[tuple[int, int, Tensor]]:
    """(first row, one past the last, round(W + Δₖ) of these rows in the base's dtype), block by block; a block
    lasts until the next is asked for.

    MergeError when the base holds NaN or infinity, or a sum overflows the dtype.
    """
    info, (rows, columns) = target.info, target.info.shape
    step = min(rows, max(1, BLOCK // columns))
    dtype = torch_dtype(info.dtype)
    sum_, round_ = torch.empty(step, columns, dtype=torch.float64), Rounder(step * columns, dtype)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        old = read_rows(info, first, last)
        x = sum_[: last - first].copy_(old)
        square = float(torch.dot(x.view(-1), x.view(-1)))
        if not math.isfinite(square):  # no finite fp32 has a square near fp64's limit
            raise MergeError(f"{info.file}: {info.name} holds NaN or infinity; the base is damaged")
        new = round_(x.addmm_(delta.b[first:last], delta.a).view(-1)).view(x.shape)
        if not all(math.isfinite(float(extreme)) for extreme in torch.aminmax(new)):
            raise MergeError(
                f"{info.name}: the merged weight overflows {info.dtype}; lower the adapters' weights or convert the "
                "base to BF16 or F32 first"
            )
        if sums is not None:
            sums.square += square
            sums.changed += int(np.count_nonzero(_integers(old).numpy() != _integers(new).numpy()))
        yield first, last, new


class _Pool:
    """Runs tasks on all cores, one thread of torch each; the first error stops the rest."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._threads = torch.get_num_threads()

    def __enter__(self) -> _Pool:
        self._executor = concurrent.futures.ThreadPoolExecutor(
            self._threads, "numllm-merge", initializer=torch.set_num_threads, initargs=(1,)
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        torch.set_num_threads(self._threads)  # what a thread sets is also the setting of threads yet to come

    def _stop(self) -> None:
        self._stopped.set()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def submit(self, task: Callable[[], Any]) -> concurrent.futures.Future[Any]:
        """Starts a task; its future."""
        return self._executor.submit(task)

    def run(self, tasks: Sequence[Callable[[], Any]], progress: Progress, description: str) -> list[Any]:
        """The tasks' results, in their order. The first error is raised when no task runs any more, so that
        files can be closed then.
        """
        places = {self.submit(task): place for place, task in enumerate(tasks)}
        results: list[Any] = [None] * len(tasks)
        try:
            finished = concurrent.futures.as_completed(places)
            for future in progress(finished, total=len(tasks), description=description, unit="part"):
                results[places[future]] = future.result()
        except BaseException:
            self._stop()
            raise
        return results

    def check(self) -> None:
        """Ends the task that calls it when its work is no longer wanted."""
        if self._stopped.is_set():
            raise concurrent.futures.CancelledError


def _write_all(handle: int, data: memoryview, at: int) -> None:
    while len(data):
        count = os.pwrite(handle, data, at)
        data, at = data[count:], at + count


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())


def copy_range(source: int, target: int, start: int, end: int) -> None:
    """Copies bytes start..end-1 between two open files, in the kernel where it can, else by reading and writing."""
    at = start
    while at < end and hasattr(os, "copy_file_range"):
        try:
            count = os.copy_file_range(source, target, end - at, at, at)
        except OSError as error:
            if error.errno not in _NO_RANGE_COPY:
                raise
            break
        if not count:
            break
        at += count
    while at < end:
        block = os.pread(source, min(1 << 20, end - at), at)
        if not block:
            raise CheckpointError("a weight file of the base became shorter while it was read")
        _write_all(target, memoryview(block), at)
        at += len(block)


def _runs(plan: MergePlan, path: Path) -> Iterator[tuple[int, int]]:
    """The stretches of a weight file (header included) that stay as they are, at most PIECE bytes each."""
    at = 0
    touched = sorted((t.info.start, t.info.end) for t in plan.targets.values() if t.info.file == path)
    for start, end in [*touched, (path.stat().st_size,) * 2]:
        for piece in range(at, start, PIECE):
            yield piece, min(piece + PIECE, start)
        at = end


def _by_size(plan: MergePlan) -> list[Target]:
    """Targets, the largest first, so that the cores finish together."""
    return sorted(plan.targets.values(), key=lambda target: -target.info.nbytes)


def _write_model(plan: MergePlan, folder: Path, pool: _Pool, progress: Progress) -> dict[str, dict[str, Any]]:
    names = [name for _, _, name in plan.adapters]
    with contextlib.ExitStack() as opened:
        handles: dict[Path, tuple[int, int]] = {}
        for path in plan.base.files:
            source = os.open(path, os.O_RDONLY)
            opened.callback(os.close, source)
            out = os.open(folder / path.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            opened.callback(os.close, out)
            os.truncate(out, path.stat().st_size)
            handles[path] = source, out

        def merged(target: Target) -> dict[str, Any]:
            delta, sums = delta_of(target, names), _Sums()
            out = handles[target.info.file][1]
            row = target.info.nbytes // target.info.shape[0]
            for first, _, new in fold(target, delta, sums):
                pool.check()
                _write_all(out, _bytes(new), target.info.start + first * row)
            return _row(plan, target, delta, sums)

        def copied(path: Path, start: int, end: int) -> None:
            pool.check()
            copy_range(*handles[path], start, end)

        tasks: list[Callable[[], Any]] = [lambda t=target: merged(t) for target in _by_size(plan)]
        count = len(tasks)
        tasks += [lambda p=path, r=run: copied(p, *r) for path in plan.base.files for run in _runs(plan, path)]
        rows = pool.run(tasks, progress, "merging")[:count]
    for name in plan.carried:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(plan.base.folder / name, folder / name)
    return {row.pop("name"): row for row in rows}


def _row(plan: MergePlan, target: Target, delta: Delta | None, sums: _Sums | None) -> dict[str, Any]:
    """A weight's entry in the report; delta and sums are None where they were not computed."""
    row: dict[str, Any] = {
        "name": target.info.name, "shape": list(target.info.shape), "dtype": target.info.dtype,
        "method": plan.method, "adapters": [plan.adapters[index][2] for index, _, _ in target.parts],
        "rank": target.total_rank, "rank_kept": target.kept,
    }
    if delta is not None:
        row["energy_kept"] = delta.energy
        row["singular_values"] = delta.singular.tolist()
        row["delta_norm"] = delta.norm
        row["cosines"] = delta.cosines
    if delta is not None and sums is not None:
        size = math.sqrt(sums.square)
        row["weight_norm"] = size
        row["delta_norm_relative"] = delta.norm / size if size else None
        row["elements_changed"] = sums.changed
    return row


def _adapter_factors(plan: MergePlan, delta: Delta) -> tuple[Tensor, Tensor]:
    """(a, b) of a module in the merged adapter: fp32, padded with zeros to the adapter's rank."""
    pad = plan.adapter_rank - delta.kept
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


def _write_as_adapter(plan: MergePlan, folder: Path, pool: _Pool, progress: Progress) -> dict[str, dict[str, Any]]:
    names = [name for _, _, name in plan.adapters]

    def combined(target: Target) -> tuple[dict[str, Any], tuple[Tensor, Tensor]]:
        pool.check()
        delta = delta_of(target, names, balanced=True)
        return _row(plan, target, delta, None), _adapter_factors(plan, delta)

    tasks: list[Callable[[], Any]] = [lambda t=target: combined(t) for target in plan.targets.values()]
    results = pool.run(tasks, progress, "merging")
    rank = plan.adapter_rank
    recorded = {adapter.config.get("base_model_name_or_path") for adapter, _, _ in plan.adapters}
    base_model = recorded.pop() if len(recorded) == 1 else None
    write_adapter(
        folder, {row["name"].removesuffix(".weight"): factors for row, factors in results}, rank=rank, alpha=rank,
        targets=_adapter_targets(plan), base_model=base_model or plan.base_name,
    )
    return {row.pop("name"): row for row, _ in results}


def verify_merge(
    plan: MergePlan, folder: str | Path, *, as_: str = "model", progress: Progress = no_progress
) -> dict[str, bool]:
    """Reads a result back from disk and checks all of it against the plan: {check: True}.

    A model: every merged weight is computed again and compared bit by bit, everything else is compared with the
    base byte by byte. An adapter: its factors are computed again and compared. MergeError at the first difference.
    """
    folder = Path(folder)
    with _Pool() as pool:
        if as_ == "adapter":
            _verify_adapter(plan, folder, pool, progress)
            return {"adapter_reads_back": True, "factors_equal": True}
        return _verify_model(plan, folder, pool, progress)


def _differs(path: Path, what: str) -> MergeError:
    return MergeError(f"{path}: {what} is not what was written; the disk or the memory is faulty")


def _verify_model(plan: MergePlan, folder: Path, pool: _Pool, progress: Progress) -> dict[str, bool]:
    names = [name for _, _, name in plan.adapters]
    for path in plan.base.files:
        out = folder / path.name
        _drop_cache(out)
        tensors, metadata = read_header(out)
        was, was_metadata = read_header(path)
        if metadata != was_metadata or [dataclasses.replace(i, file=path) for i in tensors.values()] != [*was.values()]:
            raise _differs(out, "the header")

    def merged(target: Target) -> None:
        out = dataclasses.replace(target.info, file=folder / target.info.file.name)
        for first, last, new in fold(target, delta_of(target, names)):
            pool.check()
            if not torch.equal(_integers(read_rows(out, first, last)), _integers(new)):
                raise _differs(out.file, out.name)

    def copied(path: Path, start: int, end: int) -> None:
        pool.check()
        with open(path, "rb") as left, open(folder / path.name, "rb") as right:
            left.seek(start)
            right.seek(start)
            for at in range(start, end, 1 << 20):
                size = min(1 << 20, end - at)
                if left.read(size) != right.read(size):
                    raise _differs(folder / path.name, f"the stretch from byte {at:,}")

    tasks: list[Callable[[], Any]] = [lambda t=target: merged(t) for target in _by_size(plan)]
    tasks += [lambda p=path, r=run: copied(p, *r) for path in plan.base.files for run in _runs(plan, path)]
    pool.run(tasks, progress, "verifying")
    for name in plan.carried:
        if sha256(plan.base.folder / name) != sha256(folder / name):
            raise _differs(folder / name, "the file")
    return {"headers_equal": True, "merged_weights_equal": True, "finite": True, "untouched_bytes_equal": True}


def _drop_cache(path: Path) -> None:
    """Makes the next read come from the disk, not from memory, where the system can be asked to."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _verify_adapter(plan: MergePlan, folder: Path, pool: _Pool, progress: Progress) -> None:
    for path in folder.glob("adapter_model.*"):
        _drop_cache(path)
    written = read_adapter(folder, base_shapes={name: info.shape for name, info in plan.base.tensors.items()})
    names = [name for _, _, name in plan.adapters]
    if set(written.modules) != {target.module for target in plan.targets.values()}:
        raise _differs(folder, "the set of modules")

    def same(target: Target) -> None:
        pool.check()
        a, b = _adapter_factors(plan, delta_of(target, names, balanced=True))
        read = written.factors[target.module]
        if read.scale != 1 or not torch.equal(read.a, a) or not torch.equal(read.b, b):
            raise _differs(folder, target.module)

    pool.run([lambda t=target: same(t) for target in plan.targets.values()], progress, "verifying")


def _check_out(plan: MergePlan, out: Path, needed: int) -> int:
    """Refuses an output that would touch an input or does not fit; the bytes free."""
    real = out.resolve()
    for folder in [plan.base.folder, *(adapter.folder for adapter, _, _ in plan.adapters)]:
        other = folder.resolve()
        if real.is_relative_to(other) or other.is_relative_to(real):
            raise MergeError(f"{out}: the output must lie apart from the inputs, but it and {folder} overlap")
    place = next(parent for parent in (real, *real.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise MergeError(f"{out}: needs {needed:,} bytes, the disk has {free:,} free; choose another --out")
    return free


def _sha256(path: Path, pool: _Pool) -> str:
    """SHA-256 of a file, given up when the merge is."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            pool.check()
            digest.update(block)
    return digest.hexdigest()


def _provenance(plan: MergePlan, hashes: Mapping[Path, str]) -> dict[str, Any]:
    base = {path.relative_to(plan.base.folder).as_posix(): digest for path, digest in hashes.items()
            if path.is_relative_to(plan.base.folder)}
    return {
        "base": {"name": plan.base_name, "sha256": base},
        "adapters": [
            {"name": name, "weight": weight, "rank": adapter.rank,
             "sha256": {path.name: hashes[path] for path in adapter.files}}
            for adapter, weight, name in plan.adapters
        ],
    }


def run_merge(
    plan: MergePlan, out: str | Path, *, as_: str = "model", overwrite: bool = False, dry_run: bool = False,
    verify: bool = False, progress: Progress = no_progress,
) -> dict[str, Any]:
    """Writes what was planned to the folder `out`, which appears whole or not at all; the report.

    as_: "model" (a checkpoint with the base's files, shards and names) or "adapter" (one PEFT adapter of uniform
    rank and scale 1). dry_run: checks the output too, writes nothing. verify: reads the result back before it
    appears. The report, in `numllm_merge.json` as well, holds "overall", "inputs" (SHA-256 of each) and "tensors".

    MergeError when the output overlaps an input, does not fit the disk, overflows its dtype or reads back
    differently, or when an input changes meanwhile.
    """
    if as_ not in ("model", "adapter"):
        raise MergeError(f"as must be model or adapter, got {as_!r}")
    out, begun = Path(out), time.perf_counter()
    elements = sum(sum(target.info.shape) for target in plan.targets.values())
    needed = plan.model_bytes if as_ == "model" else 4 * plan.adapter_rank * elements
    overall: dict[str, Any] = {
        "method": plan.method, "as": as_, "adapters": len(plan.adapters), "tensors": len(plan.base.tensors),
        "tensors_changed": len(plan.targets), "rank_kept": plan.adapter_rank, "bytes": needed,
        "bytes_free": _check_out(plan, out, needed), "verified": False, "checks": {"plan": True},
    }
    report: dict[str, Any] = {"numllm": __version__, "overall": overall, "inputs": {}, "tensors": {}}
    if dry_run:
        rows = [_row(plan, target, None, None) for target in plan.targets.values()]
        report["tensors"] = {row.pop("name"): row for row in rows}
        return report
    with new_folder(out, overwrite=overwrite) as folder:
        with _Pool() as pool:
            hashes = {path: pool.submit(lambda p=path: _sha256(p, pool)) for path in plan.stamps}
            write = _write_model if as_ == "model" else _write_as_adapter
            rows = write(plan, folder, pool, progress)
            report["inputs"] = _provenance(plan, {path: future.result() for path, future in hashes.items()})
        report["tensors"] = {name: rows[name] for name in plan.targets}
        if verify:
            overall["checks"] |= verify_merge(plan, folder, as_=as_, progress=progress)
            overall["verified"] = True
        changed = [path for path, stamp in plan.stamps.items() if _stamp(path) != stamp]
        if changed:
            raise MergeError(f"{changed[0]}: changed while it was being merged; start again")
        overall["checks"]["inputs_unchanged"] = True
        _sum_up(overall, rows)
        overall["seconds"] = time.perf_counter() - begun
        write_json(folder / REPORT, report)
    overall["seconds"] = time.perf_counter() - begun
    return report


def _sum_up(overall: dict[str, Any], rows: Mapping[str, dict[str, Any]]) -> None:
    squares = [(math.fsum(s * s for s in row["singular_values"]), row["energy_kept"]) for row in rows.values()]
    total = math.fsum(square for square, _ in squares)
    overall["energy_kept"] = math.fsum(square * kept for square, kept in squares) / total if total else 1.0
    if overall["as"] == "model":
        overall["elements_changed"] = sum(row["elements_changed"] for row in rows.values())


def merge(
    base: str | Path, adapters: Sequence[tuple[str | Path, float]], out: str | Path, *, method: str = "svd",
    rank: int | None = None, as_: str = "model", dry_run: bool = False, verify: bool = False, overwrite: bool = False,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Merges adapters (folder, weight) into a checkpoint (folder, Hub id or demo): `plan_merge`, then `run_merge`."""
    checkpoint = Checkpoint.open(base)
    last = [Path(folder).resolve().name for folder, _ in adapters]
    names = last if len(set(last)) == len(last) else [str(folder) for folder, _ in adapters]
    read = [
        (read_adapter(folder, base_copies=True), float(weight), name)
        for (folder, weight), name in zip(adapters, names, strict=True)
    ]
    plan = plan_merge(checkpoint, read, method=method, rank=rank, base_name=str(base))
    return run_merge(
        plan, out, as_=as_, overwrite=overwrite, dry_run=dry_run, verify=verify, progress=progress
    )
