"""Measures families of benchmarks on a device, each in a process of its own, once the kernels' tests have passed.

    python -m benchmarks --device cuda                            all, the most telling first
    python -m benchmarks lora step --device cpu --quick
    python -m benchmarks eval --device cpu --questions fineval/   further arguments go to the one family named

Rows are added to OUT/<family>-<device>.jsonl. A family that cannot be measured here says so in one line. When a test
fails nothing is measured. `scripts/benchmark_tables.py` shows the last run of each file.
"""

from __future__ import annotations

import argparse
import contextlib
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


class Family(NamedTuple):
    """A program `benchmarks.<module>`, which takes --out FILE, and --device where it runs on several."""

    module: str
    devices: tuple[str, ...]
    seconds: int
    """The most it may take on a GPU; what it has written until then is kept."""
    quick: tuple[str, ...] = ("--quick",)
    """Its arguments for a quick run."""
    wants: str = ""
    """An argument it cannot do without."""


BOTH, CPU = ("cuda", "cpu"), ("cpu",)
FAMILIES = {
    "rates": Family("bench_rates", BOTH, 30),
    "lora": Family("bench_lora", BOTH, 130),
    "step": Family("bench_step", BOTH, 120),
    "loss": Family("bench_loss", BOTH, 45),
    "blocks": Family("bench_blocks", BOTH, 45),
    "generate": Family("bench_generate", BOTH, 60),
    "train": Family("bench_train", BOTH, 60),
    "eval": Family("bench_eval", BOTH, 120, quick=("--limit", "10"), wants="--questions"),
    "load": Family("bench_load", CPU, 0, quick=("--shape", "small")),
    "merge": Family("bench_merge", CPU, 0, quick=("--shape", "small")),
    "traffic": Family("bench_traffic", CPU, 0, quick=("--processes", "2")),
    "numbers": Family("bench_numbers", CPU, 0, quick=()),
}
"""In the order of what they tell of a device."""
TESTING = 200
"""Seconds that the tests may take on a GPU."""
TESTS = {
    "cuda": ("tests/kernels", "--ignore=tests/kernels/test_compile.py"),  # which needs no GPU
    "cpu": ("tests/test_ops.py",),
}


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


def tested(device: str, seconds: float | None) -> bool:
    """Whether the tests of what is measured on this device pass, in time."""
    return ended(["pytest", "-q", "-x", "-o", "filterwarnings=default", *TESTS[device]], seconds) == 0


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

    if not tested(given.device, within(TESTING)):
        sys.exit(f"benchmarks: {' '.join(TESTS[given.device])}: a test failed, or there was no time for all; nothing "
                 "was measured")
    failed = False
    for name in given.family or FAMILIES:
        family, began = FAMILIES[name], time.monotonic()
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
        file = measure.results_file(given.out, name, device)
        said = measured(
            family,
            [*(["--device", given.device] if len(family.devices) > 1 else []), *(family.quick if given.quick else ()),
             "--out", str(file.resolve()), *further],
            within(family.seconds),
        )
        failed |= said.startswith("failed")
        print(f"{name}: {said or f'{time.monotonic() - began:.0f} s'}; {file}", flush=True)
    if failed:
        sys.exit("benchmarks: not every family could be measured")


if __name__ == "__main__":
    main()
