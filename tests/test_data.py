"""Packing and batches: what is labelled, what sees what, the same batch again for the same step."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import QUESTIONS, TEXTS, tokenizer_folder

from numllm.corpus import build_corpus, read_corpus
from numllm.data import ChoiceBatches, Draw, TextBatches, pack, prepared
from numllm.errors import DataError
from numllm.positions import PADDING
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


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 100), st.integers(0, 5))
@settings(deadline=None)
def test_a_token_budget_takes_every_item_once_an_epoch_and_stays_within_it(lengths, budget, seed):
    draw = Draw(lengths, size=1, tokens=budget, seed=seed, salt="x")
    steps = [draw(step) for step in range(40)]
    places = [place for step in steps for place in step]
    for first in range(0, len(places) - len(lengths) + 1, len(lengths)):
        part = places[first : first + len(lengths)]
        assert sorted(index for _, index in part) == list(range(len(lengths)))
        assert len({epoch for epoch, _ in part}) == 1
    for step, after in zip(steps, steps[1:], strict=False):
        held = sum(lengths[index] for _, index in step)
        assert held <= budget or len(step) == 1
        assert held + lengths[after[0][1]] > budget, "the next item would have fitted"
    again = Draw(lengths, size=1, tokens=budget, seed=seed, salt="x")
    assert again(39) == steps[39] and again(3) == steps[3]


@given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 3))
def test_rows_a_step_come_from_shuffled_epochs(count, size, seed):
    draw = Draw([1] * count, size=size, seed=seed, salt="text")
    orders = {}
    for step in (0, 5, 2, 30):
        for place, (epoch, index) in zip(range(step * size, (step + 1) * size), draw(step), strict=True):
            assert epoch == place // count
            if epoch not in orders:
                orders[epoch] = list(range(count))
                random.Random(f"{seed} text {epoch}").shuffle(orders[epoch])
            assert index == orders[epoch][place % count]


@pytest.mark.parametrize("loss", ["letter", "likelihood"])
def test_batches_of_a_token_budget_hold_that_many_tokens(tokenizer, loss):
    text = TextBatches(TEXTS, tokenizer, rows=1, length=48, tokens=100)
    choices = ChoiceBatches(QUESTIONS, tokenizer, size=1, length=120, tokens=300, loss=loss)
    for batches, budget in ((text, 100), (choices, 300)):
        held = [int((batches(step).documents != PADDING).sum()) for step in range(12)]
        assert all(0.5 * budget < tokens <= budget for tokens in held), held
        assert batches.epoch_steps == pytest.approx(
            (text.tokens if batches is text else sum(choices._length(i) for i in range(len(choices)))) / budget)


def test_prepared_tokens_are_those_of_the_texts_made_once_and_checked(tokenizer, tmp_path):
    folder, calls = tmp_path / "tokens", []

    def texts():
        calls.append(1)
        yield from TEXTS

    kept = prepared(texts(), tokenizer, folder, "a")
    mapped, memory = (TextBatches(source, tokenizer, rows=2, length=24) for source in (kept, TEXTS))
    assert all(torch.equal(mapped(step).tokens, memory(step).tokens) for step in range(9))
    assert kept.ids.itemsize == 2 and len(kept) == len(TEXTS)
    prepared(texts(), tokenizer, folder, "a")
    assert len(calls) == 1, "what is there is read, not made again"
    prepared(texts(), tokenizer, folder, "b")
    assert len(calls) == 2
    data = bytearray((folder / "tokens.bin").read_bytes())
    data[5] ^= 1
    (folder / "tokens.bin").write_bytes(data)
    with pytest.raises(DataError, match="tokens.bin: damaged; remove"):
        prepared(texts(), tokenizer, folder, "b")
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_rows_of_the_real_corpus_are_nearly_full(shared_data, tmp_path):
    tokenizer = Tokenizer(shared_data / "tokenizers" / "qwen2")
    build_corpus([shared_data / "textbooks" / "laws-just-laws"], tmp_path / "corpus", holdout=0.0)
    texts = [row["text"] for row in read_corpus(tmp_path / "corpus")]
    for length in (512, 2048):
        batches = TextBatches(texts, tokenizer, rows=4, length=length)
        assert batches.fill >= 0.98, (length, batches.fill)
