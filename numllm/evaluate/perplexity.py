"""Perplexity of held-out text: per source, and on the tokens of numbers apart from the rest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

from ..errors import EvaluationError
from ..files import Progress, no_progress
from ..model import Transformer
from ..numbers import find_numbers
from ..tokenizer import Tokenizer
from .scoring import BATCH_TOKENS, CACHED_PER_BATCH, Probe, log_probabilities, span_probe
from .statistics import Json


@dataclasses.dataclass
class _Sum:
    """Tokens scored, and the characters they cover."""

    total: float = 0.0
    tokens: int = 0
    characters: int = 0

    def add(self, loss: float, characters: int) -> None:
        self.total += loss
        self.tokens += 1
        self.characters += characters

    def figures(self) -> Json:
        """{"perplexity", "nll", "tokens", "characters", "bits_per_character"}; None where there is no token."""
        nll = self.total / self.tokens if self.tokens else None
        return {
            "perplexity": math.exp(nll) if nll is not None and nll < 700 else None, "nll": nll,
            "tokens": self.tokens, "characters": self.characters,
            "bits_per_character": self.total / math.log(2) / self.characters if self.characters else None,
        }


def _windows(count: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first scored, end) of windows over `count` tokens; each token but the first is scored once."""
    scored = 1
    for begin in range(0, count, stride):
        end = min(begin + length, count)
        if end > scored:
            yield begin, scored, end
            scored = end


def perplexity(
    model: Transformer, tokenizer: Tokenizer, texts: Iterable[str], *, sources: Sequence[str] | None = None,
    length: int | None = None, stride: int | None = None, batch_tokens: int = BATCH_TOKENS,
    progress: Progress = no_progress,
) -> Json:
    """{"perplexity", "nll", "tokens", "characters", "bits_per_character"} of texts, each read on its own.

    nll: mean −log p (nats) of a token given the up to length − 1 tokens before it that its window holds;
    windows of `length` (default: the model's context) move by `stride` (default: half of it). perplexity =
    exp(nll). bits_per_character = Σ −log₂ p / characters: comparable across tokenizers. The first token
    counts only where bos stands before it, and `characters` are those of the tokens that count.

    "numbers" and "rest" hold the same figures of the tokens that cover a character of a numeric variable (see
    `numbers`: amounts, rates, counts, …; no dates or headings), and of all others. sources: the source of each
    text; "by_source" then holds the figures of each, its "numbers" and "rest" too.
    """
    length = length or model.config.context
    stride = stride or max(length // 2, 1)
    if not 1 <= stride < length:
        raise ValueError(f"wanted 1 ≤ stride < length, got stride {stride}, length {length}")
    groups: dict[str, dict[bool, _Sum]] = {}
    for part in _portions(texts, sources, tokenizer, length, stride, batch_tokens, progress):
        values = log_probabilities(model, [[window.probe] for window in part], batch_tokens=batch_tokens)
        for window, (logs,) in zip(part, values, strict=True):
            sums = groups.setdefault(window.source, {False: _Sum(), True: _Sum()})
            for value, (numeric, characters) in zip(logs, window.tokens, strict=True):
                sums[numeric].add(-value, characters)
    if not groups:
        raise EvaluationError("the texts hold no token to score")
    result = _figures(list(groups.values()))
    if sources is not None:
        result["by_source"] = {name: _figures([sums]) for name, sums in groups.items()}
    return result


def _figures(groups: Sequence[dict[bool, _Sum]]) -> Json:
    def total(which: Sequence[bool]) -> Json:
        parts = [sums[numeric] for sums in groups for numeric in which]
        return _Sum(
            math.fsum(part.total for part in parts), sum(part.tokens for part in parts),
            sum(part.characters for part in parts),
        ).figures()

    return {**total((False, True)), "numbers": total((True,)), "rest": total((False,))}


@dataclasses.dataclass(frozen=True)
class _Window:
    """A window of a text; tokens: (whether of a number, characters covered) of each token scored."""

    probe: Probe
    source: str
    tokens: tuple[tuple[bool, int], ...]


def _portions(
    texts: Iterable[str], sources: Sequence[str] | None, tokenizer: Tokenizer, length: int, stride: int,
    batch_tokens: int, progress: Progress,
) -> Iterator[list[_Window]]:
    """Windows over the texts, in portions of a few batches."""
    held = 0
    part: list[_Window] = []
    count = len(texts) if isinstance(texts, Sequence) else None
    for index, text in enumerate(progress(texts, total=count, description="perplexity", unit="text")):
        windows = _of_text(text, sources[index] if sources is not None else "", tokenizer, length, stride)
        part += windows
        held += sum(len(window.probe.ids) for window in windows)
        if held >= CACHED_PER_BATCH * batch_tokens:
            yield part
            part, held = [], 0
    if part:
        yield part


def _of_text(text: str, source: str, tokenizer: Tokenizer, length: int, stride: int) -> list[_Window]:
    prefix = tokenizer.prefix()
    ((ids, offsets),) = tokenizer.encode_offsets([text])
    whole = (*prefix, *ids)
    if len(whole) < 2:
        return []
    numeric = bytearray(len(text))
    for number in find_numbers(text):
        if number.variable:
            numeric[number.start : number.end] = b"\1" * (number.end - number.start)
    seen = 0  # a character of several byte tokens counts with the first of them
    about = [(False, 0)] * len(prefix)
    for start, end in offsets:
        about.append((any(numeric[start:end]), max(end - max(start, seen), 0)))
        seen = max(seen, end)
    windows = []
    for begin, first, end in _windows(len(whole), length, stride):
        probe = span_probe(whole[begin:end], [(first - begin, end - begin)])
        windows.append(_Window(probe, source, tuple(about[first:end])))
    return windows
