"""Digests that are remembered: never one of bytes that are no longer there."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from numllm import hashes
from numllm.hashes import Digest, digest, known

TICK = 0.03
"""Seconds, longer than a tick of a file system's clock."""


def true(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture()
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, in which small files are remembered as well, and at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NUMLLM_REMEMBER", raising=False)
    monkeypatch.setattr(hashes, "LARGE", 1)
    monkeypatch.setattr(hashes, "SETTLED", TICK / 2)
    return tmp_path / "cache" / "numllm" / "sha256"


def settled(path: Path, content: bytes = b"weights") -> Path:
    path.write_bytes(content)
    time.sleep(TICK)
    return path


def test_the_second_time_it_is_remembered_and_not_read(cache: Path, tmp_path: Path):
    path, reads = settled(tmp_path / "file"), []
    assert known(path) is None
    first = digest(path, check=lambda: reads.append(1))
    again = digest(path, check=lambda: reads.append(1))
    assert first == Digest(true(path)) and len(reads) == 1
    assert again.sha256 == first.sha256 and abs(again.remembered - time.time()) < 60 and again.since.endswith("+00:00")
    assert known(path) == again
    assert digest(path, afresh=True, check=lambda: reads.append(1)) == first and len(reads) == 2


def _append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"!")


def _rewrite_at_its_old_time(path: Path) -> None:
    about = path.stat()
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def _put_another_in_its_place(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"WEIGHTS")
    shutil.copystat(path, other)
    other.replace(path)


def _write_through_a_map(path: Path) -> None:
    import mmap

    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[:1] = b"W"
        memory.flush()


@pytest.mark.parametrize("change", [
    _append, _rewrite_at_its_old_time, _put_another_in_its_place, _write_through_a_map,
])
def test_a_file_that_was_written_again_is_hashed_again(cache: Path, tmp_path: Path, change: Callable[[Path], None]):
    path = settled(tmp_path / "file")
    digest(path)
    assert known(path)
    change(path)
    assert known(path) is None and digest(path) == Digest(true(path))


def test_the_same_file_at_another_path_is_another(cache: Path, tmp_path: Path):
    path = settled(tmp_path / "file")
    digest(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert known(link) == known(path) is not None
    path.rename(tmp_path / "elsewhere")
    assert known(tmp_path / "elsewhere") is None


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(cache: Path, tmp_path: Path):
    path = settled(tmp_path / "file")
    digest(path, check=lambda: path.stat().st_size > 10 or _append(path))
    assert path.stat().st_size > 7 and known(path) is None and not cache.exists()


def test_a_file_just_written_is_not_remembered(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hashes, "SETTLED", 2.0)
    path = settled(tmp_path / "file")
    assert digest(path) == digest(path) == Digest(true(path))


def test_a_small_file_is_not_remembered(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hashes, "LARGE", 8)
    path = settled(tmp_path / "file")
    assert digest(path) == digest(path) == Digest(true(path))


def test_it_can_be_turned_off(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = settled(tmp_path / "file")
    digest(path)
    monkeypatch.setenv("NUMLLM_REMEMBER", "0")
    assert known(path) is None and digest(path) == Digest(true(path))


@pytest.mark.parametrize("spoil", [
    lambda text: text[: len(text) // 2],
    lambda text: text.translate(str.maketrans("0123456789abcdef", "123456789abcdef0")),
    lambda text: text[:66] + ("0" if text[66] != "0" else "1") + text[67:],
    lambda text: text + "x",
    lambda text: "\0\xff" * 1000,
    lambda text: "",
], ids=["half", "other digits", "one digit of the digest", "too long", "no text", "empty"])
def test_a_spoiled_store_costs_a_reading(cache: Path, tmp_path: Path, spoil: Callable[[str], str]):
    path = settled(tmp_path / "file")
    digest(path)
    cache.write_text(spoil(cache.read_text()), encoding="latin-1")
    assert digest(path) == Digest(true(path))
    assert digest(path).remembered, "what is added after the spoiled line is whole"


def test_a_cache_that_cannot_be_written_is_no_error(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache.mkdir(parents=True)  # a folder where the file should be
    path = settled(tmp_path / "file")
    assert digest(path) == digest(path) == Digest(true(path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    assert digest(path).sha256 == digest(path).sha256 == true(path)


def test_only_the_newest_are_kept(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hashes, "KEPT", 4)
    paths = [tmp_path / str(number) for number in range(20)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]))
    time.sleep(TICK)
    for path in paths:
        digest(path)
    kept = [path for path in paths if known(path)]
    assert kept == paths[-len(kept):] and 4 <= len(kept) <= 8
    assert cache.parent.stat().st_mode & 0o077 == 0


def test_many_threads_add_theirs(cache: Path, tmp_path: Path):
    paths = [tmp_path / str(number) for number in range(64)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]))
    time.sleep(TICK)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(digest, paths))
    assert [known(path).sha256 for path in paths] == list(map(true, paths))


def test_a_merge_says_which_hashes_it_remembered(cache: Path, world: Path):
    from numllm.adapter import write_adapter
    from numllm.checkpoint import Checkpoint
    from numllm.files import read_json
    from numllm.merge import merge

    shapes = {
        name.removesuffix(".weight"): info.shape for name, info in Checkpoint.open(world / "base").tensors.items()
        if name.endswith("q_proj.weight")
    }
    factors = {name: (torch.ones(2, columns), torch.ones(rows, 2)) for name, (rows, columns) in shapes.items()}
    write_adapter(world / "a", factors, rank=2, alpha=2, targets=["q_proj"])
    adapters = [(world / "a", 0.5)]
    time.sleep(TICK)
    first, second, checked = (
        merge(world / "base", adapters, world / f"out{number}", verify=number == 2) for number in range(3)
    )
    count = len(first["inputs"]["base"]["sha256"]) + len(first["inputs"]["adapters"][0]["sha256"])
    assert [report["overall"]["hashes_remembered"] for report in (first, second, checked)] == [0, count, 0]
    for report in (first, second, checked):
        assert report["inputs"]["base"]["sha256"] == {
            name: true(world / "base" / name) for name in report["inputs"]["base"]["sha256"]
        }
    assert "remembered" not in first["inputs"]["base"] and "remembered" not in checked["inputs"]["base"]
    assert set(second["inputs"]["base"]["remembered"]) == set(second["inputs"]["base"]["sha256"])
    assert read_json(world / "out1" / "numllm_merge.json")["inputs"] == second["inputs"]
    assert "remembered" in (world / "out1" / "README.md").read_text() and (
        "remembered" not in (world / "out0" / "README.md").read_text()
    )
