"""The ablation's script: every model, several seeds, resumed without doing anything twice."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from numllm.errors import EvaluationError
from numllm.evaluate import across_seeds

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("ablation", ROOT / "scripts" / "ablation.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["ablation"] = module
    spec.loader.exec_module(module)
    return module


def result_of(right: str, domain: str = "Finance") -> dict:
    return {"questions": [
        {"id": str(i), "answer": "A", "predicted": "A" if mark == "+" else "B", "numeric": i % 2 == 0, "domain": domain}
        for i, mark in enumerate(right)
    ]}


def test_gains_over_a_base_of_each_seed():
    bases, runs = [result_of("++--" * 10), result_of("----" * 10)], [result_of("++-+" * 10), result_of("+---" * 10)]
    found = across_seeds(bases, runs)
    assert found["each"] == [0.75, 0.25] and found["difference_points"] == pytest.approx(25.0)
    low, high = found["ci95_points"]
    assert low < 25 < high
    with pytest.raises(EvaluationError, match="one base or as many as runs"):
        across_seeds(bases, runs[:1])


def test_gains_over_seeds():
    base = result_of("++--" * 10)
    found = across_seeds(base, [result_of("++++" * 10), result_of("++-+" * 10), result_of("+--+" * 10)])
    assert (found["seeds"], found["n"], found["each"]) == (3, 40, [1.0, 0.75, 0.5])
    assert found["accuracy"] == pytest.approx(0.75) and found["spread"] == pytest.approx(0.25)
    assert found["difference_points"] == pytest.approx(25.0)
    gains = np.tile([0, -1 / 3, 1 / 3, 1], 10)
    half = 1.96 * 100 * gains.std() / np.sqrt(40)
    assert found["ci95_points"] == pytest.approx([25 - half, 25 + half], abs=1.5)
    assert found["numeric"]["n"] == 20 and found["numeric"]["difference_points"] == pytest.approx(100 / 6)
    assert found["by_domain"]["Finance"]["n"] == 40
    assert across_seeds(base, [base])["spread"] is None and across_seeds(base, [base])["ci95_points"] == [0, 0]
    with pytest.raises(EvaluationError, match="other questions than the base"):
        across_seeds(base, [result_of("+")])


@pytest.fixture
def config(tmp_path):
    model, corpus = tiny.base(tmp_path / "base"), tiny.corpus(tmp_path / "corpus")
    questions = tiny.numct(tmp_path / "n.jsonl")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({
        "base": str(model), "questions": [str(questions)], "seeds": [0, 1], "dtype": "float32",
        "train": {"corpus": str(corpus), "numct": str(questions), "steps": 3, "length": 96, "rank": 2, "rows": 2,
                  "questions": 2, "loss": "likelihood"},
        "weights": {"domain": 1.0, "numeric": 0.5}, "merges": [{"method": "exact"}, {"method": "svd", "rank": 1}],
    }))
    return file


def test_an_ablation_is_made_reported_and_resumed(script, config, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    done = []
    score, train = script.evaluate, script.run_training
    monkeypatch.setattr(script, "run_training", lambda *a, **k: (done.append("train"), train(*a, **k))[1])

    def stopping(*arguments, **options):
        done.append("eval")
        if len(done) == 9:
            raise KeyboardInterrupt
        return score(*arguments, **options)

    monkeypatch.setattr(script, "evaluate", stopping)
    assert script.main(["--config", str(config), "--out", str(out)]) == 130
    assert done == ["eval", "train", *["eval"] * 5, "train", "eval"]
    row = tmp_path / "row.jsonl"
    assert script.main(["--config", str(config), "--out", str(out), "--row", str(row), "--json"]) == 0
    assert done[9:] == ["eval"] * 5
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])["across_seeds"]
    assert list(found) == ["+ domain", "+ numeric", "both, unmerged", "merged exact", "merged svd 1"]
    assert all(figure["seeds"] == 2 and figure["n"] == 8 for figure in found.values())
    # Adding both deltas in the weights is what running both adapters does.
    assert found["merged exact"]["each"] == found["both, unmerged"]["each"]
    assert any(line.startswith("| merged svd 1 | ") for line in lines)
    row = json.loads(row.read_text())
    assert [line["model"] for line in row["rows"]] == ["base", *found] and row["weights"]["numeric"] == 0.5
    assert row["seconds"] is None  # of a part of the work it would say nothing
    assert (out / "report.html").exists() and "Ablation" in (out / "report.md").read_text()
    assert not list(out.rglob("merged/*")) and not list(out.rglob("*.journal"))
    assert script.main(["--config", str(config), "--out", str(out)]) == 0 and len(done) == 14


def test_configs_that_cannot_be(script, config, tmp_path, capsys):
    given = json.loads(config.read_text())
    for changed, message in (
        ({**given, "model": "x"}, "unknown in an ablation's config: model"),
        ([], "unknown in an ablation's config: list"), ({**given, "seeds": []}, "wanted seeds"),
        ({**given, "weights": {"domain": 1}}, "weights wants a number for domain and numeric"),
        ({**given, "adapters": {"domain": "a"}}, "adapters are domain and numeric"),
        ({**given, "train": {"stepz": 3}}, "stepz"), ({**given, "questions": ["nowhere"]}, "nowhere"),
    ):
        config.write_text(json.dumps(changed))
        assert script.main(["--config", str(config), "--out", str(tmp_path / "o")]) == 1
        err = capsys.readouterr().err
        assert message in err.splitlines()[-1]
        shutil.rmtree(tmp_path / "o", ignore_errors=True)
