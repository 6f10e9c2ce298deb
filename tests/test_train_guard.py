"""Numerics of training: what is skipped, what stops a run, loss scaling, clipping per adapter, accumulation."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from safetensors.torch import load_file

from numllm.config import LoRAConfig
from numllm.data import ChoiceBatches, TextBatches
from numllm.determinism import deterministic
from numllm.errors import TrainError
from numllm.lora import LoRALinear
from numllm.model import load_model
from numllm.tokenizer import Tokenizer
from numllm.train import Trainer, micro_batches, train
from numllm.train import trainer as trainer_module
from numllm.train.guard import ENOUGH, FIRST_SCALE, GROW_AFTER, Guard
from numllm.train.penalty import overlap
from numllm.train.world import World

BROKEN = "\x01"
"""What no text holds; the embedding of its token is made NaN."""


def trainer(world, dtype="float32", poisoned=(), **changes):
    """A trainer whose domain batches hold the broken token at the steps `poisoned`."""
    config = tiny.settings(world, **changes)
    model = load_model(world / "base", dtype=getattr(torch, dtype))
    tokenizer = Tokenizer(world / "base")
    (broken,) = tokenizer.encode(BROKEN)
    with torch.no_grad():
        model.model.embed_tokens.weight[broken] = math.nan
    text = TextBatches(tiny.TEXTS, tokenizer, rows=config.rows, length=96)
    choices = ChoiceBatches(tiny.QUESTIONS, tokenizer, size=config.questions, length=96, loss=config.loss)

    def domain(step):
        batch = text(step)
        if step in poisoned:
            batch.tokens[:, 1] = broken
        return batch

    every = {"domain": domain, "numeric": choices}
    return Trainer(config, model, {name: every[name] for name in config.adapters})


def copies(made, name):
    return [p.detach().clone() for p in made.adapters.parameters(name)]


def equal(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_step_that_is_not_finite_is_skipped_and_the_other_adapter_takes_its_own(world):
    made, alone = trainer(world, poisoned={2}), trainer(world, poisoned={2})
    for _ in range(2):
        made.advance()
        alone.advance()
    before = copies(made, "domain")
    domain, numeric = made.advance()
    assert domain["skipped"] == "nan" and domain["loss"] is None and numeric["skipped"] is None
    assert equal(before, copies(made, "domain"))
    # The numeric step is the one it would have taken with no domain rows beside it.
    alone.ended["domain"] = 2
    (row,) = alone.advance()
    assert row["loss"] == numeric["loss"] and equal(copies(alone, "numeric"), copies(made, "numeric"))
    assert all(row["skipped"] is None for row in made.advance())
    assert not equal(before, copies(made, "domain"))


def test_a_run_that_skips_every_step_stops_and_keeps_its_batch(world):
    events = []
    with pytest.raises(TrainError, match="skipped 3 steps in a row .* lower rate") as caught:
        for event in train(tiny.settings(world, domain_rate=1e30, clip=1e30, warmup=0.0, max_skips=3)):
            events.append(event)
    assert "\n" not in str(caught.value)
    assert [e["skipped"] for e in events if e.get("adapter") == "domain"] == [None, "nan", "nan", "nan"]
    assert [e["skipped"] for e in events if e.get("adapter") == "numeric"] == [None] * 4
    assert [row["skipped"] for row in tiny.metrics(world / "run")][-2:] == ["nan", None]
    (kept,) = (world / "run" / "skipped").iterdir()
    assert str(kept) in str(caught.value)
    batch = load_file(kept)
    wanted = TextBatches(tiny.TEXTS, Tokenizer(world / "base"), rows=2, length=96)(3)
    assert torch.equal(batch["tokens"], wanted.tokens) and torch.equal(batch["labels"], wanted.labels)


def test_an_adapter_that_its_first_step_does_not_move_stops_the_run(world):
    made = trainer(world)
    text = made.sources["domain"]
    made.sources = made.sources | {"domain": lambda step: text(step).idle()}
    with pytest.raises(TrainError, match="the domain adapter received no gradient in the first step"):
        made.advance()
    for start in ("default", "pissa"):  # B begins at 0, and elsewhere
        made = trainer(world, numeric_rate=1e-30, numeric=LoRAConfig(rank=2, alpha=4.0, start=start))
        for group in made.optimizers["numeric"].param_groups:
            group["ratio"] = 1e-30
        with pytest.raises(TrainError, match="the numeric adapter did not move in the first step"):
            made.advance()


def test_spikes_are_judged_by_the_recent_losses():
    guard = Guard(spike=10.0, scaled=False)
    assert all(guard.judge(2.0 + 0.1 * (step % 3), 1.0) is None for step in range(ENOUGH - 1))
    assert Guard(spike=10.0, scaled=False).judge(1e9, 1.0) is None, "there is nothing to compare the first with"
    guard.judge(2.0, 1.0)
    assert guard.judge(4.0, 1.0) == guard.judge(4.0, 1.0) == "spike" and guard.skipped == 2
    assert guard.judge(2.9, 1.0) is None and guard.skipped == 0, "less than a nat above the mean is no spike"
    easy = Guard(spike=10.0, scaled=False)
    assert all(easy.judge(0.001, 1.0) is None for _ in range(ENOUGH)) and easy.judge(0.9, 1.0) is None
    off = Guard(spike=0.0, scaled=False)
    assert all(off.judge(loss, 1.0) is None for loss in [2.0] * ENOUGH + [1e6])
    assert guard.judge(2.0, math.inf) == guard.judge(math.nan, 1.0) == "nan"


def test_the_scale_falls_on_overflow_and_rises_after_a_while():
    guard = Guard(spike=0.0, scaled=True)
    assert guard.scale == FIRST_SCALE
    assert guard.judge(1.0, math.inf) == "overflow" and guard.scale == FIRST_SCALE / 2 and guard.skipped == 0
    for _ in range(GROW_AFTER):
        guard.judge(1.0, 1.0)
    assert guard.scale == FIRST_SCALE
    while guard.scale > 1:
        guard.judge(1.0, math.inf)
    assert guard.judge(1.0, math.inf) == "nan" and guard.skipped == 1, "at scale 1 it is no longer the scale's fault"
    again = Guard(spike=0.0, scaled=True)
    again.load(guard.state())
    assert again.state() == guard.state()


def test_fp16_takes_the_steps_of_fp32_through_a_scaled_loss(world):
    half, full = trainer(world, "float16"), trainer(world)
    assert {guard.scale for guard in half.guards.values()} == {FIRST_SCALE}
    for other in (full, trainer(world, "bfloat16")):
        assert {guard.scale for guard in other.guards.values()} == {None}
    for _ in range(3):
        for ours, theirs in zip(half.advance(), full.advance(), strict=True):
            assert ours["skipped"] is None
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.05)
    half.guards["domain"].scale = 2.0**40
    before = copies(half, "domain")
    domain, numeric = half.advance()
    assert domain["skipped"] == "overflow" and numeric["skipped"] is None
    assert half.guards["domain"].scale == 2.0**39 and half.guards["numeric"].scale == FIRST_SCALE
    assert equal(before, copies(half, "domain"))


def test_each_adapter_is_clipped_by_itself(world):
    made = trainer(world, clip=1e-3)
    found = made._gradients({name: source(0) for name, source in made.sources.items()})
    for name, (_, norm) in found.items():
        clipped = torch.stack([p.grad.norm() for p in made.adapters.parameters(name)]).norm()
        assert norm > 1e-2 and clipped == pytest.approx(1e-3, rel=1e-3), name


@pytest.mark.parametrize("loss", ["letter", "likelihood"])
@pytest.mark.parametrize("limit", [96, 200, 300, 10_000])
def test_any_split_of_a_step_gives_the_same_gradient(world, loss, limit):
    whole, split = (trainer(world, "float64", loss=loss, rows=5, questions=8, clip=1e9, micro_tokens=most)
                    for most in (None, limit))
    for made in (whole, split):
        for module in made.model.modules():
            if isinstance(module, LoRALinear):
                module.double()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name in made.adapters.names:
                for b in made.adapters.parameters(name)[1::2]:
                    b.copy_(torch.randn(b.shape, generator=generator))
    batches = {name: source(0) for name, source in whole.sources.items()}
    parts = micro_batches(batches, limit, World())
    rows = [sum(len(batch.tokens) for batch in part.values()) for part in parts]
    assert sum(rows) == sum(len(batch.tokens) for batch in batches.values())
    assert len(parts) == 1 if limit == 10_000 else len(parts) > 1 and max(rows) * 96 <= limit + 2 * 96
    expected, found = whole._gradients(batches), split._gradients(batches)
    for name in batches:
        assert found[name] == pytest.approx(expected[name], rel=1e-10)
        ours, theirs = ([p.grad for p in made.adapters.parameters(name)] for made in (split, whole))
        assert all((a - b).abs().max() <= 1e-10 * b.abs().max() for a, b in zip(ours, theirs, strict=True))


def test_the_penalty_is_the_normalised_product_of_the_As_and_drives_them_apart(world):
    plain, driven = trainer(world), trainer(world, orthogonality=100.0)
    expected = []
    for module in plain.adapters.modules.values():
        a, b = (module.a[name].detach().double() for name in ("domain", "numeric"))
        expected.append(((a @ b.T).norm() / a.norm() / b.norm()) ** 2)
    assert overlap(plain.adapters).item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    for _ in range(10):
        plain.advance()
        driven.advance()
    assert overlap(driven.adapters) < 0.7 * overlap(plain.adapters)


def test_a_penalty_between_adapters_that_share_no_linear_is_refused(world):
    apart = {
        "domain": LoRAConfig(rank=4, targets=("q_proj",)), "numeric": LoRAConfig(rank=4, targets=("v_proj",)),
    }
    with pytest.raises(TrainError, match="no linear has both"):
        trainer(world, orthogonality=1.0, **apart)
    assert trainer(world, **apart).advance()


def torch_switches():
    return (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


def test_gradients_that_meet_in_one_place_are_added_in_one_order():
    """torch's own way on two threads gave two results for these in 200 tries."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(0)
        x, y = torch.randn(2000, 384, requires_grad=True), torch.randn(2000, 384)
        index = torch.arange(2000) % 500
        found = set()
        with deterministic():
            for _ in range(100):
                (gradient,) = torch.autograd.grad(x[index], x, y)
                found.add(gradient.numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


@pytest.mark.parametrize("wanted", [True, False])
def test_a_step_adds_up_in_one_order_unless_told_otherwise(world, monkeypatch, wanted):
    seen = []

    def watched(*arguments):
        seen.append(torch_switches())
        return forward_losses(*arguments)

    forward_losses = trainer_module.forward_losses
    monkeypatch.setattr(trainer_module, "forward_losses", watched)
    before = torch_switches()
    made = trainer(world, deterministic=wanted)
    made.advance()
    assert seen == [(True, False, False) if wanted else before]
    assert torch_switches() == before


def test_torch_is_left_as_it_was_when_a_step_fails():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before = torch_switches()
        with pytest.raises(ZeroDivisionError), deterministic():
            assert torch_switches() == (True, False, False)
            raise ZeroDivisionError
        assert torch_switches() == before
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_steps_on_a_gpu_give_the_same_bits_again(world, dtype):
    def trained():
        config = tiny.settings(world, loss="likelihood", text_weight=0.5, device="cuda", seed=3)
        model = load_model(world / "base", dtype=getattr(torch, dtype), device="cuda")
        tokenizer = Tokenizer(world / "base")
        text = TextBatches(tiny.TEXTS, tokenizer, rows=config.rows, length=96)
        choices = ChoiceBatches(tiny.QUESTIONS, tokenizer, size=config.questions, length=96, loss=config.loss)
        made = Trainer(config, model, {"domain": text, "numeric": choices})
        for _ in range(3):
            made.advance()
        return [copy.cpu() for name in config.adapters for copy in copies(made, name)]

    first = trained()
    assert all(equal(first, trained()) for _ in range(4))
