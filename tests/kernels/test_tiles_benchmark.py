"""The benchmark of tiles, of kernels in the interpreter: what it leaves out, what it adds up, what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import bench_tiles, measure
from benchmarks.bench_tiles import Tile

pytestmark = pytest.mark.usefixtures("by_kernels")

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"tokens": 1024, "width": 32, "kv": 16, "inner": 48}
OWN = {
    "down": Tile(4, 2, "MK", (256, 32)), "down_outer": Tile(4, 2, "MN", (512, 32)),
    "outer": Tile(4, 2, "KM", (32, 256)), "swiglu_down": Tile(4, 2, "MK", (256, 64)),
    "linear": Tile(4, 2, "MNK", (256, 64, 32)), "norm_down": Tile(4, 2, "MK", (256, 32)),
}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> dict[str, object]:
    """What every run has; a clock that tells the number of a candidate's turn, whatever it takes."""

    def compare(candidates, inputs, device, *, rounds, warmup=3):
        for call in candidates.values():
            call(None)
        return {name: measure.Timing(seconds=(1e-3 * (turn + 1),)) for turn, name in enumerate(candidates)}

    monkeypatch.setattr(measure, "compare", compare)
    return {"shape": SHAPE, "dtype": torch.float16, "device": device, "rounds": 1}


@pytest.mark.parametrize("kernel", bench_tiles.CANDIDATES)
def test_rows_of_a_kernel(kernel, given, families, device) -> None:
    """Of the table's tile and of another, of all of a block's calls; what cannot run is left out; all is put back."""
    tiles = families["tiles"]
    before = {where: dict(table) for where, table in tiles.TILES.items()}
    broken = OWN[kernel]._replace(sizes=(384,) * len(OWN[kernel].sizes))
    skipped, *rows = bench_tiles.bench(kernel, (OWN[kernel], broken), **given)
    assert tiles.TILES == before
    assert skipped["candidate"] == str(broken) and "arange" in skipped["skipped"]
    assert [row["candidate"] for row in rows] == (
        ["table", str(OWN[kernel]), *(["instead"] if kernel in bench_tiles.INSTEAD else [])]
    )
    times = [call.times for call in bench_tiles.calls(kernel, SHAPE, torch.float16, torch.device("meta"))]
    assert [row["us"] for row in rows] == [1000.0 * turn * sum(times) for turn in range(1, len(rows) + 1)]
    assert all(len(row["calls"]) == len(times) for row in rows)


def test_a_tile_that_spills_or_differs_is_left_out(given, families, device, monkeypatch) -> None:
    call = next(bench_tiles.calls("outer", SHAPE, torch.float16, device))
    expected, options = bench_tiles.results(call), (torch.float16, device)
    assert not bench_tiles.fitting("outer", call, OWN["outer"], expected, *options)
    wrong = bench_tiles.fitting("outer", call, OWN["outer"], [2 * part for part in expected], *options)
    assert wrong == "differs from the table's by 0.5"
    launch = families["common"].launch
    monkeypatch.setattr(
        families["common"], "launch", lambda *args, **more: launch(*args, **more) or SimpleNamespace(n_spills=4)
    )
    assert bench_tiles.fitting("outer", call, OWN["outer"], expected, *options) == "spills 4 registers"


def test_the_table_has_the_tile_while_it_is_timed(families, device) -> None:
    tiles, x = families["tiles"], torch.zeros(2048, 8, dtype=torch.float16, device=device)
    own, other = (tiles.choose(kernel, x, 16) for kernel in ("outer", "down"))
    with bench_tiles.using("outer", OWN["outer"], device):
        assert OWN["outer"].settings().items() <= tiles.choose("outer", x, 16).items()
        assert tiles.choose("outer", x, 16) != own and tiles.choose("down", x, 16) == other
    assert tiles.choose("outer", x, 16) == own


def test_what_it_says_can_be_put_into_the_table(families) -> None:
    tiles, best = families["tiles"], Tile(4, 5, "KM", (128, 64))
    rows = [{"candidate": "table", "us": 100.0}, {"candidate": str(best), "us": 90.0}, {"candidate": "x", "us": 95.0}]
    (line,) = bench_tiles.advice("outer", rows, (9, 0))
    assert line.startswith("outer: 100.0 → 90.0 µs:  ")
    entry = eval("{" + line.split("µs:  ")[1] + "}", vars(tiles))
    assert entry["outer"] == {**tiles._DEFAULT["outer"], "many": best.settings()}
    rows[1:] = {**rows[1], "us": 99.0}, {"candidate": "y", "skipped": "z"}
    (line,) = bench_tiles.advice("outer", rows, (9, 0))
    assert "the table's tile stays" in line
    *_, line = bench_tiles.advice("linear", [rows[0], {"candidate": "instead", "us": 101.0}], (9, 0))
    assert line.endswith("FUSED[(9, 0)] = True")


def test_a_tile_is_compiled_without_a_gpu(tmp_path) -> None:
    """In a process of its own, whose driver is replaced, as in those of the benchmark."""
    program = (
        "from benchmarks.bench_tiles import *; import json; tiles = CANDIDATES['down'][0], Tile(4, 3, 'MK', (64, 24)); "
        "print(json.dumps([compiled('down', tile, (9, 0)) for tile in tiles]))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    good, bad = json.loads(done.stdout)
    assert good == "" and bad
    assert any(tmp_path.rglob("down_kernel.cubin"))
