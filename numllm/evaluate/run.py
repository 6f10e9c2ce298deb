"""The evaluation of a model on choice questions, in portions that a killed run need not repeat."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..chat import Chat
from ..errors import DataError, EvaluationError
from ..files import Progress, no_progress, read_jsonl
from ..model import Transformer
from ..questions import LETTERS, Question, has_digit, numeric_kind
from ..tokenizer import Tokenizer
from .protocols import PROTOCOLS, Scores, Setting, choose_examples
from .scoring import BATCH_TOKENS
from .statistics import Json, share_of_letters, summarise

PORTION = 256
"""Questions scored between two entries of the journal."""
_COUNTS = ("truncated", "dropped_shots", "unparsed")


def evaluate(
    model: Transformer, tokenizer: Tokenizer, questions: Sequence[Question], *, protocol: str = "auto",
    shots: int = 0, dev: Sequence[Question] | None = None, normalise: str = "option", with_rest: bool = True,
    permute: int = 1, chat: Chat | None = None, max_new_tokens: int = 256, max_length: int | None = None,
    batch_tokens: int = BATCH_TOKENS, journal: Path | None = None, identity: str = "",
    progress: Progress = no_progress,
) -> Json:
    """The evaluation result of choice questions: accuracies with intervals, and a row a question.

    protocol "letters": argmax over log P(letter | prompt) of FinEval's prompt, with the first `shots` of the
    subject's `dev` questions as examples. Where several tokens can write a letter after the colon, their
    probabilities are summed. Where one token j joins colon and letter, both ways to write prompt and letter
    are: P = P(colon | start) · P(letter | start, colon) + P(j | start), start being the prompt without its
    colon. Letters that are no single token are scored by the likelihood of their whole strings, and so is, where
    the answer is a set, each set's string with the blank line after it.
    "likelihood": argmax over Σ log p(option | stem) / tokens + Σ log p(text after | stem, option) / tokens;
    the divisions only with normalise "option" (not "none"), the second term only `with_rest`. "auto":
    likelihood for cloze questions (`Question.cloze`), letters for the others. "cot": up to `max_new_tokens` are
    generated greedily and the answer they state is taken (`questions.extract_answer`); none counts as wrong.
    "number": the text is continued greedily from the blank, and the option that the first number equals is taken.

    permute: each question is asked in that many orders of its options, rotations first; an option's score is the
    log of the mean over the orders of its share of probability, and "permutations" tells the position bias.
    chat: the checkpoint's template, for letters and cot.

    Prompts longer than `max_length` (default: the model's context) lose examples, then their beginning; both
    are counted and noted. Questions without an answer are predicted and left out of the accuracies. A tie
    goes to the first letter. EvaluationError for no questions, examples that are missing or are themselves
    asked, and a model that gives NaN.

    journal: a file that holds the portions done; an evaluation that finds it goes on behind them, to the same
    result. It belongs to one model (`identity`), set of questions and setting; another's is refused.
    """
    if protocol not in ("auto", *PROTOCOLS) or normalise not in ("option", "none"):
        raise ValueError(f"unknown protocol {protocol!r} or normalisation {normalise!r}")
    if not questions:
        raise EvaluationError("there are no questions to evaluate")
    if len({question.id for question in questions}) != len(questions):
        raise EvaluationError("two questions have the same id")
    if protocol == "likelihood" and (shots or permute > 1 or chat):
        raise EvaluationError("the likelihood protocol takes no examples, orders or chat template; use letters")
    if permute > 1 and protocol in ("cot", "number"):
        raise EvaluationError("option orders are for the letters protocol; what is generated takes none")
    if protocol == "number" and (shots or chat):
        raise EvaluationError("the number protocol takes no examples or chat template; use cot")
    if permute < 1:
        raise ValueError(f"permute must be at least 1, got {permute}")
    kinds = [_protocol_of(question, protocol) for question in questions]
    prompted = [question for question, kind in zip(questions, kinds, strict=True) if kind != "likelihood"]
    setting = Setting(
        model=model, tokenizer=tokenizer, shots=shots, max_length=max_length or model.config.context,
        examples=choose_examples(prompted, shots, dev, steps=protocol == "cot"), normalise=normalise,
        with_rest=with_rest, chat=chat, max_new_tokens=max_new_tokens,
        scoring={"batch_tokens": batch_tokens, "progress": progress},
    )
    rows, events = [], Counter()
    for done in _portions(setting, questions, kinds, permute, journal, identity):
        rows += done["rows"]
        events.update(done["counts"])
        events.update({f"note {note}": 0 for note in done["notes"]})
    used = list(dict.fromkeys(kinds))
    result: Json = {
        "protocol": used[0] if len(used) == 1 else "mixed", "shots": shots if prompted else 0,
        "chat": chat is not None, **summarise(rows),
        **{name: events[name] for name in _COUNTS}, "notes": _notes(events, shots, used),
    }
    if permute > 1:
        result["permutations"] = _position_bias(rows)
    return {**result, "questions": rows}


def _protocol_of(question: Question, protocol: str) -> str:
    if protocol == "auto":
        return "likelihood" if question.cloze else "letters"
    return "letters" if protocol == "likelihood" and question.multiple else protocol


def _notes(events: Mapping[str, int], shots: int, used: Sequence[str]) -> list[str]:
    notes = [name.removeprefix("note ") for name in events if name.startswith("note ")]
    if shots and "likelihood" in used:
        notes.append("cloze questions were scored by likelihood, without examples")
    if events["dropped_shots"]:
        notes.append(f"{events['dropped_shots']} prompts had to do with fewer than {shots} examples to fit the context")
    if events["truncated"]:
        notes.append(f"{events['truncated']} prompts lost the beginning of their question to fit the context")
    if events["unparsed"]:
        notes.append(f"{events['unparsed']} outputs give none of the options; they count as wrong")
    return notes


# Portions


def _portions(
    setting: Setting, questions: Sequence[Question], kinds: Sequence[str], permute: int, journal: Path | None,
    identity: str,
) -> Iterator[Json]:
    """{"rows", "counts", "notes"} of each portion, from the journal where it has them."""
    known: list[Json] = []
    if journal is not None:
        fingerprint = _fingerprint(setting, questions, kinds, permute, identity)
        head, *known = _read_journal(journal) or [None]
        if head not in (None, {"fingerprint": fingerprint}):
            raise EvaluationError(
                f"{journal}: belongs to another evaluation (model, questions or options differ); remove it, or choose "
                "another --out"
            )
    starts = range(0, len(questions), PORTION)
    for number, first in enumerate(starts):
        if number < len(known):
            yield known[number]
            continue
        last = min(first + PORTION, len(questions))
        label = f"questions {first + 1}–{last} of {len(questions)}" if len(starts) > 1 else "scoring"
        described = dataclasses.replace(setting, scoring={**setting.scoring, "description": label})
        part = _portion(described, questions[first:last], kinds[first:last], permute)
        if journal is not None:
            if head is None:  # with the first portion: an evaluation refused before it leaves nothing behind
                head = {"fingerprint": fingerprint}
                _append(journal, head)
            _append(journal, part)
        yield part


def _portion(setting: Setting, questions: Sequence[Question], kinds: Sequence[str], permute: int) -> Json:
    rows: list[Json | None] = [None] * len(questions)
    counts: Counter[str] = Counter()
    notes: list[str] = []
    for kind in dict.fromkeys(kinds):
        places = [index for index, own in enumerate(kinds) if own == kind]
        chosen = [questions[index] for index in places]
        orders = [_orders(q, permute if kind == "letters" else 1) for q in chosen]
        asked = [_reordered(q, order) for q, own in zip(chosen, orders, strict=True) for order in own]
        stems = [q.id for q, own in zip(chosen, orders, strict=True) for _ in own]
        scores = PROTOCOLS[kind](setting, asked, stems)
        counts.update({name: getattr(scores, name) for name in _COUNTS})
        notes += scores.notes
        at = 0
        for index, question, own in zip(places, chosen, orders, strict=True):
            rows[index] = _row(question, scores, at, own)
            at += len(own)
    return {"rows": rows, "counts": dict(counts), "notes": notes}


def _row(question: Question, scores: Scores, at: int, orders: Sequence[tuple[int, ...]]) -> Json:
    kind = numeric_kind(question)
    row: Json = {
        "id": question.id, "subject": question.subject, "domain": question.domain, "numeric": kind is not None,
        "numeric_kind": kind, "any_digit": has_digit(question), "answer": question.answer,
    }
    if scores.outputs is not None:
        row |= {"predicted": scores.predicted[at], "logprobs": {}, "output": scores.outputs[at]}
    elif len(orders) == 1:
        row |= {"predicted": _best(scores.by_answer[at]), "logprobs": scores.by_answer[at]}
    else:
        each = scores.by_answer[at : at + len(orders)]
        folded = [_in_first_order(found, order) for found, order in zip(each, orders, strict=True)]
        mean = {
            answer: math.log(max(math.fsum(shares[answer] for shares in folded) / len(folded), 1e-300))
            for answer in sorted(folded[0], key=lambda answer: (len(answer), answer))
        }
        row |= {"predicted": _best(mean), "logprobs": mean, "said": [_best(found) for found in each],
                "chosen": [_best(shares) for shares in folded]}
    return row | {"question": f"{question.context}{question.question}", "options": list(question.options)}


def _best(scores: Mapping[str, float]) -> str:
    return max(scores, key=scores.__getitem__)


# Orders of the options


def _orders(question: Question, permute: int) -> list[tuple[int, ...]]:
    """The first `permute` orders: as written, its rotations (each option in each place once), then others at random.

    An order lists, for each place, the option that stands there. Questions with fewer orders give them all.
    """
    count = len(question.options)
    orders = [tuple((place + turn) % count for place in range(count)) for turn in range(min(count, permute))]
    if permute > count:
        others = [order for order in itertools.permutations(range(count)) if order not in orders]
        random.Random(f"orders {question.id}").shuffle(others)
        orders += others[: permute - count]
    return orders


def _reordered(question: Question, order: tuple[int, ...]) -> Question:
    if order == tuple(range(len(order))):
        return question
    answer = question.answer
    if answer is not None:
        answer = "".join(LETTERS[place] for place, option in enumerate(order) if LETTERS[option] in answer)
    return dataclasses.replace(question, options=tuple(question.options[option] for option in order), answer=answer)


def _in_first_order(scores: Mapping[str, float], order: tuple[int, ...]) -> dict[str, float]:
    """Shares of probability by the letters the options have as written."""
    top = max(scores.values())
    total = math.fsum(math.exp(score - top) for score in scores.values())
    back = {LETTERS[place]: LETTERS[option] for place, option in enumerate(order)}
    return {
        "".join(sorted(back[letter] for letter in answer)): math.exp(score - top) / total
        for answer, score in scores.items()
    }


def _position_bias(rows: Sequence[Json]) -> Json:
    """{"orders", "consistent": share of questions whose option never changes, "said": share of each letter among
    the answers of all orders, "accuracy_by_order"} of the questions asked in several orders."""
    asked = [row for row in rows if "said" in row]
    answered = [row for row in asked if row["answer"] is not None]
    most = max((len(row["said"]) for row in asked), default=1)
    return {
        "orders": most,
        "consistent": sum(len(set(row["chosen"])) == 1 for row in asked) / len(asked) if asked else None,
        "said": share_of_letters(said for row in asked for said in row["said"]),
        "accuracy_by_order": [
            sum(row["chosen"][order] == row["answer"] for row in part) / len(part)
            for order in range(most) if (part := [row for row in answered if len(row["chosen"]) > order])
        ],
    }


# Journal


def _fingerprint(
    setting: Setting, questions: Sequence[Question], kinds: Sequence[str], permute: int, identity: str
) -> str:
    """SHA-256 of all that the rows depend on."""
    config = dataclasses.asdict(setting.model.config) if dataclasses.is_dataclass(setting.model.config) else {}
    chat = setting.chat.render([{"role": "user", "content": "问"}]) if setting.chat else None
    what = [
        identity, str(config), str(setting.model.dtype), list(kinds),
        [dataclasses.asdict(question) for question in questions],
        [dataclasses.asdict(shot) for examples in setting.examples.values() for shot in examples], setting.shots,
        setting.max_length, setting.normalise, setting.with_rest, setting.max_new_tokens, chat, permute, PORTION,
        setting.scoring["batch_tokens"],
    ]
    return hashlib.sha256(json.dumps(what, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def _read_journal(path: Path) -> list[Json]:
    """The lines of a journal: its head, then portions; what a kill left of the last line is cut off."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) != len(data):
        os.truncate(path, len(whole))
    try:
        return [row for _, row in read_jsonl(path)]
    except DataError as error:
        raise EvaluationError(f"{error}; remove the file to evaluate from the beginning") from error


def _append(path: Path, row: Json) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be written: {error.strerror or error}") from error
