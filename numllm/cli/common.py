"""What commands share: the group, options, progress, printing, opening a model."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..errors import NumLLMError

EXISTING = click.Path(path_type=Path)


class Real(click.FloatRange):
    """A number in a range; nan, which every range of click's lets through, is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; BadParameter for anything else."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"wanted a finite number, got {value!r}", param, ctx)
        return number


def bar(
    iterable: Iterable[Any], total: int | None = None, description: str = "", unit: str = "it"
) -> Iterable[Any]:
    """A tqdm progress bar on stderr, absent where stderr is no terminal."""
    from tqdm import tqdm

    return tqdm(iterable, total=total, desc=description, unit=unit, disable=None, leave=False)


def say(text: str) -> None:
    """A line for people, on stderr, so that stdout stays for results."""
    click.echo(text, err=True)


def finish(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Prints the result: the text for people, then, with --json, one JSON object as the last line."""
    click.echo(text)
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False, allow_nan=False))


json_option = click.option("--json", "as_json", is_flag=True, help="Last line of stdout: one JSON object.")
device_option = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, … or auto.")
dtype_option = click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Default: as on disk."
)


def pick_device(name: str) -> str:
    """"auto" → cuda where there is one, else cpu. NumLLMError when the device named is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # the meta device has places for numbers and no numbers
    except (RuntimeError, AssertionError) as error:
        raise NumLLMError(f"device {name!r} is not available here; use --device cpu or auto") from error
    return name


def weighted(text: str) -> tuple[Path, float]:
    """PATH[=WEIGHT] → (path, weight)."""
    path, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), 1.0
    try:
        return Path(path), float(weight)
    except ValueError:
        raise click.BadParameter(f"wanted PATH or PATH=WEIGHT, got {text!r}") from None


class Command(click.Command):
    """A command whose examples keep their lines in --help."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the examples as they are."""
        if self.epilog:
            formatter.write("\nExamples:\n" + "".join(f"  {line}\n" for line in self.epilog.splitlines()))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="numllm")
def cli() -> None:
    """Numeric-sensitive language models for Chinese finance, from textbooks to merged weights."""


command = functools.partial(cli.command, cls=Command)


def load_for_use(model: str, adapters: tuple[str, ...], device: str, dtype: str | None) -> tuple[Any, Any, Any]:
    """(model, tokenizer, adapters or None) of a checkpoint with unmerged adapters on it."""
    import torch

    from ..lora import load_adapters
    from ..model import load_model
    from ..tokenizer import Tokenizer

    device = pick_device(device)
    wanted = getattr(torch, dtype) if dtype else None
    loaded = load_model(model, dtype=wanted, device=device, progress=bar)
    tokenizer = Tokenizer.open(model)
    tokenizer.check_fits(loaded.config.vocab_size)
    if not adapters:
        return loaded, tokenizer, None
    pairs = {f"{index}": weighted(text) for index, text in enumerate(adapters)}
    return loaded, tokenizer, load_adapters(loaded, pairs)


def adapters_on(adapters: Any) -> Any:
    """A context in which every adapter is on."""
    import contextlib

    return adapters.use("all") if adapters is not None else contextlib.nullcontext()


def checkpoint_hashes(model: str, adapters: tuple[str, ...]) -> dict[str, str]:
    """Path → SHA-256 of the files of a checkpoint and its adapters that a score depends on."""
    from ..checkpoint import resolve
    from ..evaluate import hashes, model_files

    folders = [resolve(model), *(weighted(text)[0] for text in adapters)]
    return hashes([file for folder in folders for file in model_files(folder)], progress=bar)


def scoring_dtype(device: str, dtype: str | None) -> str | None:
    """The dtype that models are scored in: on the CPU float32, in which it is several times faster than in bfloat16."""
    return dtype or ("float32" if pick_device(device) == "cpu" else None)


def command_line() -> str:
    """The command as it was given."""
    import shlex

    return shlex.join(["numllm", *sys.argv[1:]])
