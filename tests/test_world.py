"""Several processes: the same result as one, any number resumes, the frozen model shards, one failure ends all."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from processes import environment, together
from safetensors.torch import load_file

from numllm.config import LoRAConfig
from numllm.data import ChoiceBatches, TextBatches
from numllm.errors import TrainError
from numllm.tokenizer import Tokenizer
from numllm.train import World, micro_batches, train

RUNS = {
    "plain": {"loss": "likelihood", "text_weight": 0.5},
    "sharded": {
        "rows": 3, "questions": 1, "micro_tokens": 96, "shard": True, "checkpointing": "full", "offload": True,
    },
    "sharded-selective": {
        "loss": "likelihood", "shard": True, "checkpointing": "selective", "micro_tokens": 192, "validate_every": 6,
    },
    "sharded-kinds": {  # adapters that begin from what they sit on
        "shard": True, "b_ratio": 4.0, "numeric": LoRAConfig(rank=2, alpha=4.0, start="pissa"),
        "domain": LoRAConfig(
            rank=4, alpha=8.0, dora=True, bias="lora_only", modules_to_save=("input_layernorm", "norm"),
        ),
    },
}
CODE = """
import sys
from pathlib import Path
import tiny
from test_world import RUNS, settings, fourth
from numllm.model import load_model
from numllm.train import Meeting, joined, train
world = Path(sys.argv[1])
with joined("cpu", Meeting.from_environment()) as processes:
    for name, changes in RUNS.items():
        list(train(settings(world, f"two-{name}", **changes), world=processes))
        sent = processes.sent if name == "plain" else sent
    model = load_model(world / "base", placed=processes.sharder())
    whole = sum(weight.numel() for weight in model.model.layers.parameters())
    assert sum(weight.to_local().numel() for weight in model.model.layers.parameters()) == whole // 2
    events = list(train(settings(world, "begun-by-two"), world=processes, stop=fourth()))
    assert events[-1]["event"] == "interrupted"
    events = list(train(settings(world, "begun-by-one"), world=processes, resume=True))
    assert [event["step"] for event in events if event["event"] == "start"] == [4]
    print(sent)
"""


def settings(world: Path, out: str, **changes):
    """A short run; on what is held out where it validates."""
    heldout = {"heldout_corpus": "heldout.jsonl", "heldout_numct": "heldout-numct.jsonl"}
    found = {key: str(world / name) for key, name in heldout.items()} if "validate_every" in changes else {}
    return tiny.settings(world, out, **{"steps": 6, **changes, **found})


def fourth():
    """A stop that turns true after four steps."""
    count = itertools.count()
    return lambda: next(count) >= 4


def adapters(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value for name in ("domain", "numeric")
        for key, value in load_file(run / "adapters" / name / "adapter_model.safetensors").items()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the runs of RUNS, by one process and by two; the bytes that two gave to all-reduces."""
    world = tmp_path_factory.mktemp("world")
    tiny.base(world / "base")
    tiny.corpus(world / "corpus")
    tiny.numct(world / "numct.jsonl")
    tiny.heldout(world)
    for name, changes in RUNS.items():
        plain = {key: value for key, value in changes.items() if key not in ("shard", "checkpointing", "offload")}
        list(train(settings(world, f"one-{name}", **plain)))
    list(train(settings(world, "whole")))
    list(train(settings(world, "begun-by-one"), stop=fourth()))
    ended = together(2, CODE, world)
    assert [code for code, _, _ in ended] == [0, 0], ended
    list(train(settings(world, "begun-by-two"), resume=True))
    return world, [int(out) for _, out, _ in ended]


@pytest.mark.parametrize("one, two", [
    *((f"one-{name}", f"two-{name}") for name in RUNS), ("whole", "begun-by-one"), ("whole", "begun-by-two"),
])
def test_two_processes_give_what_one_gives(finished, one, two):
    world, _ = finished
    ours, expected = adapters(world / two), adapters(world / one)
    assert set(ours) == set(expected)
    for name, value in expected.items():
        assert (ours[name] - value).norm() <= 1e-3 * value.norm(), name
    keys = ("step", "kind", "adapter", "tokens", "labels", "lr")
    rows, others = tiny.metrics(world / one), tiny.metrics(world / two)
    assert [[row.get(key) for key in keys] for row in rows] == [[row.get(key) for key in keys] for row in others]
    for row, other in zip(rows, others, strict=True):
        if row["kind"] == "validation":
            assert abs(row["nll"] - other["nll"]) < 1e-4 * row["nll"]
            continue
        assert abs(row["loss"] - other["loss"]) < 1e-4 * row["loss"]
        assert abs(row["grad_norm"] - other["grad_norm"]) < 1e-3 * row["grad_norm"]


def test_only_the_adapters_gradients_travel(finished):
    world, sent = finished
    elements = sum(value.numel() for value in adapters(world / "two-plain").values())
    losses = 2
    assert sent == [6 * 4 * (elements + losses)] * 2


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("rows, questions", [(4, 5), (1, 1)])
@pytest.mark.parametrize("limit", [None, 96, 300])
def test_parts_hold_every_row_once_and_every_process_makes_as_many(tmp_path, size, limit, rows, questions):
    tokenizer = Tokenizer(tiny.base(tmp_path / "base"))
    batches = {
        "domain": TextBatches(tiny.TEXTS, tokenizer, rows=rows, length=96)(0),
        "numeric": ChoiceBatches(tiny.QUESTIONS, tokenizer, size=questions, length=64, loss="likelihood")(0),
    }
    parts = [micro_batches(batches, limit, World(rank, size)) for rank in range(size)]
    assert len({len(own) for own in parts}) == 1
    for name, batch in batches.items():
        found = [part[name] for own in parts for part in own if name in part]
        assert sorted(torch.cat([part.labels for part in found]).tolist()) == sorted(batch.labels.tolist())
        assert all(part.count == batch.count for part in found)
    width = max(batch.tokens.shape[1] for batch in batches.values())
    if limit is not None:
        for part in itertools.chain(*parts):
            assert sum(len(batch.tokens) for batch in part.values()) * width <= max(limit, 2 * width)


def test_a_shard_needs_processes(tmp_path):
    tiny.base(tmp_path / "base")
    tiny.corpus(tmp_path / "corpus")
    with pytest.raises(TrainError, match="torchrun"):
        list(train(tiny.settings(tmp_path, adapters=("domain",), numct=None, shard=True)))


def test_one_failing_process_ends_all_with_one_line(tmp_path):
    tiny.base(tmp_path / "base")
    tiny.corpus(tmp_path / "corpus")
    code = (
        "import os, sys, numllm.cli as cli, numllm.train.trainer as trainer\n"
        "from numllm.errors import TrainError\n"
        "if os.environ['RANK'] == '1':\n"
        "    update = trainer.Trainer._update\n"
        "    def failing(self, *arguments):\n"
        "        if self.step == 2: raise TrainError('the roof fell in')\n"
        "        return update(self, *arguments)\n"
        "    trainer.Trainer._update = failing\n"
        "sys.argv = ['numllm', 'train', '--model', 'base', '--corpus', 'corpus', '--adapters', 'domain', '--out',\n"
        "            'run', '--length', '96', '--rank', '2', '--steps', '500', '--device', 'cpu']\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "cli.main()\n"
    )
    ended = together(2, code)
    assert [code for code, _, _ in ended] == [1, 1], ended
    said = "".join(err for _, _, err in ended)
    assert said.count("Error:") == 1 and "process 1 of 2: the roof fell in" in said and "Traceback" not in said
    assert [row["step"] for row in tiny.metrics(tmp_path / "run")] == [1, 2, 3]
    assert not (tmp_path / "run" / "adapters").exists()


def test_torchrun_starts_it_and_the_first_process_alone_prints(tmp_path):
    tiny.base(tmp_path / "base")
    tiny.corpus(tmp_path / "corpus")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "numllm",
         "train", "--model", "base", "--corpus", "corpus", "--adapters", "domain", "--out", "run", "--length", "96",
         "--rank", "2", "--steps", "2", "--device", "cpu", "--events"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["start", "step", "step", "saved", "done"]
    assert events[0]["processes"] == 2
    assert [row["step"] for row in tiny.metrics(tmp_path / "run")] == [1, 2]
