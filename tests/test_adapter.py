"""numllm.adapter: PEFT reads what we write, we read what PEFT writes, and the rest is refused by its key."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from models import transformers_model
from safetensors.torch import load_file, save_file

from numllm.adapter import CONFIG, PREFIX, WEIGHTS, read_adapter, write_adapter
from numllm.errors import AdapterError

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")
SHAPES = {f"{name}.weight": (64, 64) for name in MODULES}


def peft_adapter(folder: Path, *, seed: int = 1, **settings: Any) -> Any:
    """A random PEFT adapter on the small Qwen2, saved in `folder`; the PEFT model."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(
        transformers_model("qwen2"),
        peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"],
                           "task_type": "CAUSAL_LM", **settings}),
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)
    return model


def write_simple(folder: Path, rank: int = 4) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(3)
    factors = {name: (torch.randn(rank, 64) * 0.1, torch.randn(64, rank) * 0.1) for name in MODULES}
    write_adapter(folder, factors, rank=rank, alpha=2 * rank, targets=["q_proj"])
    return factors


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


def change_tensors(folder: Path, **options: Any) -> None:
    """Removes, adds and renames tensors: remove=name, add={name: tensor}."""
    tensors = load_file(folder / WEIGHTS)
    if "remove" in options:
        del tensors[options["remove"]]
    save_file({**tensors, **options.get("add", {})}, folder / WEIGHTS)


@pytest.mark.parametrize("settings", [
    {},
    {"use_rslora": True},
    {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 9}},
    {"rank_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 3, "down_proj": 5}, "use_rslora": True},
    {"target_modules": r".*layers\.1.*\.(v|o)_proj"},
    {"init_lora_weights": "gaussian", "layers_to_transform": [1]},
], ids=["plain", "rslora", "patterns", "patterns-rslora", "regex-targets", "some-layers"])
def test_reads_what_peft_writes(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Every module's scale · B A is PEFT's own delta."""
    model = peft_adapter(tmp_path, **settings)
    adapter = read_adapter(tmp_path)
    layers = {name.removeprefix(PREFIX): module for name, module in model.named_modules()
              if isinstance(module, peft.tuners.lora.Linear)}
    assert set(adapter.factors) == set(layers)
    for name, factors in adapter.factors.items():
        assert factors.rank == adapter.modules[name].rank
        assert factors.scale == pytest.approx(layers[name].scaling["default"], rel=1e-15)
        torch.testing.assert_close(
            factors.scale * factors.b @ factors.a, layers[name].get_delta_weight("default"), rtol=1e-6, atol=1e-7
        )


def test_peft_reads_what_we_write(tmp_path: Path) -> None:
    """PEFT loads our files without a warning, and the logits are those of the merged weights."""
    factors = write_simple(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        model = peft.PeftModel.from_pretrained(transformers_model("qwen2"), str(tmp_path)).eval()
    wanted = transformers_model("qwen2")
    with torch.no_grad():
        for name, (a, b) in factors.items():
            wanted.get_submodule(name).weight += 2.0 * b @ a
        tokens = torch.randint(160, (2, 12))
        torch.testing.assert_close(model(tokens).logits, wanted(tokens).logits, rtol=1e-4, atol=1e-4)


def test_round_trip(tmp_path: Path) -> None:
    written = write_simple(tmp_path)
    adapter = read_adapter(tmp_path, base_shapes=SHAPES)
    assert adapter.rank == 4
    for name, (a, b) in written.items():
        factors = adapter.factors[name]
        assert torch.equal(factors.a, a) and torch.equal(factors.b, b)
        assert factors.scale == 2.0


def test_writing_again_replaces(tmp_path: Path) -> None:
    write_simple(tmp_path, rank=4)
    write_simple(tmp_path, rank=8)
    assert read_adapter(tmp_path).rank == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]


def test_an_interrupted_replacement_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between new weights and new configuration there is no configuration, so nothing is misread."""
    write_simple(tmp_path, rank=4)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("numllm.adapter.write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_simple(tmp_path, rank=8)
    with pytest.raises(AdapterError, match=CONFIG):
        read_adapter(tmp_path)


def test_write_refuses_factors_that_disagree(tmp_path: Path) -> None:
    a, b = torch.zeros(4, 8), torch.zeros(8, 4)
    for name, pair, rank in (("x.q_proj", (a, b), 8), ("x.k_proj", (a, b), 4), ("x.q_proj", (a, b.T), 4)):
        with pytest.raises(ValueError, match=name.split(".")[1]):
            write_adapter(tmp_path / "new", {name: pair}, rank=rank, alpha=4, targets=["q_proj"])
    with pytest.raises(ValueError, match="got none"):
        write_adapter(tmp_path / "new", {}, rank=4, alpha=4, targets=["q_proj"])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("key", "value"), [
    ("use_dora", True), ("bias", "all"), ("bias", "lora_only"), ("lora_bias", True), ("fan_in_fan_out", True),
    ("modules_to_save", ["lm_head"]), ("trainable_token_indices", [1]), ("target_parameters", ["experts"]),
    ("layer_replication", [[0, 1]]), ("alora_invocation_tokens", [5]), ("use_qalora", True),
    ("init_lora_weights", "pissa"), ("init_lora_weights", "pissa_niter_16"), ("init_lora_weights", "olora"),
    ("init_lora_weights", "corda"), ("init_lora_weights", "loftq"), ("init_lora_weights", ["gaussian"]),
    ("a_key_of_the_future", 1), ("peft_type", "ADALORA"), ("peft_type", None),
    ("r", 0), ("r", "4"), ("r", True), ("r", None), ("r", 8), ("lora_alpha", 0), ("lora_alpha", None),
    ("lora_alpha", math.inf), ("lora_alpha", 10**400), ("use_rslora", "yes"), ("rank_pattern", {"q_proj": 2.5}),
    ("rank_pattern", {"q_proj": 2}), ("rank_pattern", ["q_proj"]), ("alpha_pattern", {"q_proj": "big"}),
    ("alpha_pattern", {"(": 1}), ("alpha_pattern", {"(.*)*x": 1}), ("alpha_pattern", {".*.*.*.*x": 1}),
])
def test_refuses_by_config_key(tmp_path: Path, key: str, value: Any) -> None:
    write_simple(tmp_path)
    change_config(tmp_path, **{key: value})
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path)
    line = str(caught.value)
    assert "\n" not in line
    assert key in line or (key, value) in [("r", 8), ("rank_pattern", {"q_proj": 2})]  # there the module is named


@pytest.mark.parametrize(("change", "match"), [
    ({"remove": f"{PREFIX}{MODULES[0]}.lora_B.weight"}, "lora_B missing"),
    ({"remove": f"{PREFIX}{MODULES[0]}.lora_A.weight"}, "lora_A missing"),
    ({"add": {f"{PREFIX}{MODULES[0]}.lora_A.weight": torch.full((4, 64), math.nan)}}, "NaN or infinity"),
    ({"add": {f"{PREFIX}{MODULES[0]}.lora_B.weight": torch.full((64, 4), -math.inf).bfloat16()}}, "NaN or inf"),
    ({"add": {f"{PREFIX}{MODULES[0]}.lora_A.weight": torch.zeros(4, 64, dtype=torch.int8)}}, "is I8"),
    ({"add": {f"{PREFIX}{MODULES[0]}.lora_A.weight": torch.zeros(3, 64)}}, "do not fit together"),
    ({"add": {f"{PREFIX}{MODULES[0]}.lora_A.weight": torch.zeros(4, 0)}}, "do not fit together"),
    ({"add": {f"{PREFIX}{MODULES[0]}.lora_A.weight": torch.zeros(4, 63)}}, "another model"),
    ({"add": {f"{PREFIX}{MODULES[0]}.lora_magnitude_vector": torch.zeros(64)}}, "DoRA"),
    ({"add": {f"{PREFIX}{MODULES[0]}.lora_B.bias": torch.zeros(64)}}, "bias"),
    ({"add": {f"{PREFIX}model.embed_tokens.lora_embedding_A": torch.zeros(4, 8)}}, "embedding LoRA"),
    ({"add": {f"{PREFIX}model.norm.scale": torch.zeros(4)}}, "would not be used"),
    ({"add": {f"{PREFIX}lm_head.weight": torch.zeros(4, 4)}}, "a copy of the base's lm_head"),
    ({"add": {"q_proj.lora_A.weight": torch.zeros(4, 64)}}, "not PEFT's"),
])
def test_every_tensor_is_used_or_refused(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    write_simple(tmp_path)
    change_tensors(tmp_path, **change)
    with pytest.raises(AdapterError, match=match):
        read_adapter(tmp_path, base_shapes=SHAPES)


def test_refuses_an_adapter_of_another_model(tmp_path: Path) -> None:
    write_simple(tmp_path)
    first = {f"{MODULES[0]}.weight": (64, 64)}
    with pytest.raises(AdapterError, match="another model: the base has no model.layers.1"):
        read_adapter(tmp_path, base_shapes=first)
    with pytest.raises(AdapterError, match=r"is \(32, 64\) in the base"):
        read_adapter(tmp_path, base_shapes={**SHAPES, f"{MODULES[1]}.weight": (32, 64)})
    with pytest.raises(AdapterError, match="layers.2.self_attn.q_proj, but it has no factors"):
        read_adapter(tmp_path, base_shapes={**SHAPES, "model.layers.2.self_attn.q_proj.weight": (64, 64)})


def test_refuses_folders_that_are_no_adapters(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no such adapter folder"):
        read_adapter(tmp_path / "absent")
    with pytest.raises(AdapterError, match=CONFIG):
        read_adapter(tmp_path)
    write_simple(tmp_path)
    weights = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(weights[:-3])
    with pytest.raises(AdapterError, match="truncated"):
        read_adapter(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match=f"lacks {WEIGHTS}"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(AdapterError, match="pickle"):
        read_adapter(tmp_path)
    (tmp_path / CONFIG).write_text('{"r": 4, "r": 8}')
    with pytest.raises(AdapterError, match="stands twice"):
        read_adapter(tmp_path)
    (tmp_path / CONFIG).write_text("[]")
    with pytest.raises(AdapterError, match="wanted a JSON object"):
        read_adapter(tmp_path)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_a_head_adapter_brings_a_copy_of_the_head(tmp_path: Path) -> None:
    """PEFT stores the frozen head along; a caller that compares it with the base may have it."""
    peft_adapter(tmp_path, target_modules=["lm_head"])
    with pytest.raises(AdapterError, match="save_embedding_layers"):
        read_adapter(tmp_path)
    adapter = read_adapter(tmp_path, whole=True)
    assert set(adapter.modules) == set(adapter.base_copies) == {"lm_head"}
