"""Training both adapters on the frozen model: a generator of events that prints nothing.

Both adapters' rows go through each frozen product together; each adapter's columns see its own rows only, so
the gradients are those of two separate runs (see `lora`).
"""

import sys
import types
from typing import Any

from .losses import batch_loss, choice_loss, digit_loss, forward_losses, head_losses
from .marks import fingerprint
from .plan import plan
from .run import train
from .trainer import Event, Source, Trainer, micro_batches
from .world import Meeting, World, joined

__all__ = [
    "Event", "Meeting", "Source", "Trainer", "World", "batch_loss", "choice_loss", "digit_loss", "fingerprint",
    "forward_losses", "head_losses", "joined", "micro_batches", "plan", "train",
]


class _Callable(types.ModuleType):
    """`numllm.train(...)` is `numllm.train.train(...)`, whatever was imported before."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return train(*arguments, **named)


sys.modules[__name__].__class__ = _Callable
