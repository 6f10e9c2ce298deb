"""The pages of a PDF as glyphs and ruled lines, by pdfminer.six (extra `textbooks`)."""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

from ..errors import DataError
from .archive import brief

MAX_PAGES = 20_000
MAX_GLYPHS = 60_000
"""Of one page; what comes after them is left out, and the page is named."""
_MAX_POINTS = 4_000
_RULE_LENGTH = 8.0
"""Shorter strokes, in points, are drawings, no rules."""
_BOLD = re.compile(r"bold|heavy|black|hei|黑", re.IGNORECASE)


class Glyph(NamedTuple):
    """A character on the page: its text, left and right edge, baseline and size in points."""

    text: str
    x0: float
    x1: float
    y: float
    size: float
    bold: bool
    spaced: bool
    """Whether a space stands before it in the file."""


class Rule(NamedTuple):
    """A ruled line along an axis: at `at` (y of a horizontal one, x of a vertical one), from `start` to `end`."""

    at: float
    start: float
    end: float


@dataclass
class Page:
    """A page, its origin in the lower left corner, y upwards; turned so that its text reads level."""

    number: int
    width: float
    height: float
    glyphs: list[Glyph] = field(default_factory=list)
    level: list[Rule] = field(default_factory=list)
    upright: list[Rule] = field(default_factory=list)
    unknown: int = 0
    """Glyphs whose font does not say which character they are."""
    images: int = 0
    cut: bool = False
    damaged: bool = False


class Document:
    """An open PDF. DataError when it is damaged, encrypted, or its owner forbids taking text out of it."""

    def __init__(self, file: BinaryIO) -> None:
        try:
            from pdfminer.converter import PDFLayoutAnalyzer
            from pdfminer.pdfdocument import PDFDocument, PDFEncryptionError, PDFPasswordIncorrect
            from pdfminer.pdfinterp import PDFPageInterpreter, PDFResourceManager
            from pdfminer.pdfpage import PDFPage
            from pdfminer.pdfparser import PDFParser
        except ImportError as error:
            raise DataError("PDF needs pdfminer.six; install it with: pip install 'numllm[textbooks]'") from error
        logging.getLogger("pdfminer").setLevel(logging.CRITICAL)  # it warns of every slip in a file

        class Device(PDFLayoutAnalyzer):
            page: Any = None

            def receive_layout(self, ltpage: Any) -> None:
                self.page = ltpage

        try:
            self.pdf = PDFDocument(PDFParser(file))
            self.sheets = list(islice(PDFPage.create_pages(self.pdf), MAX_PAGES + 1))
        except PDFPasswordIncorrect as error:
            raise DataError("an encrypted PDF: it opens with a password only") from error
        except PDFEncryptionError as error:
            raise DataError(f"an encrypted PDF ({brief(error)})") from error
        except MemoryError:
            raise
        except Exception as error:  # whatever a parser meets in a damaged file
            raise DataError(f"not a readable PDF ({brief(error)})") from error
        if not self.pdf.is_extractable:
            raise DataError("an encrypted PDF whose owner forbids taking text out of it")
        if len(self.sheets) > MAX_PAGES:
            raise DataError(f"a PDF of more than {MAX_PAGES} pages")
        self.device = Device(PDFResourceManager(), laparams=None)
        self.interpreter = PDFPageInterpreter(self.device.rsrcmgr, self.device)

    def outline(self) -> list[tuple[str, int]]:
        """The bookmarks: (title, depth from 1)."""
        try:
            return [(str(title), level) for level, title, *_ in islice(self.pdf.get_outlines(), 20_000)]
        except MemoryError:
            raise
        except Exception:  # none, or damaged ones: headings are told by their type then
            return []

    def pages(self, step: int = 1) -> Iterator[Page]:
        """Every `step`-th page, in order; of one that is damaged what comes before the damage."""
        for index in range(0, len(self.sheets), step):
            self.device.page = None
            damaged = False
            try:
                self.interpreter.process_page(self.sheets[index])
            except MemoryError:
                raise
            except Exception:  # whatever a parser meets in a damaged file
                damaged = True
            shown = self.device.page
            page = Page(index + 1, *(shown.width, shown.height) if shown else (0.0, 0.0), damaged=damaged)
            if shown:
                self._collect(shown, page)
            yield page

    def _collect(self, shown: Any, page: Page) -> None:
        """Fills in glyphs, rules and the count of pictures from what pdfminer has laid out."""
        from pdfminer.layout import LTChar, LTContainer, LTCurve, LTImage

        glyphs: list[tuple[Glyph, int]] = []
        bold: dict[str, bool] = {}
        spaced = False
        stack = [iter(shown)]
        while stack:
            thing = next(stack[-1], None)
            if thing is None:
                stack.pop()
            elif isinstance(thing, LTChar):
                text = thing.get_text()
                if text.isspace():
                    spaced = True
                    continue
                if len(glyphs) >= MAX_GLYPHS:
                    page.cut = True
                    break
                if _is_unknown(text):
                    page.unknown += 1
                    text = "\ufffd"
                elif "\ufb00" <= text <= "\ufb06":
                    text = unicodedata.normalize("NFKC", text)  # the ligature of f and i, and its like
                if thing.fontname not in bold:
                    bold[thing.fontname] = bool(_BOLD.search(thing.fontname))
                glyphs.append(_glyph(thing, text, bold[thing.fontname], spaced))
                spaced = False
            elif isinstance(thing, LTCurve):
                _add_strokes(thing, page)
            elif isinstance(thing, LTImage):
                page.images += 1
            elif isinstance(thing, LTContainer):
                stack.append(iter(thing))
        turns = Counter(turn for _, turn in glyphs)
        main = max(turns, key=turns.__getitem__, default=0)
        page.glyphs = [glyph for glyph, turn in glyphs if turn == main]
        _turn(page, main)
        page.glyphs = [glyph for glyph in page.glyphs if _is_seen(glyph, page)]


def _is_seen(glyph: Glyph, page: Page) -> bool:
    """Whether a glyph stands on the page; what a file puts beside it, or in no size, nobody reads."""
    return glyph.size > 0.5 and -5 <= glyph.x0 <= glyph.x1 <= page.width + 5 and -5 <= glyph.y <= page.height + 5


def _glyph(thing: Any, text: str, bold: bool, spaced: bool) -> tuple[Glyph, int]:
    """A glyph and the direction it is written in, degrees / 90; -1 for text set askew, such as watermarks."""
    a, b, c, d, x, y = thing.matrix
    angle = math.degrees(math.atan2(b, a)) % 360 if a or b else 0.0
    turn = round(angle / 90)
    turn = turn % 4 if abs(angle - 90 * turn) < 3 else -1
    x0, y0, x1, y1 = thing.bbox
    if turn in (1, 3):
        return Glyph(text, y0, y1, x, x1 - x0, bold, spaced), turn
    return Glyph(text, x0, x1, y, y1 - y0, bold, spaced), turn


def _add_strokes(curve: Any, page: Page) -> None:
    """Adds the level and upright strokes of a path of straight lines."""
    points = curve.pts
    if len(points) > _MAX_POINTS or any(step[0] in "cvy" for step in curve.original_path or ()):
        return
    for a, b in zip(points, points[1:], strict=False):
        _add_stroke(page, a, b)


def _is_unknown(text: str) -> bool:
    """Whether the text of a glyph is none: "(cid:12)" stands for a code that no table explains."""
    if len(text) > 3 and text.startswith("(cid:"):
        return True
    return not text or any(unicodedata.category(c) in ("Cc", "Co", "Cn", "Cs") or c == "\ufffd" for c in text)


def _add_stroke(page: Page, a: tuple[float, float], b: tuple[float, float]) -> None:
    (ax, ay), (bx, by) = a, b
    if abs(ay - by) <= 1 and abs(ax - bx) >= _RULE_LENGTH:
        page.level.append(Rule((ay + by) / 2, min(ax, bx), max(ax, bx)))
    elif abs(ax - bx) <= 1 and abs(ay - by) >= _RULE_LENGTH:
        page.upright.append(Rule((ax + bx) / 2, min(ay, by), max(ay, by)))


def _turn(page: Page, quarter: int) -> None:
    """Turns the page back so that text written at 90, 180 or 270 degrees reads level."""
    wide, high = page.width, page.height

    def flip(rules: list[Rule], length: float, along: float, mirror_at: bool, mirror_along: bool) -> list[Rule]:
        return [
            Rule(
                length - rule.at if mirror_at else rule.at,
                along - rule.end if mirror_along else rule.start,
                along - rule.start if mirror_along else rule.end,
            )
            for rule in rules
        ]

    if quarter == 2:
        page.glyphs = [g._replace(x0=wide - g.x1, x1=wide - g.x0, y=high - g.y) for g in page.glyphs]
        page.level = flip(page.level, high, wide, True, True)
        page.upright = flip(page.upright, wide, high, True, True)
    elif quarter == 1:  # text runs up the page: (x, y) → (y, width - x)
        page.glyphs = [g._replace(y=wide - g.y) for g in page.glyphs]
        page.level, page.upright = (
            flip(page.upright, wide, high, True, False),
            flip(page.level, high, wide, False, True),
        )
        page.width, page.height = high, wide
    elif quarter == 3:  # down the page: (x, y) → (height - y, x)
        page.glyphs = [g._replace(x0=high - g.x1, x1=high - g.x0) for g in page.glyphs]
        page.level, page.upright = (
            flip(page.upright, wide, high, False, True),
            flip(page.level, high, wide, True, False),
        )
        page.width, page.height = high, wide
