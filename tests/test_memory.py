"""The estimate of a training step's memory against what a training step takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from models import FAMILIES, save, transformers_model

from numllm.config import LoRAConfig, ModelConfig
from numllm.errors import AdapterError, ConfigError
from numllm.lora import attach
from numllm.memory import Memory, estimate, linears, parameters, trained
from numllm.model import load_model

SHAPE = {
    "vocab_size": 24000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 3,
    "num_attention_heads": 8, "max_position_embeddings": 256,
}
ROWS, LENGTH = 4, 256

STEP = """
import gc, json, sys
import torch
from numllm.config import ModelConfig
from numllm.data import Batch
from numllm.model import Transformer
from numllm.train import Trainer
from numllm.train_config import TrainConfig

shape, device, dtype, names, rows, length, checkpointing = json.loads(sys.argv[1])

def trainer(shape, rows, length):
    config = ModelConfig.from_hf(shape)
    model = Transformer(config).to(device, getattr(torch, dtype))
    for weight in model.parameters():
        weight.normal_(0, 0.02)
    def batch(step):
        tokens = torch.randint(config.vocab_size, (rows, length))
        documents = torch.zeros(rows, length, dtype=torch.int32)
        documents[:, length // 2 :] = 1
        return Batch(tokens=tokens, documents=documents, positions=torch.arange(rows * length - 1),
                     labels=tokens.flatten()[1:], count=rows * length - 1)
    settings = TrainConfig(model="m", out="o", corpus="c", numct="n", adapters=tuple(names), length=length,
                           checkpointing=checkpointing)
    return Trainer(settings, model, {name: batch for name in names})

def used(peak):
    if device == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    with open("/proc/self/status") as file:
        kind = "VmHWM" if peak else "VmRSS"
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(kind))

def forget_peak():
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")

small = trainer({**shape, "vocab_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}, 1, 32)
small.advance()  # the libraries' own memory
del small
gc.collect()
base = used(peak=False)
run = trainer(shape, rows, length)
run.advance()
forget_peak()
run.advance()
print(used(peak=True) - base)
"""


LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux' /proc")


@pytest.mark.parametrize(("device", "architecture", "dtype", "names", "checkpointing"), [
    pytest.param("cpu", "Qwen2ForCausalLM", "float32", ["domain"], "none", marks=LINUX),
    pytest.param("cpu", "Qwen3ForCausalLM", "bfloat16", ["domain", "numeric"], "none", marks=LINUX),
    pytest.param("cpu", "Qwen2ForCausalLM", "float32", ["domain"], "selective", marks=LINUX),
    pytest.param("cpu", "Qwen2ForCausalLM", "float32", ["domain"], "full", marks=LINUX),
    pytest.param("cuda", "Qwen2ForCausalLM", "float32", ["domain", "numeric"], "none", marks=pytest.mark.gpu),
    pytest.param("cuda", "Qwen3ForCausalLM", "bfloat16", ["domain"], "none", marks=pytest.mark.gpu),
    pytest.param("cuda", "Qwen2ForCausalLM", "bfloat16", ["domain"], "selective", marks=pytest.mark.gpu),
    pytest.param("cuda", "Qwen2ForCausalLM", "bfloat16", ["domain"], "full", marks=pytest.mark.gpu),
])
def test_a_training_step_takes_what_was_estimated(device, architecture, dtype, names, checkpointing):
    shape = {"architectures": [architecture], "num_key_value_heads": 4, "head_dim": 64, **SHAPE}
    # Every block mapped by itself, so that what is freed goes back and the peak is that of the tensors.
    exact = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
    told = subprocess.run(
        [sys.executable, "-c", STEP, json.dumps([shape, device, dtype, names, ROWS, LENGTH, checkpointing])], text=True,
        check=True, capture_output=True, env={**os.environ, **exact, "OMP_NUM_THREADS": "1"},
    ).stdout
    expected = estimate(
        ModelConfig.from_hf(shape), {name: LoRAConfig() for name in names}, rows=ROWS * len(names), length=LENGTH,
        dtype=dtype, checkpointing=checkpointing, cuda=device == "cuda",
    )
    assert expected.total == pytest.approx(int(told), rel=0.15), expected


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_model(family, tmp_path):
    model = load_model(save(transformers_model(family), tmp_path))
    assert parameters(model.config) == sum(p.numel() for p in model.parameters())
    for lora in (
        LoRAConfig(rank=4), LoRAConfig(rank=3, targets=("q_proj", "down_proj")),
        LoRAConfig(rank=4, dora=True, ranks={"down_proj": 2}), LoRAConfig(rank=2, start="pissa"),
    ):
        adapters = attach(model, {"domain": lora})
        found = linears(model.config, lora)
        assert list(found) == list(adapters.modules)
        assert trained(found, lora) == sum(p.numel() for p in adapters.parameters("domain"))
        model = load_model(tmp_path)


CONFIG = ModelConfig.from_hf({"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2, **SHAPE})


def test_terms_grow_as_the_formula_says():
    def of(**changes) -> Memory:
        return estimate(CONFIG, LoRAConfig(), **{"rows": 4, "length": 128, "dtype": "float32", **changes})

    one = of()
    assert of(rows=8).activations == 2 * one.activations and of(rows=8).weights == one.weights
    assert of(length=256).activations > 2 * one.activations  # the mask of a token is as long as its row
    assert of(dtype="bfloat16").weights * 2 == one.weights and of(dtype="bfloat16").moments == one.moments
    few = of(labels=4)
    assert few.logits < one.logits / 20 and few.total < one.total
    kept = [of(checkpointing=kind) for kind in ("none", "selective", "full")]
    assert kept[0].activations > kept[1].activations > 4 * kept[2].activations
    assert kept[0].backward < kept[1].backward < kept[2].backward
    two = estimate(CONFIG, {"a": LoRAConfig(), "b": LoRAConfig()}, rows=4, length=128, dtype="float32")
    assert two.moments == 2 * one.moments and two.adapters == 4 * one.adapters
    assert one.largest == "weights" and of(rows=64).largest == "activations"


@pytest.mark.parametrize(("changes", "message"), [
    ({"dtype": "int8"}, "dtype must be one of"), ({"rows": 0}, "must be positive"),
    ({"checkpointing": "some"}, "checkpointing must be one of"),
])
def test_refusals(changes, message):
    with pytest.raises(ConfigError, match=message):
        estimate(CONFIG, LoRAConfig(), **{"rows": 4, "length": 128, "dtype": "float32", **changes})
    with pytest.raises(AdapterError, match="no linear named wte"):
        linears(CONFIG, LoRAConfig(targets=("q_proj", "wte")))
