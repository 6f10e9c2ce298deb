"""A training step whose norms, SwiGLU, rotations and loss go through the kernels, against the same step by torch."""

from __future__ import annotations

import pytest
import torch

from numllm.config import LoRAConfig, ModelConfig
from numllm.data import Batch
from numllm.lora import attach
from numllm.model import Transformer
from numllm.ops import implementations
from numllm.train.activations import keep_less
from numllm.train.losses import forward_losses

pytestmark = pytest.mark.usefixtures("by_kernels")

SHAPE = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "hidden_act": "silu",
}
FAMILIES = {
    "qwen2": {"architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 8},
    "glm4": {"architectures": ["Glm4ForCausalLM"], "head_dim": 8},
    "minicpm": {"architectures": ["MiniCPMForCausalLM"], "scale_emb": 2, "scale_depth": 1.4, "dim_model_base": 16},
}


def step(
    family: str, device: torch.device, checkpointing: str = "none", impl: str = "auto", dropout: float = 0.0
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and the adapters' gradients of two packed rows."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig.from_hf({**SHAPE, **FAMILIES[family]})).to(device)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape) * (0.1 if weight.dim() > 1 else 0.3) + ("norm" in name))
    adapters = attach(model.train(), {"domain": LoRAConfig(rank=2, dropout=dropout)}, impl=impl)
    for weight in adapters.parameters("domain"):
        torch.nn.init.normal_(weight, std=0.1)
    keep_less(model, adapters, checkpointing=checkpointing)
    tokens = torch.randint(48, (2, 6), device=device)
    documents = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]], dtype=torch.int32, device=device)
    batch = Batch(
        tokens=tokens, documents=documents, positions=torch.arange(11, device=device), labels=tokens.flatten()[1:],
        count=11,
    )
    loss = forward_losses(model, adapters, {"domain": batch})["domain"]
    return loss, list(torch.autograd.grad(loss, adapters.parameters("domain")))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_by_kernels_is_the_step_by_torch(family, launched, device, monkeypatch) -> None:
    monkeypatch.setattr(implementations, "by_kernels", lambda *_: False)
    expected, gradients = step(family, device)
    launched.clear()
    monkeypatch.setattr(implementations, "by_kernels", lambda *_: True)
    loss, found = step(family, device)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    norms = {"qwen2": 5, "qwen3": 9, "glm4": 9, "minicpm": 5}[family]
    counts = {name: launched.count(name) for name in set(launched)}
    assert counts["norm_kernel"] == norms and counts["swiglu_kernel"] == counts["swiglu_backward_kernel"] == 2
    assert counts["rotate_kernel"] == 4 and counts["cross_entropy_kernel"] == 1
    if family == "qwen2":
        for checkpointing in ("selective", "full"):
            again, same = step(family, device, checkpointing)
            assert torch.equal(again, loss) and all(map(torch.equal, same, found)), checkpointing


@pytest.mark.parametrize("family", ["qwen2", "glm4"])
def test_a_step_whose_norms_and_swiglu_take_the_adapters_products(family, launched, device) -> None:
    """The loss and gradients of the step that reads x for them, whatever is kept; no x of a norm or SwiGLU is read."""
    loss, gradients = step(family, device, impl="triton")
    launched.clear()
    produced, found = step(family, device, impl="triton-produced")
    torch.testing.assert_close(produced, loss)
    for ours, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    counts = {name: launched.count(name) for name in set(launched)}
    assert counts["norm_down_kernel"] == 4 and counts["swiglu_down_kernel"] == 2
    for checkpointing in ("selective", "full"):
        again, same = step(family, device, checkpointing, "triton-produced")
        assert torch.equal(again, produced) and all(map(torch.equal, same, found)), checkpointing


def test_with_dropout_the_linears_take_their_product(launched, device) -> None:
    """They see an x of their own, which what makes x does not know."""
    loss, gradients = step("qwen2", device, impl="triton-produced", dropout=0.3)
    assert torch.isfinite(loss) and all(gradient.isfinite().all() for gradient in gradients)
    assert "down_kernel" in launched and not {"norm_down_kernel", "swiglu_down_kernel"} & set(launched)
