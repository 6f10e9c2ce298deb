"""Probes: exact answers recomputed from the question's own text, wrong options that give nothing away."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

import pytest

from numllm import probes
from numllm.files import write_jsonl
from numllm.numbers import find_numbers
from numllm.probes import KINDS, LEVELS, build_probes, show
from numllm.questions import is_numeric, read_questions

ROWS = list(build_probes(24, seed=5))


def figures(text: str) -> list[Fraction]:
    """Every figure in a text, as printed, in order."""
    return [Fraction(figure.replace(",", "")) for figure in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


def value(option: str) -> Fraction:
    return Fraction(option.replace(",", "").rstrip("%"))


def solve(kind: str, level: int, text: str) -> Fraction:
    """The answer, from the figures of the text alone."""
    f = figures(text)
    if kind == "convert":
        (number,) = find_numbers(text.split("等于")[0])
        return Fraction(number.value) / Fraction(find_numbers("1" + text.split("____")[1].rstrip("。"))[0].value)
    if kind == "points":
        sign = 1 if "上升" in text else -1
        return f[0] + sign * f[1] * (1, Fraction(1, 100), f[0] / 100)[level - 1]
    if kind == "growth":
        return {1: lambda: (f[1] / f[0] - 1) * 100, 2: lambda: f[0] / (1 + f[1] / 100),
                3: lambda: ((1 + f[0] / 100) * (1 + f[1] / 100) - 1) * 100}[level]()
    if kind.endswith("interest"):
        total = f[0] * (1 + f[1] / 100) ** f[2] if kind == "compound interest" else f[0] * (1 + f[1] * f[2] / 100)
        return total - f[0] if level == 1 else total
    return {1: lambda: f[0] / f[1], 2: lambda: 100 * (f[2] + f[3]) / (f[0] + f[1]),
            3: lambda: (f[0] - f[1]) / f[3]}[level]()


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_exact(kind):
    rows = [row for row in ROWS if row["subject"] == kind]
    assert len(rows) == 24 * len(LEVELS)
    for row in rows:
        right = row["options"]["ABCD".index(row["answer"])]
        if kind == "compare":
            amounts = [Fraction(find_numbers(option)[0].value) for option in row["options"]]
            assert amounts.count(max(amounts)) == 1 and row["options"][amounts.index(max(amounts))] == right
            continue
        expected = solve(kind, int(row["domain"][-1]), row["question"])
        gap = next((gap for mark, gap in (("保留两位", Fraction(1, 200)), ("保留一位", Fraction(1, 20)))
                    if mark in row["question"]), 0)
        assert abs(value(right) - expected) <= gap, row
        assert all(abs(value(option) - expected) > gap for option in row["options"] if option != right)


def test_nothing_but_the_calculation_gives_the_answer_away():
    assert Counter(row["answer"] for row in ROWS) == dict.fromkeys("ABCD", len(ROWS) // 4)
    found = {}
    for kind in KINDS:
        rows = [row for row in ROWS if row["subject"] == kind]
        right = ["ABCD".index(row["answer"]) for row in rows]
        longest = [max(range(4), key=lambda i, row=row: len(row["options"][i])) for row in rows]
        assert sum(guess == at for guess, at in zip(longest, right, strict=True)) / len(rows) < 0.45
        for taste in (1, -1):  # for round figures, or for long ones
            guesses = [min(range(4), key=lambda i, row=row: taste * weight(row["options"][i])) for row in rows]
            found[kind, taste] = sum(guess == at for guess, at in zip(guesses, right, strict=True)) / len(rows)
        if kind != "compare":
            ranks = Counter(
                sum(value(option) < value(row["options"][at]) for option in row["options"])
                for row, at in zip(rows, right, strict=True)
            )
            assert ranks == dict.fromkeys(range(4), len(rows) // 4)


    assert max(found.values()) < 0.45, found


def weight(option: str) -> int:
    """Significant digits of a figure."""
    return len(re.sub(r"\D", "", option).strip("0"))


def test_probes_are_questions_and_come_again(tmp_path):
    assert list(build_probes(24, seed=5)) == ROWS != list(build_probes(24, seed=6))
    assert len({row["question"] + str(row["options"]) for row in ROWS}) == len(ROWS)
    write_jsonl(tmp_path / "probes.jsonl", ROWS)
    questions = read_questions(tmp_path / "probes.jsonl")
    assert all(question.cloze and is_numeric(question) for question in questions)
    assert {question.domain for question in questions} == {"level 1", "level 2", "level 3"}


def test_probes_that_cannot_be(monkeypatch):
    with pytest.raises(ValueError, match="kinds among compare"):
        list(build_probes(kinds=["algebra"]))
    monkeypatch.setattr(probes, "_TRIES", 3)
    with pytest.raises(ValueError, match="different questions of 'points', level 1; ask for fewer"):
        list(build_probes(2000, kinds=["points"]))
    assert [show(Fraction(12500)), show(Fraction(1, 8)), show(Fraction(5), 2)] == ["12,500", "0.125", "5.00"]
    with pytest.raises(ValueError, match="no short decimal"):
        show(Fraction(1, 3))
