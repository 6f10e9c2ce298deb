"""Token batches: documents packed into rows, questions turned into labelled positions.

Every batch is a function of (data, seed, step): nothing is stored between steps, so a resumed run sees what
the interrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import DataError
from .model import PADDING
from .questions import LETTERS, Question, encode_letters, encode_options, letter_ids
from .tokenizer import Tokenizer

Piece = tuple[int, ...]
"""Token ids that see each other and nothing else."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """How the scored positions of a batch make up the options of its questions (loss "likelihood").

    options (S,) int64: the option each position belongs to, counted through the batch; weights (S,) fp32: its
    share in the option's score; sizes: options of each question; answers (Q,) int64: the right option of each.
    text (S,) fp32: the position's share in the text loss, the mean −log p of each question's right text.
    """

    options: Tensor
    weights: Tensor
    sizes: list[int]
    answers: Tensor
    text: Tensor


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of tokens of one adapter, with the positions that are scored.

    tokens (B, T) int64; documents (B, T) int32, PADDING where empty; branches (B, T) int32 where documents are
    trees (see `Transformer.hidden`); positions (S,) flat indexes b·T + t from which a token is predicted;
    labels (S,) int64, the tokens that should be; count: label tokens, or questions, over which
    the loss is a mean; choice: for questions scored by likelihood.
    """

    tokens: Tensor
    documents: Tensor
    positions: Tensor
    labels: Tensor
    count: int
    branches: Tensor | None = None
    choice: Choice | None = None

    def widened(self, width: int) -> Batch:
        """The batch with its rows padded to `width` tokens."""
        rows, length = self.tokens.shape
        if width == length:
            return self
        more = (0, width - length)
        return dataclasses.replace(
            self,
            tokens=torch.nn.functional.pad(self.tokens, more),
            documents=torch.nn.functional.pad(self.documents, more, value=PADDING),
            branches=None if self.branches is None else torch.nn.functional.pad(self.branches, more),
            positions=self.positions // length * width + self.positions % length,
        )

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            return _map(value, move) if isinstance(value, Choice) else value

        return _map(self, move)


def _map(instance: Any, function: Callable[[Any], Any]) -> Any:
    """A copy of a dataclass instance with `function` applied to every field."""
    fields = dataclasses.fields(instance)
    return dataclasses.replace(instance, **{f.name: function(getattr(instance, f.name)) for f in fields})


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of piece indexes, each row at most `capacity` tokens: best fit, longest first.

    The fullest row that still has room takes the piece, so rows are nearly full. Deterministic.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # by room left: row numbers
    rooms = 0  # bit r is set when some row has room for r more tokens
    rows: list[list[int]] = []
    for index in order:
        length = lengths[index]
        if not 0 < length <= capacity:
            raise ValueError(f"a piece must have 1..{capacity} tokens, got {length}")
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        if room > length:
            with_room[room - length].append(row)
            rooms |= 1 << (room - length)
    return rows


def lay_out(rows: Sequence[Sequence[Piece]], length: int) -> tuple[Tensor, Tensor, list[list[int]]]:
    """(tokens (B, T), documents (B, T), flat start of each piece in each row) of packed pieces."""
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    documents = torch.full((len(rows), length), PADDING, dtype=torch.int32)
    starts: list[list[int]] = []
    for r, row in enumerate(rows):
        at = 0
        starts.append([])
        for number, piece in enumerate(row):
            tokens[r, at : at + len(piece)] = torch.tensor(piece)
            documents[r, at : at + len(piece)] = number
            starts[-1].append(r * length + at)
            at += len(piece)
    return tokens, documents, starts


def _order(count: int, epoch: int, seed: int, salt: str) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed} {salt} {epoch}").shuffle(order)
    return order


def _take(step: int, size: int, count: int, seed: int, salt: str) -> list[tuple[int, int]]:
    """(epoch, index) of the items of one step, when every epoch is a fresh shuffle of `count` items."""
    first = step * size
    orders: dict[int, list[int]] = {}
    taken = []
    for place in range(first, first + size):
        epoch, offset = divmod(place, count)
        if epoch not in orders:
            orders[epoch] = _order(count, epoch, seed, salt)
        taken.append((epoch, orders[epoch][offset]))
    return taken


class TextBatches:
    """Next-token batches of a corpus: documents end with eos, long ones are cut, rows are packed.

    rows: rows a step. length: tokens a row. Every token but the first of a piece is a label.
    """

    def __init__(
        self, texts: Sequence[str], tokenizer: Tokenizer, *, rows: int, length: int, seed: int = 0
    ) -> None:
        end = [tokenizer.eos_id] if tokenizer.eos_id is not None else []
        prefix = tokenizer.prefix()
        pieces: list[Piece] = []
        for ids in tokenizer.encode_batch(list(texts)):
            whole = prefix + ids + end
            # Neighbouring cuts share a token, so that every token but the first is predicted once.
            for first in range(0, max(len(whole) - 1, 0), length - 1):
                pieces.append(tuple(whole[first : first + length]))
        if not pieces:
            raise DataError("the corpus has no text to train on")
        self._pieces = pieces
        self._rows = pack([len(piece) for piece in pieces], length)
        self.rows, self.length, self.seed = rows, length, seed
        self.tokens = sum(map(len, pieces))

    @property
    def epoch_steps(self) -> float:
        """Steps in one pass over the text."""
        return len(self._rows) / self.rows

    @property
    def fill(self) -> float:
        """Share of the rows' positions that hold a token."""
        return self.tokens / (len(self._rows) * self.length)

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        chosen = _take(step, self.rows, len(self._rows), self.seed, "text")
        rows = [[self._pieces[piece] for piece in self._rows[index]] for _, index in chosen]
        tokens, documents, starts = lay_out(rows, self.length)
        positions = torch.tensor([
            at + offset
            for row, begins in zip(rows, starts, strict=True)
            for piece, at in zip(row, begins, strict=True)
            for offset in range(len(piece) - 1)
        ])
        labels = tokens.flatten()[positions + 1]
        return Batch(tokens, documents, positions, labels, count=len(labels))


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
    whole text is scored too.
    """

    def __init__(
        self, questions: Sequence[Question], tokenizer: Tokenizer, *, size: int, length: int,
        loss: str = "letter", text: bool = False, seed: int = 0,
    ) -> None:
        if loss not in ("letter", "likelihood"):
            raise ValueError(f"loss must be 'letter' or 'likelihood', got {loss!r}")
        self._questions = [question for question in questions if question.answer is not None]
        if not self._questions:
            raise DataError("there are no questions with an answer to train on")
        self._tokenizer = tokenizer
        self.size, self.length, self.loss, self.text, self.seed = size, length, loss, text, seed
        if loss == "letter":
            self._letters = letter_ids(tokenizer)
        else:
            self._options = [encode_options(q, tokenizer, max_length=length) for q in self._questions]

    @property
    def epoch_steps(self) -> float:
        """Steps in one pass over the questions."""
        return len(self._questions) / self.size

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
        prompt = encode_letters(shuffled, self._tokenizer, max_length=self.length - 1)
        return (*prompt, self._letters[LETTERS.index(shuffled.answer)]), len(prompt)

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        chosen = _take(step, self.size, len(self._questions), self.seed, "choice")
        if self.loss == "letter":
            return self._letter_batch(chosen)
        return self._likelihood_batch([index for _, index in chosen])

    def _letter_batch(self, chosen: list[tuple[int, int]]) -> Batch:
        encoded = [self._letter(self._questions[index], epoch) for epoch, index in chosen]
        tokens, documents, starts = self._pack([piece for piece, _ in encoded])
        positions = torch.tensor([start + at - 1 for start, (_, at) in zip(starts, encoded, strict=True)])
        return Batch(tokens, documents, positions, tokens.flatten()[positions + 1], count=len(chosen))

    def _likelihood_batch(self, chosen: list[int]) -> Batch:
        """Each question is a tree: what its options share once, then a branch an option."""
        pieces: list[Piece] = []
        branches: list[list[int]] = []
        scored: list[tuple[int, int, int, int, float, float]] = []
        """question, predicted from, label, option, share in the option's score, share in the text loss"""
        for number, index in enumerate(chosen):
            encoded = self._options[index]
            right = LETTERS.index(self._questions[index].answer)
            trunk = _shared([option.ids[: option.option[0]] for option in encoded])
            piece, branch = list(encoded[0].ids[:trunk]), [0] * trunk
            whole = 1.0 / (len(encoded[right].ids) - 1)
            if self.text:
                scored += [(number, at - 1, piece[at], right, 0.0, whole) for at in range(1, trunk)]
            for place, option in enumerate(encoded):
                shift = len(piece) - trunk
                share = {
                    at: 1.0 / (end - begin) for begin, end in (option.option, option.rest) for at in range(begin, end)
                }
                text = whole if self.text and place == right else 0.0
                for at in range(trunk, len(option.ids)) if text else share:
                    source = at - 1 if at == trunk else at - 1 + shift
                    scored.append((number, source, option.ids[at], place, share.get(at, 0.0), text))
                piece += option.ids[trunk:]
                branch += [place + 1] * (len(option.ids) - trunk)
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
            weights=torch.tensor([share for *_, share, _ in scored]), sizes=sizes,
            answers=torch.tensor([a + b for a, b in zip(first, rights, strict=True)]),
            text=torch.tensor([text for *_, text in scored]),
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
