"""Choice questions: reading every kind of file, refusals, prompts and scored spans."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from numllm.errors import DataError
from numllm.questions import (
    HEADER,
    LETTERS,
    Encoded,
    Question,
    encode_continuations,
    encode_letters,
    encode_options,
    extract_answer,
    fit_letters,
    has_digit,
    is_numeric,
    letter_ids,
    letter_prompt,
    letter_tokens,
    likelihood_parts,
    numeric_kind,
    read_questions,
)
from numllm.tokenizer import Tokenizer, byte_level_bpe

TEXTS = [
    "某企业年初存货100万元，本年购进250万元，年末存货80万元。", "债券的久期是指____。\nA. 久期\nB. 期限\n答案：",
    "年利率为3.25%，按年计复利，三年后的本利和约为109.58万元。", "Once upon a time the bank paid 5% a year.",
] * 4


def byte_tokenizer(folder: Path, *, merges: int = 120, specials: tuple[str, ...] = ("<bos>", "<eos>"), **config):
    """A byte-level tokenizer trained on TEXTS, opened from files as a checkpoint's would be."""
    backend = byte_level_bpe()
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=256 + len(specials) + merges, special_tokens=list(specials), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))
    return save_tokenizer(backend, folder, eos_token="<eos>", **config)


def save_tokenizer(backend: Backend, folder: Path, **config) -> Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return Tokenizer.open(folder)


def joining_tokenizer(folder: Path, words: tuple[str, ...]) -> Tokenizer:
    """A tokenizer of single characters and the given longer words, without pre-tokenisation."""
    alphabet = sorted(set("".join(TEXTS) + "ABCDE.答案： \n"))
    vocabulary = {"<eos>": 0}
    merges = []
    for character in alphabet:
        vocabulary[character] = len(vocabulary)
    for word in words:
        merges.append((word[:-1], word[-1]))
        vocabulary[word] = len(vocabulary)
    backend = Backend(models.BPE(vocabulary, merges, unk_token=None))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken("<eos>", special=True)])
    return save_tokenizer(backend, folder, eos_token="<eos>")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def question(**fields) -> Question:
    given_ = {"id": "q", "question": "利率是____。", "options": ("3%", "4%", "5%", "6%"), "answer": "B", **fields}
    return Question(**given_)


# Reading


def test_fineval_splits_counts_and_digit_rule(shared_data):
    root = shared_data / "questions" / "fineval"
    quirks: Counter[str] = Counter()
    val = read_questions([root], quirks=quirks)
    dev, test = (read_questions(root, split=split) for split in ("dev", "test"))
    assert [len(val), len(dev), len(test)] == [1151, 170, 3340]
    assert quirks == {"stray spaces": 10}
    assert all(q.answer for q in val + dev) and not any(q.answer for q in test)
    assert len({q.id for q in val + dev + test}) == 1151 + 170 + 3340
    digits = Counter(q.domain for q in val if has_digit(q))
    assert digits == {"Finance": 77, "Economy": 61, "Accounting": 86, "Certificate": 94}
    assert Counter(q.domain for q in val) == {
        "Finance": 305, "Economy": 207, "Accounting": 305, "Certificate": 334,
    }
    first = val[0]
    assert (first.id, first.subject, first.source) == ("accounting_val:0", "会计", "accounting_val.csv")
    assert {q.subject for q in dev} == {q.subject for q in val}


def test_splits_are_found_from_any_path_and_never_mixed(shared_data):
    root = shared_data / "questions" / "fineval"
    file = root / "val" / "accounting_val.csv"
    assert {q.source for q in read_questions(file)} == {"accounting_val.csv"}
    assert {q.source for q in read_questions(file, split="dev")} == {"accounting_dev.csv"}
    assert len(read_questions(root / "val", split="dev")) == 170
    assert len(read_questions(root, split="heldout")) == 1151
    for path in (root, root / "val", file):
        with pytest.raises(DataError, match="no split 'train'"):
            read_questions(path, split="train")


def test_fin_eva_files_of_other_shapes(shared_data):
    folder = shared_data / "questions" / "fin-eva" / "data"
    quirks: Counter[str] = Counter()
    read = read_questions(folder / "Ant", quirks=quirks)
    assert len(read) == 8444 and {len(q.options) for q in read} == {2, 3, 4, 5} and any(q.context for q in read)
    assert quirks == {
        "byte-order marks": 33, "empty options dropped": 10, "yes/no questions": 1250, "stray spaces": 4,
    }
    assert {q.domain for q in read} == {"内容生成", "安全合规", "金融知识", "金融认知", "金融逻辑"}
    # The first 71 rows of each of the 33 files have answers.
    assert Counter(q.source for q in read if q.answer) == Counter(dict.fromkeys({q.source for q in read}, 71))
    assert {q.options for q in read if q.domain == "安全合规"} == {("是", "否")}
    sufe = read_questions(folder / "SUFE")
    assert len(sufe) == 1071 and {q.domain for q in sufe} == {"Finance", "Economy", "Accounting", "Certificate"}


def csv_file(folder: Path, text: str, name: str = "tax.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_csv_of_other_spellings(tmp_path):
    file = csv_file(tmp_path, '\ufeff,Question,A,B,C,D,Answer\n7, 税率 ,1 ,2,3,,ｂ \n7,"甲,\n乙",1,2,3,4,\n')
    quirks: Counter[str] = Counter()
    first, second = read_questions(file, quirks=quirks)
    assert first == question(
        id="tax:7", question="税率", options=("1", "2", "3"), answer="B", subject="tax", source="tax.csv"
    )
    assert (second.id, second.question, second.answer) == ("tax:7#2", "甲,\n乙", None)
    assert quirks == {
        "byte-order marks": 1, "stray spaces": 3, "empty options dropped": 1, "repeated ids": 1,
    }


def test_numct_and_concept_rows(tmp_path):
    rows = [
        {"id": "n1", "question": "利率是____。", "options": ["3%", "4%", "5%", "6%"], "answer": "B", "context": "甲。",
         "number": {"text": "4%", "value": 0.04, "unit": "%", "kind": "rate"}, "source_id": "book-1",
         "distractors": ["document", "perturbed", "perturbed"], "split": "train"},
        {"subject": "货币", "question": "叫作____。", "options": ["甲", "乙"], "answer": "A", "split": "heldout"},
        {"question": "下列正确的是", "options": ["甲", "乙", "丙"]},
    ]
    file = tmp_path / "numct.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    first, second, third = read_questions([tmp_path])
    assert first == question(
        id="n1", context="甲。", number=rows[0]["number"], source="book-1", cloze=True
    )
    assert (second.id, second.subject, second.cloze) == ("numct:2", "货币", True)
    assert (third.answer, third.cloze, third.source) == (None, False, "numct.jsonl")
    assert [q.id for q in read_questions(file, split="train")] == ["n1", "numct:3"]
    assert [q.id for q in read_questions(file, split="heldout")] == ["numct:2", "numct:3"]
    with pytest.raises(DataError, match="line 3: a cloze question has exactly one blank"):
        read_questions(file, format="numct")


CFLUE = [
    {"名称": "期货从业资格", "task": "单项选择题", "question": "保证金比例为____。",
     "choices": "{'A': '5%', 'B': '8%'}", "answer": "B", "analysis": "略"},
    {"名称": "基金从业资格", "task": "多项选择题", "question": "基金包括（&amp;nbsp;）。",
     "choices": "{'A': '股票基金', 'B': '债券基金', 'C': '存款'}", "answer": "BA", "analysis": None},
    {"名称": "反假货币知识", "task": "判断题", "question": "纸币有水印。（）", "choices": {"A": "对", "B": "错"},
     "answer": "A"},
    {"名称": "反假货币知识", "task": "单项选择题", "question": "面额最大的是", "choices": "{'A': '百元', 'B': '十元'}",
     "answer": "D"},
    {"名称": "反假货币知识", "task": "单项选择题", "question": "唯一的", "choices": "{'A': '百元'}", "answer": "A"},
]


def test_cflue_lists(tmp_path):
    file = tmp_path / "knowledge.json"
    file.write_text(json.dumps(CFLUE, ensure_ascii=False), encoding="utf-8")
    quirks: Counter[str] = Counter()
    single, several, judged = read_questions(file, quirks=quirks, multiple="set", strict=False)
    assert (single.options, single.answer, single.subject, single.cloze) == (("5%", "8%"), "B", "期货从业资格", False)
    assert (several.answer, several.multiple, several.domain) == ("AB", True, "多项选择题")
    assert several.question == "基金包括（\xa0）。"
    assert (judged.options, judged.answer, single.explanation) == (("对", "错"), "A", "略")
    assert quirks == {
        "choices written as a string": 4, "answers of several letters": 1, "HTML entities": 1,
        "set aside: answers outside the options": 1, "set aside: too few or too many options": 1,
    }
    skipped: Counter[str] = Counter()
    assert len(read_questions(file, quirks=skipped, multiple="skip", strict=False)) == 2
    assert skipped["set aside: several right options"] == 1
    with pytest.raises(DataError, match="question 2: several options may be right"):
        read_questions(file, strict=False)
    with pytest.raises(DataError, match="question 4: the answer must be one of A, B, got 'D'"):
        read_questions(file, multiple="set")


def test_agieval_lines(tmp_path):
    file = tmp_path / "exam.jsonl"
    file.write_text("\n".join(map(json.dumps, [
        {"passage": "甲。", "question": "利率？", "options": ["(A)3%", "(B) 4%", "(C)5%", "(D)6%"], "label": "C"},
        {"passage": None, "question": "哪些？", "options": ["(A)1", "(B)2", "(C)3"], "label": ["A", "C"]},
    ])), encoding="utf-8")
    quirks: Counter[str] = Counter()
    first, second = read_questions(file, quirks=quirks, multiple="set")
    assert (first.context, first.options, first.answer) == ("甲。", ("3%", "4%", "5%", "6%"), "C")
    assert (second.answer, second.multiple, quirks["letters before options"]) == ("AC", True, 2)


def test_cmmlu_has_a_test_split_with_answers_and_the_same_names(tmp_path):
    for split in ("dev", "test"):
        (tmp_path / split).mkdir()
        csv_file(tmp_path / split, f",Question,A,B,C,D,Answer\n0,{split}？,1,2,3,4,C\n", "accounting.csv")
    assert [q.question for q in read_questions(tmp_path)] == ["test？"]
    assert [q.question for q in read_questions(tmp_path / "test" / "accounting.csv", split="dev")] == ["dev？"]
    (mapped,) = read_questions(tmp_path, subjects={"accounting": ["accounting", "会计学", "Business"]})
    assert (mapped.subject, mapped.domain, mapped.answer) == ("会计学", "Business", "C")
    with pytest.raises(DataError, match="the subject map: 'accounting' must be"):
        read_questions(tmp_path, subjects={"accounting": "会计"})


def test_files_of_questions_that_cannot_be_asked(tmp_path):
    file = csv_file(tmp_path, "question,A,B,answer\n问,1,,A\n,1,2,A\n问,1,2,C\n")
    quirks: Counter[str] = Counter()
    with pytest.raises(DataError, match="holds no questions that can be asked"):
        read_questions(file, strict=False, quirks=quirks)
    assert quirks["set aside: too few or too many options"] == quirks["set aside: empty questions"] == 1
    assert quirks["set aside: answers outside the options"] == 1


GOOD = "id,question,A,B,answer\n0,问,1,2,A\n"


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.csv", "", "wanted the columns question, A, B"),
    ("a.csv", "id,question,A,answer\n0,问,1,A\n", "wanted the columns question, A, B"),
    ("a.csv", "id,question,A,B,B,answer\n", "once each"),
    ("a.csv", "id,question,A,B,C,D,E,F,answer\n", "unknown column 'f'"),
    ("a.csv", "id,question,A,B\n", "holds no questions"),
    ("a.csv", GOOD + "1,问,1,2\n", "line 3: wanted 5 columns, got 4"),
    ("a.csv", GOOD + "1,问,1,2,D\n", "line 3: the answer must be one of A, B, got 'D'"),
    ("a.csv", GOOD + "1,问,1,2,AB\n", "line 3: several options may be right (answer AB)"),
    ("a.csv", GOOD + "1,问,1,,A\n", "line 3: wanted 2 to 5 options, got 1"),
    ("a.csv", GOOD + "1,问,,2,A\n", "line 3: an option is empty"),
    ("a.csv", GOOD + "1, ,1,2,A\n", "line 3: the question is empty"),
    ("a.csv", GOOD + '1,"问,1,2,A\n', "not valid CSV"),
    ("a.jsonl", '{"question": "问", "options": ["1", "2"]}\n{"question"', "line 2: not valid JSON"),
    ("a.jsonl", '{"question": "问", "options": ["1"]}', "line 1: wanted 2 to 5 options, got 1"),
    ("a.jsonl", '{"question": "问", "options": [1, 2]}', "line 1: options must be a list of texts"),
    ("a.jsonl", '{"question": "问", "choices": {"A": "1", "C": "2"}}', "line 1: choices must go by letters"),
    ("a.json", '[{"question": "问", "choices": "{\'A\': open(1)}"}]', "question 1: choices is a string that is no"),
    ("a.json", '{"question": "问"}', "wanted a JSON list of questions, got dict"),
    ("a.json", '[{"question": "问",\n "choices": }]', "not valid JSON: Expecting value at line 2"),
    ("a.json", '["问"]', "question 1: wanted a JSON object, got str"),
    ("a.jsonl", '{"options": ["1", "2"]}', "line 1: the question is empty"),
    ("a.jsonl", '{"question": ["问"], "options": ["1", "2"]}', "line 1: question must be text, got list"),
    ("a.jsonl", '{"question": "问", "options": ["1", "2"], "answer": "C"}', "one of A, B, got 'C'"),
    ("a.jsonl", '{"question": "问", "options": ["1", "2"], "number": 3}', "number must be an object"),
    ("a.jsonl", "\n", "holds no questions"),
    ("a.txt", "问", "wanted a .csv or .jsonl or .json file"),
])
def test_broken_files_are_one_line_errors(name, text, message, tmp_path):
    with pytest.raises(DataError) as caught:
        read_questions(csv_file(tmp_path, text, name))
    assert message in str(caught.value) and "\n" not in str(caught.value) and name in str(caught.value)


def test_missing_and_empty_places(tmp_path):
    for path, message in ((tmp_path / "none", "no such file or folder"), (tmp_path, "holds no questions")):
        with pytest.raises(DataError, match=message):
            read_questions(path)
    with pytest.raises(DataError, match="no path: no questions"):
        read_questions([])
    with pytest.raises(DataError, match="must be one of auto"):
        read_questions(tmp_path, format="xml")
    (tmp_path / "val").mkdir()
    csv_file(tmp_path / "val", GOOD, "tax_val.csv")
    with pytest.raises(DataError, match="no such file or folder"):
        read_questions(tmp_path, split="test")
    for broken, message in (("[1]", "wanted a JSON object"), ('{"tax": "税"}', "must be \\[name, Chinese name")):
        (tmp_path / "subject_mapping.json").write_text(broken, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            read_questions(tmp_path)


@pytest.mark.parametrize("fields", [
    {"options": ("1",)}, {"options": tuple("123456")}, {"answer": "E"}, {"answer": ""}, {"question": " "},
    {"cloze": True, "question": "利率是"}, {"options": ("1", " ")},
])
def test_questions_of_parts_that_do_not_fit(fields):
    with pytest.raises(ValueError):
        question(**fields)


def test_reading_needs_neither_torch_nor_transformers():
    heavy = "('torch', 'transformers', 'tokenizers')"
    code = f"import sys, numllm.questions; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("stem", "options", "kind"), [
    ("本金20万元，年利率5%，一年的利息是", ("1万元", "2万元", "3万元", "4万元"), "calculation"),
    ("增值税的基本税率是", ("13%", "9%", "6%", "3%"), "recall"),
    ("本金20万元应记入", ("银行存款", "应收账款", "固定资产", "存货"), "stem"),
    ("下列说法正确的是", ("税率一律为13%且不得减免", "可以免税", "可以减税", "都不对"), "options"),
    ("销售额100万元，下列说法正确的是", ("应按照13%的税率计算缴纳增值税", "可以免税", "可以减税", "都不对"), "both"),
    ("下列说法正确的是", ("甲", "乙", "丙", "丁"), None),
])
def test_numeric_kinds(stem, options, kind):
    asked = question(question=stem, options=options)
    assert numeric_kind(asked) == kind and is_numeric(asked) == (kind is not None)


@pytest.mark.parametrize(("text", "answer"), [
    ("所以答案是B。", "B"), ("综上，故选（C）。", "C"), ("答案：D", "D"), ("**答案：A**", "A"), ("答案应为 B", "B"),
    ("先看A，再看B。正确答案是选项C。", "C"), ("答案是A。不对，重新计算，答案是B。", "B"), ("C", "C"),
    ("B. 久期", "B"), (" （D） ", "D"), ("A和B都有道理。", None), ("答案不是A", None), ("", None),
    ("我不知道", None), ("答案是AB", None), ("答案是E", None),
    ("ABS是资产支持证券", None), ("答案是APR", None), ("1. 5%", None),
])
def test_answers_are_read_and_never_guessed(text, answer):
    assert extract_answer(text, "ABCD") == answer


def test_sets_are_read_whole():
    assert extract_answer("所以答案是A、C和D。", "ABCD", multiple=True) == "ACD"
    assert extract_answer("答案：DB", "ABCD", multiple=True) == "BD"


def test_chain_of_thought_prompts():
    shot = question(id="d", question="税率是", options=("1", "2"), answer="A", explanation="按法规定。")
    assert letter_prompt(question(options=("1", "2")), [shot], "头", steps=True) == (
        "头\n\n税率是\nA. 1\nB. 2\n答案：让我们一步一步思考，\n按法规定。\n所以答案是A。\n\n"
        "利率是____。\nA. 1\nB. 2\n答案：让我们一步一步思考，\n"
    )
    with pytest.raises(ValueError, match="must have explanations"):
        letter_prompt(question(), [question(id="d")], steps=True)


def test_numeric_rules():
    assert is_numeric(question(question="下列说法", options=("利率为5%", "甲"), answer="A"))
    assert not is_numeric(question(question="下列说法", options=("乙", "甲"), answer="A"))
    assert is_numeric(question(question="____", options=("乙", "甲"), answer="A", number={"text": "三"}))
    assert has_digit(question(question="第3章", options=("乙", "甲"), answer="A"))
    assert has_digit(question(context="３", question="章", options=("乙", "甲"), answer="A"))


# Prompts


def test_letter_prompt_is_finevals():
    example = question(id="d", question="税率是", options=("1", "2"), answer="A")
    asked = question(context="甲。", options=("1", "2", "3", "4"))
    assert letter_prompt(asked) == "甲。利率是____。\nA. 1\nB. 2\nC. 3\nD. 4\n答案："
    assert letter_prompt(asked, [example], HEADER.format(subject="会计")) == (
        "以下是中国关于会计考试的单项选择题，请选出其中的正确答案。\n\n"
        "税率是\nA. 1\nB. 2\n答案：A\n\n甲。利率是____。\nA. 1\nB. 2\nC. 3\nD. 4\n答案："
    )
    with pytest.raises(ValueError, match="must have answers"):
        letter_prompt(asked, [question(answer=None)])


def test_long_prompts_lose_examples_then_header_then_their_beginning(tokenizer):
    shots = [question(id=str(i), question=f"第{i}题") for i in range(3)]
    asked = question()

    def size(count, header=None):
        return len(tokenizer.encode(letter_prompt(asked, shots[:count], header)))

    header = HEADER.format(subject="会计")
    for kept in (3, 2, 1):
        fitted = fit_letters(asked, tokenizer, max_length=size(kept, header), shots=shots, header=header)
        assert (fitted.shots, fitted.cut) == (kept, 0)
        assert tokenizer.decode(fitted.ids) == fitted.text == letter_prompt(asked, shots[:kept], header)
    bare = fit_letters(asked, tokenizer, max_length=size(1, header) - 1, shots=shots, header=header)
    assert (bare.text, bare.shots, bare.cut) == (letter_prompt(asked), 0, 0)
    assert fit_letters(asked, tokenizer, max_length=size(0), header=header).text == letter_prompt(asked)
    short = fit_letters(asked, tokenizer, max_length=size(0) - 4)
    assert short.cut == 4 and short.ids == tuple(tokenizer.encode(letter_prompt(asked)))[4:]
    assert encode_letters(asked, tokenizer, max_length=size(0) - 4) == short.ids


def test_bos_stands_in_front_and_survives_cutting(shared_data):
    llama = Tokenizer.open(shared_data / "tokenizers" / "llama2")
    whole = encode_letters(question(), llama, max_length=4096)
    assert whole == (llama.bos_id, *llama.encode(letter_prompt(question())))
    short = encode_letters(question(), llama, max_length=20)
    assert len(short) == 20 and short[0] == llama.bos_id and short[1:] == whole[-19:]
    for part in encode_options(question(context="甲" * 100), llama, max_length=24):
        assert len(part.ids) == 24 and part.ids[0] == llama.bos_id and part.cut > 0


# Letters


@pytest.mark.parametrize(("name", "expected"), [
    ("tokenizers/qwen2", ((32,), (33,), (34,), (35,), (36,))),
    ("tokenizers/minimind", ((68,), (69,), (70,), (71,), (72,))),
    ("tokenizers/llama2", ((29909, 319), (29933, 350), (29907, 315), (29928, 360), (29923, 382))),
    ("weights/tinystories-656k", ((26,), (27,), (28,), (29,), (30,))),
])
def test_letters_of_real_tokenizers(name, expected, shared_data):
    tokenizer = Tokenizer.open(shared_data / name)
    tokens = letter_tokens(tokenizer)
    assert tokens.after == expected and not tokens.joins
    assert letter_ids(tokenizer) == [ids[0] for ids in expected]
    # What training puts after the prompt is how the text itself is tokenised.
    prompt = letter_prompt(question())
    for letter, id_ in zip(LETTERS, letter_ids(tokenizer), strict=True):
        assert tokenizer.encode(prompt + letter) == [*tokenizer.encode(prompt), id_]


def test_letters_joined_to_the_colon(tmp_path):
    tokenizer = joining_tokenizer(tmp_path, ("：A", "：B", "：C"))
    tokens = letter_tokens(tokenizer)
    assert tokens.joins
    assert tokens.joined == (*(tokenizer.token_id(f"：{letter}") for letter in "ABC"), None, None)
    assert tokens.colon == tokenizer.token_id("：")
    assert tokens.after == tuple((tokenizer.token_id(letter),) for letter in LETTERS)


def test_letters_that_are_no_single_tokens(tmp_path):
    backend = Backend(models.BPE({"<unk>": 0, "答": 1}, [], unk_token="<unk>"))
    with pytest.raises(DataError, match="two option letters the same token"):
        letter_ids(save_tokenizer(backend, tmp_path / "unk"))
    pieces = {"<eos>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    backend = Backend(models.BPE(pieces, [], byte_fallback=True))
    assert len(letter_ids(save_tokenizer(backend, tmp_path / "bytes"))) == 5
    vocabulary = {"‿": 0, "A": 1, "B": 2, "C": 3, "D": 4, "E": 5, "\n": 6, "答": 7, "案": 8, "：": 9}
    backend = Backend(models.BPE(vocabulary, []))
    backend.normalizer = normalizers.Replace("A", "‿A")
    with pytest.raises(DataError, match="no single token for the option letter 'A'"):
        letter_ids(save_tokenizer(backend, tmp_path / "two"))


# Spans


def test_likelihood_parts():
    assert likelihood_parts(question(context="甲。")) == ("甲。利率是", ["3%", "4%", "5%", "6%"], "。")
    assert likelihood_parts(question(question="_____上升")) == ("", ["3%", "4%", "5%", "6%"], "上升")
    for text in ("利率是", "____和____"):
        assert likelihood_parts(question(question=text))[0::2] == (f"{text}\n答案：", "")


def spans(tokenizer: Tokenizer, part: Encoded) -> tuple[str, str, str]:
    (a, b), (c, d) = part.option, part.rest
    return tuple(tokenizer.decode(part.ids[slice(*cut)]) for cut in ((0, a), (a, b), (c, d)))


@pytest.mark.parametrize("name", ["qwen2", "minimind"])
def test_spans_of_options(name, shared_data):
    tokenizer = Tokenizer.open(shared_data / "tokenizers" / name)
    asked = question(context="甲公司存款。", question="利率是____左右。")
    for option, part in zip(asked.options, encode_options(asked, tokenizer, max_length=99), strict=True):
        assert spans(tokenizer, part) == ("甲公司存款。利率是", option, "左右。")
        assert part.rest[1] == len(part.ids) and part.cut == 0


def test_tokens_that_straddle_belong_to_the_option(tmp_path):
    tokenizer = joining_tokenizer(tmp_path, ("为3", "%，"))
    parts = encode_continuations("利率为", ["3.25%", "5%"], "，按年计", tokenizer, max_length=50)
    assert spans(tokenizer, parts[0]) == ("利率", "为3.25%，", "按年计")
    assert spans(tokenizer, parts[1]) == ("利率为", "5%，", "按年计")


def test_nothing_before_the_option(tokenizer, tmp_path):
    asked = question(question="____，按年计")
    for part in encode_options(asked, tokenizer, max_length=50):
        assert part.ids[0] == tokenizer.eos_id and part.option[0] == 1
    bare = byte_tokenizer(tmp_path, specials=())
    bare.eos_id = None
    with pytest.raises(DataError, match="question q: nothing stands before the option '3%'"):
        encode_options(asked, bare, max_length=50)


def test_options_too_long_for_the_length(tokenizer):
    asked = question(context="存款。" * 20)
    whole = encode_options(asked, tokenizer, max_length=1000)[0]
    scored = whole.rest[1] - whole.option[0]
    tight = encode_options(asked, tokenizer, max_length=scored + 1)[0]
    assert tight.ids == whole.ids[-scored - 1 :] and tight.option[0] == 1
    with pytest.raises(DataError, match=f"question q: the option '3%' .* have {scored} tokens, too long"):
        encode_options(asked, tokenizer, max_length=scored)


@settings(max_examples=150, deadline=None)
@given(
    st.text("利率为年3.5%，a🙂\n ", max_size=12), st.text("3.25%万为a🙂", min_size=1, max_size=6),
    st.text("，。按%a \n", max_size=6), st.integers(4, 60),
)
def test_spans_cover_the_option_and_what_follows(tokenizer, stem, option, rest, length):
    ids = tokenizer.encode(stem + option + rest)
    try:
        (part,) = encode_continuations(stem, [option], rest, tokenizer, max_length=length)
    except DataError:
        assert len(ids) > length - 2
        return
    (a, b), (c, d) = part.option, part.rest
    assert 1 <= a < b == c <= d == len(part.ids) <= length
    assert list(part.ids[-len(ids) + part.cut :]) == ids[part.cut :]
    assert option in tokenizer.decode(part.ids[a:b])
    assert tokenizer.decode(part.ids[c:d]).strip("\N{REPLACEMENT CHARACTER}") in rest
