"""The command that trains."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import signal
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import click

from ..config import LoRAConfig
from ..errors import ConfigError, NumLLMError
from ..fields import docs_of, plain, types_of
from ..files import no_progress
from ..recipes import recipe as find_recipe
from ..recipes import recipes
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
        text, default = f"{text[:-1]}, comma-separated.", ", ".join(default) or None
    elif typing.get_origin(kind) is Mapping:
        text = f"{text[:-1]}; NAME=NUMBER, comma-separated."
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
    "numllm train --recipe qwen2.5-7b-80gb --corpus corpus --numct numct.jsonl --out run --steps 1000 --dry-run\n"
    "numllm train --config run/config.toml --out again\n"
    "numllm train --out run --resume"
))
@click.option("--config", "file", type=EXISTING, help="TOML file of settings, named as the flags; flags win.")
@click.option("--recipe", help="Settings for a model and a GPU, by name; the file and flags win.")
@click.option("--recipes", "list_recipes", is_flag=True, help="List the recipes and do nothing else.")
@click.option("--resume", is_flag=True, help="Continue the run in --out, bit for bit, with its own settings.")
@click.option("--dry-run", is_flag=True, help="Show the plan, from a few steps measured; write nothing.")
@_settings_options
@click.option("--events", is_flag=True, help="A JSON line on stdout for each event, and nothing else.")
@json_option
def train(
    file: Path | None, recipe: str | None, list_recipes: bool, resume: bool, dry_run: bool, events: bool, as_json: bool,
    **flags: Any,
) -> None:
    """Trains the domain and the numeric adapter on one frozen model, together or apart.

    Under torchrun the processes share each step's rows: torchrun --nproc-per-node 8 -m numllm train ...
    """
    if list_recipes:
        finish(*_recipes(), as_json)
        return
    if dry_run and resume:
        raise ConfigError("--dry-run and --resume do not go together: a plan is of a whole run")
    with _one_voice() as meeting:
        given = _layer(flags)
        config = settings_of(given, file, recipe, resume=resume)
        from ..train import joined, plan

        with joined(config.device, meeting) as world:
            if dry_run:
                result = plan(config, world=world, progress=bar if world.first else no_progress)
                text = _plan_table(result)
            else:
                tell = {"tell": _print_event} if events else {}
                result, text = run_training(config, resume=resume, world=world, **tell)
            if world.first and dry_run and events:
                _print_event(result)
            elif world.first and not events:
                finish(result, text, as_json)
    if result["event"] == "interrupted":
        sys.exit(130)


def _print_event(event: dict[str, Any]) -> None:
    click.echo(json.dumps(event, ensure_ascii=False, allow_nan=False))


@contextlib.contextmanager
def _one_voice() -> Iterator[Any]:
    """Where torchrun's processes meet, or None; of all that fail inside, the first alone says so."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None
        return
    from ..train import Meeting

    meeting = Meeting.from_environment()
    try:
        yield meeting
    except Exception as error:
        if not meeting.first_to_fail:
            sys.exit(1)
        if not isinstance(error, NumLLMError):
            raise
        raise type(error)(f"process {meeting.rank} of {meeting.size}: {error}") from error


def settings_of(
    given: dict[str, Any], file: Path | None = None, recipe: str | None = None, *, resume: bool = False
) -> TrainConfig:
    """Defaults, then a recipe, the file's settings (by default, of a run that is resumed its own), the flags given."""
    flags = checked(given, "flags")
    if file is None and recipe is None and resume and "out" in given:
        own = Path(given["out"]) / "config.toml"
        file = own if own.is_file() else None
    settings = read_settings(file) if file else {}
    named = settings.pop("recipe", None)
    recipe = recipe or named
    layers = [{"device": "auto"}, find_recipe(recipe).layer if recipe else {}, settings, flags]
    for key in ("out", "model"):
        if not any(key in layer for layer in layers):
            if resume and key == "model":
                out = next(layer["out"] for layer in reversed(layers) if "out" in layer)
                raise ConfigError(f"{out}: there is no run to resume, no config.toml in it; begin one without --resume")
            raise click.UsageError(f"Missing option '--{key}'")
    config = combine(*layers)
    refuse_contradictions(given, config)
    return dataclasses.replace(config, device=pick_device(config.device))


def _recipes() -> tuple[dict[str, Any], str]:
    from ..report import table

    rows = [
        {
            "recipe": found.name, "model": found.layer["model"], "GPUs": f"{found.processes} × {found.gigabytes} GB",
            "estimate": f"{found.estimate:.1f} GB",
            **{key: found.layer[key] for key in ("dtype", "length", "tokens", "micro_tokens", "checkpointing")},
        }
        for found in recipes().values()
    ]
    return {found.name: dataclasses.asdict(found) for found in recipes().values()}, table(rows, list(rows[0]))


def run_training(
    config: TrainConfig, *, resume: bool = False, world: Any = None,
    tell: Callable[[dict[str, Any]], None] = lambda event: None,
) -> tuple[dict[str, Any], str]:
    """Trains with a progress bar, telling each event; the last event and a text about it.

    The first SIGINT or SIGTERM saves and stops.
    """
    from tqdm import tqdm

    from ..files import read_jsonl
    from ..report import has_plots, plot_loss
    from ..train import World
    from ..train import train as events

    world = world or World(device=config.device)
    progress = bar if world.first else no_progress
    asked = []
    before = {
        number: signal.signal(number, lambda *_: asked.append(True)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    last: dict[str, Any] = {}
    losses: dict[str, str] = {}
    try:
        with tqdm(
            total=config.steps, desc="training", unit="step", disable=None if world.first else True, leave=False
        ) as shown:
            for event in events(config, resume=resume, stop=lambda: bool(asked), progress=progress, world=world):
                if world.first:
                    tell(event)
                    if (note := _note(event)) is not None:
                        shown.write(note, file=sys.stderr)
                if event["event"] == "start":
                    shown.update(event["step"])
                elif event["event"] == "step":
                    if event["loss"] is not None:
                        losses[event["adapter"]] = f"{event['loss']:.4g}"
                    shown.set_postfix(losses | _speed(event), refresh=False)
                    shown.update(event["step"] - shown.n)
                last = event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    run = Path(config.out)
    if world.first and has_plots() and losses:
        plot_loss([row for _, row in read_jsonl(run / "metrics.jsonl")], run / "loss.png")
    if last["event"] == "interrupted":
        return last, f"interrupted at step {last['step']}; saved; continue with --resume"
    return last, "\n".join(f"{name}: {folder}" for name, folder in last["adapters"].items())


def _note(event: dict[str, Any]) -> str | None:
    """The line for an event that a person should see pass by, beside the bar; None for the others."""
    if event["event"] == "warning":
        return f"Warning: {event['message']}"
    if event["event"] == "ended":
        return f"step {event['step']}: the {event['adapter']} adapter stopped improving and ends"
    if event["event"] == "step" and event["skipped"] is not None:
        return f"step {event['step']}: the {event['adapter']} adapter's step was skipped: {event['skipped']}"
    if event["event"] == "validation":
        figures = {"perplexity": "{:.3f}", "accuracy": "{:.1%}", "numeric_accuracy": "{:.1%}", "choice_loss": "{:.4f}"}
        shown = [
            f"{key.replace('_', ' ')} {form.format(event[key])}" for key, form in figures.items()
            if event.get(key) is not None
        ]
        best = ", the best so far" if event["best"] else ""
        return f"step {event['step']}, {event['adapter']}: {', '.join(shown)}{best}"
    return None


def _speed(event: dict[str, Any]) -> dict[str, str]:
    """What the progress bar says of a step beside the losses."""
    shown = {"tok/s": f"{event['tokens_per_second']:,.0f}"}
    if event["mfu"] is not None:
        shown["MFU"] = f"{event['mfu']:.1%}"
    return shown | {"mem": _gigabytes(event["memory"])}


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB"


def _plan_table(plan: dict[str, Any]) -> str:
    from ..report import table

    took, each = plan["memory"], plan["adapters"]
    lines = {
        "steps": f"{plan['steps']:,}",
        "tokens": f"{plan['tokens']:,} in all; a step " + ", ".join(
            f"{name} {row['tokens']:,} in {row['rows']} rows ({row['labels']:,} labels)" for name, row in each.items()
        ),
        "epochs": ", ".join(f"{name} {row['epochs']:g}" for name, row in each.items() if row["epochs"] is not None),
        "trained": f"{plan['trained_parameters']:,} parameters; a checkpoint {_gigabytes(plan['checkpoint_bytes'])}",
        "memory": f"{_gigabytes(took['measured'])} measured",
        "speed": f"{plan['seconds_per_step']:.3g} s a step, {plan['tokens_per_second']:,.0f} tokens a second",
        "time": f"{datetime.timedelta(seconds=round(plan['seconds']))} without validation and checkpoints",
    }
    if (terms := took["estimated"]) is not None:
        largest = max((name for name in terms if name != "total"), key=terms.__getitem__)
        lines["memory"] += (
            f"; a step {_gigabytes(terms['total'])} estimated, most of it {largest} ({_gigabytes(terms[largest])})"
        )
    if plan["mfu"] is not None:
        lines["speed"] += f", {plan['mfu']:.1%} of the peak"
    if plan["processes"] > 1:
        lines["processes"] = f"{plan['processes']}; each adds up {_gigabytes(plan['bytes_per_step'])} a step"
    return table([{"plan": name, "": text} for name, text in lines.items() if text], ["plan", ""])
