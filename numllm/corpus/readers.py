"""Files as blocks, chosen by suffix: Markdown, plain text, HTML, PDF, EPUB and Word files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ..errors import DataError
from .archive import brief
from .blocks import Block, Reading
from .clean import decode, normalise
from .lines import TOC_LEADER, join_lines
from .markdown import read_markdown

MAX_TEXT = 64 * 2**20
"""Bytes of the largest text file that is read; its text is held in memory several times over."""

_NUMBER = "[一二三四五六七八九十百零〇两\\d]"
_CHAPTER = re.compile(
    rf"第\s?{_NUMBER}{{1,6}}\s?([编篇部章节])(?![，。,的和或])\s*\S{{0,40}}(?: \S{{1,30}}){{0,3}}"
)
_NUMBERED = re.compile(r"[一二三四五六七八九十]{1,3}、[^，。；：？！,;“”]{1,36}")
_DEPTH = {"编": 1, "篇": 1, "部": 1, "章": 2, "节": 3}
_NUMBERED_DEPTH = 4
_CONTENTS = re.compile(
    r"^(?:本[文章书])?(?:目\s*[录錄次]|内容提要目录|Contents|Table of [Cc]ontents|CONTENTS)$"
)
_CONTENTS_BEGIN = frozenset("本目内CT")
_HEADING_BEGIN = frozenset("第一二三四五六七八九十")
_LETTER = re.compile(r"[^\W_]")


def read_plain(text: str) -> list[Block]:
    """The blocks of plain text: paragraphs end at empty lines, indents and finished sentences."""
    paragraphs: list[list[str]] = [[]]
    for line in text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n").split("\n"):
        if not line.strip() or TOC_LEADER.match(line):
            paragraphs.append([])
            continue
        if line[:1] in " \t\u3000" or _heading_depth(normalise(line)):
            paragraphs.append([])
        paragraphs[-1].append(line)
        if _heading_depth(normalise(line)):
            paragraphs.append([])
    blocks = []
    for lines in paragraphs:
        whole = normalise(join_lines(lines)) if lines else ""
        if whole:
            blocks.append(Block("text", whole))
    return blocks


def _read_text(reader: Callable[[str], list[Block]], path: Path, *, markup: bool = False) -> Reading:
    size = path.stat().st_size
    if size > MAX_TEXT:
        raise DataError(f"a text of {size} bytes; at most {MAX_TEXT} are read: split it into several files")
    text = decode(path.read_bytes(), markup=markup)
    broken = text.count("\ufffd")
    return Reading(reader(text), [f"{broken} characters are broken and stand as \ufffd"] if broken else [])


def _read_markdown(path: Path) -> Reading:
    return _read_text(read_markdown, path)


def _read_plain(path: Path) -> Reading:
    return _read_text(read_plain, path)


# The other readers are imported by those who need them: on a shelf of Markdown that is half of the time to start.


def _read_html(path: Path) -> Reading:
    from .webpage import read_html

    return _read_text(read_html, path, markup=True)


def _read_pdf(path: Path) -> Reading:
    from .pdf import read_pdf

    return read_pdf(path)


def _read_epub(path: Path) -> Reading:
    from .epub import read_epub

    return read_epub(path)


def _read_docx(path: Path) -> Reading:
    from .docx import read_docx

    return read_docx(path)


READERS: dict[str, Callable[[Path], Reading]] = (
    {suffix: _read_markdown for suffix in (".md", ".markdown")}
    | {suffix: _read_plain for suffix in (".txt", ".text")}
    | {suffix: _read_html for suffix in (".html", ".htm", ".xhtml")}
    | {".pdf": _read_pdf, ".epub": _read_epub, ".docx": _read_docx}
)
"""Suffix → reader of a file."""
PLAIN = frozenset(suffix for suffix, reader in READERS.items() if reader in (_read_markdown, _read_plain))
"""Suffixes whose readers rest on no library: what they raise is a mistake of ours, not the file's."""


def read(path: Path) -> Reading:
    """What a file holds, headings found, tables of contents gone. DataError, without the path, says why not.

    Time and memory are for the caller to limit, in a process of their own.
    """
    reader = READERS[path.suffix.lower()]
    try:
        found = reader(path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error
    except DataError:
        raise
    except MemoryError as error:
        raise DataError("needs more memory than the process that reads it may take") from error
    except Exception as error:  # whatever a library raises on a damaged file
        if path.suffix.lower() in PLAIN:
            raise
        raise DataError(f"damaged: cannot be read ({brief(error)})") from error
    return Reading(_compact(_without_contents(_without_echo(_promote(found.blocks)))), found.notes)


def read_file(path: Path) -> list[Block]:
    """The blocks of a file, as `read` finds them."""
    return read(path).blocks


def _heading_depth(text: str) -> int:
    """Depth of a line that is a heading by its words (第三章 …, 一、…), 0 for any other line."""
    if len(text) > 50 or text[:1] not in _HEADING_BEGIN or "\n" in text or text[-1] in "。！？；，：,;":
        return 0
    if found := _CHAPTER.fullmatch(text):
        return _DEPTH[found[1]]
    return _NUMBERED_DEPTH if _NUMBERED.fullmatch(text) else 0


def _promote(blocks: list[Block]) -> list[Block]:
    """Paragraphs that are headings by their words become headings below the last written one."""
    found, base = [], 0
    for block in blocks:
        if block.kind == "heading":
            base = block.level
        elif block.kind == "text" and (depth := _heading_depth(block.text)):
            block = block._replace(kind="heading", level=base + depth)
        found.append(block)
    return found


def _key(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).lower()


def _same(a: str, b: str) -> bool:
    """Whether two texts have the same letters; most differ in the first."""
    first, second = _LETTER.search(a), _LETTER.search(b)
    if first and second and first[0].lower()[0] != second[0].lower()[0]:
        return False
    return _key(a) == _key(b)


def _without_echo(blocks: list[Block]) -> list[Block]:
    """Without paragraphs and headings that only say the heading above them again."""
    kept: list[Block] = []
    for block in blocks:
        if kept and kept[-1].kind == "heading" and _same(block.text, kept[-1].text):
            continue
        kept.append(block)
    return kept


def _without_contents(blocks: list[Block]) -> list[Block]:
    """Without tables of contents: what follows a line 目录, and headings that stand bare and come again later."""
    keys = {k: _key(block.text) for k, block in enumerate(blocks) if block.kind == "heading"}
    last = {key: k for k, key in keys.items()}
    kept: list[Block] = []
    listing = False
    for k, block in enumerate(blocks):
        if block.text[:1] in _CONTENTS_BEGIN and _CONTENTS.match(block.text):
            listing = True
            continue
        if block.kind == "heading":
            bare = k + 1 == len(blocks) or blocks[k + 1].kind == "heading"
            if last[keys[k]] > k and (bare or listing):
                continue
        if listing and block.kind in ("text", "list") and _is_listing(block.text, last):
            continue
        listing = False
        kept.append(block)
    return kept


def _is_listing(text: str, headings: dict[str, int]) -> bool:
    lines = [re.sub(r"^\s*(?:-|\d+[.)])\s+|[\s.…·]*\d*$", "", line) for line in text.split("\n")]
    named = sum(_key(line) in headings for line in lines)
    return named * 2 >= len(lines) or all(len(line) <= 40 and _heading_depth(line) for line in lines)


def _compact(blocks: list[Block]) -> list[Block]:
    """Heading levels as 1, 2, 3 … without gaps, at most 6; a heading at the end, with nothing below, goes."""
    while blocks and blocks[-1].kind == "heading":
        blocks = blocks[:-1]
    levels = sorted({block.level for block in blocks if block.kind == "heading"})
    rank = {level: min(k, 6) for k, level in enumerate(levels, 1)}
    return [b._replace(level=rank[b.level]) if b.kind == "heading" else b for b in blocks]
