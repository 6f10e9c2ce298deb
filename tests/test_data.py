"""Packing and batches: what is labelled, what sees what, the same batch again for the same step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import QUESTIONS, TEXTS, tokenizer_folder

from numllm.data import ChoiceBatches, TextBatches, pack
from numllm.errors import DataError
from numllm.model import PADDING
from numllm.questions import encode_options
from numllm.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(tokenizer_folder(tmp_path_factory.mktemp("tokenizer")))


@given(st.lists(st.integers(1, 64), max_size=200))
@settings(deadline=None)
def test_packing_keeps_every_piece_once_and_fits(lengths):
    rows = pack(lengths, 64)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 64 for row in rows)
    # Two rows that would fit into one are never both left open.
    sums = sorted(sum(lengths[index] for index in row) for row in rows)
    assert len(sums) < 2 or sums[0] + sums[1] > 64


def test_pieces_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="1..8 tokens, got 9"):
        pack([3, 9], 8)


def test_every_token_but_the_first_of_a_text_is_a_label_once(tokenizer):
    batches = TextBatches(TEXTS, tokenizer, rows=1, length=24)
    steps = round(batches.epoch_steps)
    labels = []
    for step in range(steps):
        batch = batches(step)
        assert torch.equal(batch.labels, batch.tokens.flatten()[batch.positions + 1])
        documents = batch.documents.flatten()
        assert torch.equal(documents[batch.positions], documents[batch.positions + 1])
        assert (documents[batch.positions] != PADDING).all()
        labels += batch.labels.tolist()
        assert batch.count == len(batch.labels)
    expected = [i for ids in tokenizer.encode_batch(TEXTS) for i in [*ids[1:], tokenizer.eos_id]]
    assert sorted(labels) == sorted(expected)
    assert 0.5 < batches.fill <= 1


def test_batches_depend_on_seed_and_step_only(tokenizer):
    first, second = (TextBatches(TEXTS, tokenizer, rows=2, length=24, seed=3) for _ in range(2))
    for step in (0, 7, 3):
        assert torch.equal(first(step).tokens, second(step).tokens)
    other = TextBatches(TEXTS, tokenizer, rows=2, length=24, seed=4)
    assert any(not torch.equal(first(step).tokens, other(step).tokens) for step in range(4))


def test_letters_are_the_only_labels_and_options_move(tokenizer):
    batches = ChoiceBatches(QUESTIONS, tokenizer, size=len(QUESTIONS), length=120, loss="letter")
    seen = set()
    for step in range(12):
        batch = batches(step)
        assert batch.count == len(batch.labels) == len(QUESTIONS) and batch.choice is None
        answers = [tokenizer.decode([label]) for label in batch.labels.tolist()]
        assert set(answers) <= set("ABCD")
        seen |= set(answers)
        for position, label in zip(batch.positions.tolist(), answers, strict=True):
            row = batch.tokens.flatten()[: position + 1].tolist()
            prompt = tokenizer.decode(row).rsplit("\nA. ", 1)[1]
            right = {"A": prompt.split("\nB. ")[0]} | {
                letter: prompt.split(f"\n{letter}. ")[1].split("\n")[0] for letter in "BCD"
            }
            assert any(right[label] == q.options["ABCD".index(q.answer)] for q in QUESTIONS)
    assert seen == set("ABCD")


def test_likelihood_batches_score_what_evaluation_scores(tokenizer):
    batches = ChoiceBatches(QUESTIONS, tokenizer, size=2, length=64, loss="likelihood")
    batch = batches(0)
    choice = batch.choice
    assert sum(choice.sizes) == int(choice.options.max()) + 1 == 8
    # The weights of an option's own tokens sum to 1, and those of the text after it too.
    sums = torch.zeros(8).index_add(0, choice.options, choice.weights)
    assert ((sums - sums.round()).abs() < 1e-6).all() and set(sums.round().tolist()) <= {1.0, 2.0}
    spelled = {
        tuple(option.ids[option.option[0] : option.rest[1]])
        for question in QUESTIONS for option in encode_options(question, tokenizer, max_length=64)
    }
    for index in range(8):
        assert tuple(batch.labels[choice.options == index].tolist()) in spelled


def test_widening_moves_positions_with_their_tokens(tokenizer):
    batch = TextBatches(TEXTS, tokenizer, rows=2, length=24)(0)
    wide = batch.widened(31)
    assert wide.tokens.shape == (2, 31) and (wide.documents[:, 24:] == PADDING).all()
    assert torch.equal(wide.tokens.flatten()[wide.positions + 1], batch.labels)


def test_nothing_to_train_on_is_said(tokenizer):
    with pytest.raises(DataError, match="no text"):
        TextBatches([], tokenizer, rows=1, length=8)
    with pytest.raises(DataError, match="no questions"):
        ChoiceBatches([], tokenizer, size=1, length=8)
