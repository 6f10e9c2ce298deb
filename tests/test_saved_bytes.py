"""What a token leaves for backward, counted by hooks: in one linear, in linears of one x, in a whole block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from numllm import ops
from numllm.config import LoRAConfig, ModelConfig
from numllm.lora import AdapterSet, attach
from numllm.memory import _layer
from numllm.model import Transformer
from numllm.ops.passes import product_dtype
from numllm.positions import Plan
from numllm.rope import frequencies

B, T = 3, 50
RANK = 4


def per_token(model: nn.Module, run) -> float:
    """Bytes a token of all storages that `run` keeps for tokens: neither weights nor what is made of weights alone."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.numel() % (B * T) == 0:
            kept[storage.data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / (B * T)


def shaken(model: nn.Module, **settings: object) -> AdapterSet:
    adapters = attach(model, {"a": LoRAConfig(rank=RANK, **settings)})
    for _, b in adapters.factors("a"):
        b.data.normal_()
    return adapters


@pytest.mark.parametrize(("settings", "more"), [
    ({}, 0), ({"dropout": 0.1}, 4), ({"start": "olora"}, 4 * RANK), ({"dora": True}, 4 * 40),
], ids=["plain", "dropout", "olora", "dora"])
def test_a_linear_keeps_x_and_its_columns(settings, more) -> None:
    """b K for x and 4 R; 4 more for a token's share with dropout, 4 R for a start, b N for what DoRA rescales."""
    model = nn.Sequential()
    model.add_module("up", nn.Linear(24, 40))
    adapters = shaken(model, targets=("up",), **settings)
    x = torch.randn(B, T, 24, requires_grad=True)
    with adapters.use("a", seed=0):
        assert per_token(model.train(), lambda: model(x)) == 4 * 24 + 4 * RANK + more


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_block_keeps_what_the_estimate_says(monkeypatch, dtype, together) -> None:
    """`memory`'s formula to the byte, of a block without a mask; the rotations are kept once for all blocks."""
    monkeypatch.setattr(ops, "reads_once", lambda x, impl: together)
    config = ModelConfig.from_hf({
        "architectures": ["Qwen2ForCausalLM"], "vocab_size": 32, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "rope_theta": 1e4, "tie_word_embeddings": False, "max_position_embeddings": 64, "hidden_act": "silu",
    })
    model = Transformer(config).to(dtype)
    for weight in model.parameters():
        weight.data.normal_(std=0.1)
    adapters = shaken(model)
    x = torch.randn(B, T, 64, dtype=dtype, requires_grad=True)
    speeds = frequencies(config.rope, config.rotary_dim)
    plan = Plan(config, speeds, torch.zeros(B, T, dtype=torch.int64), None, None, None, None, dtype)
    rotations = sum(part.numel() * dtype.itemsize / (B * T) for part in (plan.cos, plan.sin))
    with adapters.use("a"):
        found = per_token(model, lambda: model.model.layers[0](x, plan))
    kept, _ = _layer(config, dtype.itemsize, T, "none", cuda=False)
    columns = product_dtype("auto", torch.zeros(B * T, 1, dtype=dtype)).itemsize * 7 * RANK
    assert found == pytest.approx(kept - dtype.itemsize * T + columns + rotations, abs=0.5)
