"""Sentences of several documents asked about together, in rounds; those that are too easily guessed again later.

What a guesser finds too easy depends on the questions before: on what was an answer often, on what the adversary has
learnt, on how much it has found. A sentence that gives no question for that reason waits while others are asked, and
is tried again with new wrong options.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .asking import Drawn, State, Wrong, draw_options, judge, settle, write
from .candidates import Candidate, Reading
from .tags import TAGS

__all__ = ["Rounds"]

_TOGETHER = 32  # sentences whose wrong options are judged together
_TRIES = 5  # times a sentence is asked about before it is left out as too easily guessed
_PAUSE = 6  # rounds of others before it is tried again
_NOT_WANTED = {"given": "chosen by the writer, neither known nor to be worked out"}
_AHEAD = "kind ahead of its weight"


@dataclass(slots=True)
class _Document:
    """A document of which something is left to be asked."""

    reading: Reading
    order: deque[int]  # places of its sentences, those to be asked first
    left: int | None  # questions it may still have, None for no limit
    rng: random.Random

    @property
    def full(self) -> bool:
        return self.left == 0


@dataclass(slots=True)
class _Sentence:
    """A sentence that is asked about: its numbers, the first to be asked first, and how many it may be asked."""

    document: _Document
    wanted: list[Candidate]
    room: int
    tries: int = 0
    easy: list[Candidate] = field(default_factory=list)  # numbers that this try found too easily guessed


class Rounds:
    """Makes questions of documents that come one after the other."""

    def __init__(self, state: State, limit: int | None, seed: int) -> None:
        """limit: questions of one document at most, drawn from all over it; seed: of the documents' generators."""
        self.state, self.limit, self.seed = state, limit, seed
        self.documents: deque[_Document] = deque()
        self.waiting: deque[tuple[int, _Sentence]] = deque()
        """Sentences to be tried again, and in which round."""
        self.places = 0  # sentences of the documents that are to be asked
        self.round = 0

    def add(self, reading: Reading) -> Iterator[dict[str, Any]]:
        """The questions that can be settled with one document more."""
        self.state.left_out.update(reading.left_out)
        for (_, unit), values in reading.pools.items():
            frequency = self.state.frequency[unit]
            for value in values:
                frequency[value] = frequency.get(value, 0) + 1
        for (unit, value), count in reading.shown.items():
            frequency = self.state.shown[unit]
            frequency[value] = frequency.get(value, 0) + count
        if not reading.asked:
            return
        rng = random.Random(f"numct {self.seed} {reading.id}")
        order = list(range(len(reading.asked)))
        self.places += len(order)
        if self.limit is not None:
            rng.shuffle(order)
        self.documents.append(_Document(reading, deque(order), self.limit, rng))
        while self.places >= _TOGETHER:
            yield from self._settled()

    def finish(self) -> Iterator[dict[str, Any]]:
        """The questions of what is left."""
        while self.documents or self.waiting:
            yield from self._settled()

    def _settled(self) -> Iterator[dict[str, Any]]:
        """The questions of one round: of the next sentences, and of those whose time to be tried again has come."""
        self.round += 1
        sentences = list(self._next())
        while self.waiting and (self.waiting[0][0] <= self.round or not sentences):
            sentences.append(self.waiting.popleft()[1])
        for sentence, one, wrong in self._ask(sentences):
            document = sentence.document
            yield write(one, wrong, document.reading, self.state, document.rng)

    def _next(self) -> Iterator[_Sentence]:
        """The next sentences, of no document more than it may have questions."""
        count = 0
        for _ in range(len(self.documents)):
            document = self.documents.popleft()
            taken = 0
            while document.order and count < _TOGETHER and (document.left is None or taken < document.left):
                self.places -= 1
                wanted = self._wanted(document, document.order.popleft())
                if wanted:
                    yield _Sentence(document, wanted, self.state.per_sentence)
                    taken += 1
                    count += 1
            if document.full:
                asked = document.reading.asked
                self.places -= len(document.order)
                self.state.left_out["enough of the document"] += sum(asked[i].size for i in document.order)
            elif document.order:
                self.documents.append(document)

    def _wanted(self, document: _Document, place: int) -> list[Candidate]:
        """What is wanted of a sentence, the first to be asked first; nothing where it was asked before."""
        state, rng = self.state, document.rng
        found = document.reading.asked[place]
        if found.key in state.seen:
            state.left_out["asked before"] += found.size
            return []
        state.seen.add(found.key)
        for tag in found.others:
            state.left_out[f"{tag}: {_NOT_WANTED.get(tag, 'not wanted')}"] += 1
        wanted = []
        for one in found.wanted:
            if state.wanted(one.kind):
                wanted.append(one)
            else:
                state.left_out[_AHEAD] += 1
        rng.shuffle(wanted)
        # what can be worked out or known first, then kinds seen least, so that rates, amounts, prices and durations
        # are all there
        wanted.sort(key=lambda one: (TAGS.index(one.tag) > 1, state.share(one.kind) * (0.5 + rng.random())))
        return wanted

    def _ask(self, sentences: Sequence[_Sentence]) -> list[tuple[_Sentence, Candidate, Wrong]]:
        """What is asked of the sentences, in their order: first what comes first in each, judged together, then, of a
        sentence that has room, what comes next."""
        state = self.state
        found: list[tuple[_Sentence, Candidate, Wrong]] = []
        asking = list(sentences)
        while asking:
            drawn: list[tuple[_Sentence, Drawn]] = []
            for sentence in asking:
                document = sentence.document
                for one in sentence.wanted[: sentence.room]:
                    drawn.append((sentence, draw_options(one, document.reading, state, document.rng)))
                del sentence.wanted[: sentence.room]
            state.left_out["too few wrong options"] += sum(not one.draws for _, one in drawn)
            drawn = [(sentence, one) for sentence, one in drawn if one.draws]
            for (sentence, one), seen in zip(drawn, judge([one for _, one in drawn], state), strict=True):
                document = sentence.document
                if document.full:
                    state.left_out["enough of the document"] += 1
                elif not state.wanted(one.asked.kind):
                    state.left_out[_AHEAD] += 1
                elif (wrong := settle(one, seen, state, document.rng)) is None:
                    sentence.easy.append(one.one)
                else:
                    found.append((sentence, one.one, wrong))
                    sentence.room -= 1
                    if document.left is not None:
                        document.left -= 1
            asking = [sentence for sentence in asking if self._goes_on(sentence)]
        places = {id(sentence): place for place, sentence in enumerate(sentences)}
        found.sort(key=lambda entry: places[id(entry[0])])
        return found

    def _goes_on(self, sentence: _Sentence) -> bool:
        """Whether more of a sentence is asked in this round. What it leaves waits for another, or is left out."""
        left_out = self.state.left_out
        if not sentence.room or sentence.document.full:
            left_out["enough of the document" if sentence.room else "enough of the sentence"] += len(sentence.wanted)
            sentence.wanted.clear()
            left_out["too easily guessed"] += len(sentence.easy)
            return False
        if sentence.wanted:
            return True
        sentence.tries += 1
        if sentence.easy and sentence.tries < _TRIES:
            sentence.wanted, sentence.easy = sentence.easy, []
            self.waiting.append((self.round + _PAUSE, sentence))
        else:
            left_out["too easily guessed"] += len(sentence.easy)
        return False
