"""What a run keeps: ends, schedules, damaged checkpoints, changed data and models, the lock, kills, full disks."""

from __future__ import annotations

import math
import os

import pytest
import tiny

from numllm.config import LoRAConfig
from numllm.errors import ConfigError, TrainError
from numllm.train import train
from scripts.kill_train import campaign


def test_adapters_have_their_own_ends_and_schedules(world):
    config = tiny.settings(
        world, steps=8, numeric_steps=5, domain_schedule="linear", numeric_schedule="constant", warmup=0.25,
        last_rate=0.1, domain=LoRAConfig(rank=4, alpha=8.0, targets=("q_proj",)),
    )
    events = list(train(config))
    rows = tiny.metrics(world / "run")
    rates = {name: [row["lr"] for row in rows if row["adapter"] == name] for name in config.adapters}
    assert rates["domain"] == pytest.approx([
        0.005, 0.01, *(0.01 * (0.1 + 0.9 * (1 - step / 6)) for step in range(6))
    ])
    assert rates["numeric"] == pytest.approx([0.01] * 5), "round(0.25 · 5) = 1 step of warm-up, at the whole rate"
    assert events[-1]["step"] == 8
    cosine = tiny.settings(world, steps=10, warmup=0.0, numeric_steps=5)
    assert cosine.rate("numeric", 4) == pytest.approx(0.01 * (0.1 + 0.45 * (1 + math.cos(math.pi * 0.8))))
    # What is finished is what a run of that many steps would have given it, its batches and rates being its own.
    list(train(tiny.settings(
        world, "short", steps=5, numeric_schedule="constant", domain_schedule="linear", warmup=0.25,
        domain=LoRAConfig(rank=4, alpha=8.0, targets=("q_proj",)), domain_rate=config.domain_rate,
    )))
    ours, theirs = (
        (world / run / "adapters" / "numeric" / "adapter_model.safetensors").read_bytes() for run in ("run", "short")
    )
    assert ours == theirs


@pytest.mark.parametrize("changes, message", [
    ({"numeric_steps": 20}, "numeric_steps is 20, more than the run's 12"),
    ({"domain_schedule": "square"}, "domain_schedule must be cosine, linear or constant"),
    ({"length": 1}, "length must be a whole number of at least 2, got 1"),
    ({"micro_tokens": 50}, "micro_tokens must hold at least one row of 96"),
    ({"save_minutes": 0.0}, "save_minutes must be a positive"),
    ({"orthogonality": 1.0, "adapters": ("domain",)}, "between two adapters"),
    ({"spike": float("nan")}, "spike must be a number of at least 0"),
    ({"checkpointing": "some"}, "checkpointing must be auto, none, selective or full"),
])
def test_settings_that_cannot_be_are_refused(world, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny.settings(world, **changes)


def test_what_else_is_damaged_in_a_run_is_told(world):
    list(train(tiny.settings(world, "whole")))
    events = train(tiny.settings(world))
    while next(events).get("step") != 7:
        pass
    events.close()
    run = world / "run"
    with open(run / "metrics.jsonl", "ab") as file:  # as a power cut leaves what was not yet on the disk
        file.write(b"\0\0\xff\n[]\n{\n")
    found = [e["message"] for e in train(tiny.settings(world), resume=True) if e["event"] == "warning"]
    assert found == [f"{run / 'metrics.jsonl'}, line {line}: damaged, it is left out" for line in (15, 16, 17)]
    assert tiny.metrics(world / "whole") == tiny.metrics(run)
    (run / "config.json").write_text("{}")
    with pytest.raises(TrainError, match="config.json: damaged, not what a run writes"):
        list(train(tiny.settings(world), resume=True))


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", [
    "optimizer.safetensors", "state.json",
])
def test_a_damaged_checkpoint_is_found_and_the_one_before_it_taken(world, file):
    list(train(tiny.settings(world, "whole")))
    list(train(tiny.settings(world)))
    saved = world / "run" / "checkpoints"
    _flip(saved / "step-12" / file)
    first, *rest = train(tiny.settings(world), resume=True)
    assert first["event"] == "warning" and str(saved / "step-12" / file) in first["message"]
    assert rest[0]["step"] == 10
    assert tiny.adapter_bytes(world / "whole" / "adapters") == tiny.adapter_bytes(world / "run" / "adapters")
    assert tiny.metrics(world / "whole") == tiny.metrics(world / "run")
    for folder in saved.iterdir():
        _flip(folder / file)
    with pytest.raises(TrainError, match="no checkpoint is whole"):
        list(train(tiny.settings(world), resume=True))


def test_resuming_names_what_changed(world):
    list(train(tiny.settings(world, steps=5)))
    for changes, message in [
        ({"domain": LoRAConfig(rank=8, alpha=8.0)}, "domain.rank was 4 and is now 8; set it back"),
        ({"numeric_rate": 0.5, "spike": 0.0}, "numeric_rate was 0.01 and is now 0.5; spike was 10.0 and is now 0.0"),
    ]:
        with pytest.raises(TrainError, match=message):
            list(train(tiny.settings(world, steps=5, **changes), resume=True))
    list(train(tiny.settings(world, steps=5, save_every=1, keep=5, micro_tokens=96), resume=True))
    weights = world / "base" / "model.safetensors"
    kept = weights.read_bytes()
    # The same names, shapes and places, other values.
    header = 8 + int.from_bytes(kept[:8], "little")
    weights.write_bytes(kept[:header] + bytes(byte ^ 1 for byte in kept[header:]))
    with pytest.raises(TrainError, match="cannot resume: the model changed"):
        list(train(tiny.settings(world, steps=5), resume=True))
    weights.write_bytes(kept)
    path = world / "base" / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(TrainError, match="the tokenizer changed"):
        list(train(tiny.settings(world, steps=5), resume=True))


def test_data_that_changes_during_the_run_is_told(world):
    events = []
    for event in train(tiny.settings(world)):
        events.append(event)
        if event.get("step") == 7:
            with open(world / "numct.jsonl", "a") as file:
                file.write("\n")
    (warning,) = [e for e in events if e["event"] == "warning"]
    assert "numct.jsonl changed during the run" in warning["message"]
    assert events[-1]["event"] == "done"
    with pytest.raises(TrainError, match="the numct changed"):
        list(train(tiny.settings(world), resume=True))


def test_prepared_tokens_that_change_during_the_run_stop_it(world):
    tokens = world / "run" / "tokens" / "tokens.bin"
    events = train(tiny.settings(world))
    while next(events).get("step") != 7:
        pass
    kept = tokens.read_bytes()
    tokens.write_bytes(kept[2:] + kept[:2])
    with pytest.raises(TrainError, match="tokens.bin changed during the run, which reads it"):
        list(events)
    with pytest.raises(TrainError, match="tokens.bin: damaged; remove .* and it is made anew"):
        list(train(tiny.settings(world), resume=True))
    for path in tokens.parent.iterdir():
        path.unlink()
    assert next(train(tiny.settings(world), resume=True))["step"] == 5
    assert tokens.read_bytes() == kept


def test_two_processes_do_not_train_into_one_folder(world):
    events = train(tiny.settings(world))
    next(events)
    with pytest.raises(TrainError, match="another process is training"):
        list(train(tiny.settings(world), resume=True))
    events.close()
    list(train(tiny.settings(world), resume=True))


def test_checkpoints_by_the_clock(world, monkeypatch):
    from numllm.train import run

    ticks = iter(range(0, 10_000, 20))
    monkeypatch.setattr(run.time, "monotonic", lambda: float(next(ticks)))
    events = list(train(tiny.settings(world, steps=9, save_every=100, save_minutes=1.0, keep=9)))
    saved = [int(e["path"].rsplit("-", 1)[1]) for e in events if e["event"] == "saved"]
    assert saved == [3, 6, 9] or saved[-1] == 9 and 1 < len(saved) < 9


def test_a_read_only_place_is_refused_in_one_line(world):
    (world / "file").write_text("")
    with pytest.raises(TrainError, match="cannot be written") as caught:
        list(train(tiny.settings(world, "file/run")))
    assert "\n" not in str(caught.value)


def test_what_a_killed_process_left_is_put_back_or_cleared(world):
    list(train(tiny.settings(world)))
    expected = tiny.adapter_bytes(world / "run" / "adapters")
    run = world / "run"
    # Killed while the last checkpoint was being replaced, and while an adapter was being written.
    os.replace(run / "checkpoints" / "step-12", run / "checkpoints" / ".step-12.old-7")
    os.replace(run / "adapters" / "domain", run / "adapters" / ".domain.partial-7")
    (run / ".metrics.jsonl.partial-7").write_text("{")
    assert next(train(tiny.settings(world), resume=True))["step"] == 12
    list(train(tiny.settings(world), resume=True))
    assert tiny.adapter_bytes(run / "adapters") == expected
    assert [path.name for path in run.rglob(".*")] == [".lock"]


def test_kills_and_failing_disks_leave_runs_that_resume_to_the_same_bytes(world):
    seen = campaign(world, kills=6, faults=8, seed=os.getpid(), steps=9)
    assert seen["killed"] + seen["finished before the kill"] >= 6 and seen["faults met"] >= 4
