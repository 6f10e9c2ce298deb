"""The merge under bad luck and bad files: failing disks, kills, rivals, mutants; the whole result or none."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from numllm.checkpoint import INDEX, Checkpoint
from numllm.errors import MergeError, NumLLMError
from numllm.merge import REPORT, layout, merge, stage, write
from numllm.merge.stage import MANIFEST, locked
from scripts.merge_inputs import write_inputs

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_inputs(tmp_path)
    return tmp_path


def run(folder: Path, out: str = "out", **options: Any) -> dict[str, Any]:
    return merge(folder / "base", [(folder / "domain", 0.7), (folder / "numeric", -0.4)], folder / out, **options)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("base", "domain", "numeric"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != REPORT}


class Failing:
    """A function of `os` that counts its calls and fails at one of them."""

    def __init__(self, function: str, number: int, place: int | None) -> None:
        self.real, self.number, self.place = getattr(os, function), number, place
        self.count, self._lock = 0, threading.Lock()

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        with self._lock:
            self.count += 1
            if self.count - 1 == self.place:
                raise OSError(self.number, os.strerror(self.number))
        return self.real(*args, **keywords)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("function", ["pwrite", "copy_file_range", "fsync", "posix_fallocate", "replace"])
def test_the_disk_fails_at_every_call(
    folder: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    """A dozen of a function's calls, the first and the last among them, fail in turn: one line, the whole result or
    nothing, and the inputs as they were.
    """
    counting, before = Failing(function, number, None), contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, counting)
        run(folder, "wanted")
    last = counting.count - 1
    assert last >= 0
    for place in sorted({round(last * step / 11) for step in range(12)}):
        with monkeypatch.context() as patch, pytest.raises(NumLLMError, match=os.strerror(number)) as caught:
            patch.setattr(os, function, Failing(function, number, place))
            run(folder)
        assert "\n" not in str(caught.value)
        # Where the folder had been renamed and only making that durable failed, the result is there, and whole.
        if (folder / "out").exists():
            assert function == "fsync" and contents(folder / "out") == contents(folder / "wanted")
            shutil.rmtree(folder / "out")
        assert leftovers(folder) == ["wanted"]
    shutil.rmtree(folder / "wanted")
    assert contents(folder) == before


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, None])
def test_room_is_reserved_where_it_can_be(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    """Before anything is written; elsewhere the result is the same."""
    def refuse(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    (folder / "room").touch()
    handle = os.open(folder / "room", os.O_RDWR)
    layout.reserve(handle, 1 << 20)
    os.close(handle)
    assert (folder / "room").stat().st_blocks * 512 >= (folder / "room").stat().st_size == 1 << 20
    (folder / "room").unlink()
    run(folder, "wanted")
    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    run(folder, verify=True)
    assert contents(folder / "out") == contents(folder / "wanted")


def killed(folder: Path, last: int) -> None:
    """A run in a forked child, killed when it has put so many files or parts on the list."""
    pid = os.fork()
    if pid == 0:
        finish, count = stage.Stage.finish, 0

        def die(self: Any, *arguments: Any) -> None:
            nonlocal count
            finish(self, *arguments)
            count += 1
            if count == last:
                os.kill(os.getpid(), 9)

        stage.Stage.finish = die
        torch.set_num_threads(1)
        run(folder)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def test_a_killed_run_is_taken_up(folder: Path) -> None:
    """Killed in a forked child after the first shard is on the list; the second run does the other one only."""
    run(folder, "wanted")
    killed(folder, 1)
    aside = folder / ".out.merging"
    assert not (folder / "out").exists() and aside.is_dir() and (folder / ".out.lock").exists()
    lines = [json.loads(line) for line in (aside / MANIFEST).read_text().splitlines()]
    done = lines[1]["file"]
    inode = (aside / done).stat().st_ino
    (aside / "junk").mkdir()
    with open(aside / MANIFEST, "a") as file:
        file.write('{"file": "model-')  # a line that was being written
    report = run(folder, verify=True)
    assert report["overall"]["files_taken_up"] == 1
    assert (folder / "out" / done).stat().st_ino == inode
    assert contents(folder / "out") == contents(folder / "wanted")
    assert sorted(report["tensors"]) == sorted(json.loads((folder / "wanted" / REPORT).read_text())["tensors"])
    assert leftovers(folder) == ["out", "wanted"]


def test_a_killed_run_is_taken_up_inside_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after each of its parts in turn; what was on the list is not done again."""
    run(folder, "wanted")
    monkeypatch.setattr(write, "PORTION", 1)
    folded, whole = [], []
    fold = write.fold
    monkeypatch.setattr(write, "fold", lambda target, *rest: folded.append(target.info.name) or fold(target, *rest))
    for last in range(1, 6):
        killed(folder, last)
        lines = [json.loads(line) for line in (folder / ".out.merging" / MANIFEST).read_text().splitlines()[1:]]
        noted = {name for line in lines for name in line["noted"]}
        folded.clear()
        report = run(folder, verify=True)
        whole = sorted(report["tensors"])
        assert sorted(folded) == sorted(set(whole) - noted)
        assert report["overall"]["bytes_taken_up"] == sum(
            line["size"] if line["parts"] is None else sum(count for _, count in line["parts"])
            for line in lines if line["parts"] is None or not any(
                other["file"] == line["file"] and other["parts"] is None for other in lines)
        ) > 0
        assert contents(folder / "out") == contents(folder / "wanted")
        shutil.rmtree(folder / "out")
    assert whole == sorted(json.loads((folder / "wanted" / REPORT).read_text())["tensors"])


@pytest.mark.parametrize("moment", ["between", "after"])
def test_killed_while_it_replaced_a_folder(folder: Path, moment: str) -> None:
    """Between the two renames, the old result is put back; after them, it is cleared away by the next run."""
    run(folder)
    before = contents(folder / "out")
    pid = os.fork()
    if pid == 0:
        replace, count = os.replace, 0

        def die(source: Any, target: Any) -> None:
            nonlocal count
            replace(source, target)
            count += Path(target).parent == folder
            if count == (1 if moment == "between" else 2):
                os.kill(os.getpid(), 9)

        os.replace = die
        torch.set_num_threads(1)
        run(folder, overwrite=True)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert (folder / "out").exists() == (moment == "after") and (folder / f".out.old-{pid}").exists()
    with pytest.raises(NumLLMError, match="not empty"):
        run(folder)
    assert contents(folder / "out") == before
    run(folder, overwrite=True)
    assert contents(folder / "out") == before
    assert leftovers(folder) == ["out"]


@pytest.mark.parametrize("change", ["weight", "method", "input", "manifest", "size"])
def test_another_merges_files_are_not_taken_up(folder: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever decides a byte of the result is in the fingerprint."""
    def stop(*_: Any, **__: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:  # leaves the folder as a killed run does
        patch.setattr("numllm.merge.run._sum_up", stop)
        patch.setattr("numllm.files.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(SystemExit):
            run(folder)
    aside = folder / ".out.merging"
    assert len((aside / MANIFEST).read_text().splitlines()) == 3
    options: dict[str, Any] = {}
    if change == "method":
        options = {"method": "exact"}
    elif change == "input":
        os.utime(folder / "domain" / "adapter_model.safetensors", ns=(5, 5))
    elif change == "manifest":
        (aside / MANIFEST).write_text("[]\n")
    elif change == "size":
        os.truncate(aside / "model-1-of-2.safetensors", 10)
    weight = 0.6 if change == "weight" else 0.7
    adapters = [(folder / "domain", weight), (folder / "numeric", -0.4)]
    report = merge(folder / "base", adapters, folder / "out", verify=True, **options)
    assert report["overall"]["files_taken_up"] == (1 if change == "size" else 0)
    merge(folder / "base", adapters, folder / "fresh", **options)
    assert contents(folder / "out") == contents(folder / "fresh")


def test_a_second_merge_into_a_folder_is_refused(folder: Path) -> None:
    with locked(folder / "out"), pytest.raises(MergeError, match="another merge is writing"):
        run(folder)
    assert leftovers(folder) == []
    run(folder)


def test_two_processes_at_once(folder: Path) -> None:
    """Of two that start together one is refused or both write one after the other; the result is whole."""
    run(folder, "wanted")
    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            torch.set_num_threads(1)
            try:
                run(folder, overwrite=True)
            except MergeError as error:
                os._exit(7 if "another merge" in str(error) else 1)
            except BaseException:
                os._exit(2)
            os._exit(0)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert set(codes) <= {0, 7} and 0 in codes
    assert contents(folder / "out") == contents(folder / "wanted")
    assert leftovers(folder) == ["out", "wanted"]


def test_a_link_in_the_place_of_unfinished_files_is_refused(folder: Path) -> None:
    (folder / ".out.merging").symlink_to(folder / "base")
    before = contents(folder / "base")
    with pytest.raises(MergeError, match="is a link"):
        run(folder)
    assert contents(folder / "base") == before


@pytest.mark.parametrize("leads_to", ["empty", "full", "nothing"])
def test_an_output_that_is_a_link_is_written_where_it_leads(folder: Path, leads_to: str) -> None:
    if leads_to != "nothing":
        (folder / "real").mkdir()
    if leads_to == "full":
        (folder / "real" / "old").write_text("old")
    (folder / "out").symlink_to("real")
    run(folder, overwrite=leads_to == "full")
    assert (folder / "out").is_symlink() and (folder / "real" / REPORT).is_file()
    assert leftovers(folder) == ["out", "real"] and not (folder / "real" / "old").exists()


@pytest.mark.parametrize("out", [".", ".."])
def test_the_current_folder_is_not_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    here = folder / "around" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    pairs = [(folder / "domain", 0.7), (folder / "numeric", -0.4)]
    with pytest.raises(NumLLMError, match="holds the current folder"):
        merge(folder / "base", pairs, out, overwrite=True)
    assert list((folder / "around").rglob("*")) == [here] and leftovers(folder) == ["around"]


@pytest.mark.parametrize("largest", [1, 3000, 5000, 10**9])
def test_shards_of_a_size(folder: Path, largest: int) -> None:
    """Other files, the same tensors; the index says which and how much."""
    run(folder, "wanted")
    report = run(folder, max_shard=largest, verify=True)
    merged, wanted = Checkpoint.open(folder / "out"), Checkpoint.open(folder / "wanted")
    assert set(merged.tensors) == set(wanted.tensors)
    for name in wanted.tensors:
        assert torch.equal(merged.read(name), wanted.read(name))
    for path in merged.files:
        tensors = load_file(path)  # safetensors itself reads it
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= largest
    assert merged.sharded == (largest < 10**9) and merged.metadata == {"format": "pt"}
    if merged.sharded:
        index = json.loads((folder / "out" / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(info.nbytes for info in merged.tensors.values())
    assert report["overall"]["verified"]


def test_a_sample_is_verified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(folder, verify=True, sample=0.3)["overall"]["verified"]
    with pytest.raises(MergeError, match=r"in \(0, 1\]"):
        run(folder, "no", verify=True, sample=0.0)


def test_the_card_says_what_was_merged(folder: Path) -> None:
    (folder / "base" / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: zh\n---\n# The base's own card\n")
    report = run(folder, verify=True)
    card = (folder / "out" / "README.md").read_text()
    assert "license: apache-2.0" in card and "own card" not in card and "language" not in card
    for entry in report["inputs"]["adapters"]:
        assert f"| {entry['name']} | {entry['weight']} | {entry['rank']} |" in card
        assert all(digest in card for digest in entry["sha256"].values())


def campaign(name: str, *arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", f"scripts.{name}", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def test_mutants_short() -> None:
    """`scripts/fuzz_merge.py` has the long form."""
    found = campaign("fuzz_merge", "--count", "400")
    assert "refused" in found and "merged" in found


def test_kills_short() -> None:
    """`scripts/kill_merge.py` has the long form."""
    assert "killed: 6" in campaign("kill_merge", "--kills", "6")


