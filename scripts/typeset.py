"""Writes one run of blocks as HTML, EPUB, DOCX and PDF by public tools: what the readers are compared on."""

from __future__ import annotations

import html
import zipfile
from pathlib import Path
from typing import Any

from numllm.corpus.blocks import Block

FONT = "STSong-Light"
"""One of the Chinese fonts that PDF viewers bring along; reportlab knows its widths."""


def rows(block: Block) -> list[list[str]]:
    """The cells of a table block."""
    found = [line.split(" | ") for line in block.text.split("\n")]
    width = max(map(len, found))
    return [[*row, *[""] * (width - len(row))] for row in found]


# ── HTML, EPUB ───────────────────────────────────────────────────────────────────────────────────────


def body(blocks: list[Block]) -> str:
    """The blocks as HTML elements."""
    parts = []
    for block in blocks:
        text = html.escape(block.text)
        if block.kind == "heading":
            parts.append(f"<h{block.level}>{text}</h{block.level}>")
        elif block.kind == "table":
            cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows(block)]
            parts.append("<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>")
        else:
            parts += [f"<p>{line}</p>" for line in text.split("\n")]
    return "\n".join(parts)


def write_html(path: Path, blocks: list[Block]) -> Path:
    """A page with navigation around the text."""
    path.write_text(
        "<!DOCTYPE html><html><head><meta charset='utf-8'><title>网站</title><script>var a = '脚本';</script></head>"
        "<body><header>网站名称</header><nav><ul><li><a href='/'>首页</a></li></ul></nav>"
        f"<div class='sidebar'>菜单一览</div><main>{body(blocks)}</main><footer>版权所有</footer></body></html>",
        "utf-8",
    )
    return path


def chapters(blocks: list[Block]) -> list[list[Block]]:
    """The blocks cut before every heading of the two highest levels."""
    found: list[list[Block]] = [[]]
    for block in blocks:
        if block.kind == "heading" and block.level <= 2 and found[-1]:
            found.append([])
        found[-1].append(block)
    return found


def write_epub(path: Path, blocks: list[Block], extra: dict[str, bytes] | None = None) -> Path:
    """An EPUB 3 whose files stand in another order than its spine."""
    names = [f"part{(7 * k) % 1009:04d}.xhtml" for k in range(len(chapters(blocks)))]
    items = "".join(f'<item id="c{k}" href="{n}" media-type="application/xhtml+xml"/>' for k, n in enumerate(names))
    spine = "".join(f'<itemref idref="c{k}"/>' for k in range(len(names)))
    package = (
        '<?xml version="1.0" encoding="UTF-8"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0">'
        '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"></metadata><manifest>'
        '<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
        f'{items}</manifest><spine><itemref idref="nav"/>{spine}</spine></package>'
    )
    container = (
        '<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
    )
    page = '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><body>{}</body></html>'
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        book.writestr("META-INF/container.xml", container)
        book.writestr("OEBPS/book.opf", package)
        book.writestr("OEBPS/nav.xhtml", page.format("<nav><ol><li>目录项</li></ol></nav>"))
        for name, part in sorted(zip(names, chapters(blocks), strict=True)):
            book.writestr(f"OEBPS/{name}", page.format(body(part)))
        for name, data in (extra or {}).items():
            book.writestr(name, data)
    return path


# ── DOCX ─────────────────────────────────────────────────────────────────────────────────────────────


def write_docx(path: Path, blocks: list[Block]) -> Path:
    """A Word file with Word's own heading styles, a running head and a page number."""
    from docx import Document

    document = Document()
    document.sections[0].header.paragraphs[0].text = "页眉文字"
    for block in blocks:
        if block.kind == "heading":
            document.add_heading(block.text, block.level)
        elif block.kind == "table":
            cells = rows(block)
            table = document.add_table(len(cells), len(cells[0]))
            for line, row in zip(cells, table.rows, strict=True):
                for text, cell in zip(line, row.cells, strict=True):
                    cell.text = text
        else:
            for line in block.text.split("\n"):
                document.add_paragraph(line)
    document.save(path)
    return path


# ── PDF ──────────────────────────────────────────────────────────────────────────────────────────────


def write_pdf(path: Path, blocks: list[Block], columns: int = 1, head: str = "教材读本", packed: int = 1) -> Path:
    """Typeset by reportlab: first lines set in, page numbers below; with two columns, running heads above.

    packed: 0 leaves the pages' instructions uncompressed.
    """
    from reportlab.lib.pagesizes import A4
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont
    from reportlab.platypus import BaseDocTemplate, Frame, PageTemplate

    pdfmetrics.registerFont(UnicodeCIDFont(FONT))
    wide, high = A4
    left, gap, top = 60, 24, 70
    each = (wide - 2 * left - gap * (columns - 1)) / columns
    frames = [Frame(left + k * (each + gap), top, each, high - 2 * top, 0, 0, 0, 0, id=str(k)) for k in range(columns)]

    def furniture(canvas: Any, document: Any) -> None:
        canvas.setFont(FONT, 8)
        canvas.drawCentredString(wide / 2, 40, f"— {document.page} —" if columns > 1 else str(document.page))
        if columns > 1:
            canvas.drawString(left, high - 45, head if document.page % 2 else f"第{document.page}页")
            canvas.drawRightString(wide - left, high - 45, f"第{document.page}页" if document.page % 2 else head)
            canvas.line(left, high - 50, wide - left, high - 50)

    story = [piece for block in blocks for piece in _flowables(block, each)]
    document = BaseDocTemplate(str(path), pagesize=A4, invariant=1, pageCompression=packed)
    document.addPageTemplates(PageTemplate(frames=frames, onPage=furniture))
    document.build(story)
    return path


def _flowables(block: Block, width: float) -> list[Any]:
    from reportlab.lib import colors
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.platypus import Paragraph, Table, TableStyle

    def paragraph(text: str, size: float = 10.5, **changes: Any) -> Any:
        style = ParagraphStyle("x", fontName=FONT, fontSize=size, leading=1.5 * size, wordWrap="CJK", **changes)
        return Paragraph(html.escape(text), style)

    if block.kind == "heading":
        size = {1: 20, 2: 16, 3: 14, 4: 13, 5: 12.5}.get(block.level, 12)
        return [paragraph(block.text, size, spaceBefore=10, spaceAfter=6, keepWithNext=1)]
    if block.kind == "table":
        cells = rows(block)
        style = TableStyle([("GRID", (0, 0), (-1, -1), 0.5, colors.black), ("VALIGN", (0, 0), (-1, -1), "TOP")])
        each = width / len(cells[0])
        return [Table([[paragraph(c, 9) for c in row] for row in cells], [each] * len(cells[0]), style=style)]
    if block.kind == "text":
        return [paragraph(line, firstLineIndent=21, spaceAfter=2) for line in block.text.split("\n")]
    return [paragraph(line, leftIndent=21, spaceAfter=1) for line in block.text.split("\n")]
