"""What a merge tells its user: the summary's figures, the plot, and the command's tables and refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from numllm.cli import cli
from numllm.cli.merging import size
from numllm.errors import NumLLMError
from numllm.merge import by_kind, by_layer, merge
from numllm.merge.summary import overlap, place, relation
from numllm.report import plot_layers
from scripts.merge_inputs import write_inputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_inputs(tmp_path)
    return tmp_path


def command(folder: Path, *arguments: str) -> Any:
    base = ["merge", "--base", str(folder / "base"), "--out", str(folder / "out")]
    return CliRunner().invoke(cli, [*base, *arguments])


def test_names_have_places() -> None:
    assert place("model.layers.12.self_attn.q_proj.weight") == (12, "q_proj")
    assert place("lm_head.weight") == (None, "lm_head")
    assert place("transformer.h.3.attn.c_attn.bias") == (3, "bias")


def test_relations() -> None:
    found = [relation(cosine) for cosine in (0.5, -0.5, 0.01, -0.01, None)]
    assert found == ["agree", "collide", "ignore", "ignore", "ignore"]
    assert overlap([1.0, 0.0]) == 0.5 and overlap([]) is None


@pytest.mark.parametrize(("weight", "wanted"), [(1.0, "agree"), (-1.0, "collide")])
def test_twins_agree_and_opposites_collide(folder: Path, weight: float, wanted: str) -> None:
    """An adapter and its copy share every direction."""
    (folder / "twin").mkdir()
    for path in (folder / "domain").iterdir():
        (folder / "twin" / path.name).write_bytes(path.read_bytes())
    report = merge(folder / "base", [(folder / "domain", 1.0), (folder / "twin", weight)], folder / "out")
    for row in by_kind(report):
        assert row[wanted] == row["weights"] == 4
        assert row["shared_output"] == pytest.approx(1) and row["shared_input"] == pytest.approx(1)
        assert row["cosine"] == pytest.approx(weight)


def test_summary_is_the_mean_of_the_rows(folder: Path) -> None:
    report = merge(folder / "base", [(folder / "domain", 0.7), (folder / "numeric", -0.4)], folder / "out", rank=2)
    (row,) = [row for row in by_kind(report) if row["kind"] == "q_proj"]
    rows = [report["tensors"][f"model.layers.{layer}.q_proj.weight"] for layer in range(4)]
    assert row["pair"] == "domain · numeric" and row["rank_kept"] == "2"
    for key in ("energy_kept", "delta_norm_relative"):
        assert row[key] == pytest.approx(math.fsum(each[key] for each in rows) / 4)
    lines = by_layer(report)
    assert set(lines["change"]) == {"q_proj", "v_proj"} and set(lines["cosine"]) == {"domain · numeric"}
    assert lines["energy"]["q_proj"] == [(layer, each["energy_kept"]) for layer, each in enumerate(rows)]


def test_the_plot(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    run = command(folder, "--adapter", str(folder / "domain"), "--adapter", f"{folder / 'numeric'}=-0.4", "--plot",
                  str(folder / "p.png"))
    assert run.exit_code == 0, run.output
    assert (folder / "p.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(NumLLMError, match="nothing to plot"):
        plot_layers({"change": {}}, folder / "q.png", title="x")


def test_the_command_merges_and_tells(folder: Path) -> None:
    (folder / "w.json").write_text(json.dumps({"domain": 0.5}))
    run = command(folder, "--adapter", str(folder / "domain"), "--adapter", f"{folder / 'numeric'}=-0.4", "--weights",
                  str(folder / "w.json"), "--rank", "auto", "--max-shard-size", "3KB", "--verify", "--json")
    assert run.exit_code == 0, run.output
    result = json.loads(run.output.splitlines()[-1])
    assert result["overall"]["verified"] and "shared out" in run.output
    assert [entry["weight"] for entry in result["inputs"]["adapters"]] == [0.5, -0.4]
    assert len(list((folder / "out").glob("model-*.safetensors"))) > 2


def test_the_command_extracts(folder: Path) -> None:
    merge(folder / "base", [(folder / "domain", 1.0)], folder / "tuned", method="exact")
    run = command(folder, "--extract", str(folder / "tuned"), "--rank", "4", "--as", "adapter", "--json")
    assert run.exit_code == 0, run.output
    assert json.loads(run.output.splitlines()[-1])["overall"]["rank"] == 4


@pytest.mark.parametrize("arguments", [
    (), ("--rank", "0", "--adapter", "x"), ("--rank", "best", "--adapter", "x"),
    ("--adapter", "x", "--extract", "y"), ("--adapter", "x", "--max-shard-size", "five"),
    ("--adapter", "x", "--plot", "p.png", "--dry-run"), ("--adapter", "x", "--start", "x"),
    ("--extract", "y", "--dry-run"), ("--extract", "y", "--verify"), ("--extract", "y", "--as", "model"),
    ("--extract", "y", "--rank", "auto"), ("--extract", "y", "--method", "svd"), ("--extract", "y", "--weights", "w"),
])
def test_wrong_usage_is_exit_code_2(folder: Path, arguments: tuple[str, ...]) -> None:
    run = command(folder, *arguments)
    assert run.exit_code == 2, run.output
    assert not (folder / "out").exists()


def test_a_figure_that_cannot_be_drawn_is_told_before_the_merge(folder: Path) -> None:
    run = command(folder, "--adapter", str(folder / "domain"), "--plot", str(folder / "plot.bmp"))
    assert run.exit_code == 1 and "figures are written as .png, .svg or .pdf" in str(run.exception)
    assert not (folder / "out").exists()


def test_dry_run_says_how_long(folder: Path) -> None:
    run = command(folder, "--adapter", str(folder / "domain"), "--dry-run")
    assert run.exit_code == 0, run.output
    assert "seconds expected" in run.output and not (folder / "out").exists()


@pytest.mark.parametrize(("text", "wanted"), [
    ("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("2GiB", 2 << 30), ("300", 300), ("7b", 7), ("4kib", 4096),
])
def test_sizes(text: str, wanted: int) -> None:
    assert size(text) == wanted
