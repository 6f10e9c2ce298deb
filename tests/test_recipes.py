"""Recipes: every one fits its GPU by the memory estimate, and is a run when data is added."""

from __future__ import annotations

import json

import pytest
from test_cli import run

from numllm.cli.training import settings_of
from numllm.config import ModelConfig
from numllm.errors import ConfigError
from numllm.memory import estimate
from numllm.recipes import recipe, recipes
from numllm.train.fit import sharded

QWEN = {"architectures": ["Qwen2ForCausalLM"], "vocab_size": 151936, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768}
MODELS = {
    "Qwen/Qwen2.5-0.5B": QWEN | {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "tie_word_embeddings": True},
    "Qwen/Qwen2.5-1.5B": QWEN | {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "tie_word_embeddings": True},
    "Qwen/Qwen2.5-7B": QWEN | {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064},
    "Qwen/Qwen2.5-14B": QWEN | {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40,
        "num_key_value_heads": 8, "vocab_size": 152064},
    "Qwen/Qwen3-8B-Base": QWEN | {
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 4096, "intermediate_size": 12288,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    "meta-llama/Llama-3.1-8B": {
        "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "rope_theta": 5e5, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8},
}
DATA = {"out": "run", "corpus": "corpus", "numct": "numct.jsonl", "device": "cpu"}


def test_every_model_has_one_for_every_size():
    found = {(recipe.layer["model"], recipe.gigabytes) for recipe in recipes().values()}
    assert found == {(model, size) for model in MODELS for size in (24, 48, 80, 141)}
    assert all(name == recipe.name for name, recipe in recipes().items())


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_fits_its_gpu_by_the_memory_estimate(name):
    found = recipe(name)
    config = settings_of(DATA, recipe=name)
    assert config.shard == (found.processes > 1)
    model = ModelConfig.from_hf(MODELS[config.model])
    rows = config.micro_tokens // config.length
    assert rows * config.length == config.micro_tokens
    needed = estimate(
        model, {adapter: config.lora(adapter) for adapter in config.adapters}, rows=rows, length=config.length,
        dtype=config.dtype, checkpointing=config.checkpointing, cuda=True,
    )
    needed = sharded(needed, model, found.processes) if config.shard else needed
    assert needed.total / 1e9 == pytest.approx(found.estimate, abs=0.05)
    assert found.estimate <= 0.9 * found.gigabytes


def test_only_what_memory_asks_for_differs_between_sizes():
    for model in MODELS:
        learnt = [
            {key: value for key, value in recipe.layer.items() if key not in ("micro_tokens", "checkpointing", "shard")}
            for recipe in recipes().values() if recipe.layer["model"] == model
        ]
        assert all(layer == learnt[0] for layer in learnt)


def test_files_and_flags_win_over_a_recipe(tmp_path):
    (tmp_path / "a.toml").write_text('recipe = "qwen2.5-7b-80gb"\nlength = 1024\nrank = 8\n')
    config = settings_of(DATA | {"rank": 4}, tmp_path / "a.toml")
    assert (config.model, config.length, config.domain.rank, config.dtype) == ("Qwen/Qwen2.5-7B", 1024, 4, "bfloat16")
    assert settings_of(DATA, tmp_path / "a.toml", "qwen2.5-0.5b-24gb").model == "Qwen/Qwen2.5-0.5B"


def test_an_unknown_recipe_is_refused_with_the_nearest(capfd):
    with pytest.raises(ConfigError, match="did you mean qwen2.5-7b-80gb"):
        recipe("qwen2.5-7B-80")
    with pytest.raises(ConfigError, match="--recipes lists them"):
        recipe("##")
    code, _, err = run(capfd, "train", "--recipe", "llama-8b-24gb", "--out", "run")
    assert code == 1 and "llama-3.1-8b-24gb" in err


def test_recipes_are_listed(capfd):
    code, out, _ = run(capfd, "train", "--recipes", "--json")
    assert code == 0 and set(json.loads(out.splitlines()[-1])) == set(recipes())
    assert all(name in out for name in recipes())
