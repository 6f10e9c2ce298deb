"""NumCT: choice questions about the numbers of a corpus, and the audit that shows they are not guessable."""

from .builder import BLANK, _chi_square_p, audit, build
from .tags import TAGS

__all__ = ["BLANK", "TAGS", "audit", "build"]
