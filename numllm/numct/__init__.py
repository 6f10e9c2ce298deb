"""NumCT: choice questions about the numbers of a corpus, and the audit that shows they are not guessable."""

from .asking import KINDS
from .audit import audit
from .builder import build
from .cheats import BLANK
from .tags import TAGS

__all__ = ["BLANK", "KINDS", "TAGS", "audit", "build"]
