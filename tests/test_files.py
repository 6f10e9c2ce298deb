"""Checked reading, and writing that leaves the whole or nothing."""

from __future__ import annotations

import errno
import os

import pytest

from numllm import files
from numllm.errors import DataError, NumLLMError


@pytest.mark.parametrize("content, message", [
    (b"{", "line 1, column"),
    (b'{"a": 1, "a": 2}', "'a' stands twice"),
    (b'{"a": "\xff"}', "not UTF-8"),
    (b"[" * 100_000, "nested too deeply"),
])
def test_broken_json_is_one_line(content, message, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        files.read_json(tmp_path / "x.json")
    assert "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        files.read_json(tmp_path / "x.json")
    with pytest.raises(DataError, match="got a folder"):
        files.read_text(tmp_path)


def test_jsonl_names_the_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('\ufeff{"a": 1}\n\n{"a": 2}\n[1]\n', encoding="utf-8")
    rows = files.read_jsonl(path)
    assert next(rows) == (1, {"a": 1}) and next(rows) == (3, {"a": 2})
    with pytest.raises(DataError, match="line 4: wanted a JSON object, got list"):
        next(rows)


def test_write_aside_replaces_only_when_whole(tmp_path):
    path = tmp_path / "deep" / "x.txt"
    with files.write_aside(path) as file:
        file.write("old")
    with pytest.raises(RuntimeError), files.write_aside(path) as file:
        file.write("new")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(path.parent) == ["x.txt"]


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(NumLLMError, match="No space left on device"), files.write_aside(tmp_path / "x") as file:
        file.write("something")
    with pytest.raises(NumLLMError, match="No space left"), files.new_folder(tmp_path / "f") as folder:
        (folder / "y").write_text("something")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("out", [".", "..", "link", "../here"])
def test_a_place_that_holds_the_current_folder_is_refused(out, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(NumLLMError, match="holds the current folder"):
        files.place_of(out)
    (tmp_path / "here" / "other").symlink_to(tmp_path / "place")
    assert files.place_of("other") == tmp_path / "place" and files.place_of("new") == tmp_path / "here" / "new"


def test_new_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), files.new_folder(tmp_path / "f") as folder:
        (folder / "x").write_text("1")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with files.new_folder(tmp_path / "f") as folder:
        (folder / "x").write_text("1")
    with pytest.raises(NumLLMError, match="not empty"), files.new_folder(tmp_path / "f"):
        pass
    with files.new_folder(tmp_path / "f", overwrite=True) as folder:
        (folder / "y").write_text("2")
    assert os.listdir(tmp_path) == ["f"] and os.listdir(tmp_path / "f") == ["y"]


def test_json_lines_round_trip(tmp_path):
    rows = [{"text": "年利率5%"}, {"n": 1.5}]
    assert files.write_jsonl(tmp_path / "x.jsonl", rows) == 2
    assert [row for _, row in files.read_jsonl(tmp_path / "x.jsonl")] == rows
    assert "年利率" in (tmp_path / "x.jsonl").read_text(encoding="utf-8")
