"""Measures families of benchmarks on a device, each in a process of its own, once the tests of what it times passed.

    python -m benchmarks --device cuda                            all, the most telling first
    python -m benchmarks lora step --device cpu --quick
    python -m benchmarks eval --device cpu --questions fineval/   further arguments go to the one family named

Rows are added to OUT/<family>-<device>.jsonl. A family that cannot be measured here, or a test of which fails, says so
in one line, and the others are measured. `scripts/benchmark_tables.py` shows the last run of each file.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import measure

ROOT = Path(__file__).resolve().parents[1]


class Tests(NamedTuple):
    """Tests that are run together."""

    seconds: int
    """The most they may take on a GPU, where compiling the kernels takes most of it."""
    places: tuple[str, ...]
    marked: bool = False
    """Whether they are those marked `gpu` alone."""


OPERATIONS = Tests(0, ("tests/test_ops.py",))
LORA = Tests(120, ("tests/kernels/test_gpu.py",))
BLOCKS = Tests(100, (
    "tests/kernels/test_gpu_blocks.py", "tests/kernels/test_loss_kernels.py", "tests/kernels/test_model_by_kernels.py",
))
PRODUCERS = Tests(90, ("tests/kernels/test_gpu_producers.py",))
MODEL = Tests(90, ("tests/test_attention.py", "tests/test_generate.py", "tests/test_train_guard.py"), marked=True)
EVALUATION = Tests(60, ("tests/test_evaluate.py",), marked=True)
SMALL = Tests(150, (
    "tests/kernels/test_lora_kernels.py", "tests/kernels/test_block_kernels.py",
    "tests/kernels/test_producer_kernels.py", "tests/kernels/test_producers.py",
))
OTHERS = Tests(90, ("tests/test_memory.py", "tests/test_merge.py"), marked=True)


class Family(NamedTuple):
    """A program `benchmarks.<module>`, which takes --out FILE, and --device where it runs on several."""

    module: str
    devices: tuple[str, ...]
    seconds: int
    """The most it may take on a GPU; what it has written until then is kept."""
    tests: tuple[Tests, ...] = ()
    """What must have passed on a GPU; on a CPU `OPERATIONS`."""
    quick: tuple[str, ...] = ("--quick",)
    """Its arguments for a quick run."""
    wants: str = ""
    """An argument it cannot do without."""


BOTH, CPU, CUDA = ("cuda", "cpu"), ("cpu",), ("cuda",)
FAMILIES = {
    "rates": Family("bench_rates", BOTH, 30),
    "lora": Family("bench_lora", BOTH, 130, (LORA,)),
    "loss": Family("bench_loss", BOTH, 45, (BLOCKS,)),
    "step": Family("bench_step", BOTH, 120, (LORA, BLOCKS)),
    "blocks": Family("bench_blocks", BOTH, 90, (BLOCKS,)),
    "train": Family("bench_train", BOTH, 45, (LORA, BLOCKS, MODEL)),
    "generate": Family("bench_generate", BOTH, 60, (LORA, BLOCKS, MODEL)),
    "producer": Family("bench_producer", CUDA, 40, (LORA, BLOCKS, PRODUCERS)),
    "tiles": Family("bench_tiles", CUDA, 150, (LORA, PRODUCERS)),
    "eval": Family("bench_eval", BOTH, 120, (LORA, BLOCKS, EVALUATION), quick=("--limit", "10"), wants="--questions"),
    "load": Family("bench_load", CPU, 0, quick=("--shape", "small")),
    "merge": Family("bench_merge", CPU, 0, quick=("--shape", "small")),
    "traffic": Family("bench_traffic", CPU, 0, quick=("--processes", "2")),
    "numbers": Family("bench_numbers", CPU, 0, quick=()),
    "numct": Family("bench_numct", CPU, 0, wants="--corpus"),
}
"""In the order of what they tell of a device."""
BESIDES = (SMALL, EVALUATION, OTHERS)
"""Tests on a GPU that no figures wait for, at the end: kernels in shapes that no model has, and what is not timed."""
WORKERS = 12
"""Processes that share a GPU's tests, most of whose time is the compiler's and that of starting."""


def environment() -> dict[str, str]:
    """That of a program in this checkout, its kernels compiled."""
    found = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    places = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return found | {"PYTHONPATH": os.pathsep.join(filter(None, places))}


def ended(module: Sequence[str], seconds: float | None) -> int | None:
    """Runs a module with its arguments; its exit code, or None when time was up. No process of its own outlives it."""
    with subprocess.Popen(
        [sys.executable, "-m", *module], cwd=ROOT, env=environment(), start_new_session=True
    ) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def tested(tests: Tests, device: str, seconds: float | None) -> bool | None:
    """Whether the tests pass; None when time was up. On a GPU by several processes where pytest-xdist is installed."""
    shared = device == "cuda" and importlib.util.find_spec("xdist") is not None
    code = ended([
        "pytest", "-q", "-o", "filterwarnings=default", "--tb=short", *(("-m", "gpu") if tests.marked else ()),
        *(("-n", str(min(WORKERS, os.cpu_count() or 1))) if shared else ()), *tests.places,
    ], seconds)
    return None if code is None else code == 0


def measured(family: Family, arguments: Sequence[str], seconds: float | None) -> str:
    """Runs a family; what came of it, empty when it went well."""
    code = ended([f"benchmarks.{family.module}", *arguments], seconds)
    if code is None:
        return f"stopped after {seconds:.0f} s; the rows written until then are kept"
    return f"failed, exit code {code}" if code else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", nargs="*", help=f"of {', '.join(FAMILIES)}; default: all")
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller sizes")
    parser.add_argument("--seconds", type=float, help="time for all of it, the tests among it")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder")
    given, further = parser.parse_known_args(arguments)
    unknown = [name for name in given.family if name not in FAMILIES]
    if unknown:
        parser.error(f"there is no family {unknown[0]}; there are {', '.join(FAMILIES)}")
    if further and len(given.family) != 1:
        parser.error(f"{further[0]}: further arguments need exactly one family to go to")
    device = measure.device_of(given.device)
    end = None if given.seconds is None else time.monotonic() + given.seconds

    def left() -> float | None:
        return None if end is None else max(0.0, end - time.monotonic())

    def within(seconds: float) -> float | None:
        """What is left, and no more than this on a GPU; None: no limit."""
        limits = [left(), seconds if given.device == "cuda" else None]
        return min((limit for limit in limits if limit is not None), default=None)

    verdicts: dict[Tests, bool | None] = {}
    failed = False

    def passed(tests: Tests) -> bool:
        """Whether they pass, which is found out once. Out of time for all of it they have not failed."""
        nonlocal failed
        if tests not in verdicts:
            began = time.monotonic()
            verdict = verdicts[tests] = tested(tests, given.device, within(tests.seconds))
            over = verdict is None and left() is not None and left() < 1
            failed |= not verdict and not over
            said = "passed" if verdict else "no time left" if over else "failed" if verdict is False else "too long"
            print(f"{' '.join(tests.places)}: {said}, {time.monotonic() - began:.0f} s", flush=True)
        return bool(verdicts[tests])

    for name in given.family or FAMILIES:
        family = FAMILIES[name]
        if given.device not in family.devices:
            print(f"{name}: not on this device, only on {' and '.join(family.devices)}", flush=True)
            continue
        if family.wants and not any(part.split("=")[0] == family.wants for part in further):
            print(f"{name}: wants {family.wants}; python -m benchmarks {name} --device {given.device} {family.wants} …",
                  flush=True)
            continue
        if left() is not None and left() < 1:
            print(f"{name}: no time left", flush=True)
            continue
        if not all([passed(tests) for tests in (family.tests if given.device == "cuda" else (OPERATIONS,))]):
            print(f"{name}: not measured, since a test of what it times did not pass", flush=True)
            continue
        began = time.monotonic()
        file = measure.results_file(given.out, name, device)
        said = measured(
            family,
            [*(["--device", given.device] if len(family.devices) > 1 else []), *(family.quick if given.quick else ()),
             "--out", str(file.resolve()), *further],
            within(family.seconds),
        )
        failed |= said.startswith("failed")
        print(f"{name}: {said or f'{time.monotonic() - began:.0f} s'}; {file}", flush=True)
    for tests in BESIDES if given.device == "cuda" and not given.family else ():
        if left() is not None and left() < 1:
            print(f"{' '.join(tests.places)}: no time left", flush=True)
        else:
            passed(tests)
    if failed:
        sys.exit("benchmarks: a test failed or took too long, or not every family could be measured")


if __name__ == "__main__":
    main()
