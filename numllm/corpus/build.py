"""Folders of textbooks → corpus.jsonl and stats.json."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import Progress, new_folder, no_progress, write_json
from .blocks import Block
from .clean import han_count, reason_to_drop
from .cut import cut
from .readers import read_file
from .rows import SPLITS
from .shelf import Source, encodable, find_files, group_of, held_out, ordered

_EXAMPLES = 5
_EDGE = 6
"""Blocks at either end of a file that may be a repeated header or footer."""
_EDGE_CHARACTERS = 300


def build_corpus(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    holdout: float = 0.05,
    seed: int = 0,
    jobs: int = 1,
    target_chars: int = 2000,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Reads textbooks and writes `out/corpus.jsonl` and `out/stats.json`; returns the statistics.

    sources: files or folders (read recursively in sorted order; hidden files are passed over).
    holdout: share of files, 0 ≤ holdout < 1, whose documents have the split "heldout". A file's split is a
        hash of (seed, path below its source): it stays when files are added. When one file alone is
        readable, its documents are split one by one instead; "split_by" in the statistics says which.
    jobs: worker processes; the bytes written do not depend on it.
    target_chars: greatest length of a document, in characters; a single formula may exceed it.
    overwrite: replace an `out` that is not empty.

    A file that cannot be read is named with its reason under "failed" and the others go on. DataError when
    nothing at all could be read, NumLLMError when `out` cannot be written. Memory: one file's blocks per
    worker, and 100 or so bytes per document for the search for duplicates.
    """
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout must be at least 0 and less than 1, got {holdout}")
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if target_chars < 100:
        raise ValueError(f"target_chars must be at least 100, got {target_chars}")
    started = time.perf_counter()
    files, skipped = find_files(sources)
    with new_folder(out, overwrite=overwrite) as folder:
        builder = _Builder(files, skipped, folder, holdout, seed, target_chars)
        builder.read(jobs, progress)
        builder.cut(progress)
        builder.write()
        stats = builder.stats()
        shutil.rmtree(builder.spool)
        write_json(folder / "stats.json", stats)
    return stats | {"seconds": round(time.perf_counter() - started, 3)}


def _digest(text: str) -> bytes:
    return hashlib.blake2b("".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _parse(task: tuple[int, Path, Path]) -> tuple[int, str | None, list[bytes]]:
    """Reads one file into the spool; (number, reason when it failed, digests of the blocks at its edges)."""
    number, path, spool = task
    try:
        blocks = read_file(path)
    except DataError as error:
        return number, str(error), []
    if not blocks:
        return number, "no text in it", []
    (spool / f"{number}.json").write_text(
        json.dumps([[b.kind, b.text, b.level] for b in blocks], ensure_ascii=False), "utf-8", "surrogatepass"
    )
    return number, None, sorted({_digest(blocks[k].text) for k in _edges(blocks)})


def _edges(blocks: Sequence[Block]) -> Iterator[int]:
    """Places of the blocks that could be a running header or footer, from the outside in."""
    bodies = [k for k, block in enumerate(blocks) if block.kind != "heading"]
    for k in dict.fromkeys([*bodies[:_EDGE], *bodies[-_EDGE:]]):
        if len(blocks[k].text) <= _EDGE_CHARACTERS:
            yield k


def trim_edges(blocks: list[Block], repeated: set[bytes]) -> tuple[list[Block], list[str]]:
    """Blocks without the repeated ones that lie at the very beginning or end, and the texts taken away.

    A run of repeated blocks that does not end within reach is no header or footer: the file is a copy or
    another edition of others, and keeps it.
    """
    bodies = [k for k, block in enumerate(blocks) if block.kind != "heading"]
    gone: set[int] = set()
    for order in (bodies[:_EDGE], bodies[::-1][:_EDGE]):
        run: list[int] = []
        for k in order:
            if len(blocks[k].text) > _EDGE_CHARACTERS or _digest(blocks[k].text) not in repeated:
                gone.update(run)
                break
            run.append(k)
    return [b for k, b in enumerate(blocks) if k not in gone], [blocks[k].text for k in sorted(gone)]


class _Builder:
    """The three passes over the spool of parsed files, and what they count."""

    def __init__(
        self,
        files: list[Source],
        skipped: Counter[str],
        folder: Path,
        holdout: float,
        seed: int,
        target: int,
    ) -> None:
        self.files, self.skipped, self.folder = files, skipped, folder
        self.holdout, self.seed, self.target = holdout, seed, target
        self.spool = folder / ".spool"
        self.spool.mkdir()
        self.failed: list[dict[str, str]] = []
        self.readable: list[int] = []
        self.repeated: dict[str, set[bytes]] = {}
        self.groups: dict[str, Counter[str]] = {file.group: Counter() for file in files}
        self.totals: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, list[dict[str, str]]] = {}
        self.footers: Counter[str] = Counter()
        self.train: dict[bytes, str] = {}
        self.first: dict[bytes, str] = {}
        self.corpus_digest = hashlib.sha256()

    def read(self, jobs: int, progress: Progress) -> None:
        """Parses every file into the spool and finds the blocks that many files begin or end with."""
        tasks = ((k, file.path, self.spool) for k, file in enumerate(self.files))
        counts: dict[str, Counter[bytes]] = {}
        results = ordered(_parse, tasks, min(jobs, len(self.files)))
        for number, reason, digests in progress(
            results, total=len(self.files), description="reading", unit="file"
        ):
            file = self.files[number]
            self.groups[file.group]["files"] += 1
            if reason is not None:
                self.failed.append({"source": file.name, "reason": reason})
                self.groups[file.group]["failed"] += 1
                continue
            self.readable.append(number)
            counts.setdefault(file.group, Counter()).update(digests)
        if not self.readable:
            first = self.failed[0]
            raise DataError(
                f"none of {len(self.failed)} files could be read; the first, {first['source']}: {first['reason']}"
            )
        for group, counted in counts.items():
            files = self.groups[group]["files"] - self.groups[group]["failed"]
            self.repeated[group] = {key for key, count in counted.items() if count >= max(3, 0.05 * files)}

    @property
    def by_document(self) -> bool:
        """Whether single documents are held out: a shelf of one readable file has no other way."""
        return len(self.readable) == 1

    def cut(self, progress: Progress) -> None:
        """Spooled blocks → spooled rows, filtered, without exact duplicates inside a split."""
        with open(self.spool / "rows.jsonl", "w", encoding="utf-8") as file:
            for number in progress(
                self.readable, total=len(self.readable), description="cutting", unit="file"
            ):
                for row in self._rows(number):
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _rows(self, number: int) -> Iterator[dict[str, str]]:
        source = self.files[number]
        parsed = self.spool / f"{number}.json"
        blocks = [Block(*block) for block in json.loads(parsed.read_text("utf-8", "surrogatepass"))]
        parsed.unlink()
        blocks, footers = trim_edges(blocks, self.repeated[source.group])
        self.footers.update(footers)
        key = hashlib.sha256(source.name.encode()).hexdigest()[:12]
        whole_file = held_out(self.seed, source.name, self.holdout)
        for ordinal, piece in enumerate(cut(blocks, Path(source.name).stem, self.target)):
            text = encodable(piece.text)
            row = {"id": f"{key}-{ordinal:04d}", "text": text, "source": source.name}
            if reason := reason_to_drop(text):
                self._drop(reason, row)
                continue
            held = (
                held_out(self.seed, f"{source.name}\0{ordinal}", self.holdout)
                if self.by_document
                else whole_file
            )
            row |= {"title": encodable(piece.title), "split": "heldout" if held else "train"}
            row["sha256"] = hashlib.sha256(text.encode("utf-8")).hexdigest()
            digest = _digest(text)
            kept = self.first if held else self.train
            if digest in kept:
                self._drop("duplicate", row, kept[digest])
                continue
            kept[digest] = row["id"]
            yield row

    def write(self) -> None:
        """Spooled rows → corpus.jsonl, without held-out documents that stand in the training split as well."""
        with (
            open(self.spool / "rows.jsonl", encoding="utf-8") as rows,
            open(self.folder / "corpus.jsonl", "w", encoding="utf-8", newline="\n") as file,
        ):
            for line in rows:
                row = json.loads(line)
                if row["split"] == "heldout" and (kept := self.train.get(_digest(row["text"]))):
                    self._drop("held-out duplicate of train", row, kept)
                    continue
                file.write(line)
                self.corpus_digest.update(line.encode("utf-8"))
                self._count(row)
        if not self.totals["documents"]:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
            raise DataError(f"no document is left after cleaning ({reasons or 'the files hold no text'})")

    def _count(self, row: dict[str, str]) -> None:
        for counter in (self.totals, self.groups.setdefault(group_of(row["source"]), Counter())):
            counter["documents"] += 1
            counter["characters"] += len(row["text"])
            counter["chinese_characters"] += han_count(row["text"])
            counter[row["split"]] += 1
            counter[f"{row['split']}_characters"] += len(row["text"])

    def _drop(self, reason: str, row: dict[str, str], kept: str = "") -> None:
        self.dropped[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(
                {"id": row["id"], "source": row["source"], "text": row["text"][:200]}
                | ({"kept": kept} if kept else {})
            )

    def stats(self) -> dict[str, Any]:
        """What stats.json holds; nothing in it depends on time, machine or the number of jobs."""
        keys = ("documents", "characters", "chinese_characters")
        splits = {
            s: {"documents": self.totals[s], "characters": self.totals[f"{s}_characters"]} for s in SPLITS
        }
        return {
            "files": len(self.files),
            "files_read": len(self.readable),
            "failed": self.failed,
            "skipped": dict(sorted(self.skipped.items())),
            **{key: self.totals[key] for key in keys},
            "splits": splits,
            "split_by": "document" if self.by_document else "file",
            "dropped": {
                reason: {"count": self.dropped[reason], "examples": self.examples[reason]}
                for reason in sorted(self.dropped)
            },
            "repeated_edges": {
                "count": sum(self.footers.values()),
                "examples": [
                    {"text": text, "files": count}
                    for text, count in sorted(self.footers.items(), key=lambda item: (-item[1], item[0]))[:20]
                ],
            },
            "sources": {
                group: {
                    key: counts[key]
                    for key in (
                        "files",
                        "failed",
                        *keys,
                        "train",
                        "heldout",
                        "train_characters",
                        "heldout_characters",
                    )
                }
                for group, counts in sorted(self.groups.items())
            },
            "settings": {"holdout": self.holdout, "seed": self.seed, "target_chars": self.target},
            "corpus_sha256": self.corpus_digest.hexdigest(),
        }
