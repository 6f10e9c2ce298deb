"""The losses of the numeric adapter beyond one way of scoring: letter and likelihood together, digits by distance."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from numllm.chat import Chat
from numllm.data import Batch, ChoiceBatches
from numllm.model import Transformer, load_model
from numllm.questions import PROMPT_FORMS, encode_options, letter_prompt
from numllm.tokenizer import Tokenizer
from numllm.train import batch_loss, digit_loss, train


@pytest.fixture
def model(world: Path) -> Transformer:
    return load_model(world / "base", dtype=torch.float64)


def _batch(world: Path, loss: str, **settings: object) -> Batch:
    return ChoiceBatches(tiny.QUESTIONS, Tokenizer(world / "base"), size=6, length=96, loss=loss, **settings)(1)


def _states(model: Transformer, batch: Batch) -> torch.Tensor:
    x = model.hidden(batch.tokens, documents=batch.documents, branches=batch.branches)
    return x.flatten(0, 1)[batch.positions]


def _loss(model: Transformer, batch: Batch, text_weight: float = 0.0) -> torch.Tensor:
    losses = torch.nn.functional.cross_entropy(model.lm_head(_states(model, batch)), batch.labels, reduction="none")
    return batch_loss(losses, batch, text_weight)


@torch.no_grad()
@pytest.mark.parametrize("text", [False, True])
def test_both_is_the_likelihood_and_the_weighted_letter(world: Path, model: Transformer, text: bool) -> None:
    letter, likelihood = _batch(world, "letter"), _batch(world, "likelihood", text=text)
    both = _batch(world, "both", text=text, letter_weight=0.3)
    expected = _loss(model, likelihood, 0.7) + 0.3 * _loss(model, letter)
    assert torch.allclose(_loss(model, both, 0.7), expected, rtol=1e-6)
    assert both.tokens.numel() and int((both.documents >= 0).sum()) < int((letter.documents >= 0).sum()) + int(
        (likelihood.documents >= 0).sum()
    )  # the letter's branch shares what stands before the blank


@torch.no_grad()
def test_parts_of_a_batch_add_up_to_it(world: Path, model: Transformer) -> None:
    whole = _batch(world, "both")
    parts = [whole.part(at, at + 1) for at in range(len(whole.tokens))]
    assert len(parts) > 1
    assert torch.allclose(sum(_loss(model, part) for part in parts), _loss(model, whole), rtol=1e-6)
    weight = model.lm_head.weight
    assert torch.allclose(
        sum(digit_loss(_states(model, part), weight, part) for part in parts),
        digit_loss(_states(model, whole), weight, whole),
    )


@torch.no_grad()
def test_digit_loss_is_the_expected_distance(world: Path, model: Transformer) -> None:
    tokenizer = Tokenizer(world / "base")
    digits = [tokenizer.encode(digit)[-1] for digit in "0123456789"]
    batches = ChoiceBatches(tiny.QUESTIONS, tokenizer, size=len(tiny.QUESTIONS), length=96, loss="likelihood")
    batch, expected, seen = batches(0), 0.0, 0
    for question in tiny.QUESTIONS:
        option = encode_options(question, tokenizer, max_length=96)["ABCD".index(question.answer)]
        logits = model(torch.tensor([option.ids]))[0]
        for at in range(*option.option):
            if option.ids[at] in digits:
                chances = logits[at - 1][digits].softmax(-1)
                expected += sum(float(p) * abs(d - digits.index(option.ids[at])) for d, p in enumerate(chances))
                seen += 1
    assert seen
    found = digit_loss(_states(model, batch), model.lm_head.weight, batch)
    assert float(found) == pytest.approx(expected / len(tiny.QUESTIONS), rel=1e-5)


def test_letters_are_asked_in_several_forms_and_as_a_message(world: Path) -> None:
    tokenizer, question = Tokenizer(world / "base"), tiny.QUESTIONS[0]
    prompts = [letter_prompt(question, form=form) for form in range(len(PROMPT_FORMS))]
    assert len(set(prompts)) == len(prompts) and prompts[0] == letter_prompt(question)
    for prompt in prompts:
        assert prompt.endswith("\n答案：") and question.question in prompt
        assert all(option in prompt for option in question.options)

    def seen(**settings: object) -> list[str]:
        batches = ChoiceBatches([question], tokenizer, size=1, length=200, **settings)
        return [tokenizer.decode(batches(step).tokens[0].tolist()) for step in range(24)]

    varied, plain = seen(varied=True), seen()
    leads = [form.lead for form in PROMPT_FORMS if form.lead]
    assert all(any(text.startswith(lead) for text in varied) for lead in leads)
    assert not any(text.startswith(tuple(leads)) for text in plain) and seen(varied=True) == varied
    chat = Chat("用户：{{ messages[0].content }}\n助手：", {}, tokenizer)
    assert all("用户：" in text and "助手：答案：" in text for text in seen(chat=chat))


def test_a_run_with_both_losses_and_digits_learns(world: Path) -> None:
    settings = tiny.settings(world, "both", loss="both", letter_weight=0.5, digit_weight=0.1, text_weight=0.5, steps=25)
    rows = [event for event in train(settings) if event["event"] == "step" and event["adapter"] == "numeric"]
    assert sum(row["loss"] for row in rows[-5:]) < sum(row["loss"] for row in rows[:5])
