"""Settings from recipes, files and flags: TOML that reads back equal, the later wins, what is wrong is named."""

from __future__ import annotations

import dataclasses

import click
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from test_cli import run

from numllm import cli
from numllm.cli.training import settings_of
from numllm.config import TARGETS, LoRAConfig
from numllm.errors import ConfigError, DataError
from numllm.fields import docs_of
from numllm.settings import checked, combine, parse_toml, read_settings, to_toml, write_toml
from numllm.train_config import TrainConfig

scalars = st.one_of(
    st.booleans(), st.integers(-2**63, 2**63 - 1), st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=("Cs",))),
)
values = st.recursive(
    st.one_of(scalars, st.lists(scalars, max_size=3)),
    lambda inner: st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner, max_size=3), max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), values, max_size=5))
def test_toml_reads_back_equal(tree):
    read = parse_toml(write_toml(tree), "text")
    assert read == tree and repr(sorted(read.items(), key=repr)) == repr(sorted(tree.items(), key=repr))


@pytest.mark.parametrize("value", [object(), b"bytes", "\ud800"], ids=["object", "bytes", "surrogate"])
def test_what_toml_cannot_hold_is_refused(value):
    with pytest.raises(ConfigError, match="TOML"):
        write_toml({"key": value})


def a_config(**changes) -> TrainConfig:
    return TrainConfig(**{"model": "底座/\"a\"", "out": "run", "corpus": "c", "dtype": "bfloat16", "clip": 1e30,
                          "numeric": LoRAConfig(rank=3, alpha=0.1, targets=("q_proj",)), **changes})


@pytest.mark.parametrize("changes", [
    {"domain": LoRAConfig(ranks={"q_proj": 4, "层.o": 2}, alphas={"o_proj": 3.0}, exclude=("k_proj",), start="olora")},
    {}, {"adapters": ("domain",)}, {"dtype": None, "steps": 7, "domain_rate": 1e-5},
])
def test_a_config_reads_back_equal(changes, tmp_path):
    config = a_config(**changes)
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    again = combine(read_settings(tmp_path / "config.toml"))
    assert again == config and repr(again) == repr(config)


def test_tables_on_the_command_line():
    layer = checked({"ranks": "q_proj=4, o_proj=8", "numeric": {"alphas": "o_proj=1.5"}, "exclude": "k_proj"}, "flags")
    assert layer["domain"] == {"ranks": {"q_proj": 4, "o_proj": 8}, "exclude": ("k_proj",)}
    assert layer["numeric"]["alphas"] == {"o_proj": 1.5}
    for wrong in ("q_proj", "q_proj=four", "q_proj=1=2"):
        with pytest.raises(ConfigError, match="ranks wants NAME=NUMBER"):
            checked({"ranks": wrong}, "flags")
    with pytest.raises(ConfigError, match="ranks must be a table of names and whole numbers"):
        checked({"ranks": 4}, "file")


def test_later_layers_win_and_tables_are_joined():
    file = checked({"model": "a", "out": "b", "rank": 8, "numeric": {"rank": 32, "alpha": 5}, "steps": 9}, "file")
    config = combine(file, checked({"steps": 4, "domain": {"alpha": 1.5}, "targets": "q_proj, v_proj"}, "flags"))
    assert (config.model, config.steps) == ("a", 4)
    assert config.domain == LoRAConfig(rank=8, alpha=1.5, targets=("q_proj", "v_proj"))
    assert config.numeric == LoRAConfig(rank=32, alpha=5.0, targets=("q_proj", "v_proj"))
    assert combine(file, checked({"rank": 2}, "flags")).numeric == LoRAConfig(rank=2, alpha=5.0)
    assert combine(file).domain.targets == TARGETS


@pytest.mark.parametrize("text, message", [
    ("stepss = 3", "unknown key 'stepss'; did you mean steps?"),
    ("[numeric]\nrnak = 3", r"\[numeric\]: unknown key 'rnak'; did you mean rank?"),
    ("[domian]\nrank = 3", "unknown key 'domian'; did you mean domain?"),
    ("xyzzyq = 1", "unknown key 'xyzzyq'; known: "),
    ("steps = 3.5", "steps must be a whole number, got 3.5"),
    ("steps = true", "steps must be a whole number, got True"),
    ("clip = '1'", "clip must be a number, got '1'"),
    ("loss = 'letters'", "loss must be letter, likelihood or both, got 'letters'"),
    ("domain = 3", "domain must be a table, got 3"),
    ("[domain]\ntargets = [1]", "targets must be a list of text"),
    ("dtype = 'int8'", "dtype must be float32, bfloat16 or float16"),
])
def test_wrong_keys_and_values_are_named(text, message, tmp_path):
    file = tmp_path / "a.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_settings(file)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text, message", [("steps = ", "not valid TOML"), ("a = 1\na = 2", "not valid TOML")])
def test_broken_files_are_refused(text, message, tmp_path):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(DataError, match=message):
        read_settings(tmp_path / "a.toml")
    with pytest.raises(DataError, match="no such file"):
        read_settings(tmp_path / "b.toml")


@pytest.mark.parametrize("flags, message", [
    ({"adapters": "numeric", "domain_rate": 1e-3}, "--domain-rate is for the domain adapter"),
    ({"adapters": "numeric", "domain": {"rank": 4}}, "--domain-rank is for the domain adapter"),
    ({"adapters": "domain", "numeric_schedule": "linear"}, "--numeric-schedule is for the numeric adapter"),
    ({"adapters": "domain", "numct": "n.jsonl"}, "--numct is for the numeric adapter"),
    ({"adapters": "domain", "loss": "likelihood"}, "--loss is for the numeric adapter, which --adapters domain"),
    ({"tokens": 2048, "rows": 4}, "--rows would be ignored: tokens, which is 2048, takes its place; drop it"),
    ({"recipe": "qwen2.5-7b-80gb", "questions": 4}, "--questions would be ignored: tokens, which is 16384"),
    ({"heldout_corpus": "held"}, "--heldout-corpus would be ignored: validate_every is 0"),
    ({"loss": "likelihood", "letter_weight": 0.3}, "--letter-weight would be ignored: it is for --loss both"),
])
def test_flags_that_contradict_each_other_are_refused(flags, message):
    recipe = flags.pop("recipe", None)
    with pytest.raises(ConfigError, match=message):
        settings_of({"model": "demo", "out": "run", **flags}, recipe=recipe)
    settings_of({"model": "demo", "out": "run", "adapters": "numeric", "rank": 4})
    settings_of({"model": "demo", "out": "run", "adapters": "domain", "numct": "n.jsonl", "validate_every": 5})


def test_every_setting_is_a_flag_with_a_text_of_its_own():
    flags = {option.name: option for option in cli.train.params}
    for cls in (TrainConfig, LoRAConfig):
        for field in dataclasses.fields(cls):
            if field.name not in ("domain", "numeric"):
                assert flags[field.name].help.startswith(docs_of(cls)[field.name][:-1])
                assert flags[field.name].opts == ["--" + field.name.replace("_", "-")]
    with pytest.raises(click.UsageError, match="--model"):
        settings_of({"out": "run"})


def test_a_run_is_repeated_from_its_config_to_the_same_bytes(tmp_path, capfd):
    model, corpus = tiny.base(tmp_path / "base"), tiny.corpus(tmp_path / "c")
    questions = tiny.numct(tmp_path / "n.jsonl")
    first, again = tmp_path / "first", tmp_path / "again"
    code, _, err = run(
        capfd, "train", "--model", model, "--corpus", corpus, "--numct", questions, "--out", first, "--steps", "3",
        "--length", "96", "--rows", "2", "--rank", "2", "--numeric-alpha", "7", "--loss", "likelihood",
        "--targets", "q_proj,down_proj", "--seed", "5",
    )
    assert code == 0, err
    config = first / "config.toml"
    code, _, err = run(capfd, "train", "--config", config)
    assert code == 1 and "holds a run already" in err
    code, _, err = run(capfd, "train", "--config", config, "--out", again)
    assert code == 0, err
    assert tiny.adapter_bytes(first / "adapters") == tiny.adapter_bytes(again / "adapters")
    assert read_settings(again / "config.toml") == read_settings(config) | {"out": str(again)}
    code, _, err = run(capfd, "train", "--config", config, "--out", tmp_path / "other", "--seed", "6")
    assert code == 0 and tiny.adapter_bytes(first) != tiny.adapter_bytes(tmp_path / "other"), err


def test_a_run_is_resumed_with_its_own_settings(tmp_path, capfd):
    model, corpus = tiny.base(tmp_path / "base"), tiny.corpus(tmp_path / "c")
    code, _, err = run(
        capfd, "train", "--model", model, "--corpus", corpus, "--adapters", "domain", "--out", tmp_path / "run",
        "--steps", "2", "--length", "96", "--rank", "2",
    )
    assert code == 0, err
    assert run(capfd, "train", "--out", tmp_path / "run", "--resume")[0] == 0
    code, _, err = run(capfd, "train", "--out", tmp_path / "nowhere", "--resume")
    assert code == 1 and "nowhere: there is no run to resume" in err
    code, _, err = run(capfd, "train", "--out", tmp_path / "run", "--resume", "--rank", "3")
    assert code == 1 and "domain.rank was 2 and is now 3" in err
