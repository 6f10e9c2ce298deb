"""Choice questions and held-out text: log-probabilities, accuracies with intervals, paired comparisons.

Prompts that begin alike (the examples of a subject, the stem of a question's options) run through the model
once; their keys and values are then shared. The head runs on the positions whose next token is asked for.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError, EvaluationError
from .files import Progress, no_progress
from .model import PADDING, Cache, Transformer
from .questions import (
    HEADER,
    LETTERS,
    LetterPrompt,
    LetterTokens,
    Question,
    encode_continuations,
    encode_options,
    fit_letters,
    has_digit,
    is_numeric,
    letter_tokens,
)
from .tokenizer import Tokenizer

BATCH_TOKENS = 4096
SHARED_AT_LEAST = 16
"""Shorter common beginnings are computed for each prompt: a second pass would cost more than it saves."""
CACHED_PER_BATCH = 8
"""Positions of keys and values held, in multiples of batch_tokens."""
HEAD_ELEMENTS = 1 << 26
"""Logits held at once."""
Z95 = 1.959963984540054
"""0.975 quantile of the normal distribution."""

Json = dict[str, Any]


# Log-probabilities


@dataclasses.dataclass(frozen=True)
class Probe:
    """ids, and targets (position, token): log P(token | ids[: position + 1]) is wanted for each."""

    ids: tuple[int, ...]
    targets: tuple[tuple[int, int], ...]


def log_probabilities(
    model: Transformer, groups: Sequence[Sequence[Probe]], *, batch_tokens: int = BATCH_TOKENS,
    progress: Progress = no_progress, description: str = "scoring",
) -> list[list[list[float]]]:
    """The log-probabilities (natural, fp32) that each probe of each group asks for, in order.

    The probes of a group are expected to begin alike; what they share is computed once. At most
    `batch_tokens` new positions go through the model at once, longest prompts first, padded on the right,
    where causal attention keeps padding from being seen. EvaluationError when the model gives NaN or lacks ids.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be positive, got {batch_tokens}")
    largest = max((id_ for group in groups for probe in group for id_ in probe.ids), default=0)
    if largest >= model.config.vocab_size:
        raise EvaluationError(
            f"the tokenizer gives the id {largest}, the model knows {model.config.vocab_size}; "
            "it is the tokenizer of another model"
        )
    found: list[list[list[float]]] = [[[] for _ in group] for group in groups]
    done = _run(model, groups, batch_tokens)
    total = sum(map(len, groups))
    for g, p, values in progress(done, total=total, description=description, unit="prompt"):
        if not all(map(math.isfinite, values)):
            raise EvaluationError(
                f"the model gives NaN or infinity in {model.dtype}; use --dtype float32 or check its weights"
            )
        found[g][p] = values
    return found


_Place = tuple[int, int]  # (group, probe in the group)


def _run(
    model: Transformer, groups: Sequence[Sequence[Probe]], batch_tokens: int
) -> Iterator[tuple[int, int, list[float]]]:
    shared = [_shared(group) for group in groups]
    alone = [(g, p) for g, group in enumerate(groups) if not shared[g] for p in range(len(group))]
    for places in _batches(alone, lambda place: len(groups[place[0]][place[1]].ids), batch_tokens):
        yield from _score(model, groups, places, None, {})
    together = [g for g, length in enumerate(shared) if length]
    for bundle in _batches(together, lambda g: shared[g], batch_tokens):
        prefix = _prefill(model, [groups[g][0].ids[: shared[g]] for g in bundle])
        skip = {g: shared[g] for g in bundle}
        row = {g: index for index, g in enumerate(bundle)}
        places = [(g, p) for g in bundle for p in range(len(groups[g]))]
        for part in _batches(
            places, lambda place, skip=skip: len(groups[place[0]][place[1]].ids) - skip[place[0]],
            batch_tokens, held=prefix.used,
        ):
            width = max(len(groups[g][p].ids) - skip[g] for g, p in part)
            cache = _fork(model, prefix, [row[g] for g, _ in part], width)
            yield from _score(model, groups, part, cache, skip)


def _shared(group: Sequence[Probe]) -> int:
    """Tokens that all probes of a group begin with, before the first position asked for; 0 when few."""
    if len(group) < 2:
        return 0
    common = len(os.path.commonprefix([probe.ids for probe in group]))
    length = min(common, min(position for probe in group for position, _ in probe.targets))
    return length if length >= SHARED_AT_LEAST else 0


def _batches(items: Sequence[Any], length: Any, batch_tokens: int, held: int = 0) -> Iterator[list[Any]]:
    """Items, longest first, in batches of rows × longest ≤ batch_tokens (one item at least).

    held: cached positions of each row, so that rows × (held + longest) ≤ CACHED_PER_BATCH · batch_tokens.
    """
    batch: list[Any] = []
    rows = 0
    for item in sorted(items, key=lambda item: -length(item)):
        if len(batch) == rows:
            if batch:
                yield batch
            batch, longest = [], max(length(item), 1)
            rows = max(min(batch_tokens // longest, CACHED_PER_BATCH * batch_tokens // (held + longest)), 1)
        batch.append(item)
    if batch:
        yield batch


# no_grad, not inference_mode: modules may keep tensors made here, and training could not save those.
@torch.no_grad()
def _prefill(model: Transformer, prefixes: Sequence[tuple[int, ...]]) -> Cache:
    """Keys and values of prefixes, one a row, padded on the left."""
    width = max(map(len, prefixes))
    tokens = torch.zeros(len(prefixes), width, dtype=torch.int64)
    documents = torch.full((len(prefixes), width), PADDING, dtype=torch.int32)
    for row, ids in enumerate(prefixes):
        tokens[row, width - len(ids) :] = torch.tensor(ids)
        documents[row, width - len(ids) :] = 0
    cache = model.new_cache(len(prefixes), width)
    padded = bool((documents == PADDING).any())
    model.hidden(
        tokens.to(model.device), documents=documents.to(model.device) if padded else None, cache=cache
    )
    return cache


@torch.no_grad()
def _fork(model: Transformer, cache: Cache, rows: list[int], room: int) -> Cache:
    """A cache whose rows begin as the given rows of `cache`, with room for `room` more positions."""
    fork = model.new_cache(len(rows), cache.used + room)
    index = torch.tensor(rows, device=model.device)
    for mine, theirs in ((fork.keys, cache.keys), (fork.values, cache.values)):
        mine[:, :, :, : cache.used] = theirs[:, index, :, : cache.used]
    fork.documents[:, : cache.used] = cache.documents[index, : cache.used]
    fork.padded, fork.used = cache.padded, cache.used
    return fork


@torch.no_grad()
def _score(
    model: Transformer, groups: Sequence[Sequence[Probe]], places: Sequence[_Place], cache: Cache | None,
    skip: Mapping[int, int],
) -> list[tuple[int, int, list[float]]]:
    """(group, probe, values) of probes, run without their first skip[group] tokens, which the cache holds."""
    probes = [groups[g][p] for g, p in places]
    skips = [skip.get(g, 0) for g, _ in places]
    width = max(len(probe.ids) - gone for probe, gone in zip(probes, skips, strict=True))
    tokens = torch.zeros(len(probes), width, dtype=torch.int64)
    picked: dict[int, int] = {}  # flat position → its place among those picked
    asked, wanted = [], []
    for row, (probe, gone) in enumerate(zip(probes, skips, strict=True)):
        tokens[row, : len(probe.ids) - gone] = torch.tensor(probe.ids[gone:])
        for position, token in probe.targets:
            asked.append(picked.setdefault(row * width + position - gone, len(picked)))
            wanted.append(token)
    x = model.hidden(tokens.to(model.device), cache=cache).flatten(0, 1)
    values = iter(_next_token(model, x[torch.tensor(list(picked), device=x.device)], asked, wanted))
    return [
        (g, p, [next(values) for _ in probe.targets]) for (g, p), probe in zip(places, probes, strict=True)
    ]


def _next_token(model: Transformer, x: Tensor, rows: list[int], tokens: list[int]) -> list[float]:
    """log softmax(head(x[row]))[token] for each pair; x (S, D)."""
    order = sorted(range(len(rows)), key=rows.__getitem__)
    found = [0.0] * len(rows)
    size = max(HEAD_ELEMENTS // model.config.vocab_size, 1)
    at = 0
    for first in range(0, len(x), size):
        logits = model.lm_head(x[first : first + size]).float()
        begin = at
        while at < len(order) and rows[order[at]] < first + size:
            at += 1
        part = order[begin:at]
        row = torch.tensor([rows[index] - first for index in part], device=x.device)
        token = torch.tensor([tokens[index] for index in part], device=x.device)
        chosen = logits[row, token] - logits.logsumexp(-1)[row]
        for index, value in zip(part, chosen.tolist(), strict=True):
            found[index] = value
    return found


# Protocols


@dataclasses.dataclass
class _Scores:
    """Scores by letter of each question, and what happened on the way."""

    by_letter: list[dict[str, float]]
    truncated: int = 0
    dropped_shots: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)


def _examples(
    questions: Sequence[Question], shots: int, dev: Sequence[Question] | None
) -> dict[str, list[Question]]:
    """The first `shots` answered dev questions of each subject."""
    if not shots:
        return {}
    if not dev:
        raise EvaluationError(f"{shots}-shot prompts need answered examples; give questions with a dev split")
    asked = {question.id for question in questions}
    pool: dict[str, list[Question]] = {}
    for example in dev:
        if example.answer is not None:
            if example.id in asked:
                raise EvaluationError(f"question {example.id} is among the examples; give a dev split apart")
            pool.setdefault(example.subject, []).append(example)
    for subject in dict.fromkeys(question.subject for question in questions):
        if len(pool.get(subject, ())) < shots:
            raise EvaluationError(
                f"subject {subject!r} has {len(pool.get(subject, ()))} examples, {shots} shots were wanted"
            )
    return {subject: examples[:shots] for subject, examples in pool.items()}


def _letters(
    model: Transformer, tokenizer: Tokenizer, questions: Sequence[Question], shots: int,
    dev: Sequence[Question] | None, max_length: int, options: Mapping[str, Any],
) -> _Scores:
    """log P(letter | prompt): see `evaluate`."""
    examples = _examples(questions, shots, dev)
    scores = _Scores([{} for _ in questions])
    tokens: LetterTokens | None = None
    try:
        tokens = letter_tokens(tokenizer)
    except DataError as error:
        scores.notes.append(f"letters scored by the likelihood of their whole strings: {error}")
    alike: dict[tuple[str, int], list[int]] = {}
    probes: list[list[Probe]] = []
    for index, question in enumerate(questions):
        header = HEADER.format(subject=question.subject) if shots else None
        prompt = fit_letters(
            question, tokenizer, max_length=max_length if tokens else max_length - len(LETTERS),
            shots=examples.get(question.subject, ()), header=header,
        )
        scores.truncated += prompt.cut > 0
        scores.dropped_shots += prompt.shots < shots
        count = len(question.options)
        probes.append(
            [_letter_probe(prompt, tokens, count)] if tokens
            else _string_probes(prompt, count, tokenizer, max_length)
        )
        key = (question.subject, prompt.shots) if prompt.shots else (question.id, 0)
        alike.setdefault(key, []).append(index)
    groups = [[probe for index in indexes for probe in probes[index]] for indexes in alike.values()]
    found = log_probabilities(model, groups, **options)
    for indexes, values in zip(alike.values(), found, strict=True):
        rest = iter(values)
        for index in indexes:
            count = len(questions[index].options)
            own = [next(rest) for _ in probes[index]]
            each = _letter_values(own[0], tokens, count) if tokens else [math.fsum(part) for part in own]
            scores.by_letter[index] = dict(zip(LETTERS, each, strict=False))
    return scores


def _letter_probe(prompt: LetterPrompt, tokens: LetterTokens, count: int) -> Probe:
    last = len(prompt.ids) - 1
    targets = [(last, id_) for ids in tokens.after[:count] for id_ in ids]
    if tokens.joins:
        if prompt.ids[last] != tokens.colon:
            raise EvaluationError("the tokenizer joins letters to the colon in a way numllm cannot score")
        targets.append((last - 1, tokens.colon))
        targets += [(last - 1, id_) for id_ in tokens.joined[:count] if id_ is not None]
    return Probe(prompt.ids, tuple(targets))


def _letter_values(values: Sequence[float], tokens: LetterTokens, count: int) -> list[float]:
    """log Σ over the ways to write each letter; a joined token is weighed against the colon it replaces."""
    rest = iter(values)
    found = [np.logaddexp.reduce([next(rest) for _ in ids]) for ids in tokens.after[:count]]
    if tokens.joins:
        colon = next(rest)
        found = [
            colon + value if joined is None else np.logaddexp(colon + value, next(rest))
            for value, joined in zip(found, tokens.joined[:count], strict=True)
        ]
    return [float(value) for value in found]


def _string_probes(prompt: LetterPrompt, count: int, tokenizer: Tokenizer, max_length: int) -> list[Probe]:
    """Probes of the letters' tokens, all from the first place where one letter's text differs."""
    encoded = encode_continuations(prompt.text, LETTERS[:count], "", tokenizer, max_length=max_length)
    start = min(part.option[0] + part.cut for part in encoded)
    return [_span_probe(part.ids, [(start - part.cut, part.option[1])]) for part in encoded]


def _span_probe(ids: tuple[int, ...], spans: Iterable[tuple[int, int]]) -> Probe:
    return Probe(ids, tuple((at - 1, ids[at]) for first, last in spans for at in range(first, last)))


def _likelihood(
    model: Transformer, tokenizer: Tokenizer, questions: Sequence[Question], normalise: str, with_rest: bool,
    max_length: int, options: Mapping[str, Any],
) -> _Scores:
    """Σ log p of each option's tokens (and of the text after it): see `evaluate`."""
    scores = _Scores([])
    encoded = [encode_options(question, tokenizer, max_length=max_length) for question in questions]
    groups = []
    for parts in encoded:
        scores.truncated += any(part.cut for part in parts)
        groups.append([
            _span_probe(part.ids, [part.option, part.rest] if with_rest else [part.option]) for part in parts
        ])
    for parts, values in zip(encoded, log_probabilities(model, groups, **options), strict=True):
        each = []
        for part, logs in zip(parts, values, strict=True):
            size = part.option[1] - part.option[0]
            spans = [span for span in (logs[:size], logs[size:]) if span]
            each.append(sum(math.fsum(span) / (len(span) if normalise == "option" else 1) for span in spans))
        scores.by_letter.append(dict(zip(LETTERS, each, strict=False)))
    return scores


def evaluate(
    model: Transformer, tokenizer: Tokenizer, questions: Sequence[Question], *, protocol: str = "auto",
    shots: int = 0, dev: Sequence[Question] | None = None, normalise: str = "option", with_rest: bool = True,
    max_length: int | None = None, batch_tokens: int = BATCH_TOKENS, progress: Progress = no_progress,
) -> Json:
    """The evaluation result of choice questions: accuracies with intervals, and a row a question.

    protocol "letters": argmax over log P(letter | prompt) of FinEval's prompt, with the first `shots` of the
    subject's `dev` questions as examples. Where several tokens can write a letter after the colon, their
    probabilities are summed. Where one token j joins colon and letter, both ways to write prompt and letter
    are: P = P(colon | start) · P(letter | start, colon) + P(j | start), start being the prompt without its
    colon. Letters that are no single token are scored by the likelihood of their whole strings.
    "likelihood": argmax over Σ log p(option | stem) / tokens + Σ log p(text after | stem, option) / tokens;
    the divisions only with normalise "option" (not "none"), the second term only `with_rest`. "auto":
    likelihood for cloze questions (`Question.cloze`), letters for the others.

    Prompts longer than `max_length` (default: the model's context) lose examples, then their beginning; both
    are counted and noted. Questions without an answer are predicted and left out of the accuracies. A tie
    goes to the first letter. EvaluationError for no questions, examples that are missing or are themselves
    asked, and a model that gives NaN.
    """
    if protocol not in ("auto", "letters", "likelihood") or normalise not in ("option", "none"):
        raise ValueError(f"unknown protocol {protocol!r} or normalisation {normalise!r}")
    if not questions:
        raise EvaluationError("there are no questions to evaluate")
    if len({question.id for question in questions}) != len(questions):
        raise EvaluationError("two questions have the same id")
    if shots and protocol == "likelihood":
        raise EvaluationError("the likelihood protocol takes no examples; use letters, or 0 shots")
    max_length = max_length or model.config.context
    options = {"batch_tokens": batch_tokens, "progress": progress}
    cloze = [question.cloze if protocol == "auto" else protocol == "likelihood" for question in questions]
    by_protocol: dict[str, _Scores] = {}
    if not all(cloze):
        chosen = [question for question, filled in zip(questions, cloze, strict=True) if not filled]
        by_protocol["letters"] = _letters(model, tokenizer, chosen, shots, dev, max_length, options)
    if any(cloze):
        chosen = [question for question, filled in zip(questions, cloze, strict=True) if filled]
        by_protocol["likelihood"] = _likelihood(
            model, tokenizer, chosen, normalise, with_rest, max_length, options
        )
    queues = {name: iter(scores.by_letter) for name, scores in by_protocol.items()}
    rows = []
    for question, filled in zip(questions, cloze, strict=True):
        scored = next(queues["likelihood" if filled else "letters"])
        rows.append({
            "id": question.id, "subject": question.subject, "domain": question.domain,
            "numeric": is_numeric(question), "any_digit": has_digit(question), "answer": question.answer,
            "predicted": max(scored, key=scored.__getitem__), "logprobs": scored,
        })
    name = next(iter(by_protocol)) if len(by_protocol) == 1 else "mixed"
    return {"protocol": name, "shots": shots if "letters" in by_protocol else 0, **summarise(rows),
            **_events(by_protocol, shots), "questions": rows}


def _events(by_protocol: Mapping[str, _Scores], shots: int) -> Json:
    scores = by_protocol.values()
    truncated, dropped = sum(s.truncated for s in scores), sum(s.dropped_shots for s in scores)
    notes = [note for s in scores for note in s.notes]
    if shots and "likelihood" in by_protocol:
        notes.append("cloze questions were scored by likelihood, without examples")
    if dropped:
        notes.append(f"{dropped} prompts had to do with fewer than {shots} examples to fit the context")
    if truncated:
        notes.append(f"{truncated} questions lost their beginning to fit the context")
    return {"truncated": truncated, "dropped_shots": dropped, "notes": notes}


# Statistics


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)."""
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"wanted 0 ≤ correct ≤ n and n ≥ 1, got {correct} of {n}")
    share, z = correct / n, Z95
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((centre + side) / (1 + z * z / n) for side in (-half, half))
    return (0.0 if correct == 0 else low), (1.0 if correct == n else high)


def _tally(rows: Iterable[Json]) -> Json:
    """{"n", "correct", "accuracy", "ci95"} of the rows that have an answer; None where there are none."""
    right = [row["predicted"] == row["answer"] for row in rows if row["answer"] is not None]
    n, correct = len(right), sum(right)
    return {
        "n": n, "correct": correct, "accuracy": correct / n if n else None,
        "ci95": list(wilson(correct, n)) if n else None,
    }


def _by(rows: Sequence[Json], key: str) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = {}
    for row in rows:
        if row[key]:
            found.setdefault(row[key], []).append(row)
    return found


def _macro(parts: Iterable[Sequence[Json]]) -> float | None:
    """Mean of the parts' accuracies."""
    shares = [tally["accuracy"] for tally in map(_tally, parts) if tally["n"]]
    return math.fsum(shares) / len(shares) if shares else None


def _split(rows: Sequence[Json], key: str) -> Json:
    return {
        "numeric": _tally(row for row in rows if row[key]),
        "non_numeric": _tally(row for row in rows if not row[key]),
    }


def summarise(rows: Sequence[Json]) -> Json:
    """The accuracies of result rows: overall, numeric and not, by domain (each split too) and by subject.

    "accuracy" is per question (micro); "macro" is the mean over subjects, "macro_domains" over domains.
    "any_digit" splits by the plain rule.
    """
    domains = _by(rows, "domain")
    return {
        "overall": {
            **_tally(rows), "macro": _macro(_by(rows, "subject").values()),
            "macro_domains": _macro(domains.values()),
        },
        **_split(rows, "numeric"),
        "any_digit": _split(rows, "any_digit"),
        "by_domain": {
            name: {**_tally(part), "macro": _macro(_by(part, "subject").values()), **_split(part, "numeric")}
            for name, part in domains.items()
        },
        "by_subject": {name: _tally(part) for name, part in _by(rows, "subject").items()},
        "unanswered": sum(row["answer"] is None for row in rows),
    }


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test: min(1, 2 · Σ_{k ≤ min(a, b)} C(n, k) / 2ⁿ), n = a + b."""
    n, term, total = only_a + only_b, 1, 0
    for k in range(min(only_a, only_b) + 1):
        total += term
        term = term * (n - k) // (k + 1)  # C(n, k + 1), exactly
    return min(1.0, 2 * total / 2**n)


def _answered(result: Json, which: str) -> dict[str, Json]:
    rows = result.get("questions") if isinstance(result, dict) else None
    keys = ("id", "answer", "predicted", "numeric")
    if not isinstance(rows, list) or not all(isinstance(r, dict) and all(k in r for k in keys) for r in rows):
        raise EvaluationError(f"the {which} result is not an evaluation result: it lacks rows of questions")
    return {row["id"]: row for row in rows if row["answer"] is not None}


def compare(result_a: Json, result_b: Json, *, seed: int = 0, resamples: int = 10_000) -> Json:
    """Paired comparison of two evaluation results on the questions both have, B against A.

    {"n", "accuracy_a", "accuracy_b", "difference_points" (B − A), "ci95_points" (bootstrap over questions),
    "only_a", "only_b" (questions only one has right), "p_value" (`mcnemar`), "verdict" ("not distinguishable"
    when p ≥ 0.05, else "A is better" or "B is better")}, the same of the numeric and the non-numeric
    questions, and "not_shared": questions that one result lacks. EvaluationError when they share none or an
    answer differs.
    """
    a, b = _answered(result_a, "first"), _answered(result_b, "second")
    both = [name for name in a if name in b]
    if not both:
        raise EvaluationError("the results share no answered question; evaluate both on the same questions")
    for name in both:
        if a[name]["answer"] != b[name]["answer"]:
            raise EvaluationError(f"question {name} has two answers; the results are of different questions")

    def outcome(names: list[str]) -> Json:
        right = [
            tuple(side[name]["predicted"] == side[name]["answer"] for side in (a, b)) for name in names
        ]
        return _paired(right, np.random.default_rng(seed), resamples)

    return {
        **outcome(both),
        "numeric": outcome([name for name in both if a[name]["numeric"]]),
        "non_numeric": outcome([name for name in both if not a[name]["numeric"]]),
        "not_shared": len(a) + len(b) - 2 * len(both),
    }


def _paired(right: Sequence[tuple[bool, bool]], rng: np.random.Generator, resamples: int) -> Json:
    n = len(right)
    if not n:
        return {"n": 0}
    only_a = sum(first and not second for first, second in right)
    only_b = sum(second and not first for first, second in right)
    # Resampling questions is a multinomial draw over the three differences −1, +1 and 0.
    drawn = rng.multinomial(n, [only_a / n, only_b / n, (n - only_a - only_b) / n], size=resamples)
    points = 100 * (drawn[:, 1] - drawn[:, 0]) / n
    p = mcnemar(only_a, only_b)
    better = "B is better" if only_b > only_a else "A is better"
    return {
        "n": n,
        "accuracy_a": sum(first for first, _ in right) / n,
        "accuracy_b": sum(second for _, second in right) / n,
        "difference_points": 100 * (only_b - only_a) / n,
        "ci95_points": [float(bound) for bound in np.quantile(points, (0.025, 0.975))],
        "only_a": only_a, "only_b": only_b, "p_value": p,
        "verdict": "not distinguishable" if p >= 0.05 else better,
    }


# Perplexity


def _windows(count: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first scored, end) of windows over `count` tokens; each token but the first is scored once."""
    scored = 1
    for begin in range(0, count, stride):
        end = min(begin + length, count)
        if end > scored:
            yield begin, scored, end
            scored = end


def perplexity(
    model: Transformer, tokenizer: Tokenizer, texts: Iterable[str], *, length: int | None = None,
    stride: int | None = None, batch_tokens: int = BATCH_TOKENS, progress: Progress = no_progress,
) -> Json:
    """{"perplexity", "nll", "tokens", "characters", "bits_per_character"} of texts, each read on its own.

    nll: mean −log p (nats) of a token given the up to length − 1 tokens before it that its window holds;
    windows of `length` (default: the model's context) move by `stride` (default: half of it). perplexity =
    exp(nll). bits_per_character = Σ −log₂ p / characters: comparable across tokenizers. The first token
    counts only where bos stands before it, and `characters` are those of the tokens that count.
    """
    length = length or model.config.context
    stride = stride or max(length // 2, 1)
    if not 1 <= stride < length:
        raise ValueError(f"wanted 1 ≤ stride < length, got stride {stride}, length {length}")
    total, tokens, characters = 0.0, 0, 0
    for probes, covered in _text_probes(texts, tokenizer, length, stride, batch_tokens, progress):
        for (values,) in log_probabilities(model, [[probe] for probe in probes], batch_tokens=batch_tokens):
            total -= math.fsum(values)
            tokens += len(values)
        characters += covered
    if not tokens:
        raise EvaluationError("the texts hold no token to score")
    nll = total / tokens
    return {
        "perplexity": math.exp(nll) if nll < 700 else None, "nll": nll, "tokens": tokens,
        "characters": characters, "bits_per_character": total / math.log(2) / max(characters, 1),
    }


def _text_probes(
    texts: Iterable[str], tokenizer: Tokenizer, length: int, stride: int, batch_tokens: int,
    progress: Progress,
) -> Iterator[tuple[list[Probe], int]]:
    """(probes of the windows, characters they score), in portions of a few batches."""
    prefix = tokenizer.prefix()
    probes: list[Probe] = []
    covered = held = 0
    count = len(texts) if isinstance(texts, Sequence) else None
    for text in progress(texts, total=count, description="perplexity", unit="text"):
        ((ids, offsets),) = tokenizer.encode_offsets([text])
        whole = (*prefix, *ids)
        if len(whole) < 2:
            continue
        covered += len(text) - (0 if prefix else offsets[0][1])
        for begin, first, end in _windows(len(whole), length, stride):
            probes.append(_span_probe(whole[begin:end], [(first - begin, end - begin)]))
            held += end - begin
        if held >= CACHED_PER_BATCH * batch_tokens:
            yield probes, covered
            probes, covered, held = [], 0, 0
    if probes:
        yield probes, covered
