"""The embedded default: correct arithmetic, enough of it, nothing held out in what is trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from formulas import calculations, evaluate

from numllm import demo
from numllm.checkpoint import Checkpoint
from numllm.files import read_jsonl, sha256
from numllm.questions import is_numeric, read_questions

CHAPTERS = sorted(demo.TEXTBOOK.glob("*.md"))
CASES = sorted(demo.WORKBOOK.glob("cases-*.md"))


def chinese(text):
    return re.findall("[\u4e00-\u9fff]", text)


def sentences(text):
    """Sentences of at least ten Chinese characters, without spaces and marks."""
    found = (re.sub(r"[\s*#|`]", "", part) for part in re.split(r"[。！？；\n]", text))
    return {part for part in found if len(chinese(part)) >= 10}


@pytest.mark.parametrize("text, value", [
    ("100 × (1 + 5%)^3", 115.7625), ("-2^2", -4), ("2 ^ 3 ^ 2", 512), ("8 ÷ 4 ÷ 2", 1), ("sqrt(16) + ln(exp(2))", 6),
    ("1,000 − 1".replace("−", "-"), 999), ("N(0)", 0.5), ("5‰", 0.005),
])
def test_the_checker_computes(text, value):
    assert evaluate(text) == pytest.approx(value)


def test_the_checker_sees_errors():
    found = list(calculations("利息＝100×5%×3＝15（万元）\n现值 = 100 ÷ 1.05 ≈ 95.25（元）\n比率 3 ÷ 8 = 37.5%"))
    assert [row.holds for row in found] == [True, False, True]


@pytest.mark.parametrize("path", CHAPTERS + CASES, ids=lambda path: path.stem)
def test_worked_calculations_hold(path):
    rows = list(calculations(path.read_text(encoding="utf-8")))
    assert len(rows) >= 60
    assert not [row for row in rows if not row.holds]


def test_the_textbook_is_a_textbook():
    texts = [path.read_text(encoding="utf-8") for path in CHAPTERS]
    assert len(texts) >= 12 and sum(len(chinese(text)) for text in texts) >= 60_000
    repeated = [s for text in texts for s in sentences(text)]
    assert len(repeated) - len(set(repeated)) <= 0.002 * len(repeated)  # no filler


def test_it_is_small():
    files = [path for path in Path(demo.HERE).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20


def test_questions_share_no_sentence_with_training_text():
    trained = set().union(*(sentences(path.read_text(encoding="utf-8")) for path in CHAPTERS))
    for question in read_questions([demo.NUMERIC, demo.CONCEPTS]):
        assert not sentences(question.context) & trained, question.id
        for option in question.options:
            assert not sentences(question.question.replace("____", option)) & trained, question.id


def test_questions_share_next_to_no_run_of_twenty_characters_with_training_text():
    """Two of them do, in a stock sentence and in a rule's wording; no more may come."""

    def runs(text):
        text = re.sub(r"\s", "", text)
        return {text[at : at + 20] for at in range(len(text) - 19)}

    trained = set().union(*(runs(path.read_text(encoding="utf-8")) for path in CHAPTERS))
    shared = {
        question.id for question in read_questions([demo.NUMERIC, demo.VALIDATION, demo.CONCEPTS])
        for option in question.options if runs(question.question.replace("____", option)) & trained
    }
    assert shared <= {"56694162bf02ff90", "185930e33287aeb9"}


def test_questions_share_no_sentence_with_the_bases_other_texts(shared_data):
    trained = set()
    for folder in json.loads((demo.BASE / "training.json").read_text())["characters"]:
        for path in sorted((shared_data / "textbooks").glob(f"{folder}/**/*.md")):
            trained |= sentences(path.read_text(encoding="utf-8-sig", errors="replace"))
    for question in read_questions([demo.NUMERIC, demo.CONCEPTS]):
        right = question.options["ABCD".index(question.answer)]
        assert not sentences(question.question.replace("____", right)) & trained, question.id


def test_there_are_enough_questions_of_each_kind():
    numeric, concepts = read_questions([demo.NUMERIC]), read_questions([demo.CONCEPTS])
    assert len(numeric) >= 300 and all(is_numeric(question) for question in numeric)
    assert len(concepts) >= 150 and not any(is_numeric(question) for question in concepts)
    for questions in (numeric, concepts):
        answers = [question.answer for question in questions]
        assert all(0.2 < answers.count(letter) / len(answers) < 0.3 for letter in "ABCD")


def test_numeric_questions_are_those_the_builder_makes(tmp_path):
    for made, path in zip(demo.workbook_questions(tmp_path), (demo.NUMERIC, demo.VALIDATION), strict=True):
        assert made == [row for _, row in read_jsonl(path)], "run scripts/build_demo_questions.py"


def test_the_base_is_what_its_card_says():
    figures = json.loads((demo.BASE / "training.json").read_text())
    base = Checkpoint.open("demo")
    assert sha256(demo.BASE / "model.safetensors") == figures["sha256"]
    assert base.config.architecture == "Qwen2ForCausalLM" and base.config.vocab_size == figures["vocabulary"]
    assert figures["heldout_perplexity"] < 0.1 * figures["heldout_perplexity_unigram"]
    assert f"{figures['tokens_seen']:,}" in (demo.BASE / "README.md").read_text(encoding="utf-8")


def test_the_way_is_walked(tmp_path, capfd, monkeypatch):
    """The demo's own code, cut to two steps and a few questions; the whole of it is scripts/quickstart.sh."""
    from test_cli import run

    for name, source in (("NUMERIC", demo.NUMERIC), ("CONCEPTS", demo.CONCEPTS)):
        short = tmp_path / source.name
        short.write_text("\n".join(source.read_text(encoding="utf-8").splitlines()[:12]), encoding="utf-8")
        monkeypatch.setattr(demo, name, short)
    code, out, err = run(capfd, "demo", "--out", tmp_path / "out", "--steps", "2", "--json")
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    names = [model["name"] for model in result["models"]]
    assert names == ["base", "+ domain", "+ numeric", "merged exact", "merged svd-32", "merged svd-16"]
    assert all(0 <= model["numeric"]["accuracy"] <= 1 and model["perplexity"] > 1 for model in result["models"])
    exact, full = result["models"][3], result["models"][4]
    assert exact["perplexity"] == pytest.approx(full["perplexity"], rel=1e-3)
    assert result["generated"].startswith(demo.PROMPT)
    assert {"demo.json", "demo.md", "demo.png", "results", "run", "merged-exact"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
