"""A report of a corpus from its statistics: whether it is good, and what was left out of it and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..files import write_aside
from . import svg
from .html import details, html_page, html_table
from .tables import percent

Json = Mapping[str, Any]


def write_corpus_report(stats: Json, path: str | Path, *, title: str = "Corpus") -> None:
    """Writes the statistics of `numllm corpus` (what stats.json holds) as one HTML file without network."""
    with write_aside(path) as file:
        file.write(html_page(title, "\n".join(filter(None, _parts(stats)))))


def _parts(stats: Json) -> Iterator[str]:
    yield from _overview(stats)
    yield from _sources(stats)
    yield from _lengths(stats)
    yield from _numbers(stats)
    yield from _dropped(stats)
    yield from _samples(stats)
    yield from _files(stats)
    yield "<h2>Settings</h2>"
    yield html_table([
        {"setting": name.replace("_", " "), "value": "–" if value is None else str(value)}
        for name, value in (*stats["settings"].items(), ("sha256 of corpus.jsonl", stats["corpus_sha256"]))
    ])


def _overview(stats: Json) -> Iterator[str]:
    rows = [
        {"": "files", "all": f"{stats['files']:,}"},
        {"": "files that could not be read", "all": f"{len(stats['failed']):,}"},
        {"": "megabytes", "all": f"{stats['bytes'] / 1e6:,.1f}"},
    ]
    parts = {"all": stats, **stats["splits"]}
    rows = [row | dict.fromkeys(stats["splits"], "") for row in rows]
    for key in ("documents", "characters", "tokens"):
        if key in stats:
            rows.append({"": key, **{name: f"{part[key]:,}" for name, part in parts.items()}})
    rows.append({"": "Chinese characters", "all": _share(stats), **dict.fromkeys(stats["splits"], "")})
    yield html_table(rows)
    if not stats["splits"]["heldout"]["documents"] and stats["settings"]["holdout"]:
        yield "<p>No file fell into the held-out share: a larger share or more files are needed to measure on it.</p>"


def _share(part: Json) -> str:
    return percent(part["chinese_characters"] / part["characters"]) if part["characters"] else "–"


def _sources(stats: Json) -> Iterator[str]:
    yield "<h2>Sources</h2>"
    sources = stats["sources"]
    if len(sources) > 1:
        yield "<p>Thousand characters:</p>"
        yield svg.rows({name: part["characters"] / 1000 for name, part in sources.items()})
    yield html_table([
        {"source": name, "files": f"{part['files']:,}", "not read": f"{part['failed']:,}",
         "MB": f"{part['bytes'] / 1e6:,.2f}", "documents": f"{part['documents']:,}",
         "characters": f"{part['characters']:,}", **({"tokens": f"{part['tokens']:,}"} if "tokens" in part else {}),
         "Chinese": _share(part), "dropped": f"{part['dropped']:,}", "train": f"{part['train']:,}",
         "held out": f"{part['heldout']:,}"}
        for name, part in sources.items()
    ])


def _lengths(stats: Json) -> Iterator[str]:
    yield "<h2>Lengths of the documents</h2>"
    step = stats["lengths"]["step"]
    counts = {f"{k * step}": count for k, count in enumerate(stats["lengths"]["documents"])}
    yield svg.columns(counts, horizontal=f"characters, in steps of {step}", vertical="documents")


def _numbers(stats: Json) -> Iterator[str]:
    numbers = stats["numbers"]
    yield "<h2>Numbers</h2>"
    yield (
        f"<p>In 1,000 characters, by kind, counted in {numbers['documents']:,} documents drawn at random; "
        f"{numbers['variable_per_thousand']:.2f} are quantities with a meaning of their own, the rest dates, ordinals, "
        "labels and the like:</p>"
    )
    if numbers["per_thousand"]:
        yield svg.rows(numbers["per_thousand"], 2)


def _dropped(stats: Json) -> Iterator[str]:
    yield "<h2>What was dropped</h2>"
    dropped = stats["dropped"]
    everything = stats["documents"] + sum(part["count"] for part in dropped.values())
    if dropped:
        yield html_table([
            {"reason": reason, "documents": f"{part['count']:,}", "of all": percent(part["count"] / everything),
             "characters": f"{part['characters']:,}"}
            for reason, part in dropped.items()
        ])
        yield "<p>Every one is named in dropped.jsonl; here are the first of each kind.</p>"
    else:
        yield "<p>Nothing.</p>"
    for reason, part in dropped.items():
        for example in part["examples"]:
            told = "".join(
                f" · {key}: {example[key]}" for key in ("kept", "question", "run") if key in example
            )
            yield details(f"{reason} · {example['source']}{told}", _text(example["text"]))
    edges = stats["repeated_edges"]
    if edges["count"]:
        yield "<h2>Headers and footers taken away</h2>"
        yield html_table([{"text": part["text"], "files": f"{part['files']:,}"} for part in edges["examples"]])


def _samples(stats: Json) -> Iterator[str]:
    yield "<h2>Documents drawn at random</h2>"
    for sample in stats["samples"]:
        yield details(f"{sample['split']} · {sample['source']} · {sample['title']}", _text(sample["text"]))


def _text(text: str) -> str:
    return f'<pre style="white-space: pre-wrap">{escape(text)}</pre>'


def _files(stats: Json) -> Iterator[str]:
    if stats["failed"]:
        yield "<h2>Files that could not be read</h2>"
        yield html_table([{"file": part["source"], "reason": part["reason"]} for part in stats["failed"]])
    if stats["notes"]:
        yield "<h2>Parts of files that could not be read</h2>"
        yield html_table([{"file": part["source"], "what": part["note"]} for part in stats["notes"]])
    if stats["skipped"]:
        yield "<h2>Files passed over</h2>"
        yield html_table([{"why": why, "files": f"{count:,}"} for why, count in stats["skipped"].items()])
