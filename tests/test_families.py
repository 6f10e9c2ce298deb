"""Families outside transformers against their plain definitions: logits, greedy tokens, padding, adapters, merges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from definitions import FAMILIES, Layout, random_weights, with_peft
from safetensors.torch import load_file

from numllm.checkpoint import expected_shapes, write_safetensors
from numllm.config import TARGETS, LoRAConfig
from numllm.errors import AdapterError, ConfigError, NumLLMError
from numllm.families import FAMILIES as ROWS
from numllm.generate import generate_ids
from numllm.lora import attach, load_adapters
from numllm.merge import merge
from numllm.model import Transformer, load_model
from numllm.positions import PADDING, left_padded

ROOT = Path(__file__).resolve().parents[1]
PROMPT = 28
"""Longer than the original context of the families whose positions are stretched."""


def saved(name: str, folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """(config, weights) of a random model of the family, saved in the family's own layout."""
    _, config = FAMILIES[name]
    weights = random_weights(config)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", weights)
    return config, weights


def defined(name: str, weights: dict[str, torch.Tensor], ids: torch.Tensor, prompt: int | None = None) -> torch.Tensor:
    definition, config = FAMILIES[name]
    wide = {key: weight.double() for key, weight in weights.items()}
    return definition(config, wide, ids, len(ids) if prompt is None else prompt)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max())


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 160, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_the_definition(name, tmp_path):
    _, weights = saved(name, tmp_path / "m")
    model = load_model(tmp_path / "m")
    for count in (7, 20, 21, 41, 48):
        ids = draw(count)
        with torch.no_grad():
            assert close(model(ids[None])[0], defined(name, weights, ids)), count


@pytest.mark.parametrize("prompt", [6, PROMPT])
@pytest.mark.parametrize("name", FAMILIES)
def test_32_greedy_tokens_equal_the_definition(name, prompt, tmp_path):
    _, weights = saved(name, tmp_path / "m")
    model = load_model(tmp_path / "m")
    ids = draw(prompt)
    with torch.no_grad():
        cache = model.new_cache(1, prompt + 32)
        step, found = ids[None], []
        for _ in range(32):
            step = model(step, cache=cache)[:, -1:].argmax(-1)
            found.append(int(step))
    # A token's logits do not depend on what follows it, so one pass over the whole text says what greedy gives.
    whole = defined(name, weights, torch.cat((ids, torch.tensor(found))), prompt)
    assert whole[prompt - 1 : -1].argmax(-1).tolist() == found and len(set(found)) > 3


@pytest.mark.parametrize("way", ["plain", "fixed"])
@pytest.mark.parametrize("name", ["qwen1", "internlm2", "minicpm-dynamic"])
def test_greedy_batches_equal_the_definition_of_each_row_alone(name, way, tmp_path):
    _, weights = saved(name, tmp_path / "m")
    model = load_model(tmp_path / "m")
    prompts = [draw(count, seed=count) for count in (4, 19, 30)]
    found = generate_ids(model, [prompt.tolist() for prompt in prompts], max_new_tokens=12, way=way)
    for prompt, new in zip(prompts, found, strict=True):
        whole = defined(name, weights, torch.cat((prompt, torch.tensor(new))), len(prompt))
        assert whole[len(prompt) - 1 : -1].argmax(-1).tolist() == new


@pytest.mark.parametrize("name", FAMILIES)
def test_padded_and_packed_rows_equal_the_definition_of_each_alone(name, tmp_path):
    _, weights = saved(name, tmp_path / "m")
    model = load_model(tmp_path / "m")
    rows = [draw(count, seed=count) for count in (9, 33, 22)]
    tokens, documents, _ = left_padded([row.tolist() for row in rows], torch.device("cpu"))
    with torch.no_grad():
        cache = model.new_cache(3, 34)
        for batch in (model(tokens, documents=documents), model(tokens, documents=documents, cache=cache)):
            for row, out in zip(rows, batch, strict=True):
                assert close(out[-len(row) :], defined(name, weights, row))
        more = draw(3, 1, seed=9)
        step = model(more, documents=torch.zeros(3, 1, dtype=torch.int32), cache=cache)
        for row, token, out in zip(rows, more, step, strict=True):
            assert close(out[-1], defined(name, weights, torch.cat((row, token)), len(row))[-1])
        packed = torch.cat(rows)[None]
        numbers = torch.tensor([[0] * 9 + [1] * 33 + [2] * 22])
        whole = model(packed, documents=numbers)[0]
    assert close(whole, torch.cat([defined(name, weights, row) for row in rows]))


def test_long_texts_whose_rotations_depend_on_their_length_are_not_read_in_portions(tmp_path):
    saved("internlm2", tmp_path / "m")
    model = load_model(tmp_path / "m")
    with torch.no_grad():
        cache = model.new_cache(1, 40)
        model(draw(1, 10), cache=cache)
        model(draw(1, 14), cache=cache)
        with pytest.raises(NumLLMError, match="read it at once"):
            model(draw(1, 2), cache=cache)
        documents = torch.zeros(1, 30, dtype=torch.int32)
        with pytest.raises(NumLLMError, match="cannot share a trunk"):
            model.hidden(draw(1, 30), documents=documents, branches=documents)
        documents[:, 20:] = PADDING
        model.hidden(draw(1, 30), documents=documents, branches=documents * 0)


def shaken(adapters) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in adapters.names:
            for b in adapters.parameters(name)[1::2]:
                b.copy_(torch.randn(b.shape, generator=generator) * 0.1)


ONE_EACH = ["qwen1", "internlm2", "baichuan2", "minicpm"]


@pytest.mark.parametrize("name", ONE_EACH)
def test_adapters_are_pefts_over_the_checkpoints_own_names(name, tmp_path):
    _, weights = saved(name, tmp_path / "m")
    model, ids = load_model(tmp_path / "m"), draw(30)
    adapters = attach(model, {"a": LoRAConfig(rank=4, alpha=8.0)})
    shaken(adapters)
    adapters.save("a", tmp_path / "a")
    merged = with_peft(tmp_path / "a", weights)
    changed = {key for key in weights if not torch.equal(merged[key], weights[key])}
    assert changed == {key for key in Layout(weights).state_dict() if ".0." in key or ".1." in key}
    with torch.no_grad(), adapters.use("a"):
        assert close(model(ids[None])[0], defined(name, merged, ids))
    again = load_model(tmp_path / "m")
    with torch.no_grad(), load_adapters(again, {"a": (tmp_path / "a", 1.0)}).use("all"):
        assert close(again(ids[None])[0], defined(name, merged, ids))


@pytest.mark.parametrize("name", ONE_EACH)
def test_pefts_adapters_are_read_and_merged_over_the_checkpoints_own_names(name, tmp_path):
    import peft

    _, weights = saved(name, tmp_path / "m")
    model, ids = load_model(tmp_path / "m"), draw(30)
    names = sorted(set(model.linear_names.values()))
    torch.manual_seed(0)
    theirs = peft.get_peft_model(Layout(weights), peft.LoraConfig(r=3, target_modules=names, init_lora_weights=False))
    theirs.save_pretrained(str(tmp_path / "a"))
    merged = with_peft(tmp_path / "a", weights)
    with torch.no_grad(), load_adapters(model, {"a": (tmp_path / "a", 1.0)}).use("all"):
        assert close(model(ids[None])[0], defined(name, merged, ids))
    merge(tmp_path / "m", [(tmp_path / "a", 1.0)], tmp_path / "out", method="exact")
    out = load_file(tmp_path / "out" / "model.safetensors")
    assert set(out) == set(weights) and all(torch.allclose(out[key], merged[key], atol=1e-6) for key in out)
    with torch.no_grad():
        assert close(load_model(tmp_path / "out")(ids[None])[0], defined(name, merged, ids))


def test_a_linear_that_stands_for_several_is_targeted_whole(tmp_path):
    saved("baichuan2", tmp_path / "m")
    model = load_model(tmp_path / "m")
    with pytest.raises(AdapterError, match="W_pack computes q_proj, k_proj, v_proj at once.*add k_proj, v_proj"):
        attach(model, {"a": LoRAConfig(targets=("q_proj", "o_proj"))})
    adapters = attach(model, {"a": LoRAConfig(targets=("q_proj", "k_proj", "v_proj")),
                              "b": LoRAConfig(targets=("W_pack",))})
    assert adapters.configs["a"].targets == adapters.configs["b"].targets == ("W_pack",)
    with pytest.raises(AdapterError, match="no linear named lm_head"):
        attach(model, {"a": LoRAConfig(targets=("lm_head",))})
    saved("qwen1", tmp_path / "q")
    assert set(load_model(tmp_path / "q").linear_names.values()) == {"c_attn", "attn.c_proj", "mlp.c_proj", "w1", "w2"}


@pytest.mark.parametrize("name", FAMILIES)
def test_expected_tensors_are_the_models_own_and_the_checkpoints(name):
    from numllm.config import ModelConfig

    _, config = FAMILIES[name]
    read = ModelConfig.from_hf(config)
    with torch.device("meta"):
        model = Transformer(read)
    expected = dict(expected_shapes(read))
    assert expected == {key: tuple(weight.shape) for key, weight in model.named_parameters()}
    assert expected == {key: tuple(weight.shape) for key, weight in random_weights(config).items()}
    assert set(read.linear_names()) == set(TARGETS)


@pytest.mark.parametrize("name", ONE_EACH)
def test_losses_and_gradients_of_adapters_are_those_of_the_logits(name, tmp_path):
    from numllm import ops

    saved(name, tmp_path / "m")
    model, ids = load_model(tmp_path / "m"), draw(2, 26)
    adapters = attach(model, {"a": LoRAConfig(rank=2)})
    shaken(adapters)
    found = []
    for head in ("states", "logits"):
        with adapters.use("a"):
            if head == "states":
                x = model.hidden(ids)[:, :-1].flatten(0, 1)
                losses = ops.token_losses(x, model.lm_head.weight, ids[:, 1:].flatten())
            else:
                logits = model(ids)[:, :-1].flatten(0, 1)
                losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
        found.append((losses.detach(), torch.autograd.grad(losses.mean(), adapters.parameters("a"))))
    assert close(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one.abs().max() > 0 and (one - other).abs().max() <= 1e-4 * other.abs().max()


def test_code_beside_the_weights_is_never_run(tmp_path):
    saved("qwen1", tmp_path / "m")
    trap = tmp_path / "ran"
    for name in ("modeling_of_their_own.py", "sitecustomize.py", "tokenization_qwen.py"):
        (tmp_path / "m" / name).write_text(f"open({str(trap)!r}, 'w')")
    load_model(tmp_path / "m")
    assert not trap.exists()


def test_every_row_names_parts_that_exist_and_keys_that_are_known():
    parts = {
        "model", "embed_tokens", "layers", "norm", "lm_head", "input_layernorm", "post_attention_layernorm",
        "self_attn", "mlp", "qkv_proj", "gate_up_proj", *TARGETS,
    }
    for row in ROWS.values():
        assert set(row.names) <= parts and row.models and row.model_type
        assert not set(row.keys) & set(row.keys.values())


@pytest.mark.parametrize("name, change, message", [
    ("qwen1", {"use_dynamic_ntk": True, "intermediate_size": 191}, "even number"),
    ("qwen1", {"seq_length": None}, "lacks seq_length"),
    ("qwen1", {"rotary_pct": 0.5}, "rotary_pct = 0.5 is not supported, only 1.0"),
    ("qwen1", {"no_bias": False}, "no_bias"),
    ("qwen1", {"rms_norm_eps": 1e-5}, "does not honour: rms_norm_eps"),
    ("baichuan2", {"sliding_window": 8}, "sliding_window"),
    ("baichuan2", {"sliding_window": 8, "layer_types": ["sliding_attention"] * 2}, "have no sliding_attention"),
    ("baichuan2", {"visual": {"image_size": 448}}, "reads more than text"),
    ("minicpm", {"scale_emb": None}, "lacks scale_emb"),
    ("minicpm", {"scale_depth": -1.0}, "scale_depth must be a positive number"),
    ("minicpm", {"num_experts": 8}, "mixture of experts"),
    ("minicpm", {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "longrope"),
    ("internlm2", {"rope_scaling": {"type": "dynamic", "factor": "2"}}, "factor must be a number above 0"),
    ("internlm2", {"rope_scaling": {"type": "dynamic", "factor": 0}}, "factor must be a number above 0"),
    ("internlm2", {"rope_scaling": [2.0]}, "must be an object"),
    ("internlm2", {"num_attention_heads": 32, "num_key_value_heads": 32}, "head_dim of at least 4"),
    ("internlm2", {"rope_scaling": {"type": "qwen", "original_max_position_embeddings": 8}}, "'qwen' is not supported"),
    ("internlm2", {"architectures": ["InternLM3ForCausalLM"]}, "supported: LlamaForCausalLM"),
    ("internlm2", {"scale_emb": 2.0}, "does not honour: scale_emb"),
])
def test_configs_that_are_not_honoured_are_refused_by_name(name, change, message):
    from numllm.config import ModelConfig

    with pytest.raises(ConfigError, match=message) as error:
        ModelConfig.from_hf({**FAMILIES[name][1], **change})
    assert "\n" not in str(error.value)


def test_baichuan_13b_is_refused_by_name(shared_data):
    from numllm.config import ModelConfig

    config = json.loads(next((shared_data / "configs").rglob("baichuan/config.json")).read_text())
    with pytest.raises(ConfigError, match="of 13B .its positions are ALiBi. is not supported; .*Baichuan2-7B"):
        ModelConfig.from_hf(config)


def test_an_architecture_that_is_not_named_is_told_by_its_type():
    from numllm.config import ModelConfig

    config = {key: value for key, value in FAMILIES["internlm2"][1].items() if key != "architectures"}
    assert ModelConfig.from_hf(config).architecture == "InternLM2ForCausalLM"
    with pytest.raises(ConfigError, match="'bert'"):
        ModelConfig.from_hf({"model_type": "bert"})


WEIRD = (None, True, -1, 0, 1.5, "x", [], {}, ["a"], {"a": 1}, float("nan"), 10**30, 10**400)


@pytest.mark.parametrize("name", FAMILIES)
def test_whatever_a_config_says_is_read_or_refused_in_one_line(name):
    from numllm.config import ModelConfig

    config = FAMILIES[name][1]
    scaling = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8, "beta_fast": 1, "rope_theta": 2.0}
    cases = [{**config, key: value} for key in [*config, "layer_types", "rope_parameters"] for value in WEIRD]
    cases += [{**config, "rope_scaling": {**scaling, key: value}} for key in scaling for value in WEIRD]
    cases += [{key: value for key, value in config.items() if key != left} for left in config]
    cases += [{**config, "layer_types": [kind] * config["num_hidden_layers"]} for kind in WEIRD]
    refused = 0
    for case in cases:
        try:
            assert ModelConfig.from_hf(case).layers > 0
        except ConfigError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 900
    assert refused > len(cases) // 4


def test_the_table_of_families_is_measured_and_a_difference_fails(tmp_path, monkeypatch):
    from scripts import family_table

    with pytest.raises(SystemExit) as ended:
        family_table.main(["--only", "Baichuan2", "--out", str(tmp_path / "rows.jsonl")])
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert not ended.value.code and row["greedy"] == 32 and row["original"] == "definition" and row["commit"]
    assert not family_table.fails(row)
    for change in ({"logits": 2e-5}, {"greedy": 31}, {"merge": float("nan")}, {"tokenizer": {"different": 1}}):
        assert family_table.fails({**row, **change})
    monkeypatch.setattr(family_table, "difference", lambda *_: 1.0)
    with pytest.raises(SystemExit) as ended:
        family_table.main(["--only", "GLM", "--out", str(tmp_path / "rows.jsonl")])
    assert ended.value.code == 1


def test_every_family_has_a_row_in_the_table():
    from scripts import family_table

    rows = [json.loads(line) for line in (ROOT / "benchmarks" / "results" / "families.jsonl").read_text().splitlines()]
    assert {row["architecture"] for row in rows} == set(ROWS)
    assert [row["family"] for row in rows] == [case.family for case in family_table.CASES]
    assert not any(map(family_table.fails, rows))
