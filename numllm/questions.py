"""Choice questions: reading them from files, and turning them into prompts and scored token spans.

What is trained (`data`) and what is scored (`evaluate`) both come from `encode_letters` and `encode_options`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError
from .files import read_json, read_jsonl, read_text
from .numbers import find_numbers

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

LETTERS = "ABCDE"
BLANK = "____"
"""What stands for the asked number or term in a cloze question; longer runs of underscores count as one."""
FORMATS = ("auto", "fineval", "numct", "jsonl")
ANSWER = "\n答案："
"""What a letter prompt ends with."""
HEADER = "以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。"
"""First line of FinEval's five-shot prompt."""

_BLANK = re.compile("_{4,}")
_DIGIT = re.compile("[0-9０-９]")
_FINEVAL_SPLITS = ("dev", "val", "test")
_COLUMNS = frozenset(("id", "context", "question", "answer", "explanation", *LETTERS.lower()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A question with 2 to 5 options, lettered A to E. ValueError when made of parts that do not fit."""

    id: str
    question: str
    options: tuple[str, ...]
    answer: str | None
    """The letter of the right option; None where it is withheld."""
    context: str = ""
    """Text that stands directly before the question."""
    subject: str = ""
    domain: str = ""
    source: str = ""
    """Document or file it comes from."""
    number: dict[str, Any] | None = None
    """The asked number (NumCT): text, value, unit, kind."""
    cloze: bool = False
    """The options fill the one blank of the question; scored by likelihood unless told otherwise."""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError("the question is empty")
        if not 2 <= len(self.options) <= len(LETTERS):
            raise ValueError(f"wanted 2 to {len(LETTERS)} options, got {len(self.options)}")
        if not all(option.strip() for option in self.options):
            raise ValueError("an option is empty")
        letters = LETTERS[: len(self.options)]
        if self.answer is not None and (len(self.answer) != 1 or self.answer not in letters):
            raise ValueError(f"the answer must be one of {', '.join(letters)}, got {self.answer!r}")
        if self.cloze and len(_BLANK.findall(self.question)) != 1:
            raise ValueError(f"a cloze question has exactly one blank {BLANK!r}")


def is_numeric(question: Question) -> bool:
    """Whether the stem (context and question) or an option holds a numeric variable (see `numbers`)."""
    if question.number is not None:
        return True
    texts = (f"{question.context}{question.question}", *question.options)
    return any(number.variable for text in texts for number in find_numbers(text))


def has_digit(question: Question) -> bool:
    """The plain rule: whether the stem or an option holds a digit 0-9."""
    return any(_DIGIT.search(text) for text in (question.context, question.question, *question.options))


# Reading


def read_questions(
    paths: str | Path | Iterable[str | Path], *, format: str = "auto", split: str | None = None,
    quirks: Counter[str] | None = None,
) -> list[Question]:
    """The questions of files and folders, in order, with unique ids.

    format: "fineval" (CSV with the columns [id,] [context,] question, A, B, … [, answer] [, explanation]; one
    file a subject, or the folder with dev, val, test and subject_mapping.json), "numct" or "jsonl" (a row is
    an object with question, options and, when known, answer, context, subject, domain, number, split), or
    "auto" (by the ending of the name).
    split: "dev", "val" or "test" of FinEval (default val of a folder; "heldout" takes val too; from a path in
    another split, the one beside it), and the rows of a JSON-lines set whose "split" equals it (default all;
    rows without one always stay).
    quirks, if given, counts what was met and mended: stray spaces, byte-order marks, empty options, repeated
    ids.
    DataError, in one line, for a file that is missing or broken (with its line), columns not known, fewer
    than two options, an answer outside the options, or when nothing is found.
    """
    if format not in FORMATS:
        raise DataError(f"question format must be one of {', '.join(FORMATS)}, got {format!r}")
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    quirks = Counter() if quirks is None else quirks
    questions: list[Question] = []
    for path in map(Path, paths):
        found = 0
        for file in _files(path, format, split):
            rows = _read_csv(file, quirks) if file.suffix.lower() == ".csv" else _read_rows(
                file, split, cloze=format == "numct", quirks=quirks
            )
            for question in rows:
                questions.append(question)
                found += 1
        if not found and split is None:
            raise DataError(f"{path}: holds no questions")
    if not questions:
        raise DataError(
            f"{', '.join(map(str, paths)) or 'no path'}: no questions"
            + (f" of the split {split!r}" if split is not None else "")
        )
    return list(_with_unique_ids(questions, quirks))


def _with_unique_ids(questions: Iterable[Question], quirks: Counter[str]) -> Iterator[Question]:
    seen: set[str] = set()
    for question in questions:
        name, count = question.id, 1
        while name in seen:
            count += 1
            name = f"{question.id}#{count}"
        seen.add(name)
        if count > 1:
            quirks["repeated ids"] += 1
            question = dataclasses.replace(question, id=name)
        yield question


def _files(path: Path, format: str, split: str | None) -> list[Path]:
    """The question files that a path stands for."""
    endings = {"auto": (".csv", ".jsonl"), "fineval": (".csv",)}.get(format, (".jsonl",))
    path = _of_split(path, split)
    if path.is_file():
        if path.suffix.lower() not in endings:
            raise DataError(f"{path}: wanted a {' or '.join(endings)} file of questions")
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in endings and file.is_file())
    if not files:
        raise DataError(f"{path}: the folder holds no questions; wanted {' or '.join(endings)} files")
    return files


def _of_split(path: Path, split: str | None) -> Path:
    """Where FinEval keeps a split: the root's folder of that name, or what lies beside `path` in it."""
    root = any((path / name).is_dir() for name in _FINEVAL_SPLITS)
    named = re.search("_(dev|val|test)$", path.stem) if path.suffix.lower() == ".csv" else None
    own = named[1] if named else path.name if path.name in _FINEVAL_SPLITS and path.is_dir() else None
    if not root and own is None:
        return path
    if split not in (None, "heldout", *_FINEVAL_SPLITS):
        raise DataError(f"{path}: FinEval has no split {split!r}; it has {', '.join(_FINEVAL_SPLITS)}")
    if root:
        return path / (split if split in _FINEVAL_SPLITS else "val")
    if split not in _FINEVAL_SPLITS or split == own:
        return path
    folder = path.absolute().parent
    return folder.parent / split / f"{path.stem[: -len(own)]}{split}.csv" if named else folder / split


def _subject(file: Path) -> tuple[str, str]:
    """(subject, domain) of a CSV file: what subject_mapping.json beside or above it says, or (name, "")."""
    name = re.sub("_(dev|val|test)$", "", file.stem)
    for folder in (file.parent, file.absolute().parent.parent):
        mapping = folder / "subject_mapping.json"
        if not mapping.is_file():
            continue
        table = read_json(mapping)
        if not isinstance(table, dict):
            raise DataError(f"{mapping}: wanted a JSON object, got {type(table).__name__}")
        if name not in table:
            return name, ""
        entry = table[name]
        if not isinstance(entry, list) or len(entry) != 3 or not all(isinstance(part, str) for part in entry):
            raise DataError(f"{mapping}: {name!r} must be [name, Chinese name, domain], got {entry!r}")
        return entry[1], entry[2]
    return name, ""


def _clean(text: str, quirks: Counter[str]) -> str:
    if text != text.strip():
        quirks["stray spaces"] += 1
    return text.strip()


def _make(where: str, quirks: Counter[str], options: Sequence[str], answer: str, **fields: Any) -> Question:
    """A Question; empty options at the end are dropped. DataError that names `where`."""
    options = [_clean(option, quirks) for option in options]
    while options and not options[-1]:
        quirks["empty options dropped"] += 1
        options.pop()
    answer = unicodedata.normalize("NFKC", _clean(answer, quirks)).upper()
    try:
        return Question(options=tuple(options), answer=answer or None, **fields)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def _read_csv(file: Path, quirks: Counter[str]) -> Iterator[Question]:
    text = read_text(file)
    if file.read_bytes()[:3] == b"\xef\xbb\xbf":
        quirks["byte-order marks"] += 1
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    subject, domain = _subject(file)
    try:
        head = [name.strip().lower() or "id" for name in next(reader, [])]
        unknown = [name for name in head if name not in _COLUMNS]
        if unknown:
            raise DataError(
                f"{file}: unknown column {unknown[0]!r}; "
                "known: id, context, question, A to E, answer, explanation"
            )
        letters = [letter for letter in LETTERS if letter.lower() in head]
        if "question" not in head or len(set(head)) != len(head) or len(letters) < 2 \
                or letters != list(LETTERS[: len(letters)]):
            raise DataError(f"{file}: wanted the columns question, A, B, … once each, got {', '.join(head)}")
        for index, values in enumerate(reader):
            if not values:
                continue
            where = f"{file}, line {reader.line_num}"
            if len(values) != len(head):
                raise DataError(f"{where}: wanted {len(head)} columns, got {len(values)}")
            row = dict(zip(head, values, strict=True))
            yield _make(
                where, quirks, [row[letter.lower()] for letter in letters], row.get("answer", ""),
                id=f"{file.stem}:{row.get('id', '').strip() or index}",
                question=_clean(row["question"], quirks), context=row.get("context", "").strip(),
                subject=subject, domain=domain, source=file.name,
            )
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: not valid CSV: {error}") from error


def _read_rows(file: Path, split: str | None, *, cloze: bool, quirks: Counter[str]) -> Iterator[Question]:
    for number, row in read_jsonl(file):
        where = f"{file}, line {number}"
        if split is not None and row.get("split") is not None and row["split"] != split:
            continue

        def text(key: str, where: str = where, row: dict[str, Any] = row) -> str:
            value = row.get(key)
            if value is None:
                return ""
            if not isinstance(value, str) and not (key == "id" and isinstance(value, int)):
                raise DataError(f"{where}: {key} must be text, got {type(value).__name__}")
            return str(value)

        options, asked = row.get("options"), row.get("number")
        if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
            raise DataError(f"{where}: options must be a list of texts, got {options!r}")
        if asked is not None and not isinstance(asked, dict):
            raise DataError(f"{where}: number must be an object, got {type(asked).__name__}")
        question = text("question")
        yield _make(
            where, quirks, options, text("answer"), id=text("id") or f"{file.stem}:{number}",
            question=question, context=text("context"), subject=text("subject"), domain=text("domain"),
            source=text("source_id") or text("source") or file.name, number=asked,
            cloze=cloze or len(_BLANK.findall(question)) == 1,
        )


# Prompts and scored spans


def _block(question: Question) -> str:
    lines = zip(LETTERS, question.options, strict=False)
    options = "".join(f"\n{letter}. {option}" for letter, option in lines)
    return f"{question.context}{question.question}{options}{ANSWER}"


def letter_prompt(question: Question, shots: Sequence[Question] = (), header: str | None = None) -> str:
    """FinEval's prompt: [header, blank line,] answered examples, then the question, ending in 「答案：」.

    Each example is the same text with its answer's letter and a blank line after it.
    """
    if any(shot.answer is None for shot in shots):
        raise ValueError("examples must have answers")
    start = f"{header}\n\n" if header else ""
    return start + "".join(f"{_block(shot)}{shot.answer}\n\n" for shot in shots) + _block(question)


@dataclasses.dataclass(frozen=True)
class LetterPrompt:
    """A letter prompt that fits: its text, and ids; examples it kept; tokens the ids lost in front."""

    text: str
    ids: tuple[int, ...]
    shots: int
    cut: int


def fit_letters(
    question: Question, tokenizer: Tokenizer, *, max_length: int, shots: Sequence[Question] = (),
    header: str | None = None,
) -> LetterPrompt:
    """The letter prompt in at most `max_length` tokens, bos included where the model expects it.

    When too long, examples are dropped from the last, then the header, then the beginning of the question.
    """
    prefix = tokenizer.prefix()
    room = max_length - len(prefix)
    if room < 1:
        raise ValueError(f"max_length must leave room for a token after bos, got {max_length}")
    tries = [(shots[:kept], header) for kept in range(len(shots), 0, -1)] or [((), header)]
    for kept, start in (*tries, ((), None)):
        text = letter_prompt(question, kept, start)
        ids = tokenizer.encode(text)
        if len(ids) <= room:
            break
    return LetterPrompt(text, (*prefix, *ids[-room:]), len(kept), max(len(ids) - room, 0))


def encode_letters(
    question: Question, tokenizer: Tokenizer, *, max_length: int, shots: Sequence[Question] = (),
    header: str | None = None,
) -> tuple[int, ...]:
    """Ids of the letter prompt (see `fit_letters`)."""
    return fit_letters(question, tokenizer, max_length=max_length, shots=shots, header=header).ids


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
    blanks = list(_BLANK.finditer(question.question))
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
    stem: str, continuations: Sequence[str], rest: str, tokenizer: Tokenizer, *, max_length: int
) -> list[Encoded]:
    """stem + continuation + rest, each tokenised as one string, at most `max_length` tokens.

    A token that straddles a border of the continuation belongs to the continuation. bos stands in front where
    the model expects it; where it expects none and nothing precedes the first scored token, eos does (it ends
    the document before). When too long, the stem loses its beginning. DataError when the rest of the text
    alone is too long, or nothing can stand before it.
    """
    encoded = []
    rows = tokenizer.encode_offsets([stem + continuation + rest for continuation in continuations])
    for continuation, (ids, offsets) in zip(continuations, rows, strict=True):
        border, end = len(stem), len(stem) + len(continuation)
        first = next((i for i, (_, stop) in enumerate(offsets) if stop > border), len(ids))
        last = next((i for i in range(first, len(ids)) if offsets[i][0] >= end), len(ids))
        if first == last:
            raise DataError(f"the tokenizer gives no token for the option {continuation!r}")
        prefix = tokenizer.prefix()
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
