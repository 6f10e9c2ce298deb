"""Timing that compares: candidates take turns, on inputs that are not in the cache, and rows say where they ran."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")

QUANTILES = {"p20": 0.2, "p50": 0.5, "p80": 0.8}
_FALLBACK_CACHE = 64 * 2**20
_MOST_LEAD = 5e-3
"""Seconds that a GPU is kept busy before a call at most: longer ones hide their launches by themselves."""
_CYCLES = 2e9
"""Of a GPU in a second, about."""
_BEGAN = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
"""When this run began: with the commit, what tells a file's runs apart."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of one candidate, one a round, in seconds."""

    seconds: tuple[float, ...]

    def quantiles(self) -> dict[str, float]:
        """p20, p50, p80 in milliseconds."""
        return _quantiles([1000 * value for value in self.seconds])

    def ratio(self, base: Timing) -> dict[str, float]:
        """p20, p50, p80 of this time over `base`'s time of the same round."""
        return _quantiles([mine / its for mine, its in zip(self.seconds, base.seconds, strict=True)])


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    tensor = torch.tensor(values, dtype=torch.float64)
    return {name: round(tensor.quantile(q).item(), 4) for name, q in QUANTILES.items()}


def cache_bytes(device: torch.device) -> int:
    """Size of the device's last cache; 64 MiB where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    if not sizes:
        return _FALLBACK_CACHE
    number, unit = re.fullmatch(r"(\d+)([KM]?)", sizes[-1].read_text(encoding="ascii").strip()).groups()
    return int(number) * {"": 1, "K": 2**10, "M": 2**20}[unit]


def rotating(make: Callable[[int], T], bytes_of_one: int, device: torch.device) -> list[T]:
    """Input sets made by `make(index)`, at least two and together twice the cache: each turn finds a cold one."""
    return [make(index) for index in range(max(2, -(-2 * cache_bytes(device) // max(1, bytes_of_one))))]


def compare(
    candidates: Mapping[str, Callable[[Any], Any]], inputs: Sequence[Any], device: torch.device, *,
    rounds: int, warmup: int = 3,
) -> dict[str, Timing]:
    """Times `candidates[name](input)`, all candidates one after the other in every round, after a warm-up.

    The order is turned by one each round, and the input is the next of `inputs`. On a GPU the times are of its
    own clock, and before each the cache is overwritten and the GPU kept busy for as long as the host takes to launch
    the call and a half, so that the launches are not what is timed.
    """
    for name in candidates:
        for turn in range(warmup):
            candidates[name](inputs[turn % len(inputs)])
    times: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    clock = _gpu_clock(device) if device.type == "cuda" else _cpu_clock
    for turn in range(rounds):
        for step in range(len(names)):
            name = names[(turn + step) % len(names)]
            data = inputs[(turn * len(names) + step) % len(inputs)]
            times[name].append(clock(candidates[name], data))
    return {name: Timing(seconds=tuple(values)) for name, values in times.items()}


def _cpu_clock(call: Callable[[Any], Any], data: Any) -> float:
    start = time.perf_counter()
    call(data)
    return time.perf_counter() - start


def _gpu_clock(device: torch.device) -> Callable[[Callable[[Any], Any], Any], float]:
    scratch = torch.empty(4 * cache_bytes(device), dtype=torch.uint8, device=device)
    leads: dict[Callable[[Any], Any], float] = {}

    def clock(call: Callable[[Any], Any], data: Any) -> float:
        if call not in leads:
            torch.cuda.synchronize(device)
            leads[call] = min(1.5 * _cpu_clock(call, data), _MOST_LEAD)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        scratch.zero_()
        torch.cuda._sleep(int(leads[call] * _CYCLES))
        start.record()
        call(data)
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000

    return clock


def reason(error: Exception) -> str:
    """Why a peer is left out, in one line: that it cannot be run here is no reason to measure nothing."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def device_of(name: str) -> torch.device:
    """The device of a command line, "cuda" or "cpu"; without it the program ends with one line."""
    if name == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda wants a CUDA device, and there is none; use --device cpu")
    return torch.device("cuda", 0) if name == "cuda" else torch.device("cpu")


def provenance(device: torch.device) -> dict[str, Any]:
    """Where and with what a row was measured: device name, versions, commit (None outside a git checkout)."""
    row: dict[str, Any] = {
        "device": device_name(device),
        "kind": device.type, "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "python": platform.python_version(), "torch": torch.__version__,
    }
    for package in ("triton", "peft"):
        try:
            row[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            row[package] = None
    row["cuda"] = torch.version.cuda if device.type == "cuda" else None
    row["commit"] = _commit()
    row["date"] = _BEGAN
    return row


def device_name(device: torch.device) -> str:
    """As its maker, or the system, names it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def slug(name: str) -> str:
    """A device's name as a part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def results_file(folder: Path, family: str, device: torch.device) -> Path:
    """Where the rows of a family of benchmarks on a device go: one file for both."""
    return folder / f"{family}-{slug(device_name(device))}.jsonl"


def _cpu_name() -> str:
    """Model, family and instruction set: virtual machines often hide the model's name."""
    name, family = platform.machine(), ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(re.findall(r"^(.+?)\s*: (.*)$", info.read_text(encoding="utf-8"), re.MULTILINE))
        name = fields.get("model name", name).strip()
        if "cpu family" in fields:
            family = f", family {fields['cpu family']} model {fields.get('model', '?')}"
    return f"{name}{family} ({torch.backends.cpu.get_cpu_capability()})"


def _commit() -> str | None:
    """The checkout's commit, with "+" when a tracked file differs from it."""
    root = Path(__file__).resolve().parents[1]
    try:
        run = [
            subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=False)
            for command in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "-uno"])
        ]
    except FileNotFoundError:
        return None
    if run[0].returncode:
        return None
    return run[0].stdout.strip() + ("+" if run[1].stdout.strip() else "")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, anew: bool = False) -> None:
    """Puts rows, one JSON object a line, behind those of a file, which is written aside and renamed.

    anew: what the file holds is dropped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8") if path.exists() and not anew else ""
    aside = path.with_name(f".{path.name}.partial")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    aside.write_text(before + "".join(lines), encoding="utf-8")
    aside.replace(path)


def give_rows(path: Path | None, rows: Iterable[Mapping[str, Any]]) -> None:
    """`write_rows` where there is a file, else rows on stdout."""
    if path is not None:
        write_rows(path, rows)
        return
    for row in rows:
        print(row)
