"""NumCT: choice questions about the numbers of a corpus, and the audit that shows they are not guessable.

`audit` and `build` are resolved when first used: the processes that read documents need neither, nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .tags import ANSWERABLE, BLANK, KINDS, TAGS

if TYPE_CHECKING:
    from .auditing import audit
    from .builder import build

__all__ = ["ANSWERABLE", "BLANK", "KINDS", "TAGS", "audit", "build"]

_WHERE = {"audit": "auditing", "build": "builder"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'numllm.numct' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value
