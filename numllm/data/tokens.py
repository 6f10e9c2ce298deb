"""A corpus as token ids in a memory-mapped file, made once and read from then on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..files import new_folder, read_json, sha256, write_json
from ..tokenizer import Tokenizer

_FORMAT = 1
_BATCH = 256
"""Texts encoded at once."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """ids: those of all documents, one after the other, with what stands before and after each, in the smallest
    unsigned type that holds the vocabulary. ends (documents,) int64: where each ends. Arrays in memory, or mapped.
    """

    ids: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def spans(self) -> Iterator[tuple[int, int]]:
        """(begin, end) of each document."""
        begins = self.ends - np.diff(self.ends, prepend=0)
        return zip(begins.tolist(), self.ends.tolist(), strict=True)


def encode(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The ids of each text, bos before it where the model expects it and eos after it."""
    prefix, end = tokenizer.prefix(), [tokenizer.eos_id] if tokenizer.eos_id is not None else []
    rest = iter(texts)
    while batch := list(itertools.islice(rest, _BATCH)):
        for ids in tokenizer.encode_batch(batch):
            yield prefix + ids + end


def in_memory(texts: Iterable[str], tokenizer: Tokenizer) -> Tokens:
    """The tokens of texts."""
    rows = list(encode(texts, tokenizer))
    flat = np.fromiter(itertools.chain.from_iterable(rows), dtype=_dtype(tokenizer))
    return Tokens(flat, np.cumsum([len(row) for row in rows], dtype=np.int64))


def prepared(texts: Iterable[str], tokenizer: Tokenizer, folder: Path, mark: str) -> Tokens:
    """The tokens in `folder`, mapped; written there first unless it holds those of the same `mark`.

    mark: what stands for the texts and the tokenizer. Texts are encoded as they come, so that few are in memory.
    The folder appears whole: tokens.bin, ends.bin and tokens.json, which holds their checksums. DataError when a
    file is damaged.
    """
    facts = folder / "tokens.json"
    if not facts.is_file() or read_json(facts).get("mark") != mark or read_json(facts).get("format") != _FORMAT:
        with new_folder(folder, overwrite=True) as aside:
            _write(texts, tokenizer, aside, mark)
    known = read_json(facts)
    for name, wanted in known["sha256"].items():
        if not (folder / name).is_file() or sha256(folder / name) != wanted:
            raise DataError(f"{folder / name}: damaged; remove {folder} and it is made anew")
    if not known["documents"]:
        return Tokens(np.empty(0, known["dtype"]), np.empty(0, np.int64))
    return Tokens(
        np.memmap(folder / "tokens.bin", dtype=known["dtype"], mode="r"),
        np.memmap(folder / "ends.bin", dtype=np.int64, mode="r"),
    )


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


def _write(texts: Iterable[str], tokenizer: Tokenizer, folder: Path, mark: str) -> None:
    dtype, end, ends = _dtype(tokenizer), 0, []
    with open(folder / "tokens.bin", "wb") as file:
        for ids in encode(texts, tokenizer):
            file.write(np.asarray(ids, dtype=dtype).tobytes())
            end += len(ids)
            ends.append(end)
    (folder / "ends.bin").write_bytes(np.asarray(ends, dtype=np.int64).tobytes())
    write_json(folder / "tokens.json", {
        "format": _FORMAT, "mark": mark, "dtype": dtype.name, "documents": len(ends), "tokens": end,
        "sha256": {name: sha256(folder / name) for name in ("tokens.bin", "ends.bin")},
    })
