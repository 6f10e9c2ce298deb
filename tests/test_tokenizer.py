"""The tokenizer against the original library."""

from __future__ import annotations

import json

import pytest

from numllm.errors import TokenizerError
from numllm.tokenizer import Tokenizer, byte_level_bpe

TEXTS = [
    "甲公司2024年净利润为3.5亿元，同比增长12.5%。", "Once upon a time\n\n  there was 1,234.5 ½ ①②", "",
    "<|endoftext|>不是控制符<|im_start|>", "ﬁ 全角１２３％　空格\u3000\r\n\tTab", "😀👍🏽 e\u0301 é", "   leading",
    "don't I'LL",
]


def test_qwen2_files_give_the_ids_of_transformers(shared_data):
    from transformers import Qwen2Tokenizer

    folder = shared_data / "tokenizers" / "qwen2"
    ours = Tokenizer(folder)
    theirs = Qwen2Tokenizer.from_pretrained(str(folder))
    for text in TEXTS:
        expected = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text) == expected, text
    assert ours.encode_batch(TEXTS) == [ours.encode(text) for text in TEXTS]
    assert ours.decode(ours.encode(TEXTS[0])) == TEXTS[0]
    assert ours.token_id("<|endoftext|>") == 151643 and not ours.adds_bos


def test_real_text_gives_the_ids_of_transformers(shared_data):
    from transformers import Qwen2Tokenizer

    folder = shared_data / "tokenizers" / "qwen2"
    ours, theirs = Tokenizer(folder), Qwen2Tokenizer.from_pretrained(str(folder))
    files = sorted((shared_data / "textbooks" / "cas-standards").rglob("*.md"))[:6]
    assert files
    for path in files:
        text = path.read_text(encoding="utf-8-sig")[:20_000]
        assert ours.encode(text) == theirs(text, split_special_tokens=True)["input_ids"], path.name


def test_llama_tokenizer_wants_bos(shared_data):
    tokenizer = Tokenizer(shared_data / "weights" / "tinystories-656k")
    assert tokenizer.bos_id is not None
    assert tokenizer.prefix() == ([tokenizer.bos_id] if tokenizer.adds_bos else [])


def test_offsets_point_into_the_text():
    backend = byte_level_bpe()
    from tokenizers import trainers

    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    backend.train_from_iterator(["年利率5%，本金100万元。"] * 4, trainer)
    # Offsets come from the backend whatever folder it was read from.
    tokenizer = Tokenizer.__new__(Tokenizer)
    tokenizer._backend = backend
    text = "年利率5%，本金100万元。"
    ((ids, offsets),) = tokenizer.encode_offsets([text])
    assert len(ids) == len(offsets)
    digits = [text[a:b] for a, b in offsets if text[a:b].isdigit()]
    assert digits == list("5100")


def test_single_digits_and_saved_folder(tmp_path):
    from tokenizers import pre_tokenizers, trainers

    backend = byte_level_bpe()
    backend.train_from_iterator(["2024年 2024年 100万元"] * 9, trainers.BpeTrainer(
        vocab_size=300, show_progress=False, special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    tokenizer = Tokenizer(tmp_path)
    assert len(tokenizer.encode("2024")) == 4
    assert tokenizer.eos_id == 0 and tokenizer.eos_ids == (0,) and tokenizer.bos_id is None
    assert 0 not in tokenizer.encode("a<end>b")


@pytest.mark.parametrize("content", ["{", "{}", '{"model": 1}'])
def test_broken_tokenizers_are_one_line(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match="cannot be read") as error:
        Tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_folder_without_tokenizer(tmp_path):
    with pytest.raises(TokenizerError, match="has no tokenizer"):
        Tokenizer(tmp_path)


def test_vocabulary_of_another_model_is_refused(shared_data, tmp_path):
    folder = shared_data / "tokenizers" / "qwen2"
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
    (tmp_path / "tokenizer_config.json").write_bytes((folder / "tokenizer_config.json").read_bytes())
    with pytest.raises(TokenizerError, match="of another model"):
        Tokenizer(tmp_path)
