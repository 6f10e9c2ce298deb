"""What a model and an adapter are: frozen dataclasses, checked when made.

`ModelConfig` is written in `model_config`, and what tells the families of models apart in `families`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from .errors import ConfigError
from .families import FAMILIES, Family
from .fields import check_types
from .model_config import LINEARS, ModelConfig, Rope

__all__ = ["FAMILIES", "LINEARS", "TARGETS", "Family", "LoRAConfig", "ModelConfig", "Rope", "named"]

TARGETS = tuple(name.split(".")[1] for name in LINEARS)
"""Llama's names of a block's linears, known to every family: see `ModelConfig.linear_names`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """One low-rank adapter: W + scale · B A on every linear it targets (LoRA, arXiv 2106.09685)."""

    rank: int = 16
    """Rank r of B A."""
    alpha: float = 32.0
    """The scale is alpha / rank."""
    targets: tuple[str, ...] = TARGETS
    """Ends of the names of the linears it sits on: the checkpoint's own, or Llama's (`ModelConfig.linear_names`); where
    named, lm_head and embed_tokens too."""
    exclude: tuple[str, ...] = ()
    """Modules left out all the same: whole names, or their ends after a dot."""
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Other ranks: module, by its whole name or its end, → rank; the first that fits counts."""
    alphas: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Other alphas, named in the same way."""
    rslora: bool = False
    """The scale is alpha / √rank (rank-stabilised LoRA, arXiv 2312.03732)."""
    dora: bool = False
    """Rows of W + scale · B A are rescaled to a trained magnitude (DoRA, arXiv 2402.09353)."""
    dropout: float = 0.0
    """Share of the entries of x that A does not see while training."""
    bias: Literal["none", "lora_only", "all"] = "none"
    """Biases trained in the base's place: none, those of the targeted linears, or those of all linears."""
    modules_to_save: tuple[str, ...] = ()
    """Modules trained whole, such as lm_head or norm: whole names, or their ends after a dot."""
    start: Literal["default", "gaussian", "orthogonal", "pissa", "olora"] = "default"
    """Where A and B begin (see `numllm.lora.starts`)."""

    def __post_init__(self) -> None:
        check_types(self)
        for rank in (self.rank, *self.ranks.values()):
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise ConfigError(f"rank must be a positive whole number, got {rank!r}")
        for alpha in (self.alpha, *self.alphas.values()):
            if not math.isfinite(alpha) or alpha == 0:
                raise ConfigError(f"alpha must be a finite number other than 0, got {alpha!r}")
        if not self.targets:
            raise ConfigError("targets must name at least one linear, got none")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be a share from 0 to below 1, got {self.dropout!r}")
        if self.start == "orthogonal" and any(rank % 2 for rank in (self.rank, *self.ranks.values())):
            raise ConfigError("an orthogonal start needs even ranks: it shares the directions out between A and B")
        if self.dora and self.start in ("pissa", "olora"):
            raise ConfigError(f"dora does not go with the start {self.start}: that moves the weight it rescales")

    @property
    def scale(self) -> float:
        """alpha / rank, or alpha / √rank, where no module has its own."""
        return self._scale(self.rank, self.alpha)

    def _scale(self, rank: int, alpha: float) -> float:
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def of(self, module: str) -> tuple[int, float]:
        """(rank, scale) of a module by its name."""
        rank, alpha = (
            next((value for name, value in own.items() if named(module, name)), default)
            for own, default in ((self.ranks, self.rank), (self.alphas, self.alpha))
        )
        return rank, self._scale(rank, alpha)


def named(module: str, name: str) -> bool:
    """Whether a name is the module's, whole or its end after a dot."""
    return module == name or module.endswith(f".{name}")
