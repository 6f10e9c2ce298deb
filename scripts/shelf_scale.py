"""A large shelf made of a smaller one by edits, taken through `numllm corpus`: speed, memory, near-duplicates found.

Copies of every Markdown and text file are written until the shelf has the size asked for. Three of four are lightly
edited: here and there a character is exchanged, so that their documents are near-duplicates of the originals. In every
fourth each line is scrambled, so that it is new text of the same look. Memory is that of the largest of the processes,
looked at while the command runs. With `--kill`, a second run is killed half-way and started again, and what it writes
is compared with what the first one wrote.

    python scripts/shelf_scale.py books/ work/ --megabytes 1000 --jobs 2 --kill --holdout 0

Options that are not its own go to `numllm corpus`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

LIGHT = 0.004
"""Share of characters exchanged in a light edit: sets of 5-grams stay similar by about 0.96."""
_HAN = re.compile("[\u4e00-\u9fff]")


def lightly(text: str, rng: random.Random) -> str:
    """The text with single Chinese characters exchanged for others of it."""
    characters = list(text)
    places = [found.start() for found in _HAN.finditer(text)]
    for place in rng.sample(places, int(LIGHT * len(places))):
        characters[place] = characters[rng.choice(places)]
    return "".join(characters)


def scrambled(text: str, rng: random.Random) -> str:
    """The text with the Chinese characters of each line in another order, line ends, marks and figures in place."""
    def line(part: str) -> str:
        order = _HAN.findall(part)
        rng.shuffle(order)
        following = iter(order)
        return _HAN.sub(lambda _: next(following), part)

    return "\n".join(map(line, text.split("\n")))


def make_shelf(source: Path, shelf: Path, size: int) -> dict[str, str]:
    """Writes the shelf; name of each copy → "light" or "scrambled"."""
    originals: list[tuple[str, str]] = []
    for path in sorted(source.rglob("*")):
        if path.suffix in (".md", ".txt") and path.is_file():
            data = path.read_bytes().replace(b"\r", b"")
            try:
                originals.append((path.relative_to(source).as_posix(), data.decode("utf-8")))
            except UnicodeDecodeError:
                continue
    written, kinds, turn = 0, {}, 0
    while written < size:
        for name, text in originals:
            kind = "original" if not turn else "scrambled" if turn % 4 == 0 else "light"
            rng = random.Random(f"{turn}/{name}")
            text = text if not turn else scrambled(text, rng) if kind == "scrambled" else lightly(text, rng)
            path = shelf / f"{turn:03d}-{kind}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            written += path.write_bytes(text.encode("utf-8"))
            kinds[path.relative_to(shelf).as_posix()] = kind
            if written >= size:
                break
        turn += 1
    return kinds


def _tree(root: int) -> list[int]:
    """The process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _start(shelf: Path, out: Path, jobs: int, options: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from numllm.cli import main; main()", "corpus", str(shelf), "--out", str(out)]
    return subprocess.Popen([*command, "--jobs", str(jobs), *options], stdout=subprocess.DEVNULL)


def _contents(out: Path) -> dict[str, str]:
    """File → digest of what the command wrote; the report names the folder and is left aside."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.iterdir()) if path.suffix != ".html"
    }


def killed(shelf: Path, out: Path, again: Path, jobs: int, options: list[str], seconds: float) -> dict[str, Any]:
    """Runs the command, kills it after `seconds`, runs it again; whether that writes what `out` holds."""
    process = _start(shelf, again, jobs, options)
    time.sleep(seconds)
    early = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    figures = measure(shelf, again, jobs, options)
    return {
        "killed_after": round(seconds, 1), "killed_before_its_end": early, "seconds": figures["seconds"],
        "cpu_seconds": figures["cpu_seconds"], "same_bytes": _contents(out) == _contents(again),
    }


def measure(shelf: Path, out: Path, jobs: int, options: list[str]) -> dict[str, Any]:
    """Runs the command; seconds, CPU seconds, memory over time and in all, in megabytes."""
    before = os.times()
    started = time.perf_counter()
    process = _start(shelf, out, jobs, options)
    series: list[tuple[float, float, float]] = []
    while process.poll() is None:
        sizes = [_resident(number) / 1e6 for number in _tree(process.pid)]
        series.append((time.perf_counter() - started, max(sizes), sum(sizes)))
        time.sleep(0.5)
    after = os.times()
    if process.returncode not in (0, 3):
        raise SystemExit(f"numllm corpus ended with exit code {process.returncode}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    half = len(series) // 2
    return {
        "seconds": round(time.perf_counter() - started, 1), "cpu_seconds": round(cpu, 1),
        "largest_process_mb": round(max(size for _, size, _ in series)),
        "all_processes_mb": round(max(size for *_, size in series)),
        "first_half_mb": round(max((size for _, size, _ in series[:half]), default=0)),
    }


def judge(out: Path, kinds: dict[str, str]) -> dict[str, Any]:
    """Documents kept of each kind of copy, and near-duplicates named."""
    kept: Counter[str] = Counter()
    with open(out / "corpus.jsonl", encoding="utf-8") as file:
        for row in map(json.loads, file):
            kept[kinds[row["source"]]] += 1
    reasons: dict[str, Counter[str]] = {}
    with open(out / "dropped.jsonl", encoding="utf-8") as file:
        for row in map(json.loads, file):
            reasons.setdefault(kinds[row["source"]], Counter())[row["reason"]] += 1
    light = reasons.get("light", Counter())
    found = sum(count for reason, count in light.items() if "duplicate" in reason)
    return {
        "kept": dict(kept), "dropped": {kind: dict(counts) for kind, counts in reasons.items()},
        "near_duplicates_found": round(found / max(found + kept["light"], 1), 5),
    }


def run(
    source: Path, work: Path, megabytes: float, jobs: int, options: list[str], *, kill: bool = False
) -> dict[str, Any]:
    """Makes the shelf below `work`, takes it through and returns the figures; what was written is removed."""
    shelf, out, again = work / "shelf", work / "corpus", work / "again"
    kinds = make_shelf(source, shelf, int(megabytes * 1e6))
    try:
        figures = measure(shelf, out, jobs, options)
        stats = json.loads((out / "stats.json").read_text("utf-8"))
        size = stats["bytes"] / 1e6
        more = {"again": killed(shelf, out, again, jobs, options, figures["seconds"] / 2)} if kill else {}
        return {
            "files": stats["files"], "megabytes": round(size, 1), "documents": stats["documents"], **figures,
            "mb_per_second": round(size / figures["seconds"], 2),
            "cpu_seconds_per_mb": round(figures["cpu_seconds"] / size, 3), **judge(out, kinds), **more,
        }
    finally:
        shutil.rmtree(shelf)
        for folder in (out, again):
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Parses the command line, prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--megabytes", type=float, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kill", action="store_true")
    given, options = parser.parse_known_args()
    figures = run(given.source, given.work, given.megabytes, given.jobs, options, kill=given.kill)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
