"""Continuing prompts: greedy or sampled, in a left-padded batch with a cache of keys and values."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from . import decode
from .errors import NumLLMError
from .model import Transformer
from .tokenizer import Tokenizer

Stream = Callable[[int, str], None]
"""`stream(index, piece)` is called with each new piece of the text of prompt `index`."""


def next_tokens(
    logits: Tensor, draws: Sequence[float], *, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    """The next token of each row: (B,) int64 from logits (B, V).

    temperature 0: the largest logit, the first of equals. Else from softmax(logits / temperature) in fp32,
    cut to the top_k likeliest tokens, then to the fewest whose probabilities reach top_p; draws[b] in [0, 1)
    picks the first token at which the sum of probabilities, likeliest first, exceeds its share of the whole.
    """
    if temperature == 0:
        return logits.argmax(-1)
    # Less the largest, and by no less than 1e-30, so that a temperature next to 0 gives no NaN.
    logits = logits.float() - logits.float().amax(-1, keepdim=True)
    probabilities = (logits / max(temperature, 1e-30)).softmax(-1)
    probabilities, order = probabilities.sort(stable=True, dim=-1, descending=True)
    if top_k is not None:
        probabilities, order = probabilities[:, :top_k], order[:, :top_k]
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    if top_p is not None:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities * (before < top_p)
    sums = probabilities.double().cumsum(-1)
    target = torch.tensor(draws, dtype=torch.float64, device=logits.device)[:, None] * sums[:, -1:]
    place = (sums <= target).sum(-1, keepdim=True).clamp(max=order.shape[1] - 1)
    return order.gather(1, place)[:, 0]


class _Penalty:
    """The repetition penalty of arXiv 1909.05858: a token of the prompt or of what was said has its logit divided by
    `factor` where it is positive, multiplied where negative.
    """

    def __init__(self, factor: float, prompts: Sequence[Sequence[int]], like: Tensor) -> None:
        self.factor, self.seen = factor, torch.zeros_like(like, dtype=torch.bool)
        for row, ids in enumerate(prompts):
            self.seen[row, torch.tensor(ids, device=like.device)] = True

    def __call__(self, logits: Tensor) -> Tensor:
        """logits (B, V) → (B, V)."""
        lowered = torch.where(logits > 0, logits / self.factor, logits * self.factor)
        return torch.where(self.seen, lowered, logits)

    def add(self, chosen: Tensor) -> None:
        """Takes note of the tokens chosen, (B,)."""
        self.seen.scatter_(1, chosen[:, None], True)


def _generator(seed: int, index: int) -> torch.Generator:
    """Random numbers of one prompt: they do not depend on the prompts beside it."""
    digest = hashlib.sha256(f"{seed} generate {index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@torch.no_grad()
def generate_ids(
    model: Transformer, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float = 0.0,
    top_k: int | None = None, top_p: float | None = None, repetition_penalty: float = 1.0, seed: int = 0,
    ends: Collection[int] = (), way: str = "auto", watch: Callable[[int, list[int]], bool] | None = None,
) -> list[list[int]]:
    """New ids of each prompt of ids; an id in `ends` ends its prompt and is not returned.

    Each prompt continues as it would alone, with its own random numbers from (seed, its index). way: how steps are
    run, one of `decode.WAYS`. watch: called with (index, new ids so far) after each token; True ends the prompt.
    NumLLMError for a prompt that is empty, has ids the model lacks, or leaves no room for `max_new_tokens` in the
    model's context.
    """
    if max_new_tokens < 1 or not temperature >= 0 or (top_k is not None and top_k < 1) \
            or (top_p is not None and not 0 < top_p <= 1) or not 0 < repetition_penalty < math.inf:
        raise ValueError(
            "wanted max_new_tokens ≥ 1, temperature ≥ 0, top_k ≥ 1, 0 < top_p ≤ 1 and a positive repetition_penalty, "
            f"got {max_new_tokens}, {temperature}, {top_k}, {top_p}, {repetition_penalty}"
        )
    if not prompts:
        return []
    context = model.config.context
    for index, ids in enumerate(prompts):
        if not ids:
            raise NumLLMError(f"prompt {index + 1} is empty and the model has no bos to begin with; give it a text")
        if max(ids) >= model.config.vocab_size:
            raise NumLLMError(
                f"prompt {index + 1} has the token id {max(ids)}, the model knows {model.config.vocab_size}; "
                "the tokenizer is of another model"
            )
        if len(ids) + max_new_tokens > context:
            raise NumLLMError(
                f"prompt {index + 1} has {len(ids)} tokens; with {max_new_tokens} new ones that is more than "
                f"the model's context of {context}; shorten it or ask for fewer"
            )
    logits, following = decode.start(model, prompts, max_new_tokens, way)
    penalty = _Penalty(repetition_penalty, prompts, logits) if repetition_penalty != 1 else None
    generators = [_generator(seed, index) for index in range(len(prompts))]
    found: list[list[int]] = [[] for _ in prompts]
    open_ = set(range(len(prompts)))
    while True:
        if not math.isfinite(logits.sum(dtype=torch.float32)):  # NaN and infinity stay in a sum
            raise NumLLMError(f"the model gives NaN or infinity in {model.dtype}; use --dtype float32")
        draws = [float(torch.rand((), generator=g, dtype=torch.float64)) for g in generators] if temperature else []
        chosen = next_tokens(
            logits if penalty is None else penalty(logits), draws, temperature=temperature, top_k=top_k, top_p=top_p
        )
        for row, token in enumerate(chosen.tolist()):
            if row not in open_:
                continue
            if token in ends:
                open_.discard(row)
                continue
            found[row].append(token)
            stopped = watch is not None and watch(row, found[row])
            if stopped or len(found[row]) == max_new_tokens:
                open_.discard(row)
        if not open_:
            return found
        if penalty is not None:
            penalty.add(chosen)
        logits = following(chosen)


class _Text:
    """The text of a prompt's new ids, cut at a stop string, streamed without pieces that may still change."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.text, self.sent = "", 0
        # Decoded with the end of the prompt, since some tokenizers drop the space a text begins with.
        self.before = list(prompt[-8:])
        self.skip = len(tokenizer.decode(self.before))

    def add(self, ids: list[int]) -> bool:
        """Takes the ids so far; True when a stop string is reached."""
        self.text = self.tokenizer.decode([*self.before, *ids])[self.skip :]
        cuts = [at for stop in self.stop if (at := self.text.find(stop)) >= 0]
        if cuts:
            self.text = self.text[: min(cuts)]
        return bool(cuts)

    def piece(self, *, last: bool) -> str:
        """What can be shown now and was not yet."""
        end = len(self.text)
        if not last:
            # The tail may be half a character, or the beginning of a stop string.
            end = len(self.text.rstrip("\N{REPLACEMENT CHARACTER}"))
            end -= max(
                (size for stop in self.stop for size in range(1, len(stop))
                 if self.text[:end].endswith(stop[:size])), default=0,
            )
        piece, self.sent = self.text[self.sent : end], max(self.sent, end)
        return piece


def _controls(tokenizer: Tokenizer, stop: Sequence[str]) -> set[int]:
    """Ids of the stop strings that are tokens of their own: control tokens do not appear in a text."""
    known = tokenizer.special_ids()
    return {known[text] for text in stop if text in known}


def generate(
    model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str | Sequence[int]], *, max_new_tokens: int,
    temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None,
    repetition_penalty: float = 1.0, seed: int = 0, stop: Sequence[str] = (), stream: Stream | None = None,
) -> list[str]:
    """The continuation of each prompt, without it.

    A prompt is a text, before which bos is put where the model expects it, or ids as they are. Generation ends at
    an end token of the checkpoint, before the first of the `stop` strings, or after `max_new_tokens`. temperature 0
    is greedy, else see `next_tokens`; repetition_penalty 1 is none, else see `_Penalty`; a prompt's random numbers
    depend on the seed and its index only. stream: called with (index, piece) as text becomes certain; the pieces add
    up to the result. NumLLMError as `generate_ids`.
    """
    if isinstance(prompts, str):
        raise TypeError("prompts must be a list of texts, got one text")
    if not all(stop):
        raise ValueError("a stop string must not be empty")
    prefix = tokenizer.prefix()
    rows = [
        [*prefix, *tokenizer.encode(prompt)] if isinstance(prompt, str) else list(prompt) for prompt in prompts
    ]
    texts = [_Text(tokenizer, row, stop) for row in rows]

    def watch(index: int, ids: list[int]) -> bool:
        reached = texts[index].add(ids)
        if stream is not None and (piece := texts[index].piece(last=reached)):
            stream(index, piece)
        return reached

    found = generate_ids(
        model, rows, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
        repetition_penalty=repetition_penalty, seed=seed, ends={*tokenizer.eos_ids, *_controls(tokenizer, stop)},
        watch=watch if stop or stream else None,
    )
    for index, (text, ids) in enumerate(zip(texts, found, strict=True)):
        text.add(ids)
        if stream is not None and (piece := text.piece(last=True)):
            stream(index, piece)
    return [text.text for text in texts]
