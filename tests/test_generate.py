"""Generation against transformers: greedy token for token, batches, caches, sampling, stopping, streaming."""

from __future__ import annotations

import collections
import json
import math
import shutil

import pytest
import torch
from models import FAMILIES, save, transformers_model
from test_questions import byte_tokenizer
from tokenizers import pre_tokenizers, trainers

from numllm.errors import NumLLMError
from numllm.generate import generate, generate_ids, next_tokens
from numllm.model import load_model
from numllm.tokenizer import Tokenizer, byte_level_bpe

PROMPTS = ["债券的久期是指", "利率", "某企业年初存货100万元，本年购进250万元，年末存货"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    theirs = transformers_model("qwen2", vocab_size=tokenizer.vocab_size)
    return load_model(save(theirs, tmp_path_factory.mktemp("qwen2")))


@pytest.fixture(scope="module")
def stories(shared_data):
    folder = shared_data / "weights" / "tinystories-656k"
    return load_model(folder), Tokenizer.open(folder)


def theirs_greedy(theirs, ids: list[int], count: int, end: int | None = None, **options) -> list[int]:
    prompt = torch.tensor([ids])
    out = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False, pad_token_id=0,
        eos_token_id=end, **options,
    )
    return out[0, len(ids) :].tolist()


@pytest.mark.parametrize("way", ["plain", "fixed", "whole"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers_in_batches_of_different_lengths(family, way, tmp_path):
    theirs = transformers_model(family)
    ours = load_model(save(theirs, tmp_path / "m"))
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(1, 160, (size,), generator=generator).tolist() for size in (13, 1, 30, 7)]
    if way == "fixed" and any(ours.config.windows):
        with pytest.raises(ValueError, match="only where every window is longer than the 50 positions; got 'fixed'"):
            generate_ids(ours, prompts, max_new_tokens=20, way=way)
        return
    expected = [theirs_greedy(theirs, ids, 20) for ids in prompts]
    assert generate_ids(ours, prompts, max_new_tokens=20, way=way) == expected
    assert [generate_ids(ours, [ids], max_new_tokens=20, way=way)[0] for ids in prompts] == expected


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty_equals_transformers(penalty, tmp_path):
    theirs = transformers_model("qwen2")
    ours = load_model(save(theirs, tmp_path / "m"))
    prompts = [[5, 9, 100, 5], [7], [3, 3, 8, 1, 150]]
    plain = generate_ids(ours, prompts, max_new_tokens=24)
    found = generate_ids(ours, prompts, max_new_tokens=24, repetition_penalty=penalty)
    assert found == [theirs_greedy(theirs, ids, 24, repetition_penalty=penalty) for ids in prompts] != plain


def test_several_adapters_speak_as_their_merge_does(tmp_path):
    from numllm.config import LoRAConfig
    from numllm.lora import attach, load_adapters
    from numllm.merge import merge

    base = save(transformers_model("qwen2"), tmp_path / "m")
    model = load_model(base)
    adapters = attach(model, {"domain": LoRAConfig(rank=4), "numeric": LoRAConfig(rank=2)})
    for name in adapters.names:
        for weight in adapters.parameters(name):
            weight.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
        adapters.save(name, tmp_path / name)
    prompts = [[5, 9, 100], [7], [3, 3, 8, 1]]
    with adapters.use("all"):
        both = generate_ids(model, prompts, max_new_tokens=16)
        assert generate_ids(model, prompts, max_new_tokens=16, way="fixed") == both
    merge(base, [(tmp_path / "domain", 1.0), (tmp_path / "numeric", 1.0)], tmp_path / "merged", method="exact")
    assert generate_ids(load_model(tmp_path / "merged"), prompts, max_new_tokens=16) == both
    assert generate_ids(load_model(base), prompts, max_new_tokens=16) != both
    again = load_model(base)
    with load_adapters(again, {name: (tmp_path / name, 1.0) for name in adapters.names}).use("all"):
        assert generate_ids(again, prompts, max_new_tokens=16) == both


def test_end_tokens_stop_each_prompt_where_transformers_stops(tmp_path):
    theirs = transformers_model("qwen2")
    ours = load_model(save(theirs, tmp_path / "m"))
    prompts = [[5, 9, 100], [7], [3, 3, 8, 1]]
    free = generate_ids(ours, prompts, max_new_tokens=24)
    end = free[0][6]
    expected = [theirs_greedy(theirs, ids, 24, end) for ids in prompts]
    found = generate_ids(ours, prompts, max_new_tokens=24, ends=(end,))
    assert found == [ids[: ids.index(end)] if end in ids else ids for ids in expected]
    assert len(found[0]) <= 6


def test_real_weights_tell_a_story(stories, shared_data):
    import transformers

    model, tokenizer = stories
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        shared_data / "weights" / "tinystories-656k", dtype=torch.float32
    )
    prompt = "Once upon a time, there was a little"
    start = tokenizer.encode(prompt)
    ids = tokenizer.prefix() + start
    (text,) = generate(model, tokenizer, [prompt], max_new_tokens=40)
    assert tokenizer.decode(start + theirs_greedy(theirs, ids, 40, tokenizer.eos_id)) == prompt + text


def test_the_space_a_continuation_begins_with_is_kept(shared_data, tmp_path, monkeypatch):
    tokenizer = Tokenizer.open(shared_data / "tokenizers" / "llama2")
    model = load_model(save(transformers_model("llama2", vocab_size=tokenizer.vocab_size), tmp_path / "m"))
    rows = iter([*(tokenizer.token_id(piece) for piece in ("▁world", "s", "▁end")), tokenizer.eos_id])
    monkeypatch.setattr("numllm.generate.next_tokens", lambda logits, draws, **options: torch.tensor([next(rows)]))
    assert generate(model, tokenizer, ["Hello"], max_new_tokens=9) == [" worlds end"]


@pytest.mark.parametrize("file", ["tokenizer.model", "tokenizer.json"])
def test_characters_in_bytes_stay_whole_beside_broken_ones(file, shared_data, tmp_path, monkeypatch):
    original = shared_data / "tokenizers" / "llama2"
    for name in (file, "tokenizer_config.json"):
        shutil.copy(original / name, tmp_path)
    tokenizer = Tokenizer(tmp_path)
    model = load_model(save(transformers_model("llama2", vocab_size=tokenizer.vocab_size), tmp_path / "m"))
    ids = tokenizer.encode("龘靐的")[1:]
    assert len(ids) == 7
    for count, wanted in ((7, "龘靐的"), (5, "龘\ufffd\ufffd")):
        rows, pieces = iter([*ids, tokenizer.eos_id]), []
        monkeypatch.setattr("numllm.generate.next_tokens", lambda *_, rows=rows, **options: torch.tensor([next(rows)]))
        # The prompt ends in more bytes than are decoded with the continuation.
        (found,) = generate(
            model, tokenizer, ["利率龘靐齉"], max_new_tokens=count,
            stream=lambda index, piece, pieces=pieces: pieces.append(piece),
        )
        assert found == wanted == "".join(pieces)


def test_bos_alone_can_begin(stories):
    model, tokenizer = stories
    assert len(generate(model, tokenizer, [""], max_new_tokens=12)[0]) > 5


# Sampling


def test_sampling_is_seeded_and_independent_of_the_batch(model, tokenizer):
    options = {"max_new_tokens": 16, "temperature": 1.0, "top_k": 50, "top_p": 0.95}
    first = generate(model, tokenizer, PROMPTS, seed=4, **options)
    assert generate(model, tokenizer, PROMPTS, seed=4, **options) == first
    assert generate(model, tokenizer, PROMPTS, seed=5, **options) != first
    assert generate(model, tokenizer, PROMPTS[:1], seed=4, **options) == first[:1]
    same = generate(model, tokenizer, PROMPTS[:1] * 3, seed=4, **options)
    assert len(set(same)) == 3


def frequencies(logits, count=4000, **options) -> dict[int, float]:
    draws = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    options = {"temperature": 1.0, "top_k": None, "top_p": None, **options}
    found = next_tokens(torch.tensor([logits]).expand(count, -1), draws, **options)
    return {token: n / count for token, n in collections.Counter(found.tolist()).items()}


@pytest.mark.parametrize(("options", "expected"), [
    ({}, {0: 0.1, 1: 0.5, 2: 0.15, 3: 0.25}),
    ({"temperature": 0.5}, {0: 0.01, 1: 0.25, 2: 0.0225, 3: 0.0625}),
    ({"top_k": 2}, {1: 0.5, 3: 0.25}),
    ({"top_k": 9}, {0: 0.1, 1: 0.5, 2: 0.15, 3: 0.25}),
    ({"top_p": 0.74}, {1: 0.5, 3: 0.25}),
    ({"top_p": 0.76}, {1: 0.5, 3: 0.25, 2: 0.15}),
    ({"top_p": 1e-6}, {1: 1.0}),
    ({"top_k": 3, "top_p": 0.6}, {1: 0.5, 3: 0.25}),
    ({"top_k": 1, "temperature": 3.0}, {1: 1.0}),
])
def test_sampled_frequencies(options, expected):
    logits = [math.log(p) for p in (0.1, 0.5, 0.15, 0.25)]
    found = frequencies(logits, **options)
    whole = sum(expected.values())
    assert set(found) == set(expected)
    for token, p in expected.items():
        assert found[token] == pytest.approx(p / whole, abs=0.025)


def test_zero_temperature_takes_the_first_of_equals():
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    assert next_tokens(logits, [0.9], temperature=0, top_k=None, top_p=None).tolist() == [1]
    low = next_tokens(logits, [0.999], temperature=1e-4, top_k=None, top_p=0.4).tolist()
    assert low == [1]


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-45, 1e-300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_temperature_next_to_zero_takes_the_largest(temperature, dtype):
    logits = torch.tensor([[-30.0, 20.0, 4.0, -1.0], [-9.0, -7.0, -8.0, -5.0]], dtype=dtype)
    for draw in (0.0, 0.999):
        assert next_tokens(logits, [draw, draw], temperature=temperature, top_k=None, top_p=None).tolist() == [1, 3]


# Stopping and streaming


def test_stop_strings_cut_the_text(model, tokenizer):
    whole = generate(model, tokenizer, PROMPTS, max_new_tokens=24)
    stop = whole[0][4:6]
    cut = generate(model, tokenizer, PROMPTS, max_new_tokens=24, stop=[stop, "不会出现"])
    assert cut == [text.split(stop)[0] for text in whole]
    assert stop not in cut[0] and len(cut[0]) <= 4


def test_a_control_token_stops_by_its_name(tmp_path, monkeypatch):
    backend = byte_level_bpe()
    backend.train_from_iterator(["年利率5%"] * 3, trainers.BpeTrainer(
        vocab_size=300, show_progress=False, special_tokens=["<eos>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    tokenizer = Tokenizer(tmp_path)
    model = load_model(save(transformers_model("qwen2", vocab_size=300), tmp_path / "m"))
    ids = tokenizer.encode("利率<|im_end|>年<eos>", control=True)
    for stop, wanted in ((["<|im_end|>"], "利率"), ([], "利率年")):
        rows = iter(ids)
        monkeypatch.setattr("numllm.generate.next_tokens", lambda *_, rows=rows, **options: torch.tensor([next(rows)]))
        assert generate(model, tokenizer, ["5%"], max_new_tokens=20, stop=stop) == [wanted]


@pytest.mark.parametrize("stop", [(), ("a", "wolf", "the end")], ids=["free", "stop"])
def test_streamed_pieces_add_up(stop, model, tokenizer, stories):
    for engine, reader, prompts in ((model, tokenizer, PROMPTS), (*stories, ["One day, a cat", "The sun"])):
        for options in ({}, {"temperature": 1.2, "seed": 1}):
            pieces: list[list[str]] = [[] for _ in prompts]
            whole = generate(
                engine, reader, prompts, max_new_tokens=30, stop=stop,
                stream=lambda index, piece, pieces=pieces: pieces[index].append(piece), **options,
            )
            assert ["".join(part) for part in pieces] == whole
            assert all(piece for part in pieces for piece in part)
            assert whole == generate(engine, reader, prompts, max_new_tokens=30, stop=stop, **options)


def test_streaming_waits_for_whole_characters(tokenizer, model, monkeypatch):
    text = "利率🙂上升"
    ids = tokenizer.encode(text)
    assert len(ids) > len(text) or any("\ufffd" in tokenizer.decode([i]) for i in ids)
    rows = iter([*ids, tokenizer.eos_id])
    monkeypatch.setattr("numllm.generate.next_tokens", lambda logits, draws, **options: torch.tensor([next(rows)]))
    pieces = []
    (found,) = generate(
        model, tokenizer, ["年"], max_new_tokens=50, stream=lambda index, piece: pieces.append(piece)
    )
    assert found == text == "".join(pieces) and not any("\ufffd" in piece for piece in pieces)


# Refusals


def test_refusals(model, tokenizer):
    with pytest.raises(NumLLMError, match="prompt 2 is empty and the model has no bos"):
        generate(model, tokenizer, ["甲", ""], max_new_tokens=4)
    with pytest.raises(NumLLMError, match="has the token id 9999, the model knows .* of another model"):
        generate_ids(model, [[9999]], max_new_tokens=4)
    context = model.config.context
    with pytest.raises(NumLLMError, match=f"prompt 1 has {context - 3} tokens; with 4 new ones .* {context}"):
        generate_ids(model, [[5] * (context - 3)], max_new_tokens=4)
    for options in (
        {"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": math.nan}, {"top_k": 0}, {"top_p": 0.0},
        {"top_p": 1.5}, {"stop": [""]}, {"repetition_penalty": 0.0}, {"repetition_penalty": math.inf},
    ):
        with pytest.raises(ValueError):
            generate(model, tokenizer, ["甲"], **{"max_new_tokens": 4, **options})
    with pytest.raises(TypeError, match="list of texts"):
        generate(model, tokenizer, "甲", max_new_tokens=4)
    assert generate(model, tokenizer, [], max_new_tokens=4) == []


def test_a_broken_model_is_refused(tokenizer, tmp_path):
    model = load_model(save(transformers_model("qwen2", vocab_size=tokenizer.vocab_size), tmp_path / "m"))
    model.model.norm.weight.fill_(math.nan)
    with pytest.raises(NumLLMError, match="NaN or infinity"):
        generate(model, tokenizer, ["甲"], max_new_tokens=4)


@pytest.mark.parametrize("way", ["graph", "some"])
def test_a_way_that_cannot_be_taken_is_refused(way, model):
    with pytest.raises(ValueError, match=f"graph on a GPU only.*got '{way}'"):
        generate_ids(model, [[5]], max_new_tokens=4, way=way)


def test_prompts_of_ids_and_damaged_text(model, tokenizer):
    ids = tokenizer.encode(PROMPTS[0])
    assert generate(model, tokenizer, [ids, PROMPTS[0]], max_new_tokens=6) == \
        generate(model, tokenizer, PROMPTS[:1] * 2, max_new_tokens=6)
    with pytest.raises(NumLLMError, match="not UTF-8 at character 2"):
        generate(model, tokenizer, ["甲\udcff"], max_new_tokens=4)


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["plain", "fixed", "graph"])
def test_a_gpu_continues_as_the_cpu_does(way, tmp_path):
    from numllm.config import LoRAConfig
    from numllm.lora import attach

    folder = save(transformers_model("qwen2"), tmp_path / "m")
    prompts = [[5, 9, 100], [7], [3, 3, 8, 1]]
    found = []
    for device, how in (("cpu", "plain"), ("cuda", way)):
        model = load_model(folder, device=device)
        first = generate_ids(model, prompts, max_new_tokens=16, way=how)
        options = {"max_new_tokens": 16, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 1, "way": how}
        assert generate_ids(model, prompts, **options) == generate_ids(model, prompts, **options)
        penalised = generate_ids(model, prompts, max_new_tokens=16, repetition_penalty=1.3, way=how)
        adapters = attach(model, {"a": LoRAConfig(rank=4), "b": LoRAConfig(rank=2)})
        for weight in (w for name in adapters.names for w in adapters.parameters(name)):
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
            weight.data.copy_(noise * 0.2)
        with adapters.use("all"):
            found.append((first, penalised, generate_ids(model, prompts, max_new_tokens=16, way=how)))
    assert found[0] == found[1]
