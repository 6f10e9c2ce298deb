"""Kills merges with SIGKILL at random instants: the output is whole or absent, and a second run finishes it.

    python -m scripts.kill_merge --kills 100
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import torch

from numllm.merge import merge, write
from scripts.merge_inputs import write_inputs


def digests(folder: Path) -> dict[str, str]:
    """Relative name → SHA-256 of every weight file and of everything that does not hold a time."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "numllm_merge.json"
    }


def run(folder: Path, out: Path) -> dict:
    """The merge that is killed."""
    adapters = [(folder / "domain", 0.7), (folder / "numeric", -0.4)]
    return merge(folder / "base", adapters, out, method="svd", verify=True, overwrite=True)["overall"]


def campaign(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Counts of what was seen; AssertionError when a result is neither whole nor absent."""
    write.PORTION = 1 << 20  # bytes, of files of 2 MB: kills come inside a file, too
    write_inputs(folder, width=256, layers=8)
    inputs = digests(folder)
    begun = time.perf_counter()
    run(folder, folder / "wanted")
    took = time.perf_counter() - begun
    wanted = digests(folder / "wanted")
    rng, out = random.Random(seed), folder / "out"
    seen = {"killed": 0, "finished before": 0, "whole after a kill": 0, "absent": 0, "put back": 0, "taken up": 0}
    while seen["killed"] < kills:
        replaces = out.exists()
        child = os.fork()
        if child == 0:
            run(folder, out)
            os._exit(0)
        time.sleep(rng.random() * took * 1.1)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        seen["killed" if os.WIFSIGNALED(status) else "finished before"] += 1
        if out.exists():
            assert digests(out) == wanted, "the output is there and not whole"
            seen["whole after a kill"] += os.WIFSIGNALED(status)
        elif replaces:  # killed between the two renames
            seen["put back"] += 1
            run(folder, out)
            assert digests(out) == wanted
        else:
            seen["absent"] += 1
            if rng.random() < 0.5:  # leave the debris to the next run that is killed, or finish now
                seen["taken up"] += bool(run(folder, out)["bytes_taken_up"])
                assert digests(out) == wanted, "the second run's output is not whole"
        if rng.random() < 0.7:  # else the next run replaces it
            shutil.rmtree(out, ignore_errors=True)
    run(folder, out)
    assert digests(out) == wanted
    shutil.rmtree(out)
    shutil.rmtree(folder / "wanted")
    leftovers = sorted(path.name for path in folder.iterdir() if path.name not in ("base", "domain", "numeric"))
    assert not leftovers, f"a finished run left {leftovers}"
    assert digests(folder) == inputs, "an input changed"
    return seen


def main() -> None:
    """Prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name, count in campaign(Path(folder), arguments.kills, arguments.seed).items():
            print(f"{name}: {count}")


if __name__ == "__main__":
    main()
