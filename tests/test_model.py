"""The transformer against transformers: logits, greedy tokens, packing, caches, refusals."""

from __future__ import annotations

import json

import pytest
import torch
from models import BY_LENGTH, FAMILIES, save, transformers_model

from numllm.checkpoint import Checkpoint, write_safetensors
from numllm.errors import CheckpointError, ConfigError
from numllm.model import load_model
from numllm.positions import PADDING
from numllm.tokenizer import Tokenizer


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """max |difference| ≤ 1e-5 · max |theirs|."""
    return bool((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max())


def greedy(model, tokens: torch.Tensor, count: int) -> torch.Tensor:
    cache = model.new_cache(len(tokens), tokens.shape[1] + count)
    found, step = [], tokens
    for _ in range(count):
        step = model(step, cache=cache)[:, -1:].argmax(-1)
        found.append(step)
    return torch.cat(found, 1)


@pytest.mark.parametrize("family", [*FAMILIES, *BY_LENGTH])
def test_logits_and_greedy_tokens_equal_transformers(family, tmp_path):
    theirs = transformers_model(family)
    ours = load_model(save(theirs, tmp_path / "m"))
    tokens = torch.randint(0, 160, (3, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert close(ours(tokens), expected)
        prompt = tokens[:1, :16]
        generated = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=32, do_sample=False, pad_token_id=0,
        )
        assert torch.equal(greedy(ours, prompt, 32), generated[:, 16:])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_equals_transformers(family, tmp_path):
    theirs = transformers_model(family)
    ours = load_model(save(theirs, tmp_path / "m"))
    tokens = torch.randint(0, 160, (3, 40), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(tokens)
    mask[1, :13], mask[2, :33] = 0, 0
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
        found = ours(tokens, documents=(mask - 1).int())
    assert all(close(found[row][mask[row] == 1], expected[row][mask[row] == 1]) for row in range(3))


@pytest.mark.parametrize("family", ["llama2", "mistral", "qwen2-window", "qwen3", "glm4", "llama-dynamic"])
def test_packed_and_padded_rows_equal_rows_alone(family, tmp_path):
    model = load_model(save(transformers_model(family), tmp_path / "m"))
    first, second = torch.randint(0, 160, (1, 21)), torch.randint(0, 160, (1, 14))
    with torch.no_grad():
        alone = torch.cat((model(first), model(second)), 1)
        documents = torch.tensor([[0] * 21 + [1] * 14])
        assert close(model(torch.cat((first, second), 1), documents=documents), alone)
        padded = torch.cat((torch.zeros(1, 7, dtype=torch.long), second), 1)
        documents = torch.tensor([[PADDING] * 7 + [0] * 14])
        assert close(model(padded, documents=documents)[:, 7:], model(second))


def test_cache_with_left_padding_equals_no_cache(tmp_path):
    model = load_model(save(transformers_model("qwen2-window"), tmp_path / "m"))
    tokens = torch.randint(0, 160, (2, 30))
    documents = torch.zeros(2, 30, dtype=torch.int32)
    documents[1, :9] = PADDING
    with torch.no_grad():
        whole = model(tokens, documents=documents)
        cache = model.new_cache(2, 30)
        parts = [
            model(tokens[:, a:b], documents=documents[:, a:b], cache=cache)
            for a, b in ((0, 12), (12, 13), (13, 22), (22, 30))
        ]
    joined = torch.cat(parts, 1)
    assert close(joined[0], whole[0]) and close(joined[1, 9:], whole[1, 9:])


@pytest.mark.parametrize("family", ["llama2", "mistral", "qwen2-window", "qwen3"])
def test_branches_of_a_tree_equal_the_rows_they_stand_for(family, tmp_path):
    model = load_model(save(transformers_model(family), tmp_path / "m"))
    other, trunk, first, second = (torch.randint(0, 160, (1, count)) for count in (5, 11, 4, 7))
    documents = torch.tensor([[0] * 5 + [1] * 22])
    branches = torch.tensor([[0] * 16 + [1] * 4 + [2] * 7])
    with torch.no_grad():
        whole = model.lm_head(model.hidden(
            torch.cat((other, trunk, first, second), 1), documents=documents, branches=branches
        ))
        one, two = model(torch.cat((trunk, first), 1)), model(torch.cat((trunk, second), 1))
        assert close(whole[:, :5], model(other))
        assert close(whole[:, 5:20], one) and close(whole[:, 20:], two[:, 11:])


def test_select_picks_positions(tmp_path):
    model = load_model(save(transformers_model("llama2"), tmp_path / "m"))
    tokens = torch.randint(0, 160, (2, 9))
    with torch.no_grad():
        whole = model(tokens)
        mask = torch.zeros(2, 9, dtype=torch.bool)
        mask[0, 3] = mask[1, 8] = True
        assert torch.allclose(model(tokens, select=mask), whole[mask], atol=1e-6)
        assert torch.allclose(model(tokens, select=torch.tensor([3, 17])), whole[mask], atol=1e-6)


def test_nothing_is_trainable(tmp_path):
    model = load_model(save(transformers_model("qwen2"), tmp_path / "m"))
    assert not any(weight.requires_grad for weight in model.parameters())


def test_shards_and_dtypes(tmp_path):
    theirs = transformers_model("qwen3", dtype=torch.bfloat16)
    whole = load_model(save(theirs, tmp_path / "one"))
    shards = load_model(save(theirs, tmp_path / "many", max_shard_size="50KB"))
    assert Checkpoint.open(tmp_path / "many").sharded
    assert whole.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), shards.parameters(), strict=True))
    assert load_model(tmp_path / "one", dtype=torch.float32).dtype == torch.float32


def test_trained_weights_write_english(shared_data):
    folder = shared_data / "weights" / "tinystories-656k"
    model, tokenizer = load_model(folder), Tokenizer.open(folder)
    ids = torch.tensor([tokenizer.prefix() + tokenizer.encode("Once upon a time, there was a little")])
    with torch.no_grad():
        story = tokenizer.decode(greedy(model, ids, 40)[0].tolist())
    assert {"the", "was", "and", "to"} & set(story.lower().split())
    assert len(set(story.split())) > 12


@pytest.mark.parametrize("change, message", [
    ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
    ({"quantization_config": {"bits": 4}}, "quantised"),
    ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "mscale"),
    ({"num_key_value_heads": 3}, "heads"),
    ({"hidden_size": None}, "hidden_size"),
])
def test_what_is_not_honoured_is_refused_by_name(change, message, tmp_path):
    folder = save(transformers_model("llama2"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=message):
        load_model(folder)


def damaged(folder, change):
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    write_safetensors(folder / "model.safetensors", tensors)


@pytest.mark.parametrize("change, message", [
    (lambda t: t.pop("model.norm.weight"), "lacks the tensor 'model.norm.weight'"),
    (lambda t: t.update({"model.extra": torch.zeros(1)}), "has no tensor 'model.extra'"),
    (lambda t: t.update({"model.norm.weight": torch.zeros(3)}), "shape"),
    (lambda t: t["model.norm.weight"].fill_(float("nan")), "NaN"),
    (lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.int32)}), "I32"),
])
def test_weights_of_another_model_are_refused(change, message, tmp_path):
    folder = save(transformers_model("llama2"), tmp_path / "m")
    damaged(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_tied_head_that_differs_is_refused(tmp_path):
    folder = save(transformers_model("qwen2-tied"), tmp_path / "m")
    damaged(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    with pytest.raises(CheckpointError, match="ties the head"):
        load_model(folder)
