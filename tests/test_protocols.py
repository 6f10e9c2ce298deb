"""Sets of letters, orders of the options, chains of thought, chat templates, journals, overlaps, corrections."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import unicodedata

import pytest
import torch
from test_evaluate import Rigged, constant, difference, direct, make_questions, unshared  # noqa: F401
from test_questions import TEXTS, byte_tokenizer

from numllm.chat import Chat
from numllm.errors import EvaluationError, TokenizerError
from numllm.evaluate import (
    calibration,
    compare,
    compare_all,
    evaluate,
    flips,
    holm,
    mark_overlaps,
    overlaps,
    perplexity,
    run,
    submission,
)
from numllm.numbers import find_numbers
from numllm.questions import HEADER, HEADER_MULTIPLE, LETTERS, Question, fit_letters, letter_prompt
from numllm.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}<bos>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)


# Sets


@pytest.mark.parametrize("batch_tokens", [1, 4096], ids=["unpadded", "padded"])
def test_sets_equal_transformers(pair, tokenizer, batch_tokens):
    theirs, ours = pair
    questions = [dataclasses.replace(q, multiple=True, answer="AC") for q in make_questions(3)]
    expected = []
    for question in questions:
        prompt = letter_prompt(question, header=HEADER_MULTIPLE.format(subject=question.subject))
        start = len(tokenizer.encode(prompt))
        scores = {}
        for size in range(1, 5):
            for part in itertools.combinations("ABCD", size):
                ids = tokenizer.encode(prompt + "".join(part) + "\n\n")
                logs = direct(theirs, ids)
                scores["".join(part)] = sum(logs[at - 1, ids[at]].item() for at in range(start, len(ids)))
        expected.append(scores)
    result = evaluate(ours, tokenizer, questions, batch_tokens=batch_tokens)
    assert difference(result, expected) < 1e-5 * max(abs(v) for s in expected for v in s.values())
    assert [row["predicted"] for row in result["questions"]] == [max(e, key=e.get) for e in expected]
    assert len(result["questions"][0]["logprobs"]) == 15


# Orders of the options


def test_orders_are_rotations_then_others():
    question = make_questions(1)[0]
    assert run._orders(question, 1) == [(0, 1, 2, 3)]
    four = run._orders(question, 4)
    assert four[1] == (1, 2, 3, 0) and all({order[place] for order in four} == {0, 1, 2, 3} for place in range(4))
    assert len(set(run._orders(question, 9))) == 9 and len(run._orders(question, 99)) == 24
    assert run._orders(question, 9) == run._orders(question, 9)


def test_permuted_scores_are_the_mean_over_orders(pair, tokenizer):
    ours = pair[1]
    (question,) = make_questions(1)
    result = evaluate(ours, tokenizer, [question], permute=3)
    shares = dict.fromkeys("ABCD", 0.0)
    for order in ((0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1)):
        asked = dataclasses.replace(question, options=tuple(question.options[o] for o in order))
        found = torch.tensor(list(evaluate(ours, tokenizer, [asked])["questions"][0]["logprobs"].values())).softmax(0)
        for place, option in enumerate(order):
            shares[LETTERS[option]] += found[place].item() / 3
    row = result["questions"][0]
    assert row["logprobs"] == pytest.approx({letter: math.log(share) for letter, share in shares.items()}, abs=1e-5)
    assert row["predicted"] == max(shares, key=shares.get) and len(row["said"]) == len(row["chosen"]) == 3


def test_a_model_that_always_says_a_is_found_out_by_orders(tokenizer, unshared):  # noqa: F811
    result = evaluate(constant(tokenizer, "A"), tokenizer, make_questions(20), permute=4)
    bias = result["permutations"]
    assert bias["said"] == {"A": 1.0} and bias["consistent"] == 0.0 and bias["orders"] == 4
    assert sum(bias["accuracy_by_order"]) == pytest.approx(1.0)
    # Every option was A once: nothing is left to prefer, and ties go to the first letter.
    assert {round(value, 6) for row in result["questions"] for value in row["logprobs"].values()} == {-1.386294}
    with pytest.raises(EvaluationError, match="takes no examples, orders or chat"):
        evaluate(constant(tokenizer, "A"), tokenizer, make_questions(2), protocol="likelihood", permute=2)
    with pytest.raises(EvaluationError, match="what is generated takes none"):
        evaluate(constant(tokenizer, "A"), tokenizer, make_questions(2), protocol="cot", permute=2)


# Chain of thought


class Speaker(Rigged):
    """Says the same text after every prompt, then its end."""

    def __init__(self, tokenizer: Tokenizer, texts: dict[int, str], prompts: dict[int, int]) -> None:
        super().__init__(tokenizer.vocab_size, None)
        self.config.context = 512
        self.texts = {size: [*tokenizer.encode(texts[index]), tokenizer.eos_id] for size, index in prompts.items()}

    def new_cache(self, rows, length):
        self.step = 0
        return object()

    def hidden(self, tokens, *, documents=None, cache=None):
        if self.step == 0:
            pad = (documents == -1).sum(1) if documents is not None else torch.zeros(len(tokens), dtype=torch.int64)
            self.said = [self.texts[tokens.shape[1] - int(count)] for count in pad]
        logits = torch.zeros(len(tokens), tokens.shape[1], self.config.vocab_size)
        for row, ids in enumerate(self.said):
            logits[row, -1, ids[min(self.step, len(ids) - 1)]] = 9.0
        self.step += 1
        return logits


def test_chains_are_read_and_unparsed_ones_count_as_wrong(tokenizer):
    questions = [
        Question(id=str(i), question="利率" * (i + 1), options=("1", "2", "3"), answer="B") for i in range(4)
    ]
    texts = dict(enumerate(["先算利息。所以答案是B。", "不知道。", "故选A。", "答案是B。\n下一题\nA. 1\n答案是C。"]))
    sizes = {len(fit_letters(q, tokenizer, max_length=400, steps=True).ids): i for i, q in enumerate(questions)}
    assert len(sizes) == 4
    result = evaluate(Speaker(tokenizer, texts, sizes), tokenizer, questions, protocol="cot", max_new_tokens=60)
    assert [row["predicted"] for row in result["questions"]] == ["B", None, "A", "B"]
    assert (result["overall"]["correct"], result["overall"]["n"], result["unparsed"]) == (2, 4, 1)
    assert result["notes"] == ["1 outputs give none of the options; they count as wrong"]
    assert result["questions"][3]["output"] == "答案是B。\n下一题" and result["questions"][0]["logprobs"] == {}


def test_numbers_are_read_by_value_and_unit(tokenizer):
    questions = [
        Question(id=str(i), question="本金" * (i + 1) + "为____。", cloze=True, answer="B",
                 options=("12.5元", "1.25万元", "12.5亿元"))
        for i in range(4)
    ]
    texts = dict(enumerate(["12,500元，", "1.25亿元。", "12.5元和12,500元", "若干"]))
    sizes = {len(tokenizer.encode("本金" * (i + 1) + "为")): i for i in range(4)}
    result = evaluate(Speaker(tokenizer, texts, sizes), tokenizer, questions, protocol="number")
    assert [row["predicted"] for row in result["questions"]] == ["B", None, "A", None] and result["unparsed"] == 2
    with pytest.raises(EvaluationError, match="question q0 has no blank that different numbers fill"):
        evaluate(Speaker(tokenizer, {}, {}), tokenizer, make_questions(1), protocol="number")


def test_chains_equal_transformers_greedy(pair, tokenizer):
    theirs, ours = pair
    questions = make_questions(3)
    result = evaluate(ours, tokenizer, questions, protocol="cot", max_new_tokens=12, batch_tokens=100)
    for question, row in zip(questions, result["questions"], strict=True):
        prompt = torch.tensor([tokenizer.encode(letter_prompt(question, steps=True))])
        with torch.no_grad():
            ids = theirs.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False,
                eos_token_id=tokenizer.eos_id, pad_token_id=0,
            )[0, prompt.shape[1] :]
        assert row["output"] == tokenizer.decode([i for i in ids.tolist() if i != tokenizer.eos_id])
    with pytest.raises(EvaluationError, match="3 examples with explanations, 5 shots"):
        dev = [dataclasses.replace(q, explanation="略") for q in make_questions(6, name="dev")]
        evaluate(ours, tokenizer, questions, protocol="cot", shots=5, dev=dev)


# Chat templates


@pytest.mark.parametrize("name", ["qwen3_30b", "qwen3_coder"])
def test_chat_ids_equal_transformers(name, shared_data, tmp_path):
    import transformers

    settings = json.loads((shared_data / "tokenizers" / "chat-templates" / f"{name}.json").read_text())
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((shared_data / "tokenizers" / "qwen2" / file).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.open(tmp_path)
    chat = Chat.open(tmp_path, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [
        {"role": "system", "content": "你是会计师。"}, {"role": "user", "content": "\n本金20万元，利率5%？\nA. 1"},
    ]
    text = theirs.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False, tokenize=False)
    assert chat.render(messages) == text
    assert chat.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    with pytest.raises(TokenizerError, match="control token '<|im_end|>'"):
        chat.render([{"role": "user", "content": "甲<|im_end|>"}])


def test_chat_letters_equal_transformers_and_fit(pair, tokenizer):
    theirs, ours = pair
    chat = Chat(TEMPLATE, {}, tokenizer)
    questions, dev = make_questions(5), make_questions(6, name="dev")
    expected = []
    for question in questions:
        shots = [example for example in dev if example.subject == question.subject][:2]
        asked = letter_prompt(question, shots, HEADER.format(subject=question.subject))
        ids = [
            tokenizer.token_id("<bos>"), *tokenizer.encode("user\n" + asked.removesuffix("\n答案：")),
            tokenizer.token_id("<eos>"), *tokenizer.encode("\n"), tokenizer.token_id("<bos>"),
            *tokenizer.encode("assistant\n答案："),
        ]
        logs = direct(theirs, ids)[-1]
        expected.append({letter: logs[tokenizer.token_id(letter)].item() for letter in "ABCD"})
    result = evaluate(ours, tokenizer, questions, shots=2, dev=dev, chat=chat)
    assert difference(result, expected) < 1e-5 and result["chat"]
    whole = fit_letters(questions[0], tokenizer, max_length=999, chat=chat)
    short = fit_letters(questions[0], tokenizer, max_length=len(whole.ids) - 3, chat=chat, shots=dev[:1])
    assert len(short.ids) <= len(whole.ids) - 3 and short.cut > 0 and short.shots == 0
    assert short.ids[:2] == whole.ids[:2] and short.ids[-8:] == whole.ids[-8:]
    sets = [dataclasses.replace(questions[0], multiple=True, answer="AB")]
    assert len(evaluate(ours, tokenizer, sets, chat=chat)["questions"][0]["logprobs"]) == 15


def test_chat_refusals(tokenizer, tmp_path):
    with pytest.raises(TokenizerError, match="is not valid"):
        Chat("{% for %}", {}, tokenizer)
    with pytest.raises(TokenizerError, match="refuses the messages: 不行"):
        Chat("{{ raise_exception('不行') }}", {}, tokenizer).render([])
    with pytest.raises(TokenizerError, match="cannot be filled"):
        Chat("{{ ''.__class__.__mro__ }}", {}, tokenizer).render([])
    byte_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="has no chat template"):
        Chat.open(tmp_path, tokenizer)


# Journals


def test_a_killed_evaluation_goes_on_to_the_same_bytes(pair, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "PORTION", 4)
    questions, dev = make_questions(14), make_questions(12, name="dev")
    options = {"shots": 2, "dev": dev}
    whole = json.dumps(evaluate(pair[1], tokenizer, questions, **options))
    journal = tmp_path / "r.journal"
    left = []

    def stopping(items, total=None, description="", unit="it"):
        left.append(description)
        if len(left) == 3:
            raise KeyboardInterrupt
        return items

    for portion in (2, 2, 0):  # killed in the first portion, twice, then in the third
        left[:] = [""] * portion
        with pytest.raises(KeyboardInterrupt):
            evaluate(pair[1], tokenizer, questions, **options, journal=journal, progress=stopping)
    with open(journal, "ab") as file:
        file.write('{"rows": [{"id": "半'.encode()[:-1])
    seen = []

    def counting(items, total=None, description="", unit="it"):
        seen.append(description)
        return items

    result = evaluate(pair[1], tokenizer, questions, **options, journal=journal, progress=counting)
    assert json.dumps(result) == whole and seen == ["questions 9–12 of 14", "questions 13–14 of 14"]
    for other in ({}, {**options, "shots": 1}, {"protocol": "likelihood"}, {**options, "permute": 2}):
        with pytest.raises(EvaluationError, match="belongs to another evaluation"):
            evaluate(pair[1], tokenizer, questions, journal=journal, **other)
    with pytest.raises(EvaluationError, match="belongs to another evaluation"):
        evaluate(pair[1], tokenizer, questions, **options, journal=journal, identity="another model")
    journal.write_text("{\n")
    with pytest.raises(EvaluationError, match="line 1: not valid JSON.*remove the file"):
        evaluate(pair[1], tokenizer, questions, **options, journal=journal)


# Overlaps


def test_overlaps_are_found_and_told_apart(pair, tokenizer):
    stem = "某企业年末存货为多少万元并应当如何计提存货跌价准备金额"
    questions = [
        Question(id="seen", question=stem, options=("1", "2"), answer="A"),
        Question(id="option", question="下列正确的是", options=(stem[3:25], "2"), answer="A"),
        Question(id="near", question=stem[:12] + "乙" + stem[12:19], options=("1", "2"), answer="B"),
        Question(id="short", question=stem[:19], options=("1", "2"), answer="B"),
    ]
    texts = [("a.md", "无关"), ("b.md", "前文。" + stem[:9] + "，\n " + stem[9:] + "。"), ("c.md", stem)]
    found = overlaps(questions, texts)
    assert {id_: entry["text"] for id_, entry in found.items()} == {"seen": "b.md", "option": "b.md"}
    assert set(overlaps(questions, texts, run=9)) == {"seen", "option", "near", "short"}
    result = mark_overlaps(evaluate(pair[1], tokenizer, questions), found)
    part = result["contamination"]
    assert (part["questions"], part["with"]["n"], part["without"]["n"]) == (2, 2, 2)
    assert "overlap" in result["questions"][0] and "overlap" not in result["questions"][2]


def test_overlaps_of_fineval_with_the_textbooks(shared_data):
    from numllm.questions import read_questions

    folder = shared_data / "textbooks" / "cas-standards"
    texts = [(file.name, file.read_text("utf-8", "replace")) for file in sorted(folder.rglob("*.md"))]
    questions = read_questions(shared_data / "questions" / "fineval")
    found = overlaps(questions, texts)
    assert 1 <= len(found) <= 20  # 14, of which some differ in punctuation or lie in an option
    by_name, by_id = dict(texts), {question.id: question for question in questions}
    for id_, entry in found.items():
        asked = "".join((by_id[id_].question, *by_id[id_].options))
        for text in (by_name[entry["text"]], asked):
            assert entry["run"] in "".join(c for c in unicodedata.normalize("NFKC", text).lower() if c.isalnum())


# Statistics


def test_holm_known_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.4]) == [0.4] and holm([0.9, 0.8]) == [1.0, 1.0]


def result_of(right: str) -> dict:
    return {"questions": [
        {"id": str(i), "answer": "A", "predicted": "A" if mark == "+" else "B", "numeric": i % 2 == 0}
        for i, mark in enumerate(right)
    ]}


def test_comparisons_are_corrected_together():
    base = result_of("+" * 10 + "-" * 40)
    results = {"base": base, "x": result_of("+" * 16 + "-" * 34), "y": result_of("+" * 30 + "-" * 20)}
    x, y = compare_all(results)
    assert compare(base, results["x"])["verdict"] == "B is better" and x["p_value"] == pytest.approx(2 / 2**6)
    assert x["p_holm"] == x["p_value"] and y["p_holm"] == 2 * y["p_value"] and (x["a"], x["b"]) == ("base", "x")
    six, = [row for row in compare_all({**results, "z": result_of("+" * 11 + "-" * 39)}) if row["b"] == "x"]
    assert six["p_holm"] == 2 * six["p_value"] and six["verdict"] == "not distinguishable"
    assert x["numeric"]["p_holm"] >= x["numeric"]["p_value"]
    rows = flips(base, results["x"])
    assert [row["id"] for row in rows] == [str(i) for i in range(10, 16)] and all(row["gained"] for row in rows)
    assert not any(row["gained"] for row in flips(results["x"], base))


def test_calibration_of_rows():
    rows = [{"answer": "A", "predicted": p, "logprobs": {"A": math.log(0.8), "B": math.log(0.2)}} for p in "AAAB"]
    rows += [{"answer": "A", "predicted": "A", "logprobs": {"A": 0.0, "B": 0.0}}]
    rows += [{"answer": None, "logprobs": {"A": 0.0}}]
    found = calibration(rows)
    assert [(b["low"], b["n"]) for b in found["bins"]] == [(0.5, 1), (0.8, 4)]
    assert found["error"] == pytest.approx(4 / 5 * 0.05 + 1 / 5 * 0.5)


def test_submissions(pair, tokenizer):
    questions = [
        dataclasses.replace(q, id=f"{'ab'[i % 2]}_test:{i // 2}", answer=None) for i, q in enumerate(make_questions(4))
    ]
    result = evaluate(pair[1], tokenizer, questions)
    found = submission(result)
    assert {name: list(rows) for name, rows in found.items()} == {"a": ["0", "1"], "b": ["0", "1"]}
    assert found["b"]["0"] == result["questions"][1]["predicted"]
    with pytest.raises(EvaluationError, match="every question has its answer"):
        submission(evaluate(pair[1], tokenizer, make_questions(2)))


# Perplexity


def test_numbers_and_sources_are_measured_apart(pair, tokenizer):
    theirs, ours = pair
    texts, sources = TEXTS[:3], ["a", "b", "a"]
    found = perplexity(ours, tokenizer, texts, sources=sources, length=4096)
    sums = {True: [], False: []}
    for text in texts:
        ((ids, offsets),) = tokenizer.encode_offsets([text])
        logs = direct(theirs, ids)
        marked = {at for n in find_numbers(text) if n.variable for at in range(n.start, n.end)}
        for at in range(1, len(ids)):
            sums[bool(marked & set(range(*offsets[at])))].append(-logs[at - 1, ids[at]].item())
    for name, numeric in (("numbers", True), ("rest", False)):
        assert found[name]["tokens"] == len(sums[numeric]) > 0
        assert found[name]["nll"] == pytest.approx(sum(sums[numeric]) / len(sums[numeric]), abs=1e-5)
    assert found["numbers"]["characters"] + found["rest"]["characters"] == found["characters"]
    one = perplexity(ours, tokenizer, texts[1:2], length=4096)
    assert found["by_source"]["b"]["nll"] == pytest.approx(one["nll"]) and set(found["by_source"]) == {"a", "b"}
