"""One Tokenizer over the files checkpoints come with: tokenizer.json, or vocab.json + merges.txt (Qwen2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as _Backend

from .checkpoint import resolve
from .errors import DataError, TokenizerError
from .files import read_json

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pre-tokenisation: words, single digits, punctuation, line ends, spaces."""


def byte_level_bpe(vocabulary: dict[str, int] | None = None, merges: list[tuple[str, str]] | None = None) -> _Backend:
    """A byte-level BPE tokenizer with Qwen2's normaliser (NFC) and pre-tokenisation."""
    backend = _Backend(models.BPE(vocabulary, merges) if vocabulary else models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    backend.decoder = decoders.ByteLevel()
    return backend


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except DataError as error:
        raise TokenizerError(str(error)) from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: wanted a JSON object, got {type(value).__name__}")
    return value


def _from_vocab_and_merges(folder: Path, settings: dict[str, Any]) -> _Backend:
    vocabulary = _json(folder / "vocab.json")
    merges = []
    for number, line in enumerate((folder / "merges.txt").read_text(encoding="utf-8").splitlines(), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise TokenizerError(f"{folder / 'merges.txt'}, line {number}: wanted two pieces, got {line!r}")
        merges.append((parts[0], parts[1]))
    backend = byte_level_bpe(vocabulary, merges)
    added = sorted((int(key), value) for key, value in settings.get("added_tokens_decoder", {}).items())
    for _, token in added:
        backend.add_tokens([AddedToken(
            token["content"], lstrip=token.get("lstrip", False), rstrip=token.get("rstrip", False),
            normalized=token.get("normalized", False), special=token.get("special", True),
            single_word=token.get("single_word", False),
        )])
    for key, token in added:
        if backend.token_to_id(token["content"]) != key:
            raise TokenizerError(
                f"{folder}: token {token['content']!r} should have the id {key}, "
                f"got {backend.token_to_id(token['content'])}; vocab.json is of another model"
            )
    return backend


class Tokenizer:
    """Text to ids and back.

    Attributes: bos_id, eos_id, pad_id (int or None); eos_ids (every id that ends generation); adds_bos
    (whether the model expects bos before a text).
    """

    def __init__(self, folder: Path) -> None:
        settings = _json(folder / "tokenizer_config.json")
        try:
            if (folder / "tokenizer.json").is_file():
                self._backend = _Backend.from_file(str(folder / "tokenizer.json"))
            elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
                self._backend = _from_vocab_and_merges(folder, settings)
            else:
                raise TokenizerError(
                    f"{folder}: has no tokenizer; wanted tokenizer.json, or vocab.json and merges.txt"
                )
        except (TokenizerError, OSError):
            raise
        # The tokenizers library raises a bare Exception for every broken file.
        except Exception as error:
            raise TokenizerError(f"{folder}: the tokenizer cannot be read: {error}") from error
        self._backend.no_padding()
        self._backend.no_truncation()
        specials = {**_json(folder / "special_tokens_map.json"), **settings}
        model, generation = _json(folder / "config.json"), _json(folder / "generation_config.json")

        def special(kind: str) -> int | None:
            token = specials.get(f"{kind}_token")
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str) and text:
                return self._backend.token_to_id(text)
            known = model.get(f"{kind}_token_id")
            return known if isinstance(known, int) and known >= 0 else None

        self.bos_id, self.eos_id, self.pad_id = special("bos"), special("eos"), special("pad")
        ends = {self.eos_id} if self.eos_id is not None else set()
        for source in (model, generation):
            value = source.get("eos_token_id")
            ends.update(value if isinstance(value, list) else [value] if isinstance(value, int) else [])
        self.eos_ids: tuple[int, ...] = tuple(sorted(ends))
        first = self._backend.encode("a", add_special_tokens=True).ids[:1]
        by_file = self.bos_id is not None and first == [self.bos_id]
        self.adds_bos: bool = by_file and bool(settings.get("add_bos_token", True))
        self._backend.encode_special_tokens = True

    @classmethod
    def open(cls, name: str | Path) -> Tokenizer:
        """The tokenizer of a checkpoint (see `checkpoint.resolve`). TokenizerError when it has none."""
        return cls(resolve(name))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; control tokens inside it are read as plain text, nothing is added around it."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, in parallel."""
        return [row.ids for row in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """`encode` of every text, with the (first, last + 1) characters each token covers."""
        rows = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [(row.ids, row.offsets) for row in rows]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ids."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def token_id(self, token: str) -> int | None:
        """The id of a token by its name in the vocabulary, or None."""
        return self._backend.token_to_id(token)

    def special_ids(self) -> dict[str, int]:
        """Added tokens, control tokens among them, by their text: `encode` reads these as plain text."""
        return {token.content: id_ for id_, token in self._backend.get_added_tokens_decoder().items()}

    def prefix(self) -> list[int]:
        """What stands before a text: [bos] where the model expects it, else nothing."""
        return [self.bos_id] if self.adds_bos and self.bos_id is not None else []
