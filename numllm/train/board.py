"""Events as TensorBoard files, written by TensorBoard's own package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import NumLLMError


class Board:
    """A TensorBoard log of a run: every figure of every event, under "adapter/figure".

    step: what was logged after it, by a run that was killed, is taken back. NumLLMError without the package.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise NumLLMError("--tensorboard needs its package; pip install 'numllm[tensorboard]'") from error
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def note(self, event: dict[str, Any]) -> None:
        """Logs an event that has a step."""
        if "step" not in event:
            return
        kind = "" if event["event"] == "step" else event["event"]
        place = [part for part in (event.get("adapter"), kind) if part]
        for key, value in event.items():
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                self._writer.add_scalar("/".join([*place, key]), value, event["step"])

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()
