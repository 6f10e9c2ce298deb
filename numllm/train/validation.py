"""Looking at held-out text and questions during training: perplexity and accuracy of each adapter."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..corpus import read_corpus
from ..errors import DataError, TrainError
from ..evaluate import evaluate, perplexity
from ..files import Progress, no_progress
from ..lora import AdapterSet
from ..model import Transformer
from ..questions import Question, read_questions
from ..tokenizer import Tokenizer
from ..train_config import TrainConfig

T = TypeVar("T")


@dataclasses.dataclass
class Best:
    """The best validation of an adapter so far: its score (larger is better) and step; looks since then."""

    score: list[float] | None = None
    step: int | None = None
    since: int = 0

    def see(self, score: list[float], step: int) -> bool:
        """Takes note of a validation; whether it is the best so far."""
        if self.score is None or score > self.score:
            self.score, self.step, self.since = score, step, 0
            return True
        self.since += 1
        return False

    def state(self) -> dict[str, Any]:
        """The fields, as JSON."""
        return dataclasses.asdict(self)


def _some(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items at most, in order, the same ones each time."""
    if len(items) <= count:
        return list(items)
    chosen = sorted(random.Random("validation").sample(range(len(items)), count))
    return [items[index] for index in chosen]


class Validation:
    """The held-out text and questions of a run. TrainError when an adapter's kind of them is missing."""

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer) -> None:
        self.length, self.tokenizer = config.length, tokenizer
        self.protocol = "letters" if config.loss == "letter" else "likelihood"
        self.texts = _some(_texts(config), config.validation_size)
        self.questions = _some(_questions(config), config.validation_size)
        for adapter, found, what, flag in (
            ("domain", self.texts, "is no held-out text", "--heldout-corpus"),
            ("numeric", self.questions, "are no held-out questions", "--heldout-numct"),
        ):
            if adapter in config.adapters and not found:
                raise TrainError(f"there {what} to validate the {adapter} adapter on; give {flag}")

    def __call__(
        self, model: Transformer, adapters: AdapterSet, name: str, progress: Progress = no_progress
    ) -> dict[str, Any]:
        """The figures of one adapter on all that is held out.

        "perplexity", "nll", "bits_per_character" of the text; "accuracy", "numeric_accuracy" (of the questions
        with numeric variables; None without any) and "choice_loss", the mean of −log softmax(scores)[answer].
        """
        began = time.perf_counter()
        row: dict[str, Any] = {}
        with adapters.use(name):
            if self.texts:
                text = perplexity(model, self.tokenizer, self.texts, length=self.length, progress=progress)
                row |= {key: text[key] for key in ("perplexity", "nll", "bits_per_character")}
            if self.questions:
                result = evaluate(
                    model, self.tokenizer, self.questions, protocol=self.protocol, max_length=self.length,
                    progress=progress,
                )
                row |= {
                    "accuracy": result["overall"]["accuracy"], "numeric_accuracy": result["numeric"]["accuracy"],
                    "choice_loss": _choice_loss(result["questions"]),
                }
        return row | {"seconds": round(time.perf_counter() - began, 4)}


def score(adapter: str, row: dict[str, Any]) -> list[float]:
    """What a validation is judged by, larger being better: −nll for domain; accuracy, then −choice loss for numeric."""
    if adapter == "domain":
        return [-row["nll"]]
    accuracy = row["accuracy"] if row["numeric_accuracy"] is None else row["numeric_accuracy"]
    return [accuracy, -row["choice_loss"]]


def _choice_loss(rows: Sequence[dict[str, Any]]) -> float:
    losses = []
    for row in rows:
        scores = list(row["logprobs"].values())
        highest = max(scores)
        whole = highest + math.log(math.fsum(math.exp(value - highest) for value in scores))
        losses.append(whole - row["logprobs"][row["answer"]])
    return math.fsum(losses) / len(losses)


def _texts(config: TrainConfig) -> list[str]:
    path = config.heldout_corpus or config.corpus
    if path is None:
        return []
    # A corpus given for validation is held out whole; of the run's own only what is marked.
    return [
        row["text"] for row in read_corpus(Path(path)) if config.heldout_corpus or row["split"] == "heldout"
    ]


def _questions(config: TrainConfig) -> list[Question]:
    if config.heldout_numct is not None:
        found = read_questions([Path(config.heldout_numct)])
    elif config.numct is not None:
        try:
            found = read_questions([Path(config.numct)], split="heldout")
        except DataError:  # none is marked; a broken file was refused when the training questions were read
            return []
        # Rows that name no split are in every split: they are trained on.
        trained = {_asked(question) for question in read_questions([Path(config.numct)], split="train")}
        found = [question for question in found if _asked(question) not in trained]
    else:
        return []
    return [question for question in found if question.answer is not None]


def _asked(question: Question) -> tuple[str, ...]:
    return (question.context, question.question, *question.options)
