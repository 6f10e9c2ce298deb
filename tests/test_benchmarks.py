"""The benchmarks run, their rows say where they come from, and the page shows what the rows say."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import (
    bench_blocks,
    bench_eval,
    bench_generate,
    bench_load,
    bench_lora,
    bench_loss,
    bench_numct,
    bench_producer,
    bench_rates,
    bench_step,
    bench_train,
    measure,
    models,
    roofline,
)
from benchmarks.tables import commands, kernels
from benchmarks.tables.rows import read_rows, render
from numllm import ops
from numllm.corpus import build_corpus

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "scripts" / "benchmark_tables.py"


def test_the_page_is_what_the_rows_say() -> None:
    run = subprocess.run([sys.executable, str(TABLES), "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_rows_of_the_questions_benchmark(monkeypatch, tmp_path, capsys) -> None:
    build_corpus([ROOT / "numllm" / "demo" / "textbook"], tmp_path / "corpus", holdout=0)
    arguments = ["--corpus", str(tmp_path / "corpus"), "--quick", "--out", str(tmp_path / "rows.jsonl")]
    bench_numct.main(arguments)
    rows = {row["task"]: row for row in map(json.loads, (tmp_path / "rows.jsonl").read_text("utf-8").splitlines())}
    assert set(rows) == {"numbers", "default", "larger"} and all(min(row["seconds"]) > 0 for row in rows.values())
    assert 300 < rows["default"]["count"] < rows["larger"]["count"] < rows["numbers"]["count"]
    assert rows["numbers"]["megabytes"] > 0.1 and rows["numbers"]["processes"] == 1
    assert "1.00 |" in "\n".join(commands.numct(rows.values()))

    with pytest.raises(SystemExit):
        bench_numct.main([*arguments, "--compiled", str(tmp_path)])
    assert "holds no numllm that was installed with NUMLLM_COMPILE=1" in capsys.readouterr().err
    (tmp_path / "numllm" / "numbers").mkdir(parents=True)
    (tmp_path / "numllm" / "numbers" / "finding.abi.so").touch()
    monkeypatch.setattr(bench_numct, "measured", lambda place, *_: {"count": len(place), "seconds": 1.0})
    with pytest.raises(SystemExit, match="compiled gives other results than the source"):
        bench_numct.main([*arguments, "--compiled", str(tmp_path)])


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

    def broken(layer: bench_lora.Layer, *, fp32_factors: bool) -> None:
        raise TypeError("no such argument\nand more")

    monkeypatch.setattr(bench_lora.Layer, "peft", broken)
    few = bench_lora.bench(
        32, (48,), 1, tokens=8, dtype=torch.float32, device=torch.device("cpu"), rounds=1
    )
    assert next(few)["skipped"] == "TypeError: no such argument" and next(few)["candidate"] == "frozen linear"

    table = {"lora_linear": kernels.lora_linear}
    page = render("before <!-- lora_linear -->\nold\n<!-- end lora_linear --> after", table, measured)
    assert "| 32 → 48 |" in page and "numllm, by row" in page and "not yet measured" in page and "old" not in page
    assert render(page, table, measured) == page
    with pytest.raises(ValueError, match="must have <!-- lora_linear -->"):
        render("a page without markers", table, measured)


def test_rows_of_the_producers_benchmark(monkeypatch) -> None:
    """On a CPU by torch, s handed on all the same; ways that differ are not timed."""
    shape, cpu = {"width": 16, "kv": 8, "inner": 24}, torch.device("cpu")
    given = {"tokens": 8, "dtype": torch.float32, "device": cpu, "rounds": 2}
    monkeypatch.setattr(measure, "cache_bytes", lambda device: 1)
    monkeypatch.setattr(bench_producer, "IMPLS", {"apart": "torch", "produced": "torch"})
    found = []
    for case in bench_producer.cases(shape, torch.float32, cpu):
        found += bench_producer.bench(case, **given)
    wrong = case._replace(produced=lambda gate, up, thin: ops.swiglu_down(gate, 2 * up, thin))
    with pytest.raises(RuntimeError, match="SwiGLU → down, x and s: the two ways differ by"):
        list(bench_producer.bench(wrong, **given))
    assert [row["candidate"] for row in found] == ["frozen", "apart", "produced"] * 9
    assert {row["pass"] for row in found} == set(bench_producer.PARTS)
    assert all(row["ms"]["p50"] > 0 for row in found) and set(found[0]["ratio_to_frozen"].values()) == {1.0}
    where = {"device": "G", "kind": "cuda", "torch": "2", "triton": "3", "commit": "c", "threads": None}
    table = "\n".join(kernels.lora_producer([row | where for row in found]))
    assert "| SwiGLU → down | forward + backward | produced |" in table


def test_rows_of_the_blocks_benchmark(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(bench_blocks, "CPU_SHAPE", {
        "tokens": 8, "width": 16, "inner": 24, "heads": 3, "kv_heads": 1, "size": 8,
    })
    monkeypatch.setattr(measure, "cache_bytes", lambda device: 1)
    out = tmp_path / "rows.jsonl"
    bench_blocks.main(["--device", "cpu", "--quick", "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["candidate"] for row in rows] == ["copy", "numllm"] * 4
    assert [row["bytes"] for row in rows[::2]] == [5 * 4 * 16 * 4, 8 * 4 * 16 * 4, 8 * 4 * 24 * 4, 4 * 4 * 32 * 4]
    assert all(row["ms"]["p50"] > 0 and row["torch"] == torch.__version__ for row in rows)
    assert all(set(row["share_of_copy"].values()) == {1.0} for row in rows[::2])
    case = next(bench_blocks.cases(bench_blocks.CPU_SHAPE, torch.float32, torch.device("cpu")))
    wrong = case._replace(call=lambda impl: lambda x: x * (2 if impl == "auto" else 1))
    with pytest.raises(RuntimeError, match="RMSNorm by numllm differs from torch's by"):
        list(bench_blocks.bench(wrong, dtype=torch.float32, device=torch.device("cpu"), rounds=1))


def test_rows_of_the_loss_benchmark(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(bench_loss, "CPU_SHAPE", (128, 40, 16))
    monkeypatch.setattr(bench_loss, "peak", lambda *_: 1 << 20)  # a process of its own, of the full size
    out = tmp_path / "rows.jsonl"
    bench_loss.main(["--device", "cpu", "--quick", "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["candidate"] for row in rows][:3] == ["two products", "numllm", "cross_entropy"]
    assert all(row["ms"]["p50"] > 0 and row["tokens"] == 64 for row in rows) and set(rows[0]["ratio"].values()) == {1.0}
    monkeypatch.setattr(bench_loss.ops, "token_losses", lambda x, w, labels: x.sum(1))
    with pytest.raises(RuntimeError, match="the gradient by numllm differs from torch's"):
        bench_loss.main(["--device", "cpu", "--quick"])


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
    bench_load.main(["--shape", "small", "--rounds", "1", "--work", str(tmp_path), "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["candidate"] for row in rows] == list(bench_load.CANDIDATES) and list(tmp_path.iterdir()) == [out]
    assert all(row["ms"]["p50"] > 0 and row["bytes"] > 1e5 and row["commit"] for row in rows)


TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_the_training_step_benchmark(monkeypatch, dtype) -> None:
    pytest.importorskip("peft")
    cases = {"text": (2, 16), "choice": (3, 8), "packed": (2, 64)}
    monkeypatch.setattr(bench_step, "SHAPES", {"tiny": {**bench_step.SHAPES["small"], **TINY}})
    monkeypatch.setattr(bench_step, "CASES", {"tiny": cases})
    monkeypatch.setattr(bench_step, "SHORTEST", 5)
    monkeypatch.setattr(bench_step, "LONGEST", 20)
    monkeypatch.setattr(bench_step, "peak", lambda *_: 1 << 20)  # a process of its own, of the full size
    bench = bench_step.Bench("tiny", 2, getattr(torch, dtype), torch.device("cpu"))
    names = [bench_step.PEER, "numllm", *([f"{bench_step.PEER}, 16-bit factors"] if dtype == "bfloat16" else [])]
    for case, (count, width) in cases.items():
        rows = list(bench.rows(case, rounds=1))  # whose losses must agree
        assert [(row["candidate"], row["tokens"]) for row in rows] == [(name, count * width) for name in names]
        assert all(row["ms"]["p50"] > 0 and row["speed"]["p50"] > 0 and row["layers"] == 2 for row in rows)
        assert set(rows[0]["speed"].values()) == {1}
        linears = 2 * (2 * 32 * 32 + 2 * 2 * 8 * 32 + 3 * 32 * 48)
        late = 3 * 32 * 48 + 64 * 32
        assert rows[1]["flops"] == 4 * ((linears - 3 * 32 * 48) * count * width + late * rows[1]["labels"])
        shown = "\n".join(kernels.train_step([{**row, "bench": "train_step", **WHERE} for row in rows]))
        assert f"2 layers in {dtype}" in shown and f"| {case} | {count * width} | numllm |" in shown


WHERE = {"device": "D", "threads": 1, "torch": "t", "peft": "p", "transformers": "f", "commit": "c", "kind": "cpu"}


def test_losses_that_differ_are_not_timed(monkeypatch) -> None:
    pytest.importorskip("peft")
    monkeypatch.setattr(bench_step, "SHAPES", {"tiny": {**bench_step.SHAPES["small"], **TINY}})
    monkeypatch.setattr(bench_step, "CASES", {"tiny": {"text": (2, 16)}})
    bench = bench_step.Bench("tiny", 2, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(models, "theirs", lambda shape, held, make=models.theirs: make(
        shape, {name: 1.1 * weight for name, weight in held.items()}
    ))
    with pytest.raises(RuntimeError, match="text: the losses differ"):
        list(bench.rows("text", rounds=1))


@pytest.mark.parametrize("error, why", [
    (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
    (TypeError("no argument named r\nand more"), "TypeError: no argument named r"),
])
def test_on_a_gpu_a_peer_that_cannot_run_is_left_out(monkeypatch, error, why) -> None:
    """The way of a GPU, with the CPU's clock and a memory that is told."""
    monkeypatch.setattr(bench_step, "SHAPES", {"tiny": {**bench_step.SHAPES["small"], **TINY}})
    monkeypatch.setattr(bench_step, "CASES", {"tiny": {"packed": (2, 64)}})
    for name, value in {"memory_allocated": 100, "max_memory_allocated": 350, "reset_peak_memory_stats": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    bench = bench_step.Bench("tiny", 2, torch.float32, torch.device("cpu"))

    def broken(shape: dict[str, object], held: dict[str, torch.Tensor]) -> bench_step.Step:
        raise error

    bench.makers = {bench_step.PEER: broken, "numllm": bench_step.numllm}
    monkeypatch.setattr(bench, "_turns", bench._one_by_one)
    theirs, mine = bench.rows("packed", rounds=2)
    assert mine["peak_bytes"] == 250 and mine["speed"] is None and mine["ms"]["p50"] > 0
    assert theirs == {"case": "packed", "candidate": bench_step.PEER, "skipped": why}
    bench.makers["numllm"] = broken
    with pytest.raises(type(error), match="no argument") if why != "out of memory" else contextlib.nullcontext():
        list(bench.rows("packed", rounds=2))


def test_layers_that_a_gpu_has_room_for(monkeypatch) -> None:
    layers = {}
    for gigabytes in (8, 48, 85):  # 85: what is called 80 GB
        card = SimpleNamespace(total_memory=gigabytes * 10**9)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, card=card: card)
        bench = bench_step.Bench("qwen2.5-7b", None, torch.bfloat16, torch.device("cuda", 0))
        layers[gigabytes] = bench.shape["num_hidden_layers"]
    assert 1 <= layers[8] < layers[48] < layers[85] == 28
    assert bench.need(layers[48]) <= 0.85 * 48e9 < bench.need(layers[48] + 1)


@pytest.mark.parametrize("peer", [True, False])
def test_rows_of_the_generation_benchmark(monkeypatch, tmp_path, peer) -> None:
    monkeypatch.setattr(models, "QWEN_HALF", {**models.QWEN_HALF, **TINY, "num_attention_heads": 2})
    if not peer:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "rows.jsonl"
    bench_generate.main(["--device", "cpu", "--rounds", "1", "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    names = ["numllm", "transformers"] if peer else ["numllm"]
    assert [(row["case"], row["candidate"]) for row in rows] == [
        (case, name) for case in bench_generate.CASES for name in names
    ]
    assert all(row["same"] is (True if peer else None) for row in rows)
    assert len("".join(commands.generate(rows)).split("0.5B")) == len(rows) + 1


def test_candidates_take_turns_on_rotating_inputs() -> None:
    calls: list[tuple[str, int]] = []
    candidates = {name: lambda data, name=name: calls.append((name, data)) for name in "abc"}
    timings = measure.compare(candidates, [0, 1], torch.device("cpu"), rounds=4, warmup=0)
    assert [name for name, _ in calls] == list("abcbcacababc")
    assert all(len(timing.seconds) == 4 for timing in timings.values())
    assert {data for _, data in calls} == {0, 1}


def test_a_gpu_is_busy_while_the_host_launches(monkeypatch) -> None:
    done = []

    class Event(SimpleNamespace):
        def record(self) -> None:
            done.append("event")

        def elapsed_time(self, end: object) -> float:
            return 3.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "_sleep", done.append, raising=False)
    monkeypatch.setattr(measure, "cache_bytes", lambda device: 1)
    monkeypatch.setattr(measure, "_cpu_clock", lambda call, data: call(data) or 1e-3)
    clock = measure._gpu_clock(torch.device("cpu"))

    def call(data: str) -> None:
        done.append(data)

    assert clock(call, "a") == clock(call, "b") == 0.003
    assert done == ["a", 3_000_000, "event", "a", "event", 3_000_000, "event", "b", "event"]


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

def test_a_file_keeps_the_rows_of_earlier_runs(tmp_path) -> None:
    path = measure.results_file(tmp_path, "lora", torch.device("cpu"))
    assert path.parent == tmp_path and re.fullmatch(r"lora-[a-z0-9-]+[a-z0-9]\.jsonl", path.name)
    old, new = ({"bench": "x", "commit": "a", "date": date} for date in ("1", "2"))
    measure.write_rows(path, [old, old])
    measure.write_rows(path, [new])
    measure.write_rows(path, [new, {**new, "skipped": "no peer"}])
    assert [json.loads(line)["date"] for line in path.read_text(encoding="utf-8").splitlines()] == list("11222")
    assert read_rows(tmp_path) == [new, new]  # the page shows the last run
    measure.write_rows(path, [old], anew=True)
    assert read_rows(tmp_path) == [old] and list(tmp_path.iterdir()) == [path]


FAKE = """
import json, pathlib, subprocess, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.parent.mkdir(exist_ok=True)
with out.open("a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
if "--wait" in sys.argv:
    child = subprocess.Popen(["sleep", "60"])
    (out.parent / "child").write_text(str(child.pid))
    time.sleep(60)
sys.exit("--fail" in sys.argv)
"""


@pytest.fixture()
def families(monkeypatch, tmp_path) -> Path:
    """Families of a program that writes its arguments, and tests that pass; the folder for rows."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (tmp_path / "benchmarks" / "bench_fake.py").write_text(FAKE, encoding="utf-8")
    (tmp_path / "test_fake.py").write_text("def test_nothing():\n    assert True\n", encoding="utf-8")
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "OPERATIONS", command.Tests(0, ("test_fake.py",)))
    monkeypatch.setattr(command, "FAMILIES", {
        "both": command.Family("bench_fake", ("cuda", "cpu"), 5),
        "gpu": command.Family("bench_fake", ("cuda",), 5),
        "here": command.Family("bench_fake", ("cpu",), 5, quick=("--shape", "small")),
        "wanting": command.Family("bench_fake", ("cpu",), 5, wants="--questions"),
    })
    return tmp_path / "rows"


def arguments_of(folder: Path) -> dict[str, list[str]]:
    """Family → the arguments its program got, --out left out."""
    found = {}
    for path in folder.glob("*.jsonl"):
        given = json.loads(path.read_text(encoding="utf-8"))
        assert Path(given[given.index("--out") + 1]) == path
        del given[given.index("--out") : given.index("--out") + 2]
        found[path.name.split("-")[0]] = given
    return found


def test_one_command_measures_every_family_that_can_be(families, capfd) -> None:
    command.main(["--device", "cpu", "--quick", "--out", str(families)])
    assert arguments_of(families) == {"both": ["--device", "cpu", "--quick"], "here": ["--shape", "small"]}
    said = capfd.readouterr().out
    assert "gpu: not on this device, only on cuda\n" in said and "wanting: wants --questions; " in said


def test_further_arguments_go_to_one_family(families) -> None:
    command.main(["wanting", "--device", "cpu", "--out", str(families), "--questions", "folder"])
    assert arguments_of(families) == {"wanting": ["--questions", "folder"]}
    for wrong in (["both", "here", "--device", "cpu", "--rounds", "3"], ["other", "--device", "cpu"]):
        with pytest.raises(SystemExit, match="2"):
            command.main([*wrong, "--out", str(families)])


def test_a_family_that_fails_or_takes_too_long_is_told_and_its_rows_stay(families, capfd) -> None:
    with pytest.raises(SystemExit, match="not every family"):
        command.main(["both", "--device", "cpu", "--out", str(families), "--fail"])
    assert "both: failed, exit code 1; " in capfd.readouterr().out
    assert command.measured(command.FAMILIES["here"], ["--out", str(families / "x.jsonl"), "--wait"], 5) == (
        "stopped after 5 s; the rows written until then are kept"
    )
    assert "--wait" in (families / "x.jsonl").read_text(encoding="utf-8")
    child = Path("/proc") / (families / "child").read_text() / "stat"
    end = time.monotonic() + 20  # a busy machine takes its time to end what is killed
    while child.exists() and child.read_text().split()[2] != "Z":
        assert time.monotonic() < end, "killed with it"
        time.sleep(0.05)


def test_red_tests_no_figures(families, tmp_path, capfd) -> None:
    (tmp_path / "test_fake.py").write_text("def test_nothing():\n    assert False\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="a test failed"):
        command.main(["--device", "cpu", "--out", str(families)])
    assert not families.exists()
    said = capfd.readouterr().out
    assert "both: not measured" in said and "here: not measured" in said and said.count("test_fake.py: failed") == 1


@pytest.mark.parametrize("shared", [True, False])
def test_on_a_gpu_a_red_test_leaves_the_families_that_do_not_need_it(families, monkeypatch, capfd, shared) -> None:
    green, red, after = (command.Tests(60, (f"{name}.py",)) for name in ("green", "red", "after"))
    monkeypatch.setattr(command, "FAMILIES", {
        "bare": command.Family("bench_fake", ("cuda",), 5), "one": command.Family("bench_fake", ("cuda",), 5, (green,)),
        "two": command.Family("bench_fake", ("cuda",), 5, (green, red)),
    })
    monkeypatch.setattr(command, "BESIDES", (after,))
    monkeypatch.setattr(measure, "device_of", lambda name: torch.device("cpu"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: shared or None)
    ran = []

    def ended(module, seconds):
        ran.append(module)
        return int(module[-1] == "red.py")

    monkeypatch.setattr(command, "ended", ended)
    with pytest.raises(SystemExit, match="a test failed"):
        command.main(["--device", "cuda", "--out", str(families)])
    steps = [call[0] if call[0] != "pytest" else call[-1] for call in ran]
    assert steps == ["benchmarks.bench_fake", "green.py", "benchmarks.bench_fake", "red.py", "after.py"]
    assert all(("-n" in call) == shared for call in ran if call[0] == "pytest")
    assert "two: not measured, since a test" in capfd.readouterr().out


@pytest.mark.parametrize("limit, said, fails", [(5, "too long", True), (1000, "no time left", False)])
def test_tests_that_are_not_done_are_told_from_red_ones(families, monkeypatch, capfd, limit, said, fails) -> None:
    """Where their own time is up that is a failure; where the time for all of it is, it is not."""
    slow, now = command.Tests(limit, ("slow.py",)), [0.0]
    monkeypatch.setattr(command, "FAMILIES", {"one": command.Family("bench_fake", ("cuda",), 5, (slow,))})
    monkeypatch.setattr(command, "BESIDES", (slow,))
    monkeypatch.setattr(measure, "device_of", lambda name: torch.device("cpu"))
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(command, "ended", lambda module, seconds: now.__setitem__(0, now[0] + seconds))
    with pytest.raises(SystemExit, match="took too long") if fails else contextlib.nullcontext():
        command.main(["--device", "cuda", "--seconds", "500", "--out", str(families)])
    told = capfd.readouterr().out
    assert f"slow.py: {said}, {min(limit, 500)} s" in told and "one: not measured" in told


def test_every_family_has_its_program_and_tests() -> None:
    groups = {command.OPERATIONS, *command.BESIDES}
    for name, family in command.FAMILIES.items():
        source = (ROOT / "benchmarks" / f"{family.module}.py").read_text(encoding="utf-8")
        taken = {"--out", *(family.quick[:1]), *(("--device",) if len(family.devices) > 1 else ())}
        assert all(f'"{option}"' in source for option in taken), name
        groups |= set(family.tests)
    places = {place for tests in groups for place in tests.places}
    assert all((ROOT / place).exists() for place in places)
    marked = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")
              if re.search(r"mark\.gpu\b", path.read_text(encoding="utf-8"))}
    assert marked <= places  # no test that needs a GPU is left out where there is one
    assert all(tests.marked != place.startswith("tests/kernels") for tests in groups - {command.OPERATIONS}
               for place in tests.places)


STUB = """#!/bin/sh
echo "$@" >> {log}
case "$*" in *{red}*) exit 1;; esac
"""


@pytest.mark.parametrize("red, said, ran", [
    ("torch.cuda", "there is no CUDA device", []),
    ("import.triton", "has no triton", []),
    ("-m.benchmarks", "a benchmark failed", ["benchmarks"]),
    ("nothing", None, ["benchmarks"]),
])
def test_the_gpu_check_asks_for_what_it_needs(tmp_path, red, said, ran) -> None:
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(STUB.format(log=log, red=red.replace(".", "?")), encoding="utf-8")
    python.chmod(0o755)
    done = subprocess.run(
        ["sh", str(ROOT / "scripts" / "gpu_check.sh")], capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "PYTHON": str(python), "OUT": str(tmp_path / "rows")},
    )
    calls = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("-m ")]
    assert [line.split()[1] for line in calls] == ran
    assert done.returncode == (said is not None) and (said or "tests passed") in done.stdout + done.stderr
    if ran:
        assert calls[-1].split()[2:] == ["--device", "cuda", "--seconds", "520", "--out", str(tmp_path / "rows")]


def test_the_gpu_check_refuses_without_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run(
        ["sh", str(ROOT / "scripts" / "gpu_check.sh")], capture_output=True, text=True,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert done.returncode == 1 and done.stderr.splitlines() == [
        "gpu_check: there is no CUDA device; --dry runs the benchmarks' part on the CPU"
    ]


def test_rates_and_the_picture_under_them(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(bench_rates, "COPY", {"cpu": 1 << 16})
    monkeypatch.setattr(bench_rates, "SIDE", {"cpu": 32})
    bench_rates.main(["--device", "cpu", "--quick", "--out", str(tmp_path / "rows.jsonl")])
    rows = read_rows(tmp_path)
    assert [(row["candidate"], row.get("bytes"), row.get("flops")) for row in rows] == [
        ("copy", 1 << 17, None), ("product", None, 2 * 32**3)
    ]
    assert "".join(kernels.rates(rows)).count("AMD" if "AMD" in rows[0]["device"] else rows[0]["device"]) == 2

    where = {"device": "A & B", "threads": 1}

    def row(bench: str, candidate: str, seconds: float, **more: object) -> dict[str, object]:
        ms = dict.fromkeys(("p20", "p50", "p80"), 1000 * seconds)
        return {"bench": bench, "candidate": candidate, "ms": ms, "dtype": "float32", **more, **where}

    size = {"in": 64, "out": 128, "tokens": 32, "adapters": 1, "rank": 16}
    copy = {key: value for key, value in row("rates", "copy", 1, bytes=1e9).items() if key != "dtype"}
    flops = 4 * 32 * 64 * 128
    drawn = roofline.pictures([
        copy, row("rates", "product", 1, flops=1e9),
        row("lora_linear", "frozen linear", 2 * flops / 1e9, **size), row("lora_linear", "numllm", 1, **size),
        row("train_step", "numllm", 4, case="text", layers=4, flops=1e9),
        row("blocks", "numllm", 1.25, case="RMSNorm", bytes=1e9),
        row("loss", "numllm", 1, tokens=100, vocabulary=2500, width=500),
        {"bench": "lora_linear", "candidate": "PEFT", "skipped": "not installed", **where},
        row("generate", "numllm", 1),
    ], measure.slug)
    (name, picture), = drawn.items()
    assert name == "roofline-a-b-1-thread-float32.svg"
    texts = [element.text for element in ElementTree.fromstring(picture).iter() if element.text]
    assert "Roofline: A & B, float32, 1 thread" in texts and "measured: copy 1 GB/s, product 1 GFLOP/s" in texts
    assert "frozen linear: 50 %" in texts  # as given: half the rate of products
    assert "25 %, 0.25 GFLOP/s" in texts and "80 %, 0.8 GB/s" in texts
    assert "50 %, 0.5 GFLOP/s" in texts  # 4 · 100 · 2500 · 500 operations
    assert {"linear 64 → 128, 1 adapter", "RMSNorm", "loss over 2,500 words"} <= set(texts) and "generate" not in texts


def test_work_of_a_linear_is_what_its_gradients_take() -> None:
    row = {"bench": "lora_linear", "in": 3, "out": 5, "tokens": 7, "adapters": 2, "rank": 2, "dtype": "bfloat16"}
    products = [(7, 3, 5), (7, 5, 3)]  # (rows, inner, columns) of y and dX, then of s, sbᵀ, dS, dSa, dA, dB
    thin = [(7, 3, 4), (7, 4, 5), (7, 5, 4), (7, 4, 3), (4, 7, 3), (5, 7, 4)]
    frozen, adapted = (roofline.lora_linear({**row, "candidate": name}) for name in ("frozen linear", "numllm"))
    assert frozen[1] == sum(2 * m * k * n for m, k, n in products)
    assert adapted[1] == sum(2 * m * k * n for m, k, n in products + thin)
    assert adapted[2] - frozen[2] == 2 * 7 * 3
    together = roofline.lora_linear({**row, "out": "4 + 1", "candidate": "numllm"})  # one x, an a for each
    again = [(7, 3, 4), (7, 4, 3), (4, 7, 3)]
    assert together[1] - adapted[1] == sum(2 * m * k * n for m, k, n in again) and together[2] == adapted[2]


def test_packed_rows_are_the_same_for_both_sides() -> None:
    given = bench_step.data("packed", 2, 3000, 50, 0, torch.device("cpu"))
    documents, positions = given.batch.documents, given.positions
    assert ((positions == 0) == torch.cat((torch.ones(2, 1), documents.diff()), 1).bool()).all()
    lengths = torch.cat([row.unique_consecutive(return_counts=True)[1][:-1] for row in documents])
    assert len(lengths) > 4 and bench_step.SHORTEST <= lengths.min() and lengths.max() <= bench_step.LONGEST
    scored = given.labels != -100
    assert not scored[positions == 0].any() and scored[positions > 0].all()
    assert torch.equal(given.labels[scored], given.batch.labels) and given.batch.count == int(scored.sum())
