"""Folders of textbooks → corpus.jsonl, dropped.jsonl and stats.json."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from ..errors import DataError, NumLLMError
from ..files import Progress, exclusive, new_folder, no_progress, place_of, write_json
from ..overlap import Hashes, Runs
from ..workers import Lost, Workers
from .choice import Choice
from .documents import ASKED, Document, Read, Settings, cut_files, document_id, load_cut, read_files
from .duplicates import gram_set
from .readers import PLAIN
from .relevance import Relevance
from .shelf import Source, find_files, held_out
from .statistics import Statistics
from .store import Place, Store, fingerprint

_BEGINNING = 200
"""Characters of a dropped document in dropped.jsonl."""
_TOGETHER = 1 << 18
"""Bytes of files that are read or cut in one go."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def build_corpus(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    holdout: float = 0.05,
    seed: int = 0,
    jobs: int = 1,
    target_chars: int = 2000,
    against: Sequence[tuple[str, str]] = (),
    finance: bool = True,
    terms: Sequence[str] = (),
    tokenizer: str | None = None,
    strict: bool = False,
    work: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Reads textbooks and writes `out/corpus.jsonl`, `dropped.jsonl` and `stats.json`; returns the statistics.

    sources: files or folders (read recursively in sorted order; hidden files are passed over).
    holdout: share of files, 0 ≤ holdout < 1, whose documents have the split "heldout". A file's split is a
        hash of (seed, path below its source): it stays when files are added. When one file alone is
        readable, its documents are split one by one instead; "split_by" in the statistics says which.
    jobs: worker processes; the bytes written do not depend on it. One job works in this process when all files
        are Markdown or plain text; in a process of its own, a file whose reader crashes, needs more than 1 GiB or
        takes ten minutes is named as failed.
    target_chars: greatest length of a document, in characters; a single formula may exceed it.
    against: (name, text) of evaluation questions; paragraphs that share 20 letters in a row with one are dropped.
    finance: drop documents that are not about finance, of books that are not; `terms` adds to the terms it goes by.
    tokenizer: checkpoint whose tokens are counted.
    strict: stop at the first file that cannot be read.
    work: folder of what is finished of each file. It is kept, so that a later run redoes changed files only.
        Default: one beside `out`, which a run that was killed leaves to the next one, and which goes in the end.
    overwrite: replace an `out` that is not empty.

    A file that cannot be read is named with its reason under "failed" and the others go on. DataError when
    nothing at all could be read, NumLLMError when `out` cannot be written, or at the first such file when `strict`.
    Memory: the blocks of 256 KiB of files, or of one larger file, per worker, the sketches of 130,000 documents, and
    some 30 bytes for each document.
    """
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout must be at least 0 and less than 1, got {holdout}")
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if target_chars < 100:
        raise ValueError(f"target_chars must be at least 100, got {target_chars}")
    started = time.perf_counter()
    files, skipped = find_files(sources)
    settings = _settings(target_chars, against, finance, terms, tokenizer)
    out = place_of(out)
    folder = Path(work) if work is not None else out.with_name(f".{out.name}.unfinished")
    with contextlib.ExitStack() as stack:
        stack.enter_context(exclusive(out))
        aside = out.with_name(f".{out.name}.writing")
        shutil.rmtree(aside, ignore_errors=True)  # what a killed run was writing
        target = stack.enter_context(new_folder(out, overwrite=overwrite, aside=aside))
        stack.enter_context(_finished_files(folder, keep=work is not None))
        choice = stack.enter_context(contextlib.closing(Choice(folder)))
        store = stack.enter_context(contextlib.closing(Store(folder)))
        workers = stack.enter_context(contextlib.closing(Workers(min(jobs, len(files)))))
        builder = _Builder(files, store, settings, choice, holdout, seed, strict)
        builder.read(workers, progress)
        builder.cut(workers, progress)
        workers.close()
        builder.choose(progress)
        stats = builder.write(target, progress)
        stats["skipped"] = dict(sorted(skipped.items()))
        stats["settings"] = {
            "holdout": holdout, "seed": seed, "target_chars": target_chars, "finance": finance,
            "terms": len(terms), "against": len({name for name, _ in against}), "tokenizer": tokenizer,
        }
        write_json(target / "stats.json", stats)
    return stats | {"seconds": round(time.perf_counter() - started, 3)}


def _settings(
    target: int, against: Sequence[tuple[str, str]], finance: bool, terms: Sequence[str], tokenizer: str | None
) -> Settings:
    names = (target, fingerprint(*against), finance, list(terms), _state(tokenizer))
    return Settings(
        target, Runs(against) if against else None, Relevance(terms) if finance else None, tokenizer, names
    )


def _state(tokenizer: str | None) -> list[Any] | None:
    """What tells one state of a tokenizer's files from another."""
    if tokenizer is None:
        return None
    from ..checkpoint import resolve

    files = [path for path in sorted(resolve(tokenizer).glob("*.*")) if path.suffix in (".json", ".txt", ".tiktoken")]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


@contextlib.contextmanager
def _finished_files(folder: Path, *, keep: bool) -> Iterator[None]:
    """The folder of finished files, for one process; unless kept, it goes when the block is done or hopeless, and
    stays when the block is interrupted."""
    with exclusive(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield
        except DataError:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if not keep:
            shutil.rmtree(folder)


def _batches(items: Sequence[Item], sizes: Iterable[int]) -> list[list[Item]]:
    """Items that are done in one go: those in a row of up to 256 KiB together."""
    batches: list[list[Item]] = []
    left = 0
    for item, size in zip(items, sizes, strict=True):
        if left < size or not batches:
            batches.append([])
            left = _TOGETHER
        batches[-1].append(item)
        left -= size
    return batches


def _weight(file: Source) -> int:
    """Bytes of a file; one that is no plain text is read by itself."""
    small = file.path.suffix.lower() in PLAIN and file.path.exists()
    return max(os.path.getsize(file.path), 1) if small else _TOGETHER


def _each(
    workers: Workers | None, work: Callable[[list[Item]], list[Result]], batches: list[list[Item]]
) -> Iterator[Result | Lost]:
    """The results of `work` on each batch, item by item, by the workers or in this process."""
    if workers is None:
        return itertools.chain.from_iterable(map(work, batches))
    return workers.batched(work, batches)


class _Builder:
    """The passes over the shelf."""

    def __init__(
        self, files: list[Source], store: Store, settings: Settings, choice: Choice, holdout: float, seed: int,
        strict: bool,
    ) -> None:
        self.files, self.settings, self.choice = files, settings, choice
        self.holdout, self.seed, self.strict = holdout, seed, strict
        self.store = store
        self.statistics = Statistics(file.group for file in files)
        self.readable: list[int] = []
        """Numbers of the files that could be read."""
        self.blocks: list[Place] = []
        """Where the blocks of each of them lie."""
        self.documents: list[Place] = []
        """Where the documents of each of them lie."""
        self.repeated: dict[str, frozenset[int]] = {}
        """Group → hashes of the blocks that many of its files begin or end with."""
        self._load = functools.lru_cache(maxsize=16)(functools.partial(load_cut, store))

    def read(self, workers: Workers, progress: Progress) -> None:
        """Reads every file into the store and finds the blocks that many files begin or end with."""
        edges: dict[str, array[int]] = {}
        apart = workers.jobs > 1 or any(file.path.suffix.lower() not in PLAIN for file in self.files)
        batches = _batches([file.path for file in self.files], map(_weight, self.files))
        results = _each(workers if apart else None, functools.partial(read_files, self.store), batches)
        for number, result in enumerate(
            progress(results, total=len(self.files), description="reading", unit="file")
        ):
            file = self.files[number]
            if isinstance(result, Lost):
                result = Read(None, result.reason, file.path.stat().st_size)
            self.statistics.read(file, result)
            if result.place is not None:
                self.readable.append(number)
                self.blocks.append(result.place)
                edges.setdefault(file.group, array("Q")).frombytes(result.edges)
            elif self.strict:
                raise NumLLMError(f"{file.path}: {result.reason}; leave out --strict to go on without it")
        if not self.readable:
            first = self.statistics.failed[0]
            raise DataError(
                f"none of {len(self.files)} files could be read; the first, {first['source']}: {first['reason']}"
            )
        for group, hashes in edges.items():
            values, counts = np.unique(np.array(hashes, np.uint64), return_counts=True)
            many = counts >= max(3, 0.05 * self.statistics.readable(group))
            self.repeated[group] = frozenset(values[many].tolist())

    @property
    def by_document(self) -> bool:
        """Whether single documents are held out: a shelf of one readable file has no other way."""
        return len(self.readable) == 1

    def held_out(self, source: Source, ordinal: int) -> bool:
        """Whether a document is held out: with its whole file, or by itself."""
        name = f"{source.name}\0{ordinal}" if self.by_document else source.name
        return held_out(self.seed, name, self.holdout)

    def cut(self, workers: Workers, progress: Progress) -> None:
        """Blocks in the store → documents in the store, judged each by itself."""
        files = [(place, self.files[k].name) for k, place in zip(self.readable, self.blocks, strict=True)]
        work = functools.partial(cut_files, self.store, self.settings, self.repeated)
        batches = _batches(files, (place.size for place, _ in files))
        results = _each(workers if workers.jobs > 1 else None, work, batches)
        for number, result in enumerate(progress(results, total=len(files), description="cutting", unit="file")):
            if isinstance(result, Lost):
                raise NumLLMError(f"{files[number][1]}: {result.reason} while its documents were cut")
            self.documents.append(result.place)
            held = [self.held_out(self._source(number), ordinal) for ordinal in result.compared.ordinals]
            self.choice.add(number, result.compared, held)

    def _source(self, number: int) -> Source:
        """The source of the documents with this number."""
        return self.files[self.readable[number]]

    def choose(self, progress: Progress) -> None:
        """Finds the documents that repeat others, and the held-out ones that stand in training documents."""
        self.choice.decide(self._grams, progress)

    def _grams(self, number: int, place: int) -> Hashes:
        return gram_set(self._load(self.documents[number]).documents[place].row["text"])

    def write(self, folder: Path, progress: Progress) -> dict[str, Any]:
        """Documents in the store → corpus.jsonl and dropped.jsonl; the statistics."""
        digest = hashlib.sha256()
        with (
            open(folder / "corpus.jsonl", "wb") as corpus,
            open(folder / "dropped.jsonl", "w", encoding="utf-8", newline="\n") as dropped,
        ):
            numbers = range(len(self.documents))
            for number in progress(numbers, total=len(numbers), description="writing", unit="file"):
                for line in self._lines(number, dropped):
                    digest.update(line)
                    corpus.write(line)
        if not any(counts["documents"] for counts in self.statistics.groups.values()):
            reasons = ", ".join(f"{part['count']} {reason}" for reason, part in self.statistics.dropped().items())
            raise DataError(f"no document is left after cleaning ({reasons or 'the files hold no text'})")
        self.store.keep_only({*self.documents, *self.blocks})
        stats = self.statistics.result(by_document=self.by_document, tokens=self.settings.tokenizer is not None)
        return stats | {"corpus_sha256": digest.hexdigest()}

    def _lines(self, number: int, dropped: IO[str]) -> Iterator[bytes]:
        """The lines of a file's documents that stay; the others go to `dropped`."""
        source = self._source(number)
        found = load_cut(self.store, self.documents[number])
        self.statistics.footers.update(found.footers)
        for place, document in enumerate(found.documents):
            for passage in document.asked:
                self._drop(source, document, ASKED, passage, dropped)
            reason, details = document.reason, {}
            if reason is None and (verdict := self.choice.verdict(number, place)) is not None:
                reason, (kept_file, kept_place) = verdict
                details["kept"] = document_id(self._source(kept_file).name, kept_place)
            if reason is None:
                split = "heldout" if self.held_out(source, document.ordinal) else "train"
                line = document.line(split)
                self.statistics.keep(source, document, split, line)
                yield line
                continue
            self._drop(source, document, reason, details, dropped)

    def _drop(
        self, source: Source, document: Document, reason: str, details: dict[str, str], dropped: IO[str]
    ) -> None:
        """Lists a document, or a passage of one when `details` holds its text."""
        row = document.row
        text = details.get("text", row["text"])
        entry = {"id": row["id"], "source": row["source"], "reason": reason, "title": row["title"], **details}
        entry["text"] = text[:_BEGINNING]
        dropped.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.statistics.drop(source, entry, len(text))
