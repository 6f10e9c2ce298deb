"""Formulas of HTML (MathML) and of Word (Office Math) as LaTeX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_MAX_DEPTH = 60
"""Formulas nested deeper than this come as their bare text."""

_SYMBOLS = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi",
    "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Π": "Pi",
    "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega", "∑": "sum", "∏": "prod", "∫": "int", "∞": "infty",
    "≤": "le", "≥": "ge", "≠": "ne", "≈": "approx", "≡": "equiv", "∈": "in", "×": "times", "÷": "div", "±": "pm",
    "·": "cdot", "→": "to", "∂": "partial", "∇": "nabla", "∀": "forall", "∃": "exists", "…": "ldots", "⋯": "cdots",
    "∪": "cup", "∩": "cap", "⊂": "subset", "√": "surd", "∼": "sim", "∝": "propto",
}  # fmt: skip
_TEXT = {ord(symbol): f"\\{name} " for symbol, name in _SYMBOLS.items()}
_TEXT |= {ord("−"): "-", 0x2061: "", 0x2062: "", 0x2063: "", 0x200B: "", ord("%"): "\\%", ord("#"): "\\#"}
_ACCENTS = {
    "^": "hat", "̂": "hat", "ˆ": "hat", "~": "tilde", "̃": "tilde", "˜": "tilde", "¯": "bar", "̅": "bar", "‾": "bar",
    "→": "vec", "⃗": "vec", "˙": "dot", "̇": "dot", "¨": "ddot", "̈": "ddot",
}  # fmt: skip
_FUNCTIONS = frozenset("log ln exp max min lim sin cos tan sup inf det".split())
_LARGE = "∑∏∫⋃⋂∐"


def _local(node: Any) -> str:
    tag = node.tag if isinstance(node.tag, str) else ""
    return tag.rsplit("}", 1)[-1].rsplit(":", 1)[-1].lower()


def _said(text: str) -> str:
    """Plain characters as LaTeX; Chinese words are set as text."""
    text = " ".join(text.split())
    if any("\u4e00" <= c <= "\u9fff" for c in text):
        return f"\\text{{{text}}}"
    return text.translate(_TEXT)


def _group(text: str) -> str:
    return text if len(text) == 1 else f"{{{text}}}"


def _clean(text: str) -> str:
    return " ".join(text.split())


# ── MathML ───────────────────────────────────────────────────────────────────────────────────────────


def mathml(node: Any) -> str:
    """A `math` element as `$…$`, or `$$…$$` where it is displayed; the author's own LaTeX where it is noted."""
    for note in node.iter():
        if _local(note) == "annotation" and "tex" in (note.get("encoding") or "").lower():
            text = _clean(note.text or "")
            break
    else:
        text = _clean(_mathml(node, 0))
    if not text:
        return ""
    return f"$$\n{text}\n$$" if node.get("display") == "block" else f"${text}$"


def _mathml(node: Any, depth: int) -> str:
    if depth > _MAX_DEPTH:
        return _said("".join(node.itertext()))
    name = _local(node)
    if name in ("mi", "mn", "mo", "ms"):
        text = _said("".join(node.itertext()).strip())
        return f"\\{text} " if name == "mi" and text in _FUNCTIONS else text
    if name == "mtext":
        text = " ".join("".join(node.itertext()).split())
        return f"\\text{{{text}}}" if text else " "
    if name in ("annotation", "annotation-xml"):
        return ""
    parts = [_mathml(child, depth + 1) for child in node if isinstance(child.tag, str)]
    build = _MATHML.get(name)
    if build is None:
        return "".join(parts)
    least, make = build
    return make(parts) if len(parts) >= least else "".join(parts)


def _rows(environment: str, rows: list[str]) -> str:
    return f"\\begin{{{environment}}}" + " \\\\ ".join(rows) + f"\\end{{{environment}}}"


def _over(parts: list[str]) -> str:
    base, above = parts[0], parts[1].strip()
    if above in _ACCENTS:
        return f"\\{_ACCENTS[above]}{{{base}}}"
    limits = base.startswith(("\\sum", "\\prod", "\\int"))
    return f"{base}^{_group(above)}" if limits else f"\\overset{{{above}}}{{{base}}}"


def _under(parts: list[str]) -> str:
    below = parts[1].strip()
    limits = parts[0].startswith(("\\sum", "\\prod", "\\int", "\\max", "\\min", "\\lim"))
    return f"{parts[0]}_{_group(below)}" if limits else f"\\underset{{{below}}}{{{parts[0]}}}"


_MATHML: dict[str, tuple[int, Callable[[list[str]], str]]] = {
    "mfrac": (2, lambda p: f"\\frac{{{p[0]}}}{{{p[1]}}}"),
    "msup": (2, lambda p: f"{p[0]}^{_group(p[1].strip())}"),
    "msub": (2, lambda p: f"{p[0]}_{_group(p[1].strip())}"),
    "msubsup": (3, lambda p: f"{p[0]}_{_group(p[1].strip())}^{_group(p[2].strip())}"),
    "munderover": (3, lambda p: f"{p[0]}_{_group(p[1].strip())}^{_group(p[2].strip())}"),
    "msqrt": (0, lambda p: f"\\sqrt{{{''.join(p)}}}"),
    "mroot": (2, lambda p: f"\\sqrt[{p[1]}]{{{p[0]}}}"),
    "mover": (2, _over),
    "munder": (2, _under),
    "mtd": (0, lambda p: "".join(p)),
    "mtr": (0, lambda p: " & ".join(p)),
    "mtable": (0, lambda p: _rows("matrix", p) if len(p) > 1 else "".join(p)),
    "mspace": (0, lambda p: " "),
    "mfenced": (0, lambda p: f"({','.join(p)})"),
}


# ── Office Math ──────────────────────────────────────────────────────────────────────────────────────


def office_math(node: Any) -> str:
    """An `m:oMath` element of Word as LaTeX without dollar signs."""
    return _clean(_office(node, 0))


def _office(node: Any, depth: int) -> str:
    if depth > _MAX_DEPTH:
        return _said("".join(node.itertext()))
    name = _local(node)
    if name == "t":
        return _said(node.text or "") if (node.text or "").strip() else (node.text or "")
    if name.endswith("pr") or name in ("del", "deltext", "instrtext"):
        return ""
    if name == "m":
        rows = [
            " & ".join(_office(cell, depth + 1) for cell in row if _local(cell) == "e")
            for row in node
            if _local(row) == "mr"
        ]
        return _rows("matrix", rows)
    if name == "eqarr":
        rows = [_office(row, depth + 1) for row in node if _local(row) == "e"]
        return _rows("aligned", rows)
    part: dict[str, str] = {}
    for child in node:
        inner = _local(child)
        if inner in ("e", "num", "den", "sub", "sup", "deg", "fname", "lim"):
            said = _office(child, depth + 1).strip()
            part[inner] = f"{part['e']}, {said}" if inner == "e" and "e" in part else said
    e = part.get("e", "")
    if name == "f":
        return f"\\frac{{{part.get('num', '')}}}{{{part.get('den', '')}}}"
    if name in ("ssup", "ssub", "ssubsup", "spre"):
        return e + _scripts(part)
    if name == "rad":
        return f"\\sqrt[{part['deg']}]{{{e}}}" if part.get("deg") else f"\\sqrt{{{e}}}"
    if name == "nary":
        sign = _property(node, "chr", "∫")
        return (_said(sign) if sign in _LARGE else sign).strip() + _scripts(part) + f" {e}"
    if name == "d":
        return f"{_property(node, 'begChr', '(')}{e}{_property(node, 'endChr', ')')}"
    if name == "acc":
        return f"\\{_ACCENTS.get(_property(node, 'chr', '̂'), 'hat')}{{{e}}}"
    if name == "bar":
        return f"\\overline{{{e}}}"
    if name == "func":
        word = part.get("fname", "")
        return (f"\\{word}" if word in _FUNCTIONS else word) + f" {e}"
    if name == "limlow":
        return f"{e}_{_group(part.get('lim', ''))}"
    if name == "limupp":
        return f"{e}^{_group(part.get('lim', ''))}"
    return "".join(_office(child, depth + 1) for child in node if isinstance(child.tag, str))


def _scripts(part: dict[str, str]) -> str:
    return "".join(f"{mark}{_group(part[key])}" for key, mark in (("sub", "_"), ("sup", "^")) if part.get(key))


def _property(node: Any, name: str, default: str) -> str:
    """The value of a setting below the element's properties; `default` where the file does not say."""
    for child in node:
        if _local(child).endswith("pr"):
            for setting in child:
                if _local(setting) == name.lower():
                    return next((value for key, value in setting.attrib.items() if key.endswith("val")), "")
    return default
