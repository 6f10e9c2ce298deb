"""q, k, v and gate, up computed together, as on a GPU: the same outputs and gradients as one by one."""

from __future__ import annotations

import pytest
import torch
from models import save, transformers_model

from numllm import ops
from numllm.config import LoRAConfig
from numllm.lora import attach
from numllm.model import load_model

SETS = {
    "two": {"a": LoRAConfig(rank=4), "b": LoRAConfig(rank=2, targets=("q_proj", "v_proj", "up_proj"))},
    "apart": {"a": LoRAConfig(rank=4, targets=("q_proj", "gate_proj")), "b": LoRAConfig(rank=2, targets=("v_proj",))},
    "ranks": {"a": LoRAConfig(rank=4, ranks={"k_proj": 7, "up_proj": 1}, exclude=("model.layers.0.self_attn.q_proj",)),
              "b": LoRAConfig(rank=2, exclude=("model.layers.0.self_attn.q_proj",))},
    "dora": {"a": LoRAConfig(rank=4, dora=True), "b": LoRAConfig(rank=2)},
    "pissa": {"a": LoRAConfig(rank=4, start="pissa"), "b": LoRAConfig(rank=2)},
    "dropout": {"a": LoRAConfig(rank=4, dropout=0.3), "b": LoRAConfig(rank=2, dropout=0.1)},
}


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def folder(request, tmp_path_factory):
    return save(transformers_model(request.param), tmp_path_factory.mktemp("together") / "base")


def run(folder, configs, which):
    """(logits, gradients of all adapters, the linears of each call of the operator)."""
    model = load_model(folder, dtype=torch.float64).train()
    adapters = attach(model, configs)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in adapters.names:
            for value in adapters.parameters(name):
                value += 0.1 * torch.randn(value.shape, generator=generator)
    sizes = []
    with pytest.MonkeyPatch.context() as patch:
        linears = ops.lora_linears
        patch.setattr(ops, "lora_linears", lambda x, ws, *rest, **more: sizes.append(len(ws)) or linears(
            x, ws, *rest, **more
        ))
        picked = torch.arange(0, 4 * 9, 2)
        with adapters.use(which, picked=picked // 9, seed=3):
            x = model.hidden(torch.arange(36).view(4, 9), select=picked)
    x.square().sum().backward()
    gradients = [p.grad for name in adapters.names for p in adapters.parameters(name) if p.grad is not None]
    return x.detach(), gradients, sizes


@pytest.mark.parametrize("which", ["a", torch.tensor([0, 1, -1, 1])], ids=["one", "by row"])
@pytest.mark.parametrize("kind", SETS)
def test_together_is_one_by_one(folder, monkeypatch, kind, which) -> None:
    alone, expected, sizes = run(folder, SETS[kind], which)
    assert set(sizes) == {1}
    monkeypatch.setattr(ops, "reads_once", lambda x, impl: True)
    found, gradients, sizes = run(folder, SETS[kind], which)
    most = {"ranks": [2, 1, 2, 1, 3, 1, 2, 1], "apart": [2, 1] * 2 if which != "a" else [1] * 4}
    assert sizes == most.get(kind, [3, 1, 2, 1] * 2)
    assert torch.allclose(found, alone, rtol=1e-5, atol=1e-9)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_adapters_that_drop_differently_go_alone(folder, monkeypatch) -> None:
    """On one row through adapters of different dropout no mask is shared; a linear that has both is refused."""
    configs = {
        "a": LoRAConfig(rank=2, targets=("q_proj",), dropout=0.3), "b": LoRAConfig(rank=2, targets=("v_proj",)),
    }
    monkeypatch.setattr(ops, "reads_once", lambda x, impl: True)
    assert run(folder, configs, "all")[2] == [1] * 4


def test_what_is_stacked_follows_the_adapters(folder, monkeypatch) -> None:
    monkeypatch.setattr(ops, "reads_once", lambda x, impl: True)
    model = load_model(folder)
    adapters = attach(model, {"a": LoRAConfig(rank=2)})
    x = torch.arange(10)[None]
    with torch.no_grad(), adapters.use("all"):
        base = model(x)
        adapters.add("b", LoRAConfig(rank=3, start="gaussian"))
        for _, b in adapters.factors("b"):
            b.fill_(0.1)
    with torch.no_grad():
        with adapters.use("all"):
            both = model(x)
        adapters.remove("a")
        adapters.add("a", LoRAConfig(rank=2, alpha=5.0))
        with adapters.use("all"):
            assert torch.allclose(model(x), both, atol=1e-5) and not torch.allclose(both, base, atol=1e-2)
