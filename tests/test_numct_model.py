"""numllm.numct: a model's own wrong numbers, their journal, and the proportion of kinds."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_numct import _documents, _value, build

from numllm.errors import DataError
from numllm.numct import BLANK, TAGS
from numllm.numct.proposals import Proposals, build_with_model


class Sampler:
    """Continuations that depend on the seed alone, and a kill after so many calls."""

    def __init__(self, calls: int = 10**9) -> None:
        self.left, self.calls = calls, 0

    def __call__(self, text: str, count: int, seed: int) -> list[str]:
        if self.calls == self.left:
            raise KeyboardInterrupt
        self.calls += 1
        number = f"{2 + seed % 7}.{seed % 9 + 1}%，每股"
        return [number if i % 2 else "并不是一个数。" for i in range(count)]


@pytest.fixture
def documents() -> list[dict[str, Any]]:
    return _documents(12)


def _build(documents: Any, path: Path, sample: Sampler) -> list[dict[str, Any]]:
    return build_with_model(lambda: iter(documents), Proposals(sample, path, model="m", samples=4), seed=3, tags=TAGS)


def test_a_models_numbers_are_wrong_options_in_the_answers_form(documents: list[dict[str, Any]]) -> None:
    def propose(question: str, text: str) -> list[str]:
        assert text and BLANK not in text
        return ["6.3%，比上年高", "6.3", "7", "12", "35万股", "三十五", "五", "不是数", "", "6.3%至8%"]

    rows = list(build(documents, propose=propose))
    own = [row for row in rows if "model" in row["distractors"]]
    assert len(own) > len(rows) / 6
    for row in own:
        values = [_value(row, option) for option in row["options"]]
        assert len(set(values)) == 4
        assert {option.endswith("%") for option in row["options"]} in ({True}, {False})
        digits = {value.replace(".", "").strip("0") for value in values}
        assert digits & {"63", "7", "12", "35", "5"}, row["options"]


def test_a_killed_run_goes_on_to_the_same_rows(documents: list[dict[str, Any]], tmp_path: Path) -> None:
    all_of_it, killed, rest = Sampler(), Sampler(40), Sampler()
    whole = _build(documents, tmp_path / "a", all_of_it)
    assert Counter(tier for row in whole for tier in row["distractors"])["model"] > 0
    with pytest.raises(KeyboardInterrupt):
        _build(documents, tmp_path / "b", killed)
    with open(tmp_path / "b", "a", encoding="utf-8") as file:
        file.write('{"torn": ["5')
    assert _build(documents, tmp_path / "b", rest) == whole
    assert rest.calls <= all_of_it.calls - 32
    assert _build(documents, tmp_path / "b", Sampler(0)) == whole  # all is known


def test_a_journal_of_other_settings_is_refused(documents: list[dict[str, Any]], tmp_path: Path) -> None:
    _build(documents[:2], tmp_path / "a", Sampler())
    with pytest.raises(DataError, match="remove it, or choose another --out"):
        Proposals(Sampler(), tmp_path / "a", model="m", samples=4, seed=1)


def test_kinds_come_in_the_proportion_of_their_weights(documents: list[dict[str, Any]]) -> None:
    many = _documents(80, seed=5)
    plain = Counter(row["number"]["kind"] for row in build(many))
    weighed = Counter(row["number"]["kind"] for row in build(many, kind_weights={"rate": 2, "amount": 1, "price": 0}))
    assert plain["price"] and not weighed["price"]
    assert abs(weighed["rate"] - 2 * weighed["amount"]) <= 41 and weighed["amount"] > 10
    assert weighed["duration"] == pytest.approx(plain["duration"], rel=0.3)
    with pytest.raises(ValueError, match="kind_weights must give some of amount, rate"):
        list(build([], kind_weights={"date": 1}))


@pytest.mark.parametrize("text", ["date=1", "rate=x", "rate=-1", "rate"])
def test_the_command_refuses_wrong_weights(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from test_cli import run

    code, _, error = run(capfd, "numct", tmp_path, "--out", tmp_path / "q.jsonl", "--kind-weights", text)
    assert code == 1 and re.search(r"--kind-weights wants KIND=NUMBER,… .*got '" + text, error)
