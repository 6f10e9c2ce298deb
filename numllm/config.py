"""What a model, an adapter and a training run are: frozen dataclasses, checked when made.

`ModelConfig` is written in `model_config`, and what tells the families of models apart in `families`.
"""

from __future__ import annotations

import dataclasses
import math

from .errors import ConfigError
from .families import FAMILIES, Family
from .model_config import LINEARS, ModelConfig, Rope

__all__ = [
    "ADAPTERS", "FAMILIES", "LINEARS", "TARGETS", "Family", "LoRAConfig", "ModelConfig", "Rope", "TrainConfig",
]  # fmt: skip

TARGETS = tuple(name.split(".")[1] for name in LINEARS)
"""Llama's names of a block's linears, known to every family: see `ModelConfig.linear_names`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """One low-rank adapter: W + scale · B A on every linear it targets (LoRA, arXiv 2106.09685)."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS
    """Ends of the names of the linears it sits on: the checkpoint's own, or Llama's (`ModelConfig.linear_names`)."""

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ConfigError(f"rank must be a positive whole number, got {self.rank!r}")
        if not math.isfinite(self.alpha) or self.alpha == 0:
            raise ConfigError(f"alpha must be a finite number other than 0, got {self.alpha!r}")
        if not self.targets:
            raise ConfigError("targets must name at least one linear, got none")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank


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
    steps: int = 300
    length: int = 512
    """Tokens a row."""
    rows: int = 8
    """Rows of text a step (domain)."""
    questions: int = 8
    """Questions a step (numeric)."""
    loss: str = "letter"
    """Choice loss of the numeric adapter: "letter" or "likelihood"."""
    text_weight: float = 0.0
    """With "likelihood": weight of the next-token loss on the right option's text, added to the choice loss."""
    domain: LoRAConfig = LoRAConfig()
    numeric: LoRAConfig = LoRAConfig()
    domain_rate: float = 2e-4
    numeric_rate: float = 2e-4
    warmup: float = 0.05
    """Share of the steps over which the rate rises."""
    last_rate: float = 0.1
    """The rate at the end, as a share of the highest."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest norm of an adapter's gradient."""
    seed: int = 0
    save_every: int = 100
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints kept."""
    device: str = "cpu"
    dtype: str | None = None
    """float32, bfloat16 or float16 of the frozen weights; None: as on disk."""
    impl: str = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "length", "rows", "questions", "save_every", "keep"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a positive whole number, got {value!r}")
        for name in ("domain_rate", "numeric_rate", "clip"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise ConfigError(f"{name} must be a positive number, got {value!r}")
        if not 0 <= self.warmup <= 1 or not 0 <= self.last_rate <= 1:
            raise ConfigError("warmup and last_rate must be shares between 0 and 1")
        if not self.adapters or set(self.adapters) - set(ADAPTERS):
            raise ConfigError(f"adapters must be some of {', '.join(ADAPTERS)}, got {self.adapters!r}")
        if "domain" in self.adapters and self.corpus is None:
            raise ConfigError("the domain adapter needs a corpus; give --corpus or --adapters numeric")
        if "numeric" in self.adapters and self.numct is None:
            raise ConfigError("the numeric adapter needs choice questions; give --numct or --adapters domain")
        if self.loss not in ("letter", "likelihood"):
            raise ConfigError(f"loss must be letter or likelihood, got {self.loss!r}")
        if not math.isfinite(self.text_weight) or self.text_weight < 0:
            raise ConfigError(f"text_weight must be a number of at least 0, got {self.text_weight!r}")
        if self.text_weight and self.loss != "likelihood":
            raise ConfigError("text_weight needs the loss likelihood: the letter loss scores no text")
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise ConfigError(f"dtype must be float32, bfloat16 or float16, got {self.dtype!r}")

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
