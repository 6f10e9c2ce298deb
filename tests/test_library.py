"""Training as a library: events, a model and batches of one's own, nothing printed, nothing kept."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import tiny
import torch
from processes import ROOT, environment
from torch import Tensor, nn

import numllm
from numllm.data import ChoiceBatches, TextBatches
from numllm.errors import ConfigError, TrainError
from numllm.model import load_model
from numllm.tokenizer import Tokenizer

TIMED = ("seconds", "tokens_per_second", "memory")


class Theirs(nn.Module):
    """A transformers model as the trainer wants one: packed documents by a mask and positions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.lm_head = model.model, model.lm_head  # an adapter's weights are named by these paths

    device = property(lambda self: self.lm_head.weight.device)
    dtype = property(lambda self: self.lm_head.weight.dtype)

    def hidden(
        self, tokens: Tensor, *, documents: Tensor, branches: Tensor | None = None, select: Tensor | None = None
    ) -> Tensor:
        """(B, T, D), or (S, D) of the flat positions selected; branches are not supported."""
        assert branches is None
        count = tokens.shape[1]
        index = torch.arange(count).expand_as(tokens)
        fresh = torch.ones_like(documents, dtype=torch.bool)
        fresh[:, 1:] = documents[:, 1:] != documents[:, :-1]
        positions = index - torch.where(fresh, index, 0).cummax(1).values
        seen = (documents[:, :, None] == documents[:, None]) & torch.ones(count, count, dtype=torch.bool).tril()
        x = self.model(
            input_ids=tokens, position_ids=positions, attention_mask=seen[:, None], use_cache=False
        ).last_hidden_state
        return x if select is None else x.flatten(0, 1)[select]


@pytest.fixture
def world(tmp_path):
    tiny.base(tmp_path / "base")
    tiny.corpus(tmp_path / "corpus")
    tiny.numct(tmp_path / "numct.jsonl")
    return tmp_path


def rows(events):
    return [{k: v for k, v in e.items() if k not in TIMED} for e in events if e["event"] == "step"]


def test_a_model_and_batches_of_ones_own(world):
    import transformers

    expected = rows(numllm.train(tiny.settings(world, "ours")))
    tokenizer = Tokenizer(world / "base")
    batches = {
        "domain": TextBatches(tiny.TEXTS, tokenizer, rows=2, length=96),
        "numeric": ChoiceBatches(tiny.QUESTIONS, tokenizer, size=4, length=96),
    }
    model = Theirs(transformers.AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32))
    config = tiny.settings(world, "theirs", corpus=None, numct=None)
    found = rows(numllm.train(config, model=model, batches={n: lambda step, n=n: batches[n](step) for n in batches}))
    assert len(found) == len(expected) == 24
    for ours, theirs in zip(expected, found, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
        assert {k: theirs[k] for k in ("step", "adapter", "lr", "tokens", "labels")} == {
            k: ours[k] for k in ("step", "adapter", "lr", "tokens", "labels")}


def test_a_run_with_them_resumes_to_the_bit_and_knows_its_model(world):
    tokenizer = Tokenizer(world / "base")
    batches = {"domain": TextBatches(tiny.TEXTS, tokenizer, rows=2, length=96)}
    settings = {"adapters": ("domain",), "corpus": None, "numct": None}

    def given():
        return {"model": load_model(world / "base"), "batches": batches}

    list(numllm.train(tiny.settings(world, "whole", **settings), **given()))
    events = numllm.train(tiny.settings(world, "parts", **settings), **given())
    while next(events).get("step") != 7:
        pass
    events.close()
    other = given()
    with torch.no_grad():
        other["model"].lm_head.weight[0, 0] += 1
    with pytest.raises(TrainError, match="the model changed"):
        list(numllm.train(tiny.settings(world, "parts", **settings), resume=True, **other))
    list(numllm.train(tiny.settings(world, "parts", **settings), resume=True, **given()))
    assert tiny.adapter_bytes(world / "whole" / "adapters") == tiny.adapter_bytes(world / "parts" / "adapters")


def test_the_readme_example_runs(world):
    page = (ROOT / "numllm" / "train" / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(from numllm.data import Batch.*?)```", page, re.DOTALL)
    config = tiny.settings(world, adapters=("domain",), corpus=None, numct=None, steps=2)
    exec(example, {
        "torch": torch, "numllm": numllm, "config": config,
        "my_tokens": lambda step: torch.randint(400, (2, 128), generator=torch.Generator().manual_seed(step)),
    })
    assert [row["labels"] for row in tiny.metrics(world / "run")] == [254, 254]


def test_batches_must_be_those_of_the_adapters(world):
    with pytest.raises(ConfigError, match="adapters domain, numeric, got domain"):
        list(numllm.train(tiny.settings(world), batches={"domain": lambda step: None}))


def test_nothing_is_printed_and_no_state_is_left(world):
    code = (
        "import random, signal, sys, numllm, torch, tiny\n"
        "from pathlib import Path\n"
        "from numllm.train import World\n"
        "config = tiny.settings(Path(sys.argv[1]), steps=2)\n"
        "before = [torch.get_rng_state(), random.getstate(), torch.get_default_dtype(), torch.is_grad_enabled(),\n"
        "          signal.getsignal(signal.SIGINT), torch.get_num_threads()]\n"
        "for event in numllm.train(config): pass\n"
        "assert event['event'] == 'done'\n"
        "after = [torch.get_rng_state(), random.getstate(), torch.get_default_dtype(), torch.is_grad_enabled(),\n"
        "         signal.getsignal(signal.SIGINT), torch.get_num_threads()]\n"
        "assert torch.equal(before.pop(0), after.pop(0)) and before == after\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(world)], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
