"""What `numllm inspect` says of a checkpoint, against the checkpoint itself."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from models import save, transformers_model
from safetensors.torch import load_file

from numllm.checkpoint import write_safetensors
from numllm.config import LoRAConfig
from numllm.errors import AdapterError, CheckpointError, ConfigError, NumLLMError
from numllm.inspection import inspect, text
from numllm.lora import attach
from numllm.memory import estimate
from numllm.model import load_model


def test_a_checkpoint_is_what_is_said_of_it(tmp_path):
    folder = tiny.base(tmp_path / "base")
    model = load_model(folder)
    found = inspect(folder, rank=3, count=2, rows=2, length=64)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["bytes"] == 4 * found["parameters"] and found["dtype"] == "float32"
    assert found["tensors"] == {"F32": len(list(model.parameters()))}
    assert (found["architecture"], found["context"], found["vocab_size"]) == ("Qwen2ForCausalLM", 128, 400)
    assert found["tokenizer"] == {
        "file": "tokenizer.json", "tokens": 400, "bos": 1, "ends": [0], "adds_bos": False,
    }
    adapters = attach(model, {name: LoRAConfig(rank=3) for name in "ab"})
    assert found["lora"]["parameters"] == sum(p.numel() for name in "ab" for p in adapters.parameters(name))
    paths = {f"model.layers.{i}.{row['name']}" for row in found["lora"]["linears"] for i in range(row["count"])}
    assert paths == set(adapters.modules)
    needed = estimate(
        model.config, {name: LoRAConfig(rank=3) for name in "ab"}, rows=4, length=64, dtype="float32"
    )
    assert found["memory"]["total"] == needed.total and found["memory"]["activations"] == needed.activations
    shown = text(found)
    assert "400 tokens" in shown and "2 × rank 3: " in shown and "self_attn.q_proj" in shown
    assert "4 rows of 64 tokens, float32 on cpu" in shown
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_few_targets_and_another_dtype(tmp_path):
    folder = save(transformers_model("mistral", dtype=torch.bfloat16), tmp_path)
    found = inspect(folder, targets=("q_proj",), count=1, rows=1, length=16)
    assert [row["name"] for row in found["lora"]["linears"]] == ["self_attn.q_proj"]
    assert found["dtype"] == found["memory"]["dtype"] == "bfloat16" and found["windows"] == [8]
    wide = inspect(folder, targets=("q_proj",), count=1, rows=1, length=16, dtype="float32")
    assert wide["memory"]["weights"] == 2 * found["memory"]["weights"]
    assert found["tokenizer"]["error"].endswith("tokenizer.model") and "has no tokenizer" in text(found)
    with pytest.raises(AdapterError, match="no linear named wq"):
        inspect(folder, targets=("wq",), length=16)
    with pytest.raises(ConfigError, match="length 999999 is more than the model's context"):
        inspect(folder, length=999_999)


def test_a_short_context_is_the_length_unless_one_is_given(tmp_path):
    folder = save(transformers_model("qwen2", max_position_embeddings=48), tmp_path)
    assert inspect(folder)["memory"]["length"] == 48
    assert inspect(save(transformers_model("qwen2"), tmp_path / "long"))["memory"]["length"] == 512
    with pytest.raises(ConfigError, match="length 49 is more than the model's context of 48"):
        inspect(folder, length=49)


def test_weights_that_are_not_what_the_config_says_are_told(tmp_path):
    folder = save(transformers_model("qwen2"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    write_safetensors(folder / "model.safetensors", {**weights, "model.norm.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"model.norm.weight has the shape \[3\], config.json wants \[64\]"):
        inspect(folder)


def test_a_tokenizer_of_another_model_is_named(tmp_path):
    save(transformers_model("qwen2", vocab_size=300), tmp_path)
    tiny.tokenizer_folder(tmp_path)
    found = inspect(tmp_path, length=64)
    assert found["tokenizer"]["error"] == (
        "the tokenizer has 400 tokens, the model only 300; it is of another model"
    )


def test_real_configs_are_shown_or_refused_in_one_line(shared_data):
    known = {
        "Qwen2.5-7B.config.json": (7_615_616_512, "bfloat16"), "Llama-3.1-8B.config.json": (8_030_261_248, "bfloat16"),
        "Qwen3-4B.config.json": (4_022_468_096, "bfloat16"),
    }
    shown = refused = 0
    for path in sorted((shared_data / "configs").rglob("*.json")):
        try:
            found = inspect(path, length=128, device="cuda", dtype=None)
        except NumLLMError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
            refused += 1
            continue
        shown += 1
        assert found["tokenizer"] is None and found["bytes"] is None and "none beside a config.json" in text(found)
        if path.name in known:
            assert (found["parameters"], found["dtype"]) == known.pop(path.name)
    assert shown >= 15 and refused >= 10 and not known
