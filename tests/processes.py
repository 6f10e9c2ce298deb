"""Running Python in several processes that meet, as torchrun would start them, but without torchrun's own start-up."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATH = os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "tests"))


def environment() -> dict[str, str]:
    """Ours, with this checkout first on the path and one thread a process."""
    return os.environ | {"PYTHONPATH": PATH, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def together(count: int, code: str, *arguments: object) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each of `count` processes that run `code`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, *map(str, arguments)], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=environment() | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
        )
        for rank in range(count)
    ]
    try:
        ended = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, out, err) for process, (out, err) in zip(running, ended, strict=True)]
