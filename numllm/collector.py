"""Python's garbage collector kept away from what does not become garbage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

SELDOM = 50_000
"""Objects made between two looks for cycles among them. Work on text makes many objects and hardly a cycle."""


@contextlib.contextmanager
def frozen_heap() -> Iterator[None]:
    """Leaves the objects there are now out of collections, meanwhile, and collects `SELDOM`; a decorator, too.

    A full collection goes through all of torch's modules and stops every thread for a tenth of a second: a fifth of the
    time that loading a gigabyte took. Where somebody has frozen the heap already nothing is done.
    """
    if gc.get_freeze_count():
        yield
        return
    first, *others = gc.get_threshold()
    gc.freeze()
    if first:  # 0: collections are off
        gc.set_threshold(max(first, SELDOM), *others)
    try:
        yield
    finally:
        gc.set_threshold(first, *others)
        gc.unfreeze()
