"""Word files (DOCX) as blocks, by lxml on the parts of the package: no style, number or note is guessed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from .archive import Archive
from .blocks import Block, Reading
from .clean import normalise
from .docx_styles import Numbers, Styles
from .latex import office_math
from .markup import format_rows, join_cell, raised

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_SKIPPED = frozenset(
    "del moveFrom rPr pPr instrText delText footnoteReference endnoteReference commentReference annotationRef "
    "footnoteRef endnoteRef separator continuationSeparator sectPr proofErr bookmarkStart bookmarkEnd drawing pict "
    "object fldData".split()
)
_BULLETS = re.compile(r"[\uf000-\uf0ff•●▪■◆◇○–·\-*ØüÞ]|")
_MAX_DEPTH = 40


def read_docx(path: Path) -> Reading:
    """The blocks of a Word file, with its automatic numbers written out and its formulas as LaTeX.

    Headings are paragraphs whose style has an outline level. Deleted, struck-out and hidden text, notes'
    marks, comments, text boxes' copies, running heads and the table of contents go; the notes themselves
    follow the text. A block says the page on which Word last laid it out, where the file notes that.
    DataError for encrypted and damaged files.
    """
    with open(path, "rb") as file:
        if file.read(8) == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":  # OLE: what encryption wraps a package in
            raise DataError("an encrypted Word file (or one of the old .doc format)")
    with Archive(path) as package:
        document = package.xml("word/document.xml", whole=True)
        styles = Styles(package.xml("word/styles.xml") if "word/styles.xml" in package else None)
        numbers = Numbers(package.xml("word/numbering.xml") if "word/numbering.xml" in package else None)
        reader = _Reader(styles, numbers)
        body = next(document.iter(f"{_W}body"), None)
        if body is None:
            raise DataError("damaged: a Word file without a body")
        reader.read(body)
        for part in ("word/footnotes.xml", "word/endnotes.xml"):
            if part in package:
                for note in package.xml(part):
                    if note.get(f"{_W}type") in (None, "normal"):
                        reader.read(note)
    return Reading(reader.blocks)


def _name(node: Any) -> str:
    tag = node.tag if isinstance(node.tag, str) else ""
    return tag.rsplit("}", 1)[-1]


def _on(properties: Any, name: str) -> bool:
    """Whether a switch such as w:strike is set."""
    node = properties.find(f"{_W}{name}") if properties is not None else None
    return node is not None and node.get(f"{_W}val") not in ("0", "false", "off", "none")


class _Reader:
    """One pass over a story of the file; `blocks` grows."""

    def __init__(self, styles: Styles, numbers: Numbers) -> None:
        self.styles, self.numbers = styles, numbers
        self.blocks: list[Block] = []
        self.page = 1
        self.paged = False
        self.began: int | None = None
        """The page on which the paragraph being read begins; None before its first word."""
        self.fields: list[list[str]] = []
        """Open fields: each its instruction, and whether its result has begun."""
        self.listing = False

    def read(self, story: Any) -> None:
        start = len(self.blocks)
        for node in self._children(story, 0):
            if _name(node) == "p":
                self._paragraph(node)
            elif _name(node) == "tbl":
                self.began = None
                self.add("table", self._table(node, 0))
        if not self.paged:
            self.blocks[start:] = [block._replace(page="") for block in self.blocks[start:]]

    def _children(self, node: Any, depth: int) -> Iterator[Any]:
        """Paragraphs and tables, also inside content controls and tracked insertions; no tables of contents."""
        for child in node:
            name = _name(child)
            if name in ("p", "tbl"):
                yield child
            elif name == "sdt":
                gallery = next((g.get(f"{_W}val") or "" for g in child.iter(f"{_W}docPartGallery")), "")
                content = child.find(f"{_W}sdtContent")
                if content is not None and "Contents" not in gallery and depth < _MAX_DEPTH:
                    yield from self._children(content, depth + 1)
            elif name in ("ins", "moveTo", "smartTag", "customXml", "txbxContent") and depth < _MAX_DEPTH:
                yield from self._children(child, depth + 1)

    def add(self, kind: Any, text: str, level: int = 0) -> None:
        text = "\n".join(line for line in (part.rstrip() for part in text.split("\n")) if line.strip())
        if text:
            self.blocks.append(Block(kind, text, level, str(self.began or self.page)))

    # ── paragraphs ──
    def _paragraph(self, node: Any) -> None:
        properties = node.find(f"{_W}pPr")
        style = self.styles.of(properties)
        self.began = None
        text, boxes = self._content(node)
        in_contents = self.listing
        self.listing = any(field[0].strip().upper().startswith("TOC ") for field in self.fields)
        if in_contents or self.listing or style.contents:
            return
        number, depth = self.numbers.next(self.styles.numbering(properties))
        text = normalise(text)
        level = style.level
        if not text:
            pass
        elif text.startswith("$$") and text.endswith("$$") and text.count("$$") == 2:
            self.add("math", text)
        elif level and len(text) <= 200:
            self.add("heading", f"{number or ''} {text}".strip().replace("\n", " "), level)
        elif number is not None and (not number or _BULLETS.fullmatch(number) or len(number) <= 8):
            mark = "-" if _BULLETS.fullmatch(number) else number
            space = "" if mark[-1] in "、）)．" else " "
            line = "  " * min(depth, 5) + mark + space + text.replace("\n", " ")
            page = str(self.began)
            if self.blocks and self.blocks[-1].kind == "list":
                last = self.blocks.pop()
                line, page = f"{last.text}\n{line}", last.page
            self.blocks.append(Block("list", line, 0, page))
        else:
            self.add("text", f"{number} {text}" if number else text)
        for box in boxes:
            for inner in self._children(box, 0):
                if _name(inner) == "p":
                    self._paragraph(inner)

    def _content(self, node: Any) -> tuple[str, list[Any]]:
        """The text of a paragraph, and the text boxes that hang on it."""
        words: list[str] = []
        boxes: list[Any] = []
        stack = [node]
        while stack:
            item = stack.pop()
            name = _name(item)
            if name in ("oMath", "oMathPara"):
                formula = office_math(item)
                if formula:
                    words.append(f"$$\n{formula}\n$$" if name == "oMathPara" else f"${formula}$")
            elif name == "r":
                self._run(item, words, boxes)
            elif name not in _SKIPPED:
                stack += reversed(item)
        return "".join(words), boxes

    def _run(self, run: Any, words: list[str], boxes: list[Any]) -> None:
        properties = run.find(f"{_W}rPr")
        gone = any(_on(properties, switch) for switch in ("strike", "dstrike", "vanish"))
        said: list[str] = []
        for item in run:
            name = _name(item)
            if name == "lastRenderedPageBreak":
                self.page, self.paged = self.page + 1, True
            elif name == "fldChar":
                self._field(item.get(f"{_W}fldCharType") or "")
            elif name == "instrText" and self.fields and not self.fields[-1][1]:
                self.fields[-1][0] += item.text or ""
            elif name in ("AlternateContent", "drawing", "pict"):
                box = next((box for box in item.iter(f"{_W}txbxContent")), None)
                if box is not None:  # the first of several copies for several versions of Word
                    boxes.append(box)
            elif gone or any(not field[1] for field in self.fields):
                continue
            elif name == "t":
                self.began = self.began or self.page
                said.append(item.text or "")
            elif name in ("tab", "ptab"):
                said.append(" ")
            elif name in ("br", "cr"):
                said.append("" if item.get(f"{_W}type") in ("page", "column") else "\n")
            elif name == "noBreakHyphen":
                said.append("-")
            elif name == "sym":
                said.append(self.styles.symbol(item.get(f"{_W}font") or "", item.get(f"{_W}char") or ""))
        text = "".join(said)
        place = properties.find(f"{_W}vertAlign") if properties is not None else None
        where = place.get(f"{_W}val") if place is not None else None
        if where in ("superscript", "subscript") and text.strip():
            text = raised("sup" if where == "superscript" else "sub", text.strip())
        words.append(text)

    def _field(self, kind: str) -> None:
        if kind == "begin":
            self.fields.append(["", ""])
        elif kind == "separate" and self.fields:
            self.fields[-1][1] = "result"
        elif kind == "end" and self.fields:
            self.fields.pop()

    # ── tables ──
    def _table(self, table: Any, depth: int) -> str:
        """Rows as `a | b | c`; a short label over several rows is said in each, one column comes as text."""
        rows: list[list[str]] = []
        labels: dict[int, str] = {}
        for row in self._inside(table, "tr"):
            cells: list[str] = []
            for cell in self._inside(row, "tc"):
                properties = cell.find(f"{_W}tcPr")
                span = properties.find(f"{_W}gridSpan") if properties is not None else None
                merge = properties.find(f"{_W}vMerge") if properties is not None else None
                text = self._cell(cell, depth)
                if merge is not None and merge.get(f"{_W}val") != "restart":
                    text = labels.get(len(cells), "")
                elif merge is not None:
                    labels[len(cells)] = text if len(text) <= 30 else ""
                wide = span.get(f"{_W}val") or "1" if span is not None else "1"
                cells += [text, *[""] * (min(int(wide), 60) - 1 if wide.isdecimal() else 0)]
            rows.append(cells)
        filled = [row for row in rows if any(row)]
        if all(sum(map(bool, row)) == 1 for row in filled):
            return "\n".join(cell for row in filled for cell in row if cell)
        return format_rows(filled)

    def _inside(self, node: Any, wanted: str) -> Iterator[Any]:
        for child in node:
            if _name(child) == wanted:
                yield child
            elif _name(child) in ("sdt", "sdtContent", "ins", "customXml"):
                yield from self._inside(child, wanted)

    def _cell(self, cell: Any, depth: int) -> str:
        lines = []
        for node in self._children(cell, 0):
            if _name(node) == "p":
                number, _ = self.numbers.next(self.styles.numbering(node.find(f"{_W}pPr")))
                text, _ = self._content(node)
                mark = number if number and not _BULLETS.fullmatch(number) else ""
                lines.append(normalise(f"{mark} {text}" if mark else text))
            elif depth < _MAX_DEPTH:
                lines += self._table(node, depth + 1).split("\n")
        return join_cell("\n".join(lines))
