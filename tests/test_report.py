"""Tables aligned for Chinese, figures where matplotlib is installed."""

from __future__ import annotations

import sys

import pytest
from test_evaluate import SUBJECTS

from numllm.errors import NumLLMError
from numllm.evaluate import summarise
from numllm.report import figures, has_plots, markdown_table, plot_bars, plot_loss, smoothed, table, width

ROWS = [
    {"group": "总体", "n": 1151, "accuracy": 0.43127, "95 %": "41.0–45.2"},
    {"group": "numeric 数值", "n": 31, "accuracy": None, "95 %": "a | b\n c"},
]
needs_plots = pytest.mark.skipif(not has_plots(), reason="matplotlib is not installed")


def test_tables_line_up_in_a_terminal():
    text = table(ROWS, ["group", "n", "accuracy"])
    assert text == (
        "group            n  accuracy\n"
        "────────────  ────  ────────\n"
        "总体          1151    0.4313\n"
        "numeric 数值    31         –"
    )
    for line in table([{"a": "年利率", "b": "é"}, {"a": "x", "b": "全ｗ"}], ["a", "b"]).splitlines():
        assert width(line[: line.rindex(" ") + 1]) == 8 or "─" in line


def test_columns_can_be_renamed_and_rows_can_be_absent():
    assert table(ROWS[:1], {"n": "questions"}) == "questions\n─────────\n     1151"
    assert table([], ["a", "long"]) == "a  long\n─  ────"
    assert table([{"a": "x"}], ["a", "b"]).splitlines()[-1] == "x  –"
    with pytest.raises(ValueError, match="at least one column"):
        table(ROWS, [])


def test_width_of_characters():
    assert [width(text) for text in ("abc", "债券", "“”", "ＡＢ", "e\u0301", "", "│")] == [3, 4, 2, 4, 1, 0, 1]


def test_markdown_tables_escape_what_would_break_them():
    assert markdown_table(ROWS, {"group": "组", "n": "n", "95 %": "95 %"}) == (
        "| 组 | n | 95 % |\n| --- | ---: | --- |\n| 总体 | 1151 | 41.0–45.2 |\n| numeric 数值 | 31 | a \\| b c |"
    )


def test_smoothing_is_a_weighted_mean_of_the_past():
    assert smoothed([3.0] * 5, 10) == pytest.approx([3.0] * 5)
    assert smoothed([1.0, 2.0, 7.0], 1) == [1.0, 2.0, 7.0]
    assert smoothed([0.0, 1.0], 2) == pytest.approx([0.0, 2 / 3])
    assert smoothed([], 3) == []


def results() -> dict:
    def rows(right: int):
        return [
            {"subject": SUBJECTS[i % 2], "domain": ("Finance", "Economy")[i % 2], "answer": "A",
             "predicted": "A" if i < right else "B", "numeric": i % 3 == 0, "any_digit": True}
            for i in range(60)
        ]

    return {"base": summarise(rows(20)), "merged": summarise(rows(35))}


def metrics() -> list[dict]:
    return [{"step": step, "adapter": name, "loss": 3 - step / 40, "lr": 1e-4}
            for step in range(1, 50) for name in ("domain", "numeric")]


@needs_plots
@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_figures_are_written_whole_and_alike(name, magic, tmp_path):
    for draw, data in ((plot_loss, metrics()), (plot_bars, results())):
        draw(data, tmp_path / name)
        first = (tmp_path / name).read_bytes()
        draw(data, tmp_path / name)
        assert first.startswith(magic) and (tmp_path / name).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == [name]


@needs_plots
def test_bars_show_every_group_with_questions_and_its_interval(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: kept.append(figure))
    data = results()
    data["merged"]["by_domain"].pop("Economy")
    plot_bars(data, tmp_path / "a.png")
    axes = kept[0].axes[0]
    labels = [label.get_text().split("\n")[0] for label in axes.get_xticklabels()]
    assert labels == ["overall", "numeric", "non-numeric", "Finance", "Economy"]
    assert [len(bars) for bars in axes.containers if bars.__class__.__name__ == "BarContainer"] == [5, 4]
    heights = [bar.get_height() for bar in axes.patches]
    assert heights[0] == pytest.approx(100 * 20 / 60)
    low, high = axes.collections[0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx([100 * bound for bound in data["base"]["overall"]["ci95"]])
    assert [text.get_text() for text in kept[0].legends[0].get_texts()] == ["base", "merged"]


@needs_plots
def test_figures_with_nothing_to_show_are_refused(tmp_path):
    with pytest.raises(NumLLMError, match="no loss to plot"):
        plot_loss([{"step": 1}], tmp_path / "a.png")
    with pytest.raises(NumLLMError, match="no accuracy to plot"):
        plot_bars({"base": summarise([])}, tmp_path / "a.png")
    with pytest.raises(NumLLMError, match="as .png, .svg or .pdf"):
        plot_loss(metrics(), tmp_path / "a.txt")
    plot_loss(metrics()[:1], tmp_path / "one.png")


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not has_plots()
    for draw, data in ((plot_loss, metrics()), (plot_bars, results())):
        with pytest.raises(NumLLMError, match=r"numllm\[plots\]"):
            draw(data, tmp_path / "a.png")
    assert not any(tmp_path.iterdir())
