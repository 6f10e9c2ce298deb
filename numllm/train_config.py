"""The settings of a training run."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from .config import LoRAConfig
from .errors import ConfigError
from .fields import check_types

ADAPTERS = ("domain", "numeric")
"""The two adapters of the method, in the order they are stacked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Rates, ranks and the like that differ by adapter are given per adapter."""

    model: str
    """Checkpoint: folder, Hub id or demo."""
    out: str
    """Run folder."""
    corpus: str | None = None
    """Folder or file of corpus.jsonl; needed by the domain adapter."""
    numct: str | None = None
    """numct.jsonl; needed by the numeric adapter."""
    adapters: tuple[str, ...] = ADAPTERS
    """The adapters trained: both share every step, or one alone."""
    steps: int = 300
    """Optimizer steps."""
    length: int = 512
    """Tokens a row."""
    rows: int = 8
    """Rows of text a step (domain)."""
    questions: int = 8
    """Questions a step (numeric)."""
    loss: Literal["letter", "likelihood"] = "letter"
    """Choice loss of the numeric adapter: the answer's letter, or the likelihood of the options."""
    text_weight: float = 0.0
    """With "likelihood": weight of the next-token loss on the right option's text, added to the choice loss."""
    domain: LoRAConfig = LoRAConfig()
    numeric: LoRAConfig = LoRAConfig()
    domain_rate: float = 2e-4
    """Highest learning rate of the domain adapter."""
    numeric_rate: float = 2e-4
    """Highest learning rate of the numeric adapter."""
    warmup: float = 0.05
    """Share of the steps over which the rate rises."""
    last_rate: float = 0.1
    """The rate at the end, as a share of the highest."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    clip: float = 1.0
    """Largest norm of an adapter's gradient."""
    seed: int = 0
    """Of the adapters' start and the order of the data."""
    save_every: int = 100
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints kept."""
    device: str = "cpu"
    """cpu, cuda or cuda:1; on the command line also auto, cuda where there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the frozen weights; default: as on disk."""
    impl: Literal["auto", "torch", "triton", "triton-fused"] = "auto"
    """What computes the adapted linears; auto: Triton kernels on CUDA."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("steps", "length", "rows", "questions", "save_every", "keep"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} must be a positive whole number, got {value!r}")
        for name in ("domain_rate", "numeric_rate", "clip"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise ConfigError(f"{name} must be a positive number, got {value!r}")
        if not 0 <= self.warmup <= 1 or not 0 <= self.last_rate <= 1:
            raise ConfigError("warmup and last_rate must be shares between 0 and 1")
        if not self.adapters or set(self.adapters) - set(ADAPTERS):
            raise ConfigError(f"adapters must be some of {', '.join(ADAPTERS)}, got {self.adapters!r}")
        if not math.isfinite(self.text_weight) or self.text_weight < 0:
            raise ConfigError(f"text_weight must be a number of at least 0, got {self.text_weight!r}")
        if self.text_weight and self.loss != "likelihood":
            raise ConfigError("text_weight needs the loss likelihood: the letter loss scores no text")

    def lora(self, adapter: str) -> LoRAConfig:
        """The LoRA settings of an adapter."""
        return getattr(self, adapter)

    def rate(self, adapter: str, step: int) -> float:
        """Learning rate of a step (from 0): linear warm-up, then cosine decay to last_rate of the highest."""
        highest = getattr(self, f"{adapter}_rate")
        warmup = round(self.warmup * self.steps)
        if step < warmup:
            return highest * (step + 1) / warmup
        share = (step - warmup) / max(self.steps - warmup, 1)
        return highest * (self.last_rate + (1 - self.last_rate) * 0.5 * (1 + math.cos(math.pi * share)))
