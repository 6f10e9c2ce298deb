"""Commands that show a model at work: generate, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import (
    EXISTING,
    adapters_on,
    bar,
    command,
    device_option,
    dtype_option,
    finish,
    json_option,
    load_for_use,
    say,
)
from .training import run_training


@command(epilog="numllm generate --model merged --prompt 债券的久期是指 --max-new-tokens 60")
@click.option("--model", required=True, help="Checkpoint: folder, Hub id or demo.")
@click.option("--adapter", "adapters", multiple=True, metavar="PATH[=WEIGHT]", help="Unmerged adapters.")
@click.option("--prompt", required=True)
@click.option("--max-new-tokens", default=128, show_default=True)
@click.option("--temperature", default=0.0, show_default=True, help="0: greedy.")
@click.option("--top-k", type=click.IntRange(min=1))
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True))
@click.option("--seed", default=0, show_default=True)
@device_option
@dtype_option
@json_option
def generate(
    model: str, adapters: tuple[str, ...], prompt: str, max_new_tokens: int, temperature: float,
    top_k: int | None, top_p: float | None, seed: int, device: str, dtype: str | None, as_json: bool,
) -> None:
    """Continues a prompt."""
    from ..generate import generate as continue_

    loaded, tokenizer, attached = load_for_use(model, adapters, device, dtype)
    with adapters_on(attached):
        (text,) = continue_(
            loaded, tokenizer, [prompt], max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
            top_p=top_p, seed=seed,
        )
    finish({"prompt": prompt, "text": text}, prompt + text, as_json)


@command(epilog="numllm demo --out demo-run\nnumllm demo --json | tail -n 1")
@click.option("--out", default="demo-run", show_default=True, type=EXISTING)
@click.option("--steps", type=click.IntRange(min=1), help="Training steps; default: the demo's own.")
@click.option("--seed", default=0, show_default=True, help="Of the adapters' start and the order of data.")
@click.option("--overwrite", is_flag=True, help="Replace --out.")
@json_option
def demo(out: Path, steps: int | None, seed: int, overwrite: bool, as_json: bool) -> None:
    """The whole way on the embedded default: textbook to merged model, in minutes, without a GPU."""
    from ..demo import run_demo

    def train_whole(config: Any) -> None:
        event, _ = run_training(config)
        if event["event"] == "interrupted":
            raise KeyboardInterrupt

    result = run_demo(
        out, steps=steps, seed=seed, overwrite=overwrite, train=train_whole, say=say, progress=bar
    )
    finish(result, result.pop("text"), as_json)
