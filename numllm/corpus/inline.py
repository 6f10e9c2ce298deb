"""Markdown inside a line: emphasis, links, images, escapes, MyST roles; LaTeX and code text stay."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from .clean import CJK_MARKS, HAN, MATH, USUAL, normalise
from .markup import strip_tags, unescape
from .scan import replace

_STASHED = re.compile(
    r"\{(?P<role>[a-zA-Z][\w:.-]*)\}(?P<mark>`+)(?P<argument>(?:(?!(?P=mark)).){1,2000})(?P=mark)"
    r"|(?<!`)(?P<tick>`+)(?!`)(?P<code>.{1,5000}?)(?<!`)(?P=tick)(?!`)"
    rf"|(?P<math>{MATH.pattern})"
    r"|\\(?P<escaped>[!-/:-@\[-`{-~])",
    re.DOTALL,
)
_ACTIVE = re.compile("[][\\\\`$*_~=<>&{}!\0\1]")
"""Characters of which text without any markup holds none."""
_INERT = "".join(re.escape(c) for c in map(chr, range(0x21, 0x7F)) if not _ACTIVE.match(c))
_ANYTHING = re.compile(rf"[^\n{_INERT}{USUAL}]")
"""What text holds in which there is anything to do: one look spares most texts all others."""
_STASHED_START = re.compile(r"[{`$\\]")
_TARGET = (
    r"\(\s*(?:<[^<>\n]*>|[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)"
    r"(?:\s+(?:\"[^\"\n]*\"|'[^'\n]*'|\([^()\n]*\)|=[\dx]+))?\s*\)"
)
_LABEL = r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]"
_IMAGE = re.compile(rf"!{_LABEL}(?:{_TARGET}|\[[^\[\]]*\])")
_LINK = re.compile(rf"\[(?<!!\[){_LABEL[2:]}{_TARGET}")
_REFERENCE_LINK = re.compile(r"\[([^\[\]]+)\]\[[^\[\]]*\]")
_CROSS_REFERENCE = re.compile(r"(?<!!)\[\]\(([\w:.-]+)\)")
"""MyST: a link without words says what its target is called."""
_NOTE = re.compile(r"\[\^[^\[\]\s]{1,40}\]")
_AUTOLINK = re.compile(r"<(?:https?://|mailto:)[^<>\s]*>")
_ATTRIBUTES = re.compile(r"\{:?\s*(?:[.#][\w-]+\s*)+\}|\{%.*?%\}")
_STRUCK = re.compile(r"~~(?=\S).{1,5000}?~~", re.DOTALL)
# Patterns begin with the mark itself and look back over it: `re` finds a literal many times as fast as a place.
_EMPHASIS = tuple((mark, re.compile(pattern)) for mark, pattern in (
    ("***", r"\*\*\*(?<![0-9A-Za-z)\]*]\*\*\*)(?=[^\s*])([^*]{1,4000}?)\*\*\*( ?)"),
    ("**", r"\*\*(?<![0-9A-Za-z)\]*]\*\*)(?=[^\s*])([^*]{1,4000}|(?:[^*]|\*(?!\*)){1,4000}?)\*\*( ?)"),
    ("__", r"__(?<![\w_]__)(?=[^\s_])([^_]{1,4000}?)__(?!\w)( ?)"),
    ("*", r"\*(?<![0-9A-Za-z)\]*]\*)(?=[^\s*\d])([^*\n]{1,2000}?)(?<=[^\s*])\*(?![0-9*])( ?)"),
    ("*", r"\*(?<![0-9A-Za-z)\]*]\*)(\d[^*\s]{0,40})\*(?![0-9A-Za-z(*])( ?)"),
    ("_", r"_(?<![\w_]_)(?=[^\s_])([^_\n]{1,2000}?)(?<=[^\s_])_(?!\w)( ?)"),
    ("==", r"==(?=[^\s=])([^=\n]{1,2000}?)(?<=[^\s=])==( ?)"),
))
"""The mark, and what it sets off with the space behind it."""
_STRAY_STARS = re.compile(r"\*{3,}|(?<![0-9A-Za-z)\]\s*])\*\*(?!\*)|(?<!\*)\*\*(?![0-9A-Za-z(\[\s*])")
_STYLE_RULES = re.compile(
    r"[.#\w](?:[\w .#,>:-]|(?<=[A-Za-z0-9])\x00\d+\x01(?=[A-Za-z0-9])){0,80}"  # a name may hold an escaped character
    r"\{\s*[\w-]{2,30}\s*:[^{};]{1,120}(?:;\s*[\w-]{2,30}\s*:[^{};]{1,120}){0,40};?\s*\}"
)
_STYLE_START = re.compile(r"\{\s*[\w-]{2,30}\s*:")
"""What every match of `_STYLE_RULES` holds."""
_KEPT = re.compile("\0(\\d+)\1( ?)")
_CALLOUT = re.compile(r"\[![A-Z]{3,}\]\s*")
_CITED = re.compile(r"([A-Za-z][A-Za-z_-]*?)[_-]?(\d{4})(?!\d)[\w-]*\Z")
_CHINESE = re.compile(f"[{HAN}{CJK_MARKS}]")


def _cite(key: str, parenthesis: bool) -> str:
    """A bibliography key as a reader says it: sargent_velde1995 → Sargent和Velde (1995)."""
    found = _CITED.match(key.strip())
    if not found:
        return key.strip()
    names = "和".join(name[:1].upper() + name[1:] for name in re.split("[_-]", found[1]) if name)
    return f"({names}, {found[2]})" if parenthesis else f"{names} ({found[2]})"


def _role(name: str, argument: str, before: str, labels: Mapping[str, str]) -> str:
    """The words of a MyST role; references without words of their own get what the printed book would say."""
    if name == "math":
        return f"${argument.strip()}$"
    written = re.match(r"(.+?)\s*<[^<>]*>\s*\Z", argument, re.DOTALL)  # {doc}`text <target>`
    if written:
        return written[1]
    if name.startswith("cite"):
        cited = "、".join(_cite(key, name == "cite:p") for key in argument.split(","))
        return "" if before[-1:] == ")" and cited.endswith(before[-6:]) else cited  # the text says it already
    if name == "numref":
        return "" if before[-1:] in "图表" else "图"
    if name == "eq" or name.endswith("ref"):
        return labels.get(argument.strip(), "" if name == "eq" else "相关部分")
    if name == "doc":
        return "另文"
    return "" if name in ("label", "download", "glue") or name.startswith("glue:") else argument


def _replace(pattern: re.Pattern[str], words: Callable[[str], str], text: str) -> str:
    """`text` with what `pattern` finds replaced by the words for its first group.

    The space on either side (the second group is the one behind) goes where both of its sides are Chinese.
    """
    parts, last = [], 0
    for found in pattern.finditer(text):
        start, end = found.span()
        inner, behind = found.groups()
        inner = words(inner)
        if start > last and text[start - 1] == " " and _is_chinese(text[max(start - 2, 0) : start - 1]):
            start -= _is_chinese(inner[:1])
        if behind and _is_chinese(inner[-1:]) and _is_chinese(text[end : end + 1]):
            behind = ""
        parts += [text[last:start], inner, behind]
        last = end
    if not parts:
        return text
    parts.append(text[last:])
    return "".join(parts)


def _is_chinese(c: str) -> bool:
    return "\u4e00" <= c <= "\u9fff" or _CHINESE.match(c) is not None


def inline(text: str, labels: Mapping[str, str] = MappingProxyType({})) -> str:
    """The readable text of Markdown within a block, normalised. Line ends are kept.

    Images, struck-out text and note marks go; a link leaves its words, code its content. `labels` says what
    a MyST label is called in print (`eq-a` → "(3)").
    """
    if not _ANYTHING.search(text):
        return text.strip()
    if not _ACTIVE.search(text):
        return normalise(text)
    text = text.replace("\0", "").replace("\1", "") if "\0" in text or "\1" in text else text
    text, stash = _stash(text, labels) if _STASHED_START.search(text) else (text, [])
    if "{" in text and ":" in text and _STYLE_START.search(text):
        text = _STYLE_RULES.sub("", text)
    if "[](" in text:
        text = _CROSS_REFERENCE.sub(lambda found: labels.get(found[1], ""), text)
    if "[" in text:
        text = _CALLOUT.sub("", text)
        text = _NOTE.sub("", _IMAGE.sub("", text))
        text = _REFERENCE_LINK.sub(r"\1", _LINK.sub(r"\1", text))
    text = _ATTRIBUTES.sub("", text) if "{" in text else text
    text = _STRUCK.sub("", text) if "~~" in text else text
    if "*" in text or "_" in text or "==" in text:
        for mark, pattern in _EMPHASIS:
            if mark in text:
                text = _replace(pattern, str, text)
    if "**" in text:
        text = _STRAY_STARS.sub("", text)
    if "<" in text:
        text = strip_tags(_AUTOLINK.sub("", text))
    if "&" in text:
        text = unescape(text)
    if stash:
        text = _replace(_KEPT, lambda number: stash[int(number)], text)
    return normalise(text)


def _stash(text: str, labels: Mapping[str, str]) -> tuple[str, list[str]]:
    """The text with roles, code, formulas and escaped characters as their places in a list, and that list."""
    stash: list[str] = []

    def keep(found: re.Match[str]) -> str:
        if found["role"]:
            before = found.string[: found.start()][-8:].rstrip()
            kept = _role(found["role"], found["argument"], before, labels)
        elif found["code"] is not None:
            kept = found["code"].strip()
        else:
            kept = found["math"] or found["escaped"]
        stash.append(kept)
        return f"\0{len(stash) - 1}\1"

    return replace(_STASHED, _STASHED_START, keep, text), stash
