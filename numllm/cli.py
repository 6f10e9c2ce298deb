"""The command line: parse, call, report. The only file that knows click; commands import what they use."""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from . import __version__
from .errors import NumLLMError

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
    from .report import table

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
    from .report import table

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


def percent(share: float | None) -> str:
    """0.345 → "34.5 %"."""
    return "–" if share is None else f"{100 * share:.1f} %"


def interval(bounds: Iterable[float] | None) -> str:
    """(0.31, 0.38) → "31.0–38.0"."""
    return "–" if bounds is None else "–".join(f"{100 * bound:.1f}" for bound in bounds)


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


@command(epilog=(
    "numllm merge --base Qwen/Qwen2.5-7B --adapter run/adapters/domain --adapter run/adapters/numeric "
    "--out merged\n"
    "numllm merge --base demo --adapter a=0.7 --adapter b=0.3 --method svd --rank 16 --out merged --verify"
))
@click.option("--base", required=True, help="Checkpoint: folder, Hub id or demo.")
@click.option("--adapter", "adapters", multiple=True, required=True, metavar="PATH[=WEIGHT]")
@click.option("--out", required=True, type=EXISTING, help="Folder to write.")
@click.option("--method", type=click.Choice(["svd", "exact"]), default="svd", show_default=True)
@click.option("--rank", type=click.IntRange(min=1), help="Rank kept (svd); default: the largest of the adapters.")
@click.option("--as", "as_", type=click.Choice(["model", "adapter"]), default="model", show_default=True)
@click.option("--dry-run", is_flag=True, help="Check and say what would change; write nothing.")
@click.option("--verify", is_flag=True, help="Read the result back and check every tensor.")
@click.option("--report", type=EXISTING, help="Write the report (JSON) here too.")
@json_option
def merge(
    base: str, adapters: tuple[str, ...], out: Path, method: str, rank: int | None, as_: str, dry_run: bool,
    verify: bool, report: Path | None, as_json: bool,
) -> None:
    """Folds LoRA adapters into a checkpoint, on its safetensors files, without building the model."""
    from .files import write_json
    from .merge import merge as fold
    from .report import table

    result = fold(
        base, [weighted(text) for text in adapters], out, method=method, rank=rank, as_=as_, dry_run=dry_run,
        verify=verify, progress=bar,
    )
    if report:
        write_json(report, result)
    overall = [{"figure": key.replace("_", " "), "value": str(value)}
               for key, value in result["overall"].items() if not isinstance(value, dict | list)]
    finish(result, table(overall, ["figure", "value"]), as_json)


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


@command("eval", epilog=(
    "numllm eval --model merged --questions fineval/ --out result.json\n"
    "numllm eval --model demo --adapter run/adapters/numeric --questions numct.jsonl --protocol likelihood --out r.json"
))
@click.option("--model", required=True, help="Checkpoint: folder, Hub id or demo.")
@click.option("--adapter", "adapters", multiple=True, metavar="PATH[=WEIGHT]", help="Unmerged adapters.")
@click.option("--questions", "paths", multiple=True, required=True, type=EXISTING, help="Files or folders.")
@click.option("--shots", type=click.Choice(["0", "5"]), default="0", show_default=True)
@click.option("--split", help="Split of the questions; default: val of FinEval, all of others.")
@click.option("--format", "format_", default="auto", show_default=True, help="auto, fineval, numct, jsonl.")
@click.option("--protocol", type=click.Choice(["auto", "letters", "likelihood"]), default="auto", show_default=True)
@click.option("--out", required=True, type=EXISTING, help="Result file.")
@device_option
@dtype_option
@json_option
def evaluate(
    model: str, adapters: tuple[str, ...], paths: tuple[Path, ...], shots: str, split: str | None, format_: str,
    protocol: str, out: Path, device: str, dtype: str | None, as_json: bool,
) -> None:
    """Accuracy on choice questions: overall, numeric, non-numeric, per domain, with 95 % intervals."""
    from .evaluate import evaluate as score
    from .files import write_json
    from .questions import read_questions

    questions = read_questions(list(paths), format=format_, split=split)
    dev = read_questions(list(paths), format=format_, split="dev") if shots == "5" else None
    loaded, tokenizer, attached = load_for_use(model, adapters, device, dtype)
    with adapters_on(attached):
        result = score(
            loaded, tokenizer, questions, protocol=protocol, shots=int(shots), dev=dev, progress=bar
        )
    result = {"model": model, "adapters": list(adapters), **result}
    write_json(out, result)
    finish(
        {key: value for key, value in result.items() if key != "questions"}, evaluation_table(result), as_json
    )


def evaluation_table(result: dict[str, Any]) -> str:
    """The accuracies of an evaluation result as a table."""
    from .report import table

    groups = {"overall": result["overall"], "numeric": result["numeric"], "non-numeric": result["non_numeric"],
              **result["by_domain"]}
    rows = [
        {"group": name, "questions": str(group["n"]), "correct": str(group["correct"]),
         "accuracy": percent(group["accuracy"]), "95 %": interval(group["ci95"])}
        for name, group in groups.items()
    ]
    return table(rows, ["group", "questions", "correct", "accuracy", "95 %"])


@command(epilog="numllm compare base.json merged.json")
@click.argument("results", nargs=-1, required=True, type=EXISTING, metavar="A.json B.json...")
@json_option
def compare(results: tuple[Path, ...], as_json: bool) -> None:
    """Paired comparison of evaluation results on the same questions: each against the first."""
    from .evaluate import compare as pair
    from .files import read_json
    from .report import table

    if len(results) < 2:
        raise click.UsageError("give at least two result files")
    first, *others = [read_json(path) for path in results]
    rows, found = [], []
    for path, other in zip(results[1:], others, strict=True):
        outcome = pair(first, other)
        found.append({"a": str(results[0]), "b": str(path), **outcome})
        rows.append({
            "against": str(path), "questions": str(outcome["n"]),
            "difference": f"{outcome['difference_points']:+.1f} points",
            "95 %": " to ".join(f"{bound:+.1f}" for bound in outcome["ci95_points"]),
            "McNemar p": f"{outcome['p_value']:.4f}", "verdict": outcome["verdict"],
        })
    finish(
        {"comparisons": found},
        table(rows, ["against", "questions", "difference", "95 %", "McNemar p", "verdict"]), as_json,
    )


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
@click.option("--overwrite", is_flag=True, help="Replace --out.")
@json_option
def demo(out: Path, steps: int | None, overwrite: bool, as_json: bool) -> None:
    """The whole way on the embedded default: textbook to merged model, in minutes, without a GPU."""
    from .demo import run_demo

    def train_whole(config: Any) -> None:
        event, _ = run_training(config)
        if event["event"] == "interrupted":
            raise KeyboardInterrupt

    result = run_demo(out, steps=steps, overwrite=overwrite, train=train_whole, say=say, progress=bar)
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
