"""Questions that a model may have read: those that share a long run of characters with a corpus."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from ..files import Progress, no_progress
from ..questions import Question
from .statistics import Json, tally

RUN = 20
"""Characters that a question and a text must share in one run."""


def _plain(text: str) -> str:
    """Letters and digits of the text in one width and case: spacing and punctuation hide no overlap."""
    return "".join(character for character in unicodedata.normalize("NFKC", text).lower() if character.isalnum())


def overlaps(
    questions: Sequence[Question], texts: Iterable[tuple[str, str]], *, run: int = RUN,
    progress: Progress = no_progress,
) -> dict[str, Json]:
    """Id → {"run", "text"} of the questions whose stem (context and question) or an option shares `run` letters and
    digits in a row with a text; texts are (name, text), and the first that does is named.

    Spaces, punctuation, width and case are not looked at. Memory is that of the questions' runs; texts stream.
    """
    if run < 1:
        raise ValueError(f"a run has at least one character, got {run}")
    holders: dict[str, list[str]] = {}
    for question in questions:
        for part in (question.context + question.question, *question.options):
            plain = _plain(part)
            for at in range(len(plain) - run + 1):
                ids = holders.setdefault(plain[at : at + run], [])
                if not ids or ids[-1] != question.id:
                    ids.append(question.id)
    found: dict[str, Json] = {}
    count = len(texts) if isinstance(texts, Sequence) else None
    for name, text in progress(texts, total=count, description="looking for overlaps", unit="text"):
        plain = _plain(text)
        for at in range(len(plain) - run + 1):
            for id_ in holders.get(plain[at : at + run], ()):
                found.setdefault(id_, {"run": plain[at : at + run], "text": name})
    return {question.id: found[question.id] for question in questions if question.id in found}


def mark_overlaps(result: Json, found: Mapping[str, Json], *, run: int = RUN) -> Json:
    """The result with "overlap" in the rows found, and "contamination": {"run", "questions", "with": accuracy of
    the questions that overlap, "without": of the others}."""
    rows = [row | {"overlap": found[row["id"]]} if row["id"] in found else row for row in result["questions"]]
    return {
        **{key: value for key, value in result.items() if key != "questions"},
        "contamination": {
            "run": run, "questions": sum("overlap" in row for row in rows),
            "with": tally(row for row in rows if "overlap" in row),
            "without": tally(row for row in rows if "overlap" not in row),
        },
        "questions": rows,
    }
