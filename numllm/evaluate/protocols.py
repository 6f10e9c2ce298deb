"""How questions are put to a model: letters, sets of letters, the options' likelihood, a chain of thought."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..chat import Chat
from ..errors import DataError, EvaluationError
from ..generate import generate_ids
from ..model import Transformer
from ..numbers import find_numbers
from ..questions import (
    LETTERS,
    LetterPrompt,
    LetterTokens,
    Question,
    encode_continuations,
    encode_options,
    extract_answer,
    fit_letters,
    header_of,
    letter_tokens,
    likelihood_parts,
)
from ..tokenizer import Tokenizer
from .scoring import CACHED_PER_BATCH, Probe, log_probabilities, span_probe

_FILL_TOKENS = 24
"""Tokens that a number with its unit may take."""
_END = "\n\n"
"""What follows an answer in our prompts; it tells the set A from the set AB."""
_NEXT_QUESTION = "\nA."
"""Where a base model that goes on after its answer makes up another question."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A model and how it is asked: see `evaluate`."""

    model: Transformer
    tokenizer: Tokenizer
    shots: int
    examples: Mapping[tuple[str, bool], Sequence[Question]]
    """Examples by (subject, multiple)."""
    max_length: int
    normalise: str
    with_rest: bool
    chat: Chat | None
    max_new_tokens: int
    scoring: Mapping[str, Any]
    """batch_tokens and progress of `log_probabilities`."""


@dataclasses.dataclass
class Scores:
    """What a protocol found for each question, and what happened on the way."""

    by_answer: list[dict[str, float]]
    """Score of each answer: a letter, or letters in order where the answer is a set."""
    outputs: list[str] | None = None
    """Generated texts."""
    predicted: list[str | None] | None = None
    """Answers read from the outputs; without outputs the best scored is predicted."""
    truncated: int = 0
    dropped_shots: int = 0
    unparsed: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)


def choose_examples(
    questions: Sequence[Question], shots: int, dev: Sequence[Question] | None, *, steps: bool = False
) -> dict[tuple[str, bool], list[Question]]:
    """The first `shots` answered dev questions of each subject and kind (one right option, or a set).

    steps: those with an explanation. EvaluationError when there are too few, or one is itself asked.
    """
    if not shots:
        return {}
    if not dev:
        raise EvaluationError(f"{shots}-shot prompts need answered examples; give questions with a dev split")
    asked = {question.id for question in questions}
    pool: dict[tuple[str, bool], list[Question]] = {}
    for example in dev:
        if example.answer is not None and (example.explanation or not steps):
            if example.id in asked:
                raise EvaluationError(f"question {example.id} is among the examples; give a dev split apart")
            pool.setdefault((example.subject, example.multiple), []).append(example)
    for key in dict.fromkeys((question.subject, question.multiple) for question in questions):
        if len(pool.get(key, ())) < shots:
            kind = " with explanations" if steps else ""
            kind += ", their answers sets of letters" if key[1] else ""
            raise EvaluationError(
                f"subject {key[0]!r} has {len(pool.get(key, ()))} examples{kind}, {shots} shots were wanted"
            )
    return {key: examples[:shots] for key, examples in pool.items()}


def _prompts(
    setting: Setting, questions: Sequence[Question], scores: Scores, spare: Callable[[Question], int], *,
    steps: bool = False,
) -> list[LetterPrompt]:
    """The prompt of each question, with `spare(question)` tokens left for the answer; counts what did not fit."""
    prompts = []
    for question in questions:
        wanted = setting.examples.get((question.subject, question.multiple), ()) if setting.shots else ()
        prompt = fit_letters(
            question, setting.tokenizer, max_length=setting.max_length - spare(question), shots=wanted,
            header=header_of(question) if setting.shots or question.multiple else None, chat=setting.chat, steps=steps,
        )
        scores.truncated += prompt.cut > 0
        scores.dropped_shots += prompt.shots < len(wanted)
        prompts.append(prompt)
    return prompts


def letters(setting: Setting, questions: Sequence[Question], stems: Sequence[str]) -> Scores:
    """log P(letter | prompt), or of each set of letters. stems: what questions that begin alike have in common."""
    scores = Scores([])
    tokens: LetterTokens | None = None
    try:
        tokens = letter_tokens(setting.tokenizer)
    except DataError as error:
        scores.notes.append(f"letters scored by the likelihood of their whole strings: {error}")

    def spare(question: Question) -> int:
        if question.multiple:  # its letters and the blank line after them
            return 2 * len(LETTERS)
        return 0 if tokens else len(LETTERS)

    prompts = _prompts(setting, questions, scores, spare)
    alike: dict[tuple[str, int, bool], list[int]] = {}
    strings: list[list[str]] = []
    probes: list[list[Probe]] = []
    for index, (question, prompt) in enumerate(zip(questions, prompts, strict=True)):
        own = LETTERS[: len(question.options)]
        strings.append(_subsets(own) if question.multiple else list(own))
        if question.multiple or tokens is None:
            probes.append(_string_probes(prompt, strings[-1], _END if question.multiple else "", setting))
        else:
            probes.append([_letter_probe(prompt, tokens, len(own))])
        common = question.subject if prompt.shots else stems[index]
        alike.setdefault((common, prompt.shots, question.multiple), []).append(index)
    found = log_probabilities(
        setting.model, [[probe for index in indexes for probe in probes[index]] for indexes in alike.values()],
        **setting.scoring,
    )
    scores.by_answer = [{} for _ in questions]
    for indexes, values in zip(alike.values(), found, strict=True):
        rest = iter(values)
        for index in indexes:
            own = [next(rest) for _ in probes[index]]
            single = tokens is not None and not questions[index].multiple
            each = _letter_values(own[0], tokens, len(strings[index])) if single else [math.fsum(part) for part in own]
            scores.by_answer[index] = dict(zip(strings[index], each, strict=True))
    return scores


def _subsets(own: str) -> list[str]:
    return ["".join(part) for size in range(1, len(own) + 1) for part in itertools.combinations(own, size)]


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


def _string_probes(prompt: LetterPrompt, strings: Sequence[str], end: str, setting: Setting) -> list[Probe]:
    """Probes of the tokens of each string and `end`, all from the first place where one string's text differs."""
    encoded = encode_continuations(
        prompt.text, strings, end, setting.tokenizer, max_length=setting.max_length, control=prompt.control
    )
    start = min(part.option[0] + part.cut for part in encoded)
    return [span_probe(part.ids, [(start - part.cut, part.rest[1])]) for part in encoded]


def likelihood(setting: Setting, questions: Sequence[Question], stems: Sequence[str]) -> Scores:
    """Σ log p of each option's tokens (and of the text after it): see `evaluate`."""
    scores = Scores([])
    encoded = [encode_options(question, setting.tokenizer, max_length=setting.max_length) for question in questions]
    groups = []
    for parts in encoded:
        scores.truncated += any(part.cut for part in parts)
        groups.append([
            span_probe(part.ids, [part.option, part.rest] if setting.with_rest else [part.option]) for part in parts
        ])
    for parts, values in zip(encoded, log_probabilities(setting.model, groups, **setting.scoring), strict=True):
        each = []
        for part, logs in zip(parts, values, strict=True):
            size = part.option[1] - part.option[0]
            spans = [span for span in (logs[:size], logs[size:]) if span]
            each.append(
                sum(math.fsum(span) / (len(span) if setting.normalise == "option" else 1) for span in spans)
            )
        scores.by_answer.append(dict(zip(LETTERS, each, strict=False)))
    return scores


def chain(setting: Setting, questions: Sequence[Question], stems: Sequence[str]) -> Scores:
    """The answer that a greedy chain of thought states (`extract_answer`); None where it states none."""
    scores = Scores([{} for _ in questions], outputs=["" for _ in questions], predicted=[None for _ in questions])
    if setting.max_new_tokens >= setting.max_length:
        raise EvaluationError(
            f"{setting.max_new_tokens} new tokens leave no room for a question in {setting.max_length}; ask for fewer"
        )
    prompts = _prompts(setting, questions, scores, lambda _: setting.max_new_tokens, steps=True)
    tokenizer = setting.tokenizer

    def finished(_: int, ids: list[int]) -> bool:
        return _NEXT_QUESTION in tokenizer.decode(ids)

    for batch in _batches([prompt.ids for prompt in prompts], setting.max_new_tokens, setting):
        found = generate_ids(
            setting.model, [prompts[index].ids for index in batch], max_new_tokens=setting.max_new_tokens,
            ends=tokenizer.eos_ids, watch=None if setting.chat else finished,
        )
        for index, ids in zip(batch, found, strict=True):
            text = tokenizer.decode(ids)
            if setting.chat is None:
                text = text.split(_END if setting.shots else _NEXT_QUESTION)[0]
            question = questions[index]
            scores.outputs[index] = text
            scores.predicted[index] = extract_answer(
                text, LETTERS[: len(question.options)], multiple=question.multiple
            )
    scores.unparsed = sum(answer is None for answer in scores.predicted)
    return scores


def fill(setting: Setting, questions: Sequence[Question], stems: Sequence[str]) -> Scores:
    """The option whose number a greedy continuation of the blank's text begins with; None where it is no option's.

    Numbers are compared by value and unit, read where they stand: 12500元 is 1.25万元.
    """
    scores = Scores([{} for _ in questions], outputs=["" for _ in questions], predicted=[None for _ in questions])
    tokenizer, model = setting.tokenizer, setting.model
    wanted: list[dict[tuple[str, str], str]] = []
    prompts = []
    for question in questions:
        stem, options, rest = likelihood_parts(question)
        numbers = [_number_at(stem, option + rest) for option in options]
        if not question.cloze or None in numbers or len(set(numbers)) < len(numbers):
            raise EvaluationError(
                f"question {question.id} has no blank that different numbers fill; ask it by likelihood or letters"
            )
        wanted.append(dict(zip(numbers, LETTERS, strict=False)))
        prefix, ids = tokenizer.prefix(), tokenizer.encode(stem)
        room = setting.max_length - _FILL_TOKENS - len(prefix)
        scores.truncated += len(ids) > room
        if not prefix and not ids:
            if tokenizer.eos_id is None:
                raise EvaluationError(f"question {question.id} begins with its blank; there is nothing to continue")
            prefix = [tokenizer.eos_id]
        prompts.append([*prefix, *ids[-room:]])
    for batch in _batches(prompts, _FILL_TOKENS, setting):
        found = generate_ids(model, [prompts[i] for i in batch], max_new_tokens=_FILL_TOKENS, ends=tokenizer.eos_ids)
        for index, ids in zip(batch, found, strict=True):
            scores.outputs[index] = text = tokenizer.decode(ids)
            stem, _, _ = likelihood_parts(questions[index])
            scores.predicted[index] = wanted[index].get(_number_at(stem, text))
    scores.unparsed = sum(answer is None for answer in scores.predicted)
    return scores


def _number_at(stem: str, text: str) -> tuple[str, str] | None:
    """(value, unit) of the number that begins behind the stem."""
    return next((
        (number.value, number.unit) for number in find_numbers(stem + text)
        if number.end > len(stem) and number.start >= len(stem) and not (stem + text)[len(stem) : number.start].strip()
    ), None)


def _batches(prompts: Sequence[Sequence[int]], new: int, setting: Setting) -> Iterable[list[int]]:
    """Indexes of prompts, longest first, in batches whose keys and values fit the budget."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    rows = max(CACHED_PER_BATCH * setting.scoring["batch_tokens"] // (len(prompts[order[0]]) + new), 1)
    batches = [order[first : first + rows] for first in range(0, len(order), rows)]
    return setting.scoring["progress"](batches, total=len(batches), description="generating", unit="batch")


PROTOCOLS = {"letters": letters, "likelihood": likelihood, "cot": chain, "number": fill}
