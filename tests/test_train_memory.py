"""Activation checkpointing and offloading: not a bit changes; what does not fit is chosen for and told."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch

from numllm.data import ChoiceBatches, TextBatches
from numllm.errors import TrainError
from numllm.memory import Memory
from numllm.model import load_model
from numllm.tokenizer import Tokenizer
from numllm.train import Trainer, inputs, train
from numllm.train.fit import choose, ran_out


def trainer(world, **changes):
    config = tiny.settings(world, loss="likelihood", domain_steps=6, **changes)
    tokenizer = Tokenizer(world / "base")
    return Trainer(config, load_model(world / "base"), {
        "domain": TextBatches(tiny.TEXTS, tokenizer, rows=2, length=96),
        "numeric": ChoiceBatches(tiny.QUESTIONS, tokenizer, size=4, length=96, loss="likelihood"),
    })


@pytest.mark.parametrize("changes", [
    {"checkpointing": "selective"}, {"checkpointing": "full"}, {"offload": True},
    {"checkpointing": "selective", "offload": True}, {"checkpointing": "full", "offload": True},
], ids=str)
def test_what_is_kept_for_backward_changes_no_bit(world, changes):
    plain, other = trainer(world), trainer(world, **changes)
    assert plain.checkpointing == "none"
    for _ in range(8):  # joint steps, and after domain's end steps of numeric alone
        ours, theirs = other.advance(), plain.advance()
        assert [(row["loss"], row["grad_norm"]) for row in ours] == [(row["loss"], row["grad_norm"]) for row in theirs]
    for name in plain.adapters.names:
        for a, b in zip(other.adapters.parameters(name), plain.adapters.parameters(name), strict=True):
            assert torch.equal(a, b)


def memory(**changes):
    return Memory(**{
        "weights": 100, "adapters": 5, "moments": 10, "gradients": 5, "activations": 300, "logits": 20, "backward": 30,
    } | changes)


def test_the_least_checkpointing_that_fits_is_chosen():
    needs = {"none": memory(), "selective": memory(activations=150), "full": memory(activations=20)}
    assert choose(needs, free=1000) == "none"
    assert choose(needs, free=300) == "selective"
    assert choose(needs, free=100) == choose(needs, free=1) == "full"


HOST = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"


def fail(*_, **__):
    raise RuntimeError(HOST)


def test_memory_that_runs_out_anywhere_is_told_in_one_line(world, monkeypatch):
    """For the optimizer's moments, for the model; other errors of torch stay what they are."""
    made = trainer(world)
    with monkeypatch.context() as patch:
        patch.setattr(made.optimizers["domain"], "step", fail)
        with pytest.raises(TrainError, match="step 1: out of memory: a step is estimated to need .* helps: "):
            made.advance()
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "load_model", fail)
        with pytest.raises(TrainError, match="out of memory outside of a step: .* helps: --dtype bfloat16"):
            list(train(tiny.settings(world)))
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "load_model", lambda *_, **__: torch.ones(2) @ torch.ones(3))
        with pytest.raises(RuntimeError, match="size"):
            list(train(tiny.settings(world)))
    try:
        torch.empty(1 << 50)
    except RuntimeError as error:
        assert ran_out(error), "torch words it in another way now"


@pytest.mark.parametrize("changes, wanted, unwanted", [
    ({}, "for activations .* helps: --checkpointing selective, fewer --micro-tokens", "--dtype"),
    ({"checkpointing": "full"}, "helps: fewer --micro-tokens .*, --offload", "--checkpointing"),
    ({"checkpointing": "full", "micro_tokens": 96, "offload": True}, "a shorter --length", "--offload"),
])
def test_running_out_of_memory_names_what_takes_most_and_what_helps(world, monkeypatch, changes, wanted, unwanted):
    made = trainer(world, **changes)
    real = made.need

    def need(checkpointing):
        return dataclasses.replace(real(checkpointing), activations=2**40)

    def fail(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(made, "need", need)
    monkeypatch.setattr(made, "_gradients", fail)
    with pytest.raises(TrainError, match=wanted) as caught:
        made.advance()
    assert "\n" not in str(caught.value) and unwanted not in str(caught.value).split("helps:")[1]
    assert "1024.00 GiB" in str(caught.value)
