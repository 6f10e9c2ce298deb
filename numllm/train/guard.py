"""Which steps of an adapter are taken: no NaN, no spike, and with fp16 a loss scaled to where its gradients fit."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

WINDOW, ENOUGH = 64, 16
"""Losses of taken steps that a new one is compared with, at most and at least."""
FLOOR = 1.0
"""Nats above the recent mean below which no loss is a spike: the losses of easy questions barely spread."""
FIRST_SCALE, LARGEST_SCALE, GROW_AFTER = 2.0**16, 2.0**24, 500


class Guard:
    """Judges each step of one adapter.

    scale: what the loss is multiplied by before the backward pass; halved when a gradient overflows, doubled
    after GROW_AFTER steps in a row without one, as in mixed-precision training (arXiv 1710.03740); None but
    for fp16. skipped: steps skipped in a row. taken: steps taken.
    """

    def __init__(self, spike: float, scaled: bool) -> None:
        self.spike = spike
        self.scale = FIRST_SCALE if scaled else None
        self.skipped = self.taken = 0
        self._clean = 0
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def judge(self, loss: float, norm: float) -> str | None:
        """Why a step must be skipped: "nan", "overflow" (lowers the scale) or "spike"; None when it is taken."""
        reason = self._reason(loss, norm)
        if reason is None:
            self._losses.append(loss)
            self.taken += 1
            self.skipped = 0
            self._clean += 1
            if self.scale is not None and self._clean % GROW_AFTER == 0:
                self.scale = min(2 * self.scale, LARGEST_SCALE)
            return None
        # An overflow is how the scale is found, and no sign of trouble while it can still fall.
        self.skipped += reason != "overflow"
        self._clean = 0
        return reason

    def _reason(self, loss: float, norm: float) -> str | None:
        if not math.isfinite(loss):
            return "nan"
        if not math.isfinite(norm):
            if self.scale is None or self.scale <= 1:
                return "nan"
            self.scale /= 2
            return "overflow"
        if self.spike and len(self._losses) >= ENOUGH:
            spread = statistics.pstdev(self._losses)
            if loss - statistics.fmean(self._losses) > max(self.spike * spread, FLOOR):
                return "spike"
        return None

    def state(self) -> dict[str, Any]:
        """What `load` takes up, as JSON."""
        return {
            "scale": self.scale, "skipped": self.skipped, "taken": self.taken, "clean": self._clean,
            "losses": list(self._losses),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`."""
        self.scale, self.skipped, self.taken = state["scale"], state["skipped"], state["taken"]
        self._clean = state["clean"]
        self._losses = deque(state["losses"], maxlen=WINDOW)
