"""Arabic, Chinese and formal numerals as exact decimals."""

from __future__ import annotations

import functools
from fractions import Fraction

__all__ = [
    "CN",
    "D",
    "DIGITS",
    "FOLD",
    "FORMAL",
    "TENS",
    "VULGAR",
    "chinese_to_int",
    "decimal_string",
    "exact_decimal",
    "int_to_chinese",
]

DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")}
DIGITS |= {"〇": 0, "○": 0, "两": 2}
DIGITS |= {c: i for i, c in enumerate("壹贰叁肆伍陆柒捌玖", 1)}
TENS = {"十": 10, "百": 100, "千": 1000, "拾": 10, "佰": 100, "仟": 1000}
CN = "零〇○一二三四五六七八九十百千万亿两廿卅"
FORMAL = "壹贰叁肆伍陆柒捌玖拾佰仟"
D = "0-9０-９"
VULGAR = {"½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5)}
VULGAR |= {"⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8)}
_KEPT = 4096  # Chinese numerals that are kept with their values: a text has few, and each often
FOLD = str.maketrans("０１２３４５６７８９．，－", "0123456789.,-")


def decimal_string(digits: str, exponent: int = 0, negative: bool = False) -> str:
    """`digits` (ASCII, no sign or point) times 10**exponent as a plain decimal, without needless zeros.

    >>> decimal_string("0350", -2)
    '3.5'
    """
    if exponent >= 0:
        whole, rest = digits + "0" * exponent, ""
    elif len(digits) > -exponent:
        whole, rest = digits[:exponent], digits[exponent:].rstrip("0")
    else:
        whole, rest = "0", ("0" * (-exponent - len(digits)) + digits).rstrip("0")
    whole = whole.lstrip("0") or "0"
    text = f"{whole}.{rest}" if rest else whole
    return "-" + text if negative and text != "0" else text


def exact_decimal(value: Fraction) -> str:
    """A fraction as a finite decimal, or as "p/q" where none exists."""
    denominator, twos, fives = value.denominator, 0, 0
    while denominator % 2 == 0:
        denominator //= 2
        twos += 1
    while denominator % 5 == 0:
        denominator //= 5
        fives += 1
    if denominator != 1:
        return f"{value.numerator}/{value.denominator}"
    places = max(twos, fives)
    return decimal_string(str(abs(value.numerator) * 10**places // value.denominator), -places, value < 0)


@functools.lru_cache(_KEPT)
def chinese_to_int(numeral: str) -> int | None:
    """The whole number a Chinese numeral names, or None when it is not a well-formed one.

    Plain and formal digits, 十 to 亿, 廿 and 卅, 两, and the short forms 两百五 (250) and 一万五 (15000).
    A bare 百, 千, 万 or 亿 and a row of digits (二〇二四, 三五) are None.
    """
    if not numeral or numeral[0] in "百千万亿佰仟":
        return None
    total = section = 0  # below 亿; below 万
    hundred_millions: int | None = None
    digit: int | None = None
    unit, zero = 10**12, False  # the unit last read, whether 零 stands since
    for c in numeral:
        if c in "廿卅":
            if digit is not None or unit <= 10:
                return None
            section += 20 if c == "廿" else 30
            unit, zero = 10, False
        elif c in "万亿":
            part = section + (digit or 0)
            if c == "万":
                if part == 0 or total:
                    return None
                total, unit = part * 10_000, 10_000
            else:
                if total + part == 0 or hundred_millions is not None:
                    return None
                hundred_millions, total, unit = total + part, 0, 10**8
            section, digit, zero = 0, None, False
        elif (ten := TENS.get(c)) is not None:
            if digit == 0 or (digit is None and not (ten == 10 and (section == 0 or zero))):
                return None
            if section and unit <= ten:
                return None
            section += (1 if digit is None else digit) * ten
            unit, digit, zero = ten, None, False
        else:
            value = DIGITS[c]
            if digit is not None and not (digit == 0 and value):
                return None
            zero = zero or value == 0
            digit = value
    if digit is not None:
        # 两百五, 一万五: the last digit counts tenths of the unit before it
        section += digit * (unit // 10 if 100 <= unit < 10**12 and not zero else 1)
    return (hundred_millions or 0) * 10**8 + total + section


@functools.lru_cache(_KEPT)
def int_to_chinese(value: int) -> str:
    """The plain Chinese numeral of 0 <= value < 10**16 (10 is 十, 205 is 二百零五). ValueError outside."""
    if not 0 <= value < 10**16:
        raise ValueError(f"wanted a whole number from 0 to 10**16 - 1, got {value}")
    if value == 0:
        return "零"
    for size, name in ((10**8, "亿"), (10**4, "万")):
        if value >= size:
            high, low = divmod(value, size)
            return int_to_chinese(high) + name + _low_part(low, size // 10)
    text = ""
    for size, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, value = divmod(value, size)
        if digit:
            text += "零一二三四五六七八九"[digit] + name
        elif text and not text.endswith("零"):
            text += "零"
    text = text.rstrip("零")
    return text[1:] if text.startswith("一十") else text


def _low_part(value: int, place: int) -> str:
    if value == 0:
        return ""
    text = int_to_chinese(value)
    return ("零" if value < place else "") + ("一" + text if text.startswith("十") else text)
