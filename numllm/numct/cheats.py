"""Ways to guess a question's answer from its options and its surface, without reading it."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

from ..numbers import Number, chinese_to_int, find_numbers
from .regression import features
from .tags import BLANK, LETTERS

__all__ = ["guesses"]


def _option_numbers(row: dict[str, Any]) -> list[Number | None]:
    """Each option as the number it is in its place in the question."""
    stem, _, rest = row["question"].partition(BLANK)
    left, right = stem[-12:], rest[:12]
    found: list[Number | None] = []
    for option in row["options"]:
        last = len(left) + len(option)
        numbers = find_numbers(f"{left}{option}{right}")
        found.append(next((n for n in numbers if n.start < last and n.end > len(left)), None))
    return found


def _float(value: str) -> float:
    top, _, bottom = value.partition("/")
    try:
        return float(top) / float(bottom) if bottom else float(top)
    except ValueError:
        return math.nan


_PLAIN_DIGIT = re.compile("[0-9０-９]")


def _digits(option: str) -> str:
    """The significant digits of an option."""
    folded = option.translate(str.maketrans("０１２３４５６７８９", "0123456789"))
    digits = "".join(re.findall("[0-9]", folded))
    if not digits:
        match = re.search("[零一二三四五六七八九十百千万亿两]+(?!分之)", option.rsplit("之", 1)[-1])
        value = chinese_to_int(match.group()) if match is not None else None
        digits = str(value) if value is not None else ""
    return digits.strip("0") or "0"


def _form_key(option: str) -> str:
    """An option with its digits masked: what can be seen of its form."""
    return re.sub("[零一二三四五六七八九两]+", "n", _PLAIN_DIGIT.sub("d", option))


def _distance(a: str, b: str) -> int:
    """Edit distance of two short texts."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def guesses(
    row: dict[str, Any], answers: Counter[tuple[str, str]], frequency: Counter[tuple[str, str]]
) -> tuple[dict[str, list[float]], list[list[float]]]:
    """For each way to guess, a score of every option: the guesser takes the highest, ties drawn. And the options'
    features for the regression."""
    options: list[str] = row["options"]
    unit = row["number"]["unit"]
    numbers = _option_numbers(row)
    values = [math.nan if n is None else _float(n.value) for n in numbers]
    order = sorted(range(len(options)), key=lambda i: (math.isnan(values[i]), values[i]))
    rank = {i: r for r, i in enumerate(order)}
    half = (len(options) - 1) / 2
    digits = [_digits(option) for option in options]
    own = options[LETTERS.index(row["answer"])]
    text = row["context"] + row["question"]
    near = [math.log(abs(v)) for n in find_numbers(text) if (v := _float(n.value)) and math.isfinite(v)]
    sizes = [math.log(abs(v)) if v and math.isfinite(v) else 0.0 for v in values]
    forms = Counter(_form_key(option) for option in options)
    texts = Counter(c for c in text)
    scores = {
        "middle": [-abs(abs(rank[i] - half) - 0.5) for i in range(len(options))],
        "smallest": [-float(rank[i]) for i in range(len(options))],
        "largest": [float(rank[i]) for i in range(len(options))],
        "roundest": [-float(len(d)) for d in digits],
        "least round": [float(len(d)) for d in digits],
        "longest": [float(len(option)) for option in options],
        "shortest": [-float(len(option)) for option in options],
        "most frequent answer": [float(answers[unit, o] - (o == own)) for o in options],
        "most frequent in the texts": [0.0 if n is None else float(frequency[n.unit, n.value]) for n in numbers],
        "nearest to a number of the text": [-min((abs(s - n) for n in near), default=0.0) for s in sizes],
        "odd one out by form": [-float(forms[_form_key(option)]) for option in options],
        "like the others": [-float(sum(_distance(o, other) for other in options)) for o in options],
        "unlike the others": [float(sum(_distance(o, other) for other in options)) for o in options],
        "first digit by Benford": [-float(d[0]) for d in digits],
        "digits that stand in the text": [sum(texts[c] > 0 for c in o) / len(o) for o in options],
    }
    return scores, features(scores, values, digits)
