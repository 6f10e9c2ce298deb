"""The command that trains."""

from __future__ import annotations

import dataclasses
import signal
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from ..config import LoRAConfig
from ..fields import docs_of, plain, types_of
from ..settings import SHARED, checked, combine, read_settings, refuse_contradictions
from ..train_config import ADAPTERS, TrainConfig
from .common import EXISTING, bar, command, finish, json_option, pick_device


def _option(name: str, kind: Any, default: Any, text: str) -> Callable[..., Any]:
    """The flag of a setting; absent unless given, so that files and recipes show through."""
    kind = plain(kind)
    flag = name.replace("_", "-")
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else None
    if name == "adapters":
        choices, default = ("both", *ADAPTERS), "both"
    elif name == "device":
        default = "auto"
    elif isinstance(default, tuple):
        text, default = f"{text[:-1]}, comma-separated.", ", ".join(default)
    if default not in (None, dataclasses.MISSING):
        text += f"  [default: {default}]"
    return click.option(
        f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}", name, default=None, help=text,
        type=click.Choice(choices) if choices else kind if kind in (bool, int, float) else str,
    )


def _settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """A flag for each field of TrainConfig and, for both adapters and for each, of LoRAConfig."""
    options = []
    for field in dataclasses.fields(TrainConfig):
        if field.name not in ADAPTERS:
            text = docs_of(TrainConfig)[field.name]
            options.append(_option(field.name, types_of(TrainConfig)[field.name], field.default, text))
    for adapter in ("", *ADAPTERS):
        for field in dataclasses.fields(LoRAConfig):
            kind, text = types_of(LoRAConfig)[field.name], docs_of(LoRAConfig)[field.name]
            if adapter:
                options.append(_option(f"{adapter}_{field.name}", kind, None, f"The {adapter} adapter's {field.name}."))
            else:
                options.append(_option(field.name, kind, field.default, text))
    for option in reversed(options):
        function = option(function)
    return function


def _layer(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, those of one adapter in its table."""
    layer: dict[str, Any] = {}
    for name, value in flags.items():
        adapter, _, key = name.partition("_")
        if value is None:
            continue
        if adapter in ADAPTERS and key in SHARED:
            layer.setdefault(adapter, {})[key] = value
        else:
            layer[name] = value
    return layer


@command(epilog=(
    "numllm train --model Qwen/Qwen2.5-7B --corpus corpus --numct numct.jsonl --out run --steps 1000\n"
    "numllm train --model demo --numct numct.jsonl --adapters numeric --loss likelihood --out run\n"
    "numllm train --config run/config.toml --out again\n"
    "numllm train --out run --resume"
))
@click.option("--config", "file", type=EXISTING, help="TOML file of settings, named as the flags; flags win.")
@click.option("--resume", is_flag=True, help="Continue the run in --out, bit for bit, with its own settings.")
@_settings_options
@json_option
def train(file: Path | None, resume: bool, as_json: bool, **flags: Any) -> None:
    """Trains the domain and the numeric adapter on one frozen model, together or apart."""
    given = _layer(flags)
    config = settings_of(given, file, resume=resume)
    result, text = run_training(config, resume=resume)
    finish(result, text, as_json)
    if result["event"] == "interrupted":
        sys.exit(130)


def settings_of(given: dict[str, Any], file: Path | None = None, *, resume: bool = False) -> TrainConfig:
    """Defaults, then the file's settings (for a run that is resumed, by default its own), then the flags given."""
    flags = checked(given, "flags")
    if file is None and resume and "out" in given:
        own = Path(given["out"]) / "config.toml"
        file = own if own.is_file() else None
    layers = [{"device": "auto"}, read_settings(file) if file else {}, flags]
    for key in ("model", "out"):
        if not any(key in layer for layer in layers):
            raise click.UsageError(f"Missing option '--{key}'")
    config = combine(*layers)
    refuse_contradictions(given, config)
    return dataclasses.replace(config, device=pick_device(config.device))


def run_training(config: TrainConfig, *, resume: bool = False) -> tuple[dict[str, Any], str]:
    """Trains with a progress bar; the last event and a text about it. The first SIGINT or SIGTERM saves and stops."""
    from tqdm import tqdm

    from ..files import read_jsonl
    from ..report import has_plots, plot_loss
    from ..train import train as events

    asked = []
    before = {
        number: signal.signal(number, lambda *_: asked.append(True)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    last: dict[str, Any] = {}
    losses: dict[str, float] = {}
    try:
        with tqdm(total=config.steps, desc="training", unit="step", disable=None, leave=False) as shown:
            for event in events(config, resume=resume, stop=lambda: bool(asked), progress=bar):
                if event["event"] == "start":
                    shown.update(event["step"])
                elif event["event"] == "step":
                    losses[event["adapter"]] = event["loss"]
                    shown.set_postfix({**losses, "tok/s": event["tokens_per_second"]})
                    shown.update(event["step"] - shown.n)
                last = event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    run = Path(config.out)
    if has_plots() and losses:
        plot_loss([row for _, row in read_jsonl(run / "metrics.jsonl")], run / "loss.png")
    if last["event"] == "interrupted":
        return last, f"interrupted at step {last['step']}; saved; continue with --resume"
    return last, "\n".join(f"{name}: {folder}" for name, folder in last["adapters"].items())
