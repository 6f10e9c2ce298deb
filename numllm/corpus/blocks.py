"""What every reader yields: a file as a run of blocks, in reading order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Kind = Literal["heading", "text", "list", "table", "math"]


class Block(NamedTuple):
    """A heading, a paragraph, a list, a table or a displayed formula.

    `text` is final, readable text: one line per list item or table row (`a | b | c`), LaTeX as written.
    """

    kind: Kind
    text: str
    level: int = 0
    """Depth of a heading, 1 the highest; 0 for everything else."""
    page: str = ""
    """Where the block begins in its file: the page of a PDF or Word file, the part of an EPUB; "" elsewhere."""

    def render(self) -> str:
        """The block as it stands in a document: headings carry `#` marks, so that they can be told from prose."""
        return f"{'#' * self.level} {self.text}" if self.kind == "heading" else self.text


@dataclass(frozen=True)
class Reading:
    """What a file holds, and what was left out of it."""

    blocks: list[Block]
    notes: list[str] = field(default_factory=list)
    """One line for each thing that could not be read, such as pages that are pictures."""
