"""What every reader yields: a file as a run of blocks, in reading order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["heading", "text", "list", "table", "math"]


@dataclass(frozen=True)
class Block:
    """A heading, a paragraph, a list, a table or a displayed formula.

    `text` is final, readable text: one line per list item or table row (`a | b | c`), LaTeX as written.
    """

    kind: Kind
    text: str
    level: int = 0
    """Depth of a heading, 1 the highest; 0 for everything else."""

    def render(self) -> str:
        """The block as it stands in a document: headings carry `#` marks, so that they can be told from prose."""
        return f"{'#' * self.level} {self.text}" if self.kind == "heading" else self.text
