"""One Tokenizer over tokenizer.json, vocab.json + merges.txt, qwen.tiktoken or a sentencepiece tokenizer.model."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from ..checkpoint import resolve
from ..errors import DataError, TokenizerError, short
from ..files import read_json
from .byte_level import from_tiktoken, from_vocab_and_merges
from .protobuf import SentencePiece, read_sentencepiece
from .sentencepiece import BROKEN, Spaces, from_sentencepiece, whole_characters

FILES = "tokenizer.json, vocab.json + merges.txt, qwen.tiktoken or tokenizer.model"
_TIKTOKEN = "qwen.tiktoken"
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    _TIKTOKEN: {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "tokenizer.model": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True},
}
"""What tokenizer_config.json means where it says nothing, by the file that is read."""


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: wanted a JSON object, got {type(value).__name__}")
    return value


def read_settings(folder: Path, file: str = "") -> dict[str, Any]:
    """What special_tokens_map.json and, before it, tokenizer_config.json say; where they say nothing, what that means
    for the `file` a tokenizer is read from.
    """
    said = {**_json(folder / "special_tokens_map.json"), **_json(folder / "tokenizer_config.json")}
    return {**_DEFAULTS.get(file, {}), **{key: value for key, value in said.items() if value is not None}}


def _added(folder: Path, settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Id → token of what tokenizer_config.json and added_tokens.json name by id."""
    found = {id_: AddedToken(name, normalized=False, special=False)
             for name, id_ in _json(folder / "added_tokens.json").items()}
    try:
        for key, token in settings.get("added_tokens_decoder", {}).items():
            found[int(key)] = AddedToken(
                token["content"], lstrip=token.get("lstrip", False), rstrip=token.get("rstrip", False),
                normalized=token.get("normalized", False), special=token.get("special", True),
                single_word=token.get("single_word", False),
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder is damaged") from error
    return dict(sorted(found.items()))


def _named(settings: Mapping[str, Any]) -> Iterator[str]:
    """Texts of the tokens that the settings call special by a name of their own."""
    listed = settings.get("additional_special_tokens") or settings.get("extra_special_tokens")
    values = [value for key, value in settings.items() if key.endswith("_token")]
    values += listed.values() if isinstance(listed, dict) else listed if isinstance(listed, list) else []
    for value in values:
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and text:
            yield text


def _is_qwen2(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether vocab.json and merges.txt are cut as Qwen2's: other families' files look the same."""
    kind = settings.get("tokenizer_class")
    if kind is None:
        return str(_json(folder / "config.json").get("model_type", "")).startswith(("qwen2", "qwen3"))
    return str(kind).removesuffix("Fast") == "Qwen2Tokenizer"


def _open(
    folder: Path, settings: dict[str, Any], added: Mapping[int, AddedToken]
) -> tuple[Backend, str, SentencePiece | None]:
    """(backend, the file it was read from, the sentencepiece model where it is one)."""
    files = {name: folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt", *_DEFAULTS)}
    there = {name for name, path in files.items() if path.is_file()}
    if "tokenizer.json" in there:
        return Backend.from_file(str(files["tokenizer.json"])), "tokenizer.json", None
    if {"vocab.json", "merges.txt"} <= there:
        if not _is_qwen2(folder, settings):
            raise TokenizerError(
                f"{folder}: vocab.json + merges.txt of {short(settings.get('tokenizer_class'))} are not supported, "
                "only Qwen2Tokenizer's; convert them to tokenizer.json"
            )
        return from_vocab_and_merges(_json(files["vocab.json"]), files["merges.txt"]), "vocab.json", None
    if _TIKTOKEN in there:
        return from_tiktoken(files[_TIKTOKEN]), _TIKTOKEN, None
    if "tokenizer.model" in there:
        model = read_sentencepiece(files["tokenizer.model"])
        names = {id_: token.content for id_, token in added.items()}
        return from_sentencepiece(model, names, files["tokenizer.model"]), "tokenizer.model", model
    raise TokenizerError(f"{folder}: has no tokenizer; wanted {FILES}")


class Tokenizer:
    """Text to ids and back.

    Attributes: bos_id, eos_id, pad_id (int or None); eos_ids (every id that ends generation); adds_bos, adds_eos
    (whether bos is expected before a text, and eos behind it); file (what it was read from). Not for several
    threads at once.
    """

    def __init__(self, folder: Path) -> None:
        try:
            settings = read_settings(folder)
            added = _added(folder, settings)
            self._backend, self.file, model = _open(folder, settings, added)
            config, generation = _json(folder / "config.json"), _json(folder / "generation_config.json")
        except DataError as error:
            raise TokenizerError(str(error)) from error
        except (TokenizerError, OSError):
            raise
        # The tokenizers library raises a bare Exception for every broken file.
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            raise TokenizerError(f"{folder}: the tokenizer cannot be read: {why}") from error
        settings = {**_DEFAULTS.get(self.file, {}), **settings}
        self._backend.no_padding()
        self._backend.no_truncation()
        self._spaces = Spaces(model, behind_control=settings.get("legacy") is True)
        self._register(folder, settings, added)

        def special(kind: str) -> int | None:
            token = settings.get(f"{kind}_token")
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str) and text:
                return self._backend.token_to_id(text)
            known = config.get(f"{kind}_token_id")
            return known if isinstance(known, int) and known >= 0 else None

        self.bos_id, self.eos_id, self.pad_id = special("bos"), special("eos"), special("pad")
        ends = {self.eos_id} if self.eos_id is not None else set()
        for source in (config, generation):
            value = source.get("eos_token_id")
            ends.update(id_ for id_ in (value if isinstance(value, list) else [value]) if isinstance(id_, int))
        self.eos_ids: tuple[int, ...] = tuple(sorted(ends))
        around = self._backend.encode("a", add_special_tokens=True).ids
        # What tokenizer.json puts around a text the settings may turn off; elsewhere they alone say.
        whole = self.file == "tokenizer.json"

        def adds(kind: str, id_: int | None, present: bool) -> bool:
            return id_ is not None and (present or not whole) and bool(settings.get(f"add_{kind}_token", whole))

        self.adds_bos: bool = adds("bos", self.bos_id, around[:1] == [self.bos_id])
        self.adds_eos: bool = adds("eos", self.eos_id, around[-1:] == [self.eos_id])
        self._backend.encode_special_tokens = True

    def _register(self, folder: Path, settings: Mapping[str, Any], added: Mapping[int, AddedToken]) -> None:
        """Tells the backend of tokens that stand in the settings only; each must get the id it is said to have."""
        backend = self._backend
        for special, tokens in itertools.groupby(added.values(), lambda token: token.special):
            (backend.add_special_tokens if special else backend.add_tokens)(list(tokens))
        for id_, token in added.items():
            if backend.token_to_id(token.content) != id_:
                raise TokenizerError(
                    f"{folder}: token {short(token.content)} should have the id {short(id_)}, "
                    f"got {backend.token_to_id(token.content)}; {self.file} is of another model"
                )
        known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        backend.add_special_tokens([
            AddedToken(text, normalized=False, special=True) for text in dict.fromkeys(_named(settings))
            if text not in known and backend.token_to_id(text) is not None
        ])

    @classmethod
    def open(cls, name: str | Path) -> Tokenizer:
        """The tokenizer of a checkpoint (see `checkpoint.resolve`). TokenizerError when it has none."""
        return cls(resolve(name))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def controls(self) -> re.Pattern[str]:
        """Finds the tokens of `special_ids` in a text, the longest where several begin."""
        names = sorted(map(re.escape, self.special_ids()), key=len, reverse=True)
        return re.compile(f"({'|'.join(names) or '(?!)'})")

    @functools.cached_property
    def markup(self) -> re.Pattern[str]:
        """Finds what has no place in a message: control tokens, and added tokens in brackets, as <think> is. Other
        added tokens are letters and words.
        """
        added = self._backend.get_added_tokens_decoder().values()
        names = [re.escape(token.content) for token in added
                 if token.special or re.fullmatch(r"<.+>|\[.+\]", token.content, re.DOTALL)]
        return re.compile("|".join(sorted(names, key=len, reverse=True)) or "(?!)")

    def _prepare(self, text: str, *, control: bool = False) -> str:
        """What the backend reads. TokenizerError for half a character, which only damaged text has."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(f"the text is not UTF-8 at character {error.start + 1}; convert it first") from error
        return self._spaces.prepare(text, self.controls if control else None)

    @contextlib.contextmanager
    def _parsing(self, control: bool) -> Iterator[None]:
        self._backend.encode_special_tokens = not control
        try:
            yield
        finally:
            self._backend.encode_special_tokens = True

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Ids of a text; nothing is added around it.

        Control tokens inside it are read as plain text, or with `control` as what they stand for.
        """
        with self._parsing(control):
            return self._backend.encode(self._prepare(text, control=control), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, in parallel."""
        prepared = [self._prepare(text) for text in texts]
        return [row.ids for row in self._backend.encode_batch_fast(prepared, add_special_tokens=False)]

    def encode_offsets(
        self, texts: Sequence[str], *, control: bool = False
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """`encode` of every text, with the (first, last + 1) characters each token covers."""
        prepared = [self._prepare(text, control=control) for text in texts]
        with self._parsing(control):
            rows = self._backend.encode_batch(prepared, add_special_tokens=False)
        controls = self.controls if control else None
        return [
            (row.ids, self._spaces.offsets(text, row.offsets, controls)) for text, row in zip(texts, rows, strict=True)
        ]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ids; each byte piece that is part of no character is a replacement character."""
        text = self._backend.decode(list(ids), skip_special_tokens=skip_special)
        if BROKEN not in text or not self._byte_pieces:
            return text
        # The backend gives up a whole run of byte pieces for one that is broken.
        left_out = self._control_ids if skip_special else ()
        names = [name for id_ in ids if id_ not in left_out and (name := self._backend.id_to_token(id_)) is not None]
        return self._backend.decoder.decode(whole_characters(names))

    @functools.cached_property
    def _byte_pieces(self) -> bool:
        """Whether pieces stand for bytes of characters that have none of their own."""
        letter = self._backend.token_to_id("<0x41>")
        return letter is not None and self._backend.decode([letter], skip_special_tokens=False) == "A"

    @functools.cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(
            id_ for id_, token in self._backend.get_added_tokens_decoder().items() if token.special
        )

    def token_id(self, token: str) -> int | None:
        """The id of a token by its name in the vocabulary, or None."""
        return self._backend.token_to_id(token)

    def special_ids(self) -> dict[str, int]:
        """Added tokens, control tokens among them, by their text: `encode` reads these as plain text."""
        return {token.content: id_ for id_, token in self._backend.get_added_tokens_decoder().items()}

    def prefix(self) -> list[int]:
        """What stands before a text: [bos] where the model expects it, else nothing."""
        return [self.bos_id] if self.adds_bos and self.bos_id is not None else []

    def suffix(self) -> list[int]:
        """What stands behind a text: [eos] where that is expected, else nothing."""
        return [self.eos_id] if self.adds_eos and self.eos_id is not None else []

    def check_fits(self, vocab_size: int) -> None:
        """TokenizerError when it has more tokens than a model's `vocab_size`; a model may have more."""
        if self.vocab_size > vocab_size:
            raise TokenizerError(
                f"the tokenizer has {self.vocab_size:,} tokens, the model only {vocab_size:,}; "
                "it is of another model"
            )
