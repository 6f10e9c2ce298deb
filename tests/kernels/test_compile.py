"""Every kernel variant that the launchers can choose, compiled for each GPU generation without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

SHARED_LIMIT = {80: 166_912, 86: 101_376, 90: 232_448, 100: 232_448}
"""Bytes of shared memory a block may use, by compute capability; 8.6 stands for 8.9 and 12.0 too."""


@pytest.fixture(scope="module")
def compiled() -> dict[int, list[dict[str, Any]]]:
    """Compute capability → what was compiled for it. In processes of their own: the driver is replaced there."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    environment.pop("TRITON_INTERPRET", None)
    script = HERE / "compile_variants.py"
    runs = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, part)], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for part in ((80, 100), (90, 86))
    ]
    rows: dict[int, list[dict[str, Any]]] = {capability: [] for capability in SHARED_LIMIT}
    for run in runs:
        out, err = run.communicate()
        assert run.returncode == 0, err
        for row in json.loads(out):
            rows[row["capability"]].append(row)
    return rows


def kernels_of(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """The rows of the named kernels."""
    return [row for row in rows if row["name"].split("_kernel-")[0] in names]


@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_fits_the_gpu(compiled, capability) -> None:
    rows = [row for row in compiled[capability] if row["name"] != "spilling"]
    found = {row["name"].split("_kernel-")[0] for row in rows}
    assert found == {"down", "linear", "outer", "down_outer", "reduce"}
    for row in rows:
        assert row["shared"] <= SHARED_LIMIT[capability], row
        assert row["stack"] == 0, f"spills registers: {row}"


@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_the_check_on_spills_sees_them(compiled, capability) -> None:
    (row,) = (row for row in compiled[capability] if row["name"] == "spilling")
    assert row["registers"] == 255 and row["stack"] > 0


@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_loads_overlap_products(compiled, capability) -> None:
    """Tiles come by asynchronous copies, several stages deep."""
    for row in kernels_of(compiled[capability], "down", "linear", "outer", "down_outer"):
        assert row["async_copies"] > 0, row


@pytest.mark.parametrize(("capability", "instruction"), [(80, "mma"), (86, "mma"), (90, "wgmma"), (100, "tcgen05")])
def test_tensor_cores_of_the_generation(compiled, capability, instruction) -> None:
    rows = [row for row in kernels_of(compiled[capability], "linear") if "float16" in row["name"]]
    assert rows
    for row in rows:
        assert row[instruction], row
    for row in kernels_of(compiled[capability], "down", "outer", "down_outer"):
        if "float16" in row["name"]:
            assert row["mma"] or row[instruction], row
