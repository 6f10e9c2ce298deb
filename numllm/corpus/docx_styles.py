"""What a Word file keeps outside its text: outline levels of styles, and the automatic numbers of paragraphs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_HEADING = re.compile(r"(?:heading|标题)\s*([1-9])", re.IGNORECASE)
_CONTENTS = re.compile(r"(?:toc|目录|table of figures|目錄)\s*\d*", re.IGNORECASE)
_DIGITS = "零一二三四五六七八九"
_CIRCLED = "①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮⑯⑰⑱⑲⑳"
_STEMS, _BRANCHES = "甲乙丙丁戊己庚辛壬癸", "子丑寅卯辰巳午未申酉戌亥"
_MAX_CHAIN = 30


class Style(NamedTuple):
    """What a paragraph's style says: depth of a heading or 0, and whether it belongs to a table of contents."""

    level: int
    contents: bool


def _value(node: Any, path: str) -> str | None:
    found = node.find(path) if node is not None else None
    return found.get(f"{_W}val") if found is not None else None


class Styles:
    """The styles of a file (the root of styles.xml, or None)."""

    def __init__(self, root: Any) -> None:
        self.nodes = {} if root is None else {node.get(f"{_W}styleId"): node for node in root.iter(f"{_W}style")}
        self.default = next(
            (
                key
                for key, node in self.nodes.items()
                if node.get(f"{_W}default") in ("1", "true") and node.get(f"{_W}type") == "paragraph"
            ),
            None,
        )

    def _chain(self, properties: Any) -> Iterator[Any]:
        """The properties of a paragraph, then its style, then the styles that one is based on."""
        if properties is not None:
            yield properties
        key = _value(properties, f"{_W}pStyle") or self.default
        for _ in range(_MAX_CHAIN):
            if (node := self.nodes.get(key)) is None:
                return
            yield node
            key = _value(node, f"{_W}basedOn")

    def of(self, properties: Any) -> Style:
        for node in self._chain(properties):
            inner = node.find(f"{_W}pPr") if node.tag == f"{_W}style" else node
            level = _value(inner, f"{_W}outlineLvl")
            if level is not None and level.isdecimal():
                return Style(int(level) + 1 if int(level) < 9 else 0, False)
            name = _value(node, f"{_W}name") or ""
            if found := _HEADING.fullmatch(name):
                return Style(int(found[1]), False)
            if name.lower() == "title":
                return Style(1, False)
            if _CONTENTS.fullmatch(name):
                return Style(0, True)
        return Style(0, False)

    def numbering(self, properties: Any) -> tuple[str, int] | None:
        """(list, level) of a numbered paragraph; None for others."""
        level = None
        for node in self._chain(properties):
            inner = node.find(f"{_W}pPr") if node.tag == f"{_W}style" else node
            found = inner.find(f"{_W}numPr") if inner is not None else None
            if found is None:
                continue
            level = level or _value(found, f"{_W}ilvl")
            if number := _value(found, f"{_W}numId"):
                return None if number == "0" else (number, int(level) if level and level.isdecimal() else 0)
        return None

    @staticmethod
    def symbol(font: str, code: str) -> str:
        """A character given by its place in a symbol font; Wingdings' marks are shapes and say nothing."""
        if not re.fullmatch(r"[0-9A-Fa-f]{4}", code):
            return ""
        place = int(code, 16)
        if place >= 0xF000:
            return "" if "wingdings" in font.lower() or "webdings" in font.lower() else _SYMBOL.get(place - 0xF000, "")
        return chr(place) if not 0xD800 <= place < 0xE000 else ""


_SYMBOL = dict(
    zip(
        (*range(0x61, 0x7B), 0xA3, 0xB3, 0xB4, 0xB1, 0xB9, 0xBB, 0xE5, 0xD7, 0x44, 0x53, 0x57),
        "αβχδεφγηιϕκλμνοπθρστυϖωξψζ≤≥×±≠≈∑⋅ΔΣΩ",
        strict=True,
    )
)
"""Places of the font Symbol."""


class Numbers:
    """The automatic numbers of a file (the root of numbering.xml, or None), counted as its paragraphs come."""

    def __init__(self, root: Any) -> None:
        self.levels: dict[tuple[str, int], tuple[str, str, int]] = {}
        """(abstract list, level) → (format, text with %1 %2 …, first number)."""
        self.legal: set[tuple[str, int]] = set()
        """Levels that write the numbers of upper levels as digits."""
        self.lists: dict[str, str] = {}
        self.counts: dict[str, list[int]] = {}
        self.starts: dict[tuple[str, int], int] = {}
        self.begun: set[str] = set()
        for node in () if root is None else root:
            if node.tag == f"{_W}abstractNum":
                self._abstract(node.get(f"{_W}abstractNumId") or "", node)
            elif node.tag == f"{_W}num":
                number = node.get(f"{_W}numId") or ""
                self.lists[number] = _value(node, f"{_W}abstractNumId") or ""
                for change in node.iter(f"{_W}lvlOverride"):
                    start, level = _value(change, f"{_W}startOverride"), change.get(f"{_W}ilvl") or "0"
                    if start and start.isdecimal() and level.isdecimal():
                        self.starts[number, int(level)] = int(start)

    def _abstract(self, key: str, node: Any) -> None:
        for level in node.iter(f"{_W}lvl"):
            place = level.get(f"{_W}ilvl") or "0"
            start = _value(level, f"{_W}start") or "1"
            if place.isdecimal() and int(place) < 9:
                if level.find(f"{_W}isLgl") is not None:
                    self.legal.add((key, int(place)))
                self.levels[key, int(place)] = (
                    _value(level, f"{_W}numFmt") or "decimal",
                    _value(level, f"{_W}lvlText") or "",
                    int(start) if start.isdecimal() else 1,
                )

    def next(self, place: tuple[str, int] | None) -> tuple[str | None, int]:
        """(what stands before the next paragraph of a list, its depth); (None, 0) where no list is."""
        if place is None:
            return None, 0
        number, level = place
        abstract = self.lists.get(number)
        if abstract is None or (abstract, level) not in self.levels:
            return None, 0
        style, text, first = self.levels[abstract, level]
        if style in ("bullet", "none"):
            return ("•" if style == "bullet" else None), level
        counts = self.counts.setdefault(abstract, [])
        if number not in self.begun:  # a list of its own that shares its form with another one
            self.begun.add(number)
            for (owner, at), start in self.starts.items():
                if owner == number and at < len(counts):
                    counts[at] = start - 1
                    del counts[at + 1 :]
        while len(counts) <= level:
            begin = self.levels.get((abstract, len(counts)), ("", "", 1))[2]
            begin = self.starts.get((number, len(counts)), begin)
            counts.append(begin - 1 if len(counts) == level else begin)
        counts[level] += 1
        del counts[level + 1 :]

        def fill(found: re.Match[str]) -> str:
            at = int(found[1]) - 1
            if at >= len(counts):
                return ""
            form = "decimal" if (abstract, level) in self.legal else self.levels.get((abstract, at), ("",))[0]
            return written(counts[at], form)

        return re.sub(r"%([1-9])", fill, text).strip() or None, level


def written(number: int, style: str) -> str:
    """A number in one of Word's number formats; formats not known come as digits."""
    low = style.lower()
    if low.startswith(("chinesecounting", "ideographdigital", "japanesecounting", "taiwanesecounting")):
        return chinese(number)
    if low == "chineselegalsimplified":
        return chinese(number).translate(str.maketrans("一二三四五六七八九十百千", "壹贰叁肆伍陆柒捌玖拾佰仟"))
    if low.startswith("decimalenclosedcircle") and 1 <= number <= len(_CIRCLED):
        return _CIRCLED[number - 1]
    if low in ("upperletter", "lowerletter") and number >= 1:
        letter = chr(ord("A") + (number - 1) % 26) * ((number - 1) // 26 + 1)
        return letter if low == "upperletter" else letter.lower()
    if low in ("upperroman", "lowerroman") and 1 <= number < 4000:
        return roman(number) if low == "upperroman" else roman(number).lower()
    if low == "ideographtraditional" and number >= 1:
        return _STEMS[(number - 1) % 10]
    if low == "ideographzodiac" and number >= 1:
        return _BRANCHES[(number - 1) % 12]
    return str(number)


def chinese(number: int) -> str:
    """1 → 一, 10 → 十, 21 → 二十一, 105 → 一百零五; digits from 10,000 on."""
    if not 0 <= number < 10_000:
        return str(number)
    if number == 0:
        return "〇"
    text, zero = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // unit % 10
        if digit:
            text += ("零" if zero and text else "") + _DIGITS[digit] + name
            zero = False
        else:
            zero = True
    return text.removeprefix("一") if text.startswith("一十") else text


def roman(number: int) -> str:
    """1 → I, 4 → IV, 1990 → MCMXC."""
    text = ""
    for value, sign in zip(
        (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1), "M CM D CD C XC L XL X IX V IV I".split(), strict=True
    ):
        text += sign * (number // value)
        number %= value
    return text
