"""Predictions in the form that the sites of FinEval and C-Eval take for their test splits."""

from __future__ import annotations

import re

from ..errors import EvaluationError
from .statistics import Json


def submission(result: Json) -> dict[str, dict[str, str]]:
    """{subject's file name: {id: letter}} of the questions without an answer.

    EvaluationError when none lacks its answer, or an id is not that of a file's row ("accounting_test:0").
    """
    found: dict[str, dict[str, str]] = {}
    for row in result["questions"]:
        if row["answer"] is None:
            match = re.fullmatch("(.+?)(?:_test)?:([^:#]+)", row["id"])
            if not match:
                raise EvaluationError(f"question {row['id']} has no subject and number; give one file a subject")
            found.setdefault(match[1], {})[match[2]] = row["predicted"] or ""
    if not found:
        raise EvaluationError("every question has its answer; a submission is of a test split, give --split test")
    return found
