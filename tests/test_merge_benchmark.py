"""The merge's benchmark: its candidates make the same weights, and its rows say what the page needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import bench_merge
from benchmarks.tables import commands

TINY = {"hidden": 32, "inner": 48, "layers": 2, "heads": 2, "groups": 1, "vocabulary": 64, "shards": 2}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_candidates_make_the_same_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But for rounding: the sum per tensor is in fp32, PEFT's cat in bf16."""
    bench_merge.write_inputs(tmp_path, TINY)
    for name in ("numllm exact", "per tensor in memory", "PEFT cat"):
        bench_merge.work(name, tmp_path, tmp_path / name)
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["peak_bytes"] > 1 << 20
    found = [
        {key: tensor for file in (tmp_path / name).glob("*.safetensors") for key, tensor in load_file(file).items()}
        for name in ("numllm exact", "per tensor in memory", "PEFT cat")
    ]
    for key, tensor in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(other[key], tensor, rtol=2**-7, atol=1e-4)
    before = load_file(tmp_path / "base" / "model-00001-of-00002.safetensors")
    assert not torch.equal(found[0]["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])


def test_rows_and_their_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_merge.SHAPES, "small", TINY)
    out = tmp_path / "rows.jsonl"
    bench_merge.main(["--only", "numllm exact", "--rounds", "1", "--work", str(tmp_path), "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["candidate"] for row in rows] == ["cp -r", "numllm exact"]
    for row in rows:
        assert 0 < row["cpu_seconds"] and 0 < row["ms"]["p20"] <= row["ms"]["p80"]
        assert row["peak_bytes"] > 1 << 20 and "commit" in row
    assert set(rows[0]["ratio_to_copy"].values()) == {1.0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]
    assert "| numllm exact |" in "\n".join(commands.merge(rows)) and "Not yet" in next(iter(commands.merge([])))
    again = [{**row, "shape": "3gb", "bytes": 10**9, "rounds": 2} for row in rows]
    short = "\n".join(commands.merge_in_short([*rows, *again]))
    assert "| numllm exact | " in short and "1.0 GB" in short
    larger = "\n".join(commands.merge_of_larger(again)).splitlines()
    ms = again[0]["ms"]["p50"]
    assert larger[2] == f"| cp -r | {ms * 15.2 / 1000:,.0f} s | {ms * 0.141:,.0f} s |"
