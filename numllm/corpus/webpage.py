"""HTML pages as blocks, by beautifulsoup4 and lxml (extra `textbooks`)."""

from __future__ import annotations

import re
from typing import Any

from ..errors import DataError
from .blocks import Block
from .clean import normalise
from .markup import read_tables

_GONE = frozenset(
    (
        "script style noscript template nav header footer aside form iframe svg canvas button select textarea head "
        "object embed video audio del s strike pre img input col"
    ).split()
)
_WHOLE = frozenset(("html", "body", "main", "article"))
_BOILERPLATE = re.compile(
    r"(?:^|[-_ ])(?:nav|navbar|navigation|menu|sidebar|breadcrumbs?|footer|toc|pagination|cookie|share)(?:$|[-_ ])",
    re.I,
)
_BLOCKS = frozenset(
    "address article blockquote body center dd details div dl dt fieldset figcaption figure h1 h2 h3 h4 h5 h6 hr html "
    "li main ol p section summary table tbody td tfoot th thead tr ul".split()
)


def read_html(text: str) -> list[Block]:
    """The blocks of an HTML page: its main text without navigation, scripts and code.

    DataError names the extra when beautifulsoup4 or lxml is not installed.
    """
    try:
        import lxml  # noqa: F401  (the parser that bs4 is asked for)
        from bs4 import BeautifulSoup
        from bs4.exceptions import ParserRejectedMarkup
    except ImportError as error:
        raise DataError(
            "HTML needs beautifulsoup4 and lxml; install them with: pip install 'numllm[textbooks]'"
        ) from error
    # The text is decoded already; a declaration that names another encoding must not confuse the parser.
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    try:
        soup = BeautifulSoup(text + "\n", "lxml")  # the line end tells bs4 that this is no file name
    except ParserRejectedMarkup as error:
        raise DataError(f"not HTML: {error}") from error
    title = normalise(soup.title.get_text(" ")) if soup.title else ""
    root = soup.find("main") or soup.find(attrs={"role": "main"}) or soup.find("article") or soup.body or soup
    walker = _Walker()
    walker.walk(root)
    walker.flush()
    if title and not any(block.kind == "heading" and block.level == 1 for block in walker.blocks):
        walker.blocks.insert(0, Block("heading", title, 1))
    return walker.blocks


def _marks(node: Any) -> str:
    """What an element calls itself: its classes, id and role."""
    return " ".join([*(node.get("class") or []), str(node.get("id") or ""), str(node.get("role") or "")])


class _Walker:
    """Turns the tree into blocks, without recursion: pages may be nested as deep as they like."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.words: list[str] = []
        self.marks: list[str] = []
        """The mark, `- ` or `1. `, of each list item that is open, "" once it is written."""
        self.counts: dict[int, int] = {}

    def add(self, kind: Any, text: str, level: int = 0) -> None:
        text = "\n".join(line for line in (part.strip() for part in text.split("\n")) if line)
        if text:
            self.blocks.append(Block(kind, text, level))

    def flush(self) -> None:
        """Ends the text collected so far: a paragraph, or a line of a list inside list items."""
        text, self.words = normalise("".join(self.words)), []
        if not self.marks or not text:
            self.add("text", text)
            return
        line = f"{'  ' * (len(self.marks) - 1)}{self.marks[-1]}{text}".replace("\n", " ")
        self.marks[-1] = ""  # further paragraphs of an item carry no mark
        if self.blocks and self.blocks[-1].kind == "list":
            line = f"{self.blocks.pop().text}\n{line}"
        self.blocks.append(Block("list", line))

    def walk(self, root: Any) -> None:
        from bs4.element import NavigableString, PreformattedString, Tag

        stack: list[tuple[str, Any]] = [("open", root)]
        while stack:
            action, node = stack.pop()
            if action == "close":
                self.flush()
                if node.name == "li":
                    self.marks.pop()
            elif isinstance(node, Tag):
                self._open(node, stack)
            elif isinstance(node, NavigableString) and not isinstance(node, PreformattedString):
                self.words.append(re.sub(r"[ \t\r\n\f]+", " ", str(node)))

    def _open(self, node: Any, stack: list[tuple[str, Any]]) -> None:
        name = node.name
        if name in _GONE or (name not in _WHOLE and _BOILERPLATE.search(_marks(node))):
            return
        if name == "br":
            self.words.append("\n")
        elif name == "table":
            self.flush()
            for is_table, text in read_tables(str(node)):
                self.add("table" if is_table else "text", text)
        elif name in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self.flush()
            self.add("heading", normalise(re.sub(r"\s+", " ", node.get_text(""))), int(name[1]))
        elif name in ("sup", "sub") and (text := node.get_text("").strip()):
            if not re.fullmatch(r"\[.{1,6}\]", text):
                mark = "^" if name == "sup" else "_"
                self.words.append(mark + (text if len(text) == 1 or text.isdigit() else f"({text})"))
        else:
            if name in _BLOCKS:
                self.flush()
                if name == "li":
                    self._open_item(node)
                stack.append(("close", node))
            stack.extend(("open", child) for child in reversed(list(node.children)))

    def _open_item(self, node: Any) -> None:
        if node.parent is None or node.parent.name != "ol":
            self.marks.append("- ")
            return
        number = self.counts[id(node.parent)] = self.counts.get(id(node.parent), 0) + 1
        self.marks.append(f"{number}. ")
