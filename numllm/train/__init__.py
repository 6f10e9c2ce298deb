"""Training both adapters on the frozen model: a generator of events that prints nothing.

Both adapters' rows go through each frozen product together; each adapter's columns see its own rows only, so
the gradients are those of two separate runs (see `lora`).
"""

from .losses import batch_loss, choice_loss, digit_loss, forward_losses
from .run import train
from .state import fingerprint
from .trainer import Event, Source, Trainer, micro_batches

__all__ = [
    "Event", "Source", "Trainer", "batch_loss", "choice_loss", "digit_loss", "fingerprint", "forward_losses",
    "micro_batches", "train",
]
