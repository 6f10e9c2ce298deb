"""Lines of Markdown before they are blocks: front matter, spans that go as a whole, MyST labels, joining."""

from __future__ import annotations

import re

from .clean import han_count
from .markup import TAG

FENCE = re.compile(r"^[ \t]*(?:>[ \t]?)*(`{3,}|~{3,}|:{3,})[ \t]*(.*)$")
DIRECTIVE = re.compile(r"\{([A-Za-z][\w:.-]*)\}[ \t]*(.*)$")
TARGET = re.compile(r"^\s*\(([\w:.\-]+)\)=\s*$")

TOC_LEADER = re.compile(r"^.{1,80}?(?:\.{5,}|…{2,}|·{5,}|(?:\. ){4,})\s*\d{1,4}\s*$")
"""A line of a table of contents: a title, dots, a page number."""

NAMED = {
    "definition": "定义", "theorem": "定理", "proposition": "命题", "lemma": "引理", "corollary": "推论",
    "assumption": "假设", "axiom": "公理", "proof": "证明", "example": "例", "remark": "注", "algorithm": "算法",
    "exercise": "练习", "solution": "解答",
}  # fmt: skip
"""MyST directive → what print calls it."""

_SPANS = (("<!--", "-->"), ("<style", "</style>"), ("<script", "</script>"))
_OPTION_LINE = re.compile(r"^\s*:[\w-]+:")
_TERMINAL = "。！？；：.!?;:…"
_SPAN_START = re.compile("|".join(opening for opening, _ in _SPANS))
_SPAN_ENDS = dict(_SPANS)
_NUMBERED = re.compile(r"(\d{1,3})[.)] ")
_LABEL = re.compile(r"^\s*:label:\s*(\S+)\s*$")
LABELLED = ("$$", ")=", ":label:")
"""One of them stands in a text that has labels."""
_EQUATION_LABEL = re.compile(r"\$\$[ \t]*\(([\w:.\-]+)\)\s*$")


def is_code_fence(found: re.Match[str]) -> bool:
    """Whether a match of FENCE opens or closes a fence; ``` code ``` on one line does not."""
    return not (found[1][0] == "`" and "`" in found[2])


def is_readable_code(text: str) -> bool:
    """Whether text set as code is Chinese prose or journal entries, and no program."""
    solid = "".join(text.split())
    program = any(mark in solid for mark in ("=>", "->", "();", "print(", "├", "│"))
    return not program and bool(solid) and han_count(solid) >= 0.3 * len(solid)


def front_matter(lines: list[str]) -> tuple[list[str], str]:
    """The lines below a YAML header, and the header's title ("" when there is none)."""
    start = next((k for k, line in enumerate(lines) if line.strip()), len(lines))
    if start == len(lines) or lines[start].rstrip() != "---":
        return lines, ""
    title = ""
    for k in range(start + 1, len(lines)):
        line = lines[k]
        if line.rstrip() in ("---", "..."):
            return lines[k + 1 :], title
        if line.startswith("title:"):
            title = line[6:].strip().strip("'\"")
        if k == start + 1 and line.strip() and ":" not in line and not line.startswith("#"):
            break  # a rule at the top of ordinary text
    return lines, ""


def without_spans(lines: list[str]) -> list[str]:
    """Lines without HTML comments, styles and scripts, which may span lines; fenced code is passed over.

    A comment that is never closed loses its mark only: the text behind it is kept.
    """
    last = {close: -1 for _, close in _SPANS}
    for k, line in enumerate(lines):
        if "<" in line or "-->" in line:
            low = line.lower()
            for _, close in _SPANS:
                if close in low:
                    last[close] = k
    if max(last.values()) < 0 and not any("<!--" in line for line in lines):
        return lines
    kept: list[str] = []
    fence, until = "", ""
    for k, line in enumerate(lines):
        rest = line
        if until:
            end = rest.lower().find(until)
            if end < 0:
                continue
            rest, until = rest[end + len(until) :], ""
        elif (found := FENCE.match(rest)) and is_code_fence(found):
            mark = found[1]
            if not fence and mark[0] != ":":
                fence = mark
            elif fence and mark[0] == fence[0] and len(mark) >= len(fence) and not found[2]:
                fence = ""
        if not fence and "<" in rest:
            rest, until = _cut_spans(rest, k, last)
        kept.append(rest)
    return kept


def _cut_spans(line: str, number: int, last: dict[str, int]) -> tuple[str, str]:
    """The line without whole spans, and the mark that closes a span left open ("" when none is)."""
    done: list[str] = []
    low = line.lower()
    final = {close: low.rfind(close) for _, close in _SPANS}
    at = 0
    while found := _SPAN_START.search(low, at):
        done.append(line[at : found.start()])
        close = _SPAN_ENDS[found[0]]
        if final[close] >= found.end():
            at = low.find(close, found.end()) + len(close)
        elif last[close] > number:
            return "".join(done), close
        else:
            at = found.end()
    return "".join([*done, line[at:]]), ""


def labels(lines: list[str]) -> dict[str, str]:
    """MyST labels → what print calls their targets: formulas (1), 定理1, and sections by their titles.

    Formulas, theorems and exercises are counted in order, each kind by itself, as the built book does.
    """
    found: dict[str, str] = {}
    if not any(":label:" in line or ")=" in line or ("$$" in line and _EQUATION_LABEL.search(line)) for line in lines):
        return found
    counts: dict[str, int] = {}
    kind, target = "", ""
    for line in lines:
        if target and line.strip():
            if line.startswith("#"):
                found[target] = f"“{line.strip('# ')}”"
            target = ""
        if "{" in line and (fence := FENCE.match(line)) and (directive := DIRECTIVE.match(fence[2].strip())):
            kind = directive_kind(directive[1])
        elif ":label:" in line and (label := _LABEL.match(line)):
            number = counts[kind] = counts.get(kind, 0) + 1
            found[label[1]] = f"({number})" if kind == "math" else f"{NAMED.get(kind, '')}{number}"
        elif "$$" in line and (label := _EQUATION_LABEL.search(line)):
            number = counts["math"] = counts.get("math", 0) + 1
            found[label[1]] = f"({number})"
        elif ")=" in line and (section := TARGET.match(line)):
            target = section[1]
    return found


def directive_kind(name: str) -> str:
    """prf:theorem → theorem, exercise-start → exercise."""
    return name.lower().split(":")[-1].removesuffix("-start")


def without_options(body: list[str]) -> tuple[list[str], str]:
    """The body of a directive without its options (`:name: value` or a `---` block), and its label."""
    k = 0
    while k < len(body) and not body[k].strip():
        k += 1
    start = k
    if k < len(body) and body[k].strip() == "---":
        k = next((j for j in range(k + 1, len(body)) if body[j].strip() == "---"), k) + 1
    while k < len(body) and _OPTION_LINE.match(body[k]):
        k += 1
    label = next((line.split(":", 2)[-1].strip() for line in body[start:k] if ":label:" in line), "")
    return body[k:], label


def depths(indents: list[int]) -> list[int]:
    """Nesting depth of list items from their indents; an item is below another when it is set further in."""
    stack: list[int] = []
    depths = []
    for indent in indents:
        while stack and indent < stack[-1]:
            stack.pop()
        if not stack or indent > stack[-1] + 1:
            stack.append(indent)
        depths.append(min(len(stack) - 1, 5))
    return depths


def counted(items: list[str], places: list[int]) -> list[str]:
    """List items with their numbers counted on where the author wrote the same one again: 1. 1. 1. is 1. 2. 3.

    places: the depth of each item.
    """
    shown: list[str] = []
    last: dict[int, tuple[int, int]] = {}  # depth → the number of its last item as written, and as shown
    for item, place in zip(items, places, strict=True):
        if last:
            last = {depth: numbers for depth, numbers in last.items() if depth <= place}
        if found := _NUMBERED.match(item):
            number = int(found[1])
            written, counter = last.get(place, (-1, 0))
            counter = counter + 1 if number == written else number
            last[place] = number, counter
            item = f"{counter}{item[found.end(1) :]}"
        else:
            last.pop(place, None)
        shown.append(item)
    return shown


def split_row(line: str) -> list[str]:
    """The cells of a pipe-table row; a | that is escaped or stands in code or a formula does not divide."""
    line = line.strip()
    line = line.removeprefix("|")
    if line.endswith("|") and not line.endswith("\\|"):
        line = line[:-1]
    if "`" not in line and "$" not in line and "\\" not in line:
        return [cell.strip() for cell in line.split("|")]
    cells, cell, quoted = [], "", ""
    for k, c in enumerate(line):
        if c in "`$" and line[k - 1 : k] != "\\":
            if quoted == c:
                quoted = ""
            elif not quoted and line.find(c, k + 1) > 0:
                quoted = c
        if c == "|" and not quoted and not cell.endswith("\\"):
            cells.append(cell)
            cell = ""
        else:
            cell += c
    return [c.strip().replace("\\|", "|") for c in [*cells, cell]]


def join_lines(lines: list[str]) -> str:
    """The source lines of one paragraph as text.

    A line end stays where the author ended a sentence, broke the line by hand (two spaces, a backslash)
    or wrote a short line; text wrapped at a column is joined, without a space between Chinese characters.
    """
    joined = ""
    if len(lines) == 1 and not (text := lines[0].strip()).endswith("\\"):
        return text
    for line in lines:
        text = line.strip()
        hard = line.rstrip("\n").endswith("  ") or text.endswith("\\")
        text = text.removesuffix("\\").rstrip() if text.endswith("\\") and not text.endswith("\\\\") else text
        if not joined or joined.endswith("\n"):
            joined += text
        else:
            last = joined.rsplit("\n", 1)[-1]
            if last[-1:] in _TERMINAL or last.endswith("$") or TAG.search(last[-12:]) or len(last) < 20:
                joined += "\n" + text
            elif last[-1:].isascii() and text[:1].isascii():
                joined += " " + text
            elif last[-1:].isascii() or text[:1].isascii():
                joined += text if last[-1:].isdigit() or text[:1].isdigit() else " " + text
            else:
                joined += text
        if hard:
            joined += "\n"
    return joined.strip("\n")
