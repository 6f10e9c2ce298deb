"""Readers of HTML, PDF, EPUB and Word files: against the Markdown of real documents, and what each must repair."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from numllm.corpus.archive import MAX_PART
from numllm.corpus.blocks import Block
from numllm.corpus.clean import decode
from numllm.corpus.readers import read, read_file
from numllm.errors import DataError
from scripts import fuzz_readers
from scripts.typeset import FONT, write_docx, write_epub, write_html, write_pdf

pytest.importorskip("lxml")
rapidfuzz = pytest.importorskip("rapidfuzz.distance")

PROSE = "企业应当在资产负债表日对存货进行清查，按照成本与可变现净值孰低计量。"


def solid(blocks: list[Block]) -> str:
    """The characters of blocks that are neither space nor the bar between cells."""
    return "".join("".join(block.render() for block in blocks).split()).replace("|", "")


def agreement(a: list[Block], b: list[Block]) -> float:
    """Edit similarity, 0 … 1: 2·common / (length + length)."""
    return rapidfuzz.Indel.normalized_similarity(solid(a), solid(b))


def headings(blocks: list[Block]) -> list[str]:
    return ["".join(block.text.split()) for block in blocks if block.kind == "heading"]


def shown(blocks: list[Block]) -> list[tuple[str, str]]:
    return [(block.kind, block.text) for block in blocks]


# ── the same content in every format ─────────────────────────────────────────────────────────────────

REAL = [
    "accounting-notes-xajh/source/_posts/finance-accounting/finance-accounting2.md",
    "cas-standards/docs/1.0/22.md",
    "cas-standards/docs/1.0/58.md",
    "d365-finance-zh/articles/supply-chain/cost-management/inventory-value-report-storage.md",
    "d365-finance-zh/articles/supply-chain/landed-cost/landed-cost-entities-voyage-creation.md",
    "laws-just-laws/docs/economic/vehicle-and-vessel-tax-law/README.md",
    "laws-regulations/行政法规/农业保险条例(2016-02-06).md",
    "mgmt-science-economics/docs/comprehensiveManageDepart/economics/consumer.md",
    "moe-site-courses/docs/courses/financial-accounting/lecture-6.md",
    "quantecon-intro-zh/lectures/lln_clt.md",
    "quantecon-python-zh/lectures/markov_asset.md",
    "whale-quant/docs/ch07_量化回测/ch07_量化回测.md",
]


@pytest.mark.parametrize("name", REAL, ids=lambda name: Path(name).parts[0] + "-" + Path(name).stem[:12])
def test_every_format_gives_what_markdown_gives(shared_data: Path, tmp_path: Path, name: str) -> None:
    blocks = read_file(shared_data / "textbooks" / name)
    for write, suffix in ((write_html, "html"), (write_epub, "epub"), (write_docx, "docx")):
        found = read(write(tmp_path / f"a.{suffix}", blocks))
        assert agreement(found.blocks, blocks) >= 0.998, suffix
        assert [b for b in shown(found.blocks) if b[0] in ("heading", "table")] == [
            b for b in shown(blocks) if b[0] in ("heading", "table")
        ]
        assert not found.notes
    rows = {line for block in blocks if block.kind == "table" for line in block.text.split("\n")}
    for columns in (1, 2):
        found = read(write_pdf(tmp_path / f"{columns}.pdf", blocks, columns))
        assert agreement(found.blocks, blocks) >= 0.98, columns
        text = "\n".join(block.text for block in found.blocks)
        assert "教材读本" not in text and not found.notes
        assert headings(found.blocks) == headings(blocks)
        if columns == 1:  # narrow columns break Latin words, which no reader can mend
            assert rows <= set(text.split("\n")) | {row for row in rows if any("a" <= c.lower() <= "z" for c in row)}
        numbers = [int(block.page) for block in found.blocks]
        assert numbers == sorted(numbers) and numbers[0] == 1 and numbers[-1] > 1 or len(solid(blocks)) < 1000


# ── PDF ──────────────────────────────────────────────────────────────────────────────────────────────


def draw(path: Path, pages: list[Callable[[Any], None]], **options: Any) -> Path:
    """A PDF whose pages are drawn by hand; each function gets the canvas."""
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont
    from reportlab.pdfgen.canvas import Canvas

    pdfmetrics.registerFont(UnicodeCIDFont(FONT))
    canvas = Canvas(str(path), invariant=1, **options)
    for page in pages:
        page(canvas)
        canvas.showPage()
    canvas.save()
    return path


def write_lines(canvas: Any, lines: list[str], y: float = 760, x: float = 60, size: float = 10.5) -> None:
    """Lines of 40 characters or fewer; one that begins with two wide spaces is set in."""
    canvas.setFont(FONT, size)
    for k, line in enumerate(lines):
        inner = line.startswith("　　")
        canvas.drawString(x + 2 * size * inner, y - 18 * k, line.lstrip("　"))


def prose_lines(text: str, width: int = 40) -> list[str]:
    """A paragraph as lines of a page, its first line set in."""
    text = "　　" + text
    return [text[k : k + width] for k in range(0, len(text), width)]


def sentences(seed: int, count: int) -> str:
    """Text of wide characters only, so that all full lines are equally long."""
    rng = random.Random(seed)
    digit = "一二三四五六七八九十"
    return "".join(
        f"第{rng.choice(digit)}项{rng.choice('资产设备房屋')}的原价为{rng.choice(digit)}百万元，按直线法计提折旧。"
        for _ in range(count)
    )


def test_pdf_paragraph_over_two_pages_with_a_note_between(tmp_path: Path) -> None:
    text = sentences(1, 8)
    lines = prose_lines(text)

    def first(canvas: Any) -> None:
        write_lines(canvas, lines[:3], 120)
        write_lines(canvas, ["① 本注释说明折旧方法的选择。"], 50, size=8)

    def second(canvas: Any) -> None:
        write_lines(canvas, [*lines[3:], *prose_lines(sentences(2, 4))])

    blocks = read_file(draw(tmp_path / "a.pdf", [first, second]))
    assert shown(blocks) == [
        ("text", text),
        ("text", "本注释说明折旧方法的选择。"),
        ("text", sentences(2, 4)),
    ]
    assert [block.page for block in blocks] == ["1", "1", "2"]


def test_pdf_numbers_that_begin_the_line_of_a_note_stay(tmp_path: Path) -> None:
    def page(canvas: Any) -> None:
        write_lines(canvas, prose_lines(sentences(3, 8)))
        write_lines(canvas, ["1 本注释说明折旧方法的选择，共涉及", "3家公司与", "2 另一注释。"], 90, size=8)

    assert [block.text for block in read_file(draw(tmp_path / "a.pdf", [page]))][1:] == [
        "本注释说明折旧方法的选择，共涉及3家公司与",
        "另一注释。",
    ]


def test_pdf_running_heads_that_change_and_page_numbers_go(tmp_path: Path) -> None:
    def page(number: int) -> Callable[[Any], None]:
        def paint(canvas: Any) -> None:
            write_lines(canvas, [f"第{1 + number // 4}章 {'货币银行总论'[: 2 + number // 4]}"], 810, 300, 8)
            write_lines(canvas, [line for k in range(3) for line in prose_lines(sentences(10 * number + k, 5))])
            write_lines(canvas, [f"— {number + 17} —"], 30, 290, 8)

        return paint

    blocks = read_file(draw(tmp_path / "a.pdf", [page(k) for k in range(8)]))
    assert [block.text for block in blocks] == [sentences(10 * number + k, 5) for number in range(8) for k in range(3)]


def test_pdf_marks_of_notes_go_and_powers_stay(tmp_path: Path) -> None:
    parts = [
        ("会计准则", 0),
        ("①", 4),
        ("规定", 0),
        ("12", 4),
        ("，面积为120m", 0),
        ("2", 4),
        ("，变量x", 0),
        ("i", -3),
        ("为正。", 0),
    ]

    def page(canvas: Any) -> None:
        x = 60.0
        for text, rise in parts:
            size = 6 if rise else 10.5
            canvas.setFont(FONT, size)
            canvas.drawString(x, 760 + rise, text)
            x += canvas.stringWidth(text, FONT, size)

    blocks = read_file(draw(tmp_path / "a.pdf", [page]))
    assert shown(blocks) == [("text", "会计准则规定，面积为120m^2，变量x_i为正。")]


def test_pdf_latin_words_cut_at_line_ends(tmp_path: Path) -> None:
    lines = [
        "Depreciation is charged over the useful life of an asset, as inter-",
        "national standards require. A short-term lease is another mat-",
        "ter, and the lessee need not recognise a liability for a short-",
        "term lease. 折旧额为1,200,",
        "500元。",
    ]

    def page(canvas: Any) -> None:
        canvas.setFont("Helvetica", 10)
        for k, line in enumerate(lines):
            canvas.setFont("Helvetica" if line.isascii() else FONT, 10)
            canvas.drawString(60, 700 - 14 * k, line)

    text = read_file(draw(tmp_path / "a.pdf", [page]))[0].text
    assert "international standards" in text
    assert "another matter, and" in text
    assert text.count("short-term lease") == 2


def test_pdf_watermark_and_twice_printed_type(tmp_path: Path) -> None:
    def page(canvas: Any) -> None:
        write_lines(canvas, [PROSE] * 2)
        write_lines(canvas, ["重点提示"], 600)
        canvas.drawString(60.4, 600, "重点提示")  # a shadow that makes it bold
        canvas.drawString(900, 600, "裁切标记")  # beside the page
        canvas.translate(200, 200)
        canvas.rotate(45)
        canvas.setFont(FONT, 60)
        canvas.drawString(0, 0, "内部资料")

    text = "".join(block.text for block in read_file(draw(tmp_path / "a.pdf", [page])))
    assert "内部资料" not in text and "裁切标记" not in text
    assert text.count("重点提示") == 1


def test_pdf_turned_page(tmp_path: Path) -> None:
    def page(canvas: Any) -> None:
        canvas.rotate(90)
        canvas.translate(0, -595)
        write_lines(canvas, prose_lines(sentences(4, 5)), 500)

    assert shown(read_file(draw(tmp_path / "a.pdf", [page]))) == [("text", sentences(4, 5))]


def test_pdf_table_without_rules(tmp_path: Path) -> None:
    table = ("项目|期初余额|期末余额", "存货|120.5|98", "固定资产||1,200", "增长率|5%|-3.2%")

    def page(canvas: Any) -> None:
        write_lines(canvas, prose_lines(sentences(5, 3)))
        for k, row in enumerate(table):
            for x, cell in zip((60, 200, 340), row.split("|"), strict=True):
                canvas.drawString(x, 600 - 18 * k, cell)
        write_lines(canvas, prose_lines(sentences(6, 3)), 480)

    assert shown(read_file(draw(tmp_path / "a.pdf", [page]))) == [
        ("text", sentences(5, 3)),
        ("table", "项目 | 期初余额 | 期末余额\n存货 | 120.5 | 98\n固定资产 | | 1,200\n增长率 | 5% | -3.2%"),
        ("text", sentences(6, 3)),
    ]


def test_pdf_table_with_merged_cells_over_two_pages(tmp_path: Path) -> None:
    def grid(canvas: Any, top: float, rows: list[list[str]]) -> None:
        canvas.setFont(FONT, 9)
        for k, row in enumerate(rows):
            canvas.line(60, top - 20 * k, 360, top - 20 * k)
            for x, cell in zip((60, 160, 260), row, strict=True):
                canvas.drawString(x + 4, top - 20 * k - 14, cell)
        bottom = top - 20 * len(rows)
        canvas.line(60, bottom, 360, bottom)
        for x in (60, 260, 360):
            canvas.line(x, top, x, bottom)
        canvas.line(160, top - 20, 160, bottom)  # the head's first two fields are one

    def first(canvas: Any) -> None:
        write_lines(canvas, prose_lines(sentences(7, 12)))
        grid(canvas, 140, [["类别", "", "金额"], ["存货", "原材料", "120"]])

    def second(canvas: Any) -> None:
        grid(canvas, 760, [["类别", "", "金额"], ["存货", "半成品", "35.5"]])
        write_lines(canvas, prose_lines(sentences(8, 3)), 600)

    assert shown(read_file(draw(tmp_path / "a.pdf", [first, second])))[1:2] == [
        ("table", "类别 | | 金额\n存货 | 原材料 | 120\n存货 | 半成品 | 35.5")
    ]


def test_pdf_columns_between_text_of_the_full_width(tmp_path: Path) -> None:
    texts = [sentences(20 + k, 6) for k in range(6)]

    def page(canvas: Any) -> None:
        write_lines(canvas, ["商业银行经营管理研究与实务操作指南"], 770, 90, 22)
        for k, (x, y) in enumerate(((60, 730), (314, 723), (60, 400), (314, 400))):  # the baselines differ
            write_lines(canvas, prose_lines(texts[k], 21), y, x)
        write_lines(canvas, prose_lines(texts[4], 45), 530)
        write_lines(canvas, prose_lines(texts[5], 45), 200)

    order = [0, 1, 4, 2, 3, 5]
    assert [block.text for block in read_file(draw(tmp_path / "a.pdf", [page]))] == [
        "商业银行经营管理研究与实务操作指南",
        *[texts[k] for k in order],
    ]


def test_pdf_bookmarks_give_the_depth_of_headings(tmp_path: Path) -> None:
    def page(canvas: Any) -> None:
        for depth, title, y in ((0, "货币与信用", 760), (1, "货币的职能", 600)):
            canvas.bookmarkPage(title)
            canvas.addOutlineEntry(title, title, depth)
            write_lines(canvas, [title], y)  # no larger than the text
            write_lines(canvas, prose_lines(sentences(depth, 4)), y - 40)

    blocks = read_file(draw(tmp_path / "a.pdf", [page]))
    assert [(b.level, b.text) for b in blocks if b.kind == "heading"] == [(1, "货币与信用"), (2, "货币的职能")]


def test_pdf_encrypted(tmp_path: Path) -> None:
    from pypdf import PdfWriter
    from pypdf.constants import UserAccessPermissions as Allowed

    plain = draw(tmp_path / "plain.pdf", [lambda canvas: write_lines(canvas, [PROSE])])

    def encrypted(user: str, allowed: Allowed) -> Path:
        writer = PdfWriter(clone_from=plain)
        writer.encrypt(user, "owner", permissions_flag=allowed, algorithm="AES-256")
        writer.write(tmp_path / "a.pdf")
        return tmp_path / "a.pdf"

    with pytest.raises(DataError, match="an encrypted PDF: it opens with a password only"):
        read(encrypted("geheim", Allowed.all()))
    with pytest.raises(DataError, match="an encrypted PDF whose owner forbids taking text out"):
        read(encrypted("", Allowed.PRINT))
    assert shown(read_file(encrypted("", Allowed.all()))) == [("text", PROSE)]


def without_unicode(path: Path, pages: int, good: int) -> Path:
    """A PDF by hand: the codes of its first pages are in a font that says no characters, those of `good` more in one
    that does."""
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", b""]
    for encoding, ordering in ((b"Identity-H", b"Identity"), (b"UniGB-UCS2-H", b"GB1")):
        objects.append(
            b"<</Type/Font/Subtype/Type0/BaseFont/X/Encoding/%s/DescendantFonts[<</Type/Font/Subtype/CIDFontType0"
            b"/BaseFont/X/CIDSystemInfo<</Registry(Adobe)/Ordering(%s)/Supplement 0>>/DW 1000>>]>>"
            % (encoding, ordering)
        )
    kids = []
    for number in range(pages + good):
        codes = (PROSE if number >= pages else "".join(map(chr, range(3, 60)))).encode("utf-16-be").hex().encode()
        stream = b"BT /F%d 10 Tf 50 400 Td <%s> Tj ET" % (number >= pages, codes)
        objects.append(b"<</Length %d>>\nstream\n%s\nendstream" % (len(stream), stream))
        kids.append(len(objects) + 1)
        objects.append(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents %d 0 R"
            b"/Resources<</Font<</F0 3 0 R/F1 4 0 R>>>>>>" % len(objects)
        )
    objects[1] = b"<</Type/Pages/Count %d/Kids[%s]>>" % (len(kids), b" ".join(b"%d 0 R" % k for k in kids))
    out = io.BytesIO(b"%PDF-1.4\n")
    out.seek(0, 2)
    places = []
    for k, entry in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (k, entry))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % place for place in places))
    out.write(b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, start))
    path.write_bytes(out.getvalue())
    return path


def test_pdf_with_fonts_that_say_no_characters(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fonts do not say which characters they show, on 3 of 4 pages"):
        read(without_unicode(tmp_path / "a.pdf", 3, 1))
    found = read(without_unicode(tmp_path / "b.pdf", 2, 4))
    assert found.notes == ["2 of 6 pages (1-2) left out: their fonts do not say which characters they show"]
    assert [block.page for block in found.blocks] == ["3", "4", "5", "6"]
    assert {block.text for block in found.blocks} == {PROSE}


def test_pdf_with_fonts_that_say_wrong_characters(tmp_path: Path) -> None:
    rng = random.Random(0)
    noise = ["".join(chr(rng.randrange(0x4E00, 0x9FA0)) for _ in range(40)) for _ in range(9)]
    with pytest.raises(DataError, match="fonts do not say"):
        read(draw(tmp_path / "a.pdf", [lambda canvas: write_lines(canvas, noise)]))


def test_pdf_of_pictures(tmp_path: Path) -> None:
    from PIL import Image

    def picture(canvas: Any) -> None:
        canvas.drawInlineImage(Image.new("RGB", (20, 20), "red"), 50, 50, 400, 600)

    with pytest.raises(DataError, match="without text: 1 pages that are pictures"):
        read(draw(tmp_path / "a.pdf", [picture]))
    found = read(draw(tmp_path / "b.pdf", [picture, lambda canvas: write_lines(canvas, [PROSE])]))
    assert shown(found.blocks) == [("text", PROSE)]
    assert found.notes == ["1 of 2 pages (1) hold pictures without text; recognise their text first (OCR)"]


def test_pdf_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    for data in (b"", b"%PDF-1.7\n", b"\0" * 1000, b"not a PDF"):
        path.write_bytes(data)
        with pytest.raises(DataError, match="not a readable PDF|without text"):
            read(path)


# ── EPUB ─────────────────────────────────────────────────────────────────────────────────────────────

CHAPTERS = [
    block for title in ("第一章 货币", "第二章 信用") for block in (Block("heading", title, 1), Block("text", PROSE))
]


def rewritten(path: Path, changes: dict[str, Callable[[str], str] | None]) -> Path:
    """The ZIP with parts changed, or left out."""
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in parts.items():
            change = changes.get(name, lambda text: text)
            if change is not None:
                new.writestr(name, change(data.decode()) if name in changes else data)
    return path


def test_epub_order_title_and_pages(tmp_path: Path) -> None:
    path = rewritten(
        write_epub(tmp_path / "a.epub", CHAPTERS),
        {
            "OEBPS/book.opf": lambda s: s.replace("</metadata>", "<dc:title>货币银行学</dc:title></metadata>"),
            "OEBPS/part0007.xhtml": lambda s: s.replace(
                "<p>", '<p>前文<span epub:type="pagebreak" title="12"/></p><p>', 1
            ).replace("。", '。<a epub:type="noteref" href="#n1">1</a><sup>[2]</sup>'),
        },
    )
    assert [(b.level, b.text, b.page) for b in read_file(path)] == [
        (1, "货币银行学", "OEBPS/part0000.xhtml"),
        (2, "第一章 货币", "OEBPS/part0000.xhtml"),
        (0, PROSE, "OEBPS/part0000.xhtml"),
        (2, "第二章 信用", "OEBPS/part0007.xhtml"),
        (0, "前文", "OEBPS/part0007.xhtml"),
        (0, PROSE, "12"),
    ]


def test_epub_titles_come_from_the_contents_where_parts_have_none(tmp_path: Path) -> None:
    path = write_epub(tmp_path / "a.epub", [Block("text", PROSE)])
    nav = '<nav xmlns="http://www.w3.org/1999/xhtml"><ol><li><a href="part0000.xhtml">绪论</a></li></ol></nav>'
    path = rewritten(path, {"OEBPS/nav.xhtml": lambda _: nav})
    assert shown(read_file(path)) == [("heading", "绪论"), ("text", PROSE)]


def test_epub_encrypted(tmp_path: Path) -> None:
    lock = (
        '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><EncryptedData '
        'xmlns="http://www.w3.org/2001/04/xmlenc#"><EncryptionMethod Algorithm="{}"/><CipherData>'
        '<CipherReference URI="{}"/></CipherData></EncryptedData></encryption>'
    )
    aes = lock.format("http://www.w3.org/2001/04/xmlenc#aes256-cbc", "OEBPS/part0007.xhtml").encode()
    with pytest.raises(DataError, match=r"an encrypted EPUB \(DRM\)"):
        read(write_epub(tmp_path / "a.epub", CHAPTERS, {"META-INF/encryption.xml": aes}))
    font = lock.format("http://www.idpf.org/2008/embedding", "OEBPS/font.otf").encode()
    assert len(read_file(write_epub(tmp_path / "b.epub", CHAPTERS, {"META-INF/encryption.xml": font}))) == 4


def test_epub_with_a_part_missing(tmp_path: Path) -> None:
    found = read(rewritten(write_epub(tmp_path / "a.epub", CHAPTERS), {"OEBPS/part0007.xhtml": None}))
    assert [block.text for block in found.blocks] == ["第一章 货币", PROSE]
    assert found.notes == ["the part 'OEBPS/part0007.xhtml' is missing"]
    with pytest.raises(DataError, match="without a package document"):
        read(rewritten(tmp_path / "a.epub", {"META-INF/container.xml": None, "OEBPS/book.opf": None}))


def test_epub_lines_that_every_part_ends_with_go(tmp_path: Path) -> None:
    blocks = [
        block
        for k in range(4)
        for block in (Block("heading", f"第{k}章", 1), Block("text", sentences(k, 3)), Block("text", "扫码关注公众号"))
    ]
    blocks.insert(2, Block("text", "扫码关注公众号"))
    blocks.insert(3, Block("text", "章中的话"))
    texts = [block.text for block in read_file(write_epub(tmp_path / "a.epub", blocks))]
    assert texts.count("扫码关注公众号") == 1  # within the chapter it is text
    assert len(texts) == 10


def bomb(path: Path, like: Path, name: str, packed: int) -> Path:
    """A ZIP with a part of `packed` bytes of zeros, packed about 1000 to 1, as a deflate stream of equal pieces."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    size = 16 * 2**20
    piece = squeeze.compress(bytes(size)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    count = packed // len(piece)
    stream = piece * count + squeeze.flush(zlib.Z_FINISH)
    with zipfile.ZipFile(like) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for part in old.namelist():
            new.writestr(part, stream if part == name else old.read(part))
        info = new.getinfo(name)  # told only now, so that the stream is written as it is
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, min(size * count, 2**32 - 2)
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, info.header_offset + 8, zipfile.ZIP_DEFLATED)
    path.write_bytes(data)
    return path


def test_zip_bombs_are_refused_before_they_unpack(tmp_path: Path) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    epub = bomb(tmp_path / "a.epub", write_epub(tmp_path / "x.epub", CHAPTERS), "OEBPS/part0007.xhtml", 10 * 2**20)
    docx = bomb(tmp_path / "a.docx", write_docx(tmp_path / "x.docx", CHAPTERS), "word/document.xml", 10 * 2**20)
    for path in (epub, docx):
        assert path.stat().st_size > 9 * 2**20
        with pytest.raises(DataError, match="a zip bomb"):
            read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 2**10
    small = bomb(tmp_path / "b.epub", tmp_path / "x.epub", "OEBPS/part0007.xhtml", 20_000)
    with zipfile.ZipFile(small) as book:
        assert book.getinfo("OEBPS/part0007.xhtml").file_size < MAX_PART
    with pytest.raises(DataError, match="damaged: the part 'OEBPS/part0007.xhtml' cannot be unpacked"):
        read(small)  # its checksum is wrong, as is that of a part that says less than it holds


# ── Word ─────────────────────────────────────────────────────────────────────────────────────────────

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
M = 'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'


def word(path: Path, body: str, numbering: str = "", footnotes: str = "") -> Path:
    """A Word file around the XML of its body."""
    write_docx(path, [])
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    parts["word/document.xml"] = f"<w:document {W} {M}><w:body>{body}</w:body></w:document>".encode()
    if numbering:
        parts["word/numbering.xml"] = f"<w:numbering {W}>{numbering}</w:numbering>".encode()
    if footnotes:
        parts["word/footnotes.xml"] = f"<w:footnotes {W}>{footnotes}</w:footnotes>".encode()
    with zipfile.ZipFile(path, "w") as new:
        for name, data in parts.items():
            new.writestr(name, data)
    return path


def p(text: str, properties: str = "", run: str = "") -> str:
    runs = f"<w:rPr>{run}</w:rPr>" if run else ""
    return f"<w:p><w:pPr>{properties}</w:pPr><w:r>{runs}<w:t>{text}</w:t></w:r></w:p>"


def test_word_numbers_are_written_out(tmp_path: Path) -> None:
    def level(depth: int, style: str, text: str) -> str:
        return (
            f'<w:lvl w:ilvl="{depth}"><w:start w:val="1"/><w:numFmt w:val="{style}"/>'
            f'{"<w:isLgl/>" if "." in text else ""}<w:lvlText w:val="{text}"/></w:lvl>'
        )

    numbering = (
        '<w:abstractNum w:abstractNumId="0">'
        + level(0, "chineseCountingThousand", "第%1章")
        + level(1, "decimal", "%1.%2")
        + '</w:abstractNum><w:abstractNum w:abstractNumId="1">'
        + level(0, "bullet", "l")
        + level(1, "decimalEnclosedCircleChinese", "%2")
        + '</w:abstractNum><w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>'
        '<w:num w:numId="2"><w:abstractNumId w:val="1"/></w:num>'
    )

    def numbered(text: str, number: int, depth: int, style: str = "") -> str:
        return p(text, f'{style}<w:numPr><w:ilvl w:val="{depth}"/><w:numId w:val="{number}"/></w:numPr>')

    chapter = '<w:pStyle w:val="Heading1"/>'
    body = "".join(
        [numbered("货币", 1, 0, chapter), p(PROSE), numbered("信用", 1, 0, chapter), numbered("利息", 1, 1), p(PROSE)]
        + [numbered("甲", 2, 0), numbered("乙", 2, 1), numbered("丙", 2, 1), p(PROSE)]
    )
    assert [block.render() for block in read_file(word(tmp_path / "a.docx", body, numbering))] == [
        "# 第一章 货币",
        PROSE,
        "# 第二章 信用",
        "  2.1 利息",
        PROSE,
        "- 甲\n  ① 乙\n  ② 丙",
        PROSE,
    ]


def test_word_text_that_goes_and_text_that_stays(tmp_path: Path) -> None:
    run = "<w:r><w:t>{}</w:t></w:r>"
    body = (
        "<w:sdt><w:sdtPr><w:docPartObj><w:docPartGallery w:val='Table of Contents'/></w:docPartObj></w:sdtPr>"
        f"<w:sdtContent>{p('目录项 1')}</w:sdtContent></w:sdt>"
        f"<w:p>{run.format('原价')}<w:del><w:r><w:delText>旧</w:delText></w:r></w:del><w:ins>{run.format('为')}</w:ins>"
        "<w:r><w:rPr><w:strike/></w:rPr><w:t>划去</w:t></w:r><w:r><w:rPr><w:vanish/></w:rPr><w:t>隐藏</w:t></w:r>"
        "<w:r><w:rPr><w:strike w:val='0'/></w:rPr><w:t>120m</w:t></w:r>"
        "<w:r><w:rPr><w:vertAlign w:val='superscript'/></w:rPr><w:t>2</w:t></w:r>"
        "<w:r><w:footnoteReference w:id='2'/></w:r><w:r><w:sym w:font='Symbol' w:char='F0B3'/></w:r>"
        "<w:r><w:fldChar w:fldCharType='begin'/></w:r><w:r><w:instrText> PAGE </w:instrText></w:r>"
        "<w:r><w:fldChar w:fldCharType='separate'/></w:r><w:r><w:t>7</w:t></w:r>"
        f"<w:r><w:fldChar w:fldCharType='end'/></w:r>{run.format('。')}</w:p>"
        "<w:p><w:r><w:lastRenderedPageBreak/><w:t>次页</w:t></w:r></w:p>"
        "<w:tbl><w:tr><w:tc><w:tcPr><w:vMerge w:val='restart'/></w:tcPr>" + p("存货") + "</w:tc><w:tc>" + p("原材料") +
        "</w:tc><w:tc>" + p("１２０") + "</w:tc></w:tr><w:tr><w:tc><w:tcPr><w:vMerge/></w:tcPr>" + p("") +
        "</w:tc><w:tc><w:tcPr><w:gridSpan w:val='2'/></w:tcPr>" + p("合计 5％") + "</w:tc></w:tr></w:tbl>"
    )  # fmt: skip
    notes = "".join(
        f"<w:footnote w:type='{kind}'>{p(text)}</w:footnote>"
        for kind, text in (("separator", "线"), ("normal", "注文"))
    )
    blocks = read_file(word(tmp_path / "a.docx", body, footnotes=notes))
    assert [(b.text, b.page) for b in blocks][:3] == [
        ("原价为120m^2≥7。", "1"),
        ("次页", "2"),
        ("存货 | 原材料 | 120\n存货 | 合计5%", "2"),
    ]
    assert blocks[3].text == "注文"


def test_word_formulas_come_as_latex(tmp_path: Path) -> None:
    def r(text: str) -> str:
        return f"<m:r><m:t>{text}</m:t></m:r>"

    root = f"<m:rad><m:radPr><m:degHide m:val='1'/></m:radPr><m:deg/><m:e>{r('x')}</m:e></m:rad>"
    below = f"<m:sSub><m:e>{r('H')}</m:e><m:sub>{r('i')}</m:sub></m:sSub>"
    fraction = f"<m:f><m:num>{r('2DS')}</m:num><m:den>{below}</m:den></m:f>"
    total = (
        "<m:nary><m:naryPr><m:chr m:val='∑'/></m:naryPr>"
        f"<m:sub>{r('t=1')}</m:sub><m:sup>{r('n')}</m:sup><m:e>{r('C')}</m:e></m:nary>"
    )
    body = (
        f"<w:p><w:r><w:t>其中</w:t></w:r><m:oMath>{r('Q=')}{fraction}</m:oMath><w:r><w:t>。</w:t></w:r></w:p>"
        f"<w:p><m:oMathPara><m:oMath>{r('V=')}{total}{r('+')}{root}</m:oMath></m:oMathPara></w:p>"
    )
    assert shown(read_file(word(tmp_path / "a.docx", body))) == [
        ("text", r"其中$Q=\frac{2DS}{H_i}$。"),
        ("math", "$$\nV=\\sum_{t=1}^n C+\\sqrt{x}\n$$"),
    ]


def test_word_encrypted_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    with pytest.raises(DataError, match="an encrypted Word file"):
        read(path)
    path.write_bytes(b"PK\x03\x04nonsense")
    with pytest.raises(DataError, match="damaged"):
        read(path)
    with pytest.raises(DataError, match="'word/document.xml' is not whole XML"):
        read(word(path, p(PROSE) + "<w:p><w:r>" + p(PROSE)))


# ── HTML ─────────────────────────────────────────────────────────────────────────────────────────────

PAGES = [
    (
        "head-of-the-article",
        "<article><header><h1>题</h1><p>作者</p></header><p>正文</p></article>",
        [("heading", "题"), ("text", "正文")],
    ),
    ("navigation", "<div><a>首页</a> <a>新闻</a> <a>财经</a> <a>关于</a></div><p>正文</p>", [("text", "正文")]),
    ("line-ends", "<p>企业应当\n计提 the\nnew 折旧</p>", [("text", "企业应当计提 the new 折旧")]),
    (
        "entries",
        "<pre>借：库存现金 100\n贷：主营业务收入 100</pre><pre>x = 1</pre>",
        [("text", "借：库存现金 100\n贷：主营业务收入 100")],
    ),
    (
        "hidden",
        "<p>甲<span style='display: none'>乙</span><b style='text-decoration:line-through'>丙</b></p>",
        [("text", "甲")],
    ),
    (
        "powers-in-cells",
        "<table><tr><td>10<sup>8</sup>元</td><td>m<sup>2</sup><sup>[1]</sup><sup>**</sup></td></tr></table>",
        [("table", "10^8元 | m^2")],
    ),
    (
        "note-marks",
        "<p>净额<sup><a href='#n1'>1</a></sup>和毛额<sup>2</sup>，x<sup>2</sup>，厘米<sup>3</sup></p>",
        [("text", "净额和毛额，x^2，厘米^3")],
    ),
    ("start", "<ol start='3'><li>甲<li>乙</ol>", [("list", "3. 甲\n4. 乙")]),
    (
        "mathml",
        "<p>设<math><mfrac><mi>a</mi><mn>2</mn></mfrac><mo>≤</mo><msup><mi>x</mi><mn>2</mn></msup></math>。</p>",
        [("text", r"设$\frac{a}{2}\le x^2$。")],
    ),
    (
        "tex-note",
        "<p><math><mi>x</mi><annotation encoding='application/x-tex'>\\alpha+1</annotation></math></p>",
        [("text", r"$\alpha+1$")],
    ),
    ("tex-script", "<p>设<script type='math/tex'>x_1</script>为正</p>", [("text", "设$x_1$为正")]),
    (
        "layout-table",
        "<table><tr><td><h2>题</h2><p>正文</p></td></tr></table>",
        [("heading", "题"), ("text", "正文")],
    ),
]


@pytest.mark.parametrize(("source", "expected"), [case[1:] for case in PAGES], ids=[case[0] for case in PAGES])
def test_html(tmp_path: Path, source: str, expected: list[tuple[str, str]]) -> None:
    path = tmp_path / "a.html"
    path.write_text(f"<html><body>{source}</body></html>", "utf-8")
    assert shown(read_file(path)) == expected


def test_html_nested_deeply(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    for depth, found in ((1500, True), (5000, False)):
        path.write_text("<div>" * depth + f"<p>{PROSE}</p>" + "</div>" * depth, "utf-8")
        if found:
            assert shown(read_file(path)) == [("text", PROSE)]
        else:  # the parser stops there: what follows must not be lost unsaid
            with pytest.raises(DataError, match="nested deeper"):
                read(path)


WORD_PAGE = """<html xmlns:o="urn:schemas-microsoft-com:office:office"><head>
<meta http-equiv=Content-Type content="text/html; charset=gb2312"><style><!-- p.MsoNormal {margin:0} --></style>
<!--[if gte mso 9]><xml><o:x>配置</o:x></xml><![endif]--></head><body lang=ZH-CN><div class=WordSection1>
<p class=MsoToc1><a href="#_Toc1">第一章<span>……</span>3</a></p>
<h1><a name="_Toc1">第一章<span style='mso-spacerun:yes'>&nbsp; </span>存货</a></h1>
<p class=MsoNormal style='text-indent:21.0pt'><span lang=EN-US>120</span>万元<a style='mso-footnote-id:ftn1'
href="#_ftn1"><span class=MsoFootnoteReference>[1]</span></a><o:p></o:p>。</p>
<p class=MsoListParagraph><span style='mso-list:Ignore'>l<span>&nbsp;&nbsp; </span></span>先进先出</p>
<p class=MsoListParagraph><![if !supportLists]><span style='mso-list:Ignore'>1.<span>&nbsp;
</span></span><![endif]>加权平均</p>
<table class=MsoTableGrid><tr><td><p class=MsoNormal>年度</p></td><td><p class=MsoNormal>金额</p></td></tr>
<tr><td><p class=MsoNormal>２０２３</p></td><td><p class=MsoNormal>5％</p></td></tr></table>
<p class=MsoFooter>第 3 页</p></div></body></html>"""


def test_html_saved_by_word(tmp_path: Path) -> None:
    path = tmp_path / "a.htm"
    path.write_bytes(WORD_PAGE.encode("gb18030"))
    assert shown(read_file(path)) == [
        ("heading", "第一章 存货"),
        ("text", "120万元。"),
        ("text", "- 先进先出"),
        ("text", "1. 加权平均"),
        ("table", "年度 | 金额\n2023 | 5%"),
    ]


# ── encodings ────────────────────────────────────────────────────────────────────────────────────────


def test_real_text_in_every_encoding(shared_data: Path) -> None:
    opencc = pytest.importorskip("opencc")
    traditional = opencc.OpenCC("s2t")
    files = sorted((shared_data / "textbooks").rglob("*.md"))
    for path in random.Random(2).sample(files, 25):
        plain = decode(path.read_bytes())
        if sum(c > "\u4dff" for c in plain) < 50:
            continue
        for text in (plain, plain[:400], traditional.convert(plain[:3000])):
            for encoding in "utf-8 utf-8-sig gb18030 gbk utf-16 utf-16-le utf-16-be utf-32 big5hkscs".split():
                if encoding == "big5hkscs" and text is plain:
                    continue  # simplified characters are not in it
                data = text.encode(encoding, "ignore")
                wanted = data.decode(encoding)
                assert decode(data) == wanted, (path.name, encoding)


def test_a_broken_byte_costs_itself(tmp_path: Path) -> None:
    data = bytearray((PROSE * 100).encode())
    data[1501] = 0xFF
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    found = read(path)
    assert "".join(block.text for block in found.blocks).replace("\ufffd", "") in PROSE * 100 or found.notes
    assert found.notes and "broken" in found.notes[0]
    data[::50] = b"\xff" * len(data[::50])
    path.write_bytes(data)
    with pytest.raises(DataError, match="neither UTF-8"):
        read(path)


def test_a_page_says_its_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    pairs = (("gb2312", "gb18030"), ("big5", "big5hkscs"), ("iso-8859-1", "gb18030"), ("x-none", "utf-8"))
    for declared, actual in pairs:
        path.write_bytes(f'<meta charset="{declared}"><p>資產負債表與損益表的編製</p>'.encode(actual))
        assert shown(read_file(path)) == [("text", "資產負債表與損益表的編製")]


# ── any file ─────────────────────────────────────────────────────────────────────────────────────────


def test_mutants_of_every_format(tmp_path: Path) -> None:
    tally, wrong = fuzz_readers.run(150, 11, tmp_path)
    assert not wrong
    assert {what.split(" ")[0] for what in tally} == {".md", ".txt", ".html", ".pdf", ".epub", ".docx"}
    assert sum(number for what, number in tally.items() if what.endswith("read")) > 30


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    write_epub(tmp_path / "a.epub", CHAPTERS)
    write_docx(tmp_path / "a.docx", CHAPTERS)
    write_pdf(tmp_path / "a.pdf", CHAPTERS)
    for name in ("lxml", "pdfminer.converter"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("a.epub", "a.docx", "a.pdf"):
        with pytest.raises(DataError, match=r"numllm\[textbooks\]"):
            read(tmp_path / name)
