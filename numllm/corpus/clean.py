"""Characters: decoding bytes and normal forms of Chinese text."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable
from functools import cache

from ..errors import DataError
from .scan import matches

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
"""Inside a character class: Chinese characters, simplified and traditional."""

CJK_MARKS = (
    "\u3001-\u3003\u3008-\u3011\u3014-\u301b\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
    "\u2014\u2026\u201c\u201d\u2018\u2019"
)
"""Inside a character class: punctuation of Chinese text."""

_HAN = re.compile(f"[{HAN}]+")

MATH = re.compile(
    r"\$\$.{1,5000}?\$\$"
    r"|(?<![\\$])\$(?=[^\s$])[^$\n]{0,2000}?(?<=[^\s\\])\$(?![\d$])"
    r"|\\\((?=[^()\n]{0,2000}?(?:[_^=]|\\[A-Za-z]))[^\n]{1,2000}?\\\)"
    r"|\\begin\{(?P<environment>[a-z]+\*?)\}.{1,2000}?\\end\{(?P=environment)\}",
    re.DOTALL,
)
"""LaTeX inside text: it is never rewritten. `$` before a space, or closing before a digit, is money, no formula.

Every repeat is bounded here and in the other patterns of this package, so that no text takes more than linear time.
"""

MATH_START = re.compile(r"[$\\]")
"""Where a match of MATH begins."""


def han_count(text: str) -> int:
    """Number of Chinese characters in `text`."""
    return len(text) - len(_HAN.sub("", text))


# ── bytes → text ─────────────────────────────────────────────────────────────────────────────────────


@cache
def _everyday() -> frozenset[str]:
    """The everyday characters of both scripts: the first level of GB 2312 (3,755) and of Big5 (5,401)."""
    found = set()
    for encoding, leads, trails in (
        ("gb2312", range(0xB0, 0xD8), range(0xA1, 0xFF)),
        ("big5", range(0xA4, 0xC7), (*range(0x40, 0x7F), *range(0xA1, 0xFF))),
    ):
        for lead in leads:
            found |= set(bytes(code for trail in trails for code in (lead, trail)).decode(encoding, "ignore"))
    return frozenset(found)


def common_share(text: str) -> float:
    """Share of everyday Chinese characters among the letters of `text` that are not ASCII.

    Text in the right encoding has over 0.9: bytes of another encoding fall all over the tables. Characters
    that no text holds, private and unassigned ones, count as letters.
    """
    foreign = [c for c in text if c > "\x7f" and (c.isalpha() or not (c.isprintable() or c.isspace()))]
    return sum(map(_everyday().__contains__, foreign)) / len(foreign) if foreign else 0.0


_BINARY = "binary file (it holds NUL characters)"
_CHINESE = {"gb18030": "GB18030", "big5hkscs": "Big5", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16"}
"""Encodings that are tried where nothing says which it is, and their names."""
_MIN_SHARE = 0.7
_MAX_BROKEN = 0.001
"""Largest share of broken characters with which a text still counts as UTF-8."""
_DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]{2,30})""", re.IGNORECASE)
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "cp936": "gb18030", "big5": "big5hkscs", "cp950": "big5hkscs"}


def decode(data: bytes, *, markup: bool = False) -> str:
    """The text of a file's bytes, whatever encoding Chinese text comes in.

    In this order: a byte-order mark (UTF-8, UTF-16, UTF-32); UTF-8, when the bytes are valid; with `markup`,
    what an HTML page declares; else the one of GB18030, Big5 and UTF-16 under which the text is Chinese:
    nearly all of it everyday characters; else UTF-8 with up to one broken character in a thousand, each of which
    becomes U+FFFD. DataError, without a file name, for empty files, binary files
    and other encodings.
    """
    if not data:
        raise DataError("the file is empty")
    marks = (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16: its mark begins with that of UTF-16
        (codecs.BOM_UTF32_BE, "utf-32-be"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    )
    for mark, encoding in marks:
        if data.startswith(mark):
            try:
                text = data[len(mark) :].decode(encoding)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"marked as {encoding.upper()} but not valid at byte {error.start + len(mark)}"
                ) from error
            break
    else:
        text = _decode_unmarked(data, markup)
    if "\0" in text:
        raise DataError(_BINARY)
    if not text.strip():
        raise DataError("the file is empty")
    return text


def _decode_unmarked(data: bytes, markup: bool) -> str:
    binary = b"\0" in data
    where = -1
    if not binary:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            where = error.start
    declared = _DECLARED.search(data[:2048]) if markup and not binary else None
    if declared:
        name = declared[1].decode("ascii").lower().replace("_", "-")
        try:
            text = data.decode(_SUPERSETS.get(name, name))
            if common_share(text[:200_000]) >= _MIN_SHARE:
                return text
        except (UnicodeDecodeError, LookupError):
            pass  # pages often name the wrong one
    best, share = "", 0.0
    for encoding in _CHINESE:
        if binary and not encoding.startswith("utf-16"):
            continue
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text and (found := _plausible(text[:200_000])) > share:
            best, share = text, found
    if share >= _MIN_SHARE:
        return best
    mended = "" if binary else data.decode("utf-8", "replace")
    if mended.count("\ufffd") <= _MAX_BROKEN * len(mended) and common_share(mended[:200_000]) >= _MIN_SHARE:
        return mended
    if binary:
        raise DataError(_BINARY)
    raise DataError(
        f"neither UTF-8 (byte {where}) nor Chinese text in {', '.join(dict.fromkeys(_CHINESE.values()))};"
        " convert it to UTF-8 first"
    )


def _plausible(text: str) -> float:
    """`common_share`, or the share of printable characters in text of ASCII alone."""
    if not text.isascii():
        return common_share(text)
    return sum(c.isprintable() or c in "\t\r\n" for c in text) / len(text)


# ── normal forms ─────────────────────────────────────────────────────────────────────────────────────


def _table() -> dict[int, str | None]:
    table: dict[int, str | None] = {}
    for first, last in (("０", "９"), ("Ａ", "Ｚ"), ("ａ", "ｚ")):
        for code in range(ord(first), ord(last) + 1):
            table[code] = chr(code - 0xFEE0)
    table |= {ord("％"): "%", ord("﹪"): "%"}
    for code in range(0x2F00, 0x2FD6):  # Kangxi radicals: what PDF exports write for everyday characters
        table[code] = unicodedata.normalize("NFKC", chr(code))
    for code in (*range(0x20), *range(0x7F, 0xA0)):  # control characters
        table[code] = None
    hidden = (0x00AD, 0x061C, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
    for code in (*hidden, *range(0xFE00, 0xFE10)):
        table[code] = None  # soft hyphen, zero-width, direction marks, byte-order mark, variation selectors
    for code in (0x09, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000):
        table[code] = " "
    table |= {0x0A: "\n", 0x2028: "\n", 0x2029: "\n", 0x0B: "\n", 0x0C: "\n", 0x85: "\n"}
    return table


_CHARACTERS = _table()
_CHANGED = re.compile("[" + re.escape("".join(chr(c) for c, by in _CHARACTERS.items() if by != chr(c))) + "]")
USUAL = r"\u3001-\u3003\u3008-\u3011\u4e00-\u9fff\uff08\uff09\uff0c\uff1a\uff1b\uff01\uff1f\u201c\u201d"
"""Inside a character class: what most Chinese text consists of, and what stands as it is."""
_UNUSUAL = re.compile(rf"[^\n -~{USUAL}]")


def _change(found: re.Match[str]) -> str:
    return _CHARACTERS[ord(found[0])] or ""

_UNITS = "%‰年月日号时分秒元角万亿千百个条章节款项目期天周倍股份户吨次名人位家种台件套批类级岁折成档页笔米克"
_WIDE_DIGIT = re.compile("[０-９]")
_WIDE_POINT = re.compile(r"．(?<=\d．)(?=\d)")
_WIDE_COMMAS = re.compile(r"(?<![０-９，])[０-９]{1,3}(?:，[０-９]{3})+(?![０-９，])")
# Patterns begin with the space itself and look back over it: `re` finds a literal many times as fast as a place.
_SPACING = re.compile("|".join((
    # No space beside Chinese punctuation. Quotes and dashes belong to both scripts and keep theirs beside words.
    f" (?=[，。、；：？！）》」』】〕])(?<=[{HAN}\\dA-Za-z%”’] )",
    f" (?<=[，。、；：？！（《「『【〔）》」』】〕] )(?=[{HAN}\\dA-Za-z（《「『【〔“‘])",
    # A number and its unit, and the Chinese text beside them, are written without spaces.
    f" (?=[{_UNITS}])(?<=\\d )",
    f" (?=[{HAN}])(?:(?<=\\d[%‰] )|(?<=\\d [%‰] ))",
    f" (?=\\d[\\d,.]*(?:[{_UNITS}]|(?<=\\d) [{_UNITS}]))(?<=[{HAN}] )",
)))
_SPACES = re.compile(" {2,}")
_LINE_SPACE = re.compile(" ?\n ?")
_SPACED_HAN = re.compile(f" [{HAN}] ")
"""What every match of `_SPACED_OUT` holds."""
_SPACED_OUT = re.compile(f"(?<![{HAN}])[{HAN}](?: [{HAN}]){{2,}}(?![{HAN}])")
_INNER_SPACE = re.compile(f" (?=[“‘]?[{HAN}])(?:(?<=[{HAN}] )|(?<=[{HAN}][”’] ))")
_PROSE = re.compile("[，。；]")
_LABEL_WIDTH = 25
"""A space between Chinese words this near to the beginning of a line sets off a label (第三条 …) and stays."""


def _close_up(line: str) -> str:
    """A line of prose without the spaces inside words that the line ends of a printed page left behind."""
    if len(line) < 40 or line.rfind(" ") < _LABEL_WIDTH or not _PROSE.search(line):
        return line
    return line[:_LABEL_WIDTH] + _INNER_SPACE.sub("", line[_LABEL_WIDTH - 1 :])[1:]


def _usual(text: str) -> str:
    text = unicodedata.normalize("NFC", text)
    if _WIDE_DIGIT.search(text):
        text = _WIDE_COMMAS.sub(lambda found: found[0].replace("，", ","), text)
    return _WIDE_POINT.sub(".", _CHANGED.sub(_change, text))


def _prose(text: str) -> str:
    if _UNUSUAL.search(text):
        text = _usual(text)
    if " " not in text:
        return text
    if "  " in text:
        text = _SPACES.sub(" ", text)
    if " \n" in text or "\n " in text:
        text = _LINE_SPACE.sub("\n", text)
    text = _SPACING.sub("", text)
    # 会 计 科 目: set wide by hand. Two or more words side by side keep their space.
    if _SPACED_HAN.search(text):
        text = _SPACED_OUT.sub(lambda found: found[0].replace(" ", ""), text)
    return "\n".join(map(_close_up, text.split("\n"))) if "\n" in text else _close_up(text)


def outside_math(text: str, change: Callable[[str], str]) -> str:
    """`text` with `change` applied to everything but LaTeX."""
    if "$" not in text and "\\" not in text:
        return change(text)
    parts, last = [], 0
    for found in matches(MATH, MATH_START, text):
        parts += [change(text[last : found.start()]), found[0]]
        last = found.end()
    return "".join([*parts, change(text[last:])])


def normalise(text: str) -> str:
    """The normal form of a piece of text; LaTeX inside it stays as it is.

    Full-width digits, letters and % become half-width, as do the point and the thousands comma between
    full-width digits; Chinese punctuation and Traditional characters stay. Control and invisible
    characters go, every kind of space becomes one space, and none is left beside Chinese punctuation,
    between a number and its unit, or between Chinese characters, quoted or not, within a sentence. Between Chinese and
    Latin text at most one space stays, where the author put it.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return outside_math(text, _prose).strip()
