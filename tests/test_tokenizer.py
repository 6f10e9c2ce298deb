"""Tokenizers against the libraries they come from."""

from __future__ import annotations

import io
import itertools
import json
import shutil

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors, trainers

from numllm.errors import TokenizerError
from numllm.tokenizer import Tokenizer, byte_level_bpe
from numllm.tokenizer.protobuf import read_sentencepiece
from scripts import check_tokenizers as check

TEXTS = [
    "甲公司2024年净利润为3.5亿元，同比增长12.5%。", "Once upon a time\n\n  there was 1,234.5 ½ ①②", "",
    "<|endoftext|>不是控制符<|im_start|>", "ﬁ 全角１２３％　空格\u3000\r\n\tTab", "😀👍🏽 e\u0301 é", "   leading",
    "don't I'LL",
]


@pytest.fixture(scope="module")
def peers(shared_data, tmp_path_factory):
    """Name → (ours, the original's encode, its decode)."""
    return check.peers(shared_data, tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def texts(shared_data):
    """A part of the real text, some blocks of every plane, odd texts; all of it: scripts/check_tokenizers.py."""
    books = [text[:8000] for text in itertools.islice(check.books(shared_data), 0, None, 40)]
    planes = list(itertools.islice(check.planes(), 0, None, 211))
    return [*TEXTS, *books, *planes, *check.odd(500)]


@pytest.mark.parametrize("name", ["Qwen (", "Llama 2", "Mistral", "Qwen2", "MiniMind"])
def test_ids_and_texts_are_those_of_the_original(name, peers, texts):
    ours, encode, decode = next(peers[key] for key in peers if key.startswith(name))
    assert len(texts) > 700
    for text in texts:
        ids = encode(text)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids, skip_special=False) == decode(ids), text
    assert ours.encode_batch(texts[:50]) == [ours.encode(text) for text in texts[:50]]


@pytest.mark.parametrize("name", ["Llama 2", "Mistral"])
def test_bytes_of_no_character_leave_those_beside_them_whole(name, peers):
    ours, encode, decode = next(peers[key] for key in peers if key.startswith(name))
    ids = encode("利率龘靐🙂齉的")
    for first, last in itertools.combinations(range(len(ids) + 1), 2):
        assert ours.decode(ids[first:last]) == decode(ids[first:last]), (first, last)
    assert ours.decode(encode("龘靐")[:-1]) == "龘\ufffd\ufffd"
    zero = ours.token_id("<0x00>")
    for broken in (b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"a\xe5\xe5\xe9\xbe\x98"):
        cut = [*encode("甲"), *(zero + byte for byte in broken)]
        assert ours.decode(cut) == decode(cut)
    broken = [*encode("龘")[:-1], ours.eos_id]
    assert ours.decode(broken) == "\ufffd\ufffd" and ours.decode(broken, skip_special=False) == "\ufffd\ufffd</s>"


# Sentencepiece models of the tests' own


BOOK = [
    "甲公司2024年净利润为3.5亿元，同比增长12.5%。", "债券的久期是指现金流量的加权平均期限。",
    "年利率为3.25%，按年计复利，三年后的本利和约为109.58万元。", "Once upon a time there was a bank.",
    "aaaa bbbb ----- ===== 1000000 哈哈哈哈", "x  y   z\tw",
] * 20


def sentencepiece_folder(folder, **options):
    """(folder, the original) of a small model trained on BOOK."""
    import sentencepiece

    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(BOOK), model_writer=file, minloglevel=2, **{
        "vocab_size": 500, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
        "hard_vocab_limit": False, "character_coverage": 0.995, "num_threads": 1, **options,
    })
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(file.getvalue())
    return folder, sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())


@pytest.mark.parametrize("options", [
    {"remove_extra_whitespaces": False},
    {"remove_extra_whitespaces": False, "add_dummy_prefix": False, "split_digits": True},
    {"remove_extra_whitespaces": True, "split_by_unicode_script": False},
    {"byte_fallback": False, "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True},
    {"remove_extra_whitespaces": False, "user_defined_symbols": ["<0x0A>的", "万元", "  ", "▁▁", "<think>", "年", "3"],
     "control_symbols": ["<|im_start|>", "<|im_end|>"], "add_dummy_prefix": False},
    {"remove_extra_whitespaces": True, "user_defined_symbols": ["万元", "%。"], "split_by_whitespace": False},
], ids=["llama", "baichuan", "squeezed", "unknown", "symbols", "squeezed-symbols"])
def test_sentencepiece_models_of_every_kind(options, tmp_path):
    folder, theirs = sentencepiece_folder(tmp_path, **options)
    ours = Tokenizer(folder)
    assert ours.vocab_size == theirs.get_piece_size() and ours.file == "tokenizer.model"
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_id(), theirs.eos_id()) and ours.adds_bos and not ours.adds_eos
    for text in [*TEXTS, *BOOK[:6], *(" " * n + "a" + "-" * n for n in range(40)), *check.odd(600, seed=3)]:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode([i for i in ids if not theirs.is_unknown(i)]), text
    for text in (" a  年利率5% ", "万元  %。 ", "  "):
        ((ids, offsets),) = ours.encode_offsets([text])
        assert ids == ours.encode(text) and len(ids) == len(offsets)
        covered = "".join(text[a:b] for a, b in offsets)
        assert covered.replace(" ", "") == text.replace(" ", "")
        assert all(a <= b for a, b in offsets) and offsets == sorted(offsets)


def test_chat_tokens_that_take_the_place_of_pieces(tmp_path):
    folder, theirs = sentencepiece_folder(
        tmp_path, user_defined_symbols=["[UNUSED_0]", "[UNUSED_1]"], remove_extra_whitespaces=False
    )
    place = theirs.piece_to_id("[UNUSED_1]")
    more = theirs.get_piece_size()
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "added_tokens_decoder": {str(place): {"content": "<|im_end|>"}, str(more): {"content": "<|plugin|>"}},
        "add_bos_token": False, "eos_token": "<|im_end|>",
    }))
    tokenizer = Tokenizer(folder)
    assert tokenizer.eos_id == place and tokenizer.vocab_size == more + 1 and not tokenizer.adds_bos
    assert tokenizer.encode("甲<|im_end|>", control=True) == [*theirs.encode("甲"), place]
    # No space before a text that begins with a control token.
    assert tokenizer.encode("<|plugin|>甲", control=True)[0] == more
    assert place not in tokenizer.encode("甲<|im_end|>")
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"added_tokens_decoder": {str(more + 3): {"content": "<|plugin|>"}}}
    ))
    with pytest.raises(TokenizerError, match=rf"should have the id {more + 3}, got {more}; tokenizer.model is of"):
        Tokenizer(folder)


@pytest.mark.parametrize(("options", "message"), [
    ({"model_type": "unigram"}, "another algorithm than BPE"),
    ({"normalization_rule_name": "nmt_nfkc"}, "a normaliser"),
    ({"treat_whitespace_as_suffix": True}, "spaces behind words"),
])
def test_sentencepiece_models_that_are_refused(options, message, tmp_path):
    folder, _ = sentencepiece_folder(tmp_path, **options)
    with pytest.raises(TokenizerError, match=f"{message} is not supported; convert it to tokenizer.json"):
        Tokenizer(folder)


def test_damaged_pieces_are_refused(tmp_path):
    from sentencepiece import sentencepiece_model_pb2 as schema

    folder, _ = sentencepiece_folder(tmp_path)
    path = folder / "tokenizer.model"
    whole = path.read_bytes()

    def refused(change, message: str) -> None:
        model = schema.ModelProto.FromString(whole)
        change(model.pieces, [piece for piece in model.pieces if piece.type == 1 and len(piece.piece) > 1])
        path.write_bytes(model.SerializeToString())
        with pytest.raises(TokenizerError, match=message):
            Tokenizer(folder)

    refused(lambda every, longer: setattr(longer[3], "score", longer[7].score), "share a score")
    refused(lambda every, longer: setattr(longer[3], "score", float("nan")), "scores that are no numbers")
    refused(lambda every, longer: setattr(longer[3], "piece", longer[3].piece[0] + "쀍"), "the letter '쀍' stands in")
    refused(lambda every, longer: setattr(longer[3], "piece", longer[4].piece), "two pieces have the same text")
    refused(lambda every, longer: setattr(longer[3], "type", 5), "unused pieces")
    refused(lambda every, longer: setattr(every[0], "type", 3), "no piece for the unknown")
    refused(lambda every, longer: every.pop(), "the letter .* is none itself")


def test_every_truncation_of_a_sentencepiece_model_is_one_line(tmp_path):
    folder, _ = sentencepiece_folder(tmp_path)
    path = folder / "tokenizer.model"
    whole = path.read_bytes()
    pieces = len(read_sentencepiece(path).pieces)
    for cut in range(0, len(whole), 41):
        path.write_bytes(whole[:cut])
        try:
            assert len(read_sentencepiece(path).pieces) <= pieces
        except TokenizerError as error:
            assert "is no sentencepiece model" in str(error) and "\n" not in str(error)
    path.write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(TokenizerError, match="if it is tiktoken's, convert it"):
        Tokenizer(folder)


# tiktoken


def test_broken_tiktoken_files(shared_data, tmp_path):
    lines = (shared_data / "tokenizers" / "qwen1" / "qwen.tiktoken").read_text().splitlines()[:400]
    path = tmp_path / "qwen.tiktoken"
    for at, line, message in (
        (300, "IQ== x", "line 301: wanted a new token in base64 and the rank 300"),
        (300, lines[299], "line 301: wanted a new token"), (300, "%%% 300", "line 301"),
        (12, lines[13], "line 13: .* the rank 12"),
    ):
        path.write_text("\n".join([*lines[:at], line, *lines[at + 1 :]]))
        with pytest.raises(TokenizerError, match=message):
            Tokenizer(tmp_path)
    path.write_text("\n".join(lines[:200]))
    with pytest.raises(TokenizerError, match="has no token for the byte .* not whole"):
        Tokenizer(tmp_path)


def test_qwen_control_tokens(shared_data, tmp_path):
    shutil.copy(shared_data / "tokenizers" / "qwen1" / "qwen.tiktoken", tmp_path)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.vocab_size == 151851 and tokenizer.eos_id == 151643 and tokenizer.bos_id is None
    assert tokenizer.token_id("<|im_start|>") == 151644 and tokenizer.token_id("<|extra_204|>") == 151850
    assert tokenizer.encode("<|im_start|>甲", control=True)[0] == 151644
    assert not {151643, 151644} & set(tokenizer.encode("<|im_start|>甲<|endoftext|>"))


# vocab.json + merges.txt, tokenizer.json


def test_qwen2_folder(peers):
    ours = next(peers[key][0] for key in peers if key.startswith("Qwen2"))
    assert ours.decode(ours.encode(TEXTS[0])) == TEXTS[0]
    assert ours.token_id("<|endoftext|>") == 151643 and not ours.adds_bos and ours.suffix() == []


def test_merges_of_another_family_are_refused(shared_data, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared_data / "tokenizers" / "qwen2" / name, tmp_path)
    with pytest.raises(TokenizerError, match="merges.txt of None are not supported"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(TokenizerError, match="of 'GPT2Tokenizer' are not supported, only Qwen2Tokenizer's"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    assert Tokenizer(tmp_path).vocab_size == 151643


@pytest.mark.parametrize("file", ["tokenizer.model", "tokenizer.json"])
def test_what_stands_around_a_text_is_what_transformers_puts_there(file, shared_data, tmp_path):
    import transformers

    original = shared_data / "tokenizers" / "llama2"
    settings = json.loads((original / "tokenizer_config.json").read_text())
    for bos, eos in ((True, False), (False, True)):
        if file == "tokenizer.json":
            backend = Backend.from_file(str(original / file))
            template = [*["<s>"] * bos, "$A", *["</s>"] * eos]
            backend.post_processor = processors.TemplateProcessing(
                single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
            )
            backend.save(str(tmp_path / file))
            named = {**settings, "add_bos_token": True, "add_eos_token": True}
        else:
            shutil.copy(original / file, tmp_path)
            named = {**settings, "add_bos_token": bos, "add_eos_token": eos}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
        ours, theirs = Tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert (ours.adds_bos, ours.adds_eos) == (bos, eos)
        assert [*ours.prefix(), *ours.encode("利率5%"), *ours.suffix()] == theirs("利率5%")["input_ids"]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**named, "add_bos_token": False}))
        assert not Tokenizer(tmp_path).adds_bos


def test_specials_named_in_the_settings_only(tmp_path):
    words = {"甲": 0, "<eos>": 1, "<pad>": 2, "<call>": 3, "<plain>": 4}
    Backend(models.BPE(words, [])).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({
        "eos_token": {"content": "<eos>"}, "pad_token": "<pad>", "additional_special_tokens": ["<call>", "<absent>"],
        "added_tokens_decoder": {
            "5": {"content": "<new>", "special": True}, "4": {"content": "<plain>", "special": False},
        },
    }))
    tokenizer = Tokenizer(tmp_path)
    ids = [0, 1, 2, 3, 4, 5, 0]
    assert tokenizer.decode(ids).replace(" ", "") == "甲<plain>甲"
    assert tokenizer.decode(ids, skip_special=False).replace(" ", "") == "甲<eos><pad><call><plain><new>甲"
    assert tokenizer.encode("甲<eos>甲<call>") == [0, 0] and tokenizer.encode("<eos><new>", control=True) == [1, 5]
    assert set(tokenizer.special_ids()) == {"<eos>", "<pad>", "<call>", "<plain>", "<new>"}
    tokenizer.check_fits(6)
    with pytest.raises(TokenizerError, match="the tokenizer has 6 tokens, the model only 5; it is of another model"):
        tokenizer.check_fits(5)


def test_llama_tokenizer_wants_bos(shared_data):
    tokenizer = Tokenizer(shared_data / "weights" / "tinystories-656k")
    assert tokenizer.bos_id is not None and tokenizer.adds_bos
    assert tokenizer.prefix() == [tokenizer.bos_id]


def test_offsets_point_into_the_text(tmp_path):
    backend = byte_level_bpe()
    backend.train_from_iterator(
        ["年利率5%，本金100万元。"] * 4, trainers.BpeTrainer(vocab_size=300, show_progress=False)
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    text = "年利率5%，本金100万元。"
    ((ids, offsets),) = tokenizer.encode_offsets([text])
    assert len(ids) == len(offsets)
    digits = [text[a:b] for a, b in offsets if text[a:b].isdigit()]
    assert digits == list("5100")


def test_single_digits_and_saved_folder(tmp_path):
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


@pytest.mark.parametrize("file, key", [
    ("tokenizer_config.json", "additional_special_tokens"), ("tokenizer_config.json", "extra_special_tokens"),
    ("tokenizer_config.json", "added_tokens_decoder"), ("tokenizer_config.json", "eos_token"),
    ("special_tokens_map.json", "bos_token"), ("added_tokens.json", "<x>"), ("config.json", "eos_token_id"),
    ("config.json", "bos_token_id"), ("generation_config.json", "eos_token_id"), ("tokenizer.json", "model"),
    ("tokenizer.json", "decoder"), ("tokenizer.json", "added_tokens"),
])
def test_whatever_stands_in_a_file_is_read_or_refused_in_one_line(file, key, tmp_path):
    whole = json.loads(Backend(models.BPE({"甲": 0, "<eos>": 1}, [])).to_str())
    read = 0
    for value in (None, True, -1, 1, 2, 10**30, 1.5, "x" * 10_000, [], [[1]], [1, None, "a"], {}, {"1": {}}, {"a": 1}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
        given = {**(whole if file == "tokenizer.json" else {}), key: value}
        (tmp_path / file).write_text(json.dumps(given))
        try:
            tokenizer = Tokenizer(tmp_path)
        except TokenizerError as error:
            assert "\n" not in str(error) and len(str(error)) < 400 + len(str(tmp_path))
            continue
        read += 1
        assert tokenizer.encode("甲") == [0] and all(isinstance(id_, int) for id_ in tokenizer.eos_ids)
    assert read > 0 or key == "model"


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
