"""One file on its way: read into blocks, cut into documents, and what is known of each document by itself."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from ..files import sha256
from ..overlap import Runs
from .blocks import Block
from .cut import Piece, cut
from .duplicates import BINS
from .judge import Judged, judge
from .readers import read as read_path
from .relevance import Relevance
from .shelf import encodable, group_of
from .store import Place, Store, code, fingerprint

ASKED = "shares a run with a question"
_EDGE = 6
"""Blocks at either end of a file that may be a repeated header or footer."""
_EDGE_CHARACTERS = 300


class Read(NamedTuple):
    """What reading a file gave: where its blocks lie in the store, or the reason why there are none."""

    place: Place | None
    reason: str | None
    size: int
    """Bytes of the file."""
    edges: bytes = b""
    """Hashes of the blocks at its edges, uint64 each."""
    notes: tuple[str, ...] = ()
    """What of the file could not be read."""


@dataclass(frozen=True)
class Settings:
    """What documents depend on beside their file."""

    target: int
    runs: Runs | None
    """The runs of letters of the questions that no document may share."""
    relevance: Relevance | None
    tokenizer: str | None
    names: tuple[Any, ...]
    """Fingerprint of the above."""


def read_files(store: Store, paths: Sequence[Path]) -> list[Read]:
    """Reads files into the store, unless their blocks are there from before."""
    return [_read(store, path) for path in paths]


def _read(store: Store, path: Path) -> Read:
    size = 0
    try:
        size = path.stat().st_size
        name = fingerprint("blocks", code(), path.suffix.lower(), sha256(path))
    except OSError as error:
        return Read(None, f"cannot be read: {error.strerror}", size)
    if (found := store.load(place := store.known.get(name))) is not None:
        return Read(place, None, size, bytes(found[1][0]), tuple(found[0][1]))
    try:
        reading = read_path(path)
    except DataError as error:
        return Read(None, str(error), size)
    blocks = reading.blocks
    if not blocks:
        return Read(None, "; ".join(["no text in it", *reading.notes]), size)
    edges = np.unique(np.array([_hash(blocks[k].text) for k in _edges(blocks)], np.uint64)).tobytes()
    kinds, texts, levels, pages = zip(*blocks, strict=True)
    frames = [kinds, list(map(len, texts)), levels, pages]
    place = store.save(name, [name, reading.notes, frames], edges, "".join(texts).encode("utf-8", "surrogatepass"))
    return Read(place, None, size, edges, tuple(reading.notes))


def _digest(text: str) -> bytes:
    body = "".join(text.split()).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(body, digest_size=16).digest()


def _hash(text: str) -> int:
    return int.from_bytes(_digest(text)[:8], "little")


def _edges(blocks: Sequence[Block]) -> Iterator[int]:
    """Places of the blocks that could be a running header or footer, from the outside in."""
    bodies = [k for k, block in enumerate(blocks) if block.kind != "heading"]
    for k in dict.fromkeys([*bodies[:_EDGE], *bodies[-_EDGE:]]):
        if len(blocks[k].text) <= _EDGE_CHARACTERS:
            yield k


def trim_edges(blocks: list[Block], repeated: Collection[int]) -> tuple[list[Block], list[str]]:
    """Blocks without the repeated ones that lie at the very beginning or end, and the texts taken away.

    A run of repeated blocks that does not end within reach is no header or footer: the file is a copy or
    another edition of others, and keeps it.
    """
    if not repeated:
        return blocks, []
    bodies = [k for k, block in enumerate(blocks) if block.kind != "heading"]
    gone: set[int] = set()
    for order in (bodies[:_EDGE], bodies[::-1][:_EDGE]):
        run: list[int] = []
        for k in order:
            if len(blocks[k].text) > _EDGE_CHARACTERS or _hash(blocks[k].text) not in repeated:
                gone.update(run)
                break
            run.append(k)
    return [b for k, b in enumerate(blocks) if k not in gone], [blocks[k].text for k in sorted(gone)]


class Document(NamedTuple):
    """A document as the store keeps it: its row, and what the choice between documents needs."""

    ordinal: int
    reason: str | None
    """Why it is dropped whatever the others are."""
    asked: list[dict[str, str]]
    """The passages left out for a question that they share a run with: question, run, text."""
    characters: int
    han: int
    tokens: int
    digest: str
    head: bytes
    """The row as JSON up to its split."""
    tail: bytes
    """The row as JSON behind its split."""

    def line(self, split: str) -> bytes:
        """The document's line in corpus.jsonl."""
        return b'%b"split": "%b", %b\n' % (self.head, split.encode(), self.tail)

    @property
    def row(self) -> dict[str, Any]:
        """The row without its split."""
        return json.loads(self.head + self.tail)


@dataclass(frozen=True)
class Cut:
    """The documents of a file, with the sketches and sampled runs of those that no filter drops, in order."""

    documents: list[Document]
    footers: list[str]
    sketches: list[bytes]
    runs: list[bytes]
    """uint32 each."""


def document_id(source: str, ordinal: int) -> str:
    """The id of a document: a hash of its source's name, and its place there."""
    return f"{hashlib.sha256(source.encode()).hexdigest()[:12]}-{ordinal:04d}"


class Made(NamedTuple):
    """What cutting a file gave."""

    place: Place
    """Where its documents lie in the store."""
    compared: Compared


class Compared(NamedTuple):
    """What the documents of a file that no filter drops are compared by, in order."""

    ordinals: list[int]
    digests: list[int]
    """uint64 each."""
    sketches: list[bytes]
    runs: list[bytes]
    """Sampled runs, uint32 each."""


class _Book(NamedTuple):
    """A file whose documents are not in the store yet."""

    name: str
    """What they will be called there."""
    source: str
    footers: list[str]
    pieces: list[Piece]


def cut_files(
    store: Store, settings: Settings, repeated: Mapping[str, frozenset[int]], files: Sequence[tuple[Place, str]]
) -> list[Made]:
    """Cuts files into documents and judges them, unless they are in the store.

    repeated: group → hashes of the blocks that many of its files begin or end with. files: where the blocks of each
    lie, and what it is called.
    """
    found = [_open(store, settings, repeated, place, source) for place, source in files]
    books = [[encodable(piece.text) for piece in part.pieces] for part in found if isinstance(part, _Book)]
    judged = iter(judge(books, settings.runs, settings.relevance))
    return [_save(store, settings, part, next(judged)) if isinstance(part, _Book) else part for part in found]


def _open(
    store: Store, settings: Settings, repeated: Mapping[str, frozenset[int]], place: Place, source: str
) -> _Book | Made:
    found = store.load(place)
    assert found is not None, "the blocks of a file are kept until its documents are cut"
    (blocks_name, _, (kinds, sizes, levels, pages)), (edges, text) = found
    footers_here = sorted(repeated[group_of(source)].intersection(np.frombuffer(edges, np.uint64).tolist()))
    name = fingerprint("documents", code(), blocks_name, source, footers_here, settings.names)
    if (known := store.known.get(name)) is not None and store.load(known) is not None:
        cut_before = load_cut(store, known)
        return Made(known, _compared(cut_before.documents, cut_before.sketches, cut_before.runs))
    whole = str(text, "utf-8", "surrogatepass")
    texts = [whole[end - size : end] for end, size in zip(itertools.accumulate(sizes), sizes, strict=True)]
    blocks, footers = trim_edges(list(map(Block, kinds, texts, levels, pages)), footers_here)
    return _Book(name, source, footers, cut(blocks, Path(source).stem, settings.target))


def _compared(documents: Sequence[Document], sketches: list[bytes], runs: list[bytes]) -> Compared:
    kept = [document for document in documents if document.reason is None]
    return Compared(
        [document.ordinal for document in kept], [int(document.digest[:16], 16) for document in kept], sketches, runs
    )


def _save(store: Store, settings: Settings, book: _Book, judged: Sequence[Judged]) -> Made:
    documents = [
        _document(ordinal, book.source, piece, part)
        for ordinal, (piece, part) in enumerate(zip(book.pieces, judged, strict=True))
    ]
    if settings.tokenizer is not None:
        documents = _with_tokens(documents, settings.tokenizer)
    sketches = [part.sketch for part in judged if part.reason is None]
    runs = [part.runs for part in judged if part.reason is None]
    head = {
        "footers": book.footers, "runs": list(map(len, runs)), "rows": [[len(d.head), len(d.tail)] for d in documents],
        "documents": [[d.ordinal, d.reason, d.asked, d.characters, d.han, d.tokens, d.digest] for d in documents],
    }
    rows = b"".join(part for document in documents for part in (document.head, document.tail))
    place = store.save(book.name, head, rows, b"".join(sketches), b"".join(runs))
    return Made(place, _compared(documents, sketches, runs))


def _document(ordinal: int, source: str, piece: Piece, judged: Judged) -> Document:
    text = judged.text
    head = {"id": document_id(source, ordinal), "text": text, "source": source, "title": encodable(piece.title)}
    tail = {
        "sha256": hashlib.sha256(text.encode("utf-8")).hexdigest(), "chapter": encodable(piece.chapter),
        "section": encodable(piece.section), **({"page": piece.page} if piece.page else {}),
    }
    return Document(
        ordinal, judged.reason, judged.asked, len(text), judged.han, 0, _digest(text).hex(), b"{%b, " % _members(head),
        b"%b}" % _members(tail),
    )


def _members(values: dict[str, str]) -> bytes:
    """The members of a JSON object, as `json` writes them."""
    return ", ".join([f'"{key}": {encode_basestring(value)}' for key, value in values.items()]).encode()


def _with_tokens(documents: list[Document], tokenizer: str) -> list[Document]:
    counted = (len(ids) for ids in _tokenizer(tokenizer).encode_batch([document.row["text"] for document in documents]))
    return [document._replace(tokens=tokens) for document, tokens in zip(documents, counted, strict=True)]


@functools.cache
def _tokenizer(name: str) -> Any:
    from ..tokenizer import Tokenizer

    return Tokenizer.open(name)


def load_cut(store: Store, place: Place) -> Cut:
    """The documents of a file from the store."""
    found = store.load(place)
    assert found is not None, "the documents of a file are kept until the corpus is written"
    head, (rows, sketches, joined) = found
    pieces = iter(_split(rows, [size for pair in head["rows"] for size in pair]))
    documents = [Document(*values, next(pieces), next(pieces)) for values in head["documents"]]
    sizes = head["runs"]
    return Cut(documents, head["footers"], _split(sketches, [2 * BINS] * len(sizes)), _split(joined, sizes))


def _split(joined: memoryview, sizes: Sequence[int]) -> list[bytes]:
    ends = itertools.accumulate(sizes)
    return [bytes(joined[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
