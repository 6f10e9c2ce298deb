"""Prompts and scored token spans: what is trained (`data`) and what is scored (`evaluate`) both come from here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import DataError
from .question import BLANKS, LETTERS, Question

if TYPE_CHECKING:
    from ..chat import Chat
    from ..tokenizer import Tokenizer

ANSWER = "\n答案："
"""What a letter prompt ends with."""
HEADER = "以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。"
"""First line of FinEval's five-shot prompt."""
HEADER_MULTIPLE = "以下是中国关于{subject}考试的多项选择题，请选出其中所有的正确答案。"
"""First line where the answer is a set of letters."""
STEPS = "让我们一步一步思考，\n"
"""What follows 「答案：」 in a chain-of-thought prompt."""
CONCLUSION = "所以答案是{answer}。"
ASK_STEPS = "请一步一步思考，最后单独一行以“答案：”加选项字母的形式给出答案。"
"""What a chat model is told for a chain of thought."""

_DECLARED = re.compile(
    r"(?:答案|正确选项|故选|应选|所以选|因此选|选择)(?:应该|应当|应)?(?:是|为|选择|选)?\s*[:：]?\s*(?:选项)?[\s*（(【\[]*"
    r"([A-E](?:\s*[、,，和]?\s*[A-E])*)(?![A-Za-z])"
)
_BARE = re.compile(r"\s*[（(]?([A-E](?:[、,，]?[A-E])*)[)）]?\s*(?:[.．。、:：].*)?", re.DOTALL)



@dataclasses.dataclass(frozen=True)
class PromptForm:
    """How a question with options is laid out: what stands before it, and each option; 「答案：」 ends every form."""

    lead: str
    option: str  # with {letter} and {option}


PROMPT_FORMS = (
    PromptForm("", "\n{letter}. {option}"),
    PromptForm("单项选择题：", "\n{letter}．{option}"),
    PromptForm("请选出下面问题的正确答案。\n", "\n（{letter}）{option}"),
    PromptForm("问题：", "\n选项{letter}：{option}"),
    PromptForm("", "\n{letter}、{option}"),
)
"""The first is FinEval's; the others keep a model that learns from letters from learning one layout."""


def _block(question: Question, form: int = 0) -> str:
    lines, how = zip(LETTERS, question.options, strict=False), PROMPT_FORMS[form]
    options = "".join(how.option.format(letter=letter, option=option) for letter, option in lines)
    return f"{how.lead}{question.context}{question.question}{options}{ANSWER}"


def header_of(question: Question) -> str:
    """The first line of the prompts of a question's subject and kind."""
    return (HEADER_MULTIPLE if question.multiple else HEADER).format(subject=question.subject)


def letter_prompt(
    question: Question, shots: Sequence[Question] = (), header: str | None = None, *, steps: bool = False,
    form: int = 0,
) -> str:
    """FinEval's prompt: [header, blank line,] answered examples, then the question, ending in 「答案：」.

    Each example is the same text with its answer's letter and a blank line after it. steps: every answer begins
    with `STEPS`, and an example's is its explanation and conclusion. form: which of `PROMPT_FORMS`.
    """
    if any(shot.answer is None for shot in shots):
        raise ValueError("examples must have answers")
    if steps and any(not shot.explanation for shot in shots):
        raise ValueError("examples of a chain of thought must have explanations")
    start = f"{header}\n\n" if header else ""
    thoughts = STEPS if steps else ""
    for shot in shots:
        said = f"{STEPS}{shot.explanation}\n{CONCLUSION.format(answer=shot.answer)}" if steps else shot.answer
        start += f"{_block(shot, form)}{said}\n\n"
    return start + _block(question, form) + thoughts


def extract_answer(text: str, letters: str, *, multiple: bool = False) -> str | None:
    """The answer that a generated text states, or None: nothing is guessed.

    The last statement such as 答案是B, 故选（C）, 答案：AD counts; without one, a text that is a letter alone, or
    begins with one and a mark ("B. 久期"). None when it states letters beyond `letters`, or several where one is
    wanted.
    """
    declared = _DECLARED.findall(text)
    bare = None if declared else _BARE.fullmatch(text)
    if not declared and not bare:
        return None
    found = set(re.findall("[A-E]", declared[-1] if declared else bare[1]))
    if found - set(letters) or (len(found) > 1 and not multiple):
        return None
    return "".join(sorted(found))


@dataclasses.dataclass(frozen=True)
class LetterPrompt:
    """A letter prompt that fits: its text, and ids; examples it kept; tokens it lost in front.

    control: it is a chat's, whose control tokens are read as such, and nothing stands before it.
    """

    text: str
    ids: tuple[int, ...]
    shots: int
    cut: int
    control: bool = False


def fit_letters(
    question: Question, tokenizer: Tokenizer, *, max_length: int, shots: Sequence[Question] = (),
    header: str | None = None, chat: Chat | None = None, steps: bool = False, form: int = 0,
) -> LetterPrompt:
    """The letter prompt in at most `max_length` tokens, bos included where the model expects it.

    When too long, examples are dropped from the last, then the header, then the beginning of the question.
    chat: the prompt up to 「答案：」 is a user's message, and the assistant begins with 「答案：」 (with `steps`,
    the message asks for them and the assistant is free).
    """
    if chat is not None:
        return _fit_chat(question, tokenizer, chat, max_length, shots, header, steps, form)
    prefix = tokenizer.prefix()
    room = max_length - len(prefix)
    if room < 1:
        raise ValueError(f"max_length must leave room for a token after bos, got {max_length}")
    for kept, start in _tries(shots, header):
        text = letter_prompt(question, kept, start, steps=steps, form=form)
        ids = tokenizer.encode(text)
        if len(ids) <= room:
            break
    return LetterPrompt(text, (*prefix, *ids[-room:]), len(kept), max(len(ids) - room, 0))


def _tries(shots: Sequence[Question], header: str | None) -> list[tuple[Sequence[Question], str | None]]:
    """What to keep of the examples and the header, from most to least."""
    kept = [(shots[:count], header) for count in range(len(shots), 0, -1)] or [((), header)]
    return [*kept, ((), None)]


def _fit_chat(
    question: Question, tokenizer: Tokenizer, chat: Chat, max_length: int, shots: Sequence[Question],
    header: str | None, steps: bool, form: int,
) -> LetterPrompt:
    tries = iter(_tries(shots, header))
    kept, start = next(tries)
    cut = 0
    while True:
        message = letter_prompt(question, kept, start, form=form).removesuffix(ANSWER)
        if steps:
            message += f"\n{ASK_STEPS}"
        text = chat.render([{"role": "user", "content": message}]) + ("" if steps else ANSWER.strip())
        ids = tuple(chat.encode(text))
        over = len(ids) - max_length
        if over <= 0:
            return LetterPrompt(text, ids, len(kept), cut, control=True)
        smaller = next(tries, None)
        if smaller is not None:
            kept, start = smaller
            continue
        whole = question.context + question.question
        if len(whole) <= 1:
            raise DataError(f"question {question.id}: its options and the chat template have {len(ids)} tokens, "
                            f"too long for {max_length}")
        # A character is at least one token's worth often enough: the loop ends once the prompt fits.
        cut += over
        question = dataclasses.replace(question, context="", question=whole[min(over, len(whole) - 1) :], cloze=False)


def encode_letters(
    question: Question, tokenizer: Tokenizer, *, max_length: int, shots: Sequence[Question] = (),
    header: str | None = None, chat: Chat | None = None, form: int = 0,
) -> tuple[int, ...]:
    """Ids of the letter prompt (see `fit_letters`)."""
    return fit_letters(
        question, tokenizer, max_length=max_length, shots=shots, header=header, chat=chat, form=form
    ).ids


@dataclasses.dataclass(frozen=True)
class LetterTokens:
    """How a tokenizer may write a letter after 「答案：」.

    after[l]: ids of letter l in the position after the prompt: as the text 「答案：A」 is tokenised, then,
    where it is one other token, as the letter alone is (Llama's "▁A"). joined[l]: the one token that stands
    for colon and letter together, or None. colon: the prompt's last token, which a joined token replaces.
    """

    after: tuple[tuple[int, ...], ...]
    joined: tuple[int | None, ...]
    colon: int

    @property
    def joins(self) -> bool:
        """Whether some letter has a joined token."""
        return any(id_ is not None for id_ in self.joined)


def letter_tokens(tokenizer: Tokenizer) -> LetterTokens:
    """The letters' tokens. DataError when a letter is not one token, or two letters are the same."""
    probe = tokenizer.encode(ANSWER)
    after, joined = [], []
    for letter in LETTERS:
        whole, alone = tokenizer.encode(ANSWER + letter), tokenizer.encode(letter)
        ids = [whole[-1]] if whole[:-1] == probe else []
        ids += [id_ for id_ in alone if len(alone) == 1 and id_ not in ids]
        if not ids:
            raise DataError(
                f"the tokenizer has no single token for the option letter {letter!r}; "
                "use the likelihood of the options' texts"
            )
        after.append(tuple(ids))
        joined.append(whole[-1] if len(whole) == len(probe) and whole[:-1] == probe[:-1] else None)
    every = [id_ for ids, merged in zip(after, joined, strict=True) for id_ in {*ids, merged} - {None}]
    if len(set(every)) != len(every):
        raise DataError("the tokenizer gives two option letters the same token; its vocabulary lacks them")
    return LetterTokens(tuple(after), tuple(joined), probe[-1])


def letter_ids(tokenizer: Tokenizer) -> list[int]:
    """The id that follows the prompt for each of A to E. DataError when one is not a single token."""
    return [ids[0] for ids in letter_tokens(tokenizer).after]


def likelihood_parts(question: Question) -> tuple[str, list[str], str]:
    """(stem, continuations, rest) whose likelihood tells the right option.

    With exactly one blank: context and text before it, the options, the text after it. Otherwise: context,
    question and 「答案：」, the options, nothing.
    """
    blanks = list(BLANKS.finditer(question.question))
    if len(blanks) != 1:
        return f"{question.context}{question.question}{ANSWER}", list(question.options), ""
    before, after = question.question[: blanks[0].start()], question.question[blanks[0].end() :]
    return question.context + before, list(question.options), after


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One option in its text. option and rest: half-open spans of `ids` that are scored, each token given all
    before it; cut: tokens the stem lost in front."""

    ids: tuple[int, ...]
    option: tuple[int, int]
    rest: tuple[int, int]
    cut: int = 0


def encode_continuations(
    stem: str, continuations: Sequence[str], rest: str, tokenizer: Tokenizer, *, max_length: int,
    control: bool = False,
) -> list[Encoded]:
    """stem + continuation + rest, each tokenised as one string, at most `max_length` tokens.

    A token that straddles a border of the continuation belongs to the continuation. bos stands in front where
    the model expects it; where it expects none and nothing precedes the first scored token, eos does (it ends
    the document before). control: the stem is a chat's, see `LetterPrompt`. When too long, it loses its beginning.
    DataError when the rest of the text alone is too long, or nothing can stand before it.
    """
    encoded = []
    rows = tokenizer.encode_offsets(
        [stem + continuation + rest for continuation in continuations], control=control
    )
    for continuation, (ids, offsets) in zip(continuations, rows, strict=True):
        border, end = len(stem), len(stem) + len(continuation)
        first = next((i for i, (_, stop) in enumerate(offsets) if stop > border), len(ids))
        last = next((i for i in range(first, len(ids)) if offsets[i][0] >= end), len(ids))
        if first == last:
            raise DataError(f"the tokenizer gives no token for the option {continuation!r}")
        prefix = [] if control else tokenizer.prefix()
        if not prefix and first == 0:
            if tokenizer.eos_id is None:
                raise DataError(
                    f"nothing stands before the option {continuation!r} to predict it from, "
                    "and the tokenizer has neither bos nor eos"
                )
            prefix = [tokenizer.eos_id]
        cut = max(len(prefix) + len(ids) - max_length, 0)
        if cut > first or (cut == first and not prefix):
            raise DataError(
                f"the option {continuation[:20]!r} and the text after it have {len(ids) - first} tokens, "
                f"too long for {max_length}"
            )
        shift = len(prefix) - cut
        encoded.append(Encoded(
            (*prefix, *ids[cut:]), (first + shift, last + shift), (last + shift, len(ids) + shift), cut
        ))
    return encoded


def encode_options(question: Question, tokenizer: Tokenizer, *, max_length: int) -> list[Encoded]:
    """One `Encoded` an option: `encode_continuations` of what `likelihood_parts` gives."""
    stem, continuations, rest = likelihood_parts(question)
    try:
        return encode_continuations(stem, continuations, rest, tokenizer, max_length=max_length)
    except DataError as error:
        raise DataError(f"question {question.id}: {error}") from error
