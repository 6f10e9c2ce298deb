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

SHARED_LIMIT = {
    "80": 166_912, "86": 101_376, "89": 101_376, "90": 232_448, "100": 232_448, "gfx942": 65_536,
}
"""Bytes of shared memory a block may use, by target; 8.6 stands for 12.0 too."""

LORA = {"down", "linear", "outer", "down_outer", "reduce", "norm_down", "swiglu_down"}
BLOCK = {"norm", "norm_backward", "swiglu", "swiglu_backward", "rotate", "cross_entropy"}
NVIDIA = [target for target in SHARED_LIMIT if target.isdecimal()]


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[dict[str, Any]]]:
    """Target → what was compiled for it. In processes of their own: the driver is replaced there."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    environment.pop("TRITON_INTERPRET", None)
    script = HERE / "compile_variants.py"
    runs = [
        subprocess.Popen(
            [sys.executable, str(script), "--short", *part], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for part in (("80", "100", "89"), ("90", "86", "gfx942"))
    ]
    rows: dict[str, list[dict[str, Any]]] = {target: [] for target in SHARED_LIMIT}
    for run in runs:
        out, err = run.communicate()
        assert run.returncode == 0, err
        for row in json.loads(out):
            rows[row["target"]].append(row)
    return rows


def kernels_of(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """The rows of the named kernels."""
    return [row for row in rows if row["name"].split("_kernel-")[0] in names]


@pytest.mark.parametrize("target", SHARED_LIMIT)
def test_fits_the_gpu(compiled, target) -> None:
    rows = [row for row in compiled[target] if row["name"] != "spilling"]
    found = {row["name"].split("_kernel-")[0] for row in rows}
    assert found == LORA | (set() if target.startswith("8") else BLOCK)  # see compile_variants.py
    for row in rows:
        assert row["shared"] <= SHARED_LIMIT[target], row
        assert row["stack"] == 0, f"spills registers: {row}"


@pytest.mark.parametrize("target", SHARED_LIMIT)
def test_the_check_on_spills_sees_them(compiled, target) -> None:
    (row,) = (row for row in compiled[target] if row["name"] == "spilling")
    assert row["stack"] > 0, row


@pytest.mark.parametrize("target", NVIDIA)
def test_loads_overlap_products(compiled, target) -> None:
    """Tiles come by asynchronous copies, several stages deep."""
    for row in kernels_of(compiled[target], *LORA - {"reduce"}):
        assert row["async_copies"] > 0, row


@pytest.mark.parametrize("target", ["90", "100", "gfx942"])
def test_blocks_move_16_bytes_at_a_time(compiled, target) -> None:
    """What is as large as the activations; scalars of a row and angles are not."""
    reads = {"norm": 1, "norm_backward": 2, "swiglu": 2, "swiglu_backward": 3, "rotate": 2, "cross_entropy": 2}
    for row in kernels_of(compiled[target], *BLOCK):
        kernel = row["name"].split("_kernel-")[0]
        assert row["wide_loads"] >= reads[kernel], row
    written = [row for row in kernels_of(compiled[target], *BLOCK) if row["wide_stores"]]
    assert {row["name"].split("_kernel-")[0] for row in written} == BLOCK


@pytest.mark.parametrize(
    ("target", "instruction"),
    [("80", "mma"), ("86", "mma"), ("89", "mma"), ("90", "wgmma"), ("100", "tcgen05"), ("gfx942", "mfma")],
)
def test_tensor_cores_of_the_generation(compiled, target, instruction) -> None:
    rows = [row for row in kernels_of(compiled[target], "linear") if "float16" in row["name"]]
    assert rows
    for row in rows:
        assert row[instruction], row
    for row in kernels_of(compiled[target], *LORA - {"linear", "reduce"}):
        if "float16" in row["name"]:
            assert row[instruction] or row["mma"], row
