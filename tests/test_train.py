"""Training: joint equals apart, learning happens, resuming is exact, refusals are one line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from tiny import adapter_bytes
from tiny import settings as config

from numllm.config import LoRAConfig
from numllm.data import ChoiceBatches, TextBatches
from numllm.errors import ConfigError, DataError, NumLLMError, TrainError
from numllm.lora import LoRALinear, attach
from numllm.model import load_model
from numllm.questions import encode_options
from numllm.tokenizer import Tokenizer
from numllm.train import choice_loss, forward_losses, train

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("loss", ["letter", "likelihood"])
def test_both_adapters_learn(world, loss):
    events = list(train(config(world, loss=loss, steps=40)))
    assert [e["event"] for e in events if e["event"] != "step"] == ["start"] + ["saved"] * 8 + ["done"]
    for name in ("domain", "numeric"):
        losses = [e["loss"] for e in events if e["event"] == "step" and e["adapter"] == name]
        assert len(losses) == 40 and sum(losses[-5:]) < 0.9 * sum(losses[:5]), name
    run = world / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = {"step", "adapter", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds",
            "kind", "labels", "skipped"}
    assert len(rows) == 80 and all(set(row) == keys for row in rows)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-35", "step-40"]
    assert {p.name for p in (run / "adapters").iterdir()} == {"domain", "numeric"}


@pytest.mark.parametrize("loss", ["letter", "likelihood", "both"])
def test_joint_gradients_equal_separate_ones(world, loss):
    tokenizer = Tokenizer(world / "base")
    settings = config(world)
    batches = {
        "domain": TextBatches(tiny.TEXTS, tokenizer, rows=2, length=96)(0),
        "numeric": ChoiceBatches(tiny.QUESTIONS, tokenizer, size=4, length=96, loss=loss)(0),
    }
    model = load_model(world / "base", dtype=torch.float64)
    adapters = attach(model, {name: settings.lora(name) for name in batches})
    for module in model.modules():
        if isinstance(module, LoRALinear):
            module.double()
    with torch.no_grad():
        for name in batches:
            for b in adapters.parameters(name)[1::2]:
                b.normal_()

    def gradients(chosen):
        losses = forward_losses(model, adapters, chosen)
        torch.stack(list(losses.values())).sum().backward()
        found = {}
        for name in chosen:
            found[name] = [p.grad for p in adapters.parameters(name)]
            for p in adapters.parameters(name):
                p.grad = None
        return losses, found

    losses, joint = gradients(batches)
    for name, batch in batches.items():
        alone, apart = gradients({name: batch})
        assert abs(losses[name] - alone[name]) < 1e-10
        for ours, expected in zip(joint[name], apart[name], strict=True):
            assert (ours - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_likelihood_loss_is_the_softmax_over_scored_options_and_the_text_loss(world, weight):
    tokenizer, model = Tokenizer(world / "base"), load_model(world / "base")
    batches = ChoiceBatches(tiny.QUESTIONS, tokenizer, size=8, length=96, loss="likelihood", text=weight > 0)
    batch = batches(0)
    expected = []
    for question in tiny.QUESTIONS:
        scores, right, text = [], "ABCD".index(question.answer), 0.0
        for option in encode_options(question, tokenizer, max_length=96):
            logs = model(torch.tensor([option.ids]))[0].log_softmax(-1)
            ids = torch.tensor(option.ids)
            picked = logs[:-1].gather(1, ids[1:, None])[:, 0]
            parts = [picked[a - 1 : b - 1] for a, b in (option.option, option.rest) if b > a]
            text = -picked.mean() if len(scores) == right else text
            scores.append(sum(part.mean() for part in parts))
        expected.append(-torch.stack(scores).log_softmax(0)[right] + weight * text)
    x = model.hidden(batch.tokens, documents=batch.documents, branches=batch.branches).flatten(0, 1)[batch.positions]
    losses = torch.nn.functional.cross_entropy(model.lm_head(x), batch.labels, reduction="none")
    assert torch.allclose(choice_loss(losses, batch, weight), torch.stack(expected).mean(), atol=1e-5)


KINDS = {
    "plain": {},
    "dora, dropout, LoRA+": {
        "domain": LoRAConfig(rank=4, alpha=8.0, dora=True, dropout=0.2), "b_ratio": 4.0,
        "numeric": LoRAConfig(rank=2, alpha=4.0, dropout=0.1, start="pissa"),
    },
    "dropout, recomputed": {"domain": LoRAConfig(rank=4, alpha=8.0, dropout=0.2), "checkpointing": "full"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_run_equals_the_uninterrupted_one(world, kind):
    settings = KINDS[kind]
    list(train(config(world, "whole", **settings)))
    count = [0]

    def stop():
        count[0] += 1
        return count[0] == 8

    events = list(train(config(world, "parts", **settings), stop=stop))
    assert events[-1]["event"] == "interrupted" and events[-1]["step"] == 7
    list(train(config(world, "parts", **settings), resume=True))
    assert adapter_bytes(world / "whole" / "adapters") == adapter_bytes(world / "parts" / "adapters")

    assert tiny.metrics(world / "whole") == tiny.metrics(world / "parts")


def test_dropout_drops_and_the_rate_of_b_counts(world):
    def run(name, **settings):
        list(train(config(world, name, adapters=("domain",), **settings)))
        return adapter_bytes(world / name / "adapters")

    plain = run("plain", domain=LoRAConfig(rank=4, alpha=8.0))
    assert run("same", domain=LoRAConfig(rank=4, alpha=8.0), b_ratio=1.0) == plain
    assert run("dropout", domain=LoRAConfig(rank=4, alpha=8.0, dropout=0.3)) != plain
    assert run("fast", domain=LoRAConfig(rank=4, alpha=8.0), b_ratio=8.0) != plain
    whole = run("recomputed", domain=LoRAConfig(rank=4, alpha=8.0, dropout=0.3), checkpointing="full")
    assert whole == run("kept", domain=LoRAConfig(rank=4, alpha=8.0, dropout=0.3), checkpointing="none")


def test_killed_run_resumes_to_the_same_bytes(world):
    list(train(config(world, "whole", steps=30)))
    code = (
        "import sys, os, signal; from pathlib import Path\n"
        "from numllm.train import train; from tiny import settings as config\n"
        "for event in train(config(Path(sys.argv[1]), 'killed', steps=30)):\n"
        "    if event.get('step') == 17 and event['event'] == 'step': os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}", str(world)], capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    events = list(train(config(world, "killed", steps=30), resume=True))
    assert events[0]["step"] == 15
    assert adapter_bytes(world / "whole" / "adapters") == adapter_bytes(world / "killed" / "adapters")


def test_one_adapter_alone_is_the_same_as_beside_the_other(world):
    list(train(config(world, "both", steps=6)))
    list(train(config(world, "alone", steps=6, adapters=("numeric",), corpus=None)))
    from safetensors.torch import load_file

    ours, theirs = (
        load_file(world / run / "adapters" / "numeric" / "adapter_model.safetensors") for run in ("both", "alone")
    )
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], atol=2e-4), name
    assert not (world / "alone" / "adapters" / "domain").exists()


@pytest.mark.parametrize("changes, error, message", [
    ({"steps": 0}, ConfigError, "steps must be a positive"),
    ({"corpus": None}, ConfigError, "needs a corpus"),
    ({"numct": None}, ConfigError, "needs choice questions"),
    ({"loss": "other"}, ConfigError, "letter, likelihood or both"),
    ({"text_weight": -1.0, "loss": "likelihood"}, ConfigError, "at least 0"),
    ({"text_weight": 1.0, "loss": "letter"}, ConfigError, "scores no text"),
    ({"digit_weight": 1.0, "loss": "letter"}, ConfigError, "scores no digits"),
    ({"varied": True, "loss": "likelihood"}, ConfigError, "are about letters"),
    ({"length": 4096}, TrainError, "more than the model's context of 128"),
    ({"corpus": "nowhere"}, NumLLMError, "nowhere"),
    ({"numct": "nowhere.jsonl"}, NumLLMError, "nowhere.jsonl"),
    ({"domain": LoRAConfig(targets=("nothing",))}, NumLLMError, "no linear named nothing"),
    ({"domain": LoRAConfig(rank=100_000)}, NumLLMError, "a rank is .* at most on a weight of .* got 100000"),
    ({"shard": True}, TrainError, "needs several processes"),
    ({"impl": "triton"}, TrainError, "takes CUDA tensors, got cpu|needs the package triton"),
])
def test_what_cannot_be_trained_is_refused(world, changes, error, message):
    with pytest.raises(error, match=message) as caught:
        list(train(config(world, **changes)))
    assert "\n" not in str(caught.value)
    assert not (world / "run").exists(), "what never came to be a run keeps no one from starting it right"


def test_runs_are_not_overwritten_and_resume_checks_what_changed(world):
    list(train(config(world, steps=5)))
    with pytest.raises(TrainError, match="holds a run already"):
        list(train(config(world, steps=5)))
    with pytest.raises(TrainError, match="cannot resume: seed was 0 and is now 1"):
        list(train(config(world, steps=5, seed=1), resume=True))
    with open(world / "corpus" / "corpus.jsonl", "a") as file:
        file.write("\n")
    with pytest.raises(TrainError, match="the corpus changed"):
        list(train(config(world, steps=5), resume=True))
    with pytest.raises(TrainError, match="no run to resume"):
        list(train(config(world, "new"), resume=True))


def test_a_full_disk_is_one_line_and_the_run_goes_on_afterwards(world, monkeypatch):
    list(train(config(world, "whole")))
    events = train(config(world))
    while next(events).get("step") != 7:
        pass
    metrics = world / "run" / "metrics.jsonl"
    kept = metrics.read_text()
    metrics.unlink()
    metrics.symlink_to("/dev/full")
    with pytest.raises(TrainError, match="No space left on device; mend that"):
        list(events)
    metrics.unlink()
    metrics.write_text(kept)
    list(train(config(world), resume=True))
    assert adapter_bytes(world / "whole" / "adapters") == adapter_bytes(world / "run" / "adapters")


def test_broken_questions_name_the_line(world):
    (world / "numct.jsonl").write_text('{"question": 1}\n')
    with pytest.raises((TrainError, DataError), match="line 1"):
        list(train(config(world)))


@pytest.mark.parametrize("loss", ["letter", "likelihood"])
def test_questions_longer_than_a_row_are_told(world, loss):
    events = list(train(config(world, steps=3, length=24 if loss == "letter" else 12, loss=loss)))
    (warning,) = [e["message"] for e in events if e["event"] == "warning"]
    assert "is longer than --length" in warning and "loses its beginning" in warning
    assert not [e for e in train(config(world, "fits", steps=3, loss=loss)) if e["event"] == "warning"]
