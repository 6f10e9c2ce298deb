"""HTML as blocks, by lxml (extra `textbooks`): pages of the web, files saved by Word, the parts of an EPUB."""

from __future__ import annotations

import re
from typing import Any

from ..errors import DataError
from .blocks import Block
from .clean import CJK_MARKS, HAN, han_count, normalise
from .latex import mathml
from .lines import is_readable_code
from .markup import raised, read_tables

_GONE = frozenset(
    (
        "script style noscript template nav footer form iframe svg canvas button select textarea head "
        "object embed video audio del s strike input col"
    ).split()
)
_WHOLE = frozenset(("html", "body", "main", "article"))
_BOILERPLATE = re.compile(
    r"(?:^|[-_ ])(?:nav|navbar|navigation|menu|sidebar|breadcrumbs?|footer|toc|pagination|cookie|share)(?:$|[-_ ])"
    r"|\bMso(?:Toc\d?|Header|Footer|CommentText)",
    re.I,
)
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden|line-through|mso-hide\s*:\s*all", re.I)
_BLOCKS = frozenset(
    "address article aside blockquote body center dd details div dl dt fieldset figcaption figure header hr html li "
    "main ol p section summary table tbody td tfoot th thead tr ul".split()
)
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_NOTE_LINK = re.compile(r"noteref|footnote|endnote|mso-(?:foot|end)note-id", re.I)
_MARK = re.compile(r"[\[(（〔]?[\d*†‡①-⑳]{1,3}[\])）〕]?")
_BULLETS = frozenset("lnuØüv·§•o–-◆●■")
"""What Word writes for bullets; the letters are drawn as shapes by its symbol fonts."""
_WIDE = f"[{HAN}{CJK_MARKS}]"
_LINE_END = re.compile(f"(?<={_WIDE})\x1f(?={_WIDE})")
_SELF_CLOSED = re.compile(
    r"<(?!(?:area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr)\b)"
    r"([A-Za-z][\w:-]{0,30})((?:\s[^<>]{0,2000}?)?)/>"
)
"""`<a/>` is whole in XHTML, but to an HTML parser it is open."""
_TEX_SCRIPT = re.compile(r"math/tex")


def parse_html(text: str) -> Any:
    """The tree of a page. DataError when it is no HTML, or names the extra when lxml is not installed."""
    try:
        from lxml import etree
    except ImportError as error:
        raise DataError("HTML needs lxml; install it with: pip install 'numllm[textbooks]'") from error
    # The text is decoded already; a declaration that names another encoding must not confuse the parser.
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text).replace("\0", "")
    if "http://www.w3.org/1999/xhtml" in text[:2000]:
        text = _SELF_CLOSED.sub(r"<\1\2></\1>", text)
    parser = etree.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, no_network=True, huge_tree=True)
    try:
        root = etree.fromstring(text.encode("utf-8", "replace"), parser)
    except etree.LxmlError as error:
        raise DataError(f"not HTML: {error}") from error
    if root is None:
        raise DataError("not HTML: nothing in it")
    if any(entry.type_name == "ERR_RESOURCE_LIMIT" for entry in parser.error_log):
        raise DataError("HTML nested deeper than 2,000 elements, or with a text beyond all measure")
    return root


def read_html(text: str) -> list[Block]:
    """The blocks of an HTML page: its main text without navigation, scripts and code.

    DataError names the extra when lxml is not installed.
    """
    root = parse_html(text)
    titles = [normalise("".join(node.itertext())) for node in root.iter("title")][:1]
    main = next(iter(root.xpath("//main|//*[@role='main']|//article")), None)
    if main is None:
        main = next(root.iter("body"), root)
    blocks = html_blocks(main)
    if titles and titles[0] and not any(block.kind == "heading" and block.level == 1 for block in blocks):
        blocks.insert(0, Block("heading", titles[0], 1))
    return blocks


def html_blocks(root: Any, page: str = "") -> list[Block]:
    """The blocks below an element; `page` is where they stand until the text marks a page of its own."""
    walker = _Walker(page)
    walker.walk(root)
    walker.flush()
    return walker.blocks


def _marks(node: Any) -> str:
    """What an element calls itself: its classes, id and role."""
    return " ".join(node.get(key) or "" for key in ("class", "id", "role"))


def _kind(node: Any) -> str:
    """The `epub:type` or role of an element."""
    return f"{node.get('epub:type') or ''} {node.get('role') or ''}"


def _text(node: Any) -> str:
    return "".join(node.itertext())


def _is_navigation(node: Any) -> bool:
    """Whether a block is little but short links: four or more, without a sentence."""
    links = [_text(link).strip() for link in node.iter("a")]
    if len(links) < 4:
        return False
    text = "".join(_text(node).split())
    linked = sum(len("".join(link.split())) for link in links)
    return "。" not in text and linked >= 0.8 * len(text) and linked <= 20 * len(links)


class _Walker:
    """Turns the tree into blocks, without recursion: pages may be nested as deep as they like."""

    def __init__(self, page: str) -> None:
        self.blocks: list[Block] = []
        self.words: list[str] = []
        self.page = page
        self.began = page
        """The page on which the text collected so far begins."""
        self.heading = 0
        self.marks: list[str] = []
        """The mark, `- ` or `1. `, of each list item that is open, "" once it is written."""
        self.lists: list[int] = []
        """For each open list the number of its last item; -1 for lists that carry none."""

    def add(self, kind: Any, text: str, level: int = 0) -> None:
        text = "\n".join(line for line in (part.strip() for part in text.split("\n")) if line)
        if text:
            self.blocks.append(Block(kind, text, level, self.began))

    def flush(self) -> None:
        """Ends the text collected so far: a heading, a paragraph, or a line of a list inside list items."""
        text, self.words = normalise(_LINE_END.sub("", "".join(self.words)).replace("\x1f", " ")), []
        if not text:
            return
        if self.heading:
            self.add("heading", " ".join(text.split("\n")), self.heading)
        elif text.startswith("$$") and text.endswith("$$") and text.count("$$") == 2:
            self.add("math", text)
        elif not self.marks:
            self.add("text", text)
        else:
            line = f"{'  ' * (len(self.marks) - 1)}{self.marks[-1]}{text}".replace("\n", " ")
            self.marks[-1] = ""  # further paragraphs of an item carry no mark
            page = self.began
            if self.blocks and self.blocks[-1].kind == "list":
                page, line = self.blocks[-1].page, f"{self.blocks.pop().text}\n{line}"
            self.blocks.append(Block("list", line, 0, page))

    def say(self, text: str | None) -> None:
        if text:
            if not self.words:
                self.began = self.page
            self.words.append(re.sub(r"[ \t\r\f]+", " ", re.sub(r"[ \t\r\f]*\n[ \t\r\f\n]*", "\x1f", text)))

    def walk(self, root: Any) -> None:
        stack: list[tuple[str, Any]] = [("open", root)]
        while stack:
            action, node = stack.pop()
            if action == "say":
                self.say(node)
            elif action == "close":
                self.flush()
                if node.tag == "li":
                    self.marks.pop()
                elif node.tag in ("ol", "ul"):
                    self.lists.pop()
                elif node.tag in _HEADINGS:
                    self.heading = 0
            else:
                self._open(node, stack)

    def _descend(self, node: Any, stack: list[tuple[str, Any]]) -> None:
        for child in reversed(node):
            stack.append(("say", child.tail))
            stack.append(("open", child))
        stack.append(("say", node.text))

    def _open(self, node: Any, stack: list[tuple[str, Any]]) -> None:
        name = node.tag
        if not isinstance(name, str) or self._is_gone(node, name):
            return
        kind = _kind(node)
        if "pagebreak" in kind:
            self.page = node.get("title") or node.get("aria-label") or _text(node).strip() or self.page
        elif name == "br":
            self.words.append("\n")
        elif name in ("math", "m:math", "mml:math"):
            self.words.append(mathml(node))
        elif name == "img":
            alt = node.get("alt") or ""
            if "math" in _marks(node) and "\\" in alt:
                self.words.append(f"${alt.strip()}$")
        elif name == "pre":
            self.flush()
            if is_readable_code(text := _text(node)):
                self.add("text", normalise(text))
        elif name == "table" and not self._is_layout(node):
            self._table(node)
        elif name == "a" and (_NOTE_LINK.search(kind + _marks(node) + (node.get("style") or ""))):
            if not _MARK.fullmatch(_text(node).strip()):
                self._descend(node, stack)
        elif name in ("sup", "sub"):
            self._raise(node, name)
        elif "mso-list:ignore" in (node.get("style") or "").lower().replace(" ", ""):
            mark = _text(node).replace("\xa0", " ").strip()
            self.words.append("- " if mark in _BULLETS else f"{mark} ")
        elif name == "header":
            self.flush()
            for child in reversed([child for child in node.iter(*_HEADINGS)]):
                stack.append(("open", child))
        else:
            if name in _BLOCKS or name in _HEADINGS:
                self.flush()
                if name == "li":
                    self._open_item()
                elif name in ("ol", "ul"):
                    start = node.get("start") or "1"
                    first = int(start) - 1 if re.fullmatch(r"\d{1,6}", start) else 0
                    self.lists.append(max(first, 0) if name == "ol" else -1)
                elif name in _HEADINGS:
                    self.heading = int(name[1])
                stack.append(("close", node))
            self._descend(node, stack)

    def _is_gone(self, node: Any, name: str) -> bool:
        if name == "script" and _TEX_SCRIPT.match(node.get("type") or ""):
            mark = "$$" if "display" in node.get("type") else "$"
            self.words.append(f"{mark}{_text(node).strip()}{mark}")
            return True
        if name in _GONE or node.get("hidden") is not None or _HIDDEN.search(node.get("style") or ""):
            return True
        if name == "aside" and "note" not in _kind(node):
            return True
        if name in _WHOLE:
            return False
        if _BOILERPLATE.search(_marks(node)):
            return True
        if name == "span" and "katex-html" in _marks(node):
            return True  # the same formula stands beside it as MathML
        return name in ("ul", "ol", "div", "p", "dl") and _is_navigation(node)

    @staticmethod
    def _is_layout(table: Any) -> bool:
        """Whether a table only places things on the page: it holds headings or other tables."""
        if next(table.iter("th"), None) is not None:
            return False
        return next(table.iter(*_HEADINGS), None) is not None or len(list(table.iter("table"))) > 2

    def _table(self, node: Any) -> None:
        from lxml import etree

        self.flush()
        for formula in list(node.iter("math")):
            formula.tail = mathml(formula) + (formula.tail or "")
            for child in list(formula):
                formula.remove(child)
        markup = etree.tostring(node, encoding="unicode", method="html", with_tail=False)
        for is_table, text in read_tables(markup):
            self.add("table" if is_table else "text", text)

    def _raise(self, node: Any, name: str) -> None:
        """x<sup>2</sup> becomes x^2; the marks of notes go."""
        text = _text(node).strip()
        before = "".join(self.words[-3:]).rstrip()[-1:]
        linked = any((link.get("href") or "").startswith("#") for link in node.iter("a"))
        after_word = han_count(before) and before != "米"  # 厘米³ is no note
        note = re.fullmatch(r"\[.{1,6}\]", text) or (_MARK.fullmatch(text) and (linked or after_word))
        if text and not (name == "sup" and note):
            self.words.append(raised(name, text))

    def _open_item(self) -> None:
        if not self.lists or self.lists[-1] < 0:
            self.marks.append("- ")
            return
        self.lists[-1] += 1
        self.marks.append(f"{self.lists[-1]}. ")
