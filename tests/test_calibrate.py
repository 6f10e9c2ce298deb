"""numllm.calibrate: true gradients, weights that help on questions not learnt from, a file that merge takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from click.testing import CliRunner

from numllm.adapter import write_adapter
from numllm.calibrate import CalibrateConfig, _loss, _Weights, calibrate, learn_weights
from numllm.checkpoint import Checkpoint
from numllm.cli import cli
from numllm.data import ChoiceBatches
from numllm.errors import MergeError
from numllm.lora import load_adapters
from numllm.merge import merge
from numllm.model import load_model
from numllm.tokenizer import Tokenizer

SETTINGS = {"length": 128, "size": 4, "loss": "letter"}


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A base, two random adapters, one large enough to do harm, and questions."""
    base = tiny.base(tmp_path / "base")
    torch.manual_seed(0)
    for name, size in (("harm", 0.3), ("mild", 0.05)):
        factors = {
            info.name.removesuffix(".weight"): (torch.randn(4, info.shape[1]) * size,
                                                torch.randn(info.shape[0], 4) * size)
            for info in Checkpoint.open(base).tensors.values()
            if info.name.endswith(("q_proj.weight", "down_proj.weight"))
        }
        write_adapter(tmp_path / name, factors, rank=4, alpha=4, targets=["q_proj", "down_proj"])
    tiny.numct(tmp_path / "numct.jsonl")
    return tmp_path


def test_gradients_are_those_of_the_weights(inputs: Path) -> None:
    """Against central differences of the loss, in fp64 steps of fp32 losses, for every adapter and module."""
    model, tokenizer = load_model(inputs / "base"), Tokenizer.open(inputs / "base")
    adapters = load_adapters(model, {name: (inputs / name, 1.0) for name in ("harm", "mild")})
    batches = ChoiceBatches(tiny.QUESTIONS, tokenizer, **SETTINGS)
    weights = _Weights(adapters, {"harm": 0.7, "mild": -0.4})
    weights.apply()
    _loss(model, adapters, batches, 0).backward()
    weights.collect()
    gradient = weights.values.grad.clone()
    assert len(gradient) == 8 and bool((gradient != 0).all())
    for place in range(8):
        found = []
        for step in (0.02, -0.02):
            with torch.no_grad():
                weights.values[place] += step
                weights.apply()
                found.append(float(_loss(model, adapters, batches, 0)))
                weights.values[place] -= step
        assert (found[0] - found[1]) / 0.04 == pytest.approx(float(gradient[place]), rel=0.03, abs=2e-4)


def test_a_weight_of_zero_is_left_again(inputs: Path) -> None:
    """The gradient is taken in B, so a module that is off can be turned on."""
    model, tokenizer = load_model(inputs / "base"), Tokenizer.open(inputs / "base")
    adapters = load_adapters(model, {"mild": (inputs / "mild", 1.0)})
    weights = _Weights(adapters, {"mild": 0.0})
    weights.apply()
    _loss(model, adapters, ChoiceBatches(tiny.QUESTIONS, tokenizer, **SETTINGS), 0).backward()
    weights.collect()
    assert bool((weights.values.grad != 0).all())


def test_calibration_helps_and_merges(inputs: Path) -> None:
    """A harmful adapter is turned down: the held-back loss falls, and the merge made with the file has that loss."""
    adapters = [(inputs / "harm", 1.0), (inputs / "mild", 1.0)]
    config = CalibrateConfig(steps=30, rate=0.1, every=5, **SETTINGS)
    found = calibrate(inputs / "base", adapters, [inputs / "numct.jsonl"], inputs / "w.json", config=config)
    assert found["loss"]["after"] < found["loss"]["before"] - 0.02
    assert json.loads((inputs / "w.json").read_text()) == found["weights"]
    merge(inputs / "base", adapters, inputs / "out", method="exact", weights=inputs / "w.json", verify=True)
    model = load_model(inputs / "base")
    loaded = load_adapters(model, {name: (inputs / name, 1.0) for name in ("harm", "mild")})
    weights = _Weights(loaded, {"harm": 1.0, "mild": 1.0})
    with torch.no_grad():
        weights.values.copy_(torch.tensor([found["weights"][name][path] for name, path in weights.places]))
        weights.apply()
        tokens = torch.randint(400, (2, 20))
        with loaded.use("all"):
            wanted = model(tokens)
        torch.testing.assert_close(load_model(inputs / "out")(tokens), wanted, rtol=1e-4, atol=1e-4)
    again = calibrate(inputs / "base", adapters, [inputs / "numct.jsonl"], inputs / "w.json", config=config)
    assert again == found


def test_weights_that_do_not_help_are_not_taken(inputs: Path) -> None:
    """A rate that only does harm gives the start back."""
    config = CalibrateConfig(steps=2, rate=500.0, every=1, **SETTINGS)
    found = calibrate(
        inputs / "base", [(inputs / "mild", 0.5)], [inputs / "numct.jsonl"], inputs / "w.json", config=config
    )
    assert found["best_step"] == 0 and found["loss"]["after"] == found["loss"]["before"]
    assert set(found["weights"]["mild"].values()) == {0.5}


def test_refusals(inputs: Path) -> None:
    for settings in ({"steps": 0}, {"held": 1.0}, {"rate": 0.0}):
        with pytest.raises(MergeError, match=next(iter(settings))):
            CalibrateConfig(**settings)
    model, tokenizer = load_model(inputs / "base"), Tokenizer.open(inputs / "base")
    adapters = load_adapters(model, {"mild": (inputs / "mild", 1.0)})
    with pytest.raises(MergeError, match="questions to learn from and to hold back, got 1"):
        learn_weights(model, tokenizer, adapters, tiny.QUESTIONS[:1], {"mild": 1.0}, CalibrateConfig(**SETTINGS))


def test_the_command(inputs: Path) -> None:
    run = CliRunner().invoke(cli, [
        "calibrate", "--base", str(inputs / "base"), "--adapter", str(inputs / "harm"), "--adapter",
        f"{inputs / 'mild'}=0.5", "--questions", str(inputs / "numct.jsonl"), "--out", str(inputs / "w.json"),
        "--steps", "4", "--length", "128", "--device", "cpu", "--json",
    ])
    assert run.exit_code == 0, run.output
    result = json.loads(run.output.splitlines()[-1])
    assert result["start"] == {"harm": 1.0, "mild": 0.5}
    assert set(json.loads((inputs / "w.json").read_text())) == {"harm", "mild"}
