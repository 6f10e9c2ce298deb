"""Reading choice questions from the files that Chinese finance benchmarks come in; what had to be mended is counted.

CSV: FinEval, C-Eval (dev, val, test folders, subject_mapping.json), Fin-Eva (optional context, yes/no tasks),
CMMLU and FinanceIQ (an index column without a name, capital heads). JSON list: CFLUE. JSON lines: NumCT,
AGIEval, or plain rows of question, options, answer.
"""

from __future__ import annotations

import ast
import csv
import dataclasses
import html
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import read_json, read_jsonl, read_text
from .question import BLANKS, LETTERS, Question

FORMATS = ("auto", "fineval", "cflue", "agieval", "numct", "jsonl")
YES_NO = ("是", "否")
"""The options of yes/no questions, which have none in their files."""

_SPLITS = ("dev", "val", "test")
_COLUMNS = frozenset(("id", "context", "question", "answer", "explanation", *LETTERS.lower()))
_ENDINGS = {
    "auto": (".csv", ".jsonl", ".json"), "fineval": (".csv",), "cflue": (".json",), "agieval": (".jsonl",),
}
_NOT_QUESTIONS = frozenset(("subject_mapping.json", "subject_map.json", "audit.json", "stats.json"))
_MULTIPLE = ("set", "skip", "refuse")
_DEFECTS = {
    "the question is empty": "empty questions", "wanted 2 to": "too few or too many options",
    "an option is empty": "empty options", "the answer must be": "answers outside the options",
}


@dataclasses.dataclass
class _Reader:
    """How questions are read, and the counter of what was met."""

    split: str | None
    quirks: Counter[str]
    multiple: str
    strict: bool
    subjects: Mapping[str, Any] | None
    cloze: bool = False
    entities: bool = False

    def clean(self, text: str) -> str:
        """The text without spaces around it; where files come from web pages, without HTML entities (even doubled)."""
        if self.entities and (plain := html.unescape(html.unescape(text))) != text:
            self.quirks["HTML entities"] += 1
            text = plain
        if text != text.strip():
            self.quirks["stray spaces"] += 1
        return text.strip()

    def make(self, where: str, options: Sequence[str], answer: str, **fields: Any) -> Question | None:
        """A Question; empty options at the end are dropped. None when it is set aside, which is counted.

        DataError that names `where` for one that cannot be asked, when strict.
        """
        options = [self.clean(option) for option in options]
        while options and not options[-1]:
            self.quirks["empty options dropped"] += 1
            options.pop()
        letters = unicodedata.normalize("NFKC", self.clean(answer)).upper()
        several = re.sub(r"[\s,、;]", "", letters)
        if fields.get("multiple") or re.fullmatch(f"[{LETTERS}]{{2,}}", several):
            if self.multiple == "refuse":
                raise DataError(
                    f"{where}: several options may be right (answer {several}); multiple='set' scores the set, "
                    "multiple='skip' leaves such questions out"
                )
            self.quirks["answers of several letters"] += 1
            if self.multiple == "skip":
                self.quirks["set aside: several right options"] += 1
                return None
            letters, fields["multiple"] = "".join(sorted(several)), True
        try:
            return Question(options=tuple(options), answer=letters or None, **fields)
        except ValueError as error:
            if self.strict:
                raise DataError(f"{where}: {error}") from error
            kind = next((name for text, name in _DEFECTS.items() if str(error).startswith(text)), "not askable")
            self.quirks[f"set aside: {kind}"] += 1
            return None

    def subject(self, file: Path, folder: str) -> tuple[str, str]:
        """(subject, domain) of a CSV file: what the subject map says, or (name, folder)."""
        name = re.sub("_(dev|val|test)$", "", file.stem)
        where, table = "the subject map", self.subjects
        for place in (file.parent, file.absolute().parent.parent):
            for mapping in (place / "subject_mapping.json", place / "subject_map.json"):
                if table is None and mapping.is_file():
                    where, table = str(mapping), read_json(mapping)
        if table is None:
            return name, folder
        if not isinstance(table, dict):
            raise DataError(f"{where}: wanted a JSON object, got {type(table).__name__}")
        if name not in table:
            return name, folder
        entry = table[name]
        if isinstance(entry, dict):  # Fin-Eva: {"ch": Chinese name, "en": domain}
            entry = [name, entry.get("ch", name), entry.get("en", "")]
        if not isinstance(entry, list) or len(entry) != 3 or not all(isinstance(part, str) for part in entry):
            raise DataError(f"{where}: {name!r} must be [name, Chinese name, domain], got {entry!r}")
        return entry[1], entry[2]


def read_questions(
    paths: str | Path | Iterable[str | Path], *, format: str = "auto", split: str | None = None,
    quirks: Counter[str] | None = None, multiple: str = "refuse", strict: bool = True,
    subjects: Mapping[str, Any] | None = None,
) -> list[Question]:
    """The questions of files and folders, in order, with unique ids.

    format: "fineval" (CSV with the columns [id,] [context,] question, A, B, … [, answer] [, explanation], in any
    case, the id's head may be empty; without option columns the options are 是 and 否; one file a subject, or the
    folder with dev, val, test), "cflue" (a JSON list; choices is a dict, or one written as a Python literal),
    "agieval" (JSON lines with passage, question, options that begin with "(A)", label), "numct" or "jsonl" (a
    row is an object with question, options and, when known, answer, context, subject, domain, number, split), or
    "auto" (by the ending of the name and the keys of the row).
    split: "dev", "val" or "test" of a folder that has them (default val, else test; "heldout" takes val too;
    from a path in another split, the one beside it), and the rows of a JSON-lines set whose "split" equals it
    (default all; rows without one always stay).
    multiple: answers of several letters are scored as a set ("set"), left out ("skip") or an error ("refuse").
    strict: a question that cannot be asked (one option, an empty option, an answer outside the options) is an
    error; else it is left out and counted.
    subjects: name of a file → [name, Chinese name, domain], instead of the subject_mapping.json beside it.
    quirks, if given, counts what was met: stray spaces, byte-order marks, empty options, repeated ids, yes/no
    questions, letters before options, HTML entities, answers of several letters, questions set aside.
    DataError, in one line, for a file that is missing or broken (with its line), columns not known, or when
    nothing is found.
    """
    if format not in FORMATS:
        raise DataError(f"question format must be one of {', '.join(FORMATS)}, got {format!r}")
    if multiple not in _MULTIPLE:
        raise ValueError(f"multiple must be one of {', '.join(_MULTIPLE)}, got {multiple!r}")
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    quirks = Counter() if quirks is None else quirks
    reader = _Reader(split, quirks, multiple, strict, subjects, cloze=format == "numct")
    questions: list[Question] = []
    for path in map(Path, paths):
        before = len(questions), sum(quirks.values())
        for file, folder in _files(path, format, split):
            questions += filter(None, _READ[file.suffix.lower()](file, folder, reader))
        if len(questions) == before[0] and split is None:
            raise DataError(f"{path}: holds no questions" + (
                " that can be asked" if sum(quirks.values()) > before[1] and not strict else ""
            ))
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


def _files(path: Path, format: str, split: str | None) -> list[tuple[Path, str]]:
    """(file, the domain its folder stands for) of the question files that a path stands for."""
    endings = _ENDINGS.get(format, (".jsonl",))
    path = _of_split(path, split)
    if path.is_file():
        if path.suffix.lower() not in endings:
            raise DataError(f"{path}: wanted a {' or '.join(endings)} file of questions")
        return [(path, "")]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")

    def of_questions(files: Iterable[Path]) -> list[Path]:
        return sorted(
            file for file in files
            if file.suffix.lower() in endings and file.is_file() and file.name not in _NOT_QUESTIONS
        )

    files = [(file, "") for file in of_questions(path.iterdir())]
    files = files or [(file, file.parent.name) for file in of_questions(path.glob("*/*"))]
    if not files:
        raise DataError(f"{path}: the folder holds no questions; wanted {' or '.join(endings)} files")
    return files


def _of_split(path: Path, split: str | None) -> Path:
    """Where a benchmark keeps a split: the root's folder of that name, or what lies beside `path` in it."""
    root = any((path / name).is_dir() for name in _SPLITS)
    named = re.search("_(dev|val|test)$", path.stem) if path.suffix.lower() == ".csv" else None
    if named:
        own = named[1]
    elif path.name in _SPLITS and path.is_dir():
        own = path.name
    else:  # CMMLU's files have the same name in each split's folder
        own = path.parent.name if path.suffix.lower() == ".csv" and path.parent.name in _SPLITS else None
    if not root and own is None:
        return path
    if split not in (None, "heldout", *_SPLITS):
        raise DataError(f"{path}: FinEval has no split {split!r}; it has {', '.join(_SPLITS)}")
    if root:
        default = "val" if (path / "val").is_dir() else "test"
        return path / (split if split in _SPLITS else default)
    if split not in _SPLITS or split == own:
        return path
    folder = path.absolute().parent
    if path.is_dir() or path.suffix.lower() != ".csv":
        return folder / split
    name = f"{path.stem[: -len(own)]}{split}.csv" if named else path.name
    return folder.parent / split / name


def _read_csv(file: Path, folder: str, reader: _Reader) -> Iterator[Question | None]:
    text = read_text(file)
    if file.read_bytes()[:3] == b"\xef\xbb\xbf":
        reader.quirks["byte-order marks"] += 1
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    subject, domain = reader.subject(file, folder)
    try:
        head = [name.strip().lower() or "id" for name in next(lines, [])]
        unknown = [name for name in head if name not in _COLUMNS]
        if unknown:
            raise DataError(
                f"{file}: unknown column {unknown[0]!r}; "
                "known: id, context, question, A to E, answer, explanation"
            )
        letters = [letter for letter in LETTERS if letter.lower() in head]
        yes_no = not letters and "answer" in head
        if "question" not in head or len(set(head)) != len(head) or (len(letters) < 2 and not yes_no) \
                or letters != list(LETTERS[: len(letters)]):
            raise DataError(f"{file}: wanted the columns question, A, B, … once each, got {', '.join(head)}")
        for index, values in enumerate(lines):
            if not values:
                continue
            where = f"{file}, line {lines.line_num}"
            if len(values) != len(head):
                raise DataError(f"{where}: wanted {len(head)} columns, got {len(values)}")
            row = dict(zip(head, values, strict=True))
            options, answer = [row[letter.lower()] for letter in letters], row.get("answer", "")
            if yes_no:
                reader.quirks["yes/no questions"] += 1
                options, answer = YES_NO, dict(zip(YES_NO, LETTERS, strict=False)).get(answer.strip(), answer)
            yield reader.make(
                where, options, answer, id=f"{file.stem}:{row.get('id', '').strip() or index}",
                question=reader.clean(row["question"]), context=row.get("context", "").strip(),
                subject=subject, domain=domain, source=file.name,
                explanation=row.get("explanation", "").strip(),
            )
    except csv.Error as error:
        raise DataError(f"{file}, line {lines.line_num}: not valid CSV: {error}") from error


def _read_list(file: Path, folder: str, reader: _Reader) -> Iterator[Question | None]:
    rows = read_json(file)
    if not isinstance(rows, list):
        raise DataError(f"{file}: wanted a JSON list of questions, got {type(rows).__name__}")
    reader = dataclasses.replace(reader, entities=True)
    for index, row in enumerate(rows):
        where = f"{file}, question {index + 1}"
        if not isinstance(row, dict):
            raise DataError(f"{where}: wanted a JSON object, got {type(row).__name__}")
        yield _of_row(where, row, file, index, reader)


def _read_lines(file: Path, folder: str, reader: _Reader) -> Iterator[Question | None]:
    for number, row in read_jsonl(file):
        if reader.split is not None and row.get("split") is not None and row["split"] != reader.split:
            continue
        yield _of_row(f"{file}, line {number}", row, file, number, reader)


def _of_row(where: str, row: dict[str, Any], file: Path, number: int, reader: _Reader) -> Question | None:
    """A question of a JSON object: NumCT, AGIEval, CFLUE or plain, told by its keys."""

    def text(*keys: str) -> str:
        for key in keys:
            value = row.get(key)
            if value is None:
                continue
            if isinstance(value, list) and key == "label" and all(isinstance(part, str) for part in value):
                return "".join(value)
            if not isinstance(value, str) and not (key == "id" and isinstance(value, int)):
                raise DataError(f"{where}: {key} must be text, got {type(value).__name__}")
            return str(value)
        return ""

    choices = _options(where, row, reader)
    asked = row.get("number")
    if asked is not None and not isinstance(asked, dict):
        raise DataError(f"{where}: number must be an object, got {type(asked).__name__}")
    question, task = reader.clean(text("question")), text("task")
    return reader.make(
        where, choices, text("answer", "label"), id=text("id") or f"{file.stem}:{number}", question=question,
        context=text("context", "passage"), subject=text("subject", "名称"), domain=text("domain") or task,
        source=text("source_id") or text("source") or file.name, number=asked,
        cloze=reader.cloze or ("task" not in row and len(BLANKS.findall(question)) == 1),
        multiple=task.startswith("多项"), explanation=text("explanation", "analysis"),
    )


def _options(where: str, row: dict[str, Any], reader: _Reader) -> list[str]:
    """The options of a row: a list, or a dict by letter, perhaps written as a Python literal in a string."""
    key = "choices" if "choices" in row and "options" not in row else "options"
    value = row.get(key)
    if isinstance(value, str):
        reader.quirks["choices written as a string"] += 1
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise DataError(f"{where}: {key} is a string that is no Python dict: {value[:40]!r}") from error
    if isinstance(value, dict):
        if not value or list(value) != list("ABCDEFGHIJ"[: len(value)]):
            raise DataError(f"{where}: {key} must go by letters A, B, …, got {', '.join(map(str, value))}")
        value = list(value.values())
    if not isinstance(value, list) or not all(isinstance(option, str) for option in value):
        raise DataError(f"{where}: options must be a list of texts, got {value!r}")
    lettered = zip("ABCDEFGHIJ", value, strict=False)
    marked = [re.match(rf"\s*[(（]{letter}[)）]\s*", option) for letter, option in lettered]
    if value and all(marked):
        reader.quirks["letters before options"] += 1
        value = [option[mark.end() :] for mark, option in zip(marked, value, strict=True)]
    return value


_READ = {".csv": _read_csv, ".json": _read_list, ".jsonl": _read_lines}
