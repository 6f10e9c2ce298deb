"""Commands from text to questions: corpus, numbers, numct, probes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import click

from ..errors import NumLLMError
from ..report import interval, percent, table, write_corpus_report
from .common import (
    EXISTING,
    Real,
    bar,
    checkpoint_hashes,
    command,
    device_option,
    dtype_option,
    finish,
    json_option,
    load_for_use,
    say,
)

UNREADABLE = 3
"""Exit code of a corpus that lacks files which could not be read."""


@command(epilog=(
    "numllm corpus books/ notes.md --out corpus\n"
    "numllm corpus books/ --out corpus --against fineval/ --tokenizer Qwen/Qwen2.5-7B\n"
    "numllm corpus books/ --out corpus --overwrite --work corpus.work  # a later run redoes changed files only"
))
@click.argument("sources", nargs=-1, required=True, type=EXISTING, metavar="SRC...")
@click.option("--out", required=True, type=EXISTING,
              help="Folder to write: corpus.jsonl, dropped.jsonl, stats.json, report.html.")
@click.option("--holdout", type=Real(0, 1, max_open=True), default=0.05, show_default=True,
              help="Share of the files held out.")
@click.option("--seed", default=0, show_default=True)
@click.option("--jobs", type=click.IntRange(1), help="Processes; default: one for each core.")
@click.option("--against", type=EXISTING, multiple=True, metavar="QUESTIONS",
              help="Drop paragraphs that share 20 letters in a row with these questions; may be given several times.")
@click.option("--terms", type=EXISTING, multiple=True, metavar="FILE", help="More terms of finance, one a line.")
@click.option("--any-topic", is_flag=True, help="Keep text that is not about finance.")
@click.option("--tokenizer", metavar="CKPT", help="Count this checkpoint's tokens.")
@click.option("--strict", is_flag=True, help="Stop at the first file that cannot be read.")
@click.option("--work", type=EXISTING, metavar="DIR", help="Keep what is finished of each file here for later runs.")
@click.option("--overwrite", is_flag=True, help="Replace --out.")
@json_option
def corpus(
    sources: tuple[Path, ...], out: Path, jobs: int | None, against: tuple[Path, ...], terms: tuple[Path, ...],
    any_topic: bool, as_json: bool, **settings: Any,
) -> int:
    """Textbooks to a clean corpus with provenance, without duplicates, and a report on it.

    A file that cannot be read is named, the others go on, and the exit code is 3 instead of 0; --strict stops at it.
    A run that was killed is taken up by the same command.
    """
    from ..corpus import build_corpus, read_terms

    stats = build_corpus(
        list(sources), out, jobs=jobs or len(os.sched_getaffinity(0)), against=_passages(against),
        terms=[term for file in terms for term in read_terms(file)], finance=not any_topic, progress=bar, **settings,
    )
    write_corpus_report(stats, out / "report.html", title=f"Corpus {out.name}")
    for file in stats["failed"]:
        say(f"not read: {file['source']}: {file['reason']}")
    for part in stats["notes"]:
        say(f"{part['source']}: {part['note']}")
    for why, count in stats["skipped"].items():
        say(f"skipped: {count} file(s), {why}")
    keys = ("files", "documents", "characters", "chinese_characters", "tokens")
    rows = [{"figure": key.replace("_", " "), "value": f"{stats[key]:,}"} for key in keys if key in stats]
    rows += [
        {"figure": f"documents, {split}", "value": f"{part['documents']:,}"} for split, part in stats["splits"].items()
    ]
    rows += [{"figure": f"dropped: {why}", "value": f"{part['count']:,}"} for why, part in stats["dropped"].items()]
    finish(stats, table(rows, ["figure", "value"]), as_json)
    return UNREADABLE if stats["failed"] else 0


def _passages(paths: tuple[Path, ...]) -> list[tuple[str, str]]:
    """(id, text) of the questions in files and folders, of every split."""
    from ..errors import DataError
    from ..questions import passages, read_questions

    found: dict[tuple[str, str], None] = {}
    for path in paths:
        questions = read_questions(path, multiple="set", strict=False)
        for split in ("dev", "val", "test"):
            with contextlib.suppress(DataError):  # a set without this split
                questions += read_questions(path, split=split, multiple="set", strict=False)
        found |= dict.fromkeys((question.id, part) for question in questions for part in passages(question))
    return list(found)


@command(epilog="echo '年利率5%，本金3.5亿元' | numllm numbers")
@click.argument("file", default="-", type=click.File("r", encoding="utf-8"))
def numbers(file: Any) -> None:
    """One JSON line for each number recognised in FILE (default: stdin)."""
    import dataclasses

    from ..numbers import find_numbers

    try:
        text = file.read()
    except UnicodeDecodeError as error:
        raise NumLLMError(f"{file.name}: not UTF-8 text (byte {error.start})") from error
    for number in find_numbers(text):
        click.echo(json.dumps(dataclasses.asdict(number), ensure_ascii=False))


def _continuations(model: Any, tokenizer: Any, text: str, count: int, seed: int) -> list[str]:
    """`count` samples of the number that the model puts behind a text, cut in front where it is too long."""
    from ..generate import generate

    new, room = 12, model.config.context - len(tokenizer.prefix())
    ids = tokenizer.encode(text)
    text = text if len(ids) + new <= room else tokenizer.decode(ids[new - room :])
    return generate(model, tokenizer, [text] * count, max_new_tokens=new, temperature=1.0, seed=seed)


def _weights(text: str) -> dict[str, float]:
    """`rate=2,amount=1` as {"rate": 2.0, "amount": 1.0}; NumLLMError where it is not of that form."""
    from ..numct import KINDS

    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        kind, _, weight = part.strip().partition("=")
        try:
            found[kind] = float(weight)
        except ValueError:
            found[kind] = -1.0
        if kind not in KINDS or not 0 <= found[kind] < float("inf"):
            raise NumLLMError(f"--kind-weights wants KIND=NUMBER,… with kinds of {', '.join(KINDS)}, got {part!r}")
    return found


@command(epilog="numllm numct corpus --out numct.jsonl\nnumllm numct corpus --out numct.jsonl --max-per-doc 20\n"
         "numllm numct corpus --out numct.jsonl --tags recall,derivable\n"
         "numllm numct corpus --out numct.jsonl --model Qwen/Qwen2.5-7B --kind-weights rate=2,amount=1")
@click.argument("corpus_dir", type=EXISTING)
@click.option("--out", required=True, type=EXISTING, help="File to write; the audit stands beside it.")
@click.option("--options", default=4, show_default=True, help="Options a question.")
@click.option("--context", default=2, show_default=True, help="Sentences before the asked one.")
@click.option("--seed", default=0, show_default=True)
@click.option("--max-per-doc", type=click.IntRange(min=1), help="Most questions from one document.")
@click.option("--per-sentence", type=click.IntRange(min=1), default=1, show_default=True, help="Most of a sentence.")
@click.option("--tags", default="recall,derivable,other", show_default=True,
              help="Ask for a rule's number (recall), one that follows from others (derivable), a fact of the text "
              "(other), what the writer of an example chose (given).")
@click.option("--kind-weights", default="", metavar="KIND=W,…",
              help="Keep these kinds of numbers in this proportion, as rate=2,amount=1; 0 leaves one out.")
@click.option("--jobs", type=click.IntRange(1), help="Processes that read; default: one for each core.")
@click.option("--model", help="Checkpoint whose own wrong numbers become wrong options too; resumable.")
@click.option("--samples", type=click.IntRange(min=1), default=16, show_default=True, help="Of the model, a question.")
@device_option
@dtype_option
@json_option
def numct(
    corpus_dir: Path, out: Path, options: int, context: int, seed: int, max_per_doc: int | None, per_sentence: int,
    tags: str, kind_weights: str, jobs: int | None, model: str | None, samples: int, device: str, dtype: str | None,
    as_json: bool,
) -> None:
    """Choice questions about the numbers of a corpus (NumCT), and their audit."""
    from ..corpus import read_corpus
    from ..files import write_json, write_jsonl
    from ..numct import TAGS, audit, build

    kept = tuple(tag.strip() for tag in tags.split(","))
    if not set(kept) <= set(TAGS):
        raise NumLLMError(f"--tags wants some of {','.join(TAGS)}, got {tags}")
    settings: dict[str, Any] = {
        "options": options, "context": context, "seed": seed, "max_per_doc": max_per_doc,
        "per_sentence": per_sentence, "tags": kept, "kind_weights": _weights(kind_weights),
        "jobs": jobs or os.cpu_count() or 1,
    }
    left_out: Counter[str] = Counter()
    if model is None:
        rows = list(build(read_corpus(corpus_dir), progress=bar, left_out=left_out, **settings))
    else:
        import hashlib

        from ..numct.proposals import Proposals, build_with_model

        loaded, tokenizer, _ = load_for_use(model, (), device, dtype)
        digest = hashlib.sha256(str(sorted(checkpoint_hashes(model, ()).values())).encode()).hexdigest()
        journal = out.with_name(f"{out.name}.model")
        proposals = Proposals(
            functools.partial(_continuations, loaded, tokenizer), journal, model=digest[:16], samples=samples, seed=seed
        )
        rows = build_with_model(
            lambda: read_corpus(corpus_dir), proposals, progress=bar, left_out=left_out, **settings
        )
    if not rows:
        more = "more figures" if set(kept) == set(TAGS) else "more figures, or more --tags"
        raise NumLLMError(f"{corpus_dir}: no number in it can be asked; give texts with {more}")
    write_jsonl(out, rows)
    report = audit(rows, left_out)
    write_json(out.with_name("audit.json"), report)
    shown = [{"cheat": name, "accuracy": percent(cheat["accuracy"]), "95 %": interval(cheat["ci95"])}
             for name, cheat in report["cheats"].items()]
    tagged = ", ".join(f"{count:,} {tag}" for tag, count in report["by_tag"].items())
    why = "".join(f"  {count:,} {reason}\n" for reason, count in report["left_out"].items())
    text = f"{len(rows):,} questions in {out} ({tagged})\n" + (f"not asked:\n{why}" if why else "")
    text += table(shown, ["cheat", "accuracy", "95 %"])
    finish(report, text, as_json)


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
    from ..files import write_jsonl
    from ..probes import KINDS, build_probes

    try:
        rows = list(build_probes(per_cell, seed=seed, kinds=kinds or KINDS))
    except ValueError as error:
        raise NumLLMError(str(error)) from error
    write_jsonl(out, rows)
    finish({"questions": len(rows), "file": str(out)}, f"{len(rows):,} questions in {out}", as_json)
