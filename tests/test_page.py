"""The report page: one file that needs no network, the same figures in Markdown and JSON."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from numllm.errors import DataError
from numllm.evaluate import mark_overlaps, summarise
from numllm.report import svg
from numllm.report.page import write_report


def result(right: int, **more) -> dict:
    rows = [
        {"id": f"q{i}", "subject": ("会计", "税法")[i % 2], "domain": ("Finance", "Economy")[i % 2], "answer": "A",
         "predicted": "A" if i < right else "B", "numeric": i % 3 == 0, "any_digit": i % 2 == 0,
         "numeric_kind": "recall" if i % 3 == 0 else None, "logprobs": {"A": -1.0, "B": -1.5},
         "question": f"第{i}题 <利率> & |税|", "options": ["甲", "乙"]}
        for i in range(40)
    ]
    return {"protocol": "letters", "shots": 5, **summarise(rows), "notes": ["3 prompts lost examples"],
            "questions": rows, "quirks": {"stray spaces": 2}, **more}


class Page(HTMLParser):
    """Collects tags, and fails on a page whose tags do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.seen, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [value for key, value in attributes if key in ("src", "href")]
        if tag not in ("meta", "br", "line", "rect", "circle", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag


@pytest.fixture
def written(tmp_path):
    results = {
        "base": result(12, provenance={
            "command": "numllm eval --model base", "sha256": {"m": "ab" * 32}, "versions": {"torch": "2"},
        }),
        "numeric": mark_overlaps(result(30), {"q3": {"run": "x", "text": "y"}}),
        "merged": result(14, permutations={
            "orders": 4, "consistent": 0.5, "said": {"A": 0.75, "B": 0.25}, "accuracy_by_order": [0.5, 0.25],
        }),
    }
    return results, write_report(results, tmp_path / "report", title="比较"), tmp_path / "report"


def test_the_page_stands_alone_and_is_whole(written):
    _, _, folder = written
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert not page.open and not page.links and "http" not in text and "<script" not in text
    charts = re.findall("<svg.*?</svg>", text)
    assert len(charts) == 4
    for chart in charts:
        ET.fromstring(chart)
    assert "第13题 &lt;利率&gt; &amp; |税|" in text and page.seen.count("details") == 20
    assert "numllm eval --model base" in text and "ab" * 32 in text


def test_tables_hold_the_figures(written):
    results, data, folder = written
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "| base | letters, 5 shots | 40 | 30.0 % (18.1–45.4) |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| numeric | all |")]
    assert "| 40 | +45.0 |" in line and "| 0 / 18 |" in line and line.endswith("numeric is better |")
    assert "| merged | 4 | 50.0 % | A 75.0 %, B 25.0 % | 50.0 %, 25.0 % |" in text
    assert "Questions that share 20 letters" in text and "| numeric | 1 |" in text
    assert "a blind guess, 50.0 %." in text
    assert "18 gained, 0 lost." in text and "3 prompts lost examples" in text and "2 stray spaces" in text
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == json.loads(json.dumps(data))
    assert [pair["b"] for pair in data["comparisons"]] == ["numeric", "merged"]
    assert data["results"]["base"]["overall"] == results["base"]["overall"]
    assert "questions" not in data["results"]["base"]
    assert data["calibration"]["base"]["bins"][0]["n"] == 40 and len(data["flips"]["numeric"]) == 18


def test_bars_are_drawn_to_scale():
    tally = {"n": 10, "correct": 5, "accuracy": 0.5, "ci95": [0.24, 0.76]}
    chart = ET.fromstring(svg.bars({"overall": {"a": tally}}).split("<p")[0])
    (bar,) = chart.iter("rect")
    plot = svg.Plot(420, 280)
    assert float(bar.get("y")) == pytest.approx(plot.y(0.5), abs=0.1)
    assert float(bar.get("height")) == pytest.approx((plot.y(0) - plot.y(1)) / 2, abs=0.1)
    ends = sorted({float(line.get("y1")) for line in chart.iter("line") if line.get("class") == "ink"})
    assert ends == pytest.approx([plot.y(0.76), plot.y(0.24)], abs=0.1)


def test_one_result_alone_and_results_of_nothing(tmp_path):
    data = write_report({"one": result(5)}, tmp_path)
    assert data["comparisons"] == [] and "Against" not in (tmp_path / "report.md").read_text()
    with pytest.raises(DataError, match="no result to report"):
        write_report({}, tmp_path)
    with pytest.raises(DataError, match="x: is no result of numllm eval"):
        write_report({"x": {"overall": {}}}, tmp_path)
    unanswered = result(0)
    for row in unanswered["questions"]:
        row["answer"] = None
    write_report({"test split": unanswered | summarise(unanswered["questions"])}, tmp_path)
