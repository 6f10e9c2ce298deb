"""NumCT: choice questions about the numbers of a corpus, and the audit that shows they are not guessable.

`audit` and `build` are resolved when first used: the processes that read documents need neither, nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import resolver
from .tags import ANSWERABLE, BLANK, KINDS, TAGS

if TYPE_CHECKING:
    from .auditing import audit
    from .builder import build

__all__ = ["ANSWERABLE", "BLANK", "KINDS", "TAGS", "audit", "build"]

__getattr__ = resolver(__name__, {"audit": "auditing", "build": "builder"})
