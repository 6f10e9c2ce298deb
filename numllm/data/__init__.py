"""Token batches: documents packed into rows, questions turned into labelled positions.

Every batch is a function of (data, seed, step): nothing is stored between steps, so a resumed run sees what
the interrupted one would have seen.
"""

from .batch import Batch, Choice
from .choices import ChoiceBatches
from .packing import Draw, Piece, lay_out, pack
from .text import TextBatches
from .tokens import Tokens, prepared

__all__ = ["Batch", "Choice", "ChoiceBatches", "Draw", "Piece", "TextBatches", "Tokens", "lay_out", "pack", "prepared"]
