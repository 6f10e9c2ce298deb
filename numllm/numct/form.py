"""How a number is written, so that other numbers can be written in the same way."""

from __future__ import annotations

import functools
import re
from decimal import Decimal
from typing import NamedTuple

from ..numbers import Number, chinese_to_int, int_to_chinese

__all__ = ["UNIT8", "Form", "Shape", "read_form", "significant", "units8"]

UNIT8 = 10**8
"""Values are compared as whole multiples of 1e-8 of the base unit."""


class Form(NamedTuple):
    """How a number is written: every option of a question is a whole `m` rendered in the answer's form.

    The value of an option, in units of 1e-8 of the base unit, is `m * scale`.
    """

    style: str  # "a" Arabic, "c" Chinese numeral, "p" 百分之, "f" N分之M (m is M * 1000 + N)
    head: str  # before the blank within the number: a currency sign
    prefix: str  # first characters of each option: a minus, 百分之
    suffix: str  # last characters of each option: magnitude, per cent sign
    tail: str  # behind the blank within the number: the unit
    decimals: int
    separator: str
    wide: bool
    percent: bool
    two: str  # how a Chinese 2 is written before this unit
    scale: int

    def render(self, m: int) -> str:
        """The option text of `m`."""
        if self.style == "a":
            digits = f"{m:0{self.decimals + 1}d}"
            whole, rest = (digits[: -self.decimals], digits[-self.decimals :]) if self.decimals else (digits, "")
            if self.separator and len(whole) > 3:
                whole = f"{int(whole):,}".replace(",", self.separator)
            body = f"{whole}.{rest}" if rest else whole
            if self.wide:
                body = body.translate(_WIDEN)
        elif self.style == "f":
            body = f"{int_to_chinese(m % 1000)}分之{int_to_chinese(m // 1000)}"
        else:
            body = int_to_chinese(m) if m != 2 else self.two
            if m >= 200 and self.two == "两":
                body = re.sub(r"^二(?=[百千万亿])", "两", body)
        return f"{self.prefix}{body}{self.suffix}"

    def value(self, m: int) -> float:
        """The value of an option as a float, for comparisons of size only."""
        return (m // 1000) / (m % 1000) if self.style == "f" else m * self.scale / UNIT8


Shape = tuple[str, str, str, int, str]  # kind, unit, style, decimals, prefix and suffix: what looks alike
_WIDEN = str.maketrans("0123456789.,", "０１２３４５６７８９．，")
_ARABIC_FORM = re.compile(
    r"(?P<head>[A-Z]{0,3}(?:\$(?=\\))?\\?[¥￥$＄€£￡]?\s?)(?P<sign>[-−－﹣]?)"
    r"(?P<whole>[0-9０-９]{1,3}(?:[, ，][0-9０-９]{3})+|[0-9０-９]+)"
    r"(?:[.．](?P<rest>[0-9０-９]+))?(?P<suffix>(?:\s?(?:[十百千]?[万亿]|[百千])(?![克米瓦]))?(?:\s?[%％‰‱]|\s?\$?\\%\$?)?)(?P<tail>[^0-9０-９]*)"
)
_SHARE_FORM = re.compile(r"(?P<sign>负?)(?P<prefix>[百千万]分之)(?P<body>[零一二三四五六七八九十百两]+)")
_FRACTION_FORM = re.compile(r"(?P<n>[二三四五六七八九十]+)分之(?P<m>[一二三四五六七八九十]+)")
_CHINESE_FORM = re.compile(r"(?P<body>[一二三四五六七八九十百千万亿两零]+)(?P<tail>[^一二三四五六七八九十零]*)")
_SHARES = {"百": 100, "千": 1000, "万": 10_000}
_TAIL_UNITS = re.compile(r"(?!.*[多余半角])(?:\s?[\u4e00-\u9fffA-Za-z/／（）()]{0,12})\Z")
_TWO_LIANG = frozenset("年 倍 个月 周 天 小时 人 名 家 台 件 股 吨 辆 个工作日 个季度 个会计年度 个交易日".split())


def read_form(number: Number, separator: str) -> tuple[Form, int] | None:
    """(form, m) of a number whose digits can be varied and written back; None for other ways to write."""
    value = number.value
    if "/" in value and "分之" not in number.text:
        return None
    text = number.text
    c = text[0]
    if c in "百千万" or (c == "负" and "分之" in text):
        match = _SHARE_FORM.fullmatch(text)
        m = chinese_to_int(match.group("body")) if match is not None else None
        if match is None or m is None:
            return None
        scale = UNIT8 // _SHARES[match.group("prefix")[0]]
        prefix = match.group("sign") + match.group("prefix")
        form = Form("p", "", prefix, "", "", 0, "", False, prefix == "百分之", "二", scale)
    elif "分之" in text:
        match = _FRACTION_FORM.fullmatch(text)
        if match is None:
            return None
        n, m = chinese_to_int(match.group("n")), chinese_to_int(match.group("m"))
        if n is None or m is None or not 0 < m < n <= 20:
            return None
        form = Form("f", "", "", "", "", 0, "", False, False, "二", 0)
        m = m * 1000 + n
    elif c in "一二三四五六七八九十两":
        match = _CHINESE_FORM.fullmatch(text)
        m = chinese_to_int(match.group("body")) if match is not None else None
        if match is None or m is None or m >= 10**13 or not _TAIL_UNITS.match(match.group("tail")):
            return None
        tail, body = match.group("tail"), match.group("body")
        if not tail:
            return None
        two = "两" if "两" in body or ("二" not in body and tail in _TWO_LIANG) else "二"
        exact = units8(value)
        if exact is None or exact % m:
            return None
        form = Form("c", "", "", "", tail, 0, "", False, False, two, exact // m)
    else:
        match = _ARABIC_FORM.fullmatch(text)
        if match is None or not _TAIL_UNITS.match(match.group("tail")):
            return None
        whole, rest = match.group("whole"), match.group("rest") or ""
        if not 0 < len(whole) + len(rest) <= 15 or (len(whole) > 1 and whole[0] in "0０"):
            return None
        wide = not (whole + rest).isascii()
        plain = whole.replace(",", "").replace(" ", "").replace("，", "")
        m = int(plain + rest)
        if m == 0:
            return None
        if len(plain) > 3:
            separator = whole[len(whole) - 4] if len(whole) > len(plain) else ""
            separator = "," if separator == "，" else separator
        exact = units8(value)
        if exact is None or abs(exact) % m:
            return None
        scale = abs(exact) // m
        head, sign, suffix, tail = match.group("head", "sign", "suffix", "tail")
        percent = suffix.strip(" $\\") in ("%", "％")
        form = Form("a", head, sign, suffix, tail, len(rest), separator, wide, percent, "", scale)
    if form.head + form.render(m) + form.tail != text:
        return None
    return form, m


@functools.lru_cache(4096)
def units8(value: str) -> int | None:
    """A decimal value in units of 1e-8, or None when it is no whole number of them."""
    if "/" in value or ":" in value:
        return None
    number = Decimal(value).scaleb(8) if len(value) < 24 else None
    return int(number) if number is not None and number == number.to_integral_value() else None


def significant(m: int) -> tuple[int, int]:
    """(s, z): m = s * 10**z with s not divisible by ten."""
    z = 0
    while m % 10 == 0:
        m //= 10
        z += 1
    return m, z
