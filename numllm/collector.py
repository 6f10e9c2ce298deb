"""Python's garbage collector kept away from what does not become garbage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def frozen_heap() -> Iterator[None]:
    """Leaves the objects there are now out of collections, meanwhile; a decorator, too.

    A full collection goes through all of torch's modules and stops every thread for a tenth of a second: as long as
    loading half a gigabyte. Where somebody has frozen the heap already nothing is done.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
