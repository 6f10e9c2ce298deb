"""The commands as a user meets them: results on stdout, one-line errors, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from click.testing import CliRunner
from models import save, transformers_model

from numllm import cli

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("corpus", "numbers", "numct", "train", "merge", "eval", "compare", "report", "probes", "perplexity",
            "generate", "demo")


def run(capfd, *arguments, entry=cli.cli):
    """(exit code, stdout, stderr) of a command, through the same door as the console script."""
    before = sys.argv
    sys.argv = ["numllm", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as left:
            cli._run(entry)
    finally:
        sys.argv = before
    out, err = capfd.readouterr()
    return left.value.code, out, err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    shown = CliRunner().invoke(cli.cli, [command, "--help"])
    assert shown.exit_code == 0 and f"numllm {command}" in shown.output.split("Examples:")[1]


def test_the_whole_way_by_commands(tmp_path, capfd):
    books = tmp_path / "books"
    books.mkdir()
    for number in range(3):
        (books / f"{number}.md").write_text("# 第一章\n\n" + "".join(
            f"甲公司第{i}批货物的采购成本为{i * 37 + number * 11 + 12}万元，运输费用为{i * 5 + 3}万元，"
            f"仓储费率为{i + 2}.5%。\n\n"
            for i in range(1, 12)
        ), encoding="utf-8")
    model = tiny.base(tmp_path / "base")
    code, out, _ = run(capfd, "corpus", books, "--out", tmp_path / "corpus", "--holdout", "0", "--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["files"] == 3
    code, out, _ = run(capfd, "numct", tmp_path / "corpus", "--out", tmp_path / "n.jsonl", "--context", "1", "--json")
    assert code == 0 and "cheats" in json.loads(out.splitlines()[-1])
    assert (tmp_path / "audit.json").exists()
    code, out, _ = run(
        capfd, "train", "--model", model, "--corpus", tmp_path / "corpus", "--numct", tmp_path / "n.jsonl", "--out",
        tmp_path / "run", "--steps", "3", "--length", "96", "--rank", "2", "--loss", "likelihood", "--json",
    )
    assert code == 0 and set(json.loads(out.splitlines()[-1])["adapters"]) == {"domain", "numeric"}
    assert (tmp_path / "run" / "loss.png").exists()
    adapters = [tmp_path / "run" / "adapters" / name for name in ("domain", "numeric")]
    code, out, _ = run(
        capfd, "merge", "--base", model, "--adapter", adapters[0], "--adapter", f"{adapters[1]}=0.5", "--out",
        tmp_path / "merged", "--verify", "--report", tmp_path / "report.json", "--json",
    )
    assert code == 0 and json.loads(out.splitlines()[-1])["overall"] and (tmp_path / "report.json").exists()
    results = []
    for name, arguments in (("base", ()), ("both", ("--adapter", adapters[0], "--adapter", adapters[1]))):
        results.append(tmp_path / f"{name}.json")
        code, out, _ = run(
            capfd, "eval", "--model", model, *arguments, "--questions", tmp_path / "n.jsonl", "--out", results[-1],
            "--json",
        )
        assert code == 0 and "numeric" in json.loads(out.splitlines()[-1])
    code, out, _ = run(capfd, "compare", *results)
    assert code == 0 and "points" in out
    code, out, _ = run(capfd, "generate", "--model", tmp_path / "merged", "--prompt", "债券", "--max-new-tokens", "4")
    assert code == 0 and out.startswith("债券")


def test_numbers_from_a_pipe():
    done = subprocess.run(
        [sys.executable, "-c", "from numllm.cli import main; main()", "numbers"], input="年利率5%，本金3.5亿元",
        capture_output=True, text=True, cwd=ROOT, check=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["value"] for row in rows] == ["0.05", "350000000"]


def test_console_scripts_train_and_merge(capfd):
    assert run(capfd, "--help", entry=cli.train)[0] == 0
    assert run(capfd, "--help", entry=cli.merge)[0] == 0


@pytest.mark.parametrize("arguments, code, message", [
    (("corpus", "nowhere", "--out", "c"), 1, "nowhere"),
    (("numct", "nowhere", "--out", "n.jsonl"), 1, "nowhere"),
    (("train", "--model", "nowhere", "--adapters", "numeric", "--numct", "n", "--out", "r"), 1, "nowhere"),
    (("train", "--model", "demo", "--out", "r"), 1, "needs a corpus"),
    (("train", "--model", "demo", "--adapters", "numeric", "--numct", "n", "--out", "r", "--rank", "0"), 1, "rank"),
    (("merge", "--base", "nowhere", "--adapter", "a", "--out", "m"), 1, "nowhere"),
    (("merge", "--base", "demo", "--adapter", "nowhere", "--out", "m"), 1, "nowhere"),
    (("eval", "--model", "demo", "--questions", "nowhere.csv", "--out", "r.json"), 1, "nowhere"),
    (("compare", "a.json", "b.json"), 1, "a.json"),
    (("compare", "a.json"), 2, "at least two"),
    (("generate", "--model", "nowhere", "--prompt", "x"), 1, "nowhere"),
    (("generate", "--model", "demo", "--prompt", "x", "--device", "cuda:99"), 1, "cuda:99"),
    (("generate", "--prompt", "x"), 2, "--model"),
    (("nothing",), 2, "No such command"),
])
def test_errors_are_one_line(arguments, code, message, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, out, err = run(capfd, *arguments)
    assert found == code and message in err and "Traceback" not in err
    if code == 1:
        assert err.startswith("Error: ") and len(err.splitlines()) == 1 and out == ""
        assert list(tmp_path.iterdir()) == []


def test_interrupt_saves_and_exits_130(tmp_path):
    model, questions = tiny.base(tmp_path / "base"), tiny.numct(tmp_path / "n.jsonl")
    command = [
        sys.executable, "-c", "from numllm.cli import train_main; train_main()", "--model", str(model), "--adapters",
        "numeric", "--numct", str(questions), "--out", str(tmp_path / "run"), "--length", "96", "--rank", "2",
    ]
    process = subprocess.Popen([*command, "--steps", "100000"], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"})
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    (saved,) = [int(path.name.split("-")[1]) for path in (tmp_path / "run" / "checkpoints").iterdir()][-1:]
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert rows[-1]["step"] == saved


def test_adapter_of_another_model_is_refused(tmp_path, capfd):
    from numllm.config import LoRAConfig
    from numllm.lora import attach
    from numllm.model import load_model

    other = load_model(save(transformers_model("qwen2", hidden_size=32), tmp_path / "other"))
    adapters = attach(other, {"a": LoRAConfig(rank=2)})
    with torch.no_grad():
        for parameter in adapters.parameters("a"):
            parameter.fill_(0.1)
    adapters.save("a", tmp_path / "a")
    capfd.readouterr()
    code, _, err = run(capfd, "merge", "--base", "demo", "--adapter", tmp_path / "a", "--out", tmp_path / "m")
    assert code == 1 and len(err.splitlines()) == 1 and not (tmp_path / "m").exists()
