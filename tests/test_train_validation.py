"""Validation during training: the figures are those of evaluation, the best is kept, patience ends an adapter."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny
import torch

from numllm.data import ChoiceBatches
from numllm.errors import ConfigError, TrainError
from numllm.evaluate import evaluate, perplexity
from numllm.files import read_jsonl, write_jsonl
from numllm.lora import load_adapters
from numllm.model import load_model
from numllm.questions import read_questions
from numllm.tokenizer import Tokenizer
from numllm.train import choice_loss, train


def validated(rows, adapter=None):
    return [row for row in rows if row["kind"] == "validation" and adapter in (None, row["adapter"])]


@pytest.mark.parametrize("loss", ["letter", "likelihood"])
def test_figures_are_those_of_evaluating_the_saved_adapters(world, loss):
    held = tiny.heldout(world)
    events = list(train(tiny.settings(
        world, steps=6, validate_every=3, save_every=3, keep=9, loss=loss, questions=8, **held,
    )))
    rows = tiny.metrics(world / "run")
    assert [(row["step"], row["adapter"]) for row in validated(rows)] == [
        (step, name) for step in (3, 6) for name in ("domain", "numeric")
    ]
    assert [e["event"] for e in events if e["event"] != "step"] == [
        "start", *["validation"] * 2, "saved", *["validation"] * 2, "saved", "done",
    ]
    tokenizer = Tokenizer(world / "base")
    texts = [row["text"] for _, row in read_jsonl(held["heldout_corpus"])]
    questions = read_questions([held["heldout_numct"]])
    for row in validated(rows):
        model = load_model(world / "base")
        folder = world / "run" / "checkpoints" / f"step-{row['step']}" / row["adapter"]
        with load_adapters(model, {"it": (folder, 1.0)}).use("it"):
            text = perplexity(model, tokenizer, texts, length=96)
            found = evaluate(
                model, tokenizer, questions, protocol="letters" if loss == "letter" else "likelihood", max_length=96,
            )
            if loss == "likelihood":  # the same loss by the way of training
                batch = ChoiceBatches(questions, tokenizer, size=8, length=96, loss=loss)(0)
                x = model.hidden(batch.tokens, documents=batch.documents, branches=batch.branches)
                losses = torch.nn.functional.cross_entropy(
                    model.lm_head(x.flatten(0, 1)[batch.positions]), batch.labels, reduction="none",
                )
                assert row["choice_loss"] == pytest.approx(choice_loss(losses, batch).item(), rel=1e-4)
        assert row["perplexity"] == pytest.approx(text["perplexity"], rel=1e-6)
        assert row["accuracy"] == found["overall"]["accuracy"]
        assert row["numeric_accuracy"] == found["numeric"]["accuracy"]


def test_an_adapter_ends_when_its_patience_is_out_and_its_best_is_the_result(world):
    # The domain rate is far too high, so that its text gets worse soon.
    config = tiny.settings(
        world, steps=30, validate_every=2, patience=2, domain_rate=0.3, numeric_rate=1e-3, spike=0.0, keep=1,
        save_every=10, **tiny.heldout(world),
    )
    events = list(train(config))
    ends = {e["adapter"]: e["step"] for e in events if e["event"] == "ended"}
    assert ends["domain"] < 30 and events[-1]["step"] == max(30 if name not in ends else ends[name] for name in (
        "domain", "numeric"))
    rows = tiny.metrics(world / "run")
    for name, end in ends.items():
        steps = [row["step"] for row in rows if row["kind"] == "train" and row["adapter"] == name]
        assert steps == list(range(1, end + 1))
        mine = validated(rows, name)
        assert mine[-1]["step"] == end and [row["best"] for row in mine[-3:]] == [True, False, False]
        assert mine[-3]["step"] == events[-1]["best"][name]
    best = min(validated(rows, "domain"), key=lambda row: row["nll"])["step"]
    assert events[-1]["best"]["domain"] == best
    saved = world / "run" / "checkpoints"
    assert tiny.adapter_bytes(world / "run" / "adapters" / "domain") == tiny.adapter_bytes(
        saved / f"step-{best}" / "domain")
    steps = {int(path.name.split("-")[1]) for path in saved.iterdir()}
    assert steps == {max(steps), *events[-1]["best"].values()}, "the best checkpoints outlive the last ones"


@pytest.mark.parametrize("at", [4, 9])
def test_resuming_restores_validation_to_the_bit(world, at):
    held = tiny.heldout(world)
    settings = {"steps": 16, "validate_every": 3, "patience": 2, "domain_rate": 0.1, "numeric_steps": 11, **held}
    whole = list(train(tiny.settings(world, "whole", **settings)))
    calls = [0]

    def stop():
        calls[0] += 1
        return calls[0] == at

    events = list(train(tiny.settings(world, "parts", **settings), stop=stop))
    assert events[-1]["event"] == "interrupted"
    events = list(train(tiny.settings(world, "parts", **settings), resume=True))
    assert events[-1]["best"] == whole[-1]["best"]
    assert tiny.metrics(world / "whole") == tiny.metrics(world / "parts")
    assert tiny.adapter_bytes(world / "whole" / "adapters") == tiny.adapter_bytes(world / "parts" / "adapters")


def test_a_stop_during_validation_waits_for_none_of_it(world):
    seen = []

    def progress(items, total=None, description="", unit="it"):
        for item in items:
            seen.append(description)
            yield item

    def stop():
        return "perplexity" in seen

    settings = {"steps": 6, "validate_every": 3, **tiny.heldout(world)}
    events = list(train(tiny.settings(world, **settings), stop=stop, progress=progress))
    assert events[-1] == {"event": "interrupted", "step": 3} and seen.count("perplexity") == 1
    assert validated(tiny.metrics(world / "run")) == []
    list(train(tiny.settings(world, **settings), resume=True))
    list(train(tiny.settings(world, "whole", **settings)))
    assert tiny.metrics(world / "whole") == tiny.metrics(world / "run")


def test_the_rows_marked_heldout_are_validated_on_and_none_that_is_trained_on(world):
    corpus, numct = world / "corpus" / "corpus.jsonl", world / "numct.jsonl"
    with pytest.raises(TrainError, match="no held-out text .* --heldout-corpus"):
        list(train(tiny.settings(world, validate_every=2, steps=2)))
    shutil.rmtree(world / "run", ignore_errors=True)
    rows = [row for _, row in read_jsonl(corpus)]
    write_jsonl(corpus, [row | {"split": "heldout" if row["id"] == "3" else "train"} for row in rows])
    rows = [row for _, row in read_jsonl(numct)]
    no_split = [{key: value for key, value in row.items() if key != "split"} for row in rows]
    write_jsonl(numct, no_split)
    with pytest.raises(TrainError, match="no held-out questions .* --heldout-numct"):
        list(train(tiny.settings(world, validate_every=2, steps=2)))
    write_jsonl(numct, [*no_split[:-2], *(row | {"split": "heldout"} for row in rows[-2:])])
    list(train(tiny.settings(world, validate_every=2, steps=2)))
    (domain, numeric) = validated(tiny.metrics(world / "run"))
    assert domain["accuracy"] in (0.0, 0.5, 1.0) and json.dumps(numeric)


def test_patience_without_validation_is_refused(world):
    with pytest.raises(ConfigError, match="patience needs validation"):
        tiny.settings(world, patience=2)


def test_a_person_sees_validations_ends_skips_and_warnings(world, capsys):
    from numllm.cli.training import run_training

    config = tiny.settings(
        world, steps=8, validate_every=2, patience=1, numeric_rate=1e-14, adapters=("numeric",), **tiny.heldout(world),
    )
    run_training(config)
    err = capsys.readouterr().err
    assert "step 2, numeric: perplexity" in err and ", the best so far" in err
    assert "the numeric adapter stopped improving and ends" in err
    with pytest.raises(TrainError):
        run_training(tiny.settings(world, "other", domain_rate=1e30, clip=1e30, warmup=0.0, max_skips=2))
    assert "step 2: the domain adapter's step was skipped: nan" in capsys.readouterr().err
    run_training(tiny.settings(world, "short", steps=2, length=24))
    assert "Warning: question" in capsys.readouterr().err
