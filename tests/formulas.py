"""Recomputes the worked calculations of a textbook written in plain arithmetic.

A calculation is a chain `left = right = ...` (or `≈`) whose parts are plain arithmetic: digits with
optional thousands separators, `+ - × ÷ / ^ ( )`, `%`, `‰`, and the functions sqrt, ln, exp, N (standard normal
cumulative). Parts that are words end the chain. A number on the right is right when the exact value of the
part before it rounds to it at the digits shown.

`python tests/formulas.py FILE...` lists every calculation that does not hold and counts those that do.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PART = re.compile(
    r"(?:sqrt|ln|exp|N(?=\()|\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|[-+×÷/^()%‰ ])+"
)
TOKEN = re.compile(r"\s*(sqrt|ln|exp|N|\d[\d,]*(?:\.\d+)?|[-+×÷/^()%‰])")
LONE_NUMBER = re.compile(r"-?\d[\d,]*(?:\.(\d+))?([%‰]?)$")
NORMALISE = str.maketrans("（）＝＋－−–×＊*％，．０１２３４５６７８９", "()=+---×××%,.0123456789")
FUNCTIONS = {
    "sqrt": math.sqrt,
    "ln": math.log,
    "exp": math.exp,
    "N": lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))),
}


class Calculation(NamedTuple):
    """One adjacent pair of a chain: `left` should equal `right`."""

    line: int
    left: str
    right: str
    holds: bool


def evaluate(text: str) -> float:
    """Value of a plain arithmetic expression; ValueError when it is none."""
    tokens, at = [], 0
    while at < len(text.rstrip()):
        match = TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"not arithmetic: {text!r}")
        tokens.append(match.group(1))
        at = match.end()
    tokens.append("")

    def take() -> str:
        return tokens.pop(0)

    def atom() -> float:
        token = take()
        if token == "-":
            return -power()
        if token == "(":
            value = total()
            if take() != ")":
                raise ValueError(f"unbalanced brackets: {text!r}")
        elif token in FUNCTIONS:
            if tokens[0] != "(":
                raise ValueError(f"function without brackets: {text!r}")
            value = FUNCTIONS[token](atom())
        elif token[:1].isdigit():
            value = float(token.replace(",", ""))
        else:
            raise ValueError(f"not arithmetic: {text!r}")
        while tokens[0] in ("%", "‰"):
            value *= 0.01 if take() == "%" else 0.001
        return value

    def power() -> float:
        base = atom()
        if tokens[0] == "^":
            take()
            return base ** power()
        return base

    def product() -> float:
        value = power()
        while tokens[0] in ("×", "÷", "/"):
            value = value * power() if take() == "×" else value / power()
        return value

    def total() -> float:
        value = product()
        while tokens[0] in ("+", "-"):
            value = value + product() if take() == "+" else value - product()
        return value

    result = total()
    if tokens != [""]:
        raise ValueError(f"not arithmetic: {text!r}")
    return result


def _agrees(left: str, right: str) -> bool:
    a, b = evaluate(left), evaluate(right)
    number = LONE_NUMBER.match(right.strip())
    if number is None:  # an intermediate step with rounded operands
        return math.isclose(a, b, rel_tol=2e-3)
    unit = {"%": 0.01, "‰": 0.001, "": 1.0}[number.group(2)] * 10.0 ** -len(number.group(1) or "")
    return abs(a - b) <= 0.5001 * unit + 1e-9 * abs(a)


def calculations(text: str) -> Iterator[Calculation]:
    """Every checked pair of every calculation in `text`."""
    for number, line in enumerate(text.splitlines(), 1):
        parts = re.split(r"[=≈]", line.translate(NORMALISE))
        for left, right in zip(parts, parts[1:], strict=False):
            # The arithmetic that touches the sign, from either side.
            tail = re.search(rf"(?<![A-Za-z])({PART.pattern})\s*(?:\([^()\d]*\))?\s*$", left)
            head = PART.match(right.lstrip())
            if tail is None or head is None:
                continue
            a, b = tail.group(1).strip(), head.group(0).strip()
            while b and b.count("(") > b.count(")"):  # the bracket of a unit: 15(万元)
                b = b[: b.rindex("(")].strip()
            if not any(c.isdigit() for c in a) or not any(c.isdigit() for c in b):
                continue
            b = b.rstrip("+-×÷/^ ")
            try:
                yield Calculation(number, a, b, _agrees(a, b))
            except (ValueError, ZeroDivisionError, OverflowError):
                yield Calculation(number, a, b, False)


def main(paths: list[str]) -> int:
    """Prints the calculations that do not hold; 1 when there are any."""
    wrong = 0
    for path in paths:
        text = Path(path).read_text(encoding="utf-8")
        rows = list(calculations(text))
        for row in rows:
            if not row.holds:
                wrong += 1
                print(f"{path}:{row.line}: {row.left} = {row.right} does not hold")
        chinese = sum("\u4e00" <= c <= "\u9fff" for c in text)
        print(f"{path}: {chinese} Chinese characters, {len(rows)} calculations, "
              f"{sum(r.holds for r in rows)} hold")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
