"""What a run shows of itself: utilisation, memory, TensorBoard, events, the plan."""

from __future__ import annotations

import importlib.util
import json

import pytest
import tiny
import torch
from models import save, transformers_model
from test_cli import run
from torch.utils.flop_counter import FlopCounterMode

from numllm.errors import NumLLMError
from numllm.lora import attach
from numllm.model import load_model
from numllm.train import plan, train
from numllm.train.meter import Meter, frozen_sizes, memory, peak_tflops

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)


@pytest.mark.parametrize("family", ["qwen2", "qwen2-tied", "qwen3", "llama3.1"])
def test_frozen_operations_are_those_torch_counts(family, tmp_path):
    model = load_model(save(transformers_model(family), tmp_path))
    attach(model, {})
    model.model.embed_tokens.register_forward_hook(lambda module, given, x: x.requires_grad_())
    tokens, labels = torch.zeros(2, 5, dtype=torch.int64), torch.tensor([1, 4, 9])
    with FlopCounterMode(display=False) as counter:
        model(tokens, select=labels).sum().backward()
    products = {
        str(operator): count for operator, count in counter.get_flop_counts()["Global"].items() if "mm" in str(operator)
    }
    assert sum(products.values()) == Meter(model).flops(tokens.numel(), len(labels)), products


def test_adapters_do_not_change_what_is_frozen(tmp_path):
    model = load_model(save(transformers_model("qwen2"), tmp_path))
    before = frozen_sizes(model)
    attach(model, {"a": tiny.settings(tmp_path).domain})
    assert frozen_sizes(model) == before


@pytest.mark.parametrize("name, peak", [
    ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA H100 NVL", 835.0), ("NVIDIA H200", 989.4),
    ("NVIDIA GH200 480GB", 989.4), ("NVIDIA H20", 148.0), ("NVIDIA A100-SXM4-80GB", 312.0), ("NVIDIA A10", 125.0),
    ("NVIDIA A10G", 70.0), ("NVIDIA L4", 121.0), ("NVIDIA L40S", 362.0), ("NVIDIA L40", 181.0),
    ("NVIDIA GeForce RTX 4090", 165.2), ("NVIDIA RTX 6000 Ada Generation", 364.2), ("NVIDIA RTX A6000", 154.8),
    ("NVIDIA GeForce RTX 4090 D", None), ("Tesla T4", None), ("NVIDIA A1000", None),
])
def test_peaks_go_by_the_name(name, peak):
    assert peak_tflops(name) == peak


def test_utilisation_is_the_work_over_the_peaks_of_all_devices(tmp_path):
    model = load_model(save(transformers_model("qwen2"), tmp_path))
    rows = [{"tokens": 100, "labels": 90, "seconds": 0.5}, {"tokens": 50, "labels": 2, "seconds": 0.5}]
    found = Meter(model, peak=1e-3, devices=2)(rows)
    body, head = frozen_sizes(model)
    assert found["mfu"] == pytest.approx(4 * (150 * body + 92 * head) / 0.5 / (2 * 1e9), abs=1e-4)
    assert found["mfu"] > 0.01 and 1e8 < found["memory"] <= memory(torch.device("cpu"))
    assert Meter(model)(rows)["mfu"] is None


@pytest.fixture
def world(tmp_path):
    tiny.base(tmp_path / "base")
    tiny.corpus(tmp_path / "corpus")
    tiny.numct(tmp_path / "numct.jsonl")
    return tmp_path


@needs_tensorboard
def test_tensorboard_shows_every_figure_once_after_a_resume(world):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = train(tiny.settings(world, tensorboard=True))
    while next(events).get("step") != 8:
        pass
    events.close()
    list(train(tiny.settings(world, tensorboard=True), resume=True))
    log = EventAccumulator(str(world / "run" / "tensorboard"))
    log.Reload()
    rows = [json.loads(line) for line in (world / "run" / "metrics.jsonl").read_text().splitlines()]
    for name in ("domain", "numeric"):
        own = [row for row in rows if row["adapter"] == name]
        for key in ("loss", "lr", "grad_norm"):
            shown = log.Scalars(f"{name}/{key}")
            assert [point.step for point in shown] == list(range(1, 13))
            assert [point.value for point in shown] == pytest.approx([row[key] for row in own], rel=1e-6)


def test_tensorboard_without_its_package_is_refused(world, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(NumLLMError, match=r"pip install 'numllm\[tensorboard\]'"):
        list(train(tiny.settings(world, tensorboard=True)))


def test_events_are_json_lines_and_nothing_else(world, capfd):
    code, out, err = run(
        capfd, "train", "--model", world / "base", "--corpus", world / "corpus", "--adapters", "domain", "--out",
        world / "run", "--steps", "2", "--length", "96", "--rank", "2", "--events", "--peak-tflops", "0.001",
    )
    assert code == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == ["start", "step", "step", "saved", "done"]
    assert events[1]["mfu"] > 0 and events[1]["memory"] > 1e8


def test_a_dry_run_plans_and_writes_nothing(world, capfd):
    arguments = ("--model", world / "base", "--corpus", world / "corpus", "--numct", world / "numct.jsonl", "--out",
                 world / "run", "--steps", "50", "--length", "96", "--rows", "2", "--rank", "2")
    before = sorted(world.rglob("*"))
    code, out, err = run(capfd, "train", *arguments, "--dry-run", "--json")
    assert code == 0 and sorted(world.rglob("*")) == before, err
    found = json.loads(out.splitlines()[-1])
    assert "tokens" in out and "memory" in out and "seconds" not in err
    assert set(found["adapters"]) == {"domain", "numeric"} and found["steps"] == 50
    code, _, _ = run(capfd, "train", *arguments)
    assert code == 0
    rows = [json.loads(line) for line in (world / "run" / "metrics.jsonl").read_text().splitlines()]
    assert found["tokens"] == pytest.approx(sum(row["tokens"] for row in rows), rel=0.05)
    size = sum(path.stat().st_size for path in (world / "run" / "checkpoints" / "step-50").rglob("*.safetensors"))
    assert 0.75 * size < found["checkpoint_bytes"] <= size  # the rest is headers, at this size
    assert found["memory"]["estimated"]["total"] > found["memory"]["estimated"]["weights"] > 0
    assert 0 < found["seconds"] == pytest.approx(50 * found["seconds_per_step"])
    code, out, err = run(capfd, "train", *arguments, "--dry-run", "--events")
    assert code == 0 and json.loads(out)["event"] == "plan", err
    code, _, err = run(capfd, "train", *arguments, "--dry-run", "--resume")
    assert code == 1 and "do not go together" in err


def test_a_plan_is_the_same_run_that_training_begins_with(world):
    found = plan(tiny.settings(world))
    (start, *_) = train(tiny.settings(world))
    assert found["trained_parameters"] == start["trained_parameters"] and found["processes"] == 1
    assert found["bytes_per_step"] == 0


def test_a_plan_counts_to_each_adapters_end(world):
    found = plan(tiny.settings(world, domain_steps=2, numeric_steps=3))
    each = found["adapters"]
    assert found["steps"] == 3 and each["numeric"]["epochs"] == 1.5
    assert found["tokens"] == pytest.approx(2 * each["domain"]["tokens"] + 3 * each["numeric"]["tokens"], rel=0.1)
