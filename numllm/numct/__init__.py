"""NumCT: choice questions about the numbers of a corpus, and the audit that shows they are not guessable."""

from .audit import audit
from .builder import build
from .candidates import KINDS
from .cheats import BLANK
from .tags import ANSWERABLE, TAGS

__all__ = ["ANSWERABLE", "BLANK", "KINDS", "TAGS", "audit", "build"]
