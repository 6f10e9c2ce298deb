"""What adapters may bring beside B A: every kind that PEFT writes comes out as PEFT merges it, or is refused by key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from models import save, transformers_model
from safetensors.torch import load_file, save_file

from numllm.adapter import CONFIG, WEIGHTS
from numllm.errors import AdapterError, MergeError, NumLLMError
from numllm.merge import merge

pytestmark = [  # PEFT warns of tied weights, stored heads and shapes of lora_bias
    pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning"),
]


def gpt2(**changes: Any) -> Any:
    """A random GPT-2: its linears are stored (K, N)."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_embd=48, n_head=4, vocab_size=160, n_positions=64, bos_token_id=1, eos_token_id=1, **changes
    )
    return transformers.GPT2LMHeadModel(config).eval()


def trained(
    folder: Path, make: Callable[[], Any], *, seed: int, before: Path | None = None, **settings: Any
) -> dict[str, torch.Tensor]:
    """A PEFT adapter whose every trainable weight has moved, saved; the weights that PEFT merges it to."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(make(), peft.LoraConfig(**{
        "r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **settings,
    })).eval()
    if before is not None:
        model.save_pretrained(before)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.05)
    model.save_pretrained(folder)
    return {name: weight.detach().clone() for name, weight in model.merge_and_unload().state_dict().items()}


def qwen() -> Any:
    return transformers_model("qwen2")


def llama() -> Any:
    return transformers_model("llama3.1")


KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "bias-all": (llama, {"bias": "all"}),
    "bias-lora-only": (llama, {"bias": "lora_only"}),
    "lora-bias": (llama, {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]}),
    "lora-bias-rslora": (llama, {"lora_bias": True, "use_rslora": True}),
    "dora": (qwen, {"use_dora": True}),
    "dora-patterns": (qwen, {"use_dora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 9}}),
    "head-saved": (qwen, {"modules_to_save": ["lm_head"]}),
    "norms-saved": (qwen, {"modules_to_save": ["norm", "embed_tokens"]}),
    "attention-saved": (qwen, {"modules_to_save": ["self_attn"], "target_modules": ["down_proj"]}),
    "embedding": (qwen, {"target_modules": ["embed_tokens", "q_proj"]}),
    "head": (qwen, {"target_modules": ["lm_head"]}),
    "fan-in-fan-out": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "fan-in-fan-out-bias": (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}),
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_comes_out_as_peft_merges_it(tmp_path: Path, kind: str) -> None:
    make, settings = KINDS[kind]
    base = save(make(), tmp_path / "base")
    wanted = trained(tmp_path / "domain", make, seed=1, **settings)
    merge(base, [(tmp_path / "domain", 1.0)], tmp_path / "out", method="exact", verify=True)
    before, after = weights(base), weights(tmp_path / "out")
    assert any(not torch.equal(before[name], after[name]) for name in after)
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}")
    moved = {name for name in after if not torch.equal(wanted[name], before[name])}
    assert moved <= {name for name in after if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("kind", KINDS)
def test_two_add_up(tmp_path: Path, kind: str) -> None:
    """W + Σ wᵢ (W′ᵢ − W), also where PEFT's weighted merge gives up or drops a part in silence."""
    make, settings = KINDS[kind]
    base = save(make(), tmp_path / "base")
    merged = [trained(tmp_path / name, make, seed=seed, **settings) for name, seed in (("a", 1), ("b", 2))]
    merge(base, [(tmp_path / "a", 0.75), (tmp_path / "b", -0.5)], tmp_path / "out", method="exact", verify=True)
    before, after = weights(base), weights(tmp_path / "out")
    for name, tensor in after.items():
        w = before[name].double()
        wanted = w + 0.75 * (merged[0][name].double() - w) - 0.5 * (merged[1][name].double() - w)
        torch.testing.assert_close(tensor.double(), wanted, rtol=0, atol=4e-6)


@pytest.mark.parametrize("kind", ["lora-bias", "bias-lora-only"])
def test_a_modules_weight_is_its_bias_too(tmp_path: Path, kind: str) -> None:
    """Half of one module and nothing of another, with what belongs to them."""
    make, settings = KINDS[kind]
    base = save(make(), tmp_path / "base")
    merged = trained(tmp_path / "a", make, seed=1, **settings)
    half, none = (f"model.layers.{layer}.self_attn.q_proj" for layer in range(2))
    (tmp_path / "w.json").write_text(json.dumps({"a": {half: 0.5, none: 0}}))
    merge(base, [(tmp_path / "a", 1.0)], tmp_path / "out", method="exact", weights=tmp_path / "w.json", verify=True)
    before, after = weights(base), weights(tmp_path / "out")
    for name, tensor in after.items():
        share = {half: 0.5, none: 0.0}.get(name.rpartition(".")[0], 1.0)
        wanted = before[name] + share * (merged[name] - before[name])
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=2e-6)
    assert not torch.equal(merged[f"{none}.bias"], before[f"{none}.bias"])


def test_a_replaced_module_is_copied_to_the_bit(tmp_path: Path) -> None:
    """1 − Σw is 0, so nothing of the base's weight is left, not even its rounding."""
    base = save(qwen(), tmp_path / "base")
    trained(tmp_path / "domain", qwen, seed=1, modules_to_save=["lm_head"])
    tensors = load_file(tmp_path / "domain" / WEIGHTS)
    tensors["base_model.model.lm_head.weight"] *= 1e-30
    save_file(tensors, tmp_path / "domain" / WEIGHTS)
    merge(base, [(tmp_path / "domain", 1.0)], tmp_path / "out", verify=True)
    assert torch.equal(weights(tmp_path / "out")["lm_head.weight"], tensors["base_model.model.lm_head.weight"])


def test_peft_takes_the_bases_weight_in_silence(tmp_path: Path) -> None:
    """The fault of PEFT's that the table in the documentation names: modules_to_save in a weighted merge."""
    trained(tmp_path / "a", qwen, seed=1, modules_to_save=["lm_head"])
    model = peft.PeftModel.from_pretrained(qwen(), str(tmp_path / "a"), adapter_name="a")
    model.add_weighted_adapter(["a"], [1.0], "b", combination_type="cat")
    model.set_adapter("b")
    assert torch.equal(model.merge_and_unload().lm_head.weight, qwen().lm_head.weight)
    base = save(qwen(), tmp_path / "base")
    merge(base, [(tmp_path / "a", 1.0)], tmp_path / "out")
    assert not torch.equal(weights(tmp_path / "out")["lm_head.weight"], qwen().lm_head.weight)


@pytest.mark.parametrize("scale", [2.0, 0.5])
def test_peft_scales_rslora_too_much(tmp_path: Path, scale: float) -> None:
    """Another: a weighted merge of rank-stabilised adapters is not the weighted sum; ours is."""
    base = save(qwen(), tmp_path / "base")
    alone = trained(tmp_path / "a", qwen, seed=1, use_rslora=True)
    model = peft.PeftModel.from_pretrained(qwen(), str(tmp_path / "a"), adapter_name="a")
    model.add_weighted_adapter(["a"], [scale], "b", combination_type="cat")
    model.set_adapter("b")
    pefts = model.merge_and_unload().state_dict()
    merge(base, [(tmp_path / "a", scale)], tmp_path / "out", method="exact")
    name = "model.layers.0.self_attn.q_proj.weight"
    change = scale * (alone[name] - weights(base)[name])
    torch.testing.assert_close(weights(tmp_path / "out")[name] - weights(base)[name], change, rtol=0, atol=2e-6)
    assert float((pefts[name] - weights(base)[name]).norm() / change.norm()) == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_starts_that_moved_the_base(tmp_path: Path, start: str) -> None:
    base = save(qwen(), tmp_path / "base")
    wanted = trained(tmp_path / "domain", qwen, seed=1, before=tmp_path / "begun", init_lora_weights=start)
    adapters = [(tmp_path / "domain", 1.0)]
    with pytest.raises(AdapterError, match=f"init_lora_weights='{start}'"):
        merge(base, adapters, tmp_path / "out", method="exact")
    starts = {tmp_path / "domain": tmp_path / "begun"}
    for method in ("exact", "svd"):
        merge(base, adapters, tmp_path / method, method=method, starts=starts, verify=True,
              rank=8 if method == "svd" else None)
        for name, tensor in weights(tmp_path / method).items():
            torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=4e-6)
    merge(base, adapters, tmp_path / "plain", method="exact", starts=starts, as_="adapter", verify=True)
    model = peft.PeftModel.from_pretrained(qwen(), str(tmp_path / "plain")).merge_and_unload().state_dict()
    for name, tensor in model.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=4e-6)


def test_refuses_starts_that_are_not_the_adapters(tmp_path: Path) -> None:
    base = save(qwen(), tmp_path / "base")
    trained(tmp_path / "domain", qwen, seed=1, before=tmp_path / "begun", init_lora_weights="pissa")
    trained(tmp_path / "other", qwen, seed=1, r=2)
    both = [(tmp_path / "domain", 1.0), (tmp_path / "other", 1.0)]
    for starts, match in (
        ({both[0][0]: tmp_path / "other"}, "is not the start of"),
        ({both[0][0]: tmp_path / "begun", both[1][0]: tmp_path / "begun"}, "takes no start"),
        ({tmp_path / "begun": tmp_path / "begun", both[0][0]: tmp_path / "begun"}, "none of the adapters"),
    ):
        with pytest.raises(NumLLMError, match=match):
            merge(base, both, tmp_path / "out", starts=starts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["dora", "bias-all", "embedding", "fan-in-fan-out", "head-saved"])
def test_only_plain_adapters_make_adapters(tmp_path: Path, kind: str) -> None:
    make, settings = KINDS[kind]
    base = save(make(), tmp_path / "base")
    trained(tmp_path / "domain", make, seed=1, **settings)
    with pytest.raises(MergeError, match="cannot be an adapter"):
        merge(base, [(tmp_path / "domain", 1.0)], tmp_path / "out", method="exact", as_="adapter")


@pytest.mark.parametrize(("kind", "method", "key"), [
    ("dora", "svd", "use_dora"), ("dora", "ties", "use_dora"), ("bias-all", "ties", "biases"),
    ("head-saved", "knots", "whole modules"),
])
def test_methods_refuse_what_they_do_not_define(tmp_path: Path, kind: str, method: str, key: str) -> None:
    make, settings = KINDS[kind]
    base = save(make(), tmp_path / "base")
    trained(tmp_path / "domain", make, seed=1, **settings)
    with pytest.raises(MergeError, match=key):
        merge(base, [(tmp_path / "domain", 1.0)], tmp_path / "out", method=method)


@pytest.mark.parametrize(("settings", "match"), [
    ({"target_modules": ["embed_tokens"]}, "ties its head"), ({"target_modules": ["lm_head"]}, "ties its head"),
    ({"modules_to_save": ["embed_tokens"]}, "ties its head"), ({"modules_to_save": ["lm_head"]}, "ties its head"),
])
def test_refuses_what_would_untie(tmp_path: Path, settings: dict[str, Any], match: str) -> None:
    def tied() -> Any:
        return transformers_model("qwen2-tied")

    base = save(tied(), tmp_path / "base")
    trained(tmp_path / "domain", tied, seed=1, **settings)
    with pytest.raises(MergeError, match=match):
        merge(base, [(tmp_path / "domain", 1.0)], tmp_path / "out", method="exact")


def test_refuses_what_the_base_has_not(tmp_path: Path) -> None:
    """A bias for a base without, a head of another size, transposed factors for weights that are not."""
    base = save(transformers_model("mistral"), tmp_path / "base")
    trained(tmp_path / "bias", llama, seed=1, bias="all", target_modules=["q_proj"])
    with pytest.raises(AdapterError, match=r"the base has no model\.layers\.0\.\S+\.bias"):
        merge(base, [(tmp_path / "bias", 1.0)], tmp_path / "out", method="exact")
    trained(tmp_path / "head", lambda: transformers_model("mistral", vocab_size=170), seed=1,
            modules_to_save=["lm_head"])
    with pytest.raises(AdapterError, match=r"its lm_head.weight is \(170, 64\)"):
        merge(base, [(tmp_path / "head", 1.0)], tmp_path / "out", method="exact")
    trained(tmp_path / "plain", lambda: transformers_model("mistral"), seed=1, target_modules=["down_proj"])
    config = json.loads((tmp_path / "plain" / CONFIG).read_text())
    (tmp_path / "plain" / CONFIG).write_text(json.dumps({**config, "fan_in_fan_out": True}))
    with pytest.raises(AdapterError, match="down_proj is"):
        merge(base, [(tmp_path / "plain", 1.0)], tmp_path / "out", method="exact")


@pytest.mark.parametrize(("change", "match"), [
    ({"use_dora": False}, "use_dora is not set"), ({"bias": "some"}, "bias must be"),
    ({"modules_to_save": "lm_head"}, "modules_to_save must be"), ({"fan_in_fan_out": True}, "use_dora with"),
    ({"fan_in_fan_out": "yes"}, "fan_in_fan_out must be"), ({"modules_to_save": ["q_proj", 3]}, "modules_to_save must"),
])
def test_refuses_damaged_configurations(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    base = save(qwen(), tmp_path / "base")
    trained(tmp_path / "domain", qwen, seed=1, use_dora=True)
    config = json.loads((tmp_path / "domain" / CONFIG).read_text())
    (tmp_path / "domain" / CONFIG).write_text(json.dumps({**config, **change}))
    with pytest.raises(AdapterError, match=match):
        merge(base, [(tmp_path / "domain", 1.0)], tmp_path / "out", method="exact")


def test_dora_without_its_magnitude_is_refused(tmp_path: Path) -> None:
    base = save(qwen(), tmp_path / "base")
    trained(tmp_path / "domain", qwen, seed=1, use_dora=True)
    tensors = load_file(tmp_path / "domain" / WEIGHTS)
    name = next(name for name in tensors if "magnitude" in name)
    for change, match in ((None, "no lora_magnitude_vector"), (torch.ones(3), r"wanted \(64,\)")):
        changed = {key: tensor for key, tensor in tensors.items() if key != name}
        save_file(changed if change is None else {**changed, name: change}, tmp_path / "domain" / WEIGHTS)
        with pytest.raises(AdapterError, match=match):
            merge(base, [(tmp_path / "domain", 1.0)], tmp_path / "out", method="exact")
