"""NumCT: choice questions about the numbers of a corpus, and the audit that shows they are not guessable."""

from .audit import audit
from .builder import build
from .cheats import BLANK
from .tags import ANSWERABLE, KINDS, TAGS

__all__ = ["ANSWERABLE", "BLANK", "KINDS", "TAGS", "audit", "build"]
