"""The benchmarks run, their rows say where they come from, and the page shows what the rows say."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import bench_eval, bench_load, bench_lora, bench_step, bench_train, measure

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "scripts" / "benchmark_tables.py"


def test_the_page_is_what_the_rows_say() -> None:
    run = subprocess.run([sys.executable, str(TABLES), "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_rows_of_the_lora_benchmark(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(bench_lora, "CPU_SHAPES", [(32, (48,)), (32, (24, 8))])
    monkeypatch.setattr(measure, "cache_bytes", lambda device: 1)
    monkeypatch.setattr(bench_lora.Layer, "peft", lambda layer, *, fp32_factors: layer.frozen)
    out = tmp_path / "rows.jsonl"
    bench_lora.main(["--device", "cpu", "--quick", "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    measured = [row for row in rows if "skipped" not in row]
    assert {row["adapters"] for row in measured} == {1, 2}
    assert {row["out"] for row in measured if row["candidate"] == "numllm, one by one"} == {"24 + 8"}
    for row in measured:
        assert 0 < row["ms"]["p20"] <= row["ms"]["p50"] <= row["ms"]["p80"]
        assert row["device"] and row["torch"] == torch.__version__ and "commit" in row
        if row["candidate"] == "frozen linear":
            assert set(row["ratio_to_frozen"].values()) == {1.0}

    spec = importlib.util.spec_from_file_location("benchmark_tables", TABLES)
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    table = {"lora_linear": tables.lora_linear}
    page = tables.render("before <!-- lora_linear -->\nold\n<!-- end lora_linear --> after", table, measured)
    assert "| 32 → 48 |" in page and "numllm, by row" in page and "not yet measured" in page and "old" not in page
    assert tables.render(page, table, measured) == page
    with pytest.raises(ValueError, match="must have <!-- lora_linear -->"):
        tables.render("a page without markers", table, measured)


def test_rows_of_the_evaluation_benchmark(monkeypatch, tmp_path) -> None:
    for split, count in (("dev", 5), ("val", 3)):
        (tmp_path / split).mkdir()
        rows = [f"{i},{split}年利率为{i}%的债券,1,2,3,4,A" for i in range(count)]
        (tmp_path / split / f"s_{split}.csv").write_text("\n".join(["id,question,A,B,C,D,answer", *rows]), "utf-8")
    monkeypatch.setattr(bench_eval, "SHAPE", {
        **bench_eval.SHAPE, "hidden_size": 28, "intermediate_size": 32, "vocab_size": 8192,
    })
    out = tmp_path / "rows.jsonl"
    bench_eval.main(["--questions", str(tmp_path), "--layers", "1", "--limit", "3", "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["case"] for row in rows] == ["fineval"] * 2 + ["prefix"] * 2 + ["transformers"] * 4
    assert all(row["seconds"] > 0 and row["cpu_seconds"] > 0 and row["torch"] for row in rows)
    assert all(row["difference"] < 1e-5 for row in rows if "difference" in row)


def test_rows_of_the_loading_benchmark(tmp_path) -> None:
    out = tmp_path / "rows.jsonl"
    bench_load.main(["--shape", "small", "--rounds", "2", "--work", str(tmp_path), "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["candidate"] for row in rows] == list(bench_load.CANDIDATES) and list(tmp_path.iterdir()) == [out]
    assert all(row["ms"]["p50"] > 0 and row["bytes"] > 1e5 and row["commit"] for row in rows)


def test_rows_of_the_training_step_benchmark(monkeypatch) -> None:
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    monkeypatch.setattr(bench_step, "SHAPE", {**bench_step.SHAPE, **small})
    monkeypatch.setattr(bench_step, "CASES", {"text": (2, 16), "choice": (3, 8)})
    monkeypatch.setattr(bench_step, "peak", lambda *_: 1 << 20)  # a process of its own, of the full size
    rows = bench_step.run(rounds=1)  # whose losses must agree
    assert [(row["case"], row["candidate"], row["tokens"]) for row in rows] == [
        (case, name, tokens) for case, tokens in (("text", 32), ("choice", 24)) for name in bench_step.CANDIDATES
    ]
    assert all(row["ms"]["p50"] > 0 and row["speed"]["p50"] > 0 and row["transformers"] for row in rows)
    assert [row["speed"]["p50"] for row in rows[1::2]] == [1, 1]


def test_candidates_take_turns_on_rotating_inputs() -> None:
    calls: list[tuple[str, int]] = []
    candidates = {name: lambda data, name=name: calls.append((name, data)) for name in "abc"}
    timings = measure.compare(candidates, [0, 1], torch.device("cpu"), rounds=4, warmup=0)
    assert [name for name, _ in calls] == list("abcbcacababc")
    assert all(len(timing.seconds) == 4 for timing in timings.values())
    assert {data for _, data in calls} == {0, 1}


def test_peft_trains_every_adapter_it_is_timed_with(monkeypatch) -> None:
    pytest.importorskip("peft")
    layer = bench_lora.Layer(24, (32, 16), 2, 8, torch.float32, torch.device("cpu"))
    found = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *given: found.extend(grad(*given)))
    layer.peft(fp32_factors=True)(layer.batch(8))
    assert len(found) == 9  # x, and A and B of two adapters on two linears
    assert all(gradient.abs().max() > 0 for gradient in found)


def test_candidates_of_the_lora_benchmark_compute_the_same() -> None:
    one, two = (
        bench_lora.Layer(24, ns, 2, 8, torch.float32, torch.device("cpu")) for ns in ((32,), (32, 16))
    )
    batch = one.batch(8)
    torch.testing.assert_close(one.augmented(batch), one.numllm(batch, impl="torch", by_row=False))
    batch = two.batch(8)
    torch.testing.assert_close(*(
        two.numllm(batch, impl="torch", by_row=True, together=together) for together in (True, False)
    ))


def test_a_joint_run_loses_what_transformers_and_peft_lose(world) -> None:
    import tiny

    config = tiny.settings(world, steps=20, dtype="float32")
    rows = list(bench_train.against_peft(config))
    assert [row["adapter"] for row in rows] == ["domain", "numeric"]
    for row in rows:
        assert row["last"]["numllm"] < 0.9 * row["first"]["numllm"] and abs(row["difference_percent"]) < 1
    joint, apart = bench_train.joint(config, rounds=2)
    assert joint["candidate"] == "joint" and set(apart["ratio_to_apart"].values()) == {1.0}
    assert 0 < joint["ratio_to_apart"]["p50"] < 10
