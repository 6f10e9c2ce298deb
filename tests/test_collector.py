"""The heap is frozen for as long as asked, and by nobody else's leave thawed."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import tiny

from numllm.collector import SELDOM, frozen_heap
from numllm.model import load_model


class Knot:
    """Garbage that only a collection finds."""

    def __init__(self) -> None:
        self.me = self


def test_what_was_there_is_left_alone_and_what_comes_is_not() -> None:
    before = weakref.ref(Knot())
    with frozen_heap():
        after = weakref.ref(Knot())
        gc.collect()
        assert before() is not None and after() is None
    gc.collect()
    assert before() is None and gc.get_freeze_count() == 0


def test_an_error_thaws() -> None:
    before = gc.get_threshold()
    with pytest.raises(ZeroDivisionError), frozen_heap():
        assert gc.get_threshold()[0] == SELDOM
        1 / 0  # noqa: B018
    assert gc.get_freeze_count() == 0 and gc.get_threshold() == before


def test_collections_that_are_off_stay_off() -> None:
    before = gc.get_threshold()
    gc.set_threshold(0)
    try:
        with frozen_heap():
            assert gc.get_threshold()[0] == 0
    finally:
        gc.set_threshold(*before)


def test_a_heap_that_somebody_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        with frozen_heap(), frozen_heap():
            pass
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()


def test_loading_leaves_the_heap_as_it_was(tmp_path: Path) -> None:
    load_model(tiny.base(tmp_path / "base"))
    assert gc.get_freeze_count() == 0
