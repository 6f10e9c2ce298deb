"""Commands on adapters and their base: merge, calibrate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from ..report import table
from .common import (
    EXISTING,
    bar,
    command,
    device_option,
    dtype_option,
    finish,
    json_option,
    pick_device,
    say,
    weighted,
)


def size(text: str) -> int:
    """"5GB" → 5 000 000 000; KB, MB, GB, TB, KiB, MiB, GiB, TiB or plain bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B|B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise click.BadParameter(f"wanted a size such as 5GB, got {text!r}")
    number, unit, binary = found.groups()
    return int(float(number) * ((1024 if binary else 1000) ** (" KMGT".index(unit.upper()) if unit else 0)))


_WITH_EXTRACT = {"--base", "--out", "--extract", "--rank", "--energy", "--overwrite", "--report", "--json", "--plot"}
"""Options that --extract honours."""


def _given() -> set[str]:
    """The options that stand on the command line."""
    context = click.get_current_context()
    return {option.opts[0] for option in context.command.params
            if context.get_parameter_source(option.name) is click.core.ParameterSource.COMMANDLINE}


@command(epilog=(
    "numllm merge --base Qwen/Qwen2.5-7B --adapter run/adapters/domain --adapter run/adapters/numeric "
    "--out merged\n"
    "numllm merge --base demo --adapter a=0.7 --adapter b=0.3 --method svd --rank 16 --out merged --verify\n"
    "numllm merge --base Qwen/Qwen2.5-7B --adapter a --adapter b --method svd --energy 0.99 --as adapter --out both\n"
    "numllm merge --base Qwen/Qwen2.5-7B --adapter pissa --start pissa=pissa-begun --method exact --out merged\n"
    "numllm merge --base Qwen/Qwen2.5-7B --extract my-full-tune --rank 32 --out adapter"
))
@click.option("--base", required=True, help="Checkpoint: folder, Hub id or demo.")
@click.option("--adapter", "adapters", multiple=True, metavar="PATH[=WEIGHT]")
@click.option("--out", required=True, type=EXISTING, help="Folder to write.")
@click.option("--method", type=click.Choice(
    ["svd", "exact", "linear", "ties", "dare", "dare-ties", "peft-ties", "knots", "core"]
), default="svd", show_default=True)
@click.option("--rank", help="Rank kept (svd), or auto: as many as rise above the dtype's rounding; default: the "
              "largest of the adapters. With --extract: 16.")
@click.option("--energy", type=float, help="Keep the fewest directions with this share of Σσ² (svd, --extract).")
@click.option("--density", type=float, help="Share of entries kept by ties, dare, knots and core.")
@click.option("--seed", default=0, show_default=True, help="Of what dare drops.")
@click.option("--weights", type=EXISTING, help="JSON: adapter's name → weight, or → module → weight.")
@click.option("--start", "starts", multiple=True, metavar="PATH=START",
              help="An adapter as it was before training (PiSSA, OLoRA, CorDA).")
@click.option("--extract", "tuned", metavar="CKPT", help="Write the adapter that leads from --base to this checkpoint.")
@click.option("--as", "as_", type=click.Choice(["model", "adapter"]), default="model", show_default=True)
@click.option("--max-shard-size", metavar="SIZE", help="Such as 5GB; default: the base's own files.")
@click.option("--dry-run", is_flag=True, help="Check and say what would change; write nothing.")
@click.option("--verify", is_flag=True, help="Read the result back and check every tensor; hash every input anew.")
@click.option("--compare-logits", is_flag=True,
              help="Build the model: logits of the result against the base with its adapters unmerged.")
@click.option("--verify-share", default=1.0, show_default=True, help="Check a random share of the tensors.")
@click.option("--overwrite", is_flag=True, help="Replace --out.")
@click.option("--device", default="cpu", show_default=True, help="Where the sums are made: cpu, cuda, cuda:1, …")
@click.option("--report", type=EXISTING, help="Write the report (JSON) here too.")
@click.option("--plot", type=EXISTING, help="Draw change, energy kept and cosines by layer: .png, .svg or .pdf.")
@json_option
def merge(
    base: str, adapters: tuple[str, ...], out: Path, rank: str | None, energy: float | None, starts: tuple[str, ...],
    tuned: str | None, as_: str, max_shard_size: str | None, compare_logits: bool, verify_share: float, overwrite: bool,
    report: Path | None, plot: Path | None, as_json: bool, **settings: Any,
) -> None:
    """Folds LoRA adapters into a checkpoint, on its safetensors files, without building the model."""
    from ..files import write_json
    from ..merge import by_kind, by_layer, extract
    from ..merge import merge as fold
    from ..report import check_figure, plot_layers

    if rank is not None and rank != "auto" and not (rank.isdecimal() and int(rank)):
        raise click.BadParameter(f"--rank takes a whole number from 1 or auto, got {rank!r}")
    number = int(rank) if rank not in (None, "auto") else None
    if bool(tuned) == bool(adapters):
        raise click.UsageError("give either --adapter, once or more, or --extract")
    if tuned and (strange := _given() - _WITH_EXTRACT - ({"--as"} if as_ == "adapter" else set())):
        raise click.UsageError(f"--extract does not take {', '.join(sorted(strange))}")
    if tuned and rank == "auto":
        raise click.UsageError("--rank auto goes with adapters; give --extract a whole number, or --energy")
    if (plot or compare_logits) and settings["dry_run"]:
        raise click.UsageError("--plot and --compare-logits are about a result, so they do not go with --dry-run")
    if compare_logits and (tuned or settings["weights"]):
        raise click.UsageError("--compare-logits goes with adapters of one weight each")
    if plot:
        check_figure(plot)
    for file in filter(None, (report, plot)):
        for folder in (Path(base), *(weighted(text)[0] for text in adapters), *([Path(tuned)] if tuned else [])):
            if folder.is_dir() and file.resolve().is_relative_to(folder.resolve()):
                raise click.UsageError(f"{file} lies in {folder}, which is only read; choose another place")
    if tuned:
        result = extract(base, tuned, out, rank=number or 16, energy=energy, overwrite=overwrite, progress=bar)
    else:
        pairs = [text.rpartition("=") for text in starts]
        if lacking := [text for text, (path, _, start) in zip(starts, pairs, strict=True) if not path or not start]:
            raise click.BadParameter(f"--start takes PATH=START, got {lacking[0]!r}")
        result = fold(
            base, [weighted(text) for text in adapters], out, rank=number, noise=rank == "auto", energy=energy,
            starts={path: start for path, _, start in pairs}, as_=as_, sample=verify_share, overwrite=overwrite,
            max_shard=size(max_shard_size) if max_shard_size else None, progress=bar, **settings,
        )
    if compare_logits:
        from ..agreement import agreement

        result["logits"] = agreement(base, [weighted(text) for text in adapters], out, progress=bar)
    if report:
        write_json(report, result)
    if plot:
        labels = {"change": "‖Δ‖ / ‖W‖", "energy": "energy kept", "cosine": "cosine of deltas"}
        panels = {labels[figure]: lines for figure, lines in by_layer(result).items()}
        plot_layers(panels, plot, title="What the merge did, layer by layer")
    for warning in result["overall"].get("warnings", ()):
        say(f"warning: {warning}")
    overall = [{"figure": key.replace("_", " "), "value": str(value)}
               for key, value in result["overall"].items()
               if value is not None and not isinstance(value, dict | list)]
    overall += [{"figure": f"logits: {key.replace('_', ' ')}", "value": f"{value:.4g}"}
                for key, value in result.get("logits", {}).items()]
    text = table(overall, ["figure", "value"])
    if not tuned:
        rows = by_kind(result)
        heads = {"kind": "weight", "weights": "n", "rank_kept": "rank", "energy_kept": "energy",
                 "delta_norm_relative": "‖Δ‖/‖W‖", "pair": "adapters", "cosine": "cosine",
                 "shared_output": "shared out", "shared_input": "shared in", "agree": "agree", "collide": "collide",
                 "ignore": "ignore"}
        text += "\n\n" + table(rows, {key: head for key, head in heads.items() if any(key in row for row in rows)})
    elif result["left_out"]:
        text += f"\nnot in the adapter: {', '.join(result['left_out'])}"
    finish(result, text, as_json)


@command(epilog=(
    "numllm calibrate --base Qwen/Qwen2.5-7B --adapter domain --adapter numeric --questions dev/ --out weights.json\n"
    "numllm merge --base Qwen/Qwen2.5-7B --adapter domain --adapter numeric --weights weights.json --out merged"
))
@click.option("--base", required=True, help="Checkpoint: folder, Hub id or demo.")
@click.option("--adapter", "adapters", multiple=True, required=True, metavar="PATH[=WEIGHT]",
              help="With the weight to begin with.")
@click.option("--questions", multiple=True, required=True, type=EXISTING, help="Choice questions to serve.")
@click.option("--out", required=True, type=EXISTING, help="File to write, for merge --weights.")
@click.option("--steps", default=60, show_default=True)
@click.option("--size", default=8, show_default=True, help="Questions a step.")
@click.option("--length", default=512, show_default=True, help="Tokens a row.")
@click.option("--rate", default=0.05, show_default=True)
@click.option("--loss", type=click.Choice(["letter", "likelihood"]), default="letter", show_default=True)
@click.option("--held", default=0.3, show_default=True, help="Share of the questions held back to choose by.")
@click.option("--seed", default=0, show_default=True)
@device_option
@dtype_option
@json_option
def calibrate(
    base: str, adapters: tuple[str, ...], questions: tuple[Path, ...], out: Path, device: str, dtype: str | None,
    as_json: bool, **settings: Any,
) -> None:
    """Learns a weight for every adapter and module, unmerged, from a small set of questions."""
    import statistics

    import torch

    from ..calibrate import CalibrateConfig
    from ..calibrate import calibrate as learn

    result = learn(
        base, [weighted(text) for text in adapters], questions, out, config=CalibrateConfig(**settings),
        dtype=getattr(torch, dtype) if dtype else None, device=pick_device(device), progress=bar,
    )
    rows = [{"adapter": name, "modules": len(weights), "least": min(weights.values()),
             "mean": statistics.fmean(weights.values()), "most": max(weights.values())}
            for name, weights in result["weights"].items()]
    loss = result["loss"]
    text = f"held-back loss {loss['before']:.4f} → {loss['after']:.4f} (step {result['best_step']})\n"
    finish(result, text + table(rows, ["adapter", "modules", "least", "mean", "most"]), as_json)
