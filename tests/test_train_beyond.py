"""Training what adapters bring beside linears' A and B: the head's losses, a run and its resumption, its memory."""

from __future__ import annotations

import pytest
import tiny
import torch
import torch.nn.functional as F
from models import save, transformers_model
from safetensors.torch import load_file
from test_lora_kinds import shake

import numllm
from numllm import ops
from numllm.config import LoRAConfig
from numllm.errors import TrainError
from numllm.lora import attach
from numllm.memory import beside_low_rank, trained
from numllm.memory import linears as adapted
from numllm.model import load_model
from numllm.train import head_losses

DOMAIN = LoRAConfig(rank=2, targets=("q_proj", "embed_tokens", "lm_head"), dropout=0.1)
NUMERIC = LoRAConfig(rank=2, targets=("q_proj",), bias="all", modules_to_save=("model.norm",))


@pytest.fixture()
def world(tmp_path):
    tiny.base(tmp_path / "base")
    tiny.corpus(tmp_path / "corpus")
    tiny.numct(tmp_path / "numct.jsonl")
    return tmp_path


@pytest.mark.parametrize("whole", [False, True], ids=["low rank", "whole"])
def test_losses_of_an_adapted_head(tmp_path, monkeypatch, whole) -> None:
    model = load_model(save(transformers_model("qwen2"), tmp_path / "base"), dtype=torch.float64)
    kind = {"modules_to_save": ("lm_head",)} if whole else {"targets": ("lm_head",)}
    adapters = attach(model, {"a": LoRAConfig(rank=2, **kind), "b": LoRAConfig(rank=3)})
    shake(adapters)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(11, 64, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(160, (11,), generator=generator)
    rows, picked = torch.tensor([0, 1, -1]), torch.arange(11) % 3

    def use(part):
        return adapters.use(rows, picked=picked[part])

    with use(slice(None)):
        expected = F.cross_entropy(model.lm_head(x).float(), labels, reduction="none")
    assert not torch.allclose(expected, ops.token_losses(x, model.lm_head.weight, labels).float(), atol=1e-3)
    wanted = [x, *(p for p in model.lm_head.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(expected.sum(), wanted)
    monkeypatch.setattr(ops, "head_rows", lambda *_, **__: 4)
    found = head_losses(model.lm_head, x, labels, use)
    torch.testing.assert_close(found, expected)
    with adapters.use("none"):  # backward comes under another selection
        torch.testing.assert_close(torch.autograd.grad(found.sum(), wanted), gradients)
    assert head_losses(model.lm_head, x[:0], labels[:0], use).shape == (0,)


def test_a_run_learns_and_resumes_to_the_bit(world) -> None:
    settings = {"domain": DOMAIN, "numeric": NUMERIC, "steps": 4, "save_every": 2, "keep": 4}
    list(numllm.train(tiny.settings(world, "whole", **settings)))
    steps = []
    for event in numllm.train(tiny.settings(world, "parts", **settings), stop=lambda: len(steps) >= 4):
        if event["event"] == "step":
            steps.append(event)
    list(numllm.train(tiny.settings(world, "parts", **settings), resume=True))
    for name, keys in (("domain", ("lm_head.lora_B.weight", "model.embed_tokens.lora_embedding_A")),
                       ("numeric", ("model.norm.weight", "model.layers.0.self_attn.q_proj.base_layer.bias",
                                    "model.layers.1.self_attn.v_proj.bias"))):
        files = [world / run / "adapters" / name / "adapter_model.safetensors" for run in ("whole", "parts")]
        assert files[0].read_bytes() == files[1].read_bytes()
        tensors, base = load_file(files[0]), load_file(world / "base" / "model.safetensors")
        for key in keys:
            before = base.get(key.replace(".base_layer", ""), torch.zeros(1))
            assert (tensors[f"base_model.model.{key}"] - before).abs().max() > 1e-5, key


def test_a_loss_that_reads_the_frozen_head_is_refused_beside_an_adapted_one(world) -> None:
    config = tiny.settings(
        world, "digits", numeric=DOMAIN, adapters=("numeric",), loss="likelihood", digit_weight=0.1, steps=1,
        corpus=None,
    )
    with pytest.raises(TrainError, match="digit_weight is of the frozen head"):
        list(numllm.train(config))


@pytest.mark.parametrize("lora", [DOMAIN, NUMERIC], ids=["low rank", "whole"])
def test_counts_are_those_of_the_adapters(tmp_path, lora) -> None:
    model = load_model(save(transformers_model("qwen2"), tmp_path / "base"))
    count = sum(p.numel() for p in attach(model, {"a": lora}).parameters("a"))
    assert trained(adapted(model.config, lora), lora) + beside_low_rank(model.config, lora) == count
