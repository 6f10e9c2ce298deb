"""The commands as a user meets them: results on stdout, one-line errors, exit codes."""

from __future__ import annotations

import json
import os
import shutil
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
            "generate", "inspect", "demo")


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
    before = (model / "config.json").read_bytes()
    for option, file in (("--report", model / "config.json"), ("--plot", adapters[0] / "plot.png")):
        code, _, err = run(
            capfd, "merge", "--base", model, "--adapter", adapters[0], "--out", tmp_path / "again", option, file,
        )
        assert code and "which is only read" in err and not (tmp_path / "again").exists()
    assert (model / "config.json").read_bytes() == before
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


@pytest.fixture
def exam(tmp_path) -> Path:
    """A folder of dev, val and test as FinEval has it, with quirks."""
    for split, rows in (("dev", 5), ("val", 6), ("test", 2)):
        (tmp_path / "exam" / split).mkdir(parents=True)
        head = "id,question,A,B,C,D" + (",answer" if split != "test" else "")
        lines = [
            f"{i},某银行发放的{split}贷款其年利率为{i + 2}%的第{i}个计息年度,{i},2{i},3{i},4{i}"
            + (f",{'ABCD'[i % 4]} " if split != "test" else "")
            for i in range(rows)
        ]
        if split == "val":
            lines += ["8,多项题,1,2,3,4,AC", "9,越界,1,2,,,D"]
        (tmp_path / "exam" / split / f"bonds_{split}.csv").write_text("\n".join([head, *lines]), encoding="utf-8")
    (tmp_path / "exam" / "subject_mapping.json").write_text('{"bonds": ["bonds", "债券", "Finance"]}')
    return tmp_path / "exam"


def test_evaluation_by_commands(exam, tmp_path, capfd):
    model, corpus = tiny.base(tmp_path / "base"), tmp_path / "book.md"
    corpus.write_text("某银行发放的val贷款，其年利率为2%的第0个计息年度。无关的文字在此。", encoding="utf-8")
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    code, out, err = run(
        capfd, "eval", "--model", model, "--questions", exam, "--out", first, "--permute", "4", "--json"
    )
    assert code == 0 and "set aside: answers outside the options" in err and "answers of several letters" in err
    result = json.loads(out.splitlines()[-1])
    assert (result["overall"]["n"], result["permutations"]["orders"], result["dtype"]) == (7, 4, "float32")
    assert list(result["by_domain"]) == ["Finance"] and "numllm eval" in result["provenance"]["command"]
    assert any(path.endswith("bonds_val.csv") for path in result["provenance"]["sha256"])
    code, out, err = run(
        capfd, "eval", "--model", model, "--questions", exam, "--out", second, "--shots", "1", "--overlap", corpus,
        "--multiple", "skip", "--split", "val",
    )
    assert code == 0 and "without overlaps" in out and "fewer than 1 examples to fit the context" in err
    assert json.loads(second.read_text())["contamination"]["questions"] == 1
    assert not list(tmp_path.glob("*.journal"))
    code, out, _ = run(capfd, "compare", first, second)
    assert code == 0 and "Holm p" in out and "6 all" in out
    code, _, err = run(capfd, "compare", first, second, first)
    assert code == 1 and "given twice" in err
    code, out, _ = run(capfd, "report", first, second, "--out", tmp_path / "report", "--json")
    assert code == 0 and (tmp_path / "report" / "report.html").stat().st_size > 5000
    assert json.loads(out.splitlines()[-1])["comparisons"][0]["n"] == 6
    code, _, _ = run(
        capfd, "eval", "--model", model, "--questions", exam, "--split", "test", "--out", tmp_path / "t.json",
        "--submission", tmp_path / "s.json",
    )
    sent = json.loads((tmp_path / "s.json").read_text())
    assert code == 0 and list(sent) == ["bonds"] and list(sent["bonds"]) == ["0", "1"]
    for more, message in (
        (("--chat",), "has no chat template"), (("--strict",), "line 9: the answer must be one of A, B"),
        (("--protocol", "number"), "has no blank"), (("--examples", exam / "test", "--shots", "1"), "has 0 examples"),
        (("--submission", tmp_path / "x.json"), "every question has its answer"),
    ):
        code, _, err = run(capfd, "eval", "--model", model, "--questions", exam, "--out", tmp_path / "e.json", *more)
        assert code == 1 and message in err.splitlines()[-1], more


def test_probes_and_perplexity_by_commands(tmp_path, capfd):
    model, probes = tiny.base(tmp_path / "base"), tmp_path / "probes.jsonl"
    assert run(capfd, "probes", "--out", probes, "--per-cell", "1", "--kind", "convert")[0] == 0
    code, out, _ = run(capfd, "eval", "--model", model, "--questions", probes, "--out", tmp_path / "r.json", "--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["by_subject"]["convert"]["n"] == 3
    code, _, err = run(capfd, "probes", "--out", probes, "--kind", "algebra")
    assert code == 1 and "kinds among compare" in err
    code, out, _ = run(capfd, "perplexity", "--model", model, "--texts", tiny.corpus(tmp_path / "corpus"), "--json")
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and found["numbers"]["tokens"] > 0 and list(found["by_source"]) == ["a.md"]
    code, _, err = run(capfd, "perplexity", "--model", model, "--texts", tmp_path / "corpus", "--split", "heldout")
    assert code == 1 and "no text of the split 'heldout'" in err
    code, _, err = run(capfd, "perplexity", "--model", model, "--texts", tmp_path / "corpus", "--stride", "999")
    assert code == 1 and "--stride must be below the window of 128" in err


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


def test_a_corpus_with_everything(tmp_path, capfd):
    books, out = tmp_path / "books", tmp_path / "corpus"
    books.mkdir()
    asked = "某企业年末存货账面余额为三百万元且可变现净值为二百八十万元"
    for number in range(3):
        (books / f"{number}.md").write_text("".join(
            f"第{number}-{k}批存货的采购成本为{k * 37 + number}万元，利率为{k}%。\n\n" for k in range(20)
        ) + f"第{number}题：{asked}", encoding="utf-8")
    (books / "bad.md").write_bytes(b"\0")
    recipe = "土豆切成细丝，放入清水里浸泡，捞出沥干以后用大火翻炒，加盐和醋调味。"
    (books / "recipe.txt").write_text(2 * recipe, "utf-8")
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": asked, "options": ["甲", "乙"], "answer": "A"}) + "\n")
    (tmp_path / "terms.txt").write_text("土豆\n")
    command = ("corpus", books, "--out", out, "--against", tmp_path / "q.jsonl", "--tokenizer", "demo", "--json")
    code, shown, err = run(capfd, *command)
    stats = json.loads(shown.splitlines()[-1])
    assert code == 3 and "not read: bad.md: binary file" in err and "not about finance" in shown
    assert stats["tokens"] > 0 and stats["dropped"]["shares a run with a question"]["count"] == 3
    assert asked not in (out / "corpus.jsonl").read_text("utf-8")
    assert (out / "report.html").read_text("utf-8").startswith("<!doctype html>")
    code, shown, err = run(capfd, *command, "--overwrite", "--terms", tmp_path / "terms.txt")
    assert code == 3 and "not about finance" not in shown
    code, _, err = run(capfd, *command, "--overwrite", "--strict")
    assert code == 1 and err.count("\n") == 1 and "bad.md" in err and (out / "corpus.jsonl").exists()
    (books / "bad.md").unlink()
    assert run(capfd, *command, "--overwrite", "--strict", "--any-topic")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"books", "corpus", "q.jsonl", "terms.txt"}


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


# Generation and inspection


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """A tiny checkpoint with a chat template."""
    folder = tiny.base(tmp_path_factory.mktemp("chat") / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m.role }}：{{ m.content }}<end>{% endfor %}答："
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    return folder


def test_generated_text_appears_as_it_comes(chatty, capfd, monkeypatch):
    pieces = []
    echo = cli.inference.click.echo
    monkeypatch.setattr(
        cli.inference.click, "echo", lambda text="", **options: (pieces.append(text), echo(text, **options))
    )
    asked = ("generate", "--model", chatty, "--prompt", "债券面值", "--max-new-tokens", "12", "--json")
    code, out, _ = run(capfd, *asked)
    told = json.loads(out.splitlines()[-1])
    assert code == 0 and told["prompt"] == "债券面值" and out.startswith("债券面值" + told["text"])
    assert len(pieces) > 4
    code, out, _ = run(capfd, *asked, "--stop", told["text"][2:4])
    assert code == 0 and json.loads(out.splitlines()[-1])["text"] == told["text"][:2]
    code, out, _ = run(capfd, *asked, "--repetition-penalty", "1.8")
    assert code == 0 and json.loads(out.splitlines()[-1])["text"] != told["text"]


def test_several_prompts_and_chats(chatty, capfd):
    asked = ("generate", "--model", chatty, "--max-new-tokens", "8", "--json")
    texts = []
    for prompt in ("甲公司", "利率"):
        _, out, _ = run(capfd, *asked, "--prompt", prompt)
        texts.append(json.loads(out.splitlines()[-1])["text"])
    code, out, _ = run(capfd, *asked, "--prompt", "甲公司", "--prompt", "利率")
    told = json.loads(out.splitlines()[-1])["results"]
    assert code == 0 and told == [{"prompt": p, "text": t} for p, t in zip(("甲公司", "利率"), texts, strict=True)]
    code, out, _ = run(capfd, *asked, "--chat", "--system", "会计师", "--prompt", "利率")
    told = json.loads(out.splitlines()[-1])
    assert code == 0 and out.startswith(told["text"]) and told["text"] != texts[1]


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (("--prompt", ""), 1, "prompt 1 is empty and the model has no bos to begin with"),
    (("--prompt", "利率" * 200), 1, "more than the model's context of 128; shorten it or ask for fewer"),
    (("--prompt", "甲<end>", "--chat"), 1, "a message holds the control token '<end>'"),
    (("--prompt", "甲", "--system", "乙"), 2, "--system needs --chat"),
    (("--prompt", "甲", "--stop", ""), 2, "--stop must not be empty"),
    (("--prompt", "甲\udcff"), 1, "the text is not UTF-8 at character 2"),
    (("--prompt", "甲", "--temperature", "nan"), 2, "wanted a finite number, got 'nan'"),
    (("--prompt", "甲", "--temperature", "inf"), 2, "wanted a finite number, got 'inf'"),
    (("--prompt", "甲", "--top-p", "nan"), 2, "wanted a finite number"),
    (("--prompt", "甲", "--repetition-penalty", "nan"), 2, "wanted a finite number"),
    (("--prompt", "甲", "--device", "meta"), 1, "device 'meta' is not available here"),
])
def test_prompts_that_are_refused(arguments, code, message, chatty, capfd):
    found, out, err = run(capfd, "generate", "--model", chatty, *arguments)
    assert found == code and message in err and "Traceback" not in err and not out


def test_a_template_that_reaches_for_python_is_one_line(chatty, tmp_path, capfd):
    folder = tmp_path / "m"
    shutil.copytree(chatty, folder)
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__base__.__subclasses__() }}")
    code, _, err = run(capfd, "generate", "--model", folder, "--chat", "--prompt", "甲")
    assert code == 1 and err.startswith("Error: ") and err.count("\n") == 1 and "reaches for '__class__'" in err


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path, capfd):
    save(transformers_model("qwen2", vocab_size=300), tmp_path)
    tiny.tokenizer_folder(tmp_path)
    code, _, err = run(capfd, "generate", "--model", tmp_path, "--prompt", "甲")
    assert code == 1 and "the tokenizer has 400 tokens, the model only 300" in err


def test_inspect(chatty, capfd):
    asked = ("--rank", "4", "--length", "64", "--targets", "q_proj, v_proj", "--json")
    code, out, _ = run(capfd, "inspect", chatty, *asked)
    told = json.loads(out.splitlines()[-1])
    assert code == 0 and [row["name"] for row in told["lora"]["linears"]] == ["self_attn.q_proj", "self_attn.v_proj"]
    assert "at its peak" in out and told["memory"]["total"] > 0
    code, _, err = run(capfd, "inspect", chatty / "config.json", "--targets", "wq", "--length", "64")
    assert code == 1 and "no linear named wq" in err
    code, _, err = run(capfd, "inspect", "nowhere")
    assert code == 1 and "no such folder" in err
