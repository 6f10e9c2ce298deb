"""Batches of choice questions, scored by letter or by likelihood."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import DataError
from ..questions import LETTERS, PROMPT_FORMS, Question, encode_options, fit_letters, letter_ids
from ..tokenizer import Tokenizer
from .batch import Batch, Choice
from .packing import Draw, Piece, lay_out, pack

if TYPE_CHECKING:
    from ..chat import Chat

LOSSES = ("letter", "likelihood", "both")
"""How a choice question is learnt from."""


def _digit_ids(tokenizer: Tokenizer) -> list[int]:
    """The tokens of the digits 0 to 9; −1 for each where the tokenizer lacks one of them as a token of its own."""
    found = [tokenizer.encode(digit) for digit in "0123456789"]
    return [ids[-1] for ids in found] if len({ids[-1] for ids in found if ids}) == 10 else [-1] * 10


def _shared(pieces: Sequence[Piece]) -> int:
    """Tokens that all pieces begin with."""
    count = 0
    for tokens in zip(*pieces, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count


class ChoiceBatches:
    """Batches of choice questions, packed.

    loss "letter": one piece a question, FinEval's prompt and the answer's letter, which alone is scored; the
    options are shuffled afresh each epoch. loss "likelihood": one piece an option, the text with the blank
    filled by it, scored as `questions.Encoded` says (see `train.choice_loss`); with `text`, the right option's
    whole text is scored too. loss "both": the likelihood, and the letter as one more branch of the same text, its
    loss weighted by `letter_weight`. varied: letters are asked in the forms of `questions.PROMPT_FORMS`, drawn for each
    question and epoch, not in FinEval's alone; chat: as a message to the model. size: questions a step; or tokens: as
    many as have that many tokens. cut: ids of the questions met so far that are longer than `length`
    and lose their beginning.
    """

    def __init__(
        self, questions: Sequence[Question], tokenizer: Tokenizer, *, size: int, length: int,
        tokens: int | None = None, loss: str = "letter", text: bool = False, letter_weight: float = 1.0,
        varied: bool = False, chat: Chat | None = None, seed: int = 0,
    ) -> None:
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        self._questions = [question for question in questions if question.answer is not None]
        if not self._questions:
            raise DataError("there are no questions with an answer to train on; a question needs its answer's letter")
        self._tokenizer = tokenizer
        self.size, self.length, self.loss, self.text, self.seed = size, length, loss, text, seed
        self.cut: set[str] = set()
        self.letter_weight, self.varied, self.chat = letter_weight, varied, chat
        if loss != "likelihood":
            self._letters = letter_ids(tokenizer)
        if loss != "letter":
            self._digits = _digit_ids(tokenizer)
            self._options = [encode_options(q, tokenizer, max_length=length) for q in self._questions]
            self.cut = {
                question.id for question, options in zip(self._questions, self._options, strict=True)
                if any(option.cut for option in options)
            }
        # The lengths cost an encoding of every question; they matter to a token budget only.
        lengths = [1] * len(self._questions) if tokens is None else [self._length(i) for i in range(len(self))]
        self._draw = Draw(lengths, size=size, tokens=tokens, seed=seed, salt="choice")

    @property
    def epoch_steps(self) -> float:
        """Steps in one pass over the questions."""
        return self._draw.epoch_steps

    @property
    def has_digits(self) -> bool:
        """Whether digits are tokens of their own, so that their distance can be learnt."""
        return self.loss != "letter" and self._digits[0] >= 0

    def _length(self, index: int) -> int:
        """Tokens of a question, the options of the letter loss in their first order."""
        if self.loss == "letter":
            return len(self._letter(self._questions[index], 0)[0])
        encoded = self._options[index]
        trunk = _shared([option.ids[: option.option[0]] for option in encoded])
        letter = len(self._letter(self._questions[index], 0)[0]) if self.loss == "both" else 0
        return trunk + sum(len(option.ids) - trunk for option in encoded) + letter

    def __len__(self) -> int:
        return len(self._questions)

    def _letter(self, question: Question, epoch: int) -> tuple[Piece, int]:
        """(prompt and letter, index of the letter), the options in a new order."""
        order = list(range(len(question.options)))
        random.Random(f"{self.seed} options {question.id} {epoch}").shuffle(order)
        right = LETTERS.index(question.answer)
        shuffled = dataclasses.replace(
            question,
            options=tuple(question.options[index] for index in order),
            answer=LETTERS[order.index(right)],
        )
        forms = len(PROMPT_FORMS) if self.varied else 1
        form = random.Random(f"{self.seed} form {question.id} {epoch}").randrange(forms)
        fitted = fit_letters(shuffled, self._tokenizer, max_length=self.length - 1, chat=self.chat, form=form)
        prompt = fitted.ids
        if fitted.cut:
            self.cut.add(question.id)
        return (*prompt, self._letters[LETTERS.index(shuffled.answer)]), len(prompt)

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        chosen = self._draw(step)
        if self.loss == "letter":
            return self._letter_batch(chosen)
        return self._likelihood_batch(chosen)

    def _letter_batch(self, chosen: list[tuple[int, int]]) -> Batch:
        encoded = [self._letter(self._questions[index], epoch) for epoch, index in chosen]
        tokens, documents, starts = self._pack([piece for piece, _ in encoded])
        positions = torch.tensor([start + at - 1 for start, (_, at) in zip(starts, encoded, strict=True)])
        return Batch(tokens, documents, positions, tokens.flatten()[positions + 1], count=len(chosen))

    def _likelihood_batch(self, drawn: list[tuple[int, int]]) -> Batch:
        """Each question is a tree: what its options share once, then a branch an option, and one for the letter."""
        chosen = [index for _, index in drawn]
        digit_of = {id_: digit for digit, id_ in enumerate(self._digits)}
        pieces: list[Piece] = []
        branches: list[list[int]] = []
        scored: list[tuple[int, int, int, int, float, float, float, int]] = []
        """question, predicted from, label, option, shares in its score, the text's and the letter's loss, digit"""
        for number, (epoch, index) in enumerate(drawn):
            encoded = self._options[index]
            right = LETTERS.index(self._questions[index].answer)
            letter = [self._letter(self._questions[index], epoch)[0]] if self.loss == "both" else []
            trunk = _shared([*(option.ids[: option.option[0]] for option in encoded), *letter])
            piece, branch = list(encoded[0].ids[:trunk]), [0] * trunk
            whole = 1.0 / (len(encoded[right].ids) - 1)
            if self.text:
                scored += [(number, at - 1, piece[at], right, 0.0, whole, 0.0, -1) for at in range(1, trunk)]
            for place, option in enumerate(encoded):
                shift = len(piece) - trunk
                share = {
                    at: 1.0 / (end - begin) for begin, end in (option.option, option.rest) for at in range(begin, end)
                }
                text = whole if self.text and place == right else 0.0
                for at in range(max(trunk, 1), len(option.ids)) if text else share:
                    source = at - 1 if at == trunk else at - 1 + shift
                    own = place == right and option.option[0] <= at < option.option[1]
                    digit = digit_of.get(option.ids[at], -1) if own else -1
                    scored.append((number, source, option.ids[at], place, share.get(at, 0.0), text, 0.0, digit))
                piece += option.ids[trunk:]
                branch += [place + 1] * (len(option.ids) - trunk)
            for ids in letter:
                piece += ids[trunk:]
                branch += [len(encoded) + 1] * (len(ids) - trunk)
                scored.append((number, len(piece) - 2, ids[-1], right, 0.0, 0.0, self.letter_weight, -1))
            pieces.append(tuple(piece))
            branches.append(branch)
        tokens, documents, starts = self._pack(pieces)
        flat = torch.zeros(tokens.numel(), dtype=torch.int32)
        for start, branch in zip(starts, branches, strict=True):
            flat[start : start + len(branch)] = torch.tensor(branch, dtype=torch.int32)
        sizes = [len(self._options[index]) for index in chosen]
        first = [sum(sizes[:q]) for q in range(len(sizes))]
        rights = [LETTERS.index(self._questions[index].answer) for index in chosen]
        choice = Choice(
            options=torch.tensor([first[q] + place for q, _, _, place, *_ in scored]),
            weights=torch.tensor([row[4] for row in scored]), sizes=sizes,
            answers=torch.tensor([a + b for a, b in zip(first, rights, strict=True)]),
            text=torch.tensor([row[5] for row in scored]), letters=torch.tensor([row[6] for row in scored]),
            digits=torch.tensor([row[7] for row in scored]), digit_ids=torch.tensor(self._digits),
        )
        return Batch(
            tokens, documents, torch.tensor([starts[q] + source for q, source, *_ in scored]),
            torch.tensor([label for _, _, label, *_ in scored]), count=len(chosen),
            branches=flat.view(tokens.shape), choice=choice,
        )

    def _pack(self, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor, list[int]]:
        """Tokens and documents of packed rows, and the flat start of each piece in the order given."""
        width = max(self.length, max(map(len, pieces)))
        packed = pack([len(piece) for piece in pieces], width)
        tokens, documents, begins = lay_out([[pieces[i] for i in row] for row in packed], width)
        starts = [0] * len(pieces)
        for row, row_begins in zip(packed, begins, strict=True):
            for index, start in zip(row, row_begins, strict=True):
                starts[index] = start
        return tokens, documents, starts
