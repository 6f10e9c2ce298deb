"""The command that trains."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .common import EXISTING, bar, command, device_option, dtype_option, finish, json_option, pick_device


def _lora_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed([
        click.option("--rank", default=16, show_default=True, help="Rank of the adapters."),
        click.option("--alpha", default=32.0, show_default=True, help="Scale is alpha / rank."),
        click.option("--targets", help="Linears, comma-separated; default: all seven of a block."),
        click.option("--domain-rate", default=2e-4, show_default=True),
        click.option("--numeric-rate", default=2e-4, show_default=True),
    ]):
        function = option(function)
    return function


@command(epilog=(
    "numllm train --model Qwen/Qwen2.5-7B --corpus corpus --numct numct.jsonl --out run --steps 1000\n"
    "numllm train --model demo --numct numct.jsonl --adapters numeric --loss likelihood --out run\n"
    "numllm train --model Qwen/Qwen2.5-7B --corpus corpus --numct numct.jsonl --out run --steps 1000 --resume"
))
@click.option("--model", required=True, help="Checkpoint: folder, Hub id or demo.")
@click.option("--corpus", type=EXISTING, help="Folder of corpus.jsonl (domain adapter).")
@click.option("--numct", type=EXISTING, help="Choice questions (numeric adapter).")
@click.option("--out", required=True, type=EXISTING, help="Run folder.")
@click.option("--adapters", type=click.Choice(["both", "domain", "numeric"]), default="both", show_default=True)
@click.option("--steps", default=300, show_default=True)
@click.option("--length", default=512, show_default=True, help="Tokens a row.")
@click.option("--rows", default=8, show_default=True, help="Rows of text a step.")
@click.option("--questions", default=8, show_default=True, help="Questions a step.")
@click.option("--loss", type=click.Choice(["letter", "likelihood", "both"]), default="letter", show_default=True)
@click.option("--text-weight", default=0.0, show_default=True,
              help="Weight of the next-token loss on the right option's text (likelihood, both).")
@click.option("--letter-weight", default=1.0, show_default=True, help="Weight of the letter's loss (both).")
@click.option("--varied", is_flag=True, help="Ask for letters in several layouts, not in FinEval's alone.")
@click.option("--chat", is_flag=True, help="Ask for letters in the checkpoint's chat template.")
@click.option("--digit-weight", default=0.0, show_default=True,
              help="Weight of the expected distance of the right option's digits (likelihood, both).")
@_lora_options
@click.option("--warmup", default=0.05, show_default=True, help="Share of the steps.")
@click.option("--clip", default=1.0, show_default=True, help="Largest gradient norm of an adapter.")
@click.option("--weight-decay", default=0.0, show_default=True)
@click.option("--save-every", default=100, show_default=True, help="Steps between checkpoints.")
@click.option("--seed", default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Continue the run in --out, bit for bit.")
@device_option
@dtype_option
@json_option
def train(
    model: str, corpus: Path | None, numct: Path | None, out: Path, adapters: str, rank: int, alpha: float,
    targets: str | None, device: str, dtype: str | None, resume: bool, as_json: bool, **settings: Any,
) -> None:
    """Trains the domain and the numeric adapter on one frozen model, together or apart."""
    from ..config import TARGETS, LoRAConfig
    from ..train_config import ADAPTERS, TrainConfig

    names = tuple(part.strip() for part in targets.split(",")) if targets else TARGETS
    lora = LoRAConfig(rank=rank, alpha=alpha, targets=names)
    config = TrainConfig(
        model=model, out=str(out), corpus=str(corpus) if corpus else None, numct=str(numct) if numct else None,
        adapters=ADAPTERS if adapters == "both" else (adapters,), domain=lora, numeric=lora,
        device=pick_device(device), dtype=dtype, **settings,
    )
    result, text = run_training(config, resume=resume)
    finish(result, text, as_json)
    if result["event"] == "interrupted":
        sys.exit(130)


def run_training(config: Any, *, resume: bool = False) -> tuple[dict[str, Any], str]:
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
