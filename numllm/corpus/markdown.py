"""Markdown, with MyST and the dialects of real shelves, as blocks: line by line, standard library only."""

from __future__ import annotations

import re

from .blocks import Block
from .inline import inline
from .lines import (
    DIRECTIVE,
    FENCE,
    LABELLED,
    NAMED,
    TARGET,
    TOC_LEADER,
    counted,
    depths,
    directive_kind,
    front_matter,
    is_code_fence,
    is_readable_code,
    join_lines,
    labels,
    split_row,
    without_options,
    without_spans,
)
from .markup import format_rows, join_cell, read_tables

_HEADING = re.compile(r"^ {0,3}(#{1,6})(?:[ \t]+|(?=[^\s#!\d\x00-\x7f]))(.*?)(?:[ \t]#+)?[ \t]*$")
_HTML_HEADING = re.compile(r"^\s*<h([1-6])\b[^<>]*>(.*)</h\1\s*>\s*$", re.IGNORECASE)
_RULE = re.compile(r"^\s{0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$")
_SETEXT = re.compile(r"^ {0,3}(=+|-+)[ \t]*$")
_ITEM = re.compile(r"^([ \t]*)([-*+•]|\d{1,3}[.)])[ \t]+(?=\S)(.*)$")
_MARK_ALONE = re.compile(r"(?:(?:-|\d+[.)])\s*)?")
_BOX = re.compile(r"\[[ xX]\]\s+")
_DELIMITER = frozenset("|:- \t")
_MARKS = ("|", "<", "](", "$$", "***")
"""What no line of prose holds. Most files lack most of them: one look at the file spares a look at each line."""
_LONG_LINE = 5000
"""Longer lines are prose: formulas in them are found by `inline`, none is taken out as a block."""
_MAX_DEPTH = 12
"""Directives nested deeper than this are read as plain text."""
_QUOTE = re.compile(r"^\s*(?:>[ \t]?)+(?:\[![A-Z]+\][ \t]*(?:>[ \t]?)*)?")
_MARKER = re.compile(r"^\s*\[!(?:[A-Z]+\]\s*$|[A-Za-z-]+\s*[\[(\w/].*$)")
_EMPTY_LINE = re.compile(
    r"\s*(?:- |\d{1,3}[.)] )?(?:https?|ftp)://\S+\Z"  # an address and nothing else
    r"|(?:\s*[^\s:：*_]{1,6}[:：]\s*(?:\*{3,}|×{3,}|_{3,})){2,}\s*\Z"  # names and numbers made unreadable
)
_REFERENCE = re.compile(r"^\s{0,3}\[(?!\^)[^\[\]]+\]:\s*\S+(?:\s+[\"'(].*)?$")
_NOTE_TEXT = re.compile(r"^\s{0,3}\[\^[^\[\]\s]+\]:\s*")
_BLOCK_BREAK = re.compile(r"\+\+\+(?:\s+\{.*\})?\s*$")
"""MyST: where a cell of a notebook begins, and what is known of it."""
_TOC_MARK = re.compile(r"^\s*(?:\[\[?_?toc_?\]?\]|\{:toc\}|@\[toc\].*)\s*$", re.IGNORECASE)
_TOC_ITEM = re.compile(
    r"^\s*(?:(?:[-*+]|\d+[.)])\s+)?\[.*\]\(\s*<?(?:#[^)]*|(?!\w+:)[^)]*\.(?:md|html?)(?:#[^)]*)?)>?\s*\)\s*$"
)
_BEGIN = re.compile(r"^\s*\\begin\{([a-z]+\*?)\}")

_DROPPED = re.compile(
    r"(?:code|raw|index|contents|figure|image|include|bibliography|toctree|tableofcontents|glue|nb-|literalinclude"
    r"|mermaid|plot|download|only|jupyter|sourcecode|parsed-literal|video|iframe|button|grid)"
)


def read_markdown(text: str) -> list[Block]:
    """The blocks of a Markdown or MyST text.

    Front matter, code, comments, images, link targets, emphasis marks, struck-out text, raw directives and
    tables of contents go. Headings, paragraphs, lists, tables (rows as `a | b | c`), quotations, the
    bodies of notes, exercises and theorems, and LaTeX stay. A front-matter title is the first heading
    where the text has no heading of its own level.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines, title = front_matter(text.split("\n"))
    names = labels(lines) if any(mark[0] in text and mark in text for mark in LABELLED) else {}
    marks = tuple(mark for mark in _MARKS if mark[0] in text)
    reader = _Reader(without_spans(lines) if "<" in text else lines, names, marks)
    reader.run()
    blocks = reader.blocks
    title = inline(title)
    if title and not any(block.kind == "heading" and block.level == 1 for block in blocks):
        blocks.insert(0, Block("heading", title, 1))
    return blocks


class _Reader:
    """One pass over the lines; `blocks` grows."""

    def __init__(self, lines: list[str], names: dict[str, str], marks: tuple[str, ...], depth: int = 0) -> None:
        self.lines = lines
        self.names = names
        self.marks = marks
        """Those of _MARKS that the file holds."""
        self.depth = depth
        self.at = 0
        self.blocks: list[Block] = []
        self.paragraph: list[str] = []
        self.items: list[tuple[int, str]] = []
        """Indent in columns and source of each item of the list being read."""

    # ── collecting ──
    def flush(self) -> None:
        if self.paragraph:
            text = self.inline(join_lines(self.paragraph))
            self.paragraph = []
            self.add("text", text)
        if self.items:
            lines = []
            places = depths([indent for indent, _ in self.items])
            for depth, item in zip(places, counted([item for _, item in self.items], places), strict=True):
                text = self.inline(item)
                if not _MARK_ALONE.fullmatch(text):
                    lines += ["  " * depth + line for line in text.split("\n")]
            self.items = []
            self.add("list", "\n".join(lines))

    def inline(self, text: str) -> str:
        return inline(text, self.names)

    def add(self, kind: str, text: str, level: int = 0) -> None:
        if "//" in text or "***" in text or "×××" in text or "___" in text:
            text = "\n".join(line for line in text.split("\n") if not _EMPTY_LINE.match(line))
        if "\n" in text:
            text = "\n".join(line for line in text.split("\n") if line.strip())
        if text.strip():
            self.blocks.append(Block(kind, text, level))  # type: ignore[arg-type]

    def heading(self, level: int, text: str) -> None:
        self.flush()
        text = " ".join(self.inline(text).split("\n"))
        if text:
            self.add("heading", text, level)

    # ── reading ──
    def run(self) -> None:
        lines = self.lines
        while self.at < len(lines):
            line = lines[self.at]
            start = line.lstrip()
            if not start:
                self.at += 1
                if self.items or self.paragraph:
                    self.blank()
            elif self.is_prose(line, start):
                self.prose(line)
            else:
                self.step(line, start)
        self.flush()

    def prose(self, line: str) -> None:
        """Takes in a line of prose; an empty line behind it, as after most, ends the paragraph."""
        self.at += 1
        if self.items:
            self.flush()
        self.paragraph.append(line)
        if self.at < len(self.lines) and not self.lines[self.at].strip():
            self.at += 1
            self.flush()

    def step(self, line: str, start: str) -> None:
        """Reads on from a line that is not plainly prose; start: the line from its first character on."""
        if start[0] in "`~:>" and (found := FENCE.match(line)) and is_code_fence(found):
            self.fence(found[1], found[2].strip())
            return
        if start[0] == ">":
            line = _QUOTE.sub("", line)
            self.lines[self.at] = line
            start = line.lstrip()
            if not start:
                return
        head = start[:2] if len(line) <= _LONG_LINE else ""
        if "$$" in line and head not in ("", "$$") and line.count("$$") % 2 and self.opens_formula(line):
            return
        if "<" in line and start[0] != "|" and "<table" in line.lower():
            self.html_table()
        elif head in ("$$", "\\[") or (head == "\\b" and _BEGIN.match(line)):
            self.math()
        elif "|" in line and self.is_table():
            self.table()
        elif "](" in line and self.is_contents(line) and self.contents():
            pass
        else:
            self.at += 1
            self.plain_line(line)

    def is_prose(self, line: str, start: str) -> bool:
        """Whether a line is prose for certain: what most lines are, and then need no pattern."""
        head = start[0]
        if head <= "~" or head == "•" or head.isdigit() or (self.items and line[0] in " \t"):
            return False
        for mark in self.marks:
            if mark in line:
                return False
        return not start.rstrip()[-1].isdigit()

    def blank(self) -> None:
        """An empty line ends a paragraph; it ends a list only when what follows is neither item nor indented."""
        if self.items:
            following = next((line for line in self.lines[self.at : self.at + 3] if line.strip()), "")
            if _ITEM.match(following) or (following[:2] in ("  ", "\t") and not self._special(following)):
                return
        self.flush()

    def _special(self, line: str) -> bool:
        return bool(FENCE.match(line) or line.lstrip().startswith(("|", "$$", "<table", "\\begin")))

    def plain_line(self, line: str) -> None:
        head = line.lstrip()[:1]  # spares most lines most patterns
        if self.is_noise(line, head):
            self.flush()
        elif head == "#" and (found := _HEADING.match(line)):
            self.heading(len(found[1]), found[2])
        elif head == "<" and (found := _HTML_HEADING.match(line)):
            self.heading(int(found[1]), found[2])
        elif head in "=-" and (found := _SETEXT.match(line)) and (self.paragraph or not self.items):
            self.underline(found[1])
        elif head in "-*_" and _RULE.match(line):
            self.flush()
        elif (head in "-*+•" or head.isdigit()) and (found := _ITEM.match(line)):
            self.item(found)
        elif self.items and line[:1] in " \t":
            indent, text = self.items[-1]
            self.items[-1] = (indent, join_lines([text, line.strip()]))
        else:
            if self.items:
                self.flush()
            self.paragraph.append(_NOTE_TEXT.sub("", line) if head == "[" else line)

    def is_noise(self, line: str, head: str) -> bool:
        """Whether a line says nothing to a reader: markers, link targets, contents lines, masked fields."""
        if head == "[" and (_MARKER.match(line) or _REFERENCE.match(line)):
            return True
        if head == "(" and TARGET.match(line):
            return True
        if head in "[{@" and _TOC_MARK.match(line):
            return True
        if line.rstrip()[-1:].isdigit() and TOC_LEADER.match(line):
            return True
        if "***" in line and _EMPTY_LINE.match(line):
            return True
        return line.startswith("% ") or (head == "+" and _BLOCK_BREAK.match(line) is not None)

    def underline(self, mark: str) -> None:
        """A row of = or - below a short line makes that line a heading; elsewhere it is a rule."""
        above = self.paragraph[-1].strip() if self.paragraph else ""
        if len(self.paragraph) == 1 and 0 < len(above) <= 80 and above[-1] not in "。；，,;":
            self.paragraph = []
            self.heading(1 if mark[0] == "=" else 2, above)
        else:
            self.flush()

    def item(self, found: re.Match[str]) -> None:
        if self.paragraph:
            self.flush()
        mark = "-" if found[2] in "-*+•" else found[2]
        box = _BOX.match(found[3])
        content = found[3][box.end() :] if box else found[3]
        self.items.append((len(found[1].expandtabs(4)), f"{mark} {content}"))

    # ── fences ──
    def fence(self, mark: str, info: str) -> None:
        directive = DIRECTIVE.match(info)
        container = mark[0] == ":" and not directive  # `::: tip` or its end
        if container or self.depth >= _MAX_DEPTH:  # the marks go, the content stays
            self.flush()
            self.at += 1
            return
        body = self._fenced(mark)
        if directive is None:
            self.code(info, body)
            return
        name, argument = directive[1].lower(), directive[2].strip()
        if _DROPPED.match(name):
            self.flush()
            return
        kind = directive_kind(name)
        body, label = without_options(body)
        self.flush()
        if kind == "math":
            self.formula("\n".join(body), label)
            return
        if name.endswith("-end"):
            return
        if kind == "solution" or re.fullmatch(r"\{[^{}]*\}", argument):
            argument = ""  # the label of the exercise that is solved
        called = self.names.get(label) or NAMED.get(kind, "")
        if called or argument:
            self.add(
                "text", self.inline(f"{called}（{argument}）" if called and argument else called or argument)
            )
        inner = _Reader(body, self.names, self.marks, self.depth + 1)
        inner.run()
        # A title inside a note is no section of the chapter.
        self.blocks += [Block("text", b.text) if b.kind == "heading" else b for b in inner.blocks]

    def _fenced(self, mark: str) -> list[str]:
        """The lines up to the fence that closes `mark`; reading goes on behind it."""
        body: list[str] = []
        depth = 1
        self.at += 1
        while self.at < len(self.lines):
            line = self.lines[self.at]
            self.at += 1
            if (found := FENCE.match(line)) and found[1][0] == mark[0] and len(found[1]) >= len(mark):
                if not found[2].strip():
                    depth -= 1
                    if depth == 0:
                        return body
                elif mark[0] == ":":  # colon fences of one length nest
                    depth += 1
            body.append(line)
        return body

    def code(self, info: str, body: list[str]) -> None:
        """Code goes; a block without a language that is Chinese prose or journal entries is kept as text."""
        text = "\n".join(line.strip() for line in body if line.strip())
        written = info.split(" ")[0].lower() in ("", "text", "txt", "markdown", "md")
        self.flush()
        if written and is_readable_code(text):
            self.add("text", self.inline(text))

    # ── formulas, tables, contents ──
    def formula(self, body: str, label: str = "") -> None:
        body = "\n".join(line.strip() for line in body.split("\n") if line.strip())
        if body:
            tag = f" \\tag{{{self.names[label].strip('()')}}}" if label in self.names else ""
            self.add("math", f"$$\n{body}{tag}\n$$")

    def opens_formula(self, line: str) -> bool:
        """Cuts `text: $$` in two where the formula is closed further down; False where it is not."""
        if not any("$$" in later for later in self.lines[self.at + 1 : self.at + 50]):
            return False
        head, rest = line.rsplit("$$", 1)
        self.plain_line(head)
        self.lines[self.at] = "$$" + rest
        return True

    def math(self) -> None:
        line = self.lines[self.at].strip()
        if found := _BEGIN.match(line):
            opening, close = "", rf"\end{{{found[1]}}}"
        else:
            opening, close = (line[:2], "$$" if line.startswith("$$") else "\\]")
        collected: list[str] = []
        for k in range(self.at, min(self.at + 200, len(self.lines))):
            part = self.lines[k].strip()
            if not part and k > self.at and opening == "\\[":
                break
            start = len(opening) if k == self.at else 0
            end = part.find(close, start)
            if end >= 0:
                tail = part[end + len(close) :].strip()
                if opening == "\\[" and not re.search(r"[\\_^=]", part[start:end] + "".join(collected)):
                    break
                collected.append(part[start : end if opening else end + len(close)])
                self.flush()
                named = re.match(r"\(([\w:.-]+)\)\s*", tail)  # MyST label of the formula
                self.formula("\n".join(collected), named[1] if named else "")
                self.at = k + 1
                tail = tail[named.end() :] if named else tail
                if tail:
                    self.lines[k] = tail
                    self.at = k
                return
            collected.append(part[start:])
        self.at += 1  # never closed: ordinary text
        self.plain_line(self.lines[self.at - 1])

    def is_table(self) -> bool:
        line = self.lines[self.at]
        if self.at + 1 >= len(self.lines):
            return False
        following = self.lines[self.at + 1]
        if "-" not in following or not ("|" in following or line.strip().startswith("|")):
            return False
        return _DELIMITER.issuperset(_QUOTE.sub("", following).strip())

    def table(self) -> None:
        self.flush()
        rows = []
        first = self.at
        while self.at < len(self.lines) and "|" in self.lines[self.at]:
            line = _QUOTE.sub("", self.lines[self.at])
            if self.at != first + 1:
                rows.append([join_cell(self.inline(cell)) for cell in split_row(line)])
            self.at += 1
        self.add("table", format_rows(rows))

    def html_table(self) -> None:
        self.flush()
        collected, depth = [], 0
        while self.at < len(self.lines):
            line = self.lines[self.at]
            low = line.lower()
            depth += low.count("<table") - low.count("</table")
            collected.append(line)
            self.at += 1
            if depth <= 0 or (len(collected) > 1 and not line.strip() and not _closes(self.lines, self.at)):
                break
        for is_table, text in read_tables("\n".join(collected)):
            self.add("table" if is_table else "text", text)

    def is_contents(self, line: str) -> bool:
        return len(line) <= 600 and bool(_TOC_ITEM.match(line))

    def contents(self) -> bool:
        """Skips a run of two or more lines that are nothing but links into this book; False when there is none."""
        end = self.at
        count = last = 0
        while end < len(self.lines) and (not self.lines[end].strip() or self.is_contents(self.lines[end])):
            if self.lines[end].strip():
                count, last = count + 1, end
            end += 1
        if count < 2:
            return False
        self.flush()
        above = self.blocks[-1] if self.blocks else None
        if above and above.kind == "text" and len(above.text) <= 60 and above.text.endswith(("：", ":")):
            self.blocks.pop()  # it announced the links
        self.at = last + 1
        return True


def _closes(lines: list[str], at: int) -> bool:
    """Whether an open table is closed further down, within reach."""
    return any("</table" in line.lower() for line in lines[at : at + 200])
