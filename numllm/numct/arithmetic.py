"""Exact evaluation of written arithmetic: `80,000 × 2.75% × 3`, `28 × (1 + 3.2%)^6`, `\\frac{5}{1.05}`.

Used to check equations that stand in a text and to verify every relation that `relations` states.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction

__all__ = ["equation", "evaluate", "may_be_equation"]

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?"
_UNIT = (
    r"(?:\s?个?(?:百分点|基点|人民币|美元|港元|欧元|日元|元|会计年度|季度|工作日|交易日|自然日|个月|月|年|天|日|小时|"
    r"股|倍|份|张|件|吨|台|套|人|次|期|户|手|桶|克|盎司|平方米|点)(?:[/／][股件吨份张台套人桶克年月日])?)?"
    r"(?:\s?[（(][^（）()0-9+×÷=−]{1,8}[）)])?"
)
_TOKEN = re.compile(
    rf"\s*(?:(?P<number>{_NUMBER})\s?(?P<mark>%|％|‰|\\%)?(?P<size>[十百千]?[万亿])?{_UNIT}"
    r"|(?P<sign>[-+×÷*/^()])|(?P<equal>[=≈]))"
)
_FOLD = str.maketrans("（）＋－−–＝·⋅＊／［］[]{}０１２３４５６７８９．，％", "()+---=×××/()()()0123456789.,%")
_LATEX = (
    (re.compile(r"\\(?:times|cdot)\b"), "×"),
    (re.compile(r"\\div\b"), "÷"),
    (re.compile(r"\\approx\b"), "≈"),
    (re.compile(r"\\(?:left|right|text|mathrm|,|;|quad)"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\d?frac\{([^{}]{1,80})\}\{([^{}]{1,80})\}"), r"((\1)/(\2))"),
)
_SIZES = {"万": 10**4, "亿": 10**8, "十万": 10**5, "百万": 10**6, "千万": 10**7, "十亿": 10**9, "百亿": 10**10}
_SIZES |= {"千亿": 10**11, "万亿": 10**12}
_MARKS = {"%": 100, "％": 100, "\\%": 100, "‰": 1000}
_POWER = 1300  # largest exponent: 100 years of months and some
_SIDES = 256  # pairs of an equation's sides of which it is kept whether they hold

_Token = tuple[str, Fraction | None, int]  # sign or "" for a number, its value, decimals written


def _tokens(text: str) -> list[_Token] | None:
    """The tokens of an expression; None where anything else stands in it."""
    found: list[_Token] = []
    at = 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.end() == at:
            return None
        at = match.end()
        number, mark, size, sign, equal = match.groups()
        if number is not None:
            whole, _, rest = number.replace(",", "").partition(".")
            top, bottom = int(whole + rest) * _SIZES.get(size, 1), 10 ** len(rest) * _MARKS.get(mark, 1)
            found.append(("", Fraction(top, bottom), len(rest)))
        else:
            found.append((sign or equal, None, 0))
    return found


class _Parser:
    """sum := product (± product)*; product := power (×÷ power)*; power := sign? atom (^ power)?"""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens, self.at = tokens, 0

    def peek(self) -> str | None:
        """The next sign, "" for a number, None at the end."""
        return self.tokens[self.at][0] if self.at < len(self.tokens) else None

    def sum(self) -> Fraction:
        value = self.product()
        while (sign := self.peek()) in ("+", "-"):
            self.at += 1
            term = self.product()
            value = value + term if sign == "+" else value - term
        return value

    def product(self) -> Fraction:
        value = self.power()
        while (sign := self.peek()) in ("×", "*", "÷", "/"):
            self.at += 1
            factor = self.power()
            value = value * factor if sign in ("×", "*") else value / factor
        return value

    def power(self) -> Fraction:
        if self.peek() == "-":
            self.at += 1
            return -self.power()
        value = self.atom()
        if self.peek() == "^":
            self.at += 1
            exponent = self.power()
            if exponent.denominator != 1 or abs(exponent) > _POWER:
                raise ValueError("only whole exponents")
            value = value ** int(exponent)
        return value

    def atom(self) -> Fraction:
        sign = self.peek()
        if sign == "":
            value = self.tokens[self.at][1]
            self.at += 1
            assert value is not None
            return value
        if sign != "(":
            raise ValueError("a number or bracket is missing")
        self.at += 1
        inner = self.sum()
        if self.peek() != ")":
            raise ValueError("a bracket is not closed")
        self.at += 1
        return inner


_FACTOR = re.compile(r"\((?P<of>[PF])/(?P<by>[AF]),\s?(?P<rate>[0-9]+(?:\.[0-9]+)?)%,\s?(?P<periods>[0-9]{1,3})\)")
_GROUPED = re.compile(r"(?<=[0-9])\s(?=[0-9]{3}(?![0-9]))")
_TIMES = re.compile(r"(?<=[0-9)%])\s?[xX]\s?(?=[0-9(])")


def _plain(text: str, factors: bool = False) -> str:
    """A text in the signs that `_tokens` knows. factors: also `(P/A,6%,7)` of interest tables by its value, digits in
    groups, and x between numbers."""
    if "\\" in text:
        for pattern, put in _LATEX:
            text = pattern.sub(put, text)
    text = text.translate(_FOLD).replace("$", "")
    if factors:
        text = _TIMES.sub("×", _GROUPED.sub("", text))
        text = _FACTOR.sub(_factor, text) if "/" in text else text
    return text


def _factor(match: re.Match[str]) -> str:
    """(P/F,r,n), (F/P,r,n), (P/A,r,n) or (F/A,r,n) to the four places of interest tables."""
    growth = (1 + float(match["rate"]) / 100) ** int(match["periods"])
    rate = float(match["rate"]) / 100 or 1.0
    value = {
        "P/F": 1 / growth, "F/P": growth, "P/A": (1 - 1 / growth) / rate, "F/A": (growth - 1) / rate,
    }.get(f"{match['of']}/{match['by']}")  # fmt: skip
    return match.group() if value is None else f"{value:.4f}"



def evaluate(expression: str) -> Fraction | None:
    """The exact value of an expression of numbers, + − × ÷ ^ and brackets; None where it is not one.

    >>> evaluate("80,000 × 2.75% × 3")
    Fraction(6600, 1)
    """
    tokens = _tokens(_plain(expression))
    return _value(tokens) if tokens else None


def _value(tokens: list[_Token]) -> Fraction | None:
    parser = _Parser(tokens)
    try:
        value = parser.sum()
    except (ValueError, ZeroDivisionError):
        return None
    return value if parser.at == len(tokens) else None


_REACH = 160  # characters of an equation on each side of the number that are looked at
_OPERATOR = re.compile(r"[-+×÷*/^＋－−–·⋅＊／xX\\]")  # one of which each equation has
_RUN = r"0-9０-９.．,，%％‰()（）\[\]{}+＋\-−–－×÷*/／^=＝≈\\$ ·⋅a-zPFA万亿千百十"
_EQUATES = re.compile(r"[=＝≈(（\[［]|approx")  # of which each has one, its working in brackets where it has no sign
_LEFT = re.compile(rf"[{_RUN}元年月天股倍份张件吨台套人次期个]*\Z")
_RIGHT = re.compile(rf"[{_RUN}元年月天股倍份张件吨台套人次期个]*")


def may_be_equation(text: str) -> bool:
    """Whether a text holds the signs that each equation has; `equation` finds none in others."""
    return _OPERATOR.search(text) is not None and _EQUATES.search(text) is not None


def equation(left: str, answer: str, right: str) -> str | None:
    """The written equation that the number `answer`, between `left` and `right`, is part of, if it holds.

    It holds when one side is a single number and the other, exactly evaluated, rounds to it. Returned as
    "expression = number" in the text's own characters; None where there is none.
    """
    left, right = left[-_REACH:], right[:_REACH]
    if _OPERATOR.search(left + answer + right) is None:
        return None
    before = _LEFT.search(left)
    after = _RIGHT.match(right)
    assert before is not None and after is not None
    head, tail = before.group(), after.group()
    if not re.search("[=＝≈]|approx", head[-120:] + tail):
        return _working(left, answer, right)
    run = _plain(f"{head}\0{answer}\1{tail}", factors=True)
    sides = re.split("[=≈]", run)
    at = next(i for i, side in enumerate(sides) if "\0" in side)
    sides = [side.replace("\0", "").replace("\1", "").strip() for side in sides]
    for other in (at - 1, at + 1):
        if not 0 <= other < len(sides):
            continue
        for own, lone in ((sides[at], sides[other]), (sides[other], sides[at])):
            if (found := _holds(own, lone)) is not None:
                return found
    return _working(left, answer, right)


_RESULT = re.compile(
    r"(?P<lone>[0-9][0-9,， .]*)\s?(?:[十百千]?[万亿])?\s?(?P<mark>[%％‰])?"
    r"[^0-9，。；、,;（(\[［]{0,6}[（(\[［]\s?即?[，,:：]?"
)


def _working(left: str, answer: str, right: str) -> str | None:
    """The working that stands in brackets behind a result, `1 500万元（2 000×75%）`, where `answer` is either's and it
    holds, in the unit that the result is written in."""
    text, start = left + answer + right, len(left)
    end = start + len(answer)
    for match in _RESULT.finditer(text):
        opened, depth, close = match.end(), 1, match.end()
        while close < len(text) and depth:
            depth += (text[close] in "（(［[") - (text[close] in "）)］]")
            close += 1
        asked = match.start() <= start < match.end() or opened <= start < close
        if depth or not asked or end > close:
            continue
        lone = _plain(match["lone"].rstrip("，, .") + (match["mark"] or ""), factors=True)
        for side in re.split("[=＝≈]", text[opened : close - 1]):
            if (found := _holds(_plain(side, factors=True), lone)) is not None:
                return found
    return None


@functools.lru_cache(_SIDES)
def _holds(expression: str, lone: str) -> str | None:
    """The equation of an expression and a single number in their own characters, if it holds; kept, since each number
    of an equation asks about the same two sides."""
    number = _tokens(lone)
    expression = expression.lstrip(")], ")
    tokens = _tokens(expression)
    while tokens is None and " " in expression:  # words before the expression
        expression = expression.partition(" ")[2].lstrip()
        tokens = _tokens(expression)
    if not number or not tokens or number[0][0] == "(" or not any(t[0] in "+-×÷*/^" and t[0] for t in tokens):
        return None
    if number[0][0] == "-" and len(number) == 2:
        sign, (_, value, decimals) = -1, number[1]
    elif number[0][0] == "":
        sign, (_, value, decimals) = 1, number[0]
        if len(number) > 1:
            return None
    else:
        return None
    computed = _value(tokens)
    if computed is None or value is None:
        return None
    scale = Fraction(1)
    if "%" in lone:
        scale = Fraction(1, 100)
    elif "‰" in lone:
        scale = Fraction(1, 1000)
    for name, size in _SIZES.items():
        if name in lone.partition("(")[0]:
            scale = Fraction(size)
    gap = abs(computed - sign * value)
    if gap > scale / 10**decimals / 2:
        return None
    return f"{expression.strip()} {'≈' if gap else '='} {lone.strip()}"
