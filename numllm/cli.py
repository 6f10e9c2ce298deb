"""The command line: parse, call, report. The only file that knows click; commands import what they use."""

from __future__ import annotations

import functools
import json
import re
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from . import __version__
from .errors import NumLLMError
from .report import accuracy, interval, percent, table

EXISTING = click.Path(path_type=Path)


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
        torch.empty(0, device=name)
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


@command(epilog="numllm corpus books/ notes.md --out corpus --jobs 2")
@click.argument("sources", nargs=-1, required=True, type=EXISTING, metavar="SRC...")
@click.option("--out", required=True, type=EXISTING, help="Folder to write: corpus.jsonl, stats.json.")
@click.option("--holdout", default=0.05, show_default=True, help="Share of the files held out.")
@click.option("--seed", default=0, show_default=True)
@click.option("--jobs", default=1, show_default=True, help="Processes.")
@click.option("--overwrite", is_flag=True, help="Replace --out.")
@json_option
def corpus(
    sources: tuple[Path, ...], out: Path, holdout: float, seed: int, jobs: int, overwrite: bool, as_json: bool
) -> None:
    """Textbooks (Markdown, text, HTML) to a clean corpus with provenance."""
    from .corpus import build_corpus

    stats = build_corpus(
        list(sources), out, holdout=holdout, seed=seed, jobs=jobs, overwrite=overwrite, progress=bar
    )
    for file in stats["failed"]:
        say(f"not read: {file['source']}: {file['reason']}")
    for why, count in stats["skipped"].items():
        say(f"skipped: {count} file(s), {why}")
    rows = [{"figure": key.replace("_", " "), "value": f"{stats[key]:,}"} for key in (
        "files", "documents", "characters", "chinese_characters",
    )]
    rows += [
        {"figure": f"documents, {split}", "value": f"{part['documents']:,}"} for split, part in stats["splits"].items()
    ]
    rows += [{"figure": f"dropped: {why}", "value": f"{part['count']:,}"} for why, part in stats["dropped"].items()]
    finish(stats, table(rows, ["figure", "value"]), as_json)


@command(epilog="echo '年利率5%，本金3.5亿元' | numllm numbers")
@click.argument("file", default="-", type=click.File("r", encoding="utf-8"))
def numbers(file: Any) -> None:
    """One JSON line for each number recognised in FILE (default: stdin)."""
    import dataclasses

    from .numbers import find_numbers

    try:
        text = file.read()
    except UnicodeDecodeError as error:
        raise NumLLMError(f"{file.name}: not UTF-8 text (byte {error.start})") from error
    for number in find_numbers(text):
        click.echo(json.dumps(dataclasses.asdict(number), ensure_ascii=False))


@command(epilog="numllm numct corpus --out numct.jsonl\nnumllm numct corpus --out numct.jsonl --max-per-doc 20\n"
         "numllm numct corpus --out numct.jsonl --tags recall,derivable")
@click.argument("corpus_dir", type=EXISTING)
@click.option("--out", required=True, type=EXISTING, help="File to write; the audit stands beside it.")
@click.option("--options", default=4, show_default=True, help="Options a question.")
@click.option("--context", default=2, show_default=True, help="Sentences before the asked one.")
@click.option("--seed", default=0, show_default=True)
@click.option("--max-per-doc", type=click.IntRange(min=1), help="Most questions from one document.")
@click.option("--per-sentence", type=click.IntRange(min=1), default=1, show_default=True, help="Most of a sentence.")
@click.option("--tags", default="recall,derivable,other", show_default=True,
              help="Keep what asks for a rule's number (recall), one that follows from others (derivable), other.")
@json_option
def numct(
    corpus_dir: Path, out: Path, options: int, context: int, seed: int, max_per_doc: int | None, per_sentence: int,
    tags: str, as_json: bool,
) -> None:
    """Choice questions about the numbers of a corpus (NumCT), and their audit."""
    from .corpus import read_corpus
    from .files import write_json, write_jsonl
    from .numct import TAGS, audit, build

    kept = tuple(tag.strip() for tag in tags.split(","))
    if not set(kept) <= set(TAGS):
        raise NumLLMError(f"--tags wants some of {','.join(TAGS)}, got {tags}")
    rows = list(build(
        read_corpus(corpus_dir), options=options, context=context, seed=seed, max_per_doc=max_per_doc,
        per_sentence=per_sentence, tags=kept, progress=bar,
    ))
    if not rows:
        more = "more figures" if set(kept) == set(TAGS) else "more figures, or more --tags"
        raise NumLLMError(f"{corpus_dir}: no number in it can be asked; give texts with {more}")
    write_jsonl(out, rows)
    report = audit(rows)
    write_json(out.with_name("audit.json"), report)
    shown = [{"cheat": name, "accuracy": percent(cheat["accuracy"]), "95 %": interval(cheat["ci95"])}
             for name, cheat in report["cheats"].items()]
    tagged = ", ".join(f"{count:,} {tag}" for tag, count in report["by_tag"].items())
    text = f"{len(rows):,} questions in {out} ({tagged})\n" + table(shown, ["cheat", "accuracy", "95 %"])
    finish(report, text, as_json)


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
@click.option("--loss", type=click.Choice(["letter", "likelihood"]), default="letter", show_default=True)
@click.option("--text-weight", default=0.0, show_default=True,
              help="Weight of the next-token loss on the right option's text (likelihood).")
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
    from .config import ADAPTERS, TARGETS, LoRAConfig, TrainConfig

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

    from .files import read_jsonl
    from .report import has_plots, plot_loss
    from .train import train as events

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


def size(text: str) -> int:
    """"5GB" → 5 000 000 000; KB, MB, GB, TB, KiB, MiB, GiB, TiB or plain bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B|B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise click.BadParameter(f"wanted a size such as 5GB, got {text!r}")
    number, unit, binary = found.groups()
    return int(float(number) * ((1024 if binary else 1000) ** (" KMGT".index(unit.upper()) if unit else 0)))


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
@click.option("--verify", is_flag=True, help="Read the result back and check every tensor.")
@click.option("--compare-logits", is_flag=True,
              help="Build the model: logits of the result against the base with its adapters unmerged.")
@click.option("--verify-share", default=1.0, show_default=True, help="Check a random share of the tensors.")
@click.option("--overwrite", is_flag=True, help="Replace --out.")
@click.option("--report", type=EXISTING, help="Write the report (JSON) here too.")
@click.option("--plot", type=EXISTING, help="Draw change, energy kept and cosines by layer: .png, .svg or .pdf.")
@json_option
def merge(
    base: str, adapters: tuple[str, ...], out: Path, rank: str | None, energy: float | None, starts: tuple[str, ...],
    tuned: str | None, as_: str, max_shard_size: str | None, compare_logits: bool, verify_share: float, overwrite: bool,
    report: Path | None, plot: Path | None, as_json: bool, **settings: Any,
) -> None:
    """Folds LoRA adapters into a checkpoint, on its safetensors files, without building the model."""
    from .files import write_json
    from .merge import by_kind, by_layer, extract
    from .merge import merge as fold
    from .report import plot_layers

    if rank is not None and rank != "auto" and not (rank.isdecimal() and int(rank)):
        raise click.BadParameter(f"--rank takes a whole number from 1 or auto, got {rank!r}")
    number = int(rank) if rank not in (None, "auto") else None
    if bool(tuned) == bool(adapters):
        raise click.UsageError("give either --adapter, once or more, or --extract")
    if (plot or compare_logits) and settings["dry_run"]:
        raise click.UsageError("--plot and --compare-logits are about a result, so they do not go with --dry-run")
    if compare_logits and (tuned or settings["weights"]):
        raise click.UsageError("--compare-logits goes with adapters of one weight each")
    if tuned:
        result = extract(base, tuned, out, rank=number or 16, energy=energy, overwrite=overwrite, progress=bar)
    else:
        pairs = [text.rpartition("=") for text in starts]
        result = fold(
            base, [weighted(text) for text in adapters], out, rank=number, noise=rank == "auto", energy=energy,
            starts={path: start for path, _, start in pairs}, as_=as_, sample=verify_share, overwrite=overwrite,
            max_shard=size(max_shard_size) if max_shard_size else None, progress=bar, **settings,
        )
    if compare_logits:
        from .agreement import agreement

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

    from .calibrate import CalibrateConfig
    from .calibrate import calibrate as learn
    from .report import table

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


def load_for_use(model: str, adapters: tuple[str, ...], device: str, dtype: str | None) -> tuple[Any, Any, Any]:
    """(model, tokenizer, adapters or None) of a checkpoint with unmerged adapters on it."""
    import torch

    from .lora import load_adapters
    from .model import load_model
    from .tokenizer import Tokenizer

    device = pick_device(device)
    wanted = getattr(torch, dtype) if dtype else None
    loaded = load_model(model, dtype=wanted, device=device, progress=bar)
    tokenizer = Tokenizer.open(model)
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
    from .checkpoint import resolve
    from .evaluate import hashes, model_files

    folders = [resolve(model), *(weighted(text)[0] for text in adapters)]
    return hashes([file for folder in folders for file in model_files(folder)], progress=bar)


def texts_of(path: Path, split: str | None = None) -> list[tuple[str, str]]:
    """(source, text) of a corpus folder or file, of a text file, or of the readable files in a folder."""
    from .corpus import read_corpus
    from .files import read_text

    if path.suffix == ".jsonl" or (path / "corpus.jsonl").is_file():
        return [(row["source"], row["text"]) for row in read_corpus(path) if split in (None, row["split"])]
    files = sorted(file for file in path.rglob("*") if file.suffix in (".md", ".txt")) if path.is_dir() else [path]
    if not files:
        raise NumLLMError(f"{path}: holds no corpus.jsonl, .md or .txt file")
    return [(str(file), read_text(file)) for file in files]


@command("eval", epilog=(
    "numllm eval --model merged --questions fineval/ --out result.json\n"
    "numllm eval --model merged --questions fineval/ --shots 5 --permute 4 --overlap corpus/ --out result.json\n"
    "numllm eval --model demo --adapter run/adapters/numeric --questions numct.jsonl --out r.json\n"
    "numllm eval --model chat-model --chat --protocol cot --questions cflue.json --out r.json\n"
    "numllm eval --model merged --questions fineval/ --split test --submission answers.json --out test.json"
))
@click.option("--model", required=True, help="Checkpoint: folder, Hub id or demo.")
@click.option("--adapter", "adapters", multiple=True, metavar="PATH[=WEIGHT]", help="Unmerged adapters.")
@click.option("--questions", "paths", multiple=True, required=True, type=EXISTING, help="Files or folders.")
@click.option("--shots", type=click.IntRange(0, 20), default=0, show_default=True, help="FinEval's own: 0 or 5.")
@click.option("--examples", type=EXISTING, multiple=True, help="Answered examples; default: the dev split beside.")
@click.option("--split", help="Split of the questions; default: val of FinEval, all of others.")
@click.option("--format", "format_", default="auto", show_default=True, help="fineval, cflue, agieval, numct, jsonl.")
@click.option("--subjects", type=EXISTING, help="Subject map: {file: [name, Chinese name, domain]}.")
@click.option("--multiple", type=click.Choice(["set", "skip"]), default="set", show_default=True,
              help="Answers of several letters: scored as a set, or left out.")
@click.option("--strict", is_flag=True, help="A question that cannot be asked is an error, not left out.")
@click.option("--protocol", type=click.Choice(["auto", "letters", "likelihood", "cot", "number"]), default="auto",
              show_default=True)
@click.option("--normalise", type=click.Choice(["option", "none"]), default="option", show_default=True,
              help="Likelihood by the option's tokens, or plain.")
@click.option("--chat", is_flag=True, help="Ask through the checkpoint's chat template.")
@click.option("--permute", type=click.IntRange(1), default=1, show_default=True, help="Orders of the options.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=256, show_default=True, help="Of a chain of thought.")
@click.option("--batch-tokens", type=click.IntRange(1), default=4096, show_default=True, help="Tokens run at once.")
@click.option("--overlap", type=EXISTING, multiple=True, help="Texts trained on: accuracy with and without overlaps.")
@click.option("--submission", type=EXISTING, help="Write the predictions of unanswered questions here.")
@click.option("--fresh", is_flag=True, help="Forget what a killed evaluation of the same --out had done.")
@click.option("--out", required=True, type=EXISTING, help="Result file.")
@device_option
@dtype_option
@json_option
def evaluate(
    model: str, adapters: tuple[str, ...], paths: tuple[Path, ...], examples: tuple[Path, ...], split: str | None,
    format_: str, subjects: Path | None, multiple: str, strict: bool, chat: bool, overlap: tuple[Path, ...],
    submission: Path | None, fresh: bool, out: Path, device: str, dtype: str | None, as_json: bool, **settings: Any,
) -> None:
    """Accuracy on choice questions: overall, numeric, non-numeric, per domain, with 95 % intervals.

    A killed evaluation goes on where it was when the command is given again. On the CPU, float32 is the default.
    """
    from collections import Counter

    from .evaluate import evaluate as score
    from .evaluate import hashes, mark_overlaps, overlaps, provenance
    from .evaluate import submission as submit
    from .files import read_json, write_json
    from .questions import read_questions

    quirks: Counter[str] = Counter()
    mapping = read_json(subjects) if subjects else None
    how = {"format": format_, "multiple": multiple, "strict": strict, "subjects": mapping}
    questions = read_questions(list(paths), split=split, quirks=quirks, **how)
    dev = None
    if settings["shots"]:
        dev = read_questions(list(examples), **how) if examples else read_questions(list(paths), split="dev", **how)
    digests = checkpoint_hashes(model, adapters)
    loaded, tokenizer, attached = load_for_use(model, adapters, device, scoring_dtype(device, dtype))
    template = None
    if chat:
        from .chat import Chat

        template = Chat.open(model, tokenizer)
    journal = out.with_name(f"{out.name}.journal")
    if fresh:
        journal.unlink(missing_ok=True)
    with adapters_on(attached):
        result = score(
            loaded, tokenizer, questions, dev=dev, chat=template, journal=journal, progress=bar,
            identity=json.dumps([list(adapters), digests]), **settings,
        )
    if overlap:
        texts = [text for path in overlap for text in texts_of(path)]
        result = mark_overlaps(result, overlaps(questions, texts, progress=bar))
    result = {
        "model": model, "adapters": list(adapters), "dtype": str(loaded.dtype).removeprefix("torch."),
        "quirks": dict(quirks),
        "provenance": provenance(command_line(), digests | hashes(paths, progress=bar)), **result,
    }
    if submission:
        write_json(submission, submit(result))
    write_json(out, result)
    journal.unlink(missing_ok=True)
    for note in (*(f"{count} {quirk}" for quirk, count in quirks.items()), *result["notes"]):
        say(note)
    finish(
        {key: value for key, value in result.items() if key != "questions"}, evaluation_table(result), as_json
    )


def scoring_dtype(device: str, dtype: str | None) -> str | None:
    """The dtype that models are scored in: on the CPU float32, in which it is several times faster than in bfloat16."""
    return dtype or ("float32" if pick_device(device) == "cpu" else None)


def command_line() -> str:
    """The command as it was given."""
    import shlex

    return shlex.join(["numllm", *sys.argv[1:]])


def evaluation_table(result: dict[str, Any]) -> str:
    """The accuracies of an evaluation result as a table."""
    groups = {
        "overall": result["overall"], "numeric": result["numeric"], "non-numeric": result["non_numeric"],
        "numeric by any digit": result["any_digit"]["numeric"],
        **{f"numeric: {kind}": part for kind, part in result["by_numeric_kind"].items()}, **result["by_domain"],
    }
    if "contamination" in result:
        groups["without overlaps"] = result["contamination"]["without"]
    rows = [
        {"group": name, "questions": str(group["n"]), "correct": str(group["correct"]),
         "accuracy": percent(group["accuracy"]), "95 %": interval(group["ci95"])}
        for name, group in groups.items()
    ]
    text = table(rows, ["group", "questions", "correct", "accuracy", "95 %"])
    if result["overall"]["macro"] is not None:
        text += f"\nmean of {len(result['by_subject'])} subjects: {percent(result['overall']['macro'])}"
    bias = result.get("permutations")
    if bias:
        said = ", ".join(f"{letter} {percent(share)}" for letter, share in bias["said"].items())
        text += f"\n{bias['orders']} orders: {percent(bias['consistent'])} never change their option; said {said}"
    return text


@command(epilog="numllm compare base.json merged.json\nnumllm compare base.json domain.json numeric.json merged.json")
@click.argument("results", nargs=-1, required=True, type=EXISTING, metavar="A.json B.json...")
@json_option
def compare(results: tuple[Path, ...], as_json: bool) -> None:
    """Paired comparison of evaluation results on the same questions: each against the first.

    Exact McNemar test, corrected by Holm for the number of results, and a bootstrap interval of the difference.
    """
    from .evaluate import compare_all

    if len(results) < 2:
        raise click.UsageError("give at least two result files")
    found = compare_all(read_results(results))
    rows = [
        {"against": outcome["b"], "questions": f"{part['n']} {label}",
         "difference": f"{part['difference_points']:+.1f} points",
         "95 %": " to ".join(f"{bound:+.1f}" for bound in part["ci95_points"]),
         "McNemar p": f"{part['p_value']:.4f}", "Holm p": f"{part['p_holm']:.4f}", "verdict": part["verdict"]}
        for outcome in found
        for label, part in (("all", outcome), ("numeric", outcome["numeric"]), ("non-numeric", outcome["non_numeric"]))
        if part["n"]
    ]
    finish({"comparisons": found}, f"A: {results[0]}\n{table(rows, list(rows[0]))}", as_json)


def read_results(paths: tuple[Path, ...]) -> dict[str, Any]:
    """Result files by their names: the file's, or its path where two have the same."""
    from .files import read_json

    stems = [path.stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else list(map(str, paths))
    if len(set(names)) < len(names):
        raise NumLLMError(f"{names[0]}: a result is given twice")
    return {name: read_json(path) for name, path in zip(names, paths, strict=True)}


@command(epilog="numllm report base.json domain.json numeric.json merged.json --out report --title Ablation")
@click.argument("results", nargs=-1, required=True, type=EXISTING, metavar="A.json...")
@click.option("--out", required=True, type=EXISTING, help="Folder to write: report.html, report.md, report.json.")
@click.option("--title", default="Evaluation", show_default=True)
@json_option
def report(results: tuple[Path, ...], out: Path, title: str, as_json: bool) -> None:
    """A report of evaluation results to show: tables, intervals, calibration, questions that flipped."""
    from .report.page import write_report

    found = write_report(read_results(results), out, title=title, extra={"command": command_line()})
    rows = [
        {"model": name, "accuracy": accuracy(result["overall"]), "numeric": accuracy(result["numeric"]),
         "non-numeric": accuracy(result["non_numeric"])} for name, result in found["results"].items()
    ]
    finish(found, f"{table(rows, list(rows[0]))}\n{out / 'report.html'}", as_json)


@command(epilog=(
    "numllm probes --out probes.jsonl --seed 0\nnumllm eval --model demo --questions probes.jsonl --out r.json"
))
@click.option("--out", required=True, type=EXISTING, help="File of questions to write.")
@click.option("--per-cell", type=click.IntRange(1), default=20, show_default=True, help="Questions a kind and level.")
@click.option("--kind", "kinds", multiple=True, help="Kinds; default: all.")
@click.option("--seed", default=0, show_default=True)
@json_option
def probes(out: Path, per_cell: int, kinds: tuple[str, ...], seed: int, as_json: bool) -> None:
    """Numeric probes: comparing amounts, units, percentage points, growth, interest, ratios, at three levels."""
    from .files import write_jsonl
    from .probes import KINDS, build_probes

    try:
        rows = list(build_probes(per_cell, seed=seed, kinds=kinds or KINDS))
    except ValueError as error:
        raise NumLLMError(str(error)) from error
    write_jsonl(out, rows)
    finish({"questions": len(rows), "file": str(out)}, f"{len(rows):,} questions in {out}", as_json)


@command(epilog=(
    "numllm perplexity --model merged --texts corpus/ --split heldout\n"
    "numllm perplexity --model demo --texts a.md"
))
@click.option("--model", required=True, help="Checkpoint: folder, Hub id or demo.")
@click.option("--adapter", "adapters", multiple=True, metavar="PATH[=WEIGHT]", help="Unmerged adapters.")
@click.option("--texts", "paths", multiple=True, required=True, type=EXISTING, help="Corpus, folder or text file.")
@click.option("--split", type=click.Choice(["train", "heldout"]), help="Rows of a corpus; default: all.")
@click.option("--length", type=click.IntRange(2), help="Tokens a window; default: the model's context.")
@click.option("--stride", type=click.IntRange(1), help="Tokens between windows; default: half of a window.")
@click.option("--out", type=EXISTING, help="Result file.")
@device_option
@dtype_option
@json_option
def perplexity(
    model: str, adapters: tuple[str, ...], paths: tuple[Path, ...], split: str | None, length: int | None,
    stride: int | None, out: Path | None, device: str, dtype: str | None, as_json: bool,
) -> None:
    """Perplexity of held-out text: per source, per character, and on numbers apart from the rest."""
    from .evaluate import perplexity as measure
    from .evaluate import provenance
    from .files import write_json

    texts = [text for path in paths for text in texts_of(path, split)]
    if not texts:
        raise NumLLMError(f"{', '.join(map(str, paths))}: no text of the split {split!r}")
    digests = checkpoint_hashes(model, adapters)
    loaded, tokenizer, attached = load_for_use(model, adapters, device, scoring_dtype(device, dtype))
    if stride is not None and stride >= (length or loaded.config.context):
        raise NumLLMError(f"--stride must be below the window of {length or loaded.config.context}, got {stride}")
    with adapters_on(attached):
        found = measure(
            loaded, tokenizer, [text for _, text in texts], sources=[source for source, _ in texts], length=length,
            stride=stride, progress=bar,
        )
    result = {"model": model, "adapters": list(adapters), "provenance": provenance(command_line(), digests), **found}
    if out:
        write_json(out, result)
    groups = {"all": found, "numbers": found["numbers"], "rest": found["rest"], **found["by_source"]}
    rows = [
        {"text": name, "tokens": f"{part['tokens']:,}",
         "perplexity": "–" if part["perplexity"] is None else f"{part['perplexity']:.2f}",
         "bits per character": "–" if part["bits_per_character"] is None else f"{part['bits_per_character']:.3f}"}
        for name, part in groups.items()
    ]
    finish(result, table(rows, list(rows[0])), as_json)


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
    from .generate import generate as continue_

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
    from .demo import run_demo

    def train_whole(config: Any) -> None:
        event, _ = run_training(config)
        if event["event"] == "interrupted":
            raise KeyboardInterrupt

    result = run_demo(
        out, steps=steps, seed=seed, overwrite=overwrite, train=train_whole, say=say, progress=bar
    )
    finish(result, result.pop("text"), as_json)


def _run(entry: click.Command) -> None:
    try:
        code = entry.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except NumLLMError as error:
        click.echo(f"Error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def main() -> None:
    """`numllm`."""
    _run(cli)


def train_main() -> None:
    """`numllm-train`."""
    _run(train)


def merge_main() -> None:
    """`numllm-merge`."""
    _run(merge)
