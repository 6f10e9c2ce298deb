"""Commands that measure: eval, compare, perplexity, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..errors import NumLLMError
from ..report import accuracy, interval, percent, table
from .common import (
    EXISTING,
    adapters_on,
    bar,
    checkpoint_hashes,
    command,
    command_line,
    device_option,
    dtype_option,
    finish,
    json_option,
    load_for_use,
    say,
    scoring_dtype,
)


def texts_of(path: Path, split: str | None = None) -> list[tuple[str, str]]:
    """(source, text) of a corpus folder or file, of a text file, or of the readable files in a folder."""
    from ..corpus import read_corpus
    from ..files import read_text

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
@click.option("--batch-tokens", type=click.IntRange(1), default=2048, show_default=True, help="Tokens run at once.")
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

    from ..evaluate import evaluate as score
    from ..evaluate import hashes, mark_overlaps, overlaps, provenance
    from ..evaluate import submission as submit
    from ..files import read_json, write_json
    from ..questions import read_questions

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
        from ..chat import Chat

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
    from ..evaluate import compare_all

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
    from ..files import read_json

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
    from ..report.page import write_report

    found = write_report(read_results(results), out, title=title, extra={"command": command_line()})
    rows = [
        {"model": name, "accuracy": accuracy(result["overall"]), "numeric": accuracy(result["numeric"]),
         "non-numeric": accuracy(result["non_numeric"])} for name, result in found["results"].items()
    ]
    finish(found, f"{table(rows, list(rows[0]))}\n{out / 'report.html'}", as_json)


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
    from ..evaluate import perplexity as measure
    from ..evaluate import provenance
    from ..files import write_json

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
