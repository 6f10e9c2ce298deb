"""Mutates files of every format: every mutant is read or refused in one line, in time and within memory.

python -m scripts.fuzz_readers --count 5000
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import random
import re
import resource
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path

from numllm.corpus.blocks import Block
from numllm.corpus.readers import read
from numllm.errors import DataError
from scripts.typeset import body, write_docx, write_epub, write_html, write_pdf

SECONDS, MEMORY = 20.0, 500 << 20
"""What a mutant may take: a wall-clock time with room for a busy machine, and memory in all, in bytes."""

_NUMBER = re.compile(rb"\d+")
_NUMBERS = (b"0", b"-1", b"1", b"255", b"65536", b"2147483647", b"99999999999999999999", b"1e308", b"NaN")
_BYTES = [
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"<", b">", b"&", b"<!--", b"]]>", b"<table><tr><td>", b"<div>" * 300),
    *(b"[[", b"<<", b">>", b"(", b")", b"endstream", b"endobj", b"$$", b"```", b"|", b"\\begin{a}", b"&#x110000;"),
]


def sample() -> list[Block]:
    """A chapter of every kind of block."""
    paragraph = "企业应当在资产负债表日对存货进行清查，按照成本与可变现净值孰低计量，差额为1,200.50万元（5%）。"
    return [
        Block("heading", "第一章 存货", 1),
        Block("text", paragraph * 6),
        Block("heading", "第一节 计量 Measurement", 2),
        Block("table", "项目 | 期初 | 期末\n原材料 | 120 | 135.5\n库存商品 | 80% | 7‰"),
        Block("list", "- 先进先出法\n- 加权平均法"),
        Block("math", "$$\nQ = \\sqrt{\\frac{2DS}{H}}\n$$"),
        *[Block("text", f"{k}、{paragraph * 4}") for k in range(12)],
    ]


def seeds(folder: Path) -> dict[str, bytes]:
    """Suffix (with a number) → the bytes of a whole file."""
    blocks = sample()
    paths = [
        write_html(folder / "a.html", blocks),
        write_epub(folder / "a.epub", blocks),
        write_docx(folder / "a.docx", blocks),
        write_pdf(folder / "a1.pdf", blocks),
        write_pdf(folder / "a2.pdf", blocks, 2),
        write_pdf(folder / "a3.pdf", blocks, packed=0),
    ]
    markdown = "\n\n".join(block.render() for block in blocks)
    found = {path.name: path.read_bytes() for path in paths}
    for name, encoding in (("a.md", "utf-8"), ("b.md", "utf-16-le"), ("a.txt", "gb18030")):
        found[name] = markdown.encode(encoding)
    return found | {"b.md": (markdown + body(blocks)).encode()}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few places changed: flipped, cut, doubled, moved, numbers replaced."""
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not data:
            return data
        at = rng.randrange(len(data))
        size = min(len(data) - at, rng.choice((1, 4, 30, 1000)))
        act = rng.randrange(8)
        if act == 0:
            data = data[:at] + bytes(rng.randrange(256) for _ in range(size)) + data[at + size :]
        elif act == 1:
            data = data[:at] + data[at + size :]
        elif act == 2:
            data = data[:at] + data[at : at + size] * rng.choice((2, 2, 50)) + data[at + size :]
        elif act == 3:
            to = rng.randrange(len(data))
            data = data[:to] + data[at : at + size] + data[to:]
        elif act == 4:
            data = data[:at] + rng.choice(_BYTES) + data[at:]
        elif act == 5 and rng.random() < 0.3:
            data = data[:at]
        elif (found := _NUMBER.search(data, at)) and found.start() - at < 2000:
            data = data[: found.start()] + rng.choice(_NUMBERS) + data[found.end() :]
    return data


def mutant(name: str, data: bytes, rng: random.Random) -> bytes:
    """A mutant of a file; of a ZIP mostly one with a part changed and packed again."""
    if not data.startswith(b"PK") or rng.random() < 0.3:
        return mutated(data, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        names = [part for part in old.namelist() if part.endswith((".xml", ".xhtml", ".opf", ".rels"))]
        chosen = rng.choice([part for part in names if "document" in part or "OEBPS" in part or rng.random() < 0.2])
        for part in old.namelist():
            if part != chosen or rng.random() > 0.05:
                content = old.read(part)
                new.writestr(part, mutated(content, rng) if part == chosen else content)
    return out.getvalue()


def run(count: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Reads `count` mutants; (how many of each format were read and refused, what went wrong)."""
    rng = random.Random(seed)
    whole = seeds(folder)
    tally: Counter[str] = Counter()
    wrong: list[str] = []
    for number in range(count):
        name = rng.choice(sorted(whole))
        path = folder / f"mutant{Path(name).suffix}"
        path.write_bytes(mutant(name, whole[name], rng))
        faulthandler.dump_traceback_later(6 * SECONDS, exit=True)
        began, what = time.perf_counter(), "read"
        try:
            for block in read(path).blocks:
                assert block.text.strip() and "\0" not in block.text, f"block {block!r}"
        except DataError as error:
            what = "refused"
            if "\n" in str(error) or len(str(error)) > 600:
                wrong.append(f"{number} {name}: the message is not one line: {str(error)[:300]!r}")
        except Exception as error:
            what = "wrong"
            wrong.append(f"{number} {name}: {type(error).__name__}: {error}")
        faulthandler.cancel_dump_traceback_later()
        tally[f"{path.suffix} {what}"] += 1
        if (took := time.perf_counter() - began) > SECONDS:
            wrong.append(f"{number} {name}: took {took:.1f} s")
        if wrong and (wrong[-1].startswith(f"{number} ")):
            path.rename(folder / f"{number}-{name}")
    return tally, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the mutants that went wrong")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        tally, wrong = run(options.count, options.seed, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    for what, number in sorted(tally.items()):
        print(f"{what:16} {number}")
    print(f"{options.count} mutants in {time.perf_counter() - began:.0f} s, {peak} MiB at most, {len(wrong)} wrong")
    for line in wrong:
        print(line)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
