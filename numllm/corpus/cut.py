"""Blocks as documents: cut at section boundaries, up to a target length."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from .blocks import Block

_SENTENCE = re.compile(r"[^。！？；\n]*(?:[。！？；]+[”’」』）)]*|\n|\Z)")
_REPEATED_HEADER = 200
"""Longest table header, in characters, that is said again where a table is cut."""


Heading = tuple[int, str]
"""(level, text); level 0 is the name of a file."""


@dataclass(frozen=True)
class Section:
    """A heading (or several, when the upper ones have no text of their own) and the blocks below it."""

    path: tuple[Heading, ...]
    level: int
    blocks: tuple[Block, ...]

    @functools.cached_property
    def size(self) -> int:
        """Characters of the blocks as one text."""
        return length(self.blocks)


@dataclass(frozen=True)
class Piece:
    """A document: its title (`chapter > section`, the headings that all of it is under) and its text."""

    title: str
    text: str
    chapter: str
    """The heading of the file's chapters that it is under; "" above them, or where the file has none."""
    section: str
    """The lowest heading below the chapter that all of it is under, or ""."""
    page: str
    """Where its first block begins in the file; "" in files without pages."""


def length(blocks: tuple[Block, ...] | list[Block]) -> int:
    """Characters of the blocks as one text."""
    return sum(map(_size, blocks)) - 2 if blocks else 0


def _size(block: Block) -> int:
    """Characters of a block and the empty line behind it."""
    return len(block.text) + 2 + (block.level + 1 if block.kind == "heading" else 0)


def sections(blocks: list[Block], name: str) -> list[Section]:
    """The sections of a file; `name` is the path of text above the first heading."""
    found: list[Section] = []
    stack: list[Heading] = []
    current: list[Block] = []
    level = 0
    path: tuple[Heading, ...] = ((0, name),)
    for block in blocks:
        if block.kind != "heading":
            current.append(block)
            continue
        bare = bool(current) and all(b.kind == "heading" for b in current)
        if current and not (bare and block.level > current[-1].level):
            if not bare:
                found.append(Section(path, level, tuple(current)))
            current = []
        while stack and stack[-1][0] >= block.level:
            stack.pop()
        stack.append((block.level, block.text))
        if not current:
            level = block.level
        path = tuple(stack)
        current.append(block)
    if current:
        found.append(Section(path, level, tuple(current)))
    return found


def split_block(block: Block, limit: int) -> list[Block]:
    """A block longer than `limit` as several: tables and lists by line, text by sentence; a formula stays whole."""
    if len(block.text) <= limit or block.kind in ("math", "heading"):
        return [block]
    if block.kind == "text":
        parts, joint, header = [m[0] for m in _SENTENCE.finditer(block.text) if m[0]], "", ""
    else:
        parts, joint, header = block.text.split("\n"), "\n", ""
        if block.kind == "table" and len(parts[0]) <= min(_REPEATED_HEADER, limit // 4):
            header = parts[0]
    parts = [piece for part in parts for piece in _hard_cut(part, limit)]
    found: list[str] = []
    current = ""
    for part in parts:
        if current and len(current) + len(joint) + len(part) > limit:
            found.append(current)
            current = f"{header}\n{part}" if header and len(header) + 1 + len(part) <= limit else part
        else:
            current = current + joint + part if current else part
    found.append(current)
    return [block._replace(text=text.strip("\n")) for text in found if text.strip()]


def _hard_cut(text: str, limit: int) -> list[str]:
    """A single sentence or row longer than `limit`, cut at a comma, a cell border or, failing that, anywhere."""
    pieces = []
    while len(text) > limit:
        at = max(text.rfind(mark, limit // 2, limit) for mark in "，、,|： ")
        at = at + 1 if at >= 0 else limit
        pieces.append(text[:at])
        text = text[at:]
    return [*pieces, text] if text else pieces


def _split_section(section: Section, target: int) -> list[Section]:
    """A section longer than `target` as several of about equal length."""
    if section.size <= target:
        return [section]
    blocks = [part for block in section.blocks for part in split_block(block, target)]
    whole = length(blocks)
    goal = whole / -(-whole // target)
    found: list[list[Block]] = [[]]
    here = -2
    for block in blocks:
        size = _size(block)
        full = here + size > target or here + size / 2 > goal
        if found[-1] and full and found[-1][-1].kind != "heading":
            found.append([])
            here = -2
        found[-1].append(block)
        here += size
    return [Section(section.path, section.level if k == 0 else 99, tuple(b)) for k, b in enumerate(found)]


def _common(paths: list[tuple[Heading, ...]]) -> tuple[Heading, ...]:
    shared = paths[0]
    for path in paths[1:]:
        k = 0
        while k < min(len(shared), len(path)) and shared[k] == path[k]:
            k += 1
        shared = shared[:k]
    return shared or paths[0][:1]


def cut(blocks: list[Block], name: str, target: int) -> list[Piece]:
    """The documents of a file.

    Whole sections are put together while they fit into `target` characters; a chapter (the highest level
    that comes more than once) begins a new document unless the one before it is still short. A longer
    section is cut between blocks, a longer block between rows, items or sentences. What is left short in
    the end joins its neighbour where both fit.
    """
    parts = [part for section in sections(blocks, name) for part in _split_section(section, target)]
    levels = [part.level for part in parts if part.level < 99]
    chapter = min((level for level in set(levels) if levels.count(level) > 1), default=0)
    groups: list[list[Section]] = []
    size = 0
    for part in parts:
        new = part.size
        if not groups or size + 2 + new > target or (part.level <= chapter and size >= target // 4):
            groups.append([])
            size = -2
        groups[-1].append(part)
        size += 2 + new
    return [_piece(group, chapter) for group in _joined(groups, target)]


def _joined(groups: list[list[Section]], target: int) -> list[list[Section]]:
    """Groups shorter than a quarter of `target` joined to the one before, else the one after, where they fit."""

    kept: list[list[Section]] = []
    before = 0
    for group in groups:
        size = sum(part.size + 2 for part in group) - 2
        short = size < target // 4 or (kept and before < target // 4)
        if kept and short and before + 2 + size <= target:
            kept[-1] = kept[-1] + group
            before += 2 + size
        else:
            kept.append(group)
            before = size
    return kept


def _piece(group: list[Section], chapter: int) -> Piece:
    path = _common([part.path for part in group])
    above = [level for level, _ in path].index(chapter) + 1 if chapter and chapter in dict(path) else 0
    below = path[above:] if above else ()
    return Piece(
        " > ".join(text for _, text in path),
        "\n\n".join(block.render() for part in group for block in part.blocks),
        path[above - 1][1] if above else "",
        below[-1][1] if below else "",
        next((block.page for part in group for block in part.blocks if block.page), ""),
    )
