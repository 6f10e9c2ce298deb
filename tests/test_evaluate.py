"""Scores against a direct transformers implementation, rigged models, statistics, perplexity."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import save, transformers_model
from test_questions import joining_tokenizer, save_tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers

from numllm.errors import EvaluationError
from numllm.evaluate import (
    Probe,
    compare,
    evaluate,
    log_probabilities,
    mcnemar,
    perplexity,
    scoring,
    summarise,
    wilson,
)
from numllm.model import load_model
from numllm.questions import (
    HEADER,
    LETTERS,
    Question,
    encode_letters,
    encode_options,
    fit_letters,
    header_of,
    letter_ids,
    letter_prompt,
    likelihood_parts,
    read_questions,
)
from numllm.tokenizer import Tokenizer

SUBJECTS = ("会计", "税法")


def make_questions(count: int, *, seed: int = 0, name: str = "q", cloze: bool = False, options: int = 4):
    """Questions about amounts of varied length, answers spread evenly but not in order."""
    rng = random.Random(seed)
    answers = [LETTERS[index % options] for index in range(count)]
    rng.shuffle(answers)
    values = [str(value) for value in rng.sample(range(10, 99999), count * options)]
    return [
        Question(
            id=f"{name}{index}", answer=answers[index], subject=SUBJECTS[index % 2],
            domain=("Finance", "Economy")[index % 3 == 0],
            question="某企业年末存货" + "甲、" * rng.randrange(12) + ("____万元。" if cloze else "是多少？"),
            options=tuple(values[index * options : (index + 1) * options]), cloze=cloze,
        )
        for index in range(count)
    ]


def direct(theirs, ids) -> torch.Tensor:
    """log-probabilities (T, V) of one unpadded sequence."""
    with torch.no_grad():
        return theirs(torch.tensor([list(ids)])).logits[0].float().log_softmax(-1)


def difference(result, expected) -> float:
    return max(
        abs(row["logprobs"][letter] - value)
        for row, scores in zip(result["questions"], expected, strict=True) for letter, value in scores.items()
    )


# Against transformers


@pytest.mark.parametrize("shots", [0, 5])
@pytest.mark.parametrize("batch_tokens", [1, 4096], ids=["unpadded", "padded"])
def test_letters_equal_transformers(pair, tokenizer, shots, batch_tokens):
    theirs, ours = pair
    questions, dev = make_questions(13), make_questions(14, name="dev", seed=1)
    expected = []
    for question in questions:
        examples = [example for example in dev if example.subject == question.subject][:shots]
        prompt = letter_prompt(question, examples, HEADER.format(subject=question.subject) if shots else None)
        logs = direct(theirs, tokenizer.encode(prompt))[-1]
        expected.append({letter: logs[tokenizer.token_id(letter)].item() for letter in "ABCD"})
    result = evaluate(ours, tokenizer, questions, shots=shots, dev=dev, batch_tokens=batch_tokens)
    assert difference(result, expected) < 1e-5
    assert [row["predicted"] for row in result["questions"]] == [max(e, key=e.get) for e in expected]
    assert (result["protocol"], result["shots"], result["notes"]) == ("letters", shots, [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("shots", [0, 5])
def test_letters_equal_transformers_on_real_weights_and_questions(shots, dtype, shared_data):
    import transformers

    folder = shared_data / "weights" / "tinystories-656k"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    # Not AutoTokenizer: it rebuilds the tokenizer and drops characters that tokenizer.json makes <unk>.
    reader = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    root = shared_data / "questions" / "fineval"
    questions = read_questions(root)[::60]
    dev = read_questions(root, split="dev")
    tokenizer, ours = Tokenizer.open(folder), load_model(folder, dtype=dtype)
    expected = []
    for question in questions:
        examples = [example for example in dev if example.subject == question.subject][:shots]
        prompt = letter_prompt(question, examples, HEADER.format(subject=question.subject) if shots else None)
        logs = direct(theirs, reader(prompt)["input_ids"])[-1]
        expected.append({
            letter: logs[reader(f"：{letter}", add_special_tokens=False)["input_ids"][-1]].item() for letter in "ABCD"
        })
    result = evaluate(ours, tokenizer, questions, shots=shots, dev=dev, max_length=4096)
    # In fp32 the scores, of up to 17, carry rounding of their own size.
    largest = max(abs(value) for scores in expected for value in scores.values())
    assert difference(result, expected) < 1e-5 * (largest if dtype == torch.float32 else 1)
    assert not result["truncated"] and not result["dropped_shots"]


@pytest.mark.parametrize("family", ["llama2", "qwen2-window"])
@pytest.mark.parametrize("normalise", ["option", "none"])
@pytest.mark.parametrize("with_rest", [True, False], ids=["rest", "option-only"])
def test_likelihood_equals_transformers(family, normalise, with_rest, tokenizer, tmp_path):
    theirs = transformers_model(family, vocab_size=tokenizer.vocab_size)
    ours = load_model(save(theirs, tmp_path / "m"))
    questions = make_questions(9, cloze=True)
    expected = []
    for question in questions:
        stem, options, rest = likelihood_parts(question)
        scores = {}
        for letter, option in zip(LETTERS, options, strict=False):
            a, b, c = (len(tokenizer.encode(text)) for text in (stem, stem + option, stem + option + rest))
            ids = tokenizer.encode(stem + option + rest)
            logs = direct(theirs, ids)
            logs = [logs[at - 1, ids[at]].item() for at in range(a, c)]
            spans = [logs[: b - a], logs[b - a :]][: 2 if with_rest else 1]
            scores[letter] = sum(sum(span) / (len(span) if normalise == "option" else 1) for span in spans)
        expected.append(scores)
    result = evaluate(ours, tokenizer, questions, normalise=normalise, with_rest=with_rest)
    assert result["protocol"] == "likelihood" and difference(result, expected) < 2e-5


def test_score_is_what_training_maximises(pair, tokenizer):
    from numllm.data import ChoiceBatches
    from numllm.train import choice_loss

    _, ours = pair
    questions = make_questions(4, cloze=True)
    batch = ChoiceBatches(questions, tokenizer, size=4, length=128, loss="likelihood")(0)
    states = ours.hidden(batch.tokens, documents=batch.documents, branches=batch.branches)
    hidden = states.flatten(0, 1)[batch.positions]
    losses = torch.nn.functional.cross_entropy(ours.lm_head(hidden), batch.labels, reduction="none")
    rows = evaluate(ours, tokenizer, questions)["questions"]
    scores = [torch.tensor(list(row["logprobs"].values())) for row in rows]
    expected = -sum(s.log_softmax(0)[LETTERS.index(r["answer"])] for s, r in zip(scores, rows, strict=True)) / 4
    assert math.isclose(choice_loss(losses, batch), expected, abs_tol=1e-5)


# Shared beginnings


@pytest.mark.parametrize("family", ["qwen2", "mistral", "llama2"])
@pytest.mark.parametrize("batch_tokens", [40, 300, 4096])
def test_shared_beginnings_change_nothing(family, batch_tokens, tokenizer, tmp_path, monkeypatch):
    ours = load_model(save(transformers_model(family, vocab_size=tokenizer.vocab_size), tmp_path / "m"))
    questions, dev = make_questions(11), make_questions(12, name="dev", seed=1)
    cloze = make_questions(6, cloze=True, name="c")
    positions = []
    hidden = ours.hidden

    def counted(tokens, **options):
        positions.append(tokens.numel())
        return hidden(tokens, **options)

    ours.hidden = counted

    def scores():
        positions.clear()
        result = evaluate(
            ours, tokenizer, [*questions, *cloze], shots=5, dev=dev, batch_tokens=batch_tokens
        )
        return [list(row["logprobs"].values()) for row in result["questions"]], sum(positions)

    shared, fewer = scores()
    monkeypatch.setattr(scoring, "SHARED_AT_LEAST", 10**9)
    whole, more = scores()
    assert torch.allclose(torch.tensor(shared), torch.tensor(whole), rtol=0, atol=1e-5)
    assert fewer < 0.6 * more


def test_beginnings_are_not_shared_where_rotations_go_by_length(tokenizer, tmp_path, monkeypatch):
    theirs = transformers_model("llama-dynamic", vocab_size=tokenizer.vocab_size)
    ours = load_model(save(theirs, tmp_path / "m"))
    questions, dev = make_questions(3), make_questions(12, name="dev", seed=1)
    long = evaluate(ours, tokenizer, questions, shots=5, dev=dev, max_length=4 * ours.config.rope.original_context)
    monkeypatch.setattr(scoring, "SHARED_AT_LEAST", 10**9)
    whole = evaluate(ours, tokenizer, questions, shots=5, dev=dev, max_length=4 * ours.config.rope.original_context)
    for found, expected in zip(long["questions"], whole["questions"], strict=True):
        assert found["logprobs"] == pytest.approx(expected["logprobs"], abs=1e-5)


@pytest.mark.gpu
def test_a_gpu_scores_as_the_cpu_does(tokenizer, tmp_path):
    folder = save(transformers_model("qwen2", vocab_size=tokenizer.vocab_size), tmp_path / "m")
    questions = [*make_questions(11), *make_questions(6, cloze=True, name="c")]
    dev = make_questions(12, name="dev", seed=1)
    on_cpu, on_gpu = (
        evaluate(load_model(folder, device=device), tokenizer, questions, shots=5, dev=dev, batch_tokens=300)
        for device in ("cpu", "cuda")
    )
    assert difference(on_gpu, [row["logprobs"] for row in on_cpu["questions"]]) < 1e-4


def test_evaluation_is_deterministic(pair, tokenizer):
    questions, dev = make_questions(8), make_questions(10, name="dev")
    runs = [json.dumps(evaluate(pair[1], tokenizer, questions, shots=2, dev=dev)) for _ in range(2)]
    assert runs[0] == runs[1]


def test_probes_ask_for_any_positions(pair):
    theirs, ours = pair
    ids = tuple(range(10, 40))
    logs = direct(theirs, ids)
    asked = ((29, 3), (0, 7), (29, 5), (12, ids[13]))
    groups = [[Probe(ids, asked), Probe(ids[:20], ((19, 1),))], []]
    (first, second), nothing = log_probabilities(ours, groups)
    expected = [logs[position, token].item() for position, token in asked]
    assert first == pytest.approx(expected, abs=1e-5) and nothing == []
    assert second == pytest.approx([logs[19, 1].item()], abs=1e-5)


def test_the_head_in_portions_changes_nothing(pair, tokenizer, monkeypatch):
    questions = make_questions(5, cloze=True)
    whole = evaluate(pair[1], tokenizer, questions)
    monkeypatch.setattr(scoring, "HEAD_ELEMENTS", 3 * tokenizer.vocab_size)
    assert difference(whole, [row["logprobs"] for row in evaluate(pair[1], tokenizer, questions)["questions"]]) < 1e-5


# Ways to write a letter


def test_several_tokens_for_a_letter_are_summed(shared_data, tmp_path):
    tokenizer = Tokenizer.open(shared_data / "tokenizers" / "llama2")
    theirs = transformers_model("llama2", vocab_size=32000)
    ours = load_model(save(theirs, tmp_path / "m"))
    questions = make_questions(3)
    expected = []
    for question in questions:
        logs = direct(theirs, [tokenizer.bos_id, *tokenizer.encode(letter_prompt(question))])[-1]
        expected.append({
            letter: logs[[tokenizer.token_id(letter), tokenizer.token_id(f"▁{letter}")]].logsumexp(0).item()
            for letter in "ABCD"
        })
    assert difference(evaluate(ours, tokenizer, questions), expected) < 1e-5


def test_letters_joined_to_the_colon_are_weighed_against_it(tmp_path):
    tokenizer = joining_tokenizer(tmp_path / "t", ("：A", "：B", "：C"))
    theirs = transformers_model("qwen2", vocab_size=tokenizer.vocab_size)
    ours = load_model(save(theirs, tmp_path / "m"))
    questions = [dataclasses.replace(q, options=("25", "80", "100", "3")) for q in make_questions(4)]
    expected = []
    for question in questions:
        ids = tokenizer.encode(letter_prompt(question))
        before, after = direct(theirs, ids)[-2:].exp()
        scores = {}
        for letter in "ABCD":
            p = before[ids[-1]] * after[tokenizer.token_id(letter)]
            if letter != "D":
                p = p + before[tokenizer.token_id(f"：{letter}")]
            scores[letter] = p.log().item()
        expected.append(scores)
    assert difference(evaluate(ours, tokenizer, questions), expected) < 1e-5


def test_letters_of_several_tokens_are_scored_whole(tmp_path):
    characters = sorted(set("".join(letter_prompt(q) for q in make_questions(6))))
    vocabulary = {"<eos>": 0, "‿": 1, **{c: index + 2 for index, c in enumerate(characters)}}
    backend = Backend(models.BPE(vocabulary, []))
    backend.normalizer = normalizers.Replace("B", "‿B")
    tokenizer = save_tokenizer(backend, tmp_path / "t", eos_token="<eos>")
    theirs = transformers_model("qwen2", vocab_size=tokenizer.vocab_size)
    ours = load_model(save(theirs, tmp_path / "m"))
    questions = make_questions(6)
    expected = []
    for question in questions:
        start = tokenizer.encode(letter_prompt(question))
        scores = {}
        for letter in "ABCD":
            ids = start + tokenizer.encode(letter)
            logs = direct(theirs, ids)
            scores[letter] = sum(logs[at - 1, ids[at]].item() for at in range(len(start), len(ids)))
        expected.append(scores)
    result = evaluate(ours, tokenizer, questions, protocol="letters")
    assert difference(result, expected) < 1e-5
    assert result["notes"] == [
        "letters scored by the likelihood of their whole strings: the tokenizer has no single token for the "
        "option letter 'B'; use the likelihood of the options' texts"
    ]


# Rigged models


class Rigged:
    """Stands in for a Transformer: hidden states are logits, made by `rule(ids of a row) -> (T, V)`."""

    def __init__(self, vocab_size: int, rule) -> None:
        rope = SimpleNamespace(by_length=False)
        self.config = SimpleNamespace(vocab_size=vocab_size, intermediate_size=1, context=4096, rope=rope)
        self.device, self.dtype, self.rule = torch.device("cpu"), torch.float32, rule
        self.lm_head = lambda x: x

    def hidden(self, tokens, *, cache, select):
        assert cache is None
        return torch.cat([self.rule(row.tolist()) for row in tokens])[select]


def constant(tokenizer, letter: str) -> Rigged:
    def rule(ids):
        logits = torch.zeros(len(ids), tokenizer.vocab_size)
        logits[:, tokenizer.token_id(letter)] = 3.0
        return logits

    return Rigged(tokenizer.vocab_size, rule)


def knowing(tokenizer, questions, *, likelihood: bool = False) -> Rigged:
    """Knows each question's answer: after its prompt, or along its right text."""
    known = {}
    for question in questions:
        prompt = fit_letters(
            question, tokenizer, max_length=4096, header=header_of(question) if question.multiple else None
        ).ids
        if question.multiple:
            whole = (*prompt, *tokenizer.encode(f"{question.answer}\n\n"))
            known[whole] = whole
            continue
        right = LETTERS.index(question.answer)
        if likelihood:
            ids = encode_options(question, tokenizer, max_length=4096)[right].ids
            known[ids] = ids
        else:
            known[prompt] = (*prompt, letter_ids(tokenizer)[right])

    def rule(ids):
        logits = torch.zeros(len(ids), tokenizer.vocab_size)
        for start, text in known.items():
            if tuple(ids[: len(start)]) == start and not any(ids[len(start) :]):
                for at in range(1, len(text)):
                    logits[at - 1, text[at]] = 5.0
        return logits

    return Rigged(tokenizer.vocab_size, rule)


@pytest.fixture
def unshared(monkeypatch):
    """Every prompt on its own: rigged models have no cache."""
    monkeypatch.setattr(scoring, "SHARED_AT_LEAST", 10**9)


def _csv(rows, head, path, mark=""):
    lines = [",".join(map(str, row)) for row in ([*head], *rows)]
    path.write_text(mark + "\n".join(lines), encoding="utf-8")
    return path


def _on_disk(kind: str, folder: Path) -> Path:
    """The same kind of questions as each benchmark's files have them."""
    count = {"fin-eva": 5, "yes/no": 2}.get(kind, 4)
    questions = make_questions(40, cloze=kind in ("numct", "concepts"), options=count)
    questions = [dataclasses.replace(q, question=q.question.replace("甲、", "")) for q in questions]
    letters = LETTERS[:count]
    if kind == "fineval":
        rows = [(q.id, q.question, *q.options, f" {q.answer}") for q in questions]
        return _csv(rows, ("id", "question", *letters, "answer"), folder / "s_val.csv")
    if kind == "fin-eva":
        rows = [(q.id, "甲。", q.question, *q.options, q.answer) for q in questions]
        return _csv(rows, ("id", "context", "question", *letters, "answer"), folder / "甲;乙.csv", "\ufeff")
    if kind == "yes/no":
        rows = [(q.id, f"{q.question}{i}", "是否"["AB".index(q.answer)]) for i, q in enumerate(questions)]
        return _csv(rows, ("id", "question", "answer"), folder / "s.csv")
    if kind == "cmmlu":
        rows = [(i, q.question, *q.options, q.answer) for i, q in enumerate(questions)]
        return _csv(rows, ("", "Question", *letters, "Answer"), folder / "s.csv")
    if kind.startswith("cflue"):
        rows = [
            {"名称": "基金", "task": "多项选择题" if kind == "cflue sets" else "单项选择题", "question": q.question,
             "choices": str(dict(zip(letters, q.options, strict=True))),
             "answer": ("AC", "ABD", "B", "BC")["ABCD".index(q.answer)] if kind == "cflue sets" else q.answer}
            for q in questions
        ]
        (folder / "s.json").write_text(json.dumps(rows), encoding="utf-8")
        return folder / "s.json"
    rows = [{"question": q.question, "options": q.options, "answer": q.answer, "subject": q.subject} for q in questions]
    if kind == "numct":
        rows = [{"id": f"n{i}", "context": "甲。", "number": {}, **row} for i, row in enumerate(rows)]
    if kind == "agieval":
        rows = [
            {"passage": None, "question": q.question, "label": q.answer,
             "options": [f"({letter}){option}" for letter, option in zip(letters, q.options, strict=True)]}
            for q in questions
        ]
    (folder / "s.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder / "s.jsonl"


KINDS = ("fineval", "fin-eva", "yes/no", "cmmlu", "cflue", "cflue sets", "agieval", "numct", "concepts")


@pytest.fixture(params=KINDS)
def known_set(request, tmp_path):
    return read_questions(_on_disk(request.param, tmp_path), multiple="set")


def test_a_model_that_knows_the_answers_scores_all(known_set, tokenizer, unshared):
    for protocol in ("letters", "likelihood"):
        model = knowing(tokenizer, known_set, likelihood=protocol == "likelihood")
        overall = evaluate(model, tokenizer, known_set, protocol=protocol)["overall"]
        assert (overall["n"], overall["correct"], overall["accuracy"]) == (40, 40, 1.0)


def test_a_model_that_always_says_a_scores_the_share_of_a(known_set, tokenizer, unshared):
    if any(question.multiple for question in known_set):
        known_set = [dataclasses.replace(q, multiple=False, answer=q.answer[0]) for q in known_set]
    uneven = [q for index, q in enumerate(known_set) if q.answer == "A" or index % 2]
    share = sum(q.answer == "A" for q in uneven) / len(uneven)
    result = evaluate(constant(tokenizer, "A"), tokenizer, uneven, protocol="letters")
    assert result["overall"]["accuracy"] == share and {r["predicted"] for r in result["questions"]} == {"A"}


def test_shuffled_answers_score_chance(known_set, tokenizer, unshared):
    rng = random.Random(3)
    copies = [dataclasses.replace(q, id=f"{q.id}-{i}") for q in known_set for i in range(10)]
    answers = [q.answer for q in copies]
    rng.shuffle(answers)
    model = knowing(tokenizer, known_set)
    chance = sum((share := answers.count(answer) / len(answers)) * share for answer in set(answers))
    shuffled = [dataclasses.replace(q, answer=answer) for q, answer in zip(copies, answers, strict=True)]
    result = evaluate(model, tokenizer, shuffled, protocol="letters")["overall"]
    assert abs(result["accuracy"] - chance) < 4 * math.sqrt(chance * (1 - chance) / result["n"])


# The result


def test_result_has_the_agreed_shape(tokenizer):
    questions = make_questions(12)
    questions[3] = dataclasses.replace(questions[3], answer=None)
    result = json.loads(json.dumps(evaluate(constant(tokenizer, "B"), tokenizer, questions), allow_nan=False))
    assert result["unanswered"] == 1 and result["overall"]["n"] == 11
    rows = result["questions"]
    assert [row["id"] for row in rows] == [q.id for q in questions]
    assert set(rows[0]) == {
        "id", "subject", "domain", "numeric", "numeric_kind", "any_digit", "answer", "predicted", "logprobs",
        "question", "options",
    }
    assert rows[3]["answer"] is None and rows[3]["predicted"] == "B"
    for group in (result["overall"], result["numeric"], *result["by_domain"].values(), *result["by_subject"].values()):
        assert {"n", "correct", "accuracy", "ci95"} <= set(group)
    assert result["non_numeric"] == {"n": 0, "correct": 0, "accuracy": None, "ci95": None}
    assert set(result["by_subject"]) == set(SUBJECTS) and set(result["by_domain"]) == {"Finance", "Economy"}


def test_micro_and_macro_averages():
    def row(subject, domain, right, numeric=False):
        return {"subject": subject, "domain": domain, "answer": "A", "predicted": "A" if right else "B",
                "numeric": numeric, "any_digit": not numeric}

    rows = [row("a", "X", True)] * 8 + [row("b", "X", False)] * 2 + [row("c", "Y", False, True)] * 10
    found = summarise(rows)
    assert found["overall"]["accuracy"] == 0.4
    assert found["overall"]["macro"] == pytest.approx(1 / 3) and found["overall"]["macro_domains"] == 0.4
    assert found["by_domain"]["X"]["accuracy"] == 0.8 and found["by_domain"]["X"]["macro"] == 0.5
    assert found["by_domain"]["Y"]["numeric"]["n"] == 10
    assert (found["numeric"]["n"], found["any_digit"]["numeric"]["n"]) == (10, 10)
    assert found["any_digit"]["numeric"]["correct"] == 8


def test_mixed_sets_keep_their_order_and_say_so(pair, tokenizer):
    letters, cloze = make_questions(3), make_questions(3, name="c", cloze=True)
    mixed = [item for two in zip(letters, cloze, strict=True) for item in two]
    dev = make_questions(4, name="dev")
    result = evaluate(pair[1], tokenizer, mixed, shots=2, dev=dev)
    apart = {
        row["id"]: row for part in (evaluate(pair[1], tokenizer, letters, shots=2, dev=dev),
                                    evaluate(pair[1], tokenizer, cloze)) for row in part["questions"]
    }
    assert difference(result, [apart[q.id]["logprobs"] for q in mixed]) < 1e-5
    assert result["protocol"] == "mixed" and "without examples" in result["notes"][0]


def test_long_prompts_drop_examples_and_say_so(pair, tokenizer):
    questions, dev = make_questions(4), make_questions(6, name="dev")
    sizes = [len(encode_letters(q, tokenizer, max_length=9999)) for q in questions]
    result = evaluate(pair[1], tokenizer, questions, shots=3, dev=dev, max_length=max(sizes))
    assert result["dropped_shots"] == 4 and result["truncated"] == 0
    assert result["notes"] == ["4 prompts had to do with fewer than 3 examples to fit the context"]
    short = evaluate(pair[1], tokenizer, questions, max_length=sorted(sizes)[1])
    assert short["truncated"] == sum(size > sorted(sizes)[1] for size in sizes)
    assert "lost the beginning of their question" in short["notes"][0]


def test_refusals(pair, tokenizer):
    ours, questions = pair[1], make_questions(4)
    for options, message in (
        ({"shots": 5}, "5-shot prompts need answered examples"),
        ({"shots": 5, "dev": make_questions(6, name="dev")}, "subject '会计' has 3 examples, 5 shots"),
        ({"shots": 1, "dev": questions}, "q0 is among the examples"),
        ({"shots": 1, "dev": questions, "protocol": "likelihood"}, "takes no examples"),
    ):
        with pytest.raises(EvaluationError, match=message):
            evaluate(ours, tokenizer, questions, **options)
    with pytest.raises(EvaluationError, match="no questions to evaluate"):
        evaluate(ours, tokenizer, [])
    with pytest.raises(EvaluationError, match="same id"):
        evaluate(ours, tokenizer, questions + questions[:1])
    for options in ({"protocol": "best"}, {"normalise": "bytes"}, {"batch_tokens": 0}):
        with pytest.raises(ValueError):
            evaluate(ours, tokenizer, questions, **options)
    small = Rigged(300, lambda ids: torch.zeros(len(ids), 300))
    with pytest.raises(EvaluationError, match="the model knows 300; it is the tokenizer of another model"):
        evaluate(small, tokenizer, questions)
    broken = Rigged(tokenizer.vocab_size, lambda ids: torch.full((len(ids), tokenizer.vocab_size), math.nan))
    with pytest.raises(EvaluationError, match="gives NaN or infinity"):
        evaluate(broken, tokenizer, questions)


def test_progress_counts_prompts(pair, tokenizer):
    seen = []

    def progress(items, total=None, description="", unit="it"):
        for item in items:
            seen.append((total, description, unit))
            yield item

    evaluate(pair[1], tokenizer, make_questions(6), progress=progress)
    assert seen == [(6, "scoring", "prompt")] * 6


# Statistics


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_solve_its_equation(counts):
    correct, n = counts
    for bound in wilson(correct, n):
        assert 0 <= bound <= 1
        assert abs(correct / n - bound) == pytest.approx(
            1.959963984540054 * math.sqrt(bound * (1 - bound) / n), abs=1e-9
        )


def test_wilson_and_mcnemar_known_values():
    assert wilson(10, 20) == pytest.approx((0.2992980, 0.7007020), abs=1e-6)
    assert (mcnemar(0, 0), mcnemar(5, 5), mcnemar(1, 9), mcnemar(9, 1)) == (1, 1, 0.021484375, 0.021484375)
    assert mcnemar(3000, 3500) == pytest.approx(5.9e-10, rel=0.05)
    with pytest.raises(ValueError):
        wilson(3, 2)


def result_of(predictions: str, answers: str, numeric: str = "") -> dict:
    return {"questions": [
        {"id": str(i), "answer": None if a == "-" else a, "predicted": p, "numeric": numeric[i : i + 1] == "n"}
        for i, (p, a) in enumerate(zip(predictions, answers, strict=True))
    ]}


def test_compare_counts_pairs():
    answers = "A" * 40 + "-"
    a = result_of("A" * 20 + "B" * 21, answers, "n" * 10)
    b = result_of("A" * 19 + "B" + "A" * 12 + "B" * 9, answers, "n" * 10)
    found = compare(a, b)
    assert (found["n"], found["only_a"], found["only_b"]) == (40, 1, 12)
    assert (found["accuracy_a"], found["accuracy_b"]) == (0.5, 31 / 40)
    assert found["difference_points"] == pytest.approx(27.5)
    assert found["p_value"] == pytest.approx(2 * (1 + 13) / 2**13) and found["verdict"] == "B is better"
    low, high = found["ci95_points"]
    # Normal approximation of the paired difference: 27.5 ± 1.96 · 100 √((13/40 − 0.275²)/40).
    assert low == pytest.approx(12.0, abs=2.6) and high == pytest.approx(43.0, abs=2.6)
    assert found["numeric"]["n"] == 10 and found["numeric"]["verdict"] == "not distinguishable"
    assert found["non_numeric"]["n"] == 30 and found["not_shared"] == 0
    assert compare(a, b) == found and compare(b, a)["verdict"] == "A is better"
    same = compare(a, a)
    assert (same["difference_points"], same["p_value"], same["ci95_points"]) == (0, 1, [0, 0])
    assert same["verdict"] == "not distinguishable"


def test_compare_refuses_what_does_not_pair():
    a = result_of("AB", "AA")
    assert compare(a, result_of("A", "A"))["not_shared"] == 1
    for other, message in (
        (result_of("AB", "BA"), "question 0 has two answers"), (result_of("AB", "--"), "share no answered question"),
        ({}, "the second result is not an evaluation result"), ({"questions": [1]}, "not an evaluation result"),
        ([], "not an evaluation result"),
    ):
        with pytest.raises(EvaluationError, match=message):
            compare(a, other)


# Perplexity


@pytest.mark.parametrize(("length", "stride"), [(16, 4), (16, 15), (12, 12 // 2), (4096, None)])
def test_perplexity_equals_a_sliding_window_in_transformers(pair, tokenizer, length, stride):
    theirs, ours = pair
    texts = ["某企业年初存货100万元，本年购进250万元。" * 2, "", "年利率3.25%", "a"]
    total, tokens, characters = 0.0, 0, 0
    for text in texts:
        ids = tokenizer.encode(text)
        scored = 1
        for begin in range(0, len(ids), stride or length // 2):
            window = ids[begin : begin + length]
            logs = direct(theirs, window)
            for at in range(scored - begin, len(window)):
                total -= logs[at - 1, window[at]].item()
                tokens += 1
            scored = max(scored, begin + len(window))
        if len(ids) > 1:
            characters += len(text) - tokenizer.encode_offsets([text])[0][1][0][1]
    found = perplexity(ours, tokenizer, texts, length=length, stride=stride, batch_tokens=64)
    assert (found["tokens"], found["characters"]) == (tokens, characters)
    assert found["nll"] == pytest.approx(total / tokens, abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert found["bits_per_character"] == pytest.approx(total / math.log(2) / characters, rel=1e-5)


def test_perplexity_with_bos_scores_every_token(shared_data):
    folder = shared_data / "weights" / "tinystories-656k"
    tokenizer, model = Tokenizer.open(folder), load_model(folder)
    text = "Once upon a time there was a little girl. She liked to play with her red ball."
    found = perplexity(model, tokenizer, iter([text]))
    assert found["tokens"] == len(tokenizer.encode(text)) and found["characters"] == len(text)
    assert found["perplexity"] < perplexity(model, tokenizer, [" ".join(reversed(text.split()))])["perplexity"] / 3


def test_perplexity_refusals(pair, tokenizer):
    with pytest.raises(EvaluationError, match="no token to score"):
        perplexity(pair[1], tokenizer, ["", "a"])
    with pytest.raises(ValueError, match="stride"):
        perplexity(pair[1], tokenizer, ["甲乙"], length=8, stride=8)
