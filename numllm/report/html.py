"""The frame of every report: one HTML file without network, its tables and its parts to unfold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #23272e; --paper: #fff; --line: #d9dce1; --soft: #f4f5f7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6ea; --paper: #16181c; --line: #3a3f47; --soft: #20242a; } }
body { font: 15px/1.55 system-ui, "Noto Sans CJK SC", "PingFang SC", sans-serif; color: var(--ink);
  background: var(--paper); max-width: 1060px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
.wide { overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { border-bottom-width: 2px; } .right { text-align: right; } td.right { white-space: nowrap; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); }
.grid { stroke: var(--line); } .ink { stroke: var(--ink); }
.legend span { margin-right: 1.1rem; } 
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
details { background: var(--soft); padding: .4rem .8rem; margin: .4rem 0; border-radius: 4px; }
pre { background: var(--soft); padding: .6rem .8rem; overflow-x: auto; border-radius: 4px; }
"""


def _right(text: str) -> bool:
    return text[:1] in "+-−–.0123456789" and len(text) < 24


def html_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of one set of keys as a table; figures are aligned to the right."""
    head = "".join(
        f"<th{' class=right' if all(_right(row[key]) or not row[key] for row in rows) else ''}>{escape(key)}</th>"
        for key in rows[0]
    )
    body = "".join(
        "<tr>" + "".join(
            f'<td{" class=right" if _right(value) else ""}>{escape(value)}</td>' for value in row.values()
        ) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def details(summary: str, body: str) -> str:
    """A part that unfolds: a line of text, and HTML below it."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def html_page(title: str, body: str) -> str:
    """A whole page around HTML."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(title)}</h1>{body}</body></html>\n"
    )
