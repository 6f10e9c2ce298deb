"""Commands that show a model and what it does: generate, inspect, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import (
    EXISTING,
    Real,
    adapters_on,
    bar,
    command,
    device_option,
    dtype_option,
    finish,
    json_option,
    load_for_use,
    pick_device,
    say,
)
from .training import run_training


@command(epilog="numllm generate --model merged --prompt 债券的久期是指 --max-new-tokens 60\n"
                "numllm generate --model chat-model --chat --prompt 什么是久期？ --stop 。")
@click.option("--model", required=True, help="Checkpoint: folder, Hub id or demo.")
@click.option("--adapter", "adapters", multiple=True, metavar="PATH[=WEIGHT]", help="Unmerged adapters.")
@click.option("--prompt", "prompts", required=True, multiple=True, help="Several go through the model together.")
@click.option("--chat", is_flag=True, help="The prompt is a user's message, in the checkpoint's chat template.")
@click.option("--system", help="The system's message before it (with --chat).")
@click.option("--max-new-tokens", default=128, show_default=True, type=click.IntRange(min=1))
@click.option("--temperature", default=0.0, show_default=True, type=Real(min=0), help="0: greedy.")
@click.option("--top-k", type=click.IntRange(min=1))
@click.option("--top-p", type=Real(0, 1, min_open=True))
@click.option("--repetition-penalty", default=1.0, show_default=True, type=Real(0, 100, min_open=True))
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text.")
@click.option("--seed", default=0, show_default=True)
@device_option
@dtype_option
@json_option
def generate(
    model: str, adapters: tuple[str, ...], prompts: tuple[str, ...], chat: bool, system: str | None, device: str,
    dtype: str | None, as_json: bool, **options: Any,
) -> None:
    """Continues a prompt; the text appears as it comes."""
    from ..chat import Chat
    from ..generate import generate as continue_

    if system is not None and not chat:
        raise click.UsageError("--system needs --chat")
    if not all(options["stop"]):
        raise click.UsageError("--stop must not be empty")
    loaded, tokenizer, attached = load_for_use(model, adapters, device, dtype)
    given: list[Any] = list(prompts)
    if chat:
        template = Chat.open(model, tokenizer)
        before = [{"role": "system", "content": system}] if system is not None else []
        given = [template.encode(template.render([*before, {"role": "user", "content": p}])) for p in prompts]
    alone = len(prompts) == 1
    lead = "" if chat else prompts[0]  # appears with the first piece, so that a refused prompt shows nothing

    def show(index: int, piece: str) -> None:
        nonlocal lead
        if alone:
            click.echo(lead + piece, nl=False)
            lead = ""

    with adapters_on(attached):
        texts = continue_(loaded, tokenizer, given, stream=show, **options)
    results = [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]
    if alone:
        finish(results[0], lead, as_json)
    else:
        whole = [text if chat else prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        finish({"results": results}, "\n\n".join(whole), as_json)


@command(epilog="numllm inspect Qwen/Qwen2.5-7B --rows 8 --length 1024 --dtype bfloat16\n"
                "numllm inspect config.json --json | tail -n 1")
@click.argument("checkpoint", metavar="CKPT")
@click.option("--rank", default=16, show_default=True, type=click.IntRange(min=1), help="Of each adapter.")
@click.option("--targets", metavar="NAME,…", help="Linears that adapters sit on; default: all seven of a block.")
@click.option("--adapters", "count", default=2, show_default=True, type=click.IntRange(min=1),
              help="Trained side by side.")
@click.option("--rows", default=8, show_default=True, type=click.IntRange(min=1), help="Rows of each adapter a step.")
@click.option("--length", type=click.IntRange(min=1), help="Tokens a row; default: 512, or a shorter context.")
@click.option("--checkpointing", default="none", show_default=True, type=click.Choice(["none", "selective", "full"]),
              help="What is computed anew in backward.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]),
              help="That trains; it need not be here.")
@dtype_option
@json_option
def inspect(checkpoint: str, targets: str | None, as_json: bool, **options: Any) -> None:
    """Shows what a checkpoint, or a config.json alone, is, and what LoRA on it will touch and need. Of a Hub id the
    weights' headers are fetched, not the weights."""
    from ..inspection import inspect as look
    from ..inspection import text

    if options["device"] == "auto":
        options["device"] = pick_device("auto")
    chosen = tuple(name.strip() for name in targets.split(",")) if targets else None
    result = look(checkpoint, targets=chosen, **options)
    finish(result, text(result), as_json)


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
