"""Questions that a model may have read: those that share a long run of characters with a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..files import Progress, no_progress
from ..overlap import RUN, Runs, gram_hashes, letters, spelled
from ..questions import Question, passages
from .statistics import Json, tally


def overlaps(
    questions: Sequence[Question], texts: Iterable[tuple[str, str]], *, run: int = RUN,
    progress: Progress = no_progress,
) -> dict[str, Json]:
    """Id → {"run", "text"} of the questions whose stem (context and question) or an option shares `run` letters and
    digits in a row with a text; texts are (name, text), and the first that does is named.

    Spaces, punctuation, width and case are not looked at. Memory is that of the questions' runs; texts stream.
    """
    runs = Runs(((question.id, part) for question in questions for part in passages(question)), run)
    found: dict[str, Json] = {}
    count = len(texts) if isinstance(texts, Sequence) else None
    for name, text in progress(texts, total=count, description="looking for overlaps", unit="text"):
        plain = letters(text)
        for place, id_ in runs.find(plain, gram_hashes(plain, run)):
            found.setdefault(id_, {"run": spelled(plain[place : place + run]), "text": name})
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
