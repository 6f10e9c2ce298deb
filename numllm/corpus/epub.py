"""EPUB books as blocks: the parts in the order of the spine, each read as HTML."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import DataError
from .archive import Archive
from .blocks import Block, Reading
from .clean import decode, normalise
from .webpage import html_blocks, parse_html

_FONT_ALGORITHMS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
"""These only scramble fonts."""
_PAGE_TYPES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml", "text/x-oeb1-document")


def read_epub(path: Path) -> Reading:
    """The blocks of an EPUB 2 or 3; each says its printed page where the book marks them, else its part.

    The book's title is the highest heading; a part without a heading gets the one that the table of contents
    gives it; that table itself goes, and so does what many parts begin or end with. DataError for encrypted
    (DRM) and damaged books.
    """
    with Archive(path) as book:
        package_name = _package(book)
        package = book.xml(package_name)
        base = posixpath.dirname(package_name)
        items = {item.get("id") or "": (_below(base, item.get("href") or ""), item) for item in package.iter("{*}item")}
        locked = _locked(book)
        titles = _contents(book, base, items)
        parts: list[list[Block]] = []
        notes: list[str] = []
        page = ""
        for reference in package.iter("{*}itemref"):
            name, item = items.get(reference.get("idref") or "", ("", None))
            if item is None or "nav" in (item.get("properties") or "").split():
                continue
            if (item.get("media-type") or _PAGE_TYPES[0]) not in _PAGE_TYPES:
                continue
            if name in locked:
                raise DataError(f"an encrypted EPUB (DRM): the part {name!r} cannot be read")
            if name not in book:
                notes.append(f"the part {name!r} is missing")
                continue
            found = _part(book, name, page)
            if found and found[-1].page not in (name, ""):
                page = found[-1].page  # printed pages go on from part to part
            if name in titles and not any(block.kind == "heading" for block in found):
                title, depth = titles[name]
                found.insert(0, Block("heading", title, depth, found[0].page if found else name))
            parts.append(found)
        blocks = [block for part in _without_furniture(parts) for block in part]
        if not blocks and locked:
            raise DataError("an encrypted EPUB (DRM)")
        title = normalise(" ".join("".join(node.itertext()) for node in list(package.iter("{*}title"))[:1]))
    if title and not any(b.kind == "heading" and b.text == title for b in blocks):
        below = [b._replace(level=b.level + 1) if b.kind == "heading" else b for b in blocks]
        blocks = [Block("heading", title, 1, blocks[0].page), *below] if blocks else []
    return Reading(blocks, notes)


def _below(base: str, href: str) -> str:
    return posixpath.normpath(posixpath.join(base, unquote(href.split("#")[0])))


def _package(book: Archive) -> str:
    """The name of the package document."""
    if "META-INF/container.xml" in book:
        for node in book.xml("META-INF/container.xml").iter("{*}rootfile"):
            name = unquote(node.get("full-path") or "")
            if name in book:
                return name
    name = next((name for name in book.parts if name.lower().endswith(".opf")), None)
    if name is None:
        raise DataError("damaged: an EPUB without a package document")
    return name


def _locked(book: Archive) -> set[str]:
    """The parts that are encrypted; scrambled fonts do not count."""
    if "META-INF/encryption.xml" not in book:
        return set()
    found = set()
    for entry in book.xml("META-INF/encryption.xml").iter("{*}EncryptedData"):
        method = next((node.get("Algorithm") or "" for node in entry.iter("{*}EncryptionMethod")), "")
        if method not in _FONT_ALGORITHMS:
            found |= {unquote(node.get("URI") or "") for node in entry.iter("{*}CipherReference")}
    return found


def _contents(book: Archive, base: str, items: dict[str, tuple[str, Any]]) -> dict[str, tuple[str, int]]:
    """Part → (title, depth) as the table of contents has them, for parts that it names as a whole."""
    found: dict[str, tuple[str, int]] = {}
    for name, item in items.values():
        if name not in book:
            continue
        here = posixpath.dirname(name)
        if item.get("media-type") == "application/x-dtbncx+xml":
            for point in book.xml(name).iter("{*}navPoint"):
                label = next((node.text or "" for node in point.iter("{*}text")), "")
                target = next((node.get("src") or "" for node in point.iter("{*}content")), "")
                depth = 1 + sum(1 for _ in point.iterancestors("{*}navPoint"))
                found.setdefault(_below(here, target), (normalise(label), min(depth, 6)))
        elif "nav" in (item.get("properties") or "").split():
            for link in book.xml(name).iter("{*}a"):
                depth = sum(1 for _ in link.iterancestors("{*}ol"))
                label = normalise("".join(link.itertext()))
                if depth:
                    found.setdefault(_below(here, link.get("href") or ""), (label, min(depth, 6)))
    return {name: entry for name, entry in found.items() if entry[0]}


def _without_furniture(parts: list[list[Block]]) -> list[list[Block]]:
    """The parts without the short paragraphs that half of them, and at least three, begin or end with."""
    edges = Counter(
        text for part in parts for text in {b.text for b in (*part[:1], *part[-1:]) if b.kind != "heading"}
    )
    repeated = {text for text, count in edges.items() if count >= max(3, len(parts) / 2) and len(text) <= 120}
    kept = []
    for part in parts:
        while part and part[-1].text in repeated:
            part = part[:-1]
        while part and part[0].text in repeated:
            part = part[1:]
        kept.append(part)
    return kept


def _part(book: Archive, name: str, page: str) -> list[Block]:
    try:
        text = decode(book.read(name), markup=True)
    except DataError as error:
        if "empty" in str(error):
            return []
        raise
    root = parse_html(text)
    body = next(root.iter("body"), root)
    marked = page and re.search(r"pagebreak", text)
    return html_blocks(body, page if marked else name)
